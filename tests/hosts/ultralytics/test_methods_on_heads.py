"""The loss family on the two kinds of heads, against the formulas of each method on what the host assigned."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from rebalance import YOLO
from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead
from rebalance.hosts.ultralytics.criterion import (
    averages,
    begin_epoch,
    branches,
    build_criterion,
    restore_averages,
)
from rebalance.match.candidates import Candidates, candidate_state
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl
from rebalance.methods.composition import Composition
from rebalance.methods.divisor import divided_by
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.methods.ohem import ohem_mask
from rebalance.hosts import SITES
from rebalance.methods import METHODS
from objectives import recipe_of
from rebalance.methods.soft import soft_weights
from rebalance.settings import TrainFlags
from rebalance.train.checkpoint import remembered
from rebalance.train.trainer import describe

SIZE, IMAGES, CLASSES = 64, 3, 2
HEADS = ("yolov8n.yaml", "yolo26n.yaml", "anchor")
LOSSES = [name for name, row in METHODS.items() if row.kind == "element"] + [
    f"{element}+{name}" for name, row in METHODS.items() for element in row.joins if row.defined(SITES["stock"])
]


@lru_cache
def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "anchor":
        head = AnchorHead(CLASSES, (1,) * 3, torch.tensor([8.0, 16, 32]), COCO_ANCHORS[3])
        return SimpleNamespace(model=[head], args=SimpleNamespace(imgsz=SIZE), criterion=None)
    model = DetectionModel(name, nc=CLASSES, verbose=False).train()
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    return model


def batch(count: int = 8, images: int = IMAGES) -> dict[str, Tensor]:
    """Labels of the first `images` images."""
    g = torch.Generator().manual_seed(3)
    image = (torch.arange(count) * images // max(count, 1)).float()
    box = torch.cat((torch.rand(count, 2, generator=g) * 0.6 + 0.2, torch.rand(count, 2, generator=g) * 0.5 + 0.2), 1)
    return {"batch_idx": image, "cls": torch.randint(CLASSES, (count, 1), generator=g).float(), "bboxes": box}


def predictions(model: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Tensor]]:
    """What the head returns in training, and its leaves; logits are spread so that some are sure and some are not."""
    g, head, grids = torch.Generator().manual_seed(0), model.model[-1], [SIZE // s for s in (8, 16, 32)]
    if isinstance(head, AnchorHead):
        maps = [torch.randn(IMAGES, head.na, head.no, n, n, generator=g).to(dtype).requires_grad_() for n in grids]
        return {"maps": maps}, maps

    def branch() -> dict[str, Any]:
        cells = sum(n * n for n in grids)
        boxes = torch.randn(IMAGES, 4, head.reg_max, cells, generator=g)
        boxes = boxes - torch.arange(head.reg_max).view(-1, 1) * 0.5 if head.reg_max > 1 else boxes.abs() + 0.7
        return {
            "boxes": boxes.flatten(1, 2).to(dtype).requires_grad_(),
            "scores": torch.randn(IMAGES, CLASSES, cells, generator=g).to(dtype).requires_grad_(),
            "feats": [torch.zeros(IMAGES, 1, n, n, dtype=dtype) for n in grids],
        }

    if getattr(head, "one2one_cv2", None) is None:
        parts = [branch()]
        preds = parts[0]
    else:
        parts = [branch(), branch()]
        preds = {"one2many": parts[0], "one2one": parts[1]}
    return preds, [part[key] for part in parts for key in ("boxes", "scores")]


def make(name: str, loss: str, **flags: Any) -> Any:
    given = {"loss": loss, **({"obj_drop": 0.5} if "drop" in loss else {}), **flags}
    return criterion_of(build(name), recipe_of({**given, "head": "anchor" if name == "anchor" else "stock"}), 0)


def run(criterion: Any, name: str, labels: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """Loss vector, items and gradients."""
    preds, leaves = predictions(build(name), dtype)
    loss, items = criterion(preds, {k: v.clone() for k, v in labels.items()})
    return loss.detach(), items, torch.autograd.grad(loss.sum(), leaves, materialize_grads=True)


def acted_on(items: dict[str, Tensor]) -> Tensor:
    """The part of the loss that the methods change."""
    return items["obj_loss"] if "obj_loss" in items else items["cls_loss"]


class Spy(Composition):
    """Keeps what it was called with."""

    def __init__(self, flags: TrainFlags) -> None:
        super().__init__(flags)
        self.seen: list[Candidates] = []

    def __call__(self, candidates: Candidates) -> Tensor:
        self.seen.append(Candidates(*(x.detach() for x in candidates)))
        return super().__call__(candidates)


def spied(criterion: Any) -> list[Candidates]:
    """What the last branch of a criterion computes its loss from, in every call from now on."""
    branch = branches(criterion)[-1]
    branch.composition = Spy(branch.flags)
    return branch.composition.seen


def slow(loss: str, seen: Candidates) -> Tensor:
    """(B, N, C) the loss by its formula, default settings, nothing dropped."""
    element, _, weighting = loss.partition("+")
    if weighting == "" and METHODS[element].kind == "weighting":
        element, weighting = "bce", element
    logits, targets, state, overlap = seen
    if element == "brl":
        found = brl(logits, targets, ((state == 0) & (overlap < 0.1)).unsqueeze(-1))
    else:
        found = {"bce": bce, "focal": focal}[element](logits, targets)
    if weighting == "ghm":
        found = found * ghm_weights(logits, targets, torch.ones_like(logits, dtype=torch.bool))[0]
    elif weighting == "ohem":
        found = found * ohem_mask(found.sum(-1), state).unsqueeze(-1)
    elif weighting == "soft":
        found = found * soft_weights(overlap, state).unsqueeze(-1)
    return found


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if "drop" not in loss and loss != "bce"])
@pytest.mark.parametrize("divisor", ["batch", "candidates"])
def test_the_loss_is_the_sum_of_the_formula_by_its_divisor(name: str, loss: str, divisor: str) -> None:
    criterion = make(name, loss, divisor=divisor)
    seen = spied(criterion)
    _, items, _ = run(criterion, name, batch(images=2))  # the last image has no label
    (candidates,) = seen
    count = (candidates.state == 1).sum() if divisor == "batch" else candidates.logits.numel()
    gain = criterion.gains[1] if name == "anchor" else 0.5  # the host's cls
    torch.testing.assert_close(acted_on(items), gain * slow(loss, candidates).sum() / count)
    others = run(make(name, "bce"), name, batch(images=2))[1]
    assert all(torch.equal(items[k], others[k]) for k in items if k != ("obj_loss" if name == "anchor" else "cls_loss"))
    assert not torch.equal(acted_on(items), acted_on(others))


@pytest.mark.parametrize("name", HEADS[:2])
@pytest.mark.parametrize("loss", ["focal", "brl", "bce+ohem", "bce+soft"])
def test_the_host_s_divisor_is_the_sum_of_target_scores(name: str, loss: str) -> None:
    criterion = make(name, loss)
    seen = spied(criterion)
    _, items, _ = run(criterion, name, batch())
    expected = 0.5 * slow(loss, seen[0]).sum() / seen[0].targets.sum().clamp(min=1)
    torch.testing.assert_close(acted_on(items), expected)


def test_the_host_s_divisor_on_the_anchor_head_is_the_mean_of_each_level_times_its_balance() -> None:
    criterion = make("anchor", "focal", divisor="host")
    seen = spied(criterion)
    _, items, _ = run(criterion, "anchor", batch())
    levels = slow("focal", seen[0]).squeeze(-1).split([3 * 64, 3 * 16, 3 * 4], 1)
    expected = sum(level.mean() * balance for level, balance in zip(levels, (4.0, 1.0, 0.4), strict=True))
    torch.testing.assert_close(acted_on(items), criterion.gains[1] * expected)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("loss", "neutral"),
    [
        ("focal", {"focal_gamma": 0, "focal_alpha": -1}),
        ("brl", {"brl_t": 0, "brl_weight": 1, "brl_gamma": 0, "brl_alpha": -1}),
        ("ghm", {"ghm_bins": 1, "ghm_momentum": 0}),
        ("ohem", {"ohem_ratio": 1e6}),
        ("soft", {"soft_a": 1}),
    ],
)
def test_neutral_settings_are_the_host_s_loss_in_value_and_gradient(name: str, loss: str, neutral: Any) -> None:
    found = run(make(name, loss, divisor="host", **neutral), name, batch())
    host = run(make(name, "bce") if name == "anchor" else build(name).init_criterion(), name, batch())
    torch.testing.assert_close(found[0], host[0], rtol=1e-6, atol=0)
    for ours, theirs in zip(found[2], host[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


# Candidates -----------------------------------------------------------------------------------------------------------


def pixels(labels: dict[str, Tensor], image: int) -> Tensor:
    return box_convert(labels["bboxes"][labels["batch_idx"] == image] * SIZE, "cxcywh", "xyxy")


def anchors_at_cells() -> Tensor:
    """(N, 4) corners, level by level, anchor, row, column."""
    found = []
    for stride, sizes in zip((8, 16, 32), COCO_ANCHORS[3], strict=True):
        for w, h in zip(sizes[::2], sizes[1::2], strict=True):
            for row in range(SIZE // stride):
                for column in range(SIZE // stride):
                    found.append(((column + 0.5) * stride, (row + 0.5) * stride, w, h))
    return box_convert(torch.tensor(found, dtype=torch.float32), "cxcywh", "xyxy")


@pytest.mark.parametrize("loss", ["brl", "soft"])
def test_on_the_anchor_head_the_overlap_is_that_of_the_anchor_at_its_cell(loss: str) -> None:
    criterion, labels = make("anchor", loss), batch(images=2)
    seen = spied(criterion)
    run(criterion, "anchor", labels)
    for image in (0, 1):
        expected = box_iou(anchors_at_cells(), pixels(labels, image)).amax(1)
        torch.testing.assert_close(seen[0].overlap[image], expected, rtol=1e-4, atol=1e-5)
    assert seen[0].overlap[2].eq(0).all()
    assert (seen[0].targets.squeeze(-1)[seen[0].state != 1] == 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_centres(name: str) -> None:
    criterion, labels = make(name, "brl", brl_overlap="centre"), batch(images=2)
    seen = spied(criterion)
    run(criterion, name, labels)
    overlap, cells = seen[0].overlap, []
    for stride in (8, 16, 32):
        grid = [((c + 0.5) * stride, (r + 0.5) * stride) for r in range(SIZE // stride) for c in range(SIZE // stride)]
        cells += grid * (3 if name == "anchor" else 1)
    for image in range(IMAGES):
        inside = [any(a < x < c and b < y < d for a, b, c, d in pixels(labels, image).tolist()) for x, y in cells]
        assert overlap[image].tolist() == [float(x) for x in inside]
    assert overlap.any()
    assert not overlap[2].any()


@pytest.mark.parametrize("name", HEADS[:2])
def test_on_the_other_heads_it_is_that_of_the_decoded_box(name: str) -> None:
    criterion, labels = make(name, "brl"), batch(images=2)
    seen, branch = spied(criterion), branches(criterion)[-1]
    given: list[Tensor] = []
    assigner = branch._host["assigner"]
    branch._host["assigner"] = lambda *args, **options: (given.append(args[1]), assigner(*args, **options))[1]
    run(criterion, name, labels)
    for image in (0, 1):
        expected = box_iou(given[0][image], pixels(labels, image)).amax(1)
        torch.testing.assert_close(seen[0].overlap[image], expected, rtol=1e-4, atol=1e-5)
    assert seen[0].overlap[2].eq(0).all()
    assert (seen[0].overlap > 0.1).any()


# With dropping, without labels, in half precision ---------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("loss", ["focal+drop", "brl+drop"])
@pytest.mark.parametrize("scope", ["background", "matched", "literal"])
def test_dropping_all_negatives_leaves_the_positives_alone(name: str, loss: str, scope: str) -> None:
    criterion = make(name, loss, obj_drop=1.0, drop_scope=scope, neg_iou=0.7, divisor="batch")
    seen, drawn = spied(criterion), []
    dropping = branches(criterion)[-1].dropping
    draw = dropping.draw
    dropping.draw = lambda *args: (drawn.append((args[0], draw(*args))), drawn[-1][1])[1]
    _, items, _ = run(criterion, name, batch())
    (positive, (dropped, _)), (candidates,) = drawn[0], seen
    assert dropped.any()
    state = candidate_state(positive & ~dropped if scope == "literal" else positive)
    assert torch.equal(candidates.state, state)
    element = slow(loss.partition("+")[0], candidates)
    total = element.sum() if scope == "literal" else element[~dropped].sum()
    gain = criterion.gains[1] if name == "anchor" else 0.5
    torch.testing.assert_close(acted_on(items), gain * total / (positive & ~dropped).sum().clamp(min=1))


def test_what_the_loss_is_divided_by() -> None:
    positive = torch.tensor([[True, True, True, False, False]])
    dropped = torch.tensor([[True, False, False, True, False]])

    def count(divisor: str, dropped: Tensor | None = None, **flags: Any) -> int:
        return int(divided_by(divisor, positive, dropped, TrainFlags(**flags), 4))

    assert count("batch") == 3
    assert count("candidates") == 20
    assert count("batch", dropped) == 2
    assert count("candidates", dropped) == 12
    assert count("batch", dropped, drop_divisor="host") == 3
    assert count("candidates", dropped, drop_divisor="host") == 20
    assert count("candidates", dropped, drop_scope="literal") == 20  # what became background is still trained on
    assert count("batch", dropped, drop_scope="literal") == 2
    assert int(divided_by("batch", torch.zeros(1, 5, dtype=torch.bool), None, TrainFlags(), 4)) == 1


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divisor", ["auto", "host", "image", "batch", "candidates"])
def test_a_batch_without_labels_is_finite(name: str, loss: str, divisor: str) -> None:
    loss_vector, _, gradients = run(make(name, loss, divisor=divisor), name, batch(0))
    assert loss_vector.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
    assert loss_vector[1] > 0 or "ohem" in loss  # which keeps nothing where there is no positive


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_is_finite_and_near(name: str, loss: str) -> None:
    half = run(make(name, loss), name, batch(), torch.bfloat16)
    full = run(make(name, loss), name, batch())
    assert all(g.isfinite().all() for g in half[2])
    torch.testing.assert_close(half[0].float(), full[0], rtol=0.2, atol=0.2)


@pytest.mark.parametrize("name", HEADS)
def test_validation_does_not_move_the_average_and_does_not_depend_on_it(name: str) -> None:
    criterion = make(name, "ghm")
    with torch.no_grad():
        preds, _ = predictions(build(name))
        before = criterion(preds, batch())[0]
        assert averages(criterion) == [None] * len(branches(criterion))
        criterion_after = make(name, "ghm")
    for _ in range(2):
        run(criterion_after, name, batch(images=1))
    kept = averages(criterion_after)
    with torch.no_grad():
        assert torch.equal(criterion_after(preds, batch())[0], before)
    assert averages(criterion_after) == kept


@pytest.mark.parametrize("name", HEADS)
def test_averages_go_into_a_checkpoint_and_back(name: str) -> None:
    criterion = make(name, "ghm")
    run(criterion, name, batch(images=1))
    kept = averages(criterion)
    assert len(kept) == len(branches(criterion))
    assert all(type(x) is float for average in kept for x in average or [None])
    restored = make(name, "ghm")
    restore_averages(restored, kept)
    assert averages(restored) == kept
    fresh = run(make(name, "ghm"), name, batch())[0]
    assert torch.equal(run(restored, name, batch())[0], run(criterion, name, batch())[0])
    assert not torch.equal(run(criterion, name, batch())[0], fresh)


@pytest.mark.parametrize("name", HEADS)
def test_the_warm_up_of_brl_reaches_every_branch_and_copy(name: str) -> None:
    criterion, labels = make(name, "brl", brl_warmup=1), batch()
    plain, recalibrated = run(make(name, "focal"), name, labels)[0], run(make(name, "brl"), name, labels)[0]
    assert not torch.equal(plain, recalibrated)
    assert torch.equal(run(criterion, name, labels)[0], plain)
    copy = deepcopy(criterion)  # as the EMA has one
    begin_epoch(copy, 1)
    assert torch.equal(run(copy, name, labels)[0], recalibrated)
    assert torch.equal(run(criterion, name, labels)[0], plain)


@pytest.mark.parametrize(
    ("name", "loss", "given", "divisor"),
    [
        ("yolov8n.yaml", "focal+drop", {}, "sum of target scores, what is left"),
        ("yolov8n.yaml", "ghm", {}, "predictions of the batch times classes"),
        ("yolo26n.yaml", "brl", {"divisor": "batch"}, "matched predictions of the batch"),
        ("anchor", "brl", {}, "matched candidates of the batch"),
        ("anchor", "brl+drop", {"divisor": "host"}, "mean over the candidates of a level, what is left"),
        ("anchor", "soft", {}, "mean over the candidates of a level"),
    ],
)
def test_what_ran_says_so(name: str, loss: str, given: dict[str, Any], divisor: str) -> None:
    flags = recipe_of({"loss": loss, "head": "anchor" if name == "anchor" else "stock", **given})
    model = SimpleNamespace(criterion=criterion_of(build(name), flags, 0))
    ran = describe(flags, model)
    assert ran["divisor"] == divisor
    assert ran["text"].endswith(f"divisor: {divisor}")
    assert {k.split("_")[0] for k in ran["settings"]} >= set(loss.split("+")) - {"drop"}
    assert not any("ghm" in k for k in ran["settings"]) or loss == "ghm"
    assert all(METHODS[method].title in ran["text"] for method in loss.split("+"))


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
        kept.append(averages(trainer.model.criterion))
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
    model.add_callback("on_train_start", lambda trainer: resumed.append(averages(trainer.model.criterion)))
    model.train(resume=True)
    assert resumed == kept
