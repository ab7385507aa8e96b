"""The control of dropping, `drop_select=weight`: what dropping is on average, on every head and by every divisor."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from objectives import recipe_of
from torch import Tensor
from ultralytics.cfg import get_cfg
from yolo_heads import ANCHOR, SIZE, assigned, batch, build, hosts, parts, predictions

from rebalance.hosts.host import branches, counts, pulls
from rebalance.hosts.torchvision.dense import labels_of
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import build as model_of
from rebalance.hosts.ultralytics.model import criterion_of
from rebalance.match.candidates import POSITIVE
from rebalance.match.iou import match_by_iou
from rebalance.match.padded import Padded
from rebalance.methods.method import Run

DRAWS = 64
IMAGES = 3
LABELS = batch(8)  # the third image has none
V8, ONE2MANY, ONE2ONE = "yolov8n.yaml", "yolo26n.yaml one2many", "yolo26n.yaml one2one"
OBJ, RESOBJ, ON_ANCHORS = "yolov8n.yaml head=obj", "yolov8n.yaml head=resobj", "yolov5n.yaml head=resobj"
RETINANET, SSD, RPN = "retinanet_tiny", "ssd_tiny", "fasterrcnn_tiny"
RETINANET_OBJ, RPN_OBJ = "retinanet_tiny head=resobj", "fasterrcnn_tiny head=obj"
HEADS = (V8, ONE2MANY, ONE2ONE, ANCHOR, OBJ, RESOBJ, ON_ANCHORS, RETINANET, RETINANET_OBJ, SSD, RPN, RPN_OBJ)
Step = Callable[[], dict[str, Tensor]]


@lru_cache
def torchvision_of(name: str) -> tuple[Any, dict[str, Any]]:
    """A model and its raw predictions, their scores replaced by random ones."""
    model_name, _, head = name.partition(" head=")
    torch.manual_seed(0)
    recipe = recipe_of({"head": head} if head else {}, host=model_name.removesuffix("_tiny"))
    model: Any = TorchvisionModel(model_name, nc=2, verbose=False, recipe=recipe).train()
    with torch.no_grad():
        raw = model(torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    g = torch.Generator().manual_seed(2)
    for name in raw.keys() & {"logits", "objectness", "residuals"}:
        raw[name] = torch.randn(raw[name].shape, generator=g) - 1
    raw["deltas"] = torch.randn(raw["deltas"].shape, generator=g) * 0.5
    return model, raw


@lru_cache
def with_objectness(name: str) -> tuple[Any, Any]:
    """A model of Ultralytics with an objectness, and its predictions."""
    model_name, _, head = name.partition(" head=")
    torch.manual_seed(0)
    anchored = model_name == "yolov5n.yaml"
    model = model_of(model_name, recipe_of({"head": head}, anchored=anchored), nc=2, verbose=False).train()
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    with torch.no_grad():
        raw = model(torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    g = torch.Generator().manual_seed(2)
    for name in raw.keys() & {"scores", "objectness", "residuals", "maps"}:
        found = raw[name] if isinstance(raw[name], list) else [raw[name]]
        noise = [torch.randn(x.shape, generator=g) for x in found]
        raw[name] = noise if isinstance(raw[name], list) else noise[0]
    return model, raw


def step_of(name: str, **flags: Any) -> tuple[Any, Step]:
    """A criterion, and what makes a training step of it: its losses by name."""
    if name.startswith(("yolo", ANCHOR)) and "head=" not in name:
        model_name, *branch = name.split()
        head = "anchor" if name == ANCHOR else "stock"
        criterion = criterion_of(build(model_name), recipe_of({**flags, "head": head}), 0)
        preds = predictions(build(model_name), images=IMAGES)
        if branch:
            index = ["one2many", "one2one"].index(branch[0])
            criterion, preds = branches(criterion)[index], parts(preds)[index]
        call = criterion if name == ANCHOR else criterion.loss
    elif name.startswith("yolo"):
        model, preds = with_objectness(name)
        head, anchored = name.partition(" head=")[2], name.startswith("yolov5")
        criterion = criterion_of(model, recipe_of({**flags, "head": head}, anchored=anchored), 0)
        call = getattr(criterion, "loss", criterion)
    else:
        model, preds = torchvision_of(name)
        model_name, _, head = name.partition(" head=")
        flags |= {"head": head} if head else {}
        criterion = model.criterion_of(recipe_of(flags, host=model_name.removesuffix("_tiny")), 0)
        call = criterion
        if name.startswith(RPN):  # its second stage has no part in it

            def first_stage(raw: Any, labels: Any) -> tuple[None, dict[str, Tensor]]:
                criterion.run.step += 1
                return None, criterion._rpn(raw, labels)

            padded: Padded = labels_of(LABELS, IMAGES, preds["size"], torch.device("cpu"))
            return criterion, lambda: first_stage(preds, padded)[1]
    return criterion, lambda: call(preds, LABELS)[1]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of the draw; what is sampled for other purposes than dropping is the same in each."""
    number = [0]

    def generator(run: Run, device: torch.device, *purpose: str) -> torch.Generator:
        return torch.Generator(device).manual_seed(0 if purpose else number[0])

    monkeypatch.setattr(Run, "generator", generator)
    return lambda n: number.__setitem__(0, n)


def rates(name: str, **flags: Any) -> dict[str, float]:
    """Rates of about three quarters and a half, of which whole numbers of candidates leave."""
    criterion, step = step_of(name, obj_drop=0.5, box_drop=0.5, drop_select="weight", **flags)
    step()
    found = counts(criterion)
    assert found["obj_dropped"] == found["box_dropped"] == 0
    negatives, low = found["negatives"], found["low_iou_matches"]
    assert negatives > 3
    assert low > 3
    return {"obj_drop": negatives * 3 // 4 / negatives, "box_drop": low // 2 / low}


SCOPES = ("background", "matched", "literal")
# Where the loss of every draw is divided by the same number: every head with every scope, and every kind of divisor
ALIKE = [
    *((name, "host", "host", SCOPES[i % 3]) for i, name in enumerate(HEADS)),
    *((name, "batch", "host", SCOPES[(i + 1) % 3]) for i, name in enumerate(HEADS) if name != RPN),
    *((name, "batch", "kept", "matched") for name in (V8, ANCHOR, RESOBJ, RETINANET, SSD, RPN_OBJ)),
    *((name, "candidates", "kept", "background") for name in (ONE2ONE, ANCHOR, ON_ANCHORS, RETINANET, SSD, RPN_OBJ)),
    *((name, "host", "kept", "background") for name in (V8, OBJ, RETINANET, SSD, RPN)),
    (RPN, "host", "kept", "matched"),
    (RPN, "host", "host", "literal"),
    *((name, "image", "host", "background") for name in (V8, ANCHOR, RETINANET, SSD)),
]
# by divisor=batch these have the same number, too, for the box loss; others divide by what is left of scores or levels
BOX_ALIKE = (RETINANET, RETINANET_OBJ, SSD, RPN, RPN_OBJ)


@pytest.mark.parametrize(("name", "divisor", "kept", "scope"), ALIKE)
def test_the_control_is_the_mean_of_all_draws(
    name: str, divisor: str, kept: str, scope: str, draw: Callable[[int], None]
) -> None:
    flags: dict[str, Any] = {"divisor": divisor, "drop_divisor": kept, "drop_scope": scope, "neg_iou": 0.6}
    flags |= rates(name, **flags)
    random = step_of(name, **flags)[1]
    found: dict[str, list[float]] = {}
    for number in range(DRAWS):
        draw(number)
        for item, value in random().items():
            found.setdefault(item, []).append(float(value))
    control = {item: float(value) for item, value in step_of(name, drop_select="weight", **flags)[1]().items()}
    none = {item: float(value) for item, value in step_of(name, loss="drop")[1]().items()}
    assert found.keys() == control.keys()
    same_number = kept == "host" or (name in BOX_ALIKE and divisor != "image")
    moved = set()
    for item, values in found.items():
        if item in ("box_loss", "dfl_loss", "l1_loss", "prop_loss") and not same_number:
            continue
        if item == "res_loss" and scope == "literal":
            continue  # its gate is that of the positives left, in the control that of all
        draws = torch.tensor(values, dtype=torch.float64)
        error = float(draws.std()) / DRAWS**0.5
        assert abs(float(draws.mean()) - control[item]) <= 4 * error + 1e-5 * abs(control[item]), item
        if error > 1e-6 * abs(control[item]):
            moved.add(item)
            assert (
                scope != "background"
                or kept != "host"
                or divisor != "host"
                or abs(none[item] - control[item]) > 8 * error
            ), item
    assert len(moved) >= (2 if same_number else 1)


@pytest.mark.parametrize("name", HEADS)
def test_of_nothing_the_control_is_the_host_to_the_bit(name: str) -> None:
    off = step_of(name, drop_select="weight", obj_drop=0.0, loss="drop")[1]()
    host = step_of(name, loss="bce" if name == SSD else "")[1]()
    assert all(torch.equal(off[item], value) for item, value in host.items())


@pytest.mark.parametrize(("name", "kept"), [(name, ("kept", "host")[i % 2]) for i, name in enumerate(HEADS)])
def test_of_all_the_control_is_the_loss_without_any(name: str, kept: str) -> None:
    flags = {"obj_drop": 1.0, "box_drop": 1.0, "drop_divisor": kept}
    control, dropped = (step_of(name, **flags, drop_select=select)[1]() for select in ("weight", "random"))
    for item, value in dropped.items():
        torch.testing.assert_close(control[item], value)


@pytest.mark.parametrize("name", HEADS)
def test_the_control_draws_nothing(name: str) -> None:
    step = step_of(name, obj_drop=0.5, box_drop=0.5, drop_select="weight", drop_scope="matched", neg_iou=0.6)[1]
    first, second = step(), step()
    if name != RPN:  # which samples
        assert all(torch.equal(first[item], second[item]) for item in first)


# Pull and push --------------------------------------------------------------------------------------------------------


def slopes(name: str, **flags: Any) -> tuple[Tensor, dict[str, float]]:
    """(B, N) gradient of the loss that drops in each candidate's logits, without its sign; and what is said of it."""
    criterion, _ = step_of(name, **flags)
    preds = predictions(build(V8), images=IMAGES) if name == V8 else dict(torchvision_of(name)[1])
    key = "scores" if name == V8 else "objectness" if "objectness" in preds else "logits"
    preds[key] = preds[key].detach().requires_grad_()
    if name.startswith(RPN):
        criterion.run.step += 1
        losses = criterion._rpn(preds, labels_of(LABELS, IMAGES, preds["size"], torch.device("cpu")))
    else:
        vector, items = (criterion.loss if name == V8 else criterion)(preds, LABELS)
        losses = dict(zip(items, vector, strict=True))
    slope = torch.autograd.grad(losses["obj_loss" if "obj_loss" in losses else "cls_loss"], preds[key])[0].abs()
    return slope.sum(1 if name == V8 else 2) if slope.dim() == 3 else slope, pulls(criterion)


def positives(name: str) -> Tensor:
    """(B, N) which candidates are matched to a label."""
    if name == V8:
        return assigned(hosts(build(V8))[0], predictions(build(V8), images=IMAGES), LABELS).positive
    raw = torchvision_of(name)[1]
    high, low = {RETINANET: (0.5, 0.4), SSD: (0.5, 0.5), RPN: (0.7, 0.3)}[name.split()[0]]
    labels = labels_of(LABELS, IMAGES, raw["size"], torch.device("cpu"))
    rescue = "first" if name == SSD else "ties"
    return match_by_iou(raw["anchors"], labels, high=high, low=low, rescue=rescue).state == POSITIVE


@pytest.mark.parametrize("name", [V8, RETINANET, RETINANET_OBJ, SSD, RPN, RPN_OBJ])
@pytest.mark.parametrize(
    ("select", "kept", "scope"),
    [("random", "kept", "background"), ("weight", "host", "background"), ("confident", "kept", "matched")],
)
def test_what_is_said_of_pull_and_push_is_what_the_gradients_are(name: str, select: str, kept: str, scope: str) -> None:
    flags = {"obj_drop": 0.75, "drop_select": select, "drop_divisor": kept, "drop_scope": scope, "neg_iou": 0.6}
    dropping, said = slopes(name, **flags)
    plain, none = slopes(name, obj_drop=1e-9)
    assert none["pull"] == none["push"] == 1
    positive = positives(name)
    for kind, mask in (("pull", positive), ("push", ~positive)):
        assert said[kind] == pytest.approx(float(dropping[mask].sum() / plain[mask].sum()), abs=2e-4), kind
    assert said["push"] != 1 or scope == "matched"


@pytest.mark.parametrize("name", [V8, ANCHOR, RETINANET])
def test_pull_and_push_are_of_the_first_step_of_an_epoch(name: str) -> None:
    criterion, step = step_of(name, obj_drop=0.75, neg_iou=0.6)
    step()
    first = pulls(criterion)
    step()  # which draws others
    assert pulls(criterion) == first
    criterion.objectives[0].begin_epoch(1)
    step()
    assert pulls(criterion)["push"] != first["push"]
