"""Files: one safetensors file holds everything, written so that no crash leaves half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from . import nn
from .errors import FileError, UsageError

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

_CONFIG_KEY = "chainrule"


def save_tensors(path: PathLike, tensors: Mapping[str, Array], config: Mapping[str, Any]) -> None:
    """Write tensors and a configuration as one safetensors file, atomically.

    Parameters
    ----------
    path
        Where to; an existing file is replaced (through a symbolic link: its target), its mode
        kept.
    tensors
        Arrays by name.
    config
        Anything JSON holds; stored as one metadata key of sorted JSON.

    Raises
    ------
    FileError
        If the file cannot be written; what was there before is untouched.
    """
    plain = {name: _plain(array) for name, array in tensors.items()}
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=True)
    blob = safetensors.numpy.save(plain, metadata={_CONFIG_KEY: text})
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise FileError(f"cannot write {os.fspath(path)}: {error}") from error


def load_tensors(path: PathLike) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Returns
    -------
    tensors, config

    Raises
    ------
    FileError
        If the file is missing, cut short, or of another kind.
    """
    name = os.fspath(path)
    try:
        with safetensors.safe_open(name, framework="np") as file:
            metadata = file.metadata() or {}
            if _CONFIG_KEY not in metadata:
                raise FileError(f"{name}: a safetensors file, but not one of chainrule's")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(metadata[_CONFIG_KEY])
    except FileNotFoundError as error:
        raise FileError(f"{name}: no such file") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{name}: cut short or not a safetensors file ({error})") from error
    if not isinstance(config, dict):
        raise FileError(f"{name}: its configuration is not a JSON object")
    return tensors, config


def _plain(array: Array) -> Array:
    """C-contiguous and of native byte order: anything else would be stored scrambled."""
    return np.ascontiguousarray(array, np.asarray(array).dtype.newbyteorder("=")).reshape(
        np.shape(array)
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(model: nn.Module, path: PathLike) -> None:
    """Write a model's parameters, and what rebuilds it where it is made of the library's layers.

    Parameters
    ----------
    model
        Its parameters must have values.
    path
        The file.
    """
    save_tensors(path, model_tensors(model), {"kind": "model", "model": model.config()})


def load(path: PathLike, model: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` or a Trainer wrote.

    Parameters
    ----------
    path
        The file.
    model
        For a Module class of your own: an instance whose parameters are set.

    Raises
    ------
    FileError
        If it is not such a file, or its parameters are not the model's.
    UsageError
        If the model is of a class of its own and none was given.
    """
    tensors, config = load_tensors(path)
    if model is None:
        if config.get("model") is None:
            raise UsageError(
                f"{os.fspath(path)}: holds a Module of your own; "
                "make one and call cr.load(path, model)"
            )
        model = nn.from_config(config["model"])
    set_model_tensors(model, tensors, path)
    return model


def model_tensors(model: nn.Module) -> dict[str, Array]:
    """A model's parameters as ``model/<path>``."""
    return {f"model/{name}": p.data for name, p in model.parameters().items()}


def set_model_tensors(model: nn.Module, tensors: Mapping[str, Array], path: PathLike) -> None:
    """Set a model's parameters from ``model/<path>``; all or none."""
    parameters = model.parameters()
    stored = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    for name in sorted(parameters.keys() ^ stored.keys()):
        where = "file" if name in stored else "model"
        raise FileError(f"{os.fspath(path)}: parameter {name!r} is only in the {where}")
    for name, p in parameters.items():
        if stored[name].shape != p.shape or stored[name].dtype != p.dtype:
            raise FileError(
                f"{os.fspath(path)}: parameter {name!r} is {stored[name].dtype} "
                f"{stored[name].shape}, the model's is {p.dtype} {p.shape}"
            )
    for name, p in parameters.items():
        p._value = np.array(stored[name])
