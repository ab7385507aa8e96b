"""What a sweep may conclude: what survives the correction, in a setting that can tell methods apart."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rebalance.experiments.grid import read_grid
from rebalance.experiments.record import load
from rebalance.report.build import report, terminal_table
from rebalance.report.summary import results
from rebalance.report.verdict import judged, missing_runs, verdict


def verdicts(folder: Path, *references: Path) -> list[str]:
    return [one.verdict for one in judged(results(load(folder), [load(other) for other in references]))]


def missing(folder: Path, *references: Path) -> list[str]:
    found = results(load(folder), [load(other) for other in references])
    return missing_runs(found, judged(found))


def losses(make_record: Any, points: Mapping[str, Sequence[float]], **more: Any) -> list[dict[str, Any]]:
    """Runs of losses, seed by seed, and a long run of the first, which reaches 50 points."""
    runs = [
        make_record(f"{loss}{s}", s, loss=loss, test=value, **more)
        for loss, values in points.items()
        for s, value in enumerate(values)
    ]
    return [*runs, make_record("long", 0, loss=next(iter(points)), test=0.5, host={"epochs": 20})]


def test_what_survives_the_correction_beats_the_baseline(series_sweep: Path) -> None:
    objectness, box = results(load(series_sweep)).series
    # of three comparisons with one 0 % run
    assert verdict(objectness) == (
        "obj_drop=0.75 beats 0 %: +10.1 ± 1.3 points of mAP50 on test (corrected ± 3.8, p = 0.019, n = 2), "
        "but its control (drop_select=weight) was not run, so that this may be a gain of re-weighting; "
        "the other does not differ from 0 % after correction for 3 comparisons: "
        "the nearest is obj_drop=0.25 (+0.3 ± 1.3, p = 0.41; it would need 5 seeds, 3 more)."
    )
    assert verdict(box) == (
        "No setting differs from 0 % in mAP50 on test after correction for 3 comparisons (n = 2): "
        "the nearest is box_drop=0.75 (-2.0 ± 12.7, p = 0.41; it would need 8 seeds, 6 more)."
    )


def test_a_difference_within_the_corrected_interval_beats_nothing(make_sweep: Any, make_record: Any) -> None:
    """Alone 4.0 ± 3.7 points, p = 0.04; of three comparisons p = 0.13."""
    points = {"bce": (0.3, 0.3, 0.3), "focal": (0.325, 0.355, 0.34)}
    (alone,) = verdicts(make_sweep(*losses(make_record, points), name="alone"))
    assert alone.startswith("focal beats bce: +4.0 ± 3.7 points of mAP50 on test (corrected ± 3.7, p = 0.044, n = 3)")
    more = {"ghm": (0.31, 0.29, 0.3), "ohem": (0.29, 0.31, 0.3)}
    (one,) = verdicts(make_sweep(*losses(make_record, points | more), name="three"))
    assert one == (
        "No setting differs from bce in mAP50 on test after correction for 3 comparisons (n = 3): "
        "the nearest is focal (+4.0 ± 3.7, p = 0.13; it would need 5 seeds, 2 more)."
    )


def test_a_worse_one_is_called_worse(make_sweep: Any, make_record: Any) -> None:
    (text,) = verdicts(make_sweep(*losses(make_record, {"bce": (0.3, 0.31), "focal": (0.26, 0.2692)})))
    assert text == "focal is worse than bce: -4.0 ± 0.5 points of mAP50 on test (corrected ± 0.5, p = 0.006, n = 2)."


def test_the_losses_on_other_labels_are_another_family(make_sweep: Any, make_record: Any) -> None:
    points = {"bce": (0.3, 0.3, 0.3), "focal": (0.325, 0.355, 0.34)}
    runs = losses(make_record, points)
    for run in losses(make_record, points, protocol="extreme")[:-1]:
        runs.append({**run, "run": f"extreme {run['run']}"})
    tests = [row.test for row in results(load(make_sweep(*runs))).rows if row.test]
    assert [test.count for test in tests] == [1, 1]


def test_zero_runs_that_differ_in_the_flags_of_drop_are_one_family(make_sweep: Any, make_record: Any) -> None:
    runs = [
        make_record(f"{scope}{p}{s}", s, test=0.3 + p / 10 + s / 100 + s * p / 50, drop_scope=scope, obj_drop=p)
        for scope in ("background", "matched", "literal")
        for p in (0.0, 0.5)
        for s in (0, 1)
    ]
    assert [row.test.count for row in results(load(make_sweep(*runs))).rows if row.test] == [3, 3, 3]


def test_a_removal_before_its_loss_does_not_take_the_place_of_the_baseline(make_sweep: Any, make_record: Any) -> None:
    points = {"bce": (0.3, 0.31), "focal+drop": (0.4, 0.42), "focal": (0.35, 0.37), "brl": (0.45, 0.455)}
    runs = losses(make_record, points)
    for run in runs:
        if run["config"]["train"]["loss"] == "focal+drop":
            run["config"]["train"]["obj_drop"] = 0.5
    _, compared = judged(results(load(make_sweep(*runs, asked={"loss": list(points)}))))
    assert compared.differences
    assert [row[0].text for row in compared.differences.rows] == ["focal", "brl"]
    assert "differ from bce" in compared.verdict


def test_divisors_are_compared_as_other_settings_of_a_loss_are(make_sweep: Any, make_record: Any) -> None:
    runs = [
        make_record(f"{divisor}{s}", s, loss="focal", divisor=divisor, test=0.3 + s / 100 + i * (0.05 + s / 500))
        for i, divisor in enumerate(("auto", "image", "batch"))
        for s in (0, 1)
    ]
    found = results(load(make_sweep(*runs, asked={"loss": ["focal"]})))
    (compared,) = judged(found)
    assert compared.differences
    assert [row[0].text for row in compared.differences.rows] == ["focal divisor=image", "focal divisor=batch"]
    assert [row.test.count for row in found.rows if row.test] == [2, 2]


def test_without_a_baseline(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0, obj_drop=0.1), make_record("b", 0, obj_drop=0.5))
    assert verdicts(folder) == ["There is no 0 % run with the same seed on test to compare with."]
    assert missing(folder) == []


def test_single_runs_are_called_so(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(
        make_record("a", 0, test=0.4), make_record("b", 0, test=0.3, obj_drop=0.9),
        make_record("long", 0, test=0.5, host={"epochs": 20}),
    )  # fmt: skip
    assert verdicts(folder) == [
        "No verdict: single runs without an interval are no evidence "
        "(the largest difference: obj_drop=0.9, -10.0 points on test)."
    ]


# The control


def test_a_gain_over_the_control_is_told(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(control=(0.02, 0.031, 0.04)))
    assert text.startswith(
        "obj_drop=0.75 beats 0 %: +11.0 ± 2.5 points of mAP50 on test (corrected ± 3.6, p = 0.005, n = 3), "
        "and beats its control, the same weights without randomness, by +8.0 ± 0.1 (p < 0.001); "
        "obj_drop=0.75 control beats 0 %"
    )


def test_a_gain_that_the_control_has_too_is_one_of_re_weighting(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(control=(0.09, 0.12, 0.11)))
    assert (
        "but its control, the same weights without randomness, gains +10.7 ± 3.8 too, and is not beaten (+0.3 ± 2.9): "
        "not shown to be more than a gain of re-weighting"
    ) in text


def test_a_control_that_gains_nothing_for_certain_must_be_beaten_too(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(control=(0.0, 0.1, 0.1)))
    assert (
        "but its control, the same weights without randomness (+6.7 ± 14.3), is not beaten (+4.3 ± 12.3): "
        "not shown to be more than a gain of re-weighting"
    ) in text


def test_of_a_removal_that_costs_nothing_is_said_about_the_control(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(drop=(-0.1, -0.11, -0.12), control=(-0.05, -0.2, 0.0)))
    assert "obj_drop=0.75 is worse than 0 %: -11.0 ± 2.5 points" in text
    assert "its control" not in text


def test_a_control_is_named_beside_losses(make_sweep: Any, make_record: Any) -> None:
    runs = [
        make_record("bce", 0, loss="bce"), make_record("focal", 0, loss="focal"),
        make_record("drop", 0, obj_drop=0.5), make_record("weight", 0, obj_drop=0.5, drop_select="weight"),
    ]  # fmt: skip
    table = judged(results(load(make_sweep(*runs))))[-1].levels
    assert "drop obj_drop=0.5 drop_select=weight (control)" in [row[0].text for row in table.rows]


def test_a_control_has_the_zero_run_of_what_it_is_the_control_of(make_sweep: Any, make_record: Any) -> None:
    runs = [
        make_record(f"{select}{removal}{s}", s, obj_drop=removal, drop_select=select, test=0.3 + s / 100 + removal / 10)
        for s in (0, 1)
        for select in ("random", "weight")
        for removal in (0.0, 0.5)
    ]
    found = results(load(make_sweep(*runs)))
    (series,) = found.series
    assert len(series.rows) == 3
    assert {row.base for row in found.rows if row.setting.removes} == {series.base}
    assert [row.test.count for row in found.rows if row.test] == [2, 2]


# The rule of sensitivity


def test_where_complete_labels_are_worth_too_little_there_is_no_verdict(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(full=(0.048, 0.049, 0.05), long=(0.1,)))
    assert text == (
        "No verdict: complete labels give the 0 % run 34.9 points of mAP50 on test and partial ones 30.0: "
        "+4.9 ± 0.2, n = 3, where methods are told apart from 5 on."
    )
    (text,) = verdicts(partial_sweep("enough", full=(0.05, 0.051, 0.052), long=(0.1,)))
    assert text.startswith("obj_drop=0.75 beats 0 %")


def test_five_points_are_enough(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(full=(0.05, 0.05, 0.05), long=(0.1,)))  # 0.35 - 0.3 is less than 0.05 in floats
    assert text.startswith("obj_drop=0.75 beats 0 %")


def test_complete_labels_for_some_of_the_seeds_are_not_enough(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(full=(0.2, 0.2)))
    assert text == "No verdict: the 0 % run with complete labels and the same seeds is missing."


def test_a_long_run_that_is_evaluated_in_another_way_does_not_count(
    partial_sweep: Any, make_sweep: Any, make_record: Any
) -> None:
    long = make_record("a", 0, test=0.6, host={"epochs": 10})
    long["evaluation"] = {"iou": 0.3, "conf": 0.001, "max_det": 300, "source": "as asked"}
    texts = verdicts(partial_sweep(long=None), make_sweep(long, name="other"))
    assert texts[0].endswith("(2 times the epochs or more) is missing.")


@pytest.mark.parametrize(("freeze", "counts"), [(10, False), (0, True)])
def test_a_long_run_of_which_less_is_trained_does_not_count(
    partial_sweep: Any, make_sweep: Any, make_record: Any, freeze: int, counts: bool
) -> None:
    long = make_record("a", 0, test=0.6, host={"epochs": 10, "freeze": freeze})
    texts = verdicts(partial_sweep(long=None), make_sweep(long, name="other"))
    assert texts[0].endswith("(2 times the epochs or more) is missing.") is not counts


def test_where_the_baseline_is_far_below_a_long_run_there_is_no_verdict(partial_sweep: Any) -> None:
    (text,) = verdicts(partial_sweep(full=(0.1, 0.1, 0.1), long=(0.501,)))
    assert text == (
        "No verdict: the 0 % run with complete labels reaches 40.0 points of mAP50 on test, "
        "less than half of the 80.1 of a long run (10 epochs)."
    )
    (text,) = verdicts(partial_sweep("half", full=(0.1, 0.1, 0.1), long=(0.499,)))
    assert text.startswith("obj_drop=0.75 beats 0 %")


def test_on_complete_labels_only_the_long_run_counts(make_sweep: Any, make_record: Any) -> None:
    (text,) = verdicts(make_sweep(*losses(make_record, {"bce": (0.2, 0.21), "focal": (0.26, 0.271)})))
    assert text == (
        "No verdict: bce reaches 20.5 points of mAP50 on test, less than half of the 50.0 of a long run (20 epochs)."
    )


def test_what_is_missing_is_told_with_its_command(partial_sweep: Any) -> None:
    folder = partial_sweep(full=None, long=None)
    (text,) = verdicts(folder)
    assert text == (
        "No verdict: the 0 % run with complete labels and the same seeds is missing; "
        "a long run of this detector with complete labels (2 times the epochs or more) is missing."
    )
    common = "model=yolov5n.yaml data=d.yaml obj_drop=0 drop_select=random"
    assert missing(folder) == [
        f"rebalance sweep name=mine-complete {common} epochs=2 protocol=normal seeds=0,1,2",
        f"rebalance sweep name=mine-long {common} epochs=10 protocol=normal seeds=0",
        "rebalance report runs/benchmark/mine reference=runs/benchmark/mine-complete,runs/benchmark/mine-long",
    ]
    for page in (terminal_table(folder), report(folder).read_text("utf-8")):
        for command in missing(folder):
            assert command in page
    for command in missing(folder)[:-1]:  # what is offered can be run
        given = dict(word.split("=", 1) for word in shlex.split(command)[2:])
        assert {run.labels.protocol for run in read_grid(given).runs} == {"normal"}


@pytest.mark.parametrize(
    ("epochs", "protocol", "reached", "told"),
    [
        (3, "normal", None, "(2 times the epochs or more) is missing"),
        (10, "extreme", 0.8, "(2 times the epochs or more) is missing"),
        (10, "normal", 0.5, "the data set comes with 50 % of its training boxes withheld"),
    ],
    ids=["slightly longer", "on partial labels", "on a data set that is partial as it comes"],
)
def test_a_run_that_is_no_long_run_on_complete_labels(
    partial_sweep: Any, make_record: Any, epochs: int, protocol: str, reached: float | None, told: str
) -> None:
    folder = partial_sweep(long=None)
    content = make_record("longer", 0, test=0.6, protocol=protocol, host={"epochs": epochs})
    content["config"]["labels"]["manifest"] = {"asked": None, "reached": reached, "sha256": "0"}
    (folder / "runs" / "longer").mkdir()
    (folder / "runs" / "longer" / "record.json").write_text(json.dumps(content), "utf-8")
    assert verdicts(folder)[0].startswith("No verdict: ")
    assert told in verdicts(folder)[0]


@pytest.mark.parametrize(
    ("changed", "there"),
    [
        ({}, True),
        ({"host": {"epochs": 10, "imgsz": 640}}, True),  # whatever makes it better
        ({"loss": "focal"}, True),
        ({"host": {"epochs": 10, "model": "yolov5s.yaml"}}, False),
        ({"host": {"epochs": 10, "data": "other.yaml"}}, False),
        ({"head": "stock"}, False),
        ({"protocol": "extreme"}, False),
    ],
)
def test_a_long_run_is_of_the_same_detector_and_data(
    partial_sweep: Any, make_sweep: Any, make_record: Any, changed: dict[str, Any], there: bool
) -> None:
    long = make_sweep(make_record("a", 0, test=0.6, **{"host": {"epochs": 10}, **changed}), name="other")
    folder = partial_sweep(long=None)
    assert verdicts(folder)[0].startswith("No verdict")
    assert verdicts(folder, long)[0].startswith("No verdict") != there


def test_complete_labels_and_a_long_run_may_be_another_sweeps(
    partial_sweep: Any, make_sweep: Any, make_record: Any
) -> None:
    folder = partial_sweep(full=None, long=None)
    full = make_sweep(*(make_record(f"a{s}", s, test=0.5) for s in range(3)), name="full")
    long = make_sweep(make_record("a", 0, test=0.6, host={"epochs": 10}), name="long")
    assert verdicts(folder, full, long)[0].startswith("obj_drop=0.75 beats 0 %")
    text = report(folder, references=[full, long]).read_text("utf-8")
    assert "0%, complete labels" in text
    assert "rebalance report runs/benchmark/mine reference=runs/benchmark/full,runs/benchmark/long" in text
    assert "9 runs: 9 finished" in text  # those of other sweeps are not this one's


def test_a_data_set_that_is_partial_as_it_comes_has_no_verdict(make_sweep: Any, make_record: Any) -> None:
    runs = [*losses(make_record, {"bce": (0.3, 0.31), "focal": (0.36, 0.371)})]
    for run in runs:
        run["config"]["labels"]["manifest"] = {"asked": 0.5, "reached": 0.499, "sha256": "0"}
    folder = make_sweep(*runs)
    assert verdicts(folder) == [
        "No verdict: the data set comes with 50 % of its training boxes withheld, so that no run with complete labels "
        "can stand beside; on a complete data set protocol= withholds them."
    ]
    assert missing(folder) == []


def test_on_such_a_data_set_no_run_is_one_on_complete_labels(partial_sweep: Any) -> None:
    """Of labels that are withheld from it beside, what it comes with is a part too."""
    folder = partial_sweep()
    for path in folder.glob("runs/*/record.json"):
        content = json.loads(path.read_text("utf-8"))
        content["config"]["labels"]["manifest"] = {"asked": 0.5, "reached": 0.5, "sha256": "0"}
        path.write_text(json.dumps(content), "utf-8")
    (found,) = judged(results(load(folder)))
    assert found.verdict.startswith("No verdict: the data set comes with 50 % of its training boxes withheld")
    assert not any("complete labels" in row[0].text for row in found.levels.rows)
    assert not any("gap closed" in table.head for table in found.tables)


def test_runs_that_several_comparisons_lack_have_names_of_their_own(make_sweep: Any, make_record: Any) -> None:
    runs = [
        make_record(f"{head}{loss}{s}", s, head=head, loss=loss, test=0.3 + s / 100, protocol="extreme")
        for head in ("anchor", "stock")
        for loss in ("bce", "focal")
        for s in (0, 1)
    ]
    names = [word for line in missing(make_sweep(*runs)) for word in line.split() if word.startswith("name=")]
    assert names == ["name=mine-complete", "name=mine-long", "name=mine-complete-2", "name=mine-long-2"]
