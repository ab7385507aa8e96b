"""Golden numbers stand with the method; general properties are in test_battery.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

import rebalance.methods.focal as module
from rebalance.match import device
from rebalance.methods.bce import bce
from rebalance.methods.focal import focal


def random(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64) * 3, torch.rand(shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 8.0])
@pytest.mark.parametrize("alpha", [0.25, 0.75, 0.0, 1.0, -1.0])
def test_torchvision_s_on_targets_0_and_1_in_value_and_gradient(gamma: float, alpha: float) -> None:
    logits, targets = random(6, 7)
    targets = targets.round()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = focal(ours, targets, gamma=gamma, alpha=alpha)
    expected = sigmoid_focal_loss(theirs, targets, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_gamma_0_without_alpha_is_bce_to_the_last_bit() -> None:
    logits, targets = random(50)
    ours, theirs = logits.float().requires_grad_(), logits.float().requires_grad_()
    found = focal(ours, targets, gamma=0.0, alpha=-1.0)
    expected = binary_cross_entropy_with_logits(theirs, targets.float(), reduction="none")
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(focal(logits, targets, gamma=0.0, alpha=0.5), bce(logits, targets) / 2)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("alpha", [0.25, -1.0])
@pytest.mark.parametrize("count", [0, 1, 70])
def test_where_few_targets_are_not_0_value_and_gradient_are_the_same(
    gamma: float, alpha: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, targets = (x.float() for x in random(2, 64, 32))
    targets.view(-1)[torch.randperm(4096, generator=torch.Generator().manual_seed(1))[count:]] = 0
    monkeypatch.setattr(module, "PART", 1024)

    def both() -> list[Tensor]:
        x = logits.clone().requires_grad_()
        loss = focal(x, targets, gamma=gamma, alpha=alpha)
        return [loss, *torch.autograd.grad((loss * logits).sum(), x)]

    few = both()
    monkeypatch.setattr(device, "free_to_read", lambda _: False)
    assert all(torch.equal(a, b) for a, b in zip(few, both(), strict=True))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_soft_targets_against_a_slow_reference(gamma: float) -> None:
    logits, targets = random(40, seed=1)
    for x, y in zip(logits, targets, strict=True):
        p = 1 / (1 + torch.exp(-x))
        entropy = -(y * torch.log(p) + (1 - y) * torch.log(1 - p))
        expected = (0.25 * y + 0.75 * (1 - y)) * abs(p - y) ** gamma * entropy
        torch.testing.assert_close(focal(x, y, gamma=gamma), expected)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_a_soft_target_is_where_the_loss_is_least(target: float) -> None:
    logits = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    loss = focal(logits, torch.full_like(logits, target))
    assert logits[loss.argmin()].sigmoid().item() == pytest.approx(target, abs=2e-3)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99, 1.0, 2.0])
def test_finite_slope_where_the_answer_is_exact(gamma: float) -> None:
    # sigmoid(100) is 1 and sigmoid(0) is 0.5 to the last bit: the distance is 0, whose power has no slope for gamma < 1
    logits = torch.tensor([100.0, -110.0, 0.0], requires_grad=True)
    focal(logits, torch.tensor([1.0, 0.0, 0.5]), gamma=gamma).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_slope_on_soft_targets_is_that_of_the_value(gamma: float) -> None:
    logits, targets = random(5, 3, seed=3)
    assert torch.autograd.gradcheck(lambda x: focal(x, targets, gamma=gamma), logits.requires_grad_())
