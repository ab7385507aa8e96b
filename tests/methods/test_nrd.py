from __future__ import annotations

import pytest
import torch

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.methods.nrd import nrd_mask


def states(count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (3, count), generator=g).to(torch.int8)


@pytest.mark.parametrize(
    ("rate", "negatives", "dropped"),
    [(0, 8, 0), (0.75, 8, 6), (0.75, 7, 5), (0.29, 100, 29), (1, 5, 5), (0.75, 1, 0), (0.75, 0, 0)],
)
def test_exactly_the_floor(rate: float, negatives: int, dropped: int) -> None:
    state = torch.tensor([NEGATIVE] * negatives + [POSITIVE] * 4 + [IGNORE] * 3, dtype=torch.int8)
    mask = nrd_mask(state, rate, generator=torch.Generator().manual_seed(1))
    assert int(mask.sum()) == dropped
    assert not mask[negatives:].any()


def test_over_the_whole_batch_and_never_positive_or_ignored() -> None:
    state = states(50)
    mask = nrd_mask(state, 0.5, generator=torch.Generator().manual_seed(0))
    assert int(mask.sum()) == int((state == NEGATIVE).sum()) // 2
    assert not mask[state != NEGATIVE].any()


def test_every_negative_has_the_same_chance() -> None:
    g, state = torch.Generator().manual_seed(0), states(20)
    counts = sum(nrd_mask(state, 0.75, generator=g).double() for _ in range(2000))
    assert isinstance(counts, torch.Tensor)
    negatives = int((state == NEGATIVE).sum())
    expected = 2000 * (negatives * 3 // 4) / negatives
    # the standard deviation of a count is sqrt(2000 * 0.75 * 0.25) = 19
    assert (counts[state == NEGATIVE] - expected).abs().max() < 5 * 19


def test_the_same_generator_gives_the_same_mask_and_another_another() -> None:
    state = states(50)
    first, again, other = (nrd_mask(state, 0.5, generator=torch.Generator().manual_seed(k)) for k in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
