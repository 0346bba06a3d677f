"""The tutorial runs as it stands, and its pictures are those that it draws."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def snippets(name):
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("name", ["tutorial.md", "tutorial.ko.md"])
def test_tutorial(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {}
    for number, snippet in enumerate(snippets(name), 1):
        exec(compile(snippet, f"{name}, snippet {number}", "exec"), space)
    for picture in tmp_path.glob("*.svg"):
        assert picture.read_text("utf-8") == (DOCS / picture.name).read_text("utf-8"), picture.name
    shown = re.findall(r"!\[[^]]*\]\((.*?)\)", (DOCS / name).read_text("utf-8"))
    assert sorted(shown) == sorted(p.name for p in tmp_path.glob("*.svg"))


def test_both_languages_have_the_same_snippets():
    def code(name):  # comments may differ
        return [re.sub(r"\s*#.*", "", s) for s in snippets(name)]

    assert code("tutorial.md") == code("tutorial.ko.md")
