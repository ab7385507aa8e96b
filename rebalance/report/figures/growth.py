"""How the time of losses grows with what they are given: a row a model, a panel an axis, a line a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from rebalance.files import write_whole
from rebalance.report.figures.style import BLUE, DPI, GREY, RED, STYLE

Curve = tuple[str, str, str, str]  # axis, model, host, loss of ours


def write(curves: Mapping[Curve, Sequence[Mapping[str, Any]]], path: Path, *, marked: Sequence[str] = ()) -> Path:
    """Draw rows of `rebalance bench grow=True`, both axes logarithmic; return the picture.

    Args:
        curves: the rows of each line by rising value.
        path: of the picture.
        marked: losses whose lines have a colour of their own.
    """
    axes, models = (list(dict.fromkeys(key[place] for key in curves)) for place in (0, 1))
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(4 * max(len(axes), 1), 2.6 * max(len(models), 1) + 0.6))
        panels = figure.subplots(max(len(models), 1), max(len(axes), 1), squeeze=False)
        for (axis, model, host, ours), rows in curves.items():
            panel = panels[models.index(model)][axes.index(axis)]
            values = [row["value"] for row in rows]
            if not panel.lines:
                panel.plot(values, [row["hosts"]["median"] for row in rows], "--s", color=GREY, label=f"{host}'s own")
            colour = RED if any(f"loss={name}" in ours for name in marked) else BLUE
            panel.plot(values, [row["own"]["median"] for row in rows], "-o", color=colour, label=ours)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
            ticks = _ticks(*panel.get_ylim())
            panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.set_xlabel(axis)
        for model, own in zip(models, panels, strict=False):
            own[0].set_title(model)
            own[0].set_ylabel("ms, forward and backward")
            own[-1].legend(fontsize=8)
        picture = BytesIO()
        figure.savefig(picture, dpi=DPI, metadata={"Software": None})
    return write_whole(path, picture.getvalue())


def _ticks(low: float, high: float) -> list[float]:
    """One, two and five of each power of ten within the limits."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [tick for power in powers for tick in (10.0**power * n for n in (1, 2, 5)) if low <= tick <= high]
