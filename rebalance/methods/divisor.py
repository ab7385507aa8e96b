"""What a summed loss is divided by."""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.settings import TrainFlags


def divided_by(
    divisor: str,
    matched: Tensor,
    dropped: Tensor | None,
    flags: TrainFlags,
    channels: int,
    *,
    ignored: Tensor | None = None,
) -> Tensor:
    """The number that a loss is divided by, where it is not the host's; at least 1.

    Args:
        divisor: batch (matched candidates), candidates (all, times channels), or image (matched candidates of each
            image by itself, then the mean over images).
        matched: (B, N) bool.
        dropped: (B, N) bool, what left the loss (in scope `literal`: what became background); None: nothing.
        flags: drop_divisor, drop_scope.
        channels: of a candidate.
        ignored: (B, N) bool, what takes no part and is no candidate; None: nothing.

    Returns:
        A scalar; with `image` (B,), the divisor of each image's sum.
    """
    counted = matched
    if divisor == "candidates":
        counted = torch.ones_like(matched) if ignored is None else ~ignored
    background = divisor == "candidates" and flags.drop_scope == "literal"  # still trained on
    if dropped is not None and flags.drop_divisor == "kept" and not background:
        counted = counted & ~dropped
    if divisor == "image":
        return counted.sum(1).clamp(min=1) * len(counted)
    return (counted.sum() * (channels if divisor == "candidates" else 1)).clamp(min=1)
