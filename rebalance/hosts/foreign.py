"""Pickled modules of code that is not here, read for their tensors: nothing but tensors is made, and no code is run.

An original YOLOv5 keeps whole modules of a package named `models`; other people, `torch.save(model)` of their classes.
Every class and function that a pickle names is replaced by an empty shell, but for the few that tensors are made of.
"""

from __future__ import annotations

import builtins
import collections
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# What tensors and plain containers are made of
_KEPT = {
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"),
    "torch": ("Size", "device", "dtype", *(k for k, v in vars(torch).items() if isinstance(v, torch.dtype))),
    "torch.nn.parameter": ("Parameter",),
    "collections": ("OrderedDict",),
    "builtins": ("set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "slice", "complex", "bytearray"),
}  # fmt: skip


class Shell:
    """What stands for an object of an unknown class: it takes what a pickle says of it, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take anything."""

    def __setstate__(self, state: Any) -> None:
        """Keep attributes."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({str(name): value for name, value in part.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignored."""

    def append(self, value: Any) -> None:
        """Ignored."""

    def extend(self, values: Any) -> None:
        """Ignored."""

    add = append


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if name in _KEPT.get(module, ()):
            if module == "torch.nn.parameter":
                return torch.nn.Parameter
            places: dict[str, Any] = {"torch": torch, "torch._utils": torch._utils, "collections": collections}
            return getattr({**places, "builtins": builtins}[module], name)
        return type(name, (Shell,), {"__module__": module})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE: Any = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__=__name__)


def read(path: str | Path) -> Any:
    """What a file of `torch.save` holds, with shells in the place of unknown objects; None where it is no such file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files keep source code beside modules, which is compared with ours
            return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except Exception:  # whatever unpickling something else, or a part of a file, raises
        return None


def is_module(found: Any) -> bool:
    """Whether it was a module of torch."""
    return isinstance(found, Shell) and isinstance(getattr(found, "_modules", None), dict)


def tensors(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module that was read."""
    passing = getattr(module, "_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, x in getattr(module, kind, {}).items():
            if isinstance(x, Tensor) and name not in passing:
                yield prefix + name, x.detach()
    for name, child in module._modules.items():
        if is_module(child):
            yield from tensors(child, f"{prefix}{name}.")
