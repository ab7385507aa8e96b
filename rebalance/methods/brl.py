"""Background Recalibration Loss: far from every label, a candidate that looks like an object is taken for one.

Zhang et al. 2020, "Solving Missing-Annotation Object Detection with Background Recalibration Loss", equation 2 and
section 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rebalance.match.boxes import upcast
from rebalance.match.candidates import NEGATIVE, SIGMOID, Candidates
from rebalance.methods.focal import balance, focal, start
from rebalance.methods.method import Golden, Method, Run, Site
from rebalance.settings import setting

FOCAL = {"brl_base": "focal"}
AS_PUBLISHED, CROSS_ENTROPY = (2.0, 0.25), (0.0, -1.0)  # γ and α
WARMUP = 0.1  # of the epochs, see docs/methods/brl.md


def confusion(state: Tensor, overlap: Tensor, iou: float) -> Tensor:
    """(B, N) the negatives that may be objects without a label: those that overlap every label by less than `iou`."""
    return (state == NEGATIVE) & (overlap < iou)


def mirrored(logits: Tensor, confused: Tensor, t: float) -> Tensor:
    """Bool, of the logits' shape: which of the confused have p_t <= t, so that they are trained as objects."""
    threshold = math.log((1 - t) / t) if 0 < t < 1 else math.inf * (0.5 - t)  # p_t <= t where x reaches it
    return (upcast(logits.detach()) >= threshold) & confused


def brl(
    logits: Tensor, targets: Tensor, confused: Tensor, *, t: float = 0.5, weight: float = 0.1, beta: float = 1.0,
    gamma: float = 2.0, alpha: float = 0.25,
) -> Tensor:  # fmt: skip
    """Focal loss, but on confused candidates equation 2 with p_t = 1 − σ(x), the confidence in background. Unreduced.

    p_t > t: −(1−α)(1−p_t)^γ log(p_t), which is focal loss for a negative; else −β(1−α) p_t^γ log(1−p_t), the mirrored
    positive branch, whose gradient has the other sign. The mirrored branch at x is the first at −x, which is how it is
    computed. The value is continuous at the threshold only for t = 0.5.

    Args:
        logits: x, any shape.
        targets: y in [0, 1], the same shape; 0 where confused.
        confused: bool, broadcasts to that shape.
        t: threshold in [0, 1]; 0: never mirrored, 1: always.
        weight: of the confused candidates (the paper's scaling factor); with t = 0 and weight 1 this is `focal`.
        beta: of the mirrored branch; 0 is the paper's BRL⁻.
        gamma, alpha: as in `focal`; α negative: 1 in the place of α and of 1−α.

    Returns:
        The same shape, at least float32.
    """
    logits = upcast(logits)
    turned = mirrored(logits, confused, t).to(logits.dtype)
    weights = balance(targets.to(logits.dtype), alpha)
    weights.mul_(confused.to(logits.dtype).mul_(weight - 1).add_(1))
    if beta != 1:
        weights.mul_((turned * (beta - 1)).add_(1))
    sign = turned.mul_(-2).add_(1)
    return focal(logits * sign, targets, gamma=gamma, alpha=-1) * weights


@dataclass(frozen=True, kw_only=True)
class Brl(Method):
    """Background Recalibration Loss.

    What is not confused has the loss that it stands on, `brl_base`: as published, focal loss. That is for targets 0 and
    1. Where they are scores (IoU, an assigner's) it leaves an untrained positive of score y no more than y^γ·α_t of
    cross-entropy, an eighth at 0.5 and a 26th at 0.25. There `auto` stands on the host's own loss, `host`: positives
    and negatives near a label have it to the last bit, by the host's divisor, and only what is confused is
    recalibrated.

    On cross-entropy a confused candidate has cross-entropy too (γ = 0, α off): weight·p pushes it down where
    p_t = 1 − p > t, weight·β·(1 − p) pulls it up where it is mirrored. With γ = 2 the push would be 3·p³ where that of
    its neighbour near a label is p, at p = 0.01 three thousand times less: where one candidate in a thousand is an
    object, pull q·(1 − p) and push weight·3·p³ balance at p = 0.15, and all the images would score that. α would weigh
    it against positives that have none. Both can be given for the confused candidates nevertheless.

    >>> import torch
    >>> sure, unsure, near = torch.tensor([2.0, -2.0, 2.0])  # that there is an object
    >>> brl(torch.stack((sure, unsure, near)), torch.zeros(3), torch.tensor([True, True, False]))
    tensor([1.3527e-04, 1.3527e-04, 1.2376e+00])
    """

    name = "brl"
    kind = "element"
    title = "Background Recalibration Loss"
    summary = (
        "Background Recalibration Loss: focal loss, but far from every label a prediction that is taken for an object "
        "counts as one, and all count little"
    )
    helps = "labels missing at random, anywhere in the images, on a detector that already finds something"
    steep = ("brl_t", "brl_weight", "brl_beta")
    source = "Zhang et al. 2020, equation 2"
    equation = (
        r"p_t>t:\ -(1-\alpha)(1-p_t)^\gamma\log p_t;\qquad p_t\leq t:\ -\beta(1-\alpha)p_t^\gamma\log(1-p_t);"
        r"\qquad p_t=1-\sigma(x)"
    )
    needs = frozenset({"overlap", SIGMOID})
    neutral: ClassVar = {"brl_t": 0.0, "brl_weight": 1.0}
    golden = (
        # On the host's own loss. Not confused: bce. Confused at x = -2: p_t = 0.880797 > t, -log(p_t) = 0.126928; at
        # x = 2: p_t = 0.119203 <= t, mirrored, -log(1 - p_t), the same; both times 0.1
        Golden([2, 2, -2, 2], [1, 0, 0, 0], [0.126928, 2.126928, 0.012693, 0.012693], overlap=[1, 0.1, 0.09, 0]),
        # t = 0: never mirrored; t = 1: always; x = 3 mirrored: 0.3 * 0.7 * 0.048587
        Golden([-2, 2], [0, 0], [0.012693, 0.212693], {"brl_t": 0}),
        Golden([-2, 3], [0, 0], [0.446655, 0.010203], {"brl_t": 1, "brl_beta": 0.7, "brl_weight": 0.3}),
        # gamma = 2 and alpha = 0.25 of the confused alone: focal's 0.75 * 0.001804, and of the mirrored the same
        Golden(
            [2, -2, 2], [0, 0, 0], [2.126928, 0.000135, 0.000135], {"brl_gamma": 2, "brl_alpha": 0.25},
            overlap=[0.1, 0, 0],
        ),
        # On focal loss. Not confused: focal. Confused at x = -2: focal's 0.75 * 0.001804 = 0.001353; at x = 2:
        # mirrored, 0.75 * p_t^2 * -log(1 - p_t) = 0.75 * 0.014209 * 0.126928, the same; both times 0.1
        Golden([2, 2, -2, 2], [1, 0, 0, 0], [0.000451, 1.237559, 0.000135, 0.000135], FOCAL, overlap=[1, 0.1, 0.09, 0]),
        # t = 0: never mirrored, 0.75 * 1.650078 at x = 2; t = 1: always, the same number at x = -2
        Golden([-2, 2], [0, 0], [0.000135, 0.123756], {**FOCAL, "brl_t": 0}),
        Golden([-2, 2], [0, 0], [0.123756, 0.000135], {**FOCAL, "brl_t": 1}),
        Golden([-2, 2], [0, 0], [0.000135, 0], {**FOCAL, "brl_beta": 0}),
        # t = 0.9: p_t = 0.880797 at x = -2 is below it, mirrored: 0.75 * 0.775803 * 2.126928, halved, times 0.5;
        # x = -3: p_t = 0.952574; 0.75 * 0.047426^2 * 0.048587, halved
        Golden([-2, -3], [0, 0], [0.309390, 0.000041], {**FOCAL, "brl_t": 0.9, "brl_beta": 0.5, "brl_weight": 0.5}),
        # a threshold of 0.3 on the overlap; gamma = 1 and alpha = 0.6: 0.4 * 0.880797 * 2.126928, of which a tenth
        # where it is confused and not mirrored (t = 0)
        Golden(
            [2, 2], [0, 0], [0.749357, 0.074936],
            {**FOCAL, "brl_iou": 0.3, "brl_t": 0, "brl_gamma": 1, "brl_alpha": 0.6}, overlap=[0.3, 0.2],
        ),
    )  # fmt: skip

    brl_base: str = setting(
        "auto", "what the other candidates have: the host's own loss, or focal loss as published; auto: host where "
        "targets are scores", choices=("auto", "host", "focal"), before="focal",
    )  # fmt: skip
    brl_t: float = setting(0.5, "mirrored where the confidence in background is not above this", low=0, high=1)
    brl_iou: float = setting(0.1, "negatives below this overlap are confusion", low=0, high=1)
    brl_overlap: str = setting(
        "box", "overlap of the candidate's box (anchor, else decoded), or whether a label holds its centre",
        choices=("box", "centre"), needs="cells",
    )  # fmt: skip
    brl_weight: float = setting(0.1, "weight of the confusion candidates", low=0)
    brl_beta: float = setting(1.0, "weight of the mirrored branch; 0: the paper's BRL-", low=0)
    brl_gamma: float | str = setting(
        "auto", "exponent of the focal loss in it; auto: 2, on a host's cross-entropy 0", low=0, number=float
    )
    brl_alpha: float | str = setting(
        "auto", "weight of positives in it, 1 - alpha of negatives; -1: both 1; auto: 0.25, on a host's cross-entropy "
        "-1", low=-1, high=1, number=float,
    )  # fmt: skip
    brl_warmup: int | str = setting(
        "auto", "its base alone until after this; auto: a tenth of the epochs where targets are scores, and none with "
        "time=", low=0, unit="epochs", number=int,
    )  # fmt: skip

    def at(self, site: Site) -> Brl:
        """Its base where that is left to the site, and what goes with it."""
        base = ("host" if "scores" in site.gives else "focal") if self.brl_base == "auto" else self.brl_base
        gamma, alpha = AS_PUBLISHED if base == "focal" else _own(site)
        settled: dict[str, Any] = {"brl_gamma": gamma, "brl_alpha": alpha}
        if "scores" not in site.gives:
            settled["brl_warmup"] = 0
        left = {name: value for name, value in settled.items() if getattr(self, name) == "auto"}
        return replace(self, brl_base=base, **left)

    def warmup(self, run: Run) -> int:
        """Epochs of the base alone; none where nobody has said how many there are."""
        given = self.at(run.site).brl_warmup
        return int(WARMUP * run.epochs) if given == "auto" else int(given)

    def tells(self, run: Run) -> tuple[Mapping[str, Any], str]:
        """How long the warm-up is, and that focal loss takes from the positives where their targets are scores."""
        return {"brl_warmup": self.warmup(run)}, start(run.site, *self._settings(run.site)[1])

    def cost(self, candidates: Candidates, run: Run) -> Tensor:
        """Its base, recalibrated far from the labels once the warm-up is over."""
        logits, targets = candidates[:2]
        (gamma, alpha), (base_gamma, base_alpha) = self._settings(run.site)
        if run.epoch < self.warmup(run):
            return focal(logits, targets, gamma=base_gamma, alpha=base_alpha)
        confused = self._confused(candidates)
        loss = brl(
            logits, targets, confused, t=self.brl_t, weight=self.brl_weight, beta=self.brl_beta, gamma=gamma,
            alpha=alpha,
        )  # fmt: skip
        if (gamma, alpha) == (base_gamma, base_alpha):
            return loss
        return torch.where(confused, loss, focal(logits, targets, gamma=base_gamma, alpha=base_alpha))

    def _confused(self, candidates: Candidates) -> Tensor:
        """(B, N, 1 or C) bool, see `confusion`; what is sure is not."""
        confused = confusion(candidates.state, candidates.overlap, self.brl_iou).unsqueeze(-1)
        return confused if candidates.sure is None else confused & ~candidates.sure

    def _settings(self, site: Site) -> tuple[tuple[float, float], tuple[float, float]]:
        """γ and α of the confused candidates, and of the others."""
        at = self.at(site)
        own = float(at.brl_gamma), float(at.brl_alpha)
        return own, own if at.brl_base == "focal" else _own(site)

    def spares(self, stage: str) -> str:
        return "recalibrated"

    def recalibrated(self, candidates: Candidates, run: Run) -> Tensor:
        """The confused ones that are mirrored."""
        confused = self._confused(candidates) & (run.epoch >= self.warmup(run))
        return mirrored(candidates.logits, confused, self.brl_t)

    def divide(self, site: Site) -> str:
        """By the positives, as focal loss; on the host's own loss as the host."""
        return "host" if self.at(site).brl_base == "host" else site.positives


def _own(site: Site) -> tuple[float, float]:
    """γ and α of the host's own loss."""
    return AS_PUBLISHED if site.own == "focal" else CROSS_ENTROPY
