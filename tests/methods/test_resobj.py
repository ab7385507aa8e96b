"""Algorithm 1 by hand, against a slow reference, and its properties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from slow_resobj import slopes, slow_resobj
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.methods.bce import bce
from rebalance.methods.resobj import StepMeans, means, refine, residual_objectness


def random(*, images: int = 3, count: int = 40, steps: int = 3, seed: int = 0, positives: float = 0.2) -> list[Tensor]:
    """Objectness, residuals, targets and state, in float64."""
    g = torch.Generator().manual_seed(seed)
    objectness = torch.randn(images, count, generator=g, dtype=torch.float64) * 2
    residuals = torch.randn(steps, images, count, generator=g, dtype=torch.float64)
    draw = torch.rand(images, count, generator=g)
    state = torch.where(draw < positives, POSITIVE, NEGATIVE).masked_fill(draw > 0.9, IGNORE).to(torch.int8)
    targets = torch.rand(images, count, generator=g, dtype=torch.float64) * (state == POSITIVE)
    return [objectness, residuals, targets, state]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gate", ["batch", "image"])
@pytest.mark.parametrize("grad", ["isolated", "stepwise", "joint"])
def test_values_and_gradients_against_the_algorithm_candidate_by_candidate(seed: int, gate: str, grad: str) -> None:
    given = random(seed=seed)
    given[3][2] = given[3][2].masked_fill(given[3][2] == POSITIVE, NEGATIVE)  # an image without a positive
    given[2][2] = 0
    leaves = [x.requires_grad_() for x in given[:2]]
    before = [x.detach().clone() for x in given]
    found, expected = (f(*given, gate=gate, grad=grad) for f in (residual_objectness, slow_resobj))
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=1e-12)
    assert found.entered.tolist() == expected.entered
    assert 0 < int(found.entered.sum()) < found.entered.numel()
    for one, other in zip(slopes(found.losses, *leaves), slopes(expected.losses, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


def test_the_gate_of_an_image_by_hand() -> None:
    """The batch's gate is at -1; the first image's own at 1, and the last has none."""
    objectness = torch.tensor([[1.0, 2.0, 0.0], [3.0, -1.0, -2.0], [9.0, 0.0, -9.0]])
    state = torch.full((3, 3), NEGATIVE).to(torch.int8)
    state[0, 0] = state[1, 0] = state[1, 1] = POSITIVE
    targets = (state == POSITIVE).float()
    residuals = torch.zeros(1, 3, 3, requires_grad=True)
    found = {gate: residual_objectness(objectness, residuals, targets, state, gate=gate) for gate in ("batch", "image")}
    assert found["batch"].entered[0].int().tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert found["image"].entered[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    expected = bce(objectness, targets) * found["image"].entered[0]
    torch.testing.assert_close(found["image"].losses[0], expected)
    found["image"].losses.sum().backward()
    assert residuals.grad is not None
    assert residuals.grad[0, 2].eq(0).all()
    assert residuals.grad[0, 0, 1] > 0


def test_an_image_has_the_same_loss_in_any_batch_by_its_own_gate_but_not_by_the_batch_s() -> None:
    given = random(images=4)
    for gate in ("image", "batch"):
        whole = residual_objectness(*given, gate=gate).losses
        cut = [[x[..., i : i + 1, :] for x in given] for i in range(4)]
        alone = torch.cat([residual_objectness(*one).losses for one in cut], 1)
        assert torch.equal(whole, alone) == (gate == "image")


def test_the_gate_by_hand() -> None:
    # Positives at 1 and 3 on two images, so the first gate is at 1 for both of them.
    objectness = torch.tensor([[1.0, 2.0, 0.0, 0.9], [3.0, 1.0, -5.0, 4.0]])
    state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE], [POSITIVE, NEGATIVE, IGNORE, IGNORE]]).to(
        torch.int8
    )
    residuals = torch.zeros(2, 2, 4)
    residuals[0, 0, 0] = -1.5  # that positive sinks to -0.5 and takes the second gate with it
    residuals[0, 0, 2] = 9.0  # outside: must not move
    residuals[0, 0, 1] = -3.0  # sinks to -1, below the second gate
    residuals[1, 0, 2] = 2.0  # passes only now: 0 + 2, not 0 + 9 + 2
    targets = (state == POSITIVE).float()
    found = residual_objectness(objectness, residuals, targets, state)
    assert found.entered.int().tolist() == [
        [[1, 1, 0, 0], [1, 1, 0, 1]],
        [[1, 0, 1, 1], [1, 1, 0, 1]],
    ]
    after = torch.tensor([[-0.5, -1.0, 0.0, 0.9], [3.0, 1.0, 0.0, 0.0]])
    plain = bce(after, targets)
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]) * plain  # the ignored one that entered costs nothing
    torch.testing.assert_close(found.losses[0], expected)
    after[0, 2] = 2.0
    torch.testing.assert_close(found.losses[1], torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]) * bce(after, targets))
    assert found.losses[1, 0, 2].item() == pytest.approx(math.log(1 + math.e**2))


def gradients(grad: str, given: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    objectness, residuals = (x.clone().requires_grad_() for x in given[:2])
    losses = residual_objectness(objectness, residuals, *given[2:], grad=grad, **options).losses
    one, two = torch.autograd.grad(losses.sum(), (objectness, residuals), materialize_grads=True)
    return one, two


def test_where_the_gradient_of_each_reading_ends() -> None:
    """stepwise: at its own step; isolated: at the first step, never in the objectness; joint: in the objectness."""
    given = random()
    isolated, stepwise, joint = (gradients(grad, given) for grad in ("isolated", "stepwise", "joint"))
    assert isolated[0].eq(0).all()
    assert stepwise[0].eq(0).all()
    assert joint[0].ne(0).any()
    torch.testing.assert_close(isolated[1], joint[1])
    entered = residual_objectness(*given).entered
    taking = entered & (given[3] != IGNORE)
    # of one step each residual has sigmoid - target
    logits, expected = given[0], torch.zeros_like(given[1])
    for t, residual in enumerate(given[1]):
        logits = torch.where(entered[t], logits + residual, logits)
        expected[t] = (logits.sigmoid() - given[2]) * taking[t]
    torch.testing.assert_close(stepwise[1], expected)
    # else an earlier step also answers for the later ones that the candidate enters
    torch.testing.assert_close(isolated[1][-1], expected[-1])
    assert not torch.allclose(isolated[1][0], expected[0])


def test_with_one_step_isolated_and_stepwise_are_the_same() -> None:
    given = random(steps=1)
    isolated, stepwise = (gradients(grad, given) for grad in ("isolated", "stepwise"))
    assert all(torch.equal(x, y) for x, y in zip(isolated, stepwise, strict=True))


@pytest.mark.parametrize("gate", ["batch", "image"])
def test_no_positive_no_loss_but_a_gradient_of_zero(gate: str) -> None:
    given = random(positives=0)
    assert not (given[3] == POSITIVE).any()
    objectness, residuals = (x.requires_grad_() for x in given[:2])
    found = residual_objectness(objectness, residuals, *given[2:], gate=gate)
    assert found.losses.eq(0).all()
    assert not found.entered.any()
    found.losses.sum().backward()
    assert residuals.grad is not None
    assert residuals.grad.eq(0).all()


@pytest.mark.parametrize("gate", ["batch", "image"])
@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 3, 0)])
def test_no_steps_no_images_no_candidates(shape: tuple[int, int, int], gate: str) -> None:
    residuals = torch.zeros(shape, requires_grad=True)
    objectness = torch.zeros(shape[1:], requires_grad=True)
    state = torch.zeros(shape[1:]).to(torch.int8)
    found = residual_objectness(objectness, residuals, torch.zeros(shape[1:]), state, gate=gate)
    assert found.losses.shape == found.entered.shape == shape
    found.losses.sum().backward()
    assert residuals.grad is not None


def test_all_ignored() -> None:
    given = random()
    given[3] = torch.full_like(given[3], IGNORE)
    assert residual_objectness(*given).losses.eq(0).all()
    assert residual_objectness(*given, gate="image").losses.eq(0).all()


@pytest.mark.parametrize("grad", ["isolated", "stepwise", "joint"])
def test_ignored_candidates_have_no_gradient_and_no_say(grad: str) -> None:
    given = random()
    ignored = given[3] == IGNORE
    assert ignored.any()
    one, two = gradients(grad, given)
    assert one[ignored].eq(0).all()
    assert two[:, ignored].eq(0).all()
    other = [x.clone() for x in given]
    other[0][ignored] = -40.0
    other[2][ignored] = 0.3
    torch.testing.assert_close(residual_objectness(*other).losses, residual_objectness(*given).losses)


def test_weights_multiply_and_leave_the_gate_alone() -> None:
    given = random()
    weights = torch.rand(given[0].shape, dtype=torch.float64).round()
    plain, weighted = residual_objectness(*given), residual_objectness(*given, weights=weights)
    torch.testing.assert_close(weighted.losses, plain.losses * weights)
    assert torch.equal(weighted.entered, plain.entered)


def test_another_element_loss() -> None:
    given = random()
    doubled = residual_objectness(*given, element=lambda x, y: 2 * bce(x, y))
    torch.testing.assert_close(doubled.losses, 2 * residual_objectness(*given).losses)


def test_gradcheck() -> None:
    given = random(images=2, count=6, steps=2, seed=3)
    objectness, residuals = (x.requires_grad_() for x in given[:2])

    def losses(o: Tensor, r: Tensor) -> Tensor:
        return residual_objectness(o, r, *given[2:], grad="joint").losses

    assert torch.autograd.gradcheck(losses, (objectness, residuals))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("grad", ["isolated", "stepwise", "joint"])
def test_finite_at_large_logits(dtype: torch.dtype, grad: str) -> None:
    given = random()
    sure = [(x.sign() * 100).to(dtype) for x in given[:2]]
    losses = residual_objectness(*sure, *given[2:]).losses
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert all(x.isfinite().all() for x in gradients(grad, [*sure, *given[2:]]))


def test_double_precision_stays() -> None:
    assert residual_objectness(*random()).losses.dtype == torch.float64


def test_order_does_not_matter() -> None:
    given = random()
    order = torch.randperm(given[0].shape[1], generator=torch.Generator().manual_seed(1))
    mixed = [x[..., order] for x in given]
    torch.testing.assert_close(residual_objectness(*mixed).losses, residual_objectness(*given).losses[..., order])


def test_inference_adds_all_steps_without_a_gate() -> None:
    objectness, residuals, *_ = random()
    found = refine(objectness, residuals)
    assert found.shape == (4, *objectness.shape)
    for t in range(4):
        torch.testing.assert_close(found[t], objectness + sum(residuals[:t], torch.zeros_like(objectness)))
    assert torch.equal(refine(objectness, residuals[:0]), objectness.unsqueeze(0))


def test_means_of_an_epoch() -> None:
    collected = StepMeans()
    state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, IGNORE]]).to(torch.int8)
    collected.add(torch.logit(torch.tensor([[[0.8, 0.2, 0.4, 0.9]], [[0.9, 0.1, 0.1, 0.5]]])), state)
    collected.add(torch.logit(torch.tensor([[[0.6, 0.3, 0.3, 0.9]], [[0.7, 0.1, 0.3, 0.5]]])), state)
    assert collected.sums is not None
    found = means(collected.sums)
    assert list(found) == ["pos_0", "pos_1", "neg_0", "neg_1"]
    assert list(found.values()) == pytest.approx([0.7, 0.8, 0.3, 0.15])
    collected.add(torch.logit(torch.full((2, 1, 4), 0.5)), torch.full_like(state, IGNORE))  # adds nothing
    assert means(collected.sums) == pytest.approx(found)
    collected = StepMeans()
    assert collected.sums is None
    collected.add(torch.zeros(2, 1, 4), torch.full_like(state, IGNORE))
    assert set(means(collected.sums).values()) == {0.0}
