"""From tokens to windows of ids: vocabularies, the look-up of unknown words, word shapes.

Each *view* of a token (the word itself, its casing, its last letters) is a string, each view has a
vocabulary, and each vocabulary an embedding table. Rows of a table: 0 is the padding beyond the
ends of a sentence; the next stand for unknown strings, one for each class of word shape, so that
an unknown "Zürich", "KLM" and "18:30" differ; then come the known strings. Strings that the
training text holds only once are left unknown: that is how these rows learn.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError

PADDING = 0

# Classes of word shape; the order is part of the model file.
CASES = (
    "lower",
    "Title",
    "UPPER",
    "initial",  # one capital letter
    "mixed",  # iPhone, McLaren
    "uncased",  # letters without case: 서울, 東京
    "digit",
    "two digits",
    "four digits",
    "digits",
    "clock",  # 18:30
    "number",  # 3.5, 1,000, 2022-11-20
    "digits and letters",  # 7pm, A380
    "punctuation",
)
FIRST = 1 + len(CASES)  # row of the first known string
_NUMBERS = {1: "digit", 2: "two digits", 4: "four digits"}
_CLOCK = re.compile(r"\d{1,2}[:.h]\d\d")
_DIGIT = re.compile(r"\d")


def case(token: str) -> str:
    """The class of a token's shape, one of `CASES`."""
    if token.isdecimal():
        return _NUMBERS.get(len(token), "digits")
    if _DIGIT.search(token):
        if any(c.isalpha() for c in token):
            return "digits and letters"
        return "clock" if _CLOCK.fullmatch(token) else "number"
    if not any(c.isalpha() for c in token):
        return "punctuation"
    if token.islower():
        return "lower"
    if token.isupper():
        return "UPPER" if len(token) > 1 else "initial"
    if token.istitle() or (token[0].isupper() and token[1:].islower()):
        return "Title"
    return "mixed" if token.lower() != token.upper() else "uncased"


def normalise(token: str) -> str:
    """Lower-case, every digit as 0."""
    return _DIGIT.sub("0", token.lower())


def shape(token: str) -> str:
    """The kinds of a token's characters, runs shortened: ``Xxxx``, ``dd:dd``, ``X.X.``."""
    kinds = (
        "X"
        if c.isupper()
        else "x"
        if c.islower()
        else "d"
        if c.isdecimal()
        else "a"
        if c.isalpha()
        else c
        for c in token[:40]
    )
    return re.sub(r"(.)\1{3,}", r"\1\1\1\1", "".join(kinds))


def script(token: str) -> str:
    """The Unicode block's script and category of the first character, such as ``HANGUL Lo``."""
    first = token[0]
    return f"{unicodedata.name(first, '?').split(' ')[0]} {unicodedata.category(first)}"


def view(name: str) -> Callable[[str], str]:
    """The view of a name: word, token, case, shape, script, prefixN, suffixN.

    ``word`` is normalised (`normalise`), and so are ``prefix3`` (its first three characters) and
    the like; ``token`` is as it is.
    """
    plain: dict[str, Callable[[str], str]] = {
        "word": normalise,
        "token": str,
        "case": case,
        "shape": shape,
        "script": script,
        "vector": str,
    }
    if name in plain:
        return plain[name]
    match = re.fullmatch(r"(prefix|suffix)([1-9])", name)
    if match is None:
        raise UsageError(
            f"unknown view {name!r}: expected {', '.join(plain)}, prefix1 to prefix9 or suffix1 "
            "to suffix9"
        )
    n = int(match[2])
    if match[1] == "prefix":
        return lambda token: normalise(token)[:n]
    return lambda token: normalise(token)[-n:]


class Windows:
    """Maps the tokens of a sentence to windows of ids, one table of ids a view.

    Parameters
    ----------
    window
        Tokens on each side.
    vocabularies
        The known strings of each view, in the order of their rows.
    """

    def __init__(self, window: int, vocabularies: Mapping[str, Sequence[str]]) -> None:
        self.window = window
        self.vocabularies = {name: list(words) for name, words in vocabularies.items()}
        self._rows = {
            name: {word: row for row, word in enumerate(words, FIRST)}
            for name, words in self.vocabularies.items()
        }
        self._views = {name: view(name) for name in self.vocabularies}
        self._unknown = {name: row for row, name in enumerate(CASES, 1)}
        # Most tokens of a text have been seen before.
        self._look_up = lru_cache(maxsize=1 << 16)(self._rows_of)

    @classmethod
    def build(
        cls,
        sentences: Iterable[Sequence[str]],
        window: int,
        views: Iterable[str],
        min_count: int = 2,
        vectors: Sequence[str] | None = None,
    ) -> Windows:
        """Collect the vocabularies from training text.

        Parameters
        ----------
        sentences
            Their tokens.
        window, views
            As in `Windows` and `view`.
        min_count
            A string that occurs less often is left unknown.
        vectors
            The words of the view ``vector``, which comes from a file in place of the text.
        """
        counts = Counter(token for tokens in sentences for token in tokens)
        vocabularies: dict[str, Sequence[str]] = {}
        for name in views:
            if name == "vector" and vectors is not None:
                vocabularies[name] = vectors
                continue
            if name == "case":  # its strings are the rows of unknown strings
                vocabularies[name] = ()
                continue
            of = view(name)
            seen: Counter[str] = Counter()
            for token, count in counts.items():
                seen[of(token)] += count
            vocabularies[name] = sorted(s for s, count in seen.items() if count >= min_count)
        return cls(window, vocabularies)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each table."""
        return {name: FIRST + len(words) for name, words in self.vocabularies.items()}

    def _rows_of(self, token: str) -> tuple[int, ...]:
        return tuple(self.row(name, token) for name in self._rows)

    def row(self, name: str, token: str) -> int:
        """The row of a token in a table."""
        rows = self._rows[name]
        found = rows.get(self._views[name](token))
        if found is None and name in ("vector", "token"):  # as it is, then lower-cased
            found = rows.get(token.lower())
        return self._unknown[case(token)] if found is None else found

    def ids(self, tokens: Sequence[str]) -> dict[str, NDArray[np.int32]]:
        """The windows of a sentence.

        Parameters
        ----------
        tokens
            n tokens, none empty.

        Returns
        -------
        dict of ndarray
            For each view the ids, int32 (n, 2 window + 1); the token itself is in the middle.
        """
        return self.batch([tokens])

    def batch(self, sentences: Iterable[Sequence[str]]) -> dict[str, NDArray[np.int32]]:
        """The windows of many sentences, one after the other."""
        edge = [(PADDING,) * len(self._rows)] * self.window
        rows = list(edge)
        centres: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for tokens in sentences:
            if isinstance(tokens, str):
                raise UsageError(
                    "expected a list of tokens, got a string: use tagger.entities(text)"
                )
            for i, token in enumerate(tokens):
                if not isinstance(token, str) or not token:
                    raise DataError(f"token {i}: expected a string of at least one character")
            # The padding between two sentences serves both.
            centres.append(
                np.arange(len(rows) - self.window, len(rows) - self.window + len(tokens))
            )
            rows += map(self._look_up, tokens)
            rows += edge
        width = 2 * self.window + 1
        table = np.array(rows, np.int32).reshape(len(rows), len(self._rows))
        if len(table) < width:  # no token
            return {name: np.empty((0, width), np.int32) for name in self._rows}
        slices = np.lib.stride_tricks.sliding_window_view(table, width, axis=0)
        starts = np.concatenate(centres)
        return {name: slices[starts, i] for i, name in enumerate(self._rows)}
