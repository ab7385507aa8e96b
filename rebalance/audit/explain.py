"""Which detections of an image its labels explain, and which labels no detection does.

A detection is explained, and no suggestion, where

* a label of its class lies there: IoU ≥ 0.5, or at least 0.9 of the detection is inside the label (a part of it);
* a label of any class lies there: IoU ≥ 0.75. If the detection's score is above that of every detection of the label's
  own class there, it says that the label is of a wrong class;
* it is in a region in which its class is unknown, or in which somebody looked and there is none of it: at least half
  of its box, of two such regions the later one; or it is smaller than what was labelled;
* a detection of its class, of a higher score and not explained, lies there, by the first rule: both are one object.

A label is badly placed where the best detection of its class that overlaps it by IoU ≥ 0.3, and no other label of the
class more, does so by at most 0.6. It is spurious where no detection of its class does so at all.

All is in pixels of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebalance.data.boxes import held, iou

Boxes = NDArray[np.float64]  # (n, 4) left, top, right, bottom

SAME, INSIDE, SAME_PLACE = 0.5, 0.9, 0.75  # IoU with a label of the class, share inside it, IoU with one of any class
NEAR, PLACED = 0.3, 0.6  # IoU of a badly placed label with the best detection


class Detections(NamedTuple):
    """What a model finds on an image, by falling score."""

    boxes: Boxes
    scores: NDArray[np.float64]  # (n,)
    classes: NDArray[np.int64]  # (n,)


class Explained(NamedTuple):
    """Of n detections and m labels of an image, by their numbers."""

    missing: NDArray[np.int64]  # detections that nothing explains, one an object, by falling score
    wrong: NDArray[np.int64]  # (k, 2) detection, label: it says another class than the label
    placed: NDArray[np.int64]  # (k, 2) detection, label: it says another box than the label
    spurious: NDArray[np.int64]  # labels
    other: NDArray[np.int64]  # (k, 2) detection, label: only a label of another class explains it; one an object
    own: NDArray[np.float64]  # (m,) best score of a detection that a label of its class explains, 0 where none does
    silent: int  # detections that nothing explains but what is said about the labels


def explain(
    found: Detections, boxes: Boxes, classes: NDArray[np.int64], known: NDArray[np.bool_], small: float = 0.0
) -> Explained:
    """Hold the detections of an image against its labels.

    Args:
        found: n detections.
        boxes: of the m labels.
        classes: (m,) of the labels.
        known: (n,) which detections lie where their class is unknown, or where somebody looked and there is none.
        small: objects of a smaller size, the square root of the area, were not labelled.
    """
    overlap, inside = (of(found.boxes[:, None], boxes) for of in (iou, held))
    same = found.classes[:, None] == classes  # (n, m)
    near = same & (overlap >= NEAR)
    near &= overlap >= np.where(same, overlap, 0).max(
        1, keepdims=True, initial=0
    )  # of the labels of the class the nearest
    fits = same & (overlap >= SAME)
    own = np.where(fits, found.scores[:, None], 0).max(0, initial=0)
    of_class = (fits | (same & (inside >= INSIDE))).any(1)
    there = ~same & (overlap >= SAME_PLACE)
    size = np.sqrt((found.boxes[:, 2:] - found.boxes[:, :2]).prod(1))
    unsaid = ~of_class & ~there.any(1)
    said = known | (size < small)
    missing = distinct(found, np.flatnonzero(unsaid & ~said))
    other = distinct(found, np.flatnonzero(~of_class & there.any(1) & ~said))
    of_label = np.where(there, overlap, 0)[other].argmax(1) if len(boxes) else other
    says = there & ~of_class[:, None] & (found.scores[:, None] > own) & ~said[:, None]
    wrong = _best(says)
    best = _best(near)
    placed = best[overlap[best[:, 0], best[:, 1]] <= PLACED]
    nowhere = ~near.any(0)
    nowhere[wrong[:, 1]] = False
    alone = np.stack([other, of_label], 1)
    return Explained(missing, wrong, placed, np.flatnonzero(nowhere), alone, own, int((unsaid & said).sum()))


def distinct(found: Detections, some: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of some detections, by falling score, those that are not of an object that an earlier one of its class is of."""
    boxes, classes = found.boxes[some], found.classes[some]
    overlap, inside = (of(boxes[:, None], boxes) for of in (iou, held))
    again = (classes[:, None] == classes) & ((overlap >= SAME) | (inside >= INSIDE))  # [i, j]: i is the object j
    kept = np.ones(len(some), np.bool_)
    for j in range(len(some) - 1):
        if kept[j]:
            kept[j + 1 :] &= ~again[j + 1 :, j]
    return some[kept]


def nearest(box: Boxes, labels: Boxes, label: int | None = None) -> tuple[int, float] | None:
    """Of the labels the given one, else the one that a box (4,) overlaps most, else that whose centre is nearest.

    Returns:
        Its number, and the IoU; None where there are no labels.
    """
    if not len(labels):
        return None
    overlap = iou(box, labels)
    if label is None:
        distance = np.hypot(*((labels[:, :2] + labels[:, 2:]) - (box[:2] + box[2:])).T)
        label = int(overlap.argmax() if overlap.max() > 0 else distance.argmin())
    return label, float(overlap[label])


def _best(pairs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(k, 2) of each label that has a detection (n, m) the first one, which has the highest score."""
    with_one = np.flatnonzero(pairs.any(0))
    return np.stack([pairs[:, with_one].argmax(0) if len(pairs) else with_one, with_one], 1)
