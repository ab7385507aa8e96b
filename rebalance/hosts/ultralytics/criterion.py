"""The losses, called the way Ultralytics calls a criterion: predictions and batch in, loss vector and items out.

Criteria are plain classes: as nn.Modules they would enter the state dict. Ultralytics strips them when it saves.

Shapes: B images, T labels in the batch, N candidates an image, L levels, M anchors, C classes, K match slots a level.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from ultralytics.utils import RANK
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from rebalance.heads.anchor import objectness
from rebalance.match.anchor import Matches, match
from rebalance.match.boxes import ciou, inside, max_iou, upcast, xywh_to_xyxy
from rebalance.match.candidates import Candidates, candidate_state
from rebalance.match.padded import padded_labels
from rebalance.methods.bce import bce
from rebalance.methods.composition import Composition
from rebalance.methods.divisor import divided_by
from rebalance.methods.drop import COUNTS, Dropping
from rebalance.methods.resobj import means
from rebalance.methods.resolve import divisor_of, place_of
from rebalance.settings import TrainFlags

# Weight of each level's objectness loss in YOLOv5, from fine to coarse, by number of levels
BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}

Batch = dict[str, Any]
Result = tuple[Tensor, dict[str, Tensor]]


class Objectness(NamedTuple):
    """What the objectness loss of one batch is computed from."""

    logits: Tensor  # (B, N)
    target: Tensor  # (B, N) in [0, 1]
    positive: Tensor  # (B, N) bool
    dropped: Tensor | None  # (B, N) bool
    overlap: Tensor  # (B, N)
    shapes: list[tuple[int, int]]  # rows, columns of each level


class DetectionCriterion(v8DetectionLoss):  # type: ignore[misc]
    """Ultralytics' own loss with our methods, for the anchor-free heads (YOLOv8 and newer; one branch of YOLO26).

    The host's loss is left as it is; its three parts (assigner, classification loss, box loss) are wrapped. Where
    nothing is dropped and the loss is the host's, the wrappers pass the host's values through unchanged.

    These heads have no objectness, so every method acts on the classification loss, and a prediction is positive,
    negative or confused in all its classes: a dropped prediction has no loss in any class. A prediction's overlap is
    that of its decoded box.

    The host divides by the sum of target scores. With `drop_divisor=kept` that is the sum over what is left, which in
    scope `background` is the host's own divisor, since negatives have no target score. `divisor=batch` divides by
    the number of matched predictions, `image` by that of each image, `candidates` by all predictions times classes.
    """

    divisors: ClassVar = {
        "host": "sum of target scores",
        "image": "matched predictions of each image, mean over images",
        "batch": "matched predictions of the batch",
        "candidates": "predictions of the batch times classes",
    }

    # Of the step at hand, from the assigner to the losses
    _matched: Tensor  # (B, N)
    _overlap: Tensor  # (B, N)
    _host_divisor: Tensor  # scalar
    _dropped: tuple[Tensor, Tensor] | None

    def __init__(self, model: Any, tal_topk: int = 10, tal_topk2: int | None = None, *, flags: TrainFlags, seed: int):
        super().__init__(model, tal_topk, tal_topk2)
        self.flags, self.divisor = flags, divisor_of(flags, place_of(flags.head))
        self.dropping = Dropping(flags, seed=seed, rank=max(RANK, 0), stream=0 if tal_topk2 is None else 1)
        self.composition = Composition(flags)
        self._host: dict[str, Any] = {part: getattr(self, part) for part in ("assigner", "bce", "bbox_loss")}
        self.assigner, self.bce, self.bbox_loss = self._assign, self._classification, self._box
        self._dropped = None

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, *labels: Tensor, **options: Any) -> Any:
        assigned = self._host["assigner"](scores, boxes, points, *labels, **options)
        self._matched = assigned[3]  # (B, N)
        if self.divisor != "host":
            self._host_divisor = assigned[2].sum().clamp(min=1)
        by_box = self.composition.uses_overlap and self.flags.brl_overlap == "box"
        overlap = boxes.new_zeros(()).expand_as(self._matched)
        if self.dropping.on or by_box:
            overlap = max_iou(boxes, labels[1])
        self._dropped = None
        if self.dropping.on:
            self._dropped = self.dropping.draw(self._matched, overlap, scores.amax(-1))
        if self.composition.uses_overlap and not by_box:
            overlap = inside(points, labels[1]).to(overlap.dtype)
        self._overlap = overlap
        return assigned

    def _classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        matched, left, dropped = self._matched, targets, None
        if self._dropped is None or self.flags.obj_drop == 0:
            loss = self._loss(logits, targets, matched)
        else:
            dropped = self._dropped[0]
            left = targets.masked_fill(dropped.unsqueeze(-1), 0)
            if self.flags.drop_scope == "literal":
                loss = self._loss(logits, left, matched & ~dropped)
            else:
                loss = self._loss(logits, targets, matched).masked_fill_(dropped.unsqueeze(-1), 0)
        return self._divide(loss, targets, left, dropped)

    def _loss(self, logits: Tensor, targets: Tensor, matched: Tensor) -> Tensor:
        """(B, N, C) loss of every element."""
        if self.composition.plain:
            loss: Tensor = self._host["bce"](logits, targets)
            return loss
        return self.composition(Candidates(logits, targets, candidate_state(matched), self._overlap))

    def _divide(self, loss: Tensor, targets: Tensor, left: Tensor, dropped: Tensor | None) -> Tensor:
        """Make up for the host's division by the sum of target scores, where another divisor is wanted."""
        if self.divisor != "host":
            count = divided_by(self.divisor, self._matched, dropped, self.flags, channels=loss.shape[-1])
            return loss * (self._host_divisor / count.view(-1, 1, 1))
        if dropped is None or self.flags.drop_divisor == "host" or self.flags.drop_scope == "background":
            return loss
        return loss * (targets.sum().clamp(min=1) / left.sum().clamp(min=1))

    def _box(self, *inputs: Any) -> Any:
        if self._dropped is None or self.flags.box_drop == 0:
            return self._host["bbox_loss"](*inputs)
        *predictions, scores, total, matched, size, stride = inputs
        dropped = self._dropped[1]
        if self.flags.drop_divisor == "kept":
            total = scores.masked_fill(dropped.unsqueeze(-1), 0).sum().clamp(min=1)
        return self._host["bbox_loss"](*predictions, scores, total, matched & ~dropped, size, stride)


class AnchorCriterion:
    """YOLOv5's loss on the anchor head, with our methods.

    Box: 1 − CIoU, mean over the matches of a level, summed over levels. Objectness: binary cross-entropy against the
    CIoU of the match (0 elsewhere), mean over the candidates of a level, times `BALANCE`. Class: binary cross-entropy,
    mean over the matches of a level and classes. With `drop_divisor=kept` the means are over what is left.

    The methods act on the objectness. A candidate's overlap is that of its anchor, placed at its cell. With
    `divisor=batch`, `image` or `candidates` the objectness loss is a sum over all levels, without `BALANCE`, divided by
    the number of matched candidates (of the batch, or of each image) or of all.
    """

    divisors: ClassVar = {
        "host": "mean over the candidates of a level",
        "image": "matched candidates of each image, mean over images",
        "batch": "matched candidates of the batch",
        "candidates": "candidates of the batch",
    }

    def __init__(self, model: Any, *, flags: TrainFlags, seed: int) -> None:
        self.flags, self.head, self.divisor = flags, model.model[-1], divisor_of(flags, place_of(flags.head))
        self.dropping = Dropping(flags, seed=seed, rank=max(RANK, 0))
        self.composition = Composition(flags)
        self.finest = int(self.head.stride.min())  # pixels a cell of the first level
        nl, nc, size = self.head.nl, self.head.nc, model.args.imgsz
        # YOLOv5's trainer scales its gains by levels, classes and image size
        self.gains = (
            flags.box_gain * 3 / nl,
            flags.obj_gain * (size / 640) ** 2 * 3 / nl,
            flags.cls_gain * nc / 80 * 3 / nl,
        )

    def __call__(self, preds: Any, batch: Batch) -> Result:
        """Loss of one batch.

        Args:
            preds: the head's output; in validation a pair (decoded, output).
            batch: `batch_idx` (T,) sorted, `cls` (T, 1), `bboxes` (T, 4) centre, width, height as fractions; optionally
                `most_labels`, the number of labels of the fullest image.

        Returns:
            (3,) box, objectness and class loss times B, and the same without B, detached, by name.
        """
        raw = preds[1] if isinstance(preds, tuple) else preds
        maps = raw["maps"]
        device = maps[0].device
        labels = torch.cat(
            [batch[k].to(device).view(-1, n) for k, n in (("batch_idx", 1), ("cls", 1), ("bboxes", 4))], 1
        )
        shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        found = match(labels.float(), self.head.anchors, shapes, self.flags.anchor_t)

        slots = zip(maps, found.image, found.anchor, found.row, found.column, strict=True)
        chosen = upcast(torch.stack([x[i, a, :, r, c] for x, i, a, r, c in slots]))  # (L, K, 5 + C)
        sigmoid = chosen[..., :4].sigmoid()
        matched = torch.cat((sigmoid[..., :2] * 2 - 0.5, (sigmoid[..., 2:] * 2) ** 2 * found.anchor_wh), -1)
        iou = ciou(matched, found.boxes_xywh)

        logits = upcast(objectness(maps))  # (B, N)
        place = self._places(found, logits.shape)
        target = self._scatter(iou.detach().clamp(min=0), place, logits.shape)

        counts = found.valid
        positive, dropped = self._scatter(found.valid, place, logits.shape), None
        box_weight = found.valid
        overlap = logits.new_zeros(()).expand_as(logits)
        if self.dropping.on or self.composition.uses_overlap:
            rows, columns = shapes[0]
            gt_boxes = padded_labels(
                labels[:, 0], labels[:, 1], labels[:, 2:], images=len(logits),
                size=(rows * self.finest, columns * self.finest), most=batch.get("most_labels"),
            ).boxes  # fmt: skip
        if self.composition.uses_overlap:
            overlap = self._overlap(gt_boxes, shapes)
        if self.dropping.on:
            boxes = self.head.decode([upcast(x[:, :, :4].detach()) for x in maps], objectness=False)
            pixels = xywh_to_xyxy(boxes.transpose(1, 2))
            pairs = (found.image * logits.shape[1] + found.candidate).where(found.valid, -1)
            obj_dropped, box_dropped = self.dropping.draw(positive, max_iou(pixels, gt_boxes), logits.detach(), pairs)
            dropped = obj_dropped if self.flags.obj_drop > 0 else None
            if self.flags.drop_scope == "literal":
                target = target.masked_fill(obj_dropped, 0)
            box_weight = found.valid & ~box_dropped
            if self.flags.drop_divisor == "kept":
                counts = box_weight

        # where, not a product: a slot that is no match may hold any number
        box = (torch.where(box_weight, 1 - iou, 0).sum(1) / counts.sum(1).clamp(min=1)).sum()
        seen = Objectness(logits, target, positive, dropped, overlap, shapes)
        cls = self._classes(chosen[..., 5:], found)
        parts = dict(zip(("box_loss", "obj_loss", "cls_loss"), (box, self._objectness(seen), cls), strict=True))
        more = self._more(raw, seen)
        gains = (*self.gains, *(self.gains[1] for _ in more))
        loss = torch.stack([x * gain for x, gain in zip((parts | more).values(), gains, strict=True)])
        items = dict(zip(parts | more, loss.detach(), strict=True))
        return loss * len(logits), items

    def _more(self, raw: dict[str, Any], seen: Objectness) -> dict[str, Tensor]:
        """Objectness losses of heads that predict more than this one, by name."""
        return {}

    def _objectness(self, seen: Objectness) -> Tensor:
        return self._divide(self._element(seen, seen.logits), seen)

    def _element(self, seen: Objectness, logits: Tensor) -> Tensor:
        """(B, N) loss of each candidate with these logits."""
        return self.composition.of_objectness(logits, seen.target, self._state(seen), seen.overlap)

    def _state(self, seen: Objectness) -> Tensor:
        literal = seen.dropped is not None and self.flags.drop_scope == "literal"
        return candidate_state(seen.positive & ~seen.dropped if literal else seen.positive)  # type: ignore[operator]

    def _divide(self, loss: Tensor, seen: Objectness) -> Tensor:
        """Sum of the (B, N) losses of what is not dropped, divided."""
        weight = None if seen.dropped is None or self.flags.drop_scope == "literal" else ~seen.dropped
        if self.divisor != "host":
            left = loss if weight is None else torch.where(weight, loss, 0)
            return (left.sum(1) / divided_by(self.divisor, seen.positive, seen.dropped, self.flags, 1)).sum()
        sizes = [self.head.na * h * w for h, w in seen.shapes]
        if weight is None:
            means = [x.mean() for x in torch.split(loss, sizes, 1)]
        else:
            sums = [x.sum() for x in torch.split(torch.where(weight, loss, 0), sizes, 1)]
            if self.flags.drop_divisor == "host":
                means = [x / (len(loss) * n) for x, n in zip(sums, sizes, strict=True)]
            else:
                means = [x / w.sum().clamp(min=1) for x, w in zip(sums, torch.split(weight, sizes, 1), strict=True)]
        return torch.stack([m * b for m, b in zip(means, BALANCE[len(sizes)], strict=True)]).sum()

    def _overlap(self, gt_boxes: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """(B, N) overlap of each anchor at its cell; with brl_overlap=centre, whether a label holds its centre."""
        centred = [gt_boxes.new_zeros(1, self.head.na, 4, h, w) for h, w in shapes]  # decodes to the anchors themselves
        anchors = self.head.decode(centred, objectness=False).transpose(1, 2)  # (1, N, 4)
        if self.flags.brl_overlap == "centre":
            return inside(anchors[0, :, :2], gt_boxes).to(gt_boxes.dtype)
        return max_iou(xywh_to_xyxy(anchors).expand(len(gt_boxes), -1, -1), gt_boxes)

    def _classes(self, logits: Tensor, found: Matches) -> Tensor:
        if self.head.nc == 1:
            return logits.sum() * 0  # objectness says it all; the parameters stay in the graph
        target = torch.zeros_like(logits).scatter_(-1, found.label.unsqueeze(-1), 1)
        loss = torch.where(found.valid, bce(logits, target).mean(-1), 0).sum(1)
        return (loss / found.valid.sum(1).clamp(min=1)).sum()

    @staticmethod
    def _places(found: Matches, shape: torch.Size) -> Tensor:
        """(L·K,) place in the flattened (B, N) that a slot sets, or B·N.

        Where several match one candidate the last of them sets it, as in YOLOv5, on every device.
        """
        place = torch.where(found.valid, found.image * shape[1] + found.candidate, shape.numel()).flatten()
        slot = torch.arange(len(place), device=place.device, dtype=torch.int32)
        last = slot.new_full((shape.numel() + 1,), -1).scatter_reduce_(0, place, slot, "amax")
        return place.where(last[place] == slot, shape.numel())

    @staticmethod
    def _scatter(values: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
        """(B, N) of the slots' values at their places, 0 elsewhere."""
        return values.new_zeros(shape.numel() + 1).scatter_(0, place, values.flatten())[:-1].view(shape)


def build_criterion(model: Any, flags: TrainFlags, seed: int) -> Any:
    """The criterion of a model: its head decides which.

    Args:
        model: Ultralytics detection model whose `args` are set.
        flags: training flags.
        seed: of the run.
    """
    head = model.model[-1]
    if hasattr(head, "build_criterion"):  # torchvision's
        return head.build_criterion(flags, seed)
    from rebalance.hosts.ultralytics import refined as heads  # whose criteria are made from these

    refined = flags.head in ("obj", "resobj")
    if hasattr(head, "maps"):
        anchor = heads.RefinedAnchorCriterion if refined else AnchorCriterion
        return anchor(model, flags=flags, seed=seed)
    make = partial(heads.ObjectnessCriterion if refined else DetectionCriterion, flags=flags, seed=seed)
    return E2ELoss(model, make) if getattr(head, "one2one_cv2", None) is not None else make(model)


def branches(criterion: Any) -> list[Any]:
    """The criteria that a criterion is made of: two for YOLO26, else itself."""
    return [criterion.one2many, criterion.one2one] if isinstance(criterion, E2ELoss) else [criterion]


def droppings(criterion: Any) -> list[Dropping]:
    """The dropping state of each branch of a criterion."""
    return [branch.dropping for branch in branches(criterion)]


def begin_epoch(criterion: Any, epoch: int) -> None:
    """Tell every branch of a criterion where the run stands (from 0)."""
    for branch in branches(criterion):
        branch.dropping.begin_epoch(epoch)
        branch.composition.begin_epoch(epoch)
        if hasattr(branch, "steps"):
            branch.steps.begin_epoch()


def counts(criterion: Any) -> dict[str, int]:
    """What was seen and dropped in this epoch, summed over branches and processes; reads from the device once."""
    seen = [d.counts for d in droppings(criterion) if d.counts is not None]
    if not seen:
        return {}
    return dict(zip(COUNTS, _summed(seen).tolist(), strict=True))


def step_means(criterion: Any) -> dict[str, float]:
    """Mean objectness of this epoch's positives and negatives after each step; empty without an objectness of ours."""
    seen = [branch.steps.sums for branch in branches(criterion) if hasattr(branch, "steps")]
    found = [sums for sums in seen if sums is not None]
    return means(_summed(found)) if found else {}


def _summed(parts: list[Tensor]) -> Tensor:
    """Over branches and processes."""
    total = torch.stack(parts).sum(0)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total


def averages(criterion: Any) -> list[list[float] | None]:
    """The moving average of each branch as plain numbers, which a checkpoint keeps; None where there is none."""
    found = [branch.composition.average for branch in branches(criterion)]
    return [None if average is None else average.tolist() for average in found]


def restore_averages(criterion: Any, kept: Iterable[list[float] | None]) -> None:
    """Put back what `averages` gave."""
    for branch, average in zip(branches(criterion), kept, strict=False):
        branch.composition.average = None if average is None else torch.tensor(average)
