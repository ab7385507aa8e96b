"""Which of the numbers that papers report stand beside an own run, and all of them as one CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rebalance.experiments.papers import Number as Number
from rebalance.experiments.papers import family as family
from rebalance.experiments.papers import numbers as numbers
from rebalance.experiments.papers import titles
from rebalance.experiments.record import NOISE

TITLES = titles()
ON_HEADS = ("obj", "resobj")  # heads that are methods: `loss=` may name them
COLUMNS = ("paper", "table", "model", "loss", "flags", "data", "protocol", "rate", "split", "metric", "value")
RATED = ("percent", "per_class")  # protocols of which the rate is asked, not found


@dataclass(frozen=True)
class Published:
    """A series of removal fractions as one table of a paper has it."""

    title: str  # of the paper
    table: str  # its number there
    model: str
    data: str
    values: dict[tuple[str, float], float]  # (split, removal) -> mAP50 in [0, 1]

    def curve(self, split: str) -> list[tuple[float, float]]:
        """(removal, value) of one split, by removal."""
        return sorted((removal, value) for (s, removal), value in self.values.items() if s == split)


def removal(axis: str) -> Published:
    """Return what Box Prediction Rebalancing reports on an axis: Table 2 for `box_drop`, Table 3 for `obj_drop`."""
    rows = [n for n in numbers() if n.paper == "rebalancing" and len(n.flags) == 1 and n.flags[0][0] == axis]
    first = rows[0]
    values = {(n.split, float(n.flags[0][1])): n.value for n in rows}
    return Published(first.title, first.table, first.model, first.data, values)


def as_csv() -> str:
    """Every reported number that the package carries, a row each; fractions, but frames a second."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number in numbers():
        flags = " ".join("=".join(flag) for flag in number.flags)
        told = {**vars(number), "flags": flags, "rate": "" if number.rate is None else f"{number.rate:g}"}
        writer.writerow([told[name] for name in COLUMNS])
    return file.getvalue()


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
    head, base = str(values.get("head") or ""), str(values.get("obj_base"))
    if base not in ("anchor", "stock"):  # an older record, when the name of the model's file said
        base = "anchor" if family(str(values.get("model", ""))) in ("yolov3", "yolov5") else "stock"
    return base if head in ON_HEADS else head


def labels_key(protocol: Any, rate: Any) -> tuple[str, float]:
    """Return what training labels compare by: a fraction of 0 is all labels; only an asked fraction counts."""
    asked = float(rate or 0) if protocol in RATED else 0.0
    return ("normal" if protocol in RATED and not asked else str(protocol), asked)


def beside(settings: Iterable[Mapping[str, Any]], tables: Iterable[tuple[str, str]] = ()) -> list[dict[str, Number]]:
    """Return the reported numbers that each setting corresponds to, by metric.

    They agree in the family of the detector, the loss and all of its flags, and the training labels; the data set, the
    size of the detector and the schedule differ. Labels that are partial by nature agree with any where their table is
    asked for. Those of a setting are of one row of one table: of the paper, and then of the table, that has most of the
    settings; of the data set that ours is called after; else of the first. A setting has all flags: ours, the host's,
    protocol and rate; `tables` are (paper, table) to look in, by default all.
    """
    wanted, known = tuple(tables), list(settings)
    usable = [n for n in numbers() if not wanted or (n.paper, n.table) in wanted]
    candidates: list[dict[tuple[str, ...], dict[str, Number]]] = []
    for values in known:
        found: dict[tuple[str, ...], dict[str, Number]] = {}
        for number in (n for n in usable if _corresponds(n, values, asked=bool(wanted))):
            key = (number.paper, number.table, number.model, number.data)
            found.setdefault(key, {}).setdefault(number.metric, number)
        candidates.append(found)
    share = Counter(part for found in candidates for part in {key[:size] for key in found for size in (1, 2)})
    chosen = []
    for values, found in zip(known, candidates, strict=True):
        data = PurePath(str(values.get("data", ""))).stem.lower()
        best = max(found, key=lambda k: (share[k[:1]], share[k[:2]], k[3] == data), default=None)
        chosen.append(found[best] if best else {})
    return chosen


def _corresponds(number: Number, values: Mapping[str, Any], *, asked: bool) -> bool:
    if family(number.model) != family(str(values.get("model", ""))):
        return False
    if loss_name(number.loss) != loss_of(values):
        return False
    partial_by_nature = asked and not number.protocol
    labels = labels_key(values.get("protocol"), values.get("rate"))
    if any(map(values.get, NOISE)):  # no paper here reports on them
        return False
    if not partial_by_nature and labels_key(number.protocol, number.rate) != labels:
        return False
    expected = {**number.settings, **dict(number.flags)}
    # a flag that came after a record was written had the value that goes without saying; so has one that is left to
    # the detector, where that is of the paper's family
    had = {name: values[name] for name in expected if values.get(name, "auto") != "auto"}
    return all(same_value(value, had.get(name, number.settings.get(name))) for name, value in expected.items())


def same_value(one: Any, other: Any) -> bool:
    """Return whether two values are the same when typed."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)
