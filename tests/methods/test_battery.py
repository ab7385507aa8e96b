"""What every method must do, run over the rows of the registry through the objective: a new row is tested by itself."""

from __future__ import annotations

import doctest
import sys
from typing import Any

import pytest
import torch
from objectives import LOSSES, candidates, compose, gradient, on_softmax, recipe, step
from torch import Tensor

from rebalance.hosts import SITES
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.methods import JOINS, METHODS
from rebalance.methods.bce import bce
from rebalance.methods.method import DENSE, RPN, Method
from rebalance.settings import settings_of

ROWS = list(METHODS)
HEADS = [name for name, row in METHODS.items() if row.kind == "head"]
GOLDEN = [(name, index) for name, row in METHODS.items() for index in range(len(row.golden))]
ON_SOFTMAX = [f"{element}{plus}" for element in ("bce", "focal") for plus in ("", "+drop", "+ohem", "+soft")]
VERBS = ("relabel", "choose", "cost", "weigh", "divide")
ABLE = {
    "element": {"relabel", "cost", "divide"},
    "weighting": {"relabel", "choose", "weigh", "divide"},
    "head": set[str](),
}
# Settings that mean nothing without another one
BESIDE: dict[str, dict[str, Any]] = {
    **{name: {"obj_drop": 0.5} for name in ("neg_iou", "drop_scope", "drop_select", "drop_warmup", "drop_divisor")},
    "nrd_rate": {"nrd_stage": "rpn"},
    "ghm_regions": {"ghm_bins": 999},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_it_is(name: str) -> None:
    row = METHODS[name]
    assert row.kind in ("element", "weighting", "head")
    assert all((row.title, row.summary, row.helps, row.source, row.equation, row.stages))
    assert any(row.defined(site) for site in SITES.values())
    assert set(row.neutral) <= set(settings_of(row))
    verbs = {verb for verb in VERBS if getattr(row, verb) is not getattr(Method, verb)}
    assert verbs <= ABLE[row.kind], "of a verb that its kind has not, nothing would be heard"
    assert (row.kind == "weighting") == bool(JOINS.get(name))


@pytest.mark.parametrize("name", ROWS)
def test_the_example_in_its_docstring(name: str) -> None:
    row = METHODS[name]
    found = doctest.DocTestFinder(recurse=False).find(row, row.__name__, globs=dict(vars(sys.modules[row.__module__])))
    runner = doctest.DocTestRunner()
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 0


@pytest.mark.parametrize("name", [name for name in ROWS if name not in HEADS])
def test_there_are_numbers_worked_out_by_hand(name: str) -> None:
    assert METHODS[name].golden or name == "nrd", "a method needs golden numbers"  # nrd only draws, see its own test


@pytest.mark.parametrize(("name", "index"), GOLDEN)
def test_golden_numbers(name: str, index: int) -> None:
    golden = METHODS[name].golden[index]
    targets = torch.tensor(golden.targets).float().view(1, -1, 1)
    overlap = torch.zeros(len(golden.logits)) if golden.overlap is None else torch.tensor(golden.overlap)
    state = (targets.squeeze(-1) > 0).to(torch.int8)
    logits = torch.tensor(golden.logits).float().view_as(targets).requires_grad_()
    found = step(compose(name, **golden.settings), Candidates(logits, targets, state, overlap.float().view(1, -1)))
    torch.testing.assert_close(found.loss.flatten(), torch.tensor(golden.loss).float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss", [*LOSSES, *(f"softmax {loss}" for loss in ON_SOFTMAX)])
def test_ignored_candidates_have_no_loss_and_no_gradient_and_the_order_does_not_matter(loss: str) -> None:
    site, given = ("ssd", on_softmax()) if loss.startswith("softmax ") else ("stock", candidates())
    loss = loss.removeprefix("softmax ")
    ignored = given.state == IGNORE
    found = compose(loss, site).loss(given)
    assert found.isfinite().all()
    assert found[ignored].eq(0).all()
    slopes = gradient(found, given)
    assert slopes[ignored].eq(0).all()
    assert slopes[~ignored].ne(0).any()
    wild = given.logits.detach().clone()
    wild[ignored] *= -30
    torch.testing.assert_close(compose(loss, site).loss(given._replace(logits=wild)), found.detach())
    order = torch.randperm(given.state.shape[1], generator=torch.Generator().manual_seed(5))
    moved = Candidates(*(x.detach()[:, order] for x in given[:4]), given.link)
    torch.testing.assert_close(compose(loss, site).loss(moved), found.detach()[:, order])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("state", "count"), [(POSITIVE, 4), (NEGATIVE, 4), (IGNORE, 4), (NEGATIVE, 0)])
def test_batches_of_one_kind_and_of_nothing(loss: str, state: int, count: int) -> None:
    given = candidates(count=count)
    given = given._replace(state=torch.full_like(given.state, state), overlap=torch.zeros(2, count))
    found = step(compose(loss, **({"obj_drop": 1.0} if "drop" in loss else {})), given).loss
    assert found.shape == given.logits.shape
    assert found.isfinite().all()
    assert gradient(found, given).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_prediction_that_is_no_number_makes_the_loss_none(loss: str) -> None:
    """The host looks for it and goes back to the last checkpoint; an index out of range would end the process."""
    given = candidates()
    logits = given.logits.detach().where(given.state.unsqueeze(-1) == IGNORE, torch.nan)
    assert compose(loss).loss(given._replace(logits=logits)).sum().isnan()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits_are_finite_half_precision_is_raised_and_double_kept(loss: str, dtype: torch.dtype) -> None:
    given = candidates()
    logits = (given.logits.detach().sign() * 100).to(dtype).requires_grad_()
    given = given._replace(logits=logits, targets=given.targets.to(dtype))
    found = compose(loss).loss(given)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert gradient(found, given).isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_the_slope(loss: str) -> None:
    given = candidates(images=1, count=6, classes=2, dtype=torch.float64)
    # what a weighting gives has no gradient of its own
    weights = compose(loss)
    factor = (weights.loss(given) / weights.element.cost(given, weights.run)).detach()

    def weighed(logits: Tensor) -> Tensor:
        objective = compose(loss)
        cost = objective.element.cost(given._replace(logits=logits), objective.run)
        return cost * factor

    assert torch.autograd.gradcheck(weighed, given.logits)
    torch.testing.assert_close(gradient(compose(loss).loss(given), given), gradient(weighed(given.logits), given))


@pytest.mark.parametrize("loss", LOSSES)
def test_inputs_are_unchanged_and_the_same_step_draws_the_same(loss: str) -> None:
    flags = {"obj_drop": 0.5, "box_drop": 0.5} if "drop" in loss else {}
    given = candidates()
    before = [x.detach().clone() for x in given[:4]]
    first = step(compose(loss, **flags), given)
    first.loss.sum().backward()
    assert all(torch.equal(a.detach(), b) for a, b in zip(given[:4], before, strict=True))
    assert torch.equal(first.loss, step(compose(loss, **flags), given).loss)


@pytest.mark.parametrize("element", [name for name, row in METHODS.items() if row.kind == "element"])
def test_the_right_answer_costs_less(element: str) -> None:
    state, near = torch.tensor([[NEGATIVE, POSITIVE]], dtype=torch.int8), torch.ones(1, 2)
    targets = torch.tensor([[[0.0], [1.0]]])
    right, wrong = (compose(element).loss(Candidates(targets * s - s / 2, targets, state, near)) for s in (8, -8))
    assert (right < wrong).all()


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.neutral and DENSE in row.stages])
def test_neutral_settings_are_cross_entropy_in_value_and_gradient(name: str) -> None:
    given = candidates()
    given = given._replace(state=given.state.abs())  # nothing ignored, every image has a positive
    found, expected = step(compose(name, **METHODS[name].neutral), given).loss, bce(given.logits, given.targets)
    assert torch.equal(found, expected)
    assert torch.equal(gradient(found, given), gradient(expected, given))


def others(name: str, default: Any) -> list[Any]:
    """Two values of a setting that are neither its default nor, so that no branch is taken for another, neutral."""
    item = next(settings_of(row)[name] for row in METHODS.values() if name in settings_of(row))
    facts = item.metadata
    if facts["number"] and default == item.default:  # left to the run, which nobody has told how long it is
        default = facts["number"](0)
    if facts["choices"] and item.default == "auto":
        return [choice for choice in facts["choices"] if choice not in ("auto", default)]
    if facts["choices"]:
        return [choice for choice in facts["choices"] if choice != default]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1, default + 5]
    values = (0.35, 0.55) if facts["high"] <= 1 else (default * 0.6 + 0.1, default * 1.7 + 0.2)
    return [value for value in values if value != default]


@pytest.mark.parametrize("name", [s for row in METHODS.values() if row.kind != "head" for s in settings_of(row)])
def test_every_setting_has_a_say(name: str) -> None:
    """At each of some other values the losses of some steps are others than by default, and than at each other."""
    row = next(row for row in METHODS.values() if name in settings_of(row))
    if name in ("ohem_rois", "nrd_stage", "brl_overlap"):
        pytest.skip("not a matter of candidates, but of where they come from: tested on the heads that have it")
    site, stage = ("stock", DENSE) if row.defined(SITES["stock"]) else ("fasterrcnn", RPN)
    beside = BESIDE.get(name, {})

    def result(**flags: Any) -> list[Tensor]:
        objective = compose(row.name, site, stage=stage, **{**beside, **flags})
        found = []
        for seed, epoch in enumerate((0, 3, 3, 9)):  # two steps of one, and past the warm-ups
            objective.run.epoch = epoch
            given = candidates(seed=seed, count=400)
            given = given._replace(state=given.state.where(torch.arange(400) % 8 == 0, NEGATIVE).to(torch.int8))
            loss, choice = step(objective, given)
            positive = given.state == POSITIVE
            masks = [m for m in (choice.left, choice.background, choice.box) if m is not None]
            divisor = objective.count(positive, choice, by="candidates")
            found += [loss.detach(), divisor, *masks]
        return found

    default = recipe(site, loss=row.name)[name]  # what auto comes to
    results = [result(), *(result(**{name: value}) for value in others(name, default))]
    for index, one in enumerate(results):
        for other in results[:index]:
            same = len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert not same, f"{name} makes no difference"
