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
        assert names <= {*DEFAULTS, "conf"}, number
        ours = {name: value for name, value in number.flags if name in DEFAULTS}
        if number.loss in METHODS and METHODS[number.loss].kind != "head":
            host = {"yolov3": "yolo", "yolov5": "yolo"}.get(papers.family(number.model), papers.family(number.model))
            head = "anchor" if number.loss == "drop" else "stock"
            recipe_of({"loss": number.loss, "head": head, **ours}, host=host)
        assert number.protocol in (*PROTOCOLS, "")
        assert (number.protocol == "") == (number.rate is None) == (number.data == "dusia")


def test_what_goes_without_saying_is_what_a_run_has_that_gives_nothing() -> None:
    for number in papers.numbers():
        names = {name for name, owners in METHODS_OF.items() if owners == (number.loss,)}
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
        (values("ssd_tiny", "percent", 0.0, loss="ohem"), [("label-noise", "fig3")], 0.436),
        (values("ssdlite320", "normal", loss="ohem"), [("label-noise", "fig3")], 0.436),
        (values("ssd_tiny", "percent", 0.5, loss="ce"), [("label-noise", "fig3")], None),  # the paper mined
        (values("ssd_tiny", "percent", 0.5, focal_alpha=0.75, focal_gamma=8.0), [("label-noise", "fig5b")], 0.434),
        (values("yolov5n.yaml", loss="bce"), [], None),  # DUSIA's labels are partial by nature
        (values(loss="bce", head="resobj"), [("residual", "3")], 0.564),
        (values(loss="bce", head="obj"), [("residual", "2c")], 0.529),
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
    assert {"brl, Table 3a", "label-noise, Figure 5b", "label-noise, text", "residual, Table 2c"} <= found


def collected() -> list[dict[str, str]]:
    path = Path(__file__).resolve().parents[3] / "shared" / "papers" / "reported_results.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


NAMES = {"brl": "brl", "label-noise": "label-noise-ce-vs-focal", "residual": "residual-objectness"}


@pytest.mark.parametrize("paper", NAMES)
def test_no_number_is_missing(paper: str) -> None:
    # FDDB and VOC drops are in points there, fractions here
    theirs = Counter(
        (r["table"], r["detector"], round(float(r["value"]) / (100 if r["metric"] == "delta_points" else 1), 6))
        for r in collected()
        if r["paper"] == NAMES[paper]
    )
    assert Counter((n.table, n.model, n.value) for n in papers.numbers() if n.paper == paper) == theirs


def test_same_as_the_collected_results() -> None:
    rows = [r for r in collected() if r["paper"] == "box-prediction-rebalancing"]
    theirs = {(r["table"], r["detector"], r["setting"], r["test_set"].split("-")[1], float(r["value"])) for r in rows}
    ours = {
        (n.table, n.model, " ".join("=".join(f) for f in n.flags), n.split, n.value)
        for n in papers.numbers()
        if n.paper == "rebalancing"
    }
    assert ours == theirs
