"""Negative region dropping: a random fraction of the sampled negatives of a two-stage detector leaves its loss.

McEver et al. 2022, "Context-Driven Detection of Invertebrate Species in Deep-Sea Video", negative region dropping. A
negative proposal in a partially labelled image may hold an object without a label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.match.candidates import NEGATIVE
from rebalance.methods.drop import drop_mask


def nrd_mask(state: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Choose exactly floor(rate · N) of the N negatives, uniformly and without replacement.

    Args:
        state: int8, any shape, see `rebalance.match.candidates`; the candidates that were sampled, IGNORE for others.
        rate: fraction in [0, 1]; 0: none. The paper: 0.75.
        generator: source of the random order, on the device of `state`.

    Returns:
        bool, same shape: True where the candidate leaves the loss.
    """
    return drop_mask(state == NEGATIVE, rate, generator=generator)
