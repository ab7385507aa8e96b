"""Losses, mAP and what the loss counted, by epoch: a row of panels for each group of settings, mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rebalance.experiments.record import Record, by_epoch
from rebalance.report.figures.style import INK, MORE_COLOURS, Drawn, counts_text, epoch_axis, key
from rebalance.report.summary import Results, describe, varying
from rebalance.report.tables import AXIS_TITLES, group_texts, names_of

_SCORES = {"metrics/mAP50(B)": "val mAP50", "metrics/mAP50-95(B)": "val mAP50-95"}


class Curve(NamedTuple):
    """One setting's line."""

    label: str
    records: Sequence[Record]
    colour: Any


Families = Sequence[tuple[str, Sequence[Curve]]]  # title and lines of each row of panels


def training(found: Results) -> Drawn | str:
    """A panel for each loss, on val dotted, and for each score on val."""
    keys = epoch_keys(found)
    if max(map(_validated, found.sweep.finished), default=0) < 2:
        keys = [name for name in keys if name.startswith("train/")]
    losses = [key for key in keys if key.startswith("train/") and key.endswith("_loss")]
    scores = [key for key in _SCORES if key in keys]
    if not losses and not scores:
        return "No training curves: the records hold no epochs."
    panels = []
    for name in losses:
        twin = name.replace("train/", "val/")
        panels.append((name.removeprefix("train/").replace("_", " "), [(name, "-"), *[(twin, ":")] * (twin in keys)]))
    dotted = " Dotted: the loss on val." if any(len(lines) > 1 for _, lines in panels) else ""
    panels += [(_SCORES[key], [(key, "-")]) for key in scores]
    figure = curves(families(found), panels, points=scores, removals=bool(found.series))
    told = "A loss from which terms were removed is not on the scale of one without."
    return Drawn(figure, f"By epoch, mean over seeds.{dotted} {told}")


def _validated(record: Record) -> int:
    """Epochs that were validated: in one that was not, the host writes 0 for every loss on val."""
    losses = [[v for k, v in row.items() if k.startswith("val/")] for row in record.epochs]
    return sum(not own or any(own) for own in losses)


def drops(found: Results) -> Drawn | None:
    """A panel for each count; None where no loss counted any."""
    keys = [key for key in epoch_keys(found) if key.startswith("drop/")]
    counted = []
    for title, lines in families(found) if keys else ():
        own = [line for line in lines if any(keys[0] in row for record in line.records for row in record.epochs)]
        counted += [(title, own)] if own else []
    if not counted:
        return None
    panels = [(key.removeprefix("drop/").replace("_", " "), [(key, "-")]) for key in keys]
    figure = curves(counted, panels, counts=True, removals=bool(found.series))
    told = "Predictions counted by the loss in each epoch, mean over seeds: negatives seen, and dropped from each loss."
    return Drawn(figure, told)


def families(found: Results) -> Families:
    """The settings in the groups that share a row of panels: a series each, or all settings where there is none."""
    groups = found.series or found.compared
    if not groups:
        flags = varying(found.runs)
        return [("", coloured([(describe(setting, flags), records) for setting, records in found.runs.items()]))]
    rows = []
    for one, text in zip(groups, group_texts(groups), strict=True):
        lines = [(name, found.runs[setting]) for setting, name in names_of(one).items()]
        curves, title = coloured(lines), text.replace(", ", ",\n") if len(groups) > 1 else ""
        if one.axis:
            # black for the 0 % run, then from dark to light with the removal
            removals = [setting.removal(one.axis) for setting in one.rows]
            shades = [matplotlib.colormaps["viridis"](0.15 + 0.7 * removal) if removal else INK for removal in removals]
            curves = [Curve(*line, shade) for line, shade in zip(lines, shades, strict=True)]
            title = AXIS_TITLES[one.axis] + (f",\n{text}" if len(groups) > 2 else "")
        rows.append((title, curves))
    return rows


def coloured(lines: Sequence[tuple[str, Sequence[Record]]]) -> list[Curve]:
    """More lines than colours would not be told apart."""
    return [Curve(*line, colour) for line, colour in zip(lines, MORE_COLOURS, strict=False)]


def epoch_keys(found: Results) -> list[str]:
    """The columns of the epochs of all finished runs."""
    return list(dict.fromkeys(name for r in found.sweep.finished for row in r.epochs for name in row))


def curves(
    rows: Families,
    panels: Sequence[tuple[str, Sequence[tuple[str, str]]]],  # title, and keys of `epochs` with their line styles
    *,
    points: Sequence[str] = (),  # keys that are fractions, shown in points
    counts: bool = False,  # the values are counts: from 0, thousands as k and millions as M
    removals: bool,  # the lines are removal fractions, else losses, which are on scales of their own
) -> Figure:
    """Draw means over seeds by epoch."""
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
                panel.yaxis.set_major_formatter(EngFormatter(sep=""))
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
