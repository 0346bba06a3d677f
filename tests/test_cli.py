"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time

import pytest

import chainrule as cr
from chainrule import cli, ner

TEXT = "we met Zoe Stone in Kiel ."


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A corpus and two models trained on it by the command."""
    folder = tmp_path_factory.mktemp("cli")
    lines = [
        f"we\tO\nmet\tO\n{name}\tB-person\nStone\tI-person\nin\tO\n{city}\tB-place\n.\tO\n\n"
        for name in ("Ann", "Bob", "Carla", "Dan", "Eve")
        for city in ("Oslo", "Lima", "Bonn", "Rome")
    ]
    (folder / "train.conll").write_text("".join(lines))
    for name, more in ("model", []), ("binary", ["--binary", "place"]):
        words = ["ner", "train", folder / "train.conll", "--dev", "0.2", "--seed", "1"]
        words += ["--epochs", "15", "--out", folder / name, *more]
        status = cli.main([str(word) for word in words])
        assert status == 0
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*words, stdin=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def error(result):
    """The one line that a failed command prints."""
    status, out, err = result
    assert status == 2 and out == ""
    assert err.startswith("chainrule: error: ") and err.count("\n") == 1, err
    return err


def test_tag_text(run, files):
    status, out, _ = run("ner", "tag", files / "model", stdin=f"{TEXT}\n\n")
    assert status == 0
    assert out == "we met [Zoe Stone](person) in [Kiel](place) .\n\n"


def test_tag_binary(run, files):
    _, out, _ = run("ner", "tag", files / "binary", "-", stdin=TEXT)
    assert out == "we met Zoe Stone in [Kiel](place) .\n"


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("text", TEXT),
        ("tokens", TEXT),
        ("conll", "".join(f"{t}\n" for t in TEXT.split())),
        ("conll", "".join(f"{t} NN O\n" for t in TEXT.split())),
        ("jsonl", json.dumps({"text": TEXT})),
        ("jsonl", json.dumps({"tokens": TEXT.split(), "tags": ["O"] * 7})),
    ],
)
def test_tag_forms(run, files, tmp_path, form, data):
    path = tmp_path / "in"
    path.write_text(data)
    _, out, _ = run("ner", "tag", files / "model", path, "--input", form, "--format", "conll")
    tags = ["O", "O", "B-person", "I-person", "O", "B-place", "O"]
    assert out == "".join(f"{a}\t{b}\n" for a, b in zip(TEXT.split(), tags, strict=True)) + "\n"
    (tmp_path / "out.conll").write_text(out)
    assert ner.read_conll(tmp_path / "out.conll")[0].tags == tags
    _, out, _ = run("ner", "tag", files / "model", path, "--input", form, "--format", "jsonl")
    record = json.loads(out)
    assert [(e["text"], e["label"]) for e in record["entities"]] == [
        ("Zoe Stone", "person"),
        ("Kiel", "place"),
    ]
    (tmp_path / "out.jsonl").write_text(out)
    assert ner.read_jsonl(tmp_path / "out.jsonl")[0].tags == tags


def test_min_score_and_html(run, files, tmp_path):
    page = tmp_path / "p.html"
    _, out, _ = run("ner", "tag", files / "model", "--min-score", "1", "--html", page, stdin=TEXT)
    assert out == f"{TEXT}\n"
    assert TEXT in page.read_text()


def test_colour_only_on_a_terminal(files):
    pty = pytest.importorskip("pty")

    def tag(**environment):
        leader, follower = pty.openpty()
        words = [sys.executable, "-m", "chainrule.cli", "ner", "tag", files / "model"]
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        env |= {"TERM": "xterm", **environment}
        subprocess.run(words, input=TEXT.encode(), stdout=follower, env=env, check=True)
        os.close(follower)
        return os.read(leader, 1000).decode()

    assert "\x1b[30;48;5;" in tag()
    assert "\x1b" not in tag(NO_COLOR="1")


def test_evaluate(run, files, tmp_path):
    _, out, _ = run("ner", "evaluate", files / "model", files / "train.conll")
    assert out.splitlines()[-1].split()[0] == "all"
    page = tmp_path / "p.html"
    _, out, _ = run(
        "ner", "evaluate", files / "model", files / "train.conll", "--json", "--html", page
    )
    assert json.loads(out)["overall"]["f1"] > 0.9 and "<table>" in page.read_text()


def test_info(run, files):
    _, out, _ = run("ner", "info", files / "model")
    assert "person, place" in out and "seed" in out


def test_doctor(run):
    status, out, _ = run("doctor")
    assert status == 0 and cr.__version__ in out
    for word in "isa", "cores", "openmp", "numpy":
        assert word in out.lower()


def test_demo(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("ner", "demo", "--epochs", "2")
    assert status == 0 and "precision" in out and cli.DEMO_SENTENCE.split()[0] in out
    assert "epoch   2" in err
    written = sorted(p.name for p in (tmp_path / "chainrule-demo").iterdir())
    assert written == ["curves.png", "model.safetensors"]
    ner.WindowTagger.load(tmp_path / "chainrule-demo" / "model.safetensors")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["ner"],
        ["ner", "train", "x"],
        ["nonsense"],
        ["ner", "tag", "m", "--min-score", "2"],
        ["ner", "demo", "--epochs", "0"],
    ],
)
def test_wrong_words(run, words):
    assert "--help" in error(run(*words))


def test_bad_files_leave_one_line_and_no_model(run, files, tmp_path):
    good, out = files / "train.conll", tmp_path / "m"
    bad = tmp_path / "bad.conll"
    bad.write_text("a\tO\nb\n")

    def train(*words):
        return error(run("ner", "train", *words, "--out", out))

    assert "bad.conll:2" in train(bad, "--dev", "0.1")
    assert "bad.conll:2" in train(good, "--dev", bad)
    assert "none.conll" in train(tmp_path / "none.conll", "--dev", "0.1")
    assert "no such file, and no fraction" in train(good, "--dev", "none")
    assert "between 0 and 1" in train(good, "--dev", "1.5")
    assert "lecture" in train(good, "--dev", "0.1", "--preset", "x")
    assert "'date'" in train(good, "--dev", "0.1", "--binary", "date")
    (tmp_path / "v.txt").write_text("a 1 2\nb 1\n")
    assert "v.txt:2" in train(good, "--dev", "0.1", "--vectors", tmp_path / "v.txt")
    assert "no folder" in error(
        run("ner", "train", good, "--dev", "0.1", "--out", tmp_path / "no" / "m")
    )
    for command in ["tag", bad], ["info", bad], ["evaluate", bad, good], ["tag", tmp_path]:
        assert str(command[1]) in error(run("ner", *command))
    assert "2: expected" in error(run("ner", "evaluate", files / "model", bad))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    assert "latin.txt:1: not UTF-8" in error(
        run("ner", "tag", files / "model", tmp_path / "latin.txt")
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.conll", "latin.txt", "v.txt"]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_with_130_and_no_model(files, tmp_path):
    import signal

    words = [sys.executable, "-m", "chainrule.cli", "ner", "train", files / "train.conll"]
    words += ["--dev", "0.1", "--epochs", "1000000", "--out", tmp_path / "m"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    process.stderr.readline()  # an epoch is over: training runs
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < 10
    assert err.endswith(b"chainrule: interrupted\n") and b"Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_bench_compares_only_equal_training():
    from chainrule import bench

    for name in ("ner", "rl", "mnist-adam"):
        case = bench.CASES[name]
        ours, numpy = (
            bench.checked(case, kind(case, 1)) for kind in (bench.Chainrule, bench.Numpy)
        )
        assert ours == pytest.approx(numpy, abs=1e-6) and ours < case.loss(case.start())
