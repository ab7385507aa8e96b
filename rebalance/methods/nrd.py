"""Negative region dropping: a random fraction of the sampled negatives of a two-stage detector leaves its loss.

McEver et al. 2022, "Context-Driven Detection of Invertebrate Species in Deep-Sea Video", negative region dropping. A
negative proposal in a partially labelled image may hold an object without a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rebalance.match.candidates import NEGATIVE
from rebalance.methods.drop import drop_mask
from rebalance.methods.method import ROI, RPN, Choice, Method, Predictions, Run
from rebalance.settings import setting


def nrd_mask(state: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Which floor(rate · N) of the N sampled negatives leave the loss, see `drop_mask`; IGNORE is not sampled."""
    return drop_mask(state == NEGATIVE, rate, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Nrd(Method):
    """Negative region dropping.

    >>> state = torch.tensor([1, 0, 0, 0, 0, -1])  # one positive, four negatives, one that was not sampled
    >>> int(nrd_mask(state, 0.75).sum())
    3
    """

    name = "nrd"
    kind = "weighting"
    title = "negative region dropping"
    summary = "negative region dropping: a random fraction of the sampled negatives leaves the classification loss"
    helps = "images of which few objects are labelled, on a two-stage detector"
    steep = ("nrd_rate",)
    source = "McEver et al. 2022"
    equation = r"\frac{1}{N-\lfloor pN_-\rfloor}\sum_{i\,\mathrm{kept}}\ell_i"
    stages = (RPN, ROI)
    needs = frozenset({"samples"})
    neutral: ClassVar = {"nrd_rate": 0.0}

    nrd_rate: float = setting(
        0.75, "fraction of the sampled negatives that leaves the classification loss", low=0, high=1
    )
    nrd_stage: str = setting(
        ROI, "whose negatives: proposals in the RoI head, or anchors in the RPN", choices=(ROI, RPN)
    )

    @classmethod
    def joins(cls, element: type[Method]) -> bool:
        """Cross-entropy, which both stages have."""
        return element.name == "bce"

    def acts(self, stage: str) -> bool:
        """In the stage that was chosen alone."""
        return stage == self.nrd_stage

    def spares(self, stage: str) -> str:
        return "dropped"

    def choose(self, predictions: Predictions, run: Run) -> Choice | None:
        """Draw from the sampled negatives."""
        if not run.training:
            return None
        state = predictions.state
        return Choice(left=nrd_mask(state, self.nrd_rate, generator=run.generator(state.device, "nrd")))
