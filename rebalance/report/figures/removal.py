"""mAP against removal percentage, and its change from the 0 % run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from rebalance.experiments.record import SPLITS
from rebalance.report import papers
from rebalance.report.figures import style
from rebalance.report.summary import Results, Row, Setting
from rebalance.report.tables import AXIS_TITLES, group_texts
from rebalance.report.words import say

_MARKS: dict[str, dict[str, Any]] = {  # of the ways to choose what is removed, but for the usual one
    "confident": {"linestyle": "-.", "marker": "^"},
    "weight": {"linestyle": "", "marker": "x", "markersize": 8, "markeredgewidth": 2},
}
_NAMES = {"confident": "confident", "weight": "control"}
_STROKES: dict[str, dict[str, Any]] = {
    "test": {"linestyle": "-", "marker": "o"},
    "val": {"linestyle": ":", "marker": "s"},
}


def curves(found: Results) -> style.Drawn | None:
    """A row for each axis: a panel for each metric, one for the paper, whose data differ; None without removals."""
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
                    for select, rows in one.lines.items():
                        shown = not several or split == one.splits[-1]
                        _line(panel, one.axis, rows, split, metric, colour, select, band=shown)
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
    style.legend_below(figure, [*handles, *_selects(found)], columns=4)
    return style.Drawn(figure, say("removals", intervals=style.intervals_text(found.rows, "bands")))


def _line(
    panel: Any, axis: str, own: Mapping[Setting, Mapping[str, Row]], split: str, metric: str, colour: str, select: str,
    *, band: bool,
) -> None:  # fmt: skip
    rows = {100 * s.removal(axis): by_split[split] for s, by_split in own.items() if split in by_split}
    if band and select not in _MARKS:
        style.band(panel, list(rows), [row.stats[metric] for row in rows.values()], colour, alpha=0.16)
        if any(len(row.records) > 1 for row in rows.values()):
            runs = [(x, 100 * r.metrics[split][metric]) for x, row in rows.items() for r in row.records]
            panel.plot(*zip(*runs, strict=True), ".", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
    panel.plot(
        list(rows),
        [100 * row.stats[metric].mean for row in rows.values()],
        **{**_STROKES[split], **_MARKS.get(select, {})},
        color=colour,
    )


def _selects(found: Results) -> list[Any]:
    """Entries of a legend for the ways to choose what is removed that are not the usual one."""
    there = {select for one in found.series for select in one.lines}
    return [style.key(style.INK, name, **_MARKS[select]) for select, name in _NAMES.items() if select in there]


def change(found: Results) -> style.Drawn | None:
    """A panel for each axis, and the paper's on its scale: both are differences; None where there is no 0 % run."""
    texts = zip(found.series, group_texts(found.series), strict=True)
    shown = [(s, text) for s, text in texts if any(r.change for own in s.rows.values() for r in own.values())]
    if not shown:
        return None
    axes = style.by_axis([one for one, _ in shown])
    figure = Figure(figsize=(10.5 if len(axes) > 1 else 6.5, 4.3))
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, (axis, series) in zip(panels, axes.items(), strict=True):
        panel.axhline(0, color=style.INK, linewidth=1)
        curve = papers.removal(axis).curve("test")
        x, y = [100 * r for r, _ in curve], [100 * (value - curve[0][1]) for _, value in curve]
        panel.plot(x, y, **style.PAPER, color=style.GREY, linewidth=1.6)
        for i, one in enumerate(series):
            for j, (select, own) in enumerate(one.lines.items()):
                rows = [by_split[one.splits[-1]] for by_split in own.values() if one.splits[-1] in by_split]
                rows = [row for row in rows if row.change or not row.setting.removes]
                stats = [row.change["mAP50"] if row.setting.removes else None for row in rows]
                # percent of x axis, so that bars do not hide one another
                beside = 1.4 * (i - (len(series) - 1) / 2) + 0.7 * j
                x = [100 * row.setting.removal(axis) + beside for row in rows]
                y = [100 * s.mean if s else 0.0 for s in stats]
                half = [100 * s.half if s and s.half is not None else 0.0 for s in stats]
                if any(half):
                    panel.errorbar(x, y, half, fmt="none", ecolor=style.colour_of(i), elinewidth=1.6, capsize=4)
                panel.plot(
                    x, y, **{"linestyle": "-", "marker": "o", **_MARKS.get(select, {})}, color=style.colour_of(i)
                )
        style.removal_axis(panel, series, [r for r, _ in curve])
        panel.set_title(f"{AXIS_TITLES[axis]}: {series[0].splits[-1]}, {style.series_counts(series)}")
    panels[0].set_ylabel("mAP50, points above the 0 % run")
    groups = dict.fromkeys(text for _, text in shown)
    handles = [style.key(style.colour_of(i), group, marker="o") for i, group in enumerate(groups)]
    handles.append(style.key(style.GREY, "paper: YOLOv5 on DUSIA, test", **style.PAPER))
    style.legend_below(figure, [*handles, *_selects(found)], columns=3 if len(axes) > 1 else 2)
    return style.Drawn(figure, say("change", intervals=style.intervals_text(found.rows, "bars")))
