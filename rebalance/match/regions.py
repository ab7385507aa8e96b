"""What is known about the labels where a candidate lies.

A region is a box of an image with a set of classes and a meaning: in it these classes were not labelled (*unknown*), or
it was looked at and holds none of them (*background*). Of an image's regions a later one outweighs an earlier one.

A candidate is inside where at least half of its own area is, as far as that is in the image: by intersection over
*foreground*, as COCO has it for crowds, so that a large region can hold a small candidate. What has no extent in the
image is where its centre is.

Shapes: B images, N candidates an image, C classes, R regions of the batch, G regions of the fullest image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.boxes import PAIRS, PAIRS_ELSEWHERE, pair_intersection, upcast, xywh_to_xyxy
from rebalance.match.candidates import every

INSIDE = 0.5  # of a candidate's own area
POINT = 1 / 64  # pixels, half a side of a candidate without extent
EXPONENT = 126  # of the largest power of two that float32 holds, less one


class RegionBatch(NamedTuple):
    """The regions of a batch. What is no tensor is known without waiting for the device."""

    image: Tensor  # (R,) int64, sorted
    boxes_xywh: Tensor  # (R, 4) centre, width, height as fractions of the network's input
    classes: Tensor  # (R, C) bool
    unknown: Tensor  # (R,) bool: in it these classes were not labelled; else it is background of them
    # (R,) it is about candidates of a size (square root of the area in it) below this, as a fraction of the square root
    # of the input's area; inf: about all
    below: Tensor
    most: int  # G
    some_unknown: bool = True  # whether any is unknown
    some_background: bool = True  # whether any is background
    some_sized: bool = True  # whether any is about small candidates alone

    def to(self, device: torch.device, *, non_blocking: bool = False) -> RegionBatch:
        """These on a device."""
        moved = (x.to(device, non_blocking=non_blocking) if isinstance(x, Tensor) else x for x in self)
        return RegionBatch(*moved)  # type: ignore[arg-type]


def region_batch(images: Sequence[RegionBatch]) -> RegionBatch:
    """Regions of a batch from those of each image, on the host; what `image` says there does not count."""
    counts = torch.tensor([len(one.image) for one in images])
    image = torch.arange(len(images)).repeat_interleave(counts)
    boxes, classes, unknown, below = (torch.cat(x) for x in list(zip(*images, strict=True))[1:5])
    return RegionBatch(
        image, boxes, classes, unknown, below, int(counts.max()), bool(unknown.any()), not bool(unknown.all()),
        bool(below.isfinite().any()),
    )  # fmt: skip


class Known(NamedTuple):
    """What is said of the channels of each candidate: of each class, or with one channel of all classes at once."""

    unknown: Tensor | None = None  # (B, N, 1 or C) bool; all at once: that any class is unknown. None: nowhere
    sure: Tensor | None = None  # (B, N, 1 or C) bool: background; all at once: of every class. None: nowhere
    # (B, N, 1 or C) bool: an object whose label was withheld, see `match.withheld`; None: nobody asks
    hidden: Tensor | None = None

    @property
    def settled(self) -> Tensor | None:
        """(B, N) bool: in all channels a negative there is unknown or sure, so that nothing is left to choose."""
        parts = [x for x in self[:2] if x is not None]
        if not parts:
            return None
        return every(parts[0] if len(parts) == 1 else parts[0] | parts[1])

    def ignored(self, positive: Tensor) -> Tensor | None:
        """(B, N, 1 or C) bool: what is no candidate, by which (B, N) are matched; None: nothing."""
        return None if self.unknown is None else self.unknown & ~positive.unsqueeze(-1)


NOTHING_SAID = Known()


def known(regions: RegionBatch, boxes: Tensor, *, images: int, size: tuple[int, int], each: bool) -> Known:
    """What the regions say of candidates; labels have no say in it.

    Args:
        regions: of the batch.
        boxes: (N, 4) corners in pixels, the same in every image, or (B, N, 4); not differentiated.
        images: B.
        size: height, width of the network's input in pixels.
        each: of each class by itself; else of all classes at once.

    Returns:
        `unknown` and `sure`, which exclude each other.
    """
    if not regions.most:
        return NOTHING_SAID
    with torch.no_grad(), torch.autocast(boxes.device.type, enabled=False):
        regions = regions.to(boxes.device)
        boxes = upcast(boxes.detach())
        corners, limit, weight = _padded(regions, images, size, boxes.dtype)
        visible = _visible(boxes.expand(images, *boxes.shape[-2:]), size)  # (B, 4, N)
        step = max(1, PAIRS.get(boxes.device.type, PAIRS_ELSEWHERE) // (images * regions.most))
        parts = [_said(part, corners, limit, weight, regions, each) for part in torch.split(visible, step, 2)]
        found = (None if masks[0] is None else torch.cat(masks, 1) for masks in zip(*parts, strict=True))
        return Known(*found)


def _padded(
    regions: RegionBatch, images: int, size: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, G, 4) corners in pixels, (B, G, 1) area that a candidate is below, (B, G, C) weights; zeros are padding.

    A weight is positive for unknown and negative for background, and a power of two so large that the weights of all
    earlier regions of the image do not reach it: the sign of the sum is the meaning of the last.
    """
    image, (height, width) = regions.image, size
    x, y, w, h = regions.boxes_xywh.to(dtype).unbind(1)
    first = torch.searchsorted(image, torch.arange(images, device=image.device))[image]
    place = image, torch.arange(len(image), device=image.device) - first
    corners = x.new_zeros(images, regions.most, 4)
    corners[place] = xywh_to_xyxy(torch.stack((x * width, y * height, w * width, h * height), 1))
    limit = x.new_zeros(images, regions.most, 1)
    limit[place] = (regions.below.to(dtype) ** 2 * (width * height)).unsqueeze(1)

    turns = torch.zeros_like(image)  # regions of one meaning in a row need not outweigh each other
    turns[1:] = regions.unknown[1:] != regions.unknown[:-1]
    turns = turns.cumsum(0)
    bits = regions.most.bit_length()
    power = (turns - turns[first]).clamp(max=(EXPONENT - bits) // bits) * bits
    signed = torch.where(regions.unknown, 1.0, -1.0) * 2.0**power
    weight = signed.new_zeros(images, regions.most, regions.classes.shape[1])
    weight[place] = regions.classes * signed.unsqueeze(1)
    return corners, limit, weight


def _visible(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 4, N) of (B, N, 4) what is in the image, at least a point of it."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    sides = []
    for low, high, end in ((x1, x2, size[1]), (y1, y2, size[0])):
        centre = ((low + high) / 2).clamp(POINT, end - POINT)
        low, high = low.clamp(0, end), high.clamp(0, end)
        thin = high - low < 2 * POINT
        sides.append((torch.where(thin, centre - POINT, low), torch.where(thin, centre + POINT, high)))
    (x1, x2), (y1, y2) = sides
    return torch.stack((x1, y1, x2, y2), 1)


def _said(boxes: Tensor, corners: Tensor, limit: Tensor, weight: Tensor, regions: RegionBatch, each: bool) -> Known:
    """What is said of some candidates (B, 4, A); see `_padded`."""
    inter, area, _ = pair_intersection(boxes, corners)
    inside = inter >= area * INSIDE
    if regions.some_sized:
        inside &= area < limit
    inside = inside.to(weight.dtype)
    # of all at once the highest says both: unknown where any is, sure where all are
    sums = inside.mT @ weight if each else (weight.mT @ inside).amax(1).unsqueeze(-1)  # (B, A, 1 or C)
    return Known(sums > 0 if regions.some_unknown else None, sums < 0 if regions.some_background else None)
