"""The five verbs in their order, and what runs on from step to step."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from objectives import candidates, compose, on_softmax, recipe, step
from torch import Tensor

from rebalance.hosts import SITES
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.methods.bce import bce, softmax_cross_entropy
from rebalance.methods.brl import brl
from rebalance.methods.drop import Drop
from rebalance.methods.focal import focal, softmax_focal
from rebalance.methods.method import DENSE, NOTHING, ROI, RPN, Choice, Predictions, Run, Site
from rebalance.methods.ohem import ohem_mask
from rebalance.methods.resobj import residual_objectness
from rebalance.methods.soft import soft_weights
from rebalance.objective import Objective

# Cost and weigh -------------------------------------------------------------------------------------------------------


def test_an_element_loss_times_weights() -> None:
    # two negatives and a positive: ohem with ratio 1 keeps the harder negative; soft weighs overlap 0 by 0.25
    logits = torch.tensor([[[1.0], [2.0], [3.0]]])
    targets, state = torch.tensor([[[0.0], [0.0], [1.0]]]), torch.tensor([[NEGATIVE, NEGATIVE, POSITIVE]])
    given = Candidates(logits, targets, state.to(torch.int8), torch.zeros(1, 3))
    entropy, modulated = bce(logits, targets), focal(logits, targets)
    mined, soft = torch.tensor([[[0], [1], [1]]]), torch.tensor([[[0.25], [0.25], [1]]])
    assert torch.equal(compose("ohem", ohem_ratio=1).loss(given), entropy * mined)
    assert torch.equal(compose("focal+ohem", ohem_ratio=1).loss(given), modulated * mined)
    assert torch.equal(compose("focal+soft").loss(given), modulated * soft)


def test_an_element_loss_times_weights_on_a_softmax() -> None:
    given = on_softmax()
    logits, targets, state, overlap = given[:4]
    counted = (state != IGNORE).double()
    entropy, modulated = softmax_cross_entropy(logits, targets), softmax_focal(logits, targets, gamma=3, alpha=0.75)
    flags = {"focal_gamma": 3, "focal_alpha": 0.75}
    assert torch.equal(compose("bce", "ssd").loss(given)[..., 0], entropy * counted)
    assert torch.equal(compose("focal", "ssd", **flags).loss(given)[..., 0], modulated * counted)
    soft = soft_weights(overlap, state)
    assert torch.equal(compose("focal+soft", "ssd", **flags).loss(given)[..., 0], modulated * soft)
    mined = compose("focal+ohem", "ssd", ohem_ratio=1, **flags).loss(given)[..., 0]
    assert torch.equal(mined, modulated * ohem_mask(modulated, state, ratio=1))
    assert mined[1].eq(0).all()  # no positive, nothing mined


@pytest.mark.parametrize("base", ["focal", "host"])
def test_all_settings_of_brl_together(base: str) -> None:
    given = candidates()
    given = given._replace(state=given.state.abs())
    flags = {"brl_t": 0.3, "brl_iou": 0.2, "brl_weight": 0.7, "brl_beta": 0.4, "brl_gamma": 1.5, "brl_alpha": 0.6}
    confused = ((given.state == NEGATIVE) & (given.overlap < 0.2)).unsqueeze(-1)
    expected = brl(*given[:2], confused, t=0.3, weight=0.7, beta=0.4, gamma=1.5, alpha=0.6)
    if base == "host":  # the settings are those of the confused alone
        expected = torch.where(confused, expected, bce(*given[:2]))
    assert torch.equal(compose("brl", brl_base=base, **flags).loss(given), expected)
    assert confused.any()


def test_the_host_s_own_cross_entropy_is_kept_where_nothing_changes_it() -> None:
    def own(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(logits, 7.0)

    given = candidates()
    for loss, kept in (("bce", True), ("drop", True), ("focal", False), ("soft", False)):
        made = recipe(loss=loss)
        objective = Objective(made, Run(made.site), own=own)
        assert objective.plain == kept
        assert bool(objective.loss(given).eq(7).all()) == kept


@pytest.mark.parametrize(
    ("loss", "by_overlap", "by_image"),
    [
        ("bce", False, True),
        ("drop", False, True),
        ("brl+drop", True, True),
        ("soft", True, True),
        ("ghm", False, False),
    ],
)
def test_what_a_host_needs_to_know(loss: str, by_overlap: bool, by_image: bool) -> None:
    objective = compose(loss)
    assert (objective.by_overlap, objective.by_image) == (by_overlap, by_image)


@pytest.mark.parametrize(
    ("loss", "rpn", "roi", "mined"),
    [("drop", "drop", "", 0), ("soft", "", "soft", 0), ("ohem", "", "ohem", 128), ("nrd", "", "nrd", 0)],
)
def test_of_two_stages_each_has_its_own_methods(loss: str, rpn: str, roi: str, mined: int) -> None:
    found = {stage: compose(loss, "fasterrcnn", stage=stage) for stage in (RPN, ROI)}
    assert [getattr(found[stage].weighting, "name", "") for stage in (RPN, ROI)] == [rpn, roi]
    assert found[ROI].mined == mined
    moved = compose("nrd", "fasterrcnn", stage=RPN, nrd_stage="rpn")
    assert moved.weighting is not None


# Warm-up, moving averages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "base", "plain"),
    [("stock", "host", bce), ("stock", "focal", focal), ("retinanet", "focal", focal), ("retinanet", "host", focal)],
)
def test_brl_starts_from_its_base_after_its_warm_up(site: str, base: str, plain: Any) -> None:
    given = candidates()
    given = given._replace(state=given.state.abs())
    recalibrated = compose("brl", site, brl_base=base).loss(given)
    assert not torch.equal(recalibrated, plain(*given[:2]))
    auto = 1 if site == "stock" else 0  # where targets are 0 and 1 there is none
    lengths = (("auto", 40, 4 * auto), ("auto", 39, 3 * auto), ("auto", 9, 0), (2, 40, 2), (0, 40, 0))
    for warmup, epochs, length in lengths:
        objective = compose("brl", site, brl_warmup=warmup, brl_base=base)
        for epoch in range(6):
            objective.begin_epoch(epoch, epochs)
            assert torch.equal(objective.loss(given), plain(*given[:2]) if epoch < length else recalibrated)


@pytest.mark.parametrize("base", ["focal", "host"])
def test_a_high_threshold_after_warm_up_stays_finite(base: str) -> None:
    # Free logits without a single label near, t = 0.7: the mirrored branch drives the scores apart, but not to NaN
    logits = torch.randn(1, 50, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    state, overlap = torch.full((1, 50), NEGATIVE, dtype=torch.int8), torch.zeros(1, 50)
    loss, optimizer = (
        compose("brl", brl_base=base, brl_t=0.7, brl_weight=1, brl_warmup=3),
        torch.optim.SGD([logits], lr=5.0),
    )
    for epoch in range(12):
        loss.begin_epoch(epoch)
        for _ in range(30):
            optimizer.zero_grad()
            value = loss.loss(Candidates(logits, torch.zeros(1, 50, 1), state, overlap)).sum()
            value.backward()
            optimizer.step()
            assert value.isfinite()
    assert logits.isfinite().all()


def test_the_moving_average_is_of_training_alone() -> None:
    objective, given = compose("ghm"), candidates()
    with torch.no_grad():
        validation = objective.loss(given)
    assert objective.run.kept == {}
    assert torch.equal(objective.loss(given).detach(), validation)  # the average starts at the first batch's counts
    after_one = objective.run.kept["average"]
    assert after_one.sum() == (given.state != IGNORE).sum() * 3
    objective.loss(candidates(seed=1))
    assert not torch.equal(objective.run.kept["average"], after_one)
    with torch.no_grad():
        assert torch.equal(objective.loss(given), validation)


def test_a_moving_average_that_is_put_back_goes_on() -> None:
    objective, other = compose("ghm"), compose("ghm")
    objective.loss(candidates(seed=1))
    other.run.kept = {"average": torch.tensor(objective.run.kept["average"].tolist())}
    assert torch.equal(objective.loss(candidates(seed=2)), other.loss(candidates(seed=2)))
    assert not torch.equal(compose("ghm").loss(candidates(seed=2)), objective.loss(candidates(seed=2)))


# Choose, divide -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "stage", "given"),
    [
        ("stock", "dense", {"loss": "drop", "obj_drop": 1.0, "box_drop": 1.0}),
        ("fasterrcnn", "rpn", {"loss": "drop", "obj_drop": 1.0}),
        ("fasterrcnn", "rpn", {"loss": "nrd", "nrd_stage": "rpn"}),
        ("fasterrcnn", "roi", {"loss": "nrd"}),
    ],
)
def test_nothing_is_chosen_in_validation(site: str, stage: str, given: dict[str, Any]) -> None:
    assert step(compose(site=site, stage=stage, **given), candidates()).choice is not NOTHING
    objective = compose(site=site, stage=stage, **given)
    with torch.no_grad():
        found = step(objective, candidates())
    assert found.choice is NOTHING
    assert objective.run.step == 0
    assert objective.counts is None


def test_counts_add_up_over_an_epoch_and_start_again() -> None:
    objective = compose("drop", obj_drop=0.5, box_drop=0.25)
    steps = [step(objective, candidates(seed=seed)).choice for seed in range(3)]
    assert objective.counts is not None
    assert objective.counts.dtype == torch.int64
    assert objective.counts.tolist() == [sum(int(c.counts[i]) for c in steps if c.counts is not None) for i in range(4)]
    assert objective.counts[1] == sum(int(c.left.sum()) for c in steps if c.left is not None) > 0
    objective.begin_epoch(1)
    assert objective.counts is None


def mask(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.bool)


@pytest.mark.parametrize(
    ("by", "choice", "expected"),
    [
        ("batch", NOTHING, 3),
        ("candidates", NOTHING, 20),
        ("batch", Choice(left=mask(1, 0, 0, 1, 0)), 2),
        ("candidates", Choice(left=mask(1, 0, 0, 1, 0)), 12),
        ("batch", Choice(left=mask(1, 0, 0, 1, 0), kept=False), 3),
        ("candidates", Choice(left=mask(1, 0, 0, 1, 0), kept=False), 20),
        ("candidates", Choice(background=mask(1, 0, 0, 1, 0)), 20),  # what became background is still trained on
        ("batch", Choice(background=mask(1, 0, 0, 1, 0)), 2),
        ("batch", Choice(left=mask(1, 1, 1, 1, 1)), 1),
    ],
)
def test_what_the_loss_is_divided_by(by: str, choice: Choice, expected: int) -> None:
    positive = mask(1, 1, 1, 0, 0)
    assert int(compose("drop").count(positive, choice, by=by, channels=4)) == expected


def test_by_image_each_image_has_the_mean_of_its_own() -> None:
    positive = torch.tensor([[True, True, False], [False, False, False]])
    assert compose("bce").count(positive, NOTHING, by="image").tolist() == [4, 2]  # two images; at least one positive
    ignored = torch.tensor([[False, False, True], [True, True, False]])
    assert int(compose("bce").count(positive, NOTHING, by="candidates", ignored=ignored)) == 3


def test_of_a_part_of_the_batch_it_is_divided_by_the_mean_over_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # this process has 1 positive of 4 candidates, another one 4 of 4: means of 2.5 and 4; of its own two images 1 and 1
    positive = torch.tensor([[True, False], [False, False]])
    monkeypatch.setattr("rebalance.methods.method.number", lambda: 2)
    monkeypatch.setattr("rebalance.methods.method.summed", lambda count: count + 4)
    objective = compose("bce")
    assert float(objective.count(positive, NOTHING, by="batch")) == 2.5
    assert float(objective.count(positive, NOTHING, by="candidates", channels=1)) == 4
    assert objective.count(positive, NOTHING, by="image").tolist() == [2, 2]
    with torch.no_grad():  # in validation the processes do not wait for each other
        assert int(objective.count(positive, NOTHING, by="batch")) == 1
    monkeypatch.setattr("rebalance.methods.method.summed", lambda count: count * 0)
    assert float(objective.count(positive, NOTHING, by="batch")) == 0.5  # nobody has one: of the whole batch 1


# Objectness -----------------------------------------------------------------------------------------------------------


def objects() -> tuple[Candidates, Tensor]:
    """One logit a candidate, and two refinements."""
    given = candidates(classes=1)
    g = torch.Generator().manual_seed(4)
    flat = given._replace(logits=given.logits.detach().squeeze(-1).requires_grad_(), targets=given.targets.squeeze(-1))
    return flat, torch.randn(2, *flat.state.shape, generator=g).requires_grad_()


@pytest.mark.parametrize("loss", ["bce", "focal", "drop", "soft"])
def test_refinements_are_trained_behind_their_gates(loss: str) -> None:
    given, residuals = objects()
    objective = compose(loss, "resobj")
    found = objective.objectness(given, residuals, NOTHING)

    def element(logits: Tensor, targets: Tensor) -> Tensor:
        one = given._replace(logits=logits.unsqueeze(-1), targets=targets.unsqueeze(-1))
        return compose(loss, "resobj").loss(one).squeeze(-1)

    counted = (given.state != IGNORE).float()
    torch.testing.assert_close(found["obj_loss"], element(given.logits, given.targets) * counted)
    steps = residual_objectness(given.logits, residuals, given.targets, given.state, element=element)
    torch.testing.assert_close(found["res_loss"], steps.losses.sum(0))
    assert found["res_loss"].sum() > 0
    assert objective.steps.sums is not None
    assert objective.steps.sums.shape == (2, 4)  # of three steps, and how many
    assert list(compose(loss, "obj").objectness(given, residuals[:0], NOTHING)) == ["obj_loss"]


@pytest.mark.parametrize("background", [False, True])
def test_what_is_chosen_leaves_the_objectness_and_its_refinements(background: bool) -> None:
    given, residuals = objects()
    low = given.state == POSITIVE if background else given.state == NEGATIVE
    gone = low & (torch.arange(low.shape[1]) % 2 == 0)
    choice = Choice(background=gone) if background else Choice(left=gone)
    found = compose("bce", "resobj").objectness(given, residuals, choice)
    if background:
        expected = bce(given.logits, given.targets.masked_fill(gone, 0)).masked_fill(given.state == IGNORE, 0)
        torch.testing.assert_close(found["obj_loss"], expected)
        state = choice.seen(given.state)
        assert torch.equal(state == POSITIVE, (given.state == POSITIVE) & ~gone)
        targets = given.targets.masked_fill(gone, 0)
        before, after = (residual_objectness(given.logits, residuals, targets, x) for x in (given.state, state))
        torch.testing.assert_close(found["res_loss"], after.losses.sum(0))
        assert after.entered.sum() < before.entered.sum()  # the gates are those of the positives that are left
    else:
        assert found["obj_loss"][gone].eq(0).all()
        assert found["res_loss"][gone].eq(0).all()
        slopes = torch.autograd.grad(found["obj_loss"].sum() + found["res_loss"].sum(), residuals)[0]
        assert slopes[:, gone].eq(0).all()


def test_what_becomes_background_is_a_negative_to_the_element_loss() -> None:
    given, residuals = objects()
    gone = given.state == POSITIVE
    # of negatives that all are confused, and weigh nothing, nothing is left
    found = compose("brl", "resobj", brl_iou=1, brl_weight=0).objectness(given, residuals, Choice(background=gone))
    assert found["obj_loss"].eq(0).all()
    assert compose("brl", "resobj", brl_iou=1, brl_weight=0).objectness(given, residuals, NOTHING)["obj_loss"].any()


# Relabel; a method that somebody adds ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shifted(Drop):
    """A method with a verb that none of ours has: it moves every label to class 3."""

    def relabel(self, batch: dict[str, Any], run: Run) -> dict[str, Any]:
        return {**batch, "cls": torch.full_like(batch["cls"], 3)}

    def divide(self, site: Site) -> str:
        return "candidates"


def test_a_method_may_change_the_labels() -> None:
    made = recipe(loss="drop")
    objective = Objective(replace(made, methods=(made.methods[0], Shifted())), Run(made.site))
    batch = {"cls": torch.zeros(4, 1)}
    assert objective.relabel(batch)["cls"].eq(3).all()
    assert batch["cls"].eq(0).all()


# Random numbers -------------------------------------------------------------------------------------------------------


def drawn(run: Run, *purpose: str) -> list[int]:
    return torch.randint(10**6, (4,), generator=run.generator(torch.device("cpu"), *purpose)).tolist()  # type: ignore[no-any-return]


def test_random_numbers_hang_on_seed_process_criterion_epoch_step_and_purpose_alone() -> None:
    site, found = SITES["stock"], {}
    for key in ({}, {"seed": 1}, {"rank": 1}, {"stream": 1}, {"seed": 1, "rank": 1}):
        run = Run(site, **key)
        for run.epoch in (0, 1):
            for run.step in (1, 2):
                for purpose in ((), ("nrd",)):
                    found[(*key.items(), run.epoch, run.step, purpose)] = drawn(run, *purpose)
    assert len(found) == 40
    assert len({tuple(values) for values in found.values()}) == 40
    torch.manual_seed(999)  # nothing hangs on the global generator
    again = Run(site, seed=1)
    again.epoch, again.step = 1, 2
    assert drawn(again) == found[("seed", 1), 1, 2, ()]
    assert drawn(deepcopy(again)) == drawn(again)


def test_validation_draws_the_same_for_every_batch() -> None:
    run = Run(SITES["fasterrcnn"])
    with torch.no_grad():
        first = drawn(run, "anchors")
        run.epoch, run.step = 3, 7
        assert drawn(run, "anchors") == first
    assert drawn(run, "anchors") != first


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_draws_the_same_whatever_came_before(epoch: int) -> None:
    def steps(objective: Objective) -> list[Tensor]:
        return [step(objective, candidates(seed=seed)).loss.detach() for seed in range(3)]

    resumed, whole = (compose("drop", obj_drop=0.5) for _ in range(2))
    resumed.begin_epoch(epoch)
    wanted = steps(resumed)
    for before in range(epoch):
        whole.begin_epoch(before)
        steps(whole)
    whole.begin_epoch(epoch)
    assert all(torch.equal(a, b) for a, b in zip(steps(whole), wanted, strict=True))
    whole.begin_epoch(epoch)  # an epoch that starts again, e.g. after running out of memory
    assert all(torch.equal(a, b) for a, b in zip(steps(whole), wanted, strict=True))


def test_predictions_are_looked_at_only_where_a_method_asks() -> None:
    def never(_iou: float = 0) -> Tensor:
        raise AssertionError

    state = torch.zeros(1, 3, dtype=torch.int8)
    for loss, flags in (("bce", {}), ("focal", {}), ("drop", {}), ("drop", {"obj_drop": 0.5, "drop_warmup": 1})):
        assert compose(loss, **flags).choose(Predictions(state, never, never, never)) is NOTHING
    nrd = compose("nrd", "fasterrcnn", stage=ROI).choose(Predictions(state, never, never, never))
    assert nrd.left is not None
    assert int(nrd.left.sum()) == 2  # floor(0.75 · 3)
    assert compose("focal", stage=DENSE).weighting is None
