"""Entity precision, recall and F1 by type: an entity counts if span and type are both right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DataError, UsageError
from .corpus import Sentence, Span


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one type, or of all together.

    Parameters
    ----------
    label
        The type; ``"all"`` for the micro average.
    precision, recall, f1
        From 0 to 1; 0 where nothing was predicted or nothing is there.
    correct, predicted, actual
        Numbers of entities.
    """

    label: str
    precision: float
    recall: float
    f1: float
    correct: int
    predicted: int
    actual: int


@dataclass(frozen=True, slots=True)
class Scores:
    """The figures of a test set.

    Parameters
    ----------
    overall
        All entities together (micro average).
    types
        One `Score` a type, in alphabetical order.
    sentences, tokens
        Size of the set.
    """

    overall: Score
    types: tuple[Score, ...]
    sentences: int
    tokens: int

    @property
    def f1(self) -> float:
        """F1 of all entities together."""
        return self.overall.f1

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain numbers, for JSON."""
        return asdict(self)


def score(sentences: Sequence[Sentence], predicted: Sequence[Sequence[Span]]) -> Scores:
    """Compare predicted entities with those of the sentences.

    Counted by nervaluate, strict scheme.

    Parameters
    ----------
    sentences
        With the true entities.
    predicted
        For each sentence its predicted entities, none overlapping another.

    Returns
    -------
    Scores

    Raises
    ------
    UsageError
        Where nervaluate is not installed.
    """
    if len(sentences) != len(predicted):
        raise DataError(f"{len(sentences)} sentences but {len(predicted)} predictions")
    evaluator = require_nervaluate()
    labels = sorted(
        {s.label for sentence in sentences for s in sentence.entities}
        | {s.label for spans in predicted for s in spans}
    )
    # nervaluate counts ends as included.
    true, pred = (
        [[{"label": s.label, "start": s.start, "end": s.end - 1} for s in spans] for spans in side]
        for side in ([sentence.entities for sentence in sentences], predicted)
    )
    results = evaluator(true, pred, tags=labels, loader="dict").evaluate()
    overall = results["overall"]["strict"] if sentences else None
    return Scores(
        _figures("all", overall),
        tuple(_figures(label, results["entities"][label]["strict"]) for label in labels),
        len(sentences),
        sum(len(s.tokens) for s in sentences),
    )


def _figures(label: str, result: Any) -> Score:
    if result is None:
        return Score(label, 0.0, 0.0, 0.0, 0, 0, 0)
    return Score(
        label,
        float(result.precision),
        float(result.recall),
        float(result.f1),
        int(result.correct),
        int(result.actual),
        int(result.possible),
    )


def require_nervaluate() -> Any:
    """nervaluate's Evaluator, or a UsageError that says how to install it."""
    try:
        from nervaluate.evaluator import Evaluator  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UsageError(
            "scores need nervaluate, which is not installed: pip install 'chainrule[ner]'"
        ) from error
    return Evaluator
