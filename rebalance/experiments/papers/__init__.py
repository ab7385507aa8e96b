"""The papers: their tables and figures as grids to run, and the numbers that they report. One YAML a paper.

`rebalance paper brl.table4 data=my.yaml preset=cpu` runs one; `rebalance paper numbers` prints the numbers. A study is
a list of *cells*: grids that are run into one folder with one report. A cell names its detector; which one that is, the
budget and the evaluation are the size's, in budgets.yaml, which also has the built-in benchmark. Flags of a cell in one
size alone stand under the size's name: `gpu: obj_prior=paper`. A further paper is a further file.

A block of `numbers` is a table of a paper: what all rows share, the names of `columns`, and `rows`. A column such as
`test mAP50` holds values, fractions in [0, 1] (`FPS`: frames a second; `mAP50_drop`: a difference of two; `APs` and
the like: COCO's); others and keys are fields of `Number`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from rebalance.data.noise import KINDS
from rebalance.data.protocols import uses_rate
from rebalance.errors import ConfigError, nearest
from rebalance.experiments.record import shown
from rebalance.settings import value_text

PAPERS = ("brl", "label-noise", "rebalancing", "residual")
SIZES = ("cpu", "gpu")

_LARGE = "seafloor-640-complete.yaml"  # the built-in set for the benchmark's preset=full, beside the small one


@dataclass(frozen=True, kw_only=True)
class Study:
    """One table or figure of a paper.

    Attributes:
        key: as typed.
        paper: one of PAPERS.
        title: the paper's name for it.
        compared: what is compared.
        cells: grids, each with `detector` (of budgets.yaml) and what it varies; () for a plot of a function.
        tables: the paper's tables whose numbers stand beside ours.
        baseline: the loss that the others are compared with.
        figures: plots of the report that are the point of it: rates, gamma, iou; or of a function: brl, focal.
        note: what differs from the paper in size `gpu`.
        runs_of: another study whose runs these are.
    """

    key: str
    paper: str
    title: str
    compared: str
    cells: tuple[Mapping[str, str], ...] = ()
    tables: tuple[str, ...] = ()
    baseline: str = ""
    figures: tuple[str, ...] = ()
    note: str = ""
    runs_of: str = ""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One reported number.

    Attributes:
        model: the paper's detector, named after its family.
        flags: in our own names; those of the row.
        settings: what the loss has where the row says nothing else.
        protocol, rate: the training labels in our words; empty: partial by nature.
    """

    paper: str
    table: str
    model: str
    loss: str
    flags: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any]
    data: str
    protocol: str = ""
    rate: float | None = None
    split: str
    metric: str
    value: float

    @property
    def title(self) -> str:
        return titles()[self.paper]

    @property
    def source(self) -> str:
        """Where the number stands, e.g. 'brl, Table 4' or 'label-noise, Figure 5b'."""
        kind = "" if self.table == "text" else "Figure " if self.table.startswith("fig") else "Table "
        return f"{self.paper}, {kind}{self.table.removeprefix('fig')}"


@cache
def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


@cache
def titles() -> dict[str, str]:
    """Paper -> its title."""
    return {paper: _read(paper)["title"] for paper in PAPERS}


@cache
def notes() -> dict[str, list[str]]:
    """Paper -> what its authors' configurations state, and what differs here in size `gpu`."""
    return {paper: _read(paper)["notes"] for paper in PAPERS}


@cache
def studies() -> dict[str, Study]:
    """Key -> study."""
    made = {}
    for paper in PAPERS:
        for key, told in _read(paper)["studies"].items():
            several = {name: tuple(told.get(name, ())) for name in ("tables", "figures")}
            several |= {"cells": tuple(map(texts, told.get("cells", ())))}
            note = told.get("note", "")
            note = note if isinstance(note, str) else " ".join(note)
            made[key] = Study(**{**told, **several, "key": key, "paper": paper, "note": note})
    return made


@cache
def numbers() -> tuple[Number, ...]:
    """Every reported number that the package carries."""
    made = []
    for paper in PAPERS:
        for block in _read(paper)["numbers"]:
            for row in block["rows"]:
                told = {**block, **dict(zip(block["columns"], row, strict=True)), "paper": paper}
                del told["columns"], told["rows"]
                scores = {key: float(told.pop(key)) for key in list(told) if " " in key}
                if "rate" in told:
                    told["rate"] = float(told["rate"])
                told["flags"] = tuple(tuple(flag.split("=")) for flag in told.get("flags", "").split())
                told["settings"] = _read(paper)["settings"][told["loss"]]
                for column, value in scores.items():
                    split, metric = column.split()
                    made.append(Number(**told, split=split, metric=metric, value=value))
    return tuple(made)


@cache
def detectors(size: str) -> dict[str, dict[str, str]]:
    """Detector of a cell -> its `model` and schedule in a size."""
    return {name: texts(told) for name, told in _read("budgets")["detectors"][size].items()}


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as typed: 0,0.5 for a list."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    return {key: ",".join(map(value_text, several)) for key, several in lists.items()}


def family(model: str) -> str:
    """Return the family of a detector: 'retinanet' of retinanet_tiny and retinanet-r101, 'yolov5' of yolov5n.yaml."""
    name = re.split(r"[\\/]", model)[-1].lower()
    found = re.match(r"yolo(?:v?\d+)|retinanet|fasterrcnn|ssd", name)
    return found[0] if found else name


def find(key: str) -> Study:
    """Return the study of a key; of one that shows runs of another, the other.

    Raises:
        ConfigError: there is no such study; the nearest is named.
    """
    known = studies()
    if key not in known:
        raise ConfigError(f"there is no '{key}'{nearest(key, known)}; tables and figures: {', '.join(known)}")
    return known[known[key].runs_of or key]


def arguments(study: Study, given: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what to give to `sweep`, cell by cell.

    Args:
        study: one with cells.
        given: `data`, `preset` (cpu or gpu; default cpu), and any key of a sweep, which then replaces the study's in
            every cell (a rate of wrong labels: in those that vary it). A `model` replaces those of its own family where
            there are some, else all.

    Raises:
        ConfigError: no data, or no such preset.
    """
    size = _preset(given, SIZES)
    if not given.get("data"):
        raise ConfigError(
            f"data= is missing: rebalance paper {study.key} data=my.yaml; the paper's own is {data_of(study)}"
        )
    given_over = {key: text for key, text in given.items() if key not in ("preset", "model")}
    known = detectors(size)
    families = {family(known[cell["detector"]]["model"]) for cell in study.cells}
    asked = [name for name in given.get("model", "").split(",") if name]
    others = [name for name in asked if family(name) not in families]
    cells = []
    for cell in study.cells:
        over = {key: text for key, text in given_over.items() if _is_for(key, cell, study)}
        budget = known[cell["detector"]]
        own = {key: text for key, text in cell.items() if key not in ("detector", *SIZES)}
        own |= dict(flag.split("=") for flag in cell.get(size, "").split())
        if not any(map(uses_rate, {**own, **over}.get("protocol", "").split(","))):
            own.pop("rate", None)
        fitting = [name for name in asked if family(name) == family(budget["model"])]
        model = ",".join(fitting or others) or budget["model"]
        cells.append({"name": f"{study.key}-{size}", "model": model, **(budget | {"model": model}), **own, **over})
    return cells


def data_of(study: Study) -> str:
    """The data set of a study's paper, by the name of its YAML in `data/`; several joined by commas."""
    own = [number for number in numbers() if number.paper == study.paper]
    own = [number for number in own if number.table in study.tables] or own
    return ",".join(sorted({number.data.split(",")[0] for number in own}))


def _is_for(key: str, cell: Mapping[str, str], study: Study) -> bool:
    """Whether a flag replaces a cell's; how many labels are wrong is for the cells that vary it, if there are any."""
    kind = {"jitter_iou": "jitter"}.get(key, key)
    return kind not in ("rate", *KINDS) or kind in cell or not any(kind in other for other in study.cells)


def about(study: Study, given: Mapping[str, str]) -> dict[str, Any]:
    """Return what a report says about a study, for sweep.json; `given` as in `arguments`."""
    return {
        "key": study.key,
        "title": f"{study.paper}, {study.title}",
        "compared": study.compared,
        "note": study.note if given.get("preset") == "gpu" else "",
        "tables": [[study.paper, table] for table in study.tables],
        "baseline": study.baseline,
        "figures": list(study.figures),
        "given": {key: text for key, text in given.items() if key != "name"},
    }


def benchmark(given: Mapping[str, str]) -> dict[str, str]:
    """Return what to give to `sweep` for the built-in benchmark.

    What the preset says of labels is for its own data: of others none are withheld unless `protocol` is given.

    Args:
        given: `preset` (cpu or full; default cpu), and any key of a sweep, which then replaces the preset's.

    Raises:
        ConfigError: there is no such preset.
    """
    presets = _read("budgets")["benchmark"]
    name = _preset(given, presets)
    preset = texts(presets[name])
    if name == "full":
        from rebalance.data.demo.seafloor import data_folder

        if (large := data_folder() / _LARGE).is_file():
            preset["data"] = shown(large)
    made = {**preset, **{key: text for key, text in given.items() if key != "preset"}}
    if "data" in given and "protocol" not in given:
        made["protocol"] = "normal"
    protocols = made["protocol"].split(",")
    dropped = ",".join(made[key] for key in ("obj_drop", "box_drop")).split(",")
    use = {
        "rate": any(map(uses_rate, protocols)),
        "complete": protocols != ["normal"],
        "control": made["control"] in dropped and "drop_select" not in given,
    }
    return {key: text for key, text in made.items() if key in given or use.get(key, True)}


def _preset(given: Mapping[str, str], choices: Mapping[str, Any] | tuple[str, ...]) -> str:
    name = given.get("preset", "cpu")
    if name not in choices:
        raise ConfigError(f"preset={name} is not one of {', '.join(choices)}{nearest(name, choices)}")
    return name
