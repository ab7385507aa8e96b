"""Sweep folder -> summary.csv, plots/, report.md and report.html. The same records give the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rebalance.experiments.record import load
from rebalance.report import figures
from rebalance.report.page import pages, state
from rebalance.report.summary import results, to_csv
from rebalance.report.tables import as_text, judged_rows, result_tables, settings_table, study_tables


def report(folder: str | Path, baseline: str = "") -> Path:
    """Write the report of a sweep, finished or not, and return the path of report.html.

    Everything is made beside its place and then moved, report.html last. Plots for which there are no data any more
    are removed.

    `baseline` is the loss that the others are compared with, with flags where several settings have it ('brl
    brl_t=0.5'); empty: the study's, else the first that was asked for.

    Raises:
        RunError: the folder is not a sweep's.
        ConfigError: no run has that loss, or several settings have it.
    """
    folder = Path(folder)
    found = results(load(folder, baseline))
    made = Path(tempfile.mkdtemp(prefix=".report-", dir=folder))
    try:
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
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder / "report.html"


def terminal_table(folder: str | Path, baseline: str = "") -> str:
    """Return the tables of a sweep for the terminal, each with its verdict, and what is not in them.

    Arguments as for `report`.

    Raises:
        RunError: the folder is not a sweep's.
    """
    found = results(load(folder, baseline))
    judged = result_tables(found)
    parts = [f"{as_text(table)}\nVerdict: {text}" for table, text in judged]
    if made := study_tables(found):
        parts = [*map(as_text, made), *(f"{table.title}: {text}" for table, text in judged)]
    if not parts and found.rows:
        parts = [as_text(settings_table(found.rows, judged_rows(found.rows)[0].split))]
    failed = [f"failed: {r.run}: {r.error or 'no message'}" for r in found.sweep.failed]
    return "\n\n".join([*parts, "\n".join([state(found.sweep), *failed, *found.sweep.warnings])])
