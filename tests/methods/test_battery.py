"""Properties that every method has, run over the rows of the registry: a new element loss is tested by itself.

An element loss gets (logits, targets) of one shape and returns unreduced losses of that shape; `BESIDES` says what else
it gets. Weightings differ in what they look at; `CALLS` says how each is called on a mask of candidates, and a row
without an entry there fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rebalance.match.candidates import candidate_state
from rebalance.methods.registry import METHODS

ELEMENTS = [name for name, row in METHODS.items() if row.kind == "element"]
WEIGHTINGS = [name for name, row in METHODS.items() if row.kind == "weighting"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and targets: half of them 0 or 1, the others between."""
    g = generator(seed)
    targets = torch.rand(shape, generator=g, dtype=torch.float64)
    hard = torch.rand(shape, generator=g) < 0.5
    targets = torch.where(hard, targets.round(), targets)
    return (torch.randn(shape, generator=g, dtype=torch.float64) * 2).to(dtype), targets.to(dtype)


# Element losses -------------------------------------------------------------------------------------------------------


# What an element loss gets besides logits and targets. Of brl every negative is confused, unless that is switched off.
BESIDES: dict[str, Callable[[Tensor, bool], tuple[Tensor, ...]]] = {
    "brl": lambda targets, plain: ((targets == 0) & (not plain),),
}


@pytest.fixture(params=ELEMENTS)
def element(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    row, besides = METHODS[request.param], BESIDES.get(request.param, lambda targets, plain: ())

    def call(logits: Tensor, targets: Tensor, *, plain: bool = False) -> Tensor:
        return row.function(logits, targets, *besides(targets, plain))

    return call


def test_gradient(element: Callable[..., Tensor]) -> None:
    logits, targets = inputs(4, 5)
    assert torch.autograd.gradcheck(lambda x: element(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_at_extreme_logits(element: Callable[..., Tensor], dtype: torch.dtype) -> None:
    logits = torch.tensor([-100.0, 100, -100, 100, 0, -100, 100]).to(dtype).requires_grad_()
    loss = element(logits, torch.tensor([0.0, 0, 1, 1, 0, 0.5, 0.5]).to(dtype))
    loss.sum().backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite().all()
    assert loss.min() >= 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 5)])
def test_nothing_in_nothing_out(element: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape, requires_grad=True)
    loss = element(logits, torch.zeros(shape))
    assert loss.shape == shape
    loss.sum().backward()
    assert logits.grad is not None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_of_one_kind(element: Callable[..., Tensor], value: float) -> None:
    logits = inputs(3, 7)[0].requires_grad_()
    element(logits, torch.full((3, 7), value, dtype=torch.float64)).mean().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_inputs_are_unchanged(element: Callable[..., Tensor]) -> None:
    logits, targets = inputs(5, 3)
    before = logits.clone(), targets.clone()
    element(logits.requires_grad_(), targets).sum().backward()
    assert torch.equal(logits.detach(), before[0])
    assert torch.equal(targets, before[1])


def test_each_candidate_has_its_own_loss_and_gradient(element: Callable[..., Tensor]) -> None:
    logits, targets = inputs(40)
    order = torch.randperm(40, generator=generator())
    loss = element(logits.requires_grad_(), targets)
    torch.testing.assert_close(element(logits, targets.clone())[order], element(logits[order], targets[order]))
    left_out = torch.arange(40) % 3 == 0
    (gradient,) = torch.autograd.grad(loss.masked_fill(left_out, 0).sum(), logits)
    assert gradient[left_out].eq(0).all()
    assert gradient[~left_out].ne(0).any()


def test_the_right_answer_costs_less(element: Callable[..., Tensor]) -> None:
    logits = torch.tensor([-4.0, 4.0])
    right, wrong = (element(logits, torch.tensor(y), plain=True) for y in ([0.0, 1.0], [1.0, 0.0]))
    assert (right < wrong).all()


def test_broadcasting_is_not_taken_for_granted(element: Callable[..., Tensor]) -> None:
    logits, targets = inputs(2, 3, 4)
    assert element(logits, targets).shape == (2, 3, 4)
    assert torch.equal(element(logits, targets)[1, 2], element(logits[1, 2], targets[1, 2]))


# Weightings -----------------------------------------------------------------------------------------------------------

# How each weighting is called on a mask of candidates and their scores; neutral: nothing is weighted down
CALLS: dict[str, Callable[..., Tensor]] = {
    "drop": lambda mask, scores, neutral, g: METHODS["drop"].function(mask, 0.0 if neutral else 0.4, generator=g),
    # of one bin, all elements have the same weight; what is not counted has none, and is left to the others here
    "ghm": lambda mask, scores, neutral, g: torch.where(
        mask, METHODS["ghm"].function(scores, torch.zeros_like(scores), mask, bins=1 if neutral else 30)[0], 1
    ),
    "ohem": lambda mask, scores, neutral, g: ~METHODS["ohem"].function(
        scores, candidate_state(~mask), ratio=1e6 if neutral else 0.5
    ),
    "soft": lambda mask, scores, neutral, g: METHODS["soft"].function(
        scores.sigmoid(), candidate_state(~mask), a=1.0 if neutral else 0.25
    ),
    "nrd": lambda mask, scores, neutral, g: METHODS["nrd"].function(
        candidate_state(~mask), 0.0 if neutral else 0.4, generator=g
    ),
}


@pytest.fixture(params=WEIGHTINGS)
def weigh(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """Weighting of (mask, scores, neutral, generator) as numbers: 1 counts in full."""
    assert request.param in CALLS, f"say in CALLS how the weighting {request.param} is called"

    def call(mask: Tensor, scores: Tensor, *, neutral: bool = False, seed: int = 0) -> Tensor:
        found = CALLS[request.param](mask, scores, neutral, generator(seed))
        return (~found).double() if found.dtype == torch.bool else found.double()

    return call


def candidates(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.rand(shape, generator=generator(1)) < 0.6, torch.randn(shape, generator=generator(2))


def test_weights_are_finite_and_others_count_in_full(weigh: Callable[..., Any]) -> None:
    mask, scores = candidates(3, 50)
    weights = weigh(mask, scores)
    assert weights.shape == mask.shape
    assert weights.isfinite().all()
    assert weights.min() >= 0
    assert weights[~mask].eq(1).all()
    assert weights[mask].ne(1).any()


def test_the_neutral_setting_weighs_nothing(weigh: Callable[..., Any]) -> None:
    mask, scores = candidates(3, 50)
    assert weigh(mask, scores, neutral=True).eq(1).all()


def test_the_same_generator_gives_the_same_weights(weigh: Callable[..., Any]) -> None:
    mask, scores = candidates(3, 50)
    assert torch.equal(weigh(mask, scores), weigh(mask, scores))


@pytest.mark.parametrize("shape", [(0,), (2, 0), (2, 5)])
def test_no_candidates_no_weights(weigh: Callable[..., Any], shape: tuple[int, ...]) -> None:
    assert weigh(torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)).eq(1).all()


def test_weighing_leaves_its_inputs(weigh: Callable[..., Any]) -> None:
    mask, scores = candidates(3, 50)
    before = mask.clone(), scores.clone()
    weigh(mask, scores)
    assert torch.equal(mask, before[0])
    assert torch.equal(scores, before[1])
