"""`rebalance rounds … dry=True`: what would be trained is what then is, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock
from test_rounds import Bench, make_bench

from rebalance.audit.dry import tell
from rebalance.cli.main import main
from rebalance.errors import ConfigError, RebalanceError, RunError
from rebalance.experiments.dry import Told


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def dry(bench: Bench, **given: str) -> Told:
    """Ask, and hold that nothing was made."""
    plan = bench.folder / "plan.json"
    plan.write_text("{}", "utf-8")

    def tree() -> list[tuple[str, int]]:
        return sorted((str(p), p.stat().st_mtime_ns) for p in bench.folder.rglob("*") if p.suffix not in (".log", ""))

    before = tree()
    try:
        return tell(bench.args(**given), root=bench.folder, runner=bench.runner)
    finally:
        assert tree() == before


def test_what_would_be_trained_is_what_then_is(bench: Bench) -> None:
    asked = {"seeds": "0,1", "epochs": "3"}
    told = dry(bench, **asked)
    assert told.lines[0] == f"dry=True: nothing was made. 2 rounds of 2 seeds: {bench.folder / 'mine'}"
    assert told.lines[1] == "epochs to train: at most 24 (8 x 3)"
    assert "model=m.yaml" in told.lines[2]
    assert told.lines[3].startswith(f"data={bench.data} is {bench.data}: 12 train, 4 val, 4 test images, ")
    assert {row[2] for row in told.runs[1:]} == {"to run"}
    bench.rounds(**asked)
    assert sorted(row[0] for row in told.runs[1:]) == sorted(bench.started())
    again = dry(bench, **asked)
    assert {row[2] for row in again.runs[1:]} == {"finished"}
    assert [row[:2] for row in again.runs] == [row[:2] for row in told.runs]


def test_trainings_of_folds_are_counted_and_the_labels_that_would_be_withheld(tmp_path: Path, bench: Bench) -> None:
    bench.data = bench.data.parents[1] / "whole" / "data.yaml"
    told = dry(bench, rounds="auto", folds="3", protocol="extreme", label_seed="7")
    assert "at most 5 rounds of 1 seed: " in told.lines[0]
    assert told.lines[1] == "epochs to train: at most 22 (22 x 1)"  # two before, and five times three and one
    assert any(line.startswith(f"  {bench.folder / 'mine/data/extreme-0-7'} would be made: ") for line in told.lines)
    assert told.runs[1][:2] == ("round=0,seed=0", "extreme-0-7")
    assert told.runs[3][:2] == ("round=1,seed=0", "those, and what the audit of round=0 finds")


def test_what_rounds_refuse_is_refused_in_the_same_words(bench: Bench) -> None:
    folder = bench.rounds(rounds="1")
    for given in ({"folds": "1"}, {"rounds": "2"}, {"data": "nowhere.yaml"}, {"name": "x", "lr0": "0.1,0.2"}):
        with pytest.raises(RebalanceError) as told:
            dry(bench, **given)
        with pytest.raises(RebalanceError) as real:
            bench.rounds(**given)
        assert str(told.value) == str(real.value)
    with pytest.raises(ConfigError, match="dry=True is for the command line"):
        bench.rounds(dry="True")
    with FileLock(folder / ".lock"), pytest.raises(RunError, match="another sweep works in"):
        dry(bench, rounds="1")


def test_the_command(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = dict[str, str]()
    monkeypatch.setattr("rebalance.audit.dry.tell", lambda given: asked.update(given) or Told(["a line"], [("a", "b")]))
    assert main(["rounds", "model=m.yaml", "data=d.yaml", "dry"]) == 0
    assert (asked, capsys.readouterr().out) == ({"model": "m.yaml", "data": "d.yaml"}, "a line\n\na  b\n")
    assert json.loads((bench.folder / "set" / "manifest.json").read_text("utf-8"))["protocol"] == "extreme"
