"""What a report says, in order; the templates only lay it out: as Markdown with links to plots/, as one HTML file."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from rebalance.experiments.record import SPLITS, Record, Sweep
from rebalance.report.figures import Picture
from rebalance.report.papers import RATED, TITLES
from rebalance.report.summary import Results, as_list, describe, settings_of, varying
from rebalance.report.tables import (
    Table,
    class_table,
    cost_table,
    result_tables,
    runs_table,
    settings_table,
    span,
    study_tables,
)
from rebalance.settings import value_text


class Text(NamedTuple):
    """A paragraph."""

    text: str
    kind: str = "text"


class Code(NamedTuple):
    """Lines to copy, or a log."""

    text: str
    kind: str = "code"


class Facts(NamedTuple):
    """Names and values, e.g. what ran."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


class Section(NamedTuple):
    """A heading and what stands below it; a section in another one is closed until it is opened."""

    title: str
    blocks: Sequence[Any]  # Block; a type checker takes no tuple that names itself
    kind: str = "fold"


Block = Text | Code | Facts | Section | Table | Picture


class Page(NamedTuple):
    """A whole report.

    Attributes:
        title: of the page.
        lead: one line on what ran.
        verdicts: (table, sentence), one for each table.
        sections: the rest, in order.
    """

    title: str
    lead: str
    verdicts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render(page: Page, template: str, plots: Path) -> str:
    """Return the page laid out.

    Args:
        page: the content.
        template: report.html, which has the pictures inside, no script and no link to anywhere, so that it survives a
            mail; or report.md, GitHub's Markdown with relative links to plots/.
        plots: folder of its pictures.
    """
    layouts = jinja2.Environment(
        loader=jinja2.PackageLoader("rebalance.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    layouts.filters |= {
        "base64": lambda picture: b64encode((plots / picture.file).read_bytes()).decode("ascii"),
        "md": lambda text: re.sub(r"([_*|])", r"\\\1", escape(text, quote=False)),
        "minus": lambda text: re.sub(r"^-(?=\d)", "\u2212", text),  # a true minus is as wide as the plus
    }
    return layouts.get_template(template).render(page=page).rstrip() + "\n"


def compose(found: Results, pictures: Sequence[Picture], notes: Sequence[str]) -> Page:
    """Return the report of a sweep.

    Args:
        found: what its records come to.
        pictures: the plots that were made.
        notes: why others were not.
    """
    sweep = found.sweep
    tables, sentences = result_tables(found)
    verdicts = [(table.title, text) for table, text in zip(tables, sentences, strict=True)]
    tables = study_tables(found) or tables
    shown = {place: [p for p in pictures if p.place == place] for place in ("above", "below", "samples", "training")}
    every = [settings_table(found.rows, s) for s in reversed(SPLITS) if any(row.split == s for row in found.rows)]
    results: list[Block] = [*map(Text, _study_text(sweep)), *shown["above"], *tables]
    if any(change.half is not None for row in found.rows for change in row.change.values()):
        results.append(Text("An interval is of one comparison; it is not widened for looking at several."))
    results += shown["below"]
    if tables:
        classes = [table for one in found.series if (table := class_table(one))]
        results += [Section("All settings and metrics", every)] if every else []
        results += [Section("By class", classes)] if classes else []
    else:
        results += every
    sections = [
        Section("Results", results),
        Section("Sample detections", shown["samples"]),
        Section("Training", shown["training"]),
        Section("What ran", _what_ran(found)),
        Section("Not in the tables", _left_out(sweep, notes)),
        Section("Run it again", _again(sweep)),
    ]
    models = _distinct(r.host.get("model") for r in sweep.records)
    title = ": ".join(filter(None, [sweep.folder.resolve().name, models]))
    return Page(title, _lead(sweep), verdicts, [section for section in sections if section.blocks])


def _study_text(sweep: Sweep) -> list[str]:
    if not sweep.study:
        return []
    title, compared, note = (str(sweep.study.get(key) or "") for key in ("title", "compared", "note"))
    paper = TITLES.get(title.partition(",")[0], "")
    return [f"{title} ({paper}): {compared}.", *[f"Differs from the paper: {note}"] * bool(note)]


def state(sweep: Sweep) -> str:
    """Return how far the sweep is: '27 runs: 25 finished, 1 failed, 1 missing'."""
    total = len(sweep.records) + len(sweep.missing) + len(sweep.warnings)
    counts = {"failed": sweep.failed, "missing": sweep.missing, "unreadable": sweep.warnings}
    parts = [f"{len(sweep.finished)} finished", *(f"{len(what)} {name}" for name, what in counts.items() if what)]
    return f"{total} run{'' if total == 1 else 's'}: {', '.join(parts)}"


def shown_folder(folder: Path) -> str:
    """The sweep folder as the user types it: from 'runs' on where it lies below one, else its name."""
    parts = folder.resolve().parts
    start = len(parts) - 1 - parts[::-1].index("runs") if "runs" in parts else len(parts) - 1
    return "/".join(parts[start:])


def command(sweep: Sweep) -> str:
    """Return the command that makes the sweep again, '' where it left no sweep.json."""
    name, asked = f"name={sweep.folder.resolve().name}", sweep.asked
    if sweep.study:
        given = _mapping(sweep.study.get("given"))
        words = ["rebalance", "paper", str(sweep.study.get("key", "")), name, *(f"{k}={v}" for k, v in given.items())]
        return shlex.join(words)
    if not asked:
        return ""
    protocols = as_list(asked.get("protocol", "normal"))
    idle = {
        "rate": not any(protocol in RATED for protocol in protocols),
        "label_seed": protocols == ["normal"] or not asked.get("label_seed"),
        "protocol": protocols == ["normal"],
        "series": not asked.get("series"),
    }
    given = {key: ",".join(map(value_text, as_list(value))) for key, value in asked.items() if not idle.get(key)}
    return shlex.join(["rebalance", "sweep", name, *(f"{key}={text}" for key, text in given.items())])


def _lead(sweep: Sweep) -> str:
    data = _distinct(_data_name(sweep, r) for r in sweep.records)
    seeds = sorted({r.seed for r in sweep.records})
    told = [state(sweep), f"data {data}" if data else ""]
    told.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "")
    return "; ".join(filter(None, told))


def _data_name(sweep: Sweep, record: Record) -> str:
    """The data as the user named it, where there was one; the generated set has a longer path."""
    asked = as_list(sweep.asked.get("data"))
    return str(asked[0]) if len(asked) == 1 else str(record.host.get("data", ""))


def _what_ran(found: Results) -> list[Block]:
    sweep = found.sweep
    records = sweep.finished or sweep.records
    settings = settings_of(records)
    flags = varying(settings)
    texts: dict[str, dict[str, None]] = {}  # setting -> the lines in which its runs said which loss they ran
    for setting, record in zip(settings, records, strict=True):
        if text := str(record.loss_ran.get("text") or ""):
            texts.setdefault(describe(setting, flags), {})[text] = None
    losses = [(name, " / ".join(told)) for name, told in texts.items()]
    hidden = {"model", "data", *flags}
    common = records[0].host.items() if records else ()
    n = span(len(row.records) for row in found.rows) if found.rows else ""
    facts = {
        "Model": _distinct(r.host.get("model") for r in records),
        "Head": _distinct(r.loss_ran.get("head") or r.train.get("head") for r in records),
        "Data": _distinct(_data_name(sweep, r) for r in records),
        "Training labels": _distinct(_labels(r.labels) for r in records),
        "Loss": losses[0][1] if len(losses) == 1 else "",
        "Element loss": _distinct(r.loss_ran.get("element") for r in records),
        "Divisor": _distinct(r.loss_ran.get("divisor") for r in records),
        "Seeds": ", ".join(map(str, sorted({r.seed for r in records}))),
        "n": n and n + (" (single runs)" if n == "1" else " runs a setting"),
        "Same in all runs": " ".join(f"{k}={value_text(v)}" for k, v in common if k not in hidden),
        "Varied": ", ".join(flags),
        "Machine": _distinct(_machine(r.machine) for r in records),
        "Versions": _distinct(", ".join(f"{k} {v}" for k, v in r.versions.items() if v) for r in records),
        "Commit": _distinct(_commit(r.git) for r in records),
    }
    blocks: list[Block] = [Facts(tuple((name, value) for name, value in facts.items() if value))]
    if len(losses) > 1:
        blocks.append(Section("Which loss ran, by setting", [Facts(tuple(losses))]))
    if sweep.finished:
        blocks += [Section("Cost", [cost_table(found.runs)]), Section("Every run", [runs_table(sweep.finished)])]
    return blocks


def _labels(labels: Mapping[str, Any]) -> str:
    protocol = str(labels.get("protocol", "normal"))
    reached = _mapping(labels.get("manifest")).get("reached")
    told = f", {100 * reached:.1f}% of the boxes withheld" if isinstance(reached, (int, float)) else ""
    if protocol == "normal":
        return f"normal: as the data set has them{told}"
    rate = f" {value_text(labels['rate'])}" if labels.get("rate") else ""
    return f"{protocol}{rate}{told}, label seed {labels.get('seed', 0)}"


def _machine(machine: Mapping[str, Any]) -> str:
    cores = f"{machine.get('threads')} of {machine.get('cores')} cores" if machine.get("cores") else ""
    memory = f"{machine['memory_gb']} GB" if machine.get("memory_gb") else ""
    named = (str(machine.get(key) or "") for key in ("gpu", "cpu"))
    return ", ".join(filter(None, [*named, cores, memory, str(machine.get("platform") or "")]))


def _commit(git: Mapping[str, Any]) -> str:
    commit = str(git.get("commit") or "")[:12]
    return f"{commit} with local changes" if commit and git.get("dirty") else commit


def _left_out(sweep: Sweep, notes: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if sweep.failed:
        blocks.append(Facts(tuple((r.run, f"failed: {r.error or 'no message'}") for r in sweep.failed)))
        blocks += [Section(r.run, [Code("\n".join(r.log_tail))]) for r in sweep.failed if r.log_tail]
    if sweep.missing:
        blocks.append(Text(f"{len(sweep.missing)} of the runs are missing: not begun, or not over."))
        blocks.append(Section("Missing runs", [Code("\n".join(sweep.missing))]))
    return [*blocks, *map(Text, (*sweep.warnings, *notes))]


def _again(sweep: Sweep) -> list[Block]:
    words = ["rebalance", "report", shown_folder(sweep.folder)]
    words += [f"baseline={sweep.baseline}"] if sweep.baseline else []
    lines = [line for line in (command(sweep), shlex.join(words)) if line]
    told = (
        "The first command trains everything again (the same folder: continues it); the second makes this report again."
    )
    return [Text(told if len(lines) > 1 else "Makes this report again from the records:"), Code("\n".join(lines))]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _distinct(values: Iterable[Any]) -> str:
    """The different values, joined; '' for none."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values if v not in (None, "")]
    return "; ".join(dict.fromkeys(texts))
