"""Boxes of labels as corners, in fractions of the image: an IoU is the same in them as in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rebalance.data.labels import Labels

Boxes = NDArray[np.float64]  # (n, 4) left, top, right, bottom as fractions of the image


def xyxy(found: Labels) -> Boxes:
    """Boxes of labels as fractions."""
    return found.boxes_xyxy(1, 1)


def xywh(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners (..., 4) as centre and size."""
    low, high = box[..., :2], box[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def iou(one: Boxes, other: Boxes) -> NDArray[np.float64]:
    """IoU of boxes (..., 4), pair by pair; one that is inside out has no area."""
    area = [np.maximum(box[..., 2:] - box[..., :2], 0).prod(-1) for box in (one, other)]
    inside = np.maximum(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0).prod(-1)
    found: NDArray[np.float64] = inside / np.maximum(area[0] + area[1] - inside, 1e-300)
    return found


def held(one: Boxes, other: Boxes) -> NDArray[np.float64]:
    """The share of each first box (..., 4) that is in the second, pair by pair; 0 of one without area."""
    inside = np.maximum(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0).prod(-1)
    found: NDArray[np.float64] = inside / np.maximum((one[..., 2:] - one[..., :2]).prod(-1), 1e-300)
    return found
