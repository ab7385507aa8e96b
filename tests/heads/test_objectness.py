from __future__ import annotations

import pytest
import torch
from torch import nn

from rebalance.heads.objectness import (
    Narrow,
    ObjectnessSubnet,
    ResidualObjectness,
    ResidualSubnets,
    SharedResiduals,
    class_prior,
    flatten_steps,
    logit,
    objectness_prior,
    width_of,
)

X = torch.randn(2, 12, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("nc", "given", "objects", "classes"),
    [
        (80, "paper", 1 / 80, 0.01), (7, "paper", 1 / 7, 0.01), (1, "paper", 0.5, 0.01), (80, "code", 0.001, 1 / 80),
        (7, "code", 0.001, 1 / 7), (1, "code", 0.001, 0.5), (7, "0.02", 0.02, 0.02),
    ],
)  # fmt: skip
def test_priors_as_the_paper_and_the_later_code_have_them(nc: int, given: str, objects: float, classes: float) -> None:
    assert objectness_prior(nc, given) == pytest.approx(objects)
    assert class_prior(nc, given) == pytest.approx(classes)


def test_an_objectness_starts_at_its_prior() -> None:
    torch.manual_seed(0)
    logits, _ = ObjectnessSubnet(12, 16, anchors=3, prior=objectness_prior(7))(X)
    assert logits.shape == (2, 3, 5, 4)
    assert logits.sigmoid().mean().item() == pytest.approx(0.001, rel=0.1)
    assert torch.tensor(logit(0.001)).sigmoid().item() == pytest.approx(0.001)


@pytest.mark.parametrize("prior", ["code", "paper"])
def test_what_the_first_gradient_says_depends_on_the_prior(prior: str) -> None:
    """Of 5000 candidates 5 are positive: from 0.001 on it tells features apart, from 1/7 on it says "less" to all."""
    torch.manual_seed(0)
    x = torch.randn(1, 12, 50, 100, generator=torch.Generator().manual_seed(0)).relu()
    subnet = ObjectnessSubnet(12, 16, prior=objectness_prior(7, prior))
    logits, features = subnet(x)
    target = torch.zeros_like(logits)
    target[..., 25, 20:25] = 1
    nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum").backward()
    gradient, mean = subnet.logits.weight.grad, features.detach().mean((0, 2, 3)).view(1, -1, 1, 1)
    assert gradient is not None
    common = nn.functional.cosine_similarity(gradient.flatten(), mean.expand_as(gradient).flatten(), 0).item()
    assert abs(common) > 0.99 if prior == "paper" else abs(common) < 0.9


@pytest.mark.parametrize("anchors", [1, 3])
def test_steps_are_independent_subnets(anchors: int) -> None:
    """The grouped convolutions are T times two convolutions, one step after the other."""
    torch.manual_seed(0)
    made = ResidualSubnets(12, 8, anchors=anchors, steps=3)
    found = made(X)
    assert found.shape == (2, 3, anchors, 5, 4)
    for t in range(3):
        first, second = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(8, anchors, 3, padding=1)
        for conv, source, rows in ((first, made.hidden, 8), (second, made.logits, anchors)):
            part = slice(t * rows, (t + 1) * rows)
            conv.load_state_dict({k: v[part] for k, v in source.state_dict().items()})
        torch.testing.assert_close(found[:, t], second(nn.functional.silu(first(X))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_narrow_convolution_is_a_convolution(channels: int, form: torch.memory_format) -> None:
    conv = Narrow(12, channels, 3, padding=1)
    x = X.to(memory_format=form)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), nn.Conv2d.forward(conv, x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(conv(x), nn.Conv2d.forward(conv, x.flip(2)))


def test_residuals_start_near_zero() -> None:
    torch.manual_seed(0)
    for made in (ResidualSubnets(12, 16), SharedResiduals(12, anchors=3, steps=2)):
        assert 0 < made(X).detach().abs().max() < 0.1


def test_width() -> None:
    for given, channels, width in (
        (1, 256, 256), (1, 12, 16), (0.25, 256, 64), (0.25, 12, 16), (24, 256, 24), (1 / 8, 1024, 128)
    ):  # fmt: skip
        assert width_of(given, channels) == width
    made = ResidualObjectness(256, width=0.25)
    assert made.residual is not None
    assert (made.objectness.logits.in_channels, made.residual.logits.in_channels) == (64, 2 * 64)
    made = ResidualObjectness(256, width=20, residual_width=12)
    assert made.residual is not None
    assert (made.residual.hidden.in_channels, made.residual.logits.in_channels) == (20, 2 * 12)
    assert ResidualObjectness(64).objectness.logits.in_channels == 64
    assert SharedResiduals(64, anchors=3, steps=2, width=12).residual.logits.in_channels == 2 * 12
    assert SharedResiduals(64, anchors=3, steps=1).squeeze.out_channels == 16
    assert SharedResiduals(1024, anchors=3, steps=1).squeeze.out_channels == 128


@pytest.mark.parametrize(
    ("on", "grad", "into_subnet", "into_tower"),
    [
        ("obj", "isolated", False, False), ("obj", "stepwise", False, False), ("obj", "joint", True, True),
        ("cls", "isolated", False, True),
    ],
)  # fmt: skip
def test_where_the_residual_gradient_goes(on: str, grad: str, into_subnet: bool, into_tower: bool) -> None:
    torch.manual_seed(0)
    made = ResidualObjectness(12, steps=2, on=on, grad=grad, anchors=3)
    x = X.clone().requires_grad_()
    logits, residuals = made(x)
    assert logits.shape == (2, 3, 5, 4)
    assert residuals.shape == (2, 2, 3, 5, 4)
    residuals.square().sum().backward()
    assert all(p.grad is not None for p in made.residual.parameters())
    assert (made.objectness.hidden.weight.grad is not None) == into_subnet
    assert made.objectness.logits.weight.grad is None
    assert (x.grad is not None) == into_tower


@pytest.mark.parametrize(
    ("on", "grad", "into"),
    [("obj", "isolated", False), ("obj", "stepwise", False), ("obj", "joint", True), ("cls", "isolated", True)],
)
def test_shared_features(on: str, grad: str, into: bool) -> None:
    torch.manual_seed(0)
    x = X.clone().requires_grad_()
    found = SharedResiduals(12, anchors=3, steps=2, on=on, grad=grad)(x)
    assert found.shape == (2, 2, 3, 5, 4)
    found.square().sum().backward()
    assert (x.grad is not None) == into


def test_no_steps() -> None:
    logits, residuals = ResidualObjectness(12, steps=0)(X)
    assert logits.shape == (2, 1, 5, 4)
    assert residuals is None


def test_steps_flattened_as_candidates_are() -> None:
    levels = [torch.randn(2, 4, 3, h, w) for h, w in ((2, 3), (1, 2))]
    found = flatten_steps(levels)
    assert found.shape == (2, 4, 3 * 6 + 3 * 2)
    for t in range(4):
        for b in range(2):
            expected = [x for level in levels for x in level[b, t].flatten().tolist()]
            assert found[b, t].tolist() == expected
