"""The folded tables: classes, cost, and other ways to count the same detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rebalance.experiments.record import load
from rebalance.report.details import class_table, cost_table, host_table, precision_table
from rebalance.report.summary import results


def test_class_and_cost_tables(series_sweep: Path) -> None:
    found = results(load(series_sweep))
    table = class_table(found.series[0])
    assert table is not None
    assert table.head == ("class", "0%", "25%", "75%")
    assert [c.text for c in table.rows[1]] == ["lobster", "20.2", "20.4", "25.3"]
    assert [c.text for c in cost_table(found.runs).rows[0]] == ["0", "0", "10", "20.0", "1.0", "500"]


def test_two_classes_of_one_name_both_stay(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record("a", 0), make_record("b", 0, obj_drop=0.5)]
    for run in runs:
        run["metrics"]["test"]["per_class"] = {
            "0: fish": {"mAP50": 0.1}, "1: crab": {"mAP50": 0.2}, "2: fish": {"mAP50": 0.3}
        }  # fmt: skip
    (series,) = results(load(make_sweep(*runs))).series
    table = class_table(series)
    assert table is not None
    shown = [[row[0].text, row[1].text] for row in table.rows]
    assert shown == [["0: fish", "10.0"], ["crab", "20.0"], ["2: fish", "30.0"]]


def test_the_hosts_own_evaluation_stands_beside_ours(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record(f"{loss}{s}", s, loss=loss, test=0.4) for loss in ("bce", "focal") for s in (0, 1)]
    for run in runs:
        run["host_metrics"] = {"test": {"mAP50": 0.3, "mAP75": 0.2, "mAP50-95": 0.1}}
        run["evaluation"] = {"iou": 0.5, "conf": 0.05, "max_det": 100, "source": "mine"}
    rows = results(load(make_sweep(*runs))).rows
    table = host_table(rows, "test")
    assert table is not None
    assert table.head[:3] == ("loss", "mAP50", "mAP50, host's")
    assert [c.text for c in table.rows[0][:3]] == ["bce", "40.0 ± 0.0", "30.0 ± 0.0"]
    assert "Host's: the same detectors at iou 0.7, conf 0.001, max_det 300" in table.notes[0]
    assert "NMS at an IoU of 0.5, score from 0.05, at most 100 boxes an image (mine)" in table.notes[1]
    assert host_table(rows, "val") is None


def test_cocos_and_vocs_precision_where_it_was_recorded(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record("a", 0), make_record("b", 0, obj_drop=0.5)]
    assert precision_table(results(load(make_sweep(*runs, name="older"))).rows, "test") is None
    runs[0]["metrics"]["test"] |= {"coco": {"AP": 0.25, "AP_small": 0.1}, "voc": {"mAP50": 0.5}}
    table = precision_table(results(load(make_sweep(*runs))).rows, "test")
    assert table is not None
    assert table.head == ("obj_drop", "COCO AP", "COCO AP_S", "VOC mAP50")
    assert [[c.text for c in row] for row in table.rows] == [["0", "25.0", "10.0", "50.0"], ["0.5", "", "", ""]]


def test_cost_has_the_frames_a_second_where_they_were_timed(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record("a", 0), make_record("b", 0, obj_drop=0.5)]
    assert "FPS" not in cost_table(results(load(make_sweep(*runs, name="older"))).runs).head
    runs[0]["timings"]["fps"] = 31.44
    table = cost_table(results(load(make_sweep(*runs))).runs)
    assert [row[-1].text for row in table.rows] == ["31.4", ""]
