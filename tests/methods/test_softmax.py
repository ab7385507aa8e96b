from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.methods.composition import Composition
from rebalance.methods.ohem import ohem_mask
from rebalance.methods.registry import METHODS
from rebalance.methods.resolve import train_flags
from rebalance.methods.soft import soft_weights
from rebalance.methods.softmax import softmax_cross_entropy, softmax_focal

# logits 0, log 2, log 5: probabilities 1/8, 2/8, 5/8. −log of them: 2.079442, 1.386294, 0.470004
LOGITS = torch.tensor([0, 0.693147, 1.609438]).expand(3, 3)
TARGETS = torch.tensor([0, 1, 2])
LOSSES = ["bce", "focal", *(f"{e}+{w}" for e in ("bce", "focal") for w in ("drop", "ohem", "soft"))]


def random(*shape: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, classes, generator=g, dtype=torch.float64) * 2
    return logits, torch.randint(classes, shape, generator=g)


def compose(loss: str, **given: Any) -> Composition:
    return Composition(train_flags({"loss": loss, **given}), softmax=True)


def candidates(seed: int = 0) -> Candidates:
    """Two images of 20 boxes; the second has no positive."""
    logits, targets = random(2, 20, seed=seed)
    g = torch.Generator().manual_seed(seed)
    state = torch.where(targets > 0, POSITIVE, NEGATIVE).to(torch.int8)
    state[1], targets[1] = NEGATIVE, 0
    state[0, :3] = IGNORE
    return Candidates(logits.requires_grad_(), targets, state, torch.rand(2, 20, generator=g, dtype=torch.float64))


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


# Composed -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_candidates_and_the_order_of_the_others(loss: str) -> None:
    given = candidates()
    found = compose(loss)(given)
    assert found.shape == (2, 20, 1)
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), given.logits)
    ignored = given.state == IGNORE
    assert found[ignored].eq(0).all()
    assert gradient[ignored].eq(0).all()
    assert gradient[~ignored].ne(0).any()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(compose(loss)(Candidates(*(x[:, order] for x in given))), found[:, order])


def test_an_element_loss_times_weights() -> None:
    given = candidates()
    logits, targets, state, overlap = given
    counted = (state != IGNORE).double()
    entropy, modulated = softmax_cross_entropy(logits, targets), softmax_focal(logits, targets, gamma=3, alpha=0.75)
    flags = {"focal_gamma": 3, "focal_alpha": 0.75}
    assert torch.equal(compose("bce")(given)[..., 0], entropy * counted)
    assert torch.equal(compose("focal", **flags)(given)[..., 0], modulated * counted)
    soft = soft_weights(overlap, state)
    assert torch.equal(compose("focal+soft", **flags)(given)[..., 0], modulated * soft)
    mined = compose("focal+ohem", ohem_ratio=1, **flags)(given)[..., 0]
    assert torch.equal(mined, modulated * ohem_mask(modulated, state, ratio=1))
    assert mined[1].eq(0).all()  # no positive, nothing mined


def test_every_loss_of_ssd_is_composed() -> None:
    rows = {name for name, row in METHODS.items() if "ssd" in row.places}
    assert {name for loss in LOSSES for name in loss.split("+")} == rows
