"""Residual objectness on RetinaNet and in Faster R-CNN's RPN: losses by their formulas, gradients, checkpoints."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from objectives import recipe_of
from slow_resobj import slow_resobj
from small_data import STILL, by_heart, make_dataset
from small_training import results, train
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from ultralytics.cfg import get_cfg

from rebalance import YOLO
from rebalance.errors import ConfigError
from rebalance.experiments.inspect import panels
from rebalance.hosts.host import counts, remember
from rebalance.hosts.torchvision.dense import labels_of
from rebalance.hosts.torchvision.faster_rcnn import RefinedFasterRCNNDetect
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.retinanet import RefinedRetinaNetDetect
from rebalance.match.boxes import encode_deltas
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.match.iou import match_by_iou
from rebalance.methods.resobj import refined
from rebalance.settings import StepsFlags

HOSTS = {"retinanet": "retinanet_tiny", "fasterrcnn": "fasterrcnn_tiny"}
KINDS = {"retinanet": RefinedRetinaNetDetect, "fasterrcnn": RefinedFasterRCNNDetect}
UNREFINED = {"retinanet": "objectness", "fasterrcnn": "logits"}  # its name in the raw predictions
CLASSES = 3
SMALL = {"imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "verbose": False, "device": "cpu"}


def labels(*counts: int) -> dict[str, Tensor]:
    """A batch with so many labels in each image."""
    g = torch.Generator().manual_seed(3)
    total = sum(counts)
    size = torch.rand(total, 2, generator=g) * 0.4 + 0.2
    return {
        "batch_idx": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).float(),
        "cls": torch.randint(CLASSES, (total, 1), generator=g).float(),
        "bboxes": torch.cat((size / 2 + torch.rand(total, 2, generator=g) * (1 - size), size), 1),
    }


def build(host: str, **given: Any) -> Any:
    torch.manual_seed(0)
    recipe = recipe_of(given, host=host)
    model: Any = TorchvisionModel(HOSTS[host], nc=CLASSES, verbose=False, recipe=recipe).train()
    remember(model, recipe)
    model.args = get_cfg(overrides={"imgsz": 64})
    model.criterion = model.criterion_of(recipe, 0)
    return model


def predictions(model: Any, images: int = 3) -> dict[str, Any]:
    """Raw predictions, their logits replaced by random ones that differ enough for gates to open and close."""
    raw: dict[str, Any] = model(torch.rand(images, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    g = torch.Generator().manual_seed(2)
    for name in ("logits", "objectness", "residuals"):
        if name in raw:
            raw[name] = (torch.randn(raw[name].shape, generator=g) - 0.5).requires_grad_()
    return raw


def loss_of(model: Any, raw: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses by name, not times the images, with their graph."""
    loss, items = model.criterion(raw, batch)
    found = dict(zip(items, loss / len(raw["logits"]), strict=True))
    for name, value in items.items():
        torch.testing.assert_close(found[name].detach(), value)
    return found


def matched_by(model: Any, raw: dict[str, Any], batch: dict[str, Tensor]) -> tuple[Any, Any]:
    padded = labels_of(batch, len(raw["logits"]), raw["size"], torch.device("cpu"))
    high, low = (0.5, 0.4) if model.model[-1].sites.name == "retinanet" else (0.7, 0.3)
    return match_by_iou(raw["anchors"], padded, high=high, low=low, rescue="ties"), padded


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("divisor", "gate", "grad"),
    [
        ("auto", "batch", "isolated"), ("auto", "image", "stepwise"), ("image", "image", "isolated"),
        ("candidates", "image", "joint"), ("candidates", "batch", "stepwise"),
    ],
)  # fmt: skip
def test_the_losses_by_their_formulas(host: str, divisor: str, gate: str, grad: str) -> None:
    model = build(host, head="resobj", divisor=divisor, resobj_gate=gate, resobj_grad=grad)
    batch = labels(3, 1, 0)
    raw = predictions(model)
    found = loss_of(model, raw, batch)
    matched, padded = matched_by(model, raw, batch)
    positive = matched.state == POSITIVE
    assert positive.any()
    assert (matched.state == IGNORE).any()
    objects, targets = raw[UNREFINED[host]], positive.float()
    kept = (matched.state != IGNORE).float()
    first = (binary_cross_entropy_with_logits(objects, targets, reduction="none") * kept).sum(1)
    given = (objects, raw["residuals"].transpose(0, 1), targets, matched.state)
    later = slow_resobj(*given, gate=gate, grad=grad).losses.sum((0, 2))
    by_image = positive.sum(1).clamp(min=1)

    def divided(sums: Tensor, count: str) -> Tensor:
        if count in ("auto", "batch"):
            return sums.sum() / positive.sum()
        if count == "candidates":
            return sums.sum() / (matched.state != IGNORE).sum()
        return (sums / by_image).mean()

    torch.testing.assert_close(found["obj_loss"], divided(first, divisor))
    torch.testing.assert_close(found["res_loss"], divided(later, divisor))
    assert found["res_loss"] > 0
    for part, other in (("obj_loss", first), ("res_loss", later)):
        for name in (UNREFINED[host], "residuals"):
            grads = [
                torch.autograd.grad(x, raw[name], retain_graph=True, allow_unused=True, materialize_grads=True)[0]
                for x in (found[part], divided(other, divisor))
            ]
            torch.testing.assert_close(*grads)

    rest = "auto" if divisor == "candidates" else divisor
    boxes = torch.zeros(3)
    classes = torch.zeros(3)
    for i, a in positive.nonzero().tolist():
        label, anchor = matched.label[i, a], raw["anchors"][a]
        offsets = encode_deltas(padded.boxes[i, label], anchor)
        if host == "fasterrcnn":
            boxes[i] += smooth_l1_loss(raw["deltas"][i, a].detach(), offsets, reduction="sum", beta=1 / 9)
        else:
            boxes[i] += (raw["deltas"][i, a].detach() - offsets).abs().sum()
            one_hot = torch.eye(CLASSES)[padded.classes[i, label]]
            classes[i] += binary_cross_entropy_with_logits(raw["logits"][i, a].detach(), one_hot, reduction="sum")
    box = found["prop_loss" if host == "fasterrcnn" else "box_loss"]
    torch.testing.assert_close(box.detach(), divided(boxes, rest))
    if host == "retinanet":
        torch.testing.assert_close(found["cls_loss"].detach(), divided(classes, rest))


@pytest.mark.parametrize("host", HOSTS)
def test_no_steps_is_obj(host: str) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = (build(host, **given) for given in ({"head": "obj"}, {"head": "resobj", "resobj_steps": 0}))
        assert one.state_dict().keys() == other.state_dict().keys()
        found = [model.criterion(model(images), labels(2, 1)) for model in (one, other)]
        assert torch.equal(found[0][0], found[1][0])
        assert "res_loss" not in found[0][1]
        assert torch.equal(one.eval()(images)[0], other.eval()(images)[0])


@pytest.mark.parametrize("host", HOSTS)
def test_the_loss_chooses_the_head_and_a_model_of_the_yaml_has_it(host: str) -> None:
    model = build(host, loss="resobj", resobj_steps=3, resobj_on="cls")
    assert type(model.model[-1]) is KINDS[host]
    again: Any = TorchvisionModel(model.yaml, nc=CLASSES, verbose=False)
    assert type(again.model[-1]) is KINDS[host]
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.model[-1].steps == 3
    again.args = model.args
    assert again.init_criterion().recipe["resobj_on"] == "cls"


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("on", "grad"), [("obj", "isolated"), ("obj", "stepwise"), ("obj", "joint"), ("cls", "isolated")]
)
def test_where_the_residual_losses_reach(host: str, on: str, grad: str) -> None:
    """Isolated, on the objectness's own features: the residual subnets alone."""
    model = build(host, head="resobj", resobj_on=on, resobj_grad=grad)
    raw = model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = loss_of(model, raw, labels(3, 1))["res_loss"]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    reached = {name for name, grad in zip(names, grads, strict=True) if grad is not None and grad.any()}
    residual = {name for name in names if ".residual." in name}
    assert residual
    own = {"retinanet": "model.2.objectness.objectness.", "fasterrcnn": "model.2.rpn.cls_logits."}[host]
    if on == "obj" and grad != "joint":
        assert reached == residual
        return
    assert reached > residual
    # the last layer of the objectness: through o_0 alone, which `isolated` cuts off
    last = f"{own}logits.weight" if host == "retinanet" else f"{own}weight"
    assert (last in reached) == (grad == "joint")
    assert any(name.startswith("model.0.") for name in reached)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("counts", [(0, 0), (2, 0)])
@pytest.mark.parametrize("steps", [0, 2])
def test_every_parameter_gets_a_finite_gradient(host: str, counts: tuple[int, ...], steps: int) -> None:
    model = build(host, head="resobj", resobj_steps=steps)
    found = loss_of(model, model(torch.rand(2, 3, 64, 64)), labels(*counts))
    torch.stack(list(found.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not any(counts) and ".residual." in name:
            assert not parameter.grad.any()
    if steps and not any(counts):
        assert found["res_loss"] == 0


@pytest.mark.parametrize("host", HOSTS)
def test_bfloat16(host: str) -> None:
    """Ultralytics' own mixed precision is for GPUs; this is the same on a CPU."""
    model = build(host, head="resobj")
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model.criterion(model(torch.rand(2, 3, 64, 64)), labels(3, 1))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("host", HOSTS)
def test_priors(host: str) -> None:
    model = build(host, head="resobj").eval()
    with torch.no_grad():
        raw = model(torch.rand(1, 3, 64, 64))[1]
    torch.testing.assert_close(raw[UNREFINED[host]].sigmoid().mean(), torch.tensor(0.001), atol=0.0002, rtol=0)
    assert raw["residuals"].abs().mean() < 0.1
    if host == "retinanet":
        torch.testing.assert_close(raw["logits"].sigmoid().mean(), torch.tensor(0.01), atol=0.003, rtol=0)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("given", "objects", "classes"),
    [
        ({"obj_prior": "paper", "cls_prior": "code"}, 1 / 3, 1 / 3), ({"cls_prior": "paper"}, 0.001, 0.01),
        ({"obj_prior": 0.2, "cls_prior": "0.1"}, 0.2, 0.1),
    ],
)  # fmt: skip
def test_priors_that_are_asked_for(host: str, given: dict[str, Any], objects: float, classes: float) -> None:
    if host == "fasterrcnn":
        given = {name: value for name, value in given.items() if name == "obj_prior"}
    head = build(host, head="obj", **given).model[-1]
    last = head.objectness.objectness.logits if host == "retinanet" else head.rpn.cls_logits
    torch.testing.assert_close(last.bias.sigmoid(), torch.full_like(last.bias, objects))
    if host == "retinanet":
        bias = head.layers.classification_head.cls_logits.bias
        torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, classes))


@pytest.mark.parametrize("host", HOSTS)
def test_widths(host: str) -> None:
    own = {"obj_width": 24} if host == "retinanet" else {}
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = build(host, head="resobj", resobj_width=8, **own).eval()
    head = model.model[-1]
    if host == "retinanet":
        assert head.objectness.objectness.logits.in_channels == 24
        assert head.objectness.residual.hidden.in_channels == 24
        assert head.objectness.residual.logits.in_channels == 2 * 8
    else:
        assert head.residual.squeeze.out_channels == 8
    again: Any = TorchvisionModel(model.yaml, nc=CLASSES, verbose=False)
    again.load_state_dict(model.state_dict())

    def objects(model: Any) -> Tensor:
        with torch.no_grad():
            raw = model(images)[1]
        return refined(raw[UNREFINED[host]], raw.get("residuals"), None)

    before = objects(model)
    assert torch.equal(objects(again.eval()), before)
    torch.testing.assert_close(objects(model.fuse(verbose=False)), before)


@pytest.mark.parametrize("host", HOSTS)
def test_weights_of_the_losses(host: str) -> None:
    given = {"obj_weight": 20, **({"cls_weight": 10} if host == "retinanet" else {})}
    plain, weighted = build(host, head="resobj"), build(host, head="resobj", **given)
    raw, batch = predictions(plain), labels(3, 1, 2)
    before, after = loss_of(plain, raw, batch), loss_of(weighted, raw, batch)
    for name, loss in before.items():
        times = 20 if name in ("obj_loss", "res_loss") else 10 if (host, name) == ("retinanet", "cls_loss") else 1
        torch.testing.assert_close(after[name], loss * times)


def test_retinanet_s_score_is_the_product_after_all_steps() -> None:
    model = build("retinanet", head="resobj").eval()
    head = model.model[-1]
    with torch.no_grad():
        raw = predictions(model.train())
        for shown in (None, 1, 0):
            head.shown = shown
            refined = raw["objectness"] + raw["residuals"][:, :shown].sum(1)
            scores = raw["logits"].sigmoid() * refined.sigmoid().unsqueeze(-1)
            boxes, best, classes = head.decode(raw)
            for image in range(3):
                start = kept = 0
                for count in raw["counts"]:
                    level = scores[image, start : start + count].flatten()
                    few = min(head.most, len(level))
                    torch.testing.assert_close(best[image, kept : kept + few], level.topk(few).values)
                    start, kept = start + count, kept + few
            assert boxes.shape == (*best.shape, 4)
            assert classes.max() < CLASSES


def test_proposals_are_ranked_by_the_refined_objectness() -> None:
    model = build("fasterrcnn", head="resobj").eval()
    head, seen = model.model[-1], []
    real = head.propose
    head.propose = lambda logits, *rest: seen.append(logits) or real(logits, *rest)
    with torch.no_grad():
        raw = model(torch.rand(2, 3, 64, 64))[1]
        head.shown = 1
        model(torch.rand(2, 3, 64, 64))
    assert torch.equal(seen[0], raw["logits"] + raw["residuals"].sum(1))
    assert not torch.equal(seen[0], raw["logits"])


def test_the_order_of_anchors_is_that_of_the_stock_head() -> None:
    """An objectness that rises with the anchor's index in a cell must end up with that anchor's class scores."""
    for host in HOSTS:
        model = build(host, head="resobj", resobj_steps=1)
        head = model.model[-1]
        per_cell = 9 if host == "retinanet" else 3
        rising = torch.arange(per_cell).float()
        last = head.objectness.objectness.logits if host == "retinanet" else head.rpn.cls_logits
        residual = head.objectness.residual if host == "retinanet" else head.residual.residual
        with torch.no_grad():
            for layer in (last, residual.logits):
                layer.weight.zero_()
                layer.bias.copy_(rising)
            raw = model(torch.rand(1, 3, 64, 64))
        expected = rising.repeat(len(raw["anchors"]) // per_cell)
        assert torch.equal(raw[UNREFINED[host]][0], expected)
        assert torch.equal(raw["residuals"][0, 0], expected)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scope", ["background", "literal"])
def test_dropped_negatives_leave_both_losses(host: str, scope: str) -> None:
    model = build(host, loss="resobj+drop", obj_drop=1.0, neg_iou=1.0, drop_scope=scope)
    batch, raw = labels(3, 1, 2), predictions(model)
    found = loss_of(model, raw, batch)
    state = matched_by(model, raw, batch)[0].state
    grads = torch.autograd.grad(found["obj_loss"] + found["res_loss"], (raw[UNREFINED[host]], raw["residuals"]))
    if scope == "background":
        assert not grads[0][state == NEGATIVE].any()
        assert grads[0][state == POSITIVE].all()
        assert not grads[1].transpose(1, 2)[state == NEGATIVE].any()
    else:  # every match has become background: no positive is left for a gate
        assert found["res_loss"] == 0
        assert (grads[0][state == POSITIVE] > 0).all()
        assert (grads[0][state == NEGATIVE] > 0).all()
    negative = int((state == NEGATIVE).sum())
    drawn = negative if scope == "background" else int((state == POSITIVE).sum())
    assert counts(model.criterion)["obj_dropped"] == drawn


@pytest.mark.parametrize("loss", ["brl", "focal", "soft", "focal+drop"])
def test_other_elements_on_retinanet(loss: str) -> None:
    given = {"obj_drop": 0.5} if loss.endswith("drop") else {}
    model = build("retinanet", loss=f"resobj+{loss}", **given)
    raw = predictions(model)
    found = loss_of(model, raw, labels(3, 1, 2))
    plain = loss_of(build("retinanet", loss="resobj"), raw, labels(3, 1, 2))
    for name in ("obj_loss", "res_loss"):
        assert 0 < found[name] < plain[name]
    assert torch.equal(found["cls_loss"], plain["cls_loss"])


def test_nrd_of_anchors() -> None:
    model, batch = build("fasterrcnn", loss="resobj+nrd", nrd_stage="rpn", nrd_rate=1.0), labels(3, 1, 2)
    raw = predictions(model)
    loss = loss_of(model, raw, batch)["obj_loss"]
    (grad,) = torch.autograd.grad(loss, raw["logits"])
    assert torch.equal(grad != 0, matched_by(model, raw, batch)[0].state == POSITIVE)


@pytest.mark.parametrize(
    ("host", "given", "message"),
    [
        ("retinanet", {"loss": "resobj+ghm"}, "loss=ghm is not defined for retinanet with head=obj or resobj; losses"),
        ("retinanet", {"head": "obj", "resobj_steps": 1}, "resobj_steps=1 has no effect with head=obj"),
        ("retinanet", {"head": "obj", "brl_overlap": "centre"}, "brl_overlap=centre has no effect with retinanet with"),
        ("retinanet", {"head": "anchor"}, "head=anchor is not defined for retinanet; heads: stock, obj, resobj"),
        ("fasterrcnn", {"loss": "resobj+focal"}, "loss=focal is not defined for fasterrcnn with head=obj or resobj"),
        ("ssd", {"loss": "resobj"}, "head=resobj is not defined for ssd; heads: stock"),
        ("fasterrcnn", {"head": "obj", "cls_weight": 1}, "cls_weight=1 has no effect with fasterrcnn with head=obj or"),
        ("fasterrcnn", {"head": "obj", "obj_width": 8}, "obj_width=8 has no effect with fasterrcnn with head=obj or"),
        ("fasterrcnn", {"obj_prior": "code"}, "obj_prior=code has no effect with head=stock; add head=obj"),
        ("retinanet", {"head": "obj", "resobj_gate": "image"}, "resobj_gate=image has no effect with head=obj; add"),
        ("retinanet", {"head": "obj", "obj_prior": "papers"}, "obj_prior=papers is not one of paper, code, a number 1"),
        ("retinanet", {"head": "obj", "obj_prior": 0}, "obj_prior=0 is not one of paper, code, a number 1e-06 to 0.5"),
        (
            "retinanet",
            {"head": "obj", "obj_prior": "nan"},
            "obj_prior=nan is not one of paper, code, a number 1e-06 to 0.5",
        ),
        ("retinanet", {"head": "resobj", "resobj_gate": "images"}, "resobj_gate=images is not one of batch, image (di"),
        ("retinanet", {"head": "resobj", "resobj_grad": "chain"}, "resobj_grad=chain is not one of isolated, stepwise"),
    ],
)
def test_refused(host: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(given, host=host)
    assert str(error.value).startswith(message)


# Trained by Ultralytics -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision", "ignore::torch.jit.TracerWarning")
def test_a_checkpoint_keeps_head_and_steps_and_predicts_the_same(host: str, data: Path, tmp_path: Path) -> None:
    options = {"data": str(data), "epochs": 1, "project": str(tmp_path), "pretrained": False, **SMALL}
    yolo = YOLO(HOSTS[host])
    yolo.train(loss="resobj", resobj_steps=1, resobj_grad="joint", name="run", **options)
    with (tmp_path / "run" / "results.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert {"train/obj_loss", "val/res_loss", "resobj/pos_0", "resobj/pos_1", "resobj/neg_1"} <= row.keys()
    assert 0 < float(row["resobj/neg_1"]) < 1
    assert "resobj_grad=joint" in yolo.trainer.loss_ran["text"]

    best = tmp_path / "run" / "weights" / "best.pt"
    again = YOLO(str(best))
    head = again.model.model[-1]
    assert (type(head), head.steps) == (KINDS[host], 1)
    assert again.model.yaml["rebalance"]["flags"]["resobj_grad"] == "joint"
    image = str(next((data.parent / "images" / "val").iterdir()))
    seen = {"imgsz": 64, "conf": 0.0001, "verbose": False}
    torch.testing.assert_close(
        yolo.predict(image, **seen)[0].boxes.data, YOLO(str(best)).predict(image, **seen)[0].boxes.data
    )
    (panel,) = panels(StepsFlags(model=str(best), source=image, conf=0.01, imgsz=64, out=str(tmp_path / "panel")))
    assert panel.is_file()
    exported = torch.jit.load(YOLO(str(best)).export(format="torchscript", imgsz=64, verbose=False))
    model: Any = YOLO(str(best)).model.float().eval()
    model.model[-1].export = True
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels), model(pixels), rtol=1e-3, atol=1e-3)
    again.train(name="again", **options)  # without a flag: the head stays
    assert (again.trainer.recipe["head"], again.trainer.recipe["resobj_steps"]) == ("resobj", 1)
    assert again.trainer.recipe["resobj_grad"] == "joint"


@pytest.mark.slow
@pytest.mark.parametrize(("host", "epochs", "rate"), [("retinanet", 25, 0.001), ("fasterrcnn", 19, 0.002)])
def test_it_overfits_eight_images(host: str, epochs: int, rate: float, tmp_path: Path) -> None:
    """On RetinaNet by the objectness, and the refined one does not lose it.

    Where every positive is learnt by heart no negative is left behind a gate; the residuals then only learn to add, and
    add to the ignored anchors beside a label too, whose boxes are worse.
    """
    data = make_dataset(tmp_path / "data", size=96)
    by_heart(data)
    yolo = YOLO(HOSTS[host])
    yolo.train(
        data=str(data), loss="resobj", epochs=epochs, optimizer="AdamW", lr0=rate, warmup_epochs=0, seed=0, val=False,
        project=str(tmp_path), name="run", pretrained=False, **{**SMALL, **STILL, "imgsz": 96, "batch": 8, "nbs": 8},
    )  # fmt: skip
    options = {**SMALL, "imgsz": 96, "data": str(data), "project": str(tmp_path), "name": "val", "iou": 0.5}
    found = {}
    for shown in (None, 0):
        again = YOLO(str(tmp_path / "run" / "weights" / "last.pt"))
        again.model.model[-1].shown = shown
        found[shown] = again.val(**options).box.map50
    if host == "retinanet":
        assert found[0] > 0.85
        assert found[None] > 0.5
    else:
        assert found[None] > 0.9


class Stopped(Exception):  # noqa: N818 - it is no error
    pass


@pytest.mark.parametrize("host", HOSTS)
def test_a_resumed_run_goes_on_as_one_that_was_never_stopped(host: str, data: Path, tmp_path: Path) -> None:
    """But for rounding: a checkpoint keeps weights and momentum in half precision. One batch: its order is nothing."""
    options: dict[str, Any] = {"batch": 8, "nbs": 8, "pretrained": False, "lr0": 0.03, "loss": "resobj", **STILL}
    whole = train(HOSTS[host], data, tmp_path / "whole", **options)

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Stopped

    yolo = YOLO(HOSTS[host])
    yolo.add_callback("on_train_epoch_start", stop)
    with pytest.raises(Stopped):
        train(yolo, data, tmp_path / "stopped", **options)
    again = YOLO(tmp_path / "stopped" / "run" / "weights" / "last.pt")
    again.train(resume=True, workers=0)
    assert again.trainer.recipe == whole.trainer.recipe
    assert again.trainer.loss_ran["text"] == whole.trainer.loss_ran["text"]
    first, second = results(tmp_path / "whole"), results(tmp_path / "stopped")
    assert [row["epoch"] for row in second] == [1, 2]
    names = [name for name in first[1] if name.startswith(("train/", "resobj/"))]
    assert {"train/obj_loss", "train/res_loss", "resobj/pos_0", "resobj/neg_2"} <= set(names)
    for name in names:
        assert second[0][name] == first[0][name]
        # few proposals are positive, and one more or less is a lot
        close = 0.2 if host == "fasterrcnn" and name.endswith(("cls_loss", "box_loss")) else 0.01
        assert second[1][name] == pytest.approx(first[1][name], rel=close), name
    # there is something to miss
    assert any(first[1][name] != pytest.approx(first[0][name], rel=0.1) for name in names)


@pytest.fixture(scope="module", params=HOSTS)
def spread(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose scores differ, and whose objectness and residuals are large enough to be seen."""
    model = build(request.param, head="resobj", resobj_steps=2)
    for key, parameter in model.named_parameters():
        if key.endswith(("logits.weight", "logits.bias")):
            torch.nn.init.normal_(parameter, std=0.3)
        elif key.endswith(("cls_score.weight", "bbox_pred.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
    del model.criterion
    file: Path = tmp_path_factory.mktemp(request.param) / "model.pt"
    torch.save({"model": model.eval(), "train_args": {}}, file)
    return file


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision", "ignore::torch.jit.TracerWarning")
def test_exports_give_the_same_outputs(spread: Path, form: str) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    reference: Any = YOLO(spread).model.float().eval()
    with torch.no_grad():
        expected = reference(images)[0]
    if form == "torchscript":
        found = torch.jit.load(YOLO(spread).export(format=form, imgsz=64, verbose=False))(images)
    else:
        pytest.importorskip("onnx", reason="onnx is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = runtime.InferenceSession(YOLO(spread).export(format=form, imgsz=64, verbose=False, simplify=False))
        (values,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        found = torch.from_numpy(values)
    # pairs whose scores are equal but for rounding may change places: every row of one is a row of the other
    distance = torch.cdist(found[0].T.double(), expected[0].T.double(), p=math.inf)
    assert found.shape == expected.shape
    assert distance.amin(0).max() < 1e-3
    assert distance.amin(1).max() < 1e-3
    assert expected[:, 4:].max() > 0.1
    assert expected[0, 4:].amax(0).unique().numel() > 50
    if form == "onnx":
        assert session.get_outputs()[0].shape == list(expected.shape)  # one left open would pass for one that varies
