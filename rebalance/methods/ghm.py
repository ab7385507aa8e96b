"""Gradient harmonizing: candidates whose gradient is common count less, be they easy or outliers.

Li et al. 2019, "Gradient Harmonized Single-stage Detector": GHM-C, with unit regions and moving average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.match.boxes import upcast


def ghm_weights(
    logits: Tensor,
    targets: Tensor,
    counted: Tensor,
    *,
    bins: int = 30,
    momentum: float = 0.75,
    regions: str = "all",
    average: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight N / GD(g) of each element by its gradient norm g = |σ(x) − y|.

    [0, 1] is cut into M equal bins. GD(g), the gradient density, is the number of elements in the bin of g divided by
    the bin's width 1/M, so the weight is N / (count · M). Counts are a moving average over batches, in
    which an empty bin takes part too. It starts at the first batch's counts; mmdetection starts it at 0, which
    makes its first weights 1 / (1 − momentum) times as large, and keeps the average of an empty bin.

    Args:
        logits: x, any shape.
        targets: y in [0, 1], the same shape.
        counted: bool, broadcasts to that shape; what takes part. N is their number.
        bins: M.
        momentum: share of the past in the moving average, in [0, 1).
        regions: the M that divides: "all" bins, as in the paper, or the "occupied" ones of this batch, as in
            mmdetection, whose weights have mean 1 (without a past).
        average: (bins,) the moving average so far; None at the start.

    Returns:
        Weights, the same shape, 0 where not counted; and (bins,) the moving average with this batch in it. No gradient.
    """
    with torch.no_grad():
        logits = upcast(logits)
        norm = (logits.sigmoid() - targets.to(logits.dtype)).abs()
        place = (norm * bins).long().clamp_(0, bins - 1)  # g = 1 belongs to the last bin, NaN to any
        place = torch.where(counted, place, bins)
        one = torch.ones((), dtype=torch.int64, device=place.device)
        found = one.new_zeros(bins + 1).scatter_add_(0, place.flatten(), one.expand(place.numel()))[:bins]
        now = found.to(logits.dtype)
        average = now if average is None else momentum * average.to(now) + (1 - momentum) * now
        divided = bins if regions == "all" else (found > 0).sum()
        of_bin = torch.where(average > 0, found.sum() / (average * divided), 0)
        return torch.cat((of_bin, of_bin.new_zeros(1)))[place], average
