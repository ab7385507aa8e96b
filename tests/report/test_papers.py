"""The packaged numbers are those of the papers."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from objectives import recipe_of

from rebalance.experiments.flags import DEFAULTS, METHODS_OF
from rebalance.methods import METHODS
from rebalance.report import papers
from rebalance.settings import SparsifyFlags, settings_of

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
    found = {(n.model, n.split): n.value for n in papers.numbers() if (n.paper, n.table) == ("rebalancing", "1")}
    assert found == {
        ("fasterrcnn", "val"): 0.49,
        ("fasterrcnn", "test"): 0.391,
        ("yolov5", "val"): 0.59,
        ("yolov5", "test"): 0.483,
    }


def test_every_number_is_a_fraction_with_a_source() -> None:
    for number in papers.numbers():
        assert 0 < number.value < 1 or number.metric == "FPS"
        assert number.title
        assert number.table


LOSSES = {*METHODS, "obj", "resobj"}
PROTOCOLS = settings_of(SparsifyFlags)["protocol"].metadata["choices"]


def test_every_number_is_in_words_of_our_own() -> None:
    for number in papers.numbers():
        assert number.loss in LOSSES, number
        names = {name for name, _ in number.flags}
        assert names <= {*DEFAULTS, "conf", "iou"}, number
        ours = {name: value for name, value in number.flags if name in DEFAULTS}
        if number.loss in METHODS and METHODS[number.loss].kind != "head":
            host = {"yolov3": "yolo", "yolov5": "yolo"}.get(papers.family(number.model), papers.family(number.model))
            head = "anchor" if number.loss == "drop" else "stock"
            recipe_of({"loss": number.loss, "head": head, **ours}, host=host)
        assert number.protocol in (*PROTOCOLS, "")
        assert (number.protocol == "") == (number.rate is None) == (number.data == "dusia")


# Settings of which a paper says nothing: a run that has any of them stands beside its numbers
UNTOLD = {"resobj_gate", "resobj_width", "obj_width", "obj_prior", "obj_base"}


def test_what_goes_without_saying_is_what_a_run_has_that_gives_nothing() -> None:
    for number in papers.numbers():
        names = {name for name, owners in METHODS_OF.items() if number.loss in owners} - UNTOLD
        own = {name: DEFAULTS[name] for name in names}
        if "auto" in own.values():  # what it comes to on the paper's detector
            own = {name: recipe_of({"loss": number.loss}, host=papers.family(number.model))[name] for name in names}
        assert dict(number.settings) == own, number.source


def values(model: str = "retinanet_tiny", protocol: str = "normal", rate: float = 0.0, **given: Any) -> dict[str, Any]:
    return {**DEFAULTS, "loss": "focal", "model": model, "protocol": protocol, "rate": rate, **given}


BRL4 = [("brl", "4")]


@pytest.mark.parametrize(
    ("run", "tables", "map50"),
    [
        (values(protocol="extreme", rate=0.41), [("brl", "1")], 0.598),  # the data say how much extreme is
        (values(protocol="extreme", model="/a/b/retinanet_resnet50_fpn"), [("brl", "1")], 0.598),
        (values(loss="brl", protocol="hard"), BRL4, 0.717),  # t = 0.5 and weight 0.1 are the defaults
        (values(loss="brl", protocol="hard", brl_weight=0.5), BRL4, None),
        (values(loss="brl", protocol="hard", brl_warmup=1), BRL4, None),
        (values(loss="brl", protocol="extreme", brl_iou=0.05, brl_weight=0.5), [], 0.633),
        (values(loss="bce+ghm"), BRL4, None),  # its bins are the occupied ones
        (values(loss="bce+ghm", ghm_regions="occupied"), BRL4, 0.754),
        (values(loss="ohem", model="fasterrcnn_tiny", protocol="easy"), BRL4, 0.751),
        (values(loss="ohem", model="retinanet_tiny", protocol="easy"), BRL4, None),
        (values(protocol="per_class", rate=0.5), BRL4, 0.406),
        (values(protocol="per_class", rate=0.4), BRL4, None),
        (values("ssd_tiny", "percent", 0.0, loss="ohem"), [("label-noise", "fig3")], 0.4363),
        (values("ssdlite320", "normal", loss="ohem"), [("label-noise", "fig3")], 0.4363),
        (values("ssd_tiny", "percent", 0.3, loss="ohem", data="/d/fddb.yaml"), [("label-noise", "fig3")], 0.9109),
        (values("ssd_tiny", "percent", 0.3, loss="ohem", data="my.yaml"), [("label-noise", "fig3")], 0.3572),
        (values("ssd_tiny", "percent", 0.5, loss="ce"), [("label-noise", "fig3")], None),  # the paper mined
        (values("ssd_tiny", "percent", 0.5, focal_alpha=0.75, focal_gamma=8.0), [("label-noise", "fig5")], 0.4343),
        (values("yolov5n.yaml", loss="bce"), [], None),  # DUSIA's labels are partial by nature
        (values("yolov5n.yaml", loss="bce"), [("rebalancing", "1")], 0.483),  # its table is asked for
        (values("fasterrcnn_tiny", loss="bce"), [("rebalancing", "1")], 0.391),
        (values(loss="bce", head="resobj"), [("residual", "3")], 0.564),
        (values(loss="bce", head="obj"), [("residual", "2c")], 0.529),
        (values(loss="bce", head="obj", obj_prior="paper", obj_width=256), [("residual", "2c")], 0.529),
        (values(loss="bce", head="obj", obj_weight=0.05), [("residual", "2c")], None),  # the authors' later code
        (values(loss="bce", head="resobj", resobj_gate="image"), [("residual", "3")], 0.564),
        (values(loss="drop", head="resobj"), [("residual", "3")], None),
    ],
)
def test_a_run_corresponds_where_detector_loss_flags_and_labels_agree(
    run: dict[str, Any], tables: list[tuple[str, str]], map50: float | None
) -> None:
    (found,) = papers.beside([run], tables)
    assert (found["mAP50"].value if map50 else found.get("mAP50")) == map50


def told(*runs: dict[str, Any], tables: list[tuple[str, str]] | None = None) -> list[tuple[set[str], set[str]]]:
    """Of each run, the tables that its numbers are of, and their metrics without those that only papers have."""
    found = papers.beside(runs, tables or [])
    return [({n.source for n in one.values()}, {*one} & {"mAP50", "mAP75", "mAP50-95"}) for one in found]


def test_the_numbers_of_a_run_are_of_one_table() -> None:
    """Focal loss on all labels is in BRL's Table 1 (VOC, without mAP50-95) and in Residual Objectness' 2c and 3."""
    assert told(values()) == [({"brl, Table 1"}, {"mAP50", "mAP75"})]
    every = {"mAP50", "mAP75", "mAP50-95"}
    assert told(values(), tables=[("residual", "3"), ("residual", "2c")]) == [({"residual, Table 2c"}, every)]


def test_the_numbers_of_runs_are_of_the_paper_and_the_table_that_has_most_of_them() -> None:
    refined = [values(loss="bce", head="resobj", resobj_steps=steps) for steps in (1, 2)]
    assert [sources for sources, _ in told(values(), values(loss="brl"), values(loss="bce", head="nrd"))] == [
        *({"brl, Table 1"}, {"brl, Table 4"}, set())
    ]
    assert [sources for sources, _ in told(values(), *refined)] == [{"residual, Table 2c"}] * 3


def test_sources() -> None:
    found = {n.source for n in papers.numbers()}
    assert {"brl, Table 3a", "label-noise, Figure 5", "label-noise, text", "residual, Table 2c"} <= found


# What was read from the papers and, of the label-noise study's figures, from its authors' files; beside this repository
COLLECTED = Path(__file__).resolve().parents[3] / "shared" / "papers"
THEIR_NAMES = {
    "brl": "brl", "label-noise": "label-noise-ce-vs-focal", "residual": "residual-objectness",
    "rebalancing": "box-prediction-rebalancing",
}  # fmt: skip
METRICS = {"AP": "mAP50-95", "AP50": "mAP50", "AP75": "mAP75", "FPS_titanx": "FPS", "delta_points": "mAP50_drop"}
UNSAID = {"iou", "ghm_regions", "focal_gamma", "focal_alpha"}  # flags that the collected rows leave out
LOSS_OF = {"stock": "bce", "sampling": "bce"}


def collected(name: str) -> list[dict[str, str]]:
    path = COLLECTED / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def ours(row: dict[str, str]) -> list[papers.Number]:
    """The numbers of ours that a collected row may be: of its table, detector, loss, flags, labels and metric."""
    table = {"fig5b": "fig5"}.get(row["table"], row["table"])
    metric, setting = METRICS.get(row["metric"], row["metric"]), row["setting"].replace("score_thr", "conf")
    loss = {"label-noise-ce-vs-focal": {"ce": "ohem"}, "residual-objectness": {"ce": "focal"}}.get(row["paper"], {})
    loss = {**LOSS_OF, **loss}.get(row["method"], row["method"])
    focal = "focal_" if row["method"] in ("focal", "ce") else ""
    flags = dict(part.split("=") for part in setting.split() if "=" in part and "%" not in part)
    flags = {f"{focal * (name in ('gamma', 'alpha'))}{name}": float_or_text(value) for name, value in flags.items()}
    flags = {name: value for name, value in flags.items() if (name, value) != ("resobj_steps", 0)}  # that is obj
    data, *labels = row["train_set"].split("-")
    labels = [part for part in labels if part != "train"]
    protocol = labels[0] if labels else ""
    rate = float(labels[1]) / 100 if len(labels) > 1 else None
    found = []
    for number in papers.numbers():
        named = {name: float_or_text(value) for name, value in number.flags}
        if (THEIR_NAMES[number.paper], number.table, number.model) != (row["paper"], table, row["detector"]):
            continue
        if (number.loss, number.metric) != (loss, metric) or not number.data.startswith(data):
            continue
        if (
            not flags.items() <= named.items()
            or named.keys() - flags.keys() - UNSAID
            or (protocol and protocol != number.protocol)
        ):
            continue
        if rate is not None and rate != number.rate:
            continue
        if row["test_set"].startswith("dusia-") and number.split != row["test_set"].partition("-")[2]:
            continue
        found.append(number)
    return found


def float_or_text(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


@pytest.mark.parametrize("file", ["reported_results.csv", "label_noise_figures.csv"])
def test_every_collected_number_is_carried_once(file: str) -> None:
    rows = collected(file)
    assert len(rows) == {"reported_results.csv": 235, "label_noise_figures.csv": 117}[file]
    for row in rows:
        value = float(row["value"]) / (100 if row["metric"] == "delta_points" else 1)
        of_figures = file == "reported_results.csv" and row["table"].startswith("fig")
        (number,) = ours(row)
        # read off the figures in three digits, in the authors' files in four
        assert number.value == pytest.approx(value, abs=0.00051 if of_figures else 1e-9), row


def test_what_is_carried_beyond_the_collected_numbers_is_in_the_papers_text() -> None:
    """Table 1a at three more thresholds, and what BRL loses on all labels of COCO."""
    reached = {
        id(n) for name in ("reported_results.csv", "label_noise_figures.csv") for r in collected(name) for n in ours(r)
    }
    more = [n for n in papers.numbers() if id(n) not in reached]
    table_1a = [(n.flags, n.metric, n.value) for n in more if n.table == "1a"]
    assert table_1a == [
        ((("conf", conf), ("iou", "0.5")), metric, value)
        for conf in ("0.01", "0.005", "0.001")
        for metric, value in (("mAP50-95", 0.342), ("mAP50", 0.531), ("mAP75", 0.365))
    ]
    assert [(n.source, n.metric, n.value) for n in more if n.table != "1a"] == [("brl, text", "mAP50-95_drop", 0.007)]


def test_the_threshold_of_suppression_is_that_of_the_papers_table_1() -> None:
    found = {(n.table, *(value for _, value in n.flags)) for n in papers.numbers() if n.table in ("1a", "1b")}
    assert found == {
        *(("1a", conf, "0.45" if conf == "0.1" else "0.5") for conf in ("0.1", "0.05", "0.01", "0.005", "0.001")),
        *(("1b", conf, "0.5" if conf == "0.005" else "0.45") for conf in ("0.1", "0.05", "0.01", "0.005", "0.001")),
    }


def test_the_csv_has_every_number_in_the_order_of_the_papers() -> None:
    rows = list(csv.DictReader(papers.as_csv().splitlines()))
    assert len(rows) == len(papers.numbers()) == 349
    for row, number in zip(rows, papers.numbers(), strict=True):
        assert (row["paper"], row["table"], row["model"], row["data"]) == (
            *(number.paper, number.table, number.model, number.data),
        )
        assert float(row["value"]) == number.value
        assert (float(row["rate"]) if row["rate"] else None) == number.rate
        assert tuple(tuple(flag.split("=")) for flag in row["flags"].split()) == number.flags
    assert {row["split"] for row in rows} == {"val", "test"}


@pytest.mark.parametrize(("table", "count"), [("fig3", 36), ("fig5", 81)])
def test_the_figures_of_the_label_noise_study_are_whole(table: str, count: int) -> None:
    found = [n for n in papers.numbers() if (n.paper, n.table) == ("label-noise", table)]
    assert len({(n.data, n.loss, n.flags, n.rate) for n in found}) == len(found) == count
    assert Counter(n.data for n in found) == dict.fromkeys(("voc2012", "indoor", "fddb"), count // 3)
