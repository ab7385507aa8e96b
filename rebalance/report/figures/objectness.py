"""Mean objectness of positives and negatives after each step, over training.

Chen et al., "Residual Objectness for Imbalance Reduction", Figure 2 (the objectness alone) and Figure 4 (each step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from rebalance.experiments.record import Record, by_epoch
from rebalance.report.figures.style import COLOURS, INK, Drawn, epoch_axis, key, legend_below
from rebalance.report.summary import LABELS, Results, Setting, apart, grouped, loss_key
from rebalance.report.tables import group_text
from rebalance.report.words import say

KINDS = {"pos": "Positives", "neg": "Negatives"}
_STEPS = "resobj_steps"
# often on t = 0, so its marks are around those
_BESIDE: Mapping[str, Any] = {"linestyle": (0, (3, 4)), "linewidth": 1.4, "marker": "D", "fillstyle": "none"}
_MOST_ROWS = 4
_MOST_DOTS = 25  # of a line; where one is longer, epochs have none
_LOGARITHMIC = 20  # ratio of the highest to the lowest mean from which the axis of negatives is logarithmic

Runs = Mapping[Setting, Sequence[Record]]  # by seed, all with means


class Curve(NamedTuple):
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
    """Return the mean objectness by epoch, of the runs that have it; `kind` is pos or neg, step 0 before all steps."""
    values = by_epoch(records, f"resobj/{kind}_{step}")
    means = (sum(v) / len(v) for v in values.values())
    return Curve(tuple(values), tuple(means), tuple(map(min, values.values())), tuple(map(max, values.values())))


def chosen(runs: Runs) -> list[Setting]:
    """Return the settings that are drawn: of those that differ in the number of steps alone, the one with most.

    Where that leaves more than fit, one for each detector and set of labels; and of those the first.
    """
    steps = {setting: _steps(records) for setting, records in runs.items()}

    def most(settings: Iterable[Setting], shared: Callable[[Setting], Any]) -> list[Setting]:
        return [max(own, key=lambda one: steps[one]) for own in grouped(settings, shared).values()]

    def refinement(setting: Setting) -> tuple[Any, ...]:
        others = [value for name, value in setting.values.items() if _of_steps(name) and name != _STEPS]
        return (_without_steps(setting), *others)

    refined = {_without_steps(setting) for setting in runs if steps[setting]}
    found = most((s for s in runs if steps[s] or _without_steps(s) not in refined), refinement)
    return (found if len(found) <= _MOST_ROWS else most(found, loss_key))[:_MOST_ROWS]


def draw(found: Results) -> Drawn | None:
    """A row for each setting chosen, with a panel for positives and one for negatives, and a line for each step."""
    kept = {s: [r for r in records if steps_of(r) is not None] for s, records in found.runs.items()}
    runs = {setting: records for setting, records in kept.items() if records}
    if not runs:
        return None
    shown = chosen(runs)
    bare = {_without_steps(s): records for s, records in runs.items() if not _steps(records)}
    beside = {}
    for setting in shown:
        seeds = {r.seed for r in runs[setting]}
        paired = [r for r in bare.get(_without_steps(setting), []) if r.seed in seeds]  # an unfinished sweep has others
        if _steps(runs[setting]) and paired:
            beside[setting] = paired
    names = apart(shown, (*LABELS, _STEPS))
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
        panels[0].set_ylabel(f"{told}\nT = {_steps(records)}, {count_text}")
    for panel, title in zip(grid[0], KINDS.values(), strict=True):
        panel.set_title(f"{title}: mean objectness")
    for panel in grid[-1]:
        panel.set_xlabel("epoch")
    steps = range(max(_steps(runs[s]) for s in shown) + 1)
    texts = ["t = 0 (objectness)", *(f"t = {t}" for t in steps[1:])]
    handles = [key(c, text, marker="o", markersize=dots) for c, text in zip(COLOURS, texts, strict=False)]
    handles += [key(INK, "no steps (T = 0)", **_BESIDE, markersize=2 * dots)] * bool(beside)
    legend_below(figure, handles, columns=len(handles) if len(handles) < 6 else 4)
    hidden = len(runs) - len(shown) - len({_without_steps(s) for s in beside})
    facts = {"beside": beside, "logarithmic": logarithmic, "shown": len(shown), "hidden": hidden}
    return Drawn(figure, say("objectness", seeds=any(len(runs[s]) > 1 for s in shown), **facts))


def _draw(panel: Any, records: Sequence[Record], beside: Sequence[Record], kind: str, dots: float) -> bool:
    """Draw one panel; return whether its axis is logarithmic, which that of negatives is where they fall far."""
    curves = [curve(records, kind, t) for t in range(_steps(records) + 1)]
    for one, colour in zip(curves, COLOURS, strict=False):
        if len(records) > 1:
            panel.fill_between(one.epochs, one.low, one.high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(one.epochs, one.mean, "-o", color=colour, linewidth=1.6, markersize=dots)
    if beside:
        curves.append(curve(beside, kind, 0))
        panel.plot(curves[-1].epochs, curves[-1].mean, **_BESIDE, color=INK, markersize=2 * dots)
    epoch_axis(panel)
    values = [value for one in curves for value in one.mean]
    if kind == "neg" and values and 0 < _LOGARITHMIC * min(values) < max(values):
        panel.set_yscale("log")
        return True
    panel.set_ylim(0, 1.06 * max(values, default=0.0) or 1.0)
    return False


def _steps(records: Sequence[Record]) -> int:
    return steps_of(records[0]) or 0


def _of_steps(name: str) -> bool:
    """Whether a flag is one that a head without steps has no use for."""
    return name.startswith("resobj_")


def _without_steps(setting: Setting) -> Setting:
    """What two settings share that differ in the steps of the head alone, head=obj being one without."""
    parts = [part for part in str(setting.get("loss") or "").split("+") if part not in ("", "bce", setting.get("head"))]
    return setting.change(filter(_of_steps, setting.values), head=None, loss="+".join(parts))
