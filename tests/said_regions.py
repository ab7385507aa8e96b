"""What a test says of the labels of images, and by other code than the product's which boxes that is about."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from yolo_heads import CLASSES, SIZE

from rebalance.match.regions import RegionBatch


def image_regions(*rows: tuple[tuple[float, float, float, float], list[int], bool]) -> RegionBatch:
    """Of one image: corners as fractions, classes, and whether they are unknown there."""
    corners = torch.tensor([row[0] for row in rows]).view(-1, 4)
    boxes = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
    classes = torch.tensor([[c in row[1] for c in range(CLASSES)] for row in rows]).view(-1, CLASSES).bool()
    unknown = torch.tensor([row[2] for row in rows]).bool()
    return RegionBatch(torch.zeros(len(rows)).long(), boxes, classes, unknown, torch.full((len(rows),), math.inf), 1)


def inside(boxes: Tensor, regions: RegionBatch, channels: int, size: int = SIZE) -> Tensor:
    """(B, N, channels): at least half of a box, as far as it is in the image, is in a region; with one channel any."""
    found = torch.zeros(*boxes.shape[:2], CLASSES, dtype=torch.bool)
    clipped = boxes.clamp(0, size)
    area = (clipped[..., 2:] - clipped[..., :2]).prod(-1)
    for image, box, classes in zip(*regions[:3], strict=True):
        x, y, w, h = (box * size).tolist()
        one = clipped[image]
        wide = one[:, 2].clamp(max=x + w / 2) - one[:, 0].clamp(min=x - w / 2)
        high = one[:, 3].clamp(max=y + h / 2) - one[:, 1].clamp(min=y - h / 2)
        there = wide.clamp(min=0) * high.clamp(min=0) >= area[image] / 2
        found[image] |= there.unsqueeze(-1) & classes
    return found if channels > 1 else found.any(-1, keepdim=True)
