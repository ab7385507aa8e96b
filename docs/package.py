"""What the pages are made from: methods, sites, flags, commands, papers and measurements, as the package has them.

This file alone knows where in the package they stand; `pictures.py` beside it draws the functions of the methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebalance.cli.main import COMMANDS
from rebalance.experiments.papers import notes, studies, titles
from rebalance.experiments.record import PACKED, load
from rebalance.hosts import SITES
from rebalance.methods import JOINS, METHODS
from rebalance.recipe import TRAIN
from rebalance.report.summary import Row, loss_text, results, varying
from rebalance.report.tables import labels_text, points
from rebalance.settings import settings_of

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "runs" / "reference"
SAID = ("model", "head", "loss", "protocol", "rate")  # by the other columns of what was measured


class Card(NamedTuple):
    """A method, as its page shows it."""

    name: str
    title: str
    kind: str  # element, weighting or head
    summary: str
    equation: str  # LaTeX as mathtext takes it, lines apart by \\
    helps: str
    source: str
    sites: tuple[str, ...]
    joins: tuple[str, ...]
    flags: Mapping[str, dataclasses.Field[Any]]


def cards() -> dict[str, Card]:
    """Every method, in the order of the registry."""
    return {
        name: Card(
            name=name,
            title=row.title,
            kind=row.kind,
            summary=sentence(row.summary.removeprefix(f"{row.title}: ")),
            equation=row.equation,
            helps=sentence(row.helps),
            source=row.source,
            sites=tuple(site.name for site in SITES.values() if row.defined(site)),
            joins=tuple(JOINS.get(name, ())),
            flags=settings_of(row),
        )
        for name, row in METHODS.items()
    }


def sentence(text: str) -> str:
    """With a capital letter, without a full stop."""
    return text[0].upper() + text[1:].rstrip(".")


def sites() -> dict[str, tuple[str, str]]:
    """Where losses act -> in words, and the host's own loss there."""
    return {site.name: (site.about, site.own) for site in SITES.values()}


def general_flags() -> dict[str, dataclasses.Field[Any]]:
    """The flags of `train` that belong to no method."""
    return {name: field for name, (owner, field) in TRAIN.items() if owner not in METHODS.values()}


def flag_rows(fields: Mapping[str, dataclasses.Field[Any]]) -> list[tuple[str, str, str, str]]:
    """Name, default, allowed values and help of each flag."""
    rows = []
    for name, field in fields.items():
        facts, default = field.metadata, field.default
        low, high = facts["low"], facts["high"]
        if facts["choices"]:
            values = ", ".join(f"`{choice}`" for choice in facts["choices"])
            if low > float("-inf"):
                values += f", a number {low:g} to {high:g}"
        elif isinstance(default, bool):
            values = "True, False"
        elif low > float("-inf"):
            values = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
        else:
            values = "a text" if isinstance(default, str) else "a number"
        values = f"{default}, {values}" if facts["number"] else values
        text = f"{default:g}" if isinstance(default, float) else str(default)
        rows.append((name, text, f"{values} {facts['unit']}".strip(), facts["help"]))
    return rows


def command_flags() -> dict[str, Mapping[str, dataclasses.Field[Any]]]:
    """Each command -> its flags by name."""
    return {name: command.items() for name, command in COMMANDS.items()}


def commands() -> list[tuple[str, str, str, str]]:
    """Each command: name, what it is for, how it is typed, and what else there is to say."""
    return [(name, command.help, command.usage, command.more) for name, command in COMMANDS.items()]


def papers() -> list[tuple[str, str, str]]:
    """Each table or figure that `rebalance paper` runs: key, where it stands, what is compared."""
    return [(study.key, study.title, study.compared) for study in studies().values()]


def paper_notes() -> list[tuple[str, str, list[str]]]:
    """Each paper: key, title, and what its authors' configurations state and what differs in preset=gpu."""
    return [(paper, title, notes()[paper]) for paper, title in titles().items()]


def measured(name: str) -> list[tuple[str, str, str, str, str, str]]:
    """What runs/reference says of a method, on test: sweep, detector, labels, setting, mAP50, change from a baseline.

    mAP50 in points, mean and 95 % interval over seeds; the change is paired by seed.
    """
    found = []
    for folder in sorted(path.parent for path in REFERENCE.glob(f"*/{PACKED}")):  # others hold a plan, or a plot
        rows = [row for row in results(load(folder)).rows if row.split == "test"]
        names = [name for name in varying([row.setting for row in rows]) if name not in SAID]
        for row in rows:
            parts = {*str(row.setting.get("loss")).split("+"), row.setting.get("head")}
            if name not in parts or (name == "bce" and len(parts & {"drop", "obj", "resobj"})):
                continue
            found.append((folder.name, *_described(row, names)))
    return found


def _described(row: Row, names: Sequence[str]) -> tuple[str, str, str, str, str]:
    change = row.change.get("mAP50")
    base = "" if row.base is None else f" ({'0 %' if row.setting.removes else loss_text(row.base, names)})"
    head = "" if row.setting.get("head") == "stock" else f", `head={row.setting.get('head')}`"
    return (
        Path(str(row.setting.get("model"))).stem + head,
        labels_text(row.setting),
        loss_text(row.setting, names),
        points(row.stats["mAP50"]),
        points(change, sign=True).replace("-", "−") + base if change else "",
    )


def element(name: str, logits: Tensor, targets: Tensor, *, confused: bool = False) -> Tensor:
    """What an element loss says a candidate costs, with its default settings; confused: far from every label (BRL)."""
    module = import_module(f"rebalance.methods.{name}")
    more = {"confused": torch.full(logits.shape, confused)} if name == "brl" else {}
    loss: Tensor = getattr(module, name)(logits, targets, **more)
    return loss
