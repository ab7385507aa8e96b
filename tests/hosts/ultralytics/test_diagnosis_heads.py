"""The diagnosis on YOLO's heads: shares of the real gradients, found by other code; losses stay as they are."""

from __future__ import annotations

import pytest
import torch
from test_regions_criterion import HEADS, Head, make, slopes
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from yolo_heads import CLASSES, SIZE

from rebalance.hosts.host import diagnosis
from rebalance.match.withheld import Withheld


def hide(made: Head) -> tuple[Withheld, list[list[tuple[int, Tensor]]]]:
    """Objects in the place of some negatives of the first branch; and of each image class and corners of each."""
    rows: list[tuple[int, int, Tensor]] = []
    for image in range(len(made.matched[0])):
        size = made.boxes[0][image, :, 2:] - made.boxes[0][image, :, :2]
        free = (~made.matched[0][image] & (size.amin(1) > 4)).nonzero().flatten()
        rows += [(image, int(i) % CLASSES, made.boxes[0][image, i]) for i in free[:: max(1, len(free) // 3)][:3]]
    boxes = box_convert(torch.stack([box for *_, box in rows]), "xyxy", "cxcywh") / SIZE
    image, label = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
    of_image = [[(c, box) for i, c, box in rows if i == n] for n in range(len(made.matched[0]))]
    return Withheld(image, label, boxes, max(map(len, of_image)), CLASSES), of_image


def at(boxes: Tensor, objects: list[list[tuple[int, Tensor]]], channels: int) -> Tensor:
    """(B, N, channels) which candidates overlap one by a half, by torchvision."""
    found = torch.zeros(*boxes.shape[:2], CLASSES, dtype=torch.bool)
    for image, own in enumerate(objects):
        for label, box in own:
            found[image, :, label] |= box_iou(boxes[image], box[None]).squeeze(1) >= 0.5
    return found if channels > 1 else found.any(-1, keepdim=True)


@pytest.mark.parametrize(("name", "head", "loss"), [row for row in HEADS if row[2] != "varifocal"])
def test_the_share_of_the_push_is_that_of_the_gradients(name: str, head: str, loss: str) -> None:
    plain, asked = make(name, head, loss), make(name, head, loss, diagnose=True)
    withheld, objects = hide(plain)
    items, about, others = slopes(plain, None)
    found_items, found_about, found_others = slopes(asked, None, withheld=withheld)
    assert torch.equal(items, found_items)
    for one, other in zip([*about, *others], [*found_about, *found_others], strict=True):
        assert torch.equal(one, other)
    told = diagnosis(asked.criterion)
    pushes, hidden_push, negatives, there = 0.0, 0.0, 0, 0
    for slope, boxes, matched in zip(about, plain.boxes, plain.matched, strict=True):
        negative = ~matched.unsqueeze(-1)
        hidden = at(boxes, objects, plain.channels) & negative
        push = slope[..., : plain.channels].clamp(min=0) * negative  # without the refinements
        pushes, hidden_push = pushes + float(push.sum()), hidden_push + float(push[hidden].sum())
        negatives, there = negatives + int(negative.sum()), there + int(hidden.any(-1).sum())
    assert there > 3
    assert told["gradient"] == pytest.approx(hidden_push / pushes, rel=1e-4)
    assert told["candidates"] == there
    assert told["rate"] == pytest.approx(there / negatives)
    assert 0 < told["loss"] < 1
    if "drop" in loss:
        assert 0 <= told["dropped_precision"] <= told["dropped_recall"] <= 1
    if "soft" in loss or "ohem" in loss:
        assert told["lowered_recall"] > 0
