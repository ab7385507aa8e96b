"""Rows -> tables, as text for the terminal, Markdown and HTML, and the verdict on each in one sentence.

Metrics are shown in points, 0 to 100, with one decimal, as the papers do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rebalance.config import value_text
from rebalance.report import papers
from rebalance.report.records import METRICS, SPLITS, Record
from rebalance.report.summary import AXES, Row, Series, Setting, Stat, describe, varying

AXIS_TITLES = {"obj_drop": "Objectness removal", "box_drop": "Box removal"}


@dataclass(frozen=True)
class Cell:
    """One cell; bold marks the best of its column."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table in words.

    Attributes:
        title: one line above it.
        head: names of the columns.
        rows: cells, as many in each row as names.
        notes: lines below it.
        left: how many columns, from the first, hold text and stand left; the others hold numbers and stand right.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1


def drop_table(series: Series, group: str = "") -> Table:
    """Return one series in the form of the paper's Table 2 (box removal) or 3 (objectness removal).

    Args:
        series: the runs; the paper's own columns are on another data set, which the notes say.
        group: what sets the series apart from the others in the sweep, for the title.
    """
    published = papers.removal(series.axis)
    splits, judged = series.splits, judge(series)
    head = ["removal pct", "n", *(f"{s} mAP50" for s in splits), f"{judged} vs 0 %", "paper val", "paper test"]
    best = {s: _best([p.rows[s].stats["mAP50"].mean for p in series.points if s in p.rows]) for s in splits}
    shown = [p.removal for p in series.points]
    paper_best = {s: _best([v for (t, r), v in published.values.items() if t == s and r in shown]) for s in SPLITS}
    rows = []
    for point in series.points:
        any_row = next(iter(point.rows.values()))
        cells = [Cell(percent(point.removal)), Cell(str(len(any_row.records)))]
        for split in splits:
            own = point.rows[split].stats["mAP50"] if split in point.rows else None
            cells.append(Cell(points(own), own is not None and points_of(own.mean) == best[split]))
        row = point.rows.get(judged)
        change = row.change.get("mAP50") if row and point.removal else None
        cells.append(Cell(points(change, sign=True)))
        for split in SPLITS:
            value = published.values.get((split, point.removal))
            text = "-" if value is None else points_of(value)
            cells.append(Cell(text, text == paper_best[split]))
        rows.append(tuple(cells))
    several = any(len(r.records) > 1 for p in series.points for r in p.rows.values())
    ours = "mAP50 in points (0 to 100), mean ± 95 % interval over n seeds (Student t); vs 0 %: paired by seed."
    single = "mAP50 in points (0 to 100); single runs (n = 1), so no interval."
    paper = (
        f"paper: {_model(published.model)} on {published.data.upper()}, Table {published.table}: another data set, "
        "number of runs not stated."
    )
    title = AXIS_TITLES[series.axis] + (f", {group}" if group else "")
    return Table(title, tuple(head), tuple(rows), (ours if several else single, paper))


def verdict(series: Series) -> str:
    """Return what the paired intervals of a series say, in one sentence about the split that it is judged by."""
    split = judge(series)
    rows = [p.rows[split] for p in series.points if p.removal > 0 and split in p.rows]
    changes = [(row, row.change["mAP50"]) for row in rows if row.change]
    if not changes:
        return f"There is no 0 % run with the same seed on {split} to compare with."
    most = max(changes, key=lambda pair: abs(pair[1].mean))
    if all(change.half is None for _, change in changes):
        return (
            f"Single runs, no interval: differences are not evidence (the largest: {_named(most[0], series.axis)}, "
            f"{points(most[1], sign=True)} points on {split}, n = 1)."
        )
    clear = [(row, change) for row, change in changes if change.evidence]
    if not clear:
        counts = sorted({change.n for _, change in changes})
        pairs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"No setting differs from 0 % beyond its 95 % interval on {split} (n = {pairs})."
    found = "; ".join(
        f"{_named(row, series.axis)}: {points(change, sign=True)} points on {split}, n = {change.n}"
        for row, change in clear
    )
    rest = len(changes) - len(clear)
    others = {0: "", 1: "; the other does not differ from 0 % beyond its interval"}
    return found + others.get(rest, f"; the other {rest} do not differ from 0 % beyond their intervals") + "."


def judge(series: Series) -> str:
    """The split that a series is judged by: test where there is one, else val."""
    return series.splits[-1]


def settings_table(rows: Sequence[Row], split: str) -> Table:
    """Return all settings of a sweep on one split: the flags that vary, every metric, change and gap closed."""
    rows = [row for row in rows if row.split == split]
    names = varying(row.setting for row in rows) or ["model"]
    gaps, changes = any(row.gap for row in rows), any(row.change for row in rows)
    head = [*names, "n", *METRICS, *(["mAP50 vs 0 %"] if changes else []), *(["gap closed"] if gaps else [])]
    best = {m: _best([row.stats[m].mean for row in rows]) for m in METRICS}
    body = []
    for row in rows:
        cells = [Cell(value_text(row.setting.get(name))) for name in names] + [Cell(str(len(row.records)))]
        cells += [Cell(points(row.stats[m]), points_of(row.stats[m].mean) == best[m]) for m in METRICS]
        cells += [Cell(points(row.change.get("mAP50"), sign=True))] if changes else []
        gap = row.gap.get("mAP50")
        cells += [Cell("" if gap is None else f"{gap:.2f}")] if gaps else []
        body.append(tuple(cells))
    several = any(len(row.records) > 1 for row in rows)
    notes = [
        "Points (0 to 100)" + (", mean ± 95 % interval over n seeds." if several else "; single runs, no interval.")
    ]
    if changes:
        notes.append("vs 0 %: difference from the 0 % run, paired by seed.")
    if gaps:
        notes.append(
            "Gap closed: (setting - 0 % run) / (0 % run on all labels - 0 % run), mAP50; 1 is as good as all labels."
        )
    return Table(f"All settings, {split}", tuple(head), tuple(body), tuple(notes), len(names))


def class_table(series: Series) -> Table | None:
    """Return mAP50 by class along a series, mean over seeds, on the split it is judged by; None without classes."""
    split = judge(series)
    rows = [(p, p.rows[split]) for p in series.points if split in p.rows]
    names = list(dict.fromkeys(name for _, row in rows for r in row.records for name in r.per_class.get(split, {})))
    if not names:
        return None
    body = []
    for name in names:
        means = [_class_mean(row.records, split, name) for _, row in rows]
        best = _best([m for m in means if m is not None])
        cells = [Cell("" if m is None else points_of(m), m is not None and points_of(m) == best) for m in means]
        body.append((Cell(name), *cells))
    head = ("class", *(percent(point.removal) for point, _ in rows))
    return Table(f"{AXIS_TITLES[series.axis]}: mAP50 by class, {split}", head, tuple(body), ("Mean over seeds.",))


def cost_table(rows: Sequence[Row]) -> Table:
    """Return what each setting cost to train: means over its runs."""
    first = list({row.setting: row for row in rows}.values())
    names = varying(row.setting for row in first) or ["model"]
    columns = {
        "train s": ("train_seconds", 0),
        "images/s": ("images_per_second", 1),
        "eval s": ("eval_seconds", 1),
    }
    body = []
    for row in first:
        cells = [Cell(value_text(row.setting.get(name))) for name in names]
        for key, digits in columns.values():
            cells.append(Cell(_mean_text([r.timings.get(key) for r in row.records], digits)))
        cells.append(Cell(_mean_text([r.peak_memory_mb for r in row.records], 0)))
        body.append(tuple(cells))
    return Table("Cost, mean of a run", (*names, *columns, "peak MB"), tuple(body), (), len(names))


def runs_table(records: Sequence[Record]) -> Table:
    """Return every finished run by itself."""
    splits = [s for s in SPLITS if any(s in r.metrics for r in records)]
    head = ("run", *(f"{s} {m}" for s in splits for m in METRICS), "train s")
    body = []
    for record in records:
        cells = [Cell(record.run)]
        for split in splits:
            own = record.metrics.get(split)
            cells += [Cell(points_of(own[m]) if own else "") for m in METRICS]
        body.append((*cells, Cell(_mean_text([record.timings.get("train_seconds")], 0))))
    return Table("Every run", head, tuple(body), ("Points (0 to 100).",))


def group_names(all_series: Sequence[Series]) -> list[str]:
    """The flags, other than the removals, that set series apart; the protocol is always told."""
    return [n for n in varying(s.setting for s in all_series) if n not in (*AXES, "protocol", "rate", "label_seed")]


def group_text(setting: Setting, names: Sequence[str]) -> str:
    """Return what sets a series apart, in words: 'protocol percent 0.5, head=anchor'."""
    rate = f" {value_text(setting.get('rate'))}" if setting.get("rate") else ""
    return ", ".join([f"protocol {setting.get('protocol')}{rate}", *([describe(setting, names)] if names else [])])


def points_of(value: float) -> str:
    """A fraction in points with one decimal: 0.4837 -> '48.4'."""
    return f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0: no minus zero


def points(value: Stat | None, *, sign: bool = False) -> str:
    """A mean in points with its interval, where it has one: '48.4 ± 1.2', '+0.7 ± 0.9', '' for None."""
    if value is None:
        return ""
    text = points_of(value.mean)
    text = f"+{text}" if sign and not text.startswith("-") else text
    return text if value.half is None else f"{text} ± {points_of(value.half)}"


def percent(removal: float) -> str:
    """A removal fraction as the papers write it: 0.1 -> '10%'."""
    return f"{100 * removal:g}%"


def as_text(table: Table) -> str:
    """Return the table for a terminal; a star marks the best of a column."""
    lines = [table.head, *(tuple(c.text + ("*" if c.bold else " ") for c in row) for row in table.rows)]
    if not any(c.bold for row in table.rows for c in row):
        lines = [table.head, *(tuple(c.text for c in row) for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    marks = ["* best of the column"] if lines[1:] and any(c.bold for row in table.rows for c in row) else []

    def lay(line: Sequence[str]) -> str:
        cells = [
            f"{cell:<{width}}" if i < table.left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    body = [lay(line) for line in lines]
    rule = "-" * max(map(len, body))
    return "\n".join([table.title, body[0], rule, *body[1:], *marks, *table.notes])


def as_markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown, without its title."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(c: Cell) -> str:
        text = escape(c.text, quote=False).replace("|", "\\|").replace("_", "\\_")
        return f"**{text}**" if c.bold else text

    rule = ["---" if i < table.left else "---:" for i in range(len(table.head))]
    head = [name.replace("_", "\\_") for name in table.head]
    lines = [line(head), line(rule), *(line([cell(c) for c in row]) for row in table.rows)]
    return "\n".join(lines + [f"\n{note}" for note in table.notes])


def as_html(table: Table) -> str:
    """Return the table as an HTML element with its title as caption."""

    def cell(tag: str, i: int, text: str, bold: bool = False) -> str:
        text = re.sub(r"^-(?=\d)", "\u2212", escape(text))  # a true minus is as wide as the plus
        kind = "" if i < table.left else ' class="num"'
        return f"<{tag}{kind}>{f'<b>{text}</b>' if bold else text}</{tag}>"

    head = "".join(cell("th", i, name) for i, name in enumerate(table.head))
    rows = "\n".join(
        "<tr>" + "".join(cell("td", i, c.text, c.bold) for i, c in enumerate(row)) + "</tr>" for row in table.rows
    )
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in table.notes)
    return (
        f'<div class="table"><table>\n<caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{notes}"
    )


def _best(values: Sequence[float]) -> str:
    """The largest value as it is shown, so that ties as shown are all bold; '' where there is nothing to win."""
    return points_of(max(values)) if len(values) > 1 else ""


def _named(row: Row, axis: str) -> str:
    return f"{axis}={value_text(row.setting.removal(axis))}"


def _model(name: str) -> str:
    return {"yolov5": "YOLOv5"}.get(name, name)


def _class_mean(records: Sequence[Record], split: str, name: str) -> float | None:
    values = [r.per_class[split][name].get("mAP50") for r in records if name in r.per_class.get(split, {})]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _mean_text(values: Sequence[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else ""
