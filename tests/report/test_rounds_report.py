"""The tables of rounds, by numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rebalance.experiments.record import load
from rebalance.report.build import report, terminal_table
from rebalance.report.page import command
from rebalance.report.rounds import rounds_classes, rounds_tables
from rebalance.report.summary import results
from rebalance.report.table import Table

Make = Callable[..., Path]
Record = Callable[..., dict[str, Any]]
ASKED = {"model": ["m.yaml"], "data": ["d.yaml"], "seeds": [0, 1], "rounds": [2], "complete_add": [0.7]}


def made(record: Record, kind: str, seed: int, test: float, seconds: float, **completed: float) -> dict[str, Any]:
    """A run of seed `seed` that was trained on labels of a kind."""
    number = int(kind[6:]) if kind.startswith("round=") else 0
    labels: dict[str, Any] = {"round": number, "completed": completed} if number else {}
    found = record(
        f"{kind},seed={seed}", seed, test=test, protocol="normal" if kind == "whole" else "extreme", label_seed=seed,
        noise=labels, loss="bce",
    )  # fmt: skip
    found["timings"] = {"train_seconds": seconds}
    return found


def runs(record: Record, seeds: int = 2) -> list[dict[str, Any]]:
    found = []
    for seed in range(seeds):
        more = seed / 100
        told = {"added": 100.0, "unknown": 20.0, "recovered": 80.0, "withheld": 160.0, "missing": 120.0, "left": 120.0}
        told |= {"low": 90.0, "high": 150.0, "lower_bound": 1.0, "audit_seconds": 30.0}
        told |= {"with_unfound": 150.0, "with_unfound_low": 130.0, "with_unfound_high": 180.0}
        found += [
            made(record, "round=0", seed, 0.40 + more, 100),
            made(record, "round=1", seed, 0.55 + more, 110, **told),
            made(
                record,
                "round=2",
                seed,
                0.56 + 2 * more,
                120,
                **{**told, "recovered": 120.0, "added": 150.0, "left": 40.0},
            ),
            made(record, "whole", seed, 0.60 + more, 90),
        ]
    return found


def cells(table: Table) -> dict[str, list[str]]:
    return {one.name: [cell.text for cell in one.cells] for one in table.columns}


@pytest.fixture
def tables(make_sweep: Make, make_record: Record) -> list[Table]:
    return rounds_tables(results(load(make_sweep(*runs(make_record), asked=ASKED))))


def test_each_round_stands_beside_the_labels_that_were_given_and_complete_ones(tables: list[Table]) -> None:
    found = cells(tables[0])
    assert found["trained on"] == ["as labelled", "1 round", "2 rounds", "complete labels"]
    assert found["n"] == ["2"] * 4
    # 0.40 and 0.41: mean 40.5, ± t(1) · 0.7071 / √2 = 12.706 · 0.5
    assert found["test mAP50"][:2] == ["40.5 ± 6.4", "55.5 ± 6.4"]
    # 15 points for both seeds; 16 and 17
    assert found["mAP50 vs as labelled"] == ["", "+15.0 ± 0.0", "+16.5 ± 6.4", "+20.0 ± 0.0"]
    # 15 of 20; 16.5 ± 6.353 of 20
    assert found["gap closed, mAP50"] == ["", "0.75 (0.75 to 0.75)", "0.83 (0.51 to 1.14)", ""]


def test_the_cost_of_a_round_has_those_before_it_and_the_audits(tables: list[Table]) -> None:
    found = cells(tables[0])
    assert found["train s"] == ["100", "110", "120", "90"]
    assert found["in all s"] == ["100", "240", "390", "90"]  # 100 + 30 + 110; and 30 + 120 more
    assert found["cost"] == ["×1.0", "×2.4", "×3.9", "×0.9"]


def test_what_was_added_is_held_against_the_truth(tables: list[Table]) -> None:
    found = cells(tables[1])
    assert found["trained on"] == ["1 round", "2 rounds"]
    assert (found["labels missing, estimate"], found["95 %"]) == (["120", "120"], ["90 to 150"] * 2)
    assert (found["with those not found"], found["its 95 %"]) == (["150", "150"], ["130 to 180"] * 2)
    assert (found["truly missing"], found["of them added"]) == (["160", "160"], ["50.0 %", "75.0 %"])
    assert found["of those added right"] == ["80.0 %", "80.0 %"]
    assert "a lower bound" in tables[1].notes[0]


def test_every_class_is_held_against_the_labels_that_were_given(make_sweep: Make, make_record: Record) -> None:
    (table,) = rounds_classes(results(load(make_sweep(*runs(make_record), asked=ASKED))))
    heads = [one.name for one in table.columns]
    assert heads == ["class", "as labelled", "1 round", "change", "2 rounds", "change", "complete labels", "change"]
    assert [row[3].text for row in table.rows] == ["+15.0 ± 0.0", "+7.5 ± 0.0"]


def test_without_the_truth_there_is_no_gap_and_with_one_seed_no_interval(make_sweep: Make, make_record: Record) -> None:
    some = [run for run in runs(make_record, 1) if "whole" not in run["run"]]
    for run in some:
        run["config"]["labels"] |= {"protocol": "normal", "completed": run["config"]["labels"].get("completed")}
        (run["config"]["labels"]["completed"] or {}).pop("withheld", None)
    tables = rounds_tables(results(load(make_sweep(*some, asked=ASKED))))
    found = cells(tables[0])
    assert found["trained on"] == ["as labelled", "1 round", "2 rounds"]
    assert found["mAP50 vs as labelled"] == ["", "+15.0", "+16.0"]
    assert not [name for name in found if name.startswith("gap")]
    assert "truly missing" not in cells(tables[1])


def test_the_report_has_them_first_and_the_command_that_goes_on(make_sweep: Make, make_record: Record) -> None:
    folder = make_sweep(*runs(make_record), asked=ASKED)
    page = report(folder)
    for text in (page.read_text("utf-8"), (folder / "report.md").read_text("utf-8"), terminal_table(folder)):
        assert text.index("Rounds") < text.index("What the rounds added")
        assert "0.75 (0.75 to 0.75)" in text
    assert command(load(folder)).startswith(f"rebalance rounds name={folder.name} model=m.yaml data=d.yaml seeds=0,1")
    assert "drop round=0" not in terminal_table(folder)


def test_a_sweep_without_rounds_has_no_such_table(make_sweep: Make, make_record: Record) -> None:
    assert rounds_tables(results(load(make_sweep(make_record("a", 0), make_record("b", 1))))) == []
    assert rounds_classes(results(load(make_sweep(make_record("a", 0), make_record("b", 1), name="other")))) == []
