"""The grid: what `key=value` texts ask for, and what is refused before anything runs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rebalance.errors import ConfigError
from rebalance.experiments.grid import Labels, as_begun, difference, literal, read_grid, read_grids, split

BASE = {"model": "yolov5n.yaml", "data": "my.yaml"}
PAPER = {"obj_drop": "0,0.1,0.25,0.75,0.9", "box_drop": "0,0.1,0.25,0.75,0.9"}


def ids(**given: str) -> list[str]:
    return [run.id for run in read_grid({**BASE, **given}).runs]


def test_product_is_every_combination_seed_by_seed() -> None:
    assert ids(obj_drop="0,0.5", imgsz="64,96", seeds="0,3") == [
        f"obj_drop={p},imgsz={size},seed={seed}" for seed in (0, 3) for p in ("0", "0.5") for size in (64, 96)
    ]


def test_series_vary_one_list_at_a_time_and_share_the_base() -> None:
    assert ids(**PAPER, series="True") == [
        "obj_drop=0,box_drop=0,seed=0",
        *(f"obj_drop={p},seed=0" for p in ("0.1", "0.25", "0.75", "0.9")),
        *(f"box_drop={p},seed=0" for p in ("0.1", "0.25", "0.75", "0.9")),
    ]
    runs = read_grid({**BASE, **PAPER, "series": "True", "seeds": "0,1,2"}).runs
    assert len(runs) == 27
    assert [(run.train["obj_drop"], run.train["box_drop"]) for run in runs[:2]] == [(0, 0), (0.1, 0)]
    assert (runs[-1].train["obj_drop"], runs[-1].train["box_drop"], runs[-1].seed) == (0, 0.9, 2)


def test_flags_of_a_method_vary_where_the_loss_has_it() -> None:
    assert ids(loss="focal,brl,brl+drop", brl_t="0.3,0.5", obj_drop="0.25,0.5") == [
        "loss=focal,seed=0",
        *(f"loss=brl,brl_t={t},seed=0" for t in ("0.3", "0.5")),
        *(f"loss=brl+drop,brl_t={t},obj_drop={p},seed=0" for t in ("0.3", "0.5") for p in ("0.25", "0.5")),
    ]
    assert ids(loss="bce,obj,resobj", resobj_steps="1,2") == [
        "loss=bce,seed=0", "loss=obj,seed=0", "loss=resobj,resobj_steps=1,seed=0", "loss=resobj,resobj_steps=2,seed=0"
    ]  # fmt: skip
    assert ids(head="stock,resobj", resobj_steps="1,2")[0] == "head=stock,seed=0"
    assert [run.given for run in read_grid({**BASE, "loss": "bce,drop", "obj_drop": "0.5"}).runs] == [
        ("loss",), ("loss", "obj_drop")
    ]  # fmt: skip


def test_flags_of_a_method_that_no_loss_has_stay_to_be_refused() -> None:
    assert all("brl_t" in run.given for run in read_grid({**BASE, "loss": "focal,bce", "brl_t": "0.3,0.5"}).runs)
    assert all("brl_t" in run.given for run in read_grid({**BASE, "loss": "focal", "brl_t": "0.3"}).runs)


def test_series_base_is_zero_wherever_it_stands_and_else_the_first() -> None:
    runs = read_grid({**BASE, "obj_drop": "0.5,0", "lr0": "0.01,0.02", "series": "True"}).runs
    assert [(run.train["obj_drop"], run.host["lr0"]) for run in runs] == [(0, 0.01), (0.5, 0.01), (0, 0.02)]
    assert [dict(run.varied) for run in runs] == [{"obj_drop": 0, "lr0": 0.01}, {"obj_drop": 0.5}, {"lr0": 0.02}]


def test_one_value_of_a_removal_is_a_series_from_zero_and_other_single_values_are_for_all_runs() -> None:
    given = {**BASE, "obj_drop": "0,0.75", "box_drop": "0.75", "imgsz": "320", "neg_iou": "0.4", "series": "True"}
    runs = read_grid(given).runs
    assert [(run.train["obj_drop"], run.train["box_drop"]) for run in runs] == [(0, 0), (0.75, 0), (0, 0.75)]
    assert {(run.host["imgsz"], run.train["neg_iou"]) for run in runs} == {(320, 0.4)}
    assert [run.id for run in runs] == ["obj_drop=0,box_drop=0,seed=0", "obj_drop=0.75,seed=0", "box_drop=0.75,seed=0"]
    assert ids(obj_drop="0.25,0.5", series="True") == [f"obj_drop={p},seed=0" for p in ("0", "0.25", "0.5")]
    assert ids(loss="nrd", nrd_rate="0.75", series="True") == ["nrd_rate=0,seed=0", "nrd_rate=0.75,seed=0"]
    assert ids(obj_drop="0", imgsz="320", series="True") == ["seed=0"]
    assert ids(obj_drop="0,0.75", box_drop="0.75") == ["obj_drop=0,seed=0", "obj_drop=0.75,seed=0"]  # the product
    assert read_grid({**BASE, "box_drop": "0.75"}).runs[0].train["box_drop"] == 0.75


def test_a_removal_is_no_series_where_the_base_has_another_loss() -> None:
    runs = read_grid({**BASE, "loss": "bce,drop", "obj_drop": "0.5", "series": "True"}).runs
    assert [(run.train["loss"], run.train["obj_drop"]) for run in runs] == [("bce", 0), ("drop", 0.5)]


def test_a_point_of_a_series_that_the_base_s_loss_has_no_use_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"brl_t=0\.5 has no effect with loss=bce, from which the series starts"):
        read_grid({**BASE, "loss": "bce,brl", "brl_t": "0.3,0.5", "series": "True"})


def test_the_labels_move_with_the_seed_unless_a_label_seed_is_given() -> None:
    given = {**BASE, "protocol": "normal,percent,extreme", "seeds": "0,1,7"}
    assert [run.labels.seed for run in read_grid(given).runs] == [0, 0, 0, 0, 1, 1, 0, 7, 7]
    assert [run.labels.seed for run in read_grid({**given, "label_seed": "3"}).runs] == [0, 3, 3] * 3
    assert "label_seed" not in read_grid(given).asked
    assert difference(read_grid({**given, "label_seed": "0"}).asked, read_grid(given).asked) == (
        "label_seed was 0, is not given"
    )


def test_a_sweep_of_an_earlier_version_goes_on_with_its_one_label_seed() -> None:
    given = {**BASE, "protocol": "normal,percent", "seeds": "0,1"}
    grid = read_grid(given)
    kept = as_begun(grid, {**grid.asked, "label_seed": 0})
    assert [run.labels.seed for run in kept.runs] == [0, 0, 0, 0]
    assert difference({**grid.asked, "label_seed": 0}, kept.asked) == ""
    three = read_grid({**given, "label_seed": "3"})
    assert as_begun(three, {**three.asked, "label_seed": 3}).runs == three.runs
    assert difference({**grid.asked, "label_seed": 3}, as_begun(three, {"label_seed": 3}).asked) == ""
    assert difference({**grid.asked, "label_seed": 3}, as_begun(grid, {"label_seed": 3}).asked) == (
        "label_seed was 3, is not given"
    )
    assert as_begun(grid, {**grid.asked}) == grid  # begun by this version
    assert as_begun(grid, {**grid.asked, "label_seed": [0]}) == grid


def complete(**given: str) -> list[tuple[str, str]]:
    runs = read_grid({**BASE, "complete": "True", **given}).runs
    return [(run.id, run.labels.protocol) for run in runs if run.labels.protocol == "normal"]


def test_the_baseline_is_trained_on_complete_labels_too_once_a_seed() -> None:
    half = {"protocol": "percent", "rate": "0.5"}
    runs = read_grid({**BASE, **PAPER, **half, "series": "True", "complete": "True", "seeds": "0,1"}).runs
    assert len(runs) == 20
    assert [run.id for run in runs if run.labels == Labels()] == [
        f"obj_drop=0,box_drop=0,protocol=normal,seed={seed}" for seed in (0, 1)
    ]
    first, *_, whole = runs[:10]
    assert (whole.train, whole.host, whole.given) == (first.train, first.host, first.given)
    assert dict(whole.varied) == {"obj_drop": 0, "box_drop": 0, "protocol": "normal"}
    assert complete(**half, loss="focal,brl,brl+drop", brl_t="0.3,0.5", obj_drop="0.5") == [
        ("loss=focal,protocol=normal,seed=0", "normal")
    ]


def test_every_detector_and_budget_has_its_own_complete_run_and_a_head_that_is_a_method_that_of_another() -> None:
    extreme = {"protocol": "extreme"}
    assert [run for run, _ in complete(**extreme, head="resobj,anchor,stock", imgsz="64,96")] == [
        f"head={head},imgsz={size},protocol=normal,seed=0" for head in ("anchor", "stock") for size in (64, 96)
    ]
    assert complete(head="resobj", resobj_steps="0,1,2", **extreme) == [
        ("resobj_steps=0,protocol=normal,seed=0", "normal")
    ]


def test_a_complete_run_that_is_there_is_not_made_again() -> None:
    assert complete(protocol="normal,extreme", loss="focal,brl") == [
        (f"protocol=normal,loss={loss},seed=0", "normal") for loss in ("focal", "brl")
    ]
    assert complete(protocol="percent", rate="0,0.5") == []  # nothing is withheld at a rate of 0


def test_a_complete_run_removes_nothing_even_where_all_others_do() -> None:
    grid = read_grid({**BASE, "complete": "True", "protocol": "hard", "obj_drop": "0.5,0.75", "box_drop": "0.9"})
    whole = grid.runs[-1]
    assert (whole.train["obj_drop"], whole.train["box_drop"]) == (0, 0)
    assert whole.id == "obj_drop=0,box_drop=0,protocol=normal,seed=0"
    (_, whole) = read_grid({**BASE, "complete": "True", "protocol": "hard", "loss": "nrd"}).runs
    assert (whole.train["nrd_rate"], whole.given, whole.id) == (
        0, ("loss", "nrd_rate"), "nrd_rate=0,protocol=normal,seed=0"
    )  # fmt: skip


def test_the_control_of_a_fraction_stands_beside_the_runs_that_drop_it_at_random() -> None:
    def controls(**given: str) -> list[str]:
        runs = read_grid({**BASE, **given}).runs
        return [run.id for run in runs if run.train["drop_select"] == "weight"]

    assert controls(obj_drop="0,0.5,0.9", control="0.5") == ["obj_drop=0.5,drop_select=weight,seed=0"]
    assert controls(**PAPER, series="True", control="0.75,0.9", seeds="3") == [
        f"{axis}={p},drop_select=weight,seed=3" for p in ("0.75", "0.9") for axis in ("obj_drop", "box_drop")
    ]
    grid = read_grid({**BASE, "obj_drop": "0.5", "control": "0.5", "drop_scope": "matched"})
    chance, weights = grid.runs
    assert (weights.given, weights.train) == (
        ("obj_drop", "drop_scope", "drop_select"), {**chance.train, "drop_select": "weight"}
    )  # fmt: skip
    assert grid.asked["control"] == [0.5]
    assert controls(obj_drop="0,0.5", drop_select="random,weight", control="0.5").count(
        "obj_drop=0.5,drop_select=weight,seed=0"
    ) == 1  # fmt: skip


def test_several_grids_share_the_complete_run_of_their_baseline() -> None:
    common = {**BASE, "protocol": "percent", "complete": "True", "seeds": "0,1"}
    grid = read_grids([{**common, "loss": "focal"}, {**common, "loss": "brl", "brl_t": "0.3,0.5"}])
    assert [run.id for run in grid.runs][:4] == [
        "loss=focal,seed=0",
        "loss=brl,brl_t=0.3,seed=0",
        "loss=brl,brl_t=0.5,seed=0",
        "loss=focal,protocol=normal,seed=0",
    ]
    assert len(grid.runs) == 8
    assert grid.asked["complete"] is True
    common |= {"protocol": "extreme", "seeds": "0"}
    grid = read_grids([{**common, "head": "anchor", "loss": "bce"}, {**common, "loss": "resobj"}])
    assert [run.id for run in grid.runs if run.labels == Labels()] == ["head=anchor,loss=bce,protocol=normal,seed=0"]


def test_one_run_where_nothing_varies() -> None:
    (run,) = read_grid({**BASE, "obj_drop": "0.75", "epochs": "3", "head": "anchor"}).runs
    assert run.id == "seed=0"
    assert run.given == ("obj_drop", "head")
    assert (run.train["obj_drop"], run.train["head"], run.train["box_drop"]) == (0.75, "anchor", 0)
    assert dict(run.host) == {"model": "yolov5n.yaml", "data": "my.yaml", "epochs": 3}
    assert run.labels == Labels(protocol="normal", rate=0, seed=0)
    assert dict(run.varied) == {}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0", ["0"]),
        ("0, 0.5", ["0", "0.5"]),
        ("[0,1]", ["[0,1]"]),
        ("[0,1],[2]", ["[0,1]", "[2]"]),
        ("(0.5,2.0),0.5", ["(0.5,2.0)", "0.5"]),
        ("[[0,1],(2,3)],4", ["[[0,1],(2,3)]", "4"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("", [""]),
    ],
)
def test_brackets_and_quotes_protect_commas(text: str, parts: list[str]) -> None:
    assert split("key", text) == parts


def test_lists_that_belong_to_the_host_stay_one_value() -> None:
    (run,) = read_grid({**BASE, "device": "0,1", "classes": "[0,1]", "scale": "(0.5,2.0)"}).runs
    assert (run.host["device"], run.host["classes"], run.host["scale"]) == ("0,1", [0, 1], (0.5, 2.0))
    assert [run.host["freeze"] for run in read_grid({**BASE, "freeze": "[0],[0,1]"}).runs] == [[0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [("none", None), ("True", True), ("false", False), ("3", 3), ("0.5", 0.5), ("1e-3", 0.001), ("SGD", "SGD")],
)
def test_literals_are_read_as_the_host_reads_them(text: str, value: Any) -> None:
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_protocols_and_rates_are_dimensions_and_a_rate_counts_only_where_it_has_a_meaning() -> None:
    runs = read_grid({**BASE, "protocol": "normal,extreme,percent", "rate": "0.1,0.5", "label_seed": "7"}).runs
    assert [run.labels for run in runs] == [
        Labels(protocol="normal", rate=0, seed=0),
        Labels(protocol="extreme", rate=0, seed=7),
        Labels(protocol="percent", rate=0.1, seed=7),
        Labels(protocol="percent", rate=0.5, seed=7),
    ]
    assert [run.id for run in runs] == [
        "protocol=normal,seed=0",
        "protocol=extreme,seed=0",
        "protocol=percent,rate=0.1,seed=0",
        "protocol=percent,rate=0.5,seed=0",
    ]


def test_ids_are_safe_as_folder_names_unique_and_stable() -> None:
    given = {
        "model": "a/m.yaml,b/m.yaml,c d.yaml",
        "pretrained": "../w:1?.pt,True",
        "cfg": "x" * 200 + "," + "x" * 199 + "y",
        "lr0": "1e-05,0.5",
    }
    names = ids(**given)
    assert len(names) == len({name.lower() for name in names}) == 24
    assert all(re.fullmatch(r"[A-Za-z0-9._+=,~-]{1,150}", name) for name in names)
    assert names == ids(**given)
    # what does not vary may be given in any order, and a sweep may go on elsewhere
    assert ids(**given, device="cpu", epochs="7") == ids(**given, epochs="7", device="0")  # a sweep may go on elsewhere
    assert ids(optimizer="SGD,sgd")[0].lower() != ids(optimizer="SGD,sgd")[1].lower()  # one folder on some systems


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": ""}, "model= is missing"),
        ({"data": ""}, "data= is missing"),
        ({"obj_drop": "0,1.5"}, "obj_drop=1.5 is out of range: 0 to 1"),
        ({"obj_drop": "0,half"}, "obj_drop=half is not a number"),
        ({"obj_drop": "0,0.5,0.0"}, "obj_drop: 0 is given twice"),
        ({"lr0": "0.1,1e-1"}, "lr0: 0.1 is given twice"),
        ({"obj_drop": "0,,0.5"}, "an empty value in the list"),
        ({"classes": "[0,1"}, "not closed"),
        ({"head": "ancor,stock"}, "did you mean anchor?"),
        ({"protocol": "normal,extrem"}, "did you mean extreme?"),
        ({"protocol": "percent", "rate": "0.5,2"}, "rate=2 is out of range"),
        ({"rate": "0.3"}, "rate=0.3 has no meaning with protocol=normal"),
        ({"rate": "0.3,0.5", "protocol": "normal,percent", "series": "True"}, "has no meaning"),
        ({"label_seed": "3"}, "protocol=normal withholds nothing"),
        ({"protocol": "percent", "label_seed": "0,1"}, "label_seed=0,1 is not a whole number"),
        ({"protocol": "percent", "label_seed": "-1"}, "label_seed=-1 is not a whole number"),
        ({"complete": "True"}, "complete=True has no meaning where nothing is withheld"),
        ({"complete": "True", "protocol": "percent", "rate": "0"}, "complete=True has no meaning"),
        ({"obj_drop": "0,0.5", "control": "0.75"}, "control=0.75: no run drops that fraction at random"),
        ({"obj_drop": "0,0.5", "drop_select": "confident", "control": "0.5"}, "control=0.5: no run drops that"),
        ({"loss": "nrd", "nrd_rate": "0.5", "control": "0.5"}, "control=0.5: no run drops that"),
        ({"obj_drop": "0,0.5", "control": "half"}, "control=half is not a number"),
        ({"obj_drop": "0,0.5", "control": "0.5,0.5"}, "control: 0.5 is given twice"),
        ({"seeds": "0,0"}, "seeds: 0 is given twice"),
        ({"seeds": "0,1.5"}, "seeds=1.5 is not"),
        ({"seeds": "-1"}, "seeds=-1 is not"),
        ({"seeds": "0,4294967295"}, "seeds=4294967295 is out of range: 0 to 4294967294"),
        ({"seed": "3"}, "give seeds="),
        ({"project": "x"}, "give name="),
        ({"jobs": "0"}, "jobs=0 is out of range"),
        ({"name": "../x"}, "is not a folder name"),
        ({"name": ".x"}, "is not a folder name"),
    ],
)
def test_a_bad_grid_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_grid({**BASE, **given})
    assert "\n" not in str(caught.value)


def test_difference_says_what_changed() -> None:
    old = read_grid({**BASE, "epochs": "100", "obj_drop": "0,0.5"}).asked
    new = read_grid({**BASE, "lr0": "0.01", "obj_drop": "0,0.9", "epochs": "100", "jobs": "4", "name": "x"}).asked
    assert difference(old, new) == "obj_drop was 0,0.5, is 0,0.9; lr0 was not given, is 0.01"
    assert difference(new, old) == "lr0 was 0.01, is not given; obj_drop was 0,0.9, is 0,0.5"
    assert difference(old, old) == ""


# ---- noise of the labels


def noise(**given: str) -> list[tuple[str, dict[str, Any]]]:
    return [(run.id, run.labels.told) for run in read_grid({**BASE, **given}).runs]


def test_noise_travels_beside_the_protocol_and_its_seed_with_the_training() -> None:
    told = noise(protocol="percent", rate="0.3", jitter="0,0.2", class_flip="0.1", seeds="0,7")
    missing = {"protocol": "percent", "rate": 0.3}
    assert told == [
        (f"jitter={rate:g},seed={seed}", {**missing, "seed": seed, **jitter, "class_flip": 0.1})
        for seed in (0, 7) for rate, jitter in ((0, {}), (0.2, {"jitter": 0.2, "jitter_iou": "[0.5,0.9]"}))
    ]  # fmt: skip
    assert noise(extra="0.1", seeds="4") == [("seed=4", {"protocol": "normal", "rate": 0.0, "seed": 4, "extra": 0.1})]
    assert noise(extra="0.1", seeds="4", label_seed="2")[0][1]["seed"] == 2
    assert noise(extra="0", seeds="4") == [("seed=4", {"protocol": "normal", "rate": 0.0, "seed": 0})]


def test_ranges_of_displaced_boxes_are_a_dimension_where_boxes_are_displaced() -> None:
    assert [name for name, _ in noise(jitter="0,0.5", jitter_iou="[0.3,0.5],[0.5,0.9]")] == [
        "jitter=0,seed=0", "jitter=0.5,jitter_iou=0.3_0.5,seed=0", "jitter=0.5,jitter_iou=0.5_0.9,seed=0",
    ]  # fmt: skip


def test_a_grid_without_noise_is_what_it_was() -> None:
    grid = read_grid({**BASE, "protocol": "percent", "rate": "0.5"})
    assert not {"extra", "jitter", "class_flip", "jitter_iou"} & {*grid.asked, *grid.runs[0].labels.told}


def test_the_baseline_on_complete_labels_has_no_noise_either() -> None:
    grid = read_grid({**BASE, "extra": "0.1,0.2", "complete": "True"})
    assert [(run.id, run.labels.told) for run in grid.runs][-1] == (
        "extra=0,protocol=normal,seed=0", {"protocol": "normal", "rate": 0.0, "seed": 0}
    )  # fmt: skip
    assert len(grid.runs) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jitter": "1.5"}, "jitter=1.5 is out of range: 0 to 1"),
        ({"jitter": "0.5", "jitter_iou": "[0.9,0.5]"}, "jitter_iou=[0.9,0.5] is not a range of IoU"),
        ({"jitter_iou": "[0.5,0.7]"}, "jitter_iou=[0.5,0.7] has no effect with jitter=0"),
        (
            {"jitter": "0,0.1", "jitter_iou": "[0.5,0.7],[0.5,0.6]", "series": "True"},
            "jitter_iou=[0.5,0.7],[0.5,0.6] has no effect with jitter=0,0.1",
        ),
        ({"label_seed": "1", "extra": "0"}, "label_seed=1: protocol=normal withholds nothing"),
        ({"missing": "0.3"}, "missing=0.3: give protocol=percent rate="),
        ({"extra": "0.1,0.1"}, "extra: 0.1 is given twice"),
    ],
)
def test_noise_that_would_have_no_effect(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_grid({**BASE, **given})
