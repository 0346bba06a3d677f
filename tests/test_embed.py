"""The examples of docs/embed.md run."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "embed.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:training has not converged")
def test_the_example_runs(block, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    exec(compile(BLOCKS[block], f"docs/embed.md, example {block}", "exec"), {})
    assert capsys.readouterr().out
