from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl
from rebalance.methods.composition import Composition
from rebalance.methods.focal import focal
from rebalance.methods.registry import METHODS
from rebalance.methods.resolve import train_flags

LOSSES = [name for name, row in METHODS.items() if row.kind == "element"] + [
    f"{element}+{name}"
    for name, row in METHODS.items()
    for element in row.elements
    if name != "drop" and "stock" in row.places
]


def compose(loss: str, **given: Any) -> Composition:
    return Composition(train_flags({"loss": loss, **given}))


def random(images: int = 2, count: int = 30, classes: int = 3, seed: int = 0) -> Candidates:
    """Candidates, some of each state; soft targets on the positive ones."""
    g = torch.Generator().manual_seed(seed)
    state = torch.randint(-1, 2, (images, count), generator=g).to(torch.int8)
    targets = torch.rand(images, count, classes, generator=g) * (state == POSITIVE).unsqueeze(-1)
    logits = torch.randn(images, count, classes, generator=g) * 2
    return Candidates(logits.requires_grad_(), targets, state, torch.rand(images, count, generator=g) ** 3)


def gradient(loss: Tensor, candidates: Candidates) -> Tensor:
    return torch.autograd.grad(loss.sum(), candidates.logits)[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_candidates_have_no_loss_and_no_gradient_whatever_they_predict(loss: str) -> None:
    candidates = random()
    ignored = candidates.state == IGNORE
    found = compose(loss)(candidates)
    assert found[ignored].eq(0).all()
    assert gradient(found, candidates)[ignored].eq(0).all()
    assert gradient(compose(loss)(candidates), candidates)[~ignored].ne(0).any()
    wild = candidates.logits.detach().clone()
    wild[ignored] *= -30
    torch.testing.assert_close(compose(loss)(candidates._replace(logits=wild)), found.detach())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("state", [POSITIVE, NEGATIVE, IGNORE])
@pytest.mark.parametrize("count", [0, 4])
def test_batches_of_one_kind_and_of_nothing(loss: str, state: int, count: int) -> None:
    candidates = random(count=count)
    candidates = candidates._replace(state=torch.full_like(candidates.state, state), overlap=torch.zeros(2, count))
    found = compose(loss)(candidates)
    assert found.shape == candidates.logits.shape
    assert found.isfinite().all()
    assert gradient(found, candidates).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_prediction_that_is_no_number_makes_the_loss_none(loss: str) -> None:
    """The host looks for it and goes back to the last checkpoint; an index out of range would end the process."""
    candidates = random()
    logits = candidates.logits.detach().where(candidates.state.unsqueeze(-1) == IGNORE, torch.nan)
    assert compose(loss)(candidates._replace(logits=logits)).sum().isnan()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_candidates_does_not_matter(loss: str) -> None:
    candidates = random()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    moved = Candidates(*(x.detach()[:, order] for x in candidates))
    torch.testing.assert_close(compose(loss)(moved), compose(loss)(candidates).detach()[:, order])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_raised_and_double_kept(loss: str, dtype: torch.dtype) -> None:
    candidates = random()
    raised = candidates._replace(logits=(candidates.logits.detach() * 40).to(dtype).requires_grad_())
    found = compose(loss)(raised._replace(targets=raised.targets.to(dtype)))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.isfinite().all()
    assert gradient(found, raised).isfinite().all()


@pytest.mark.parametrize(
    ("loss", "neutral"),
    [
        ("focal", {"focal_gamma": 0, "focal_alpha": -1}),
        ("brl", {"brl_t": 0, "brl_weight": 1, "brl_gamma": 0, "brl_alpha": -1}),
        ("ghm", {"ghm_bins": 1, "ghm_momentum": 0}),
        ("soft", {"soft_a": 1}),
        ("ohem", {"ohem_ratio": 1e6}),
        ("focal+soft", {"focal_gamma": 0, "focal_alpha": -1, "soft_a": 1}),
    ],
)
def test_neutral_settings_are_bce_in_value_and_gradient(loss: str, neutral: dict[str, float]) -> None:
    candidates = random()
    candidates = candidates._replace(state=candidates.state.abs())  # nothing ignored, every image has a positive
    found, expected = compose(loss, **neutral)(candidates), bce(candidates.logits, candidates.targets)
    assert torch.equal(found, expected)
    assert torch.equal(gradient(found, candidates), gradient(expected, candidates))


def test_an_element_loss_times_weights() -> None:
    # two negatives and a positive: ohem with ratio 1 keeps the harder negative; soft weighs overlap 0 by 0.25
    logits = torch.tensor([[[1.0], [2.0], [3.0]]])
    targets, state = torch.tensor([[[0.0], [0.0], [1.0]]]), torch.tensor([[NEGATIVE, NEGATIVE, POSITIVE]])
    candidates = Candidates(logits, targets, state.to(torch.int8), torch.zeros(1, 3))
    entropy, modulated = bce(logits, targets), focal(logits, targets)
    assert torch.equal(compose("ohem", ohem_ratio=1)(candidates), entropy * torch.tensor([[[0], [1], [1]]]))
    assert torch.equal(compose("focal+ohem", ohem_ratio=1)(candidates), modulated * torch.tensor([[[0], [1], [1]]]))
    assert torch.equal(compose("focal+soft")(candidates), modulated * torch.tensor([[[0.25], [0.25], [1]]]))


def test_flags_reach_the_functions() -> None:
    candidates = random()
    candidates = candidates._replace(state=candidates.state.abs())
    given = {"brl_t": 0.3, "brl_iou": 0.2, "brl_weight": 0.7, "brl_beta": 0.4, "brl_gamma": 1.5, "brl_alpha": 0.6}
    confused = ((candidates.state == NEGATIVE) & (candidates.overlap < 0.2)).unsqueeze(-1)
    expected = brl(*candidates[:2], confused, t=0.3, weight=0.7, beta=0.4, gamma=1.5, alpha=0.6)
    assert torch.equal(compose("brl", **given)(candidates), expected)
    assert confused.any()
    expected = focal(*candidates[:2], gamma=3.0, alpha=0.6)
    assert torch.equal(compose("focal", focal_gamma=3, focal_alpha=0.6)(candidates), expected)
    changed: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("ghm", {"ghm_bins": 7}, {}),
        ("ghm", {"ghm_bins": 999, "ghm_regions": "occupied"}, {"ghm_bins": 999}),
        ("soft", {"soft_b": 5}, {}),
        ("soft", {"soft_c": 2}, {}),
    )
    for loss, one, other in changed:
        assert not torch.equal(compose(loss, **one)(candidates), compose(loss, **other)(candidates)), one


def test_brl_starts_after_its_warm_up() -> None:
    candidates = random()
    candidates = candidates._replace(state=candidates.state.abs())
    loss = compose("brl", brl_warmup=2)
    for epoch in (0, 1):
        loss.begin_epoch(epoch)
        assert torch.equal(loss(candidates), focal(*candidates[:2]))
    loss.begin_epoch(2)
    assert torch.equal(loss(candidates), compose("brl")(candidates))
    assert not torch.equal(loss(candidates), focal(*candidates[:2]))


def test_a_high_threshold_after_warm_up_stays_finite() -> None:
    # Free logits without a single label near, t = 0.7: the mirrored branch drives the scores apart, but not to NaN
    logits = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    state, overlap = torch.full((1, 50), NEGATIVE, dtype=torch.int8), torch.zeros(1, 50)
    loss, optimizer = compose("brl", brl_t=0.7, brl_weight=1, brl_warmup=3), torch.optim.SGD([logits], lr=5.0)
    for epoch in range(12):
        loss.begin_epoch(epoch)
        for _ in range(30):
            optimizer.zero_grad()
            value = loss(Candidates(logits, torch.zeros(1, 50, 1), state, overlap)).sum()
            value.backward()
            optimizer.step()
            assert value.isfinite()
    assert logits.isfinite().all()


def test_the_moving_average_is_of_training_alone() -> None:
    loss, candidates = compose("ghm"), random()
    assert loss.average is None
    with torch.no_grad():
        validation = loss(candidates)
    assert loss.average is None
    first = loss(candidates).detach()
    assert torch.equal(first, validation)  # the average starts at the first batch's counts
    after_one = loss.average
    assert after_one is not None
    assert after_one.sum() == (candidates.state != IGNORE).sum() * 3
    loss(random(seed=1))
    assert loss.average is not None
    assert not torch.equal(loss.average, after_one)
    with torch.no_grad():
        assert torch.equal(loss(candidates), validation)


def test_a_moving_average_that_is_put_back_goes_on() -> None:
    loss, other = compose("ghm"), compose("ghm")
    loss(random(seed=1))
    assert loss.average is not None
    other.average = torch.tensor(loss.average.tolist())
    assert torch.equal(loss(random(seed=2)), other(random(seed=2)))
    assert not torch.equal(compose("ghm")(random(seed=2)), loss(random(seed=2)))


@pytest.mark.parametrize(("loss", "plain", "uses_overlap"), [("bce", True, False), ("drop", True, False),
    ("focal", False, False), ("brl+drop", False, True), ("soft", False, True), ("ghm", False, False)])  # fmt: skip
def test_what_a_host_needs_to_know(loss: str, plain: bool, uses_overlap: bool) -> None:
    assert (compose(loss).plain, compose(loss).uses_overlap) == (plain, uses_overlap)
