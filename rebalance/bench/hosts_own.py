"""The hosts' own losses of a batch's labels, made to read what our models put out: predictions -> scalar."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher, SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou
from ultralytics.utils.loss import v8DetectionLoss

from rebalance.hosts.torchvision import faster_rcnn, retinanet, ssd
from rebalance.hosts.torchvision.zoo import ZOO

Loss = Callable[[Any], Tensor]
Labels = list[dict[str, Tensor]]  # torchvision's layout: `boxes` (corners in pixels) and `labels` of each image

# Settings of YOLOv5's hyp.scratch-low.yaml that its loss reads; its trainer scales the three gains
HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0}


def ultralytics(model: Any, labels: dict[str, Tensor]) -> Loss:
    """Ultralytics' loss of YOLOv8."""
    host = v8DetectionLoss(model)
    return lambda preds: host(preds, labels)[0].sum()


def yolov5(model: Any, labels: Tensor) -> Loss:
    """YOLOv5's loss, for predictions (B, M, H, W, 5 + C) a level and labels (image, class, x, y, width, height).

    Raises:
        ImportError: the package `yolov5` or something that it imports is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its packaging is of another time
        from yolov5.utils.loss import ComputeLoss
    head = model.model[-1]
    gains = {
        "box": HYP["box"] * 3 / head.nl,
        "obj": HYP["obj"] * (model.args.imgsz / 640) ** 2 * 3 / head.nl,
        "cls": HYP["cls"] * head.nc / 80 * 3 / head.nl,
    }
    host = ComputeLoss(SimpleNamespace(parameters=model.parameters, hyp={**HYP, **gains}, model=model.model))
    return lambda preds: host(preds, labels)[0].sum()


def total(losses: Mapping[str, Tensor], batch: int) -> Tensor:
    """The sum over a batch of torchvision's losses by name, which are means over images."""
    return torch.stack(list(losses.values())).sum() * batch


def _retinanet(head: Any, targets: Labels) -> Loss:
    matcher = Matcher(retinanet.POSITIVE_IOU, retinanet.NEGATIVE_IOU, allow_low_quality_matches=True)
    model: Any = SimpleNamespace(proposal_matcher=matcher, head=head.layers)

    def loss(raw: dict[str, Any]) -> Tensor:
        outputs = {"cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
        return total(RetinaNet.compute_loss(model, targets, outputs, [raw["anchors"]] * len(targets)), len(targets))

    return loss


def _ssd(head: Any, targets: Labels) -> Loss:
    (xy, wh), matcher = ssd.SCALE, SSDMatcher(ssd.MATCH_IOU)
    model: Any = SimpleNamespace(box_coder=BoxCoder((xy, xy, wh, wh)), neg_to_pos_ratio=3)

    def loss(raw: dict[str, Any]) -> Tensor:
        outputs = {"cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
        matched = [matcher(box_iou(target["boxes"], raw["anchors"])) for target in targets]  # as SSD.forward
        return total(SSD.compute_loss(model, targets, outputs, [raw["anchors"]] * len(targets), matched), len(targets))

    return loss


def _faster_rcnn(head: Any, targets: Labels) -> Loss:
    numbers = head.numbers
    before, after = ({"training": n[0], "testing": n[1]} for n in (numbers.before, numbers.after))
    rpn: Any = RegionProposalNetwork(
        _anchors(head), head.rpn, *faster_rcnn.RPN_IOU, numbers.anchors, faster_rcnn.RPN_SHARE, before, after,
        faster_rcnn.NMS_IOU,
    )  # fmt: skip
    roi: Any = RoIHeads(
        head.pool, head.mlp, head.predictor, faster_rcnn.ROI_IOU, faster_rcnn.ROI_IOU, numbers.rois,
        faster_rcnn.ROI_SHARE, None, 0.05, 0.5, 100,
    )  # fmt: skip

    def loss(raw: dict[str, Any]) -> Tensor:
        anchors = [raw["anchors"]] * len(targets)  # from here on as RegionProposalNetwork.forward
        states, boxes = rpn.assign_targets_to_anchors(anchors, targets)
        offsets = rpn.box_coder.encode(boxes, anchors)
        first = rpn.compute_loss(raw["logits"].view(-1, 1), raw["deltas"].view(-1, 4), states, offsets)
        proposals = [p[v] for p, v in zip(raw["proposals"], raw["valid"], strict=True)]
        _, second = roi(raw["features"], proposals, [tuple(raw["size"])] * len(targets), targets)
        return total({"objectness": first[0], "proposals": first[1], **second}, len(targets))

    return loss


def _anchors(head: Any) -> AnchorGenerator:
    return AnchorGenerator(head.anchors_of.sizes, head.anchors_of.ratios)


# Our name of the host -> torchvision's own name of it, and its loss for a head of ours
TORCHVISION: dict[str, tuple[str, Callable[[Any, Labels], Loss]]] = {
    "retinanet": ("RetinaNet", _retinanet), "ssd": ("SSD", _ssd), "fasterrcnn": ("Faster R-CNN", _faster_rcnn),
}  # fmt: skip


def whole_retinanet(name: str, model: Any) -> Any:
    """torchvision's RetinaNet of images and labels, with the layers of our model: a detector of ZOO."""
    body, neck, head = model.model
    backbone: Any = nn.Sequential(body, neck)
    backbone.out_channels = head.layers.classification_head.conv[0][0].in_channels
    nc, side, row = head.nc, model.args.imgsz, ZOO[name]
    return RetinaNet(
        backbone, nc, min_size=side, max_size=side, image_mean=row.mean, image_std=row.std,
        anchor_generator=_anchors(head), head=head.layers,
    ).train()  # fmt: skip
