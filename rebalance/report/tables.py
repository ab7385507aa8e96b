"""Rows -> the tables of results: removals, losses, their differences, all settings, a paper's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rebalance.experiments.record import METRICS, NOISE, SPLITS, Record, Sweep
from rebalance.report import papers
from rebalance.report.evidence import LEAST_GAP, MOST_SEEDS, POWER, Comparison, Stat, stat
from rebalance.report.summary import (
    AXES,
    CONTROL,
    EVALUATION,
    LABELS,
    PRIMARY,
    Group,
    Results,
    Row,
    Setting,
    apart,
    as_list,
    cell_text,
    evaluation,
    evaluation_text,
    grouped,
    is_drawn,
    loss_text,
    loss_texts,
    varying,
    withholds,
)
from rebalance.report.table import (
    Column,
    Table,
    column,
    gap_text,
    marked,
    mean_text,
    p_text,
    percent,
    points,
    points_of,
)
from rebalance.report.words import say
from rebalance.settings import value_text

AXIS_TITLES = {"obj_drop": "Objectness removal", "box_drop": "Box removal"}
SHOWN = ("mAP50", "mAP50-95")  # side by side wherever methods are compared
FACTORS = ("pull", "push")  # what a loss that drops makes of the weight of positives, and of negatives
Tables = Sequence[tuple[str, str]]  # (paper, table) whose numbers may stand beside ours; empty: all that there are


class More(NamedTuple):
    """A metric that is shown where a paper reports it and the records have it."""

    group: str  # of the metrics of a split
    key: str
    name: str


# What a paper's numbers call it -> what records have
MORE = {
    "APs": More("coco", "AP_small", "COCO AP_S"),
    "APm": More("coco", "AP_medium", "COCO AP_M"),
    "APl": More("coco", "AP_large", "COCO AP_L"),
}
COCO = (*(More("coco", key, f"COCO {key}") for key in ("AP", "AP50", "AP75")), *MORE.values())
VOC = (More("voc", "mAP50", "VOC mAP50"), More("voc", "mAP75", "VOC mAP75"))  # 11 points, as VOC 2007


# Columns


def _metric(name: str, rows: Sequence[Row | None], metric: str = PRIMARY, beside: Sequence[Row | None] = ()) -> Column:
    """A metric, the best bold; rows `beside` stand below and outside the contest."""
    stats = [row.stats[metric] if row else None for row in rows]
    below = (points(row.stats[metric] if row else None) for row in beside)
    return marked(name, [s.mean if s else None for s in stats], map(points, stats), below)


def _change(name: str, rows: Iterable[Row | None], metric: str = PRIMARY) -> Column:
    return column(name, (points(row.change.get(metric) if row else None, sign=True) for row in rows))


def _gap(rows: Sequence[Row | None]) -> list[Column]:
    """The gap closed, where some row has one."""
    texts = [gap_text(row.gap[PRIMARY]) if row and PRIMARY in row.gap else "" for row in rows]
    return [column("gap closed", texts)] * any(texts)


def _differences(rows: Sequence[Row], base: str) -> list[Column]:
    """The changes from `base`, '' for none, Holm's p-value and the gap closed, where there is one."""
    if not base:
        return []
    columns = [_change(f"{metric} vs {base}", rows, metric) for metric in SHOWN]
    columns += [column("p (Holm)", (p_text(row.test.corrected) if row.test else "" for row in rows))]
    return [one for one in columns if not one.empty] + _gap(rows)


def flags(names: Sequence[str], settings: Sequence[Setting]) -> list[Column]:
    """A column of each flag."""
    return [column(name, (cell_text(setting, name) for setting in settings), left=True) for name in names]


class _Beside:
    """A paper's numbers beside settings of ours."""

    def __init__(self, settings: Iterable[Setting], tables: Tables) -> None:
        self.numbers = papers.beside((setting.values for setting in settings), tables)
        found = {name for own in self.numbers for name in own}
        self.metrics = [m for m in (*METRICS, *MORE, "FPS") if m in found]

    def column(self, metric: str, below: int = 0) -> list[Column]:
        """The paper's values of one metric, none where it has none; `below` are rows that it has nothing for."""
        digits = (lambda value: f"{value:.1f}") if metric == "FPS" else points_of
        texts = (digits(found[metric].value) if metric in found else "-" for found in self.numbers)
        return [column(f"paper {metric}", [*texts, *["-"] * below])] if metric in self.metrics else []

    def sources(self, below: int = 0) -> list[Column]:
        """The paper's table of each row, where they are not all of one; else none: the note names it."""
        texts = [next((n.source for n in found.values()), "-") for found in self.numbers]
        return [column("paper's table", [*texts, *["-"] * below])] if len({*texts} - {"-"}) > 1 else []

    def notes(self) -> list[str]:
        """Where the numbers come from."""
        return _source_note(found[m] for found in self.numbers for m in self.metrics if m in found)

    @property
    def voc(self) -> bool:
        """Whether some numbers are of PASCAL VOC, whose own precision then stands beside."""
        return any(number.data.startswith("voc") for found in self.numbers for number in found.values())


def _source_note(numbers: Iterable[papers.Number]) -> list[str]:
    """Where numbers beside ours come from, and that they are not on the same data; none for no numbers."""
    found = dict.fromkeys(f"{n.source}: {n.model} on {n.data}" for n in numbers)
    return [say("paper", sources=found)] if found else []


def recorded(row: Row, more: More) -> Stat | None:
    """The mean of a metric that some records have, as a `Row` has those of METRICS; None where none has it."""
    found = [(r.metrics[row.split].get(more.group) or {}).get(more.key) for r in row.records]
    known = [value for value in found if value is not None]
    return stat(known) if known else None


def more_columns(rows: Sequence[Row], wanted: Iterable[More]) -> list[Column]:
    """Of these metrics the ones that some record has."""
    columns = [column(one.name, (points(recorded(row, one)) for row in rows)) for one in wanted]
    return [one for one in columns if not one.empty]


# Tables


def drop_table(series: Group, title: str = "") -> Table:
    """Return a series in the form of the paper's Table 2 (box removal) or 3 (objectness), told apart by `title`.

    The paper's own columns are on another data set, which the notes say.
    """
    published, below = papers.removal(series.axis), complete_rows(series)
    shown = list(series.rows.values())
    of_paper = list(map(_as_published, series.rows))
    reported = {split: [published.values.get((split, removal)) for removal in of_paper] for split in SPLITS}
    columns = [
        column("removal pct", [*names_of(series).values(), *("0%, complete labels" for _ in below)], left=True),
        column("n", (len(next(iter(own.values())).records) for own in [*shown, *below])),
        *_levels(series),
        *(
            marked(f"paper {split}", v, ("-" if x is None else points_of(x) for x in v), ["-"] * len(below))
            for split, v in reported.items()
        ),
    ]
    rows = [row for own in shown for row in own.values()]
    paper = say("removal_of_paper", model=published.model, data=published.data, table=published.table)
    title = AXIS_TITLES[series.axis] + (f", {title}" if title else "")
    return Table(title, tuple(columns), (f"{_intervals(rows)}.", *_notes(series, rows), paper))


def _as_published(setting: Setting) -> float:
    """The removal that a paper's numbers are of: of those that are drawn at random; -1 for others."""
    removal = max(map(setting.removal, AXES))
    return removal if setting.get("drop_select") in (None, "random") or not removal else -1.0


def loss_table(group: Group, title: str, tables: Tables = ()) -> Table:
    """Return losses that differ in nothing else, and a paper's numbers."""
    names, by_split, below = names_of(group), list(group.rows.values()), complete_rows(group)
    rows = [row for own in by_split for row in own.values()]
    beside = _Beside(group.rows, tables)
    full = f"{names.get(group.base, '')}, complete labels" if group.base else ""
    columns = [
        column("loss", [*names.values(), *(full for _ in below)], left=True),
        column("n", (max(len(row.records) for row in own.values()) for own in [*by_split, *below])),
        *_levels(group, "mAP75" in beside.metrics),
        *(one for metric in beside.metrics for one in beside.column(metric, len(below))),
        *beside.sources(len(below)),
    ]
    return Table(f"Losses, {title}", tuple(columns), (f"{_intervals(rows)}.", *_notes(group, rows), *beside.notes()))


def _levels(group: Group, also_75: bool = False) -> list[Column]:
    """Each split's metrics, side by side; below, those of the baseline on complete labels."""
    shown, below = list(group.rows.values()), complete_rows(group)
    metrics = [(split, metric) for split in group.splits for metric in SHOWN]
    metrics += [(group.splits[-1], "mAP75")] * also_75
    columns = [
        _metric(f"{split} {metric}", [own.get(split) for own in shown], metric, [own.get(split) for own in below])
        for split, metric in metrics
    ]
    records = [next(iter(own.values())).records for own in [*shown, *below]]
    factors = [column(name, (_factor(own, name) for own in records)) for name in FACTORS]
    return [*columns, *(one for one in factors if not one.empty)]


def difference_table(group: Group, title: str = "") -> Table | None:
    """Return the differences of a group's settings from its baseline, with their tests; None where there is none.

    A setting with a baseline of its own (a removal, beside losses) is not in it.
    """
    names, judged = names_of(group), group.splits[-1]
    if not group.base:
        return None
    shown = {names[s]: own for s, own in group.rows.items() if any(r.base == group.base for r in own.values())}
    if not shown:
        return None
    if below := complete_rows(group):
        shown[f"{'0%' if group.axis else names[group.base]}, complete labels"] = below[0]
    rows = [own.get(judged) for own in shown.values()]
    tests = [row.test if row else None for row in rows]
    controls = [row.control.get(PRIMARY) if row else None for row in rows]
    columns = [
        column("removal pct" if group.axis else "loss", shown, left=True),
        column("pairs", (row.change[PRIMARY].n if row and row.change else "" for row in rows)),
        *(
            _change(f"{split} {metric}", (own.get(split) for own in shown.values()), metric)
            for split in group.splits
            for metric in SHOWN
        ),
        column("corrected", (f"± {points_of(test.half)}" if test else "" for test in tests)),
        column("p (Holm)", (p_text(test.corrected) if test else "" for test in tests)),
        column("seeds needed", (seeds_text(test) if test else "" for test in tests)),
        column("vs control", (points(one, sign=True) for one in controls)),
        *_gap(rows),
    ]
    kept = [one for one in columns if not one.empty]
    count = next((test.count for test in tests if test), 0)
    base = "the 0 % run" if group.axis else names[group.base]
    notes = [say("paired", base=base, split=judged, metric=PRIMARY)]
    notes += [say("tested", count=count, power=f"{100 * POWER:g}")] * bool(count)
    notes += [say("of_control", metric=PRIMARY, split=judged)] * any(controls)
    known = [row for row in rows if row]
    table = f"{AXIS_TITLES[group.axis] if group.axis else 'Losses'}, {title}".rstrip(", ")
    return Table(
        f"{table}: differences from {base}",
        tuple(kept),
        (*notes, *_gap_note(known), *draw_note(group.records), *evaluation_note(known)),
    )


def seeds_text(test: Comparison) -> str:
    """The seeds that a difference needs, counted up to a limit; 'holds' where it has them."""
    return "holds" if test.holds else f"> {MOST_SEEDS}" if test.seeds is None else str(test.seeds)


def _factor(records: Sequence[Record], name: str) -> str:
    """`pull` or `push`, what a loss multiplies positives and negatives by; '' where records do not say."""
    values = (record.loss_ran.get(name) for record in records)
    text = mean_text([value for value in values if isinstance(value, (int, float))], 2)
    return text and f"×{text}"


def complete_rows(group: Group) -> list[Mapping[str, Row]]:
    """The baseline on complete labels as a row below the others, where there is one."""
    return [group.complete] if group.complete else []


def settings_table(rows: Sequence[Row], split: str) -> Table:
    """Return all settings of a sweep on one split: the flags that vary, every metric, changes and gap closed."""
    rows = [row for row in rows if row.split == split]
    settings = [row.setting for row in rows]
    baselines = _baselines(rows)
    base = (baselines and "baseline") or "0 %"
    changes = any(row.change for row in rows)
    columns = [
        *flags(varying(settings) or ["model"], settings),
        column("n", (len(row.records) for row in rows)),
        *(_metric(metric, rows, metric) for metric in METRICS),
        *_differences(rows, base if changes else ""),
    ]
    notes = [say("settings", several=any(len(row.records) > 1 for row in rows))]
    if changes:
        removals = any(row.base and row.setting.removes for row in rows)
        notes.append(say("differences", base=base, baselines=baselines, removals=removals))
    return Table(f"All settings, {split}", tuple(columns), (*notes, *_gap_note(rows), *evaluation_note(rows)))


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
        *flags(names, settings),
        column("labels", map(labels_text, settings), left=True),
        column("n", (len(row.records) for row in rows)),
    ]
    for metric in METRICS:
        columns += [column(metric, (points(row.stats[metric]) for row in rows)), *beside.column(metric)]
    for name, more in MORE.items():
        columns += more_columns(rows, [more] * (name in beside.metrics)) + beside.column(name)
    columns += more_columns(rows, VOC if beside.voc else ())
    if "FPS" in beside.metrics:
        speeds = column("FPS", (mean_text([r.timings.get("fps") for r in row.records], 1) for row in rows))
        columns += [*[speeds] * (not speeds.empty), *beside.column("FPS")]
    columns += [*_differences(rows, "baseline" if changes else ""), *beside.sources()]
    notes = [f"On {rows[0].split}. {_intervals(rows)}" + ("; vs baseline: paired by seed." if changes else ".")]
    baselines = _baselines(rows)
    notes += [f"Baseline: loss={baselines} with the same model and labels."] if baselines else []
    notes += [*_gap_note(rows), *draw_note(r for row in rows for r in row.records), *evaluation_note(rows)]
    return Table(title, tuple(columns), (*notes, *beside.notes()))


def rate_table(rows: Sequence[Row], title: str, tables: Tables) -> Table | None:
    """Return mAP50 with a column for each fraction of wrong labels, the paper's row below ours; None without them."""
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
    columns = [column(head, own, left=i < 2) for i, (head, own) in enumerate(zip(heads, texts_of, strict=True))]
    notes = (f"mAP50 on {rows[0].split}. {_intervals(rows)}.", *evaluation_note(rows), *_source_note(found))
    return Table(title, tuple(columns), notes)


def study_tables(found: Results) -> list[Table]:
    """Return the tables of a paper's table or figure in the paper's layout, none where the sweep is neither."""
    study = found.sweep.study
    if not study or found.series:
        return []
    title, numbers = str(study.get("title", "")), study_numbers(found.sweep)
    wrong = "wrong" if any(key.get("errors") for key in rate_lines(found.rows)) else "missing"
    made = (rate_table(found.rows, f"{title}: {wrong} labels", numbers), study_table(found.rows, title, numbers))
    return [table for table in made if table]


# What rows are called, and which stand together


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """Those on the split that rows are judged by: test where there is one, else val."""
    judged = max((row.split for row in rows), key=SPLITS.index, default="")
    return [row for row in rows if row.split == judged]


def names_of(group: Group) -> dict[Setting, str]:
    """Return what each setting of a group is called: its removal, or its loss and the flags that set it apart."""
    settings = list(group.rows)
    if not group.axis:
        return dict(zip(settings, loss_texts(settings), strict=True))
    words = {CONTROL["drop_select"]: "control", "random": "", "None": ""}
    kinds = {s: words.get(select, select) for s in settings if s.removes and (select := str(s.get("drop_select")))}
    return {s: f"{percent(s.removal(group.axis))} {kinds.get(s, '')}".rstrip() for s in settings}


def group_texts(groups: Sequence[Group]) -> list[str]:
    """Return what sets each group apart from the others."""
    names = apart(group.key for group in groups)
    return [group_text(group.key, names) for group in groups]


def group_text(setting: Setting, names: Sequence[str]) -> str:
    """Return the labels and some flags in words: 'protocol percent 0.5, head=anchor'."""
    return ", ".join([f"protocol {labels_text(setting)}", *(f"{name}={cell_text(setting, name)}" for name in names)])


def labels_text(setting: Setting) -> str:
    """Return the training labels in words: 'extreme', 'percent 0.5, jitter 0.2'."""
    protocol, rate = setting.get("protocol"), setting.get("rate") or 0.0
    told = f"{protocol} {value_text(rate)}" if protocol in papers.RATED else str(protocol)
    return ", ".join([told, *(f"{name} {value_text(setting.get(name))}" for name in NOISE if setting.get(name))])


def study_numbers(sweep: Sweep) -> list[tuple[str, str]]:
    """(paper, table) of the numbers that stand beside a study's; none: all that there are."""
    pairs = (pair for pair in as_list(sweep.study.get("tables")) if isinstance(pair, (list, tuple)) and len(pair) == 2)
    return [(str(paper), str(table)) for paper, table in pairs]


ERRORS = {"rate": "missing", **{kind: kind for kind in NOISE[:-1]}}  # of labels; by the flag that says how many


def rate_lines(rows: Sequence[Row]) -> dict[Setting, dict[float, Row]]:
    """Return, for what a run is but its labels, fraction of wrong labels -> row on the judged split; from 3 rows on.

    A line for each kind of error by itself, under `errors`. Fractions of missing labels are those of `percent` and
    `per_class`; all labels (`normal`) are 0 of the protocol that is there, and of every other kind.
    """
    rows = judged_rows(rows)
    rated = {str(row.setting.get("protocol")) for row in rows} & set(papers.RATED)
    lines: dict[Setting, dict[float, Row]] = {}
    for row in rows:
        rates = {kind: float(row.setting.get(kind) or 0.0) for kind in ("rate", *NOISE[:-1])}
        if row.setting.get("protocol") not in ("normal", *(rated if len(rated) == 1 else ())):
            continue
        for kind, rate in rates.items():
            if not any(other for name, other in rates.items() if name != kind):
                lines.setdefault(row.setting.change(LABELS, errors=ERRORS[kind]), {}).setdefault(rate, row)
    lines = {key: line for key, line in lines.items() if len(line) > 2}
    several = len({key.get("errors") for key in lines}) > 1 or any(key.get("errors") != "missing" for key in lines)
    return lines if several else {key.change(["errors"]): line for key, line in lines.items()}


def beside_line(line: Mapping[float, Row], tables: Tables) -> dict[float, papers.Number]:
    """Return the paper's mAP50 where it has one, by the same x as our rows; papers report on missing labels alone."""
    if any(row.setting.get(kind) for row in line.values() for kind in NOISE):
        return {}
    found = papers.beside((row.setting.values for row in line.values()), tables)
    return {x: numbers["mAP50"] for x, numbers in zip(line, found, strict=True) if "mAP50" in numbers}


def _notes(group: Group, rows: Sequence[Row]) -> list[str]:
    """What stands below the levels of a group: labels and evaluation."""
    known = [*rows, *(row for own in complete_rows(group) for row in own.values())]
    lacking = group.base is not None and withholds(group.base) and not group.complete
    told = [say("no_complete")] * lacking
    told += [say("pull")] * any(record.loss_ran.get(name) for record in group.records for name in FACTORS)
    return [*told, *draw_note(group.records), *evaluation_note(known)]


def draw_note(records: Iterable[Record]) -> list[str]:
    """That all seeds share one draw of withheld labels, where they do."""
    seeds = [(r.seed, r.labels.get("seed", 0)) for r in records if is_drawn(r.labels)]
    draws = {draw for _, draw in seeds}
    return [say("one_draw", draw=draws.pop())] if len(draws) == 1 and len({seed for seed, _ in seeds}) > 1 else []


def evaluation_note(rows: Iterable[Row]) -> list[str]:
    """At which overlap of NMS, score and number of boxes the metrics were taken, by model where they differ."""
    records = [record for row in rows for record in row.records]
    told = grouped(records, lambda r: (evaluation_text(r), str(evaluation(r)["source"])))
    texts = []
    for own in told.values():
        *_, source = numbers = [evaluation(own[0])[name] for name in (*EVALUATION, "source")]
        models = ", ".join(dict.fromkeys(str(r.host.get("model")) for r in own)) if len(told) > 1 else ""
        iou, conf, most = map(value_text, numbers[:-1])
        texts.append(say("evaluation", iou=iou, conf=conf, most=most, source=source, models=models))
    return [f"Evaluation: {'; '.join(texts)}."] if texts else []


def _intervals(rows: Sequence[Row]) -> str:
    several = any(len(row.records) > 1 for row in rows)
    told = "mean ± 95 % interval over n seeds (Student t)" if several else "single runs (n = 1), so no interval"
    return f"Points (0 to 100), {told}"


def _gap_note(rows: Sequence[Row]) -> list[str]:
    return [say("gap_closed", least=f"{100 * LEAST_GAP:g}")] * any(row.gap for row in rows)


def _baselines(rows: Sequence[Row]) -> str:
    """The settings that losses are compared with, by name; '' where only removals are compared, with their 0 % run."""
    bases = [row.base for row in rows if row.base and not row.setting.removes]
    return ", ".join(dict.fromkeys(loss_texts(bases, among=[row.setting for row in rows])))
