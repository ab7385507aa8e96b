"""mAP against removal percentage; the paper's curve has a panel of its own, since its data set differs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rebalance.experiments.record import SPLITS
from rebalance.report import papers
from rebalance.report.figures import style
from rebalance.report.summary import AXES, Results, Series
from rebalance.report.tables import AXIS_TITLES, group_names, group_text

_STROKES: dict[str, dict[str, Any]] = {
    "test": {"linestyle": "-", "marker": "o"},
    "val": {"linestyle": ":", "marker": "s"},
}


def draw(found: Results) -> style.Drawn | None:
    """A row for each axis with a panel for each metric and one for the paper; None without removals."""
    axes = [axis for axis in AXES if any(s.axis == axis for s in found.series)]
    if not axes:
        return None
    figure = Figure(figsize=(12.5, 0.7 + 3.4 * len(axes)))
    grid = figure.subplots(len(axes), 3, sharey="col", squeeze=False)
    several = max(sum(s.axis == axis for s in found.series) for axis in axes) > 1
    for panels, axis in zip(grid, axes, strict=True):
        own = [s for s in found.series if s.axis == axis]
        for panel, metric in zip(panels, ("mAP50", "mAP50-95"), strict=False):
            for i, one in enumerate(own):
                for split in one.splits:
                    colour = style.colour_of(i) if several else style.SPLIT_COLOURS[split]
                    _line(panel, one, split, metric, colour, band=not several or split == one.splits[-1])
            style.removal_axis(panel, own)
            panel.set_title(f"{AXIS_TITLES[axis]}, {metric}, {style.series_counts(own)}")
        published = papers.removal(axis)
        for split in SPLITS:
            x, y = zip(*((100 * r, 100 * value) for r, value in published.curve(split)), strict=True)
            panels[2].plot(x, y, **style.PAPER, color=style.GREY if several else style.SPLIT_COLOURS[split])
            if several:
                panels[2].lines[-1].set_marker(_STROKES[split]["marker"])
        panels[2].set_title(f"Paper's Table {published.table}: DUSIA, mAP50")
        panels[2].set_facecolor(style.PALE)
        style.removal_axis(panels[2], own, [r for r, _ in published.curve("test")])
        panels[0].set_ylabel("points (0 to 100)")
    splits = [s for s in SPLITS if any(s in one.splits for one in found.series)]
    if several:
        names = group_names(found.series)
        groups = dict.fromkeys(group_text(s.setting, names) for s in found.series)
        handles = [style.key(style.colour_of(i), group) for i, group in enumerate(groups)]
        handles += [style.key("#374151", split, **_STROKES[split]) for split in splits]
    else:
        handles = [style.key(style.SPLIT_COLOURS[split], split, marker="o") for split in splits]
        handles.append(style.key(style.GREY, "paper (same colours)", **style.PAPER))
    style.legend_below(figure, handles, columns=4)
    caption = (
        f"mAP against the fraction removed{style.intervals_text(found.rows, 'bands')}. "
        "Right: the paper's own curve, YOLOv5 on DUSIA: another data set, so another scale."
    )
    return style.Drawn(figure, caption)


def _line(panel: Any, one: Series, split: str, metric: str, colour: str, *, band: bool) -> None:
    points = [p for p in one.points if split in p.rows]
    stats = [p.rows[split].stats[metric] for p in points]
    x, y = [100 * p.removal for p in points], [100 * s.mean for s in stats]
    if band and any(s.half for s in stats):
        half = [100 * (s.half or 0.0) for s in stats]
        panel.fill_between(x, np.subtract(y, half), np.add(y, half), color=colour, alpha=0.16, linewidth=0)
    if band and any(s.n > 1 for s in stats):
        runs = [(100 * p.removal, 100 * r.metrics[split][metric]) for p in points for r in p.rows[split].records]
        panel.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
    panel.plot(x, y, **_STROKES[split], color=colour)
