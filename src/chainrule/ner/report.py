"""Scores, training curves and tagged text for people: terminal, HTML, PNG."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Protocol

from ..errors import UsageError
from .scores import Scores, require_nervaluate

# Terminal (256 colours, black text) and HTML colours of the types, in order of appearance.
_COLOURS = (
    (117, "#87d7ff"),
    (215, "#ffaf5f"),
    (120, "#87ff87"),
    (219, "#ffafff"),
    (228, "#ffff87"),
    (183, "#d7afff"),
    (210, "#ff8787"),
    (152, "#afd7d7"),
)
_STYLE = """body { font: 16px/1.7 sans-serif; max-width: 50em; margin: 2em auto; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right }
td:first-child, th:first-child { text-align: left } tr:last-child { border-top: 1px solid #222 }
mark { padding: .15em .3em; border-radius: .3em } mark small { opacity: .7; margin-left: .4em }"""


class Marked(Protocol):
    """What is marked in a text: character offsets, a type, a probability."""

    @property
    def label(self) -> str:
        """The type."""

    @property
    def start(self) -> int:
        """First character."""

    @property
    def end(self) -> int:
        """One after the last character."""

    @property
    def score(self) -> float:
        """Probability."""


class Palette:
    """Gives every type a colour.

    Parameters
    ----------
    labels
        The types; one that is not among them gets a colour when it first appears.
    """

    def __init__(self, labels: Iterable[str] = ()) -> None:
        self._index = {label: i for i, label in enumerate(labels)}

    def __getitem__(self, label: str) -> tuple[int, str]:
        index = self._index.setdefault(label, len(self._index))
        return _COLOURS[index % len(_COLOURS)]


def use_colour(stream: IO[str]) -> bool:
    """Whether to colour what goes to `stream`: a terminal, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def mark(text: str, entities: Sequence[Marked], palette: Palette, colour: bool) -> str:
    """Text with its entities marked: in colour, or as ``[Paris](location)``."""
    out, position = [], 0
    for entity in entities:
        inside = text[entity.start : entity.end]
        out.append(text[position : entity.start])
        if colour:
            code = palette[entity.label][0]
            out.append(f"\x1b[30;48;5;{code}m {inside} \x1b[2m{entity.label} \x1b[0m")
        else:
            out.append(f"[{inside}]({entity.label})")
        position = entity.end
    return "".join(out) + text[position:]


def table(scores: Scores) -> str:
    """The scores as a plain text table."""
    width = max(len(s.label) for s in (*scores.types, scores.overall))
    width = max(width, len("type"))
    lines = [f"{'type':<{width}}  precision  recall      F1  correct  predicted  actual"]
    lines += [
        f"{s.label:<{width}}  {s.precision:9.3f}  {s.recall:6.3f}  {s.f1:6.3f}  {s.correct:7d}  "
        f"{s.predicted:9d}  {s.actual:6d}"
        for s in (*scores.types, scores.overall)
    ]
    lines.insert(-1, "-" * len(lines[0]))
    return "\n".join(lines)


def scores_page(scores: Scores, title: str) -> str:
    """The scores as an HTML page."""
    head = "<tr><th>type<th>precision<th>recall<th>F1<th>correct<th>predicted<th>actual</tr>\n"
    rows = "".join(
        f"<tr><td>{html.escape(s.label)}<td>{s.precision:.3f}<td>{s.recall:.3f}<td>{s.f1:.3f}"
        f"<td>{s.correct}<td>{s.predicted}<td>{s.actual}</tr>\n"
        for s in (*scores.types, scores.overall)
    )
    size = f"<p>{scores.sentences} sentences, {scores.tokens} tokens; an entity counts as correct "
    size += "if both its span and its type are.</p>"
    return page(title, f"<table>\n{head}{rows}</table>\n{size}")


def text_page(texts: Iterable[tuple[str, Sequence[Marked]]], title: str, palette: Palette) -> str:
    """Texts with their entities marked, as an HTML page."""
    paragraphs = []
    for text, entities in texts:
        out, position = [], 0
        for e in entities:
            out.append(html.escape(text[position : e.start]))
            out.append(
                f'<mark style="background: {palette[e.label][1]}" title="{e.score:.3f}">'
                f"{html.escape(text[e.start : e.end])}<small>{html.escape(e.label)}</small></mark>"
            )
            position = e.end
        out.append(html.escape(text[position:]))
        paragraphs.append(f"<p>{''.join(out)}</p>\n")
    return page(title, "".join(paragraphs))


def page(title: str, body: str) -> str:
    """A complete HTML page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def check_extras() -> None:
    """Raise UsageError where what draws and scores is not installed."""
    require_nervaluate()
    _matplotlib()


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "curves need matplotlib, which is not installed: pip install 'chainrule[ner]'"
        ) from error
    return Figure, FigureCanvasAgg


def curves(epochs: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the training curves as a PNG picture.

    Parameters
    ----------
    epochs
        The history: dicts with ``epoch`` (from 0), ``loss``, and where there are any ``val_loss``
        and ``val_f1``.
    path
        Where to write.

    Raises
    ------
    UsageError
        Where matplotlib is not installed.
    """
    new_figure, canvas = _matplotlib()
    figure = new_figure(figsize=(7, 4), layout="constrained")
    canvas(figure)  # draws without a display and without pyplot's global state
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss (nats a token)")
    named = {"loss": "training loss", "val_loss": "held-out loss"}
    for key, label in named.items():
        points = [(e["epoch"] + 1, e[key]) for e in epochs if e.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    points = [(e["epoch"] + 1, e["val_f1"]) for e in epochs if e.get("val_f1") is not None]
    if points:
        right = axes.twinx()
        right.set(ylabel="entity F1", ylim=(0, 1))
        right.plot(*zip(*points, strict=True), "k--", marker=".", label="held-out F1")
        axes.plot([], [], "k--", marker=".", label="held-out F1")
    axes.legend(loc="center right")
    figure.savefig(path, dpi=120)
