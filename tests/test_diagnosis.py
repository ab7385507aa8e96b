"""What a loss does to withheld objects: shares, scores, precision and recall by hand, and that nothing else changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives import LOSSES, candidates, compose, on_softmax
from torch import Tensor

from rebalance.diagnosis import values
from rebalance.hosts.host import diagnosis
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, SIGMOID, Candidates
from rebalance.match.regions import Known
from rebalance.match.withheld import Withheld, present
from rebalance.methods.method import NOTHING, Choice, Predictions
from rebalance.objective import Objective

# Two images of 100 by 100 pixels, of two classes; in the first a withheld box of class 1, in the second two
WITHHELD = Withheld(
    torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]),
    torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.32, 0.3, 0.2, 0.2]]), 2, 2,
)  # fmt: skip


def told(objective: Objective) -> dict[str, float]:
    assert objective.diagnosis is not None
    assert objective.diagnosis.sums is not None
    return values(objective.diagnosis.kinds, objective.diagnosis.sums.tolist())


def step(objective: Objective, given: Candidates) -> tuple[Tensor, Choice]:
    """One step with the candidates' own `hidden`; the loss is their sum, divided by two."""
    objective.relabel({"withheld": WITHHELD})
    known = Known(given.unknown, given.sure, given.hidden)
    choice = objective.choose(
        Predictions(given.state, given.overlap.lt, lambda: given.logits.amax(-1), lambda: given.overlap, known=known)
    )
    loss = choice.of_loss(choice.trained(lambda one: objective.loss(given._replace(state=one.seen(given.state)))))
    total = loss.sum() / 2
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach(), choice


def test_candidates_at_a_withheld_object_overlap_it_by_a_half() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [10, 10, 30, 50], [10, 10, 30, 51], [22, 20, 42, 40], [60, 60, 80, 80]])
    found = present(WITHHELD, boxes, images=2, size=(100, 100), each=True)
    assert found[0].tolist() == [[False, True], [False, True], [False, False], [False, False], [False, False]]
    assert found[1].tolist() == [[False, False]] * 3 + [[True, True], [False, False]]
    assert present(WITHHELD, boxes, images=2, size=(100, 100), each=False)[1, :, 0].tolist() == [False] * 3 + [
        True,
        False,
    ]
    each = boxes.expand(2, -1, -1).contiguous()
    assert torch.equal(found, present(WITHHELD, each, images=2, size=(100, 100), each=True))
    none = WITHHELD._replace(
        image=torch.zeros(0).long(), classes=torch.zeros(0).long(), boxes_xywh=torch.zeros(0, 4), most=0
    )
    assert present(none, boxes, images=2, size=(100, 100), each=True).shape == (2, 5, 2)
    assert not present(none, boxes, images=2, size=(100, 100), each=True).any()


def by_hand(logits: list[float], hidden: list[int], state: list[int], overlap: float = 0.0) -> Candidates:
    """One image, one class."""
    n = len(logits)
    there = torch.tensor([[i in hidden] for i in range(n)]).view(1, n, 1)
    states = torch.tensor([state], dtype=torch.int8)
    x = torch.tensor(logits, dtype=torch.float32).view(1, n, 1).requires_grad_()
    targets = (states == POSITIVE).float().unsqueeze(-1)
    return Candidates(x, targets, states, torch.full((1, n), overlap), SIGMOID, hidden=there)


def test_shares_and_scores_by_hand() -> None:
    # negatives at 0, 0, 2; a positive; the third and the positive lie at a withheld object
    objective = compose("bce", diagnose=True)
    step(objective, by_hand([0, 0, 2, 1], [2, 3], [NEGATIVE, NEGATIVE, NEGATIVE, POSITIVE]))
    found = told(objective)
    soft, hard = math.log(2), math.log1p(math.exp(2))
    assert found["loss"] == pytest.approx(hard / (hard + 2 * soft), rel=1e-6)
    score = 1 / (1 + math.exp(-2))
    assert found["gradient"] == pytest.approx(score / (score + 1), rel=1e-6)
    assert found["score"] == pytest.approx(score, rel=1e-6)
    assert found["background"] == pytest.approx(0.5)
    assert (found["rate"], found["candidates"]) == (pytest.approx(1 / 3), 1)


def test_two_steps_are_summed_and_an_epoch_begins_anew() -> None:
    objective = compose("bce", diagnose=True)
    step(objective, by_hand([0, 0], [0], [NEGATIVE, NEGATIVE]))
    step(objective, by_hand([0, 0, 0, 0], [0], [NEGATIVE] * 4))
    found = told(objective)
    assert (found["loss"], found["gradient"]) == (pytest.approx(2 / 6), pytest.approx(2 / 6))
    assert (found["rate"], found["candidates"]) == (pytest.approx(2 / 6), 2)
    objective.begin_epoch(1)
    assert objective.diagnosis is not None
    assert objective.diagnosis.sums is None


def test_precision_and_recall_of_what_is_dropped() -> None:
    # of four negatives the two most confident are dropped: one at a withheld object, one not; one object stays
    objective = compose("bce+drop", obj_drop=0.5, drop_select="confident", diagnose=True)
    _, choice = step(objective, by_hand([3, 2, 1, 0, 9], [0, 2], [NEGATIVE] * 4 + [POSITIVE]))
    assert choice.left is not None
    assert choice.left.tolist() == [[True, True, False, False, False]]
    found = told(objective)
    assert (found["dropped_precision"], found["dropped_recall"]) == (0.5, 0.5)
    assert found["rate"] == 0.5
    left = 1 / (1 + math.exp(-1))  # of the object that was not dropped, beside the negative at 0
    assert found["gradient"] == pytest.approx(left / (left + 0.5), rel=1e-6)


def test_the_control_of_dropping_drops_none() -> None:
    objective = compose("bce+drop", obj_drop=0.75, drop_select="weight", diagnose=True)
    step(objective, by_hand([3, 2, 1, 0], [0, 2], [NEGATIVE] * 4))
    found = told(objective)
    assert "dropped_precision" not in found
    assert (found["lowered_precision"], found["lowered_recall"]) == (0.5, 1)


def test_precision_and_recall_of_what_is_recalibrated() -> None:
    # mirrored: p_t = 1 - sigma <= 0.5, so logits of 0 and more; three of five, of which two are objects, of three
    flags = {"brl_base": "focal", "brl_gamma": 0, "brl_alpha": -1, "diagnose": True}
    objective = compose("brl", **flags)
    step(objective, by_hand([1, 2, 3, -1, -2], [0, 1, 3], [NEGATIVE] * 5))
    found = told(objective)
    assert (found["recalibrated_precision"], found["recalibrated_recall"]) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    # what is trained as an object is no loss of a negative: those at -1 and -2 are, cross-entropy
    one, two = math.log1p(math.exp(-1)), math.log1p(math.exp(-2))
    assert found["loss"] == pytest.approx(one / (one + two), rel=1e-5)
    push = [1 / (1 + math.exp(1)), 1 / (1 + math.exp(2))]
    assert found["gradient"] == pytest.approx(push[0] / sum(push), rel=1e-5)


def test_nothing_is_recalibrated_in_the_warm_up_or_near_a_label() -> None:
    objective = compose("brl", brl_base="focal", brl_warmup=1, diagnose=True)
    objective.begin_epoch(0, 5)
    step(objective, by_hand([1, 2], [0], [NEGATIVE] * 2))
    found = told(objective)
    assert math.isnan(found["recalibrated_precision"])
    assert found["recalibrated_recall"] == 0
    objective.begin_epoch(1, 5)
    step(objective, by_hand([1, 2], [0], [NEGATIVE] * 2, overlap=0.2))
    assert told(objective)["recalibrated_recall"] == 0
    step(objective, by_hand([1, 2], [0], [NEGATIVE] * 2))
    assert told(objective)["recalibrated_recall"] == 0.5


def test_precision_and_recall_of_what_weighs_less_than_a_half() -> None:
    # soft sampling: 0.25 far from the labels, 0.55 at an overlap of 0.2
    given = by_hand([0, 0, 0, 0], [0, 1], [NEGATIVE] * 4)
    given = given._replace(overlap=torch.tensor([[0, 0.2, 0.0, 0.0]]))
    objective = compose("bce+soft", diagnose=True)
    step(objective, given)
    found = told(objective)
    assert (found["lowered_precision"], found["lowered_recall"]) == (pytest.approx(1 / 3), 0.5)
    weight = 0.25 + 0.75 * math.exp(-50 * math.exp(-4))
    assert found["gradient"] == pytest.approx((0.25 + weight) / (0.75 + weight), rel=1e-6)


def test_precision_and_recall_of_what_is_ignored() -> None:
    objective = compose("bce", diagnose=True)
    step(objective, by_hand([0, 0, 0, 0, 5], [0, 1, 4], [NEGATIVE, IGNORE, IGNORE, NEGATIVE, POSITIVE]))
    found = told(objective)
    assert (found["ignored_precision"], found["ignored_recall"]) == (0.5, 0.5)
    assert found["rate"] == 0.5


def test_at_a_withheld_object_another_class_is_rightly_pushed_down() -> None:
    x = torch.zeros(1, 2, 2).requires_grad_()
    hidden = torch.tensor([[[False, True], [False, False]]])
    state = torch.zeros(1, 2, dtype=torch.int8)
    objective = compose("bce", diagnose=True)
    step(objective, Candidates(x, torch.zeros(1, 2, 2), state, torch.zeros(1, 2), hidden=hidden))
    found = told(objective)
    assert (found["loss"], found["gradient"]) == (pytest.approx(0.25), pytest.approx(0.25))
    assert (found["rate"], found["candidates"]) == (0.5, 1)  # of candidates


def test_a_softmax_pushes_all_classes_down_together() -> None:
    given = on_softmax()
    hidden = torch.zeros(2, 20, 1, dtype=torch.bool)
    hidden[1, :5] = True
    objective = compose("bce", site="ssd", diagnose=True)
    total, _ = step(objective, given._replace(hidden=hidden))
    found = told(objective)
    negative = given.state == NEGATIVE
    background = given.logits.detach().softmax(-1)[..., 0]
    cost, push = -background.log(), 1 - background
    assert found["loss"] == pytest.approx(float(cost[1, :5].sum() / cost[negative].sum()), rel=1e-5)
    assert found["gradient"] == pytest.approx(float(push[1, :5].sum() / push[negative].sum()), rel=1e-5)
    assert found["score"] == pytest.approx(float(push[1, :5].mean()), rel=1e-5)
    assert total > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_diagnosis_changes_no_loss_and_no_gradient(loss: str) -> None:
    results = []
    for diagnose in (False, True):
        flags: dict[str, Any] = {"obj_drop": 0.5} if "drop" in loss else {}
        objective, given = compose(loss, **flags, diagnose=diagnose), candidates()
        hidden = torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(1)) < 0.2
        total, _ = step(objective, given._replace(hidden=hidden if diagnose else None))
        results.append((total, given.logits.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert 0 < told(objective)["gradient"] < 1
    assert 0 < told(objective)["loss"] < 1


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("loss", ["bce", "focal", "brl"])
def test_an_objectness_is_diagnosed_without_its_refinements(loss: str, steps: int) -> None:
    g = torch.Generator().manual_seed(3)
    flags = {"head": "resobj", "resobj_steps": steps} if steps else {"head": "obj"}
    from objectives import recipe_of

    made = recipe_of({"loss": loss, "diagnose": True, "obj_base": "stock", **flags})
    from rebalance.methods.method import Run

    results = []
    for diagnose in (False, True):
        objective = Objective(made, Run(made.site))
        logits = torch.randn(2, 12, generator=g.manual_seed(3)).requires_grad_()
        residuals = torch.randn(steps, 2, 12, generator=g).requires_grad_()
        state = (torch.rand(2, 12, generator=g) < 0.2).to(torch.int8)
        hidden = torch.rand(2, 12, 1, generator=g) < 0.3
        given = Candidates(logits, state.float(), state, torch.zeros(2, 12), hidden=hidden if diagnose else None)
        losses = objective.objectness(given, residuals, NOTHING)
        sum(x.sum() for x in losses.values()).backward()  # type: ignore[union-attr]
        results.append((logits.grad, residuals.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] is None or torch.equal(results[0][1], results[1][1])
    found = told(objective)
    at = hidden.squeeze(-1) & (state == NEGATIVE)
    assert found["candidates"] == int(at.sum())  # once, whatever the steps
    slope = results[1][0].clamp(min=0)
    assert found["gradient"] == pytest.approx(float(slope[at].sum() / slope[state == NEGATIVE].sum()), rel=1e-5)


def test_a_step_that_overflowed_is_left_out() -> None:
    objective = compose("bce", diagnose=True)
    step(objective, by_hand([0, 0], [0], [NEGATIVE, NEGATIVE]))
    given = by_hand([0, 0, 0, 0], [0, 1, 2], [NEGATIVE] * 4)
    objective.relabel({"withheld": WITHHELD})
    (objective.loss(given).sum() * float("inf")).backward()  # type: ignore[no-untyped-call]
    found = told(objective)
    assert (found["loss"], found["gradient"]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_a_validation_is_not_diagnosed() -> None:
    objective = compose("bce", diagnose=True)
    with torch.no_grad():
        objective.relabel({"withheld": WITHHELD})
        assert objective.withheld is None
        objective.loss(by_hand([0, 0], [0], [NEGATIVE, NEGATIVE]))
    assert objective.diagnosis is not None
    assert objective.diagnosis.sums is None


def test_branches_are_summed_and_stages_told_apart() -> None:
    class Branch:
        def __init__(self, *objectives: Objective) -> None:
            self.objectives = objectives

    rpn = compose("bce", site="fasterrcnn", stage="rpn", diagnose=True)
    roi = compose("bce", site="fasterrcnn", stage="roi", diagnose=True)
    step(rpn, by_hand([0, 0], [0], [NEGATIVE, NEGATIVE]))
    step(roi, by_hand([0, 0, 0, 0], [0], [NEGATIVE] * 4))
    found = diagnosis(Branch(rpn, roi))
    assert (found["rpn_loss"], found["roi_loss"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert "loss" not in found
    assert diagnosis(Branch(compose("bce"))) == {}
