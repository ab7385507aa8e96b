"""Rows and records -> plots/*.png."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rebalance.report import papers
from rebalance.report.objectness import objectness_figure
from rebalance.report.records import SPLITS, Record, Sweep, by_epoch
from rebalance.report.samples import sample_figure, steps_figure
from rebalance.report.style import COLOURS, DPI, GREY, MORE_COLOURS, PHOTO_DPI, SPLIT_COLOURS, STYLE, epoch_axis
from rebalance.report.summary import (
    AXES,
    Comparison,
    Point,
    Row,
    Series,
    Setting,
    Stat,
    comparisons,
    describe,
    series,
    setting_of,
    stat,
    varying,
)
from rebalance.report.tables import (
    AXIS_TITLES,
    LABELS,
    beside_line,
    describe_loss,
    group_names,
    group_text,
    judge,
    labels_text,
    loss_names,
    percent,
    rate_lines,
    study_numbers,
)


@dataclass(frozen=True)
class Picture:
    """One file in plots/, with the heading and the caption that the report gives it."""

    file: str
    title: str
    caption: str


def draw(sweep: Sweep, rows: Sequence[Row], folder: Path) -> tuple[list[Picture], list[str]]:
    """Write every plot that the records have data for.

    Args:
        sweep: the records.
        rows: their summary.
        folder: where the files go; must exist.

    Returns:
        the pictures in the order of the report, and a line for each that could not be made.
    """
    found = series(rows)
    pictures, notes = [], []
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's own style is
        for file, title, make in _PLOTS:
            made = make(sweep, rows, found)
            if isinstance(made, str):
                notes += [made] if made else []
                continue
            figure, caption = made
            # no metadata: the same records give the same bytes
            figure.savefig(folder / file, dpi=PHOTO_DPI if file in _PHOTOS else DPI, metadata={"Software": None})
            pictures.append(Picture(file, title, caption))
    return pictures, notes


Made = tuple[Any, str] | str  # a figure and its caption, or why there is none ('' where nobody would miss it)


def _change(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """Change from the 0 % run, with the paper's on the same scale: both are differences in points."""
    shown = [s for s in found if any(r.change for p in s.points for r in p.rows.values())]
    if not shown:
        return ""
    axes_shown = [axis for axis in AXES if any(s.axis == axis for s in shown)]
    names = group_names(found)
    figure = Figure(figsize=(10.5 if len(axes_shown) > 1 else 6.5, 4.3))
    panels = figure.subplots(1, len(axes_shown), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes_shown, strict=True):
        own = [s for s in shown if s.axis == axis]
        panel.axhline(0, color="#111827", linewidth=1)
        published = papers.removal(axis)
        curve = published.curve("test")
        paper = [(100 * x, 100 * (y - curve[0][1])) for x, y in curve]
        panel.plot(*zip(*paper, strict=True), "--", marker="D", markersize=5, color=GREY, linewidth=1.6)
        for i, one in enumerate(own):
            split, colour = judge(one), COLOURS[i % len(COLOURS)]
            points = [p for p in one.points if split in p.rows and (p.removal == 0 or p.rows[split].change)]
            stats = [p.rows[split].change.get("mAP50") if p.removal else None for p in points]
            beside = 1.4 * (i - (len(own) - 1) / 2)  # percent of x axis, so that bars do not hide one another
            x = [100 * p.removal + beside for p in points]
            y = [100 * s.mean if s else 0.0 for s in stats]
            half = [100 * s.half if s and s.half is not None else 0.0 for s in stats]
            if any(half):
                panel.errorbar(x, y, half, fmt="none", ecolor=colour, elinewidth=1.6, capsize=4)
            panel.plot(x, y, "-o", color=colour)
        _removal_axis(panel, own, [r for r, _ in curve])
        panel.set_title(f"{AXIS_TITLES[axis]}: {judge(own[0])}, {_count(own)}")
    panels[0].set_ylabel("mAP50, points above the 0 % run")
    groups = list(dict.fromkeys(group_text(s.setting, names) for s in shown))
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="o", label=group) for i, group in enumerate(groups)
    ]
    handles.append(
        Line2D([], [], color=GREY, linestyle="--", marker="D", markersize=5, label="paper: YOLOv5 on DUSIA, test")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    caption = (
        f"Difference in mAP50 from the 0 % run of the same seed{_bars(rows, 'bars')}. "
        "Dashed: the paper's own differences, on another data set, number of runs not stated."
    )
    return figure, caption


def _removal(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """mAP against removal percentage; the paper's curve has a panel of its own, since its data set differs."""
    if not found:
        return ""
    axes_shown = [axis for axis in AXES if any(s.axis == axis for s in found)]
    names = group_names(found)
    figure = Figure(figsize=(12.5, 0.7 + 3.4 * len(axes_shown)))
    grid = figure.subplots(len(axes_shown), 3, sharey="col", squeeze=False)
    several = max(sum(s.axis == axis for s in found) for axis in axes_shown) > 1
    for panels, axis in zip(grid, axes_shown, strict=True):
        own = [s for s in found if s.axis == axis]
        for panel, metric in zip(panels, ("mAP50", "mAP50-95"), strict=False):
            for i, one in enumerate(own):
                for split in one.splits:
                    colour = COLOURS[i % len(COLOURS)] if several else SPLIT_COLOURS[split]
                    _line(panel, one, split, metric, colour, band=not several or split == judge(one))
            _removal_axis(panel, own, [])
            panel.set_title(f"{AXIS_TITLES[axis]}, {metric}, {_count(own)}")
        published = papers.removal(axis)
        for split in SPLITS:
            curve = [(100 * x, 100 * y) for x, y in published.curve(split)]
            colour, marker = (GREY, _STROKES[split][1]) if several else (SPLIT_COLOURS[split], "D")
            panels[2].plot(*zip(*curve, strict=True), "--", marker=marker, markersize=5, color=colour)
        panels[2].set_title(f"Paper's Table {published.table}: DUSIA, mAP50")
        panels[2].set_facecolor("#f9fafb")
        _removal_axis(panels[2], own, [r for r, _ in published.curve("test")])
        panels[0].set_ylabel("points (0 to 100)")
    splits = [s for s in SPLITS if any(s in one.splits for one in found)]
    if several:
        groups = list(dict.fromkeys(group_text(s.setting, names) for s in found))
        handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=group) for i, group in enumerate(groups)]
        handles += [
            Line2D([], [], color="#374151", linestyle=_STROKES[s][0], marker=_STROKES[s][1], label=s) for s in splits
        ]
    else:
        handles = [Line2D([], [], color=SPLIT_COLOURS[s], marker="o", label=s) for s in splits]
        handles.append(
            Line2D([], [], color=GREY, linestyle="--", marker="D", markersize=5, label="paper (same colours)")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    caption = (
        f"mAP against the fraction removed{_bars(rows, 'bands')}. "
        "Right: the paper's own curve, YOLOv5 on DUSIA: another data set, so another scale."
    )
    return figure, caption


_STROKES = {"test": ("-", "o"), "val": (":", "s")}


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
    stroke, marker = _STROKES[split]
    panel.plot(x, y, stroke, marker=marker, color=colour)


def _removal_axis(panel: Any, own: Sequence[Series], more: Sequence[float]) -> None:
    removals = sorted({p.removal for s in own for p in s.points} | set(more))
    panel.set_xticks([100 * r for r in removals], [percent(r) for r in removals])
    panel.set_xlabel(f"removed ({own[0].axis})")


def _count(own: Sequence[Series]) -> str:
    counts = sorted({len(r.records) for s in own for p in s.points for r in p.rows.values()})
    return _n_text(counts)


def _bars(rows: Sequence[Row], name: str) -> str:
    """The part of a caption that explains the intervals, where there are any."""
    if all(len(row.records) == 1 for row in rows):
        return ": single runs, so no interval"
    return f": mean over seeds; {name} are 95 % intervals of the mean" + ("; dots are single runs" * (name == "bands"))


def _n_text(counts: Sequence[int]) -> str:
    """How many runs a setting has, from the sorted counts."""
    if counts == [1]:
        return "single runs"
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


def _settings(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """mAP50 of every setting, for a grid that is not one of removal fractions."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    if found or len(settings) < 2:
        return ""
    if compared := comparisons(rows):
        return _losses(rows, compared)
    names = varying(settings)
    splits = [s for s in SPLITS if any(row.split == s for row in rows)]
    figure = Figure(figsize=(8.5, 1.3 + 0.42 * len(settings)))
    panel = figure.subplots()
    for offset, split in zip((-0.12, 0.12), splits, strict=False):
        own = [row for row in rows if row.split == split]
        x = [100 * row.stats["mAP50"].mean for row in own]
        y = [settings.index(row.setting) + offset for row in own]
        half = [100 * (row.stats["mAP50"].half or 0.0) for row in own]
        panel.errorbar(
            x, y, xerr=half if any(half) else None, fmt="o", color=SPLIT_COLOURS[split], capsize=3, label=split
        )
    panel.set_yticks(range(len(settings)), [describe(s, names) for s in settings])
    panel.invert_yaxis()
    panel.set_xlabel("mAP50, points (0 to 100)")
    counts = sorted({len(row.records) for row in rows})
    panel.set_title(_n_text(counts))
    figure.legend(loc="outside lower center", ncols=2)
    return figure, f"mAP50 of each setting{_bars(rows, 'bars')}."


def _rates(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """mAP50 and its relative drop against the fraction of missing labels, with the paper's in a panel of its own."""
    lines = rate_lines(rows)
    if not lines:
        return ""
    names = varying(lines)
    published = [_published(line, study_numbers(sweep)) for line in lines.values()]
    with_all = {key: line for key, line in lines.items() if 0.0 in line}
    titles = ["mAP50", *(["relative drop"] if with_all else []), *(["paper"] if any(published) else [])]
    figure = Figure(figsize=(1.5 + 3.8 * len(titles), 4.3))
    panels = dict(zip(titles, figure.subplots(1, len(titles), sharex=True, squeeze=False)[0], strict=True))
    for (key, line), colour in zip(lines.items(), MORE_COLOURS, strict=False):
        rates = sorted(line)
        x = [100 * rate for rate in rates]
        _band(panels["mAP50"], x, [line[rate].stats["mAP50"] for rate in rates], colour, describe_loss(key, names))
        if key in with_all:
            _band(panels["relative drop"], x, [relative_drop(line[0.0], line[rate]) for rate in rates], colour)
    panels["mAP50"].set_title(f"mAP50 on {next(iter(next(iter(lines.values())).values())).split}, points")
    if with_all:
        panels["relative drop"].set_title("drop, % of that on all labels")
    told = ""
    if any(published):
        in_percent = [{100 * rate: value for rate, value in points.items()} for points in published]
        told = _paper_panel(panels["paper"], [describe_loss(key, names) for key in lines], in_percent, "%")
    for panel in panels.values():
        panel.set_xlabel("missing labels, %")
    figure.legend(loc="outside lower center", ncols=4)
    return figure, f"mAP50 against the fraction of training labels that is missing{_bars(rows, 'bands')}.{told}"


def relative_drop(full: Row, partial: Row) -> Stat | None:
    """1 - mAP50 / mAP50 on all labels, over the seeds that both have; None where there is none."""
    base = {r.seed: r.metrics[full.split]["mAP50"] for r in full.records}
    mine = {r.seed: r.metrics[partial.split]["mAP50"] for r in partial.records}
    drops = [1 - mine[seed] / base[seed] for seed in mine if base.get(seed)]
    return stat(drops) if drops else None


def _gamma(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """mAP50 against focal loss's gamma, a line for each set of labels."""
    judged = max((row.split for row in rows), key=SPLITS.index, default="val")
    lines: dict[Setting, dict[float, Row]] = {}
    for row in rows:
        if row.split == judged and "focal" in str(row.setting.get("loss")):
            values = {k: v for k, v in row.setting.values.items() if k != "focal_gamma"}
            lines.setdefault(Setting.of(values), {})[float(row.setting.get("focal_gamma"))] = row
    lines = {key: line for key, line in lines.items() if len(line) > 2}
    if not lines:
        return ""
    names = [name for name in varying(lines) if name not in LABELS]
    published = [_published(line, study_numbers(sweep)) for line in lines.values()]
    figure = Figure(figsize=(10.5 if any(published) else 6.5, 4.3))
    panels = figure.subplots(1, 2 if any(published) else 1, squeeze=False)[0]
    for (key, line), colour in zip(lines.items(), MORE_COLOURS, strict=False):
        gammas = sorted(line)
        _band(panels[0], gammas, [line[g].stats["mAP50"] for g in gammas], colour, group_text(key, names))
    panels[0].set_title(f"mAP50 on {judged}, points")
    told = _paper_panel(panels[1], [group_text(key, names) for key in lines], published) if any(published) else ""
    for panel in panels:
        panel.set_xlabel("gamma")
    figure.legend(loc="outside lower center", ncols=3)
    return figure, f"mAP50 against the exponent of focal loss{_bars(rows, 'bands')}.{told}"


def _published(line: Mapping[float, Row], tables: Sequence[tuple[str, str]]) -> dict[float, float]:
    """The paper's mAP50 at each x of ours, ascending, NaN where it has none; empty where it has none at all."""
    found = beside_line(line, tables)
    return {x: found[x].value if x in found else math.nan for x in sorted(line)} if found else {}


def _paper_panel(panel: Any, names: Sequence[str], lines: Sequence[Mapping[float, float]], unit: str = "") -> str:
    """Draw a paper's points, joined where they are neighbours on our axis, and return what it does not report."""
    absent = []
    for name, points, colour in zip(names, lines, MORE_COLOURS, strict=False):
        y = [100 * value for value in points.values()]
        panel.plot(list(points), y, "--", marker="D", markersize=5, color=colour)  # NaN breaks the line
        unknown = [f"{x:g}{unit}" for x, value in points.items() if math.isnan(value)]
        if unknown or not points:
            absent.append(f"{name} at {', '.join(unknown)}" if unknown else name)
    joined = any(not math.isnan(sum(pair)) for points in lines for pair in pairwise(points.values()))
    stroke = "--" if joined else "none"
    panel.plot([], [], linestyle=stroke, marker="D", markersize=5, color=GREY, label="paper")
    panel.set_title("paper's mAP50: other data")
    panel.set_facecolor("#f9fafb")
    if missing := [name for name, points in zip(names, lines, strict=True) if not points]:
        panel.text(0.98, 0.97, "\n".join(["not reported:", *missing]), transform=panel.transAxes, ha="right", va="top",
                   color=GREY, fontsize=9)  # fmt: skip
    return f" Right: the paper's points; not reported: {'; '.join(absent)}." if absent else ""


def _iou(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """mAP at each IoU threshold of a match."""
    wanted = "iou" in sweep.study.get("figures", [])
    judged = max((row.split for row in rows), key=SPLITS.index, default="val")
    with_them = [row for row in rows if row.split == judged and all(r.by_iou.get(judged) for r in row.records)]
    if not with_them:
        return "No mAP over IoU thresholds: the records hold none." * wanted
    if not wanted and (found or len(with_them) > len(COLOURS)):
        return ""
    names = varying(row.setting for row in with_them)
    several = len({labels_text(row.setting) for row in with_them}) > 1
    figure = Figure(figsize=(7.5, 4.8))
    panel = figure.subplots()
    for row, colour in zip(with_them, MORE_COLOURS, strict=False):
        thresholds = list(row.records[0].by_iou[judged])
        stats = [stat([r.by_iou[judged][t] for r in row.records]) for t in thresholds]
        label = describe_loss(row.setting, names) + (f", {labels_text(row.setting)}" if several else "")
        _band(panel, [float(t) for t in thresholds], stats, colour, label)
    panel.set_xlabel("IoU threshold of a match")
    panel.set_ylabel(f"mAP on {judged}, points")
    figure.legend(loc="outside lower center", ncols=2)
    return figure, f"mAP at each IoU threshold{_bars(with_them, 'bands')}."


def _band(panel: Any, x: Sequence[float], stats: Sequence[Stat | None], colour: Any, label: str = "") -> None:
    """A line of means in points with its 95 % intervals."""
    known = [(at, one) for at, one in zip(x, stats, strict=True) if one]
    xs, y = [at for at, _ in known], [100 * one.mean for _, one in known]
    half = [100 * (one.half or 0.0) for _, one in known]
    if any(half):
        panel.fill_between(xs, np.subtract(y, half), np.add(y, half), color=colour, alpha=0.14, linewidth=0)
    panel.plot(xs, y, "-o", color=colour, markersize=4.5, label=label or None)


def _losses(rows: Sequence[Row], compared: Sequence[Comparison]) -> Made:
    """mAP50 of each loss, a panel for each group of losses that are compared."""
    apart = _apart(compared)
    columns = min(2, len(compared))
    lines = [list(compared[i : i + columns]) for i in range(0, len(compared), columns)]
    heights = [1.0 + 0.36 * max(len(one.rows) for one in line) for line in lines]
    figure = Figure(figsize=(6.5 * columns, 0.5 + sum(heights)))
    grid = figure.subplots(len(lines), columns, sharex=True, squeeze=False, height_ratios=heights)
    for panels, line in zip(grid, lines, strict=True):
        for panel in panels[len(line) :]:
            panel.set_axis_off()
        for panel, one in zip(panels, line, strict=False):
            names = loss_names(one)
            for offset, split in zip((-0.12, 0.12), one.splits, strict=False):
                own = [(y, rows_of[split]) for y, rows_of in enumerate(one.rows.values()) if split in rows_of]
                half = [100 * (row.stats["mAP50"].half or 0.0) for _, row in own]
                panel.errorbar(
                    [100 * row.stats["mAP50"].mean for _, row in own], [y + offset for y, _ in own],
                    xerr=half if any(half) else None, fmt="o", color=SPLIT_COLOURS[split], capsize=3,
                )  # fmt: skip
            panel.set_yticks(range(len(one.rows)), [names[s] for s in one.rows])
            panel.set_ylim(len(one.rows) - 0.5, -0.5)
            panel.set_title(group_text(one.key, apart))
            panel.tick_params(labelbottom=True)
    splits = [s for s in SPLITS if any(s in one.splits for one in compared)]
    handles = [Line2D([], [], color=SPLIT_COLOURS[s], marker="o", label=s) for s in splits]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure, f"mAP50 of each loss, points (0 to 100){_bars(rows, 'bars')}."


def _apart(compared: Sequence[Comparison]) -> list[str]:
    """The flags, other than the labels, that set comparisons apart."""
    return [name for name in varying(one.key for one in compared) if name not in LABELS]


@dataclass(frozen=True)
class _Curve:
    """One setting's line in the curve plots."""

    label: str
    colour: Any
    records: tuple[Record, ...]


def _families(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> list[tuple[str, list[_Curve]]]:
    """The settings in the groups that share a row of panels: a series each, or all settings where there is none."""
    runs: dict[Setting, list[Record]] = {}
    for record in sweep.finished:
        runs.setdefault(setting_of(record), []).append(record)
    names = group_names(found)
    families = []
    for one in found:
        title = AXIS_TITLES[one.axis] + (f",\n{group_text(one.setting, names)}" if len(found) > 2 else "")
        curves = [_Curve(percent(p.removal), _shade(p), next(iter(p.rows.values())).records) for p in one.points]
        families.append((title, curves))
    compared = [] if families else comparisons(rows)
    apart = _apart(compared)
    for group in compared:
        shown = loss_names(group)
        curves = [
            _Curve(shown[setting], colour, next(iter(by_split.values())).records)
            for colour, (setting, by_split) in zip(MORE_COLOURS, group.rows.items(), strict=False)
        ]
        families.append((group_text(group.key, apart).replace(", ", ",\n") if len(compared) > 1 else "", curves))
    if not families:
        flags = varying(runs)
        curves = [
            _Curve(describe(setting, flags), colour, tuple(records))
            # more lines than colours would not be told apart
            for colour, (setting, records) in zip(MORE_COLOURS, runs.items(), strict=False)
        ]
        families.append(("", curves))
    return families


def _shade(point: Point) -> Any:
    """Black for the 0 % run, then from dark to light with the removal."""
    return "#111827" if point.removal == 0 else matplotlib.colormaps["viridis"](0.15 + 0.7 * point.removal)


def _training(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """Losses and mAP by epoch, mean over seeds."""
    keys = _epoch_keys(sweep)
    losses = [k for k in keys if k.startswith("train/") and k.endswith("_loss")]
    validated = max((_validated(record) for record in sweep.finished), default=0)
    keys = [k for k in keys if k.startswith("train/")] if validated < 2 else keys
    scores = [k for k in ("metrics/mAP50(B)", "metrics/mAP50-95(B)") if k in keys]
    if not losses and not scores:
        return "No training curves: the records hold no epochs."
    panels: list[tuple[str, list[tuple[str, str]]]] = []
    for key in losses:
        twin = key.replace("train/", "val/")
        panels.append(
            (key.removeprefix("train/").replace("_", " "), [(key, "-"), *([(twin, ":")] if twin in keys else [])])
        )
    panels += [(f"val {key.removeprefix('metrics/').removesuffix('(B)')}", [(key, "-")]) for key in scores]
    figure = _curves(_families(sweep, rows, found), panels, points=scores, removals=bool(found))
    dotted = " Dotted: the loss on val." if any(len(lines) > 1 for _, lines in panels) else ""
    return (
        figure,
        f"By epoch, mean over seeds.{dotted} A loss from which terms were removed is not on the scale of one without.",
    )


def _validated(record: Record) -> int:
    """Epochs that were validated: in one that was not, the host writes 0 for every loss on val."""
    losses = [[v for k, v in row.items() if k.startswith("val/")] for row in record.epochs]
    return sum(not own or any(own) for own in losses)


def _drops(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """Negatives seen and predictions dropped, by epoch."""
    keys = [k for k in _epoch_keys(sweep) if k.startswith("drop/")]
    if not keys:
        return ""
    panels = [(key.removeprefix("drop/").replace("_", " "), [(key, "-")]) for key in keys]
    families = []
    for title, curves in _families(sweep, rows, found):
        counted = [curve for curve in curves if any(keys[0] in row for r in curve.records for row in r.epochs)]
        families += [(title, counted)] if counted else []
    if not families:
        return ""
    figure = _curves(families, panels, counts=True, removals=bool(found))
    return (
        figure,
        "Predictions counted by the loss in each epoch, mean over seeds: negatives seen, and dropped from each loss.",
    )


def _epoch_keys(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(key for r in sweep.finished for row in r.epochs for key in row))


def _curves(
    families: Sequence[tuple[str, list[_Curve]]],
    panels: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    points: Sequence[str] = (),
    counts: bool = False,
    removals: bool = True,
) -> Any:
    """A row of panels for each family.

    Args:
        families: title and lines of each row.
        panels: title of each column, and its keys of `epochs` with their line styles.
        points: keys that are fractions, shown in points.
        counts: the values are counts: from 0, thousands as k and millions as M.
        removals: the lines are removal fractions, else losses, which are on scales of their own.
    """
    figure = Figure(figsize=(1.6 + 2.4 * len(panels), 0.3 + 2.5 * len(families)))
    grid = figure.subplots(len(families), len(panels), sharex=True, sharey="col" if removals else False, squeeze=False)
    for r, (axes, (title, curves)) in enumerate(zip(grid, families, strict=True)):
        for panel, (name, keys) in zip(axes, panels, strict=True):
            for curve in curves:
                for key, stroke in keys:
                    x, y = _mean_curve(curve.records, key)
                    scaled = np.multiply(y, 100.0 if key in points else 1.0)
                    if x:
                        dot = "o" if len(x) == 1 else ""  # one epoch makes no line
                        panel.plot(x, scaled, stroke, marker=dot, color=curve.colour, linewidth=1.6)
            if not panel.lines:  # a loss that the others have
                panel.set_axis_off()
            panel.set_title(name if r == 0 else "")
            if counts:
                panel.yaxis.set_major_formatter(_short)
            epoch_axis(panel)
        for panel in axes if r == len(families) - 1 else ():
            panel.set_xlabel("epoch")
        axes[0].set_ylabel(title)
        handles = [Line2D([], [], color=c.colour, label=c.label) for c in curves]
        axes[-1].legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(1.02, 1.0),
            title=_legend_title(title if removals else "", curves),
        )
    for column in range(len(panels)) if counts else ():
        highest = max((line.get_ydata().max() for axes in grid for line in axes[column].lines), default=0.0)
        for axes in grid if not removals else grid[:1]:  # else the rows share it
            axes[column].set_ylim(0, 1.06 * highest or 1.0)
    return figure


def _short(value: float, _: int) -> str:
    """1500000 -> '1.5M'."""
    size, unit = next((s for s in ((1e6, "M"), (1e3, "k")) if abs(value) >= s[0]), (1.0, ""))
    return f"{value / size:g}{unit}"


def _legend_title(title: str, curves: Sequence[_Curve]) -> str:
    runs = sorted({len(curve.records) for curve in curves})
    return f"removed, {_n_text(runs)}" if title else _n_text(runs)


def _mean_curve(records: Sequence[Record], key: str) -> tuple[list[float], list[float]]:
    """Mean over runs of one key, by epoch, over the runs that have it."""
    values = by_epoch(records, key)
    return list(values), [float(np.mean(v)) for v in values.values()]


def _samples(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """Detections beside the labels: of the 0 % run, and of the removal with the best mAP50 on val."""
    runs = _shown_runs(sweep, rows, found)
    return sample_figure(runs, sweep.folder) if runs else "No sample detections: the records hold none."


def _objectness(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """Mean objectness after each step, by epoch."""
    return objectness_figure(sweep)


def _steps(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Made:
    """Detections after each step: of the run with most of them, and of the first seed."""
    with_steps = [(r, sample) for r in sweep.finished for sample in r.samples if sample.steps]
    if not with_steps:
        return ""
    record, sample = min(with_steps, key=lambda pair: (-len(pair[1].steps), pair[0].seed))
    names = varying(setting_of(r) for r in sweep.finished)
    run = f"{describe(setting_of(record), names)}, seed {record.seed}" if names else record.run
    return steps_figure(sample, run, record.folder, sweep.folder)


def _shown_runs(sweep: Sweep, rows: Sequence[Row], found: Sequence[Series]) -> Mapping[str, Record]:
    """Heading -> run: the baseline and the best beside it, of a group with withheld labels if there is one."""
    with_samples = [r for r in sweep.finished if r.samples]
    if not with_samples:
        return {}
    if compared := [] if found else comparisons(rows):
        losses = next((c for c in compared if c.key.get("protocol") != "normal"), compared[0])
        split = losses.splits[0]  # val where there is one: choosing by test would be choosing by the answer
        own = [by_split[split] for by_split in losses.rows.values() if split in by_split]
        own.sort(key=lambda row: (row.setting != losses.base, -row.stats["mAP50"].mean))
        names = varying(row.setting for row in own)
        shown = [(describe_loss(row.setting, names), row.records[0]) for row in own[:2] if row.records[0].samples]
        return {f"{name}, {labels_text(setting_of(r))}, seed {r.seed}": r for name, r in shown}
    if not found:
        names = varying(setting_of(r) for r in with_samples)
        return {f"{describe(setting_of(r), names)}, seed {r.seed}" if names else r.run: r for r in with_samples[:2]}
    chosen: dict[str, Record] = {}
    base = next((s.setting for s in found if s.setting.get("protocol") != "normal"), found[0].setting)
    for one in [s for s in found if s.setting == base]:
        split = one.splits[0]
        points = [(p.removal, p.rows[split]) for p in one.points if split in p.rows]
        rest = sorted((p for p in points if p[0] > 0), key=lambda p: -p[1].stats["mAP50"].mean)
        for removal, row in [p for p in points if p[0] == 0] + rest[:1]:
            if row.records[0].samples:
                chosen[f"{one.axis}={removal:g}" if removal else "0 %"] = row.records[0]
    return {f"{name}, seed {r.seed}": r for name, r in chosen.items()}


_PLOTS: tuple[tuple[str, str, Callable[[Sweep, Sequence[Row], Sequence[Series]], Made]], ...] = (
    ("change.png", "Change from the 0 % run", _change),
    ("removal.png", "mAP against removal percentage", _removal),
    ("rates.png", "mAP50 against missing labels", _rates),
    ("gamma.png", "mAP50 against gamma", _gamma),
    ("iou.png", "mAP over IoU thresholds", _iou),
    ("settings.png", "mAP50 by setting", _settings),
    ("samples.png", "Sample detections", _samples),
    ("steps.png", "Detections after each step", _steps),
    ("training.png", "Training curves", _training),
    ("objectness.png", "Objectness after each step", _objectness),
    ("drops.png", "What the loss counted", _drops),
)
_PHOTOS = ("samples.png", "steps.png")
FILES = tuple(file for file, _, _ in _PLOTS)
