from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rebalance.match import regions
from rebalance.match.regions import NOTHING_SAID, Known, RegionBatch, known, region_batch

SIZE = (48, 64)  # height, width
IMAGES = 3
CLASSES = 4


def one_image(
    boxes: list[tuple[float, ...]], classes: list[list[int]], unknown: list[bool], below: list[float] | None = None
) -> RegionBatch:
    """Regions of one image from corners in pixels of `SIZE`."""
    height, width = SIZE
    xyxy = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    xywh = torch.cat(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]), 1)
    of = torch.zeros(len(boxes), CLASSES, dtype=torch.bool)
    for row, found in enumerate(classes):
        of[row, found] = True
    count = len(boxes)
    return RegionBatch(
        torch.zeros(count).long(), xywh / torch.tensor([width, height, width, height]), of,
        torch.tensor(unknown).bool(), torch.tensor(below or [math.inf] * count), count,
    )  # fmt: skip


def random_images(seed: int, most: int = 9) -> list[RegionBatch]:
    """The second image has no region."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for count in (most, 0, 3):
        corner = torch.rand(count, 2, generator=g) * torch.tensor([50.0, 34.0])
        side = torch.rand(count, 2, generator=g) * torch.tensor([40.0, 30.0]) + 4
        boxes = torch.cat((corner, torch.minimum(corner + side, torch.tensor([64.0, 48.0]))), 1).tolist()
        classes = [row.nonzero().flatten().tolist() for row in torch.rand(count, CLASSES, generator=g) < 0.6]
        sized = torch.rand(count, generator=g) < 0.3
        below = torch.where(sized, torch.rand(count, generator=g) * 0.4, torch.inf)
        unknown = (torch.rand(count, generator=g) < 0.5).tolist()
        found.append(one_image(boxes, classes, unknown, below.tolist()))  # type: ignore[arg-type]
    return found


def random_boxes(seed: int, count: int = 300) -> Tensor:
    """Some reach out of the image or lie beside it, some have no extent."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(IMAGES, count, 2, generator=g) * 80 - 8
    half = torch.rand(IMAGES, count, 2, generator=g) ** 2 * 16
    half[:, :20] = 0
    return torch.cat((centre - half, centre + half), -1)


def slow(images: list[RegionBatch], boxes: Tensor, each: bool) -> tuple[Tensor, Tensor]:
    """The definition, by loops."""
    height, width = SIZE
    unknown, sure = (torch.zeros(*boxes.shape[:2], CLASSES, dtype=torch.bool) for _ in range(2))
    for b, one in enumerate(images):
        for n, (x1, y1, x2, y2) in enumerate(boxes[b].double().tolist()):
            left, right = (min(max(v, 0), width) for v in (x1, x2))
            top, bottom = (min(max(v, 0), height) for v in (y1, y2))
            if right - left < 1 / 32:
                middle = min(max((x1 + x2) / 2, 1 / 64), width - 1 / 64)
                left, right = middle - 1 / 64, middle + 1 / 64
            if bottom - top < 1 / 32:
                middle = min(max((y1 + y2) / 2, 1 / 64), height - 1 / 64)
                top, bottom = middle - 1 / 64, middle + 1 / 64
            area = (right - left) * (bottom - top)
            for (cx, cy, w, h), of, meaning, below in zip(
                one.boxes_xywh.double().tolist(), one.classes, one.unknown, one.below, strict=True
            ):
                over = min(right, (cx + w / 2) * width) - max(left, (cx - w / 2) * width)
                down = min(bottom, (cy + h / 2) * height) - max(top, (cy - h / 2) * height)
                if max(over, 0) * max(down, 0) < area / 2 or math.sqrt(area / (height * width)) >= below:
                    continue
                unknown[b, n, of] = bool(meaning)
                sure[b, n, of] = not meaning
    return (unknown, sure) if each else (unknown.any(-1, keepdim=True), sure.all(-1, keepdim=True))


def find(images: list[RegionBatch], boxes: Tensor, each: bool = True) -> Known:
    return known(region_batch(images), boxes, images=IMAGES, size=SIZE, each=each)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("each", [True, False])
def test_it_is_the_definition(seed: int, each: bool) -> None:
    images, boxes = random_images(seed), random_boxes(seed)
    if not each:  # so that all classes at once are sure somewhere
        images = [
            one._replace(classes=one.classes | (torch.arange(len(one.image)) % 2 == 0)[:, None]) for one in images
        ]
    found, expected = find(images, boxes, each), slow(images, boxes, each)
    for mask, right in zip(found[:2], expected[:2], strict=True):
        assert mask is not None
        assert torch.equal(mask, right)
        assert right.any()
        assert not right.all()
        assert not mask[1].any()


def test_many_regions_are_seen_a_part_of_the_candidates_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    images, boxes = random_images(5), random_boxes(5)
    whole = find(images, boxes)
    monkeypatch.setitem(regions.PAIRS, "cpu", 100)
    for mask, right in zip(find(images, boxes)[:2], whole[:2], strict=True):
        assert mask is not None
        assert right is not None
        assert torch.equal(mask, right)


def test_a_later_region_outweighs_all_earlier_ones_however_many() -> None:
    everywhere = (0.0, 0.0, 64.0, 48.0)
    for count in (40, 300):
        for last in (True, False):
            meanings = [bool(i % 2) for i in range(12)] + [not last] * (count - 13) + [last]
            one = one_image([everywhere] * count, [[1, 2]] * count, meanings)
            boxes = random_boxes(0)[:1].expand(40, -1, -1)
            with torch.autocast("cpu", dtype=torch.float16):  # in which the weights would be infinite
                found = known(region_batch([one] * 40), boxes, images=40, size=SIZE, each=True)
            assert found.unknown is not None
            assert found.sure is not None
            said, other = (found.unknown, found.sure) if last else (found.sure, found.unknown)
            assert said[..., 1:3].all()
            assert not said[..., [0, 3]].any()
            assert not other.any()


def test_of_the_whole_image_everything_is_inside_also_what_reaches_out_of_it() -> None:
    one = one_image([(0, 0, 64, 48)], [[0]], [True])
    boxes = random_boxes(1)
    boxes[:, 0] = torch.tensor([-1000.0, -1000, -900, -900])
    boxes[:, 1] = torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.inf])
    found = known(region_batch([one] * IMAGES), boxes, images=IMAGES, size=SIZE, each=True)
    assert found.unknown is not None
    assert found.unknown[..., 0].all()
    assert found.sure is None
    assert found.settled is not None
    assert not found.settled.any()


def test_anchors_are_the_same_in_every_image_and_half_precision_does_not_overflow() -> None:
    images, boxes = random_images(2), random_boxes(2)[0]
    expected = find(images, boxes.expand(IMAGES, -1, -1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = find(images, boxes.clone().requires_grad_())
    for mask, right in zip(found[:2], expected[:2], strict=True):
        assert mask is not None
        assert right is not None
        assert torch.equal(mask, right)
        assert not mask.requires_grad


def test_what_is_not_there_costs_nothing() -> None:
    none = one_image([], [], [])
    assert find([none] * IMAGES, random_boxes(0)) is NOTHING_SAID
    unknown = find([none, one_image([(0, 0, 9, 9)], [[0]], [True]), none], random_boxes(0))
    assert unknown.sure is None
    assert find([none, one_image([(0, 0, 9, 9)], [[0]], [False]), none], random_boxes(0)).unknown is None
    nobody = find([none, one_image([(0, 0, 9, 9)], [[0]], [False]), none], random_boxes(0)[:, :0]).sure
    assert nobody is not None
    assert nobody.shape == (IMAGES, 0, CLASSES)


def test_a_batch_numbers_the_regions_by_image() -> None:
    images = random_images(3)
    found = region_batch(images)
    assert found.image.tolist() == [0] * 9 + [2] * 3
    assert found.most == 9
    assert torch.equal(found.boxes_xywh[9:], images[2].boxes_xywh)
    assert (found.some_unknown, found.some_background, found.some_sized) == (True, True, True)
    plain = region_batch([one_image([(0, 0, 9, 9)], [[0]], [True])])
    assert (plain.some_unknown, plain.some_background, plain.some_sized) == (True, False, False)


def test_a_prediction_that_is_no_number_is_nowhere() -> None:
    boxes = random_boxes(0)
    boxes[:, 3] = torch.nan
    found = find([one_image([(0, 0, 64, 48)], [[0]], [True])] * IMAGES, boxes)
    assert found.unknown is not None
    assert not found.unknown[:, 3].any()
