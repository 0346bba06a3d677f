"""The readers of `chainrule.ner.corpus`: forms, tag schemes, and what they say of bad files."""

from __future__ import annotations

import os
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from chainrule.errors import DataError, FileError
from chainrule.ner import Sentence, Span, read_conll, read_jsonl, read_marked, read_sentences
from chainrule.ner.corpus import spans_of, tokenize

SHARED = Path(
    os.environ.get("CHAINRULE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)

# The same entities, [New York](LOC) [Paris](LOC) [Ann](PER), in each scheme.
SCHEMES = {
    "IOB1": "I-LOC I-LOC B-LOC I-PER O",
    "IOB2": "B-LOC I-LOC B-LOC B-PER O",
    "BIOES": "B-LOC E-LOC S-LOC S-PER O",
    "BILOU": "B-LOC L-LOC U-LOC U-PER O",
}


@pytest.fixture
def write(tmp_path):
    def write(text, name="f.conll"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_say_the_same(scheme):
    spans = spans_of(SCHEMES[scheme].split())
    assert spans == [(0, 2, "LOC"), (2, 3, "LOC"), (3, 4, "PER")]


def test_tags_are_iob2():
    sentence = Sentence(tuple("abcde"), tuple(spans_of(SCHEMES["IOB1"].split())))
    assert sentence.tags == SCHEMES["IOB2"].split()


def test_a_change_of_type_begins_an_entity():
    assert spans_of(["I-A", "I-B", "I-B", "B-B"]) == [(0, 1, "A"), (1, 3, "B"), (3, 4, "B")]


@pytest.mark.parametrize("tag", ["X-LOC", "LOC", "B-", "B", "b-LOC", "o", "B_LOC"])
def test_unknown_tags_are_refused(write, tag):
    path = write(f"in\tO\nParis\t{tag}\n")
    with pytest.raises(DataError, match=rf"f\.conll:2: unknown tag '{tag}'.*IOB2"):
        read_conll(path)


def test_columns_docstart_and_crlf(write):
    path = write(
        "-DOCSTART- -X- O O\r\n\r\nU.N. NNP I-NP I-ORG\r\nleft  VBD I-VP O\r\n\r\n\r\n"
        "Paris NNP I-NP I-LOC"
    )
    first, second = read_conll(path)
    assert first.tokens == ("U.N.", "left") and first.entities == (Span(0, 1, "ORG"),)
    assert (first.line, second.line, second.source) == (3, 7, str(path))


def test_docstart_without_a_blank_line_ends_a_sentence(write):
    assert [s.tokens for s in read_conll(write("a\tO\n-DOCSTART-\tO\nb\tO\n"))] == [("a",), ("b",)]


def test_tokens_are_not_stripped(write):
    odd = ["Dubbz\ufeff", "a\u200b", "▁", " ", "x\u0085y", "\u2028", "\u00a0"]
    (sentence,) = read_conll(write("".join(f"{t}\tO\n" for t in odd)))
    assert sentence.tokens == tuple(odd)


def test_a_byte_order_mark_at_the_start_is_no_token(write):
    assert read_conll(write("\ufeffa\tO\n"))[0].tokens == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tO\nb\n", ":2: expected 2 columns, as on line 1, got 1: 'b'"),
        ("a\tO\nb\tX\tO\n", ":2: expected 2 columns, as on line 1, got 3"),
        ("a\n", ":1: one column"),
        ("a\tO\n\tO\n", ":2: empty token"),
        ("a\tO\n\nb\t\n", ":3: empty tag"),
        ("", ": no sentences"),
        ("-DOCSTART-\tO\n\n\t\n", ": no sentences"),
        (b"a\tO\nb\xff\tO\n", ":2: not UTF-8"),
    ],
)
def test_bad_columns_name_file_and_line(write, text, message):
    path = write(text)
    with pytest.raises(DataError) as caught:
        read_conll(path)
    assert str(caught.value).startswith(str(path) + message)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_conll(tmp_path / "none")


def test_jsonl_tokens_and_text(write):
    path = write(
        '{"tokens": ["Harry", "Kane", "ran"], "tags": ["B-PER", "E-PER", "O"]}\n\n'
        '{"text": "in Paris-Nord, 2022", "entities": [{"start": 3, "end": 8, "label": "LOC"}]}\n',
        "f.jsonl",
    )
    first, second = read_sentences(path)
    assert first.entities == (Span(0, 2, "PER"),)
    assert second.tokens == ("in", "Paris", "-", "Nord", ",", "2022")
    assert second.entities == (Span(1, 2, "LOC"),) and second.line == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected"),
        ('{"tokens": ["a"], "tags": []}', "1 tokens but 0 tags"),
        ('{"tokens": ["a", ""], "tags": ["O", "O"]}', "token 2 is empty"),
        ('{"tokens": ["a"], "tags": ["Q"]}', "tag 1: unknown tag"),
        ('{"tokens": "a", "tags": "O"}', "list of strings"),
        ('{"text": "ab", "entities": [{"start": 0, "end": 3, "label": "X"}]}', "characters 0 to 3"),
        ('{"text": "ab", "entities": [{"start": 0}]}', "expected start, end and label"),
        ('{"text": "ab", "entities": [{"start": "0", "end": 1, "label": "X"}]}', "whole numbers"),
        (
            '{"text": "abc", "entities": [{"start": 0, "end": 2, "label": "X"}, '
            '{"start": 1, "end": 3, "label": "Y"}]}',
            "overlap at character 1",
        ),
    ],
)
def test_bad_json_names_file_and_line(write, line, message):
    path = write('{"text": "fine"}\n' + line, "f.jsonl")
    with pytest.raises(DataError, match=rf"f\.jsonl:2: .*{message}"):
        read_jsonl(path)


def test_marked_text(write):
    path = write(
        "# a comment\nthe museums in [Paris](location) are amazing to see\n\n"
        "[Harry Kane](person)'s \\[sic\\] goal\n",
        "f.txt",
    )
    first, second = read_sentences(path)
    assert first.tokens[3] == "Paris" and first.entities == (Span(3, 4, "location"),)
    assert second.tokens == ("Harry", "Kane", "'s", "[", "sic", "]", "goal")
    assert second.entities == (Span(0, 2, "person"),) and second.line == 4


@pytest.mark.parametrize("line", ["in [Paris", "in Paris](x)", "[Paris] here", "[](x)", "[ ](x) a"])
def test_bad_marks_name_file_and_line(write, line):
    with pytest.raises(DataError, match=r"f\.txt:2: column \d+: a mark is written"):
        read_marked(write(f"fine [a](b)\n{line}\n", "f.txt"))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Don't go, it's 18:30!", "Do n't go , it 's 18:30 !"),
        ("O'Neil-Smith's U.S. trip ...", "O'Neil-Smith 's U.S. trip ..."),
        ("$3.5 (1,000) on 2022-11-20.", "$ 3.5 ( 1,000 ) on 2022-11-20 ."),
        ("@bob https://a.b/c?d=e. #win", "@bob https://a.b/c?d=e . #win"),
        ("café हिन्दी 日本、語", "café हिन्दी 日本 、 語"),
        ("", ""),
    ],
)
def test_tokenize(text, tokens):
    found = tokenize(text)
    assert [t for t, _, _ in found] == tokens.split()
    assert all(text[a:b] == t for t, a, b in found)


def test_tokenize_characters():
    assert tokenize("경 찰", "character") == [("경", 0, 1), ("▁", 1, 2), ("찰", 2, 3)]


def test_sentences_pass_through_and_nothing_else_does():
    sentence = Sentence(("a",))
    assert read_sentences([sentence]) == [sentence]
    with pytest.raises(DataError, match="sentence 0: expected"):
        read_sentences([("a", "O")])  # type: ignore[list-item]
    with pytest.raises(DataError, match="no sentences"):
        read_sentences([])


def test_the_bundled_corpus_is_varied_and_held_out():
    data = resources.files("chainrule.ner") / "data"
    train, held = read_marked(data / "train.txt"), read_marked(data / "heldout.txt")
    assert len(train) + len(held) >= 500

    def strings(sentences):
        return {" ".join(s.tokens[a:b]).lower() for s in sentences for a, b, _ in s.entities}

    assert not strings(train) & strings(held)
    types = {"person", "location", "organisation", "product", "date", "time"}
    for part in train, held:
        assert {e.label for s in part for e in s.entities} == types
    assert any(" ".join(s.tokens) == "the museums in Paris are amazing to see" for s in held)
    assert len({s.tokens for s in train + held}) == len(train) + len(held)


@pytest.mark.parametrize(
    ("name", "sentences", "tokens", "entities", "types"),
    [
        ("wnut17", 3394, 62730, 1975, 6),
        ("wikigold", 1358, 31035, 2896, 4),
        ("klue-ner-dev", 4000, 230655, 11489, 6),
    ],
)
def test_public_sets_have_their_published_counts(name, sentences, tokens, entities, types):
    path = SHARED / "ner" / name / "train.conll"
    if not path.exists():
        pytest.skip(f"no {path}: set CHAINRULE_DATA")
    read = read_conll(path)
    counts = Counter(e.label for s in read for e in s.entities)
    found = (len(read), sum(len(s.tokens) for s in read), counts.total(), len(counts))
    assert found == (sentences, tokens, entities, types)


@pytest.mark.parametrize(
    "spans", [[(0, 3, "A")], [(1, 1, "A")], [(1, 2, "A"), (0, 1, "A")], [(0, 1, "")]]
)
def test_spans_must_fit_their_sentence(spans):
    with pytest.raises(DataError, match=r"expected \(start, end, label\)"):
        Sentence(("a", "b"), spans)
