"""mAP50 against a number, a line for each setting that has all else the same, and the paper's in a panel of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure

from rebalance.report.evidence import Stat, stat
from rebalance.report.figures import style
from rebalance.report.summary import Results, Row, Setting, apart, as_list, loss_text, varying
from rebalance.report.tables import beside_line, group_text, judged_rows, labels_text, rate_lines, study_numbers

GAMMA = "focal_gamma"


def rates(found: Results) -> style.Drawn | None:
    """The fraction of missing or wrong labels, a line for each loss and kind of error; None without three rates."""
    lines = rate_lines(found.rows)
    if not lines:
        return None
    names = varying(lines)
    texts = [loss_text(key, names) for key in lines]
    in_percent = [{100 * rate: row for rate, row in line.items()} for line in lines.values()]
    figure, told = _draw(found, texts, in_percent, (1.5, 3.8), percent=f"{_error_text(lines)} labels, %")
    style.legend_below(figure, columns=4)
    return style.Drawn(figure, f"mAP50 against the fraction of training labels that is {_error_text(lines)}{told}")


def _error_text(lines: Iterable[Setting]) -> str:
    """What is wrong with the labels that lines are about, in a word."""
    kinds = {str(key.get("errors") or "missing") for key in lines}
    return "missing" if kinds == {"missing"} else "wrong"


def gamma(found: Results) -> style.Drawn | None:
    """The exponent of focal loss, a line for each set of labels that has three values; None where none has."""
    lines: dict[Setting, dict[float, Row]] = {}
    for row in judged_rows(found.rows):
        value = row.setting.get(GAMMA)
        if row.setting.owns(GAMMA) and isinstance(value, (int, float)):
            lines.setdefault(row.setting.change([GAMMA]), {})[float(value)] = row
    lines = {key: line for key, line in lines.items() if len(line) > 2}
    if not lines:
        return None
    names = apart(lines)
    figure, told = _draw(found, [group_text(key, names) for key in lines], list(lines.values()), (2.5, 4.0))
    style.legend_below(figure, columns=3)
    return style.Drawn(figure, f"mAP50 against the exponent of focal loss{told}")


def iou(found: Results) -> style.Drawn | str | None:
    """The IoU threshold of a match, a line for each setting.

    None where a study does not ask for it and the lines are too many to tell apart.
    """
    wanted = "iou" in as_list(found.sweep.study.get("figures"))
    rows = [row for row in judged_rows(found.rows) if all(r.by_iou.get(row.split) for r in row.records)]
    if not rows:
        return "No mAP over IoU thresholds: the records hold none." if wanted else None
    if not wanted and (found.series or len(rows) > len(style.COLOURS)):
        return None
    names = varying(row.setting for row in rows)
    several = len({labels_text(row.setting) for row in rows}) > 1
    figure = Figure(figsize=(7.5, 4.8))
    panel = figure.subplots()
    for row, colour in zip(rows, style.MORE_COLOURS, strict=False):
        curves = [r.by_iou[row.split] for r in row.records]
        thresholds = [t for t in curves[0] if all(t in curve for curve in curves)]
        stats = [stat([curve[t] for curve in curves]) for t in thresholds]
        label = loss_text(row.setting, names) + (f", {labels_text(row.setting)}" if several else "")
        style.means(panel, [float(t) for t in thresholds], stats, colour, label)
    panel.set_xlabel("IoU threshold of a match")
    panel.set_ylabel(f"mAP on {rows[0].split}, points")
    style.legend_below(figure)
    return style.Drawn(figure, f"mAP at each IoU threshold{style.intervals_text(rows, 'bands')}.")


def _draw(
    found: Results,
    names: Sequence[str],
    lines: Sequence[Mapping[float, Row]],  # x -> row
    widths: tuple[float, float],  # in inches, of the margins and of a panel
    percent: str = "",  # x is how many labels are wrong, in these words; a panel shows how mAP50 falls from that at 0
) -> tuple[Figure, str]:
    """Draw lines with names, and return the end of the caption."""
    lines = [dict(sorted(line.items())) for line in lines]
    published = []
    for line in lines:
        numbers = beside_line(line, study_numbers(found.sweep))
        published.append({x: numbers[x].value if x in numbers else math.nan for x in line} if numbers else {})
    drop = bool(percent) and any(0.0 in line for line in lines)
    titles = ["mAP50", *["drop"] * drop, *["paper"] * any(published)]
    figure = Figure(figsize=(widths[0] + widths[1] * len(titles), 4.3))
    panels = dict(zip(titles, figure.subplots(1, len(titles), sharex=bool(percent), squeeze=False)[0], strict=True))
    for name, line, colour in zip(names, lines, style.MORE_COLOURS, strict=False):
        style.means(panels["mAP50"], list(line), [row.stats["mAP50"] for row in line.values()], colour, name)
        if drop and 0.0 in line:
            falls = [relative_drop(line[0.0], row) for row in line.values()]
            style.means(panels["drop"], list(line), falls, colour)
    panels["mAP50"].set_title(f"mAP50 on {judged_rows(found.rows)[0].split}, points")
    if drop:
        panels["drop"].set_title("drop, % of that on all labels")
    told = _paper(panels["paper"], names, published, "%" * bool(percent)) if any(published) else ""
    for panel in panels.values():
        panel.set_xlabel(percent or "gamma")
    return figure, f"{style.intervals_text(found.rows, 'bands')}.{told}"


def _paper(panel: Any, names: Sequence[str], lines: Sequence[Mapping[float, float]], unit: str) -> str:
    """Draw a paper's points, joined where they are neighbours on our axis, and return what it does not report."""
    absent = []
    for name, points, colour in zip(names, lines, style.MORE_COLOURS, strict=False):
        y = [100 * value for value in points.values()]  # NaN, for none, breaks a line
        panel.plot(list(points), y, **style.PAPER, color=colour)
        unknown = [f"{x:g}{unit}" for x, value in points.items() if math.isnan(value)]
        if unknown or not points:
            absent.append(f"{name} at {', '.join(unknown)}" if unknown else name)
    joined = any(not math.isnan(sum(pair)) for points in lines for pair in pairwise(points.values()))
    panel.plot([], [], **{**style.PAPER, "linestyle": "--" if joined else "none"}, color=style.GREY, label="paper")
    panel.set_title("paper's mAP50: other data")
    panel.set_facecolor(style.PALE)
    if missing := [name for name, points in zip(names, lines, strict=True) if not points]:
        told = "\n".join(["not reported:", *missing])
        panel.text(0.98, 0.97, told, transform=panel.transAxes, ha="right", va="top", color=style.GREY, fontsize=9)
    return f" Right: the paper's points; not reported: {'; '.join(absent)}." if absent else ""


def relative_drop(full: Row, partial: Row) -> Stat | None:
    """1 - mAP50 / mAP50 on all labels, over the seeds that both have; None where there is none."""
    base = {r.seed: r.metrics[full.split]["mAP50"] for r in full.records}
    mine = {r.seed: r.metrics[partial.split]["mAP50"] for r in partial.records}
    drops = [1 - mine[seed] / base[seed] for seed in mine if base.get(seed)]
    return stat(drops) if drops else None
