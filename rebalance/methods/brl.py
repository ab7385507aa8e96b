"""Background Recalibration Loss: far from every label, a candidate that looks like an object is taken for one.

Zhang et al. 2020, "Solving Missing-Annotation Object Detection with Background Recalibration Loss", equation 2 and
section 5.
"""

from __future__ import annotations

import math

from torch import Tensor

from rebalance.match.boxes import upcast
from rebalance.match.candidates import NEGATIVE
from rebalance.methods.focal import balance, focal


def confusion(state: Tensor, overlap: Tensor, iou: float) -> Tensor:
    """The negatives that may be objects without a label: those that overlap every label by less than `iou`.

    Args:
        state: (B, N) int8, see `rebalance.match.candidates`.
        overlap: (B, N) in [0, 1] with the nearest label of the image; 0 where the image has none.
        iou: threshold in [0, 1]; 0: no candidate.

    Returns:
        (B, N) bool.
    """
    return (state == NEGATIVE) & (overlap < iou)


def brl(
    logits: Tensor,
    targets: Tensor,
    confused: Tensor,
    *,
    t: float = 0.5,
    weight: float = 0.1,
    beta: float = 1.0,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Tensor:
    """Focal loss, but on confused candidates equation 2 with p_t = 1 − σ(x), the confidence in background. Unreduced.

    p_t > t: −(1−α)(1−p_t)^γ log(p_t), which is focal loss for a negative; else −β(1−α) p_t^γ log(1−p_t), the mirrored
    positive branch, whose gradient has the other sign. The mirrored branch at x is the first at −x, which is how it is
    computed. The value is continuous at the threshold only for t = 0.5.

    Args:
        logits: x, any shape.
        targets: y in [0, 1], the same shape; 0 where confused.
        confused: bool, broadcasts to that shape.
        t: threshold in [0, 1]; 0: never mirrored, 1: always.
        weight: of the confused candidates (the paper's scaling factor); with t = 0 and weight 1 this is `focal`.
        beta: of the mirrored branch; 0 is the paper's BRL⁻.
        gamma: as in `focal`.
        alpha: as in `focal`; negative: 1 in the place of α and of 1−α.

    Returns:
        The same shape, at least float32.
    """
    logits = upcast(logits)
    threshold = math.log((1 - t) / t) if 0 < t < 1 else math.inf * (0.5 - t)  # p_t <= t where x reaches it
    mirrored = ((logits.detach() >= threshold) & confused).to(logits.dtype)
    weights = balance(targets.to(logits.dtype), alpha)
    weights.mul_(confused.to(logits.dtype).mul_(weight - 1).add_(1))
    if beta != 1:
        weights.mul_((mirrored * (beta - 1)).add_(1))
    sign = mirrored.mul_(-2).add_(1)
    return focal(logits * sign, targets, gamma=gamma, alpha=-1) * weights
