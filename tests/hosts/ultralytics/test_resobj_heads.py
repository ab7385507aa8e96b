"""Heads obj and resobj on YOLO: what they predict, learn from, write, keep, refuse and export."""

from __future__ import annotations

import shutil
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from objectives import recipe_of
from slow_resobj import slopes, slow_resobj
from small_data import STILL, by_heart, make_dataset
from small_training import log, results, train
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.engine.results import Results
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import YAML
from yolo_heads import (
    anchor_head,
    assigned,
    batch,
    decoded,
    hosts,
    matches_of,
    on_anchors,
    overlaps,
    parts,
    predictions,
)

from rebalance import YOLO
from rebalance.errors import ConfigError, DataError, ModelError
from rebalance.experiments.inspect import HEIGHT, TITLE, WIDTH, _drawn, _titled, at_step, panels
from rebalance.heads.anchor import AnchorHead, objectness
from rebalance.hosts.host import begin_epoch, branches, step_means
from rebalance.hosts.ultralytics import model as yolo
from rebalance.hosts.ultralytics.criterion import AnchorCriterion, ObjectnessCriterion
from rebalance.hosts.ultralytics.model import (
    AnchorDetect,
    AnchorDetectionModel,
    ObjectnessDetect,
    ObjectnessDetectionModel,
    RefinedAnchorDetect,
    criterion_of,
    sites_of,
)
from rebalance.match.candidates import NEGATIVE, POSITIVE, Candidates, candidate_state
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl, confusion
from rebalance.methods.resobj import refine, residual_objectness
from rebalance.recipe import kept, read
from rebalance.settings import StepsFlags, parse
from rebalance.train.admission import admit

CLASSIC = Path(__file__).resolve().parents[4] / "shared" / "weights" / "yolov5n_classic.pt"
SIZE, CLASSES = 64, 3
MODELS = ("yolov5n.yaml", "yolov3-tiny.yaml", "yolov8n.yaml", "yolo26n.yaml")
FREE = ("yolov8n.yaml", "yolo26n.yaml")
IMAGES = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def labels(count: int = 5) -> dict[str, Tensor]:
    return batch(count, classes=CLASSES)


def build(name: str, **given: Any) -> Any:
    """A model in training mode with its criterion; the last layers of its objectness are spread."""
    recipe = read({"head": "resobj", **given} if "loss" not in given else given, sites_of(name))
    torch.manual_seed(0)
    model = yolo.build(name, recipe, nc=CLASSES, verbose=False)
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    for key, parameter in model.named_parameters():
        if key.endswith("logits.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.criterion = criterion_of(model, recipe, 0)
    return model.train()


def losses(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    vector, items = model.criterion(model(IMAGES), {k: v.clone() for k, v in batch.items()})
    return vector, items


# The choice of the head -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolov3.yaml", True), ("yolov3-tiny.yaml", True), ("yolov3-spp.yaml", True), ("yolov5n.yaml", True),
        ("yolov5n6.yaml", True), ("yolov8n.yaml", False), ("yolov6n.yaml", False), ("yolov9t.yaml", False),
        ("yolov10n.yaml", False), ("yolo11n.yaml", False), ("yolo26n.yaml", False), ("a model.pt", False), ({}, False),
        (None, False),
    ],
)  # fmt: skip
def test_heads_obj_and_resobj_stand_on_anchors_where_the_family_had_them(name: Any, expected: bool) -> None:
    assert sites_of(name).on_anchors is expected


def test_a_family_is_told_by_its_layers_and_not_by_the_name_of_its_file(tmp_path: Path) -> None:
    for name, expected in (("yolov5n.yaml", True), ("yolov8n.yaml", False)):
        layers = {k: v for k, v in yaml_model_load(name).items() if k not in ("yaml_file", "scale")}
        file = tmp_path / ("yolov8n-mine.yaml" if expected else "yolov5n-mine.yaml")
        YAML.save(file, layers)
        assert sites_of(str(file)).on_anchors is expected
        assert sites_of(layers).on_anchors is expected
        assert sites_of(DetectionModel(str(file), nc=2, verbose=False)).on_anchors is expected
        assert isinstance(build(str(file), head="obj").model[-1], AnchorDetect if expected else ObjectnessDetect)


def test_a_head_of_ours_says_itself_what_it_stands_on() -> None:
    for kind, base in ((AnchorDetectionModel, "anchor"), (ObjectnessDetectionModel, "stock")):
        for name in ("yolov5n.yaml", "yolov8n.yaml"):
            sites = sites_of(kind(name, nc=2, verbose=False))
            assert sites.on_anchors == (base == "anchor")
            # so that a checkpoint of a time when there was no such flag has its loss
            assert kept({"head": "obj", "loss": "bce"}, sites)["obj_base"] == base


@pytest.mark.parametrize(
    ("name", "base", "anchors"),
    [
        ("yolov5n.yaml", "auto", True), ("yolov3-tiny.yaml", "auto", True), ("yolov5n.yaml", "stock", False),
        ("yolov8n.yaml", "auto", False), ("yolo26n.yaml", "stock", False), ("yolov8n.yaml", "anchor", True),
    ],
)  # fmt: skip
def test_the_head_and_the_criterion_of_each_family(name: str, base: str, anchors: bool) -> None:
    for steps in (0, 2):
        model = build(name, resobj_steps=steps, obj_base=base)
        head, criterion = model.model[-1], branches(model.criterion)[0]
        if anchors:
            assert isinstance(model, AnchorDetectionModel)
            assert type(head) is (RefinedAnchorDetect if steps else AnchorDetect)
            assert type(criterion) is AnchorCriterion
        else:
            assert isinstance(model, ObjectnessDetectionModel)
            assert (type(head), type(criterion)) == (ObjectnessDetect, ObjectnessCriterion)
        assert criterion.recipe["obj_base"] == ("anchor" if anchors else "stock")
        assert head.np == sum(p.numel() for p in head.parameters())
        assert head.type.endswith(type(head).__name__)
        assert losses(model, labels())[0].isfinite().all()


@pytest.mark.parametrize("name", ["yolov10n.yaml", "rtdetr-l.yaml"])
def test_models_that_cannot_have_an_objectness(name: str) -> None:
    with pytest.raises(ModelError, match="head=obj needs a detection model that ends in Detect"):
        ObjectnessDetectionModel(name, verbose=False)


@pytest.mark.parametrize(
    ("model", "given", "error", "message"),
    [
        ("yolov8n.yaml", {"head": "resobj", "anchor_t": 3}, ConfigError, "anchor_t=3 has no effect"),
        ("yolov5n.yaml", {"head": "obj", "obj_base": "stock", "anchor_t": 3}, ConfigError, "anchor_t=3 has no effect"),
        ("yolov5n.yaml", {"head": "resobj", "box": 3}, ConfigError, "head=resobj; its gains are box_gain"),
        ("yolov5n.yaml", {"loss": "resobj+ghm"}, ConfigError, "ghm is not defined for head=resobj"),
        ("yolov10n.yaml", {"loss": "resobj"}, ModelError, "ends in v10Detect"),
        ("yolov8n.yaml", {"resobj_steps": 1}, ConfigError, "add head=resobj"),
        ("yolov5n.yaml", {"head": "anchor", "obj_base": "stock"}, ConfigError, "it is for head=obj and head=resobj"),
        ("yolov5n.yaml", {"head": "obj", "obj_base": "anchors"}, ConfigError, "did you mean anchor"),
        ("yolov5n.yaml", {"head": "obj", "obj_weight": 2}, ConfigError, "which has its own prior and obj_gain"),
        ("yolov5n.yaml", {"head": "resobj", "cls_prior": "code"}, ConfigError, "cls_prior=code has no effect with"),
        ("yolov8n.yaml", {"obj_width": 8}, ConfigError, "obj_width=8 has no effect with head=stock; add head=obj"),
    ],
)
def test_refused(tmp_path: Path, model: str, given: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        YOLO(model).train(data="none.yaml", project=str(tmp_path), **given)
    assert not list(tmp_path.iterdir())


def test_refused_before_the_built_in_data_set_is_made(tmp_path: Path) -> None:
    data = tmp_path / "small.yaml"
    data.write_text("seafloor: {train: 2, val: 1, test: 1, size: 64}\n", "utf-8")
    with pytest.raises(ModelError, match="ends in v10Detect"):
        YOLO("yolov10n.yaml").train(data=str(data), head="obj", project=str(tmp_path))
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("yolov8n.yaml", {"loss": "resobj", "resobj_steps": "1"}),
        ("yolov5n.yaml", {"head": "obj", "anchor_t": 3}),
        ("yolov8n.yaml", {"head": "obj", "obj_base": "anchor", "anchor_t": 3}),
    ],
)
def test_admitted(model: str, given: dict[str, Any]) -> None:
    admitted = admit(YOLO(model), given, {}, data=False)
    assert admitted.recipe is not None
    assert admitted.recipe["head"] == admitted.given["head"] == given.get("head", "resobj")


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
    found = []
    for given in ({"head": "anchor"}, {"head": "obj"}, {"head": "resobj", "resobj_steps": 0}):
        model = build("yolov5n.yaml", **given)
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
    assert raw["objectness"].sigmoid().mean().item() == pytest.approx(0.001, rel=0.2)


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "grad"),
    [*((name, 5, "isolated") for name in MODELS), *zip(MODELS, [0] * 4, ["isolated", "joint"] * 2, strict=True)],
)
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
    [
        ("obj", "isolated", False), ("obj", "stepwise", False), ("obj", "joint", True), ("cls", "isolated", True),
        ("cls", "joint", True),
    ],
)  # fmt: skip
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


def test_the_residual_loss_of_the_anchor_head_by_its_formula() -> None:
    head = anchor_head(CLASSES)
    model = SimpleNamespace(model=[head], args=SimpleNamespace(imgsz=SIZE))
    criterion = AnchorCriterion(model, recipe=recipe_of({"loss": "resobj"}, anchored=True), seed=0)
    raw = made_maps(head, 2)
    _, items = criterion(raw, labels())
    residuals = torch.stack([torch.cat([r[:, t].flatten(1) for r in raw["residuals"]], 1) for t in range(2)])
    given = on_anchors(head, raw["maps"], labels())
    positive = given.state == POSITIVE
    assert int(positive.sum()) > 10
    found = residual_objectness(objectness(raw["maps"]), residuals, given.targets.squeeze(-1), given.state).losses.sum(
        0
    )
    # mean over the candidates of a level, 4, 1 and 0.4 times; the gain of the objectness
    levels = torch.split(found, [3 * n * n for n in (8, 4, 2)], 1)
    expected = sum(w * x.mean() for w, x in zip((4, 1, 0.4), levels, strict=True)) * (SIZE / 640) ** 2
    torch.testing.assert_close(items["res_loss"], expected)
    # what the epoch's table says: the scores of inference
    means = step_means(criterion)
    steps = refine(objectness(raw["maps"]), residuals).sigmoid()
    for t in range(3):
        assert means[f"pos_{t}"] == pytest.approx(steps[t][positive].mean().item(), rel=1e-5)
        assert means[f"neg_{t}"] == pytest.approx(steps[t][~positive].mean().item(), rel=1e-5)
    with torch.no_grad():
        criterion(raw, labels(2))  # validation leaves it as it is
    assert step_means(criterion) == means
    begin_epoch(criterion, 1)
    assert step_means(criterion) == {}


class Refined(NamedTuple):
    """What the losses of a head's last branch are computed from, as other code has found it."""

    part: dict[str, Any]
    objectness: Candidates  # (B, N) logits and targets
    residuals: Tensor  # (T, B, N)
    logits: Tensor  # (B, N, C) P(class | object)
    scores: Tensor  # (B, N, C) target scores
    own: Tensor  # (B, N) complete IoU of a matched prediction with its own label


def refined(model: Any, branch: int = -1, given: dict[str, Tensor] | None = None) -> Refined:
    """On an anchor-free head, from boxes that are near the labels; the assigner sees the score of inference."""
    part, g = parts(predictions(model))[branch], torch.Generator().manual_seed(2)
    given = labels() if given is None else given
    cells = part["scores"].shape[-1]
    part["objectness"] = torch.randn(2, 1, cells, generator=g).requires_grad_()
    part["residuals"] = torch.randn(2, model.model[-1].steps, cells, generator=g).requires_grad_()
    logits, residuals = part["objectness"].squeeze(1), part["residuals"].transpose(0, 1)
    found = assigned(hosts(model)[branch], part, given, refine(logits, residuals)[-1])
    state, overlap = candidate_state(found.positive), overlaps(found.boxes, given)
    candidates = Candidates(logits, found.scores.sum(-1), state, overlap)
    return Refined(part, candidates, residuals, part["scores"].transpose(1, 2), found.scores, found.own)


@pytest.mark.parametrize("name", FREE)
def test_the_losses_of_the_anchor_free_head_by_their_formulas(name: str) -> None:
    model = build(name)
    given = refined(model)
    vector, items = branches(model.criterion)[-1].loss(given.part, labels())
    torch.testing.assert_close(torch.stack(list(items.values())) * 2, vector.detach())
    logits, quality, state = given.objectness[:3]
    assert 0 < int((state == POSITIVE).sum()) < state.numel() / 2
    total = quality.sum()
    assert total > 1
    torch.testing.assert_close(items["obj_loss"], 0.5 * bce(logits, quality).sum() / total)
    res = residual_objectness(logits, given.residuals, quality, state).losses.sum() / total
    torch.testing.assert_close(items["res_loss"], 0.5 * res)
    # class loss: positives alone, 0 and 1 as targets, weighted by the target score
    expected = torch.zeros(())
    for b, n in (state == POSITIVE).nonzero().tolist():
        scores = given.scores[b, n]
        expected = expected + scores.sum() * bce(given.logits[b, n], (scores > 0).float()).sum()
    torch.testing.assert_close(items["cls_loss"], 0.5 * expected / total)


@pytest.mark.parametrize(
    ("name", "branch"),
    [("yolov5n.yaml", 0), ("yolov3-tiny.yaml", 0), ("yolov8n.yaml", 0), ("yolo26n.yaml", 0), ("yolo26n.yaml", 1)],
)
@pytest.mark.parametrize(
    ("gate", "grad", "images"),
    [
        ("batch", "isolated", 2), ("image", "isolated", 2), ("image", "stepwise", 2), ("batch", "joint", 1),
        ("image", "joint", 1),
    ],
)  # fmt: skip
def test_the_residual_loss_of_every_head_candidate_by_candidate(
    name: str, branch: int, gate: str, grad: str, images: int
) -> None:
    """By a slow reference, values and gradients; with labels in one image of two that of the other is without gate."""
    model = build(name, resobj_gate=gate, resobj_grad=grad, divisor="candidates")
    given_labels = batch(5, images, CLASSES)
    criterion = branches(model.criterion)[branch]
    if name in FREE:
        given = refined(model, branch, given_labels)
        raw, candidates, residuals = given.part, given.objectness, given.residuals
        leaves = [raw["objectness"], raw["residuals"]]
        vector, items = criterion.loss(raw, given_labels)
        gain = 0.5
    else:
        raw = model(IMAGES)
        leaves = [x.detach().clone().requires_grad_() for x in (*raw["maps"], *raw["residuals"])]
        raw = {"maps": leaves[: len(raw["maps"])], "residuals": leaves[len(raw["maps"]) :]}
        candidates = on_anchors(model.model[-1], raw["maps"], given_labels)
        flat = {"logits": objectness(raw["maps"]), "targets": candidates.targets.squeeze(-1)}
        candidates = candidates._replace(**flat)
        residuals = torch.cat([r.flatten(2) for r in raw["residuals"]], 2).transpose(0, 1)
        vector, items = criterion(raw, given_labels)
        gain = criterion.gains[1]
    logits, targets, state = candidates[:3]
    assert (state == POSITIVE).any(1).tolist() == [True, images == 2]
    found = vector[list(items).index("res_loss")] / 2
    expected = slow_resobj(logits, residuals, targets, state, gate=gate, grad=grad).losses
    expected = gain * expected.sum() / state.numel()
    torch.testing.assert_close(found, expected)
    assert found > 0
    for one, other in zip(slopes(found, *leaves), slopes(expected, *leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_priors_widths_and_weights_that_are_asked_for() -> None:
    given = {"obj_width": 24, "resobj_width": 8, "obj_prior": 0.02, "cls_prior": "code"}
    model = build("yolo26n.yaml", obj_weight=20, cls_weight=10, **given)
    plain = build("yolo26n.yaml", **given)
    head = model.model[-1]
    for towers, modules in ((head.cv3, head.objectness), (head.one2one_cv3, head.one2one_objectness)):
        for tower, made in zip(towers, modules, strict=True):
            assert (made.objectness.logits.in_channels, made.residual.logits.in_channels) == (24, 2 * 8)
            assert made.objectness.logits.bias.sigmoid().item() == pytest.approx(0.02)
            torch.testing.assert_close(tower[-1].bias.sigmoid(), torch.full((CLASSES,), 1 / CLASSES))
    (_, before), (_, after) = (losses(x, labels()) for x in (plain, model))
    for name, times in {"box_loss": 1, "cls_loss": 10, "obj_loss": 20, "res_loss": 20}.items():
        torch.testing.assert_close(after[name], before[name] * times)


def test_the_width_of_the_residuals_on_the_anchor_head() -> None:
    head = build("yolov5n.yaml", resobj_width=8).model[-1]
    assert [made.squeeze.out_channels for made in head.residual] == [8, 8, 8]


def objectnesses(model: Any) -> tuple[Any, Candidates, Tensor, list[Tensor]]:
    """Raw predictions of a model, candidates of its objectness, residuals (T, B, N), and the leaves of these."""
    if isinstance(model.model[-1], ObjectnessDetect):
        given = refined(model)
        return given.part, given.objectness, given.residuals, [given.part["objectness"], given.part["residuals"]]
    raw = model(IMAGES)
    found = on_anchors(model.model[-1], raw["maps"], labels())
    found = found._replace(logits=objectness(raw["maps"]), targets=found.targets.squeeze(-1))
    residuals = torch.cat([r.flatten(2) for r in raw["residuals"]], 2).transpose(0, 1)
    return raw, found, residuals, [*raw["maps"], *raw["residuals"]]


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml"])
def test_dropped_negatives_leave_both_losses(name: str) -> None:
    """With all negatives dropped both are losses of positives alone; with rate 0 both are as without."""
    model = build(name, loss="resobj+drop", obj_drop=1.0, neg_iou=1.0)
    plain, none = build(name, loss="resobj"), build(name, loss="resobj+drop")
    assert torch.equal(losses(plain, labels())[0], losses(none, labels())[0])
    raw, given, _, leaves = objectnesses(model)
    vector, items = model.criterion(raw, labels())
    names = list(items)
    grads = torch.autograd.grad(vector[names.index("obj_loss")] + vector[names.index("res_loss")], leaves)
    if name == "yolov8n.yaml":
        first, second = grads[0].squeeze(1), grads[1].transpose(0, 1)
    else:
        first = torch.cat([g[:, :, 4].flatten(1) for g in grads[:3]], 1)
        second = torch.cat([g.flatten(2) for g in grads[3:]], 2).transpose(0, 1)
    positive = given.state == POSITIVE
    assert torch.equal(first.ne(0), positive)
    assert second[:, ~positive].eq(0).all()
    assert second.ne(0).any()


@pytest.mark.parametrize(
    ("name", "scope", "by"),
    [
        ("yolov5n.yaml", "matched", "kept"), ("yolov5n.yaml", "literal", "host"), ("yolov8n.yaml", "matched", "kept"),
        ("yolov8n.yaml", "matched", "host"), ("yolov8n.yaml", "literal", "kept"),
    ],
)  # fmt: skip
def test_dropped_matches_leave_both_losses_or_become_background(name: str, scope: str, by: str) -> None:
    free = name == "yolov8n.yaml"
    more = {"divisor": "host" if free else "batch", "drop_scope": scope, "drop_divisor": by}
    model = build(name, loss="resobj+drop", obj_drop=1.0, neg_iou=0.2, **more)
    raw, given, residuals, _ = objectnesses(model)
    _, items = model.criterion(raw, labels())
    logits, targets, state, overlap = given[:4]
    if scope == "literal" and free:
        overlap = refined(model).own
    elif scope == "literal":  # the last match above it sets the target
        targets = torch.zeros_like(targets)
        for image, candidate, iou in matches_of(model.model[-1], raw["maps"], labels()):
            if iou >= 0.2:
                targets[image, candidate] = iou
        overlap = targets
    elif not free:
        overlap = overlaps(decoded(model.model[-1], raw["maps"]), labels())
    gone = (state == POSITIVE) & (overlap < 0.2)
    assert 0 < int(gone.sum()) < int((state == POSITIVE).sum())
    whole = targets if free else (state == POSITIVE).float()  # what the loss is divided by the sum of
    total = whole[~gone].sum() if by == "kept" else whole.sum()
    assert total > 1
    weights = torch.ones_like(logits)
    if scope == "literal":
        targets, state = targets.masked_fill(gone, 0), state.masked_fill(gone, NEGATIVE)
    else:
        weights = (~gone).float()
    gain = (0.5 if free else 0.01) / total
    torch.testing.assert_close(items["obj_loss"], gain * (bce(logits, targets) * weights).sum())
    found = residual_objectness(logits, residuals, targets, state, weights=weights).losses.sum()
    torch.testing.assert_close(items["res_loss"], gain * found)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov8n.yaml"])
def test_brl_is_the_element_of_both_losses(name: str) -> None:
    model = build(name, loss="resobj+brl", brl_base="focal")
    raw, given, residuals, _ = objectnesses(model)
    _, items = model.criterion(raw, labels())
    logits, targets, state, overlap = given[:4]
    confused = confusion(state, overlap, 0.1)
    assert confused.any()
    count = (state == POSITIVE).sum()  # its own divisor
    gain = 0.5 if name == "yolov8n.yaml" else 0.01
    torch.testing.assert_close(items["obj_loss"], gain * brl(logits, targets, confused).sum() / count)
    res = residual_objectness(logits, residuals, targets, state, element=lambda x, y: brl(x, y, confused)).losses
    torch.testing.assert_close(items["res_loss"], gain * res.sum() / count)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("yolov3-tiny.yaml", "obj+focal"), ("yolov3-tiny.yaml", "obj+ohem"), ("yolov3-tiny.yaml", "resobj+soft"),
        ("yolo26n.yaml", "obj+ghm"), ("yolo26n.yaml", "resobj+varifocal"),
    ],
)  # fmt: skip
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
    # beside the class scores of a model whose family had anchors
    "free": ("yolov5n.yaml", {"head": "resobj", "obj_base": "stock", "resobj_steps": 3, "resobj_on": "cls"}),
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
    assert flags["obj_base"] == run.flags.get("obj_base", "anchor")
    assert type(model.trainer.model.model[-1]) is type(run.trainer.model.model[-1])
    assert flags["obj_drop"] == 0


def test_a_checkpoint_with_other_steps(run: Run, data: Path, tmp_path: Path) -> None:
    model = train(run.last, data, tmp_path, epochs=1, resobj_steps=2)
    assert model.trainer.recipe["resobj_steps"] == 2
    assert model.trainer.model.model[-1].steps == 2
    other = train(run.last, data, tmp_path / "obj", epochs=1, head="obj")
    assert "train/res_loss" not in results(tmp_path / "obj")[0]
    assert type(other.trainer.model.model[-1]) is (AnchorDetect if run.flags["resobj_steps"] == 1 else ObjectnessDetect)


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
@pytest.mark.parametrize(("name", "epochs"), [("yolov5n.yaml", 10), ("yolov8n.yaml", 6)])
def test_it_overfits_eight_images(name: str, epochs: int, tmp_path: Path) -> None:
    if name == "yolov5n.yaml" and not CLASSIC.is_file():
        pytest.skip(f"no {CLASSIC}")
    data = make_dataset(tmp_path / "eight", size=96)
    by_heart(data)
    more: dict[str, Any] = {"imgsz": 96, "lr0": 0.002}
    if name == "yolov5n.yaml":
        more = {"imgsz": 160, "lr0": 0.001, "pretrained": str(CLASSIC), "obj_gain": 4.0, "cls_gain": 2.0}
    # small batches: many steps, so that the running means of the normalisation follow the weights
    model = train(
        name, data, tmp_path / "runs", loss="resobj", epochs=epochs, batch=2, nbs=2, optimizer="AdamW",
        warmup_epochs=0.25, val=False, amp=False, **more, **STILL,
    )  # fmt: skip
    assert model.trainer.metrics["metrics/mAP50(B)"] > 0.9
    steps = model.trainer.step_means
    assert steps["pos_2"] > steps["neg_2"] * 5
