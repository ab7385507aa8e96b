"""Change from the 0 % run, with the paper's on the same scale: both are differences in points."""

from __future__ import annotations

from matplotlib.figure import Figure

from rebalance.report import papers
from rebalance.report.figures import style
from rebalance.report.summary import AXES, Results
from rebalance.report.tables import AXIS_TITLES, group_names, group_text


def draw(found: Results) -> style.Drawn | None:
    """A panel for each axis, a line for each series; None where there is no 0 % run."""
    shown = [s for s in found.series if any(r.change for p in s.points for r in p.rows.values())]
    if not shown:
        return None
    axes = [axis for axis in AXES if any(s.axis == axis for s in shown)]
    figure = Figure(figsize=(10.5 if len(axes) > 1 else 6.5, 4.3))
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        own = [s for s in shown if s.axis == axis]
        panel.axhline(0, color=style.INK, linewidth=1)
        curve = papers.removal(axis).curve("test")
        x, y = [100 * r for r, _ in curve], [100 * (value - curve[0][1]) for _, value in curve]
        panel.plot(x, y, **style.PAPER, color=style.GREY, linewidth=1.6)
        for i, one in enumerate(own):
            split, colour = one.splits[-1], style.colour_of(i)
            points = [p for p in one.points if split in p.rows and (p.removal == 0 or p.rows[split].change)]
            stats = [p.rows[split].change.get("mAP50") if p.removal else None for p in points]
            beside = 1.4 * (i - (len(own) - 1) / 2)  # percent of x axis, so that bars do not hide one another
            x = [100 * p.removal + beside for p in points]
            y = [100 * s.mean if s else 0.0 for s in stats]
            half = [100 * s.half if s and s.half is not None else 0.0 for s in stats]
            if any(half):
                panel.errorbar(x, y, half, fmt="none", ecolor=colour, elinewidth=1.6, capsize=4)
            panel.plot(x, y, "-o", color=colour)
        style.removal_axis(panel, own, [r for r, _ in curve])
        panel.set_title(f"{AXIS_TITLES[axis]}: {own[0].splits[-1]}, {style.series_counts(own)}")
    panels[0].set_ylabel("mAP50, points above the 0 % run")
    names = group_names(found.series)
    groups = dict.fromkeys(group_text(s.setting, names) for s in shown)
    handles = [style.key(style.colour_of(i), group, marker="o") for i, group in enumerate(groups)]
    handles.append(style.key(style.GREY, "paper: YOLOv5 on DUSIA, test", **style.PAPER))
    style.legend_below(figure, handles, columns=3)
    caption = (
        f"Difference in mAP50 from the 0 % run of the same seed{style.intervals_text(found.rows, 'bars')}. "
        "Dashed: the paper's own differences, on another data set, number of runs not stated."
    )
    return style.Drawn(figure, caption)
