"""The numbers that papers report, from papers.csv beside this file.

One row a number: `flags` are in our own names, as typed (`obj_drop=0.75`, several separated by spaces), `protocol` and
`rate` are the training labels in our words (empty: partial by nature), `value` is a fraction in [0, 1] (`FPS`: frames a
second). `model` is the paper's detector, named after its family. A further paper is further rows and its title below.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from rebalance.settings import TrainFlags, flags

TITLES = {
    "rebalancing": "Box Prediction Rebalancing for Training Single-Stage Object Detectors with Partially Labeled Data",
    "brl": "Solving Missing-Annotation Object Detection with Background Recalibration Loss",
    "label-noise": "Effect of Label Noise on Robustness of Deep Neural Network Object Detectors",
    "residual": "Residual Objectness for Imbalance Reduction",
}
ON_HEADS = ("obj", "resobj")  # heads that are methods: `loss=` may name them
RATED = ("percent", "per_class")  # protocols of which the rate is asked, not found

# Flags that say what a loss computes: an own run corresponds to a number only where all of these agree
METHOD_FLAGS = tuple(
    name for name, field in flags(TrainFlags).items() if field.metadata["method"] not in ("", "anchor")
)


@dataclass(frozen=True)
class Number:
    """One reported number."""

    paper: str
    table: str
    model: str
    loss: str
    flags: tuple[tuple[str, str], ...]
    data: str
    protocol: str
    rate: float | None
    split: str
    metric: str
    value: float

    @property
    def title(self) -> str:
        """Title of the paper."""
        return TITLES[self.paper]

    @property
    def source(self) -> str:
        """Where the number stands, e.g. 'brl, Table 4' or 'label-noise, Figure 5b'."""
        if self.table.startswith("fig"):
            return f"{self.paper}, Figure {self.table.removeprefix('fig')}"
        return f"{self.paper}, {'text' if self.table == 'text' else f'Table {self.table}'}"


@dataclass(frozen=True)
class Published:
    """A series of removal fractions as one table of a paper has it.

    Attributes:
        title: of the paper.
        table: its number there.
        model: the detector.
        data: the data set.
        values: (split, removal) -> mAP50 in [0, 1].
    """

    title: str
    table: str
    model: str
    data: str
    values: dict[tuple[str, float], float]

    def curve(self, split: str) -> list[tuple[float, float]]:
        """(removal, value) of one split, by removal."""
        return sorted((removal, value) for (s, removal), value in self.values.items() if s == split)


@cache
def numbers() -> tuple[Number, ...]:
    """Every reported number that the package carries."""
    text = (files("rebalance.report") / "papers.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(
        Number(
            **{k: row[k] for k in ("paper", "table", "model", "loss", "data", "protocol", "split", "metric")},
            flags=tuple((name, value) for name, _, value in (f.partition("=") for f in row["flags"].split())),
            rate=float(row["rate"]) if row["rate"] else None,
            value=float(row["value"]),
        )
        for row in rows
    )


def removal(axis: str) -> Published:
    """Return what Box Prediction Rebalancing reports on an axis: Table 2 for `box_drop`, Table 3 for `obj_drop`."""
    rows = [n for n in numbers() if n.paper == "rebalancing" and len(n.flags) == 1 and n.flags[0][0] == axis]
    first = rows[0]
    values = {(n.split, float(n.flags[0][1])): n.value for n in rows}
    return Published(first.title, first.table, first.model, first.data, values)


def family(model: str) -> str:
    """Return the family of a detector: 'retinanet' of retinanet_tiny and retinanet-r101, 'yolov5' of yolov5n.yaml."""
    name = re.split(r"[\\/]", model)[-1].lower()
    found = re.match(r"yolo(?:v?\d+)|retinanet|fasterrcnn|ssd", name)
    return found[0] if found else name


def loss_name(loss: str) -> str:
    """Return a loss without what goes without saying: cross-entropy beside a weighting; 'bce' for 'ce'."""
    parts = [{"ce": "bce"}.get(part, part) for part in loss.split("+")]
    return "+".join(part for part in parts if part != "bce") or ("bce" if loss else "")


def loss_of(values: Mapping[str, Any]) -> str:
    """Return the loss of a setting with the head that is part of it, as `loss=` takes it: 'brl', 'resobj+drop'."""
    loss, head = str(values.get("loss") or ""), str(values.get("head") or "")
    if head not in ON_HEADS:
        return loss_name(loss)
    return "+".join([head, *(part for part in loss.split("+") if part not in ("", "bce", *ON_HEADS))])


def base_head(values: Mapping[str, Any]) -> str:
    """Return the head that a setting's head is built on: of obj and resobj, the one that they are compared with."""
    head = str(values.get("head") or "")
    anchors = family(str(values.get("model", ""))) in ("yolov3", "yolov5")
    return ("anchor" if anchors else "stock") if head in ON_HEADS else head


def labels_key(protocol: Any, rate: Any) -> tuple[str, float]:
    """Return what training labels compare by: a fraction of 0 is all labels; only an asked fraction counts."""
    asked = float(rate or 0) if protocol in RATED else 0.0
    return ("normal" if protocol in RATED and not asked else str(protocol), asked)


def beside(settings: Iterable[Mapping[str, Any]], tables: Iterable[tuple[str, str]] = ()) -> list[dict[str, Number]]:
    """Return the reported numbers that each setting corresponds to, by metric.

    They agree in the family of the detector, the loss and all of its flags, and the training labels; the data set, the
    size of the detector and the schedule differ. Those of a setting are of one row of one table: of the paper, and then
    of the table, that has most of the settings; else of the first.

    Args:
        settings: those that stand in one table of ours, each with all flags: ours, the host's, `protocol` and `rate`.
        tables: (paper, table) to look in; default: everywhere.
    """
    wanted = tuple(tables)
    usable = [n for n in numbers() if not wanted or (n.paper, n.table) in wanted]
    candidates: list[dict[tuple[str, ...], dict[str, Number]]] = []
    for values in settings:
        found: dict[tuple[str, ...], dict[str, Number]] = {}
        for number in (n for n in usable if _corresponds(n, values)):
            key = (number.paper, number.table, number.model, number.data)
            found.setdefault(key, {}).setdefault(number.metric, number)
        candidates.append(found)
    share = Counter(part for found in candidates for part in {key[:size] for key in found for size in (1, 2)})
    return [found[max(found, key=lambda k: (share[k[:1]], share[k[:2]]))] if found else {} for found in candidates]


def _corresponds(number: Number, values: Mapping[str, Any]) -> bool:
    if family(number.model) != family(str(values.get("model", ""))):
        return False
    if loss_name(number.loss) != loss_of(values):
        return False
    if labels_key(number.protocol, number.rate) != labels_key(values.get("protocol"), values.get("rate")):
        return False
    expected: dict[str, Any] = {name: flags(TrainFlags)[name].default for name in METHOD_FLAGS} | dict(number.flags)
    return all(same_value(value, values.get(name)) for name, value in expected.items())


def same_value(one: Any, other: Any) -> bool:
    """Return whether two values are the same when typed."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)
