"""Files of plain weights."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from rebalance.errors import ModelError

WRAPPERS = ("model", "state_dict", "model_state_dict")  # keys under which training scripts keep a state dict
torch.serialization.add_safe_globals([Namespace])  # the arguments that torchvision's script keeps beside it


def read_state_dict(path: str | Path) -> dict[str, Tensor] | None:
    """The tensors of a plain state dict file; None where the file is something else, e.g. an Ultralytics checkpoint.

    It may be wrapped as training scripts do it, `{"model": …}` or `{"state_dict": …}` with optimizer and epoch beside,
    and its names may begin with `module.`, as of several GPUs. Nothing but tensors and plain values is ever unpickled.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError):
        return None
    wrapped = [state[name] for name in WRAPPERS if isinstance(state, dict) and isinstance(state.get(name), dict)]
    state = (wrapped or [state])[0]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        return None
    several = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if several else name: x for name, x in state.items()}


Rows = Callable[[Tensor, Tensor], Tensor]  # (a parameter, (K,) classes) -> its rows of these classes, in this order


def follow_names(
    model: Any, state: dict[str, Tensor], theirs: Mapping[int, Any], rows: Mapping[str, Rows], background: int = 0
) -> str:
    """Bring the class rows of a state dict into the order of a model's classes, as the host does for its own heads.

    Names match whatever their case. Rows of classes that the state dict lacks are the model's own; rows that belong to
    no class go along. Nothing changes where no name matches, where the order is the same, or where either has numbers
    for names, as a model has that is to keep its rows (cls_remap=False).

    Args:
        model: is not changed; its `names` are class index to name.
        state: is changed.
        theirs: the state dict's class index to name.
        rows: of each parameter that has rows of classes, by name.
        background: number of classes that come before the others in `rows`.

    Returns:
        What was done, in words; "" where nothing was.
    """
    ours = model.names
    if any(all(str(k) == str(name) for k, name in names.items()) for names in (theirs, ours)):
        return ""
    places = {str(name).strip().lower(): k for k, name in theirs.items()}
    found = [places.get(str(ours[k]).strip().lower(), -1) for k in range(len(ours))]
    known = [k for k, place in enumerate(found) if place >= 0]
    if not known or (len(theirs) == len(ours) and known == found == list(range(len(ours)))):
        return ""
    to, of = (
        torch.tensor([*range(background), *(k + background for k in kept)])
        for kept in (known, [found[k] for k in known])
    )
    own = model.state_dict()
    for name, take in rows.items():
        if name in state and state[name].shape[1:] == own[name].shape[1:]:
            made, given = own[name].clone(), state[name]
            place = take(torch.arange(len(made)), to)
            made[place] = given[take(torch.arange(len(given)), of)].to(made.dtype)
            state[name] = made
    new = [str(ours[k]) for k, place in enumerate(found) if place < 0]
    told = f"{len(known)} of {len(ours)} classes keep their rows by name"
    return told + (f"; new: {', '.join(new)}" if new else "")


def load_by_name(model: nn.Module, state: dict[str, Tensor], source: str) -> tuple[int, int]:
    """Copy the tensors whose name and shape match; their number, and that in the file, `source` in the message."""
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise ModelError(f"pretrained={source}: none of its {len(state)} tensors fits this model by name and shape")
    model.load_state_dict(fits, strict=False)
    left = sorted(set(state) - set(fits))
    LOGGER.info(
        f"rebalance: {len(fits)} of {len(state)} tensors of {source} match by name and shape"
        + (f"; not: {', '.join(left)}" if left else "")
    )
    return len(fits), len(state)
