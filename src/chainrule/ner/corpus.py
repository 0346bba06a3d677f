"""Sentences with marked entities: readers for CoNLL, JSON lines and marked text, and a tokenizer.

Whatever the file says with its tags, a `Sentence` holds token spans; `Sentence.tags` writes them
as IOB2. Readers keep every token exactly as the file has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError, FileError

PathOrName = str | PathLike[str]

SPACE = "▁"  # how a blank is written where every character is a token of its own


class Span(NamedTuple):
    """An entity as a range of tokens, `end` excluded."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and the entities in it.

    Parameters
    ----------
    tokens
        The words, or characters, as they stand in the source.
    entities
        Spans in ascending order that do not overlap.
    source
        File that the sentence comes from.
    line
        Line of its first token there, from 1.

    Raises
    ------
    DataError
        For spans that overlap, are not in order, or reach beyond the tokens.
    """

    tokens: tuple[str, ...]
    entities: tuple[Span, ...] = ()
    source: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "entities", tuple(Span(*span) for span in self.entities))
        end = 0
        for span in self.entities:
            if not end <= span.start < span.end <= len(self.tokens) or not span.label:
                raise DataError(
                    f"entity {tuple(span)}: expected (start, end, label) in order, not "
                    f"overlapping, within {len(self.tokens)} tokens"
                )
            end = span.end

    @property
    def tags(self) -> list[str]:
        """The entities as IOB2 tags, one a token."""
        tags = ["O"] * len(self.tokens)
        for start, end, label in self.entities:
            tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        return tags


# -- tokens ----------------------------------------------------------------------------------

_PUNCTUATION = (
    r"!-/:-@\[-`{-~"  # ASCII
    "\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf"
    "\u2010-\u2027\u2030-\u205e\u20a0-\u20cf\u2190-\u2bff\u3001-\u3003\u3008-\u301f"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_RUN = rf"[^\s{_PUNCTUATION}]+"
_CLITIC = r"['\u2019](?i:s|ll|re|ve|d|m)(?!\w)"
_NOT = r"(?i:n['\u2019]t)(?!\w)"
_TOKEN = re.compile(
    rf"""
      https?://[^\s<>"]*[^\s<>"{_PUNCTUATION}]/?     # web address
    | [@\#]{_RUN}(?:_{_RUN})*                        # user name, topic
    | (?:[^\W\d_]\.){{2,}}                           # U.S.
    | \d+(?:[.,:/-]\d+)+{_RUN} | \d+(?:[.,:/-]\d+)+  # 18:30, 3.5, 1,000, 2022-11-20, 7:30pm
    | {_CLITIC} | {_RUN}?(?={_NOT}) | {_NOT}         # 's and n't stand alone
    | {_RUN}(?:-{_RUN}|(?!{_CLITIC})['\u2019]{_RUN})*     # words: O'Neil-Smith, don't
    | (?P<same>[^\s])(?P=same)*                      # ... and --
    """,
    re.VERBOSE,
)


def tokenize(text: str, unit: str = "word") -> list[tuple[str, int, int]]:
    """Split text into tokens with their character offsets.

    Parameters
    ----------
    text
        Any text.
    unit
        ``"word"``: words, numbers, punctuation; ``"character"``: every character is a token and a
        blank is written ``▁``.

    Returns
    -------
    list of (token, start, end)
        For words, ``text[start:end] == token``.
    """
    if unit == "character":
        return [(SPACE if c.isspace() else c, i, i + 1) for i, c in enumerate(text)]
    return [(m.group(), m.start(), m.end()) for m in _TOKEN.finditer(text)]


def tokenize_lines(text: str, unit: str = "word") -> Iterator[list[tuple[str, int, int]]]:
    """`tokenize` each line of a text; offsets count from the start of the text."""
    start = 0
    for line in text.split("\n"):
        yield [(token, a + start, b + start) for token, a, b in tokenize(line, unit)]
        start += len(line) + 1


def _tokenize_marked(
    text: str, entities: Sequence[tuple[int, int, str]], source: str, line: int
) -> Sentence:
    """Tokens of `text`, with a token boundary forced at each end of an entity."""
    tokens: list[str] = []
    spans: list[Span] = []
    position = 0
    for start, end, label in entities:
        tokens += (t for t, _, _ in tokenize(text[position:start]))
        inside = [t for t, _, _ in tokenize(text[start:end])]
        spans.append(Span(len(tokens), len(tokens) + len(inside), label))
        tokens += inside
        position = end
    tokens += (t for t, _, _ in tokenize(text[position:]))
    return Sentence(tuple(tokens), tuple(spans), source, line)


# -- tags ------------------------------------------------------------------------------------

_TAG = re.compile(r"(?:O|([BIESLU])-(.+))\Z")


def spans_of(tags: Sequence[str], where: Callable[[int], str] = "tag {}".format) -> list[Span]:
    """Entities of a tag sequence in any of the schemes IOB1, IOB2, BIOES and BILOU.

    The schemes differ in which tags they need, not in what a tag means: B, S and U begin an
    entity; E, L, S and U end it; I continues an entity of its type and begins one elsewhere (the
    rule of conlleval). So one rule reads them all.

    Parameters
    ----------
    tags
        One tag a token.
    where
        Names position i in an error.

    Raises
    ------
    DataError
        For a tag of no such scheme.
    """
    spans: list[Span] = []
    start, label = -1, ""  # of the open entity; start < 0: none
    for i, tag in enumerate(tags):
        match = _TAG.match(tag)
        if match is None:
            raise DataError(
                f"{where(i)}: unknown tag {tag!r}: expected O, or B-, I-, E- or S- and a type "
                "(the schemes IOB1, IOB2 and BIOES)"
            )
        prefix, kind = match.groups()
        if start >= 0 and (prefix is None or prefix in "BSU" or kind != label):
            spans.append(Span(start, i, label))
            start = -1
        if prefix is None:
            continue
        if start < 0:
            start, label = i, kind
        if prefix in "ELSU":
            spans.append(Span(start, i + 1, label))
            start = -1
    if start >= 0:
        spans.append(Span(start, len(tags), label))
    return spans


# -- readers ---------------------------------------------------------------------------------


def read_text(path: PathOrName) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        # The mark that some editors put at the start is no part of the first token.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 ({error.reason}): convert the file to UTF-8 first"
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # str.splitlines would also break at U+0085, U+2028 and others that may stand in a token.
    for number, line in enumerate(text.split("\n"), 1):
        yield number, line.removesuffix("\r")


def _some(sentences: list[Sentence], path: PathOrName, form: str) -> list[Sentence]:
    if not sentences:
        raise DataError(f"{path}: no sentences: expected {form}")
    return sentences


def read_conll(path: str | PathLike[str]) -> list[Sentence]:
    r"""Read sentences from a column file.

    One token a line, a blank line after a sentence; columns separated by tabs or blanks, the token
    in the first and the tag in the last. ``-DOCSTART-`` lines are skipped. Tags may be IOB1, IOB2,
    BIOES or BILOU. Tokens are kept as they are (zero-width characters too).

    Parameters
    ----------
    path
        A UTF-8 file.

    Returns
    -------
    list of Sentence

    Raises
    ------
    FileError
        Where the file cannot be read.
    DataError
        For a line with another number of columns, an empty token or tag, an unknown tag, bytes
        that are not UTF-8, or no sentence at all; the message names file and line.
    """
    sentences = []
    for number, rows in column_blocks(read_text(path), str(path), 2):
        tags = [row[-1].strip(" ") for row in rows]
        for i, tag in enumerate(tags):
            if not tag:
                raise DataError(f"{path}:{number + i}: empty tag after {rows[i][0]!r}")
        spans = spans_of(tags, lambda i, number=number: f"{path}:{number + i}")  # type: ignore[misc]
        sentences.append(Sentence(tuple(row[0] for row in rows), tuple(spans), str(path), number))
    return _some(sentences, path, "one token and its tag a line")


def column_blocks(text: str, source: str, least: int) -> Iterator[tuple[int, list[list[str]]]]:
    """The columns of each sentence of a column file, and the line that it begins at."""
    rows: list[list[str]] = []
    width = first = 0
    tabs = False
    for number, line in _lines(text + "\n"):
        if not line.strip(" \t") or line.startswith("-DOCSTART-"):
            if rows:
                yield number - len(rows), rows
            rows = []
            continue
        if not width:
            tabs = "\t" in line
        # Only these two separate; any other white space belongs to a token.
        columns = line.split("\t") if tabs else re.split(" +", line.strip(" "))
        if not width:
            width, first = len(columns), number
            if width < least:
                raise DataError(
                    f"{source}:{number}: one column, {line!r}: expected a token and a tag, "
                    "separated by a tab or a blank"
                )
        if len(columns) != width:
            raise DataError(
                f"{source}:{number}: expected {width} columns, as on line {first}, "
                f"got {len(columns)}: {line!r}"
            )
        if not columns[0]:
            raise DataError(f"{source}:{number}: empty token in {line!r}")
        rows.append(columns)


def read_jsonl(path: str | PathLike[str]) -> list[Sentence]:
    """Read sentences from JSON lines.

    A line is ``{"tokens": [...], "tags": [...]}``, tags in any scheme of `read_conll`, or
    ``{"text": "...", "entities": [{"start": 15, "end": 20, "label": "location"}]}`` with character
    offsets. Other keys are ignored.

    Parameters
    ----------
    path
        A UTF-8 file.

    Returns
    -------
    list of Sentence

    Raises
    ------
    FileError
        Where the file cannot be read.
    DataError
        For a line that is neither form, or no sentence at all; the message names file and line.
    """
    sentences = []
    for number, line in _lines(read_text(path)):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if isinstance(record, dict) and "tokens" in record:
            sentences.append(_from_tokens(record, where, str(path), number))
        elif isinstance(record, dict) and isinstance(record.get("text"), str):
            sentences.append(_from_text(record, where, str(path), number))
        else:
            raise DataError(
                f'{where}: expected {{"tokens": [...], "tags": [...]}} or '
                '{"text": "...", "entities": [...]}'
            )
    return _some([s for s in sentences if s.tokens], path, "one JSON object a line")


def _from_tokens(record: dict[str, object], where: str, source: str, line: int) -> Sentence:
    tokens, tags = record["tokens"], record.get("tags")
    for name, value in ("tokens", tokens), ("tags", tags):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise DataError(f'{where}: "{name}" must be a list of strings')
    assert isinstance(tokens, list) and isinstance(tags, list)
    if len(tokens) != len(tags):
        raise DataError(f"{where}: {len(tokens)} tokens but {len(tags)} tags")
    if "" in tokens:
        raise DataError(f"{where}: token {tokens.index('') + 1} is empty")
    spans = spans_of(tags, lambda i: f"{where}: tag {i + 1}")
    return Sentence(tuple(tokens), tuple(spans), source, line)


def _from_text(record: dict[str, object], where: str, source: str, line: int) -> Sentence:
    text, entries = str(record["text"]), record.get("entities", [])
    spans: list[tuple[int, int, str]] = []
    if not isinstance(entries, list):
        raise DataError(f'{where}: "entities" must be a list')
    for i, entry in enumerate(entries, 1):
        try:
            start, end, label = entry["start"], entry["end"], entry["label"]
        except (TypeError, KeyError) as error:
            raise DataError(f"{where}: entity {i}: expected start, end and label") from error
        if type(start) is not int or type(end) is not int or type(label) is not str or not label:
            raise DataError(
                f"{where}: entity {i}: start and end must be whole numbers, label a name"
            )
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise DataError(
                f"{where}: entity {i}: characters {start} to {end} of a text of {len(text)} "
                "hold no word: offsets count characters from 0, the end is excluded"
            )
        spans.append((start, end, label))
    spans.sort()
    for (_, end, _), (start, _, _) in pairwise(spans):
        if start < end:
            raise DataError(f"{where}: two entities overlap at character {start}: keep one of them")
    return _tokenize_marked(text, spans, source, line)


_MARK = re.compile(r"\\(?P<escaped>[\[\]\\])|\[(?P<text>[^\[\]]+)\]\((?P<label>[^()\s]+)\)|[\[\]]")


def read_marked(path: str | PathLike[str]) -> list[Sentence]:
    r"""Read sentences from text with the entities marked in it.

    One sentence a line: ``the museums in [Paris](location) are amazing to see``. A bracket that
    marks nothing is written ``\[`` or ``\]``. Blank lines, and lines that begin with ``# ``, are
    skipped.

    Parameters
    ----------
    path
        A UTF-8 file.

    Returns
    -------
    list of Sentence

    Raises
    ------
    FileError
        Where the file cannot be read.
    DataError
        For a mark that is not closed or not followed by its type, or no sentence at all; the
        message names file and line.
    """
    sentences = []
    for number, line in _lines(read_text(path)):
        if line.strip() and not line.startswith("# "):
            sentences.append(parse_marked(line, str(path), number))
    return _some(sentences, path, "a sentence a line, as in 'we met in [Paris](location)'")


def parse_marked(line: str, source: str = "", number: int = 0) -> Sentence:
    """One sentence of `read_marked`."""
    text = ""
    spans: list[tuple[int, int, str]] = []
    position = 0
    for match in _MARK.finditer(line):
        text += line[position : match.start()]
        position = match.end()
        if match["escaped"]:
            text += match["escaped"]
        elif match["text"] and match["text"].strip():
            spans.append((len(text), len(text) + len(match["text"]), match["label"]))
            text += match["text"]
        else:
            raise DataError(
                f"{source}:{number}: column {match.start() + 1}: a mark is written "
                r"[Paris](location); a bracket that marks nothing \[ or \]"
            )
    return _tokenize_marked(text + line[position:], spans, source, number)


def read_sentences(data: str | PathLike[str] | Iterable[Sentence]) -> list[Sentence]:
    """Sentences of a file in any of the three forms; sentences are passed through.

    ``.jsonl`` is read by `read_jsonl`; a file whose first lines hold a mark ``[...](type)`` by
    `read_marked`; any other by `read_conll`.
    """
    if not isinstance(data, str | PathLike):
        if not isinstance(data, Iterable):
            raise DataError(f"expected a file or sentences, got {type(data).__name__}")
        sentences = list(data)
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, Sentence):
                raise DataError(
                    f"sentence {i}: expected a chainrule.ner.Sentence, got "
                    f"{type(sentence).__name__}"
                )
        if not sentences:
            raise DataError("no sentences: expected at least one")
        return sentences
    if Path(data).suffix in (".jsonl", ".ndjson"):
        return read_jsonl(data)
    head = read_text(data)[:4096]
    if re.search(r"\[[^\[\]\n]+\]\([^()\s]+\)", head):
        return read_marked(data)
    return read_conll(data)
