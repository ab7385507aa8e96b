"""The packaged numbers are those of the papers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from rebalance.report import papers

# Haque and McEver, Tables 2 and 3: removal -> (val mAP, test mAP) in points
TABLE_2 = {0: (59.0, 48.3), 0.1: (57.1, 48.2), 0.25: (58.1, 49.0), 0.75: (57.5, 47.5), 0.9: (58.1, 47.8)}
TABLE_3 = {0: (59.0, 48.3), 0.1: (57.7, 48.6), 0.25: (58.8, 48.3), 0.75: (59.6, 49.8)}


@pytest.mark.parametrize(("axis", "table", "points"), [("box_drop", "2", TABLE_2), ("obj_drop", "3", TABLE_3)])
def test_removal_tables(axis: str, table: str, points: dict[float, tuple[float, float]]) -> None:
    published = papers.removal(axis)
    assert published.table == table
    assert published.title.startswith("Box Prediction Rebalancing for Training Single-Stage Object Detectors")
    assert (published.model, published.data) == ("yolov5", "dusia")
    for i, split in enumerate(("val", "test")):
        assert published.curve(split) == [(r, pytest.approx(p[i] / 100)) for r, p in points.items()]
    assert len(published.values) == 2 * len(points)


def test_table_1() -> None:
    found = {(n.model, n.split): n.value for n in papers.numbers() if n.table == "1"}
    assert found == {
        ("fasterrcnn", "val"): 0.49,
        ("fasterrcnn", "test"): 0.391,
        ("yolov5", "val"): 0.59,
        ("yolov5", "test"): 0.483,
    }


def test_every_number_is_a_fraction_with_a_source() -> None:
    for number in papers.numbers():
        assert 0 < number.value < 1
        assert number.title
        assert number.table


def test_same_as_the_collected_results() -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "papers" / "reported_results.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [
        r for r in csv.DictReader(path.read_text("utf-8").splitlines()) if r["paper"] == "box-prediction-rebalancing"
    ]
    theirs = {(r["table"], r["detector"], r["setting"], r["test_set"].split("-")[1], float(r["value"])) for r in rows}
    ours = {
        (n.table, n.model, " ".join("=".join(f) for f in n.flags), n.split, n.value)
        for n in papers.numbers()
        if n.paper == "rebalancing"
    }
    assert ours == theirs
