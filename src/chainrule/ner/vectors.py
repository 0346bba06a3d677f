"""Word vectors from files: GloVe text, word2vec text and word2vec binary.

A file is believed only after its size allows what it promises: nothing is allocated on the word of
a header alone.
"""

from __future__ import annotations

import array
import math
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike, fstat
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import DataError, FileError, UsageError

_LONGEST_WORD = 1 << 16  # bytes; a longer "word" is a sign of a file of another kind
_COMPRESSED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZ": "bzip2", b"\xfd7": "xz"}


@dataclass(frozen=True, slots=True)
class Vectors:
    """Words and their vectors.

    Parameters
    ----------
    words
        n different words.
    array
        Their vectors, shape (n, width).
    """

    words: list[str]
    array: NDArray[Any]

    @property
    def width(self) -> int:
        """Numbers a vector."""
        return int(self.array.shape[1])


def read_vectors(
    path: str | PathLike[str],
    vocabulary: Collection[str] | None = None,
    dtype: DTypeLike = "float32",
) -> Vectors:
    """Read word vectors; the form of the file is found from its content.

    GloVe text is ``word v1 ... vd`` a line. word2vec text is the same after a header line
    ``n d``; word2vec binary has the header, then a word, a blank and d little-endian float32, n
    times. Of a word that occurs more than once the first vector counts.

    Parameters
    ----------
    path
        The file; words are UTF-8.
    vocabulary
        Keep only these words, each as it is or lower-cased. Default: all.
    dtype
        float32 or float64.

    Returns
    -------
    Vectors

    Raises
    ------
    FileError
        Where the file cannot be read, is cut short, or is compressed.
    DataError
        For a line of another width, a number that is none or not finite, a count that the header
        does not promise, or a word that is not UTF-8; the message names file and line or word.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype("float32"), np.dtype("float64")):
        raise UsageError(f"dtype must be float32 or float64, got {dtype}")
    wanted = None
    if vocabulary is not None:
        wanted = {word.encode() for word in vocabulary}
        wanted |= {word.lower().encode() for word in vocabulary}
    try:
        with open(path, "rb") as file:
            return _Reader(str(path), file, wanted, dtype).read()
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Reader:
    def __init__(
        self, path: str, file: BinaryIO, wanted: set[bytes] | None, dtype: np.dtype[Any]
    ) -> None:
        self.path = path
        self.file = file
        self.size = fstat(file.fileno()).st_size
        self.wanted = wanted
        self.dtype = dtype
        self.rows: dict[bytes, None] = {}

    def read(self) -> Vectors:
        first = self.file.readline(_LONGEST_WORD + (1 << 20))
        for magic, kind in _COMPRESSED.items():
            if first.startswith(magic) and b"\x00" in first + self.file.peek(64)[:64]:  # type: ignore[attr-defined]
                raise FileError(f"{self.path}: compressed ({kind}): unpack it first")
        fields = first.split()
        if not fields:
            raise DataError(f"{self.path}:1: empty line: expected a word and its vector")
        if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
            count, width = int(fields[0]), int(fields[1])
            if count < 1 or width < 1:
                raise DataError(
                    f"{self.path}:1: header promises {count} words of width {width}: both must be "
                    "at least 1"
                )
            text = self._looks_like_text()
            # The least that a record takes: a one-letter word, separators, and its numbers.
            least = count * (2 + (2 * width if text else 4 * width)) - 1
            if self.size - len(first) < least:
                raise FileError(
                    f"{self.path}: header promises {count} words of width {width}, which take at "
                    f"least {least} bytes, but {self.size - len(first)} follow: the file is cut "
                    "short or of another kind"
                )
            if not text:
                return self._binary(count, width)
            return self._text(width, 2, count)
        if len(fields) < 2:
            raise DataError(f"{self.path}:1: expected a word and its vector, got {_show(first)}")
        self.file.seek(0)
        return self._text(len(first.rstrip(b" \r\n").split(b" ")) - 1, 1, None)

    def _looks_like_text(self) -> bool:
        head = self.file.peek(512)[:512]  # type: ignore[attr-defined]
        return not any(byte < 32 and byte not in b"\t\r\n" for byte in head)

    def _text(self, width: int, first: int, count: int | None) -> Vectors:
        values = array.array("f" if self.dtype.itemsize == 4 else "d")
        lines = 0
        for number, line in enumerate(self.file, first):
            stripped = line.rstrip(b" \r\n")
            if count is not None and lines == count:
                if not stripped:
                    continue
                raise DataError(
                    f"{self.path}:{number}: header promises {count} words, but more follow"
                )
            lines += 1
            word, *numbers = stripped.rsplit(b" ", width)
            if len(numbers) != width or not word:
                kind = FileError if not line.endswith(b"\n") else DataError
                raise kind(
                    f"{self.path}:{number}: expected a word and {width} numbers, "
                    f"got {len(numbers)} numbers: {_show(line)}"
                    + ("; the file is cut short" if kind is FileError else "")
                )
            # A word may hold blanks ('. . .'), but what ends in a number is a longer vector.
            if b" " in word and _is_number(word.rsplit(b" ", 1)[1]):
                raise DataError(
                    f"{self.path}:{number}: more than {width} numbers, the width of line {first}: "
                    f"{_show(line)}"
                )
            if word in self.rows or (self.wanted is not None and word not in self.wanted):
                continue
            try:
                vector = [float(v) for v in numbers]
            except ValueError:
                bad = next(v for v in numbers if not _is_number(v))
                raise DataError(
                    f"{self.path}:{number}: {_show(bad)} is not a number, in the vector of "
                    f"{_show(word)}"
                ) from None
            if not math.isfinite(sum(vector)):
                raise DataError(f"{self.path}:{number}: not finite, the vector of {_show(word)}")
            self._word(word, f"{self.path}:{number}")
            values.extend(vector)
        if count is not None and lines < count:
            raise FileError(
                f"{self.path}: header promises {count} words, got {lines}: the file is cut short"
            )
        return self._result(np.frombuffer(values, self.dtype).reshape(-1, width).copy())

    def _binary(self, count: int, width: int) -> Vectors:
        size = 4 * width
        kept: list[NDArray[Any]] = []
        buffer, position = b"", 0
        for number in range(1, count + 1):
            blank = buffer.find(b" ", position)
            while blank < 0 or len(buffer) < blank + 1 + size:
                if (len(buffer) if blank < 0 else blank) - position > _LONGEST_WORD:
                    self._torn(number)
                more = self.file.read(max(1 << 20, size))
                if not more:
                    raise FileError(f"{self.path}: word {number} of {count}: the file is cut short")
                buffer, position = buffer[position:] + more, 0
                blank = buffer.find(b" ")
            word = buffer[position:blank].lstrip(b"\n")
            vector = np.frombuffer(buffer, "<f4", width, blank + 1)
            position = blank + 1 + size
            if not word or len(word) > _LONGEST_WORD:
                self._torn(number)
            if not np.isfinite(vector).all():
                raise DataError(
                    f"{self.path}: word {number}: not finite, the vector of {_show(word)}"
                )
            if word not in self.rows and (self.wanted is None or word in self.wanted):
                self._word(word, f"{self.path}: word {number}")
                kept.append(vector.astype(self.dtype))
        if (buffer[position:] + self.file.read(16)).strip(b"\n"):
            raise DataError(f"{self.path}: header promises {count} words, but more follow")
        return self._result(np.array(kept, self.dtype).reshape(-1, width))

    def _torn(self, number: int) -> NoReturn:
        raise DataError(
            f"{self.path}: word {number}: no word stands where one should: the width in the "
            "header is not that of the vectors, or the file is of another kind"
        )

    def _word(self, word: bytes, where: str) -> None:
        try:
            word.decode()
        except UnicodeDecodeError:
            raise DataError(f"{where}: the word {_show(word)} is not UTF-8") from None
        self.rows[word] = None

    def _result(self, vectors: NDArray[Any]) -> Vectors:
        if not np.isfinite(vectors).all():  # finite as written, but not in this dtype
            word = list(self.rows)[int(np.argmin(np.isfinite(vectors).all(1)))]
            raise DataError(f"{self.path}: the vector of {_show(word)} overflows {self.dtype}")
        return Vectors([word.decode() for word in self.rows], vectors)


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(text: bytes) -> str:
    shown = text.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")
