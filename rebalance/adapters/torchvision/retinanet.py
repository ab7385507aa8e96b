"""RetinaNet: torchvision's layers, anchors and matching; the loss is ours, for the whole batch at once.

Lin et al. 2017, "Focal Loss for Dense Object Detection".
Shapes: B images, A anchors, C classes, G labels of the fullest image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead

from rebalance.adapters.torchvision.anchors import Anchors
from rebalance.adapters.torchvision.criterion import DenseCriterion
from rebalance.adapters.torchvision.head import Raw, TorchvisionHead, best_pairs
from rebalance.boxes import decode_deltas, upcast
from rebalance.config import TrainFlags
from rebalance.targets.iou import Matched, match_by_iou
from rebalance.targets.labels import Padded

POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4  # from 0.5 on positive, below 0.4 negative, ignored in between


class RetinaNetDetect(TorchvisionHead):
    """torchvision's RetinaNet head with its anchors."""

    host = "retinanet"

    def __init__(self, layers: RetinaNetHead, anchors: Anchors, nc: int, stride: int = 32, most: int = 1000) -> None:
        """Build the head.

        Args:
            layers: torchvision's classification and regression towers.
            anchors: of all levels.
            nc: classes.
            stride: images are padded to multiples of it; 32 as in torchvision. Coarser levels round their cells up.
            most: pairs of anchor and class that each level keeps for non-maximum suppression.
        """
        super().__init__(nc, stride)
        self.layers, self.anchors_of, self.most = layers, anchors, most

    def predict(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Raw:
        """`logits` (B, A, C), `deltas` (B, A, 4), `anchors` (A, 4) in pixels, `counts` anchors of each level."""
        maps = list(features.values())
        found = self.layers(maps)
        anchors, counts = self.anchors_of(maps, size)
        return {
            "logits": found["cls_logits"], "deltas": found["bbox_regression"], "anchors": anchors, "counts": counts,
            "size": size,
        }  # fmt: skip

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of the best pairs of each level."""
        logits, kept, classes = best_pairs(raw["logits"], raw["counts"], self.most)
        # at least float32: half precision knows pixels beyond 512 by halves only
        deltas = upcast(raw["deltas"].gather(1, kept.unsqueeze(-1).expand(-1, -1, 4)))
        return decode_deltas(deltas, raw["anchors"][kept]), logits.sigmoid(), classes

    def class_rows(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """The last layer of the classification tower: (anchors · C, …)."""
        per_cell = self.layers.classification_head.num_anchors

        def rows(x: Tensor, kept: Tensor) -> Tensor:
            return x.view(per_cell, -1, *x.shape[1:])[:, kept].flatten(0, 1)

        return dict.fromkeys((f"layers.classification_head.cls_logits.{k}" for k in ("weight", "bias")), rows)

    def build_criterion(self, flags: TrainFlags, seed: int) -> Any:
        """The loss of RetinaNet with our methods."""
        return RetinaNetCriterion(flags=flags, seed=seed)


class RetinaNetCriterion(DenseCriterion):
    """Focal loss or one of our methods on the class scores of all anchors, L1 on the offsets of the positives.

    Positive is an anchor with an IoU of at least 0.5 with its nearest label, or the best of a label; below 0.4 it is
    negative, in between it is ignored. With `loss=brl` a negative below `brl_iou` is confused, by the same overlap.
    """

    place = "retinanet"
    by_default = "image"

    def match(self, anchors: Tensor, labels: Padded) -> Matched:
        """torchvision's matcher."""
        return match_by_iou(anchors, labels, high=POSITIVE_IOU, low=NEGATIVE_IOU, rescue="ties")

    def box_loss(self, deltas: Tensor, targets: Tensor) -> Tensor:
        """(B, A) L1, summed over the four offsets."""
        return (deltas - targets).abs().sum(-1)

    def class_targets(self, logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
        """(B, A, C) 1 for the class of a positive."""
        return torch.zeros_like(logits).scatter_(2, classes.unsqueeze(-1), positive.unsqueeze(-1).to(logits.dtype))
