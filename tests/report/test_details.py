"""The folded tables: classes, cost, and other ways to count the same detections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rebalance.experiments.record import load
from rebalance.report.build import report
from rebalance.report.details import class_table, cost_table, diagnosis_table, host_table, precision_table
from rebalance.report.figures import diagnosis
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


def diagnosed(make_record: Any, name: str, seed: int, gradient: list[float], **flags: Any) -> dict[str, Any]:
    content = make_record(name, seed, protocol="percent", rate=0.5, diagnose=True, **flags)
    told: dict[str, Any] = {"rate": 0.02, "score": 0.3, "background": 0.01, "loss": 0.2, "candidates": 50}
    kind = {"brl": "recalibrated", "bce": ""}[flags["loss"]]
    content["epochs"] = [
        {"epoch": i, "diagnose/gradient": value, **{f"diagnose/{k}": v for k, v in told.items()},
         **({f"diagnose/{kind}_precision": None if i == 1 else 0.6, f"diagnose/{kind}_recall": 0.25} if kind else {})}
        for i, value in enumerate(gradient, 1)
    ]  # fmt: skip
    return content


def test_a_share_far_below_a_point_keeps_two_digits(make_sweep: Any, make_record: Any) -> None:
    runs = [diagnosed(make_record, "bce", 0, [0.1, 0.00359324], loss="bce")]
    runs.append(diagnosed(make_record, "brl", 0, [0.1, 0.0214], loss="brl"))
    table = diagnosis_table(results(load(make_sweep(*runs, asked={"loss": ["bce", "brl"]}))).runs)
    assert table is not None
    push = table.head.index("push at withheld")
    assert [row[push].text for row in table.rows] == ["0.36", "2.14"]


def test_what_losses_do_to_withheld_objects(make_sweep: Any, make_record: Any) -> None:
    runs = [diagnosed(make_record, f"bce{s}", s, [0.3, 0.2 + s / 10], loss="bce") for s in (0, 1)]
    runs += [diagnosed(make_record, f"brl{s}", s, [0.3, 0.05], loss="brl") for s in (0, 1)]
    runs.append(make_record("complete", 0, loss="bce"))
    folder = make_sweep(*runs, asked={"loss": ["bce", "brl"], "diagnose": [True]})
    found = results(load(folder))
    record = next(r for r in found.sweep.records if r.run == "brl0")
    assert record.diagnostics["gradient"] == {1: 0.3, 2: 0.05}
    assert record.diagnostics["recalibrated_precision"] == {2: 0.6}  # nothing was recalibrated in the first epoch
    assert next(r for r in found.sweep.records if r.run == "complete").diagnostics == {}
    assert not any("diagnose" in setting.values for setting in found.runs)  # it is no setting
    table = diagnosis_table(found.runs)
    assert table is not None
    rows = {row[0].text: dict(zip(table.head, (c.text for c in row), strict=True)) for row in table.rows}
    assert rows["bce"]["push at withheld"].startswith("25.0 ± ")
    assert rows["brl"]["push at withheld"] == "5.0 ± 0.0"
    assert rows["brl"]["of negatives"] == "2.0 ± 0.0"
    assert (rows["brl"]["recalibrated precision"], rows["bce"]["recalibrated precision"]) == ("60.0 ± 0.0", "")
    figure, caption = diagnosis.draw(found)  # type: ignore[misc]
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["push, %", "precision, %", "recall, %", "score, %"]
    push, blind = figure.axes[0].lines[:2]
    assert [round(float(y), 6) for y in push.get_ydata()] == [30, 25]  # the mean over seeds, in points
    assert [float(y) for y in blind.get_ydata()] == [2, 2]
    assert "Precision: of the negatives that are recalibrated (recalibrated: dashed), how many are at one" in caption
    text = report(folder).with_suffix(".md").read_text("utf-8")
    assert "## Withheld objects" in text
    assert (folder / "plots/diagnosis.png").exists()
    assert "recalibrated precision" in text


def test_without_a_diagnosis_the_report_says_nothing_of_it(series_sweep: Path) -> None:
    found = results(load(series_sweep))
    assert diagnosis.draw(found) is None
    assert diagnosis_table(found.runs) is None
