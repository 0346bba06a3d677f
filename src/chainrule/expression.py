"""Small expressions typed by a person, evaluated as ops; nothing but arithmetic gets through."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from . import functions, graph
from .errors import UsageError
from .graph import Tensor

LONGEST = 2000  # characters of an expression
LARGEST = 100_000  # elements of a value

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: functions.add,
    ast.Sub: functions.subtract,
    ast.Mult: functions.multiply,
    ast.Div: functions.divide,
    ast.MatMult: functions.matmul,
}

_UNARY = (
    "exp", "log", "log1p", "expm1", "sqrt", "square", "abs", "erf", "tanh", "sigmoid", "hard_tanh",
    "relu", "leaky_relu", "elu", "softplus", "swish", "gelu", "softmax", "log_softmax",
    "logsumexp", "sum", "mean", "var",
)  # fmt: skip

CALLS: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    **{name: ((1,), getattr(functions, name)) for name in _UNARY},
    "maximum": ((2,), functions.maximum),
    "minimum": ((2,), functions.minimum),
    "max": ((1, 2), lambda *xs: functions.max(*xs) if len(xs) == 1 else functions.maximum(*xs)),
    "min": ((2,), functions.minimum),
}


def evaluate(text: str, values: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The Tensor of an expression, and the names of its parts.

    Parameters
    ----------
    text
        Names, numbers, ``+ - * / ** @``, ``.T``, brackets and calls of functions; parts may be
        named first: ``"z = W @ x + b; s = u @ tanh(z)"``.
    values
        What the names stand for: numbers or arrays.

    Raises
    ------
    UsageError
        For anything else.
    """
    if len(text) > LONGEST:
        raise UsageError(f"the expression has {len(text)} characters, at most {LONGEST} are read")
    try:
        statements = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        detail = getattr(error, "msg", None) or type(error).__name__
        raise UsageError(f"cannot read the expression {text!r}: {detail}") from None
    names = {name: graph.parameter(value, name=name) for name, value in values.items()}
    used: set[str] = set()
    reader = _Reader(text, names, used)
    result: Tensor | None = None
    try:
        for statement in statements:
            result = reader.statement(statement)
    except RecursionError:
        raise UsageError("the expression is nested too deeply") from None
    if result is None:
        raise UsageError("the expression is empty")
    idle = [name for name in values if name not in used]
    if idle:
        raise UsageError(f"{', '.join(idle)}: given, but not in the expression {text!r}")
    return functions.as_tensor(result), names


class _Reader:
    def __init__(self, text: str, names: dict[str, Tensor], used: set[str]) -> None:
        self.text, self.names, self.used = text, names, used

    def refuse(self, node: ast.AST, why: str = "") -> NoReturn:
        part = ast.get_source_segment(self.text.strip(), node) if hasattr(node, "lineno") else None
        raise UsageError(
            why
            or f"cannot use {part or type(node).__name__!r} in an expression: it takes names, "
            f"numbers, + - * / ** @ .T and the functions {', '.join(sorted(CALLS))}"
        )

    def statement(self, node: ast.stmt) -> Tensor:
        if isinstance(node, ast.Expr):
            return functions.as_tensor(self.value(node.value))
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            (target,) = node.targets
            if isinstance(target, ast.Name):
                if target.id in self.names:
                    self.refuse(node, f"{target.id!r} has a value already; choose another name")
                result = functions.as_tensor(self.value(node.value))
                if result.name is None:
                    result.name = target.id
                self.names[target.id] = result
                self.used.add(target.id)
                return result
        self.refuse(node)

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return self.number(node)
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                hint = f": a function, write {node.id}(...)" if node.id in CALLS else ""
                self.refuse(node, f"{node.id} has no value{hint or f': add {node.id}=1'}")
            self.used.add(node.id)
            return self.names[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            x = self.value(node.operand)
            return x if isinstance(node.op, ast.UAdd) else -x
        if isinstance(node, ast.BinOp):
            return self.binary(node)
        if isinstance(node, ast.Attribute) and node.attr == "T":
            return functions.transpose(self.value(node.value))
        if isinstance(node, ast.Call):
            return self.call(node)
        self.refuse(node)

    def number(self, node: ast.expr) -> float:
        sign = 1.0
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -sign, node.operand
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            try:
                number = sign * float(node.value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        self.refuse(node)

    def binary(self, node: ast.BinOp) -> Any:
        left = self.value(node.left)
        if isinstance(node.op, ast.Pow):
            return functions.power(left, self.number(node.right))
        if type(node.op) not in _BINARY:
            self.refuse(node)
        right = self.value(node.right)
        result = _BINARY[type(node.op)](left, right)
        if result.size > LARGEST:
            self.refuse(node, f"a part of the expression has more than {LARGEST} elements")
        return result

    def call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in CALLS or node.keywords:
            self.refuse(node)
        counts, function = CALLS[node.func.id]
        if len(node.args) not in counts:
            wanted = " or ".join(map(str, counts))
            self.refuse(node, f"{node.func.id} takes {wanted} operands, got {len(node.args)}")
        return function(*[self.value(a) for a in node.args])


def read_values(words: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The values of ``NAME=VALUE`` words: numbers, or lists such as ``[[1, 2], [3, 4]]``."""
    values: dict[str, np.ndarray[Any, Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals or not re.fullmatch(r"[^\W\d]\w*", name):
            raise UsageError(f"expected NAME=VALUE, got {word!r}")
        if name in CALLS:
            raise UsageError(f"{name}=...: that is the name of a function; choose another")
        if len(text) > 10 * LONGEST:
            raise UsageError(f"{name}=...: the value has more than {10 * LONGEST} characters")
        try:
            array = np.asarray(ast.literal_eval(text.strip()))
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise UsageError(
                f"{name}={text}: expected a number or a list of numbers such as [1, 2.5]"
            ) from None
        if array.dtype.kind not in "if" or not array.size or not np.isfinite(array).all():
            raise UsageError(f"{name}={text}: expected finite numbers, lists of one length")
        values[name] = array.astype(np.float64)
    return values
