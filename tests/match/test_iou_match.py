"""Matching by overlap against torchvision's matchers, which look at one image at a time, and against a slow loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher, SSDMatcher
from torchvision.ops import box_iou

from rebalance.match import device
from rebalance.match import iou as module
from rebalance.match.boxes import max_iou
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.match.iou import Matched, match_by_iou
from rebalance.match.padded import Padded

Boxes = list[Tensor]  # labels of each image


def pad(images: Boxes, dtype: torch.dtype = torch.float32) -> Padded:
    most = max((len(x) for x in images), default=0)
    boxes = torch.zeros(len(images), most, 4, dtype=dtype)
    valid = torch.zeros(len(images), most, dtype=torch.bool)
    for i, x in enumerate(images):
        boxes[i, : len(x)], valid[i, : len(x)] = x, True
    return Padded(boxes, valid.long(), valid)


def grid(side: int = 100, cell: int = 10, sizes: tuple[int, ...] = (12, 24)) -> Tensor:
    """(A, 4) squares around the centres of cells: many candidates have the same overlap with a label."""
    centre = torch.arange(cell / 2, side, cell)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    xy = torch.stack((x, y), -1).view(-1, 1, 2)
    half = torch.tensor(sizes).view(1, -1, 1) / 2
    return torch.cat((xy - half, xy + half), -1).view(-1, 4)


def random_labels(count: int, g: torch.Generator) -> Tensor:
    low = torch.rand(count, 2, generator=g) * 80
    return torch.cat((low, low + 2 + torch.rand(count, 2, generator=g) * 40), -1)


def scenes() -> dict[str, Boxes]:
    g = torch.Generator().manual_seed(3)
    aligned = grid()[[3, 40, 41, 120]]  # labels that coincide with candidates, and tie
    cells = torch.tensor([[10.0, 10, 30, 30], [10, 10, 30, 30], [15, 10, 35, 30]])  # two are the same box
    return {
        "random": [random_labels(n, g) for n in (7, 1, 12, 3)],
        "some without labels": [random_labels(0, g), random_labels(5, g), random_labels(0, g), random_labels(1, g)],
        "ties": [aligned, cells, cells.flip(0)],
        "tiny": [torch.tensor([[50.0, 50, 50.5, 50.5], [11, 11, 12, 12]]), random_labels(2, g)],
        "larger than the image": [torch.tensor([[-50.0, -50, 150, 150], [0, 0, 100, 100]])],
    }


SCENES = scenes()


def theirs(matcher: Matcher, labels: Tensor, candidates: Tensor) -> Tensor:
    """torchvision's answer for one image; its RetinaNet does not ask the matcher where there is no label."""
    if len(labels) == 0:
        return torch.full((len(candidates),), Matcher.BELOW_LOW_THRESHOLD)
    found: Tensor = matcher(box_iou(labels, candidates))
    return found


def as_torchvision(found: Matched) -> Tensor:
    """(B, A) index of the label, or its numbers for negative and ignored."""
    index = found.label.where(found.state == POSITIVE, Matcher.BELOW_LOW_THRESHOLD)
    return index.where(found.state != IGNORE, Matcher.BETWEEN_THRESHOLDS)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(("high", "low"), [(0.5, 0.4), (0.7, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize("rescue", ["", "ties"])
def test_equals_torchvisions_matcher(scene: str, high: float, low: float, rescue: str) -> None:
    labels, candidates = SCENES[scene], grid()
    found = match_by_iou(candidates, pad(labels), high=high, low=low, rescue=rescue)
    matcher = Matcher(high, low, allow_low_quality_matches=bool(rescue))
    for i, image in enumerate(labels):
        if len(image) == 0:
            continue
        assert torch.equal(as_torchvision(found)[i], theirs(matcher, image, candidates)), f"image {i}"


@pytest.mark.parametrize("scene", SCENES)
def test_equals_torchvisions_ssd_matcher(scene: str) -> None:
    labels, candidates = SCENES[scene], grid()
    found = match_by_iou(candidates, pad(labels), high=0.5, low=0.5, rescue="first")
    assert not (found.state == IGNORE).any()
    for i, image in enumerate(labels):
        assert torch.equal(as_torchvision(found)[i], theirs(SSDMatcher(0.5), image, candidates)), f"image {i}"


@pytest.mark.parametrize("rescue", ["", "ties", "first"])
def test_an_image_without_labels_is_all_negative(rescue: str) -> None:
    candidates = grid()
    for labels in ([torch.zeros(0, 4)] * 2, [torch.zeros(0, 4), torch.tensor([[10.0, 10, 30, 30]])]):
        found = match_by_iou(candidates, pad(labels), high=0.5, low=0.4, rescue=rescue)
        assert found.state[0].eq(NEGATIVE).all()
        assert found.overlap[0].eq(0).all()
        assert [x.shape for x in found] == [(2, len(candidates))] * 3
        assert found.state.dtype == torch.int8
        assert found.label.dtype == torch.int64


def test_no_candidates() -> None:
    found = match_by_iou(torch.zeros(0, 4), pad(SCENES["random"]), high=0.5, low=0.4, rescue="ties")
    assert [x.shape for x in found] == [(4, 0)] * 3


@pytest.mark.parametrize("rescue", ["ties", "first"])
def test_deviation_a_label_that_nothing_overlaps_has_no_match(rescue: str) -> None:
    """torchvision matches every candidate to it (ties), or the first candidate (SSD)."""
    candidates, far = grid(), torch.tensor([[500.0, 500, 510, 510]])
    found = match_by_iou(candidates, pad([far]), high=0.5, low=0.4, rescue=rescue)
    assert found.state.eq(NEGATIVE).all()
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True) if rescue == "ties" else SSDMatcher(0.5)
    assert (theirs(matcher, far, candidates) == 0).sum() == (len(candidates) if rescue == "ties" else 1)


def test_a_label_without_area_has_no_match() -> None:
    point = torch.tensor([[50.0, 50, 50, 60], [10, 10, 30, 30]])
    found = match_by_iou(grid(), pad([point]), high=0.5, low=0.4, rescue="ties")
    assert found.label[found.state == POSITIVE].unique().tolist() == [1]


def slow(candidates: Tensor, labels: Tensor, high: float, low: float, rescue: str) -> list[tuple[int, int]]:
    """(state, label) of each candidate of one image, one pair at a time; label −1 where not positive."""
    table = box_iou(labels, candidates).tolist()
    out = []
    for a in range(len(candidates)):
        column = [row[a] for row in table]
        best = max(column, default=0.0)
        label = column.index(best) if column else -1
        positive = bool(column) and best >= high
        for g, row in enumerate(table):
            if max(row) > 0 and rescue == "ties" and row[a] == max(row):
                positive = True
            if max(row) > 0 and rescue == "first" and row.index(max(row)) == a:
                positive, label = True, g  # a later label takes it over
        out.append((POSITIVE, label) if positive else (NEGATIVE if best < low else IGNORE, -1))
    return out


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("rescue", ["", "ties", "first"])
def test_equals_the_slow_loop(scene: str, rescue: str) -> None:
    labels, candidates = SCENES[scene], grid()
    found = match_by_iou(candidates, pad(labels), high=0.5, low=0.4, rescue=rescue)
    for i, image in enumerate(labels):
        label = found.label[i].where(found.state[i] == POSITIVE, -1)
        pairs = list(zip(found.state[i].tolist(), label.tolist(), strict=True))
        assert pairs == slow(candidates, image, 0.5, 0.4, rescue), f"image {i}"


@pytest.mark.parametrize("rescue", ["", "ties", "first"])
def test_the_overlap_is_that_with_the_nearest_label(rescue: str) -> None:
    labels, candidates = pad(SCENES["some without labels"]), grid()
    found = match_by_iou(candidates, labels, high=0.5, low=0.4, rescue=rescue)
    torch.testing.assert_close(found.overlap, max_iou(candidates.expand(4, -1, -1), labels.boxes))


@pytest.mark.parametrize("rescue", ["", "ties", "first"])
def test_a_few_images_at_a_time_give_the_same(rescue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    labels = pad([random_labels(n, g) for n in (4, 0, 9, 2, 1)])
    whole = match_by_iou(grid(), labels, high=0.5, low=0.4, rescue=rescue)
    for pairs in (1, 2 * 9 * len(grid())):
        monkeypatch.setattr(module, "PAIRS", {"cpu": pairs})
        parts = match_by_iou(grid(), labels, high=0.5, low=0.4, rescue=rescue)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("rescue", ["", "ties", "first"])
def test_what_is_not_free_to_read_is_matched_alike(scene: str, rescue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = grid(), pad(SCENES[scene])
    read = match_by_iou(*given, high=0.5, low=0.4, rescue=rescue)
    monkeypatch.setattr(device, "free_to_read", lambda _: False)
    found = match_by_iou(*given, high=0.5, low=0.4, rescue=rescue)
    assert torch.equal(found.state, read.state)
    assert torch.equal(found.overlap, read.overlap)
    positive = found.state == POSITIVE
    assert torch.equal(found.label[positive], read.label[positive])


def test_candidates_of_each_image() -> None:
    """(B, A, 4): each image has its own, as proposals are."""
    labels = pad(SCENES["random"])
    g = torch.Generator().manual_seed(0)
    own = torch.stack([random_labels(30, g) for _ in range(4)])
    together = match_by_iou(own, labels, high=0.5, low=0.5)
    for i in range(4):
        alone = match_by_iou(own[i], Padded(*(x[i : i + 1] for x in labels)), high=0.5, low=0.5)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


def test_the_order_of_candidates_does_not_matter() -> None:
    order = torch.randperm(len(grid()), generator=torch.Generator().manual_seed(1))
    labels = pad(SCENES["random"])
    found = match_by_iou(grid(), labels, high=0.5, low=0.4, rescue="ties")
    shuffled = match_by_iou(grid()[order], labels, high=0.5, low=0.4, rescue="ties")
    assert all(torch.equal(a[:, order], b) for a, b in zip(found, shuffled, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_and_inputs_are_left_alone(dtype: torch.dtype) -> None:
    labels, candidates = pad(SCENES["random"], dtype), grid().to(dtype)
    before = [x.clone() for x in (*labels, candidates)]
    found = match_by_iou(candidates, labels, high=0.5, low=0.4, rescue="first")
    assert found.overlap.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, (*labels, candidates), strict=True))


def test_a_threshold_belongs_to_what_lies_above_it() -> None:
    label = pad([torch.tensor([[0.0, 0, 8, 8]])])
    candidates = torch.tensor([[0.0, 0, 8, 4], [0, 0, 8, 3], [0, 0, 4, 4], [0, 0, 4, 3]])  # IoU 1/2, 3/8, 1/4, 3/16
    found = match_by_iou(candidates, label, high=0.5, low=0.25)
    assert found.overlap.tolist() == [[0.5, 0.375, 0.25, 0.1875]]
    assert found.state.tolist() == [[POSITIVE, IGNORE, IGNORE, NEGATIVE]]
