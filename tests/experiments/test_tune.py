"""Searches: no trial twice, whatever ends them, val alone decides, and nothing is made where the space is bad."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rebalance.errors import ConfigError, DataError, ModelError, RunError
from rebalance.experiments.space import read_space
from rebalance.experiments.tune import tune

pytest.importorskip("optuna", reason="optuna is not installed")

FAKE = Path(__file__).with_name("fake_run.py")
ROOT = Path(__file__).resolve().parents[2]
LR = "0.01..0.9"


@dataclass
class Bench:
    """A folder to search in; a training reaches on val what its lr0 is."""

    folder: Path
    data: Path
    said: list[str] = field(default_factory=list)

    @property
    def mine(self) -> Path:
        return self.folder / "mine"

    def args(self, **given: str) -> dict[str, str]:
        base = {"model": "m.yaml", "data": str(self.data), "name": "mine", "trials": "4", "epochs": "4"}
        return {**base, "lr0": LR, **given}

    def runner(self, plan: dict[str, Any]) -> list[str]:
        path = self.folder / "plan.json"
        path.write_text(json.dumps({"score": "lr0", **plan}), "utf-8")
        return [sys.executable, str(FAKE), str(path)]

    def tune(self, plan: dict[str, Any] | None = None, **given: str) -> Path:
        return tune(self.args(**given), root=self.folder, runner=self.runner(plan or {}), say=self.said.append)

    def start(self, plan: dict[str, Any], **given: str) -> subprocess.Popen[str]:
        """The same in a process of its own, to be killed."""
        program = (
            "import json, sys; from pathlib import Path; from rebalance.experiments.tune import tune\n"
            "args, root, runner = json.loads(sys.argv[1]); tune(args, root=Path(root), runner=runner)"
        )
        passed = json.dumps([self.args(**given), str(self.folder), self.runner(plan)])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", program, passed], stdout=subprocess.PIPE, text=True, env=environment
        )

    def started(self) -> list[list[str]]:
        path = self.folder / "plan.log"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [[run, *more] for _, run, _, _, _, *more in (line.split() for line in lines if line.startswith("start"))]

    def record(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.mine / "runs" / run / "record.json").read_text("utf-8"))
        return found

    def values(self) -> dict[str, float]:
        configs = {
            path.parent.name: json.loads(path.read_text("utf-8")) for path in self.mine.glob("runs/*/config.json")
        }
        return {run: config["config"]["host"]["lr0"] for run, config in sorted(configs.items())}


@pytest.fixture
def bench(tmp_path: Path, tiny_dataset: Path) -> Bench:
    return Bench(tmp_path, tiny_dataset)


def test_val_alone_decides_and_only_the_best_is_asked_on_test(bench: Bench) -> None:
    folder = bench.tune(loss="bce,drop", obj_drop="0.1..0.9", head="anchor", prune="False")
    runs = [f"trial={number}" for number in (1, 2, 3, 4)]
    values = bench.values()
    best = max(values, key=lambda run: values[run])
    assert [*values] == runs
    assert bench.started() == [*([run, "--watch", "--share", "--val"] for run in runs), [best, "--watch", "--share"]]
    for run in runs:
        made = bench.record(run)
        assert (made["status"], made["metrics"]["val"]["mAP50-95"]) == ("finished", values[run])
        assert ("test" in made["metrics"]) == (run == best)
        assert ("obj_drop" in made["varied"]) == (made["varied"]["loss"] == "drop")
    rows = (folder / "trials.csv").read_text("utf-8").splitlines()
    assert rows[0] == "user_attrs_run,state,value,params_loss,params_lr0,params_obj_drop"
    assert rows[1].startswith(f"trial=1,COMPLETE,{values['trial=1']!r},")
    told = bench.record(best)["varied"]
    assert bench.said[-2].startswith(f"the best is {best}: loss={told['loss']} ")
    assert bench.said[-2].endswith(f"mAP50-95 {100 * values[best]:.1f} points on test")
    words = dict(word.split("=", 1) for word in bench.said[-1].removeprefix("rebalance train ").split())
    drop = {"obj_drop": repr(told["obj_drop"])} if told["loss"] == "drop" else {}
    expected = {"model": "m.yaml", "data": str(bench.data), "epochs": "4", "lr0": repr(values[best]), "seed": "0"}
    assert words == {**expected, "head": "anchor", "loss": told["loss"], **drop}


def test_a_killed_search_goes_on_to_the_same_trials_and_repeats_none(bench: Bench, tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole", bench.data)
    whole.folder.mkdir()
    whole.tune(trials="6", prune="False")
    child = bench.start({"seconds": 0.2}, trials="6", prune="False")
    end = time.monotonic() + 120
    while len(bench.started()) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    bench.tune(trials="6", prune="False")
    values = whole.values()
    assert bench.values() == values
    starts = [run for run, *more in bench.started() if "--val" in more]
    assert starts in ([*values], sorted([*values, "trial=3"]))  # the one that was broken off, in its own folder
    assert bench.said[0].startswith("6 trials, 2 over before")


def test_a_trial_below_the_median_is_ended_recorded_and_not_tried_again(bench: Bench) -> None:
    folder = bench.tune({"seconds": 0.3}, trials="9")
    pruned = [run for run in bench.values() if bench.record(run)["status"] == "failed"]
    assert pruned
    first, values = pruned[0], bench.values()
    assert (
        bench.record(first)["error"]
        == "pruned after epoch 1 of 4: mAP50-95 on val is below the median of the trials before"
    )
    assert sum(value > values[first] for value in values.values()) >= 3
    assert any(re.fullmatch(rf"\[\d/9\] ended  {first}  pruned after epoch 1 .*", line) for line in bench.said)
    assert any(line.startswith(f"{first},PRUNED,") for line in (folder / "trials.csv").read_text("utf-8").splitlines())
    before = bench.started()
    bench.tune({"seconds": 0.3}, trials="9")
    assert bench.started() == before


def test_more_trials_go_on_and_another_space_is_refused(bench: Bench) -> None:
    bench.tune(trials="2", prune="False")
    bench.tune(trials="3", prune="False")
    assert [run for run, *more in bench.started() if "--val" in more] == ["trial=1", "trial=2", "trial=3"]
    for given, told in (
        ({"lr0": "0.01..0.8"}, "lr0 was 0.01..0.9, is 0.01..0.8"),
        ({"momentum": "0.8..0.9"}, "momentum was not given, is 0.8..0.9"),
        ({"prune": "True"}, "prune was False, is True"),
        ({"seed": "1"}, "seed was 0, is 1"),
    ):
        with pytest.raises(RunError, match=re.escape(told)):
            bench.tune(**{"trials": "3", "prune": "False", **given})


def test_equal_values_are_trained_once(bench: Bench) -> None:
    bench.tune(lr0="0.1,0.2", trials="7")
    assert sorted(run for run, *more in bench.started() if "--val" in more) == ["trial=1", "trial=2"]
    assert sorted(bench.values().values()) == [0.1, 0.2]


def test_trials_share_the_cores(bench: Bench) -> None:
    bench.tune({"seconds": 0.1}, jobs="3", trials="6", prune="False")
    assert len(set(bench.values().values())) == 6
    assert bench.said[0] == f"6 trials, 3 at a time: {bench.mine}"


def test_a_failed_trial_is_tried_again_with_its_values(bench: Bench) -> None:
    bench.tune({"trial=2": ["fail", "ok"]}, trials="3")
    values = bench.values()
    assert bench.record("trial=2")["status"] == "failed"
    assert bench.said[-3].startswith("2 finished, 1 failed (the same command tries them again): ")
    bench.tune({"trial=2": ["fail", "ok"]}, trials="3")
    assert bench.values() == values
    assert [run for run, *_ in bench.started()].count("trial=2") >= 2
    assert bench.record("trial=2")["status"] == "finished"
    assert bench.said[-3].startswith("3 finished: ")


def test_a_search_in_which_nothing_finished_is_an_error(bench: Bench) -> None:
    with pytest.raises(RunError, match="no trial finished; the first, trial=1: ValueError: as planned"):
        bench.tune({f"trial={number}": "fail" for number in (1, 2)}, trials="2")


def test_labels_can_be_withheld(bench: Bench) -> None:
    bench.tune(trials="1", protocol="percent", rate="0.5", seed="3")
    assert (bench.mine / "data" / "percent-0.5-3" / "data.yaml").is_file()
    assert "data=mine/data" in bench.said[-1] or f"data={bench.mine}/data/percent-0.5-3/data.yaml" in bench.said[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr0": "0.1"}, "there is nothing to search"),
        ({"lr0": "0.9..0.1"}, "lr0=0.9..0.1: the range has to go up"),
        ({"lr0": "0..1:log"}, "lr0=0..1:log: a range on a log scale starts above 0"),
        ({"lr0": "0.1..1:lag"}, "lr0=0.1..1:lag: lag is not one of log, int"),
        ({"lr0": "0.1..x"}, "lr0=0.1..x is not a range of numbers"),
        ({"lr0": "0.1..nan"}, "lr0=0.1..nan: the range has to go up"),
        ({"lr0": "0.1..inf"}, "lr0=0.1..inf: the range has to go up"),
        ({"close_mosaic": "0.5..3:int"}, "close_mosaic=0.5..3:int is not a range of whole numbers"),
        ({"lr0": "0.1,0.2..0.3"}, "a range stands alone"),
        ({"lr0": "0.1,0.1"}, "lr0: 0.1 is given twice"),
        ({"obj_drop": "0..1.5"}, "obj_drop=1.5 is out of range: 0 to 1"),
        ({"diagnose": "0..1"}, "diagnose is not a number"),
        ({"drop_select": "0..1"}, "drop_select=0 is not one of"),
        ({"obj_drop": "0.1,x"}, "obj_drop=x is not a number"),
        ({"trials": "0"}, "trials=0 is out of range"),
        ({"seed": "4294967295"}, "seed=4294967295 is out of range: 0 to 4294967294"),
        ({"seeds": "0,1"}, "seeds=0,1 is a flag of rebalance sweep, not of tune (did you mean seed?)"),
        ({"complete": "True"}, "complete=True is a flag of rebalance sweep, not of tune"),
        ({"protocol": "percent,extreme"}, "protocol=percent,extreme: trials on different labels"),
        ({"rate": "0.1..0.5", "protocol": "percent"}, "rate=0.1..0.5: trials on different labels"),
        ({"data": "a.yaml,b.yaml"}, "data=a.yaml,b.yaml: trials on different data"),
        ({"iou": "0.5..0.7"}, "iou=0.5..0.7: it is of the evaluation"),
        ({"val": "False"}, "val=False: a search goes by what val says"),
        ({"project": "x"}, "project=x: give name="),
        ({"model": ""}, "model= is missing"),
        ({"name": "a/b"}, "name=a/b is not a folder name"),
    ],
)
def test_a_bad_space_leaves_nothing(bench: Bench, given: dict[str, str], message: str) -> None:
    before = {*bench.folder.iterdir()}
    with pytest.raises(ConfigError, match=re.escape(message)):
        bench.tune(**given)
    assert {*bench.folder.iterdir()} - before <= {bench.folder / "plan.json"}


@pytest.mark.parametrize(
    ("flag", "whole"),
    [("close_mosaic", True), ("epochs", True), ("brl_warmup", True), ("lr0", False), ("brl_t", False)],
)
def test_a_range_is_of_whole_numbers_where_the_flag_is(bench: Bench, flag: str, whole: bool) -> None:
    (found,) = read_space({**bench.args(loss="brl"), "lr0": "0.1", flag: "0..1"}).searched.values()
    assert (found.whole, all(type(end) is int for end in found.ends)) == (whole, whole)  # type: ignore[union-attr]


def test_a_name_is_not_searched_whatever_it_is(bench: Bench) -> None:
    space = read_space(bench.args(name="a,b 1..2", val="True"))
    assert [*space.searched] == ["lr0"]
    assert space.flags.name == "a,b 1..2"


def test_the_best_that_fails_on_test_is_an_error_and_is_tried_again(bench: Bench) -> None:
    plan = {"trial=1": ["ok", "fail", "ok"]}
    with pytest.raises(RunError, match=r"the best, trial=1, failed on test .*: ValueError: as planned"):
        bench.tune(plan, trials="1")
    bench.tune(plan, trials="1")
    assert [*bench.record("trial=1")["metrics"]] == ["val", "test"]


def test_a_test_split_without_labels_is_not_asked(bench: Bench) -> None:
    for file in bench.data.parent.glob("labels/test/*.txt"):
        file.write_text("", "utf-8")
    bench.tune(trials="1")
    assert [more for _, *more in bench.started()] == [["--watch", "--share", "--val"]]


def test_what_the_host_refuses_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(ModelError, match="no such model"):
        bench.tune({"check": {"kind": "ModelError", "error": "no such model"}})
    with pytest.raises(DataError):
        bench.tune(data="none.yaml")
    for file in bench.data.parent.glob("labels/val/*.txt"):
        file.write_text("", "utf-8")
    with pytest.raises(DataError, match="no image of val has a label, to evaluate a training on"):
        bench.tune()
    assert not bench.mine.exists()


def test_the_check_sees_every_loss_with_its_flags_at_their_ends(bench: Bench) -> None:
    space = read_space(bench.args(loss="bce,drop", obj_drop="0.1..0.9", drop_select="random", nbs="1..3:int"))
    seen = [
        (run.train["loss"], run.train["obj_drop"] if "obj_drop" in run.given else None, "drop_select" in run.given)
        for run in space.corners()
    ]
    assert {row for row in seen if row[0] == "bce"} == {("bce", None, False)}
    assert {row[1] for row in seen if row[0] == "drop"} >= {0.1, 0.9}
    assert all(row[2] for row in seen if row[0] == "drop")
    assert {run.host["nbs"] for run in space.corners()} == {1, 3}
    nowhere = read_space(bench.args(loss="bce", obj_drop="0.1..0.9"))  # stays, so that the check refuses it
    assert all("obj_drop" in run.given for run in nowhere.corners())


def test_a_storage_that_is_damaged_is_one_line(bench: Bench) -> None:
    folder = bench.tune(trials="1")
    (folder / "trials.db").write_bytes(b"no database " * 500)
    with pytest.raises(RunError, match=r"trials\.db cannot be used: "):
        bench.tune(trials="2")


def test_a_storage_that_is_locked_is_one_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench.tune(trials="1")
    with sqlite3.connect(folder / "trials.db") as held:
        held.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr("rebalance.experiments.tune.PATIENCE", 0.1)
        with pytest.raises(RunError, match=r"trials\.db cannot be used: .*locked"):
            bench.tune(trials="2")
        held.rollback()


def test_without_optuna_it_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RunError, match="needs Optuna, which is not installed: pip install optuna"):
        bench.tune()
    assert not bench.mine.exists()
