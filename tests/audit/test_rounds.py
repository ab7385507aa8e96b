"""Rounds: train, audit the given labels, complete, train again; killed anywhere they go on. The trainings are fakes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from small_data import make_dataset

import rebalance
from rebalance.audit import rounds as module
from rebalance.audit import table
from rebalance.audit.rounds import rounds
from rebalance.audit.table import Suggestion
from rebalance.data import completed, dataset
from rebalance.data.derive import sparsify
from rebalance.data.items import labels_sha256
from rebalance.errors import ConfigError, DataError, ModelError, RunError
from rebalance.report import build
from rebalance.settings import AuditFlags, SparsifyFlags

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "experiments" / "fake_run.py"


def look(flags: AuditFlags, training: Mapping[str, str], root: Path) -> Path:
    """An audit that finds, on the first image that has one, each withheld box, sure of one more each time."""
    folder = root / flags.name
    folder.mkdir(parents=True, exist_ok=True)
    with (root / "calls.txt").open("a") as calls:
        calls.write(f"{flags.name} {flags.data} {flags.model} {flags.folds} {sorted(training)}\n")
    source = completed.given(dataset.load(flags.data))
    known = int(flags.name[6]) + 1  # of round=0 one
    rows, sizes = [], {}
    for image in source.images("train"):
        name = Path(image).name
        gone = source.withheld(image)
        for i, (number, box) in enumerate(zip(gone.classes.tolist(), gone.boxes_xyxy(64, 64).tolist(), strict=True)):
            x1, y1, x2, y2 = (round(min(max(side, 0), 64), 2) for side in box)
            p = 0.9 if i < known else 0.1
            rows.append(Suggestion(name, "missing", number, source.names[number], (x1, y1, x2, y2), 0.5, p))
            sizes[name] = [64, 64]
    path = table.write(folder / "suggestions.csv", rows)
    missing = sum(row.probability or 0 for row in rows)
    about = {
        "schema": 1, "data": flags.data, "data_sha256": labels_sha256(source), "sizes": sizes, "lower_bound": True,
        "images_root": os.path.dirname(source.images("train")[0]),
        "classes": [{"id": i, "name": n, "how": "probability"} for i, n in source.names.items()],
        "total": {"missing": missing, "low": 0.0, "high": 99.0},
        "suggestions_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    (folder / "audit.json").write_text(json.dumps(about), "utf-8")
    return folder


@dataclass
class Bench:
    """A folder to work in, with a plan for the trainings that are stood in for."""

    folder: Path
    data: Path
    said: list[str] = field(default_factory=list)

    @property
    def runner(self) -> list[str]:
        return [sys.executable, str(FAKE), str(self.folder / "plan.json")]

    def args(self, **given: str) -> dict[str, str]:
        return {"model": "m.yaml", "data": str(self.data), "name": "mine", "rounds": "2", "epochs": "1", **given}

    def rounds(self, plan: Mapping[str, Any] | None = None, **given: str) -> Path:
        (self.folder / "plan.json").write_text(json.dumps(plan or {}), "utf-8")
        return rounds(self.args(**given), root=self.folder, runner=self.runner, look=look, say=self.said.append)

    def started(self) -> list[str]:
        log = self.folder / "plan.log"
        lines = log.read_text("utf-8").splitlines() if log.exists() else []
        return [line.split()[1] for line in lines if line.startswith("start")]

    def calls(self) -> list[list[str]]:
        path = self.folder / "mine" / "audits" / "calls.txt"
        return [line.split(" ", 4) for line in path.read_text("utf-8").splitlines()]

    def labels(self, run: str) -> dict[str, Any]:
        text = (self.folder / "mine" / "runs" / run / "record.json").read_text("utf-8")
        found: dict[str, Any] = json.loads(text)["config"]["labels"]
        return found


def make_bench(folder: Path) -> Bench:
    """Of 12 images, each with up to 3 boxes, of which one is labelled."""
    whole = make_dataset(folder / "whole", train=12, seed=21)  # no box is in another
    sparsify(SparsifyFlags(data=str(whole), out=str(folder / "set"), protocol="extreme", seed=3))
    return Bench(folder, folder / "set" / "data.yaml")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def count(data: Path, kind: str = "labels") -> int:
    return sum(len(path.read_text("utf-8").splitlines()) for path in (data / kind / "train").glob("*.txt"))


def test_each_round_trains_on_more_and_complete_labels_stand_beside(bench: Bench) -> None:
    folder = bench.rounds()
    assert bench.started() == ["round=0,seed=0", "protocol=normal,seed=0", "round=1,seed=0", "round=2,seed=0"]
    given, whole, one, two = map(bench.labels, bench.started())
    assert given["data"] == str(bench.data)
    source, data = bench.data.parent, folder / "data"
    gone = count(source, "withheld")
    sizes = [count(source), count(data / "round-1-seed-0"), count(data / "round-2-seed-0"), count(data / "complete")]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3] == sizes[0] + gone
    assert [labels.get("round") for labels in (given, one, two, whole)] == [None, 1, 2, None]
    assert [labels["protocol"] for labels in (given, one, two, whole)] == ["extreme"] * 3 + ["normal"]
    assert given["rate"] == one["rate"] == two["rate"] == round(gone / (gone + sizes[0]), 4)
    assert (given["seed"], whole["seed"]) == (3, 0)
    told = two["completed"]
    assert (told["added"], told["recovered"], told["withheld"]) == (gone, gone, gone)
    assert told["left"] < one["completed"]["left"]
    assert "audit_seconds" in told
    plan = json.loads((folder / "sweep.json").read_text("utf-8"))
    assert plan["runs"] == ["round=0,seed=0", "round=1,seed=0", "round=2,seed=0", "protocol=normal,seed=0"]
    assert plan["asked"]["rounds"] == [2]


def test_a_later_audit_asks_about_the_labels_that_were_given(bench: Bench) -> None:
    folder = bench.rounds()
    first, second = bench.calls()
    assert (first[0], first[1]) == ("round=0,seed=0", str(bench.data))
    assert (second[0], second[1]) == ("round=1,seed=0", str(folder / "data" / "round-1-seed-0" / "data.yaml"))
    assert second[2] == str(folder / "runs" / "round=1,seed=0" / "train" / "weights")
    audits = [json.loads((folder / "audits" / run / "audit.json").read_text("utf-8")) for run, *_ in (first, second)]
    assert len({audit["data_sha256"] for audit in audits}) == 1
    # what the first round added is suggested again, not taken for a label
    rows = [table.read(folder / "audits" / run / "suggestions.csv") for run, *_ in (first, second)]
    assert {row.id for row in rows[0]} == {row.id for row in rows[1]}


def test_folds_get_the_flags_of_the_trainings_and_the_model_to_begin_with(bench: Bench) -> None:
    bench.rounds(rounds="1", folds="3", imgsz="64", loss="bce", jobs="2")
    ((_, _, model, folds, training),) = bench.calls()
    assert (model, folds, training) == ("m.yaml", "3", "['epochs', 'imgsz', 'jobs', 'loss']")


def test_auto_ends_when_the_estimate_falls_no_more(bench: Bench) -> None:
    bench.rounds(rounds="auto", complete_add="0.95")  # nothing is added, and the second audit is surer than the first
    assert [run for run in bench.started() if "round" in run] == ["round=0,seed=0", "round=1,seed=0"]
    (told,) = [line for line in bench.said if line.startswith("round 2, seed 0: not made")]
    before, now = map(float, re.findall(r"(\d+) (?:before|now)", told))
    assert "of what is missing beyond round 1 does not fall" in told
    assert now > before


def test_a_round_that_would_change_nothing_is_not_trained(bench: Bench) -> None:
    bench.rounds(rounds="4")
    assert "round=3,seed=0" not in bench.started()
    assert "round 3, seed 0: not made, for its labels are those of round 2" in bench.said


def test_every_seed_has_a_chain_and_a_draw_of_its_own(bench: Bench, tmp_path: Path) -> None:
    bench.data = tmp_path / "whole" / "data.yaml"
    bench.rounds(rounds="1", seeds="0,1", protocol="hard")
    assert sorted(bench.started()) == sorted(
        f"{kind},seed={seed}" for seed in (0, 1) for kind in ("round=0", "round=1", "protocol=normal")
    )
    assert [bench.labels(f"round=1,seed={seed}")["seed"] for seed in (0, 1)] == [0, 1]
    assert bench.labels("protocol=normal,seed=1")["data"] == str(bench.data)
    hashes = {bench.labels(f"round=0,seed={seed}")["manifest"]["sha256"] for seed in (0, 1)}
    assert len(hashes) == 2


def test_where_nothing_is_known_to_be_missing_there_are_no_complete_labels(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_dataset(tmp_path / "whole"))
    bench.rounds()
    assert bench.started() == ["round=0,seed=0"]  # and this audit finds nothing
    assert "round 1, seed 0: not made, for its labels are those of round 0" in bench.said


def test_a_failed_training_ends_its_chain_and_is_tried_again(bench: Bench) -> None:
    bench.rounds({"round=1,seed=0": ["fail", "ok"]})
    assert "round 2, seed 0: not made, for round=1,seed=0 failed" in bench.said
    bench.rounds({"round=1,seed=0": ["fail", "ok"]})
    assert bench.started()[2:] == ["round=1,seed=0", "round=1,seed=0", "round=2,seed=0"]


_PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import test_rounds as tests
from rebalance.audit import complete as completing, rounds
from rebalance.data import completed, folder as folders
from rebalance.experiments import sweep
where, args, root, runner = json.loads(sys.argv[1])
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
put, look, write = completed.put, tests.look, rounds.write_json
def dying_put(path, data):
    return die() if path.name == "05.txt" and "round-1" in str(path) else put(path, data)
def dying_look(flags, training, root):
    (root / flags.name).mkdir(parents=True)
    die()
if where == "beginning":
    completed.restored = die
if where == "complete":
    completed.put = dying_put
if where == "audit":
    look = dying_look
if where == "after the audit":
    rounds.write_json = die
if where == "before the training":
    rounds.write_config = lambda *a, **b: die() if a[1].labels.round else sweep.write_config(*a, **b)
rounds.rounds(args, root=Path(root), runner=runner, look=look)
"""


@pytest.mark.parametrize(
    "where", ["beginning", "training", "audit", "after the audit", "complete", "before the training"]
)
def test_killed_anywhere_it_goes_on_and_repeats_no_finished_training(bench: Bench, where: str) -> None:
    plan = {"round=1,seed=0": ["hang", "ok"]} if where == "training" else {}
    (bench.folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    passed = json.dumps([where, bench.args(), str(bench.folder), bench.runner])
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "audit")])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, passed], env=environment) as process:
        if where == "training":
            while "round=1,seed=0" not in bench.started():
                assert process.poll() is None
            process.kill()
        assert process.wait() == -signal.SIGKILL
    done = bench.started()
    assert "round=2,seed=0" not in done
    bench.rounds(plan)
    again = bench.started()[len(done) :]
    if where != "beginning":
        assert again == ["round=1,seed=0", "round=2,seed=0"]
    data = bench.folder / "mine" / "data"
    assert count(data / "round-2-seed-0") == count(data / "complete")
    bench.rounds(plan)
    assert bench.started() == [*done, *again]
    assert not list(data.glob(".*"))


def test_of_a_set_where_one_class_lost_labels_the_share_of_all_is_said(tmp_path: Path) -> None:
    whole = make_dataset(tmp_path / "whole", train=12, seed=21)
    name = dataset.load(whole).names[0]
    made = sparsify(SparsifyFlags(data=str(whole), out=str(tmp_path / "set"), rate=1.0, classes=name, seed=3))
    bench = Bench(tmp_path, tmp_path / "set" / "data.yaml")
    bench.rounds(rounds="1")
    labels = bench.labels("round=0,seed=0")
    assert 0 < labels["rate"] == pytest.approx(made["total"]["reached"], abs=1e-4)
    assert labels["rate"] < 1
    assert (labels["protocol"], labels["seed"]) == ("percent", 3)


def test_it_goes_on_from_records_alone(bench: Bench) -> None:
    folder = bench.rounds(rounds="1")
    (folder / "runs" / "round=0,seed=0" / "config.json").unlink()
    shutil.rmtree(folder / "runs" / "round=1,seed=0")
    before = bench.started()
    bench.rounds(rounds="1")
    assert bench.started()[len(before) :] == ["round=1,seed=0"]
    assert bench.labels("round=1,seed=0")["round"] == 1


def test_the_same_name_with_other_values_is_refused(bench: Bench) -> None:
    bench.rounds(rounds="1")
    with pytest.raises(RunError, match="rounds was 1, is 2"):
        bench.rounds(rounds="2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"obj_drop": "0,0.5"}, "obj_drop=0,0.5: rounds trains one setting"),
        ({"control": "0.5"}, "control=0.5 is a flag of rebalance sweep"),
        ({"rounds": "0"}, "rounds=0 is out of range: at least 1"),
        ({"rounds": "some"}, "rounds=some is not auto or a whole number"),
        ({"complete_ignore": "0.9"}, "complete_ignore=0.9 is above complete_add=0.7"),
        ({"folds": "1"}, "folds=1: 0, or 2 and more"),
        ({"model": ""}, "model= is missing"),
        ({"single_cls": "True"}, "single_cls=True trains all classes as one, and an audit has to tell them apart"),
        ({"folds": "13"}, "folds=13: 0, or 2 to 12, the training images"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(bench: Bench, given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.rounds(**given)
    assert not (bench.folder / "mine").exists()


def test_a_model_that_no_audit_could_ask_is_refused_before_it_is_trained(bench: Bench) -> None:
    with pytest.raises(ModelError, match=r"model=m.yaml is for the task segment; an audit needs a detector"):
        bench.rounds({"told": {"task": "segment"}})
    assert not (bench.folder / "mine").exists()


def test_a_completed_set_is_not_taken_for_labels_that_were_given(bench: Bench) -> None:
    folder = bench.rounds(rounds="1")
    bench.data = folder / "data" / "round-1-seed-0" / "data.yaml"
    with pytest.raises(
        DataError, match=r"was completed before: give the set that it was made from: data=.*set/data.yaml"
    ):
        bench.rounds(name="other")
    assert module.MOST == 5


def test_in_python_flags_are_keywords_and_there_is_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, reported = dict[str, str](), list[Path]()

    def made(args: Mapping[str, str]) -> Path:
        asked.update(args)
        return Path("there")

    monkeypatch.setattr(module, "rounds", made)
    monkeypatch.setattr(build, "report", reported.append)
    assert rebalance.rounds(data=Path("d.yaml"), seeds=[0, 1], classes=[0, 2], lr0=0.01, plots=False) == Path("there")
    assert asked == {"data": "d.yaml", "seeds": "0,1", "classes": "[0,2]", "lr0": "0.01", "plots": "False"}
    assert reported == [Path("there")]
