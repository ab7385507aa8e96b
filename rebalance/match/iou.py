"""Matching by overlap, as RetinaNet, SSD, the RPN and the RoI head do, for all images of a batch.

Shapes: B images, A candidates (anchors or proposals), G labels of the fullest image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match import device
from rebalance.match.boxes import pair_iou, upcast
from rebalance.match.candidates import NEGATIVE, POSITIVE
from rebalance.match.device import places
from rebalance.match.padded import Padded

# (label, candidate) pairs compared at a time, as whole images
PAIRS = {"cpu": 2**20}
PAIRS_ELSEWHERE = 2**26


class Matched(NamedTuple):
    """What each candidate is matched to."""

    state: Tensor  # (B, A) int8, see `rebalance.match.candidates`
    label: Tensor  # (B, A) int64 in [0, G): the label it is matched to where POSITIVE, else any
    overlap: Tensor  # (B, A) in [0, 1] IoU with the nearest label; 0 where the image has none


def match_by_iou(candidates: Tensor, labels: Padded, *, high: float, low: float, rescue: str = "") -> Matched:
    """POSITIVE from an IoU of `high` on with the nearest label, NEGATIVE below `low`, IGNORE in between.

    A label that no candidate overlaps is left without one; torchvision would then match all candidates to it.

    Args:
        candidates: (A, 4), the same in every image, or (B, A, 4).
        labels: of the batch, in the same unit.
        high: least IoU of a match, over 0.
        low: at most `high`.
        rescue: what else is a match: "" nothing; "ties": of each label all candidates of highest IoU, matched to
            their own nearest label (RetinaNet, RPN); "first": of each label the first such, matched to that label, of
            several such labels the last (SSD).
    """
    boxes, gt_boxes = upcast(candidates.detach()), upcast(labels.boxes)
    b, g = gt_boxes.shape[:2]
    a = boxes.shape[-2]
    if g == 0 or a == 0:
        negative = torch.full((b, a), NEGATIVE, dtype=torch.int8, device=boxes.device)
        return Matched(negative, negative.long(), boxes.new_zeros(b, a))
    # the long dimension innermost; shared anchors are not copied
    boxes = boxes.transpose(-2, -1).contiguous().expand(b, -1, -1)
    step = max(1, PAIRS.get(boxes.device.type, PAIRS_ELSEWHERE) // (a * g))
    parts = [_match(boxes[i : i + step], gt_boxes[i : i + step], high, low, rescue) for i in range(0, b, step)]
    return parts[0] if len(parts) == 1 else Matched(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _match(boxes: Tensor, gt_boxes: Tensor, high: float, low: float, rescue: str) -> Matched:
    iou = pair_iou(boxes, gt_boxes)  # (B, G, A); padding has no area, so its IoU is 0, which matches nothing
    overlap = iou.amax(1)
    positive = overlap >= high
    if rescue == "ties":
        best = iou.amax(2, keepdim=True)
        _set_any(positive, iou == best.where(best > 0, 2))
    label = _nearest(iou, overlap, positive)
    if rescue == "first":
        best, first = iou.max(2)  # (B, G)
        place = first.where(best > 0, iou.shape[2])
        order = torch.arange(first.shape[1], device=first.device).expand_as(first)
        owner = label.new_full((len(label), iou.shape[2] + 1), -1).scatter_reduce_(1, place, order, "amax")[:, :-1]
        positive |= owner >= 0
        label = torch.where(owner >= 0, owner, label)
    state = (overlap < low).to(torch.int8) - 1  # NEGATIVE is 0, IGNORE is -1
    return Matched(state.masked_fill_(positive, POSITIVE), label, overlap)


def _nearest(iou: Tensor, overlap: Tensor, positive: Tensor) -> Tensor:
    """(B, A) the first label of a candidate's `overlap`; where that is free to read of the positive alone, else 0."""
    if device.free_to_read(iou):
        place, label = places(positive), torch.zeros(positive.shape, dtype=torch.int64)
        candidates = iou.shape[2]
        own = iou[place.div(candidates, rounding_mode="floor"), :, place % candidates]  # (K, G)
        label.view(-1)[place] = torch.from_numpy(own.numpy().argmax(1))  # NumPy's is the first
        return label
    # `max` finds it too, at twenty times the cost
    back = torch.arange(iou.shape[1], 0, -1, device=iou.device, dtype=iou.dtype).unsqueeze(1)
    return (iou.shape[1] - torch.where(iou == overlap.unsqueeze(1), back, 1).amax(1)).long()


def _set_any(mask: Tensor, pairs: Tensor) -> None:
    """Set (B, A) where any label of (B, G, A) is."""
    if not device.free_to_read(pairs):
        mask |= pairs.any(1)
        return
    place, (labels, candidates) = places(pairs), pairs.shape[1:]
    mask.view(-1)[place.div(labels * candidates, rounding_mode="floor") * candidates + place % candidates] = True
