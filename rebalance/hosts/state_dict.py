"""Files of plain weights: what is in them, whether it is of a model, and what of it enters."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from rebalance.errors import ModelError
from rebalance.hosts import foreign

WRAPPERS = ("ema", "model", "state_dict", "model_state_dict")  # keys under which training scripts keep weights
OWN = ("ultralytics.", "rebalance.")  # modules whose checkpoints the host loads by itself
torch.serialization.add_safe_globals([Namespace])  # the arguments that torchvision's script keeps beside it


class Weights(NamedTuple):
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    names: dict[int, str]  # of the classes; empty where the file does not say


def read_weights(path: str | Path) -> Weights | None:
    """The weights in a file; None where it is something else, or a checkpoint that Ultralytics loads by itself.

    A state dict may be wrapped as training scripts do it, `{"model": …}` or `{"state_dict": …}` with an optimizer
    beside it; its names may begin with `module.`, as of several GPUs. In its place there may be a whole module, as in
    an original YOLOv5's checkpoint, whose class need not be there. Nothing but tensors and plain values is unpickled.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        found = foreign.read(path)
    except Exception:  # whatever a file that is something else, or a damaged one, raises
        return None
    wrapped = [found[name] for name in WRAPPERS if name in found] if isinstance(found, dict) else []
    if isinstance(found, dict) and any(map(_is_own, wrapped)):
        return None
    names = found.get("names") if isinstance(found, dict) else None
    for part in (*wrapped, found):
        state = dict(foreign.tensors(part)) if foreign.is_module(part) else part
        if isinstance(state, dict) and state and all(isinstance(x, Tensor) for x in state.values()):
            inner = part._modules.get("module") if foreign.is_module(part) else None
            names = next((x for x in (getattr(held, "names", None) for held in (part, inner)) if x), names)
            several = all(name.startswith("module.") for name in state)
            tensors = {name.removeprefix("module.") if several else name: x for name, x in state.items()}
            return Weights(tensors, _numbered(names))
    return None


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file holds a model that Ultralytics loads by itself, as far as can be seen without running its code."""
    found = foreign.read(path)
    parts = [found.get(name) for name in ("ema", "model")] if isinstance(found, dict) else []
    return any(map(_is_own, parts))


def _is_own(part: Any) -> bool:
    return foreign.is_module(part) and type(part).__module__.startswith(OWN)


def _numbered(names: Any) -> dict[int, str]:
    """Class names as index to name, from a list or a mapping; empty where it is neither."""
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(k, int) for k in names):
        return {}
    return {k: str(name) for k, name in names.items()}


Rows = Callable[[Tensor, Tensor], Tensor]  # (a parameter, (K,) classes) -> its rows of these classes, in this order


def follow_names(
    model: Any, state: dict[str, Tensor], theirs: Mapping[int, Any], rows: Mapping[str, Rows], background: int = 0
) -> str:
    """Bring the class rows of a state dict into the order of a model's classes, as the host does for its own heads.

    Names match whatever their case. Rows of classes that the state dict lacks are the model's own; rows that belong to
    no class go along, also where no name matches and the numbers of classes differ. Where these are the same nothing
    changes if no name matches, the order is the same, or either has numbers for names, as a model has that is to keep
    its rows (cls_remap=False).

    Args:
        model: is not changed; its `names` are class index to name.
        state: is changed.
        theirs: the state dict's class index to name.
        rows: of each parameter that has rows of classes, by name.
        background: number of classes that come before the others in `rows`.

    Returns:
        What was done, in words; "" where no row enters.
    """
    ours = model.names
    numbered = any(all(str(k) == str(name) for k, name in names.items()) for names in (theirs, ours))
    places = {str(name).strip().lower(): k for k, name in theirs.items()}
    found = [-1 if numbered else places.get(str(ours[k]).strip().lower(), -1) for k in range(len(ours))]
    known = [k for k, place in enumerate(found) if place >= 0]
    if not known and len(theirs) == len(ours):
        why = "" if numbered else "none of its class names is here: "
        return unnamed(model, state, rows, f"{why}class rows keep their order")
    if len(theirs) == len(ours) and known == found == list(range(len(ours))):
        return f"all {len(ours)} classes keep their rows"
    to, of = (
        torch.tensor([*range(background), *(k + background for k in kept)], dtype=torch.long)
        for kept in (known, [found[k] for k in known])
    )
    own, entered = model.state_dict(), 0
    for name, take in rows.items():
        if name in state and state[name].shape[1:] == own[name].shape[1:]:
            made, given = own[name].clone(), state[name]
            place = take(torch.arange(len(made)), to)
            if not len(place):
                continue
            made[place] = given[take(torch.arange(len(given)), of)].to(made.dtype)
            state[name], entered = made, entered + 1
    if not known:
        return f"of its {len(theirs)} classes none is here: their rows are new" if entered else ""
    new = [str(ours[k]) for k, place in enumerate(found) if place < 0]
    told = f"{len(known)} of {len(ours)} classes keep their rows by name"
    return told + (f"; new: {', '.join(new)}" if new else "")


def unnamed(
    model: nn.Module, state: Mapping[str, Tensor], rows: Collection[str],
    why: str = "it names no classes: their rows keep their order",
) -> str:  # fmt: skip
    """That rows of classes enter in their order, and why; "" where none enters."""
    own = model.state_dict()
    enter = any(name in state and name in own and state[name].shape == own[name].shape for name in rows)
    return why if enter else ""


def require_fit(
    model: nn.Module, state: Mapping[str, Tensor], classes: Collection[str], source: str, what: str
) -> None:
    """Refuse what is of another architecture, of which only what happens to have one shape would enter.

    A network is told by its first layers: a backbone, a detector with another neck or head, and one with other classes
    have them. Vectors do not count, of which many have one length.

    Raises:
        ModelError: less than half of the weights in the first quarter of the layers fit.
    """
    own = {k: v for k, v in model.state_dict().items() if v.dim() > 1 and k not in classes}
    first = list(own)[: max(1, len(own) // 4)]
    fit = sum(k in state and state[k].shape == own[k].shape for k in first)
    if fit < len(first) / 2:
        raise ModelError(
            f"pretrained={source} is of another architecture than {what}: of the {len(first)} weights in its first "
            f"layers {fit} fit by name and shape"
        )


def load_by_name(model: nn.Module, state: dict[str, Tensor], source: str, classes: str = "") -> tuple[int, int]:
    """Copy the tensors whose name and shape match, and say which, and what stays as it is.

    Args:
        model: is changed.
        state: a state dict.
        source: of the state dict, in the message.
        classes: what is to be said of the rows of classes.

    Returns:
        Number of tensors copied, and number in the file.

    Raises:
        ModelError: none matches.
    """
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise ModelError(f"pretrained={source}: none of its {len(state)} tensors fits this model by name and shape")
    model.load_state_dict(fits, strict=False)
    left = sorted(set(state) - set(fits))
    told = f"{len(fits)} of {len(state)} tensors of {source} match by name and shape"
    parts = [told, f"not: {some(left)}" if left else "", classes, stays_new(own, fits)]
    LOGGER.info(f"rebalance: {'; '.join(filter(None, parts))}")
    return len(fits), len(state)


def stays_new(own: Iterable[str], filled: Collection[str]) -> str:
    """Which layers of a model keep the numbers that they began with, in words; "" where none does."""
    counts = ("num_batches_tracked",)
    layers = dict.fromkeys(k.rpartition(".")[0] for k in own if k not in filled and not k.endswith(counts))
    return f"new are {some(list(layers))}" if layers else ""


def some(names: list[str], most: int = 6) -> str:
    """The first of them, and how many there are more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
