"""Rows -> tables, as text for the terminal, Markdown and HTML, and the verdict on each in one sentence.

Metrics are shown in points, 0 to 100, with one decimal, as the papers do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

from rebalance.report import papers
from rebalance.report.records import METRICS, SPLITS, Record, Sweep
from rebalance.report.summary import AXES, LEAST_GAP, Comparison, Row, Series, Setting, Stat, method_text, varying
from rebalance.settings import value_text

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
    changes = [(_named(row, series.axis), row.change["mAP50"]) for row in rows if row.change]
    return _verdict(changes, "0 %", split) if changes else _nothing("0 % run", split)


def loss_verdict(comparison: Comparison) -> str:
    """Return what the paired intervals of a comparison of losses say, in one sentence."""
    split, base = comparison.splits[-1], comparison.base
    names = loss_names(comparison)
    rows = [(names[s], by_split[split]) for s, by_split in comparison.rows.items() if s != base and split in by_split]
    changes = [(name, row.change["mAP50"]) for name, row in rows if row.change and row.base == base]
    return _verdict(changes, names[base], split) if base and changes else _nothing("run of the baseline", split)


def _nothing(what: str, split: str) -> str:
    return f"There is no {what} with the same seed on {split} to compare with."


def _verdict(changes: Sequence[tuple[str, Stat]], base: str, split: str) -> str:
    """What named differences from a baseline say; there is at least one."""
    most = max(changes, key=lambda pair: abs(pair[1].mean))
    if all(change.half is None for _, change in changes):
        return (
            f"Single runs, no interval: differences are not evidence (the largest: {most[0]}, "
            f"{points(most[1], sign=True)} points on {split}, n = 1)."
        )
    clear = [(name, change) for name, change in changes if change.evidence]
    if not clear:
        counts = sorted({change.n for _, change in changes})
        pairs = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"No setting differs from {base} beyond its 95 % interval on {split} (n = {pairs})."
    found = "; ".join(
        f"{name}: {points(change, sign=True)} points on {split}, n = {change.n}" for name, change in clear
    )
    rest = len(changes) - len(clear)
    others = {0: "", 1: f"; the other does not differ from {base} beyond its interval"}
    return found + others.get(rest, f"; the other {rest} do not differ from {base} beyond their intervals") + "."


def judge(series: Series) -> str:
    """The split that a series is judged by: test where there is one, else val."""
    return series.splits[-1]


def settings_table(rows: Sequence[Row], split: str) -> Table:
    """Return all settings of a sweep on one split: the flags that vary, every metric, change and gap closed."""
    rows = [row for row in rows if row.split == split]
    names = varying(row.setting for row in rows) or ["model"]
    gaps, changes = any(row.gap for row in rows), any(row.change for row in rows)
    baselines = _baselines(rows)
    base = "baseline" if baselines else "0 %"
    head = [*names, "n", *METRICS, *([f"mAP50 vs {base}"] if changes else []), *(["gap closed"] if gaps else [])]
    best = {m: _best([row.stats[m].mean for row in rows]) for m in METRICS}
    body = []
    for row in rows:
        cells = [Cell(_flag_text(row.setting, name)) for name in names] + [Cell(str(len(row.records)))]
        cells += [Cell(points(row.stats[m]), points_of(row.stats[m].mean) == best[m]) for m in METRICS]
        cells += [Cell(points(row.change.get("mAP50"), sign=True))] if changes else []
        cells += [Cell(_gap(row))] if gaps else []
        body.append(tuple(cells))
    several = any(len(row.records) > 1 for row in rows)
    notes = [
        "Points (0 to 100)" + (", mean ± 95 % interval over n seeds." if several else "; single runs, no interval.")
    ]
    if changes:
        removals = any(row.base and row.setting.removes for row in rows)
        what = [f"{baselines} with the same model, head and labels"] if baselines else []
        what += ["of a removal, from its 0 % run" if what else "the 0 % run"] if removals else []
        notes.append(f"vs {base}: difference from {'; '.join(what)}, paired by seed.")
    if gaps:
        notes.append(GAP_NOTE)
    return Table(f"All settings, {split}", tuple(head), tuple(body), tuple(notes), len(names))


def loss_names(comparison: Comparison) -> dict[Setting, str]:
    """Return what each setting of a comparison is called: its loss, and the flags in which it differs from others."""
    names = [name for name in varying(comparison.rows) if name not in ("loss", "head")]
    return {s: method_text(s, names) for s in comparison.rows}


def _baselines(rows: Sequence[Row]) -> str:
    """The settings that losses are compared with, by name; '' where only removals are compared, with their 0 % run."""
    names = [name for name in varying(row.setting for row in rows) if name in papers.METHOD_FLAGS]
    bases = [row.base for row in rows if row.base and not row.setting.removes]
    return ", ".join(dict.fromkeys(method_text(base, names) for base in bases))


def loss_table(comparison: Comparison, group: str, tables: Sequence[tuple[str, str]] = ()) -> Table:
    """Return losses that differ in nothing else, with the paired difference from the baseline and a paper's numbers.

    Args:
        comparison: the runs.
        group: what sets it apart from the others in the sweep, for the title.
        tables: (paper, table) whose numbers may stand beside; default: all that the package carries.
    """
    splits, names = comparison.splits, loss_names(comparison)
    judged = splits[-1]
    rows = [row for by_split in comparison.rows.values() for row in by_split.values()]
    base = names[comparison.base] if comparison.base else ""
    gaps = any(row.gap for row in rows)
    numbers = papers.beside((s.values for s in comparison.rows), tables)
    told = [m for m in METRICS if any(m in found for found in numbers)]
    sources = _sources(numbers)
    head = ["loss", "n", *(f"{s} mAP50" for s in splits), f"{judged} mAP75", f"{judged} mAP50-95"]
    head += [*([f"mAP50 vs {base}"] if base else []), *(["gap closed"] if gaps else []), *(f"paper {m}" for m in told)]
    head += [SOURCE] * bool(sources)
    columns = [*((s, "mAP50") for s in splits), (judged, "mAP75"), (judged, "mAP50-95")]
    best = {(s, m): _best([row.stats[m].mean for row in rows if row.split == s]) for s, m in columns}
    body = []
    for i, (setting, by_split) in enumerate(comparison.rows.items()):
        cells = [Cell(names[setting]), Cell(str(max(len(row.records) for row in by_split.values())))]
        for split, metric in columns:
            own = by_split[split].stats[metric] if split in by_split else None
            cells.append(Cell(points(own), own is not None and points_of(own.mean) == best[split, metric]))
        row = by_split.get(judged)
        row = row if row and row.base == comparison.base else None  # a removal has a 0 % run of its own
        cells += [Cell(points(row.change.get("mAP50") if row else None, sign=True))] if base else []
        cells += [Cell(_gap(row))] if gaps else []
        cells += [Cell(points_of(numbers[i][m].value) if m in numbers[i] else "-") for m in told]
        cells += [Cell(sources[i])] if sources else []
        body.append(tuple(cells))
    notes = [_intervals(rows) + (f"; vs {base}: {judged}, paired by seed." if base else ".")]
    notes += [GAP_NOTE] if gaps else []
    notes += [source_note(numbers, told)] if told else []
    return Table(f"Losses, {group}", tuple(head), tuple(body), tuple(notes))


def study_table(rows: Sequence[Row], title: str, tables: Sequence[tuple[str, str]]) -> Table | None:
    """Return every setting of a study on the split it is judged by, each metric beside the paper's; None without rows.

    Args:
        rows: of the sweep.
        title: of the table.
        tables: (paper, table) whose numbers stand beside.
    """
    rows = [row for row in rows if row.split == _judged(rows)]
    if not rows:
        return None
    names = [name for name in varying(row.setting for row in rows) if name not in ("rate", "label_seed", "protocol")]
    names = [name for name in ("model", "data", "head", "loss") if name in names] + [
        name for name in names if name in papers.METHOD_FLAGS
    ]
    numbers = papers.beside((row.setting.values for row in rows), tables)
    told = [m for m in METRICS if any(m in found for found in numbers)]
    sources = _sources(numbers)
    gaps, changes = any(row.gap for row in rows), any(row.change for row in rows)
    head = [*names, "labels", "n"]
    for metric in METRICS:
        head += [metric, *([f"paper {metric}"] if metric in told else [])]
    head += [*(["mAP50 vs baseline"] if changes else []), *(["gap closed"] if gaps else [])]
    head += [SOURCE] * bool(sources)
    body = []
    for i, (row, found) in enumerate(zip(rows, numbers, strict=True)):
        cells = [Cell(_flag_text(row.setting, name)) for name in names]
        cells += [Cell(labels_text(row.setting)), Cell(str(len(row.records)))]
        for metric in METRICS:
            cells.append(Cell(points(row.stats[metric])))
            cells += [Cell(points_of(found[metric].value) if metric in found else "-")] if metric in told else []
        cells += [Cell(points(row.change.get("mAP50"), sign=True))] if changes else []
        cells += [Cell(_gap(row))] if gaps else []
        cells += [Cell(sources[i])] if sources else []
        body.append(tuple(cells))
    notes = [f"{_judged(rows)}; " + _intervals(rows) + ("; vs baseline: paired by seed." if changes else ".")]
    baselines = _baselines(rows)
    notes += [f"Baseline: loss={baselines} with the same model and labels."] if baselines else []
    notes += [GAP_NOTE] if gaps else []
    notes += [source_note(numbers, told)] if told else []
    return Table(title, tuple(head), tuple(body), tuple(notes), len(names) + 1)


def rate_table(rows: Sequence[Row], title: str, tables: Sequence[tuple[str, str]]) -> Table | None:
    """Return mAP50 with a column for each fraction of missing labels, the paper's row below ours; None without them."""
    lines = rate_lines(rows)
    rates = sorted({rate for line in lines.values() for rate in line})
    if not rates:
        return None
    names = varying(lines)
    body, found = [], list[dict[str, papers.Number]]()
    for key, line in lines.items():
        name = describe_loss(key, names)
        cells = [points(line[rate].stats["mAP50"]) if rate in line else "" for rate in rates]
        body.append((Cell(name), Cell("ours"), *map(Cell, cells)))
        if numbers := beside_line(line, tables):
            texts = [points_of(numbers[rate].value) if rate in numbers else "-" for rate in rates]
            body.append((Cell(name), Cell("paper"), *map(Cell, texts)))
            found += [{"mAP50": number} for number in numbers.values()]
    notes = [f"mAP50 on {_judged(rows)}; {_intervals(rows)}."] + ([source_note(found, ["mAP50"])] if found else [])
    return Table(title, ("loss", "", *map(percent, rates)), tuple(body), tuple(notes), 2)


def study_numbers(sweep: Sweep) -> list[tuple[str, str]]:
    """(paper, table) of the numbers that stand beside a study's; none: all that there are."""
    return [(str(paper), str(table)) for paper, table in sweep.study.get("tables", [])]


def rate_lines(rows: Sequence[Row]) -> dict[Setting, dict[float, Row]]:
    """Return, for what a run is but its labels, fraction of missing labels -> row on the judged split; from 3 rows on.

    The fractions are those of `percent` and `per_class`; all labels (`normal`) are 0 of the protocol that is there.
    """
    rows = [row for row in rows if row.split == _judged(rows)]
    rated = {str(row.setting.get("protocol")) for row in rows} & set(papers.RATED)
    if len(rated) != 1:
        return {}
    lines: dict[Setting, dict[float, Row]] = {}
    for row in rows:
        if row.setting.get("protocol") in (*rated, "normal"):
            key = Setting.of({k: v for k, v in row.setting.values.items() if k not in LABELS})
            lines.setdefault(key, {}).setdefault(float(row.setting.get("rate") or 0.0), row)
    return {key: line for key, line in lines.items() if len(line) > 2}


def beside_line(line: Mapping[float, Row], tables: Sequence[tuple[str, str]]) -> dict[float, papers.Number]:
    """Return the paper's mAP50 where it has one, by the same x as our rows."""
    found = papers.beside((row.setting.values for row in line.values()), tables)
    return {x: numbers["mAP50"] for x, numbers in zip(line, found, strict=True) if "mAP50" in numbers}


def describe_loss(setting: Setting, names: Sequence[str]) -> str:
    """Return what a setting is called among others that differ in `names`: its loss first."""
    rest = [n for n in names if n not in ("loss", "head", *LABELS)]
    where = [f"{n}={_flag_text(setting, n)}" for n in rest if n not in papers.METHOD_FLAGS]
    return " ".join([method_text(setting, [n for n in rest if n in papers.METHOD_FLAGS]), *where])


def labels_text(setting: Setting) -> str:
    """Return the training labels in words: 'extreme', 'percent 0.5'."""
    protocol, rate = setting.get("protocol"), setting.get("rate") or 0.0
    return f"{protocol} {value_text(rate)}" if protocol in papers.RATED else str(protocol)


def _sources(numbers: Sequence[Mapping[str, papers.Number]]) -> list[str]:
    """The paper's table of each row of ours, where they are not all of one; else none: the note names it."""
    texts = [next((n.source for n in found.values()), "-") for found in numbers]
    return texts if len({*texts} - {"-"}) > 1 else []


def source_note(numbers: Iterable[Mapping[str, papers.Number]], metrics: Sequence[str]) -> str:
    """Return where the numbers of these metrics beside ours come from, and that they are not on the same data."""
    shown = (found[m] for found in numbers for m in metrics if m in found)
    found = list(dict.fromkeys((n.source, n.model, n.data) for n in shown))
    return (
        "paper: " + "; ".join(f"{source}: {model} on {data}" for source, model, data in found)
        + ". Other data, another detector and schedule; number of runs not stated."
    )  # fmt: skip


LABELS = ("protocol", "rate", "label_seed")
SOURCE = "paper's table"
GAP_NOTE = (
    "Gap closed: (setting - baseline) / (baseline on all labels - baseline), mAP50; 1 is as good as all labels. "
    f"–: that gap is below {100 * LEAST_GAP:g} points or, over several seeds, within its 95 % interval."
)


def _judged(rows: Sequence[Row]) -> str:
    """The split that rows are judged by: test where there is one, else val."""
    return max((row.split for row in rows), key=SPLITS.index, default="val")


def _intervals(rows: Sequence[Row]) -> str:
    several = any(len(row.records) > 1 for row in rows)
    told = "mean ± 95 % interval over n seeds (Student t)" if several else "single runs (n = 1), so no interval"
    return f"points (0 to 100), {told}"


def _gap(row: Row | None) -> str:
    if row is None or "mAP50" not in row.gap:
        return ""
    gap = row.gap["mAP50"]
    return "–" if gap is None else f"{gap:.2f}"


def _flag_text(setting: Setting, name: str) -> str:
    """A value in a table: the loss without what goes without saying, a data set by its folder, an idle flag empty."""
    value = setting.get(name)
    if name == "loss":
        return papers.loss_of(setting.values) or "the host's"
    if name == "data":
        return data_text(value)
    return value_text(value) if setting.owns(name) else ""


def data_text(value: Any) -> str:
    """A data set in a word: of data/aquarium/data.yaml, aquarium; else the file's name."""
    path = PurePath(str(value))
    return path.parent.name if path.stem in ("data", "dataset") and path.parent.name else path.name


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
        cells = [Cell(_flag_text(row.setting, name)) for name in names]
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
    return [n for n in varying(s.setting for s in all_series) if n not in (*AXES, *LABELS)]


def group_text(setting: Setting, names: Sequence[str]) -> str:
    """Return what sets a series apart, in words: 'protocol percent 0.5, head=anchor'."""
    return ", ".join([f"protocol {labels_text(setting)}", *(f"{name}={_flag_text(setting, name)}" for name in names)])


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
    """The largest value as it is shown, so that ties as shown are all bold; '' where all are the same."""
    return points_of(max(values)) if len({points_of(value) for value in values}) > 1 else ""


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
