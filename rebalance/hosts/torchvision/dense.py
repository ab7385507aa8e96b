"""The losses of torchvision's dense detectors, called the way Ultralytics calls a criterion.

Shapes: B images, A candidates, C classes, G labels of the fullest image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from ultralytics.utils import RANK

from rebalance.hosts.torchvision.head import Raw, take
from rebalance.match.boxes import decode_deltas, encode_deltas, max_iou, upcast
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.match.iou import Matched
from rebalance.match.padded import Padded, padded_labels
from rebalance.methods.composition import Composition
from rebalance.methods.divisor import divided_by
from rebalance.methods.drop import Dropping
from rebalance.methods.resolve import divisor_of
from rebalance.settings import TrainFlags

# (image, candidate, class) elements of a part of the loss on a CPU: temporaries of 4 MiB stay in the cache
ELEMENTS = 2**20

Batch = dict[str, Any]
Result = tuple[Tensor, dict[str, Tensor]]


def labels_of(batch: Batch, images: int, size: tuple[int, int], device: torch.device) -> Padded:
    """The labels of Ultralytics' batch, image by image."""
    return padded_labels(
        batch["batch_idx"].to(device).view(-1), batch["cls"].to(device).view(-1),
        batch["bboxes"].to(device).view(-1, 4).float(),
        images=images, size=size, most=batch.get("most_labels"),
    )  # fmt: skip


def drop(dropping: Dropping, boxes: Tensor, labels: Padded, state: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """(B, A) what leaves the classification (objectness) loss, and the box loss, by the overlap of the decoded boxes.

    Args:
        dropping: that is on.
        boxes: (B, A, 4) decoded.
        labels: of the batch.
        state: (B, A) int8; what is ignored takes no part anyway and is not counted as dropped.
        confidence: (B, A), any monotone scale.
    """
    overlap = max_iou(boxes, labels.boxes).masked_fill(state == IGNORE, 1)
    return dropping.draw(state == POSITIVE, overlap, confidence)


class DenseCriterion(ABC):
    """One classification and one box loss over all anchors of the batch.

    The overlap that a method asks for is that of the anchor; a prediction is dropped by the overlap of its decoded box.
    """

    place: str  # key of rebalance.methods.registry.PLACES
    by_default: str  # what divisor=host means here
    scale = (1.0, 1.0)  # of the offsets
    softmax = False  # whether the first channel is background, and the targets of a candidate one class
    divisors: ClassVar = {
        "image": "positives of each image, mean over images",
        "batch": "positives of the batch",
        "candidates": "candidates of the batch times classes",
    }

    def __init__(self, *, flags: TrainFlags, seed: int) -> None:
        """Start at epoch 0.

        Args:
            flags: training flags.
            seed: of the run.
        """
        self.flags = flags
        divisor = divisor_of(flags, self.place)
        self.divisor = self.by_default if divisor == "host" else divisor
        self.dropping = Dropping(flags, seed=seed, rank=max(RANK, 0))
        self.composition = Composition(flags, softmax=self.softmax)

    @abstractmethod
    def match(self, anchors: Tensor, labels: Padded) -> Matched:
        """What each anchor is matched to."""

    @abstractmethod
    def class_targets(self, logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
        """What a candidate's targets are (see `Candidates`), from (B, A) classes and which are positive."""

    @abstractmethod
    def box_loss(self, deltas: Tensor, targets: Tensor) -> Tensor:
        """(B, A) loss of the offsets (B, A, 4)."""

    def __call__(self, preds: Any, batch: Batch) -> Result:
        """Loss of one batch.

        Args:
            preds: the head's raw predictions; in validation a pair (decoded, raw).
            batch: `batch_idx` (T,) sorted, `cls` (T, 1), `bboxes` (T, 4) centre, width, height as fractions; optionally
                `most_labels`, the number of labels of the fullest image.

        Returns:
            (2,) classification and box loss times B, and the same without B, detached, by name.
        """
        raw: Raw = preds[1] if isinstance(preds, tuple) else preds
        logits, deltas, anchors = upcast(raw["logits"]), upcast(raw["deltas"]), raw["anchors"]
        labels = labels_of(batch, len(logits), raw["size"], logits.device)
        matched = self.match(anchors, labels)
        positive = matched.state == POSITIVE
        gt_boxes, classes = of_label(labels, matched.label)

        obj_dropped, in_box_loss = None, positive
        if self.dropping.on:
            boxes = decode_deltas(deltas.detach(), anchors, self.scale)
            confidence = self.confidence(logits.detach())
            obj_dropped, box_dropped = drop(self.dropping, boxes, labels, matched.state, confidence)
            in_box_loss = positive & ~box_dropped
        cls = self._classification(logits, classes, matched, obj_dropped if self.flags.obj_drop > 0 else None)
        box = self._box(deltas, gt_boxes, anchors, positive, in_box_loss)
        loss = torch.stack((cls, box))
        items = dict(zip(("cls_loss", "box_loss"), loss.detach(), strict=True))
        return loss * len(logits), items

    def confidence(self, logits: Tensor) -> Tensor:
        """(B, A) how sure a prediction is to be an object, on any monotone scale."""
        return logits.amax(-1)

    def _classification(self, logits: Tensor, classes: Tensor, matched: Matched, dropped: Tensor | None) -> Tensor:
        state, positive = matched.state, matched.state == POSITIVE
        trained, left = positive, dropped
        if dropped is not None and self.flags.drop_scope == "literal":  # it becomes background
            state, trained, left = state.masked_fill(dropped, NEGATIVE), positive & ~dropped, None
        loss = torch.cat(
            [self._of_images(*part) for part in self._parts(logits, classes, trained, state, matched.overlap)]
        )  # (B, A)
        if left is not None:
            loss = loss.masked_fill(left, 0)
        channels = 1 if self.softmax else logits.shape[-1]
        count = divided_by(self.divisor, positive, dropped, self.flags, channels, ignored=state == IGNORE)
        return (loss.sum(1) / count).sum()

    def _of_images(self, logits: Tensor, classes: Tensor, positive: Tensor, state: Tensor, overlap: Tensor) -> Tensor:
        """(B, A) classification loss."""
        targets = self.class_targets(logits, classes, positive)
        return self.composition(Candidates(logits, targets, state, overlap)).sum(-1)

    def _parts(self, logits: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
        """A few images at a time where that is faster, as long as the loss of an image does not depend on others."""
        step = len(logits)
        if logits.device.type == "cpu" and self.composition.by_image:
            step = max(1, ELEMENTS // max(1, logits[:1].numel()))
        return zip(*(torch.split(x, step) for x in (logits, *others)), strict=True)

    def _box(self, deltas: Tensor, gt_boxes: Tensor, anchors: Tensor, positive: Tensor, chosen: Tensor) -> Tensor:
        # of what is no match, any box with an area, so that no gradient is lost in an infinity
        target = encode_deltas(torch.where(chosen.unsqueeze(-1), gt_boxes, anchors), anchors, self.scale)
        loss = torch.where(chosen, self.box_loss(deltas, target), 0)
        counted = chosen if self.flags.drop_divisor == "kept" else positive
        divisor = self.by_default if self.divisor == "candidates" else self.divisor
        return (loss.sum(1) / divided_by(divisor, counted, None, self.flags, 1)).sum()


def of_label(labels: Padded, index: Tensor) -> tuple[Tensor, Tensor]:
    """(B, A, 4) boxes and (B, A) classes of the labels that `index` (B, A) points to; zeros where there is none."""
    if labels.classes.shape[1] == 0:
        return labels.boxes.new_zeros(*index.shape, 4), torch.zeros_like(index)
    return take(labels.boxes, index), labels.classes.gather(1, index)
