"""Golden numbers stand with the method; general properties are in test_battery.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives import candidates, compose, recipe
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.methods.bce import bce
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
    of_positives, of_negatives = (alpha, 1 - alpha) if alpha >= 0 else (1, 1)
    if not confused:
        entropy = -y * math.log(p) - (1 - y) * math.log(1 - p)
        return (of_positives * y + of_negatives * (1 - y)) * abs(p - y) ** gamma * entropy
    p_t = 1 - p
    if p_t > t:
        return weight * -of_negatives * (1 - p_t) ** gamma * math.log(p_t)
    return weight * beta * -of_negatives * p_t**gamma * math.log(1 - p_t)


def slope(x: float, *rest: Any) -> float:
    """Of `slow`, by its values."""
    return (slow(x + 1e-5, *rest) - slow(x - 1e-5, *rest)) / 2e-5


# each setting at several values, the others away from those at which they do nothing
SETTINGS = [
    *({"t": t, "beta": beta} for t in (0.0, 0.1, 0.25, 0.5, 0.7, 1.0) for beta in (0.0, 0.5, 1.0, 2.0)),
    *({"weight": weight} for weight in (0.0, 0.1, 1.0, 2.0)),
    *({"gamma": gamma} for gamma in (0.0, 1.0, 2.0, 2.5)),
    *({"alpha": alpha} for alpha in (-1.0, 0.0, 0.5, 1.0)),
]


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_a_slow_reference_in_value_and_gradient(given: dict[str, float]) -> None:
    settings = {"t": 0.4, "weight": 0.3, "beta": 0.7, "gamma": 1.5, "alpha": 0.4, **given}
    logits, targets, confused = random(60)
    logits.requires_grad_()
    values = list(zip(logits.tolist(), targets.tolist(), confused.tolist(), strict=True))
    expected = [slow(*value, **settings) for value in values]
    found = brl(logits, targets, confused, **settings)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    slopes = [slope(*value, *settings.values()) for value in values]
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64), rtol=1e-5, atol=1e-7)


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


# On the host's own loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["stock", "anchor", "obj"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        *({"brl_t": t} for t in (0.0, 0.2, 0.7, 1.0)),
        *({"brl_weight": weight, "brl_beta": beta} for weight in (0.05, 2.0) for beta in (0.0, 0.4, 1.5, 2.0)),
        *({"brl_gamma": gamma} for gamma in (0.5, 1.0, 2.0)),
        *({"brl_alpha": alpha, "brl_iou": iou} for alpha in (0.0, 0.4, 1.0) for iou in (0.3, 0.02)),
        {"brl_t": 0.3, "brl_weight": 0.6, "brl_beta": 1.7, "brl_gamma": 1.5, "brl_alpha": 0.3, "brl_iou": 0.4},
    ],
    ids=str,
)
def test_the_confused_alone_are_recalibrated_where_targets_are_scores(site: str, given: dict[str, float]) -> None:
    cases = candidates(count=40, dtype=torch.float64)
    cases = cases._replace(state=cases.state.abs(), overlap=cases.overlap.double())
    found = compose("brl", site, **given).loss(cases)
    (gradient,) = torch.autograd.grad(found.sum(), cases.logits)
    settings = {"t": 0.5, "weight": 0.1, "beta": 1.0, "gamma": 0.0, "alpha": -1.0}
    settings |= {name.removeprefix("brl_"): value for name, value in given.items() if name != "brl_iou"}
    confused = (cases.state == NEGATIVE) & (cases.overlap < given.get("brl_iou", 0.1))
    wide = confused.unsqueeze(-1).expand_as(cases.logits)
    columns = (x.flatten().tolist() for x in (found, gradient, cases.logits, cases.targets, wide))
    for value, g, x, y, far in zip(*columns, strict=True):
        own = [*settings.values()] if far else [0.0, 1.0, 1.0, 0.0, -1.0]
        assert value == pytest.approx(slow(x, y, far, *own), rel=1e-9, abs=1e-12)
        assert g == pytest.approx(slope(x, y, far, *own), rel=1e-5, abs=1e-7)
    assert 0 < wide.sum() < wide.numel()
    # a positive, and a negative near a label: cross-entropy to the last bit, in its gradient too
    (plain,) = torch.autograd.grad(bce(cases.logits, cases.targets).sum(), cases.logits)
    assert torch.equal(found[~confused], bce(cases.logits, cases.targets)[~confused])
    assert torch.equal(gradient[~confused], plain[~confused])


def test_pushed_by_a_tenth_of_what_its_neighbour_is_and_pulled_where_it_is_taken_for_an_object() -> None:
    # p = 0.119203, 0.880797; one near a label, one far from it: p, weight * p; p, -weight * beta * (1 - p)
    logits = torch.tensor([[[-2.0], [-2.0], [2.0], [2.0]]], requires_grad=True)
    overlap = torch.tensor([[0.2, 0.0, 0.2, 0.0]])
    state = torch.zeros(1, 4, dtype=torch.int8)
    loss = compose("brl", brl_beta=0.5).loss(Candidates(logits, torch.zeros(1, 4, 1), state, overlap))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.flatten().tolist() == pytest.approx([0.119203, 0.0119203, 0.880797, -0.00596015], rel=1e-5)


@pytest.mark.parametrize("site", ["stock", "anchor", "obj", "resobj", "retinanet", "retinanet-obj"])
def test_what_it_stands_on_by_default_is_asked_of_the_site(site: str) -> None:
    made = recipe(site, loss="brl")
    scores = "retinanet" not in site
    assert made["brl_base"] == ("host" if scores else "focal")
    assert (made["brl_gamma"], made["brl_alpha"]) == ((0.0, -1.0) if scores else (2.0, 0.25))
    assert made.divisor == {"retinanet": "image", "retinanet-obj": "batch"}.get(site, "host")
    published = recipe(site, loss="brl", brl_base="focal")
    assert (published["brl_gamma"], published["brl_alpha"]) == (2.0, 0.25)
    assert published.divisor == recipe(site, loss="focal").divisor
    # with an objectness RetinaNet's own loss is cross-entropy, without it is focal loss
    on_host = recipe(site, loss="brl", brl_base="host")
    assert (on_host["brl_gamma"], on_host["brl_alpha"]) == ((2.0, 0.25) if site == "retinanet" else (0.0, -1.0))


@pytest.mark.parametrize(
    ("site", "base", "plain"),
    [("stock", "host", bce), ("anchor", "focal", focal), ("retinanet", "host", focal), ("retinanet-obj", "host", bce)],
)
def test_neutral_is_its_base_to_the_last_bit(site: str, base: str, plain: Any) -> None:
    cases = candidates()
    cases = cases._replace(state=cases.state.abs())
    found, expected = (
        compose("brl", site, brl_base=base, brl_t=0, brl_weight=1).loss(cases),
        plain(cases.logits, cases.targets),
    )
    assert torch.equal(found, expected)
    ours, theirs = (torch.autograd.grad(x.sum(), cases.logits)[0] for x in (found, expected))
    assert torch.equal(ours, theirs)


def test_confusion_is_of_far_negatives_only() -> None:
    state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE, IGNORE]], dtype=torch.int8)
    overlap = torch.tensor([[0.0, 0.0, 0.0999, 0.1, 0.0]])
    assert confusion(state, overlap, 0.1).tolist() == [[False, True, True, False, False]]
    assert not confusion(state, overlap, 0.0).any()


def test_in_an_image_without_labels_every_candidate_is_confused() -> None:
    assert confusion(torch.full((1, 9), NEGATIVE, dtype=torch.int8), torch.zeros(1, 9), 0.1).all()
