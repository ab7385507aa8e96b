"""What a report says, in order; html.py and markdown.py only lay it out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance.report.papers import TITLES
from rebalance.report.plots import Picture
from rebalance.report.records import SPLITS, Record, Sweep
from rebalance.report.summary import Row, comparisons, describe, series, setting_of, varying
from rebalance.report.tables import (
    LABELS,
    Table,
    class_table,
    cost_table,
    drop_table,
    group_names,
    group_text,
    loss_table,
    loss_verdict,
    rate_table,
    runs_table,
    settings_table,
    study_numbers,
    study_table,
    verdict,
)
from rebalance.settings import value_text


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, e.g. what ran."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Code:
    """Lines to copy, or a log."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Detail that is closed until it is opened."""

    title: str
    blocks: tuple[Block, ...]


Block = Text | Facts | Code | Fold | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: of the page.
        lead: one line on what ran.
        verdicts: (table, sentence), one for each table.
        sections: the rest, in order.
    """

    title: str
    lead: str
    verdicts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def compose(sweep: Sweep, rows: Sequence[Row], pictures: Sequence[Picture], notes: Sequence[str]) -> Page:
    """Return the report of a sweep.

    Args:
        sweep: the records.
        rows: their summary.
        pictures: the plots that were made.
        notes: why others were not.
    """
    found = series(rows)
    tables, sentences = result_tables(sweep, rows)
    verdicts = tuple((table.title, text) for table, text in zip(tables, sentences, strict=True))
    tables = study_tables(sweep, rows) or tables
    by_file = {p.file: p for p in pictures}

    def shown(*files: str) -> list[Block]:
        return [by_file[file] for file in files if file in by_file]

    splits = [s for s in SPLITS if any(row.split == s for row in rows)]
    results: list[Block] = [Text(text) for text in _study_text(sweep)]
    results += [*shown("rates.png", "gamma.png", "iou.png", "change.png"), *tables]
    if any(change.half is not None for row in rows for change in row.change.values()):
        results.append(Text("An interval is of one comparison; it is not widened for looking at several."))
    results += shown("removal.png", "settings.png")
    every = [settings_table(rows, split) for split in reversed(splits)]
    if tables:
        classes = [table for one in found if (table := class_table(one))]
        results += [Fold("All settings and metrics", tuple(every))] if every else []
        results += [Fold("By class", tuple(classes))] if classes else []
    else:
        results += every
    details: list[Block] = [*shown("samples.png", "steps.png")]
    curves: list[Block] = [*shown("training.png", "objectness.png", "drops.png")]
    sections = [
        Section("Results", tuple(results)) if results else None,
        Section("Sample detections", tuple(details)) if details else None,
        Section("Training", tuple(curves)) if curves else None,
        Section("What ran", tuple(_what_ran(sweep, rows))),
        Section("Not in the tables", tuple(_left_out(sweep, notes))) if _left_out(sweep, notes) else None,
        Section("Run it again", tuple(_again(sweep))),
    ]
    return Page(_title(sweep), _lead(sweep), verdicts, tuple(s for s in sections if s))


def result_tables(sweep: Sweep, rows: Sequence[Row]) -> tuple[list[Table], list[str]]:
    """Return the tables of removal and of losses in a sweep, and the verdict on each."""
    found, compared = series(rows), comparisons(rows)
    names = group_names(found)
    tables = [drop_table(one, group_text(one.setting, names)) for one in found]
    apart = [name for name in varying(one.key for one in compared) if name not in LABELS]
    published = study_numbers(sweep)
    tables += [loss_table(one, group_text(one.key, apart), published) for one in compared]
    return tables, [*map(verdict, found), *map(loss_verdict, compared)]


def study_tables(sweep: Sweep, rows: Sequence[Row]) -> list[Table]:
    """Return the tables of a paper's table or figure in the paper's layout, none where the sweep is neither."""
    if not sweep.study or series(rows):
        return []
    title = str(sweep.study.get("title", ""))
    made = [rate_table(rows, f"{title}: missing labels", study_numbers(sweep))]
    made.append(study_table(rows, title, study_numbers(sweep)))
    return [table for table in made if table]


def _study_text(sweep: Sweep) -> list[str]:
    if not sweep.study:
        return []
    paper = TITLES.get(str(sweep.study["title"]).partition(",")[0], "")
    told = f"{sweep.study['title']} ({paper}): {sweep.study['compared']}."
    return [told, *([f"Differs from the paper: {sweep.study['note']}"] if sweep.study.get("note") else [])]


def state(sweep: Sweep) -> str:
    """Return how far the sweep is: '27 runs: 25 finished, 1 failed, 1 missing'."""
    total = len(sweep.records) + len(sweep.missing) + len(sweep.warnings)
    parts = [f"{len(sweep.finished)} finished"]
    counts = {"failed": sweep.failed, "missing": sweep.missing, "unreadable": sweep.warnings}
    parts += [f"{len(what)} {name}" for name, what in counts.items() if what]
    return f"{total} run{'' if total == 1 else 's'}: {', '.join(parts)}"


def shown_folder(folder: Path) -> str:
    """The sweep folder as the user types it: from 'runs' on where it lies below one, else its name."""
    parts = folder.resolve().parts
    start = len(parts) - 1 - parts[::-1].index("runs") if "runs" in parts else len(parts) - 1
    return "/".join(parts[start:])


def command(sweep: Sweep) -> str:
    """Return the command that makes the sweep again, '' where it left no sweep.json."""
    if sweep.study:
        given = (f"{key}={text}" for key, text in sweep.study.get("given", {}).items())
        words = ["rebalance", "paper", str(sweep.study["key"]), f"name={sweep.folder.resolve().name}", *given]
        return " ".join(map(shlex.quote, words))
    asked = dict(sweep.asked)
    if not asked:
        return ""
    protocols = asked.get("protocol", ["normal"])
    idle = {
        "rate": not {"percent", "per_class"} & set(protocols),
        "label_seed": protocols == ["normal"] or not asked.get("label_seed"),
        "protocol": protocols == ["normal"],
        "series": not asked.get("series"),
    }
    words = ["rebalance", "sweep", f"name={sweep.folder.resolve().name}"]
    for key, value in asked.items():
        if not idle.get(key):
            values = value if isinstance(value, list) else [value]
            words.append(shlex.quote(f"{key}={','.join(value_text(v) for v in values)}"))
    return " ".join(words)


def _title(sweep: Sweep) -> str:
    models = _distinct(r.host.get("model") for r in sweep.records)
    return f"{sweep.folder.resolve().name}: {models}" if models else sweep.folder.resolve().name


def _lead(sweep: Sweep) -> str:
    data = _distinct(_data_name(sweep, r) for r in sweep.records)
    seeds = sorted({r.seed for r in sweep.records})
    told = [state(sweep), f"data {data}" if data else ""]
    told.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "")
    return "; ".join(part for part in told if part)


def _data_name(sweep: Sweep, record: Record) -> str:
    """The data as the user named it, where there was one; the generated set has a longer path."""
    asked = sweep.asked.get("data", [])
    return str(asked[0]) if len(asked) == 1 else str(record.host.get("data", ""))


def _what_ran(sweep: Sweep, rows: Sequence[Row]) -> list[Block]:
    records = sweep.finished or sweep.records
    flags = varying(setting_of(r) for r in records)
    losses = _by_text(records, flags)
    common = _common(records, flags)
    counts = sorted({len(row.records) for row in rows})
    facts = [
        ("Model", _distinct(r.host.get("model") for r in records)),
        ("Head", _distinct(r.loss_ran.get("head") or r.train.get("head") for r in records)),
        ("Data", _distinct(_data_name(sweep, r) for r in records)),
        ("Training labels", _distinct(_labels(r.labels) for r in records)),
        ("Loss", losses[0][1] if len(losses) == 1 else ""),
        ("Element loss", _distinct(r.loss_ran.get("element") for r in records)),
        ("Divisor", _distinct(r.loss_ran.get("divisor") for r in records)),
        ("Seeds", ", ".join(str(s) for s in sorted({r.seed for r in records}))),
        ("n", "" if not counts else _range(counts) + (" (single runs)" if counts == [1] else " runs a setting")),
        ("Same in all runs", common),
        ("Varied", ", ".join(flags)),
        ("Machine", _distinct(_machine(r.machine) for r in records)),
        ("Versions", _distinct(", ".join(f"{k} {v}" for k, v in r.versions.items() if v) for r in records)),
        ("Commit", _distinct(_commit(r.git) for r in records)),
    ]
    blocks: list[Block] = [Facts(tuple((name, value) for name, value in facts if value))]
    if len(losses) > 1:
        blocks.append(Fold("Which loss ran, by setting", (Facts(tuple(losses)),)))
    if sweep.finished:
        blocks.append(Fold("Cost", (cost_table(rows),)))
        blocks.append(Fold("Every run", (runs_table(sweep.finished),)))
    return blocks


def _by_text(records: Sequence[Record], flags: Sequence[str]) -> list[tuple[str, str]]:
    """Setting -> the line in which its run said which loss it ran."""
    told: dict[str, list[str]] = {}
    for record in records:
        text = str(record.loss_ran.get("text") or "")
        if text:
            told.setdefault(describe(setting_of(record), flags), []).append(text)
    return [(name, " / ".join(dict.fromkeys(texts))) for name, texts in told.items()]


def _common(records: Sequence[Record], flags: Sequence[str]) -> str:
    """The host's flags that all runs share, as typed."""
    if not records:
        return ""
    hidden = {"model", "data", *flags}
    return " ".join(f"{k}={value_text(v)}" for k, v in records[0].host.items() if k not in hidden)


def _labels(labels: Mapping[str, Any]) -> str:
    protocol = str(labels.get("protocol", "normal"))
    reached = (labels.get("manifest") or {}).get("reached")
    told = f", {100 * reached:.1f}% of the boxes withheld" if isinstance(reached, (int, float)) else ""
    if protocol == "normal":
        return f"normal: as the data set has them{told}"
    rate = f" {value_text(labels['rate'])}" if labels.get("rate") else ""
    return f"{protocol}{rate}{told}, label seed {labels.get('seed', 0)}"


def _machine(machine: Mapping[str, Any]) -> str:
    if not machine:
        return ""
    parts = [str(machine.get("gpu") or ""), str(machine.get("cpu") or "")]
    parts.append(f"{machine.get('threads')} of {machine.get('cores')} cores" if machine.get("cores") else "")
    parts.append(f"{machine['memory_gb']} GB" if machine.get("memory_gb") else "")
    return ", ".join(p for p in (*parts, str(machine.get("platform") or "")) if p)


def _commit(git: Mapping[str, Any]) -> str:
    if not git.get("commit"):
        return ""
    return f"{str(git['commit'])[:12]}{' with local changes' if git.get('dirty') else ''}"


def _left_out(sweep: Sweep, notes: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if sweep.failed:
        blocks.append(Facts(tuple((r.run, f"failed: {r.error or 'no message'}") for r in sweep.failed)))
        logs = tuple(Fold(r.run, (Code("\n".join(r.log_tail)),)) for r in sweep.failed if r.log_tail)
        blocks += logs
    if sweep.missing:
        blocks.append(Text(f"{len(sweep.missing)} of the runs are missing: not begun, or not over."))
        blocks.append(Fold("Missing runs", (Code("\n".join(sweep.missing)),)))
    blocks += [Text(warning) for warning in sweep.warnings]
    blocks += [Text(note) for note in notes]
    return blocks


def _again(sweep: Sweep) -> list[Block]:
    words = ["rebalance", "report", shown_folder(sweep.folder)]
    words += [f"baseline={sweep.baseline}"] if sweep.baseline else []
    lines = [line for line in (command(sweep), shlex.join(words)) if line]
    told = (
        "The first command trains everything again (the same folder: continues it); the second makes this report again."
    )
    return [Text(told if len(lines) > 1 else "Makes this report again from the records:"), Code("\n".join(lines))]


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _distinct(values: Iterable[Any]) -> str:
    """The different values, joined; '' for none."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values if v not in (None, "")]
    return "; ".join(dict.fromkeys(texts))
