from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rebalance.methods.bce import bce
from rebalance.methods.ghm import ghm_weights


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def all_of(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def slow(logits: Tensor, targets: Tensor, bins: int, regions: str) -> Tensor:
    """Weight of each element: N / (elements in its bin · bins that divide), counted one by one."""
    norms = [abs(1 / (1 + math.exp(-x)) - y) for x, y in zip(logits.tolist(), targets.tolist(), strict=True)]
    places = [min(int(g * bins), bins - 1) for g in norms]
    divided = bins if regions == "all" else len(set(places))
    return torch.tensor([len(places) / (places.count(place) * divided) for place in places], dtype=logits.dtype)


# Five negatives with gradient norms 0.1, 0.1, 0.2, 0.6 and a positive with 1 - 0.1 = 0.9; the sixth is not counted.
# Four bins of width 0.25: three elements, none, one, one. N = 5.
LOGITS = torch.tensor([logit(0.1), logit(0.1), logit(0.2), logit(0.6), logit(0.1), logit(0.9)])
TARGETS = torch.tensor([0.0, 0, 0, 0, 1, 0])
COUNTED = torch.tensor([True, True, True, True, True, False])


def test_golden_numbers() -> None:
    # all: 5 / (3 · 4) = 0.416667 and 5 / (1 · 4) = 1.25; one bin is empty
    weights, average = ghm_weights(LOGITS, TARGETS, COUNTED, bins=4)
    torch.testing.assert_close(weights, torch.tensor([0.416667, 0.416667, 0.416667, 1.25, 1.25, 0]))
    assert average.tolist() == [3, 0, 1, 1]
    # occupied: 5 / (3 · 3) = 0.555556 and 5 / 3 = 1.666667; their mean over the five is 1
    weights, _ = ghm_weights(LOGITS, TARGETS, COUNTED, bins=4, regions="occupied")
    torch.testing.assert_close(weights, torch.tensor([0.555556, 0.555556, 0.555556, 1.666667, 1.666667, 0]))


def test_the_moving_average() -> None:
    # 0.75 · (8, 4, 0, 0) + 0.25 · (3, 0, 1, 1) = (6.75, 3, 0.25, 0.25); 5 / (6.75 · 4) = 0.185185, 5 / (0.25 · 4) = 5
    before = torch.tensor([8.0, 4, 0, 0])
    weights, average = ghm_weights(LOGITS, TARGETS, COUNTED, bins=4, momentum=0.75, average=before)
    assert average.tolist() == [6.75, 3, 0.25, 0.25]
    torch.testing.assert_close(weights, torch.tensor([0.185185, 0.185185, 0.185185, 5, 5, 0]))
    assert before.tolist() == [8, 4, 0, 0]
    # occupied are the three bins of this batch, not the fourth, of the past: 5 / (6.75 · 3), 5 / (0.25 · 3)
    weights, _ = ghm_weights(LOGITS, TARGETS, COUNTED, bins=4, regions="occupied", average=before)
    torch.testing.assert_close(weights, torch.tensor([0.246914, 0.246914, 0.246914, 6.666667, 6.666667, 0]))
    _, forgets = ghm_weights(LOGITS, TARGETS, COUNTED, bins=4, momentum=0.0, average=before)
    assert forgets.tolist() == [3, 0, 1, 1]


@pytest.mark.parametrize("regions", ["all", "occupied"])
def test_parts_that_count_together_weigh_as_the_whole(regions: str) -> None:
    before = torch.tensor([8.0, 4, 0, 0])
    given = {"bins": 4, "regions": regions, "average": before}
    whole, average = ghm_weights(LOGITS, TARGETS, COUNTED, **given)
    halves = [(LOGITS[half], TARGETS[half], COUNTED[half]) for half in (slice(2), slice(2, 6))]
    counts: list[Tensor] = []
    for half in halves:
        ghm_weights(*half, **given, summed=lambda count: counts.append(count) or count)
    parts = [ghm_weights(*half, **given, summed=lambda _: counts[0] + counts[1]) for half in halves]
    torch.testing.assert_close(torch.cat([weights for weights, _ in parts]), whole)
    assert [found.tolist() for _, found in parts] == [average.tolist()] * 2


@pytest.mark.parametrize("regions", ["all", "occupied"])
@pytest.mark.parametrize("bins", [1, 3, 30])
def test_a_slow_reference(bins: int, regions: str) -> None:
    g = torch.Generator().manual_seed(bins)
    logits = torch.randn(200, generator=g, dtype=torch.float64) * 3
    targets = torch.rand(200, generator=g, dtype=torch.float64)
    weights, _ = ghm_weights(logits, targets, all_of(logits), bins=bins, regions=regions)
    torch.testing.assert_close(weights, slow(logits, targets, bins, regions))
    assert weights.sum().item() == pytest.approx(200) if regions == "occupied" else weights.sum().item() <= 200.001


def test_every_occupied_bin_has_the_same_total() -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 2
    weights, average = ghm_weights(logits, torch.zeros(3000), all_of(logits), bins=10)
    totals = torch.zeros(10).index_add_(0, (logits.sigmoid() * 10).long(), weights)
    torch.testing.assert_close(
        totals[average > 0], torch.full_like(totals[average > 0], 300), rtol=1e-4, atol=0
    )  # N / M


def test_one_bin_is_bce() -> None:
    logits, targets = torch.tensor([-2.0, 0.5, 3]), torch.tensor([0.0, 0.3, 1])
    weights, _ = ghm_weights(logits, targets, all_of(logits), bins=1)
    assert torch.equal(weights * bce(logits, targets), bce(logits, targets))


def test_the_ends_of_the_range_have_a_bin() -> None:
    # g = 0 in the first bin, g = 1 in the last one
    weights, average = ghm_weights(
        torch.tensor([-120.0, 120.0]), torch.zeros(2), torch.ones(2, dtype=torch.bool), bins=5
    )
    assert average.tolist() == [1, 0, 0, 0, 1]
    assert weights.isfinite().all()


@pytest.mark.parametrize("regions", ["all", "occupied"])
def test_nothing_counted(regions: str) -> None:
    logits = torch.zeros(2, 3)
    weights, average = ghm_weights(logits, logits, torch.zeros(2, 1, dtype=torch.bool), bins=4, regions=regions)
    assert weights.eq(0).all()
    assert average.tolist() == [0, 0, 0, 0]
    weights, average = ghm_weights(
        torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool), average=average[:1]
    )
    assert weights.shape == (0,)


def test_no_gradient_and_half_precision() -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    weights, average = ghm_weights(logits, torch.zeros(9), all_of(logits))
    assert not weights.requires_grad
    assert not average.requires_grad
    assert weights.dtype == average.dtype == torch.float32
