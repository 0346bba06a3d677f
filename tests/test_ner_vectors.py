"""`read_vectors`: the three forms of file, and files that are torn, cut or of another kind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from chainrule.errors import ChainruleError, DataError, FileError, UsageError
from chainrule.ner import read_vectors

SHARED = Path(
    os.environ.get("CHAINRULE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
WORDS = ["the", "Paris", ". . .", "naïve"]
VALUES = np.array([[1, 2, 3], [0.5, -0.25, 1e-3], [0, 0, 7], [4, 5, 6]], np.float32)


def glove(words=WORDS, values=VALUES):
    rows = zip(words, values.tolist(), strict=True)
    return "".join(f"{w} {' '.join(map(repr, v))}\n" for w, v in rows).encode()


def binary(words=("the", "Paris", "naïve"), values=VALUES[[0, 1, 3]], end=b"\n"):
    header = f"{len(words)} {values.shape[1]}\n".encode()
    rows = zip(words, values, strict=True)
    return header + b"".join(w.encode() + b" " + v.tobytes() + end for w, v in rows)


@pytest.fixture
def read(tmp_path):
    def read(data, **options):
        path = tmp_path / "v"
        path.write_bytes(data)
        return read_vectors(path, **options)

    return read


@pytest.mark.parametrize("header", [b"", b"4 3\n"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_text(read, header, dtype):
    vectors = read(header + glove(), dtype=dtype)
    assert vectors.words == WORDS and vectors.width == 3
    assert vectors.array.dtype == dtype
    assert np.array_equal(vectors.array, VALUES.astype("float64").astype(dtype))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_binary(read, end):
    vectors = read(binary(end=end))
    assert vectors.words == ["the", "Paris", "naïve"]
    assert np.array_equal(vectors.array, VALUES[[0, 1, 3]])


def test_binary_across_reads(read):
    words = [f"w{i}" for i in range(5000)]
    values = np.arange(5000 * 100, dtype=np.float32).reshape(5000, 100)
    vectors = read(binary(words, values))
    assert vectors.words == words and np.array_equal(vectors.array, values)


def test_vocabulary_keeps_words_as_they_are_or_lower_cased(read):
    vectors = read(glove(["the", "Paris", "paris", "x"]), vocabulary=["The", "Paris"])
    assert vectors.words == ["the", "Paris", "paris"]
    assert read(binary(), vocabulary={"THE"}).words == ["the"]


def test_the_first_of_two_vectors_counts(read):
    vectors = read(glove(["a", "b", "a", "c"]))
    assert vectors.words == ["a", "b", "c"] and np.array_equal(vectors.array, VALUES[[0, 1, 3]])


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", DataError, ":1: empty"),
        (b"word\n", DataError, ":1: expected a word"),
        (b"a 1 2 3\nb 1 2\n", DataError, r":2: expected a word and 3 numbers, got 2"),
        (b"a 1 2 3\nb 1 2", FileError, r":2: .*cut short"),
        (b"a 1 2\nb 1 2 3\n", DataError, ":2: more than 2 numbers"),
        (b"a 1 2\nb 1 x2\n", DataError, ":2: 'x2' is not a number, in the vector of 'b'"),
        (b"a 1 2\n\nb 1 2\n", DataError, ":2: expected a word"),
        (b"a 1 2\nb nan 2\n", DataError, ":2: not finite, the vector of 'b'"),
        (b"a 1 2\nb 1 -inf\n", DataError, ":2: not finite"),
        (b"a 1 2\nb 1 1e39\n", DataError, "overflows float32"),
        (b"a 1 2\n\xff 1 2\n", DataError, ":2: the word .* is not UTF-8"),
        (b"2 2\na 1 2\n", FileError, ": header promises 2 words"),
        (b"3 2\na 1.0 2.0\nb 1.0 2.0\n", FileError, ": header promises 3 words.*, got 2"),
        (b"1 2\na 1 2\nb 1 2\n", DataError, ":3: header promises 1 words, but more"),
        (b"0 2\n", DataError, ":1: header"),
        (b"2 0\n", DataError, ":1: header"),
        (b"1000000000000 300\na 1 2\n", FileError, "header promises 1000000000000 words"),
        (binary()[:-5], FileError, "header promises 3 words|word 3 of 3: the file is cut short"),
        (binary() + b"x 123", DataError, "more follow"),
        (b"\x1f\x8b\x08\x00\x00rest", FileError, r"compressed \(gzip\)"),
    ],
)
def test_bad_files_say_where(read, data, kind, message):
    with pytest.raises(kind, match=message) as caught:
        read(data)
    assert isinstance(caught.value, ChainruleError)


def test_every_cut_of_a_binary_file_is_noticed(read):
    whole = binary(end=b"")
    for size in range(len(whole)):
        with pytest.raises((DataError, FileError)):
            read(whole[:size])


def test_nan_in_a_binary_file(read):
    values = VALUES[:2].copy()
    values[1, 2] = np.nan
    with pytest.raises(DataError, match="word 2: not finite, the vector of 'b'"):
        read(binary(["a", "b"], values))


def test_a_binary_file_of_another_width(read):
    data = binary(["a", "b"], VALUES[:2])
    with pytest.raises((DataError, FileError)):
        read(data.replace(b"2 3\n", b"2 2\n"))


def test_arguments(tmp_path, read):
    with pytest.raises(UsageError, match="float32 or float64"):
        read(glove(), dtype="float16")
    with pytest.raises(FileError, match="cannot be read"):
        read_vectors(tmp_path / "none")


def test_the_glove_subset():
    path = SHARED / "vectors" / "glove.subset.50d.txt"
    if not path.exists():
        pytest.skip(f"no {path}: set CHAINRULE_DATA")
    vectors = read_vectors(path)
    assert vectors.array.shape == (6782, 50) and len(set(vectors.words)) == 6782
