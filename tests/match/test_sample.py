from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.match.sample import sample


def states(*counts: tuple[int, int, int]) -> Tensor:
    """(B, N) states, shuffled: so many positives, negatives and ignored in each image."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for positive, negative, ignored in counts:
        row = torch.tensor([POSITIVE] * positive + [NEGATIVE] * negative + [IGNORE] * ignored, dtype=torch.int8)
        rows.append(row[torch.randperm(len(row), generator=g)])
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("count", "share", "there", "taken"),
    [
        (16, 0.5, (20, 30, 10), (8, 8)),
        (16, 0.25, (20, 30, 10), (4, 12)),
        (16, 0.3, (20, 30, 10), (4, 12)),  # floor of 4.8
        (16, 0.5, (3, 47, 10), (3, 13)),  # few positives: negatives for the rest
        (16, 0.5, (0, 50, 10), (0, 16)),  # an image without labels
        (16, 0.5, (50, 2, 8), (8, 2)),  # few negatives: a smaller sample, not more positives
        (16, 0.5, (50, 0, 10), (8, 0)),
        (16, 0.5, (2, 3, 55), (2, 3)),
        (16, 0.5, (0, 0, 60), (0, 0)),
        (60, 0.5, (20, 30, 10), (20, 30)),
        (1000, 0.5, (20, 30, 10), (20, 30)),  # more than there are
        (1, 0.5, (20, 30, 10), (0, 1)),
    ],
)
def test_counts(count: int, share: float, there: tuple[int, int, int], taken: tuple[int, int]) -> None:
    state = states(there, (10, 40, 10))
    place, chosen = sample(state, count, share, generator=torch.Generator().manual_seed(0))
    assert place.shape == chosen.shape == (2, min(count, 60))
    for image in range(2):
        found = place[image][chosen[image] != IGNORE]
        assert len(set(found.tolist())) == len(found)
        assert torch.equal(state[image][found], chosen[image][chosen[image] != IGNORE])
    assert tuple(int((chosen[0] == kind).sum()) for kind in (POSITIVE, NEGATIVE)) == taken


def test_uniform() -> None:
    state = states((4, 8, 3))
    g = torch.Generator().manual_seed(0)
    seen = torch.zeros(15)
    for _ in range(3000):
        place, chosen = sample(state, 6, 0.5, generator=g)
        seen[place[0][chosen[0] != IGNORE]] += 1
    assert seen[state[0] == IGNORE].eq(0).all()
    # three of four positives and three of eight negatives; standard deviations sqrt(3000 p (1 - p)) = 24 and 27
    assert (seen[state[0] == POSITIVE] - 2250).abs().max() < 5 * 24
    assert (seen[state[0] == NEGATIVE] - 1125).abs().max() < 5 * 27


def test_the_same_generator_gives_the_same_sample() -> None:
    state = states((20, 30, 10), (5, 5, 50))
    first, again, other = (sample(state, 16, 0.5, generator=torch.Generator().manual_seed(k)) for k in (1, 1, 2))
    assert torch.equal(first.place, again.place)
    assert not torch.equal(first.place, other.place)
    assert torch.equal(state, states((20, 30, 10), (5, 5, 50)))
