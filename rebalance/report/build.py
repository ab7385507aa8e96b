"""Sweep folder -> summary.csv, plots/, report.md and report.html. The same records give the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rebalance.report import html, markdown, plots
from rebalance.report.page import compose, result_tables, state, study_tables
from rebalance.report.records import load
from rebalance.report.summary import summary, to_csv
from rebalance.report.tables import as_text, settings_table


def report(folder: str | Path, baseline: str = "") -> Path:
    """Write the report of a sweep, finished or not, and return the path of report.html.

    Everything is made beside its place and then moved, report.html last. Plots for which there are no data any more
    are removed.

    Args:
        folder: of the sweep, with runs/<run>/record.json.
        baseline: the loss that the others are compared with, with the flags that tell it from another setting of the
            same loss: 'brl brl_t=0.5'; empty: the study's, else the first that was asked for.

    Raises:
        RunError: the folder is not a sweep's.
        ConfigError: no run has that loss, or several settings have it.
    """
    folder = Path(folder)
    sweep = load(folder, baseline)
    rows = summary(sweep)
    made = Path(tempfile.mkdtemp(prefix=".report-", dir=folder))
    try:
        (made / "plots").mkdir()
        pictures, notes = plots.draw(sweep, rows, made / "plots")
        page = compose(sweep, rows, pictures, notes)
        (made / "summary.csv").write_text(to_csv(rows), encoding="utf-8", newline="")
        (made / "report.md").write_text(markdown.render(page), encoding="utf-8", newline="")
        (made / "report.html").write_text(html.render(page, made / "plots"), encoding="utf-8", newline="")
        (folder / "plots").mkdir(exist_ok=True)
        for name in plots.FILES:
            if (made / "plots" / name).exists():
                os.replace(made / "plots" / name, folder / "plots" / name)
            else:
                (folder / "plots" / name).unlink(missing_ok=True)
        for name in ("summary.csv", "report.md", "report.html"):
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
    sweep = load(folder, baseline)
    rows = summary(sweep)
    tables, sentences = result_tables(sweep, rows)
    parts = [f"{as_text(table)}\nVerdict: {text}" for table, text in zip(tables, sentences, strict=True)]
    if made := study_tables(sweep, rows):
        parts = [*map(as_text, made), *(f"{t.title}: {text}" for t, text in zip(tables, sentences, strict=True))]
    if not parts and rows:
        parts = [as_text(settings_table(rows, max(rows, key=lambda row: row.split == "test").split))]
    failed = [f"failed: {r.run}: {r.error or 'no message'}" for r in sweep.failed]
    return "\n\n".join([*parts, "\n".join([state(sweep), *failed, *sweep.warnings])])
