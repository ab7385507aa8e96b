"""How the plots look, and what several of them draw.

Colours are Okabe and Ito's, which people with any colour vision tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D

from rebalance.report.summary import Row, Series, Stat
from rebalance.report.tables import Tables, beside_line, percent, span

DPI = 130
PHOTO_DPI = 100  # photos do not shrink as line drawings do, and the report carries them inside
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MORE_COLOURS = (*COLOURS, "#111827", "#999933", "#882255", "#44aa99", "#6b7280", "#ddcc77")  # from Tol's muted scheme
SPLIT_COLOURS = {"test": BLUE, "val": ORANGE}
INK, GREY, PALE = "#111827", "#6b7280", "#f9fafb"
PAPER: Mapping[str, Any] = {"linestyle": "--", "marker": "D", "markersize": 5}  # of what a paper reports
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#374151",
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "legend.frameon": False,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "figure.constrained_layout.use": True,
}


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


def removal_axis(panel: Any, own: Sequence[Series], more: Iterable[float] = ()) -> None:
    """Let a panel have ticks at the removals of series, and at more."""
    removals = sorted({p.removal for s in own for p in s.points} | set(more))
    panel.set_xticks([100 * r for r in removals], [percent(r) for r in removals])
    panel.set_xlabel(f"removed ({own[0].axis})")


def band(panel: Any, x: Sequence[float], stats: Sequence[Stat | None], colour: Any, label: str = "") -> None:
    """Draw a line of means in points with its 95 % intervals."""
    known = [(at, one) for at, one in zip(x, stats, strict=True) if one]
    xs, y = [at for at, _ in known], [100 * one.mean for _, one in known]
    half = [100 * (one.half or 0.0) for _, one in known]
    if any(half):
        panel.fill_between(xs, np.subtract(y, half), np.add(y, half), color=colour, alpha=0.14, linewidth=0)
    panel.plot(xs, y, "-o", color=colour, markersize=4.5, label=label or None)


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


def series_counts(own: Sequence[Series]) -> str:
    """How many runs a setting of series has."""
    return counts_text(len(row.records) for one in own for point in one.points for row in point.rows.values())


def intervals_text(rows: Sequence[Row], name: str) -> str:
    """The part of a caption that explains the intervals, drawn as bars or bands, where there are any."""
    if all(len(row.records) == 1 for row in rows):
        return ": single runs, so no interval"
    return f": mean over seeds; {name} are 95 % intervals of the mean" + ("; dots are single runs" * (name == "bands"))


def published_points(line: Mapping[float, Row], tables: Tables) -> dict[float, float]:
    """The paper's mAP50 at each x of ours, ascending, NaN where it has none; empty where it has none at all."""
    found = beside_line(line, tables)
    return {x: found[x].value if x in found else math.nan for x in sorted(line)} if found else {}


def paper_panel(panel: Any, names: Sequence[str], lines: Sequence[Mapping[float, float]], unit: str = "") -> str:
    """Draw a paper's points, joined where they are neighbours on our axis, and return what it does not report."""
    absent = []
    for name, points, colour in zip(names, lines, MORE_COLOURS, strict=False):
        panel.plot(list(points), [100 * value for value in points.values()], **PAPER, color=colour)  # NaN breaks a line
        unknown = [f"{x:g}{unit}" for x, value in points.items() if math.isnan(value)]
        if unknown or not points:
            absent.append(f"{name} at {', '.join(unknown)}" if unknown else name)
    joined = any(not math.isnan(sum(pair)) for points in lines for pair in pairwise(points.values()))
    panel.plot([], [], **{**PAPER, "linestyle": "--" if joined else "none"}, color=GREY, label="paper")
    panel.set_title("paper's mAP50: other data")
    panel.set_facecolor(PALE)
    if missing := [name for name, points in zip(names, lines, strict=True) if not points]:
        told = "\n".join(["not reported:", *missing])
        panel.text(0.98, 0.97, told, transform=panel.transAxes, ha="right", va="top", color=GREY, fontsize=9)
    return f" Right: the paper's points; not reported: {'; '.join(absent)}." if absent else ""
