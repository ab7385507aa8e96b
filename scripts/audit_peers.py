"""An audit beside the rules of other tools, on the same detections of a data set whose withheld boxes are known.

    python scripts/audit_peers.py <folder of the audit> [out=<file>.csv]

A row for each rule and length of its list: how many of the first k suggestions are right, and how many of the withheld
boxes they name.

    rebalance, probability   the list of the audit
    rebalance, score         the same suggestions, by the score of the detection alone
    cleanlab                 `compute_overlooked_box_scores`, with its own threshold (a score of 0.95), and without one;
                             left out where cleanlab is not installed
    FiftyOne                 the rule of its `possible_missing`, written again: a detection that no label of its class
                             overlaps by IoU ≥ 0.5, of a score ≥ 0.95
"""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.audit import table, truth
from rebalance.audit.explain import SAME
from rebalance.audit.findings import Look
from rebalance.audit.run import looks
from rebalance.audit.table import SUGGESTIONS, Suggestion
from rebalance.data.boxes import iou
from rebalance.errors import RebalanceError
from rebalance.files import write_whole

SURE = 0.95  # the threshold of both other tools


def suggestion(one: Look, detection: int, names: Any) -> Suggestion:
    """A detection as a suggestion."""
    number = int(one.found.classes[detection])
    x1, y1, x2, y2 = one.found.boxes[detection].tolist()
    score = float(one.found.scores[detection])
    return Suggestion(one.image.name, "missing", number, names[number], (x1, y1, x2, y2), score)


def fiftyone(seen: Sequence[Look], names: Any) -> list[Suggestion]:
    """By falling score."""
    rows = []
    for one in seen:
        overlap = iou(one.found.boxes[:, None], one.boxes)
        same = one.found.classes[:, None] == one.image.labels.classes
        alone = (np.where(same, overlap, 0).max(1, initial=0) < SAME) & (one.found.scores >= SURE)
        rows += [suggestion(one, i, names) for i in np.flatnonzero(alone).tolist()]
    return sorted(rows, key=lambda row: -row.score)


def cleanlab(seen: Sequence[Look], names: Any, threshold: float) -> list[Suggestion]:
    """Detections by how likely cleanlab finds them overlooked."""
    from cleanlab.object_detection.rank import compute_overlooked_box_scores

    some = [one for one in seen if len(one.found.scores)]
    labels = [{"bboxes": one.boxes, "labels": one.image.labels.classes, "image_name": one.image.name} for one in some]
    predictions, order = [], []
    for one in some:
        rows = np.concatenate([one.found.boxes, one.found.scores[:, None]], 1)
        by_class = [np.flatnonzero(one.found.classes == number) for number in names]
        made = np.empty(len(names), object)
        made[:] = [rows[index] for index in by_class]
        predictions.append(made)
        order.append(np.concatenate(by_class))
    scores = compute_overlooked_box_scores(labels=labels, predictions=predictions, high_probability_threshold=threshold)
    found = [
        (float(value), suggestion(one, int(i), names))
        for one, index, values in zip(some, order, scores, strict=True)
        for i, value in zip(index, values, strict=True)
        if value == value  # NaN: not considered
    ]
    return [row for _, row in sorted(found, key=lambda pair: (pair[0], -pair[1].score))]


def main(argv: list[str]) -> int:
    """See above."""
    folders = [Path(arg) for arg in argv if "=" not in arg]
    given = dict(arg.split("=", 1) for arg in argv if "=" in arg)
    if len(folders) != 1 or {*given} - {"out"}:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        source, seen = looks(folders[0])
        rows = [row for row in table.read(folders[0] / SUGGESTIONS) if row.kind == "missing"]
    except RebalanceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missing = truth.withheld(source, seen)
    total = sum(len(one.classes) for one in missing.values())
    if not total:
        print(f"error: {source.file}: no withheld boxes, so that nothing is known", file=sys.stderr)
        return 2
    lists = {"rebalance, probability": rows, "rebalance, score": sorted(rows, key=lambda row: -row.score)}
    if importlib.util.find_spec("cleanlab"):
        lists[f"cleanlab, score from {SURE}"] = cleanlab(seen, source.names, SURE)
        lists["cleanlab, all scores"] = cleanlab(seen, source.names, 0.0)
    lists[f"FiftyOne's rule, score from {SURE}"] = fiftyone(seen, source.names)
    text = io.StringIO()
    writer = csv.DictWriter(text, ("rule", "k", "right", "precision", "recall"), lineterminator="\n")
    writer.writeheader()
    for name, found in lists.items():
        hits = np.cumsum(truth.right(found, missing)[0])
        for k in [k for k in truth.STEPS if 10 <= k < len(found)] + [len(found)]:
            good = int(hits[k - 1]) if k else 0
            shares = {"precision": round(good / k, 4) if k else "", "recall": round(good / total, 4)}
            writer.writerow({"rule": name, "k": k, "right": good, **shares})
    if given.get("out"):
        write_whole(Path(given["out"]), text.getvalue().encode())
    print(text.getvalue(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
