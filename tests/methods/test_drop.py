from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rebalance.hosts import SITES
from rebalance.match.candidates import POSITIVE
from rebalance.methods.drop import KEYS, Drop, drop_mask
from rebalance.methods.method import Choice, Predictions, Run


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


@pytest.mark.parametrize("keys", ["random", "many equal", "all equal", "one end"])
@pytest.mark.parametrize("rate", [0.001, 0.29, 0.75, 1.0])
def test_on_a_cpu_the_choice_is_that_of_a_stable_sort(monkeypatch: pytest.MonkeyPatch, keys: str, rate: float) -> None:
    drawn = torch.randint(KEYS, (5000,), dtype=torch.int32, generator=seeded())
    if keys == "many equal":
        drawn = drawn // (KEYS // 7) * (KEYS // 7)
    elif keys != "random":  # where no guess holds
        drawn = torch.full_like(drawn, KEYS // 2) if keys == "all equal" else drawn // 1000
    monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn)
    eligible = torch.rand(5000, generator=seeded(1)) < 0.9
    order = torch.where(eligible, drawn, KEYS).argsort(stable=True)
    expected = torch.zeros(5000, dtype=torch.bool)
    expected[order[: math.floor(Decimal(str(rate)) * int(eligible.sum()))]] = True
    assert torch.equal(drop_mask(eligible, rate), expected)


def test_on_a_cpu_only_some_keys_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    partition = np.partition
    monkeypatch.setattr(np, "partition", lambda x, place: sizes.append(x.size) or partition(x, place))
    monkeypatch.setattr(Tensor, "argsort", None)
    for seed in range(20):
        drop_mask(torch.ones(50_000, dtype=torch.bool), 0.75, generator=seeded(seed))
    assert len(sizes) == 20
    assert max(sizes) < 2_500


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


# Drop -----------------------------------------------------------------------------------------------------------------


def choose(step: Step, epoch: int = 0, **flags: Any) -> Choice:
    """What one training step of an epoch chooses."""
    run = Run(SITES["anchor"])
    run.epoch = epoch
    found = Drop(**flags).choose(step.predictions, run)
    assert found is not None
    return found


class Step:
    """One step: 2 images of 400 candidates, a quarter of them matched, by 300 pairs of which a third is padding."""

    def __init__(self, seed: int = 0) -> None:
        g = seeded(seed)
        self.overlap = torch.rand(2, 400, generator=g) * 0.6
        self.overlap[0, :20] = 0.3  # exactly neg_iou is no negative
        self.confidence = torch.randn(2, 400, generator=g)
        self.pairs = torch.randint(0, 200, (3, 100), generator=g)
        self.pairs[torch.rand(3, 100, generator=g) < 1 / 3] = -1
        self.own = torch.rand(3, 100, generator=g) * 0.6  # of padding too, which means nothing
        self.matched = torch.zeros(2, 400, dtype=torch.bool)
        self.matched.view(-1)[self.pairs[self.pairs >= 0]] = True

    @property
    def predictions(self) -> Predictions:
        state = self.matched.to(torch.int8) * POSITIVE
        given = (self.confidence, self.own, self.pairs)
        return Predictions(state, self.overlap.lt, *(lambda x=x: x for x in given))  # type: ignore[misc]

    @property
    def low_pairs(self) -> Tensor:
        return (self.pairs >= 0) & (self.overlap.flatten()[self.pairs.clamp(min=0)] < 0.3)


@pytest.fixture
def step() -> Step:
    return Step()


@pytest.mark.parametrize(
    ("scope", "rate", "select"),
    [("background", 0.29, "random"), ("matched", 1.0, "random"), ("literal", 0.29, "confident"),
     ("background", 1.0, "confident"), ("matched", 0.29, "confident"), ("literal", 1.0, "random")],
)  # fmt: skip
def test_scopes(step: Step, scope: str, rate: float, select: str) -> None:
    found = choose(step, obj_drop=rate, box_drop=rate, drop_scope=scope, drop_select=select)
    literal = scope == "literal"
    obj, other = (found.unset, found.left) if literal else (found.left, found.unset)
    low = step.overlap < 0.3
    eligible = low & (~step.matched if scope == "background" else step.matched)
    low_pairs = step.low_pairs
    if literal:
        eligible = low_pairs = (step.pairs >= 0) & (step.own < 0.3)
    part = Decimal(str(rate))
    assert other is None
    assert found.background is None
    assert obj is not None
    assert found.box is not None
    assert int(obj.sum()) == int(part * int(eligible.sum())) > 0
    assert not (obj & ~eligible).any()
    assert int(found.box.sum()) == int(part * int(low_pairs.sum())) > 0
    assert not (found.box & ~low_pairs).any()
    assert found.matched == (scope != "background")
    assert found.counts is not None
    expected = (eligible.sum(), obj.sum(), low_pairs.sum(), found.box.sum())
    assert dict(zip(Drop.counted, found.counts.tolist(), strict=True)) == {
        "negatives": int(expected[0]), "obj_dropped": int(expected[1]), "low_iou_matches": int(expected[2]),
        "box_dropped": int(expected[3]),
    }  # fmt: skip


@pytest.mark.parametrize("iou", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_predictions_that_overlap_a_label_are_never_dropped(step: Step, iou: float) -> None:
    found = choose(step, obj_drop=1.0, box_drop=1.0, neg_iou=iou)
    assert found.left is not None
    assert torch.equal(found.left, ~step.matched & (step.overlap < iou))
    at_pairs = step.overlap.flatten()[step.pairs.clamp(min=0)]
    assert found.box is not None
    assert torch.equal(found.box, (step.pairs >= 0) & (at_pairs < iou))


def test_confident_drops_the_most_confident_negatives_and_matches(step: Step) -> None:
    found = choose(step, obj_drop=0.1, box_drop=0.5, drop_select="confident")
    eligible = ~step.matched & (step.overlap < 0.3)
    assert found.left is not None
    assert found.box is not None
    assert step.confidence[found.left].min() >= step.confidence[eligible & ~found.left].max()
    at_pairs = step.confidence.flatten()[step.pairs.clamp(min=0)]
    assert at_pairs[found.box].min() >= at_pairs[step.low_pairs & ~found.box].max()


def test_each_rate_acts_on_its_own_loss(step: Step) -> None:
    found = choose(step, obj_drop=0.5)
    assert found.left is not None
    assert found.left.any()
    assert found.box is None
    found = choose(step, box_drop=0.5)
    assert found.left is None
    assert found.box is not None
    assert found.box.any()


@pytest.mark.parametrize("scope", ["background", "matched", "literal"])
def test_the_control_chooses_all_in_part_and_counts_what_is_left_on_average(step: Step, scope: str) -> None:
    flags = {"obj_drop": 0.75, "box_drop": 0.1, "drop_scope": scope, "drop_select": "weight"}
    found, all_ = (
        choose(step, **flags),
        choose(step, **{**flags, "obj_drop": 1, "box_drop": 1, "drop_select": "random"}),
    )
    given = (("left", "unset", "background"), found.rest, 0.75), (("box",), found.box_rest, 0.1)
    for names, rest, rate in given:
        masks = [(getattr(found, name), getattr(all_, name)) for name in names if getattr(all_, name) is not None]
        assert len(masks) == 1
        assert torch.equal(*masks[0])
        count = int(masks[0][0].sum())
        assert rate * count % 1 != 0, "the sample should tell the floor from the fraction"
        assert rest is not None
        assert rest.loss == 1 - rate
        assert float(rest.divisor) == pytest.approx(1 - math.floor(rate * count) / count)
    assert found.counts is not None
    assert found.counts.tolist()[1::2] == [0, 0]


@pytest.mark.parametrize("divisor", ["kept", "host"])
def test_the_divisor_is_handed_on(step: Step, divisor: str) -> None:
    assert choose(step, obj_drop=0.5, drop_divisor=divisor).kept == (divisor == "kept")


def test_dropping_needs_a_rate_gradients_and_the_end_of_the_warm_up(step: Step) -> None:
    def chooses(epoch: int, **flags: Any) -> bool:
        run = Run(SITES["anchor"])
        run.epoch = epoch
        return Drop(**flags).choose(step.predictions, run) is not None

    assert not chooses(0)
    assert chooses(0, obj_drop=0.1)
    assert chooses(0, box_drop=0.1)
    assert [chooses(epoch, obj_drop=0.1, drop_warmup=2) for epoch in range(4)] == [False, False, True, True]
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert not chooses(5, obj_drop=0.1)


def test_nothing_matched_and_no_candidates() -> None:
    def chosen(shape: tuple[int, ...], pairs: tuple[int, ...]) -> Choice:
        made = Step()
        made.matched, made.overlap = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
        made.confidence, made.pairs, made.own = torch.zeros(shape), torch.full(pairs, -1), torch.zeros(pairs)
        return choose(made, obj_drop=1.0, box_drop=1.0)

    empty, unmatched = chosen((2, 0), (3, 0)), chosen((1, 4), (2, 3))
    assert empty.left is not None
    assert empty.left.shape == (2, 0)
    assert empty.box is not None
    assert empty.box.shape == (3, 0)
    assert unmatched.left is not None
    assert unmatched.left.all()
    assert unmatched.box is not None
    assert not unmatched.box.any()


def test_inputs_of_a_step_are_unchanged(step: Step) -> None:
    kept = (step.matched, step.overlap, step.confidence, step.own, step.pairs)
    before = [x.clone() for x in kept]
    choose(step, obj_drop=0.5, box_drop=0.5, drop_select="confident")
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
