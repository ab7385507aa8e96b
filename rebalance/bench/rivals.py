"""Our losses beside the hosts' own, on the same model and the same batch: what `rebalance bench` times."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou, sigmoid_focal_loss
from ultralytics.cfg import get_cfg
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils.loss import v8DetectionLoss

from rebalance.errors import ConfigError, nearest
from rebalance.hosts.torchvision import faster_rcnn, retinanet, ssd
from rebalance.hosts.torchvision.model import KEY, TorchvisionModel
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.hosts.ultralytics.criterion import build_criterion
from rebalance.hosts.ultralytics.model import AnchorDetectionModel, anchored, model_class
from rebalance.match.boxes import xywh_to_xyxy
from rebalance.match.candidates import candidate_state
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl, confusion
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.methods.registry import METHODS, PLACES, YOLO
from rebalance.methods.resolve import train_flags
from rebalance.settings import BenchFlags

CLASSES = 10
LABELS = 8  # an image, about as many as the built-in data has
CANDIDATES = 100_000  # an image of 640 pixels, of the tensor that element losses are timed on
MATCHED, FAR = 0.001, 0.9  # shares of those candidates: matched, and nowhere near a label
STEPS = 3  # most refinements that are timed

# Settings of YOLOv5's hyp.scratch-low.yaml that its loss reads; its trainer scales the three gains
HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0}
GIVEN = {"drop": {"obj_drop": 0.75}}  # flags of the methods that do nothing by default


class Side(NamedTuple):
    """One party to a contest."""

    name: str
    adapt: Callable[[Any], Any]  # the model's output -> what the loss takes; a head's work, not the loss's
    loss: Callable[[Any], Any]  # -> scalar; where inference is timed, the model: images -> predictions
    parameters: int | None = None  # of the model, where it is a side's own
    model: Callable[[Tensor], Any] | None = None  # in the place of the contest's, of which it has the parameters


class Contest(NamedTuple):
    """A model, a batch, and what is compared on them; the first side is the host's own."""

    name: str
    model: Any
    images: Tensor  # of an element loss: the logits
    sides: list[Side]
    kind: str = "loss"  # "loss", "step", "element" or "inference"


def ultralytics(batch: int, imgsz: int, device: torch.device) -> Contest:
    """YOLOv8n's own head: Ultralytics' loss and ours.

    Args:
        batch: images.
        imgsz: height and width in pixels.
        device: where everything is.
    """
    model, images, labels = _set_up(partial(DetectionModel, _yaml("yolov8n.yaml")), batch, imgsz, device)
    host = v8DetectionLoss(model)
    sides = [Side("Ultralytics", _as_is, lambda preds: host(preds, labels)[0].sum())]
    return Contest("yolov8n, stock head", model, images, sides + _ours(model, labels, "stock"))


def yolov5(batch: int, imgsz: int, device: torch.device) -> Contest:
    """YOLOv5n with the anchor head: YOLOv5's loss and ours. Arguments as for `ultralytics`.

    Raises:
        ImportError: the package `yolov5` or something that it imports is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its packaging is of another time
        from yolov5.utils.loss import ComputeLoss
    model, images, labels = _set_up(partial(AnchorDetectionModel, _yaml("yolov5n.yaml")), batch, imgsz, device)
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


def torchvision(batch: int, imgsz: int, device: torch.device, *, host: str = "", detector: str = "") -> Contest:
    """A detector of torchvision: its loss and ours, on the same predictions, anchors and proposals.

    torchvision's loss matches image by image, as its own models do; the labels are in its layout beforehand, which is
    time that only ours takes. Its random samples are as many as ours, but others.

    Args:
        batch, imgsz, device: as for `ultralytics`.
        host: retinanet, ssd or fasterrcnn; chooses a detector for the device.
        detector: a key of ZOO, in its place.
    """
    name = detector or (ON_CPU if device.type == "cpu" else ON_CUDA)[host]
    host = ZOO[name].host
    model, images, labels = _set_up(partial(TorchvisionModel, {KEY: name, "nc": CLASSES}), batch, imgsz, device)
    head = model.model[-1]
    if host == "ssd":
        head.side = imgsz  # as the trainer does
    targets = _as_torchvision(labels, imgsz, head)
    title, theirs = f"torchvision {THEIRS[host][0]}", THEIRS[host][1](head)
    sides = [Side(title, _as_is, lambda raw: _total(theirs(raw, targets)) * batch)]
    return Contest(name, model, images, sides + _ours(model, labels, host))


def whole_retinanet(batch: int, imgsz: int, device: torch.device, *, detector: str = "") -> Contest:
    """torchvision's RetinaNet from images to losses, with our model's layers, beside our model with its loss.

    torchvision resizes and normalises the images and makes the anchors in every step.

    Args:
        batch, imgsz, device, detector: as for `torchvision`.
    """
    name = detector or (ON_CPU if device.type == "cpu" else ON_CUDA)["retinanet"]
    model, images, labels = _set_up(partial(TorchvisionModel, {KEY: name, "nc": CLASSES}), batch, imgsz, device)
    body, neck, head = model.model
    backbone: Any = nn.Sequential(body, neck)
    backbone.out_channels = head.layers.classification_head.conv[0][0].in_channels
    theirs = RetinaNet(
        backbone, CLASSES, min_size=imgsz, max_size=imgsz, image_mean=ZOO[name].mean, image_std=ZOO[name].std,
        anchor_generator=AnchorGenerator(head.anchors_of.sizes, head.anchors_of.ratios), head=head.layers,
    )  # fmt: skip
    theirs = theirs.to(device).train()
    targets = _as_torchvision(labels, imgsz, head)
    host = Side(
        "torchvision RetinaNet", _as_is, lambda found: _total(found) * batch,
        model=lambda images: theirs(list(images), targets),
    )  # fmt: skip
    ours = [side for side in _ours(model, labels, "retinanet") if side.name in ("ours, loss=focal", "ours, loss=brl")]
    return Contest(f"{name}, whole", model, images, [host, *ours], "step")


def element(batch: int, imgsz: int, device: torch.device) -> Contest:
    """Element losses on one tensor of logits, in proportion to the image's area. Arguments as for `ultralytics`."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, round(CANDIDATES * (imgsz / 640) ** 2))
    logits = torch.randn(*shape, CLASSES, generator=generator) - 2
    overlap = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > FAR)
    positive = torch.rand(shape, generator=generator) < MATCHED
    classes = torch.randint(CLASSES, shape, generator=generator)
    targets = torch.zeros_like(logits).scatter_(2, classes.unsqueeze(-1), positive.unsqueeze(-1).float())
    logits, targets, overlap, positive = (x.to(device) for x in (logits, targets, overlap, positive))
    state, everything = candidate_state(positive), torch.ones((), dtype=torch.bool, device=device)
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "torchvision focal": lambda x: sigmoid_focal_loss(x, targets),
        "ours, brl": lambda x: brl(x, targets, confusion(state, overlap, 0.1).unsqueeze(-1)),
        "ours, focal": lambda x: focal(x, targets),
        "ours, bce": lambda x: bce(x, targets),
        "ours, ghm": lambda x: bce(x, targets) * ghm_weights(x, targets, everything)[0],
    }
    sides = [Side(name, _as_is, partial(_summed, loss)) for name, loss in losses.items()]
    name = "logits " + "×".join(map(str, logits.shape))
    return Contest(name, _as_is, logits.requires_grad_(), sides, "element")


def inference(batch: int, imgsz: int, device: torch.device, *, cfg: str = "", host: str = "") -> Contest:
    """Predictions of a head, and of the one with residual objectness in its place, as `predict` runs them.

    That is fused and, on CPUs that Ultralytics does it for, with channels last.

    Args:
        batch, imgsz, device: as for `ultralytics`.
        cfg: a YOLO's file, whose head without is `anchor` or `stock`.
        host: retinanet or fasterrcnn, in its place; chooses a detector for the device.
    """
    name = cfg.removesuffix(".yaml") or (ON_CPU if device.type == "cpu" else ON_CUDA)[host]
    sides, images = [], torch.empty(0)
    heads: list[dict[str, Any]] = [{"head": "anchor" if anchored(cfg) else "stock"}, {"head": "obj"}]
    for given in heads + [{"head": "resobj", "resobj_steps": t + 1} for t in range(STEPS)]:
        flags = train_flags(given, host=host or "yolo")
        build: Callable[..., Any]
        if host:
            build = partial(TorchvisionModel, {KEY: name, "nc": CLASSES}, flags=flags)
        elif flags.head == "stock":
            build = partial(DetectionModel, _yaml(cfg))
        else:
            build = partial(model_class(cfg, flags.head), _yaml(cfg), flags=flags)
        model, images, _ = _set_up(build, batch, imgsz, device)
        parameters = sum(p.numel() for p in model.parameters())
        side = " ".join(f"{k}={v}" for k, v in given.items())
        sides.append(Side(side, _as_is, AutoBackend(model.eval(), device=device, verbose=False), parameters))
    return Contest(name, None, images, sides, "inference")


# What the flag `only` chooses from, by name
CONTESTS: dict[str, tuple[Callable[[int, int, torch.device], Contest], ...]] = {
    "ultralytics": (ultralytics,),
    "yolov5": (yolov5,),
    "retinanet": (partial(torchvision, host="retinanet"), whole_retinanet),
    "ssd": (partial(torchvision, host="ssd"),),
    "fasterrcnn": (partial(torchvision, host="fasterrcnn"),),
    "element": (element,),
    "inference": (
        *(partial(inference, cfg=cfg) for cfg in ("yolov5n.yaml", "yolov8n.yaml")),
        *(partial(inference, host=host) for host in ("retinanet", "fasterrcnn")),
    ),
}
ON_CPU = {"retinanet": "retinanet_tiny", "ssd": "ssd_tiny", "fasterrcnn": "fasterrcnn_tiny"}
ON_CUDA = {"retinanet": "retinanet_resnet50_fpn", "ssd": "ssd300_vgg16", "fasterrcnn": "fasterrcnn_resnet50_fpn"}


def chosen(flags: BenchFlags) -> list[tuple[str, Callable[[int, int, torch.device], Contest]]]:
    """The contests that `only` names, in its order, or all.

    Raises:
        ConfigError: a name that is neither a contest's nor a detector's.
    """
    known = dict(CONTESTS)
    for name, row in ZOO.items():
        builds = (torchvision, whole_retinanet) if row.host == "retinanet" else (torchvision,)
        known[name] = tuple(partial(build, detector=name) for build in builds)
    names = [name.strip() for name in flags.only.split(",")] if flags.only else list(CONTESTS)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"only={flags.only}: {name or 'nothing'} is not one of {', '.join(known)}{nearest(name, known)}"
            )
    return [(name, build) for name in dict.fromkeys(names) for build in known[name]]


# torchvision's losses: a head -> (raw predictions, labels of each image) -> losses by name ----------------------------

Theirs = Callable[[dict[str, Any], list[dict[str, Tensor]]], Mapping[str, Tensor]]


def _retinanet(head: Any) -> Theirs:
    model: Any = SimpleNamespace(
        proposal_matcher=Matcher(retinanet.POSITIVE_IOU, retinanet.NEGATIVE_IOU, allow_low_quality_matches=True),
        head=head.layers,
    )

    def loss(raw: dict[str, Any], targets: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        outputs = {"cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
        found: Mapping[str, Tensor] = RetinaNet.compute_loss(model, targets, outputs, [raw["anchors"]] * len(targets))
        return found

    return loss


def _ssd(head: Any) -> Theirs:
    (xy, wh), matcher = ssd.SCALE, SSDMatcher(ssd.MATCH_IOU)
    model: Any = SimpleNamespace(box_coder=BoxCoder((xy, xy, wh, wh)), neg_to_pos_ratio=3)

    def loss(raw: dict[str, Any], targets: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        outputs = {"cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
        matched = [matcher(box_iou(target["boxes"], raw["anchors"])) for target in targets]  # as SSD.forward
        anchors = [raw["anchors"]] * len(targets)
        found: Mapping[str, Tensor] = SSD.compute_loss(model, targets, outputs, anchors, matched)
        return found

    return loss


def _faster_rcnn(head: Any) -> Theirs:
    numbers, generator = head.numbers, AnchorGenerator(head.anchors_of.sizes, head.anchors_of.ratios)
    before, after = ({"training": n[0], "testing": n[1]} for n in (numbers.before, numbers.after))
    rpn: Any = RegionProposalNetwork(
        generator, head.rpn, *faster_rcnn.RPN_IOU, numbers.anchors, faster_rcnn.RPN_SHARE, before, after,
        faster_rcnn.NMS_IOU,
    )  # fmt: skip
    roi: Any = RoIHeads(
        head.pool, head.mlp, head.predictor, faster_rcnn.ROI_IOU, faster_rcnn.ROI_IOU, numbers.rois,
        faster_rcnn.ROI_SHARE, None, 0.05, 0.5, 100,
    )  # fmt: skip

    def loss(raw: dict[str, Any], targets: list[dict[str, Tensor]]) -> Mapping[str, Tensor]:
        anchors = [raw["anchors"]] * len(targets)  # from here on as RegionProposalNetwork.forward
        states, boxes = rpn.assign_targets_to_anchors(anchors, targets)
        offsets = rpn.box_coder.encode(boxes, anchors)
        first = rpn.compute_loss(raw["logits"].view(-1, 1), raw["deltas"].view(-1, 4), states, offsets)
        proposals = [p[v] for p, v in zip(raw["proposals"], raw["valid"], strict=True)]
        _, second = roi(raw["features"], proposals, [tuple(raw["size"])] * len(targets), targets)
        return {"objectness": first[0], "proposals": first[1], **second}

    return loss


THEIRS: dict[str, tuple[str, Callable[[Any], Theirs]]] = {
    "retinanet": ("RetinaNet", _retinanet), "ssd": ("SSD", _ssd), "fasterrcnn": ("Faster R-CNN", _faster_rcnn),
}  # fmt: skip


# What the contests share ----------------------------------------------------------------------------------------------


def _yaml(cfg: str) -> dict[str, Any]:
    return {**yaml_model_load(cfg), "nc": CLASSES}


def _set_up(
    build: Callable[..., Any], batch: int, imgsz: int, device: torch.device
) -> tuple[Any, Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(verbose=False).to(device).train()
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


def _ours(model: Any, labels: dict[str, Any], place: str) -> list[Side]:
    """Every loss that is defined at a place, the host's own first."""
    head, host = (place, "yolo") if place in YOLO else ("stock", place)

    def side(loss: str) -> Side:
        given = {"loss": loss, **GIVEN.get(loss, {})}
        criterion = build_criterion(model, train_flags(given, head=head, host=host), seed=0)
        name = "ours, " + " ".join(f"{k}={v}" for k, v in given.items())
        return Side(name, _as_is, lambda preds: criterion(preds, labels)[0].sum())

    defined = [name for name, row in METHODS.items() if row.kind != "head" and place in row.places]
    return [side(loss) for loss in dict.fromkeys((PLACES[place], *defined))]


def _as_torchvision(labels: dict[str, Any], imgsz: int, head: Any) -> list[dict[str, Tensor]]:
    corners = torch.split(xywh_to_xyxy(labels["bboxes"] * imgsz), LABELS)
    classes = torch.split(labels["cls"].view(-1).long() + head.background, LABELS)
    return [{"boxes": b, "labels": c} for b, c in zip(corners, classes, strict=True)]


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _as_is(output: Any) -> Any:
    return output


def _summed(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    return loss(logits).sum()


def _as_yolov5(output: Any) -> list[Tensor]:
    # (B, M, 5 + C, H, W) -> (B, M, H, W, 5 + C), copied: YOLOv5's head hands over that layout
    return [x.permute(0, 1, 3, 4, 2).contiguous() for x in output["maps"]]
