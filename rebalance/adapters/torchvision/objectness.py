"""Objectness losses over all anchors, for the heads of torchvision that refine an objectness in steps.

Chen et al., "Residual Objectness for Imbalance Reduction", sections 3.1 and 3.2.
Shapes: B images, A anchors, T steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rebalance.adapters.torchvision.head import Raw
from rebalance.boxes import upcast
from rebalance.config import TrainFlags
from rebalance.losses.resobj import StepMeans, refine, residual_objectness
from rebalance.targets.state import IGNORE, NEGATIVE, POSITIVE

Element = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, targets, state -> loss, (B, A) each


def refined(raw: Raw, name: str, shown: int | None = None) -> Tensor:
    """(B, A) objectness logits as in inference: every residual added, without a gate.

    Args:
        raw: raw predictions, with `residuals` (B, T, A) where the head has steps.
        name: of the unrefined objectness (B, A) in them.
        shown: refinements that count; None: all.
    """
    logits: Tensor = raw[name]
    return logits + raw["residuals"][:, :shown].sum(1) if "residuals" in raw else logits


def steps_of(raw: Raw, name: str) -> tuple[Tensor, Tensor]:
    """(B, A) unrefined objectness logits and (T, B, A) residuals, at least float32; `raw`, `name`: as in `refined`."""
    logits = upcast(raw[name])
    if "residuals" not in raw:
        return logits, logits.new_zeros(0, *logits.shape)
    return logits, upcast(raw["residuals"]).transpose(0, 1)


def objectness_losses(
    logits: Tensor,
    residuals: Tensor,
    state: Tensor,
    dropped: Tensor | None,
    *,
    flags: TrainFlags,
    element: Element,
    means: StepMeans,
) -> dict[str, Tensor]:
    """`obj_loss` and, where there are steps, `res_loss`, summed over the steps: (B, A) each, not divided.

    Args:
        logits: (B, A) unrefined objectness.
        residuals: (T, B, A).
        state: (B, A) int8; positive: the target is 1, negative: 0, ignored: no loss and no say in a gate.
        dropped: (B, A) bool, what leaves both losses; in scope `literal` becomes background in both. None: nothing.
        flags: drop_scope, resobj_grad.
        element: loss of each candidate.
        means: takes in the objectness of each step in training.
    """
    weights = (state != IGNORE).to(logits.dtype)
    if dropped is not None and flags.drop_scope == "literal":
        state = state.masked_fill(dropped, NEGATIVE)
    elif dropped is not None:
        weights = weights.masked_fill(dropped, 0)
    if torch.is_grad_enabled():
        means.add(refine(logits.detach(), residuals.detach()), state)
    targets = (state == POSITIVE).to(logits.dtype)
    losses = {"obj_loss": element(logits, targets, state) * weights}
    if len(residuals):
        losses["res_loss"] = residual_objectness(
            logits, residuals, targets, state,
            weights=weights, grad=flags.resobj_grad, element=lambda x, y: element(x, y, state),
        ).losses.sum(0)  # fmt: skip
    return losses
