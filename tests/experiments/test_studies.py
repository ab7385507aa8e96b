"""The papers' tables and figures: the runs that each asks for, that the host takes them, and what overrides them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from objectives import recipe_of

from rebalance.errors import ConfigError
from rebalance.experiments.grid import Run, read_grids
from rebalance.experiments.papers import (
    SIZES,
    Study,
    about,
    arguments,
    detectors,
    family,
    find,
    notes,
    numbers,
    studies,
    titles,
)
from rebalance.recipe import Recipe
from rebalance.report import papers
from rebalance.report.figures.curves import FIGURES
from rebalance.train.admission import check_names, check_schedule
from rebalance.train.arguments import check_arguments

TRAINED = [study for study in studies().values() if study.cells]
SCHEDULE = ("lr_steps", "warmup_from", "grad_clip", "optim_eps")
HOSTS = {"yolov3": "yolo", "yolov5": "yolo"}


def runs(key: str, **given: str) -> tuple[Run, ...]:
    return read_grids(arguments(find(key), {"data": "d.yaml", **given})).runs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("study", TRAINED, ids=lambda study: study.key)
def test_the_host_takes_every_run_and_a_size_is_one_budget(study: Study, size: str) -> None:
    grid = read_grids(arguments(study, {"data": "d.yaml", "preset": size}))
    assert grid.flags.name == f"{study.key}-{size}"
    assert len({run.id for run in grid.runs}) == len(grid.runs)
    for run in grid.runs:
        host = {key: value for key, value in run.host.items() if key not in ("model", "data")}
        check_names(host)
        check_arguments(host)
        check_schedule(resolved(run), host)
    by_model: dict[str, list[Any]] = {}
    for run in grid.runs:
        budget = {key: value for key, value in run.host.items() if key not in ("model", "data", "conf", "iou")}
        budget |= {name: run.train[name] for name in SCHEDULE}
        by_model.setdefault(str(run.host["model"]), []).append(budget)
    assert all(budget == budgets[0] for budgets in by_model.values() for budget in budgets)
    if size == "cpu":
        assert {(run.host["device"], run.host["imgsz"], run.seed) for run in grid.runs} == {("cpu", 256, 0)}
    else:
        assert {run.seed for run in grid.runs} == {0, 1, 2}
        assert study.note


def test_every_detector_and_flag_of_a_schedule_is_known() -> None:
    from ultralytics.utils import DEFAULT_CFG_DICT

    from rebalance.hosts.torchvision.zoo import ZOO

    for size in SIZES:
        assert detectors(size).keys() == detectors("cpu").keys()
        for key, budget in detectors(size).items():
            assert key in HOSTS or budget["model"] in ZOO
            assert budget.keys() <= {*DEFAULT_CFG_DICT, *SCHEDULE, "jobs", "seeds"}
            assert {"iou", "conf", "max_det"} <= budget.keys()  # evaluation belongs to the study


def test_keys_tables_and_figures_exist() -> None:
    tables = {(number.paper, number.table) for number in numbers()}
    for study in studies().values():
        assert study.paper in titles()
        assert {(study.paper, table) for table in study.tables} <= tables
        assert bool(study.cells) + bool(study.runs_of) + bool(set(study.figures) & set(FIGURES)) == 1
        assert find(study.key).key == (study.runs_of or study.key)


def losses(key: str) -> list[tuple[Any, ...]]:
    return [(r.host["model"], r.train["loss"], r.labels.protocol, r.labels.rate) for r in runs(key)]


def test_brl_tables() -> None:
    four = ("normal", "easy", "hard", "extreme")
    assert losses("brl.table1") == [("retinanet_tiny", "focal", p, 0) for p in four]
    assert losses("brl.table4") == [
        *(("retinanet_tiny", loss, p, 0) for loss in ("focal", "ghm", "brl") for p in four),
        *(("fasterrcnn_tiny", "ohem", p, 0) for p in four),
        ("retinanet_tiny", "focal", "per_class", 0.5),
        ("retinanet_tiny", "brl", "per_class", 0.5),
    ]
    assert losses("brl.table2")[:2] == [("retinanet_tiny", "focal", p, 0) for p in ("extreme", "normal")]
    of_brl = ("loss", "brl_iou", "brl_t", "brl_weight")
    assert [tuple(r.train[name] for name in of_brl) for r in runs("brl.table2")[2:]] == [
        ("brl", iou, 0.5, 0.5) for iou in (0.2, 0.1, 0.05)
    ]
    assert [tuple(r.train[name] for name in of_brl) for r in runs("brl.isolation")[2:]] == [
        ("brl", 0.1, 0.5, weight) for weight in (0, 0.5)
    ]
    # t = 0.5 at weight 0.5 is in both halves of the table, and one run
    assert [(r.train["brl_t"], r.train["brl_beta"], r.train["brl_weight"]) for r in runs("brl.table3")[2:]] == [
        *((t, 1, 0.5) for t in (0, 0.1, 0.25, 0.5)),
        (0.5, 0, 0.5),
        *((0.5, 1, weight) for weight in (1, 0.25, 0.1, 0.01)),
    ]
    for key in ("brl.table2", "brl.table3", "brl.fig3", "brl.isolation"):
        complete, *others = sorted(runs(key), key=lambda r: r.labels.protocol != "normal")
        assert (complete.labels.protocol, complete.train["loss"]) == ("normal", "focal")
        assert {r.labels.protocol for r in others} == {"extreme"}
    assert losses("brl.coco") == [("retinanet_tiny", loss, "normal", 0) for loss in ("focal", "brl")]
    assert losses("brl.coco50") == [
        *(("retinanet_tiny", loss, "per_class", 0.5) for loss in ("focal", "brl")),
        ("retinanet_tiny", "focal", "normal", 0),
    ]
    trained = [r for study in TRAINED if study.paper == "brl" for r in runs(study.key)]
    assert {r.train["ghm_regions"] for r in trained if r.train["loss"] == "ghm"} == {"occupied"}
    assert {resolved(r)["brl_warmup"] for r in trained if r.train["loss"] == "brl"} == {0}  # the paper has none


def test_brl_on_gpus_has_the_papers_detectors_and_seeds() -> None:
    found = runs("brl.table4", preset="gpu")
    assert len(found) == 3 * 18
    assert {(r.labels.protocol == "per_class", r.host["model"]) for r in found} == {
        (False, "retinanet_resnet101_fpn"),
        (False, "fasterrcnn_resnet101_fpn"),
        (True, "retinanet_resnet50_fpn"),
    }
    assert {(r.host["epochs"], r.host["batch"], r.host["optimizer"]) for r in found} == {(12, 16, "SGD")}
    assert {tuple(r.train[name] for name in SCHEDULE) for r in found} == {("[8,11]", 0.3333, 35, 0)}
    assert {(r.host["iou"], r.host["conf"], r.host["max_det"]) for r in found} == {(0.5, 0.05, 100)}
    assert {(r.labels.protocol == "per_class", r.host["imgsz"]) for r in found} == {(False, 800), (True, 1088)}


def test_label_noise_is_nested_and_has_both_kinds_of_ce() -> None:
    found = runs("label-noise.fig3")
    rates = [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [(r.train["loss"], r.labels.rate) for r in found] == [
        (n, p) for n in ("ohem", "bce", "focal") for p in rates
    ]
    assert {r.labels.seed for r in found} == {0}
    assert {r.train["head"] for r in found} == {"sigmoid"}
    assert {(r.train["focal_alpha"], r.train["focal_gamma"]) for r in found if r.train["loss"] == "focal"} == {
        (0.75, 2)
    }
    assert {r.train["ohem_ratio"] for r in found} == {3}
    assert [(r.train["focal_gamma"], r.labels.rate) for r in runs("label-noise.fig5")] == [
        (gamma, rate) for gamma in range(9) for rate in rates
    ]
    assert [run.id for run in runs("label-noise.fig4")] == [run.id for run in found]


def test_label_noise_on_gpus_has_the_study_s_optimizer() -> None:
    found = runs("label-noise.fig3", preset="gpu")
    keys = ("optimizer", "lr0", "lrf", "momentum", "weight_decay", "batch", "warmup_epochs", "iou", "conf", "max_det")
    assert {tuple(r.host[key] for key in keys) for r in found} == {
        ("RMSprop", 0.004, 1, 0.9, 0.00004, 24, 0, 0.6, 0.3, 100)
    }
    assert {(r.train["optim_eps"], r.train["grad_clip"], tuple(r.host["scale"])) for r in found} == {(1, 0, (1, 2))}


def test_removal_tables_are_the_benchmarks_with_their_controls() -> None:
    def removals(key: str, axis: str) -> list[tuple[Any, ...]]:
        return [tuple(r.train[name] for name in (axis, "drop_select", "drop_scope")) for r in runs(key)]

    rates = (0.1, 0.25, 0.75, 0.9)
    random = [(rate, "random", "background") for rate in (0, *rates)]
    control = [(rate, "weight", "background") for rate in rates]
    assert removals("rebalancing.table2", "box_drop") == [*random, *control]
    assert removals("rebalancing.table3", "obj_drop") == [
        *random, *control, *((rate, "random", "literal") for rate in rates)
    ]  # fmt: skip
    assert {r.train["head"] for r in runs("rebalancing.table3")} == {"anchor"}
    assert losses("rebalancing.table1") == [
        ("fasterrcnn_tiny", "bce", "normal", 0),
        ("yolov5n.yaml", "bce", "normal", 0),
    ]
    found = runs("rebalancing.table1", preset="gpu")
    assert {(r.host["model"], r.host["iou"], r.host["epochs"]) for r in found} == {
        ("fasterrcnn_resnet50_fpn", 0.5, 16),
        ("yolov5s.yaml", 0.6, 100),
    }


def resolved(run: Run) -> Recipe:
    family_ = family(str(run.host["model"]))
    given = {name: run.train[name] for name in run.given}
    return recipe_of(given, host=HOSTS.get(family_, family_), anchored=family_ in HOSTS)


def test_residual_objectness_tables() -> None:
    def found(key: str, *names: str) -> list[tuple[Any, ...]]:
        return [tuple(resolved(run)[name] for name in names) for run in runs(key)]

    assert found("resobj.table1", "loss", "head") == [("focal", "stock"), ("bce", "obj")]
    assert [(r.host["conf"], r.host["iou"]) for r in runs("resobj.table1")] == [(0.05, 0.5), (0.001, 0.45)]
    two = ("head", "resobj_steps")
    assert found("resobj.table2a", *two, "resobj_grad") == [("resobj", 1, "joint"), ("resobj", 1, "isolated")]
    assert found("resobj.table2b", *two, "resobj_on") == [("resobj", 1, "cls"), ("resobj", 1, "obj")]
    assert found("resobj.table2c", "head") == [("stock",), ("obj",), *[("resobj",)] * 3]
    assert found("resobj.table2c", *two)[2:] == [("resobj", steps) for steps in (1, 2, 3)]
    assert found("resobj.table3", "loss", *two) == [
        *((loss, head, 2) for loss, head in (("focal", "stock"), ("bce+ghm", "stock"), ("bce", "resobj"))),
        *(("bce", head, 2) for head in ("stock", "resobj", "anchor", "resobj")),
    ]
    models = ["retinanet_tiny"] * 3 + ["fasterrcnn_tiny"] * 2 + ["yolov3-tiny.yaml"] * 2
    assert [run.host["model"] for run in runs("resobj.table3")] == models
    sizes = {(r.host["model"], r.host["imgsz"]) for r in runs("resobj.table3", preset="gpu")}
    assert sizes == {("retinanet_resnet50_fpn", 1088), ("fasterrcnn_resnet50_fpn", 1088), ("yolov3.yaml", 320)}
    assert {r.host["imgsz"] for r in runs("resobj.table2c", preset="gpu")} == {800}
    trained = [r for study in TRAINED if study.paper == "residual" for r in runs(study.key)]
    assert {resolved(r)["ghm_regions"] for r in trained if r.train["loss"] == "ghm"} == {"occupied"}
    assert {r.train["resobj_gate"] for r in trained if r.train["loss"] == "resobj"} == {"image"}
    for preset, prior in (("cpu", "code"), ("gpu", "paper")):  # with few classes 1/C is no start
        trained = [r for study in TRAINED if study.paper == "residual" for r in runs(study.key, preset=preset)]
        priors = {(family(str(r.host["model"])), r.train["obj_prior"]) for r in trained if "obj" in r.train["loss"]}
        assert priors == {("retinanet", prior), ("fasterrcnn", prior), ("yolov3", "code")}


@pytest.mark.parametrize("key", [study.key for study in TRAINED if study.paper == "residual"])
def test_the_residual_paper_s_number_stands_beside_every_run(key: str) -> None:
    tables = [("residual", table) for table in find(key).tables]
    for run in runs(key):
        values = {**run.host, **resolved(run).values, "protocol": run.labels.protocol, "rate": run.labels.rate}
        assert "mAP50-95" in papers.beside([values], tables)[0], run.id


def test_given_keys_replace_those_of_every_cell() -> None:
    found = runs("brl.table4", protocol="hard", epochs="1", seeds="3", name="mine")
    assert {(r.labels.protocol, r.labels.rate, r.host["epochs"], r.seed) for r in found} == {("hard", 0, 1, 3)}
    assert len(found) == 4  # the cell on half of each class is the same as two others now
    assert read_grids(arguments(find("brl.table4"), {"data": "d", "name": "mine"})).flags.name == "mine"


@pytest.mark.parametrize(
    ("model", "models"),
    [
        ("retinanet_resnet50_fpn", {"retinanet_resnet50_fpn", "fasterrcnn_tiny"}),
        ("fasterrcnn_resnet50_fpn,retinanet_tiny", {"retinanet_tiny", "fasterrcnn_resnet50_fpn"}),
        ("yolov5n.yaml", {"yolov5n.yaml"}),
    ],
)
def test_a_model_replaces_those_of_its_family_else_all(model: str, models: set[str]) -> None:
    assert {r.host["model"] for r in runs("brl.fig3", model=model)} == models


def test_what_a_report_is_told() -> None:
    study = find("brl.table1")
    told = about(study, {"data": "d.yaml", "preset": "gpu", "name": "mine"})
    assert (told["tables"], told["given"]) == ([["brl", "1"]], {"data": "d.yaml", "preset": "gpu"})
    assert told["note"] == study.note
    assert about(study, {"data": "d.yaml"})["note"] == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "data= is missing: rebalance paper brl.table1 data=my.yaml"),
        ({"data": "d", "preset": "full"}, "preset=full is not one of cpu, gpu"),
    ],
)
def test_a_bad_call_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        arguments(find("brl.table1"), given)


def test_a_note_names_only_flags_that_there_are() -> None:
    from ultralytics.utils import DEFAULT_CFG_DICT

    from rebalance.experiments.flags import DEFAULTS
    from rebalance.settings import SweepFlags, settings_of

    known = {*DEFAULT_CFG_DICT, *DEFAULTS, *settings_of(SweepFlags)}
    told = [*(study.note for study in TRAINED), *(note for own in notes().values() for note in own)]
    named = {name for note in told for name in re.findall(r"\b([a-z_0-9]+)=", note)}
    assert named <= known
    assert len(named) > 5


def test_the_nearest_key_is_named() -> None:
    with pytest.raises(
        ConfigError, match=re.escape("there is no 'label-noise.fig33' (did you mean label-noise.fig3?)")
    ):
        find("label-noise.fig33")


def test_figure_1_has_each_kind_of_error_by_itself() -> None:
    found = runs("label-noise.fig1")
    kinds = {run.labels.protocol if run.labels.rate else next(iter(dict(run.labels.noise)), "none") for run in found}
    assert kinds == {"percent", "extra", "jitter", "class_flip", "none"}
    assert len(found) == 3 * (1 + 4 * 5)  # of each loss one on all labels
    assert not any(len({*dict(run.labels.noise)} - {"jitter_iou"}) + bool(run.labels.rate) > 1 for run in found)
    assert not any("jitter_iou" in run.id for run in found)
    few = runs("label-noise.fig1", rate="0.3", jitter="0,0.4", jitter_iou="[0.3,0.5]", extra="0", class_flip="0")
    assert {(run.labels.rate, *run.labels.noise) for run in few} == {
        (0,), (0.3,), (0, ("jitter", 0.4), ("jitter_iou", "[0.3,0.5]")),
    }  # fmt: skip
