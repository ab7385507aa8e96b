"""The tables and verdicts, as a person would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rebalance.experiments.record import load
from rebalance.report.details import cost_table
from rebalance.report.page import layout
from rebalance.report.summary import Group, results
from rebalance.report.table import Table, as_text
from rebalance.report.tables import difference_table, drop_table, loss_table, settings_table

GOLDEN = """\
Objectness removal, protocol normal
removal pct   n    val mAP50  val mAP50-95   test mAP50  test mAP50-95  paper val  paper test
---------------------------------------------------------------------------------------------
0%           2   50.0 ± 0.0    12.5 ± 0.0   40.5 ± 6.4     10.1 ± 1.6       59.0        48.3
25%          2   50.3 ± 1.3    12.6 ± 0.3   40.8 ± 7.6     10.2 ± 1.9       58.8        48.3
75%          2   60.1 ± 1.3*   15.0 ± 0.3*  50.6 ± 7.6*    12.7 ± 1.9*      59.6*       49.8*
* best of the column
Points (0 to 100), mean ± 95 % interval over n seeds (Student t).
Evaluation: NMS at an IoU of 0.7, score from 0.001, at most 300 boxes an image (the host's default).
paper: YOLOv5 on DUSIA, Table 3: another data set, number of runs not stated."""
# The family is of three: 25 % and 75 % of objectness and 75 % of box removal, from one 0 % run. Differences on test of
# 0.1 and 0.102: t = 101, p = 0.0063, times 3 is 0.019; of 0.002 and 0.004: t = 3, p = 0.205, times 2 (box: t = -2).
DIFFERENCES = """\
Objectness removal, protocol normal: differences from the 0 % run
removal pct  pairs    val mAP50  val mAP50-95   test mAP50  test mAP50-95  corrected  p (Holm)  seeds needed
------------------------------------------------------------------------------------------------------------
25%              2   +0.3 ± 1.3    +0.1 ± 0.3   +0.3 ± 1.3     +0.1 ± 0.3      ± 2.5      0.41             5
75%              2  +10.1 ± 1.3    +2.5 ± 0.3  +10.1 ± 1.3     +2.5 ± 0.3      ± 3.8     0.019         holds
Differences from the 0 % run in points, paired by seed; ± 95 % intervals (Student t), each of one comparison. \
Judged by mAP50 on test, the primary metric.
p (Holm): of the paired t-test, corrected for the 3 comparisons with this baseline on these labels; corrected: the \
interval at the level of Holm's step, which leaves out 0 where p (Holm) is below 0.05. Seeds needed: with which it \
would leave out 0 in 80 % of repetitions, were mean and spread those seen here.
Evaluation: NMS at an IoU of 0.7, score from 0.001, at most 300 boxes an image (the host's default)."""


def series_of(folder: Path) -> list[Group]:
    return list(results(load(folder)).series)


def laid_out(table: Table, page: str) -> str:
    """The table as it stands in a page."""
    blocks: Any = layout(page.replace("report", "blocks"), Path()).module
    return str(blocks.table(table))


def test_text(series_sweep: Path) -> None:
    assert as_text(drop_table(series_of(series_sweep)[0], "protocol normal")) == GOLDEN


def test_differences_of_both_metrics_and_splits_with_the_corrected_interval(series_sweep: Path) -> None:
    table = difference_table(series_of(series_sweep)[0], "protocol normal")
    assert table is not None
    assert as_text(table) == DIFFERENCES


def test_markdown(series_sweep: Path) -> None:
    lines = (
        laid_out(drop_table(series_of(series_sweep)[1]), "report.md").partition("### Box removal\n\n")[2].splitlines()
    )
    levels = "val mAP50 | val mAP50-95 | test mAP50 | test mAP50-95"
    assert lines[0] == f"| removal pct | n | {levels} | paper val | paper test |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    zero = "**50.0 ± 0.0** | **12.5 ± 0.0** | **40.5 ± 6.4** | **10.1 ± 1.6**"
    assert lines[2] == f"| 0% | 2 | {zero} | **59.0** | **48.3** |"
    assert lines[3] == "| 75% | 2 | 48.0 ± 12.7 | 12.0 ± 3.2 | 38.5 ± 6.4 | 9.6 ± 1.6 | 57.5 | 47.5 |"


def test_html_escapes_and_aligns(series_sweep: Path) -> None:
    (series,) = series_of(series_sweep)[1:]
    text = laid_out(drop_table(series, "<b>"), "report.html")
    assert "&lt;b&gt;" in text
    assert '<td class="num"><b>59.0</b></td>' in text
    table = difference_table(series)
    assert table is not None
    # box 0.75: test 0.39 and 0.38, so -0.01 and -0.03 from the 0 % run
    assert '<td class="num">\u22122.0 ± 12.7</td>' in laid_out(table, "report.html")


def test_single_runs_have_no_interval(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, test=0.4), make_record("b", 0, test=0.3, obj_drop=0.9))
    (one,) = series_of(folder)
    text = as_text(drop_table(one))
    assert "±" not in text
    assert "single runs (n = 1), so no interval" in text
    assert [c.text for c in drop_table(one).rows[1]] == ["90%", "1", "30.0", "7.5", "-", "-"]  # the paper has no 90 %
    table = difference_table(one)
    assert table is not None
    assert table.head == ("removal pct", "pairs", "test mAP50", "test mAP50-95")
    assert [c.text for c in table.rows[0]] == ["90%", "1", "-10.0", "-2.5"]


def test_the_control_and_complete_labels_stand_beside_a_removal(partial_sweep: Any) -> None:
    (series,) = series_of(partial_sweep())
    levels, table = drop_table(series), difference_table(series)
    assert [row[0].text for row in levels.rows] == ["0%", "75%", "75% control", "0%, complete labels"]
    assert [row[-1].text for row in levels.rows] == ["48.3", "49.8", "-", "-"]
    assert [row[2].bold for row in levels.rows] == [False, True, False, False]  # complete labels are no contestant
    assert table is not None
    assert table.head[-2:] == ("vs control", "gap closed")
    # 10, 11 and 12 points of a gap of 20 each; 8 points above the control in each seed
    assert {row[0].text: [c.text for c in row[-2:]] for row in table.rows} == {
        "75%": ["+8.0 ± 0.0", "0.55 (0.43 to 0.67)"],
        "75% control": ["", "0.15 (0.03 to 0.27)"],
        "0%, complete labels": ["", ""],
    }


def test_what_removal_does_to_the_weights_is_told_where_it_is_recorded(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record("a", 0), make_record("b", 0, obj_drop=0.75)]
    runs[1]["loss_ran"] |= {"pull": 3.4, "push": 0.9}
    table = drop_table(series_of(make_sweep(*runs))[0])
    assert table.head[4:6] == ("pull", "push")
    assert [[c.text for c in row[4:6]] for row in table.rows] == [["", ""], ["×3.40", "×0.90"]]
    assert any(note.startswith("pull, push:") for note in table.notes)


@pytest.mark.parametrize(("draws", "told"), [((0, 0), True), ((0, 1), False)])
def test_one_draw_of_labels_for_all_seeds_is_told(
    make_sweep: Any, make_record: Any, draws: tuple[int, int], told: bool
) -> None:
    runs = [
        make_record(f"{loss}{s}", s, loss=loss, protocol="extreme", label_seed=draw)
        for loss in ("bce", "focal")
        for s, draw in enumerate(draws)
    ]
    (one,) = results(load(make_sweep(*runs))).compared
    assert len(one.rows) == 2  # the label seed is no setting
    notes = " ".join(loss_table(one, "").notes)
    assert ("All seeds share one draw of withheld labels (label seed 0)" in notes) == told


def test_the_evaluation_is_told_beside_every_table(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record(loss, 0, loss=loss, host={"model": "ssd_tiny"}) for loss in ("ohem", "focal")]
    for run in runs:
        run["evaluation"] = {"iou": 0.6, "conf": 0.01, "max_det": 200, "source": "the SSD study"}
    runs += [make_record(f"v8 {loss}", 0, loss=loss, host={"model": "yolov8n.yaml"}) for loss in ("bce", "focal")]
    found = results(load(make_sweep(*runs)))
    of_ssd = "NMS at an IoU of 0.6, score from 0.01, at most 200 boxes an image (the SSD study)"
    own = "NMS at an IoU of 0.7, score from 0.001, at most 300 boxes an image (the host's default)"
    for one, told in zip(found.compared, (of_ssd, own), strict=True):
        assert f"Evaluation: {told}." in loss_table(one, "").notes
        assert f"Evaluation: {told}." in difference_table(one).notes  # type: ignore[union-attr]
    both = settings_table(found.rows, "test")
    assert f"Evaluation: ssd_tiny: {of_ssd}; yolov8n.yaml: {own}." in both.notes
    assert "evaluation" not in both.head  # the model tells it


def test_runs_evaluated_in_two_ways_are_not_compared(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record(f"{loss}{s}", s, loss=loss) for s in (0, 1) for loss in ("bce", "focal")]
    runs[2]["evaluation"] = runs[3]["evaluation"] = {"iou": 0.5, "conf": 0.001, "max_det": 300, "source": "later"}
    found = results(load(make_sweep(*runs)))
    assert [row.change["mAP50"].n for row in found.rows if row.change] == [1, 1]
    assert "evaluation" in settings_table(found.rows, "test").head


def test_without_a_zero_run(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, obj_drop=0.1), make_record("b", 0, obj_drop=0.5))
    (one,) = series_of(folder)
    assert difference_table(one) is None


def test_without_a_test_split(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, test=None, val=0.4), make_record("b", 0, test=None, val=0.45, obj_drop=0.1))
    table = drop_table(series_of(folder)[0])
    assert table.head == ("removal pct", "n", "val mAP50", "val mAP50-95", "paper val", "paper test")
    assert [c.text for c in table.rows[1]] == ["10%", "1", "45.0", "11.2", "57.7", "48.6"]


def test_ties_are_all_bold_unless_all_tie(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record("a", 0, test=0.4), make_record("b", 0, test=0.40004, obj_drop=0.1)]
    (one,) = series_of(make_sweep(*runs, make_record("c", 0, test=0.39, obj_drop=0.75)))
    assert [row[2].bold for row in drop_table(one).rows] == [True, True, False]
    rows = results(load(make_sweep(*runs, name="tied"))).rows
    table = settings_table(rows, "test")
    assert not any(cell.bold for row in table.rows for cell in row)
    assert "best of the column" not in as_text(table)


def test_settings_and_cost_name_the_loss_and_its_own_flags(make_sweep: Any, make_record: Any) -> None:
    host = {"model": "retinanet_tiny"}
    folder = make_sweep(
        make_record("a", 0, host=host, head="stock", loss="focal", resobj_steps=2),
        make_record("b", 0, host=host, head="obj", loss="bce", resobj_steps=2),
        make_record("c", 0, host=host, head="resobj", loss="bce", resobj_steps=1),
    )
    found = results(load(folder))
    expected = [["stock", "focal", ""], ["obj", "obj", ""], ["resobj", "resobj", "1"]]
    for table in (settings_table(found.rows, "test"), cost_table(found.runs)):
        assert table.head[:3] == ("head", "loss", "resobj_steps")
        assert [[c.text for c in row[:3]] for row in table.rows] == expected


def test_losses_stand_beside_one_table_of_a_paper_each_which_is_named(make_sweep: Any, make_record: Any) -> None:
    host = {"model": "retinanet_tiny"}
    runs = [make_record(loss, 0, host=host, head="stock", loss=loss) for loss in ("focal", "brl", "soft")]
    (one,) = results(load(make_sweep(*runs))).compared
    table = loss_table(one, "")
    assert table.head[-3:] == ("paper mAP50", "paper mAP75", "paper's table")
    cells = {row[0].text: [c.text for c in row[-3:]] for row in table.rows}
    assert cells == {
        "focal": ["76.8", "53.0", "brl, Table 1"],
        "brl": ["75.3", "53.2", "brl, Table 4"],
        "soft": ["-", "-", "-"],
    }
    assert "residual" not in table.notes[-1]


def test_settings_table(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("full", 0, test=0.6),
        make_record("partial", 0, test=0.3, protocol="extreme"),
        make_record("method", 0, test=0.4, protocol="extreme", obj_drop=0.75),
    )
    table = settings_table(results(load(folder)).rows, "test")
    metrics = ("mAP50", "mAP75", "mAP50-95", "mAP50 vs 0 %", "mAP50-95 vs 0 %")
    assert table.head == ("obj_drop", "protocol", "n", *metrics, "gap closed")
    assert [c.text for c in table.rows[1]] == ["0.75", "extreme", "1", "40.0", "20.0", "10.0", "+10.0", "+2.5", "0.33"]
    assert [c.bold for c in table.rows[0]] == [False, False, False, True, True, True, False, False, False]
