"""WindowTagger, its windows, its scores: on a tiny corpus and on the bundled one."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import pairwise, product

import numpy as np
import pytest

from chainrule.errors import DataError, FileError, UsageError
from chainrule.ner import Sentence, Span, Vectors, WindowTagger, read_marked, score
from chainrule.ner.report import Palette, curves, mark, scores_page, table, text_page
from chainrule.ner.tagger import _bioes, _follows, _tags, _viterbi
from chainrule.ner.windows import CASES, FIRST, PADDING, Windows, case, normalise, shape, view

DEMO = "the museums in Paris are amazing to see"
CITIES = ["Oslo", "Lima", "Bonn", "Rome", "Cairo", "Delhi"]
NAMES = ["Ann", "Bob", "Carla", "Dan", "Eve", "Finn"]


def tiny():
    sentences = []
    for city, name in product(CITIES, NAMES):
        tokens = ("we", "met", name, "Stone", "in", city, ".")
        spans = (Span(2, 4, "person"), Span(5, 6, "place"))
        sentences.append(Sentence(tokens, spans))
    return sentences


def small(**options):
    settings = {"hidden": (16,), "views": {"word": 8, "case": 4}, "seed": 0, "learning_rate": 0.01}
    return WindowTagger(**(settings | options))


@pytest.fixture(scope="module")
def tagger():
    return small().fit(tiny(), epochs=4)


@pytest.fixture(scope="module")
def binary():
    return small(classifier="logistic", target="place").fit(tiny(), epochs=4)


# -- windows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("museums", "lower"),
        ("Paris", "Title"),
        ("Élan", "Title"),
        ("KLM", "UPPER"),
        ("I", "initial"),
        ("iPhone", "mixed"),
        ("서울", "uncased"),
        ("7", "digit"),
        ("42", "two digits"),
        ("2022", "four digits"),
        ("12345", "digits"),
        ("18:30", "clock"),
        ("3.5", "number"),
        ("7pm", "digits and letters"),
        ("...", "punctuation"),
        ("\u200b", "punctuation"),
    ],
)
def test_case(token, kind):
    assert case(token) == kind and kind in CASES


def test_views():
    assert normalise("Covid-19") == "covid-00"
    assert shape("McDonald's18") == "XxXxxxx'xdd"
    assert view("suffix3")("Amazing") == "ing" and view("prefix2")("Q") == "q"
    assert view("script")("경") == "HANGUL Lo"
    with pytest.raises(UsageError, match="unknown view 'suffix'"):
        view("suffix")


def test_windows_of_a_sentence():
    windows = Windows.build([["in", "Paris", "in", "Paris", "Rome"]], 1, ["word", "case"])
    assert windows.vocabularies == {"word": ["in", "paris"], "case": []}
    ids = windows.ids(["in", "PARIS", "Bonn", "18:30"])
    title, clock = 1 + CASES.index("Title"), 1 + CASES.index("clock")
    expected = [
        [PADDING, FIRST, FIRST + 1],
        [FIRST, FIRST + 1, title],
        [FIRST + 1, title, clock],
        [title, clock, PADDING],
    ]
    assert ids["word"].tolist() == expected and ids["word"].dtype == np.int32
    assert ids["case"][1, 1] == 1 + CASES.index("UPPER")
    assert {n: t.shape for n, t in windows.ids([]).items()} == {"word": (0, 3), "case": (0, 3)}
    both = windows.batch([["in"], [], ["Rome", "in"]])
    assert both["word"].tolist() == [[0, FIRST, 0], [0, title, FIRST], [title, FIRST, 0]]


def test_vectors_are_looked_up_as_is_then_lower_cased():
    windows = Windows.build([["x"]], 0, ["vector"], vectors=["paris", "Paris", "in"])
    rows = [windows.row("vector", t) for t in ("Paris", "PARIS", "In", "Rome")]
    assert rows == [FIRST + 1, FIRST, FIRST + 2, 1 + CASES.index("Title")]


@pytest.mark.parametrize("tokens", [["a", ""], ["a", 3]])
def test_odd_tokens(tokens):
    with pytest.raises(DataError, match="token 1"):
        Windows(1, {"word": []}).ids(tokens)
    with pytest.raises(UsageError, match=r"entities\(text\)"):
        Windows(1, {"word": []}).ids("text")


# -- decoding --------------------------------------------------------------------------------


def test_viterbi_finds_the_best_sequence_that_makes_sense():
    tags = _tags(["A"], None)
    ends = [*tags, "O"]
    rng = np.random.default_rng(0)
    steps = np.array([[rng.normal() if _follows(a, b) else -np.inf for b in ends] for a in ends])
    for n in range(1, 5):
        log_p = rng.normal(size=(n, len(tags))) * 3

        def total(path, log_p=log_p):
            whole = [-1, *path, -1]
            return sum(steps[a, b] for a, b in pairwise(whole)) + sum(
                row[t] for row, t in zip(log_p, path, strict=True)
            )

        best = max(product(range(len(tags)), repeat=n), key=total)
        assert math.isclose(total(_viterbi(log_p, steps)), total(best))


def test_bioes():
    sentence = Sentence(tuple("abcdef"), (Span(0, 1, "X"), Span(1, 4, "X"), Span(4, 6, "Y")))
    assert _bioes(sentence) == ["S-X", "B-X", "I-X", "E-X", "B-Y", "E-Y"]


# -- training and prediction -----------------------------------------------------------------


def test_softmax_learns(tagger):
    tokens = ["we", "met", "Zoe", "Stone", "in", "Kiel", "."]
    assert tagger.predict(tokens) == ["O", "O", "B-person", "I-person", "O", "B-place", "O"]
    assert tagger.predict([]) == []
    assert tagger.labels == ["person", "place"]


def test_entities_have_offsets_and_probabilities(tagger):
    text = "\n we met Zoe Stone in Kiel.\n\nwe met Ann Stone in Rome ."
    entities = tagger.entities(text)
    assert [e.text for e in entities] == ["Zoe Stone", "Kiel", "Ann Stone", "Rome"]
    assert all(text[e.start : e.end] == e.text and 0.5 < e.score <= 1.0 for e in entities)
    assert tagger.entities("") == []


def test_logistic_finds_one_type(binary):
    assert [(e.text, e.label) for e in binary.entities("we met Zoe Stone in Kiel .")] == [
        ("Kiel", "place")
    ]
    weights = binary._trained.network.parameters()
    assert weights["output.weight"].shape == (1, 16) and "output.bias" not in weights
    scores = binary.evaluate(tiny())
    assert [s.label for s in scores.types] == ["place"] and scores.f1 > 0.9


def test_pipe_equals_one_by_one(tagger):
    texts = [" ".join(s.tokens) for s in tiny()] + ["", "a\nin Rome"]
    assert list(tagger.pipe(texts, batch_size=5)) == [tagger.entities(t) for t in texts]


def test_predict_is_thread_safe(tagger):
    sentences = [list(s.tokens) for s in tiny()] * 3
    expected = [tagger.predict(s) for s in sentences]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tagger.predict, sentences)) == expected


def test_a_seed_gives_one_model():
    first, second = (small(seed=3).fit(tiny(), epochs=1) for _ in range(2))
    for a, b in zip(
        first._trained.network.parameters().values(),
        second._trained.network.parameters().values(),
        strict=True,
    ):
        assert np.array_equal(a.data, b.data)
    drawn = small(seed=None).fit(tiny(), epochs=1)
    assert drawn.seed is not None


def test_validation_is_measured_and_patience_stops():
    tagger = small().fit(tiny(), validation=0.25, epochs=30, patience=2)
    assert len(tagger.history) < 30
    assert {"epoch", "loss", "val_loss", "val_f1"} <= tagger.history[0].keys()
    with pytest.raises(UsageError, match="needs validation"):
        small().fit(tiny(), patience=2)


def test_a_type_that_only_validation_has_is_missed():
    held = [Sentence(("in", "May"), (Span(1, 2, "date"),))]
    tagger = small().fit(tiny(), validation=held, epochs=1)
    assert tagger.evaluate(held).types[-1].actual + tagger.evaluate(held).types[0].actual >= 1


def test_vectors_stay_or_are_tuned():
    words = [*CITIES, *NAMES, "zoe", "kiel", "in"]
    array = np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32)
    vectors = Vectors(words, array)
    for tune in False, True:
        tagger = small(vectors=vectors, tune_vectors=tune).fit(tiny(), epochs=1)
        table = tagger._trained.network.parameters()["vector.weight"].data
        assert np.array_equal(table[FIRST:], array) is not tune
        assert table.shape == (FIRST + len(words), 6)


def test_characters_are_tokens_where_training_says_so(tmp_path):
    sentences = [
        Sentence(tuple(f"{a}▁는▁{b}"), (Span(0, 1, "PS"), Span(4, 5, "LC")))
        for a, b in product("김이박최정", "산강섬들못")
    ]
    tagger = WindowTagger(hidden=(16,), learning_rate=0.01, seed=0).fit(sentences, epochs=5)
    assert tagger.unit == "character"
    assert [(e.text, e.start) for e in tagger.entities("김 는 산")] == [("김", 0), ("산", 4)]
    tagger.save(tmp_path / "m")
    loaded = WindowTagger.load(tmp_path / "m")
    assert loaded.entities("김 는 산") == tagger.entities("김 는 산")


@pytest.mark.parametrize(
    "options",
    [
        {"window": -1},
        {"classifier": "crf"},
        {"target": "place"},
        {"threshold": 0.0},
        {"views": {}},
        {"batch_size": 0},
        {"views": {"nonsense": 3}},
        {"views": {"vector": 3}},
        {"classifier": "logistic"},
        {"classifier": "logistic", "target": "date"},
        {"activation": "sine"},
    ],
)
def test_bad_options(options):
    with pytest.raises(UsageError):
        small(**options).fit(tiny(), epochs=1)


def test_a_fit_that_fails_changes_nothing(tagger):
    before = tagger.entities("we met Zoe Stone in Kiel .")
    with pytest.raises(DataError):
        tagger.fit([Sentence(("a",))])
    assert tagger.entities("we met Zoe Stone in Kiel .") == before


def test_bad_calls(tmp_path):
    with pytest.raises(UsageError, match="not trained"):
        WindowTagger().predict(["a"])
    with pytest.raises(UsageError, match="not trained"):
        WindowTagger().save(tmp_path / "m")
    with pytest.raises(UsageError, match=r"tagger\.entities"):
        next(small().fit(tiny(), epochs=1).pipe("in Rome"))
    with pytest.raises(DataError, match="no entity"):
        WindowTagger().fit([Sentence(("a",))])
    with pytest.raises(DataError, match="got int"):
        WindowTagger().fit(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="default, lecture"):
        WindowTagger.preset("best")
    assert not list(tmp_path.iterdir())


# -- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tagger", "binary"])
def test_save_and_load(kind, request, tmp_path):
    original = request.getfixturevalue(kind)
    path = tmp_path / "model"
    original.save(path)
    loaded = WindowTagger.load(path)
    text = "we met Zoe Stone in Kiel . 18:30"
    assert loaded.entities(text) == original.entities(text)
    assert loaded.info() == original.info()
    again = tmp_path / "again"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "model"]


def test_files_that_are_no_taggers(tagger, tmp_path):
    path = tmp_path / "model"
    tagger.save(path)
    whole = path.read_bytes()
    other = tmp_path / "other"
    for data in [b"", b"text", whole[:9], whole[: len(whole) // 2], whole[:-1]]:
        other.write_bytes(data)
        with pytest.raises(FileError, match="other"):
            WindowTagger.load(other)
    with pytest.raises(FileError, match="none"):
        WindowTagger.load(tmp_path / "none")
    for old, new in [
        (b"ner.WindowTagger", b"ner.WindowTaggeR"),
        (b'\\"version\\":1', b'\\"version\\":7'),
        (b'\\"window\\":2', b'\\"window\\":3'),
        (b'\\"labels\\"', b'\\"labelz\\"'),
    ]:
        assert old in whole
        other.write_bytes(whole.replace(old, new))
        with pytest.raises(FileError, match="other"):
            WindowTagger.load(other)


# -- scores and reports ----------------------------------------------------------------------


def test_score_counts_whole_entities():
    sentences = [
        Sentence(tuple("abcd"), (Span(0, 2, "A"), Span(3, 4, "B"))),
        Sentence(tuple("ab"), ()),
        Sentence(tuple("abc"), (Span(0, 1, "A"), Span(1, 3, "A"))),
    ]
    predicted = [
        [Span(0, 1, "A"), Span(3, 4, "B")],  # wrong end; right
        [Span(0, 1, "C")],  # none there
        [Span(0, 1, "B"), Span(1, 3, "A")],  # wrong type; right
    ]
    scores = score(sentences, predicted)
    o = scores.overall
    assert (o.correct, o.predicted, o.actual) == (2, 5, 4)
    assert math.isclose(o.precision, 0.4) and o.recall == 0.5
    assert math.isclose(scores.f1, 2 * 2 / 9)
    by_type = {s.label: (s.correct, s.predicted, s.actual) for s in scores.types}
    assert by_type == {"A": (1, 2, 3), "B": (1, 2, 1), "C": (0, 1, 0)}
    assert (scores.sentences, scores.tokens) == (3, 9)
    assert "A" in table(scores) and "0.444" in table(scores).splitlines()[-1]
    assert "<td>0.444" in scores_page(scores, "t")
    with pytest.raises(DataError, match="3 sentences but 0"):
        score(sentences, [])


def test_no_entities_score_nothing():
    assert score([Sentence(("a",))], [[]]).f1 == 0.0


def test_marks(tagger):
    text = "we met <Zoe> Stone in Kiel ."
    entities = tagger.entities("we met Zoe Stone in Kiel .")
    plain = mark("we met Zoe Stone in Kiel .", entities, Palette(), colour=False)
    assert plain == "we met [Zoe Stone](person) in [Kiel](place) ."
    coloured = mark("we met Zoe Stone in Kiel .", entities, Palette(), colour=True)
    assert coloured.count("\x1b[0m") == 2 and "Kiel" in coloured
    html = text_page([(text, tagger.entities(text))], "<t>", Palette())
    assert "&lt;" in html and "<mark" in html and "<t>" not in html


def test_curves(tmp_path):
    epochs = [{"epoch": 0, "loss": 1.0, "val_loss": 1.1, "val_f1": 0.1}, {"epoch": 1, "loss": 0.5}]
    curves(epochs, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


# -- the bundled corpus ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    data = resources.files("chainrule.ner") / "data"
    return read_marked(data / "train.txt"), read_marked(data / "heldout.txt")


def test_names_are_found_from_their_context(corpus):
    train, held = corpus
    scores = []
    for seed in range(5):
        tagger = WindowTagger(seed=seed, threads=1).fit(train)
        scores.append(tagger.evaluate(held).f1)
        assert [(e.text, e.label) for e in tagger.entities(DEMO)] == [("Paris", "location")]
    assert np.mean(scores) >= 0.5, scores


def test_shuffled_tags_teach_nothing(corpus):
    """The control: the score above comes from what the marks say."""
    train, held = corpus
    rng = random.Random(0)
    tags = [tag for s in train for tag in s.tags]
    rng.shuffle(tags)
    shuffled = []
    for sentence in train:
        mine = [tags.pop() for _ in sentence.tokens]
        spans = [Span(i, i + 1, t[2:]) for i, t in enumerate(mine) if t != "O"]
        shuffled.append(Sentence(sentence.tokens, tuple(spans)))
    assert WindowTagger(seed=0, threads=1).fit(shuffled).evaluate(held).f1 < 0.15
