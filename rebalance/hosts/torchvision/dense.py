"""The losses of torchvision's dense detectors, called the way Ultralytics calls a criterion.

Shapes: B images, A candidates, C classes, G labels of the fullest image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import RANK

from rebalance.hosts.torchvision.head import Raw, take
from rebalance.match import device
from rebalance.match.boxes import below, decode_deltas, own_overlap, upcast
from rebalance.match.candidates import IGNORE, POSITIVE, SIGMOID, SOFTMAX, Candidates
from rebalance.match.iou import Matched
from rebalance.match.padded import Padded, padded_labels
from rebalance.match.regions import Known
from rebalance.methods.method import NOTHING, Choice, Predictions, Run
from rebalance.objective import Objective
from rebalance.recipe import Recipe

# (image, candidate, class) elements of a part of the loss on a CPU: temporaries of 4 MiB stay in the cache
ELEMENTS = 2**20

Batch = dict[str, Any]
Result = tuple[Tensor, dict[str, Tensor]]


def labels_of(batch: Batch, images: int, size: tuple[int, int], device: torch.device) -> Padded:
    """The labels of Ultralytics' batch, image by image."""
    return padded_labels(
        batch["batch_idx"].to(device).view(-1), batch["cls"].to(device).view(-1),
        batch["bboxes"].to(device).view(-1, 4).float(),
        images=images, size=size, most=batch.get("most_labels"),
    )  # fmt: skip


def predictions(
    state: Tensor, boxes: Callable[[], Tensor], labels: Padded, index: Tensor, confidence: Callable[[], Tensor],
    known: Known,
) -> Predictions:  # fmt: skip
    """What is chosen from: by the overlap of the predicted `boxes` (B, A, 4), and of what is ignored nothing.

    `index` (B, A) is of the labels that they are matched to.
    """
    return Predictions(
        state, lambda iou: below(boxes(), labels.boxes, iou) & (state != IGNORE), confidence,
        own=lambda: own_overlap(boxes(), of_label(labels.boxes, index)), known=known,
    )  # fmt: skip


class DenseCriterion(ABC):
    """One classification and one box loss over all anchors of the batch.

    The overlap that a method asks for is that of the anchor; a prediction is dropped by the overlap of its decoded box.
    Whether a candidate is inside a region is decided by its anchor. What the host's matching ignores stays ignored even
    where it is verified background.
    """

    scale = (1.0, 1.0)  # of the offsets
    link = SIGMOID  # on a softmax the first channel is background, and the targets of a candidate are one class
    ignores = False  # whether candidates may be IGNORE
    by_class = True  # whether regions are about each class by itself

    def __init__(self, head: Any, *, recipe: Recipe, seed: int) -> None:
        self.recipe = recipe
        self.objective = Objective(recipe, Run(recipe.site, seed=seed, rank=max(RANK, 0)), ignores=self.ignores)
        self.objectives = (self.objective,)

    @abstractmethod
    def match(self, anchors: Tensor, labels: Padded) -> Matched:
        """What each anchor is matched to."""

    @abstractmethod
    def class_targets(self, logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
        """What a candidate's targets are (see `Candidates`), from (B, A) classes and which are positive."""

    @abstractmethod
    def box_loss(self, deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(…) loss of the offsets (…, 4) of anchors (…, 4) from boxes (…, 4) that have an area."""

    def __call__(self, preds: Any, batch: Batch) -> Result:
        """(2,) classification and box loss; see `Host.criterion`."""
        batch = self.objective.relabel(batch)
        raw: Raw = preds[1] if isinstance(preds, tuple) else preds
        logits, deltas, anchors = upcast(raw["logits"]), upcast(raw["deltas"]), raw["anchors"]
        labels = labels_of(batch, len(logits), raw["size"], logits.device)
        matched = self.match(anchors, labels)
        classes = of_label(labels.classes, matched.label)

        each = self.by_class and self.link != SOFTMAX
        known = self.objective.known(lambda: anchors, images=len(logits), size=raw["size"], each=each)

        def confidence() -> Tensor:
            found, unknown = logits.detach(), known.unknown if each else None
            return self.confidence(found if unknown is None else found.masked_fill(unknown, -torch.inf))

        choice = self.objective.choose(
            predictions(
                matched.state, lambda: decode_deltas(deltas.detach(), anchors, self.scale), labels,
                matched.label, confidence, known,
            )
        )  # fmt: skip
        cls = self._classification(logits, classes, matched, choice, known)
        box = self._box(deltas, anchors, labels, matched, choice)
        loss = torch.stack((cls, box))
        items = dict(zip(("cls_loss", "box_loss"), loss.detach(), strict=True))
        return loss * len(logits), items

    def confidence(self, logits: Tensor) -> Tensor:
        """(B, A) how sure a prediction is to be an object, on any monotone scale."""
        return logits.amax(-1)

    def _classification(
        self, logits: Tensor, classes: Tensor, matched: Matched, choice: Choice, known: Known
    ) -> Tensor:
        def total(logits: Tensor, choice: Choice) -> Tensor:
            each = choice.sure is not None  # of what leaves some classes may stay

            def cost(choice: Choice) -> Tensor:
                state = choice.seen(matched.state)
                parts = self._parts(logits, classes, state == POSITIVE, state, matched.overlap, *known)
                found = (self._of_images(*part) for part in parts)
                return torch.cat([x if each else x.sum(-1) for x in found])  # (B, A) or (B, A, C)

            loss = choice.of_loss(choice.trained(cost))
            channels = 1 if self.link == SOFTMAX else logits.shape[-1]
            positive = matched.state == POSITIVE
            count = self.objective.count(positive, choice, channels=channels, ignored=ignored(matched.state, known))
            return (loss.flatten(1).sum(1) / count).sum()

        self.objective.weigh_up(choice, matched.state, logits, total)
        return total(logits, choice)

    def _of_images(
        self, logits: Tensor, classes: Tensor, positive: Tensor, state: Tensor, overlap: Tensor, *known: Tensor | None
    ) -> Tensor:
        """(B, A, C) classification loss, on a softmax (B, A, 1)."""
        targets = self.class_targets(logits, classes, positive)
        return self.objective.loss(Candidates(logits, targets, state, overlap, self.link, *known))

    def _parts(self, logits: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
        """A few images at a time where that is faster, as long as the loss of an image does not depend on others."""
        step = len(logits)
        if logits.device.type == "cpu" and self.objective.by_image:
            step = max(1, ELEMENTS // max(1, logits[:1].numel()))
        count = -(-len(logits) // step)
        split = ([None] * count if x is None else torch.split(x, step) for x in (logits, *others))
        return zip(*split, strict=True)

    def _box(self, deltas: Tensor, anchors: Tensor, labels: Padded, matched: Matched, choice: Choice) -> Tensor:
        positive = matched.state == POSITIVE
        chosen = choice.in_box(positive)
        if device.free_to_read(chosen):  # the few matches alone; elsewhere their number would be waited for
            image, place = chosen.nonzero(as_tuple=True)
            gt_boxes = labels.boxes[image, matched.label[image, place]]
            found = self.box_loss(deltas[image, place], gt_boxes, anchors[place])
            loss = found.new_zeros(chosen.shape).index_put((image, place), found)
        else:  # of what is no match, any box with an area, so that no gradient is lost in an infinity
            gt_boxes = torch.where(chosen.unsqueeze(-1), of_label(labels.boxes, matched.label), anchors)
            loss = torch.where(chosen, self.box_loss(deltas, gt_boxes, anchors), 0)
        loss = choice.of_box_loss(loss)
        counted = choice.of_box_count(positive)
        return (loss.sum(1) / self.objective.count(counted, NOTHING, by=plainly(self.recipe))).sum()


def ignored(state: Tensor, known: Known) -> Tensor:
    """What is no candidate, (B, A) bool, or (B, A, 1 or C) where something is unknown."""
    found, more = state == IGNORE, known.ignored(state == POSITIVE)
    return found if more is None else found.unsqueeze(-1) | more


def plainly(recipe: Recipe) -> str:
    """What losses of positives alone are divided by."""
    return recipe.site.host if recipe.divisor == "candidates" else recipe.divisor


def one_hot(logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
    """(B, A, C) like the logits: 1 for the class of a positive, from (B, A) classes and which are positive."""
    return torch.zeros_like(logits).scatter_(2, classes.unsqueeze(-1), positive.unsqueeze(-1).to(logits.dtype))


def of_label(values: Tensor, index: Tensor) -> Tensor:
    """(B, A) or (B, A, 4): `values` (B, G) or (B, G, 4) of the labels that `index` (B, A) points to; else zeros."""
    if values.shape[1] == 0:
        return values.new_zeros(*index.shape, *values.shape[2:])
    return take(values, index) if values.dim() == 3 else values.gather(1, index)
