"""What the tables of a sweep say in one sentence each, and whether the setting can say anything.

The rule of sensitivity: methods for incomplete labels are told apart only where complete labels are worth at least
LEAST over the partial ones, and where the baseline on complete labels reaches at least half of what the detector does
in a long run. Elsewhere a difference is one between badly trained detectors, and there is no verdict.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance.experiments.record import Record, Sweep
from rebalance.report.evidence import stat
from rebalance.report.papers import base_head
from rebalance.report.summary import (
    LABELS,
    PRIMARY,
    Group,
    Results,
    Row,
    Setting,
    is_control,
    withheld_by_nature,
    withholds,
)
from rebalance.report.table import Table, p_words, points, points_of, span
from rebalance.report.tables import (
    difference_table,
    drop_table,
    group_texts,
    loss_table,
    names_of,
    seeds_text,
    study_numbers,
)
from rebalance.report.words import say
from rebalance.settings import value_text

LEAST = 0.05  # of mAP50: what complete labels must be worth
SHARE = 0.5  # of a long run: what the baseline on complete labels must reach
ROUNDING = 1e-9  # 0.35 - 0.3 is five points
LONG = 2  # times as many epochs make a run a long one
NO_FLAGS = {*LABELS, "round", "seeds", "series", "complete", "cells", "name", "jobs", "plan"}
SUGGESTED = 5  # times as many epochs in the command that is offered


@dataclass(frozen=True)
class Command:
    """A sweep of runs that are missing; `kind` is complete or long."""

    kind: str
    flags: tuple[str, ...]  # as typed


@dataclass(frozen=True)
class Judged:
    """The tables of one comparison, and what they say.

    Attributes:
        title: of the comparison.
        levels, differences: its tables; no differences where there is no baseline.
        verdict: one sentence.
        commands: that train the runs for lack of which there is no verdict.
    """

    title: str
    levels: Table
    differences: Table | None
    verdict: str
    commands: tuple[Command, ...]

    @property
    def tables(self) -> list[Table]:
        """Both."""
        return [self.levels, self.differences] if self.differences else [self.levels]


def judged(found: Results) -> list[Judged]:
    """Return the comparisons of removals and of losses in a sweep."""
    beside = study_numbers(found.sweep)
    made = []
    for group, text in zip(found.series, group_texts(found.series), strict=True):
        made.append((group, text, drop_table(group, text)))
    for group, text in zip(found.compared, group_texts(found.compared), strict=True):
        made.append((group, text, loss_table(group, text, beside)))
    every = []
    for group, text, table in made:
        doubts, commands = sensitivity(found, group)
        every.append(Judged(table.title, table, difference_table(group, text), verdict(group, doubts), commands))
    return every


def sensitivity(found: Results, group: Group) -> tuple[tuple[str, ...], tuple[Command, ...]]:
    """Return why a comparison can have no verdict, and the commands of the runs that are missing for one; () for none.

    Only a comparison with a baseline is asked.
    """
    base, split = group.base, group.splits[-1]
    partial = group.rows[base].get(split) if base and base in group.rows else None
    if not base or not partial:
        return (), ()
    data = [records[0] for setting, records in found.known.items() if setting.get("data") == base.get("data")]
    if share := max(map(withheld_by_nature, data)):
        return (say("partial_by_nature", share=f"{100 * share:.0f}"),), ()
    facts = {"name": "the 0 % run" if group.axis else names_of(group)[base], "metric": PRIMARY, "split": split}
    doubts, commands, whole = list[str](), list[Command](), partial.stats[PRIMARY].mean
    if withholds(base):
        row = group.complete.get(split)
        gap = row.change.get(PRIMARY) if row else None
        whole = row.stats[PRIMARY].mean if row and gap else math.inf
        if row is None or gap is None or gap.n < len(partial.records):
            doubts.append(say("no_complete_run", **facts))
            commands.append(_command("complete", found.sweep, partial))
        elif gap.mean < LEAST - ROUNDING:
            shown = {"whole": points_of(whole), "part": points_of(whole - gap.mean), "gap": points(gap, sign=True)}
            doubts.append(say("small_gap", n=gap.n, least=f"{100 * LEAST:g}", **shown, **facts))
    long = _long_run(found, partial)
    if long is None:
        doubts.append(say("no_long_run", times=LONG))
        more = {"epochs": SUGGESTED * epochs_of(partial.records[0]), "seeds": partial.records[0].seed}
        commands.append(_command("long", found.sweep, partial, **more))
    elif whole < SHARE * long[0] - ROUNDING:
        shown = {"whole": points_of(whole), "long": points_of(long[0]), "epochs": str(long[1])}
        doubts.append(say("weak", complete=withholds(base), **shown, **facts))
    return tuple(doubts), tuple(commands)


def epochs_of(record: Record) -> int:
    """The epochs that a run was asked for; those that it has where that is not known."""
    for flags in (record.config.host_args, record.host):
        value = flags.get("epochs")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
    return len(record.epochs)


def _long_run(found: Results, row: Row) -> tuple[float, int] | None:
    """What the detector reaches on complete labels in the best of the long runs, and its epochs; None without one."""
    own = _detector(row.setting)
    reached = []
    for setting, records in found.known.items():
        there = [r for r in records if row.split in r.metrics]
        if not there or withholds(setting) or _detector(setting) != own or withheld_by_nature(there[0]):
            continue
        if epochs_of(there[0]) >= LONG * epochs_of(row.records[0]):
            mean = stat([r.metrics[row.split][PRIMARY] for r in there]).mean
            reached.append((mean, epochs_of(there[0])))
    return max(reached, default=None)


def _detector(setting: Setting) -> tuple[Any, ...]:
    """And what of it is trained, and how it is evaluated: runs that differ in that are never compared."""
    frozen = setting.get("freeze") or None  # 0 freezes nothing, as without it
    return setting.get("model"), setting.get("data"), base_head(setting.values), frozen, setting.get("evaluation")


def _command(kind: str, sweep: Sweep, row: Row, **changed: Any) -> Command:
    """The sweep that trains a row's setting on complete labels: what was asked for and what varied, but for changes."""
    own = {*sweep.asked, *(key for record in sweep.records for key in record.varied)} - NO_FLAGS
    names = [key for key in row.setting.values if key in own and row.setting.owns(key)]
    flags = {key: row.setting.get(key) for key in ("model", "data", *names)} | {"protocol": "normal"}
    flags |= {"seeds": ",".join(str(record.seed) for record in row.records), **changed}
    texts = {key: f"[{','.join(map(value_text, v))}]" if isinstance(v, tuple) else v for key, v in flags.items()}
    return Command(kind, tuple(f"{key}={value_text(v)}" for key, v in texts.items() if v not in (None, "")))


def missing_runs(found: Results, compared: Sequence[Judged]) -> list[str]:
    """Return the commands that train what verdicts lack, and then make the report with it; none where none lacks."""
    commands = list(dict.fromkeys(command for one in compared for command in one.commands))
    count, made, folders = Counter[str](), list[str](), list[str]()
    for command in commands:
        count[command.kind] += 1
        number = f"-{count[command.kind]}" if count[command.kind] > 1 else ""
        folders.append(f"{found.sweep.folder.resolve().name}-{command.kind}{number}")
        made.append(shlex.join(["rebalance", "sweep", f"name={folders[-1]}", *command.flags]))
    again = report_command(found, *(f"runs/benchmark/{name}" for name in folders))
    return [*made, again] if made else []


def report_command(found: Results, *more: str) -> str:
    """Return the command that makes the report again, with `more` folders of runs that it is judged by."""
    sweep, references = found.sweep, [*map(shown_folder, found.references), *more]
    words = ["rebalance", "report", shown_folder(sweep.folder), *[f"baseline={sweep.baseline}"] * bool(sweep.baseline)]
    return shlex.join([*words, *[f"reference={','.join(references)}"] * bool(references)])


def shown_folder(folder: Path) -> str:
    """The sweep folder as the user types it: from 'runs' on where it lies below one, else its name."""
    parts = folder.resolve().parts
    start = len(parts) - 1 - parts[::-1].index("runs") if "runs" in parts else len(parts) - 1
    return "/".join(parts[start:])


def verdict(group: Group, doubts: Sequence[str] = ()) -> str:
    """Return what the tests of a group say, in one sentence about the split that it is judged by.

    `doubts` are reasons for which there can be no verdict.
    """
    split, base, axis, names = group.splits[-1], group.base, group.axis, names_of(group)
    if axis:
        kinds = {s: names[s].partition(" ")[2] for s in names}
        texts = {s: f"{axis}={value_text(s.removal(axis))}" for s in names if s.removes}
        names = {s: f"{texts[s]} {kinds[s]}".rstrip() if s in texts else "0 %" for s in names}
    own = [(s, by_split[split]) for s, by_split in group.rows.items() if s != base and split in by_split]
    rows = {names[s]: row for s, row in own if row.change and row.base == base}
    tested = {name: row for name, row in rows.items() if row.test}
    run = "0 % run" if axis else "run of the baseline"
    if not rows:
        return say("no_baseline", run=run, split=split)
    largest = max(rows, key=lambda name: abs(rows[name].change[PRIMARY].mean))
    if not tested:
        single = say("single", name=largest, change=points(rows[largest].change[PRIMARY], sign=True), split=split)
        return say("no_verdict", doubts=[single, *doubts])
    if doubts:
        return say("no_verdict", doubts=doubts)
    clear = {name: row for name, row in tested.items() if row.test and row.test.holds}
    rest = {name: row for name, row in tested.items() if name not in clear}
    facts = {"base": names[base] if base else "", "split": split, "metric": PRIMARY, "rest": len(rest)}
    facts |= {"count": max(row.test.count for row in tested.values() if row.test)}
    told = [_difference(name, row, group, facts) for name, row in clear.items()]
    seeds = span(row.change[PRIMARY].n for row in tested.values())
    return say("verdict", told=told, nearest=_nearest(rest), n=seeds, **facts)


def _difference(name: str, row: Row, group: Group, facts: Mapping[str, Any]) -> str:
    """A difference that holds, with what the control says to a gain of a removal."""
    assert row.test
    change = row.change[PRIMARY]
    shown = {"change": points(change, sign=True), "half": points_of(row.test.half), "p": p_words(row.test.corrected)}
    told = say("difference", name=name, better=change.mean > 0, n=change.n, **shown, **facts)
    if change.mean > 0 and row.setting.removes and not is_control(row.setting):
        told += _of_control(row, group, facts["split"])
    return told


def _of_control(row: Row, group: Group, split: str) -> str:
    over, test = row.control.get(PRIMARY), row.control_test
    control = next((own.get(split) for s, own in group.rows.items() if _is_control_of(s, row.setting)), None)
    beats = bool(test and test.holds and over and over.mean > 0)
    gains = bool(control and control.test and control.test.holds and control.change[PRIMARY].mean > 0)
    own = points(control.change.get(PRIMARY), sign=True) if control else ""
    p = p_words(test.corrected) if test else ""
    return ", " + say(
        "control", known=over is not None, beats=beats, gains=gains, own=own, over=points(over, sign=True), p=p
    )


def _is_control_of(one: Setting, other: Setting) -> bool:
    return is_control(one) and one.change(["drop_select"]) == other.change(["drop_select"])


def _nearest(rest: Mapping[str, Row]) -> str:
    """The difference with the least p of those that do not hold, and the seeds that would show it; '' for none."""
    tests = {name: row.test for name, row in rest.items() if row.test}
    if not tests:
        return ""
    name = min(tests, key=lambda name: tests[name].p)
    change, test = rest[name].change[PRIMARY], tests[name]
    shown = {
        "change": points(change, sign=True),
        "p": p_words(test.corrected),
        "seeds": seeds_text(test).replace(">", "more than"),
    }
    return say("nearest", name=name, n=change.n, more=(test.seeds or 0) - change.n, **shown)
