"""torchvision's anchors, kept from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Anchors(NamedTuple):
    """What anchors are made from: one entry a level, from fine to coarse."""

    sizes: tuple[tuple[float, ...], ...]  # side in pixels
    ratios: tuple[tuple[float, ...], ...]  # height over width

    @property
    def per_cell(self) -> int:
        """Anchors in each cell."""
        return len(self.sizes[0]) * len(self.ratios[0])

    def __call__(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, list[int]]:
        """The anchors of all levels.

        Args:
            maps: features of each level, (…, H, W).
            size: height, width of the image in pixels.

        Returns:
            (A, 4) corners in pixels, float32, in the order of the predictions, and the number of each level.
        """
        shapes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in maps)
        return _anchors(self, shapes, (int(size[0]), int(size[1])), maps[0].device)


@lru_cache(maxsize=32)
def _anchors(
    anchors: Anchors, shapes: tuple[tuple[int, int], ...], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, list[int]]:
    with torch.inference_mode(False):  # validation may be the first to ask, and training the next
        generator = AnchorGenerator(anchors.sizes, anchors.ratios)
        generator.set_cell_anchors(torch.float32, device)
        steps = [
            [torch.tensor(whole // cells, device=device) for whole, cells in zip(size, s, strict=True)] for s in shapes
        ]
        levels = generator.grid_anchors([list(shape) for shape in shapes], steps)
        return torch.cat(levels), [len(level) for level in levels]
