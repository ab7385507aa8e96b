"""RetinaNet: torchvision's layers, anchors and matching; the loss is ours, for the whole batch at once.

Lin et al. 2017, "Focal Loss for Dense Object Detection"; with an objectness: Chen et al., "Residual Objectness for
Imbalance Reduction".
Shapes: B images, A anchors, C classes, G labels of the fullest image, T steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import generalized_box_iou_loss

from rebalance.heads.objectness import (
    Refined,
    ResidualObjectness,
    class_prior,
    flatten_steps,
    logit,
    objectness_prior,
)
from rebalance.hosts.evaluation import RCNN
from rebalance.hosts.torchvision.dense import Batch, DenseCriterion, Result, ignored, one_hot, plainly
from rebalance.hosts.torchvision.head import Anchors, Raw, TorchvisionHead, best_pairs, boxes_at, by_cell, class_rows
from rebalance.match.boxes import decode_deltas, encode_deltas, upcast
from rebalance.match.candidates import POSITIVE, SIGMOID, Candidates
from rebalance.match.iou import Matched, match_by_iou
from rebalance.match.padded import Padded
from rebalance.match.regions import Known
from rebalance.methods.bce import bce
from rebalance.methods.method import NOTHING, Choice, Site, Sites
from rebalance.methods.resobj import ResObj, refine, refined, unrefined
from rebalance.recipe import Recipe

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4  # from 0.5 on positive, below 0.4 negative, ignored in between

CLASSES = Site(
    name="retinanet", where="retinanet", about="class scores of all anchors", own="focal",
    gives=frozenset({"overlap", SIGMOID, "one"}),
    divisors={
        "image": "positives of each image, mean over images",
        "batch": "positives of the batch",
        "candidates": "candidates of the batch times classes",
    },
    host="image",
)  # fmt: skip
OBJECTNESS = replace(
    CLASSES, name="retinanet-obj", where="retinanet with head=obj or resobj", about="objectness of all anchors",
    own="bce", gives=frozenset({"overlap", SIGMOID, "objectness", "prior", "subnet"}),
    divisors={**CLASSES.divisors, "candidates": "candidates of the batch"}, host="batch",
)  # fmt: skip


class RetinaNetCriterion(DenseCriterion):
    """Focal loss or one of our methods on the class scores of all anchors, L1 (or GIoU) on the boxes of the positives.

    Positive is an anchor with an IoU of at least 0.5 with its nearest label, or the best of a label; below 0.4 it is
    negative, in between it is ignored. With `loss=brl` a negative below `brl_iou` is confused, by the same overlap.
    """

    ignores = True

    def match(self, anchors: Tensor, labels: Padded) -> Matched:
        return match_by_iou(anchors, labels, high=POSITIVE_IOU, low=NEGATIVE_IOU, rescue="ties")

    def __init__(self, head: Any, *, recipe: Recipe, seed: int) -> None:
        super().__init__(head, recipe=recipe, seed=seed)
        self.giou = getattr(head, "giou", False)

    def box_loss(self, deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(…) L1, summed over the four offsets; of torchvision's second version 1 - GIoU of the box itself."""
        if self.giou:
            found: Tensor = generalized_box_iou_loss(decode_deltas(deltas, anchors), boxes)
            return found
        return (deltas - encode_deltas(boxes, anchors)).abs().sum(-1)

    def class_targets(self, logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
        """(B, A, C) 1 for the class of a positive."""
        return one_hot(logits, classes, positive)


class RefinedRetinaNetCriterion(RetinaNetCriterion):
    """Class loss on positives, objectness loss on all but the ignored, residual losses behind their gates, L1 on boxes.

    Class: cross-entropy of the sigmoid, summed over classes, of the positives alone (equation 4). Objectness: target 1
    of a positive and 0 of a negative (equation 5), by binary cross-entropy or the element loss chosen; the residual
    losses likewise, summed over the steps. The methods act on these two; the class loss has no negatives to weigh.

    All are divided by `divisor`, class and box loss with `candidates` too by the positives. By default these are those
    of the batch, as in Detectron, on which the paper stands: cross-entropy weighs negatives in full, and if each image
    divided by its own positives, those with few labels or none would outweigh the others. A prediction's confidence is
    its refined objectness.
    """

    by_class = False

    # Of the batch at hand
    _raw: tuple[Tensor, Tensor]  # (B, A) objectness and (T, B, A) residual logits
    _more: dict[str, Tensor]  # losses by name

    def __call__(self, preds: Any, batch: Batch) -> Result:
        """(3,) or, with steps, (4,): class, box, objectness and residual loss; see `Host.criterion`."""
        raw: Raw = preds[1] if isinstance(preds, tuple) else preds
        self._raw = unrefined(raw["objectness"], raw.get("residuals"))
        vector, items = super().__call__(preds, batch)
        more, self._more = self._more, {}
        images = len(self._raw[0])
        del self._raw  # it holds the graph
        items |= {name: loss.detach() for name, loss in more.items()}
        return torch.cat((vector, torch.stack(list(more.values())) * images)), items

    def confidence(self, logits: Tensor) -> Tensor:
        """(B, A) objectness logits after all steps."""
        return refine(*self._raw)[-1].detach()

    def _classification(
        self, logits: Tensor, classes: Tensor, matched: Matched, choice: Choice, known: Known
    ) -> Tensor:
        state, positive = matched.state, matched.state == POSITIVE
        objects, residuals = self._raw

        def losses(objects: Tensor, residuals: Tensor, choice: Choice) -> dict[str, Tensor]:
            targets = positive.to(logits.dtype)
            candidates = Candidates(objects, targets, state, matched.overlap, SIGMOID, *known)
            found = self.objective.objectness(candidates, residuals, choice)
            count = self.objective.count(positive, choice, ignored=ignored(state, known))
            return {name: (loss.sum(1) / count).sum() for name, loss in found.items()}

        self.objective.weigh_up(choice, state, objects, lambda x, choice: losses(x, residuals[:0], choice)["obj_loss"])
        self._more = losses(objects, residuals, choice)
        loss = bce(logits, self.class_targets(logits, classes, positive)).sum(-1).where(positive, 0)
        divided: Tensor = loss.sum(1) / self.objective.count(positive, NOTHING, by=plainly(self.recipe))
        return divided.sum() * float(self.recipe["cls_weight"])


class RetinaNetDetect(TorchvisionHead):
    """torchvision's RetinaNet head with its anchors."""

    evaluation = RCNN
    sites = Sites("retinanet", {"stock": CLASSES, "obj": OBJECTNESS, "resobj": OBJECTNESS})
    criterion = RetinaNetCriterion
    giou = False

    def __init__(
        self, layers: RetinaNetHead, anchors: Anchors, nc: int, stride: int = 32, most: int = 1000, giou: bool = False
    ) -> None:
        """Build the head of torchvision's two towers for `nc` classes.

        Args:
            stride: images are padded to multiples of it; 32 as in torchvision. Coarser levels round their cells up.
            most: pairs of anchor and class that each level keeps for non-maximum suppression.
            giou: whether the loss of boxes is that of torchvision's second version.
        """
        super().__init__(nc, stride)
        self.layers, self.anchors_of, self.most, self.giou = layers, anchors, most, giou

    def predict(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Raw:
        """`logits` (B, A, C), `deltas` (B, A, 4), `anchors` (A, 4) in pixels, `counts` anchors of each level."""
        maps = list(features.values())
        anchors, counts = self.anchors_of(maps, size)
        return {
            **self.scores(maps), "deltas": self.layers.regression_head(maps), "anchors": anchors, "counts": counts,
            "size": size,
        }  # fmt: skip

    def scores(self, maps: list[Tensor]) -> Raw:
        """What the classification tower predicts."""
        return {"logits": self.layers.classification_head(maps)}

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of the best pairs of each level."""
        logits, kept, classes = best_pairs(raw["logits"], raw["counts"], self.most)
        return boxes_at(raw, kept), logits.sigmoid(), classes

    def class_rows(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """The last layer of the classification tower: (anchors · C, …)."""
        rows = partial(class_rows, per_cell=self.layers.classification_head.num_anchors)
        return dict.fromkeys((f"layers.classification_head.cls_logits.{k}" for k in ("weight", "bias")), rows)


class RefinedRetinaNetDetect(Refined, RetinaNetDetect):
    """RetinaNet with an objectness on the class tower, and its refinements (section 3.1, Figures 1 and 3).

    Its class scores are P(class | object); what it puts out is their product with P(object). Like the towers, the
    subnets are shared by all levels. Made from the stock head, see `with_objectness`.
    """

    criterion = RefinedRetinaNetCriterion

    def add_objectness(self, settings: ResObj) -> None:
        """Add the subnets; at first a class has the probability of `class_prior`, an object of `objectness_prior`."""
        head = self.layers.classification_head
        self.objectness = ResidualObjectness(
            head.cls_logits.in_channels, width=settings.obj_width, residual_width=settings.resobj_width,
            anchors=head.num_anchors, steps=self.steps, on=settings.resobj_on, grad=settings.resobj_grad,
            prior=objectness_prior(self.nc, settings.obj_prior), act=nn.ReLU,
        )  # fmt: skip
        nn.init.constant_(head.cls_logits.bias, logit(class_prior(self.nc, settings.cls_prior)))

    def scores(self, maps: list[Tensor]) -> Raw:
        """`logits` (B, A, C) of a class given an object, `objectness` (B, A), `residuals` (B, T, A)."""
        head = self.layers.classification_head
        towers = [head.conv(x) for x in maps]
        logits = by_cell([head.cls_logits(x) for x in towers], self.nc)
        objects, residuals = zip(*(self.objectness(x) for x in towers), strict=True)
        found = {"logits": logits, "objectness": by_cell(objects)}
        if residuals[0] is not None:
            found["residuals"] = flatten_steps([x.movedim(2, -1) for x in residuals])  # in the order of H, W, A
        return found

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """As without; score = P(class | object) · P(object) after all steps."""
        objects = upcast(refined(raw["objectness"], raw.get("residuals"), self.shown)).sigmoid()
        scores, kept, classes = best_pairs(upcast(raw["logits"]), raw["counts"], self.most, objects)
        return boxes_at(raw, kept), scores, classes


RetinaNetDetect.with_steps = RefinedRetinaNetDetect
