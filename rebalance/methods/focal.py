"""Focal loss: the better a candidate is classified, the less it counts.

Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from rebalance.match import device
from rebalance.match.boxes import upcast
from rebalance.match.candidates import BACKGROUND, SIGMOID, Candidates
from rebalance.match.device import filled_up, places
from rebalance.methods.bce import bce, softmax_cross_entropy
from rebalance.methods.method import Golden, Method, Run, Site
from rebalance.settings import setting

MANY = 16  # times as many elements as targets that are not 0
PART = 2**17  # elements that are computed at a time on a CPU: half a MiB a temporary
TINY = 1e-12  # least distance from the target where gamma < 1, whose power has no finite slope at 0


def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """−α_t (1−p_t)^γ log(p_t), unreduced.

    Equation 5 is about targets 0 and 1, where 1−p_t is the distance |σ(x) − y|. YOLO heads have targets in between
    (IoU, the assigner's score). There the distance is kept, as in quality focal loss (Li et al. 2020, "Generalized
    Focal Loss"), so that the loss is least at σ(x) = y; α_t = αy + (1−α)(1−y), as in torchvision. (torchvision's
    p_t = py + (1−p)(1−y) agrees at 0 and 1, but in between its loss is least away from the target.)

    Args:
        logits: x, any shape.
        targets: y in [0, 1], the same shape.
        gamma: γ ≥ 0; 0 is cross-entropy weighted by α.
        alpha: weight of positives, 1−α of negatives, in [0, 1]; negative: both count 1. γ = 0 without α is `bce`.

    Returns:
        The same shape, at least float32. Its gradient is for `logits` only, and has none itself.
    """
    logits = upcast(logits)
    targets = targets.to(logits.dtype)
    if gamma > 0:
        loss: Tensor = _Focal.apply(logits, targets, gamma, alpha)  # type: ignore[no-untyped-call]
        return loss
    return bce(logits, targets) if alpha < 0 else bce(logits, targets) * balance(targets, alpha)


class _Focal(torch.autograd.Function):
    """d^γ·bce, d = |σ(x) − y|, whose slope d^γ·(σ(x) − y) + γ d^(γ−1)·sign(σ(x) − y)·σ(x)(1−σ(x))·bce is found along.

    Two tensors are kept for the backward pass, the slope and α_t, in the place of ten: on a CPU half the time.

    Where nearly all targets are 0 and that is free to read, nearly all is computed as for 0, in parts that stay in the
    cache, and the rest once more; the numbers are the same.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
        few = places(targets != 0) if device.free_to_read(targets) and logits.is_contiguous() else None
        if few is None or len(few) * MANY > logits.numel():
            loss, slope = _with_slope(logits, targets, gamma)
            ctx.few, ctx.weight, weights = None, 1.0, None if alpha < 0 else balance(targets, alpha)
            ctx.save_for_backward(slope, weights)
            return loss if weights is None else loss.mul_(weights)
        few = filled_up(few)
        ctx.few, ctx.weight = few, 1.0 if alpha < 0 else 1 - alpha
        loss, slope = torch.empty_like(logits), torch.empty_like(logits)
        flat, flat_loss, flat_slope = logits.view(-1), loss.view(-1), slope.view(-1)
        for start in range(0, len(flat), PART):
            at = slice(start, start + PART)
            flat_loss[at], flat_slope[at] = _with_slope(flat[at], None, gamma)
        if ctx.weight != 1:
            loss.mul_(ctx.weight)
        own = targets.flatten()[few]
        weights = balance(own, alpha)
        value, flat_slope[few] = _with_slope(flat[few], own, gamma)
        flat_loss[few] = value.mul_(weights)
        ctx.save_for_backward(slope, weights)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        slope, weights = ctx.saved_tensors
        if ctx.few is None:
            return gradient * slope if weights is None else (gradient * weights).mul_(slope), None, None, None
        found = gradient * slope if ctx.weight == 1 else (gradient * ctx.weight).mul_(slope)
        found.view(-1)[ctx.few] = gradient.flatten()[ctx.few].mul_(weights).mul_(slope.view(-1)[ctx.few])
        return found, None, None, None


def _with_slope(logits: Tensor, targets: Tensor | None, gamma: float) -> tuple[Tensor, Tensor]:
    """d^γ·bce and its slope, of targets or of 0."""
    score = logits.sigmoid()
    if targets is None:
        loss, error = logits - logsigmoid(logits), score
    else:
        loss, error = bce(logits, targets), score - targets
    distance = error if gamma % 2 == 0 else error.abs()  # an even power needs no sign taken off
    power = (distance.clamp(min=TINY) if gamma < 1 else distance).pow(gamma)
    slope = (1 - score).mul_(score).mul_(loss)
    if gamma == 2:
        slope.mul_(error).mul_(2)
    else:
        slope.mul_(error.sign()).mul_(distance.abs().clamp_(min=TINY).pow_(gamma - 1)).mul_(gamma)
    return loss.mul_(power), slope.addcmul_(power, error)


def balance(targets: Tensor, alpha: float) -> Tensor:
    """α_t = αy + (1−α)(1−y), a new tensor; all 1 where alpha is negative."""
    return (targets * (2 * alpha - 1)).add_(1 - alpha) if alpha >= 0 else torch.ones_like(targets)


def start(site: Site, gamma: float, alpha: float) -> str:
    """What is to be said where targets are scores: an untrained positive of score y costs y^γ·α_t of cross-entropy."""
    if "scores" not in site.gives or (gamma == 0 and alpha < 0):
        return ""
    times = [1 / max(y**gamma * (alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else 1), TINY) for y in (0.5, 0.25)]
    high, low = (f"{x:.3g} times below" if x >= 1 else f"{1 / x:.3g} times above" for x in times)
    told = "targets are scores: before the divisor a positive starts"
    return f"{told} {high} cross-entropy at score 0.5, {low} at 0.25"


def softmax_focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """−α_t (1−p_t)^γ log(p_t), p_t the softmax probability of the true class; else as `softmax_cross_entropy`.

    Equation 5 is for a sigmoid; on a softmax as Adhikari et al. 2021, "Effect of Label Noise on Robustness of Deep
    Neural Network Object Detectors", equation 2. There α is 0.75 "for all c"; here, as with Lin et al., background has
    1−α. `gamma` and `alpha` are as in `focal`; γ = 0 without α is `softmax_cross_entropy`.
    """
    loss = softmax_cross_entropy(logits, targets)
    if gamma > 0:
        distance = -torch.expm1(-loss)  # 1 − p_t, to full precision where p_t is nearly 1
        loss = loss * (distance.clamp(min=TINY) if gamma < 1 else distance).pow(gamma)
    return loss if alpha < 0 else loss * torch.where(targets == BACKGROUND, 1 - alpha, alpha)


@dataclass(frozen=True, kw_only=True)
class Focal(Method):
    """Focal loss.

    >>> focal(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))  # 0.25 · (1/2)² · log 2; 0.75 · σ(2)² · 2.1269
    tensor([0.0433, 1.2376])
    """

    name = "focal"
    kind = "element"
    title = "focal loss"
    summary = "focal loss: the better a prediction already is, the less it counts"
    helps = "many easy negatives; on missing labels it is what BRL is compared with"
    source = "Lin et al. 2017, equation 5"
    equation = r"-\alpha_t(1-p_t)^\gamma\log p_t"
    neutral: ClassVar = {"focal_gamma": 0.0, "focal_alpha": -1.0}
    golden = (
        # the distances from the target are 1/2, sigmoid(-2) = 0.119203, sigmoid(2) = 0.880797, 1/2 - 1/4 and 0; squared
        # and times the values of bce, 0.25 * 0.693147 = 0.173287, 0.014209 * 0.126928 = 0.001804, 0.775803 * 2.126928 =
        # 1.650078, 0.0625 * 0.693147 = 0.043322 and 0; times alpha_t 0.25, 0.25, 0.75, 0.0625 + 0.5625 and 0.5
        Golden([0, 2, 2, 0, 0], [1, 1, 0, 0.25, 0.5], [0.043322, 0.000451, 1.237559, 0.027076, 0]),
        Golden([0, 2, 2], [1, 1, 0], [0.173287, 0.001804, 1.650078], {"focal_alpha": -1}),
        Golden([0, 2, 2], [1, 1, 0], [0.693147, 0.126928, 2.126928], {"focal_alpha": -1, "focal_gamma": 0}),
        # gamma = 1, alpha = 0.5: 0.119203 * 0.126928 / 2 and 0.880797 * 2.126928 / 2
        Golden([2, 2], [1, 0], [0.007565, 0.936695], {"focal_gamma": 1, "focal_alpha": 0.5}),
    )

    focal_gamma: float = setting(2.0, "exponent; 0: cross-entropy", low=0)
    focal_alpha: float = setting(0.25, "weight of positives, 1 - alpha of negatives; -1: both 1", low=-1, high=1)

    def cost(self, candidates: Candidates, run: Run) -> Tensor:
        """Focal loss of the candidates' link."""
        logits, targets, link = candidates.logits, candidates.targets, candidates.link
        if link == SIGMOID:
            return focal(logits, targets, gamma=self.focal_gamma, alpha=self.focal_alpha)
        return softmax_focal(logits, targets, gamma=self.focal_gamma, alpha=self.focal_alpha).unsqueeze(-1)

    def tells(self, run: Run) -> tuple[Mapping[str, Any], str]:
        """That it takes from the positives where their targets are scores."""
        return {}, start(run.site, self.focal_gamma, self.focal_alpha)

    def divide(self, site: Site) -> str:
        """By the positives (section 4): the mean over all candidates would be that of the easy ones."""
        return site.positives
