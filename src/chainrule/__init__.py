"""chainrule: dense networks on a CPU, with gradients you can see, check and repeat to the bit."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import Any

from . import calculus, callbacks, errors, losses, nn, optim
from . import ops as _ops  # noqa: F401  fills the op table
from .backend import threads
from .calculus import grad, gradcheck, jacobian, jvp, value_and_grad, vjp
from .checkpoint import load, save
from .custom import register_op
from .draw import draw
from .errors import ChainruleError
from .explain import explain
from .functions import (
    abs,
    clip,
    concatenate,
    dense,
    elu,
    erf,
    exp,
    expm1,
    gelu,
    hard_tanh,
    leaky_relu,
    log,
    log1p,
    log_softmax,
    logsumexp,
    max,
    maximum,
    mean,
    minimum,
    relu,
    reshape,
    sigmoid,
    softmax,
    softplus,
    split,
    sqrt,
    square,
    stack,
    stop_gradient,
    sum,
    swish,
    take,
    take_along_axis,
    tanh,
    transpose,
    var,
    where,
)
from .graph import Tensor, no_grad, parameter, tensor
from .trainer import History, Trainer

__all__ = [
    "ChainruleError",
    "History",
    "Tensor",
    "Trainer",
    "abs",
    "build_info",
    "calculus",
    "callbacks",
    "clip",
    "concatenate",
    "dense",
    "draw",
    "elu",
    "erf",
    "errors",
    "exp",
    "explain",
    "expm1",
    "gelu",
    "grad",
    "gradcheck",
    "hard_tanh",
    "jacobian",
    "jvp",
    "leaky_relu",
    "load",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "losses",
    "max",
    "maximum",
    "mean",
    "minimum",
    "nn",
    "no_grad",
    "optim",
    "parameter",
    "register_op",
    "relu",
    "reshape",
    "save",
    "sigmoid",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "square",
    "stack",
    "stop_gradient",
    "sum",
    "swish",
    "take",
    "take_along_axis",
    "tanh",
    "tensor",
    "threads",
    "transpose",
    "value_and_grad",
    "var",
    "vjp",
    "where",
]

__version__ = _version("chainrule")


def build_info() -> dict[str, Any]:
    """What this build is and runs on: version, compiler, OpenMP, instruction sets.

    Returns
    -------
    dict
    """
    from . import _core

    compiler, openmp = _core.compiler()
    return {
        "version": __version__,
        "compiler": compiler,
        "openmp": openmp,
        "isa": _core.isa(),
        "isas": _core.isas(),
    }


def __getattr__(name: str) -> Any:
    if name == "ner":  # imported on first use: the rest of the library does not need it
        from importlib import import_module

        return import_module(".ner", __name__)
    raise AttributeError(f"module 'chainrule' has no attribute {name!r}")
