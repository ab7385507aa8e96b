"""How the plots look, and what several of them draw.

Colours are Okabe and Ito's, which people with any colour vision tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from matplotlib.lines import Line2D

from rebalance.report.evidence import Stat
from rebalance.report.summary import AXES, Group, Row
from rebalance.report.table import percent, span

DPI = 130
PHOTO_DPI = 100  # photos do not shrink as line drawings do, and the report carries them inside
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MORE_COLOURS = (*COLOURS, "#111827", "#999933", "#882255", "#44aa99", "#6b7280", "#ddcc77")  # from Tol's muted scheme
SPLIT_COLOURS = {"test": BLUE, "val": ORANGE}
INK, GREY, PALE = "#111827", "#6b7280", "#f9fafb"
PAPER: Mapping[str, Any] = {"linestyle": "--", "marker": "D", "markersize": 5}  # of what a paper reports
STYLE: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


class Drawn(NamedTuple):
    """A figure of matplotlib and the caption that it has in the report."""

    figure: Any
    caption: str


def key(colour: Any, label: str, **line: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, label=label, **line)


def colour_of(i: int) -> str:
    """The colour of line i; more lines than colours begin again."""
    return COLOURS[i % len(COLOURS)]


def legend_below(figure: Any, handles: Sequence[Any] | None = None, columns: int = 2) -> None:
    """Put a legend below all panels: of the handles, else of what has a label."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def epoch_axis(panel: Any) -> None:
    """Let a panel, once drawn, have ticks at whole epochs only: one where there is one epoch, else at least two."""
    low, high = panel.get_xlim()
    panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1 if high - low < 1 else 2)


def by_axis(series: Sequence[Group]) -> dict[str, list[Group]]:
    """The series of each axis that there are some of."""
    return {axis: own for axis in AXES if (own := [one for one in series if one.axis == axis])}


def removal_axis(panel: Any, own: Sequence[Group], more: Iterable[float] = ()) -> None:
    """Let a panel have ticks at the removals of series, and at more."""
    removals = sorted({setting.removal(one.axis) for one in own for setting in one.rows} | set(more))
    panel.set_xticks([100 * r for r in removals], [percent(r) for r in removals])
    panel.set_xlabel(f"removed ({own[0].axis})")


def band(panel: Any, x: Sequence[float], stats: Sequence[Stat], colour: Any, alpha: float = 0.14) -> None:
    """Draw the 95 % intervals, in points, around a line of means."""
    y, half = [100 * one.mean for one in stats], [100 * (one.half or 0.0) for one in stats]
    if any(half):
        panel.fill_between(x, np.subtract(y, half), np.add(y, half), color=colour, alpha=alpha, linewidth=0)


def means(panel: Any, x: Sequence[float], stats: Sequence[Stat | None], colour: Any, label: str = "") -> None:
    """Draw a line of means in points with its 95 % intervals; it has no point where there is no mean."""
    known = {at: one for at, one in zip(x, stats, strict=True) if one}
    band(panel, list(known), list(known.values()), colour)
    y = [100 * one.mean for one in known.values()]
    panel.plot(list(known), y, "-o", color=colour, markersize=4.5, label=label or None)


def dots(panel: Any, rows: Sequence[tuple[int, Row]], offset: float, split: str, label: str | None = None) -> None:
    """Draw mAP50 in points, with its interval, at the height that stands before each row."""
    half = [100 * (row.stats["mAP50"].half or 0.0) for _, row in rows]
    panel.errorbar(
        [100 * row.stats["mAP50"].mean for _, row in rows], [y + offset for y, _ in rows],
        xerr=half if any(half) else None, fmt="o", color=SPLIT_COLOURS[split], capsize=3, label=label,
    )  # fmt: skip


def counts_text(counts: Iterable[int]) -> str:
    """How many runs a setting has: 'single runs', 'n = 2 to 3'."""
    text = span(counts)
    return "single runs" if text == "1" else f"n = {text}"


def series_counts(own: Sequence[Group]) -> str:
    """How many runs a setting of series has."""
    return counts_text(len(row.records) for one in own for by_split in one.rows.values() for row in by_split.values())


def intervals_text(rows: Sequence[Row], name: str) -> str:
    """The part of a caption that explains the intervals, drawn as bars or bands, where there are any."""
    if all(len(row.records) == 1 for row in rows):
        return ": single runs, so no interval"
    return f": mean over seeds; {name} are 95 % intervals of the mean" + ("; dots are single runs" * (name == "bands"))
