"""The losses of heads with an objectness that is refined in steps, on anchors and without.

Chen et al., "Residual Objectness for Imbalance Reduction", sections 3.1 and 3.2.
Shapes: B images, N candidates an image, C classes, T steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from rebalance.heads.objectness import flatten_steps
from rebalance.hosts.ultralytics.criterion import AnchorCriterion, Batch, DetectionCriterion, Objectness, Result
from rebalance.match.boxes import upcast
from rebalance.match.candidates import candidate_state
from rebalance.methods.bce import bce
from rebalance.methods.divisor import divided_by
from rebalance.methods.resobj import StepMeans, refine, residual_objectness
from rebalance.methods.steps import objectness_losses


class RefinedAnchorCriterion(AnchorCriterion):
    """YOLOv5's loss on the anchor head, and the residual losses of its objectness.

    Without steps it is the loss of the anchor head to the bit. The residual losses have the targets, the element loss,
    the dropped candidates, the divisor and the gain of the objectness loss, and are summed over the steps.
    """

    def __init__(self, model: Any, *, flags: Any, seed: int) -> None:
        super().__init__(model, flags=flags, seed=seed)
        self.steps = StepMeans()

    def _more(self, raw: dict[str, Any], seen: Objectness) -> dict[str, Tensor]:
        state = self._state(seen)
        if "residuals" not in raw:
            residuals = seen.logits.new_zeros(0, *seen.logits.shape)
        else:
            residuals = upcast(flatten_steps(raw["residuals"]))
        if torch.is_grad_enabled():
            self.steps.add(refine(seen.logits.detach(), residuals.detach()), state)
        if "residuals" not in raw:
            return {}
        refined = residual_objectness(
            seen.logits, residuals, seen.target, state,
            grad=self.flags.resobj_grad, element=lambda logits, _: self._element(seen, logits),
        )  # fmt: skip
        return {"res_loss": self._divide(refined.losses.sum(0), seen)}


class ObjectnessCriterion(DetectionCriterion):
    """Class loss on positives, objectness loss on all, residual losses behind their gates, on an anchor-free head.

    Assignment: the host's, from P(class | object) · P(object) after all steps. Objectness: its target is the
    assigner's score (0 for a negative), the sum is divided as the host divides its class loss, by the sum of target
    scores; residual losses likewise. Class: binary cross-entropy of positives alone against 0 and 1, weighted by the
    target score as the host weighs its box loss, divided by the sum of those. All three have the host's gain `cls`.

    The methods act on the objectness and its residual losses; the class loss has no negatives to weigh.
    """

    divisors: ClassVar = {**AnchorCriterion.divisors, "host": "sum of target scores"}

    # Of the step at hand
    _raw: tuple[Tensor, Tensor]  # (B, N) objectness and (T, B, N) residual logits
    _targets: Tensor  # (B, N)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = StepMeans()

    def loss(self, preds: dict[str, Tensor], batch: Batch) -> Result:
        """Loss of one batch.

        Args:
            preds: the head's raw predictions of one branch.
            batch: the host's.

        Returns:
            (4,) or, with steps, (5,): box, class, DFL (L1), objectness and residual loss times B, and the same without
            B, detached, by name.
        """
        logits = upcast(preds["objectness"]).squeeze(1)
        empty = logits.new_zeros(len(logits), 0, logits.shape[1])
        self._raw = logits, upcast(preds.get("residuals", empty)).transpose(0, 1)
        vector, items = super().loss(preds, batch)
        more = {name: x * self.hyp.cls for name, x in self._objectness_losses().items()}
        del self._raw  # it holds the graph
        images = len(logits)
        return torch.cat((vector, torch.stack(list(more.values())) * images)), {
            **items, **{name: x.detach() for name, x in more.items()}
        }  # fmt: skip

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, *labels: Tensor, **options: Any) -> Any:
        objectness = refine(*self._raw)[-1].detach().sigmoid().to(scores.dtype)
        assigned = super()._assign(scores * objectness.unsqueeze(-1), boxes, points, *labels, **options)
        self._targets = assigned[2].sum(-1)
        return assigned

    def _classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        return bce(logits, (targets > 0).to(logits.dtype)) * targets.sum(-1, keepdim=True)

    def _objectness_losses(self) -> dict[str, Tensor]:
        logits, residuals = self._raw
        targets = self._targets.to(logits.dtype)
        dropped = self._dropped[0] if self._dropped is not None and self.flags.obj_drop > 0 else None

        losses = objectness_losses(
            logits, residuals, targets, candidate_state(self._matched), dropped,
            flags=self.flags, element=partial(self.composition.of_objectness, overlap=self._overlap), means=self.steps,
        )  # fmt: skip
        if self.divisor != "host":
            count = divided_by(self.divisor, self._matched, dropped, self.flags, 1)
        else:
            if dropped is not None and self.flags.drop_divisor == "kept" and self.flags.drop_scope != "background":
                targets = targets.masked_fill(dropped, 0)
            count = targets.sum().clamp(min=1)
        return {name: (loss.sum(1) / count).sum() for name, loss in losses.items()}
