"""Heads obj and resobj on YOLO: what they predict, learn from, write, keep, refuse and export."""

from __future__ import annotations

import shutil
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_data import make_dataset
from small_training import log, results, train
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.engine.results import Results
from ultralytics.nn.modules.head import Detect

from rebalance import YOLO
from rebalance.errors import ConfigError, DataError, ModelError
from rebalance.experiments.inspect import HEIGHT, TITLE, WIDTH, _drawn, _titled, at_step, panels
from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead, objectness
from rebalance.hosts.ultralytics.criterion import (
    AnchorCriterion,
    begin_epoch,
    branches,
    build_criterion,
    step_means,
)
from rebalance.hosts.ultralytics.model import (
    AnchorDetect,
    AnchorDetectionModel,
    ObjectnessDetect,
    ObjectnessDetectionModel,
    RefinedAnchorDetect,
    anchored,
    model_class,
)
from rebalance.hosts.ultralytics.refined import ObjectnessCriterion, RefinedAnchorCriterion
from rebalance.match.candidates import candidate_state
from rebalance.methods.brl import brl
from rebalance.methods.resobj import refine, residual_objectness
from objectives import recipe_of
from rebalance.settings import StepsFlags, parse
from rebalance.train.admission import check_training

CLASSIC = Path(__file__).resolve().parents[4] / "shared" / "weights" / "yolov5n_classic.pt"
SIZE, CLASSES = 64, 3
MODELS = ("yolov5n.yaml", "yolov3-tiny.yaml", "yolov8n.yaml", "yolo26n.yaml")
FREE = ("yolov8n.yaml", "yolo26n.yaml")


def labels(count: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    image = (torch.arange(count) * 2 // max(count, 1)).float()
    box = torch.cat((torch.rand(count, 2, generator=g) * 0.6 + 0.2, torch.rand(count, 2, generator=g) * 0.5 + 0.2), 1)
    return {"batch_idx": image, "cls": torch.randint(CLASSES, (count, 1), generator=g).float(), "bboxes": box}


IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def build(name: str, **given: Any) -> Any:
    """A model in training mode with its criterion; the last layers of its objectness are spread."""
    flags = recipe_of({"head": "resobj", **given} if "loss" not in given else given, anchored=anchored(name))
    torch.manual_seed(0)
    model = model_class(name, flags["head"])(name, nc=CLASSES, verbose=False, flags=flags)
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    for key, parameter in model.named_parameters():
        if key.endswith("logits.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.criterion = criterion_of(model, flags, 0)
    return model.train()


def losses(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    vector, items = model.criterion(model(IMAGES), {k: v.clone() for k, v in batch.items()})
    return vector, items


# The choice of the head -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolov3.yaml", True), ("yolov3-tiny.yaml", True), ("a/b/yolov5n.yaml", True), ("yolov5su.pt", True),
        ("yolov8n.yaml", False), ("yolo26n.yaml", False), ("my-yolov5.yaml", False), ({}, False), (None, False),
        ({"yaml_file": "x/yolov5n6.yaml"}, True), ({"yaml_file": "yolo11n.yaml"}, False),
    ],
)  # fmt: skip
def test_which_models_have_anchors(name: Any, expected: bool) -> None:
    assert anchored(name) is expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", [0, 2])
def test_the_head_and_the_criterion_of_each_family(name: str, steps: int) -> None:
    model = build(name, resobj_steps=steps)
    head, branch = model.model[-1], branches(model.criterion)[0]
    if name in FREE:
        assert isinstance(model, ObjectnessDetectionModel)
        assert (type(head), type(branch)) == (ObjectnessDetect, ObjectnessCriterion)
    else:
        assert isinstance(model, AnchorDetectionModel)
        assert type(head) is (RefinedAnchorDetect if steps else AnchorDetect)
        assert type(branch) is RefinedAnchorCriterion
    assert head.np == sum(p.numel() for p in head.parameters())
    assert head.type.endswith(type(head).__name__)


@pytest.mark.parametrize("name", ["yolov10n.yaml", "rtdetr-l.yaml"])
def test_models_that_cannot_have_an_objectness(name: str) -> None:
    with pytest.raises(ModelError, match="head=obj needs a detection model that ends in Detect"):
        ObjectnessDetectionModel(name, verbose=False)


@pytest.mark.parametrize(
    ("model", "given", "error", "message"),
    [
        ("yolov8n.yaml", {"head": "resobj", "anchor_t": 3}, ConfigError, "anchor_t=3 has no effect"),
        ("yolov5n.yaml", {"head": "resobj", "box": 3}, ConfigError, "head=resobj; its gains are box_gain"),
        ("yolov5n.yaml", {"loss": "resobj+ghm"}, ConfigError, "ghm is not defined for head=resobj"),
        ("yolov10n.yaml", {"loss": "resobj"}, ModelError, "ends in v10Detect"),
        ("yolov8n.yaml", {"resobj_steps": 1}, ConfigError, "add head=resobj"),
    ],
)
def test_refused(tmp_path: Path, model: str, given: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        YOLO(model).train(data="none.yaml", project=str(tmp_path), **given)
    assert not list(tmp_path.iterdir())


def test_the_check_before_a_training_builds_the_head() -> None:
    check_training({"loss": "resobj", "resobj_steps": "1"}, {"model": "yolov8n.yaml"})
    check_training({"head": "obj", "anchor_t": 3}, {"model": "yolov5n.yaml"})
    with pytest.raises(ConfigError, match="anchor_t=3"):
        check_training({"head": "obj", "anchor_t": 3}, {"model": "yolov8n.yaml"})


# Predictions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_inference_adds_all_steps(name: str) -> None:
    model = build(name, resobj_steps=3).eval()
    head = model.model[-1]
    head.end2end = False
    with torch.no_grad():
        decoded, raw = model(IMAGES)
    if name in FREE:
        raw = raw.get("one2many", raw)
        final = raw["objectness"][:, 0] + raw["residuals"][:, 0] + raw["residuals"][:, 1] + raw["residuals"][:, 2]
        expected = raw["scores"].sigmoid() * final.sigmoid().unsqueeze(1)
    else:
        final = objectness(raw["maps"])
        for step in range(3):
            final = final + torch.cat([r[:, step].flatten(1) for r in raw["residuals"]], 1)
        classes = torch.cat([x[:, :, 5:].transpose(1, 2).flatten(2) for x in raw["maps"]], 2)
        expected = classes.sigmoid() * final.sigmoid().unsqueeze(1)
        torch.testing.assert_close(decoded[:, :4], head.decode(raw["maps"], objectness=False))
    torch.testing.assert_close(decoded[:, 4:], expected)


def test_no_steps_is_the_anchor_head_to_the_bit() -> None:
    """Output, loss, gradients and what the model is made of."""
    flags = [recipe_of(given) for given in ({"head": "anchor"}, {"head": "obj"}, {"head": "resobj", "resobj_steps": 0})]
    found = []
    for each in flags:
        torch.manual_seed(0)
        model: Any = AnchorDetectionModel("yolov5n.yaml", nc=CLASSES, verbose=False, flags=each)
        model.args = get_cfg(overrides={"imgsz": SIZE})
        model.criterion = criterion_of(model, each, 0)
        with torch.no_grad():
            decoded = model.eval()(IMAGES)[0]
        vector, items = losses(model.train(), labels())
        vector.sum().backward()
        gradients = {k: p.grad for k, p in model.named_parameters()}
        found.append((decoded, vector.detach(), items, gradients))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])
        assert list(other[2]) == list(found[0][2]) == ["box_loss", "obj_loss", "cls_loss"]
        assert other[3].keys() == found[0][3].keys()
        assert all(torch.equal(g, found[0][3][k]) for k, g in other[3].items())


def test_no_steps_is_the_objectness_on_the_anchor_free_head() -> None:
    one, two = build("yolov8n.yaml", head="obj"), build("yolov8n.yaml", resobj_steps=0)
    assert list(one.state_dict()) == list(two.state_dict())
    a, b = losses(one, labels()), losses(two, labels())
    assert torch.equal(a[0], b[0])
    assert list(a[1]) == ["box_loss", "cls_loss", "dfl_loss", "obj_loss"]


def test_priors() -> None:
    torch.manual_seed(0)
    model: Any = ObjectnessDetectionModel("yolov8n.yaml", nc=20, verbose=False)
    with torch.no_grad():
        raw = model.train()(IMAGES)
    assert raw["scores"].sigmoid().mean().item() == pytest.approx(0.01, rel=0.2)
    assert raw["objectness"].sigmoid().mean().item() == pytest.approx(1 / 80, rel=0.2)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml", "yolo26n.yaml"])
def test_fused_models_predict_the_same(name: str) -> None:
    model = build(name).eval()
    with torch.no_grad():
        before = model(IMAGES)[0]
        after = deepcopy(model).fuse(verbose=False)(IMAGES)[0]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("count", "grad"), [(0, "isolated"), (0, "joint"), (5, "isolated")])
def test_every_parameter_gets_a_gradient(name: str, count: int, grad: str) -> None:
    """Zero for the residuals where the batch has no label, so that no process waits for another."""
    model = build(name, resobj_grad=grad)
    vector, items = losses(model, labels(count))
    assert items["res_loss"].isfinite()
    assert items["res_loss"].ne(0) == (count > 0)
    vector.sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "dfl" not in key:  # which is no parameter that the host trains
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if ".residual" in key and count == 0:
                assert parameter.grad.eq(0).all()
    deepcopy(model)  # the criterion, which the model has by now, holds no graph


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml"])
@pytest.mark.parametrize(
    ("on", "grad", "shared"),
    [("obj", "isolated", False), ("obj", "joint", True), ("cls", "isolated", True), ("cls", "joint", True)],
)
def test_where_the_residual_losses_reach(name: str, on: str, grad: str, shared: bool) -> None:
    model = build(name, resobj_on=on, resobj_grad=grad)
    vector, items = losses(model, labels())
    vector[list(items).index("res_loss")].backward()
    reached = {k for k, p in model.named_parameters() if p.grad is not None and p.grad.ne(0).any()}
    head = model.model[-1]
    if name == "yolov8n.yaml":
        own = {k for k in reached if ".objectness." in k and ".residual." not in k}
        assert bool(own) == (grad == "joint")
    else:
        rows = [conv.bias.grad for conv in head.m]
        touched = any(g is not None and g.view(head.na, -1)[:, 4].ne(0).any() for g in rows)
        assert touched == (grad == "joint")
        assert not any(g is not None and g.view(head.na, -1)[:, 5:].ne(0).any() for g in rows)
    assert bool({k for k in reached if k.startswith("model.4.")}) == shared  # the backbone
    assert any(".residual" in k for k in reached)


def made_maps(head: AnchorHead, steps: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    grids = [SIZE // s for s in head.stride.int().tolist()]
    maps = [torch.randn(2, head.na, head.no, n, n, generator=g) for n in grids]
    return {"maps": maps, "residuals": [torch.randn(2, steps, head.na, n, n, generator=g) for n in grids]}


def anchor_criterion(**given: Any) -> tuple[Any, Any]:
    head = AnchorHead(CLASSES, (1,) * 3, torch.tensor([8.0, 16, 32]), COCO_ANCHORS[3])
    model = SimpleNamespace(model=[head], args=SimpleNamespace(imgsz=SIZE))
    return head, RefinedAnchorCriterion(model, recipe=recipe_of(given), seed=0)


def test_the_residual_loss_of_the_anchor_head_by_its_formula() -> None:
    head, criterion = anchor_criterion(loss="resobj")
    raw = made_maps(head, 2)
    seen: list[Any] = []
    inner = criterion._more
    criterion._more = lambda raw, what: seen.append(what) or inner(raw, what)
    _, items = criterion(raw, labels())
    (what,) = seen
    residuals = torch.stack([torch.cat([r[:, t].flatten(1) for r in raw["residuals"]], 1) for t in range(2)])
    state = candidate_state(what.positive)
    assert int(what.positive.sum()) > 10
    found = residual_objectness(objectness(raw["maps"]), residuals, what.target, state).losses.sum(0)
    # mean over the candidates of a level, 4, 1 and 0.4 times; the gain of the objectness
    levels = torch.split(found, [3 * n * n for n in (8, 4, 2)], 1)
    expected = sum(w * x.mean() for w, x in zip((4, 1, 0.4), levels, strict=True)) * (SIZE / 640) ** 2
    torch.testing.assert_close(items["res_loss"], expected)
    # what the epoch's table says: the scores of inference
    means = step_means(criterion)
    steps = refine(objectness(raw["maps"]), residuals).sigmoid()
    for t in range(3):
        assert means[f"pos_{t}"] == pytest.approx(steps[t][what.positive].mean().item(), rel=1e-5)
        assert means[f"neg_{t}"] == pytest.approx(steps[t][~what.positive].mean().item(), rel=1e-5)
    with torch.no_grad():
        criterion(raw, labels(2))  # validation leaves it as it is
    assert step_means(criterion) == means
    begin_epoch(criterion, 1)
    assert step_means(criterion) == {}


@pytest.mark.parametrize("name", FREE)
def test_the_losses_of_the_anchor_free_head_by_their_formulas(name: str) -> None:
    model = build(name)
    preds = model(IMAGES)
    criterion = branches(model.criterion)[-1]
    part = preds.get("one2one", preds)
    vector, items = criterion.loss(part, labels())
    torch.testing.assert_close(torch.stack(list(items.values())) * 2, vector.detach())
    logits, residuals = part["objectness"].squeeze(1), part["residuals"].transpose(0, 1)
    matched, quality = criterion._matched, criterion._targets
    assert 0 < int(matched.sum()) < matched.numel() / 2
    assert quality[~matched].eq(0).all()
    total = quality.sum().clamp(min=1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(items["obj_loss"], 0.5 * bce(logits, quality, reduction="sum") / total)
    res = residual_objectness(logits, residuals, quality, candidate_state(matched)).losses.sum() / total
    torch.testing.assert_close(items["res_loss"], 0.5 * res)
    # class loss: positives alone, 0 and 1 as targets, weighted by the target score
    expected = torch.zeros(())
    assigned: list[Any] = []
    assigner = criterion._host["assigner"]
    criterion._host["assigner"] = lambda *given: assigned.append((given, assigner(*given))) or assigned[-1][1]
    criterion.loss(part, labels())
    (given, (classes, _, scores, _, _)), scored = assigned[0], part["scores"].transpose(1, 2)
    for b, n in matched.nonzero().tolist():
        target = torch.zeros(CLASSES)
        target[classes[b, n]] = 1
        expected = expected + scores[b, n].sum() * bce(scored[b, n], target, reduction="sum")
    torch.testing.assert_close(items["cls_loss"], 0.5 * expected / total)
    # the assigner saw the score of inference
    final = refine(logits, residuals)[-1]
    torch.testing.assert_close(given[0], scored.sigmoid() * final.sigmoid().unsqueeze(-1))


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml"])
def test_dropped_negatives_leave_both_losses(name: str) -> None:
    """With all negatives dropped both are losses of positives alone; with rate 0 both are as without."""
    model = build(name, loss="resobj+drop", obj_drop=1.0, neg_iou=1.0)
    plain, none = build(name, loss="resobj"), build(name, loss="resobj+drop")
    assert torch.equal(losses(plain, labels())[0], losses(none, labels())[0])
    preds = model(IMAGES)
    leaves = (
        [preds["objectness"], preds["residuals"]] if name == "yolov8n.yaml" else [*preds["maps"], *preds["residuals"]]
    )
    vector, items = model.criterion(preds, labels())
    names = list(items)
    two = vector[names.index("obj_loss")] + vector[names.index("res_loss")]
    grads = torch.autograd.grad(two, leaves)
    if name == "yolov8n.yaml":
        matched = model.criterion._matched
        assert grads[0].squeeze(1)[~matched].eq(0).all()
        assert grads[0].squeeze(1)[matched].ne(0).any()
        assert grads[1].transpose(0, 1)[:, ~matched].eq(0).all()
        assert grads[1].ne(0).any()
    else:
        first = torch.cat([g[:, :, 4].flatten(1) for g in grads[:3]], 1)
        second = torch.cat([g[:, 0].flatten(1) for g in grads[3:]], 1)
        left = first.ne(0)
        assert 0 < int(left.sum()) < left.numel() / 2
        assert second[~left].eq(0).all()
        assert second.ne(0).any()


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml"])
def test_brl_is_the_element_of_both_losses(name: str) -> None:
    model = build(name, loss="resobj+brl")
    criterion = model.criterion
    assert criterion.divisor == "batch"
    seen: list[Any] = []
    composed = criterion.composition.__class__.__call__

    class Spy(criterion.composition.__class__):  # type: ignore[misc,name-defined]
        def __call__(self, candidates: Any) -> Any:
            seen.append(candidates)
            return composed(self, candidates)

    criterion.composition = Spy(criterion.recipe)
    _, items = losses(model, labels())
    assert len(seen) == 3  # o_0, o_1 and o_2
    first = seen[0]
    confused = (first.state == 0) & (first.overlap < 0.1)
    assert confused.any()
    expected = brl(first.logits, first.targets, confused.unsqueeze(-1)).sum() / (first.state == 1).sum()
    gain = 0.5 if name == "yolov8n.yaml" else criterion.gains[1]
    torch.testing.assert_close(items["obj_loss"], gain * expected.detach())


@pytest.mark.parametrize("loss", ["obj+focal", "obj+ghm", "obj+ohem", "resobj+soft"])
@pytest.mark.parametrize("name", ["yolov3-tiny.yaml", "yolo26n.yaml"])
def test_the_other_methods_run(name: str, loss: str) -> None:
    vector, items = losses(build(name, loss=loss), labels())
    assert vector.isfinite().all()
    assert items["obj_loss"] > 0


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml"])
def test_bfloat16(name: str) -> None:
    model = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        vector, _ = losses(model, labels())
    vector.sum().backward()
    assert vector.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# Trainings ------------------------------------------------------------------------------------------------------------

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "anchor": ("yolov5n.yaml", {"loss": "resobj+drop", "obj_drop": 0.5, "resobj_steps": 1}),
    "free": ("yolov8n.yaml", {"head": "resobj", "resobj_steps": 3, "resobj_on": "cls"}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


class Run:
    def __init__(self, kind: str, data: Path, folder: Path) -> None:
        name, self.flags = RUNS[kind]
        self.folder, self.trainer = folder, train(name, data, folder, **self.flags).trainer
        self.last = folder / "run" / "weights" / "last.pt"


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(request.param, data, tmp_path_factory.mktemp(request.param))


def test_results_name_the_losses_and_the_steps(run: Run) -> None:
    steps = run.flags["resobj_steps"]
    for row in results(run.folder):
        assert {"train/obj_loss", "train/res_loss", "val/res_loss"} <= row.keys()
        for kind in ("pos", "neg"):
            for t in range(steps + 1):
                assert 0 < row[f"resobj/{kind}_{t}"] < 1
        assert f"resobj/pos_{steps + 1}" not in row
    ran = run.trainer.loss_ran
    assert ran["head"] == "resobj"
    assert ran["settings"]["resobj_steps"] == steps
    assert ("anchor_t" in ran["settings"]) == (steps == 1)
    assert f"resobj_steps={steps}" in ran["text"]
    assert "with Residual Objectness" in ran["text"]


def test_a_checkpoint_keeps_head_steps_and_weights(run: Run, data: Path, tmp_path: Path) -> None:
    before = YOLO(run.last).model.float().state_dict()
    started: dict[str, Tensor] = {}
    model = YOLO(run.last)
    model.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    train(model, data, tmp_path, epochs=1)
    assert all(torch.equal(before[k], started[k]) for k in before)
    flags = model.trainer.recipe
    assert (flags["head"], flags["resobj_steps"]) == ("resobj", run.flags["resobj_steps"])
    assert flags["resobj_on"] == run.flags.get("resobj_on", "obj")
    assert flags["obj_drop"] == 0


def test_a_checkpoint_with_other_steps(run: Run, data: Path, tmp_path: Path) -> None:
    model = train(run.last, data, tmp_path, epochs=1, resobj_steps=2)
    assert model.trainer.recipe["resobj_steps"] == 2
    assert model.trainer.model.model[-1].steps == 2
    other = train(run.last, data, tmp_path / "obj", epochs=1, head="obj")
    assert "train/res_loss" not in results(tmp_path / "obj")[0]
    assert isinstance(other.trainer.model.model[-1], AnchorDetect if run.flags["resobj_steps"] == 1 else Detect)


class StopError(Exception):
    """Ends a training where a machine would."""


def test_an_interrupted_run_resumes_with_its_head(run: Run, data: Path, tmp_path: Path) -> None:
    name, flags = RUNS["anchor" if run.flags["resobj_steps"] == 1 else "free"]

    def die(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise StopError

    model = YOLO(name)
    model.add_callback("on_train_epoch_end", die)
    with pytest.raises(StopError):
        train(model, data, tmp_path, **flags)
    assert len(results(tmp_path)) == 1
    resumed = YOLO(tmp_path / "run" / "weights" / "last.pt")
    resumed.train(resume=True, workers=0)
    assert resumed.trainer.recipe == run.trainer.recipe
    assert type(resumed.trainer.model.criterion) is type(run.trainer.model.criterion)
    assert [row["epoch"] for row in results(tmp_path)] == [1, 2]
    assert results(tmp_path)[1]["resobj/pos_0"] > 0


def test_validation_and_prediction_from_a_file(run: Run, data: Path) -> None:
    model = YOLO(run.last)
    found = model.predict(str(data.parent / "images" / "val"), imgsz=SIZE, conf=1e-6, verbose=False)
    assert len(found) == 4
    assert sum(map(len, found)) > 0
    metrics = model.val(data=str(data), imgsz=SIZE, plots=False, verbose=False, workers=0, project=str(run.folder))
    assert 0 <= metrics.box.map50 <= 1
    counted = model.info(verbose=True)[1]
    assert counted == sum(p.numel() for p in model.model.parameters())


def test_the_panel_of_steps(run: Run, data: Path, tmp_path: Path) -> None:
    weights, steps = tmp_path / "spread.pt", run.flags["resobj_steps"]
    checkpoint = torch.load(run.last, weights_only=False)
    for key, parameter in checkpoint["model"].named_parameters():
        if ".residual" in key and key.endswith("logits.bias"):
            torch.nn.init.constant_(parameter, 1.0)  # each step raises all scores
    torch.save(checkpoint, weights)
    source = data.parent / "images" / "val"
    given = {"model": str(weights), "source": str(source), "conf": 1e-6, "out": str(tmp_path / "out")}
    files = panels(parse(StepsFlags, given))
    assert files == [tmp_path / "out" / f"{f.stem}.png" for f in sorted(source.iterdir())]
    assert sorted((tmp_path / "out").iterdir()) == files
    picture = cv2.imread(str(files[0]))
    assert picture.shape == (WIDTH + TITLE, WIDTH * (steps + 1), 3)
    options = {"imgsz": SIZE, "conf": 1e-6, "verbose": False}
    best = [
        at_step(weights, step).predict(str(source / "00.jpg"), **options)[0].boxes.conf.max()
        for step in range(steps + 1)
    ]
    assert all(later > 1.2 * sooner for sooner, later in pairwise(best))
    assert YOLO(weights).predict(str(source / "00.jpg"), **options)[0].boxes.conf.max() == best[-1]


def test_the_size_of_the_panel_is_the_model_s_and_is_rounded_once(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[Any] = []
    predict = YOLO.predict
    monkeypatch.setattr(
        YOLO, "predict", lambda self, *a, **given: (sizes.append(given["imgsz"]), predict(self, *a, **given))[1]
    )
    source, steps = str(data.parent / "images" / "val"), run.flags["resobj_steps"]
    for given, size, warnings in (({}, SIZE, 0), ({"imgsz": 50}, 64, 1), ({"imgsz": 96}, 96, 0)):
        sizes.clear()
        with log() as lines:
            panels(parse(StepsFlags, {"model": str(run.last), "source": source, "out": str(tmp_path), **given}))
        assert sizes == [size] * 4 * (steps + 1)
        assert sum("must be multiple" in line for line in lines) == warnings


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 64), (WIDTH, WIDTH)),  # a small image is enlarged
        ((480, 640), (480, 640)),
        ((1280, 960), (HEIGHT, 480)),
        ((640, 64), (HEIGHT, 64)),  # one that is small across alone would get too high
    ],
)
def test_boxes_are_drawn_on_an_image_that_is_large_enough(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    height, width = shape
    image = np.full((*shape, 3), 90, np.uint8)
    box = torch.tensor([[0.5 * width, 0.5 * height, 0.9 * width, 0.9 * height, 0.5, 0.0]])
    found = Results(image, path="a.jpg", names={0: "a"}, boxes=box)
    picture = _drawn(found)
    assert picture.shape[:2] == expected
    rows, columns = np.nonzero((picture != 90).any(2))
    assert rows.max() == pytest.approx(0.9 * expected[0], abs=5)
    assert columns.max() == pytest.approx(0.9 * expected[1], abs=40)  # the name may be wider than its box
    assert columns.min() >= 0.5 * expected[1] - 40
    assert torch.equal(found.boxes.data, box)
    titled = _titled(picture, "t = 2: 300 found, mean score 0.55")
    assert titled.shape[:2] == (expected[0] + TITLE, max(expected[1], WIDTH))
    assert titled[:TITLE].min() < 100
    assert (titled[:TITLE, -10:] == 255).all()  # the text ends before the panel does


def test_the_panel_needs_a_model_with_steps_and_images(run: Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image there"):
        panels(StepsFlags(model=str(run.last), source=str(tmp_path)))
    with pytest.raises(ModelError, match="no such file"):
        panels(StepsFlags(model="none.pt", source=str(data.parent / "images" / "val")))


def test_a_model_from_a_file_has_its_loss(run: Run) -> None:
    model: Any = YOLO(run.last).model.float()
    model.args = get_cfg(overrides={"imgsz": SIZE})
    criterion = model.init_criterion()
    assert type(criterion) is type(run.trainer.model.criterion)
    assert isinstance(criterion, AnchorCriterion) == (run.flags["resobj_steps"] == 1)


@pytest.mark.slow
def test_exports_give_the_same_outputs(run: Run, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    file = tmp_path / "last.pt"
    shutil.copy(run.last, file)
    reference = YOLO(file).model.float().eval()

    def outputs(images: Tensor) -> Tensor:
        with torch.no_grad():
            return reference(images)[0]  # type: ignore[no-any-return]

    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    script = YOLO(file).export(format="torchscript", imgsz=SIZE, verbose=False)
    torch.testing.assert_close(torch.jit.load(script)(images), outputs(images), rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(YOLO(file).export(format="onnx", imgsz=SIZE, verbose=False, dynamic=True))
    for shape in ((1, 3, SIZE, SIZE), (2, 3, 96, SIZE)):
        images = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("yolov5n.yaml", 80), ("yolov8n.yaml", 50)])
def test_it_overfits_eight_images(name: str, epochs: int, tmp_path: Path) -> None:
    if name == "yolov5n.yaml" and not CLASSIC.is_file():
        pytest.skip(f"no {CLASSIC}")
    data = make_dataset(tmp_path / "eight", size=96)
    data.write_text(data.read_text("utf-8").replace("images/val", "images/train"), "utf-8")
    still = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0)
    more: dict[str, Any] = {"imgsz": 96, "lr0": 0.002}
    if name == "yolov5n.yaml":
        more = {"imgsz": 160, "lr0": 0.001, "pretrained": str(CLASSIC), "obj_gain": 4.0, "cls_gain": 2.0}
    # small batches: many steps, so that the running means of the normalisation follow the weights
    model = train(
        name, data, tmp_path / "runs", loss="resobj", epochs=epochs, batch=2, nbs=2, optimizer="AdamW",
        warmup_epochs=2, val=False, amp=False, **more, **still,
    )  # fmt: skip
    assert model.trainer.metrics["metrics/mAP50(B)"] > 0.9
    steps = model.trainer.step_means
    assert steps["pos_2"] > steps["neg_2"] * 5
