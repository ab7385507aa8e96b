"""mAP50 of every setting, for a grid that is more than one of removal fractions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from rebalance.experiments.record import SPLITS
from rebalance.report.figures.style import SPLIT_COLOURS, Drawn, counts_text, dots, intervals_text, key, legend_below
from rebalance.report.summary import Group, Results, describe, varying
from rebalance.report.tables import complete_rows, group_texts, names_of

_OFFSETS = (-0.12, 0.12)  # of the splits
_WIDTH = 36  # letters of a line of a setting's name


def draw(found: Results) -> Drawn | None:
    """A line for each setting, in a panel for each group of losses that are compared; None for a single setting."""
    settings = list(dict.fromkeys(row.setting for row in found.rows))
    if found.compared:
        caption = f"mAP50 of each loss, points (0 to 100){intervals_text(found.rows, 'bars')}."
        return Drawn(_losses(found.compared), caption)
    if found.series or len(settings) < 2:
        return None
    names = varying(settings)
    figure = Figure(figsize=(8.5, 1.3 + 0.42 * len(settings)))
    panel = figure.subplots()
    splits = [s for s in SPLITS if any(row.split == s for row in found.rows)]
    for offset, split in zip(_OFFSETS, splits, strict=False):
        own = [(settings.index(row.setting), row) for row in found.rows if row.split == split]
        dots(panel, own, offset, split, split)
    panel.set_yticks(range(len(settings)), [describe(s, names) for s in settings])
    panel.invert_yaxis()
    panel.set_xlabel("mAP50, points (0 to 100)")
    panel.set_title(counts_text(len(row.records) for row in found.rows))
    legend_below(figure)
    return Drawn(figure, f"mAP50 of each setting{intervals_text(found.rows, 'bars')}.")


def _losses(compared: Sequence[Group]) -> Figure:
    titles = iter(group_texts(compared))
    columns = min(2, len(compared))
    lines = [compared[i : i + columns] for i in range(0, len(compared), columns)]
    heights = [1.0 + 0.4 * max(len(one.rows) + len(complete_rows(one)) for one in line) for line in lines]
    figure = Figure(figsize=(8.0 if columns == 1 else 6.5 * columns, 0.5 + sum(heights)))
    grid = figure.subplots(len(lines), columns, sharex=True, squeeze=False, height_ratios=heights)
    for panels, line in zip(grid, lines, strict=True):
        for panel in panels[len(line) :]:
            panel.set_axis_off()
        for panel, one in zip(panels, line, strict=False):
            below = complete_rows(one)
            names = [*names_of(one).values(), *("complete labels" for _ in below)]
            for offset, split in zip(_OFFSETS, one.splits, strict=False):
                rows = [*one.rows.values(), *below]
                dots(panel, [(y, own[split]) for y, own in enumerate(rows) if split in own], offset, split)
            panel.set_yticks(range(len(names)), [textwrap.fill(name, _WIDTH) for name in names])
            panel.set_ylim(len(names) - 0.5, -0.5)
            panel.set_title(next(titles), loc="center")
            panel.tick_params(labelbottom=True)
    splits = [s for s in SPLITS if any(s in one.splits for one in compared)]
    legend_below(figure, [key(SPLIT_COLOURS[s], s, marker="o") for s in splits])
    return figure
