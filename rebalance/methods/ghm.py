"""Gradient harmonizing: candidates whose gradient is common count less, be they easy or outliers.

Li et al. 2019, "Gradient Harmonized Single-stage Detector": GHM-C, with unit regions and moving average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rebalance.match.boxes import upcast
from rebalance.match.candidates import IGNORE, SIGMOID, Candidates
from rebalance.methods.method import Golden, Method, Run, Site
from rebalance.settings import setting


def ghm_weights(
    logits: Tensor, targets: Tensor, counted: Tensor, *, bins: int = 30, momentum: float = 0.75, regions: str = "all",
    average: Tensor | None = None, summed: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> tuple[Tensor, Tensor]:  # fmt: skip
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
        summed: counts of the whole batch from those of these elements, where several processes have a part of it each.

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
        found = summed(found)
        now = found.to(logits.dtype)
        average = now if average is None else momentum * average.to(now) + (1 - momentum) * now
        divided = bins if regions == "all" else (found > 0).sum()
        of_bin = torch.where(average > 0, found.sum() / (average * divided), 0)
        return torch.cat((of_bin, of_bin.new_zeros(1)))[place], average


@dataclass(frozen=True, kw_only=True)
class Ghm(Method):
    """Gradient harmonizing.

    >>> easy_easy_hard = torch.tensor([-4.0, -4.0, 4.0])  # two share a bin of the 30, one has its own
    >>> weights, _ = ghm_weights(easy_easy_hard, torch.zeros(3), torch.tensor(True))
    >>> weights * 30  # 3 / 2 and 3 / 1, divided by the bins
    tensor([1.5000, 1.5000, 3.0000])
    """

    name = "ghm"
    kind = "weighting"
    title = "gradient harmonizing (GHM-C)"
    summary = "gradient harmonizing: what many predictions have in common, easy ones and outliers, counts less"
    helps = "objects without a label that the detector finds: as outliers they count less"
    source = "Li et al. 2019, unit region approximation"
    equation = r"\frac{N}{GD(g)},\quad g=|\sigma(x)-y|"
    needs = frozenset({"one", SIGMOID})  # counting says nothing about the candidates of a refinement
    neutral: ClassVar = {"ghm_bins": 1, "ghm_momentum": 0.0}
    by_image = False  # it counts over the batch
    golden = (
        # of two bins g = 1/2 belongs to the upper, as does 0.880797; 0.119203 to the lower: weights 3 / (2 * 2) and
        # 3 / (1 * 2) times 0.693147, 2.126928 and 0.126928
        Golden([0, 2, -2], [0, 0, 0], [0.519860, 1.595196, 0.190392], {"ghm_bins": 2, "ghm_momentum": 0}),
    )

    ghm_bins: int = setting(30, "bins of the gradient norm", low=1)
    ghm_momentum: float = setting(0.75, "share of the past in the moving average of counts", low=0, high=0.999)
    ghm_regions: str = setting(
        "all", "bins that divide: all as in the paper, or the occupied ones", choices=("all", "occupied")
    )

    @classmethod
    def joins(cls, element: type[Method]) -> bool:
        """Cross-entropy alone: it takes the place of focal loss, and g is the gradient of cross-entropy."""
        return element.name == "bce"

    def spares(self, stage: str) -> str:
        return "lowered"

    def weigh(self, candidates: Candidates, loss: Tensor, run: Run) -> Tensor:
        """By the gradient density, with a moving average that validation neither uses nor changes."""
        logits, targets, state = candidates[:3]
        counted = (state != IGNORE).unsqueeze(-1)
        if candidates.unknown is not None:
            counted = counted & ~candidates.unknown
        weights, average = ghm_weights(
            logits, targets, counted, bins=self.ghm_bins, momentum=self.ghm_momentum,
            regions=self.ghm_regions, average=run.kept.get("average") if run.training else None, summed=run.summed,
        )  # fmt: skip
        if run.training:
            run.kept["average"] = average
        return weights

    def divide(self, site: Site) -> str:
        """By N, the candidates (equation 6 of the paper)."""
        return "candidates"
