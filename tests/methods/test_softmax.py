from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rebalance.methods.bce import softmax_cross_entropy
from rebalance.methods.focal import softmax_focal

# logits 0, log 2, log 5: probabilities 1/8, 2/8, 5/8. −log of them: 2.079442, 1.386294, 0.470004
LOGITS = torch.tensor([0, 0.693147, 1.609438]).expand(3, 3)
TARGETS = torch.tensor([0, 1, 2])


def random(*shape: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, classes, generator=g, dtype=torch.float64) * 2
    return logits, torch.randint(classes, shape, generator=g)


@pytest.mark.parametrize(
    ("gamma", "alpha", "expected"),
    [
        (0, -1, [2.079442, 1.386294, 0.470004]),
        # background times 1 − 0.75, the classes times 0.75
        (0, 0.75, [0.519860, 1.039721, 0.352503]),
        # times 7/8, 6/8 and 3/8
        (1, -1, [1.819511, 1.039721, 0.176251]),
        # times 49/64, 36/64 and 9/64, then 0.25 and 0.75
        (2, 0.75, [0.398018, 0.584843, 0.049571]),
        (8, -1, [0.714515, 0.138786, 0.000184]),
    ],
)
def test_golden_numbers(gamma: float, alpha: float, expected: list[float]) -> None:
    found = softmax_focal(LOGITS, TARGETS, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=2e-6)


def test_cross_entropy_is_torch_s() -> None:
    logits, targets = random(5, 7)
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(5, 7)
    assert torch.equal(softmax_cross_entropy(logits, targets), expected)


def test_without_gamma_and_alpha_focal_is_cross_entropy_in_value_and_gradient() -> None:
    logits, targets = random(5, 7)
    logits.requires_grad_()
    found, expected = softmax_focal(logits, targets, gamma=0, alpha=-1), softmax_cross_entropy(logits, targets)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(x.sum(), logits)[0] for x in (found, expected)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("alpha", [-1.0, 0.75])
def test_gradient_and_a_slow_reference(gamma: float, alpha: float) -> None:
    logits, targets = random(3, 4)
    found = softmax_focal(logits, targets, gamma=gamma, alpha=alpha)
    for place in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        row, target = logits[tuple(place)], int(targets[tuple(place)])
        p = float(row[target].exp() / row.exp().sum())
        weight = 1.0 if alpha < 0 else alpha if target else 1 - alpha
        assert float(found[tuple(place)]) == pytest.approx(weight * (1 - p) ** gamma * -torch.tensor(p).log().item())
    assert torch.autograd.gradcheck(
        lambda x: softmax_focal(x, targets, gamma=gamma, alpha=alpha), logits.requires_grad_()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0, 0.5, 1.5, 2, 8])
def test_finite_at_extreme_logits(dtype: torch.dtype, gamma: float) -> None:
    logits = torch.tensor([[100.0, -100, 0], [100, -100, 0], [100, 100, 100]]).to(dtype).requires_grad_()
    loss = softmax_focal(logits, torch.tensor([0, 1, 2]), gamma=gamma, alpha=0.75)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert all(x.isfinite().all() for x in (loss, gradient))
    assert (loss >= 0).all()


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    logits, targets = random(*shape)
    loss = softmax_focal(logits.requires_grad_(), targets)
    assert loss.shape == shape
    loss.sum().backward()
