"""The losses, called the way Ultralytics calls a criterion: predictions and batch in, loss vector and items out.

Criteria are plain classes: as nn.Modules they would enter the state dict. Ultralytics strips them when it saves.

Shapes: B images, T labels in the batch, N candidates an image, L levels, M anchors, C classes, K match slots a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import RANK
from ultralytics.utils.loss import v8DetectionLoss

from rebalance.heads.anchor import AnchorSettings, taken
from rebalance.heads.objectness import flatten_steps
from rebalance.match.anchor import Matches, match, set_in_part
from rebalance.match.boxes import below, ciou, inside, max_iou, own_overlap, upcast, xywh_to_xyxy
from rebalance.match.candidates import POSITIVE, SIGMOID, Candidates, candidate_state
from rebalance.match.device import LANES, put_back
from rebalance.match.padded import padded_boxes
from rebalance.match.regions import Known
from rebalance.methods.bce import bce
from rebalance.methods.method import NOTHING, Choice, Predictions, Rest, Run
from rebalance.methods.resobj import refine, unrefined
from rebalance.objective import Objective
from rebalance.recipe import Recipe

# Weight of each level's objectness loss in YOLOv5, from fine to coarse, by number of levels
BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}

Batch = dict[str, Any]
Result = tuple[Tensor, dict[str, Tensor]]


class DetectionCriterion(v8DetectionLoss):  # type: ignore[misc]
    """Ultralytics' own loss with our methods, for the anchor-free heads (YOLOv8 and newer; one branch of YOLO26).

    The host's loss is left as it is; its three parts (assigner, classification loss, box loss) are wrapped. Where
    nothing is dropped and the loss is the host's, the wrappers pass the host's values through unchanged.

    These heads have no objectness, so every method acts on the classification loss, and a prediction is positive,
    negative or confused in all its classes: a dropped prediction has no loss in any class. A prediction's overlap is
    that of its decoded box.

    The host divides by the sum of target scores; what is chosen counts no more, unless `drop_divisor=host`.

    Whether a prediction is inside a region is decided by its decoded box, for each class by itself.
    """

    by_class = True  # whether regions are about each class by itself

    # Of the step at hand, from the assigner to the losses
    _size: tuple[int, int]  # of the input
    _known: Known
    _state: Tensor  # (B, N)
    _overlap: Tensor  # (B, N)
    _host_divisor: Tensor  # scalar
    _choice: Choice = NOTHING

    def __init__(self, model: Any, tal_topk: int = 10, tal_topk2: int | None = None, *, recipe: Recipe, seed: int):
        super().__init__(model, tal_topk, tal_topk2)
        self.recipe = recipe
        self._finest = int(self.stride[0])  # pixels a cell of the first level
        self._host: dict[str, Any] = {part: getattr(self, part) for part in ("assigner", "bce", "bbox_loss")}
        run = Run(recipe.site, seed=seed, rank=max(RANK, 0), stream=0 if tal_topk2 is None else 1)
        self.objective = Objective(recipe, run, own=self._host["bce"])
        self.objectives = (self.objective,)
        self.assigner, self.bce, self.bbox_loss = self._assign, self._classification, self._box

    def loss(self, preds: dict[str, Tensor], batch: Batch) -> Result:
        """The host's, of one branch's predictions."""
        height, width = preds["feats"][0].shape[2:]
        self._size = height * self._finest, width * self._finest
        result: Result = super().loss(preds, self.objective.relabel(batch))
        return result

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, *labels: Tensor, **options: Any) -> Any:
        assigned = self._host["assigner"](scores, boxes, points, *labels, **options)
        self._state = candidate_state(assigned[3])
        if self.recipe.divisor != "host":
            self._host_divisor = assigned[2].sum().clamp(min=1)
        self._known = self.objective.known(lambda: boxes, images=len(boxes), size=self._size, each=self.by_class)

        def confidence() -> Tensor:
            unknown = self._known.unknown
            return (scores if unknown is None else scores.masked_fill(unknown, 0)).amax(-1)

        self._choice = self.objective.choose(Predictions(
            self._state, partial(below, boxes, labels[1]), confidence,
            own=lambda: own_overlap(boxes, assigned[1]), known=self._known,
        ))  # fmt: skip
        if not self.objective.by_overlap:
            self._overlap = boxes.new_zeros(()).expand_as(self._state)
        elif self.recipe["brl_overlap"] == "box":
            self._overlap = max_iou(boxes, labels[1])
        else:
            self._overlap = inside(points, labels[1]).to(boxes.dtype)
        return assigned

    def _classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        def loss(logits: Tensor, choice: Choice) -> Tensor:
            def cost(choice: Choice, place: Tensor | None = None) -> Tensor:
                trained = targets
                if choice.background is not None:
                    trained = targets.masked_fill(choice.background.unsqueeze(-1), 0)
                state = choice.seen(self._state)
                candidates = Candidates(logits, trained, state, self._overlap, SIGMOID, *self._known)
                return self.objective.loss(candidates if place is None else candidates.at(place))

            # a diagnosis follows all of them; with a rest of elements the last bit of some would depend on who asks
            place = choice.stays() if self.objective.diagnosis is None and logits.numel() % LANES == 0 else None
            if place is None:
                return self._divide(choice.of_loss(choice.trained(cost)), targets, choice)
            return self._divide(put_back(cost(choice, place), place, self._state.shape), targets, choice)

        def total(logits: Tensor, choice: Choice) -> Tensor:
            found = loss(logits, choice)
            return (found if self.class_weights is None else found * self.class_weights).sum()

        self.objective.weigh_up(self._choice, self._state, logits, total)
        return loss(logits, self._choice)

    def _divide(self, loss: Tensor, targets: Tensor, choice: Choice) -> Tensor:
        """Make up for the host's division by the sum of target scores, where another divisor is wanted."""
        if self.recipe.divisor != "host":
            positive = self._state == POSITIVE
            ignored = self._known.ignored(positive)
            count = self.objective.count(positive, choice, channels=loss.shape[-1], ignored=ignored)
            return loss * (self._host_divisor / count.view(-1, 1, 1))
        if choice.gone is None or not (choice.kept and choice.matched):
            return loss
        left = choice.of_count(targets, choice.gone)
        return loss * (targets.sum().clamp(min=1) / left.sum().clamp(min=1))

    def _box(self, *inputs: Any) -> Any:
        choice = self._choice
        if choice.box is None:
            return self._host["bbox_loss"](*inputs)
        *predictions, scores, total, matched, size, stride = inputs
        if choice.kept:
            total = choice.of_box_count(scores).sum().clamp(min=1)
        scores, matched = choice.of_box_loss(scores), choice.in_box(matched)  # a match weighs as much as its score
        return self._host["bbox_loss"](*predictions, scores, total, matched, size, stride)


class ObjectnessCriterion(DetectionCriterion):
    """Class loss on positives, objectness loss on all, residual losses behind their gates, on an anchor-free head.

    Assignment: the host's, from P(class | object) · P(object) after all steps. Objectness: its target is the
    assigner's score (0 for a negative), the sum is divided as the host divides its class loss, by the sum of target
    scores; residual losses likewise. Class: binary cross-entropy of positives alone against 0 and 1, weighted by the
    target score as the host weighs its box loss, divided by the sum of those. All three have the host's gain `cls`,
    times `cls_weight` (class) or `obj_weight` (the other two).

    The methods act on the objectness and its residual losses; the class loss has no negatives to weigh. So do regions:
    the objectness of a prediction counts where every class is known.

    Chen et al., "Residual Objectness for Imbalance Reduction", sections 3.1 and 3.2.
    """

    by_class = False

    # Of the step at hand
    _raw: tuple[Tensor, Tensor]  # (B, N) objectness and (T, B, N) residual logits
    _targets: Tensor  # (B, N)

    def loss(self, preds: dict[str, Tensor], batch: Batch) -> Result:
        """(4,) or, with steps, (5,): box, class, DFL (L1), objectness and residual loss; see `Host.criterion`."""
        self._raw = unrefined(preds["objectness"].squeeze(1), preds.get("residuals"))
        vector, items = super().loss(preds, batch)
        more = {name: x * self.hyp.cls for name, x in self._objectness().items()}
        images = len(self._raw[0])
        del self._raw  # it holds the graph
        items |= {name: x.detach() for name, x in more.items()}
        return torch.cat((vector, torch.stack(list(more.values())) * images)), items

    def _assign(self, scores: Tensor, boxes: Tensor, points: Tensor, *labels: Tensor, **options: Any) -> Any:
        objectness = refine(*self._raw)[-1].detach().sigmoid().to(scores.dtype)
        assigned = super()._assign(scores * objectness.unsqueeze(-1), boxes, points, *labels, **options)
        self._targets = assigned[2].sum(-1)
        return assigned

    def _classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        weights: Tensor = targets.sum(-1, keepdim=True) * self.recipe["cls_weight"]
        return bce(logits, (targets > 0).to(logits.dtype)) * weights

    def _objectness(self) -> dict[str, Tensor]:
        (logits, residuals), choice = self._raw, self._choice
        self.objective.weigh_up(
            choice, self._state, logits, lambda logits, choice: self._losses(logits, residuals[:0], choice)["obj_loss"]
        )
        return self._losses(logits, residuals, choice)

    def _losses(self, logits: Tensor, residuals: Tensor, choice: Choice) -> dict[str, Tensor]:
        targets = self._targets.to(logits.dtype)
        candidates = Candidates(logits, targets, self._state, self._overlap, SIGMOID, *self._known)
        losses = self.objective.objectness(candidates, residuals, choice)
        if self.recipe.divisor != "host":
            positive = self._state == POSITIVE
            count = self.objective.count(positive, choice, ignored=self._known.ignored(positive))
        else:
            if choice.matched:
                targets = choice.of_count(targets, choice.gone)
            count = targets.sum().clamp(min=1)
        return {name: (loss.sum(1) / count).sum() for name, loss in losses.items()}


class AnchorCriterion:
    """YOLOv5's loss on the anchor head, with our methods, and the residual losses of its objectness where it has steps.

    Box: 1 − CIoU, mean over the matches of a level, summed over levels. Objectness: binary cross-entropy against the
    CIoU of the match (0 elsewhere), mean over the candidates of a level, times `BALANCE`. Class: binary cross-entropy,
    mean over the matches of a level and classes. With `drop_divisor=kept` the means are over what is left. Residual
    losses have the targets, the element loss, the dropped candidates, the divisor and the gain of the objectness loss.

    The methods act on the objectness. A candidate's overlap is that of its anchor, placed at its cell, and by that it
    is inside a region; its objectness counts where every class is known, and the means are over all cells still. With
    `divisor=batch`, `image` or `candidates` the objectness loss is a sum over all levels, without `BALANCE`, divided by
    the number of matched candidates (of the batch, or of each image) or of all.
    """

    def __init__(self, model: Any, *, recipe: Recipe, seed: int) -> None:
        self.recipe, self.head, self.settings = recipe, model.model[-1], recipe.of(AnchorSettings)
        self.objective = Objective(recipe, Run(recipe.site, seed=seed, rank=max(RANK, 0)))
        self.objectives = (self.objective,)
        self.finest = int(self.head.stride.min())  # pixels a cell of the first level
        nl, nc, size = self.head.nl, self.head.nc, model.args.imgsz
        # YOLOv5's trainer scales its gains by levels, classes and image size
        self.gains = (
            self.settings.box_gain * 3 / nl,
            self.settings.obj_gain * (size / 640) ** 2 * 3 / nl,
            self.settings.cls_gain * nc / 80 * 3 / nl,
        )

    def __call__(self, preds: Any, batch: Batch) -> Result:
        """(3,) box, objectness and class loss, or with steps (4,), `res_loss` too; see `Host.criterion`."""
        batch = self.objective.relabel(batch)
        raw = preds[1] if isinstance(preds, tuple) else preds
        maps = raw["maps"]
        device = maps[0].device
        labels = torch.cat(
            [batch[k].to(device).view(-1, n) for k, n in (("batch_idx", 1), ("cls", 1), ("bboxes", 4))], 1
        )
        shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        found = match(labels.float(), self.head.anchors, shapes, self.settings.anchor_t)

        boxes, classes, objects = taken(maps, found.sizes, found.image, found.anchor, found.row, found.column)
        # by coordinate, (2, S) each, as complete IoU takes them
        xy, wh = torch.split(upcast(boxes).movedim(-1, 0).contiguous().sigmoid(), 2)
        matched = torch.cat((xy * 2 - 0.5, wh.square() * (found.anchor_wh.movedim(-1, 0) * 4)))  # (2y)² · anchor
        iou = ciou(matched.movedim(0, -1), found.boxes_xywh)

        steps = flatten_steps(raw["residuals"]) if "residuals" in raw else None
        logits, residuals = unrefined(objects, steps)
        own = iou.detach().clamp(min=0)
        place = self._places(found, found.valid, logits.shape)
        target = self._scatter(own, place, logits.shape)
        state = candidate_state(self._scatter(found.valid, place, logits.shape))

        size = (shapes[0][0] * self.finest, shapes[0][1] * self.finest)

        @cache
        def gt_boxes() -> Tensor:
            most = batch.get("most_labels")
            return padded_boxes(labels[:, 0], labels[:, 2:], images=len(logits), size=size, most=most)[0]

        overlap = logits.new_zeros(()).expand_as(logits)
        if self.objective.by_overlap:
            overlap = self._overlap(gt_boxes(), shapes)
        known = self.objective.known(
            lambda: xywh_to_xyxy(self._anchors(shapes, logits)), images=len(logits), size=size, each=False
        )
        choice = self.objective.choose(Predictions(
            state, lambda iou: below(self.head.corners([upcast(x) for x in maps]).mT, gt_boxes(), iou), logits.detach,
            own=lambda: own, known=known,
            pairs=lambda: (found.image * logits.shape[1] + found.candidate).where(found.valid, -1),
        ))  # fmt: skip

        host_target = target
        if choice.unset is not None:
            choice, target = self._reset(choice, choice.unset, found, own, state)
        in_box = choice.in_box(found.valid)
        # where, not a product: a slot that is no match may hold any number
        box = found.sums(choice.of_box_loss(torch.where(in_box, 1 - iou, 0)))
        box = (box / found.sums(choice.of_box_count(found.valid)).clamp(min=1)).sum()

        def objects_of(logits: Tensor, residuals: Tensor, choice: Choice) -> dict[str, Tensor]:
            aims = host_target if choice is NOTHING else target
            candidates = Candidates(logits, aims, state, overlap, SIGMOID, *known)
            losses = self.objective.objectness(candidates, residuals, choice)
            return {name: self._reduce(x, state, choice, shapes, known) for name, x in losses.items()}

        self.objective.weigh_up(
            choice, state, logits, lambda x, choice: objects_of(x, residuals[:0], choice)["obj_loss"]
        )
        of_objects = objects_of(logits, residuals, choice)
        parts = {"box_loss": box, "obj_loss": of_objects["obj_loss"], "cls_loss": self._classes(upcast(classes), found)}
        parts |= of_objects  # residual losses have the gain of the objectness loss
        gains = (*self.gains, self.gains[1])
        loss = torch.stack([x * gain for x, gain in zip(parts.values(), gains, strict=False)])
        return loss * len(logits), dict(zip(parts, loss.detach(), strict=True))

    def _reduce(
        self, loss: Tensor, state: Tensor, choice: Choice, shapes: list[tuple[int, int]], known: Known
    ) -> Tensor:
        """Sum of the (B, N) losses, 0 for what left, divided."""
        if self.recipe.divisor != "host":
            positive = state == POSITIVE
            count = self.objective.count(positive, choice, ignored=known.ignored(positive))
            return (loss.sum(1) / count).sum()
        sizes, balance = [self.head.na * h * w for h, w in shapes], BALANCE[len(shapes)]

        def sums(x: Tensor) -> list[Tensor]:
            return [level.sum() for level in torch.split(x.sum(0), sizes)]  # in one pass over the images

        if choice.left is None or not choice.kept:
            counts: Sequence[Any] = [len(loss) * size for size in sizes]
        else:
            counts = [x.clamp(min=1) for x in sums(choice.of_count(torch.ones_like(choice.left), choice.left))]
        return torch.stack([x * (b / n) for x, n, b in zip(sums(loss), counts, balance, strict=True)]).sum()

    def _overlap(self, gt_boxes: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """(B, N) overlap of each anchor at its cell; with brl_overlap=centre, whether a label holds its centre."""
        anchors = self._anchors(shapes, gt_boxes)
        if self.recipe["brl_overlap"] == "centre":
            return inside(anchors[0, :, :2], gt_boxes).to(gt_boxes.dtype)
        return max_iou(xywh_to_xyxy(anchors).expand(len(gt_boxes), -1, -1), gt_boxes)

    def _anchors(self, shapes: list[tuple[int, int]], like: Tensor) -> Tensor:
        """(1, N, 4) each anchor at its cell: centre, width, height in pixels."""
        centred = [like.new_zeros(1, self.head.na, 4, h, w) for h, w in shapes]  # decodes to the anchors themselves
        anchors: Tensor = self.head.decode(centred, objectness=False).transpose(1, 2)
        return anchors

    def _classes(self, logits: Tensor, found: Matches) -> Tensor:
        if self.head.nc == 1:
            return logits.sum() * 0  # objectness says it all; the parameters stay in the graph
        target = torch.zeros_like(logits).scatter_(-1, found.label.unsqueeze(-1), 1)
        loss = found.sums(torch.where(found.valid, bce(logits, target).mean(-1), 0))
        return (loss / found.sums(found.valid).clamp(min=1)).sum()

    def _reset(
        self, choice: Choice, unset: Tensor, found: Matches, own: Tensor, state: Tensor
    ) -> tuple[Choice, Tensor]:
        """What becomes background where the slots `unset` set no target, and the (B, N) targets that the others set.

        In the control a slot sets its target in part, and an earlier slot of the candidate the rest: the target is the
        mean of those that may be set, and the candidate is background by the part that none sets.
        """
        rest = choice.rest
        if rest is None:
            place = self._places(found, found.valid & ~unset, state.shape)
            set_ = self._scatter(found.valid, place, state.shape)
            background = (state == POSITIVE) & ~set_
            return choice._replace(background=background), self._scatter(own, place, state.shape)
        place = self._all_places(found, found.valid, state.shape)

        def sums(parts: Tensor) -> Tensor:
            return parts.new_zeros(state.numel() + 1).scatter_add_(0, place, parts)[:-1].view(state.shape)

        parts = set_in_part(place, unset, 1 - rest.loss)
        share = sums(parts)
        target = torch.where(share > 0, sums(parts * own) / share, 0)
        counted = sums(set_in_part(place, unset, 1 - rest.divisor))
        background = (state == POSITIVE) & (share < 1)
        return choice._replace(background=background, rest=Rest(share, counted)), target

    @staticmethod
    def _all_places(found: Matches, sets: Tensor, shape: torch.Size) -> Tensor:
        """(S,) place in the flattened (B, N) of the candidate of a slot that sets a target, or B·N."""
        return torch.where(sets, found.image * shape[1] + found.candidate, shape.numel())

    @classmethod
    def _places(cls, found: Matches, sets: Tensor, shape: torch.Size) -> Tensor:
        """(S,) place in the flattened (B, N) that a slot sets, or B·N.

        Where several match one candidate the last of them sets it, as in YOLOv5, on every device.
        """
        place = cls._all_places(found, sets, shape)
        slot = torch.arange(len(place), device=place.device, dtype=torch.int32)
        last = slot.new_full((shape.numel() + 1,), -1).scatter_reduce_(0, place, slot, "amax")
        return place.where(last[place] == slot, shape.numel())

    @staticmethod
    def _scatter(values: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
        """(B, N) of the slots' values at their places, 0 elsewhere."""
        return values.new_zeros(shape.numel() + 1).scatter_(0, place, values)[:-1].view(shape)
