"""What a checkpoint remembers of our flags, and files of plain weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from rebalance.errors import ModelError
from rebalance.settings import TrainFlags, as_dict
from rebalance.settings import flags as fields

KEY = "rebalance"  # of model.yaml: what a checkpoint remembers of our flags


def remember(model: Any, flags: Any) -> None:
    """Write the flags into the model, as plain values that a checkpoint keeps and any installation can read."""
    model.yaml[KEY] = {"flags": as_dict(flags)}


def remembered(model: Any) -> dict[str, Any]:
    """What `remember` wrote, or an empty dict."""
    yaml = getattr(model, "yaml", None)
    return yaml.get(KEY, {}) if isinstance(yaml, dict) else {}


def given_or_kept(given: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, and what a checkpoint keeps about a head of several steps where that head stays.

    Args:
        given: flag name to value.
        kept: the same, from the checkpoint; may be empty.
    """
    stays = given.get("head", "resobj") == kept.get("head") == "resobj"
    own = {k for k, v in fields(TrainFlags).items() if v.metadata["method"] == "resobj"} if stays else set()
    return {**{k: v for k, v in kept.items() if k in own}, **given}


def read_state_dict(path: str | Path) -> dict[str, Tensor] | None:
    """The tensors of a plain state dict file; None where the file is something else, e.g. an Ultralytics checkpoint.

    Nothing but tensors is ever unpickled.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        return None
    return state


def load_by_name(model: nn.Module, state: dict[str, Tensor], source: str) -> tuple[int, int]:
    """Copy the tensors whose name and shape match.

    Args:
        model: what is filled.
        state: name to tensor, as an original YOLOv5 saves them.
        source: file name, for the message.

    Returns:
        Number of tensors copied, and number in the file.
    """
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
