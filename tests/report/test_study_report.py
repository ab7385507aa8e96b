"""Reports of a paper's table or figure: the grid that a study asks for, with records made up for its runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rebalance.experiments import papers as studies
from rebalance.experiments.grid import Run, read_grids
from rebalance.experiments.record import load, write_json
from rebalance.report.build import report, terminal_table
from rebalance.report.figures import against
from rebalance.report.page import command
from rebalance.report.summary import Row, results
from rebalance.report.tables import difference_table, rate_lines, rate_table, study_numbers, study_table

Make = Callable[..., Path]


@pytest.fixture
def make_study(make_sweep: Make, make_record: Any) -> Make:
    """A function that writes a study's folder with `score(run)` as the mAP50 on test of each run."""

    def make(key: str, score: Callable[[Run], float], by_iou: bool = True, **given: str) -> Path:
        study, args = studies.find(key), {"data": "d.yaml", **given}
        grid = read_grids(studies.arguments(study, args))
        records = []
        for run in grid.runs:
            host = {"model": run.host["model"]}
            train = {name: run.train[name] for name in run.given}
            protocol, rate = run.labels.protocol, run.labels.rate
            reached = {"easy": 0.2, "hard": 0.4, "extreme": 0.7}.get(protocol, rate)
            train = {"head": "stock", "loss": "bce", **train}
            labels = {"protocol": protocol, "rate": reached, "noise": dict(run.labels.noise)}
            one = make_record(run.id, run.seed, test=score(run), host=host, **labels, **train)
            if by_iou:
                one["metrics"]["test"]["mAP_by_iou"] = {"0.50": score(run), "0.75": score(run) / 2}
            one["loss_ran"] |= {"head": train["head"], "loss": train["loss"]}
            records.append(one)
        folder = make_sweep(*records, name=key)
        plan = {"schema": 1, "asked": grid.asked, "runs": [run.id for run in grid.runs]}
        write_json(folder / "sweep.json", {**plan, "study": studies.about(study, args)})
        return folder

    return make


def by_labels(scores: Mapping[str, Mapping[str, float]]) -> Callable[[Run], float]:
    """mAP50 by loss and protocol, a hundredth more for each seed."""
    return lambda run: scores[run.train["loss"]][run.labels.protocol] + run.seed / 100


TABLE_4 = {
    "focal": {"normal": 0.6, "easy": 0.5, "hard": 0.4, "extreme": 0.3, "per_class": 0.4},
    "ghm": {"normal": 0.6, "easy": 0.5, "hard": 0.4, "extreme": 0.27},
    "brl": {"normal": 0.58, "easy": 0.55, "hard": 0.5, "extreme": 0.42, "per_class": 0.45},
    "ohem": {"normal": 0.7, "easy": 0.6, "hard": 0.5, "extreme": 0.4},
}


def rows_of(folder: Path) -> list[Row]:
    return list(results(load(folder)).rows)


def test_table_4_has_the_papers_numbers_differences_and_gap_closed(make_study: Make) -> None:
    sweep = load(make_study("brl.table4", by_labels(TABLE_4), seeds="0,1"))
    table = study_table(results(sweep).rows, "brl, Table 4", study_numbers(sweep))
    assert table is not None
    assert table.head == (
        *("model", "loss", "labels", "n", "mAP50", "paper mAP50", "mAP75", "paper mAP75", "mAP50-95"),
        *("paper mAP50-95", "mAP50 vs baseline", "mAP50-95 vs baseline", "p (Holm)", "gap closed", "paper's table"),
    )
    cells = {tuple(c.text for c in row[:3]): [c.text for c in row[3:]] for row in table.rows}
    assert len(cells) == 18
    # 0.42 and 0.43 of the seeds; 12 points above focal, which lost 30: 0.12 / 0.30
    assert cells["retinanet_tiny", "brl", "extreme"] == [
        *("2", "42.5 ± 6.4", "66.2", "21.2 ± 3.2", "43.1", "10.6 ± 1.6", "-", "+12.0 ± 0.0", "+3.0 ± 0.0", "< 0.001"),
        *("0.40 (0.40 to 0.40)", "brl, Table 4"),
    ]
    assert cells["retinanet_tiny", "focal", "extreme"][2] == "59.8"  # its Table 1
    assert cells["retinanet_tiny", "focal", "extreme"][-5:] == ["", "", "", "", "brl, Table 1"]
    # nothing is missing there
    assert cells["retinanet_tiny", "brl", "normal"][-5:-1] == ["-2.0 ± 0.0", "-0.5 ± 0.0", "< 0.001", ""]
    assert cells["retinanet_tiny", "ghm", "extreme"][-2] == "-0.10 (-0.10 to -0.10)"
    assert cells["retinanet_tiny", "brl", "per_class 0.5"][2:7] == ["50.8", "22.8 ± 3.2", "35.3", "11.4 ± 1.6", "32.7"]
    assert cells["fasterrcnn_tiny", "ohem", "hard"][2] == "71.7"
    assert cells["fasterrcnn_tiny", "ohem", "hard"][-5:-1] == [""] * 4  # no focal loss on Faster R-CNN
    notes = " ".join(table.notes)
    assert "Baseline: loss=focal with the same model and labels." in notes
    assert "brl, Table 4: fasterrcnn-r101 on voc0712, voc2007-test" in notes
    assert "Other data, another detector and schedule" in notes


def test_what_only_some_papers_report_stands_in_their_tables_where_it_was_recorded(make_study: Make) -> None:
    """COCO's sizes and frames a second of Residual Objectness, VOC's own precision of BRL."""
    extra = {"coco": {"AP": 0.3, "AP_small": 0.1, "AP_medium": 0.2}, "voc": {"mAP50": 0.33}}
    first: dict[str, dict[str, str]] = {}  # the first row of each table
    for key in ("resobj.table3", "resobj.table2c", "brl.table1"):
        folder = make_study(key, lambda run: 0.4)
        for file in (folder / "runs").glob("*/record.json"):
            content = json.loads(file.read_text("utf-8"))
            content["metrics"]["test"] |= extra
            content["timings"]["fps"] = 12.34
            file.write_text(json.dumps(content), "utf-8")
        sweep = load(folder)
        table = study_table(results(sweep).rows, "", study_numbers(sweep))
        assert table is not None
        first[key] = dict(zip(table.head, (cell.text for cell in table.rows[0]), strict=True))
    sizes = ("COCO AP_S", "paper APs", "COCO AP_M", "paper APm", "paper APl")
    assert [first["resobj.table3"][name] for name in sizes] == ["10.0", "18.9", "20.0", "38.9", "46.3"]
    assert "COCO AP_L" not in first["resobj.table3"]  # no object was large
    assert [first["resobj.table2c"][name] for name in ("FPS", "paper FPS")] == ["12.3", "10.2"]
    assert first["brl.table1"]["VOC mAP50"] == "33.0"
    assert not {"COCO AP_S", "FPS"} & {*first["brl.table1"]}
    assert not {"VOC mAP50", "FPS"} & {*first["resobj.table3"]}


def test_table_1_has_the_four_label_sets_beside_the_paper(make_study: Make) -> None:
    text = terminal_table(make_study("brl.table1", by_labels(TABLE_4)))
    (line,) = [line.split() for line in text.splitlines() if line.startswith("easy")]
    assert line == ["easy", "1", "50.0", "71.6", "25.0", "46.3", "12.5"]


def test_table_3_tells_each_setting_by_the_flags_of_its_own_loss(make_study: Make) -> None:
    sweep = load(make_study("brl.table3", lambda run: 0.5 + run.train["brl_t"] / 10 - run.train["brl_weight"] / 100))
    table = study_table(results(sweep).rows, "", study_numbers(sweep))
    assert table is not None
    assert table.head[:6] == ("loss", "brl_t", "brl_weight", "brl_beta", "labels", "n")
    rows = [[c.text for c in row] for row in table.rows]
    assert rows[0][:4] == ["focal", "", "", ""]
    assert [row[7] for row in rows] == [
        "59.8",
        "76.8",
        "62.1",
        "61.7",
        "62.0",
        "62.9",
        "62.2",
        "60.8",
        "65.1",
        "66.1",
        "63.1",
    ]


def by_rate(run: Run) -> float:
    """Falls by 0.2, 0.1 and 0.3 times the rate from 0.5."""
    return 0.5 - {"ohem": 0.2, "bce": 0.1, "focal": 0.3}[run.train["loss"]] * run.labels.rate


def test_figure_3_has_rates_as_columns_and_the_relative_drop(make_study: Make) -> None:
    folder = make_study("label-noise.fig3", by_rate)
    sweep = load(folder)
    table = rate_table(results(sweep).rows, "", study_numbers(sweep))
    assert table is not None
    assert table.head == ("loss", "", "0%", "10%", "20%", "30%", "40%", "50%")
    assert [[c.text for c in row] for row in table.rows] == [
        ["ohem", "ours", "50.0", "48.0", "46.0", "44.0", "42.0", "40.0"],
        ["ohem", "paper", "43.6", "41.5", "40.0", "35.7", "34.6", "31.5"],
        ["bce", "ours", "50.0", "49.0", "48.0", "47.0", "46.0", "45.0"],
        ["focal focal_alpha=0.75", "ours", "50.0", "47.0", "44.0", "41.0", "38.0", "35.0"],
        ["focal focal_alpha=0.75", "paper", "53.2", "50.6", "46.9", "44.3", "39.8", "33.1"],
    ]
    ohem = next(iter(rate_lines(results(sweep).rows).values()))
    drop = against.relative_drop(ohem[0.0], ohem[0.5])
    assert drop is not None
    assert drop.mean == pytest.approx(0.2)  # 10 of 50 points
    report(folder)
    assert (folder / "plots" / "rates.png").exists()


def by_error(run: Run) -> float:
    """Falls by the rate, less for extra boxes than for wrong classes."""
    falls = {"extra": 0.1, "jitter": 0.2, "class_flip": 0.3}
    return 0.5 - 0.4 * run.labels.rate - sum(falls[k] * v for k, v in dict(run.labels.noise).items() if k in falls)


def test_figure_1_has_a_line_for_each_kind_of_error(make_study: Make) -> None:
    folder = make_study("label-noise.fig1", by_error)
    sweep = load(folder)
    table = rate_table(results(sweep).rows, "", study_numbers(sweep))
    assert table is not None
    assert table.head == ("loss", "", "0%", "10%", "20%", "30%", "40%", "50%")
    rows = {row[0].text: [c.text for c in row[1:]] for row in table.rows if row[1].text == "ours"}
    assert rows["ohem errors=class_flip"] == ["ours", "50.0", "47.0", "44.0", "41.0", "38.0", "35.0"]
    assert rows["ohem errors=extra"] == ["ours", "50.0", "49.0", "48.0", "47.0", "46.0", "45.0"]
    assert rows["ohem errors=missing"] == ["ours", "50.0", "46.0", "42.0", "38.0", "34.0", "30.0"]
    assert len(rows) == 3 * 4
    paper = [row[0].text for row in table.rows if row[1].text == "paper"]
    assert [name for name in paper if "missing" not in name] == []  # of other errors none reports anything
    text = report(folder).with_suffix(".md").read_text("utf-8")
    assert "jitter 0.3" in text
    assert "fraction of training labels that is wrong" in text


def test_the_report_says_which_labels_are_wrong(make_sweep: Make, make_record: Any) -> None:
    noise = {"jitter": 0.2, "jitter_iou": "[0.5,0.9]"}
    records = [
        make_record(f"{loss}{seed}", seed, test=0.3 + seed / 10, loss=loss, noise=own, label_seed=seed if own else 0)
        for loss in ("focal", "brl") for seed in (0, 1) for own in (noise, {})
    ]  # fmt: skip
    for i, one in enumerate(records):
        one["run"] += f"-{i}"
    folder = make_sweep(*records, asked={"loss": ["focal", "brl"], "jitter": [0.0, 0.2]})
    found = rows_of(folder)
    assert {row.setting.get("jitter") for row in found} == {0.2, 0.0}
    assert not any("jitter_iou" in row.setting.values for row in found)  # the same in all
    noisy = [row for row in found if row.setting.get("jitter") and row.base and row.split == "test"]
    assert [row.setting.get("loss") for row in noisy] == ["brl"]
    assert noisy[0].base == next(
        r.setting for r in found if r.setting.get("loss") == "focal" and r.setting.get("jitter")
    )
    assert "mAP50" in noisy[0].gap  # the baseline on true labels is there to compare with
    text = report(folder).with_suffix(".md").read_text("utf-8")
    assert r"Training labels | normal, jitter 0.2, jitter\_iou [0.5,0.9], label seeds 0, 1; normal: as the data" in text
    assert "protocol normal, jitter 0.2" in text


def panels_of(folder: Path, name: str) -> tuple[Any, str]:
    """The figure and the caption that go into plots/<name>.png."""
    return getattr(against, name)(results(load(folder)))


def test_the_papers_points_are_joined_between_neighbours_only_and_what_it_lacks_is_told(make_study: Make) -> None:
    figure, caption = panels_of(make_study("label-noise.fig3", by_rate, rate="0,0.15,0.3,0.45,0.5"), "rates")
    paper = figure.axes[-1]
    ohem, bce, focal, legend = paper.lines
    assert (list(ohem.get_xdata()), list(bce.get_xdata())) == (pytest.approx([0, 15, 30, 45, 50]), [])
    assert [round(y, 1) for y in ohem.get_ydata() if y == y] == [43.6, 35.7, 31.5]  # a NaN between: no line
    assert len(focal.get_xdata()) == 5
    assert (legend.get_label(), legend.get_linestyle()) == ("paper", "None")
    assert [text.get_text() for text in paper.texts] == ["not reported:\nbce"]
    assert "not reported: ohem at 15%, 45%; bce; focal focal_alpha=0.75 at 15%, 45%." in caption
    figure, caption = panels_of(make_study("label-noise.fig5", lambda run: 0.3, rate="0.2,0.5"), "gamma")
    none, half, legend = figure.axes[1].lines
    assert (len(none.get_xdata()), len(half.get_xdata()), legend.get_linestyle()) == (0, 9, "--")
    assert caption.endswith("Right: the paper's points; not reported: protocol percent 0.2.")


def test_the_rate_that_withholds_nothing_is_all_labels_of_gap_closed(make_study: Make) -> None:
    rows = rows_of(make_study("label-noise.fig3", by_rate))
    (bce,) = [r for r in rows if r.setting.get("loss") == "bce" and r.setting.get("rate") == 0.5 and r.split == "test"]
    assert bce.change["mAP50"].mean == pytest.approx(0.05)
    gap = bce.gap["mAP50"]
    assert gap is not None
    assert gap.share == pytest.approx(0.05 / 0.10)
    (full,) = [r for r in rows if r.setting.get("loss") == "bce" and r.setting.get("rate") == 0 and r.split == "test"]
    assert full.gap == {}


def test_figure_5_is_drawn_over_gamma(make_study: Make) -> None:
    folder = make_study("label-noise.fig5", lambda run: 0.3 + run.train["focal_gamma"] / 100, rate="0,0.5")
    text = report(folder).read_text("utf-8")
    assert (folder / "plots" / "gamma.png").exists()
    assert "mAP50 against gamma" in text
    assert "43.5" in terminal_table(folder)  # the paper's at gamma 5


@pytest.mark.parametrize("by_iou", [True, False])
def test_figure_3_of_brl_is_drawn_over_thresholds_or_says_why_not(make_study: Make, by_iou: bool) -> None:
    folder = make_study("brl.fig3", by_labels(TABLE_4), by_iou=by_iou)
    text = report(folder).read_text("utf-8")
    assert (folder / "plots" / "iou.png").exists() == by_iou
    assert ("No mAP over IoU thresholds: the records hold none." in text) != by_iou


def test_a_study_says_what_it_is_and_how_it_is_made_again(make_study: Make) -> None:
    folder = make_study("brl.table2", lambda run: 0.4, preset="gpu")
    sweep = load(folder)
    assert command(sweep) == "rebalance paper brl.table2 name=brl.table2 data=d.yaml preset=gpu"
    text = report(folder).read_text("utf-8")
    assert "brl, Table 2 (Solving Missing-Annotation Object Detection with Background Recalibration Loss)" in text
    assert "The paper&#39;s configuration, and what differs: The authors publish one configuration" in text


def test_removal_tables_of_a_study_stay_those_of_the_benchmark(make_study: Make) -> None:
    folder = make_study("rebalancing.table3", lambda run: 0.4 + run.train["obj_drop"] / 10, loss="drop")
    text = terminal_table(folder)
    assert text.startswith("Objectness removal, protocol normal, drop_scope=background\n")
    assert "49.8" in text


def test_losses_of_a_sweep_are_compared_within_model_head_and_labels(make_sweep: Any, make_record: Any) -> None:
    scores = {("bce", "anchor"): 0.3, ("brl", "anchor"): 0.4, ("bce", "stock"): 0.5, ("brl", "stock"): 0.45}
    records = [
        make_record(
            f"{head},{loss},{seed}", seed, test=value + seed / 100, head=head, loss=loss, protocol="hard", rate=0.4
        )
        for seed in (0, 1)
        for (loss, head), value in scores.items()
    ]
    # the first loss failed for seed 1 on one head: only seed 0 is a pair there
    records[6] |= {"status": "failed", "metrics": None, "error": "as planned"}
    folder = make_sweep(*records, asked={"loss": ["bce", "brl"], "seeds": [0, 1]})
    changes = {(r.setting.get("head"), r.setting.get("loss")): r.change for r in rows_of(folder)}
    assert changes["anchor", "brl"]["mAP50"].mean == pytest.approx(0.1)
    assert changes["anchor", "brl"]["mAP50"].n == 2
    assert (changes["stock", "brl"]["mAP50"].n, changes["stock", "brl"]["mAP50"].mean) == (1, pytest.approx(-0.05))
    assert changes["anchor", "bce"] == changes["stock", "bce"] == {}
    text = terminal_table(folder)
    assert "Losses, protocol hard, head=anchor\n" in text
    assert "Losses, protocol hard, head=anchor: differences from bce\n" in text
    assert "bce with complete labels and the same seeds is missing" in text
    report(folder)
    lines = list(csv.DictReader((folder / "summary.csv").read_text("utf-8").splitlines()))
    assert [(r["n"], r["pairs"], r["mAP50_diff"]) for r in lines] == [
        ("2", "", ""),
        ("2", "2", "0.100000"),
        ("1", "", ""),
        ("2", "1", "-0.050000"),
    ]


def test_a_removal_keeps_its_own_zero_run_beside_other_losses(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("bce", 0, test=0.4, loss="drop"),
        make_record("focal", 0, test=0.5, loss="focal+drop"),
        make_record("dropped", 0, test=0.45, loss="drop", obj_drop=0.5),
        make_record("focal dropped", 0, test=0.6, loss="focal+drop", obj_drop=0.5),
        asked={"loss": ["drop", "focal+drop"], "obj_drop": [0.0, 0.5], "seeds": [0]},
    )
    (one,) = results(load(folder)).compared
    table = difference_table(one)
    assert table is not None
    assert "drop obj_drop=0" in table.title
    assert [(row[0].text, row[2].text) for row in table.rows] == [
        ("focal+drop obj_drop=0", "+10.0"),
        ("drop obj_drop=0.5", "+5.0"),  # the 0 % run of the other removal is another, which the series has
    ]


def test_without_the_first_loss_nothing_is_compared(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("focal", 0, loss="focal"), make_record("brl", 0, loss="brl"),
        asked={"loss": ["bce", "focal", "brl"], "seeds": [0]},
    )  # fmt: skip
    assert all(row.change == {} for row in rows_of(folder))
    assert "There is no run of the baseline with the same seed on test to compare with." in terminal_table(folder)


def test_a_head_that_is_a_method_is_compared_with_the_head_it_is_built_on(make_sweep: Any, make_record: Any) -> None:
    host = {"model": "retinanet_tiny"}
    folder = make_sweep(
        make_record("stock", 0, test=0.4, host=host, head="stock", loss="focal"),
        make_record("t1", 0, test=0.5, host=host, head="resobj", loss="bce", resobj_steps=1),
        make_record("t2", 0, test=0.6, host=host, head="resobj", loss="bce", resobj_steps=2),
        asked={"loss": ["focal", "resobj"], "seeds": [0]},
    )
    changes = [row.change["mAP50"].mean for row in rows_of(folder) if row.change]
    assert changes == pytest.approx([0.1, 0.2])
    assert "resobj resobj_steps=1" in terminal_table(folder)


def test_a_record_with_a_bad_threshold_is_told(make_sweep: Any, make_record: Any) -> None:
    bad = make_record("a", 0)
    bad["metrics"]["test"]["mAP_by_iou"] = {"0.50": 1.5}
    sweep = load(make_sweep(bad, make_record("b", 0)))
    assert [r.run for r in sweep.records] == ["b"]
    assert "metrics.test.mAP_by_iou.0.50 is 1.5, not a fraction in [0, 1]" in sweep.warnings[0]
    assert json.loads((sweep.folder / "runs" / "a" / "record.json").read_text("utf-8"))["run"] == "a"
