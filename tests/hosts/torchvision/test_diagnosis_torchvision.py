"""The diagnosis on torchvision's detectors: shares of the real gradients, and losses that stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from rebalance.hosts import host_of
from rebalance.hosts.host import begin_epoch, diagnosis
from rebalance.match.withheld import Withheld
from rebalance.recipe import read

SIZE, CLASSES, IMAGES = 96, 2, 2
LABELS = {
    "batch_idx": torch.tensor([0.0, 0.0, 1.0]), "cls": torch.tensor([[0.0], [1.0], [1.0]]),
    "bboxes": torch.tensor([[0.25, 0.25, 0.3, 0.3], [0.7, 0.3, 0.2, 0.35], [0.3, 0.7, 0.4, 0.35]]),
}  # fmt: skip
# one in each image, away from the labels
OBJECTS = torch.tensor([[0.7, 0.75, 0.35, 0.35], [0.75, 0.25, 0.35, 0.35]])
WITHHELD = Withheld(torch.tensor([0, 1]), torch.tensor([1, 0]), OBJECTS, 1, CLASSES)


def made(name: str, **flags: Any) -> Any:
    torch.manual_seed(0)
    cfg = {"torchvision": name}
    host = host_of(cfg)
    recipe = read(flags, host.sites, head=flags.get("head", "stock"))
    model = host.build(cfg, recipe, nc=CLASSES, ch=3, verbose=False).train()
    model.criterion = host.criterion(model, recipe, 0)
    begin_epoch(model.criterion, 2, 5)
    return model


def step(model: Any, **more: Any) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Losses, gradients by parameter, and what the head predicted."""
    image = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    raw = model(image)
    for value in raw.values():
        if isinstance(value, Tensor) and value.requires_grad:
            value.retain_grad()
    vector, _ = model.criterion(raw, {**{k: v.clone() for k, v in LABELS.items()}, **more})
    vector.sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return vector.detach(), grads, raw


def at_proposals(raw: Any) -> Withheld:
    """Objects at every second proposal, so that some are in the sample; those that overlap a label are no negatives."""
    boxes = [own[there][::2] for own, there in zip(raw["proposals"], raw["valid"], strict=True)]
    image = torch.arange(IMAGES).repeat_interleave(torch.tensor([len(x) for x in boxes]))
    xywh = box_convert(torch.cat(boxes), "xyxy", "cxcywh") / SIZE
    return Withheld(image, torch.zeros_like(image), xywh, max(map(len, boxes)), CLASSES)


@pytest.mark.parametrize(
    ("name", "flags", "stages"),
    [
        ("retinanet_tiny", {"loss": "focal"}, [""]),
        ("retinanet_tiny", {"loss": "brl"}, [""]),
        ("retinanet_tiny", {"loss": "drop", "obj_drop": 0.5}, [""]),
        ("retinanet_tiny", {"head": "obj", "loss": "bce"}, [""]),
        ("retinanet_tiny", {"head": "resobj", "loss": "bce"}, [""]),
        ("ssd_tiny", {"loss": "ohem"}, [""]),
        ("ssd_tiny", {"loss": "bce+soft"}, [""]),
        ("ssd_tiny", {"head": "sigmoid", "loss": "focal"}, [""]),
        ("fasterrcnn_tiny", {"loss": "bce"}, ["rpn_", "roi_"]),
        ("fasterrcnn_tiny", {"loss": "soft"}, ["rpn_", "roi_"]),
        ("fasterrcnn_tiny", {"loss": "nrd"}, ["rpn_", "roi_"]),
        ("fasterrcnn_tiny", {"loss": "ohem"}, ["rpn_", "roi_"]),
        ("fasterrcnn_tiny", {"head": "resobj", "loss": "bce"}, ["rpn_", "roi_"]),
    ],
)
def test_the_share_of_the_push_is_that_of_the_gradients(name: str, flags: dict[str, Any], stages: list[str]) -> None:
    plain_loss, plain, raw = step(made(name, **flags))
    model = made(name, **flags, diagnose=True)
    withheld = at_proposals(raw) if "proposals" in raw else WITHHELD
    loss, grads, _ = step(model, withheld=withheld)
    assert torch.equal(loss, plain_loss)
    assert grads.keys() == plain.keys()
    assert all(torch.equal(grads[key], plain[key]) for key in plain)
    told = diagnosis(model.criterion)
    for stage in stages:
        assert told[f"{stage}candidates"] > 0, stage
        assert 0 < told[f"{stage}rate"] < 1
        assert 0 <= told[f"{stage}loss"] < 1
        assert 0 <= told[f"{stage}gradient"] < 1
        assert 0 < told[f"{stage}score"] < 1
    if stages != [""]:
        return
    corners = box_convert(OBJECTS * SIZE, "cxcywh", "xyxy")
    at = torch.stack([box_iou(raw["anchors"], box[None]).squeeze(1) >= 0.5 for box in corners])  # (B, A)
    key = "objectness" if "objectness" in raw else "logits"
    slope = raw[key].grad
    push = slope.clamp(min=0)
    labels = [box_convert(LABELS["bboxes"][LABELS["batch_idx"] == i] * SIZE, "cxcywh", "xyxy") for i in range(IMAGES)]
    near = torch.stack([box_iou(raw["anchors"], box).amax(1) for box in labels])
    if key == "objectness":
        hidden = push * at
    elif flags.get("head") == "sigmoid" or name == "retinanet_tiny":
        of_class = torch.nn.functional.one_hot(WITHHELD.classes, CLASSES).bool()
        hidden = push * (at.unsqueeze(-1) & of_class.unsqueeze(1))
    else:
        hidden = push * at.unsqueeze(-1)
    # what is surely a negative: no label is near enough to be matched, nor is the best anchor of a label far
    negative = near < 0.3
    assert not (at & ~negative).any()
    share = float(hidden.sum()) / float((push * (negative if push.dim() == 2 else negative.unsqueeze(-1))).sum())
    assert told["gradient"] == pytest.approx(share, rel=0.25)  # but for the few negatives with an IoU of 0.3 and more
