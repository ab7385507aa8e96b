"""Curves over epochs, a row of panels for each group of settings: what the figures of training and of counts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rebalance.experiments.record import Record, by_epoch
from rebalance.report.figures.style import INK, MORE_COLOURS, counts_text, epoch_axis, key
from rebalance.report.summary import Results, describe, varying
from rebalance.report.tables import AXIS_TITLES, group_texts, names_of


class Curve(NamedTuple):
    """One setting's line."""

    label: str
    records: Sequence[Record]
    colour: Any


Families = Sequence[tuple[str, Sequence[Curve]]]  # title and lines of each row of panels


def families(found: Results) -> Families:
    """The settings in the groups that share a row of panels: a series each, or all settings where there is none."""
    groups = found.series or found.compared
    if not groups:
        flags = varying(found.runs)
        return [("", _coloured([(describe(setting, flags), records) for setting, records in found.runs.items()]))]
    rows = []
    for one, text in zip(groups, group_texts(groups), strict=True):
        lines = [(name, found.runs[setting]) for setting, name in names_of(one).items()]
        curves, title = _coloured(lines), text.replace(", ", ",\n") if len(groups) > 1 else ""
        if one.axis:
            curves = [Curve(*line, _shade(s.removal(one.axis))) for s, line in zip(one.rows, lines, strict=True)]
            title = AXIS_TITLES[one.axis] + (f",\n{text}" if len(groups) > 2 else "")
        rows.append((title, curves))
    return rows


def _coloured(lines: Sequence[tuple[str, Sequence[Record]]]) -> list[Curve]:
    """More lines than colours would not be told apart."""
    return [Curve(*line, colour) for line, colour in zip(lines, MORE_COLOURS, strict=False)]


def _shade(removal: float) -> Any:
    """Black for the 0 % run, then from dark to light with the removal."""
    return INK if removal == 0 else matplotlib.colormaps["viridis"](0.15 + 0.7 * removal)


def epoch_keys(found: Results) -> list[str]:
    """The columns of the epochs of all finished runs."""
    return list(dict.fromkeys(name for r in found.sweep.finished for row in r.epochs for name in row))


def curves(
    rows: Families,
    panels: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    *,
    points: Sequence[str] = (),
    counts: bool = False,
    removals: bool,
) -> Figure:
    """Draw means over seeds by epoch.

    Args:
        rows: title and lines of each row.
        panels: title of each column, and its keys of `epochs` with their line styles.
        points: keys that are fractions, shown in points.
        counts: the values are counts: from 0, thousands as k and millions as M.
        removals: the lines are removal fractions, else losses, which are on scales of their own.
    """
    figure = Figure(figsize=(1.6 + 2.4 * len(panels), 0.3 + 2.5 * len(rows)))
    grid = figure.subplots(len(rows), len(panels), sharex=True, sharey="col" if removals else False, squeeze=False)
    for r, (axes, (title, lines)) in enumerate(zip(grid, rows, strict=True)):
        for panel, (name, keys) in zip(axes, panels, strict=True):
            for curve in lines:
                for column, stroke in keys:
                    values = by_epoch(curve.records, column)
                    y = np.multiply([np.mean(v) for v in values.values()], 100.0 if column in points else 1.0)
                    if values:
                        dot = "o" if len(values) == 1 else ""  # one epoch makes no line
                        panel.plot(list(values), y, stroke, marker=dot, color=curve.colour, linewidth=1.6)
            if not panel.lines:  # a loss that the others have
                panel.set_axis_off()
            panel.set_title(name if r == 0 else "")
            if counts:
                panel.yaxis.set_major_formatter(_short)
            epoch_axis(panel)
            if r == len(rows) - 1:
                panel.set_xlabel("epoch")
        axes[0].set_ylabel(title)
        told = ("removed, " if removals else "") + counts_text(len(curve.records) for curve in lines)
        handles = [key(curve.colour, curve.label) for curve in lines]
        axes[-1].legend(handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), title=told)
    for column in grid.T if counts else ():
        highest = max((line.get_ydata().max() for panel in column for line in panel.lines), default=0.0)
        for panel in column:
            panel.set_ylim(0, 1.06 * highest or 1.0)
    return figure


def _short(value: float, _: int) -> str:
    """1500000 -> '1.5M'."""
    size, unit = next((s for s in ((1e6, "M"), (1e3, "k")) if abs(value) >= s[0]), (1.0, ""))
    return f"{value / size:g}{unit}"
