"""The tables and verdicts, as a person would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rebalance.experiments.record import load
from rebalance.report.page import layouts
from rebalance.report.summary import Group, results
from rebalance.report.tables import (
    Table,
    as_text,
    class_table,
    cost_table,
    drop_table,
    loss_table,
    points_of,
    settings_table,
    verdict,
)

GOLDEN = """\
Objectness removal, protocol normal
removal pct   n    val mAP50   test mAP50   test vs 0 %  paper val  paper test
------------------------------------------------------------------------------
0%           2   50.0 ± 0.0   40.5 ± 6.4                     59.0        48.3
25%          2   50.3 ± 1.3   40.8 ± 7.6    +0.3 ± 1.3       58.8        48.3
75%          2   60.1 ± 1.3*  50.6 ± 7.6*  +10.1 ± 1.3       59.6*       49.8*
* best of the column
mAP50 in points (0 to 100), mean ± 95 % interval over n seeds (Student t); vs 0 %: paired by seed.
paper: YOLOv5 on DUSIA, Table 3: another data set, number of runs not stated."""


def series_of(folder: Path) -> list[Group]:
    return list(results(load(folder)).series)


def laid_out(table: Table, page: str) -> str:
    """The table as it stands in a page."""
    blocks: Any = layouts(page, Path()).get_template(page.replace("report", "blocks")).module
    return str(blocks.table(table))


def test_text(series_sweep: Path) -> None:
    assert as_text(drop_table(series_of(series_sweep)[0], "protocol normal")) == GOLDEN


def test_markdown(series_sweep: Path) -> None:
    lines = (
        laid_out(drop_table(series_of(series_sweep)[1]), "report.md").partition("### Box removal\n\n")[2].splitlines()
    )
    assert lines[0] == "| removal pct | n | val mAP50 | test mAP50 | test vs 0 % | paper val | paper test |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| 0% | 2 | **50.0 ± 0.0** | **40.5 ± 6.4** |  | **59.0** | **48.3** |"
    # box 0.75: test 0.39 and 0.38, so -0.01 and -0.03 from the 0 % run
    assert lines[3] == "| 75% | 2 | 48.0 ± 12.7 | 38.5 ± 6.4 | -2.0 ± 12.7 | 57.5 | 47.5 |"


def test_html_escapes_and_aligns(series_sweep: Path) -> None:
    text = laid_out(drop_table(series_of(series_sweep)[1], "<b>"), "report.html")
    assert "&lt;b&gt;" in text
    assert '<td class="num">\u22122.0 ± 12.7</td>' in text
    assert '<td class="num"><b>59.0</b></td>' in text


def test_verdicts(series_sweep: Path) -> None:
    objectness, box = series_of(series_sweep)
    assert verdict(objectness) == (
        "obj_drop=0.75: +10.1 ± 1.3 points on test, n = 2; the other does not differ from 0 % beyond its interval."
    )
    assert verdict(box) == "No setting differs from 0 % beyond its 95 % interval on test (n = 2)."


def test_single_runs_are_called_so(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, test=0.4), make_record("b", 0, test=0.3, obj_drop=0.9))
    (one,) = series_of(folder)
    assert verdict(one) == (
        "Single runs, no interval: differences are not evidence "
        "(the largest: obj_drop=0.9, -10.0 points on test, n = 1)."
    )
    text = as_text(drop_table(one))
    assert "±" not in text
    assert "single runs (n = 1), so no interval" in text
    assert [c.text for c in drop_table(one).rows[1]] == ["90%", "1", "30.0", "-10.0", "-", "-"]  # the paper has no 90 %


def test_without_a_zero_run(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, obj_drop=0.1), make_record("b", 0, obj_drop=0.5))
    (one,) = series_of(folder)
    assert verdict(one) == "There is no 0 % run with the same seed on test to compare with."


def test_without_a_test_split(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, test=None, val=0.4), make_record("b", 0, test=None, val=0.45, obj_drop=0.1))
    table = drop_table(series_of(folder)[0])
    assert table.head == ("removal pct", "n", "val mAP50", "val vs 0 %", "paper val", "paper test")
    assert [c.text for c in table.rows[1]] == ["10%", "1", "45.0", "+5.0", "57.7", "48.6"]


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
    assert table.head == ("obj_drop", "protocol", "n", "mAP50", "mAP75", "mAP50-95", "mAP50 vs 0 %", "gap closed")
    assert [c.text for c in table.rows[1]] == ["0.75", "extreme", "1", "40.0", "20.0", "10.0", "+10.0", "0.33"]
    assert [c.bold for c in table.rows[0]] == [False, False, False, True, True, True, False, False]


def test_class_and_cost_tables(series_sweep: Path) -> None:
    found = results(load(series_sweep))
    table = class_table(found.series[0])
    assert table is not None
    assert table.head == ("class", "0%", "25%", "75%")
    assert [c.text for c in table.rows[1]] == ["lobster", "20.2", "20.4", "25.3"]
    assert [c.text for c in cost_table(found.runs).rows[0]] == ["0", "0", "10", "20.0", "1.0", "500"]


@pytest.mark.parametrize(("value", "text"), [(0.4837, "48.4"), (-0.0001, "0.0"), (1.0, "100.0"), (-0.012, "-1.2")])
def test_points(value: float, text: str) -> None:
    assert points_of(value) == text
