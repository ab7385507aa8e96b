"""Audits scored by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rebalance.audit import truth
from rebalance.audit.table import Suggestion
from rebalance.audit.truth import Withheld, right


def row(box: tuple[float, float, float, float], kind: int = 0, score: float = 0.5, image: str = "a.jpg") -> Suggestion:
    return Suggestion(image, "missing", kind, "x", box, score, score)


def lost(*boxes: tuple[float, ...], kinds: tuple[int, ...] | None = None) -> Withheld:
    kinds = kinds or (0,) * len(boxes)
    return Withheld(np.array(boxes, float), np.array(kinds, np.int64), np.zeros(len(boxes)))


def test_each_withheld_box_is_found_once_by_its_class_from_half_an_overlap_on() -> None:
    missing = {"a.jpg": lost((0, 0, 10, 10), (0, 0, 10, 12), kinds=(0, 1))}
    rows = [
        row((0, 0, 10, 5)),  # IoU 0.5 with the first
        row((0, 0, 10, 10)),  # which is taken
        row((0, 0, 10, 10), kind=2),
        row((0, 0, 10, 5.9), kind=1),  # IoU 0.49
        row((0, 0, 10, 12), kind=1),
        row((0, 0, 10, 10), image="b.jpg"),
    ]
    good, found = right(rows, missing)
    assert good.tolist() == [True, False, False, False, True, False]
    assert found["a.jpg"].tolist() == [0, 4]


def test_precision_recall_and_reliability_by_hand() -> None:
    good = np.array([True, True, False, True])
    rows = truth._order(np.cumsum(good), 6)
    assert [(r["k"], r["precision"], r["recall"]) for r in rows] == [
        (1, 1, pytest.approx(1 / 6, abs=1e-4)),
        (2, 1, pytest.approx(2 / 6, abs=1e-4)),
        (4, 0.75, 0.5),
    ]
    level = truth._level(np.array([1, 1, 1, 0], bool), 0.3, good, 6)
    assert level == {"probability": 0.3, "suggestions": 3, "precision": 0.6667, "recall": 0.3333}
    bins = truth._reliability(np.array([1.0, 0.95, 0.15, np.nan]), good)
    assert bins == [
        {"low": 0.1, "high": 0.2, "suggestions": 1, "said": 0.15, "right": 0.0},
        {"low": 0.9, "high": 1.0, "suggestions": 2, "said": 0.975, "right": 1.0},
    ]


def test_tables_hold_hostile_names() -> None:
    told = {
        "withheld": 1, "found": 1, "classes": [{"id": 0, "name": "a|b\nc", "withheld": 1, "error": None}],
        "orders": {"probability": []}, "levels": [], "reliability": [], "sizes": [], "overlaps": [],
    }  # fmt: skip
    assert "| 0 | a\\|b c | 1 |  |" in truth.tables(told)
