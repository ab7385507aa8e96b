"""Predictions and labels for the losses on Ultralytics' heads, and the candidates that these are computed from.

The candidates are found by other code than the product's: the host's own assigner, torchvision's IoU, and loops.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from slow_match import slow_match
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import make_anchors

from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead
from rebalance.match.candidates import Candidates, candidate_state

STRIDES = (8, 16, 32, 64)
SIZE, CLASSES = 64, 2
GRIDS = [SIZE // stride for stride in STRIDES[:3]]
ANCHOR = "anchor"  # the head of ours among the names of stock models
Branch = dict[str, Any]
Batch = dict[str, Tensor]


# Models and what goes into their losses -------------------------------------------------------------------------------


def anchor_head(nc: int = CLASSES, levels: int = 3) -> AnchorHead:
    return AnchorHead(nc, (1,) * levels, torch.tensor(STRIDES[:levels]).float(), COCO_ANCHORS[levels])


@lru_cache
def build(name: str) -> Any:
    """A stock model in training mode, or what stands for one with the anchor head; its `args` are set."""
    torch.manual_seed(0)
    if name == ANCHOR:
        return SimpleNamespace(model=[anchor_head()], args=SimpleNamespace(imgsz=SIZE), criterion=None)
    model = DetectionModel(name, nc=CLASSES, verbose=False).train()
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    return model


def batch(count: int = 7, images: int = 2, classes: int = CLASSES) -> Batch:
    """Labels of the first `images` images, of 13 to 45 pixels."""
    g = torch.Generator().manual_seed(0)
    image = (torch.arange(count) * images // max(count, 1)).float()
    box = torch.cat((torch.rand(count, 2, generator=g) * 0.6 + 0.2, torch.rand(count, 2, generator=g) * 0.5 + 0.2), 1)
    return {"batch_idx": image, "cls": torch.randint(classes, (count, 1), generator=g).float(), "bboxes": box}


def predictions(model: Any, *, images: int = 2, dtype: torch.dtype = torch.float32) -> Branch:
    """What the head returns in training; boxes of about 1.5 cells to every side, some near a label and others not."""
    head, g = model.model[-1], torch.Generator().manual_seed(0)
    if isinstance(head, AnchorHead):
        maps = [torch.randn(images, head.na, head.no, n, n, generator=g) for n in GRIDS]
        return {"maps": [x.to(dtype).requires_grad_() for x in maps]}

    def branch() -> Branch:
        cells = sum(n * n for n in GRIDS)
        boxes = torch.randn(images, 4, head.reg_max, cells, generator=g)
        bins = torch.arange(head.reg_max).view(-1, 1)
        boxes = boxes * 0.7 - bins * 0.5 if head.reg_max > 1 else boxes.abs() + 0.7
        return {
            "boxes": boxes.flatten(1, 2).to(dtype).requires_grad_(),
            "scores": torch.randn(images, head.nc, cells, generator=g).to(dtype).requires_grad_(),
            "feats": [torch.zeros(images, 1, n, n, dtype=dtype) for n in GRIDS],
        }

    if getattr(head, "one2one_cv2", None) is None:
        return branch()
    return {"one2many": branch(), "one2one": branch()}


def parts(preds: Branch) -> list[Branch]:
    """The predictions of each branch."""
    return [preds["one2many"], preds["one2one"]] if "one2many" in preds else [preds]


def leaves(preds: Branch) -> list[Tensor]:
    return [x for part in parts(preds) for x in part.get("maps", [part.get("boxes"), part.get("scores")])]


def hosts(model: Any) -> list[v8DetectionLoss]:
    """The host's own loss of each branch."""
    if getattr(model.model[-1], "one2one_cv2", None) is None:
        return [v8DetectionLoss(model)]
    both = E2ELoss(model)
    return [both.one2many, both.one2one]


# Candidates -----------------------------------------------------------------------------------------------------------


def pixels(labels: Batch, image: int, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """(G, 4) corners of the labels of one image."""
    height, width = size
    boxes = labels["bboxes"][labels["batch_idx"] == image] * torch.tensor([width, height, width, height])
    return box_convert(boxes, "cxcywh", "xyxy")


def overlaps(boxes: Tensor, labels: Batch, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """(B, N) IoU of the corners (B, N, 4) with the nearest label of the image, by torchvision."""
    none = torch.zeros(1, 4)
    return torch.stack([box_iou(x, torch.cat((pixels(labels, i, size), none))).amax(1) for i, x in enumerate(boxes)])


def within(points: Tensor, labels: Batch, images: int) -> Tensor:
    """(B, N) 1 where a label holds the point of (N, 2), else 0."""
    found = [
        [any(a < x < c and b < y < d for a, b, c, d in pixels(labels, image).tolist()) for x, y in points.tolist()]
        for image in range(images)
    ]
    return torch.tensor(found).float()


class Assigned(NamedTuple):
    """What the host's own assigner gives for the predictions of a branch."""

    logits: Tensor  # (B, N, C), a leaf
    scores: Tensor  # (B, N, C) target scores
    positive: Tensor  # (B, N) bool
    target_boxes: Tensor  # (B, N, 4) pixels
    boxes: Tensor  # (B, N, 4) pixels, as predicted
    points: Tensor  # (N, 2) in cells of the level
    strides: Tensor  # (N, 1)

    @property
    def own(self) -> Tensor:
        """(B, N) complete IoU of a matched prediction with its own label, by the host; else 0."""
        found = bbox_iou(self.boxes, self.target_boxes, xywh=False, CIoU=True).squeeze(-1)
        return found.where(self.positive, 0)

    @property
    def centres(self) -> Tensor:
        """(N, 2) pixels."""
        return self.points * self.strides


def reach(boxes: Tensor, reg_max: int) -> Tensor:
    """(B, N, 4) distances to the four sides, in cells, of a head's raw (B, 4·R, N)."""
    found = boxes.transpose(1, 2)
    if reg_max == 1:
        return found
    bins = torch.arange(reg_max, dtype=boxes.dtype)
    return (found.unflatten(2, (4, reg_max)).softmax(3) * bins).sum(3)


def assigned(host: v8DetectionLoss, part: Branch, labels: Batch, objectness: Tensor | None = None) -> Assigned:
    """Of one branch; `objectness` (B, N) logits where the score is P(class | object) · P(object)."""
    points, strides = make_anchors(part["feats"], host.stride, 0.5)
    images = len(part["boxes"])
    targets = torch.cat((labels["batch_idx"].view(-1, 1), labels["cls"], labels["bboxes"]), 1)
    targets = host.preprocess(targets, images, torch.full((4,), float(SIZE)))
    gt_labels, gt_boxes = targets.split((1, 4), 2)
    sides = reach(part["boxes"].detach().float(), host.reg_max)
    boxes = torch.cat((points - sides[..., :2], points + sides[..., 2:]), 2) * strides
    logits = part["scores"].detach().transpose(1, 2).contiguous()
    scores = logits.sigmoid()
    if objectness is not None:
        scores = scores * objectness.detach().sigmoid().unsqueeze(-1)
    _, target_boxes, found, positive, _ = host.assigner(
        scores, boxes, points * strides, gt_labels, gt_boxes, gt_boxes.sum(2, keepdim=True) > 0
    )
    return Assigned(logits.requires_grad_(), found, positive.bool(), target_boxes, boxes, points, strides)


def anchors_at_cells() -> Tensor:
    """(N, 4) corners, level by level, anchor, row, column."""
    found = []
    for stride, sizes in zip(STRIDES[:3], COCO_ANCHORS[3], strict=True):
        for w, h in zip(sizes[::2], sizes[1::2], strict=True):
            for row in range(SIZE // stride):
                for column in range(SIZE // stride):
                    found.append(((column + 0.5) * stride, (row + 0.5) * stride, w, h))
    return box_convert(torch.tensor(found, dtype=torch.float32), "cxcywh", "xyxy")


def decoded(head: AnchorHead, maps: list[Tensor]) -> Tensor:
    """(B, N, 4) corners in pixels of the anchor head's predictions; the decoding has a test of its own."""
    boxes = head.decode([x.detach().float() for x in maps], objectness=False)
    return box_convert(boxes.transpose(1, 2), "cxcywh", "xyxy")


def matches_of(head: AnchorHead, maps: list[Tensor], labels: Batch) -> list[tuple[int, int, float]]:
    """Image, candidate and complete IoU, at least 0, of each match with its own label, in YOLOv5's order."""
    table = torch.cat((labels["batch_idx"].view(-1, 1), labels["cls"], labels["bboxes"]), 1)
    levels = slow_match(table, head.anchors, [(x.shape[3], x.shape[4]) for x in maps])
    found = []
    for x, matches in zip(maps, levels, strict=True):
        for m in matches:
            iou = bbox_iou(anchor_box(x, m), torch.tensor(m.box), xywh=True, CIoU=True).squeeze()
            found.append((m.image, m.candidate, max(iou.item(), 0)))
    return found


def on_anchors(head: AnchorHead, maps: list[Tensor], labels: Batch) -> Candidates:
    """The objectness of the anchor head: targets are the CIoU of each label's matches, the last match counts."""
    logits = torch.cat([x.detach()[:, :, 4].flatten(1) for x in maps], 1)
    target, positive = torch.zeros_like(logits), torch.zeros(logits.shape, dtype=torch.bool)
    for image, candidate, iou in matches_of(head, maps, labels):
        target[image, candidate], positive[image, candidate] = iou, True
    overlap = overlaps(anchors_at_cells().expand(len(logits), -1, -1), labels)
    return Candidates(logits.unsqueeze(-1).requires_grad_(), target.unsqueeze(-1), candidate_state(positive), overlap)


def anchor_box(x: Tensor, match: Any) -> Tensor:
    """(4,) centre, width, height in cells, from the cell on, of what is predicted where a label is matched."""
    sx, sy, sw, sh = x[match.image, match.anchor, :4, match.row, match.column].sigmoid()
    aw, ah = match.anchor_wh
    return torch.stack((2 * sx - 0.5, 2 * sy - 0.5, (2 * sw) ** 2 * aw, (2 * sh) ** 2 * ah))
