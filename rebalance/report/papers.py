"""The numbers that papers report, from papers.csv beside this file.

One row a number: `flags` are in our own names, as typed (`obj_drop=0.75`, several separated by spaces), `value` is a
fraction in [0, 1]. A further paper is further rows.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Number:
    """One reported number."""

    paper: str
    title: str
    table: str
    model: str
    loss: str
    flags: tuple[tuple[str, str], ...]
    data: str
    split: str
    metric: str
    value: float


@dataclass(frozen=True)
class Published:
    """A series of removal fractions as one table of a paper has it.

    Attributes:
        title: of the paper.
        table: its number in the paper.
        model: what was trained.
        data: what it was trained and evaluated on.
        values: (split, removal fraction) -> mAP50 in [0, 1].
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
            **{k: row[k] for k in ("paper", "title", "table", "model", "loss", "data", "split", "metric")},
            flags=tuple((name, value) for name, _, value in (f.partition("=") for f in row["flags"].split())),
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
