from __future__ import annotations

from itertools import product

import pytest
import torch
from slow_match import slow_match
from torch import Tensor

from rebalance.heads.anchor import COCO_ANCHORS
from rebalance.match import device
from rebalance.match.anchor import Matches, match, set_in_part

STRIDES = {2: (16, 32), 3: (8, 16, 32), 4: (8, 16, 32, 64)}


def anchors_in_cells(levels: int) -> Tensor:
    strides = torch.tensor(STRIDES[levels]).view(-1, 1, 1)
    return torch.tensor(COCO_ANCHORS[levels], dtype=torch.float32).view(levels, -1, 2) / strides


def check(labels: Tensor, anchors: Tensor, shapes: list[tuple[int, int]], anchor_t: float = 4.0) -> int:
    """Compare with the slow rule, order included; return the number of matches."""
    found, expected = match(labels, anchors, shapes, anchor_t), slow_match(labels, anchors, shapes, anchor_t)
    total = 0
    for number, (level, wanted) in enumerate(zip(levels_of(found), expected, strict=True)):
        at = level.valid
        assert int(at.sum()) == len(wanted), f"level {number}"
        total += len(wanted)
        if not wanted:
            continue
        for name in ("image", "anchor", "row", "column", "candidate", "label"):
            assert getattr(level, name)[at].tolist() == [getattr(slow, name) for slow in wanted], name
        torch.testing.assert_close(level.boxes_xywh[at], torch.tensor([slow.box for slow in wanted]))
        torch.testing.assert_close(level.anchor_wh[at], torch.tensor([slow.anchor_wh for slow in wanted]))
    in_range(found, anchors, shapes)
    return total


def levels_of(found: Matches) -> list[Matches]:
    """The slots of each level."""
    assert {len(x) for x in found[:-1]} == {sum(found.sizes)}
    parts = zip(*(torch.split(x, found.sizes) for x in found[:-1]), strict=True)
    return [Matches(*part, sizes=[size]) for part, size in zip(parts, found.sizes, strict=True)]


def in_range(found: Matches, anchors: Tensor, shapes: list[tuple[int, int]]) -> None:
    """Slots that are no match may be read too: their indices are valid."""
    assert found.candidate.numel() == 0 or found.candidate.min() >= 0
    first = 0
    for level, (rows, columns) in zip(levels_of(found), shapes, strict=True):
        size = anchors.shape[1] * rows * columns
        for name, end in (("anchor", anchors.shape[1]), ("row", rows), ("column", columns)):
            assert getattr(level, name).ge(0).all()
            assert getattr(level, name).lt(end).all()
        assert level.candidate.ge(first).all()
        assert level.candidate.lt(first + size).all()
        first += size


def random_labels(count: int, *, images: int = 4, seed: int = 0) -> Tensor:
    """(T, 6) with sides from 1 % to the whole of the image, evenly on a logarithmic scale."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(images, (count, 1), generator=g).sort(0).values
    sides = 10 ** (-2 * torch.rand(count, 2, generator=g))
    return torch.cat((image, torch.randint(3, (count, 1), generator=g), torch.rand(count, 2, generator=g), sides), 1)


def at(*centres: tuple[float, float], side: float = 0.2) -> Tensor:
    return torch.tensor([[0, i, x, y, side, side] for i, (x, y) in enumerate(centres)])


def shapes_of(levels: int, height: int, width: int) -> list[tuple[int, int]]:
    return [(height // stride, width // stride) for stride in STRIDES[levels]]


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 192), (320, 64)])
def test_random_labels_on_any_shape(levels: int, height: int, width: int) -> None:
    total = check(random_labels(60, seed=levels), anchors_in_cells(levels), shapes_of(levels, height, width))
    assert total > 100


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_where_nothing_is_free_to_read_all_slots_are_kept(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_labels(60, seed=levels), anchors_in_cells(levels), shapes_of(levels, 128, 192)
    none_fits = random_labels(60)[:, [0, 1, 2, 3, 4, 4]] * torch.tensor([1, 1, 1, 1, 0, 0])
    few = match(*given)
    assert few.valid.all()
    assert check(none_fits, *given[1:]) == 0
    monkeypatch.setattr(device, "free_to_read", lambda _: False)
    whole = match(*given)
    assert whole.sizes == [15 * 60] * levels
    assert few.sizes == whole.sums(whole.valid).tolist()
    check(*given)
    assert check(none_fits, *given[1:]) == 0


def test_one_label_by_hand() -> None:
    # One level of 2 rows and 4 columns, two anchors of 1 x 1 and 4 x 4 cells. The label is 2 x 1 cells at column 1.25,
    # row 0.75: its cell is (row 0, column 1), and the nearest ones are to the left and below. It is 2 and 1 times the
    # first anchor; for the second its height is a quarter, which is no longer under 4.
    labels = torch.tensor([[7.0, 2, 1.25 / 4, 0.75 / 2, 2 / 4, 1 / 2]])
    found = match(labels, torch.tensor([[[1.0, 1], [4, 4]]]), [(2, 4)])
    assert (found.valid.tolist(), found.sizes) == ([True] * 3, [3])
    assert found.row.tolist() == [0, 0, 1]
    assert found.column.tolist() == [1, 0, 1]
    assert found.candidate.tolist() == [1, 0, 5]
    assert found.anchor.tolist() == [0, 0, 0]
    assert found.image.tolist() == [7, 7, 7]
    assert found.label.tolist() == [2, 2, 2]
    assert found.boxes_xywh.tolist() == [[0.25, 0.75, 2, 1], [1.25, 0.75, 2, 1], [0.25, -0.25, 2, 1]]
    assert found.anchor_wh.tolist() == [[1, 1]] * 3
    assert int(match(labels, torch.tensor([[[1.0, 1], [4, 4]]]), [(2, 4)], anchor_t=4.01).valid.sum()) == 6


def test_centres_on_lines_in_the_middle_and_at_the_border() -> None:
    # sixteenths of the image are exact in every grid here: on lines, in the middles and at quarters of cells
    places = [i / 16 for i in range(17)]
    labels = at(*product(places, places), side=0.25)
    check(labels, anchors_in_cells(3), [(8, 8), (4, 4), (2, 2)])
    check(labels, anchors_in_cells(3), [(8, 4), (4, 2), (2, 1)])
    check(labels, anchors_in_cells(3), [(1, 1), (1, 2), (4, 1)])


@pytest.mark.parametrize("x", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_grid_of_one_cell_has_no_neighbours(x: float) -> None:
    found = match(at((x, 0.5)), torch.ones(1, 1, 2) * 0.2, [(1, 1)])
    assert found.column[found.valid].tolist() == [0]


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        (0.0, [0, 0]),  # on the left border, which is a line: the look to the right ends in the first cell
        (0.25 / 4, [0]),  # nothing to the left
        (0.75 / 4, [0, 1]),
        (1.0 / 4, [1, 1]),  # on a line, and not more than 1 from the left border
        (1.25 / 4, [1, 0]),
        (1.5 / 4, [1]),  # in the middle there is no nearest neighbour
        (1.75 / 4, [1, 2]),
        (2.0 / 4, [2, 1, 2]),
        (3.0 / 4, [3, 2]),  # not more than 1 from the right border
        (3.75 / 4, [3]),
        (4.0 / 4, [3, 3]),  # on the right border: put into the last cell, where the look to the left ends too
    ],
)
def test_neighbours_along_a_row(x: float, columns: list[int]) -> None:
    found = match(at((x, 0.5), side=0.5), torch.ones(1, 1, 2), [(1, 4)])
    assert found.column[found.valid].tolist() == columns
    found = match(at((0.5, x), side=0.5), torch.ones(1, 1, 2), [(4, 1)])
    assert found.row[found.valid].tolist() == columns


@pytest.mark.parametrize("ratio", [0.24, 0.25, 0.2501, 1, 3.99, 4, 4.01])
def test_the_side_ratio_is_strict(ratio: float) -> None:
    for sides in ((ratio, 1.0), (1.0, ratio)):
        labels = torch.tensor([[0, 0, 0.5, 0.5, *sides]])
        fits = bool(match(labels, torch.ones(1, 1, 2), [(1, 1)], anchor_t=4).valid.any())
        assert fits == (0.25 < ratio < 4)


@pytest.mark.parametrize("side", [0.0, 1e-6, 1.0, 50.0])
def test_boxes_of_no_size_or_beyond_the_image(side: float) -> None:
    check(at((0.4, 0.6), side=side), anchors_in_cells(3), shapes_of(3, 64, 64))
    mixed = at((0.4, 0.6), side=0.5)
    mixed[:, 4] = side
    check(mixed, anchors_in_cells(3), shapes_of(3, 64, 64))


@pytest.mark.parametrize("anchor_t", [1.0, 1.01, 2.0, 100.0])
def test_other_ratios(anchor_t: float) -> None:
    check(random_labels(40), anchors_in_cells(3), shapes_of(3, 96, 96), anchor_t)


def test_no_labels() -> None:
    found = match(torch.zeros(0, 6), anchors_in_cells(3), shapes_of(3, 64, 64))
    assert (found.valid.shape, found.sizes) == ((0,), [0, 0, 0])
    assert found.boxes_xywh.shape == (0, 4)
    assert found.anchor_wh.shape == (0, 2)


def test_labels_that_share_a_cell_keep_their_order() -> None:
    labels = at((0.41, 0.42), (0.42, 0.41), (0.41, 0.42))
    assert check(labels, anchors_in_cells(3), shapes_of(3, 64, 64)) >= 9


def test_inputs_are_unchanged_and_labels_have_no_gradient() -> None:
    labels, anchors = random_labels(20), anchors_in_cells(3)
    before = labels.clone(), anchors.clone()
    found = match(labels, anchors, shapes_of(3, 64, 64))
    assert torch.equal(labels, before[0])
    assert torch.equal(anchors, before[1])
    assert not found.boxes_xywh.requires_grad


def test_what_validation_saw_serves_training() -> None:
    # shapes that only validation has seen so far: tensors made in inference mode cannot enter a gradient
    shapes = [(3, 5), (2, 3), (1, 2)]
    with torch.inference_mode():
        match(random_labels(5), anchors_in_cells(3), shapes)
    found = match(random_labels(5), anchors_in_cells(3), shapes)
    scale = torch.ones(4, requires_grad=True)
    (scale * found.boxes_xywh).sum().backward()
    (scale[:2] * found.anchor_wh).sum().backward()
    assert scale.grad is not None
    check(random_labels(5), anchors_in_cells(3), shapes)


def test_double_precision_labels() -> None:
    labels = random_labels(20)
    found = match(labels.double(), anchors_in_cells(3), shapes_of(3, 64, 64))
    assert found.boxes_xywh.dtype == torch.float64
    single = match(labels, anchors_in_cells(3), shapes_of(3, 64, 64))
    assert torch.equal(found.valid, single.valid)
    assert torch.equal(found.candidate, single.candidate)


def test_what_each_slot_sets_on_average_by_hand() -> None:
    # the last slot sets; a loose one is missing in a quarter of the cases, then the one before it sets
    place = torch.tensor([7, 3, 7, 3, 5, 7, 9, 9])
    loose = torch.tensor([True, False, False, True, True, True, True, True])
    # 7: of loose, firm, loose the first never; 3: firm, loose; 5: loose alone; 9: loose, loose
    expected = [0, 0.25, 0.25, 0.75, 0.75, 0.75, 0.25 * 0.75, 0.75]
    torch.testing.assert_close(set_in_part(place, loose, 0.25), torch.tensor(expected))


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_what_each_slot_sets_on_average_is_the_mean_over_all_that_may_be_missing(part: float) -> None:
    g = torch.Generator().manual_seed(0)
    place, loose = torch.randint(4, (11,), generator=g), torch.rand(11, generator=g) < 0.6
    expected = torch.zeros(11)
    for missing in product((False, True), repeat=int(loose.sum())):
        chance = torch.tensor([part if gone else 1 - part for gone in missing]).prod()
        there = ~loose
        there[loose] = ~torch.tensor(missing)
        last = {int(place[slot]): slot for slot in there.nonzero().flatten().tolist()}
        expected[list(last.values())] += chance
    torch.testing.assert_close(set_in_part(place, loose, torch.tensor(part)), expected)
    assert set_in_part(place[:0], loose[:0], part).shape == (0,)
