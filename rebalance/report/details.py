"""Records -> the tables that are folded: classes, cost, single runs, other ways to count the same detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rebalance.experiments.record import METRICS, SPLITS, Record
from rebalance.report.evidence import stat
from rebalance.report.summary import EVALUATION, Group, Row, Setting, varying
from rebalance.report.table import Column, Table, column, marked, mean, mean_text, points, points_of, small_points
from rebalance.report.tables import AXIS_TITLES, COCO, VOC, evaluation_note, flags, more_columns, names_of
from rebalance.report.words import say
from rebalance.settings import value_text


def class_table(series: Group) -> Table | None:
    """Return mAP50 by class along a series, mean over seeds, on the split it is judged by; None without classes."""
    split = series.splits[-1]
    rows = [own[split] for own in series.rows.values() if split in own]
    names = dict.fromkeys(name for row in rows for r in row.records for name in r.per_class.get(split, {}))
    if not names:
        return None
    body = []
    for name in names:
        means = [mean(r.per_class.get(split, {}).get(name, {}).get("mAP50") for r in row.records) for row in rows]
        body.append(marked(name, means, ("" if one is None else points_of(one) for one in means)).cells)
    heads = [name for name, own in zip(names_of(series).values(), series.rows.values(), strict=True) if split in own]
    columns = [column("class", names, left=True), *map(Column, heads, zip(*body, strict=True))]
    title = f"{AXIS_TITLES[series.axis]}: mAP50 by class, {split}"
    return Table(title, tuple(columns), ("Mean over seeds.", *evaluation_note(rows)))


def host_table(rows: Sequence[Row], split: str) -> Table | None:
    """Return what the same detectors reach at the host's own evaluation; None where no record says it."""
    rows = [row for row in rows if row.split == split and any(split in r.host_metrics for r in row.records)]
    if not rows:
        return None
    columns = flags(varying(row.setting for row in rows) or ["model"], [row.setting for row in rows])
    for metric in METRICS:
        found = [[r.host_metrics[split][metric] for r in row.records if split in r.host_metrics] for row in rows]
        columns += [
            column(metric, (points(row.stats[metric]) for row in rows)),
            column(f"{metric}, host's", (points(stat(values)) for values in found)),
        ]
    own = ", ".join(f"{name} {value_text(value)}" for name, value in EVALUATION.items())
    return Table(
        f"At the host's own evaluation, {split}",
        tuple(columns),
        (f"Host's: the same detectors at {own}, Ultralytics' defaults. Points (0 to 100).", *evaluation_note(rows)),
    )


def precision_table(rows: Sequence[Row], split: str) -> Table | None:
    """Return COCO's and VOC's own average precision; None where no record has them."""
    rows = [row for row in rows if row.split == split]
    columns = more_columns(rows, (*COCO, *VOC))
    if not columns:
        return None
    settings = [row.setting for row in rows]
    named = flags(varying(settings) or ["model"], settings)
    told = "COCO: 101 recalls, by faster-coco-eval; VOC: 11 recalls, as VOC 2007. Points (0 to 100)."
    return Table(f"As COCO and VOC count, {split}", (*named, *columns), (told, *evaluation_note(rows)))


def diagnosis_table(runs: Mapping[Setting, Sequence[Record]]) -> Table | None:
    """Return what the loss of each setting did to withheld objects in its last epoch; None where none was measured."""
    runs = {setting: own for setting, records in runs.items() if (own := [r for r in records if r.diagnostics])}
    if not runs:
        return None
    last = [[{name: [*by.values()][-1] for name, by in r.diagnostics.items()} for r in own] for own in runs.values()]
    names = dict.fromkeys(name for own in last for found in own for name in found if not name.endswith("candidates"))
    columns = flags(varying(runs) or ["model"], list(runs))
    for name in names:
        stats = ([found[name] for found in own if name in found] for own in last)
        columns.append(column(_diagnosed(name), small_points([stat(values) if values else None for values in stats])))
    return Table("What the loss does to withheld objects", tuple(columns), (say("diagnosed"),))


def _diagnosed(name: str) -> str:
    """What a column of the diagnosis is called, beside those of flags: 'loss at withheld', 'rpn score at withheld'."""
    stage, _, rest = name.partition("_") if name.startswith(("rpn_", "roi_")) else ("", "", name)
    words = {
        "loss": "loss at withheld", "gradient": "push at withheld", "score": "score at withheld",
        "background": "score elsewhere", "rate": "of negatives",
    }  # fmt: skip
    return f"{stage} {words.get(rest, rest.replace('_', ' '))}".lstrip()


def cost_table(runs: Mapping[Setting, Sequence[Record]]) -> Table:
    """Return what each setting cost to train, and how fast it detects where that was timed: means over its runs."""
    timings = (("train s", "train_seconds", 0), ("images/s", "images_per_second", 1), ("eval s", "eval_seconds", 1))
    columns = flags(varying(runs) or ["model"], list(runs))
    for name, key, digits in timings:
        columns.append(column(name, (mean_text([r.timings.get(key) for r in own], digits) for own in runs.values())))
    columns.append(column("peak MB", (mean_text([r.peak_memory_mb for r in own], 0) for own in runs.values())))
    speeds = column("FPS", (mean_text([r.timings.get("fps") for r in own], 1) for own in runs.values()))
    timed = not speeds.empty
    notes = ["FPS: images a second of model and NMS, one at a time."] * timed
    return Table("Cost, mean of a run", (*columns, *[speeds] * timed), tuple(notes))


def runs_table(records: Sequence[Record]) -> Table:
    """Return every finished run by itself."""
    columns = [column("run", (record.run for record in records), left=True)]
    for split in (s for s in SPLITS if any(s in r.metrics for r in records)):
        for metric in METRICS:
            texts = (points_of(r.metrics[split][metric]) if split in r.metrics else "" for r in records)
            columns.append(column(f"{split} {metric}", texts))
    columns.append(column("train s", (mean_text([r.timings.get("train_seconds")], 0) for r in records)))
    return Table("Every run", tuple(columns), ("Points (0 to 100).",))
