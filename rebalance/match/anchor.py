"""Label assignment of the YOLOv5 anchor head.

Shapes: B images, T labels in the batch, L levels, M anchors a level, N = sum over levels of M·H·W candidates an image.
A candidate is an (anchor, row, column) of a level; candidates are numbered level by level, anchor, row, column.

A label goes to every anchor whose sides are within a factor `anchor_t` of its own, at the cell that holds its centre
and at the nearest cell across, and the nearest above or below (offset 0.5): up to 5 slots for each (level, anchor,
label). All slots are kept, level by level, with a flag that says which are real: their number depends on shapes alone,
so nothing is read back from the device; on a CPU only the real ones are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match import device
from rebalance.match.device import places

# own cell, then left, up, right, down: (column, row) steps, in YOLOv5's order
NEIGHBOURS = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))


class Matches(NamedTuple):
    """S slots of (candidate, label) pairs, level by level: 5·M·T of each, or on a CPU those that are matches."""

    valid: Tensor  # (S,) bool: the slot is a match; the other fields mean nothing where False, but stay in range
    image: Tensor  # (S,) int64
    anchor: Tensor  # (S,) int64 in [0, M)
    row: Tensor  # (S,) int64
    column: Tensor  # (S,) int64
    candidate: Tensor  # (S,) int64 in [0, N)
    label: Tensor  # (S,) int64 class
    boxes_xywh: Tensor  # (S, 4) label in cells of its level, centre relative to the candidate's cell
    anchor_wh: Tensor  # (S, 2) anchor width, height in cells
    sizes: list[int]  # slots of each level

    def sums(self, x: Tensor) -> Tensor:
        """(L,) sums over the slots (S,) of each level."""
        return torch.stack([level.sum() for level in torch.split(x, self.sizes)])


class _Grid(NamedTuple):
    """What depends on the shapes of the levels alone."""

    size: Tensor  # (L, 1, 2) columns and rows
    last: Tensor  # (L, 2) int64 the last of them
    first: Tensor  # (L, M) int64 an anchor's first candidate
    columns: Tensor  # (L,) int64
    half_step: Tensor  # (5, 2) half a step to each neighbour


@lru_cache(maxsize=64)  # a copy from the host to the device would wait for the device at every step
def _grid(shapes: tuple[tuple[int, int], ...], per_level: int, device: torch.device, dtype: torch.dtype) -> _Grid:
    size = torch.tensor([[w, h] for h, w in shapes], device=device)
    starts = torch.tensor([0, *(per_level * h * w for h, w in shapes[:-1])], device=device).cumsum(0)
    first = starts.unsqueeze(1) + torch.arange(per_level, device=device) * size.prod(1, keepdim=True)
    half_step = torch.tensor(NEIGHBOURS, device=device, dtype=dtype) / 2
    return _Grid(size.to(dtype).unsqueeze(1), size - 1, first, size[:, 0], half_step)


def match(labels: Tensor, anchors: Tensor, shapes: Sequence[tuple[int, int]], anchor_t: float = 4.0) -> Matches:
    """Match labels to the candidates of all levels at once.

    Args:
        labels: (T, 6) image, class, centre x, centre y, width, height; boxes in fractions of the image.
        anchors: (L, M, 2) width, height in cells of the level.
        shapes: (rows, columns) of each level.
        anchor_t: an anchor fits a label when both side ratios lie strictly between 1/anchor_t and anchor_t.
    """
    anchors = anchors.to(labels.dtype)
    grid = _grid(tuple(shapes), anchors.shape[1], labels.device, labels.dtype)

    xy, wh = labels[:, 2:4] * grid.size, labels[:, 4:6] * grid.size  # (L, T, 2) in cells
    ratio = wh[:, None] / anchors[:, :, None]  # (L, M, T, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(-1) < anchor_t

    border = torch.cat((xy, grid.size - xy), -1)  # (L, T, 4) distance from the near borders, then from the far ones
    near = (border % 1 < 0.5) & (border > 1)  # that half of its cell, and there is a cell across
    side = torch.cat((torch.ones_like(near[..., :1]), near), -1)  # (L, T, 5) as NEIGHBOURS
    valid, sizes, (level, way, anchor, label) = _slots(side.transpose(1, 2)[:, :, None] & fits[:, None])

    xy, wh = xy[level, label], wh[level, label]  # (S, 2)
    cell = (xy + grid.half_step[way]).long().clamp_(min=0)  # half a step crosses into the neighbour
    cell = torch.minimum(cell, grid.last[level])
    column, row = cell.unbind(1)
    return Matches(
        valid=valid,
        image=labels[label, 0].long(),
        anchor=anchor,
        row=row,
        column=column,
        candidate=grid.first[level, anchor] + (row * grid.columns[level] + column),
        label=labels[label, 1].long(),
        boxes_xywh=torch.cat((xy - cell, wh), 1),
        anchor_wh=anchors[level, anchor],
        sizes=sizes,
    )


def _slots(valid: Tensor) -> tuple[Tensor, list[int], tuple[Tensor, ...]]:
    """(S,) which slots are matches, S of each level, and where in (L, 5, M, T) each is.

    Most are none: where their number is free to read, only those that are stay.
    """
    if device.free_to_read(valid):
        place, sizes = places(valid.flatten()), valid.flatten(1).sum(1).tolist()
    else:
        place = torch.arange(valid.numel(), device=valid.device)
        sizes = [math.prod(valid.shape[1:])] * len(valid)
    return valid.flatten()[place], sizes, torch.unravel_index(place, valid.shape)


def set_in_part(place: Tensor, loose: Tensor, part: float | Tensor) -> Tensor:
    """By how much each slot sets the target of its candidate, where the last slot of a candidate sets it.

    A loose slot is there but in part: what is missing is set by the slot before it.

    Args:
        place: (K,) int64 candidate of each slot, in the order of slots.
        loose: (K,) bool.
        part: of a loose slot that is missing, in [0, 1].

    Returns:
        (K,) in [0, 1]; over the slots of a candidate they add up to 1, or to less where all are loose.
    """
    order = len(place) - 1 - place.flip(0).argsort(stable=True)  # a candidate's slots side by side, the last first
    place, loose = place[order], loose[order]
    first = torch.ones_like(loose)
    first[1:] = place[1:] != place[:-1]

    def before(counted: Tensor) -> Tensor:
        """(K,) how many come before, of the same candidate."""
        total = counted.cumsum(0) - counted.long()
        return total - torch.where(first, total, 0).cummax(0).values

    share = torch.where(loose, 1 - part, 1.0) * part ** before(loose)
    share = share.where(before(~loose) == 0, 0)
    return torch.empty_like(share).scatter_(0, order, share)
