"""The gradient of every op, layer and loss, checked where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import functions as fn
from . import graph, losses, nn, reference
from .calculus import GradcheckReport, gradcheck
from .errors import ChainruleError
from .graph import Tensor, apply

Array = NDArray[Any]


@dataclass(frozen=True)
class Check:
    """A function of ops and where to check it."""

    kind: str  # "op", "layer" or "loss"
    name: str
    f: Callable[..., Any]
    inputs: tuple[Array, ...]


@dataclass(frozen=True)
class Finding:
    """What the checks of one function found."""

    check: Check
    float64: GradcheckReport
    float32: GradcheckReport

    @property
    def ok(self) -> bool:
        return self.float64.ok and self.float32.ok


_UNARY = (
    "negative", "exp", "log", "log1p", "expm1", "sqrt", "square", "abs", "erf", "sigmoid", "tanh",
    "hard_tanh", "relu", "leaky_relu", "elu", "softplus", "swish", "gelu", "softmax",
    "log_softmax", "logsumexp", "sum", "mean", "var", "max", "transpose", "sign",
)  # fmt: skip
_POSITIVE = ("log", "log1p", "sqrt")


def checks() -> list[Check]:
    """One check for each op with a rule, each layer and each loss."""
    rng = np.random.default_rng(5)

    def signed(*shape: int) -> Array:
        """Numbers of both signs, away from 0 and from 1."""
        values = rng.permutation(np.linspace(0.3, 1.7, max(1, int(np.prod(shape)))))
        values = np.where(abs(values - 1.0) < 0.02, 0.93, values)
        signs = rng.choice([-1.0, 1.0], values.shape)
        return np.asarray((values * signs).reshape(shape).astype(np.float32), np.float64)

    out = [
        Check(
            "op",
            name,
            getattr(fn, name),
            (abs(signed(3, 4)) if name in _POSITIVE else signed(3, 4),),
        )
        for name in _UNARY
    ]
    ids = np.array([[0, 2], [2, 2]])
    labels = np.array([0, 3, 1])
    a, b = signed(3, 4), signed(3, 4)
    row = signed(4)
    binary: dict[str, Callable[..., Any]] = {
        "add": lambda x, y: x + y,
        "subtract": lambda x, y: x - y,
        "multiply": lambda x, y: x * y,
        "divide": lambda x, y: x / y,
        "maximum": fn.maximum,
        "minimum": fn.minimum,
    }
    for name, f in binary.items():
        out += [Check("op", name, f, (a, b)), Check("op", f"{name}, broadcast", f, (a, row))]
    single: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]] = {
        "power": (lambda x: x**3 + fn.abs(x) ** 1.5, (a,)),
        "clip": (lambda x: fn.clip(x, -0.91, 0.91), (a,)),
        "where": (lambda x, y: fn.where(np.eye(3, 4) > 0, x, y), (a, b)),
        "gelu, tanh form": (lambda x: fn.gelu(x, approximate="tanh"), (a,)),
        "matmul": (lambda x, y: x @ y, (a, signed(4, 2))),
        "matmul, transposed": (lambda x, y: x.T @ y.T, (signed(4, 3), signed(2, 4))),
        "matmul, vector": (lambda x, y: x @ y, (a, row)),
        "matmul, inner": (lambda x, y: x @ y, (row, signed(4))),
        "take": (lambda x: fn.take(x, ids), (a,)),
        "take_along_axis": (lambda x: fn.take_along_axis(x, labels[:, None]), (a,)),
        "getitem": (lambda x: x[1:, ::-2], (a,)),
        "reshape": (lambda x: x.reshape(2, 6), (a,)),
        "concatenate": (lambda x, y: fn.concatenate([x, y], axis=1), (a, b)),
        "stack": (lambda x, y: fn.stack([x, y, x]), (a, b)),
        "split": (lambda x: fn.split(x, 2, axis=1)[1], (a,)),
        "dropout": (lambda x: fn.dropout(x, 0.3, 7, np.int64(2)), (a,)),
        "cast": (lambda x: apply("cast", (fn.as_tensor(x),), {"dtype": x.dtype}), (a,)),
        "softmax_cross_entropy": (lambda z: fn.softmax_cross_entropy(z, labels), (a,)),
        "sum_squares": (lambda x: fn.cast(apply("sum_squares", (fn.as_tensor(x),)), x.dtype), (a,)),
        "weighted_mean": (_weighted_mean, (row,)),
    }
    out += [Check("op", name, f, inputs) for name, (f, inputs) in single.items()]
    for name, activation in reference.ACTIVATIONS.items():
        # The slope is a row of the table of its own; it differentiates once more.
        def slope(x: Any, name: str = name, param: float = activation.param) -> Tensor:
            t = graph.tensor(x)
            with graph.recording():
                y = fn.activate(t, name, param)
                (g,) = graph.gradients(y, [t], Tensor(np.ones(y.shape, y.dtype)), record=True)
            assert g is not None
            return g

        out.append(Check("op", f"d{name}", slope, (a,)))
    for activation_name in (None, *reference.ACTIVATIONS):

        def dense(x: Any, w: Any, b: Any, name: str | None = activation_name) -> Tensor:
            layer = _with(nn.Dense(4, 2, name), weight=w, bias=b)
            return fn.as_tensor(layer(x))

        title = "Dense" + (f", {activation_name}" if activation_name else "")
        out.append(Check("layer", title, dense, (a, signed(2, 4), signed(2))))
    layers: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]] = {
        "Embedding": (lambda w: _with(nn.Embedding(3, 4), weight=w)(ids), (a,)),
        "Embedding, whole": (
            lambda w: _with(nn.Embedding(3, 4, sparse=False), weight=w)(ids),
            (a,),
        ),
        "Flatten": (lambda x: nn.Flatten()(x), (signed(2, 3, 2),)),
        "Dropout": (lambda x: nn.Dropout(0.5).eval()(x), (a,)),
        "LayerNorm": (
            lambda x, w, b: _with(nn.LayerNorm(4), weight=w, bias=b)(x),
            (a, signed(4), signed(4)),
        ),
        "Sequential": (lambda x: nn.Sequential(fn.tanh, nn.Flatten())(x), (a,)),
    }
    out += [Check("layer", name, f, inputs) for name, (f, inputs) in layers.items()]
    known: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]] = {
        "SoftmaxCrossEntropy": (
            lambda z: losses.SoftmaxCrossEntropy()(z, fn.as_tensor(labels)),
            (a,),
        ),
        "Logistic": (lambda z: losses.Logistic()(z, _constant(z, 0.5)), (a,)),
        "MeanSquaredError": (lambda z, y: losses.MeanSquaredError()(z, y), (a, b)),
        "MeanAbsoluteError": (lambda z, y: losses.MeanAbsoluteError()(z, y), (a, b)),
        "Huber": (lambda z, y: losses.Huber(0.71)(z, y), (a, b)),
        "GaussianNLL": (lambda m, v: losses.GaussianNLL()((m, v), _constant(m, 1.0)), (a, b)),
    }
    out += [Check("loss", name, f, inputs) for name, (f, inputs) in known.items()]
    return out


def _constant(like: Tensor, value: float) -> Tensor:
    return Tensor(np.full(like.shape, value, like.dtype))


def _weighted_mean(x: Any) -> Tensor:
    weights = Tensor(np.arange(1.0, 5.0).astype(x.dtype))
    return fn.cast(apply("weighted_mean", (fn.as_tensor(x), weights)), x.dtype)


def _with(layer: Any, **parameters: Any) -> Any:
    """A layer whose parameters are these Tensors."""
    for name, value in parameters.items():
        object.__setattr__(layer, name, fn.as_tensor(value))
    return layer


def run() -> Iterator[Finding]:
    """Check everything: float64 against central differences, float32 against float64 in ULPs."""
    for check in checks():
        reports = []
        for dtype in ("float64", "float32"):
            try:
                reports.append(gradcheck(check.f, *check.inputs, dtype=dtype))
            except ChainruleError as error:
                reports.append(GradcheckReport(False, float("inf"), f"raised: {error}"))
        yield Finding(check, *reports)
