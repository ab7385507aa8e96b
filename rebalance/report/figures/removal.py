"""mAP against removal percentage; the paper's curve has a panel of its own, since its data set differs."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from rebalance.experiments.record import SPLITS
from rebalance.report import papers
from rebalance.report.figures import style
from rebalance.report.summary import Group, Results
from rebalance.report.tables import AXIS_TITLES, group_texts
from rebalance.report.words import say

_STROKES: dict[str, dict[str, Any]] = {
    "test": {"linestyle": "-", "marker": "o"},
    "val": {"linestyle": ":", "marker": "s"},
}


def draw(found: Results) -> style.Drawn | None:
    """A row for each axis with a panel for each metric and one for the paper; None without removals."""
    axes = style.by_axis(found.series)
    if not axes:
        return None
    figure = Figure(figsize=(12.5, 0.7 + 3.4 * len(axes)))
    grid = figure.subplots(len(axes), 3, sharey="col", squeeze=False)
    several = max(map(len, axes.values())) > 1
    for panels, (axis, own) in zip(grid, axes.items(), strict=True):
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
        groups = dict.fromkeys(group_texts(found.series))
        handles = [style.key(style.colour_of(i), text) for i, text in enumerate(groups)]
        handles += [style.key("#374151", split, **_STROKES[split]) for split in splits]
    else:
        handles = [style.key(style.SPLIT_COLOURS[split], split, marker="o") for split in splits]
        handles.append(style.key(style.GREY, "paper (same colours)", **style.PAPER))
    style.legend_below(figure, handles, columns=4)
    return style.Drawn(figure, say("removals", intervals=style.intervals_text(found.rows, "bands")))


def _line(panel: Any, one: Group, split: str, metric: str, colour: str, *, band: bool) -> None:
    rows = {100 * s.removal(one.axis): own[split] for s, own in one.rows.items() if split in own}
    if band:
        style.band(panel, list(rows), [row.stats[metric] for row in rows.values()], colour, alpha=0.16)
        if any(len(row.records) > 1 for row in rows.values()):
            runs = [(x, 100 * r.metrics[split][metric]) for x, row in rows.items() for r in row.records]
            panel.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
    panel.plot(list(rows), [100 * row.stats[metric].mean for row in rows.values()], **_STROKES[split], color=colour)
