"""How good an audit is, where it is known which labels are missing: on a data set that `rebalance sparsify` made.

A suggestion is right where a withheld box of its class overlaps it by IoU ≥ 0.5 that no suggestion before it was right
about. Withheld boxes in a place that the audit passes over, as labels are said to be unknown there, do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebalance.audit.explain import SAME, Boxes
from rebalance.audit.findings import Findings, Look
from rebalance.audit.table import Suggestion
from rebalance.data import regions
from rebalance.data.boxes import iou
from rebalance.data.dataset import DataSet

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # area in pixels, as COCO has them
OVERLAPS = {"alone": (0, 1e-9), "touching": (1e-9, 0.3), "crowded": (0.3, np.inf)}  # largest IoU with another object
STEPS = tuple(k * 10**power for power in range(6) for k in (1, 2, 5))
SURE = 0.5  # probability of a suggestion that recall by size and overlap counts
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
BINS = 10


@dataclass(frozen=True)
class Withheld:
    """What is missing in one image."""

    boxes: Boxes  # (n, 4) in pixels
    classes: NDArray[np.int64]  # (n,)
    overlap: NDArray[np.float64]  # (n,) largest IoU with another object of the image, labelled or not


def withheld(source: DataSet, looks: Sequence[Look]) -> dict[str, Withheld]:
    """By the name of the image what is missing in it."""
    found = {}
    for one in looks:
        lost = source.withheld(one.image.path)
        boxes = lost.boxes_xyxy(*one.size)
        overlap = iou(boxes[:, None], np.concatenate([boxes, one.boxes]))
        overlap[np.arange(len(boxes)), np.arange(len(boxes))] = 0
        told = regions.told(one.image.known, lost.classes, lost.boxes_xywh_norm)
        asked = ~told.unknown
        found[one.image.name] = Withheld(boxes[asked], lost.classes[asked], overlap.max(1, initial=0)[asked])
    return found


def right(
    rows: Sequence[Suggestion], missing: dict[str, Withheld]
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
    """Which suggestions are right, in their order, and for each withheld box the place of the one that is, or -1."""
    found: dict[str, NDArray[np.int64]] = {name: np.full(len(boxes.classes), -1) for name, boxes in missing.items()}
    good: NDArray[np.bool_] = np.zeros(len(rows), np.bool_)
    for place, row in enumerate(rows):
        lost, taken = missing.get(row.image), found.get(row.image)
        if lost is None or taken is None or not len(taken):
            continue
        overlap = iou(np.array(row.box), lost.boxes)
        overlap[(lost.classes != row.number) | (taken >= 0)] = 0
        if overlap.max() >= SAME:
            taken[overlap.argmax()], good[place] = place, True
    return good, found


def truth(source: DataSet, looks: Sequence[Look], found: Findings) -> dict[str, Any]:
    """Score an audit; the suggestions are those that a label is missing.

    Returns:
        withheld, found: boxes, and how many of them a suggestion is right about; classes: {id, name, withheld, missing,
        low, high, error}, the estimate with those that no model finds, the error relative; orders: by what the list is
        sorted to rows of {k, precision, recall}; levels: rows of {probability, suggestions, precision, recall};
        reliability: rows of {low, high, suggestions, said, right}; sizes and overlaps: rows of {name, withheld, found,
        sure}, of which sure have probability ≥ 0.5.
    """
    missing = withheld(source, looks)
    rows = [row for row in found.suggestions if row.kind == "missing"]
    good, by_box = right(rows, missing)
    count = sum(len(one.classes) for one in missing.values())
    chance = np.array([np.nan if row.probability is None else row.probability for row in rows])
    by_class = np.bincount(
        np.concatenate([np.empty(0, np.int64), *(one.classes for one in missing.values())]), minlength=len(source.names)
    )
    by_score = sorted(rows, key=lambda row: -row.score)
    places = np.concatenate([np.empty(0, np.int64), *by_box.values()])
    area = np.concatenate([np.empty(0), *((one.boxes[:, 2:] - one.boxes[:, :2]).prod(1) for one in missing.values())])
    crowd = np.concatenate([np.empty(0), *(one.overlap for one in missing.values())])
    return {
        "withheld": count,
        "found": int(good.sum()),
        "classes": [_class(source, found, number, int(by_class[number])) for number in source.names],
        "orders": {
            "probability": _order(np.cumsum(good), count),
            "score": _order(np.cumsum(right(by_score, missing)[0]), count),
            "random": _order(np.arange(1, len(rows) + 1) * good.mean() if len(rows) else good, count),
        },
        "levels": [_level(chance >= level, level, good, count) for level in LEVELS],
        "reliability": _reliability(chance, good),
        "sizes": _shares(SIZES, area, places, chance),
        "overlaps": _shares(OVERLAPS, crowd, places, chance),
    }


def summary(told: Mapping[str, Any]) -> str:
    """A line for the user."""
    by = told["orders"]["probability"]
    first = next((row for row in reversed(by) if row["k"] <= max(told["withheld"], 1)), None)
    part = f"; of the first {first['k']} suggestions {first['precision']:.0%} are right" if first else ""
    return f"withheld from this data set: {told['withheld']} boxes; suggestions name {told['found']} of them{part}"


def tables(told: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    parts = {
        "The list, from its top": [
            {"sorted by": name, **row} for name, rows in told["orders"].items() for row in rows if row["k"] >= 10
        ],
        "At each probability": told["levels"],
        "How far the probability can be believed": told["reliability"],
        "How many labels are missing": told["classes"],
        "By size (COCO's)": told["sizes"],
        "By the largest IoU with another object": told["overlaps"],
    }
    text = ["# The audit against the truth", "", summary(told) + ".", "", "![plots](truth.png)"]
    for title, rows in parts.items():
        if not rows:
            continue
        columns = list(rows[0])
        text += ["", f"## {title}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        text += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(text) + "\n"


def _cell(value: Any) -> str:
    shown = "" if value is None else f"{value:.3g}" if isinstance(value, float) and value < 1000 else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")


def _class(source: DataSet, found: Findings, number: int, count: int) -> dict[str, Any]:
    made = found.classes[number].estimate
    about = {} if not made else {
        key: round(value, 2)
        for key, value in zip(("missing", "low", "high"), (made.beyond, *made.span_beyond), strict=True)
    }  # fmt: skip
    error = round(made.beyond / count - 1, 4) if made and count else None
    return {"id": number, "name": source.names[number], "withheld": count, **about, "error": error}


def _order(hits: NDArray[Any], count: int) -> list[dict[str, Any]]:
    """Precision and recall of the first k, by how many of them are right."""
    steps = [k for k in STEPS if k < len(hits)] + [len(hits)] * bool(len(hits))
    return [
        {"k": k, "precision": round(float(hits[k - 1]) / k, 4), "recall": _share(float(hits[k - 1]), count)}
        for k in steps
    ]


def _level(chosen: NDArray[np.bool_], level: float, good: NDArray[np.bool_], count: int) -> dict[str, Any]:
    some, hits = int(chosen.sum()), int(good[chosen].sum())
    return {"probability": level, "suggestions": some, "precision": _share(hits, some), "recall": _share(hits, count)}


def _reliability(chance: NDArray[np.float64], good: NDArray[np.bool_]) -> list[dict[str, Any]]:
    rows = []
    for i in range(BINS):
        low, high = i / BINS, (i + 1) / BINS
        some = (chance >= low) & ((chance < high) | ((i == BINS - 1) & (chance <= 1)))
        if some.any():
            told, hits = round(float(chance[some].mean()), 4), round(float(good[some].mean()), 4)
            rows.append({"low": low, "high": high, "suggestions": int(some.sum()), "said": told, "right": hits})
    return rows


def _shares(
    ranges: Mapping[str, tuple[float, float]],
    value: NDArray[np.float64],
    places: NDArray[np.int64],
    chance: NDArray[Any],
) -> list[dict[str, Any]]:
    sure = np.zeros(len(places), np.bool_)
    sure[places >= 0] = chance[places[places >= 0]] >= SURE
    rows = []
    for name, (low, high) in ranges.items():
        some = (value >= low) & (value < high)
        count, found, certain = int(some.sum()), int((places[some] >= 0).sum()), int(sure[some].sum())
        rows.append({"name": name, "withheld": count, "found": found, "sure": certain})
    return rows


def _share(part: float, of: float) -> float | None:
    return round(part / of, 4) if of else None
