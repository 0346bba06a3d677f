"""The example scripts in a short form, and that each has a page whose code runs."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "examples").glob("*.md"))


@pytest.fixture
def script(monkeypatch):
    """Imports a script by its name, from the folder of the examples."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    return importlib.import_module


def test_function_fitting_learns(script, tmp_path):
    example = script("function")
    assert example.main(["--steps", "1500"]) < 0.25
    pytest.importorskip("matplotlib")
    example.draw(*example.fit(60), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_tables_learn(script):
    pytest.importorskip("sklearn")
    accuracy, r2 = script("tables").main(["--epochs", "20"])
    assert accuracy > 0.9
    assert r2 > 0.2


def test_ppo_learns_and_has_one_hash_for_any_threads(script):
    pytest.importorskip("gymnasium")
    ppo = script("ppo")
    hashes = set()
    for threads in (1, 2, 4):
        make = lambda *sizes, n=threads: ppo.Agent(*sizes, n)  # noqa: E731
        agent, episodes, times = ppo.train(make, 1, 8 * 1024)
        hashes.add(agent.weights())
    assert len(hashes) == 1
    assert episodes[-20:, 2].mean() > 2.0 * episodes[:20, 2].mean()
    assert 0.0 < times["updates"] < times["seconds"]


def test_ppo_in_pytorch_runs(script):
    pytest.importorskip("gymnasium")
    pytest.importorskip("torch")
    _, episodes, _ = script("ppo").train(script("ppo_torch").Agent, 1, 2 * 1024)
    assert len(episodes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page):
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert snippets
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{page.name} snippet {number}", "exec"), {})


def test_pages_show_pictures_that_are_there():
    assert {p.stem for p in PAGES} == {"function", "ppo", "tables"}
    for page in PAGES:
        text = page.read_text()
        assert f"]({page.stem}.png)" in text
        assert page.with_suffix(".png").is_file()
        assert f"examples/{page.stem}.py" in text
