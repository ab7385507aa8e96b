from __future__ import annotations

import math

import torch

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.methods.soft import soft_weights


def negatives(count: int) -> torch.Tensor:
    return torch.full((1, count), NEGATIVE, dtype=torch.int8)


def test_golden() -> None:
    # overlap 0: exp(-50) is 2e-22; 0.1: exp(-2) = 0.135335, exp(-6.766764) = 0.001151; 0.2: exp(-4) = 0.018316,
    # exp(-0.915782) = 0.400203; 1: exp(-20) is 2e-9; each times 0.75, plus 0.25
    found = soft_weights(torch.tensor([[0, 0.1, 0.2, 1]]), negatives(4))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.250864, 0.550152, 1]]), rtol=0, atol=1e-6)


def test_the_ends() -> None:
    overlap = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    at_0, at_1 = soft_weights(overlap, negatives(2), a=0.1, b=3.0, c=2.0)[0].tolist()
    assert at_0 == 0.1 + 0.9 * math.exp(-3)
    assert math.isclose(at_1, 0.1 + 0.9 * math.exp(-3 * math.exp(-2)))


def test_it_grows_with_the_overlap() -> None:
    weights = soft_weights(torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(0), negatives(101))[0]
    assert (weights.diff() >= 0).all()
    assert weights[40] > 0.98


def test_positives_count_in_full_and_ignored_not_at_all() -> None:
    state = torch.tensor([[POSITIVE, IGNORE, NEGATIVE]], dtype=torch.int8)
    assert soft_weights(torch.zeros(1, 3), state).tolist() == [[1, 0, 0.25]]
    assert soft_weights(torch.zeros(1, 3), state, a=1.0).tolist() == [[1, 0, 1]]


def test_an_image_without_labels_has_the_least_weight_everywhere() -> None:
    assert soft_weights(torch.zeros(1, 7), negatives(7)).eq(0.25).all()
