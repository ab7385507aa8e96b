"""Unknown and verified regions in the losses of torchvision's detectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_diagnosis_torchvision import CLASSES, IMAGES, LABELS, SIZE, made, step
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from rebalance.hosts.torchvision import faster_rcnn
from rebalance.match.candidates import NEGATIVE, POSITIVE
from rebalance.match.regions import RegionBatch, region_batch

Row = tuple[tuple[float, float, float, float], list[int], bool]  # corners as fractions, classes, whether unknown


def regions(*images: list[Row]) -> RegionBatch:
    found = []
    for rows in images:
        corners = torch.tensor([row[0] for row in rows]).view(-1, 4)
        classes = torch.tensor([[c in row[1] for c in range(CLASSES)] for row in rows]).view(-1, CLASSES).bool()
        unknown = torch.tensor([row[2] for row in rows]).bool()
        n, boxes = len(rows), box_convert(corners, "xyxy", "cxcywh")
        found.append(RegionBatch(torch.zeros(n).long(), boxes, classes, unknown, torch.full((n,), math.inf), n))
    return region_batch(found)


# Class 1 in the right half of the first image, both in the lower half of the second
UNKNOWN = regions([((0.5, 0, 1, 1), [1], True)], [((0, 0.5, 1, 1), [0, 1], True)])


def inside(boxes: Tensor, each: bool) -> Tensor:
    """(B, N, C) or (B, N, 1): at least half of what is in the image of a box is in a region, by loops."""
    found = torch.zeros(IMAGES, len(boxes), CLASSES, dtype=torch.bool)
    clipped = boxes.clamp(0, SIZE)
    area = (clipped[:, 2:] - clipped[:, :2]).prod(1)
    for image, xywh, classes in zip(UNKNOWN.image, UNKNOWN.boxes_xywh, UNKNOWN.classes, strict=True):
        x1, y1, x2, y2 = box_convert(xywh * SIZE, "cxcywh", "xyxy")
        wide = (clipped[:, 2].clamp(max=x2) - clipped[:, 0].clamp(min=x1)).clamp(min=0)
        high = (clipped[:, 3].clamp(max=y2) - clipped[:, 1].clamp(min=y1)).clamp(min=0)
        found[image] |= (wide * high >= area / 2).unsqueeze(-1) & classes
    return found if each else found.any(-1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "flags", "key", "each"),
    [
        ("retinanet_tiny", {"loss": "focal", "divisor": "batch"}, "logits", True),
        ("retinanet_tiny", {"loss": "brl"}, "logits", True),
        ("retinanet_tiny", {"head": "obj", "loss": "bce"}, "objectness", False),
        ("retinanet_tiny", {"head": "resobj", "loss": "bce"}, "objectness", False),
        ("ssd_tiny", {"loss": "bce"}, "logits", False),
        ("ssd_tiny", {"head": "sigmoid", "loss": "focal"}, "logits", True),
        ("fasterrcnn_tiny", {"head": "obj", "loss": "bce"}, "logits", False),
    ],
)
def test_the_gradient_is_zero_where_it_is_unknown_and_as_ever_elsewhere(
    name: str, flags: dict[str, Any], key: str, each: bool
) -> None:
    slopes = []
    for more in ({"regions": UNKNOWN}, {}):
        _, _, raw = step(made(name, **flags), **more)
        slopes.append(raw[key].grad)
    found, plain = (x if x.dim() == 3 else x.unsqueeze(-1) for x in slopes)
    out = inside(raw["anchors"], each)
    labels = [box_convert(LABELS["bboxes"][LABELS["batch_idx"] == i] * SIZE, "cxcywh", "xyxy") for i in range(IMAGES)]
    free = torch.stack([box_iou(raw["anchors"], box).amax(1) < 0.2 for box in labels]).unsqueeze(-1)  # surely unmatched
    gone = (out & free).expand_as(found)
    assert gone.any()
    assert found[gone].eq(0).all()
    assert plain[gone].ne(0).any()
    rest = ~out.expand_as(found)
    torch.testing.assert_close(found[rest], plain[rest], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", ["bce", "ohem"])
def test_what_is_unknown_is_neither_sampled_nor_mined(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = regions([((0, 0, 1, 1), [0], True)], [((0, 0, 1, 1), [0, 1], True)])
    model = made("fasterrcnn_tiny", loss=loss)
    _, _, plain = step(model)
    assert plain["logits"].grad.ne(0).sum() > 20
    drawn: list[Tensor] = []

    def noted(call: Any) -> Any:
        def sample(*args: Any, **more: Any) -> Any:
            found = call(*args, **more)
            drawn.append(found.state)
            return found

        return sample

    model = made("fasterrcnn_tiny", loss=loss)
    monkeypatch.setattr(faster_rcnn, "sample", noted(faster_rcnn.sample))
    monkeypatch.setattr(model.criterion, "_hardest", noted(model.criterion._hardest))
    _, _, raw = step(model, regions=whole)
    assert len(drawn) == 2  # of the RPN, of the RoI head
    assert all((state == POSITIVE).any() and not (state == NEGATIVE).any() for state in drawn)
    labels = [box_convert(LABELS["bboxes"][LABELS["batch_idx"] == i] * SIZE, "cxcywh", "xyxy") for i in range(IMAGES)]
    near = torch.stack([box_iou(raw["anchors"], box).amax(1) for box in labels])
    touched = raw["logits"].grad.ne(0)
    assert touched.any()
    assert near[touched].min() > 0.3  # the matched ones alone


def test_a_verified_negative_is_not_recalibrated() -> None:
    verified = regions([((0, 0, 1, 1), [0, 1], False)], [((0, 0, 1, 1), [1], False)])
    slopes = []
    for loss, more in (("brl", {"regions": verified}), ("brl", {}), ("focal", {})):
        _, _, raw = step(made("retinanet_tiny", loss=loss, divisor="batch"), **more)
        slopes.append(raw["logits"].grad)
    ours, brl, focal = slopes
    assert torch.equal(ours[0], focal[0])
    assert torch.equal(ours[1][:, 1], focal[1][:, 1])
    assert torch.equal(ours[1][:, 0], brl[1][:, 0])
    assert not torch.equal(brl[0], focal[0])
