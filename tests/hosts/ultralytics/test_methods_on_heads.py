"""The methods on the kinds of heads: what each head makes candidates of, and what it makes of their losses.

What a loss does with candidates is tested without heads, see `tests/methods`; here it is taken for granted.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objectives import LOSSES, compose, recipe_of, step
from small_training import log
from torch import Tensor
from yolo_heads import (
    ANCHOR,
    GRIDS,
    Batch,
    anchors_at_cells,
    assigned,
    batch,
    build,
    decoded,
    hosts,
    leaves,
    on_anchors,
    overlaps,
    parts,
    predictions,
    within,
)

from rebalance import YOLO
from rebalance.hosts import SITES
from rebalance.hosts.host import begin_epoch, branches, describe, keep, remembered, restore
from rebalance.hosts.ultralytics.model import criterion_of
from rebalance.match.candidates import POSITIVE, Candidates, candidate_state
from rebalance.methods import METHODS
from rebalance.methods.method import DENSE

HEADS = ("yolov8n.yaml", "yolo26n.yaml", ANCHOR)
DIVISORS = ("host", "image", "batch", "candidates")
IMAGES = 3
LABELS = batch(8)  # the third image has none


def make(name: str, loss: str, **flags: Any) -> Any:
    given = {"loss": loss, **({"obj_drop": 0.5} if "drop" in loss else {}), **flags}
    return criterion_of(build(name), recipe_of({**given, "head": "anchor" if name == ANCHOR else "stock"}), 0)


def run(criterion: Any, name: str, labels: Batch, dtype: torch.dtype = torch.float32) -> Any:
    """Loss vector, items and gradients."""
    preds = predictions(build(name), images=IMAGES, dtype=dtype)
    loss, items = criterion(preds, {k: v.clone() for k, v in labels.items()})
    return loss.detach(), items, torch.autograd.grad(loss.sum(), leaves(preds), materialize_grads=True)


# Against the objective of candidates that other code has found --------------------------------------------------------


def found(name: str, loss: str, **flags: Any) -> tuple[Tensor, Tensor]:
    """The part of the last branch's loss that the methods change, without B; its gradient in the (B, N, C) logits."""
    preds, branch = parts(predictions(build(name), images=IMAGES))[-1], branches(make(name, loss, **flags))[-1]
    vector = (branch if name == ANCHOR else branch.loss)(preds, LABELS)[0] / IMAGES
    if name == ANCHOR:
        gradients = torch.autograd.grad(vector[1], preds["maps"])
        return vector[1].detach(), torch.cat([g[:, :, 4].flatten(1) for g in gradients], 1).unsqueeze(-1)
    return vector[1].detach(), torch.autograd.grad(vector[1], preds["scores"])[0].transpose(1, 2)


def given(name: str, by: str) -> tuple[Candidates, Tensor, Tensor | None]:
    """Candidates of the last branch, with the overlap that `brl_overlap` asks for, and that of the predicted boxes.

    And, on heads without slots, the latter with their own labels.
    """
    model = build(name)
    preds, own = parts(predictions(model, images=IMAGES))[-1], None
    if name == ANCHOR:
        candidates = on_anchors(model.model[0], preds["maps"], LABELS)
        boxes, corners = decoded(model.model[0], preds["maps"]), anchors_at_cells()
        centres = (corners[:, :2] + corners[:, 2:]) / 2
    else:
        host = assigned(hosts(model)[-1], preds, LABELS)
        boxes, centres, own = host.boxes, host.centres, host.own
        candidates = Candidates(host.logits, host.scores, candidate_state(host.positive), overlaps(boxes, LABELS))
    if by == "centre":
        candidates = candidates._replace(overlap=within(centres, LABELS, IMAGES))
    return candidates, overlaps(boxes, LABELS), own


def expected(name: str, loss: str, divisor: str, **flags: Any) -> tuple[Tensor, Tensor]:
    """What `found` should be."""
    candidates, predicted, own = given(name, flags.get("brl_overlap", "box"))
    more = {**({"obj_drop": 0.5} if "drop" in loss else {}), **flags}
    key = (0, 0, 1 if name == "yolo26n.yaml" else 0)
    losses, choice = step(
        compose(loss, "anchor" if name == ANCHOR else "stock", key=key, **more), candidates, predicted, own
    )
    positive, left = candidates.state == POSITIVE, torch.zeros_like(candidates.state).bool()
    if choice.gone is not None and choice.kept:
        left = choice.gone
    counted = positive & ~left
    if divisor == "image":
        value = (losses.sum((1, 2)) / counted.sum(1).clamp(min=1)).mean()
    elif divisor == "batch":
        value = losses.sum() / counted.sum().clamp(min=1)
    elif divisor == "candidates":
        gone = 0 if choice.background is not None else left.sum()  # what became background is trained on still
        value = losses.sum() / ((left.numel() - gone) * losses.shape[-1])
    elif name == ANCHOR:  # the mean of each level, times its balance
        levels = torch.split(losses.squeeze(-1), [3 * n * n for n in GRIDS], 1)
        sizes = [(~x).sum() for x in torch.split(left, [3 * n * n for n in GRIDS], 1)]
        pairs = zip(levels, sizes, (4.0, 1.0, 0.4), strict=True)
        value = torch.stack([x.sum() / size * balance for x, size, balance in pairs]).sum()
    else:
        value = losses.sum() / candidates.targets[~left].sum().clamp(min=1)
    value = value * (0.01 if name == ANCHOR else 0.5)  # (64 / 640) ** 2, or the host's cls
    return value.detach(), torch.autograd.grad(value, candidates.logits)[0]


def assert_as_expected(name: str, loss: str, divisor: str, **flags: Any) -> None:
    value, gradient = found(name, loss, divisor=divisor, **flags)
    wanted, slopes = expected(name, loss, divisor, **flags)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, slopes, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "loss", "divisor"),
    [(HEADS[i % 3], LOSSES[i % len(LOSSES)], DIVISORS[i % 4]) for i in range(max(12, len(LOSSES)))],
)
def test_the_loss_is_that_of_what_was_assigned_by_its_divisor(name: str, loss: str, divisor: str) -> None:
    """Every loss on a head, and every divisor on every head."""
    assert_as_expected(name, loss, divisor)


@pytest.mark.parametrize("name", HEADS)
def test_the_other_parts_of_the_loss_stay_as_they_are(name: str) -> None:
    items, others = run(make(name, "focal"), name, LABELS)[1], run(make(name, "bce"), name, LABELS)[1]
    changed = {k for k in items if not torch.equal(items[k], others[k])}
    assert changed == {"obj_loss" if name == ANCHOR else "cls_loss"}


@pytest.mark.parametrize("name", HEADS)
def test_the_overlap_is_that_of_the_anchor_at_its_cell_or_of_the_decoded_box(name: str) -> None:
    assert_as_expected(name, "soft", "batch")  # which weighs by how large it is
    assert_as_expected(name, "brl", "batch")
    candidates, predicted, _ = given(name, "box")
    assert torch.equal(candidates.overlap, predicted) == (name != ANCHOR)
    assert candidates.overlap[2].eq(0).all()
    assert (candidates.overlap > 0.1).any()


@pytest.mark.parametrize("name", HEADS)
def test_the_overlap_may_be_whether_a_label_holds_the_centre(name: str) -> None:
    assert_as_expected(name, "brl", "batch", brl_overlap="centre")
    inside = given(name, "centre")[0].overlap
    assert inside[:2].any()
    assert not inside[2].any()
    assert found(name, "brl", brl_overlap="centre")[0] != found(name, "brl")[0]


@pytest.mark.parametrize("name", ["yolov8n.yaml", ANCHOR])
def test_what_is_dropped_has_low_overlap_as_predicted_wherever_brl_looks(name: str) -> None:
    assert_as_expected(name, "brl+drop", "candidates", brl_overlap="centre", neg_iou=0.2)


@pytest.mark.parametrize(
    ("name", "loss", "scope"),
    [
        (HEADS[(i + s + 1) % 3], loss, scope)  # literal not on the anchor head, which has slots and its own test
        for i, loss in enumerate(("focal+drop", "brl+drop"))
        for s, scope in enumerate(("background", "matched", "literal"))
    ],
)
def test_all_that_may_be_dropped(name: str, loss: str, scope: str) -> None:
    for divisor in ("batch", "candidates"):
        for by in ("kept", "host"):
            assert_as_expected(name, loss, divisor, obj_drop=1.0, drop_scope=scope, neg_iou=0.7, drop_divisor=by)


NEUTRAL = [name for name, row in METHODS.items() if row.neutral and DENSE in row.stages and row.defined(SITES["stock"])]


@pytest.mark.parametrize(("name", "loss"), [(HEADS[i % 3], loss) for i, loss in enumerate(NEUTRAL)])
def test_neutral_settings_are_the_host_s_loss_in_value_and_gradient(name: str, loss: str) -> None:
    labels = batch(8, images=IMAGES)  # without a positive ohem keeps nothing
    ours = run(make(name, loss, divisor="host", **METHODS[loss].neutral), name, labels)
    host = run(make(name, "bce") if name == ANCHOR else build(name).init_criterion(), name, labels)
    torch.testing.assert_close(ours[0], host[0], rtol=1e-6, atol=0)
    for one, other in zip(ours[2], host[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_at_its_neutral_settings_brl_is_the_host_s_loss_to_the_last_bit(name: str) -> None:
    ours = run(make(name, "brl", brl_t=0, brl_weight=1), name, LABELS)
    host = run(make(name, "bce") if name == ANCHOR else build(name).init_criterion(), name, LABELS)
    assert torch.equal(ours[0], host[0])
    assert all(torch.equal(one, other) for one, other in zip(ours[2], host[2], strict=True))


@pytest.mark.parametrize("name", HEADS)
def test_brl_changes_the_gradient_of_what_is_confused_alone(name: str) -> None:
    candidates = given(name, "box")[0]
    confused = (candidates.state != POSITIVE) & (candidates.overlap < 0.1)
    ours, own = found(name, "brl")[1], found(name, "bce")[1]
    assert torch.equal(ours[~confused], own[~confused])
    mirrored = candidates.logits.detach()[confused] >= 0
    wanted = own[confused] - mirrored * own[confused] / candidates.logits.detach()[confused].sigmoid()
    torch.testing.assert_close(ours[confused], 0.1 * wanted, rtol=1e-4, atol=1e-9)  # of p, or of p - 1
    assert mirrored.any()
    assert not mirrored.all()


# Without labels, in half precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loss", "divisor"),
    [(HEADS[i % 3], LOSSES[i % len(LOSSES)], ("auto", *DIVISORS)[i % 5]) for i in range(max(15, len(LOSSES)))],
)
def test_a_batch_without_labels_is_finite(name: str, loss: str, divisor: str) -> None:
    vector, _, gradients = run(make(name, loss, divisor=divisor), name, batch(0))
    assert vector.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    assert vector[1] > 0 or "ohem" in loss  # which keeps nothing where there is no positive


@pytest.mark.parametrize(("name", "loss"), [(HEADS[i % 3], loss) for i, loss in enumerate(LOSSES)])
def test_bfloat16_is_finite_and_near(name: str, loss: str) -> None:
    half = run(make(name, loss), name, LABELS, torch.bfloat16)
    full = run(make(name, loss), name, LABELS)
    assert all(g.isfinite().all() for g in half[2])
    torch.testing.assert_close(half[0].float(), full[0], rtol=0.2, atol=0.2)


# What a criterion keeps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_validation_does_not_move_the_average_and_does_not_depend_on_it(name: str) -> None:
    criterion = make(name, "ghm")
    preds = predictions(build(name), images=IMAGES)
    with torch.no_grad():
        before = criterion(preds, LABELS)[0]
    assert keep(criterion) == [{}] * len(branches(criterion))
    for _ in range(2):
        run(criterion, name, batch(images=1))
    kept = keep(criterion)
    with torch.no_grad():
        assert torch.equal(criterion(preds, LABELS)[0], before)
    assert keep(criterion) == kept


@pytest.mark.parametrize("name", HEADS)
def test_averages_go_into_a_checkpoint_and_back(name: str) -> None:
    criterion = make(name, "ghm")
    run(criterion, name, batch(images=1))
    kept = keep(criterion)
    assert len(kept) == len(branches(criterion))
    assert all(type(x) is float for branch in kept for x in branch["average"])
    as_before = [branch["average"] for branch in kept]  # a list, as earlier versions kept it
    restored = [make(name, "ghm"), make(name, "ghm")]
    for one, what in zip(restored, (kept, as_before), strict=True):
        restore(one, what)
        assert keep(one) == kept
    fresh, goes_on = run(make(name, "ghm"), name, LABELS)[0], run(criterion, name, LABELS)[0]
    assert not torch.equal(goes_on, fresh)
    for one in restored:
        assert torch.equal(run(one, name, LABELS)[0], goes_on)


@pytest.mark.parametrize("nothing", [[], [{}, {}], [None, None]])
def test_a_checkpoint_without_averages_starts_afresh(nothing: list[Any]) -> None:
    criterion = make("yolo26n.yaml", "ghm")
    restore(criterion, nothing)
    assert keep(criterion) == [{}, {}]


@pytest.mark.parametrize("name", HEADS)
def test_the_warm_up_of_brl_reaches_every_branch_and_copy(name: str) -> None:
    criterion = make(name, "brl", brl_warmup=1)
    plain, recalibrated = run(make(name, "bce"), name, LABELS)[0], run(make(name, "brl"), name, LABELS)[0]
    assert not torch.equal(plain, recalibrated)
    assert torch.equal(run(criterion, name, LABELS)[0], plain)
    copy = deepcopy(criterion)  # as the EMA has one
    begin_epoch(copy, 1)
    assert torch.equal(run(copy, name, LABELS)[0], recalibrated)
    assert torch.equal(run(criterion, name, LABELS)[0], plain)


@pytest.mark.parametrize(
    ("name", "loss", "given", "divisor"),
    [
        ("yolov8n.yaml", "focal+drop", {}, "sum of target scores, what is left"),
        ("yolov8n.yaml", "ghm", {}, "predictions of the batch times classes"),
        ("yolo26n.yaml", "brl", {"divisor": "batch"}, "matched predictions of the batch"),
        (ANCHOR, "brl", {}, "mean over the candidates of a level"),
        (ANCHOR, "brl", {"brl_base": "focal"}, "matched candidates of the batch"),
        (ANCHOR, "brl+drop", {"divisor": "host"}, "mean over the candidates of a level, what is left"),
        (ANCHOR, "soft", {}, "mean over the candidates of a level"),
    ],
)
def test_what_ran_says_so(name: str, loss: str, given: dict[str, Any], divisor: str) -> None:
    recipe = recipe_of({"loss": loss, "head": "anchor" if name == ANCHOR else "stock", **given})
    ran = describe(SimpleNamespace(criterion=criterion_of(build(name), recipe, 0)))
    assert ran["divisor"] == divisor
    assert ran["text"].endswith(f"divisor: {divisor}")
    assert {k.split("_")[0] for k in ran["settings"]} >= set(loss.split("+")) - {"drop"}
    assert not any("ghm" in k for k in ran["settings"]) or loss == "ghm"
    assert all(METHODS[method].title in ran["text"] for method in loss.split("+"))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (
            "yolov8n.yaml",
            {"loss": "focal"},
            "starts 8 times below cross-entropy at score 0.5, 25.6 times below at 0.25",
        ),
        ("yolov8n.yaml", {"loss": "brl", "brl_base": "focal"}, "starts 8 times below cross-entropy"),
        (ANCHOR, {"loss": "focal", "focal_gamma": 0, "focal_alpha": 1}, "starts 2 times below cross-entropy"),
        (ANCHOR, {"loss": "brl", "brl_base": "focal", "brl_gamma": 1, "brl_alpha": -1}, "4 times below at 0.25"),
        ("yolo26n.yaml", {"loss": "focal", "focal_gamma": 0, "focal_alpha": -1}, ""),
        ("yolov8n.yaml", {"loss": "brl"}, ""),
        (ANCHOR, {"loss": "brl", "brl_gamma": 2}, ""),
        (ANCHOR, {"loss": "varifocal"}, ""),
    ],
)
def test_a_run_says_how_far_below_cross_entropy_it_starts(name: str, given: dict[str, Any], said: str) -> None:
    recipe = recipe_of({**given, "head": "anchor" if name == ANCHOR else "stock"})
    text = describe(SimpleNamespace(criterion=criterion_of(build(name), recipe, 0)))["text"]
    assert (said in text) if said else ("targets are scores" not in text)


@pytest.mark.parametrize("name", HEADS)
def test_a_run_says_how_long_the_warm_up_of_brl_is(name: str) -> None:
    criterion = make(name, "brl")
    assert "brl_warmup=0" in describe(SimpleNamespace(criterion=criterion))["text"]  # nobody said how many
    begin_epoch(criterion, 0, 57)
    ran = describe(SimpleNamespace(criterion=criterion))
    assert ran["settings"]["brl_warmup"] == 5
    assert "brl_base=host" in ran["text"]
    assert "brl_warmup=5" in ran["text"]


# A run ----------------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("host", [{"model": "yolov5n.yaml", "head": "anchor"}, {"model": "yolo26n.yaml"}], ids=str)
def test_the_moving_average_survives_a_resume(host: dict[str, str], tiny_dataset: Path, tmp_path: Path) -> None:
    given = {k: v for k, v in host.items() if k != "model"}
    settings = {"data": str(tiny_dataset), "epochs": 2, "imgsz": 64, "batch": 4, "workers": 0, "plots": False}
    kept: list[Any] = []

    def kill(trainer: Any) -> None:
        kept.append(keep(trainer.model.criterion))
        raise KilledError

    model = YOLO(host["model"])
    model.add_callback("on_model_save", kill)
    with pytest.raises(KilledError):
        model.train(**settings, loss="ghm", **given, project=str(tmp_path), name="run", device="cpu", verbose=False)
    last = tmp_path / "run" / "weights" / "last.pt"
    assert kept[0]
    assert kept[0][0]
    assert remembered(YOLO(last).model)["state"] == kept[0]

    resumed: list[Any] = []
    model = YOLO(last)
    model.add_callback("on_train_start", lambda trainer: resumed.append(keep(trainer.model.criterion)))
    model.train(resume=True)
    assert resumed == kept


@pytest.mark.slow
def test_a_training_of_an_earlier_version_goes_on_with_focal_loss_and_says_so(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    settings = {"data": str(tiny_dataset), "epochs": 2, "imgsz": 64, "batch": 4, "workers": 0, "plots": False}

    def kill(trainer: Any) -> None:
        raise KilledError

    model = YOLO("yolov5n.yaml")
    model.add_callback("on_model_save", kill)
    with pytest.raises(KilledError):
        model.train(**settings, loss="brl", brl_base="focal", project=str(tmp_path), name="run", device="cpu")
    last = tmp_path / "run" / "weights" / "last.pt"
    checkpoint = torch.load(last, weights_only=False)
    del checkpoint["ema"].yaml["rebalance"]["flags"]["brl_base"]  # as it was before there was a choice
    torch.save(checkpoint, last)
    model = YOLO(last)
    with log() as lines:
        model.train(resume=True)
    said = "rebalance: the training began with an earlier version, and goes on with its brl_base=focal"
    assert lines.count(said) == 1
    assert model.trainer.loss_ran["settings"]["brl_base"] == "focal"
    assert model.trainer.model.criterion.objective.element.brl_gamma == 2
    assert remembered(YOLO(last).model)["flags"]["brl_base"] == "focal"
