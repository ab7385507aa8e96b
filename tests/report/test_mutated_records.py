"""A report over records in which something is not what it should be and that the reader lets pass: it is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mutations import places, put, small_sweep

from rebalance.errors import RunError
from rebalance.experiments.record import Plan, Record, decode, load
from rebalance.report.build import terminal_table
from rebalance.report.page import command, pages, state
from rebalance.report.summary import results

WRONG = (3, "it's <b>", {"a": {"b": 1}})


def make(folder: Path, lines: list[str]) -> None:
    """All of a report but its plots."""
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    assert terminal_table(folder)
    found = results(load(folder))
    assert all(text.encode() for text in pages(found, {}, [], folder).values())


def mutated(kind: Any, content: Any, wrong: Any) -> list[str]:
    """Those of the records with something wrong in one place that the reader lets pass, as lines."""
    found = []
    for path in places(content):
        line = json.dumps(put(content, path, wrong))
        try:
            decode(kind, line, "line")
        except RunError:
            continue
        found.append(line)
    return found


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_the_report_is_built(tmp_path: Path, wrong: Any) -> None:
    plan, first, other = small_sweep()
    passed = mutated(Record, first, wrong)
    assert len(passed) > 20
    old = {
        **first,
        "evaluation": {},
        "config": {**first["config"], "host": {**first["config"]["host"], "iou": [wrong]}},
    }
    make(tmp_path, [json.dumps(plan), *passed, json.dumps(old), json.dumps(other)])  # one that breaks it breaks all


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_the_command_is_told(tmp_path: Path, wrong: Any) -> None:
    plan, *records = small_sweep()
    for line in mutated(Plan, plan, wrong):
        (tmp_path / "records.jsonl").write_text("\n".join([line, *map(json.dumps, records)]) + "\n", "utf-8")
        sweep = results(load(tmp_path)).sweep
        assert command(sweep).startswith("rebalance sweep ") or not (sweep.asked or sweep.written)
        assert "2 finished" in state(sweep)
