"""Average precision as COCO and as PASCAL VOC 2007 define it, beside the host's own.

Ultralytics has COCO's 101 points too, but joins them by straight lines, matches boxes in the pixels of the network and
knows no sizes of objects. COCO's comes from faster-coco-eval. No kept library has VOC's, which differs in two ways: the
precision is read at 11 recalls, and a box belongs to the label that it overlaps most, so that a second one on a label
is false even where it would do for a neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster

from rebalance.match.boxes import pair_iou

COCO_NAMES = {
    "AP": "AP_all", "AP50": "AP_50", "AP75": "AP_75", "AP_small": "AP_small", "AP_medium": "AP_medium",
    "AP_large": "AP_large",
}  # fmt: skip
VOC_IOUS = {"mAP50": 0.5, "mAP75": 0.75}
RECALLS = 11  # 0, 0.1 … 1
NO_SIZE = 1e12  # square pixels, beyond COCO's largest
DIGITS = 2  # of a label's sides: a box of 32 by 32 pixels is of 1024, whatever float32 made of its fractions


class Seen(NamedTuple):
    """Labels and detections of one image; boxes are corners (n, 4) in pixels of the image, classes are indices."""

    labels: np.ndarray[Any, Any]
    label_classes: np.ndarray[Any, Any]
    boxes: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    classes: np.ndarray[Any, Any]
    unknown: np.ndarray[Any, Any] | None = None  # which detections count only where they are right; None: all count


def coco_precision(images: Sequence[Seen]) -> dict[str, float]:
    """COCO's AP over IoU 0.5 to 0.95, at 0.5 and 0.75, and of small, medium and large objects, as fractions.

    Small is below 32² pixels of the image, large from 96² on; a label's area is that of its box, as boxes are all there
    is. A size that no label has is left out.
    """
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, seen in enumerate(images, 1):
        for box, kind in zip(_xywh(seen.labels).round(DIGITS).tolist(), seen.label_classes.tolist(), strict=True):
            about = {"id": len(truths) + 1, "area": box[2] * box[3], "iscrowd": 0}
            truths.append({"image_id": image, "category_id": int(kind) + 1, "bbox": box, **about})
        rows = zip(_xywh(seen.boxes).tolist(), seen.scores.tolist(), seen.classes.tolist(), strict=True)
        found += ({"image_id": image, "category_id": int(kind) + 1, "bbox": box, "score": s} for box, s, kind in rows)
    kinds = sorted({row["category_id"] for row in (*truths, *found)})
    content = {
        "images": [{"id": image} for image in range(1, len(images) + 1)], "annotations": truths,
        "categories": [{"id": kind, "name": str(kind)} for kind in kinds],
    }  # fmt: skip
    labelled = COCO(content, print_function=_silent)
    detected = labelled.loadRes(found)
    unknown = np.concatenate([_unknown(seen) for seen in images])
    for row in detected.dataset["annotations"]:
        if unknown[row["id"] - 1]:  # of no size that is asked for: COCO leaves such a detection out unless it matches
            row["area"] = NO_SIZE
    judge = COCOeval_faster(labelled, detected, iouType="bbox", print_function=_silent)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    values = judge.stats_as_dict
    return {name: float(values[theirs]) for name, theirs in COCO_NAMES.items() if values[theirs] >= 0}


def voc_precision(images: Sequence[Seen]) -> dict[str, float]:
    """VOC 2007's mean AP at IoU 0.5, and the same at 0.75, as fractions; over the classes that have labels."""
    kinds, counts = np.unique(np.concatenate([seen.label_classes for seen in images]), return_counts=True)
    classes = np.concatenate([seen.classes for seen in images])
    order = np.argsort(-np.concatenate([seen.scores for seen in images]), kind="stable")
    unknown = np.concatenate([_unknown(seen) for seen in images])
    means = {}
    for name, threshold in VOC_IOUS.items():
        true = np.concatenate([_true(seen, threshold) for seen in images])
        judged = order[(true | ~unknown)[order]]
        each = [
            eleven_points(true[judged][classes[judged] == kind], count)
            for kind, count in zip(kinds, counts, strict=True)
        ]
        means[name] = float(np.mean(each)) if each else 0.0
    return means


def eleven_points(true: np.ndarray[Any, Any], labels: int) -> float:
    """Mean over recalls 0, 0.1 … 1 of the best precision at this recall or a higher one.

    Args:
        true: (n,) whether a detection is true, by falling score.
        labels: their number, at least 1.
    """
    hits = true.cumsum()
    precision = hits / np.arange(1, len(true) + 1)
    # in whole numbers, as 3 of 10 must reach a recall of 0.3
    best = [precision[hits * (RECALLS - 1) >= k * labels].max(initial=0.0) for k in range(RECALLS)]
    return float(np.mean(best))


def _unknown(seen: Seen) -> np.ndarray[Any, Any]:
    """(n,) which detections of an image count only where they are right."""
    return np.zeros(len(seen.boxes), bool) if seen.unknown is None else seen.unknown


def _true(seen: Seen, threshold: float) -> np.ndarray[Any, Any]:
    """(n,) which detections of an image are true: on the label of their class that they overlap most, the first."""
    true = np.zeros(len(seen.boxes), bool)
    if not (len(seen.boxes) and len(seen.labels)):
        return true
    boxes, labels = torch.from_numpy(seen.boxes).double().T[None], torch.from_numpy(seen.labels).double()[None]
    overlaps = pair_iou(boxes, labels)[0].numpy() * (seen.label_classes[:, None] == seen.classes)  # (labels, boxes)
    best = np.where(overlaps.max(0) >= threshold, overlaps.argmax(0), -1)
    order = np.argsort(-seen.scores, kind="stable")
    taken, first = np.unique(best[order], return_index=True)
    true[order[first[taken >= 0]]] = True
    return true


def _xywh(corners: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Corners to left, top, width, height, in float64."""
    corners = corners.astype(np.float64)
    return np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)


def _silent(*_: Any) -> None:
    pass
