"""How good an audit is, where the truth is known: the order of its list, its probabilities and its estimates."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from rebalance.files import write_whole
from rebalance.report.figures.style import DPI, GREY, MORE_COLOURS, STYLE

ORDERS = {"probability": "by probability", "score": "by score alone", "random": "at random"}


def write(truth: Mapping[str, Any], path: Path) -> Path:
    """Draw three panels from `truth` of audit.json; return the picture."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(13, 4.3))
        panels = figure.subplots(1, 3)
        _orders(panels[0], truth)
        _reliability(panels[1], truth)
        _estimates(panels[2], truth)
        picture = BytesIO()
        figure.savefig(picture, dpi=DPI, metadata={"Software": None})
    return write_whole(path, picture.getvalue())


def _orders(panel: Any, truth: Mapping[str, Any]) -> None:
    for colour, (key, label) in zip((*MORE_COLOURS[:2], GREY), ORDERS.items(), strict=True):
        rows = [row for row in truth["orders"].get(key, ()) if row["recall"] is not None]
        panel.plot([row["k"] for row in rows], [100 * row["recall"] for row in rows], "o-", color=colour, label=label)
    panel.set_xscale("log")
    panel.set_ylim(0, 100)
    panel.set_xlabel("suggestions reviewed, from the top of the list")
    panel.set_ylabel("withheld boxes found, %")
    panel.set_title("What a review finds")
    panel.legend()


def _reliability(panel: Any, truth: Mapping[str, Any]) -> None:
    rows = truth["reliability"]
    panel.plot([0, 1], [0, 1], "--", color=GREY)
    panel.plot([row["said"] for row in rows], [row["right"] for row in rows], "o-", color=MORE_COLOURS[0])
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_xlabel("probability that a label is missing")
    panel.set_ylabel("share of suggestions that are right")
    panel.set_title("How far the probability can be believed")


def _estimates(panel: Any, truth: Mapping[str, Any]) -> None:
    rows = [row for row in truth["classes"] if "missing" in row]
    for place, row in enumerate(rows):
        panel.plot([place, place], [row["low"], row["high"]], color=MORE_COLOURS[0])
        panel.plot([place], [row["missing"]], "o", color=MORE_COLOURS[0], label="estimate, 95 %" if not place else None)
        panel.plot([place], [row["withheld"]], "x", color=GREY, label="withheld" if not place else None)
    panel.set_xticks(range(len(rows)), [row["name"] for row in rows], rotation=30, ha="right")
    panel.set_ylim(bottom=0)
    panel.set_ylabel("labels missing")
    panel.set_title("How many are missing")
    if rows:
        panel.legend()
