"""Soft sampling: the further a negative is from every label, the less it counts, as it may be an object without one.

Wu et al. 2019, "Soft Sampling for Robust Object Detection": the function of overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE


def soft_weights(overlap: Tensor, state: Tensor, *, a: float = 0.25, b: float = 50.0, c: float = 20.0) -> Tensor:
    """Weight of each candidate: a + (1−a)·exp(−b·exp(−c·overlap)) for a negative, 1 for a positive.

    A Gompertz curve: about a where nothing overlaps, 1 from an overlap of about 0.4 on (with the default b and c).

    Args:
        overlap: (B, N) in [0, 1] with the nearest label of the image; 0 where the image has none.
        state: (B, N) int8, see `rebalance.match.candidates`.
        a: least weight, in [0, 1]; 1: every candidate counts the same.
        b: displacement of the curve, at least 0.
        c: its steepness, at least 0.

    Returns:
        (B, N) in [0, 1]; 0 at IGNORE.
    """
    curve = a + (1 - a) * torch.exp(-b * torch.exp(-c * overlap))
    return torch.where(state == NEGATIVE, curve, 1).masked_fill(state == IGNORE, 0)
