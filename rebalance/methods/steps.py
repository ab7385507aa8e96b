"""The loss of an objectness and those of its refinements, with the dropped candidates left out of both.

Chen et al., "Residual Objectness for Imbalance Reduction", sections 3.1 and 3.2.
Shapes: B images, N candidates an image, T steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE
from rebalance.methods.resobj import StepMeans, refine, residual_objectness
from rebalance.settings import TrainFlags

Element = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits, targets, state -> loss, (B, N) each


def objectness_losses(
    logits: Tensor,
    residuals: Tensor,
    targets: Tensor,
    state: Tensor,
    dropped: Tensor | None,
    *,
    flags: TrainFlags,
    element: Element,
    means: StepMeans,
) -> dict[str, Tensor]:
    """`obj_loss` and, where there are steps, `res_loss`, summed over the steps: (B, N) each, not divided.

    Args:
        logits: (B, N) unrefined objectness.
        residuals: (T, B, N).
        targets: (B, N) in [0, 1].
        state: (B, N) int8; ignored: no loss and no say in a gate.
        dropped: (B, N) bool, what leaves both losses; in scope `literal` becomes background in both. None: nothing.
        flags: drop_scope, resobj_grad.
        element: loss of each candidate.
        means: takes in the objectness of each step in training.
    """
    counted = state != IGNORE
    if dropped is not None and flags.drop_scope == "literal":
        targets, state = targets.masked_fill(dropped, 0), state.masked_fill(dropped, NEGATIVE)
    elif dropped is not None:
        counted = counted & ~dropped
    weights = counted.to(logits.dtype)
    if torch.is_grad_enabled():
        means.add(refine(logits.detach(), residuals.detach()), state)
    losses = {"obj_loss": element(logits, targets, state) * weights}
    if len(residuals):
        losses["res_loss"] = residual_objectness(
            logits, residuals, targets, state,
            weights=weights, grad=flags.resobj_grad, element=lambda x, y: element(x, y, state),
        ).losses.sum(0)  # fmt: skip
    return losses
