"""What a report says, in order; the templates only lay it out: as Markdown with links to plots/, as one HTML file."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2

from rebalance.experiments.record import NOISE, SPLITS, Record, Sweep
from rebalance.report import details, tables
from rebalance.report.figures import Picture
from rebalance.report.papers import RATED, TITLES
from rebalance.report.rounds import rounds_classes, rounds_tables
from rebalance.report.summary import Results, as_list, describe, evaluation_text, is_drawn, settings_of, varying
from rebalance.report.table import span
from rebalance.report.verdict import judged, missing_runs, report_command
from rebalance.report.words import template
from rebalance.settings import value_text

# report.md is GitHub's Markdown with relative links to plots/; report.html has the pictures inside, no script and no
# link to anywhere, so that it survives a mail
PAGES = ("report.md", "report.html")


def pages(found: Results, pictures: Sequence[Picture], notes: Sequence[str], plots: Path) -> dict[str, str]:
    """Return report.md and report.html, with the pictures in `plots`; `notes` tell why others were not made."""
    sweep, compared, studied = found.sweep, judged(found), tables.study_tables(found)
    splits = [split for split in SPLITS[::-1] if any(split == row.split for row in found.rows)]
    shown = [[one.differences] * bool(one.differences) if studied else one.tables for one in compared]
    models = _distinct(r.host.get("model") for r in sweep.records)
    facts, losses = _what_ran(found)
    content = {
        "title": ": ".join(filter(None, [sweep.folder.resolve().name, models])),
        "lead": _lead(sweep),
        "verdicts": [(one.title, one.verdict) for one in compared],
        "missing": missing_runs(found, compared),
        "sweep": sweep,
        "paper": TITLES.get(str(sweep.study.get("title") or "").partition(",")[0], ""),
        "pictures": pictures,
        "notes": notes,
        "tables": [*rounds_tables(found), *studied, *(table for own in shown for table in own)],
        "every": [tables.settings_table(found.rows, split) for split in splits],
        "others": [
            table
            for split in splits
            for make in (details.host_table, details.precision_table)
            if (table := make(found.rows, split))
        ],
        "diagnosed": [table] if (table := details.diagnosis_table(found.runs)) else [],
        "classes": [
            *rounds_classes(found),
            *(table for one in found.series if (table := details.class_table(one))),
        ],
        "facts": facts,
        "losses": losses,
        "failures": [(r.run, f"failed: {r.error or 'no message'}") for r in sweep.failed],
        "costs": [details.cost_table(found.runs)] if sweep.finished else [],
        "runs": [details.runs_table(sweep.finished)] if sweep.finished else [],
        "again": command(sweep),
        "report": report_command(found),
    }
    return {name: layout(name, plots).render(content).rstrip() + "\n" for name in PAGES}


def layout(name: str, plots: Path) -> jinja2.Template:
    """Return one of PAGES, or the blocks of one, whose pictures are in `plots`."""
    return template(
        name,
        base64=lambda picture: b64encode((plots / picture.file).read_bytes()).decode("ascii"),
        md=lambda text: re.sub(r"([_*|])", r"\\\1", escape(text, quote=False)),
        minus=lambda text: re.sub(r"^-(?=\d)", "\u2212", text),  # a true minus is as wide as the plus
    )


def state(sweep: Sweep) -> str:
    """Return how far the sweep is: '27 runs: 25 finished, 1 failed, 1 missing'."""
    total = len(sweep.records) + len(sweep.missing) + len(sweep.warnings)
    counts = {"failed": sweep.failed, "missing": sweep.missing, "unreadable": sweep.warnings}
    parts = [f"{len(sweep.finished)} finished", *(f"{len(what)} {name}" for name, what in counts.items() if what)]
    return f"{total} run{'' if total == 1 else 's'}: {', '.join(parts)}"


def command(sweep: Sweep) -> str:
    """Return the command that makes the sweep again, '' where it left no sweep.json."""
    name, asked = f"name={sweep.folder.resolve().name}", sweep.asked
    if sweep.study:
        given = sweep.study.get("given") or {}
        words = ["rebalance", "paper", str(sweep.study.get("key", "")), name, *(f"{k}={v}" for k, v in given.items())]
        return shlex.join(words)
    if sweep.written:
        told = shlex.join(["rebalance", "sweep", f"plan={sweep.written.get('file')}", name])
        return f"{told} {sweep.written.get('given') or ''}".rstrip()  # which was written as it is typed
    if not asked:
        return ""
    protocols = as_list(asked.get("protocol", "normal"))
    idle = {
        "rate": not any(protocol in RATED for protocol in protocols),
        "label_seed": protocols == ["normal"] and not any(any(as_list(asked.get(kind))) for kind in NOISE),
        "protocol": protocols == ["normal"],
        "series": not asked.get("series"),
    }
    given = {key: ",".join(map(value_text, as_list(value))) for key, value in asked.items() if not idle.get(key)}
    word = next((word for key, word in (("rounds", "rounds"), ("prune", "tune")) if key in asked), "sweep")
    return shlex.join(["rebalance", word, name, *(f"{key}={text}" for key, text in given.items())])


def _lead(sweep: Sweep) -> str:
    data = _distinct(_data_name(sweep, r) for r in sweep.records)
    seeds = sorted({r.seed for r in sweep.records})
    told = [state(sweep), data and f"data {data}"]
    told += [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
    return "; ".join(filter(None, told))


def _data_name(sweep: Sweep, record: Record) -> str:
    """The data as the user named it, where there was one; the generated set has a longer path."""
    asked = as_list(sweep.asked.get("data"))
    return str(asked[0]) if len(asked) == 1 else str(record.host.get("data", ""))


def _what_ran(found: Results) -> tuple[dict[str, str], dict[str, str]]:
    """Names and values; and setting -> the loss that ran, where runs say several."""
    sweep = found.sweep
    records = sweep.finished or sweep.records
    settings = settings_of(records)
    flags = varying(settings)
    texts: dict[str, dict[str, None]] = {}  # setting -> the lines in which its runs said which loss they ran
    for setting, record in zip(settings, records, strict=True):
        if text := str(record.loss_ran.get("text") or ""):
            texts.setdefault(describe(setting, flags), {})[text] = None
    losses = {name: " / ".join(told) for name, told in texts.items()}
    hidden = {"model", "data", *flags}
    common = records[0].host.items() if records else ()
    n = span(len(row.records) for row in found.rows)
    facts = {
        "Model": _distinct(r.host.get("model") for r in records),
        "Head": _distinct(r.loss_ran.get("head") or r.train.get("head") for r in records),
        "Data": _distinct(_data_name(sweep, r) for r in records),
        "Training labels": _labels(records),
        "Loss": "".join(losses.values()) if len(losses) == 1 else "",
        "Element loss": _distinct(r.loss_ran.get("element") for r in records),
        "Divisor": _distinct(r.loss_ran.get("divisor") for r in records),
        "Evaluation": _distinct(evaluation_text(r) for r in records),
        "Seeds": ", ".join(map(str, sorted({r.seed for r in records}))),
        "n": n and n + (" (single runs)" if n == "1" else " runs a setting"),
        "Same in all runs": " ".join(f"{k}={value_text(v)}" for k, v in common if k not in hidden),
        "Varied": ", ".join(flags),
        "Machine": _distinct(_machine(r.machine) for r in records),
        "Versions": _distinct(", ".join(f"{k} {v}" for k, v in r.versions.items() if v) for r in records),
        "Commit": _distinct(_commit(r.git) for r in records),
    }
    return {name: value for name, value in facts.items() if value}, losses if len(losses) > 1 else {}


def _labels(records: Iterable[Record]) -> str:
    """The training labels, each with the label seeds that drew them."""
    seeds: dict[str, set[int]] = {}
    for labels in (record.labels for record in records):
        protocol = str(labels.get("protocol", "normal"))
        manifest = labels.get("manifest") or {}
        reached, only = manifest.get("reached"), manifest.get("only")
        told = f", {100 * reached:.1f}% of the boxes withheld" if isinstance(reached, (int, float)) else ""
        told += f", all of class {', '.join(map(str, only))}" if isinstance(only, list) else ""
        rate = f" {value_text(labels['rate'])}" if labels.get("rate") else ""
        noise = "".join(f", {name} {value_text(labels[name])}" for name in NOISE if labels.get(name))
        told += f", round {labels['round']}" if labels.get("round") else ""
        drawn = seeds.setdefault(
            f"{protocol}{rate if protocol != 'normal' else '' if noise else ': as the data set has them'}{noise}{told}",
            set(),
        )
        if is_drawn(labels):
            drawn.add(labels.get("seed") or 0)
    return "; ".join(
        text + (f", label seed{'s' * (len(own) > 1)} {', '.join(map(str, sorted(own)))}" if own else "")
        for text, own in seeds.items()
    )


def _machine(machine: Mapping[str, Any]) -> str:
    cores = f"{machine.get('threads')} of {machine.get('cores')} cores" if machine.get("cores") else ""
    memory = f"{machine['memory_gb']} GB" if machine.get("memory_gb") else ""
    named = (str(machine.get(key) or "") for key in ("gpu", "cpu"))
    return ", ".join(filter(None, [*named, cores, memory, str(machine.get("platform") or "")]))


def _commit(git: Mapping[str, Any]) -> str:
    commit = str(git.get("commit") or "")[:12]
    return f"{commit} with local changes" if commit and git.get("dirty") else commit


def _distinct(values: Iterable[Any]) -> str:
    """The different values, joined; '' for none."""
    texts = [v if isinstance(v, str) else json.dumps(v) for v in values if v not in (None, "")]
    return "; ".join(dict.fromkeys(texts))
