"""decisions.json: what is read is what was decided, and nothing else passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rebalance.audit import decisions
from rebalance.audit.table import Suggestion
from rebalance.errors import DataError

ROWS = [Suggestion("a/1.jpg", kind, 2, "crab", (1.25, 2, 30.1, 40), 0.5) for kind in ("missing", "spurious")]
SHA = "5" * 64


def entry(row: Suggestion, decision: str = "accept") -> dict[str, Any]:
    box = list(row.box)
    return {"id": row.id, "image": row.image, "kind": row.kind, "class": row.number, "box": box, "decision": decision}


def written(path: Path, *entries: Any, **changed: Any) -> Path:
    path.write_text(json.dumps({"schema": 1, "suggestions_sha256": SHA, "decisions": list(entries)} | changed), "utf-8")
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    decided = {ROWS[0].id: "reject", ROWS[1].id: "accept"}
    path = decisions.write(tmp_path / "decisions.json", ROWS, decided, SHA)
    assert decisions.read(path, ROWS) == decided
    assert json.loads(path.read_text("utf-8")) == {
        "schema": 1, "suggestions_sha256": SHA, "decisions": [entry(ROWS[0], "reject"), entry(ROWS[1])]
    }  # fmt: skip


def test_a_decision_about_a_suggestion_that_is_gone_is_counted_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "d.json", *map(entry, ROWS))
    assert decisions.read(path, ROWS[:1]) == {ROWS[0].id: "accept"}
    told = capsys.readouterr().err
    assert told == f"note: {path}: 1 of 2 decisions are about suggestions that are not there\n"
    decisions.read(path, ROWS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([entry(ROWS[0], "acept")], "decision 1: 'acept' is not one of accept, reject (did you mean accept?)"),
        ([entry(ROWS[0], "skip")], "decision 1: 'skip' is not one of accept, reject"),
        ([entry(ROWS[0]), entry(ROWS[0], "reject")], f"decision 2: {ROWS[0].id} is accepted and rejected"),
        ([entry(ROWS[0]) | {"class": 1}], f"decision 1: id {ROWS[0].id} is not that of its image, kind, class and box"),
        ([entry(ROWS[0]) | {"box": [1, 2, 3]}], "decision 1: 'box' has 3 numbers, not x1, y1, x2, y2"),
        ([entry(ROWS[0]) | {"box": [1, 2, 3, "x"]}], 'decision 1: box "x" is not a number'),
        ([entry(ROWS[0]) | {"kind": "mising"}], "(did you mean missing?)"),
        (["accept"], 'decision 1: "accept" is not an object with keys'),
        ([{"id": ROWS[0].id}], "decision 1: no 'decision'"),
    ],
)
def test_an_entry_that_is_none_is_refused_with_its_place(tmp_path: Path, given: list[Any], told: str) -> None:
    with pytest.raises(DataError) as refused:
        decisions.read(written(tmp_path / "d.json", *given), ROWS)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="decisions of schema 2; this version reads 1"):
        decisions.read(written(tmp_path / "d.json", schema=2), ROWS)
    with pytest.raises(DataError, match="'decisions' is null"):
        decisions.read(written(tmp_path / "d.json", decisions=None), ROWS)
    (tmp_path / "d.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match="not JSON"):
        decisions.read(tmp_path / "d.json", ROWS)
    with pytest.raises(DataError, match="cannot be read"):
        decisions.read(tmp_path / "none.json", ROWS)
