"""A forward and a backward pass told step by step: as text, as LaTeX, as a page with a slider."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .anatomy import Anatomy, Step, Value, dissect, full, names_of
from .draw import render
from .errors import UsageError
from .graph import Tensor
from .lessons import Part, latex

Array = NDArray[Any]

_JACOBIAN_LIMIT = 4096  # elements: larger local Jacobians are named, not computed


@dataclass(frozen=True)
class Share:
    """What one operand of a step receives.

    Attributes
    ----------
    name, shape
        The operand.
    part
        The derivative's name in both notations.
    jacobian
        The local Jacobian, outputs x inputs; None where it would be large.
    gradient
        What flows to the operand, in its shape; None for constants.
    gap
        Largest difference between ``gradient`` and the upstream row times `jacobian`.
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    jacobian: Array | None
    gradient: Array | None
    gap: float | None


@dataclass(frozen=True)
class Card:
    """One step of the backward pass."""

    equation: str
    role: str
    name: str
    value: Array
    upstream: Array
    shares: tuple[Share, ...]
    notes: tuple[str, ...]
    forward_flops: int
    backward_flops: int


class Explanation:
    """What `explain` found; prints as text.

    Attributes
    ----------
    cards : tuple of Card
        One a step, in backward order.
    local_gradients : int
        Local gradients evaluated, each once: one for each step and operand that needs it.
    forward_flops, backward_flops : int
        Floating point operations: of the recorded forward pass by the op table, and as counted
        while backward ran.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self.cards = tuple(_card(anatomy, step) for step in anatomy.backward)
        self.local_gradients = sum(s.gradient is not None for c in self.cards for s in c.shares)
        self.forward_flops = anatomy.forward_flops
        self.backward_flops = anatomy.backward_flops

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        page = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:44rem;border:0"></iframe>'

    def save(self, path: str | Path) -> None:
        """Write the explanation: ``.html``, ``.tex`` or ``.txt``, by the name's ending."""
        writers = {".html": self.to_html, ".tex": self.to_latex, ".txt": self.to_text}
        ending = Path(path).suffix.lower()
        if ending not in writers:
            raise UsageError(f"{path}: give a name that ends in .html, .tex or .txt")
        Path(path).write_text(writers[ending]() + "\n", encoding="utf-8")

    def to_text(self) -> str:
        """The explanation for a terminal."""
        anatomy, root = self._anatomy, self._anatomy.root.name
        lines = [f"{root} = {full(np.asarray(anatomy.root.data))}", "", "Forward"]
        for value in anatomy.values:
            if value.kind == "input":
                lines += _titled(f"  {value.name} {_shape(value.tensor.shape)}", value.data)
        for step in anatomy.steps:
            name = step.result.name
            lines.append(f"  {step.lesson.equation}   {_shape(step.result.tensor.shape)}")
            lines += _titled(f"    {name}", step.result.data)
        lines += ["", f"Backward, from ∂{root}/∂{root} = 1"]
        for number, card in enumerate(self.cards, 1):
            lines += ["", f"{number}. {card.equation}"]
            if card.role:
                lines.append(f"   {card.role}")
            lines += _titled(f"   upstream g = ∂{root}/∂{card.name}", card.upstream)
            for share in card.shares:
                lines += self._share_lines(share, card)
            lines += [f"   {note}" for note in card.notes]
        lines += ["", *self._footer()]
        return "\n".join(lines)

    def _share_lines(self, share: Share, card: Card) -> list[str]:
        root = self._anatomy.root.name
        if share.gradient is None:
            return [f"   to {share.name}: a constant, no gradient"]
        n, m = card.value.size, share.gradient.size
        lines = [f"   to {share.name} {_shape(share.shape)}:"]
        lines.append(f"     local ∂{card.name}/∂{share.name} = {share.part.local}   ({n}×{m})")
        if share.jacobian is not None and share.jacobian.size > 1:
            lines += _indented(full(share.jacobian), 7)
        lines.append(f"     Jacobian form     {share.part.row}   (1×{m})")
        lines.append(
            f"     shape convention  {share.part.shape}   {_shape(share.shape)}"
            f" by: {share.part.turn}"
        )
        return [*lines, *_titled(f"     downstream ∂{root}/∂{share.name}", share.gradient)]

    def _footer(self) -> list[str]:
        ratio = self.backward_flops / self.forward_flops if self.forward_flops else 0.0
        return [
            f"{self.local_gradients} local gradients, each evaluated once.",
            f"Floating point operations: {self.forward_flops} forward, {self.backward_flops} "
            f"backward ({ratio:.2f} times).",
        ]

    def to_latex(self) -> str:
        """The explanation as LaTeX: one ``align*`` a step, for a document with amsmath."""
        root = latex(self._anatomy.root.name)
        out = ["\\paragraph{Forward}", "\\begin{align*}"]
        equations = [latex(s.lesson.equation).replace("=", "&=", 1) for s in self._anatomy.steps]
        out += [" \\\\\n".join(equations), "\\end{align*}", "\\paragraph{Backward}"]
        for card in self.cards:
            name = latex(card.name)
            up = f"\\frac{{\\partial {root}}}{{\\partial {name}}}"
            rows = [
                latex(card.equation).replace("=", "&=", 1),
                f"g = {up} &= {_matrix(card.upstream)}",
            ]
            for share in card.shares:
                if share.gradient is None:
                    continue
                x = latex(share.name)
                local = f"\\frac{{\\partial {name}}}{{\\partial {x}}} &= {latex(share.part.local)}"
                if share.jacobian is not None and 1 < share.jacobian.size <= 24:
                    local += f" = {_matrix(share.jacobian)}"
                down = f"\\frac{{\\partial {root}}}{{\\partial {x}}}"
                rows += [
                    local,
                    f"\\text{{Jacobian form: }} & {latex(share.part.row)}",
                    f"\\text{{shape convention: }} {down} &= {latex(share.part.shape)}"
                    f" = {_matrix(share.gradient)}",
                ]
            out += ["\\begin{align*}", " \\\\\n".join(rows), "\\end{align*}"]
            out += [f"% {note}" for note in card.notes]
        return "\n".join([*out, *(f"% {line}" for line in self._footer())])

    def to_html(self) -> str:
        """One self-contained page: the graph, a slider that walks it, and a card a step."""
        anatomy, root = self._anatomy, self._anatomy.root.name
        number = {id(v): i for i, v in enumerate(anatomy.values)}
        sources = [number[id(v)] for v in anatomy.values if v.kind != "step"]
        steps: list[dict[str, Any]] = [
            {"at": number[id(step.result)], "pass": "forward", "html": _forward_html(step)}
            for step in anatomy.steps
        ]
        for step, card in zip(anatomy.backward, self.cards, strict=True):
            html = self._card_html(card)
            steps.append({"at": number[id(step.result)], "pass": "backward", "html": html})
        data = json.dumps({"sources": sources, "steps": steps}).replace("</", "<\\/")
        footer = " ".join(escape(line) for line in self._footer())
        return (
            _PAGE.replace("@TITLE@", escape(f"{root}, step by step"))
            .replace("@HEAD@", escape(f"{root} = {full(np.asarray(anatomy.root.data))}"))
            .replace("@FOOT@", footer)
            .replace("@LAST@", str(len(steps) - 1))
            .replace("@DATA@", data)
            .replace("@SVG@", render(anatomy).svg)
        )

    def _card_html(self, card: Card) -> str:
        root = escape(self._anatomy.root.name)
        name = escape(card.name)
        rows = []
        for share in card.shares:
            to = escape(share.name)
            if share.gradient is None:
                rows.append(f"<h3>to {to}</h3><p>a constant: no gradient</p>")
                continue
            matrix = ""
            if share.jacobian is not None and share.jacobian.size > 1:
                matrix = f"<pre>{escape(full(share.jacobian))}</pre>"
            sizes = f"{card.value.size}×{share.gradient.size}"
            rows.append(
                f"<h3>to {to} <small>{_shape(share.shape)}</small></h3><dl>"
                f"<dt>local ∂{name}/∂{to}</dt>"
                f"<dd><b>{escape(share.part.local)}</b> <small>{sizes}</small>{matrix}</dd>"
                f"<dt>Jacobian form</dt><dd>{escape(share.part.row)} "
                f"<small>1×{share.gradient.size}</small></dd>"
                f"<dt>shape convention</dt><dd>{escape(share.part.shape)} "
                f"<small>by: {escape(share.part.turn)}</small></dd>"
                f"<dt>∂{root}/∂{to}</dt>"
                f'<dd><pre class="grad">{escape(full(share.gradient))}</pre></dd></dl>'
            )
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in card.notes)
        return (
            f"<h2>{escape(card.equation)}</h2><p>{escape(card.role)}</p>"
            f"<dl><dt>upstream g = ∂{root}/∂{name}</dt>"
            f'<dd><pre class="grad">{escape(full(card.upstream))}</pre></dd></dl>'
            + notes
            + "".join(rows)
            + f"<p><small>{card.backward_flops} floating point operations</small></p>"
        )


def explain(s: Tensor, /, **names: Tensor) -> Explanation:
    """Tell how a scalar came about and how its gradients flow, node by node.

    Runs one backward pass of its own; ``.grad`` of the nodes is left alone. Local Jacobians are
    computed for the telling where they are small.

    Parameters
    ----------
    s
        A float Tensor of one element.
    **names
        Names of nodes; default: the caller's variables.

    Returns
    -------
    Explanation
        Prints as text; ``.to_html()``, ``.to_latex()``, ``.save(path)``.
    """
    return Explanation(dissect(s, names_of(sys._getframe(1), names), "explain"))


def _card(anatomy: Anatomy, step: Step) -> Card:
    upstream = step.result.gradient
    assert upstream is not None
    shares = []
    for operand, part, jacobian, given in zip(
        step.operands, step.lesson.parts, step.jacobians(_JACOBIAN_LIMIT), step.given, strict=True
    ):
        gap = None
        if jacobian is not None and given is not None:
            row = upstream.astype(np.float64).ravel() @ jacobian
            gap = float(np.max(np.abs(row - given.ravel()), initial=0.0))
        shares.append(Share(operand.name, operand.tensor.shape, part, jacobian, given, gap))
    return Card(
        step.lesson.equation,
        step.lesson.role,
        step.result.name,
        np.asarray(step.result.data),
        upstream,
        tuple(shares),
        tuple(_notes(anatomy, step)),
        step.forward_flops,
        step.backward_flops,
    )


def _notes(anatomy: Anatomy, step: Step) -> list[str]:
    root, notes = anatomy.root.name, []
    if len(step.result.uses) > 1:
        uses = [s.result.name for s, _ in step.result.uses]
        notes.append(_branch(step.result, uses))
    for value in dict.fromkeys(step.operands):
        if step.lesson.nonlinear and value.kind == "step" and value.gradient is not None:
            served = _served(anatomy, value)
            if len(served) > 1:
                into = ", ".join(f"∂{root}/∂{name}" for name in served)
                notes.append(
                    f"δ = ∂{root}/∂{value.name} is computed here, once, and reused for {into}"
                )
        if value.kind == "input" and len(value.uses) > 1:
            orders = [s.order for s, _ in value.uses if s.order]
            if step.order == max(orders, default=0):
                notes.append(_branch(value, [s.result.name for s, _ in value.uses]))
    return notes


def _branch(value: Value, uses: Sequence[str]) -> str:
    total = "" if value.gradient is None else f": {full(value.gradient, 6)}".replace("\n", " ")
    return f"{value.name} branches into {', '.join(uses)}: its gradients are summed{total}"


def _served(anatomy: Anatomy, value: Value) -> list[str]:
    """The sources whose gradients are made from this value's one."""
    made = {id(step.result): step for step in anatomy.steps}
    found: dict[str, None] = {}
    stack, seen = [value], set()
    while stack:
        v = stack.pop()
        if id(v) in seen:
            continue
        seen.add(id(v))
        if v.kind == "input":
            found[v.name] = None
        elif id(v) in made:
            stack += reversed(made[id(v)].operands)
    return list(found)


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})" if shape else "scalar"


def _indented(text: str, n: int) -> list[str]:
    return [" " * n + line for line in text.splitlines()]


def _titled(title: str, a: Array) -> list[str]:
    lines = full(np.asarray(a)).splitlines()
    pad = " " * (len(title) + 3)
    return [f"{title} = {lines[0]}", *(pad + line for line in lines[1:])]


def _matrix(a: Array) -> str:
    """Numbers as a LaTeX matrix, vectors as columns; a summary for large ones."""
    a = np.asarray(a)
    if a.size > 24 or a.ndim > 2:
        return f"\\text{{({full(a)})}}"
    if not a.ndim:
        return f"{a.item() + 0.0:.4g}"
    table = a.reshape(-1, 1) if a.ndim == 1 else a
    body = " \\\\ ".join(" & ".join(f"{v + 0.0:.4g}" for v in row) for row in table.tolist())
    return f"\\begin{{bmatrix}} {body} \\end{{bmatrix}}"


def _forward_html(step: Step) -> str:
    value = np.asarray(step.result.data)
    return (
        f"<h2>{escape(step.lesson.equation)}</h2><p><small>{_shape(value.shape)}, "
        f"{step.forward_flops} floating point operations</small></p>"
        f'<pre class="value">{escape(full(value))}</pre>'
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>@TITLE@</title>
<style>
:root{color-scheme:light dark;--bg:#fff;--ink:#1c2430;--soft:#66707f;--box:#f5f7fa;--rule:#d5dae2;
--value:#0b6b3a;--grad:#b42318}
@media (prefers-color-scheme:dark){:root{--bg:#14181f;--ink:#e8ecf2;--soft:#9aa5b4;--box:#1d232d;
--rule:#343c49;--value:#5fd39a;--grad:#ff8a7a}}
body{margin:0 auto;padding:1.2rem;max-width:76rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.3rem;margin:.2rem 0 1rem}h2{font-size:1.15rem;margin:.2rem 0}
h3{font-size:1rem;margin:1rem 0 .2rem;border-top:1px solid var(--rule);padding-top:.6rem}
small,.note{color:var(--soft)}.note{border-left:3px solid var(--grad);padding-left:.6rem}
svg{display:block}.picture{overflow-x:auto;border:1px solid var(--rule);border-radius:8px}
.walk{display:flex;gap:.8rem;align-items:center;margin:1rem 0;position:sticky;top:0;
background:var(--bg);padding:.4rem 0}.walk input{flex:1}
button{font:inherit;padding:.1rem .8rem;border:1px solid var(--rule);border-radius:6px;
background:var(--box);color:inherit}
#card{background:var(--box);border:1px solid var(--rule);border-radius:8px;padding:1rem;
min-height:14rem}
pre{margin:.2rem 0;overflow-x:auto;font:13px/1.4 ui-monospace,Menlo,Consolas,monospace}
pre.value{color:var(--value)}pre.grad{color:var(--grad)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.4rem 0}dd{margin:0;
min-width:0}dt{color:var(--soft)}
@media (max-width:40rem){dl{grid-template-columns:1fr}}
.off{opacity:.18}text.off{opacity:0}.here rect{stroke-width:3.5!important}
</style></head><body>
<h1>@HEAD@</h1>
<div class="picture">@SVG@</div>
<div class="walk"><button id="back" aria-label="one step back">&#8592;</button>
<input id="at" type="range" min="0" max="@LAST@" value="@LAST@" aria-label="step">
<button id="on" aria-label="one step on">&#8594;</button><output id="which"></output></div>
<div id="card" aria-live="polite"></div>
<p><small>@FOOT@</small></p>
<script>
const story = @DATA@;
const slider = document.getElementById("at"), card = document.getElementById("card");
const forward = story.steps.filter(s => s.pass === "forward").length;
const all = q => document.querySelectorAll(".picture " + q);
function show() {
  const k = +slider.value, now = story.steps[k];
  const made = new Set(), passed = new Set();
  for (const s of story.steps.slice(0, k + 1))
    (s.pass === "forward" ? made : passed).add(String(s.at));
  story.sources.forEach(i => made.add(String(i)));
  all("[data-node]").forEach(g => {
    g.classList.toggle("off", !made.has(g.dataset.node));
    g.classList.toggle("here", g.dataset.node === String(now.at));
    const total = g.querySelector("text.gradient");
    if (total) total.classList.toggle("off", k < story.steps.length - 1);
  });
  all("path.wire").forEach(p => p.classList.toggle("off", !made.has(p.dataset.from)));
  all("text.value").forEach(t => t.classList.toggle("off", !made.has(t.dataset.of)));
  all("text.gradient[data-of]").forEach(t => {
    const seed = t.dataset.of === t.dataset.to;
    t.classList.toggle("off", seed ? k < forward : !passed.has(t.dataset.to));
  });
  card.innerHTML = now.html;
  document.getElementById("which").textContent =
    now.pass + " " + (now.pass === "forward" ? k + 1 : k + 1 - forward) + " of " +
    (now.pass === "forward" ? forward : story.steps.length - forward);
}
slider.oninput = show;
document.getElementById("back").onclick = () => { slider.stepDown(); show(); };
document.getElementById("on").onclick = () => { slider.stepUp(); show(); };
slider.value = 0;
show();
</script></body></html>"""
