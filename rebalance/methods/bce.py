"""Cross-entropy on logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rebalance.match.boxes import upcast
from rebalance.match.candidates import SIGMOID, Candidates
from rebalance.methods.method import DENSE, ROI, RPN, Golden, Method, Run


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """−y log σ(x) − (1−y) log(1−σ(x)) of logits x and targets y in [0, 1]; any shape, unreduced, at least float32."""
    logits = upcast(logits)
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log p_t, p_t the softmax probability of the true class: (…), unreduced, at least float32.

    Logits are (…, C), background first, targets (…) int64 in [0, C), 0 for background.
    """
    return -upcast(logits).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class Bce(Method):
    """Cross-entropy, which all others are measured against.

    >>> import torch
    >>> bce(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))  # log 2; log(1 + e²)
    tensor([0.6931, 2.1269])
    """

    name = "bce"
    kind = "element"
    title = "cross-entropy"
    summary = "cross-entropy (also `ce`), on YOLO the host's own loss"
    helps = "none: what is not labelled is learnt as background"
    source = "YOLOv5, YOLOv8"
    equation = r"-y\log\sigma(x)-(1-y)\log(1-\sigma(x))"
    stages = (DENSE, RPN, ROI)
    golden = (
        # log(1 + e^0) = 0.693147; log(1 + e^-2) = 0.126928, for the other label 2 more; a quarter of one and the rest
        # of the other
        Golden([0, 2, 2, -2, 2], [1, 1, 0, 1, 0.25], [0.693147, 0.126928, 2.126928, 2.126928, 1.626928]),
    )

    def cost(self, candidates: Candidates, run: Run) -> Tensor:
        """Cross-entropy of the candidates' link."""
        logits, targets, link = candidates.logits, candidates.targets, candidates.link
        return bce(logits, targets) if link == SIGMOID else softmax_cross_entropy(logits, targets).unsqueeze(-1)
