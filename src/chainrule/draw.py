"""The computation graph as SVG, laid out in columns from the sources to the result.

Every column of nodes is followed by a column of labels, and an edge has a place of its own in every
column that it crosses: there it runs straight, between its value above and its gradient below. It
bends only in the gaps between columns, where nothing else stands, so no line ever meets a node or a
label of another.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from .anatomy import Anatomy, Value, dissect, full, names_of, short
from .errors import UsageError
from .graph import Tensor

MOST_STEPS = 400
_GAP = 30.0  # between columns
_SPACE = 10.0  # between rows
_SWEEPS = 12

STYLE = """
.cr-graph{--bg:#fff;--ink:#1c2430;--soft:#66707f;--line:#98a2b3;--value:#0b6b3a;--grad:#b42318;
--source:#e3edfb;--source-edge:#3b6fb6;--const:#eef0f3;--op:#fdf0d5;--op-edge:#b7791f}
@media (prefers-color-scheme:dark){.cr-graph{--bg:#14181f;--ink:#e8ecf2;--soft:#9aa5b4;
--line:#667085;--value:#5fd39a;--grad:#ff8a7a;--source:#1d3350;--source-edge:#6ea2e8;--const:#272d37;
--op:#453516;--op-edge:#e0aa4b}}
.cr-graph .bg{fill:var(--bg)}.cr-graph text{fill:var(--ink);font:13px system-ui,sans-serif}
.cr-graph .shape,.cr-graph .is{fill:var(--soft);font-size:11px}
.cr-graph .name{font-weight:600}.cr-graph .wire{fill:none;stroke:var(--line);stroke-width:1.4}
.cr-graph .arrow{fill:var(--line)}.cr-graph text.value,.cr-graph text.gradient
{font:11px ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
.cr-graph text.value{fill:var(--value)}.cr-graph text.gradient{fill:var(--grad)}
.cr-graph .source rect{fill:var(--source);stroke:var(--source-edge);stroke-width:1.4}
.cr-graph .constant rect{fill:var(--const);stroke:var(--line);stroke-dasharray:3 2}
.cr-graph .op rect{fill:var(--op);stroke:var(--op-edge);stroke-width:1.4}
""".strip()


@dataclass(eq=False)
class _Item:
    """A place in a column: a node, a label on an edge, or an edge passing through."""

    width: float
    height: float
    node: Value | None = None
    value: str = ""
    gradient: str = ""
    owner: int = 0  # for labels: number of the value whose edge it is on
    reader: int = 0
    x: float = 0.0
    y: float = 0.0
    before: list[_Item] = field(default_factory=list)
    after: list[_Item] = field(default_factory=list)


@dataclass(frozen=True)
class Drawing:
    """A picture of a graph.

    Attributes
    ----------
    svg : str
        The picture; follows the reader's light or dark scheme.
    width, height : float
        Its size in pixels.
    """

    svg: str
    width: float
    height: float

    def _repr_svg_(self) -> str:
        return self.svg

    def __str__(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the picture to a ``.svg`` file."""
        if Path(path).suffix.lower() != ".svg":
            raise UsageError(f"{path}: a drawing is saved as SVG: give a name that ends in .svg")
        Path(path).write_text(self.svg, encoding="utf-8")


def draw(s: Tensor, /, **names: Tensor) -> Drawing:
    """Draw the computation graph of a scalar: values above the edges, gradients below.

    Boxes with square corners are sources (dashed: constants, without gradient), round ones are
    ops. Gradients are those of `s`; they are computed for the picture and leave ``.grad`` alone.
    A gradient below an edge is what flows through that edge; where a value branches, the sum
    stands in its box.

    Parameters
    ----------
    s
        A float Tensor of one element.
    **names
        Names of nodes; default: the caller's variables.

    Returns
    -------
    Drawing
        Shown by notebooks; ``.save(path)`` writes it.
    """
    return render(dissect(s, names_of(sys._getframe(1), names), "draw"))


def render(anatomy: Anatomy) -> Drawing:
    """The picture of a dissected graph."""
    if len(anatomy.steps) > MOST_STEPS:
        raise UsageError(
            f"draw: the graph has {len(anatomy.steps)} ops, a picture at most {MOST_STEPS}: "
            "draw a part of it, or a smaller batch"
        )
    columns = _columns(anatomy)
    _order(columns)
    _place(columns)
    return _svg(anatomy, columns)


def _columns(anatomy: Anatomy) -> list[list[_Item]]:
    """Nodes and labels by column; each edge has an item in every column between its ends."""
    rank: dict[int, int] = {}
    for step in anatomy.steps:
        ranks = [rank.get(id(o), 0) for o in step.operands]
        rank[id(step.result)] = 1 + max(ranks, default=0)
    for value in anatomy.values:
        if value.kind != "step":
            reached = [rank[id(step.result)] for step, _ in value.uses]
            rank[id(value)] = min(reached, default=1) - 1
    last = max(rank.values(), default=0)
    columns: list[list[_Item]] = [[] for _ in range(2 * last + 2)]
    items: dict[int, _Item] = {}
    number = {id(v): i for i, v in enumerate(anatomy.values)}
    for value in anatomy.values:
        items[id(value)] = item = _node(anatomy, value)
        columns[2 * rank[id(value)]].append(item)
    for step in anatomy.steps:
        for i, operand in enumerate(step.operands):
            end = 2 * rank[id(step.result)]
            given = step.given[i]
            label = _label(operand, "" if given is None else short(given))
            label.owner, label.reader = number[id(operand)], number[id(step.result)]
            previous = items[id(operand)]
            for c in range(2 * rank[id(operand)] + 1, end):
                item = label if label not in previous.after and previous.node else _Item(0.0, 4.0)
                item.owner, item.reader = label.owner, label.reader
                columns[c].append(item)
                previous.after.append(item)
                item.before.append(previous)
                previous = item
            previous.after.append(items[id(step.result)])
            items[id(step.result)].before.append(previous)
    root = anatomy.root
    result = items[id(root)]
    out = _label(root, "1" if root.gradient is not None else "")
    out.owner = out.reader = number[id(root)]
    columns[2 * rank[id(root)] + 1].append(out)
    out.before.append(result)
    result.after.append(out)
    return columns


def _node(anatomy: Anatomy, value: Value) -> _Item:
    lines = _lines(value, anatomy)
    width = max(_width(text, size) for text, size, _ in lines) + 22.0
    return _Item(max(width, 40.0), 15.0 * len(lines) + 12.0, value)


def _lines(value: Value, anatomy: Anatomy) -> list[tuple[str, float, str]]:
    """The lines in a node's box: text, size, class."""
    shape = "×".join(map(str, value.tensor.shape))
    if value.kind == "step":
        step = next(s for s in anatomy.steps if s.result is value)
        lines = [
            (_clip(step.lesson.symbol, 24), 13.0, "name"),
            (f"{_clip(value.name)}", 11.0, "is"),
        ]
    else:
        lines = [(_clip(value.name), 13.0, "name")]
        if shape:
            lines.append((shape, 11.0, "shape"))
    if len(value.uses) > 1 and value.gradient is not None:
        lines.append((f"Σ {short(value.gradient)}", 11.5, "gradient"))
    return lines


def _clip(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _width(text: str, size: float) -> float:
    return 0.63 * size * len(text)


def _label(value: Value, gradient: str) -> _Item:
    text = short(value.data)
    width = max(_width(text, 11.0), _width(gradient, 11.0)) + 8.0
    return _Item(width, 34.0, None, text, gradient)


# -- order in the columns: as few crossings as sweeps of barycentres find -------------------------


def _order(columns: list[list[_Item]]) -> None:
    best, fewest = [list(c) for c in columns], _crossings(columns)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        forward = sweep % 2 == 0
        for left, right in itertools.pairwise(columns if forward else columns[::-1]):
            place = {id(item): float(i) for i, item in enumerate(left)}

            def centre(item: _Item, place: Mapping[int, float] = place) -> float | None:
                at = [place[id(n)] for n in (*item.before, *item.after) if id(n) in place]
                return sum(at) / len(at) if at else None

            _sort_by(right, [centre(item) for item in right])
        crossings = _crossings(columns)
        if crossings < fewest:
            best, fewest = [list(c) for c in columns], crossings
    for column, order in zip(columns, best, strict=True):
        column[:] = order


def _sort_by(items: list[_Item], keys: Sequence[float | None]) -> None:
    """Sort those that have a key; the others keep their places."""
    fixed = [i for i, key in enumerate(keys) if key is not None]
    chosen = sorted(fixed, key=lambda i: (keys[i], i))
    moved = [items[i] for i in chosen]
    for i, item in zip(fixed, moved, strict=True):
        items[i] = item


def _crossings(columns: Sequence[Sequence[_Item]]) -> int:
    total = 0
    for left, right in itertools.pairwise(columns):
        place = {id(item): i for i, item in enumerate(right)}
        ends = [
            at for item in left for at in sorted(place[id(n)] for n in item.after if id(n) in place)
        ]
        total += sum(b < a for i, a in enumerate(ends) for b in ends[i + 1 :])
    return total


# -- coordinates ---------------------------------------------------------------------------------


def _place(columns: Sequence[Sequence[_Item]]) -> None:
    for column in columns:
        y = 0.0
        for item in column:
            item.y = y + item.height / 2
            y += item.height + _SPACE
    for sweep in range(2 * _SWEEPS):
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            wanted = []
            for item in column:
                near = [n.y for n in (item.before or item.after)]
                if sweep >= _SWEEPS:
                    near = [n.y for n in (*item.before, *item.after)]
                wanted.append(sum(near) / len(near) if near else item.y)
            _settle(column, wanted)
    top = min(item.y - item.height / 2 for c in columns for item in c)
    x = 14.0
    for i, column in enumerate(columns):
        width = max((item.width for item in column), default=0.0)
        for item in column:
            item.x = x + width / 2
            item.y += 14.0 - top
            if item.node is None:
                item.width = width
        if i + 1 < len(columns):
            rise = max((abs(n.y - item.y) for item in column for n in item.after), default=0.0)
            x += width + min(_GAP + 0.12 * rise, 90.0)


def _settle(column: Sequence[_Item], wanted: Sequence[float]) -> None:
    """Move items as near as possible to where they want to be, in order and apart.

    With the distances that must be kept subtracted, this is a regression on non-decreasing
    sequences, which pooling neighbours solves exactly.
    """
    offsets, at = [], 0.0
    for i, item in enumerate(column):
        if i:
            at += (column[i - 1].height + item.height) / 2 + _SPACE
        offsets.append(at)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for item, want, offset in zip(column, wanted, offsets, strict=True):
        mean, count = want - offset, 1
        weight = 1.0 if item.node or item.value else 8.0  # what passes through stays straight
        while blocks and blocks[-1][0] > mean:
            other, w, n = blocks.pop()
            mean = (mean * weight + other * w) / (weight + w)
            weight, count = weight + w, count + n
        blocks.append((mean, weight, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    for item, mean, offset in zip(column, means, offsets, strict=True):
        item.y = mean + offset


# -- writing -------------------------------------------------------------------------------------


def _svg(anatomy: Anatomy, columns: Sequence[Sequence[_Item]]) -> Drawing:
    items = [item for column in columns for item in column]
    width = max(item.x + item.width / 2 for item in items) + 14.0
    height = max(item.y + item.height / 2 for item in items) + 14.0
    number = {id(v): i for i, v in enumerate(anatomy.values)}
    wires, labels, nodes = [], [], []
    for item in items:
        if item.node is None:
            left, right = item.x - item.width / 2, item.x + item.width / 2
            wires.append(_wire(item, f"M{left:.1f} {item.y:.1f}H{right:.1f}"))
            if item.value:
                labels.append(_label_text(item))
        else:
            nodes.append(_node_text(anatomy, item, number[id(item.node)]))
        for k, target in enumerate(sorted(item.after, key=lambda n: n.y)):
            x0, y0 = item.x + item.width / 2, item.y + _port(item, k, len(item.after))
            x1 = target.x - target.width / 2
            y1 = target.y + _port(target, _index(target.before, item), len(target.before))
            into = target.node is not None
            x1 -= 6.0 if into else 0.0
            bend = (x0 + x1) / 2
            path = f"M{x0:.1f} {y0:.1f}C{bend:.1f} {y0:.1f} {bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
            wires.append(_wire(item if item.node is None else target, path))
            if into:
                arrow = f"M{x1 + 6:.1f} {y1:.1f}l-8 -4v8z"
                wires.append(f'<path class="arrow" d="{arrow}"/>')
    title = f"computation graph of {anatomy.root.name}"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cr-graph" role="img" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f'<rect class="bg" width="100%" height="100%" rx="8"/>'
        + "".join(wires)
        + "".join(nodes)
        + "".join(labels)
        + "</svg>"
    )
    return Drawing(svg, width, height)


def _index(items: Sequence[_Item], item: _Item) -> int:
    order = sorted(items, key=lambda n: n.y)
    return next(i for i, n in enumerate(order) if n is item)


def _port(item: _Item, k: int, n: int) -> float:
    """Where the k-th of n edges meets a node: spread over its side."""
    if item.node is None or n < 2:
        return 0.0
    spread = min(item.height - 14.0, 9.0 * (n - 1))
    return spread * (k / (n - 1) - 0.5)


def _wire(item: _Item, path: str) -> str:
    return f'<path class="wire" data-from="{item.owner}" data-to="{item.reader}" d="{path}"/>'


def _label_text(item: _Item) -> str:
    at = f'x="{item.x:.1f}" text-anchor="middle" data-of="{item.owner}" data-to="{item.reader}"'
    text = f'<text class="value" {at} y="{item.y - 5:.1f}">{escape(item.value)}</text>'
    if item.gradient:
        text += f'<text class="gradient" {at} y="{item.y + 13:.1f}">{escape(item.gradient)}</text>'
    return text


def _node_text(anatomy: Anatomy, item: _Item, number: int) -> str:
    value = item.node
    assert value is not None
    kind = {"step": "op", "input": "source", "constant": "source constant"}[value.kind]
    left, top = item.x - item.width / 2, item.y - item.height / 2
    corner = min(item.height / 2, 20.0) if value.kind == "step" else 3.0
    lines = _lines(value, anatomy)
    texts = []
    for i, (text, size, what) in enumerate(lines):
        y = top + 6.0 + 15.0 * i + 12.0
        style = f' style="font-size:{size}px"' if what == "gradient" else ""
        texts.append(
            f'<text class="{what}" x="{item.x:.1f}" y="{y:.1f}" text-anchor="middle"{style}>'
            f"{escape(text)}</text>"
        )
    tip = f"{value.name} = {full(np.asarray(value.data))}"
    if value.gradient is not None:
        tip += f"\ngradient {full(value.gradient)}"
    return (
        f'<g class="{kind}" data-node="{number}"><title>{escape(tip)}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{item.width:.1f}" '
        f'height="{item.height:.1f}" rx="{corner:.0f}"/>{"".join(texts)}</g>'
    )
