"""Soft sampling: the further a negative is from every label, the less it counts, as it may be an object without one.

Wu et al. 2019, "Soft Sampling for Robust Object Detection": the function of overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, Candidates
from rebalance.methods.method import DENSE, ROI, Golden, Method, Run
from rebalance.settings import setting


def soft_weights(overlap: Tensor, state: Tensor, *, a: float = 0.25, b: float = 50.0, c: float = 20.0) -> Tensor:
    """Weight of each candidate: a + (1−a)·exp(−b·exp(−c·overlap)) for a negative, 1 for a positive.

    A Gompertz curve: about a where nothing overlaps, 1 from an overlap of about 0.4 on (with the default b and c). Its
    least weight a is in [0, 1], 1: every candidate counts the same; displacement b and steepness c are at least 0.
    (B, N) in [0, 1]; 0 at IGNORE.
    """
    curve = a + (1 - a) * torch.exp(-b * torch.exp(-c * overlap))
    return torch.where(state == NEGATIVE, curve, 1).masked_fill(state == IGNORE, 0)


@dataclass(frozen=True, kw_only=True)
class Soft(Method):
    """Soft sampling.

    >>> soft_weights(torch.tensor([0.0, 0.2, 0.5]), torch.tensor([NEGATIVE, NEGATIVE, NEGATIVE]))
    tensor([0.2500, 0.5502, 0.9983])
    """

    name = "soft"
    kind = "weighting"
    title = "soft sampling by overlap (Gompertz)"
    summary = "soft sampling: the further a negative is from every label, the less it counts"
    helps = "labels missing at random: far from a label a negative is least certain to be one"
    source = "Wu et al. 2019"
    equation = r"a+(1-a)\,e^{-b\,e^{-c\,o}}"
    stages = (DENSE, ROI)
    needs = frozenset({"overlap"})
    neutral: ClassVar = {"soft_a": 1.0}
    golden = (
        # 0.25 + 0.75 * exp(-50 * exp(-4)) = 0.550153 of 0.693147; a positive counts in full
        Golden([0, 0, 0], [0, 0, 1], [0.173287, 0.381337, 0.693147], overlap=[0, 0.2, 0]),
        # 0.5 + 0.5 * exp(-2 * exp(-0.5)) = 0.648642
        Golden([0], [0], [0.449605], {"soft_a": 0.5, "soft_b": 2, "soft_c": 1}, overlap=[0.5]),
    )

    soft_a: float = setting(0.25, "least weight of a negative", low=0, high=1)
    soft_b: float = setting(50.0, "displacement of the Gompertz curve", low=0)
    soft_c: float = setting(20.0, "steepness of the Gompertz curve", low=0)

    @classmethod
    def joins(cls, element: type[Method]) -> bool:
        """Not what goes by overlap: BRL has a weight of its own for it."""
        return "overlap" not in element.needs

    def spares(self, stage: str) -> str:
        return "lowered"

    def weigh(self, candidates: Candidates, loss: Tensor, run: Run) -> Tensor:
        """By the overlap with the nearest label."""
        weights = soft_weights(candidates.overlap, candidates.state, a=self.soft_a, b=self.soft_b, c=self.soft_c)
        return weights.unsqueeze(-1)
