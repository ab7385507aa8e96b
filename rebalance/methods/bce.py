"""Binary cross-entropy on logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rebalance.match.boxes import upcast


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """−y log σ(x) − (1−y) log(1−σ(x)), unreduced.

    Args:
        logits: x, any shape.
        targets: y in [0, 1], the same shape.

    Returns:
        The same shape, at least float32.
    """
    logits = upcast(logits)
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
