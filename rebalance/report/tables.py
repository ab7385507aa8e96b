"""Rows -> tables, and the verdict on each in one sentence. A table is made of columns; templates/ lays it out.

Metrics are shown in points, 0 to 100, with one decimal, as the papers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rebalance.experiments.record import METRICS, SPLITS, Record, Sweep
from rebalance.report import papers
from rebalance.report.summary import (
    LABELS,
    LEAST_GAP,
    Group,
    Results,
    Row,
    Setting,
    Stat,
    apart,
    as_list,
    cell_text,
    loss_text,
    loss_texts,
    varying,
)
from rebalance.report.words import say
from rebalance.settings import value_text

AXIS_TITLES = {"obj_drop": "Objectness removal", "box_drop": "Box removal"}
Tables = Sequence[tuple[str, str]]  # (paper, table) whose numbers may stand beside ours; empty: all that there are


@dataclass(frozen=True)
class Cell:
    """One cell; bold marks the best of its column."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its name, its cells, and whether they hold text, which stands left; numbers stand right."""

    name: str
    cells: tuple[Cell, ...]
    left: bool = False


@dataclass(frozen=True)
class Table:
    """A title, columns of one length, and notes below, a line each."""

    title: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


# Columns


def _column(name: str, texts: Iterable[Any], left: bool = False) -> Column:
    return Column(name, tuple(Cell(str(text)) for text in texts), left)


def _marked(name: str, means: Sequence[float | None], texts: Iterable[str]) -> Column:
    """A column with its largest value bold; ties as shown are all bold, unless all are the same."""
    shown = [None if mean is None else points_of(mean) for mean in means]
    known = [mean for mean in means if mean is not None]
    best = points_of(max(known)) if len({*shown} - {None}) > 1 else ""
    return Column(name, tuple(Cell(text, one == best) for one, text in zip(shown, texts, strict=True)))


def _metric(name: str, rows: Sequence[Row | None], metric: str = "mAP50") -> Column:
    stats = [row.stats[metric] if row else None for row in rows]
    return _marked(name, [s.mean if s else None for s in stats], map(points, stats))


def _change(name: str, rows: Iterable[Row | None]) -> Column:
    return _column(name, (points(row.change.get("mAP50") if row else None, sign=True) for row in rows))


def _differences(rows: Sequence[Row | None], base: str) -> list[Column]:
    """The change from `base`, '' for none, and the gap closed, where there is one."""
    columns = [_change(f"mAP50 vs {base}", rows)] if base else []
    if any(row and row.gap for row in rows):
        gaps = [row.gap.get("mAP50", "") if row else "" for row in rows]
        columns.append(
            _column("gap closed", ("–" if g is None else g if isinstance(g, str) else f"{g:.2f}" for g in gaps))
        )
    return columns


def _flags(names: Sequence[str], settings: Sequence[Setting]) -> list[Column]:
    return [_column(name, (cell_text(setting, name) for setting in settings), left=True) for name in names]


class _Beside:
    """A paper's numbers beside settings of ours."""

    def __init__(self, settings: Iterable[Setting], tables: Tables) -> None:
        self.numbers = papers.beside((setting.values for setting in settings), tables)
        self.metrics = [m for m in METRICS if any(m in found for found in self.numbers)]

    def column(self, metric: str) -> list[Column]:
        """The paper's values of one metric, none where it has none."""
        texts = (points_of(found[metric].value) if metric in found else "-" for found in self.numbers)
        return [_column(f"paper {metric}", texts)] if metric in self.metrics else []

    def sources(self) -> list[Column]:
        """The paper's table of each row, where they are not all of one; else none: the note names it."""
        texts = [next((n.source for n in found.values()), "-") for found in self.numbers]
        return [_column("paper's table", texts)] if len({*texts} - {"-"}) > 1 else []

    def notes(self) -> list[str]:
        """Where the numbers come from."""
        return _source_note(found[m] for found in self.numbers for m in self.metrics if m in found)


def _source_note(numbers: Iterable[papers.Number]) -> list[str]:
    """Where numbers beside ours come from, and that they are not on the same data; none for no numbers."""
    found = dict.fromkeys(f"{n.source}: {n.model} on {n.data}" for n in numbers)
    return [say("paper", sources=found)] if found else []


# Tables


def drop_table(series: Group, title: str = "") -> Table:
    """Return a series in the form of the paper's Table 2 (box removal) or 3 (objectness), told apart by `title`.

    The paper's own columns are on another data set, which the notes say.
    """
    published, judged = papers.removal(series.axis), series.splits[-1]
    removals, shown = [setting.removal(series.axis) for setting in series.rows], list(series.rows.values())
    reported = {split: [published.values.get((split, removal)) for removal in removals] for split in SPLITS}
    columns = [
        _column("removal pct", map(percent, removals), left=True),
        _column("n", (len(next(iter(own.values())).records) for own in shown)),
        *(_metric(f"{split} mAP50", [own.get(split) for own in shown]) for split in series.splits),
        _change(f"{judged} vs 0 %", (own.get(judged) if s.removes else None for s, own in series.rows.items())),
        *(_marked(f"paper {s}", v, ("-" if x is None else points_of(x) for x in v)) for s, v in reported.items()),
    ]
    several = any(len(row.records) > 1 for own in shown for row in own.values())
    paper = say("removal_of_paper", model=published.model, data=published.data, table=published.table)
    title = AXIS_TITLES[series.axis] + (f", {title}" if title else "")
    return Table(title, tuple(columns), (say("removal", several=several), paper))


def settings_table(rows: Sequence[Row], split: str) -> Table:
    """Return all settings of a sweep on one split: the flags that vary, every metric, change and gap closed."""
    rows = [row for row in rows if row.split == split]
    settings = [row.setting for row in rows]
    baselines = _baselines(rows)
    base = (baselines and "baseline") or "0 %"
    changes = any(row.change for row in rows)
    columns = [
        *_flags(varying(settings) or ["model"], settings),
        _column("n", (len(row.records) for row in rows)),
        *(_metric(metric, rows, metric) for metric in METRICS),
        *_differences(rows, base if changes else ""),
    ]
    notes = [say("settings", several=any(len(row.records) > 1 for row in rows))]
    if changes:
        removals = any(row.base and row.setting.removes for row in rows)
        notes.append(say("differences", base=base, baselines=baselines, removals=removals))
    return Table(f"All settings, {split}", tuple(columns), (*notes, *_gap_note(rows)))


def loss_table(group: Group, title: str, tables: Tables = ()) -> Table:
    """Return losses that differ in nothing else, with the paired difference from the baseline and a paper's numbers."""
    judged, names, by_split = group.splits[-1], names_of(group), list(group.rows.values())
    rows = [row for own in by_split for row in own.values()]
    base = names[group.base] if group.base else ""
    beside = _Beside(group.rows, tables)
    metrics = [*((s, "mAP50") for s in group.splits), (judged, "mAP75"), (judged, "mAP50-95")]
    # a removal has a 0 % run of its own
    paired = [row if (row := own.get(judged)) and row.base == group.base else None for own in by_split]
    columns = [
        _column("loss", names.values(), left=True),
        _column("n", (max(len(row.records) for row in own.values()) for own in by_split)),
        *(_metric(f"{split} {metric}", [own.get(split) for own in by_split], metric) for split, metric in metrics),
        *_differences(paired, base),
        *(column for metric in METRICS for column in beside.column(metric)),
        *beside.sources(),
    ]
    told = _intervals(rows) + (f"; vs {base}: {judged}, paired by seed." if base else ".")
    return Table(f"Losses, {title}", tuple(columns), (told, *_gap_note(rows), *beside.notes()))


def study_table(rows: Sequence[Row], title: str, tables: Tables) -> Table | None:
    """Return every setting of a study on the split it is judged by, with the paper's numbers; None without rows."""
    rows = judged_rows(rows)
    if not rows:
        return None
    settings = [row.setting for row in rows]
    varied = apart(settings)
    names = [name for name in ("model", "data", "head", "loss") if name in varied]
    names += [name for name in varied if any(name in setting.loss_flags for setting in settings)]
    beside, changes = _Beside(settings, tables), any(row.change for row in rows)
    columns = [
        *_flags(names, settings),
        _column("labels", map(labels_text, settings), left=True),
        _column("n", (len(row.records) for row in rows)),
    ]
    for metric in METRICS:
        columns += [_column(metric, (points(row.stats[metric]) for row in rows)), *beside.column(metric)]
    columns += [*_differences(rows, "baseline" if changes else ""), *beside.sources()]
    notes = [f"{rows[0].split}; {_intervals(rows)}" + ("; vs baseline: paired by seed." if changes else ".")]
    baselines = _baselines(rows)
    notes += [f"Baseline: loss={baselines} with the same model and labels."] if baselines else []
    return Table(title, tuple(columns), (*notes, *_gap_note(rows), *beside.notes()))


def rate_table(rows: Sequence[Row], title: str, tables: Tables) -> Table | None:
    """Return mAP50 with a column for each fraction of missing labels, the paper's row below ours; None without them."""
    lines = rate_lines(rows)
    if not lines:
        return None
    rates = sorted({rate for line in lines.values() for rate in line})
    names, body, found = varying(lines), [], list[papers.Number]()
    for key, line in lines.items():
        loss = loss_text(key, names)
        body.append([loss, "ours", *(points(line[rate].stats["mAP50"]) if rate in line else "" for rate in rates)])
        if numbers := beside_line(line, tables):
            texts = (points_of(numbers[rate].value) if rate in numbers else "-" for rate in rates)
            body.append([loss, "paper", *texts])
            found += numbers.values()
    rows = judged_rows(rows)
    heads, texts_of = ["loss", "", *map(percent, rates)], zip(*body, strict=True)
    columns = [_column(head, own, left=i < 2) for i, (head, own) in enumerate(zip(heads, texts_of, strict=True))]
    return Table(title, tuple(columns), (f"mAP50 on {rows[0].split}; {_intervals(rows)}.", *_source_note(found)))


def class_table(series: Group) -> Table | None:
    """Return mAP50 by class along a series, mean over seeds, on the split it is judged by; None without classes."""
    split = series.splits[-1]
    rows = [own[split] for own in series.rows.values() if split in own]
    names = dict.fromkeys(name for row in rows for r in row.records for name in r.per_class.get(split, {}))
    if not names:
        return None
    body = []
    for name in names:
        means = [_mean(r.per_class.get(split, {}).get(name, {}).get("mAP50") for r in row.records) for row in rows]
        body.append(_marked(name, means, ("" if mean is None else points_of(mean) for mean in means)).cells)
    heads = (percent(row.setting.removal(series.axis)) for row in rows)
    columns = [_column("class", names, left=True), *map(Column, heads, zip(*body, strict=True))]
    return Table(f"{AXIS_TITLES[series.axis]}: mAP50 by class, {split}", tuple(columns), ("Mean over seeds.",))


def cost_table(runs: Mapping[Setting, Sequence[Record]]) -> Table:
    """Return what each setting cost to train: means over its runs."""
    timings = (("train s", "train_seconds", 0), ("images/s", "images_per_second", 1), ("eval s", "eval_seconds", 1))
    columns = _flags(varying(runs) or ["model"], list(runs))
    for name, key, digits in timings:
        columns.append(_column(name, (_mean_text([r.timings.get(key) for r in own], digits) for own in runs.values())))
    columns.append(_column("peak MB", (_mean_text([r.peak_memory_mb for r in own], 0) for own in runs.values())))
    return Table("Cost, mean of a run", tuple(columns))


def runs_table(records: Sequence[Record]) -> Table:
    """Return every finished run by itself."""
    columns = [_column("run", (record.run for record in records), left=True)]
    for split in (s for s in SPLITS if any(s in r.metrics for r in records)):
        for metric in METRICS:
            texts = (points_of(r.metrics[split][metric]) if split in r.metrics else "" for r in records)
            columns.append(_column(f"{split} {metric}", texts))
    columns.append(_column("train s", (_mean_text([r.timings.get("train_seconds")], 0) for r in records)))
    return Table("Every run", tuple(columns), ("Points (0 to 100).",))


def result_tables(found: Results) -> list[tuple[Table, str]]:
    """Return the tables of removal and of losses in a sweep, each with its verdict."""
    tables = [*map(drop_table, found.series, group_texts(found.series))]
    beside = study_numbers(found.sweep)
    tables += [loss_table(*pair, beside) for pair in zip(found.compared, group_texts(found.compared), strict=True)]
    return list(zip(tables, map(verdict, (*found.series, *found.compared)), strict=True))


def study_tables(found: Results) -> list[Table]:
    """Return the tables of a paper's table or figure in the paper's layout, none where the sweep is neither."""
    study = found.sweep.study
    if not study or found.series:
        return []
    title, numbers = str(study.get("title", "")), study_numbers(found.sweep)
    made = (rate_table(found.rows, f"{title}: missing labels", numbers), study_table(found.rows, title, numbers))
    return [table for table in made if table]


def verdict(group: Group) -> str:
    """Return what the paired intervals of a group say, in one sentence about the split that it is judged by."""
    split, base, axis, names = group.splits[-1], group.base, group.axis, names_of(group)
    if axis:
        names = {s: f"{axis}={value_text(s.removal(axis))}" if s.removes else "0 %" for s in names}
    own = [(names[s], by_split[split]) for s, by_split in group.rows.items() if s != base and split in by_split]
    changes = [(name, row.change["mAP50"]) for name, row in own if row.change and row.base == base]
    most = max(changes, key=lambda pair: abs(pair[1].mean), default=None)
    n, run = span(change.n for _, change in changes), "0 % run" if axis else "run of the baseline"
    facts = {"changes": changes, "most": most, "base": names[base] if base else None, "run": run, "split": split}
    return say("verdict", **facts, points=points, span=n)


# What rows are called, and which stand together


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """Those on the split that rows are judged by: test where there is one, else val."""
    judged = max((row.split for row in rows), key=SPLITS.index, default="")
    return [row for row in rows if row.split == judged]


def names_of(group: Group) -> dict[Setting, str]:
    """Return what each setting of a group is called: its removal, or its loss and the flags that set it apart."""
    settings = list(group.rows)
    texts = [percent(s.removal(group.axis)) for s in settings] if group.axis else loss_texts(settings)
    return dict(zip(settings, texts, strict=True))


def group_texts(groups: Sequence[Group]) -> list[str]:
    """Return what sets each group apart from the others."""
    names = apart(group.key for group in groups)
    return [group_text(group.key, names) for group in groups]


def group_text(setting: Setting, names: Sequence[str]) -> str:
    """Return the labels and some flags in words: 'protocol percent 0.5, head=anchor'."""
    return ", ".join([f"protocol {labels_text(setting)}", *(f"{name}={cell_text(setting, name)}" for name in names)])


def labels_text(setting: Setting) -> str:
    """Return the training labels in words: 'extreme', 'percent 0.5'."""
    protocol, rate = setting.get("protocol"), setting.get("rate") or 0.0
    return f"{protocol} {value_text(rate)}" if protocol in papers.RATED else str(protocol)


def study_numbers(sweep: Sweep) -> list[tuple[str, str]]:
    """(paper, table) of the numbers that stand beside a study's; none: all that there are."""
    pairs = (pair for pair in as_list(sweep.study.get("tables")) if isinstance(pair, (list, tuple)) and len(pair) == 2)
    return [(str(paper), str(table)) for paper, table in pairs]


def rate_lines(rows: Sequence[Row]) -> dict[Setting, dict[float, Row]]:
    """Return, for what a run is but its labels, fraction of missing labels -> row on the judged split; from 3 rows on.

    The fractions are those of `percent` and `per_class`; all labels (`normal`) are 0 of the protocol that is there.
    """
    rows = judged_rows(rows)
    rated = {str(row.setting.get("protocol")) for row in rows} & set(papers.RATED)
    if len(rated) != 1:
        return {}
    lines: dict[Setting, dict[float, Row]] = {}
    for row in rows:
        if row.setting.get("protocol") in (*rated, "normal"):
            lines.setdefault(row.setting.change(LABELS), {}).setdefault(float(row.setting.get("rate") or 0.0), row)
    return {key: line for key, line in lines.items() if len(line) > 2}


def beside_line(line: Mapping[float, Row], tables: Tables) -> dict[float, papers.Number]:
    """Return the paper's mAP50 where it has one, by the same x as our rows."""
    found = papers.beside((row.setting.values for row in line.values()), tables)
    return {x: numbers["mAP50"] for x, numbers in zip(line, found, strict=True) if "mAP50" in numbers}


def _intervals(rows: Sequence[Row]) -> str:
    several = any(len(row.records) > 1 for row in rows)
    told = "mean ± 95 % interval over n seeds (Student t)" if several else "single runs (n = 1), so no interval"
    return f"points (0 to 100), {told}"


def _gap_note(rows: Sequence[Row]) -> list[str]:
    return [say("gap_closed", least=f"{100 * LEAST_GAP:g}")] * any(row.gap for row in rows)


def _baselines(rows: Sequence[Row]) -> str:
    """The settings that losses are compared with, by name; '' where only removals are compared, with their 0 % run."""
    bases = [row.base for row in rows if row.base and not row.setting.removes]
    return ", ".join(dict.fromkeys(loss_texts(bases, among=[row.setting for row in rows])))


# Numbers


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


def span(counts: Iterable[int]) -> str:
    """Return the range of counts: '3', '2 to 3', '' for none."""
    ordered = sorted({*counts})
    return " to ".join(map(str, [*ordered[:1], *ordered[1:][-1:]]))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _mean_text(values: Iterable[float | None], digits: int) -> str:
    mean = _mean(values)
    return "" if mean is None else f"{mean:.{digits}f}"


def as_text(table: Table) -> str:
    """Return the table for a terminal; a star marks the best of a column."""
    marked = any(cell.bold for row in table.rows for cell in row)
    columns = []
    for column in table.columns:
        texts = [column.name, *(cell.text + (" *"[cell.bold] if marked else "") for cell in column.cells)]
        width = max(map(len, texts))
        columns.append([text.ljust(width) if column.left else text.rjust(width) for text in texts])
    head, *body = ("  ".join(line).rstrip() for line in zip(*columns, strict=True))
    rule = "-" * max(map(len, [head, *body]))
    return "\n".join([table.title, head, rule, *body, *["* best of the column"] * marked, *table.notes])
