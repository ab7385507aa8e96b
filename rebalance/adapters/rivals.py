"""Our losses beside the hosts' own, on the same model and the same batch: what `rebalance bench` times."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils.loss import v8DetectionLoss

from rebalance.adapters.ultralytics.criterion import build_criterion
from rebalance.adapters.ultralytics.model import AnchorDetectionModel
from rebalance.config import TrainFlags
from rebalance.losses.registry import train_flags

CLASSES = 10
LABELS = 8  # an image, about as many as the built-in data has

# Settings of YOLOv5's hyp.scratch-low.yaml that its loss reads; its trainer scales the three gains
HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0}


class Side(NamedTuple):
    """One loss of a contest."""

    name: str
    adapt: Callable[[Any], Any]  # the model's output -> what the loss takes; a head's work, not the loss's
    loss: Callable[[Any], Tensor]  # -> scalar
    drops: bool = False  # part of the loss is dropped


class Contest(NamedTuple):
    """A model, a batch, and the losses that are compared on them; the first is the host's own."""

    name: str
    model: Any
    images: Tensor
    sides: list[Side]


def stock(batch: int, imgsz: int, device: torch.device) -> Contest:
    """YOLOv8n's own head: Ultralytics' loss, ours without dropping, and ours with.

    Args:
        batch: images.
        imgsz: height and width in pixels.
        device: where everything is.
    """
    model, images, labels = _set_up(DetectionModel, "yolov8n.yaml", batch, imgsz, device)
    host = v8DetectionLoss(model)
    sides = [Side("Ultralytics", _as_is, lambda preds: host(preds, labels)[0].sum())]
    return Contest("yolov8n, stock head", model, images, sides + _ours(model, labels, "stock"))


def anchor(batch: int, imgsz: int, device: torch.device) -> Contest:
    """YOLOv5n with the anchor head: YOLOv5's loss, ours without dropping, and ours with. Arguments as for `stock`.

    Raises:
        ImportError: the package `yolov5` or something that it imports is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its packaging is of another time
        from yolov5.utils.loss import ComputeLoss
    model, images, labels = _set_up(AnchorDetectionModel, "yolov5n.yaml", batch, imgsz, device)
    head = model.model[-1]
    gains = {
        "box": HYP["box"] * 3 / head.nl,
        "obj": HYP["obj"] * (imgsz / 640) ** 2 * 3 / head.nl,
        "cls": HYP["cls"] * head.nc / 80 * 3 / head.nl,
    }
    like_theirs = SimpleNamespace(parameters=model.parameters, hyp={**HYP, **gains}, model=model.model)
    host = ComputeLoss(like_theirs)
    targets = torch.cat((labels["batch_idx"].view(-1, 1), labels["cls"], labels["bboxes"]), 1)
    sides = [Side("YOLOv5", _as_yolov5, lambda preds: host(preds, targets)[0].sum())]
    return Contest("yolov5n, anchor head", model, images, sides + _ours(model, labels, "anchor"))


def _set_up(
    build: Callable[..., Any], cfg: str, batch: int, imgsz: int, device: torch.device
) -> tuple[Any, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build({**yaml_model_load(cfg), "nc": CLASSES}, verbose=False).to(device).train()
    model.args = get_cfg(overrides={"imgsz": imgsz})
    count = batch * LABELS
    size = torch.rand(count, 2, generator=generator) * 0.25 + 0.05
    centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
    labels = {
        "batch_idx": torch.arange(batch).repeat_interleave(LABELS).float(),
        "cls": torch.randint(CLASSES, (count, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), 1),
    }
    images = torch.rand(batch, 3, imgsz, imgsz, generator=generator).to(device)
    return model, images, {**{k: v.to(device) for k, v in labels.items()}, "most_labels": LABELS}


def _ours(model: Any, labels: dict[str, Any], head: str) -> list[Side]:
    def side(name: str, flags: TrainFlags) -> Side:
        criterion = build_criterion(model, flags, seed=0)
        return Side(name, _as_is, lambda preds: criterion(preds, labels)[0].sum(), flags.obj_drop > 0)

    drop = train_flags({"loss": "drop", "obj_drop": 0.75, "head": head})
    return [side("ours, nothing dropped", train_flags({"head": head})), side("ours, loss=drop obj_drop=0.75", drop)]


def _as_is(output: Any) -> Any:
    return output


def _as_yolov5(output: Any) -> list[Tensor]:
    # (B, M, 5 + C, H, W) -> (B, M, H, W, 5 + C), copied: YOLOv5's head hands over that layout
    return [x.permute(0, 1, 3, 4, 2).contiguous() for x in output["maps"]]
