from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import torch
from torch import Tensor

from rebalance.methods.drop import COUNTS, Dropping, drop_mask
from rebalance.settings import TrainFlags


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# drop_mask ------------------------------------------------------------------------------------------------------------

RATES = (0.0, 0.01, 0.07, 0.1, 0.14, 0.25, 0.28, 0.29, 0.3, 0.5, 0.55, 0.57, 0.58, 0.7, 0.75, 0.9, 0.99, 1.0)


@pytest.mark.parametrize("rate", RATES)
def test_exactly_the_floor_is_dropped(rate: float) -> None:
    for count in (0, 1, 2, 3, 7, 10, 99, 100, 101, 1000):
        eligible = torch.zeros(1200, dtype=torch.bool)
        eligible[torch.randperm(1200, generator=seeded(count))[:count]] = True
        mask = drop_mask(eligible, rate, generator=seeded())
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == math.floor(Decimal(str(rate)) * count), (rate, count)
        assert not (mask & ~eligible).any()


def test_a_rate_is_the_decimal_it_is_written_as() -> None:
    # as floats, 0.29 * 100 is 28.999999999999996 and 0.57 * 100 is 56.99999999999999
    for rate, expected in ((0.29, 29), (0.57, 57), (0.58, 58), (1.0, 100)):
        assert int(drop_mask(torch.ones(100, dtype=torch.bool), rate, generator=seeded()).sum()) == expected


@pytest.mark.parametrize("rate", [1 / 3, 2 / 3, 0.123456789012345, 0.9999999999999999, 1e-20, 5e-324])
def test_rates_of_many_digits_do_not_overflow(rate: float) -> None:
    count = 200_001
    mask = drop_mask(torch.ones(count, dtype=torch.bool), rate, generator=seeded())
    assert int(mask.sum()) in (
        math.floor(rate * count),
        round(rate * count),
    )  # 1/3 of 200 001 is 66 667, rounded or not


def test_nothing_to_choose_from() -> None:
    for shape in ((0,), (2, 0), (0, 5), (3, 4)):
        mask = drop_mask(torch.zeros(shape, dtype=torch.bool), 1.0, generator=seeded())
        assert mask.shape == shape
        assert not mask.any()


def test_every_subset_of_its_size_is_equally_likely() -> None:
    # 2 of 5 eligible, 10 subsets, 4000 draws of one generator: 400 each. The statistic has 9 degrees of freedom; 30 is
    # passed by a fair choice in 99.96 % of the seeds, and this seed is fixed.
    eligible = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    generator, draws = seeded(1), 4000
    found: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        subset = tuple(drop_mask(eligible, 0.4, generator=generator).nonzero().flatten().tolist())
        found[subset] = found.get(subset, 0) + 1
    assert len(found) == 10
    assert all(len(subset) == 2 and eligible[list(subset)].all() for subset in found)
    assert sum((n - draws / 10) ** 2 / (draws / 10) for n in found.values()) < 30


def test_the_place_in_the_tensor_does_not_matter() -> None:
    # 200 draws of half of 400: each place is dropped 100 times, give or take 7; the halves of the tensor alike
    eligible, generator = torch.ones(4, 100, dtype=torch.bool), seeded(2)
    times = sum(drop_mask(eligible, 0.5, generator=generator).int() for _ in range(200))
    assert isinstance(times, Tensor)
    assert times.min() > 65
    assert times.max() < 135
    assert abs(times[:2].sum() - 20_000) < 600


def test_same_generator_same_choice() -> None:
    eligible = torch.rand(3, 200, generator=seeded(5)) < 0.7
    first, second = seeded(3), seeded(3)
    draws = [drop_mask(eligible, 0.3, generator=first) for _ in range(3)]
    again = [drop_mask(eligible, 0.3, generator=second) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert not torch.equal(draws[0], draws[1])  # each call draws afresh
    assert not torch.equal(draws[0], drop_mask(eligible, 0.3, generator=seeded(4)))


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    drop_mask(torch.ones(50, dtype=torch.bool), 0.5, generator=seeded())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_confident_takes_the_highest(dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -3, 7, -0.25, 0, 100, -100, 2, float("inf"), float("-inf"), -1, 1e-4]).to(dtype)
    eligible = torch.ones(12, dtype=torch.bool)
    ranked = values.argsort(descending=True)
    for count in range(13):
        mask = drop_mask(eligible, count / 12 + 1e-6 if count < 12 else 1, confidence=values)
        assert mask.nonzero().flatten().tolist() == sorted(ranked[:count].tolist()), count


def test_confident_takes_only_eligible_ones_and_breaks_ties_by_place() -> None:
    values = torch.tensor([[9.0, 1, 1, -2], [1, 5, -2, 1]])
    eligible = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    expected = [[[0, 0, 0, 0], [0, 1, 0, 0]], [[0, 1, 0, 0], [0, 1, 0, 0]], [[0, 1, 1, 0], [0, 1, 0, 0]]]
    for count, wanted in enumerate(expected, 1):
        mask = drop_mask(eligible, count / 7 + 1e-6, confidence=values)
        assert mask.int().tolist() == wanted
    assert torch.equal(drop_mask(eligible, 1.0, confidence=values), eligible)


def test_confidence_equal_everywhere_still_gives_the_exact_count() -> None:
    for value in (0.0, -0.0, 1e30, -1e30, float("inf"), float("-inf")):
        mask = drop_mask(torch.ones(10, dtype=torch.bool), 0.3, confidence=torch.full((10,), value))
        assert int(mask.sum()) == 3


def test_inputs_are_unchanged() -> None:
    eligible, confidence = torch.rand(20, generator=seeded()) < 0.5, torch.randn(20, generator=seeded())
    before = eligible.clone(), confidence.clone()
    drop_mask(eligible, 0.5, confidence=confidence)
    drop_mask(eligible, 0.5, generator=seeded())
    assert torch.equal(eligible, before[0])
    assert torch.equal(confidence, before[1])


# Dropping -------------------------------------------------------------------------------------------------------------


def dropping(*, seed: int = 0, rank: int = 0, stream: int = 0, **flags: Any) -> Dropping:
    return Dropping(TrainFlags(loss="drop", **flags), seed=seed, rank=rank, stream=stream)


class Step:
    """One step: 2 images of 400 candidates, a quarter of them matched, by 300 pairs of which a third is padding."""

    def __init__(self, seed: int = 0) -> None:
        g = seeded(seed)
        self.overlap = torch.rand(2, 400, generator=g) * 0.6
        self.overlap[0, :20] = 0.3  # exactly neg_iou is no negative
        self.confidence = torch.randn(2, 400, generator=g)
        self.pairs = torch.randint(0, 200, (3, 100), generator=g)
        self.pairs[torch.rand(3, 100, generator=g) < 1 / 3] = -1
        self.matched = torch.zeros(2, 400, dtype=torch.bool)
        self.matched.view(-1)[self.pairs[self.pairs >= 0]] = True

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.matched, self.overlap, self.confidence, self.pairs

    @property
    def low_pairs(self) -> Tensor:
        return (self.pairs >= 0) & (self.overlap.flatten()[self.pairs.clamp(min=0)] < 0.3)


@pytest.fixture
def step() -> Step:
    return Step()


@pytest.mark.parametrize("select", ["random", "confident"])
@pytest.mark.parametrize("rate", [0.29, 1.0])
@pytest.mark.parametrize("scope", ["background", "matched", "literal"])
def test_scopes(step: Step, scope: str, rate: float, select: str) -> None:
    drop = dropping(obj_drop=rate, box_drop=rate, drop_scope=scope, drop_select=select)
    obj, box = drop.draw(*step.inputs)
    low = step.overlap < 0.3
    eligible = low & (~step.matched if scope == "background" else step.matched)
    part = Decimal(str(rate))
    assert int(obj.sum()) == int(part * int(eligible.sum())) > 0
    assert not (obj & ~eligible).any()
    assert int(box.sum()) == int(part * int(step.low_pairs.sum())) > 0
    assert not (box & ~step.low_pairs).any()
    expected = (eligible.sum(), obj.sum(), step.low_pairs.sum(), box.sum())
    assert drop.counts is not None
    assert dict(zip(COUNTS, drop.counts.tolist(), strict=True)) == dict(zip(COUNTS, map(int, expected), strict=True))


@pytest.mark.parametrize("iou", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_predictions_that_overlap_a_label_are_never_dropped(step: Step, iou: float) -> None:
    obj, box = dropping(obj_drop=1.0, box_drop=1.0, neg_iou=iou).draw(*step.inputs)
    assert torch.equal(obj, ~step.matched & (step.overlap < iou))
    at_pairs = step.overlap.flatten()[step.pairs.clamp(min=0)]
    assert torch.equal(box, (step.pairs >= 0) & (at_pairs < iou))


def test_confident_drops_the_most_confident_negatives_and_matches(step: Step) -> None:
    obj, box = dropping(obj_drop=0.1, box_drop=0.5, drop_select="confident").draw(*step.inputs)
    eligible = ~step.matched & (step.overlap < 0.3)
    assert step.confidence[obj].min() >= step.confidence[eligible & ~obj].max()
    at_pairs = step.confidence.flatten()[step.pairs.clamp(min=0)]
    assert at_pairs[box].min() >= at_pairs[step.low_pairs & ~box].max()


def test_each_rate_acts_on_its_own_loss(step: Step) -> None:
    obj, box = dropping(obj_drop=0.5).draw(*step.inputs)
    assert obj.any()
    assert not box.any()
    obj, box = dropping(box_drop=0.5).draw(*step.inputs)
    assert not obj.any()
    assert box.any()


def test_on_needs_a_rate_gradients_and_the_end_of_the_warm_up() -> None:
    assert not dropping().on
    assert dropping(obj_drop=0.1).on
    assert dropping(box_drop=0.1).on
    drop = dropping(obj_drop=0.1, drop_warmup=2)
    found = []
    for epoch in range(4):
        drop.begin_epoch(epoch)
        found.append(drop.on)
    assert found == [False, False, True, True]
    with torch.no_grad():
        assert not drop.on
    with torch.inference_mode():
        assert not drop.on
    assert drop.on


def draws(drop: Dropping, steps: int) -> Iterator[Tensor]:
    """What is dropped in the next steps, as one tensor each."""
    for seed in range(steps):
        obj, box = drop.draw(*Step(seed).inputs)
        yield torch.cat((obj.flatten(), box.flatten()))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_draws_the_same_whatever_came_before(epoch: int) -> None:
    resumed = dropping(obj_drop=0.5, box_drop=0.5)
    resumed.begin_epoch(epoch)
    wanted = list(draws(resumed, 3))
    whole = dropping(obj_drop=0.5, box_drop=0.5)
    for before in range(epoch):
        whole.begin_epoch(before)
        list(draws(whole, 2 + before % 3))
    whole.begin_epoch(epoch)
    torch.manual_seed(999)  # nothing hangs on the global generator
    assert all(torch.equal(a, b) for a, b in zip(draws(whole, 3), wanted, strict=True))
    whole.begin_epoch(epoch)  # an epoch that starts again, e.g. after running out of memory
    assert all(torch.equal(a, b) for a, b in zip(draws(whole, 3), wanted, strict=True))


def test_steps_epochs_seeds_ranks_and_streams_draw_differently(step: Step) -> None:
    found = {}
    for key in ({}, {"seed": 1}, {"rank": 1}, {"stream": 1}, {"seed": 1, "rank": 1}):
        drop = dropping(obj_drop=0.5, **key)
        for epoch in (0, 1):
            drop.begin_epoch(epoch)
            for number in range(2):
                found[(*key.items(), epoch, number)] = drop.draw(*step.inputs)[0]
    names = list(found)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i] if torch.equal(found[a], found[b])]
    assert len(names) == 20
    assert pairs == []


def test_counts_add_up_over_an_epoch_and_start_again() -> None:
    drop = dropping(obj_drop=0.5, box_drop=0.25)
    assert drop.counts is None
    dropped = sum(int(mask.sum()) for mask in draws(drop, 3))
    assert drop.counts is not None
    assert drop.counts.dtype == torch.int64
    seen = drop.counts.tolist()
    assert seen[1] + seen[3] == dropped
    assert seen[0] == sum(int((~s.matched & (s.overlap < 0.3)).sum()) for s in map(Step, range(3)))
    assert seen[2] == sum(int(s.low_pairs.sum()) for s in map(Step, range(3)))
    drop.begin_epoch(1)
    assert drop.counts is None


def test_nothing_matched_and_no_candidates() -> None:
    drop = dropping(obj_drop=1.0, box_drop=1.0)
    empty = torch.zeros(2, 0)
    obj, box = drop.draw(empty.bool(), empty, empty, torch.zeros(3, 0, dtype=torch.int64))
    assert obj.shape == (2, 0)
    assert box.shape == (3, 0)
    obj, box = drop.draw(
        torch.zeros(1, 4, dtype=torch.bool), torch.zeros(1, 4), torch.zeros(1, 4), torch.full((2, 3), -1)
    )
    assert obj.all()
    assert not box.any()


def test_inputs_of_a_step_are_unchanged(step: Step) -> None:
    before = [x.clone() for x in step.inputs]
    dropping(obj_drop=0.5, box_drop=0.5, drop_select="confident").draw(*step.inputs)
    assert all(torch.equal(a, b) for a, b in zip(step.inputs, before, strict=True))
