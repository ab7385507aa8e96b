"""Varifocal loss: Zhang et al. 2021, "VarifocalNet: An IoU-aware Dense Object Detector", equation 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rebalance.match.candidates import SIGMOID, Candidates
from rebalance.methods.bce import bce
from rebalance.methods.focal import focal
from rebalance.methods.method import Golden, Method, Run
from rebalance.settings import setting


def varifocal(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.75, weighted: bool = True
) -> Tensor:
    """q·BCE(σ(x), q) where the target q > 0, else −α σ(x)^γ log(1−σ(x)); any shape, unreduced, at least float32."""
    positive = bce(logits, targets) * (targets if weighted else 1)
    return torch.where(targets > 0, positive, focal(logits, targets, gamma=gamma, alpha=-1) * alpha)


@dataclass(frozen=True, kw_only=True)
class Varifocal(Method):
    """Varifocal loss.

    >>> varifocal(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]))  # log 2 / 2; 0.75 · (1/2)² · log 2
    tensor([0.3466, 0.1300])
    """

    name = "varifocal"
    kind = "element"
    title = "varifocal loss"
    summary = "varifocal loss: easy negatives count less, positives in full, the more the better their boxes"
    helps = "targets that are scores: there focal loss takes from the positives as well"
    source = "Zhang et al. 2021, equation 2"
    equation = r"q>0:\ q\,\mathrm{BCE}(\sigma(x),q);\qquad q=0:\ -\alpha\sigma(x)^\gamma\log(1-\sigma(x))"
    needs = frozenset({SIGMOID})
    neutral: ClassVar = {"varifocal_gamma": 0.0, "varifocal_alpha": 1.0, "varifocal_weighted": False}
    # 0.693147 and 2.126928 by q = 1/2 and 1; focal loss at x = 2 without alpha, 1.650078, by 3/4
    golden = (Golden([0, -2, 2], [0.5, 1, 0], [0.346574, 2.126928, 1.237559]),)

    varifocal_gamma: float = setting(2.0, "exponent of the negatives; 0: cross-entropy", low=0)
    varifocal_alpha: float = setting(0.75, "weight of the negatives", low=0)
    varifocal_weighted: bool = setting(True, "positives count by their target, as in the paper; else in full")

    def cost(self, candidates: Candidates, run: Run) -> Tensor:
        """Of a score for each class, or of an objectness."""
        gamma, alpha, weighted = self.varifocal_gamma, self.varifocal_alpha, self.varifocal_weighted
        return varifocal(candidates.logits, candidates.targets, gamma=gamma, alpha=alpha, weighted=weighted)
