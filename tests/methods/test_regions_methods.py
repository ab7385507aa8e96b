"""What regions say of candidates, on every method of the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives import LOSSES, candidates, compose, gradient, on_softmax, step
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.match.regions import Known
from rebalance.methods import METHODS
from rebalance.methods.method import NOTHING, ROI, RPN, Choice, Predictions

ON_SOFTMAX = [f"softmax {element}{plus}" for element in ("bce", "focal") for plus in ("", "+drop", "+ohem", "+soft")]
# Elements whose loss depends on what other elements there are
TOGETHER = ("ghm", "ohem", "drop")


def masks(given: Candidates, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Unknown and sure at random, of whole candidates too, whatever they are matched to."""
    g = torch.Generator().manual_seed(seed)
    images, count, channels = given.logits.shape
    if given.link == "softmax":
        channels = 1
    whole, each = torch.rand(images, count, 1, generator=g), torch.rand(images, count, channels, generator=g)
    return (whole < 0.2) | (each < 0.2), ((whole > 0.7) | (each > 0.8)) & ~((whole < 0.2) | (each < 0.2))


def make(loss: str) -> tuple[str, Candidates]:
    """The site of a loss and candidates there; some methods have targets that are scores."""
    if loss.startswith("softmax "):
        return "ssd", on_softmax()
    return "stock", candidates(count=60)


def flags_of(loss: str) -> dict[str, Any]:
    return {"obj_drop": 0.5} if "drop" in loss else {}


def run(loss: str, given: Candidates, site: str) -> Tensor:
    return step(compose(loss.removeprefix("softmax "), site, **flags_of(loss)), given).loss


@pytest.mark.parametrize("loss", [*LOSSES, *ON_SOFTMAX])
def test_unknown_and_unmatched_is_exactly_without_loss_and_gradient_and_what_is_matched_is_not(loss: str) -> None:
    site, given = make(loss)
    unknown, _ = masks(given)
    found = run(loss, given._replace(unknown=unknown), site)
    slopes = gradient(found, given)
    matched = (given.state == POSITIVE).unsqueeze(-1).expand_as(found)
    out = unknown.expand_as(found) & ~matched
    assert out.any()
    assert found[out].eq(0).all()
    assert found[unknown.expand_as(found) & matched].ne(0).any()
    if not loss.startswith("softmax"):  # there a candidate's logits are of one loss
        assert slopes[out].eq(0).all()
    whole = unknown.all(-1) & (given.state == NEGATIVE)
    assert slopes[whole].eq(0).all()
    wild = given.logits.detach().clone()
    wild[out.expand_as(wild)] *= -30
    again = run(loss, given._replace(logits=wild, unknown=unknown), site)
    torch.testing.assert_close(again, found.detach(), msg="what is unknown has a say in the loss of others")


@pytest.mark.parametrize("loss", [x for x in (*LOSSES, *ON_SOFTMAX) if not any(name in x for name in TOGETHER)])
def test_elsewhere_nothing_changes(loss: str) -> None:
    site, given = make(loss)
    unknown, _ = masks(given)
    found, plain = run(loss, given._replace(unknown=unknown), site), run(loss, given, site)
    out = unknown.expand_as(found) & (given.state != POSITIVE).unsqueeze(-1)
    assert torch.equal(found, plain.masked_fill(out, 0))
    assert torch.equal(gradient(found, given), gradient(plain.masked_fill(out, 0), given))


@pytest.mark.parametrize("loss", [*LOSSES, *ON_SOFTMAX])
def test_unknown_in_every_channel_is_ignored_for_all_that_looks_at_other_candidates(loss: str) -> None:
    site, given = make(loss)
    whole = masks(given)[0].all(-1, keepdim=True)
    out = whole.squeeze(-1) & (given.state == NEGATIVE)
    expected = run(loss, given._replace(state=given.state.masked_fill(out, IGNORE)), site)
    found = run(loss, given._replace(unknown=whole.expand(-1, -1, masks(given)[0].shape[-1])), site)
    assert out.any()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("loss", [*LOSSES, *ON_SOFTMAX])
def test_a_sure_negative_has_at_least_the_loss_of_its_element_loss(loss: str) -> None:
    """It is neither dropped, nor recalibrated, nor down-weighted, nor mined away."""
    site, given = make(loss)
    _, sure = masks(given)
    given = given._replace(overlap=torch.zeros_like(given.overlap))  # where recalibration and weights are at work
    element = loss.removeprefix("softmax ").split("+")[0]
    base: dict[str, Any] = {"brl_t": 0, "brl_weight": 1} if element == "brl" else {}
    full = compose(element, site, **base).loss(given)
    weighting = loss.split("+")[1] if "+" in loss else ""
    flags = {"drop": {"obj_drop": 1}, "ohem": {"ohem_ratio": 0.5}}.get(weighting, {})
    found = step(compose(loss.removeprefix("softmax "), site, **flags), given._replace(sure=sure)).loss
    negative = sure.expand_as(found) & (given.state == NEGATIVE).unsqueeze(-1)
    assert negative.any()
    if weighting == "ghm":  # which may weigh it up
        assert (found >= full - 1e-6)[negative].all()
    else:
        assert torch.equal(found[negative], full[negative])
    ignored = (given.state == IGNORE).unsqueeze(-1).expand_as(found)
    assert found[ignored].eq(0).all(), "sure does not bring back what is ignored"
    if weighting or element == "brl":
        other = (given.state == NEGATIVE).unsqueeze(-1) & ~sure.expand_as(found)
        assert (found < full)[other].any(), "the others are still dropped, recalibrated, weighed or mined"


def test_sure_negatives_take_no_place_of_those_that_are_mined() -> None:
    state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE]], dtype=torch.int8)
    logits = torch.tensor([[0.0, 9, 3, 2, 1]]).unsqueeze(-1)
    given = Candidates(logits, (state == POSITIVE).float().unsqueeze(-1), state, torch.zeros(1, 5))
    sure = torch.tensor([[False, True, False, False, False]]).unsqueeze(-1)
    kept = compose("ohem", ohem_ratio=2).loss(given._replace(sure=sure)).squeeze(-1) > 0
    assert kept.tolist() == [[True, True, True, True, False]]
    unknown = compose("ohem", ohem_ratio=2).loss(given._replace(unknown=sure)).squeeze(-1) > 0
    assert unknown.tolist() == [[True, False, True, True, False]]


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.neutral and row.kind != "head"])
@pytest.mark.parametrize("what", ["unknown", "sure"])
def test_neutral_settings_and_the_host_s_own_function_still_give_the_loss(name: str, what: str) -> None:
    if "samples" in METHODS[name].needs:
        pytest.skip("of a sample: see the test of its draws")
    given = candidates()
    given = given._replace(state=given.state.abs())
    unknown, sure = masks(given)
    given = given._replace(**{what: unknown if what == "unknown" else sure})
    objective = compose(name, **METHODS[name].neutral)
    calls = []

    def own(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    objective.own = own
    found = step(objective, given).loss
    assert bool(calls) == objective.plain
    plain = own(given.logits, given.targets)
    if what == "unknown":
        plain = plain.masked_fill(unknown & (given.state != POSITIVE).unsqueeze(-1), 0)
        if name == "ghm":  # N / GD of one bin: all that counts
            torch.testing.assert_close(found, plain)
            return
    assert torch.equal(found, plain)


@pytest.mark.parametrize("stage", [RPN, ROI])
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_what_is_unknown_or_sure_is_not_drawn_from_and_does_not_count_among_what_is(stage: str, rate: float) -> None:
    g = torch.Generator().manual_seed(0)
    state = torch.randint(-1, 2, (2, 200), generator=g).to(torch.int8)
    overlap = torch.zeros(2, 200).masked_fill(state == IGNORE, 1)
    unknown, sure = (torch.rand(2, 200, 1, generator=g) < 0.2 for _ in range(2))
    for loss, flags in (("nrd", {"nrd_rate": rate, "nrd_stage": stage}), ("drop", {"obj_drop": rate})):
        if loss == "drop" and stage == ROI:
            continue
        for known in (Known(unknown, None), Known(None, sure), Known(unknown, sure & ~unknown)):
            objective = compose(loss, "fasterrcnn", stage=stage, **flags)
            objective.relabel({})
            choice = objective.choose(Predictions(state, overlap.lt, state.float, state.float, known=known))
            settled = known.settled
            assert settled is not None
            eligible = (state == NEGATIVE) & ~settled
            assert choice.left is not None
            assert not (choice.left & ~eligible).any()
            assert choice.left.sum() == int(rate * int(eligible.sum()))


def test_a_class_that_is_sure_stays_where_the_candidate_is_dropped_in_the_others() -> None:
    given = candidates(count=60)
    _, sure = masks(given)
    given = given._replace(state=torch.full_like(given.state, NEGATIVE), targets=torch.zeros_like(given.targets),
                           overlap=torch.zeros_like(given.overlap), sure=sure)  # fmt: skip
    objective = compose("drop", obj_drop=1.0)
    found, choice = step(objective, given)
    assert torch.equal(found != 0, sure)
    assert (sure.any(-1) & ~sure.all(-1)).any()
    positive = given.state == POSITIVE
    assert objective.count(positive, choice, by="candidates", channels=3) == sure.sum()
    weighed, choice = step(compose("drop", obj_drop=0.5, drop_select="weight"), given)
    full = compose("bce").loss(given)
    torch.testing.assert_close(weighed, torch.where(sure, full, full / 2))
    assert float(objective.count(positive, choice, by="candidates")) == float(sure.sum() + (~sure).sum() / 2)


def test_what_is_matched_is_no_sure_negative_and_may_be_dropped() -> None:
    given = candidates(count=60)
    matched = given.state == POSITIVE
    given = given._replace(sure=torch.ones_like(given.logits).bool(), overlap=torch.zeros_like(given.overlap))
    found = step(compose("drop", obj_drop=1.0, drop_scope="matched"), given).loss
    assert found[matched].eq(0).all()
    assert found[given.state == NEGATIVE].ne(0).all()


def test_the_divisor_by_candidates_counts_what_has_a_loss() -> None:
    given = candidates()
    unknown, _ = masks(given)
    positive = given.state == POSITIVE
    ignored = Known(unknown, None).ignored(positive)
    objective = compose("bce")
    count = objective.count(positive, NOTHING, by="candidates", channels=3, ignored=ignored)
    assert count == (~unknown | positive.unsqueeze(-1)).sum()
    left = ~positive
    count = objective.count(positive, Choice(left=left), by="candidates", channels=3, ignored=ignored)
    assert count == 3 * positive.sum()


@pytest.mark.parametrize("loss", ["bce", "focal", "brl", "bce+soft", "bce+drop"])
@pytest.mark.parametrize("steps", [0, 2])
def test_an_objectness_and_its_refinements_have_none_where_a_class_is_unknown(loss: str, steps: int) -> None:
    given = candidates(classes=1)
    given = given._replace(state=given.state.where(given.state != IGNORE, NEGATIVE).to(torch.int8))
    g = torch.Generator().manual_seed(1)
    logits = given.logits.detach().squeeze(-1).requires_grad_()
    residuals = torch.randn(steps, *logits.shape, generator=g).requires_grad_()
    unknown = torch.rand(*logits.shape, 1, generator=g) < 0.4
    flat = given._replace(logits=logits, targets=given.targets.squeeze(-1))

    means = []  # over the positives and negatives, after each step

    def run(one: Candidates, ignores: bool) -> dict[str, Tensor]:
        flags = {"obj_drop": 0.5} if "drop" in loss else {}
        objective = compose(loss, "resobj", **flags)
        objective.ignores = ignores
        objective.relabel({})
        overlap = one.overlap.masked_fill(one.state == IGNORE, 1)
        choice = objective.choose(
            Predictions(one.state, overlap.lt, logits.detach, lambda: overlap, known=Known(one.unknown, None))
        )
        losses = objective.objectness(one, residuals, choice)
        means.append(objective.steps.sums)
        return losses

    found = run(flat._replace(unknown=unknown), False)
    out = unknown.squeeze(-1) & (given.state == NEGATIVE)
    expected = run(flat._replace(state=flat.state.masked_fill(out, IGNORE)), True)
    assert len(found) == 1 + bool(steps)
    torch.testing.assert_close(*means)
    for name, losses in found.items():
        assert losses[out].eq(0).all()
        torch.testing.assert_close(losses, expected[name])
    for x in (logits, residuals) if steps else (logits,):
        slope = torch.autograd.grad(sum(y.sum() for y in found.values()), x, retain_graph=True)[0]
        assert slope[..., out].eq(0).all()
        assert slope.ne(0).any()


def test_a_matched_candidate_that_becomes_background_has_no_loss_where_it_is_unknown() -> None:
    """Nothing labels it any more."""
    state = torch.full((1, 4), POSITIVE, dtype=torch.int8)
    given = Candidates(torch.zeros(1, 4, 2), torch.ones(1, 4, 2), state, torch.ones(1, 4))
    unknown = torch.tensor([[[True, True], [True, False], [False, False], [False, False]]])
    objective = compose("drop", obj_drop=1.0, drop_scope="literal")
    found = step(objective, given._replace(unknown=unknown), own=torch.zeros(1, 4)).loss
    assert torch.equal(found == 0, unknown)
