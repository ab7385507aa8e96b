"""Change from the 0 % run, with the paper's on the same scale: both are differences in points."""

from __future__ import annotations

from matplotlib.figure import Figure

from rebalance.report import papers
from rebalance.report.figures import style
from rebalance.report.summary import Results
from rebalance.report.tables import AXIS_TITLES, group_texts
from rebalance.report.words import say


def draw(found: Results) -> style.Drawn | None:
    """A panel for each axis, a line for each series; None where there is no 0 % run."""
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
            rows = [own[one.splits[-1]] for own in one.rows.values() if one.splits[-1] in own]
            rows = [row for row in rows if row.change or not row.setting.removes]
            stats = [row.change["mAP50"] if row.setting.removes else None for row in rows]
            beside = 1.4 * (i - (len(series) - 1) / 2)  # percent of x axis, so that bars do not hide one another
            x = [100 * row.setting.removal(axis) + beside for row in rows]
            y = [100 * s.mean if s else 0.0 for s in stats]
            half = [100 * s.half if s and s.half is not None else 0.0 for s in stats]
            if any(half):
                panel.errorbar(x, y, half, fmt="none", ecolor=style.colour_of(i), elinewidth=1.6, capsize=4)
            panel.plot(x, y, "-o", color=style.colour_of(i))
        style.removal_axis(panel, series, [r for r, _ in curve])
        panel.set_title(f"{AXIS_TITLES[axis]}: {series[0].splits[-1]}, {style.series_counts(series)}")
    panels[0].set_ylabel("mAP50, points above the 0 % run")
    groups = dict.fromkeys(text for _, text in shown)
    handles = [style.key(style.colour_of(i), group, marker="o") for i, group in enumerate(groups)]
    handles.append(style.key(style.GREY, "paper: YOLOv5 on DUSIA, test", **style.PAPER))
    style.legend_below(figure, handles, columns=3)
    return style.Drawn(figure, say("change", intervals=style.intervals_text(found.rows, "bars")))
