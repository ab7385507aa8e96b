"""Focal loss: the better a candidate is classified, the less it counts.

Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.boxes import upcast
from rebalance.losses.bce import bce

TINY = 1e-12  # least distance from the target where gamma < 1, whose power has no finite slope at 0


def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """−α_t (1−p_t)^γ log(p_t), unreduced.

    Equation 5 is about targets 0 and 1, where 1−p_t is the distance |σ(x) − y|. YOLO heads have targets in between
    (IoU, the assigner's score). There the distance is kept, as in quality focal loss (Li et al. 2020, "Generalized
    Focal Loss"), so that the loss is least at σ(x) = y; α_t = αy + (1−α)(1−y), as in torchvision. (torchvision's
    p_t = py + (1−p)(1−y) agrees at 0 and 1, but in between its loss is least away from the target.)

    Args:
        logits: x, any shape.
        targets: y in [0, 1], the same shape.
        gamma: γ ≥ 0; 0 is cross-entropy weighted by α.
        alpha: weight of positives, 1−α of negatives, in [0, 1]; negative: both count 1. γ = 0 without α is `bce`.

    Returns:
        The same shape, at least float32.
    """
    loss = bce(logits, targets)
    logits, targets = upcast(logits), targets.to(loss.dtype)
    if gamma > 0:
        distance = logits.sigmoid() - targets
        if gamma % 2:  # an even power needs no sign taken off
            distance = distance.abs()
        loss = loss * (distance.clamp(min=TINY) if gamma < 1 else distance).pow(gamma)
    return loss if alpha < 0 else loss * balance(targets, alpha)


def balance(targets: Tensor, alpha: float) -> Tensor:
    """α_t = αy + (1−α)(1−y), a new tensor; all 1 where alpha is negative."""
    return (targets * (2 * alpha - 1)).add_(1 - alpha) if alpha >= 0 else torch.ones_like(targets)
