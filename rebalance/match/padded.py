"""The labels of a batch, image by image.

Shapes: B images, T labels in the batch, G labels of the fullest image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.boxes import xywh_to_xyxy


class Padded(NamedTuple):
    """Labels by image; padding is a box without area, of class 0."""

    boxes: Tensor  # (B, G, 4) corners in pixels
    classes: Tensor  # (B, G) int64
    valid: Tensor  # (B, G) bool, False where padding


def padded_labels(
    image: Tensor, classes: Tensor, xywh: Tensor, *, images: int, size: tuple[int, int], most: int | None = None
) -> Padded:
    """Sort the labels of a batch by image.

    Args:
        image: (T,) index of each label's image, sorted.
        classes: (T,).
        xywh: (T, 4) centre, width, height as fractions of the image.
        images: B.
        size: height, width of the image in pixels.
        most: G; None: counted, which on a GPU waits for the device.
    """
    boxes, place = padded_boxes(image, xywh, images=images, size=size, most=most)
    found = place[0].new_zeros(boxes.shape[:2])
    found[place] = classes.long()
    valid = torch.zeros_like(found, dtype=torch.bool)
    valid[place] = True
    return Padded(boxes, found, valid)


def padded_boxes(
    image: Tensor, xywh: Tensor, *, images: int, size: tuple[int, int], most: int | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The boxes of `padded_labels` alone, and where each label stands in them."""
    image = image.long()
    if most is None:
        most = int(image.bincount(minlength=1).max()) if len(image) else 0
    first = torch.searchsorted(image, torch.arange(images, device=image.device))
    place = image, torch.arange(len(image), device=image.device) - first[image]
    height, width = size
    x, y, w, h = xywh.unbind(1)
    boxes = xywh.new_zeros(images, most, 4)
    boxes[place] = xywh_to_xyxy(torch.stack((x * width, y * height, w * width, h * height), 1))
    return boxes, place
