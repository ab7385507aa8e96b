"""Means, intervals, paired differences and gap closed, by hand."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from objectives import recipe_of

from rebalance.errors import ConfigError
from rebalance.experiments.record import METRICS, load
from rebalance.report.build import report
from rebalance.report.summary import Row, describe, results, settings_of, to_csv, varying
from rebalance.report.tables import settings_table


def rows_of(folder: Path) -> list[Row]:
    return list(results(load(folder)).rows)


def row(rows: list[Row], split: str = "test", **flags: Any) -> Row:
    """The one row with these flags."""
    (found,) = [r for r in rows if r.split == split and all(r.setting.get(k) == v for k, v in flags.items())]
    return found


def test_paired_difference_with_a_missing_seed(make_sweep: Any, make_record: Any) -> None:
    zero = {0: 0.40, 1: 0.42, 2: 0.44}
    removed = {0: 0.43, 1: 0.44, 3: 0.50}  # no run of seed 2; a seed 3 that the 0 % run lacks
    folder = make_sweep(
        *(make_record(f"zero{s}", s, test=v) for s, v in zero.items()),
        *(make_record(f"removed{s}", s, test=v, obj_drop=0.75) for s, v in removed.items()),
    )
    rows = rows_of(folder)
    base, mine = row(rows, obj_drop=0.0), row(rows, obj_drop=0.75)
    assert base.change == {}
    assert [r.seed for r in mine.records] == [0, 1, 3]
    assert mine.stats["mAP50"].mean == pytest.approx(1.37 / 3)
    assert mine.stats["mAP50"].half == pytest.approx(0.0940487, abs=1e-6)
    change = mine.change["mAP50"]  # 0.03 and 0.02
    assert (change.n, change.mean) == (2, pytest.approx(0.025))
    assert change.std == pytest.approx(0.01 / 2**0.5)
    assert change.half == pytest.approx(12.7062047 * 0.005, rel=1e-6)
    assert mine.change["mAP75"].mean == pytest.approx(0.0125)


def test_the_zero_run_is_of_the_same_protocol_and_model(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("a", 0, test=0.5),
        make_record("b", 0, test=0.3, protocol="extreme"),
        make_record("c", 0, test=0.35, protocol="extreme", obj_drop=0.5),
        make_record("d", 0, test=0.9, host={"model": "yolov8n.yaml"}, obj_drop=0.5),
    )
    rows = rows_of(folder)
    assert row(rows, protocol="extreme", obj_drop=0.5).change["mAP50"].mean == pytest.approx(0.05)
    assert row(rows, model="yolov8n.yaml").change == {}  # it has no 0 % run


def test_labels_that_are_drawn_anew_for_each_seed_are_one_setting(make_sweep: Any, make_record: Any) -> None:
    labels = {"protocol": "per_class", "rate": 0.5}
    hard = {"protocol": "hard"}
    folder = make_sweep(
        *(make_record(f"a{s}", s, label_seed=s, **labels) for s in (0, 1, 2)),
        *(make_record(f"b{s}", s, label_seed=s, rate=0.4 + s / 1000, **hard) for s in (0, 1)),  # what it came to
    )
    rows = rows_of(folder)
    assert [len(r.records) for r in rows] == [3, 2]
    lines = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [(line["seeds"], line["label_seeds"]) for line in lines] == [("0 1 2", "0 1 2"), ("0 1", "0 1")]


def test_idle_flags_of_drop_share_the_zero_run(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("zero", 0, test=0.4, loss=""),
        make_record("a", 0, test=0.5, obj_drop=0.5, drop_scope="matched"),
        make_record("b", 0, test=0.6, box_drop=0.5, neg_iou=0.5),
        make_record("c", 0, test=0.7, obj_drop=0.5, loss="focal+drop"),
    )
    rows = rows_of(folder)
    assert row(rows, drop_scope="matched").change["mAP50"].mean == pytest.approx(0.1)
    assert row(rows, neg_iou=0.5).change["mAP50"].mean == pytest.approx(0.2)
    assert row(rows, loss="focal+drop").change == {}  # the 0 % run of focal is focal


def test_the_host_s_own_loss_is_the_zero_run_of_what_is_dropped_from_it(make_sweep: Any, make_record: Any) -> None:
    """Nothing dropped is the host's own loss to the last bit, so dropping and other losses are one family."""
    runs = [make_record(f"a{seed}", seed, loss="bce", test=0.4) for seed in (0, 1)]
    runs += [make_record(f"b{seed}", seed, loss="drop", obj_drop=0.75, test=0.5) for seed in (0, 1)]
    runs += [make_record(f"c{seed}", seed, loss="focal", test=0.3) for seed in (0, 1)]
    found = results(load(make_sweep(*runs)))
    changes = {row.setting.get("loss"): row.change["mAP50"].mean for row in found.rows if row.change}
    assert changes == pytest.approx({"drop": 0.1, "focal": -0.1})
    assert len({row.base for row in found.rows if row.base}) == 1


def test_runs_whose_labels_move_with_the_seed_are_of_one_setting(make_sweep: Any, make_record: Any) -> None:
    runs = [make_record(f"normal{seed}", seed, test=0.7) for seed in (0, 1)]
    for seed in (0, 1):
        for p in (0.0, 0.75):
            runs.append(
                make_record(
                    f"{p}-{seed}", seed, protocol="percent", rate=0.5, obj_drop=p, test=0.4 + p / 10 + seed / 50
                )
            )
            runs[-1]["config"]["labels"]["seed"] = seed
    mine = row(rows_of(make_sweep(*runs)), obj_drop=0.75)
    assert (mine.change["mAP50"].n, mine.change["mAP50"].mean) == (2, pytest.approx(0.075))
    assert mine.gap["mAP50"] is not None
    assert mine.gap["mAP50"].share == pytest.approx(0.075 / 0.29)
    fixed = [{**run, "config": {**run["config"], "labels": {**run["config"]["labels"], "seed": 3}}} for run in runs[2:]]
    other = rows_of(make_sweep(*runs[2:4], *fixed[2:], name="other"))  # of two label seeds: two settings
    assert sorted(r.setting.get("label_seed") for r in other if r.setting.get("obj_drop")) == [0, 3]


def test_gap_closed(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        *(make_record(f"full{s}", s, test=0.60 + 0.1 * s) for s in (0, 1)),
        *(make_record(f"partial{s}", s, test=0.30 + 0.1 * s, protocol="percent", rate=0.5) for s in (0, 1)),
        *(
            make_record(f"method{s}", s, test=0.41 + 0.1 * s, protocol="percent", rate=0.5, obj_drop=0.75)
            for s in (0, 1)
        ),
    )
    rows = rows_of(folder)
    # (0.41 - 0.30) / (0.60 - 0.30), for either seed
    gap = row(rows, protocol="percent", obj_drop=0.75).gap["mAP50"]
    assert gap is not None
    assert (gap.share, gap.low, gap.high) == pytest.approx((0.11 / 0.30,) * 3)
    assert row(rows, protocol="percent", obj_drop=0.0).gap == {}
    assert row(rows, protocol="normal").gap == {}


def test_no_gap_where_all_labels_are_no_better(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("full", 0, test=0.3),
        make_record("partial", 0, test=0.3, protocol="easy"),
        make_record("method", 0, test=0.4, protocol="easy", obj_drop=0.5),
    )
    assert row(rows_of(folder), protocol="easy", obj_drop=0.5).gap == dict.fromkeys(METRICS)


def test_a_gap_that_is_too_small_is_a_dash(make_sweep: Any, make_record: Any) -> None:
    labels = {"protocol": "percent", "rate": 0.5}
    folder = make_sweep(
        make_record("full", 0, test=0.3009),
        make_record("partial", 0, test=0.3, **labels),
        make_record("method", 0, test=0.31, obj_drop=0.5, **labels),
    )
    table = settings_table(rows_of(folder), "test")
    (cell,) = [r[-1].text for r in table.rows if r[0].text == "0.5"]
    assert cell == "–"
    assert "–: that gap is below 0.1 points or, over several seeds, within its 95 % interval." in " ".join(table.notes)


def test_where_and_how_it_ran_is_no_setting(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("a", 0, host={"device": "0", "workers": 8}),
        make_record("b", 1, host={"device": "cpu", "workers": 0}),
        make_record("c", 1, host={"epochs": 3}),
    )
    first, second, third = settings_of(load(folder).records)
    assert first == second != third


def test_csv(series_sweep: Path) -> None:
    rows = list(csv.DictReader(to_csv(rows_of(series_sweep)).splitlines()))
    assert len(rows) == 4 * 2
    (zero,) = [r for r in rows if r["obj_drop"] == "0" and r["box_drop"] == "0" and r["split"] == "test"]
    (most,) = [r for r in rows if r["obj_drop"] == "0.75" and r["split"] == "test"]
    assert (zero["n"], zero["seeds"], zero["pairs"], zero["mAP50_diff"]) == ("2", "0 1", "", "")
    assert zero["mAP50_mean"] == "0.405000"
    assert zero["mAP50_std"] == "0.007071"
    assert zero["mAP50_ci95"] == "0.063531"  # 12.706205 · 0.0070711 / sqrt 2
    assert (most["pairs"], most["mAP50_diff"], most["mAP50_diff_ci95"]) == ("2", "0.101000", "0.012706")
    tests = ("pairs", "mAP50_p", "mAP50_p_holm", "mAP50_diff_ci_holm", "comparisons", "seeds_needed")
    assert [most[name] for name in tests] == ["2", "0.006303", "0.018909", "0.038188", "3", "2"]
    (less,) = [r for r in rows if r["obj_drop"] == "0.25" and r["split"] == "test"]
    assert [less[name] for name in tests] == ["2", "0.204833", "0.409666", "0.025452", "3", "5"]
    assert [zero[name] for name in tests] == [""] * 6
    assert zero["evaluation"] == "iou=0.7 conf=0.001 max_det=300"
    assert (zero["mAP50-95_mean"], most["mAP50-95_diff"]) == ("0.101250", "0.025250")
    assert (most["model"], most["head"], most["loss"], most["protocol"]) == ("yolov5n.yaml", "anchor", "drop", "normal")


def test_csv_of_single_runs_has_no_interval(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0), make_record("b", 0, obj_drop=0.5, host={"lr0": 0.1}))
    rows = list(csv.DictReader(to_csv(rows_of(folder)).splitlines()))
    assert [(r["n"], r["mAP50_std"], r["mAP50_ci95"], r["lr0"]) for r in rows] == [
        ("1", "", "", ""),
        ("1", "", "", "0.1"),
    ]


def test_series(series_sweep: Path) -> None:
    objectness, box = results(load(series_sweep)).series
    assert (objectness.axis, [s.removal("obj_drop") for s in objectness.rows]) == ("obj_drop", [0.0, 0.25, 0.75])
    assert (box.axis, [s.removal("box_drop") for s in box.rows]) == ("box_drop", [0.0, 0.75])  # the 0 % run is in both
    assert objectness.splits == ("val", "test")


def test_both_removals_at_once_are_in_no_series(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0), make_record("b", 0, obj_drop=0.5, box_drop=0.5))
    found = results(load(folder))
    assert found.series == ()
    assert row(list(found.rows), obj_drop=0.5).change["mAP50"].mean == pytest.approx(0.0)


def test_the_baseline_can_be_chosen(make_sweep: Any, make_record: Any) -> None:
    points = {"bce": 0.2, "focal": 0.3, "brl": 0.5}
    folder = make_sweep(*(make_record(loss, 0, test=value, loss=loss) for loss, value in points.items()))
    rows = list(results(load(folder, "focal")).rows)
    assert "mAP50" not in row(rows, loss="focal").change
    assert row(rows, loss="brl").change["mAP50"].mean == pytest.approx(0.2)
    assert row(rows, loss="bce").change["mAP50"].mean == pytest.approx(-0.1)
    with pytest.raises(ConfigError, match=r"^baseline=focl is not one of bce, brl, focal \(did you mean focal\?\)$"):
        results(load(folder, "focl"))


def test_of_several_settings_of_a_loss_the_baseline_is_named_by_its_flags(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("a", 0, test=0.2, loss="focal"),
        make_record("b", 0, test=0.3, loss="brl", brl_t=0.3),
        make_record("c", 0, test=0.5, loss="brl", brl_t=0.5),
        asked={"loss": ["focal", "brl"], "brl_t": [0.3, 0.5], "seeds": [0]},
    )
    rows = results(load(folder, "brl brl_t=0.50")).rows
    assert [r.change["mAP50"].mean if r.change else None for r in rows] == [
        pytest.approx(-0.3),
        pytest.approx(-0.2),
        None,
    ]
    choices = "'brl brl_t=0.3', 'brl brl_t=0.5'"
    with pytest.raises(ConfigError, match=f"^baseline=brl is several settings; give one of {choices}$"):
        results(load(folder, "brl"))
    choices = "focal, brl brl_t=0.3, brl brl_t=0.5 (did you mean brl brl_t=0.5?)"
    with pytest.raises(ConfigError, match=f"^{re.escape(f'baseline=brl brl_t=0.4 is not one of {choices}')}$"):
        results(load(folder, "brl brl_t=0.4"))
    report(folder, "brl brl_t=0.5")
    text = (folder / "report.md").read_text("utf-8")
    assert "vs baseline: difference from brl brl\\_t=0.5 with the same model, head and labels, paired by seed." in text
    assert "rebalance report runs/benchmark/mine 'baseline=brl brl_t=0.5'\n" in text
    report(folder)
    text = (folder / "report.md").read_text("utf-8")
    assert "vs baseline: difference from focal with the same model, head and labels, paired by seed." in text
    assert "rebalance report runs/benchmark/mine\n" in text


def test_a_flag_is_told_of_the_settings_that_have_its_method(make_sweep: Any, make_record: Any) -> None:
    head = {"head": "stock", "loss": "focal"}
    folder = make_sweep(
        make_record("a", 0, **head, resobj_steps=2),
        make_record("b", 0, head="obj", loss="bce", resobj_steps=2),
        make_record("c", 0, head="resobj", loss="bce", resobj_steps=1),
        make_record("d", 0, head="anchor", loss="bce", obj_gain=2.0),
    )
    settings = settings_of(load(folder).records)
    names = ["head", "loss", "resobj_steps", "obj_gain"]
    assert [describe(setting, names) for setting in settings] == [
        "head=stock loss=focal",
        "head=obj loss=obj",
        "head=resobj loss=resobj resobj_steps=1",
        "head=anchor loss=bce obj_gain=2",
    ]
    rows = list(csv.DictReader(to_csv(rows_of(folder)).splitlines()))
    assert [r["resobj_steps"] for r in rows] == ["", "", "1", ""]


def test_what_a_run_lists_has_a_say_and_what_others_list_has_none(make_sweep: Any, make_record: Any) -> None:
    """Whatever the flags are: the records alone tell which belong to a loss."""
    runs = [make_record("a", 0, loss="focal"), make_record("b", 0, loss="new", new_t=1, divisor="image")]
    runs[0]["config"]["train"] |= {"new_t": 2, "divisor": "host"}
    runs[1]["loss_ran"]["settings"] = {"new_t": 1}
    focal, new = settings_of(load(make_sweep(*runs)).records)
    assert (focal.owns("new_t"), new.owns("new_t")) == (False, True)
    assert (focal.owns("focal_gamma"), new.owns("focal_gamma")) == (True, False)
    assert focal.owns("divisor")  # nobody lists it, so it may have a say
    assert describe(focal, varying([focal, new])) == "loss=focal divisor=host"
    assert describe(new, varying([focal, new])) == "loss=new new_t=1 divisor=image"


def test_idle_flags_make_no_other_setting(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("a", 0, test=0.4, loss="focal"),
        make_record("b", 1, test=0.5, loss="focal", brl_t=0.3),  # of a loss that it has not
        make_record("c", 0, test=0.6, loss="brl", brl_t=0.3),
    )
    focal, brl = rows_of(folder)
    assert [r.seed for r in focal.records] == [0, 1]
    assert brl.change["mAP50"].mean == pytest.approx(0.2)


def test_a_flag_that_a_record_is_older_than_has_the_value_that_the_others_agree_on() -> None:
    trained = [{"loss": "drop"}, {"loss": "drop", "neg_iou": 0.4, "divisor": "auto"}, {"loss": "bce", "neg_iou": 0.4}]
    ran: list[Any] = [{"settings": {}}, {"settings": {"neg_iou": 0.4}}, {"settings": {}}]
    older, drop, bce = settings_of(
        [
            SimpleNamespace(train=t, host={}, labels={}, evaluation={}, loss_ran=r)
            for t, r in zip(trained, ran, strict=True)
        ]  # type: ignore[misc]
    )
    assert older == drop != bce
    assert (older.get("neg_iou"), older.get("divisor")) == (0.4, "auto")
    assert older.owns("neg_iou")  # as a run of the same loss names it
    assert not bce.owns("neg_iou")


@pytest.mark.parametrize(
    ("model", "anchored", "first", "more"),
    [
        ("yolov5n.yaml", True, {"head": "anchor"}, {}),
        ("my-copy.yaml", True, {"head": "anchor"}, {}),
        ("yolov8n.yaml", False, {}, {}),
        ("yolov5n.yaml", True, {}, {"obj_base": "stock"}),
        ("yolov8n.yaml", False, {"head": "anchor"}, {"obj_base": "anchor"}),
    ],
)
def test_an_objectness_is_compared_with_the_head_that_it_stands_on(
    make_sweep: Any, make_record: Any, model: str, anchored: bool, first: dict[str, Any], more: dict[str, Any]
) -> None:
    """Flags as a training writes them: those of the objectness name what it stands on, those of other heads do not."""
    contents = []
    asked = ((first, 0.4), ({"head": "resobj", **more}, 0.45), ({"head": "obj", **more}, 0.43))
    for order, (given, map50) in enumerate(asked):
        recipe = recipe_of(given, anchored=anchored)
        for seed in (0, 1):
            content = make_record(
                f"{order}-{seed}", seed, test=map50 + seed / 100, host={"model": model}, **recipe.values
            )
            content["loss_ran"]["settings"] = recipe.used
            contents.append(content)
    found = results(load(make_sweep(*contents)))
    changes = {row.setting.get("head"): row.change["mAP50"].mean for row in found.rows if row.change}
    assert changes == pytest.approx({"resobj": 0.05, "obj": 0.03})
    assert "obj_base" not in varying(row.setting for row in found.rows)
