"""Mean objectness of positives and negatives after each step, over training.

Chen et al., "Residual Objectness for Imbalance Reduction", Figure 2 (the objectness alone) and Figure 4 (each step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rebalance.report.papers import ON_HEADS, loss_of
from rebalance.report.records import Record, Sweep, by_epoch
from rebalance.report.style import COLOURS, epoch_axis
from rebalance.report.summary import Setting, loss_key, setting_of, varying
from rebalance.report.tables import LABELS, group_text

KINDS = {"pos": "Positives", "neg": "Negatives"}
_STEPS = ("resobj_steps", "resobj_grad", "resobj_on")  # flags that a head without steps has no use for
_BESIDE: Mapping[str, Any] = {  # often on t = 0, so its marks are around those
    "color": "#111827",
    "linestyle": (0, (3, 4)),
    "linewidth": 1.4,
    "marker": "D",
    "fillstyle": "none",
}
_MOST_ROWS = 4
_MOST_DOTS = 25  # of a line; where one is longer, epochs have none
_LOGARITHMIC = 20  # ratio of the highest to the lowest mean from which the axis of negatives is logarithmic


@dataclass(frozen=True)
class Curve:
    """One mean by epoch, and the lowest and highest run around it; epochs ascend."""

    epochs: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def steps_of(record: Record) -> int | None:
    """Return the number of steps whose means a record holds: 0 for a head that refines nothing; None for no means."""
    columns = {key for row in record.epochs for key in row}
    last = next(t for t in count() if f"resobj/pos_{t}" not in columns) - 1
    return last if last >= 0 else None


def curve(records: Sequence[Record], kind: str, step: int) -> Curve:
    """Return the mean objectness by epoch, over the runs that have it.

    Args:
        records: the seeds of one setting.
        kind: pos or neg.
        step: 0 (the objectness alone) to T.
    """
    values = by_epoch(records, f"resobj/{kind}_{step}")
    means = (sum(v) / len(v) for v in values.values())
    return Curve(tuple(values), tuple(means), tuple(map(min, values.values())), tuple(map(max, values.values())))


def chosen(runs: Mapping[Setting, Sequence[Record]]) -> list[Setting]:
    """Return the settings that are drawn: of those that differ in the number of steps alone, the one with most.

    Where that leaves more than fit, one for each detector and set of labels; and of those the first.

    Args:
        runs: setting -> its runs, all with means.
    """

    def most(groups: Mapping[Any, list[Setting]]) -> list[Setting]:
        return [max(group, key=lambda s: steps_of(runs[s][0]) or 0) for group in groups.values()]

    refined = {_without_steps(s) for s, records in runs.items() if steps_of(records[0])}
    families: dict[Any, list[Setting]] = {}
    for setting, records in runs.items():
        bare = _without_steps(setting)
        if steps_of(records[0]) or bare not in refined:
            families.setdefault((bare, setting.get("resobj_grad"), setting.get("resobj_on")), []).append(setting)
    found = most(families)
    if len(found) > _MOST_ROWS:
        detectors: dict[Any, list[Setting]] = {}
        for setting in found:
            detectors.setdefault(loss_key(setting), []).append(setting)
        found = most(detectors)
    return found[:_MOST_ROWS]


def objectness_figure(sweep: Sweep) -> tuple[Any, str] | str:
    """Draw a row for each setting chosen, with a panel for positives and one for negatives, and a line for each step.

    Returns:
        the figure and its caption; '' where no record has means.
    """
    runs: dict[Setting, list[Record]] = {}
    for record in sweep.finished:
        if steps_of(record) is not None:
            runs.setdefault(setting_of(record), []).append(record)
    if not runs:
        return ""
    shown = chosen(runs)
    bare = {_without_steps(s): records for s, records in runs.items() if steps_of(records[0]) == 0}
    beside = {}
    for setting in shown:
        seeds = {r.seed for r in runs[setting]}
        paired = [r for r in bare.get(_without_steps(setting), []) if r.seed in seeds]  # an unfinished sweep has others
        if steps_of(runs[setting][0]) and paired:
            beside[setting] = paired
    names = [n for n in varying(shown) if n not in (*LABELS, "resobj_steps")]
    figure = Figure(figsize=(9.2, 1.0 + 2.5 * len(shown)))
    grid = figure.subplots(len(shown), len(KINDS), sharex=True, squeeze=False)
    logarithmic = False
    dots = 3.5 if max(len(r.epochs) for s in shown for r in runs[s]) <= _MOST_DOTS else 0.0
    for panels, setting in zip(grid, shown, strict=True):
        records = runs[setting]
        for panel, kind in zip(panels, KINDS, strict=True):
            logarithmic = _draw(panel, records, beside.get(setting, []), kind, dots) or logarithmic
        told = group_text(setting, names).replace(", ", ",\n").replace("$", r"\$")  # no formula
        count_text = "single run" if len(records) == 1 else f"n = {len(records)}"
        panels[0].set_ylabel(f"{told}\nT = {steps_of(records[0])}, {count_text}")
    for panel, title in zip(grid[0], KINDS.values(), strict=True):
        panel.set_title(f"{title}: mean objectness")
    for panel in grid[-1]:
        panel.set_xlabel("epoch")
    most = max(steps_of(runs[s][0]) or 0 for s in shown)
    handles = [
        Line2D([], [], marker="o", markersize=dots, color=colour, label="t = 0 (objectness)" if t == 0 else f"t = {t}")
        for t, colour in zip(range(most + 1), COLOURS, strict=False)
    ]
    if beside:
        handles.append(Line2D([], [], **_BESIDE, markersize=2 * dots, label="no steps (T = 0)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) < 6 else 4)
    several = any(len(runs[s]) > 1 for s in shown)
    hidden = len(runs) - len(shown) - len({_without_steps(s) for s in beside})
    return figure, " ".join(_caption(several, bool(beside), logarithmic, len(shown), hidden))


def _draw(panel: Any, records: Sequence[Record], beside: Sequence[Record], kind: str, dots: float) -> bool:
    """Draw one panel; return whether its axis is logarithmic, which that of negatives is where they fall far."""
    curves = [curve(records, kind, t) for t in range((steps_of(records[0]) or 0) + 1)]
    for one, colour in zip(curves, COLOURS, strict=False):
        if len(records) > 1:
            panel.fill_between(one.epochs, one.low, one.high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(one.epochs, one.mean, "-o", color=colour, linewidth=1.6, markersize=dots)
    if beside:
        curves.append(curve(beside, kind, 0))
        panel.plot(curves[-1].epochs, curves[-1].mean, **_BESIDE, markersize=2 * dots)
    epoch_axis(panel)
    values = [value for one in curves for value in one.mean]
    if kind == "neg" and values and 0 < _LOGARITHMIC * min(values) < max(values):
        panel.set_yscale("log")
        return True
    panel.set_ylim(0, 1.06 * max(values, default=0.0) or 1.0)
    return False


def _without_steps(setting: Setting) -> Setting:
    """What two settings share that differ in the steps of the head alone, head=obj being one without."""
    parts = [part for part in loss_of(setting.values).split("+") if part not in ON_HEADS]
    return setting.change(**dict.fromkeys(_STEPS), head=None, loss="+".join(parts))


def _caption(several: bool, dashed: bool, logarithmic: bool, shown: int, hidden: int) -> list[str]:
    told = [
        "Mean objectness of the candidates with a label and of those without, over the training images of each epoch: "
        "t = 0 is the objectness itself, t = 1 to T what the steps make of it, without their gate as in inference. "
        "After Figures 2 and 4 of Chen et al., which show images of val."
    ]
    if several:
        told.append("Mean over seeds; bands from the lowest to the highest seed.")
    if dashed:
        told.append("Dashed: the same training with no steps (T = 0), of the same seeds.")
    told.append(f"Each panel has its own scale{', logarithmic where negatives fall far' if logarithmic else ''}.")
    if hidden > 0:
        told.append(f"Shown: {shown} with the largest T; not shown: {hidden} more settings with an objectness.")
    return told
