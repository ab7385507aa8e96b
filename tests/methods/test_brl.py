"""Golden numbers stand with the method; general properties are in test_battery.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.methods.brl import brl, confusion
from rebalance.methods.focal import focal


def random(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits; targets, a third above 0; half of the others confused."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.rand(shape, generator=g, dtype=torch.float64) * (torch.rand(shape, generator=g) < 0.3)
    confused = (targets == 0) & (torch.rand(shape, generator=g) < 0.5)
    return torch.randn(shape, generator=g, dtype=torch.float64) * 3, targets, confused


def slow(x: float, y: float, confused: bool, t: float, weight: float, beta: float, gamma: float, alpha: float) -> float:
    """Equation 2, one element at a time."""
    p = 1 / (1 + math.exp(-x))
    if not confused:
        entropy = -y * math.log(p) - (1 - y) * math.log(1 - p)
        return (alpha * y + (1 - alpha) * (1 - y)) * abs(p - y) ** gamma * entropy
    p_t = 1 - p
    if p_t > t:
        return weight * -(1 - alpha) * (1 - p_t) ** gamma * math.log(p_t)
    return weight * beta * -(1 - alpha) * p_t**gamma * math.log(1 - p_t)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.25, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_a_slow_reference(t: float, beta: float) -> None:
    settings = {"t": t, "weight": 0.3, "beta": beta, "gamma": 1.5, "alpha": 0.4}
    logits, targets, confused = random(60)
    values = zip(logits.tolist(), targets.tolist(), confused.tolist(), strict=True)
    expected = torch.tensor([slow(*value, **settings) for value in values], dtype=torch.float64)
    torch.testing.assert_close(brl(logits, targets, confused, **settings), expected)


@pytest.mark.parametrize("settings", [{"t": 0.0, "weight": 1.0}, {"t": 0.0, "weight": 1.0, "beta": 0.3, "alpha": -1.0}])
def test_neutral_is_focal_to_the_last_bit(settings: dict[str, Any]) -> None:
    logits, targets, confused = random(80)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = brl(ours, targets, confused, **settings)
    expected = focal(theirs, targets, alpha=settings.get("alpha", 0.25))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-14, atol=1e-300)


def test_without_confusion_it_is_focal() -> None:
    logits, targets, confused = random(80)
    torch.testing.assert_close(brl(logits, targets, torch.zeros_like(confused)), focal(logits, targets))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.7])
def test_the_gradient_changes_sign_at_the_threshold(t: float) -> None:
    # x where the confidence in background is t; below it, the mirrored branch raises the score instead of lowering it
    threshold = math.log((1 - t) / t)
    for x, sign in ((threshold - 1e-3, 1), (threshold + 1e-3, -1), (threshold - 3, 1), (threshold + 3, -1)):
        logit = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        brl(logit, torch.zeros(1), torch.tensor([True]), t=t).sum().backward()
        assert logit.grad is not None
        assert logit.grad.sign().item() == sign


@pytest.mark.parametrize(("t", "continuous"), [(0.5, True), (0.25, False), (0.7, False)])
def test_the_value_is_continuous_at_one_half_only(t: float, continuous: bool) -> None:
    threshold = math.log((1 - t) / t)
    logits = torch.tensor([threshold - 1e-7, threshold + 1e-7], dtype=torch.float64)
    below, above = brl(logits, torch.zeros(2), torch.tensor([True, True]), t=t, weight=1.0).tolist()
    assert (abs(below - above) < 1e-6) == continuous


def test_the_threshold_itself_belongs_to_the_mirrored_branch() -> None:
    logit = torch.zeros(1, requires_grad=True)  # p_t = 0.5 = t
    brl(logit, torch.zeros(1), torch.tensor([True])).sum().backward()
    assert logit.grad is not None
    assert logit.grad.item() < 0


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_at_extreme_logits_on_both_branches(t: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([-100, -20, 0, 20, 100]).to(dtype).requires_grad_()
    loss = brl(logits, torch.zeros(5), torch.ones(5, dtype=torch.bool), t=t)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_one_state_for_all_classes_of_a_candidate() -> None:
    logits, targets, _ = random(2, 5, 3)
    confused = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool).unsqueeze(-1)
    targets = targets.masked_fill(confused, 0)
    assert torch.equal(brl(logits, targets, confused), brl(logits, targets, confused.expand(2, 5, 3)))


def test_confusion_is_of_far_negatives_only() -> None:
    state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE, IGNORE]], dtype=torch.int8)
    overlap = torch.tensor([[0.0, 0.0, 0.0999, 0.1, 0.0]])
    assert confusion(state, overlap, 0.1).tolist() == [[False, True, True, False, False]]
    assert not confusion(state, overlap, 0.0).any()


def test_in_an_image_without_labels_every_candidate_is_confused() -> None:
    assert confusion(torch.full((1, 9), NEGATIVE, dtype=torch.int8), torch.zeros(1, 9), 0.1).all()
