"""Cross-entropy and focal loss where the classes exclude each other and background is one of them, the first.

Shapes: any leading shape …, C channels (background and the classes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.match.boxes import upcast

BACKGROUND = 0  # its channel
TINY = 1e-12  # least 1 − p_t where gamma < 1, whose power has no finite slope at 0


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p_t, p_t the softmax probability of the true class. Unreduced.

    Args:
        logits: (…, C).
        targets: (…) int64 in [0, C): the class, 0 for background.

    Returns:
        (…), at least float32.
    """
    return -upcast(logits).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def softmax_focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """−α_t (1−p_t)^γ log(p_t), p_t the softmax probability of the true class. Unreduced.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5, there for a sigmoid; on a softmax as Adhikari
    et al. 2021, "Effect of Label Noise on Robustness of Deep Neural Network Object Detectors", equation 2. There α is
    0.75 "for all c"; here, as with Lin et al., background has 1−α.

    Args:
        logits: (…, C).
        targets: (…) int64 in [0, C): the class, 0 for background.
        gamma: γ ≥ 0; 0 is cross-entropy weighted by α.
        alpha: weight of a candidate of a class, 1−α of background, in [0, 1]; negative: both count 1. γ = 0 without α
            is `softmax_cross_entropy`.

    Returns:
        (…), at least float32.
    """
    loss = softmax_cross_entropy(logits, targets)
    if gamma > 0:
        distance = -torch.expm1(-loss)  # 1 − p_t, to full precision where p_t is nearly 1
        loss = loss * (distance.clamp(min=TINY) if gamma < 1 else distance).pow(gamma)
    return loss if alpha < 0 else loss * torch.where(targets == BACKGROUND, 1 - alpha, alpha)
