"""Residual Objectness: objectness that is refined in steps, each on the candidates that are still hard.

Chen et al., "Residual Objectness for Imbalance Reduction", section 3.2 and Algorithm 1.
Shapes: B images, N candidates an image, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.boxes import upcast
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.methods.bce import bce
from rebalance.methods.method import DENSE, RPN, Method
from rebalance.settings import setting


class Refined(NamedTuple):
    """What Algorithm 1 gives, for steps 1 to T."""

    losses: Tensor  # (T, B, N) of each step; 0 without gradient outside its gate
    entered: Tensor  # (T, B, N) bool, the gate of each step


def residual_objectness(
    objectness: Tensor, residuals: Tensor, targets: Tensor, state: Tensor, *, weights: Tensor | None = None,
    grad: str = "isolated", gate: str = "batch", element: Callable[[Tensor, Tensor], Tensor] = bce,
) -> Refined:  # fmt: skip
    """L_t^res of Algorithm 1, lines 3 to 9, unreduced.

    With o_0 the objectness, step t takes the candidates with o_{t−1} >= m, where m is the least o_{t−1} of the
    positives (lines 5 and 6; logits compare as their scores do). For them o_t = o_{t−1} + r_t and the loss is
    BCE(σ(o_t), target) (line 7). The others keep o_t = o_{t−1}, and may pass a later gate. Where there is no positive
    no candidate passes: the loss is 0, with a gradient of 0 for every residual.

    The paper does not say what the minimum runs over, nor what the sum is divided by. `gate` says the former; callers
    divide as they divide the objectness loss, so that a candidate weighs the same in both. In several processes each
    has the gates of its own batch.

    Args:
        objectness: (B, N) logits o_0.
        residuals: (T, B, N) logits r_1 … r_T.
        targets: (B, N) in [0, 1].
        state: (B, N) int8; IGNORE has no loss and no say in the gate.
        weights: (B, N) of each candidate in all steps; None: 1. A candidate of weight 0 keeps its say in the gate.
        grad: isolated: no gradient to o_0, the residuals of earlier steps have theirs (section 3.2, "we isolate the
            residual subnet from objectness subnet"; "not to objectness" in section 4.2). stepwise: none to o_{t−1}
            either, so that each step trains its own residual alone; with one step that is the same. joint: through
            all steps and to the objectness.
        gate: batch: the least of all positives. image: of those of the candidate's own image, so that an image without
            a positive has no residual loss.
        element: (logits, targets) -> loss of each candidate.

    Returns:
        Losses and gates, at least float32.
    """
    before, residuals = upcast(objectness), upcast(residuals)
    if residuals.numel() == 0:
        none = residuals + before.sum() * 0
        return Refined(none, torch.zeros_like(none, dtype=torch.bool))
    positive, counted = state == POSITIVE, state != IGNORE
    over = (0, 1) if gate == "batch" else (1,)
    losses: list[Tensor] = []
    entered: list[Tensor] = []
    if grad != "joint":
        before = before.detach()
    for residual in residuals.unbind(0):
        if grad == "stepwise":
            before = before.detach()
        seen = before.detach()
        passes = seen >= seen.where(positive, torch.inf).amin(over, keepdim=True)
        after = torch.where(passes, before + residual, before)
        loss = torch.where(passes & counted, element(after, targets), 0)
        losses.append(loss if weights is None else loss * weights)
        entered.append(passes)
        before = after
    return Refined(torch.stack(losses), torch.stack(entered))


def refine(objectness: Tensor, residuals: Tensor) -> Tensor:
    """(T + 1, B, N) logits o_0 … o_T as in inference, from o_0 (B, N) and every residual (T, B, N), without a gate."""
    return torch.cat((objectness.unsqueeze(0), residuals)).cumsum(0)


def refined(logits: Tensor, residuals: Tensor | None, shown: int | None) -> Tensor:
    """Objectness logits (B, …) as in inference: of the residuals (B, T, …) the first `shown` added, without a gate."""
    return logits if residuals is None else logits + residuals[:, :shown].sum(1)


def unrefined(logits: Tensor, residuals: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the loss takes, at least float32: objectness (B, N), and residuals (B, T, N) as (T, B, N)."""
    logits = upcast(logits)
    none = logits.new_zeros(0, *logits.shape)
    return logits, none if residuals is None else upcast(residuals).transpose(0, 1)


class StepMeans:
    """Mean objectness of positives and of negatives after each step, over an epoch (the paper's Figures 2 and 4).

    It is collected on the device and read once; scores are those of inference, without the gate.

    Attributes:
        sums: (2, T + 2): of positives, then negatives, the sum of scores after each step and their number; None
            before the first batch of the epoch.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, logits: Tensor, state: Tensor) -> None:
        """Take in one batch: (T + 1, B, N) logits, see `refine`, and (B, N) states."""
        scores = upcast(logits.detach()).sigmoid()
        rows = []
        for kind in (POSITIVE, NEGATIVE):
            chosen = state == kind
            rows.append(torch.cat(((scores * chosen).sum((1, 2)), chosen.sum().to(scores).view(1))))
        found = torch.stack(rows)
        self.sums = found if self.sums is None else self.sums + found


def means(sums: Tensor) -> dict[str, float]:
    """`pos_0` … `neg_T` from the sums of `StepMeans`; 0 where there was no such candidate. Reads from the device."""
    found = (sums[:, :-1] / sums[:, -1:].clamp(min=1)).tolist()
    return {f"{name}_{t}": mean for name, row in zip(("pos", "neg"), found, strict=True) for t, mean in enumerate(row)}


@dataclass(frozen=True, kw_only=True)
class Obj(Method):
    """The objectness module: it chooses a head, whose two losses are cross-entropies.

    >>> objectness, given_object = torch.tensor([0.0, 2.0]).sigmoid()
    >>> objectness * given_object  # score = P(object) · P(class given object)
    tensor(0.4404)
    """

    name = "obj"
    kind = "head"
    title = "objectness module"
    summary = (
        "chooses `head=obj`: a prediction's class is learned from positives alone, an objectness tells them from "
        "background; score = P(class given object)·P(object)"
    )
    helps = "it gives the other methods an objectness to act on; the classes are then learnt from labels alone"
    steep = ("obj_weight", "cls_weight")
    source = "Chen et al. 2019, section 3.1"
    equation = r"P(c)=P(c\,|\,o)\,P(o)"
    stages = (DENSE, RPN)
    needs = frozenset({"objectness"})

    obj_width: float = setting(
        1.0, "channels within the objectness subnet; up to 1: as a fraction of the class tower's, at least 16",
        low=0.01, high=4096, needs="subnet", before=0.25,
    )  # fmt: skip
    obj_prior: str = setting(
        "code", "P(object) at the start: paper, 1/C; code (the authors' later one), 0.001, about the share of "
        "positives", choices=("paper", "code"), low=1e-6, high=0.5, needs="prior",
    )  # fmt: skip
    cls_prior: str = setting(
        "paper", "P(class | object) at the start: paper, 0.01; code (the authors' later one), 1/C",
        choices=("paper", "code"), low=1e-6, high=0.5, needs="subnet",
    )  # fmt: skip
    obj_weight: float = setting(1.0, "weight of the objectness loss and of its residual losses", low=0, needs="prior")
    cls_weight: float = setting(1.0, "weight of the class loss of the positives", low=0, needs="subnet")


@dataclass(frozen=True, kw_only=True)
class ResObj(Obj):
    """Residual Objectness.

    >>> objectness = torch.tensor([[1.0, 0.0, -1.0]])  # the one positive scores 0.73, only it passes the gate
    >>> state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE]])
    >>> residual_objectness(objectness, torch.zeros(1, 1, 3), torch.tensor([[1.0, 0, 0]]), state).losses
    tensor([[[0.3133, 0.0000, 0.0000]]])
    """

    name = "resobj"
    title = "Residual Objectness"
    summary = (
        "chooses `head=resobj`, Residual Objectness: the objectness is refined in steps, each trained on what scores "
        "as high as the lowest positive"
    )
    helps = "many easy negatives, on heads with an objectness; nothing in it is for missing labels"
    source = "Chen et al. 2019, Algorithm 1"
    equation = (
        r"o_0=\mathrm{sg}(o),\quad o_t=o_{t-1}+r_t,\quad L_t=\sum_{\sigma(o_{t-1})\geq m}\mathrm{BCE}(\sigma(o_t),y)"
    )

    resobj_steps: int = setting(2, "T, refinements of the objectness; 0: as head=obj", low=0, high=5)
    resobj_gate: str = setting(
        "batch", "a step takes what scores as high as the lowest positive of the batch, or of the candidate's image",
        choices=("batch", "image"),
    )  # fmt: skip
    resobj_grad: str = setting(
        "isolated", "residual losses train the residual subnets of this step and before; stepwise: of this step alone; "
        "joint: the objectness too", choices=("isolated", "stepwise", "joint"),
    )  # fmt: skip
    resobj_on: str = setting(
        "obj", "features that the residual subnets see: the objectness subnet's or the class tower's",
        choices=("obj", "cls"),
    )  # fmt: skip
    resobj_width: float = setting(
        0.0, "channels within a residual subnet, or as a fraction; 0: the objectness subnet's, and an eighth of the "
        "features, at least 16, where there is none", low=0, high=4096,
    )  # fmt: skip
