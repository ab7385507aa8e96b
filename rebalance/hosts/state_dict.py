"""Files of plain weights."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from rebalance.errors import ModelError


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
