"""Which candidates are at an object whose label was withheld.

A candidate is at an object where its box overlaps the object's by an IoU of at least a half: the measure by which
RetinaNet, SSD and Faster R-CNN match, so that it would have been positive, had the label been there. Its box is that of
its anchor where it has one, else the decoded one: YOLO's anchor-free heads match by rank among the points in a label,
which says nothing of a single candidate, and a prediction that has found an object is at it by any rule.

Shapes: B images, N candidates an image, C classes, R withheld boxes of the batch, G those of the fullest image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.boxes import PAIRS, PAIRS_ELSEWHERE, pair_iou, upcast
from rebalance.match.padded import padded_labels

SAME_OBJECT = 0.5  # IoU


class Withheld(NamedTuple):
    """The withheld boxes of a batch. What is no tensor is known without waiting for the device."""

    image: Tensor  # (R,) int64, sorted
    classes: Tensor  # (R,) int64
    boxes_xywh: Tensor  # (R, 4) centre, width, height as fractions of the network's input
    most: int  # G
    names: int  # C

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Withheld:
        """These on a device."""
        image, classes, boxes = (x.to(device, non_blocking=non_blocking) for x in self[:3])
        return Withheld(image, classes, boxes, self.most, self.names)


def withheld_batch(images: Sequence[Withheld]) -> Withheld:
    """The withheld boxes of a batch from those of each image, on the host; what `image` says there does not count."""
    counts = torch.tensor([len(one.image) for one in images])
    image = torch.arange(len(images)).repeat_interleave(counts)
    classes = torch.cat([one.classes for one in images])
    boxes = torch.cat([one.boxes_xywh for one in images])
    return Withheld(image, classes, boxes, int(counts.max()), images[0].names)


def present(withheld: Withheld, boxes: Tensor, *, images: int, size: tuple[int, int], each: bool) -> Tensor:
    """(B, N, C) bool: whether a withheld object of that class is at the candidate; (B, N, 1) of any class.

    Args:
        withheld: of the batch.
        boxes: (N, 4) corners in pixels, the same in every image, or (B, N, 4); not differentiated.
        images: B.
        size: height, width of the network's input in pixels.
        each: of each class by itself; else of all classes at once.
    """
    with torch.no_grad(), torch.autocast(boxes.device.type, enabled=False):
        boxes = upcast(boxes.detach())
        boxes = boxes.expand(images, *boxes.shape[-2:])
        channels = withheld.names if each else 1
        if not withheld.most:
            return torch.zeros(images, boxes.shape[1], channels, dtype=torch.bool, device=boxes.device)
        image, classes, xywh = withheld.to(boxes.device)[:3]
        there = padded_labels(image, classes, xywh.to(boxes.dtype), images=images, size=size, most=withheld.most)
        step = max(1, PAIRS.get(boxes.device.type, PAIRS_ELSEWHERE) // (images * withheld.most))
        parts = [part.transpose(1, 2).contiguous() for part in torch.split(boxes, step, 1)]
        same = torch.cat([pair_iou(part, there.boxes) >= SAME_OBJECT for part in parts], 2)  # (B, G, N)
        if not each:
            return same.any(1).unsqueeze(-1)
        of_class = there.classes.unsqueeze(-1) == torch.arange(channels, device=boxes.device)  # padding has no area
        return same.transpose(1, 2).to(boxes.dtype) @ of_class.to(boxes.dtype) > 0
