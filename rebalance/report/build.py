"""Sweep folder -> summary.csv, plots/, report.md and report.html. The same records give the same bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rebalance.experiments.record import load
from rebalance.files import beside
from rebalance.report import figures
from rebalance.report.page import pages, state
from rebalance.report.rounds import rounds_tables
from rebalance.report.summary import Results, results, to_csv
from rebalance.report.table import Table, as_text
from rebalance.report.tables import judged_rows, settings_table, study_tables
from rebalance.report.verdict import judged, missing_runs


def report(folder: str | Path, baseline: str = "", references: Sequence[str | Path] = ()) -> Path:
    """Write the report of a sweep, finished or not, and return the path of report.html.

    Everything is made beside its place and then moved, report.html last. Plots for which there are no data any more
    are removed.

    `baseline` is the loss that the others are compared with, with flags where several settings have it ('brl
    brl_t=0.5'); empty: the study's, else the first that was asked for. `references` are folders of other sweeps, whose
    runs on complete labels count where this sweep has none, and so do their long runs.

    Raises:
        RunError: a folder is not a sweep's.
        ConfigError: no run has that loss, or several settings have it.
    """
    folder = Path(folder)
    found = _results(folder, baseline, references)
    with beside(folder / "report") as made:
        (made / "plots").mkdir()
        pictures, notes = figures.draw(found, made / "plots")
        files = {"summary.csv": to_csv(found.rows), **pages(found, pictures, notes, made / "plots")}
        for name, text in files.items():
            (made / name).write_text(text, encoding="utf-8", newline="")
        (folder / "plots").mkdir(exist_ok=True)
        for file in (one.file for one in figures.FIGURES):
            if (made / "plots" / file).exists():
                os.replace(made / "plots" / file, folder / "plots" / file)
            else:
                (folder / "plots" / file).unlink(missing_ok=True)
        for name in files:
            os.replace(made / name, folder / name)
    return folder / "report.html"


def _results(folder: str | Path, baseline: str, references: Sequence[str | Path]) -> Results:
    return results(load(folder, baseline), [load(other) for other in references])


def terminal_table(folder: str | Path, baseline: str = "", references: Sequence[str | Path] = ()) -> str:
    """Return the tables of a sweep for the terminal, each with its verdict, and what is not in them.

    Arguments as for `report`.

    Raises:
        RunError: the folder is not a sweep's.
    """
    found = _results(folder, baseline, references)
    compared, studied, made = judged(found), study_tables(found), rounds_tables(found)
    told: set[str] = set()  # a note stands below the first table that has it

    def text(table: Table) -> str:
        notes = tuple(note for note in table.notes if note not in told)
        told.update(notes)
        return as_text(replace(table, notes=notes))

    parts = list(map(text, [*made, *studied]))
    for one in compared:
        tables = one.tables if not studied else [one.differences] if one.differences else []
        verdict = f"Verdict: {one.verdict}" if tables else f"{one.title}: {one.verdict}"
        parts.append("\n\n".join(map(text, tables)) + "\n" * bool(tables) + verdict)
    if not parts and found.rows:
        parts = [as_text(settings_table(found.rows, judged_rows(found.rows)[0].split))]
    if missing := missing_runs(found, compared):
        parts.append("\n".join(["Missing for a verdict; the last makes this report with them:", *missing]))
    failed = [f"failed: {r.run}: {r.error or 'no message'}" for r in found.sweep.failed]
    return "\n\n".join([*parts, "\n".join([state(found.sweep), *failed, *found.sweep.warnings])])
