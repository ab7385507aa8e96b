"""Every detector that torchvision has by the same name, filled with torchvision's own numbers: outputs and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from objectives import recipe_of
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import batched_nms
from ultralytics.cfg import get_cfg

from rebalance.hosts.torchvision import published
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.zoo import ZOO

CLASSES = 3
EVERY = 10**6  # samples: all there are, so that nothing is drawn
FEW = 40  # proposals, for the time it takes
NAMES = sorted(name for name in ZOO if hasattr(detection, name))


class Pair(NamedTuple):
    """torchvision's detector and ours, and what both are given."""

    name: str
    theirs: Any
    ours: Any
    images: Tensor  # (2, 3, H, W)
    batch: dict[str, Tensor]
    targets: list[dict[str, Tensor]]


def made(name: str, folder: Path) -> Pair:
    """Random; normalisation as after a training; scores that differ."""
    torch.manual_seed(0)
    size = {"ssd300_vgg16": (300, 300), "ssdlite320_mobilenet_v3_large": (320, 320)}.get(name, (64, 96))
    rows = CLASSES + (0 if name.startswith("retinanet") else 1)  # background is a row of its own, but on RetinaNet
    more: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": size[0], "max_size": size[1]}
    if name.startswith("fasterrcnn"):
        more |= {"rpn_batch_size_per_image": EVERY, "box_batch_size_per_image": EVERY}
        more |= {f"rpn_{when}_nms_top_n_{mode}": FEW for when in ("pre", "post") for mode in ("train", "test")}
    theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=rows, **more)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.7, 1.3)
    for key, x in theirs.named_parameters():
        if key.endswith(("cls_logits.weight", "bbox_reg.weight", "rpn.head.bbox_pred.weight")):
            nn.init.normal_(x, std=0.01)
        elif key.endswith("head.cls_logits.bias"):
            nn.init.constant_(x, -2.5)
    file = folder / f"{name}.pth"
    torch.save(theirs.state_dict(), file)
    ours: Any = TorchvisionModel(name, nc=CLASSES, verbose=False)
    count = len(theirs.state_dict())
    assert published.start(ours, str(file)) == (count, count)
    file.unlink()
    ours.args = get_cfg(overrides={"imgsz": 64})
    head, height, width = ours.model[-1], *size
    if name.startswith("fasterrcnn"):
        head.numbers = head.numbers._replace(anchors=EVERY, rois=EVERY, before=(FEW, FEW), after=(FEW, FEW))
    boxes = torch.tensor([[0.113, 0.207, 0.618, 0.911], [0.517, 0.093, 0.957, 0.511], [0.319, 0.271, 0.707, 0.829]])
    index, kinds = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])
    batch = {
        "batch_idx": index.float(), "cls": kinds.float().view(-1, 1),
        "bboxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1),
    }  # fmt: skip
    corners, first = boxes * torch.tensor([width, height, width, height]), 0 if name.startswith("retinanet") else 1
    targets = [{"boxes": corners[index == i], "labels": kinds[index == i] + first} for i in range(2)]
    return Pair(name, theirs, ours, torch.rand(2, 3, *size), batch, targets)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One at a time: they are large."""
    return made(request.param, tmp_path_factory.mktemp("torchvision"))


def test_torchvision_s_detectors_of_one_stage_and_two_are_all_there() -> None:
    has = {name for name in detection.__dict__ if name.startswith(("retinanet_", "fasterrcnn_", "ssd")) and "_" in name}
    assert {name for name in has if callable(getattr(detection, name))} == set(NAMES)


def test_outputs_are_torchvision_s(pair: Pair) -> None:
    """What the heads say, and the detections after torchvision's own thresholds and suppression."""
    theirs, ours, head = pair.theirs.eval(), pair.ours.eval(), pair.ours.model[-1]
    two_stages, held = pair.name.startswith("fasterrcnn"), dict[str, Any]()
    hook = (theirs.rpn.head if two_stages else theirs.head).register_forward_hook(
        lambda module, given, found: held.update(found=found)
    )
    with torch.no_grad():
        expected = theirs(list(pair.images))
        raw = ours(pair.images)[1]
        boxes, scores, classes = head.decode(raw)
    hook.remove()
    if two_stages:
        logits = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in held["found"][0]], 1)
        threshold, overlap, most = 0.05, 0.5, 100
    else:
        logits = held["found"]["cls_logits"]
        torch.testing.assert_close(raw["deltas"], held["found"]["bbox_regression"], rtol=1e-4, atol=1e-4)
        threshold, overlap, most = theirs.score_thresh, theirs.nms_thresh, theirs.detections_per_img
    torch.testing.assert_close(raw["logits"], logits, rtol=1e-4, atol=1e-4)
    assert logits.std() > 1e-3
    first, few = 0 if pair.name.startswith("retinanet") else 1, 20 if pair.name.startswith("ssd") else most
    height, width = pair.images.shape[2:]
    for image, found in enumerate(expected):
        fit = scores[image] > threshold
        box, score, kinds = boxes[image][fit], scores[image][fit], classes[image][fit]
        box = torch.stack((box[:, 0::2].clamp(0, width), box[:, 1::2].clamp(0, height)), -1).flatten(1)
        kept = batched_nms(box, score, kinds, overlap)[:most]
        assert len(kept) == len(found["scores"]) > 0
        # of SSD the best: torchvision hands on 300 boxes of each class, ours 2000 of all; and a rounding may change one
        torch.testing.assert_close(score[kept][:few], found["scores"][:few], rtol=1e-4, atol=1e-4)
        # each is one of ours before suppression, which a rounding may let choose another of the same score
        for one, value, label in zip(found["boxes"][:few], found["scores"], found["labels"], strict=False):
            same = ((score - value).abs() < 1e-4) & (kinds + first == label)
            assert (box[same] - one).abs().amax(1).min() < 0.02


def test_losses_are_torchvision_s(pair: Pair) -> None:
    """Also their gradients in the head, and what normalisation keeps of the step, in which padded RoIs have no say."""
    theirs, ours = pair.theirs.train(), pair.ours.train()
    expected = theirs(list(pair.images), pair.targets)
    criterion = ours.criterion_of(recipe_of({}, host=ZOO[pair.name].head.sites.name), 0)
    total, items = criterion(ours(pair.images), pair.batch)
    names = {
        "obj_loss": "loss_objectness", "prop_loss": "loss_rpn_box_reg",
        "cls_loss": "loss_classifier" if "loss_classifier" in expected else "classification",
        "box_loss": "loss_box_reg" if "loss_box_reg" in expected else "bbox_regression",
    }  # fmt: skip
    assert len(items) == len(expected)
    for name, value in items.items():
        torch.testing.assert_close(value, expected[names[name]].detach(), rtol=1e-5, atol=1e-5)
    mine, other = (dict(model.named_parameters()) for model in (ours, theirs))
    renamed = {ours_of: key for key in other for ours_of in ours.translate({key: other[key]})}
    last = [key for key in mine if key.startswith("model.2.")][-8:]
    found = torch.autograd.grad(total.sum() / len(pair.images), [mine[key] for key in last])
    given = torch.autograd.grad(sum(expected.values()), [other[renamed[key]] for key in last])
    for one, its in zip(found, given, strict=True):
        assert (one - its).norm() <= 0.01 * its.norm()  # a rounding turns some ReLUs
    buffers = ours.translate(dict(theirs.named_buffers()))
    for key, x in ours.named_buffers():
        if key in buffers:
            torch.testing.assert_close(x, buffers[key], rtol=1e-3, atol=1e-4)
