"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

from chainrule import cli

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(number, capsys):
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {})


def test_every_make_task_of_the_readme_exists():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for task in re.findall(r"(?:^|`)make (\w[\w-]*)", README, flags=re.MULTILINE):
        assert re.search(rf"^{task}:", makefile, flags=re.MULTILINE), task


def test_every_command_of_the_readme_parses(capsys):
    commands = re.findall(r"^(?:echo .* \| )?chainrule (.*)$", README, flags=re.MULTILINE)
    assert commands
    for command in commands:
        words = [word for word in command.split() if not word.startswith("-")]
        with pytest.raises(SystemExit) as ended:
            cli.main([*words[: 2 if words[0] == "ner" else 1], "--help"])
        assert ended.value.code == 0
        options = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", command):
            assert option in options
