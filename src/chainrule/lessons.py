"""What each op teaches: its equation, the role it plays, and its local Jacobians by name.

Formulas are written once, in plain characters; `latex` turns them into LaTeX.
`g` is the upstream gradient in the shape of the result (the lecture's delta at a layer's z).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .graph import Tensor


class Named(Protocol):
    """An operand: what it is called and what it is."""

    @property
    def name(self) -> str: ...

    @property
    def tensor(self) -> Tensor: ...


@dataclass(frozen=True)
class Part:
    """The derivative by one operand, in both notations.

    Attributes
    ----------
    local
        Name of the local Jacobian, outputs x inputs.
    row
        Jacobian form: upstream row times local Jacobian.
    shape
        Shape convention: the same numbers in the shape of the operand.
    turn
        What turns the first into the second.
    """

    local: str
    row: str
    shape: str
    turn: str


@dataclass(frozen=True)
class Lesson:
    """One op in words and formulas."""

    symbol: str
    equation: str
    role: str
    parts: tuple[Part, ...]
    nonlinear: bool = False


# Functions of one variable: equation, derivative; {x} the operand, {y} the result.
UNARY: dict[str, tuple[str, str]] = {
    "exp": ("exp({x})", "{y}"),
    "log": ("log({x})", "1/{x}"),
    "log1p": ("log1p({x})", "1/(1 + {x})"),
    "expm1": ("expm1({x})", "{y} + 1"),
    "sqrt": ("sqrt({x})", "1/(2 {y})"),
    "square": ("{x}²", "2 {x}"),
    "abs": ("abs({x})", "sign({x})"),
    "sign": ("sign({x})", "0"),
    "erf": ("erf({x})", "2/√π exp(−{x}²)"),
    "power": ("{x}^{n}", "{n} {x}^{m}"),
    "clip": ("clip({x}, {low}, {high})", "[{low} ≤ {x} ≤ {high}]"),
    "tanh": ("tanh({x})", "1 − {y}²"),
    "sigmoid": ("sigmoid({x})", "{y} ⊙ (1 − {y})"),
    "hard_tanh": ("hard_tanh({x})", "[−1 < {x} < 1]"),
    "relu": ("relu({x})", "[{x} > 0]"),
    "leaky_relu": ("leaky_relu({x})", "[{x} > 0] + {p} [{x} ≤ 0]"),
    "elu": ("elu({x})", "[{x} > 0] + {p} exp({x}) [{x} ≤ 0]"),
    "softplus": ("softplus({x})", "sigmoid({x})"),
    "swish": ("swish({x})", "sigmoid({x}) ⊙ (1 + {x} ⊙ (1 − sigmoid({x})))"),
    "gelu": ("gelu({x})", "gelu'({x})"),
    "gelu_tanh": ("gelu_tanh({x})", "gelu_tanh'({x})"),
}

ROLES = {
    "add": "addition distributes: each operand receives the upstream gradient as it is",
    "subtract": "subtraction distributes: as it is to the left, with the sign turned to the right",
    "multiply": "multiplication switches: each operand receives the upstream times the other one",
    "divide": "division: by the divisor to the left; to the right also by minus the result",
    "maximum": "max routes: the upstream goes whole to the larger operand (the first of equals)",
    "minimum": "min routes: the upstream goes whole to the smaller operand (the first of equals)",
    "max": "max routes: the upstream goes whole to the largest element (to the first of equals)",
    "sum": "a sum copies: every element receives the upstream gradient",
    "where": "a choice routes: the upstream goes to the side that was chosen",
    "matmul": "a matrix times a vector: each W_ij feeds one element, so dW is an outer product",
    "dense": "a layer in one pass: delta is computed once, for x, W and b",
    "take": "a lookup routes: each row receives the sum over the places that it was used in",
    "reshape": "the same numbers in another shape",
    "transpose": "the same numbers, axes reordered",
    "slice": "a part: what was left out receives zero",
    "concatenate": "joined: each operand receives its own part of the upstream",
    "cast": "the same values in another type",
    "copy": "the same values",
    "negative": "the sign turns",
}

SYMBOLS = {
    "add": "+", "subtract": "−", "multiply": "×", "divide": "÷", "maximum": "max",
    "minimum": "min", "matmul": "·", "sum": "Σ", "square": "²", "negative": "−",
    "power": "^", "sqrt": "√", "slice": "[ ]", "transpose": "T", "softmax_cross_entropy": "CE",
    "sum_squares": "Σ ²", "concatenate": "[ , ]",
}  # fmt: skip


def lesson(core: Tensor, result: Tensor, operands: Sequence[Named], y: str) -> Lesson:
    """The lesson of one step.

    Parameters
    ----------
    core
        The node of the op itself.
    result
        What the step gives; differs from `core` by a reshape at most.
    operands
        In the order of the op.
    y
        Name of the result.
    """
    assert core._op is not None
    op = core._op.name
    names = [_atom(o.name) for o in operands]
    symbol = SYMBOLS.get(op, op)
    role = ROLES.get(op, "")
    if op in UNARY:
        return _unary(op, core, names[0], y, symbol)
    if op == "matmul" and all(o.tensor.ndim == 1 for o in operands):
        role = "an inner product switches: each operand receives the upstream times the other one"
    elif op == "matmul" and all(o.tensor.ndim == 2 for o in operands):
        role = "a product of matrices: the upstream times the other operand, transposed"
    if op in _TELLERS:
        right, parts = _TELLERS[op](core, result, operands, names)
        return Lesson(symbol, f"{y} = {right}", role, tuple(parts))
    right = f"{op}({', '.join(names)})"
    return Lesson(symbol, f"{y} = {right}", role, tuple(_plain(y, o) for o in operands))


def _atom(name: str) -> str:
    return f"({name})" if name.startswith("-") else name


def _plain(y: str, operand: Named) -> Part:
    local = f"∂{y}/∂{operand.name}"
    return Part(local, f"gᵀ {local}", f"({local})ᵀ g", "transpose and reshape")


def _unary(op: str, core: Tensor, x: str, y: str, symbol: str) -> Lesson:
    attrs = core.attrs
    n = attrs.get("exponent", 0.0)
    fill = {
        "x": x,
        "y": y,
        "n": f"{n:g}",
        "m": f"{n - 1.0:g}",
        "low": f"{attrs.get('low', 0.0):g}",
        "high": f"{attrs.get('high', 0.0):g}",
        "p": f"{attrs.get('param', 0.0):g}",
    }
    right, slope = (text.format(**fill) for text in UNARY[op])
    role = "a function of one variable scales the upstream by its slope, element by element"
    if not core.ndim:
        part = Part(slope, f"g · ({slope})", f"g · ({slope})", "nothing: both are numbers")
    else:
        local = f"diag({slope})"
        turn = "transpose: a diagonal times a column is an elementwise product"
        part = Part(local, f"gᵀ {local}", f"g ⊙ ({slope})", turn)
    return Lesson(symbol, f"{y} = {right}", role, (part,), True)


def _elementwise(result: Tensor, operand: Named, factor: str, scale: str, shape: str) -> Part:
    """A part whose local Jacobian is diagonal, or a diagonal folded where it was broadcast."""
    if not result.ndim:
        return Part(factor, f"g · {factor}", shape.replace("⊙", "·"), "nothing: both are numbers")
    if operand.tensor.shape == result.shape:
        return Part(scale, f"gᵀ {scale}", shape, "transpose and reshape")
    return Part(
        f"{scale}, its columns summed over the broadcast axes",
        f"gᵀ {scale}",
        f"{shape}, summed over the broadcast axes",
        "transpose, sum and reshape",
    )


Told = tuple[str, Sequence[Part]]


def _add(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    parts = [_elementwise(result, o, "1", "I", "g") for o in operands]
    return f"{n[0]} + {n[1]}", parts


def _subtract(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    return f"{n[0]} − {n[1]}", [
        _elementwise(result, operands[0], "1", "I", "g"),
        _elementwise(result, operands[1], "(−1)", "(−I)", "−g"),
    ]


def _negative(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    return f"−{n[0]}", [_elementwise(result, operands[0], "(−1)", "(−I)", "−g")]


def _multiply(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    return f"{n[0]} ⊙ {n[1]}" if result.ndim else f"{n[0]} · {n[1]}", [
        _elementwise(result, operands[0], n[1], f"diag({n[1]})", f"g ⊙ {n[1]}"),
        _elementwise(result, operands[1], n[0], f"diag({n[0]})", f"g ⊙ {n[0]}"),
    ]


def _divide(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    left, right = f"(1/{n[1]})", f"(−{n[0]}/{n[1]}²)"
    return f"{n[0]} / {n[1]}", [
        _elementwise(result, operands[0], left, f"diag{left}", f"g ⊙ {left}"),
        _elementwise(result, operands[1], right, f"diag{right}", f"g ⊙ {right}"),
    ]


def _routed(word: str, sign: str, strict: str) -> Callable[..., Told]:
    def tell(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
        left, right = f"[{n[0]} {sign} {n[1]}]", f"[{n[0]} {strict} {n[1]}]"
        return f"{word}({n[0]}, {n[1]})", [
            _elementwise(result, operands[0], left, f"diag{left}", f"g ⊙ {left}"),
            _elementwise(result, operands[1], right, f"diag{right}", f"g ⊙ {right}"),
        ]

    return tell


def _sum(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    if result.size == 1:
        return f"Σ {n[0]}", [Part("1ᵀ", "g 1ᵀ", "g in every place", "transpose and reshape")]
    return f"Σ {n[0]}", [
        Part("1 where it is summed", f"gᵀ ∂Σ/∂{n[0]}", "g copied along the axis", "reshape")
    ]


def _where(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    c, a, b = n
    return f"where({c}, {a}, {b})", [
        Part("no gradient", "", "", ""),
        _elementwise(result, operands[1], f"[{c}]", f"diag[{c}]", f"g ⊙ [{c}]"),
        _elementwise(result, operands[2], f"[not {c}]", f"diag[not {c}]", f"g ⊙ [not {c}]"),
    ]


def _matmul(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    a, b = n
    ta, tb = core.attrs["transpose_a"], core.attrs["transpose_b"]
    left, right = operands[0].tensor.ndim, operands[1].tensor.ndim
    column = "transpose the row into a column"
    outer = "the row's m·n numbers laid out as an m × n matrix"
    if left == right == 1:  # an inner product
        return f"{a}ᵀ {b}", [
            Part(f"{b}ᵀ", f"g {b}ᵀ", f"(g {b}ᵀ)ᵀ = g {b}", column),
            Part(f"{a}ᵀ", f"g {a}ᵀ", f"(g {a}ᵀ)ᵀ = g {a}", column),
        ]
    if left == 2 and right == 1:
        w = f"{a}ᵀ" if ta else a
        back = a if ta else f"{a}ᵀ"
        dw = f"{b} gᵀ" if ta else f"g {b}ᵀ"
        kron = f"{b}ᵀ ⊗ I" if ta else f"I ⊗ {b}ᵀ"
        return f"{w} {b}", [
            Part(kron, f"gᵀ ({kron})", dw, outer),
            Part(w, f"gᵀ {w}", f"(gᵀ {w})ᵀ = {back} g", column),
        ]
    if left == 1 and right == 2:
        w = f"{b}ᵀ" if tb else b
        back = b if tb else f"{b}ᵀ"
        dw = f"g {a}ᵀ" if tb else f"{a} gᵀ"
        kron = f"I ⊗ {a}ᵀ" if tb else f"{a}ᵀ ⊗ I"
        return f"{a}ᵀ {w}", [
            Part(back, f"gᵀ {back}", f"(gᵀ {back})ᵀ = {w} g", column),
            Part(kron, f"gᵀ ({kron})", dw, outer),
        ]
    fa, fb = (f"{a}ᵀ" if ta else a), (f"{b}ᵀ" if tb else b)
    ba, bb = (a if ta else f"{a}ᵀ"), (b if tb else f"{b}ᵀ")
    return f"{fa} {fb}", [
        Part(f"I ⊗ {bb}", f"vec(g)ᵀ (I ⊗ {bb})", f"{fb} gᵀ" if ta else f"g {bb}", outer),
        Part(f"{fa} ⊗ I", f"vec(g)ᵀ ({fa} ⊗ I)", f"gᵀ {fa}" if tb else f"{ba} g", outer),
    ]


def _dense(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    f = core.attrs["activation"]
    inner = f"{n[0]} {n[1]}ᵀ" + (f" + {n[2]}" if len(n) == 3 else "")
    parts = [
        Part(f"diag(f') {n[1]}, a block a row", f"vec(δ)ᵀ (I ⊗ {n[1]})", f"δ {n[1]}", "reshape"),
        Part(f"diag(f') (I ⊗ {n[0]})", f"vec(δ)ᵀ (I ⊗ {n[0]})", f"δᵀ {n[0]}", "reshape"),
        Part("diag(f'), a block a row", "vec(δ)ᵀ (1 ⊗ I)", "Σ δ down the rows", "sum and reshape"),
    ]
    return f"{f}({inner})" if f else inner, parts[: len(n)]


def _reshaped(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    right = f"{n[0]} as {'×'.join(map(str, result.shape)) or 'a number'}"
    return right, [Part("I", "gᵀ", "g in the old shape", "reshape")]


def _transposed(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    return f"{n[0]}ᵀ", [Part("a permutation", "gᵀ P", "gᵀ", "transpose back")]


def _max(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    part = Part("e_kᵀ, k the place of the largest", "g e_kᵀ", "g at k, 0 elsewhere", "transpose")
    return f"max({n[0]})", [part]


def _softmax(core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]) -> Told:
    part = Part("diag(y) − y yᵀ", "gᵀ (diag(y) − y yᵀ)", "y ⊙ (g − yᵀ g)", "transpose")
    return f"softmax({n[0]})", [part]


def _cross_entropy(
    core: Tensor, result: Tensor, operands: Sequence[Named], n: Sequence[str]
) -> Told:
    p = f"softmax({n[0]}) − onehot({n[1]})"
    return f"cross_entropy({n[0]}, {n[1]})", [
        Part(f"{p}, a block a row", f"gᵀ ({p})", f"g ⊙ ({p})", "reshape"),
        Part("no gradient", "", "", ""),
    ]


_TELLERS: dict[str, Callable[[Any, Any, Any, Any], Told]] = {
    "add": _add,
    "subtract": _subtract,
    "negative": _negative,
    "multiply": _multiply,
    "divide": _divide,
    "maximum": _routed("max", "≥", "<"),
    "minimum": _routed("min", "≤", ">"),
    "sum": _sum,
    "where": _where,
    "matmul": _matmul,
    "dense": _dense,
    "reshape": _reshaped,
    "transpose": _transposed,
    "max": _max,
    "softmax": _softmax,
    "softmax_cross_entropy": _cross_entropy,
}

_LATEX = {
    "ᵀ": "^{\\top}", "⊙": "\\odot ", "⊗": "\\otimes ", "·": "\\cdot ", "−": "-", "×": "\\times ",
    "∂": "\\partial ", "δ": "\\delta ", "Σ": "\\sum ", "√π": "\\sqrt{\\pi}", "²": "^{2}",
    "≤": "\\le ", "≥": "\\ge ", "_": "\\_", "#": "\\#", "%": "\\%", "&": "\\&",
}  # fmt: skip


def latex(formula: str) -> str:
    """A formula of a lesson as LaTeX (math mode)."""
    formula = re.sub(r"e_k", "e@k", formula)
    words = re.split(r"([A-Za-z][A-Za-z0-9_]*'?)", formula)
    out = []
    for i, word in enumerate(words):
        if i % 2 == 0:
            text = word
        elif word in ("exp", "log", "tanh", "max", "min"):
            out.append(f"\\{word} ")
            continue
        elif numbered := re.fullmatch(r"([A-Za-z])(\d+)", word):
            out.append(f"{numbered[1]}_{{{numbered[2]}}}")
            continue
        elif len(word.rstrip("'")) > 1:
            escaped = word.replace("_", "\\_")
            out.append(f"\\mathrm{{{escaped}}}")
            continue
        else:
            text = word
        for plain, command in _LATEX.items():
            text = text.replace(plain, command)
        out.append(re.sub(r"\^(-?[\d.]+)", r"^{\1}", text))
    return "".join(out).replace("e@k", "e_{k}")
