"""The hosts' own losses, made to read what our models put out: a model and labels -> predictions -> scalar."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
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
from rebalance.match.boxes import xywh_to_xyxy

Batch = dict[str, Any]  # Ultralytics' labels of a batch, with as many in each image
Targets = list[dict[str, Tensor]]  # torchvision's, by image
Loss = Callable[[Any], Tensor]
Losses = Callable[[Targets, Batch, list[Tensor]], Any]  # torchvision's: targets, output, anchors by image -> by name

# Settings of YOLOv5's hyp.scratch-low.yaml that its loss reads; its trainer scales the three gains
HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0}


def summed(criterion: Any, labels: Any) -> Loss:
    """A criterion as Ultralytics calls it: what it returns first is a vector of losses."""
    return lambda preds: criterion(preds, labels)[0].sum()


def _yolov5(model: Any, labels: Batch) -> Loss:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its packaging is of another time
        from yolov5.utils.loss import ComputeLoss
    head = model.model[-1]
    scales = {"box": 1.0, "obj": (model.args.imgsz / 640) ** 2, "cls": head.nc / 80}
    hyp = {**HYP, **{name: HYP[name] * scale * 3 / head.nl for name, scale in scales.items()}}
    host = ComputeLoss(SimpleNamespace(parameters=model.parameters, hyp=hyp, model=model.model))
    targets = torch.cat((labels["batch_idx"].view(-1, 1), labels["cls"], labels["bboxes"]), 1)
    return summed(host, targets)


def _maps_of_yolov5(output: Batch) -> list[Tensor]:
    # (B, M, 5 + C, H, W) -> (B, M, H, W, 5 + C), copied: YOLOv5's head hands over that layout
    return [x.permute(0, 1, 3, 4, 2).contiguous() for x in output["maps"]]


def _torchvision(make: Callable[[Any], Losses], model: Any, labels: Batch) -> Loss:
    losses, targets = make(model.model[-1]), _targets(model, labels)

    def loss(raw: Batch) -> Tensor:
        outputs = {**raw, "cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
        return _total(losses(targets, outputs, [raw["anchors"]] * len(targets)), targets)

    return loss


def _retinanet(head: Any) -> Losses:
    matcher = Matcher(retinanet.POSITIVE_IOU, retinanet.NEGATIVE_IOU, True)
    self: Any = SimpleNamespace(proposal_matcher=matcher, head=head.layers)
    return partial(RetinaNet.compute_loss, self)


def _ssd(head: Any) -> Losses:
    matcher, (xy, wh) = SSDMatcher(ssd.MATCH_IOU), ssd.SCALE
    self: Any = SimpleNamespace(box_coder=BoxCoder((xy, xy, wh, wh)), neg_to_pos_ratio=3)

    def losses(targets: Targets, raw: Batch, anchors: list[Tensor]) -> Any:
        matched = [matcher(box_iou(target["boxes"], raw["anchors"])) for target in targets]  # as SSD.forward
        return SSD.compute_loss(self, targets, raw, anchors, matched)

    return losses


def _faster_rcnn(head: Any) -> Losses:
    numbers, own = head.numbers, faster_rcnn
    before, after = ({"training": n[0], "testing": n[1]} for n in (numbers.before, numbers.after))
    rpn: Any = RegionProposalNetwork(
        _anchors(head), head.rpn, *own.RPN_IOU, numbers.anchors, own.RPN_SHARE, before, after, own.NMS_IOU
    )
    roi: Any = RoIHeads(
        head.pool, head.mlp, head.predictor, own.ROI_IOU, own.ROI_IOU, numbers.rois, own.ROI_SHARE, None, 0.05, 0.5, 100
    )

    def losses(targets: Targets, raw: Batch, anchors: list[Tensor]) -> Any:
        states, boxes = rpn.assign_targets_to_anchors(anchors, targets)  # from here on as RegionProposalNetwork.forward
        offsets = rpn.box_coder.encode(boxes, anchors)
        first = rpn.compute_loss(raw["logits"].view(-1, 1), raw["deltas"].view(-1, 4), states, offsets)
        proposals = [p[v] for p, v in zip(raw["proposals"], raw["valid"], strict=True)]
        _, second = roi(raw["features"], proposals, [tuple(raw["size"])] * len(targets), targets)
        return {"objectness": first[0], "proposals": first[1], **second}

    return losses


def whole_retinanet(name: str, model: Any, labels: Batch) -> Loss:
    """torchvision's RetinaNet with the layers of our model, a detector of ZOO: images -> scalar."""
    body, neck, head = model.model
    backbone: Any = nn.Sequential(body, neck)
    backbone.out_channels = head.layers.classification_head.conv[0][0].in_channels
    side, row, targets = model.args.imgsz, ZOO[name], _targets(model, labels)
    host = RetinaNet(
        backbone, head.nc, min_size=side, max_size=side, image_mean=row.mean, image_std=row.std,
        anchor_generator=_anchors(head), head=head.layers,
    )  # fmt: skip
    host.to(labels["cls"].device).train()
    return lambda images: _total(host(list(images), targets), targets)


def _total(losses: Mapping[str, Tensor], targets: Targets) -> Tensor:
    """The sum over a batch of losses that are means over its images."""
    return torch.stack(list(losses.values())).sum() * len(targets)


def _targets(model: Any, labels: Batch) -> Targets:
    """The labels as torchvision has them, image by image."""
    most = labels["most_labels"]
    corners = torch.split(xywh_to_xyxy(labels["bboxes"] * model.args.imgsz), most)
    classes = torch.split(labels["cls"].view(-1).long() + model.model[-1].background, most)
    return [{"boxes": b, "labels": c} for b, c in zip(corners, classes, strict=True)]


def _anchors(head: Any) -> AnchorGenerator:
    return AnchorGenerator(head.anchors_of.sizes, head.anchors_of.ratios)


def as_is(x: Any) -> Any:
    """What is given."""
    return x


# A YOLO's file or the host of a detector -> name of the host, its loss, and what a head of its own does before that
LOSSES: dict[str, tuple[str, Callable[[Any, Batch], Loss], Callable[[Any], Any]]] = {
    "yolov8n.yaml": ("Ultralytics", lambda model, labels: summed(v8DetectionLoss(model), labels), as_is),
    "yolov5n.yaml": ("YOLOv5", _yolov5, _maps_of_yolov5),
    "retinanet": ("torchvision RetinaNet", partial(_torchvision, _retinanet), as_is),
    "ssd": ("torchvision SSD", partial(_torchvision, _ssd), as_is),
    "fasterrcnn": ("torchvision Faster R-CNN", partial(_torchvision, _faster_rcnn), as_is),
}
