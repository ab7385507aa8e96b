"""Several processes that train one model together, a GPU and a part of the batch each.

All of them have to ask the same at the same point.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, distributed


def number() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def together() -> bool:
    """Whether there are several."""
    return number() > 1


def summed(counts: Tensor) -> Tensor:
    """The sum over all of them, without gradient; nothing is read from the device."""
    if together():
        counts = counts.detach().clone()
        distributed.all_reduce(counts)
    return counts


def gathered(state: Any) -> list[Any]:
    """What each of several has, by rank, in the first one; elsewhere nothing."""
    first = distributed.get_rank() == 0
    found: list[Any] = [None] * distributed.get_world_size() if first else []
    distributed.gather_object(state, found if first else None)
    return found


def met() -> None:
    """Wait until all of them are here."""
    if together():
        distributed.all_gather_object([None] * distributed.get_world_size(), None)  # with NCCL a barrier needs a device
