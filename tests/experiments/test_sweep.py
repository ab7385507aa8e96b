"""Sweeps: every run once, whatever ends them, and nothing made where the grid is bad. Trainings are stood in for."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rebalance.errors import ConfigError, DataError, ModelError, RunError
from rebalance.experiments.machine import cores
from rebalance.experiments.sweep import sweep

FAKE = Path(__file__).with_name("fake_run.py")
ROOT = Path(__file__).resolve().parents[2]
RUNS = [f"obj_drop={p},seed={seed}" for seed in (0, 1) for p in ("0", "0.5")]


@dataclass
class Bench:
    """A folder to sweep in, with a plan for the trainings that are stood in for."""

    folder: Path
    data: Path
    said: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def runner(self) -> list[str]:
        return [sys.executable, str(FAKE), str(self.plan)]

    def args(self, **given: str) -> dict[str, str]:
        base = {"model": "m.yaml", "data": str(self.data), "obj_drop": "0,0.5", "seeds": "0,1", "name": "mine"}
        return {**base, **given}

    def sweep(self, plan: dict[str, Any] | None = None, **given: str) -> Path:
        self.plan.write_text(json.dumps(plan or {}), "utf-8")
        return sweep(self.args(**given), root=self.folder, runner=self.runner, say=self.said.append)

    def start(self, plan: dict[str, Any], **given: str) -> subprocess.Popen[str]:
        """The same in a process of its own, to be killed."""
        self.plan.write_text(json.dumps(plan), "utf-8")
        program = (
            "import json, sys; from pathlib import Path; from rebalance.experiments import sweep\n"
            "args, root, runner, sweep._GRACE = json.loads(sys.argv[1])\n"
            "sweep.sweep(args, root=Path(root), runner=runner)"
        )
        passed = json.dumps([self.args(**given), str(self.folder), self.runner, 1.0])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-c", program, passed],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    def log(self, word: str) -> list[list[str]]:
        path = self.plan.with_suffix(".log")
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(word)]

    def started(self) -> list[str]:
        return [run for _, run, *_ in self.log("start")]

    def record(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "mine" / "runs" / run / "record.json").read_text("utf-8"))
        return found

    def rows(self) -> list[str]:
        return (self.folder / "mine" / "results.csv").read_text("utf-8").splitlines()


@pytest.fixture
def bench(tmp_path: Path, tiny_dataset: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, tiny_dataset)
    yield made
    for _, _, pid, *_ in made.log("start"):
        assert gone(int(pid)), "a child outlived its sweep"


def gone(pid: int) -> bool:
    """Whether a process is over, or about to be."""

    def alive() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        try:
            return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    return until(lambda: not alive())


def until(true: Callable[[], object], seconds: float = 60) -> bool:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False


def test_all_runs_once_with_their_configs_results_and_progress(bench: Bench) -> None:
    folder = bench.sweep(epochs="7", imgsz="64", head="anchor")
    assert folder == bench.folder / "mine"
    assert bench.started() == RUNS
    config = json.loads((folder / "runs" / RUNS[3] / "config.json").read_text("utf-8"))
    assert (config["run"], config["varied"], config["given"]) == (RUNS[3], {"obj_drop": 0.5}, ["obj_drop", "head"])
    assert config["config"]["train"]["obj_drop"] == 0.5
    assert config["config"]["train"]["neg_iou"] == 0.3
    assert config["config"]["host"] == {"model": "m.yaml", "data": str(bench.data), "epochs": 7, "imgsz": 64}
    assert config["config"]["labels"] == {
        "protocol": "normal",
        "rate": 0.0,
        "seed": 0,
        "data": str(bench.data),
        "manifest": None,
    }
    assert config["config"]["seed"] == 1
    assert bench.rows() == [
        "run,model,head,loss,obj_drop,box_drop,protocol,drop_rate,seed,epochs,imgsz,split,mAP50,mAP75,mAP50-95,"
        "precision,recall,train_seconds,images_per_second,peak_memory_mb,status",
        '"obj_drop=0,seed=0",m.yaml,anchor,drop,0.0,0.0,normal,0.0,0,7,64,test,0.5,0.25,0.2,0.6,0.33333,81.3,61.23,912.3,finished',
        '"obj_drop=0.5,seed=0",m.yaml,anchor,drop,0.5,0.0,normal,0.0,0,7,64,test,0.45,0.25,0.2,0.6,0.33333,81.3,61.23,912.3,finished',
        '"obj_drop=0,seed=1",m.yaml,anchor,drop,0.0,0.0,normal,0.0,1,7,64,test,0.5,0.25,0.2,0.6,0.33333,81.3,61.23,912.3,finished',
        '"obj_drop=0.5,seed=1",m.yaml,anchor,drop,0.5,0.0,normal,0.0,1,7,64,test,0.45,0.25,0.2,0.6,0.33333,81.3,61.23,912.3,finished',
    ]
    assert bench.said[0].startswith("4 runs, 1 at a time")
    assert bench.said[1] == f"[1/4] start  {RUNS[0]}"
    assert bench.said[2].startswith(f"[1/4] done   {RUNS[0]}  mAP50 50.0 points on test  ")
    assert "; 3 to go, about " in bench.said[2]
    assert bench.said[-1] == f"4 finished: {folder / 'results.csv'}"


def test_the_same_name_again_repeats_nothing(bench: Bench) -> None:
    bench.sweep()
    before = {path: path.stat().st_mtime_ns for path in bench.folder.glob("mine/runs/*/*")}
    (bench.folder / "mine" / "results.csv").unlink()
    bench.sweep({"check": {"kind": "ConfigError", "error": "nothing is left to check"}})
    assert bench.started() == RUNS
    assert before == {path: path.stat().st_mtime_ns for path in bench.folder.glob("mine/runs/*/*")}
    assert len(bench.rows()) == 5


def test_a_failed_run_is_recorded_the_others_go_on_and_the_next_call_tries_it_again(bench: Bench) -> None:
    plan = {RUNS[0]: ["fail", "ok"], RUNS[1]: ["die", "ok"], RUNS[2]: ["quit", "ok"]}
    bench.sweep(plan, epochs="7", imgsz="64")
    assert bench.started() == RUNS
    assert [bench.record(run)["status"] for run in RUNS] == ["failed", "failed", "failed", "finished"]
    assert bench.record(RUNS[0])["error"] == "ValueError: as planned"
    killed = f"the run was ended by SIGKILL (out of memory?): a line of log of {RUNS[1]}"
    assert bench.record(RUNS[1])["error"] == killed
    assert bench.record(RUNS[1])["log_tail"] == [f"a line of log of {RUNS[1]}"]
    assert bench.record(RUNS[1])["config"]["seed"] == 0
    assert bench.record(RUNS[2])["error"].startswith("the run ended with code 7 and no record")
    assert bench.rows()[2] == '"obj_drop=0.5,seed=0",m.yaml,stock,,0.5,0.0,normal,0.0,0,7,64,,,,,,,,,,failed'
    assert bench.said[4].startswith(f"[2/4] FAILED {RUNS[1]}  {killed}")
    assert "1 finished, 3 failed (the same name tries them again)" in bench.said[-1]
    bench.sweep(plan, epochs="7", imgsz="64")
    assert bench.started() == [*RUNS, *RUNS[:3]]
    assert [row.rpartition(",")[2] for row in bench.rows()] == ["status", *["finished"] * 4]


def test_a_sweep_in_which_nothing_finished_is_an_error(bench: Bench) -> None:
    with pytest.raises(RunError, match=rf"no run finished; the first, {RUNS[0]}: ValueError: as planned"):
        bench.sweep(dict.fromkeys(RUNS, "fail"))
    assert [row.rpartition(",")[2] for row in bench.rows()] == ["status", *["failed"] * 4]


def test_a_half_written_record_is_not_trusted(bench: Bench) -> None:
    bench.sweep({RUNS[0]: ["half", "ok"]})
    assert bench.record(RUNS[0])["status"] == "failed"
    other = bench.folder / "mine" / "runs" / RUNS[1] / "record.json"
    for untrusted in ('{"schema": 1, "status": "fin', '{"schema": 99, "status": "finished"}', "[]", "null", ""):
        other.write_text(untrusted, "utf-8")
        bench.sweep()
        assert bench.record(RUNS[1])["status"] == "finished"
    assert bench.started() == [*RUNS, *RUNS[:2], *[RUNS[1]] * 4]


def test_a_record_that_cannot_be_is_a_failed_run_and_says_why(bench: Bench) -> None:
    bench.sweep({RUNS[0]: "odd"})
    assert bench.record(RUNS[0])["error"].endswith("metrics.test.mAP50 is 50, not a fraction in [0, 1]")
    assert bench.record(RUNS[1])["status"] == "finished"


def test_children_share_the_cores(bench: Bench) -> None:
    bench.sweep({"seconds": 0.4}, jobs="2")
    starts = {run: float(when) for _, run, _, _, when, *_ in bench.log("start")}
    ends = {run: float(when) for _, run, _, _, when in bench.log("end")}
    assert {threads for _, _, _, threads, *_ in bench.log("start")} == {str(max(1, cores() // 2))}
    at_once = [sum(starts[other] <= starts[run] < ends[other] for other in RUNS) for run in RUNS]
    assert max(at_once) == 2


def test_children_share_images_in_memory_and_none_are_left(bench: Bench) -> None:
    left = bench.folder / "mine" / "pixels" / "4711.pixels"  # of a sweep that was killed
    hang = {RUNS[1]: ["hang", "ok"]}
    sweep = bench.start(hang)
    assert until(lambda: len(bench.log("start")) == 2)
    assert all("--share" in words for words in bench.log("start"))
    sweep.kill()
    sweep.communicate()
    left.parent.mkdir()
    left.touch()
    bench.sweep(hang)
    assert not left.parent.exists()


def test_a_killed_child_does_not_stop_the_sweep(bench: Bench) -> None:
    process = bench.start({RUNS[1]: "hang"})
    assert until(lambda: len(bench.log("start")) == 2)
    os.kill(int(bench.log("start")[1][2]), signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert bench.started() == RUNS
    assert "SIGKILL" in bench.record(RUNS[1])["error"]
    assert said.splitlines()[-1].startswith("3 finished, 1 failed")


def test_a_killed_sweep_takes_its_children_along_and_is_continued(bench: Bench) -> None:
    process = bench.start({RUNS[2]: ["hang", "ok"]})
    assert until(lambda: len(bench.log("start")) == 3)
    with pytest.raises(RunError, match=rf"another sweep works in .*mine \(process {process.pid}\)"):
        bench.sweep({RUNS[2]: ["hang", "ok"]})
    process.kill()
    process.communicate(timeout=30)
    assert gone(int(bench.log("start")[2][2]))
    assert not (bench.folder / "mine" / "runs" / RUNS[2] / "record.json").exists()
    assert (bench.folder / "mine" / "lock").read_text("utf-8") == str(process.pid)  # of the dead, and no hindrance
    bench.sweep({RUNS[2]: ["hang", "ok"]})
    assert bench.started() == [*RUNS[:3], *RUNS[2:]]
    assert bench.said[0].startswith("4 runs, 2 finished before, 1 at a time")
    assert len(bench.rows()) == 5


def test_ctrl_c_stops_the_children_and_leaves_the_folder_resumable(bench: Bench) -> None:
    process = bench.start({RUNS[1]: ["hang", "ok"], RUNS[2]: ["hang", "ok"]}, jobs="2")
    assert until(lambda: len(bench.log("start")) == 3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert all(gone(int(pid)) for _, _, pid, *_ in bench.log("start"))
    assert [(bench.folder / "mine" / "runs" / run / "record.json").exists() for run in RUNS] == [True, *[False] * 3]
    bench.sweep({})
    assert sorted(bench.started()) == sorted([*RUNS, *RUNS[1:3]])


def test_ctrl_c_stops_what_a_child_has_started_too(bench: Bench) -> None:
    process = bench.start({RUNS[0]: "brood"})
    assert until(lambda: bench.log("grandchild"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert gone(int(bench.log("grandchild")[0][1]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ConfigError", ConfigError), ("ModelError", ModelError), ("ZeroDivisionError", RunError)],
)
def test_a_grid_that_the_host_refuses_leaves_nothing(bench: Bench, kind: str, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="unknown flag epoch"):
        bench.sweep({"check": {"kind": kind, "error": "unknown flag epoch=3"}})
    assert not (bench.folder / "mine").exists()
    assert bench.started() == []


def test_a_check_that_breaks_is_an_error_too(bench: Bench) -> None:
    with pytest.raises(RunError, match=r"could not be checked: .*no such module"):
        sweep(bench.args(), root=bench.folder, runner=["sh", "-c", "echo no such module >&2; exit 1"])
    assert not (bench.folder / "mine").exists()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"obj_drop": "0,2"}, ConfigError, "out of range"),
        ({"data": "nowhere.yaml"}, DataError, "nowhere.yaml does not exist"),
    ],
)
def test_a_bad_grid_leaves_nothing(bench: Bench, given: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bench.sweep(**given)
    assert not (bench.folder / "mine").exists()


def test_missing_test_images_are_noticed_before_the_first_run(bench: Bench) -> None:
    bench.data.write_text(bench.data.read_text("utf-8").replace("images/test", "images/tset"), "utf-8")
    with pytest.raises(DataError, match=r"test images not found: .*tset"):
        bench.sweep()
    assert not (bench.folder / "mine").exists()


def test_data_without_a_single_training_label_leave_nothing(bench: Bench) -> None:
    for path in bench.data.parent.glob("labels/train/*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="no training image has a label"):
        bench.sweep()
    assert not (bench.folder / "mine").exists()


def test_data_without_a_label_to_evaluate_on_leave_nothing(bench: Bench) -> None:
    for split in ("val", "test"):
        bench.sweep(name=split)  # one that has labels is enough
        for path in bench.data.parent.glob(f"labels/{split}/*.txt"):
            path.unlink()
    with pytest.raises(DataError, match="no image of val or test has a label, to evaluate a training on"):
        bench.sweep()
    assert not (bench.folder / "mine").exists()


def test_a_place_from_which_no_checkpoint_loads_is_refused(bench: Bench) -> None:
    bench.folder = bench.folder / "what?"
    bench.folder.mkdir()
    with pytest.raises(RunError, match=r"what\?/mine has a \?, at which Ultralytics ends the path of a checkpoint"):
        bench.sweep()
    assert not (bench.folder / "mine").exists()


def test_a_sweep_goes_on_on_another_device_and_says_so(bench: Bench) -> None:
    bench.sweep(device="cpu")
    bench.said.clear()
    bench.sweep(device="0")
    assert bench.said[0].startswith("device was cpu, is 0: the runs that are finished stay")
    bench.said.clear()
    bench.sweep(device="0")
    assert not any("device was" in line for line in bench.said)


def test_the_same_flags_in_another_order_train_nothing_again(bench: Bench) -> None:
    bench.sweep(epochs="7,8", lr0="0.1,0.2", imgsz="32")
    with pytest.raises(
        RunError, match=r"under other names, such as \S*epochs=7,lr0=0.1\S* and not \S*lr0=0.1,epochs=7"
    ):
        bench.sweep(lr0="0.1,0.2", epochs="7,8", imgsz="32")
    bench.said.clear()
    bench.sweep(imgsz="32", epochs="7,8", lr0="0.1,0.2")
    assert "finished before" in " ".join(bench.said)


def test_a_folder_of_another_grid_is_refused(bench: Bench) -> None:
    bench.sweep(epochs="7")
    before = sorted(bench.folder.rglob("mine/**"))
    with pytest.raises(
        RunError, match=r"another grid: obj_drop was 0,0.5, is 0,0.9; epochs was 7, is 8; lr0 was not given"
    ):
        bench.sweep(obj_drop="0,0.9", epochs="8", lr0="0.1")
    assert sorted(bench.folder.rglob("mine/**")) == before
    bench.sweep(epochs="7", jobs="2")  # how it is run is not what is run
    assert bench.started() == RUNS


def test_a_folder_that_is_no_sweep_is_refused(bench: Bench) -> None:
    (bench.folder / "mine").mkdir()
    (bench.folder / "mine" / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(RunError, match="is not a sweep"):
        bench.sweep()
    assert [path.name for path in (bench.folder / "mine").iterdir()] == ["thesis.txt"]


def test_without_a_name_the_folder_is_a_time_stamp_of_its_own(bench: Bench) -> None:
    first, second = (bench.sweep(name="", obj_drop="0", seeds="0") for _ in range(2))
    assert first != second
    assert first.name[:8].isdigit()


def test_withheld_labels_are_made_once_for_each_protocol(bench: Bench) -> None:
    folder = bench.sweep(protocol="normal,percent,extreme", rate="0.25,0.5", obj_drop="0", label_seed="3", seeds="0,1")
    assert sorted(path.name for path in (folder / "data").iterdir()) == [
        "extreme-0-3",
        "percent-0.25-3",
        "percent-0.5-3",
    ]
    made = folder / "data" / "percent-0.5-3"
    labels = bench.record("protocol=percent,rate=0.5,seed=1")["config"]["labels"]
    assert labels["data"] == str(made / "data.yaml")
    assert (labels["protocol"], labels["rate"], labels["seed"]) == ("percent", 0.5, 3)
    manifest = json.loads((made / "manifest.json").read_text("utf-8"))
    assert labels["manifest"] == {"asked": 0.5, "reached": manifest["reached"], "sha256": manifest["sha256"]}
    extreme = bench.record("protocol=extreme,seed=0")["config"]["labels"]
    assert extreme["rate"] == round(extreme["manifest"]["reached"], 4) > 0
    rates = {row["run"]: row["drop_rate"] for row in csv.DictReader(bench.rows())}
    assert [rates[run] for run in rates if run.endswith("seed=0")] == ["0.0", "0.25", "0.5", str(extreme["rate"])]
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("data/*/manifest.json")}
    bench.sweep(protocol="normal,percent,extreme", rate="0.25,0.5", obj_drop="0", label_seed="3", seeds="0,1")
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("data/*/manifest.json")}


def test_labels_move_with_the_seed_and_a_set_is_made_once_for_the_runs_that_share_it(bench: Bench) -> None:
    given = {"protocol": "percent", "rate": "0.5", "complete": "True"}
    folder = bench.sweep(**given)
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["percent-0.5-0", "percent-0.5-1"]
    labels = {run: bench.record(run)["config"]["labels"] for run in RUNS}
    assert [labels[run]["seed"] for run in RUNS] == [0, 0, 1, 1]
    assert [labels[run]["data"] for run in RUNS] == [
        str(folder / "data" / f"percent-0.5-{seed}" / "data.yaml") for seed in (0, 0, 1, 1)
    ]
    whole = bench.record("obj_drop=0,protocol=normal,seed=1")["config"]["labels"]
    assert whole == {"protocol": "normal", "rate": 0.0, "seed": 0, "data": str(bench.data), "manifest": None}


def test_of_data_that_are_partial_by_nature_there_are_no_complete_labels(bench: Bench) -> None:
    (bench.data.parent / "manifest.json").write_text('{"asked": 0.5, "reached": 0.497}', "utf-8")
    given = {"protocol": "percent", "rate": "0.5"}
    with pytest.raises(ConfigError, match=r"complete=True .* comes with 50 % of its training boxes withheld"):
        bench.sweep(complete="True", **given)
    assert not (bench.folder / "mine").exists()
    bench.sweep(**given)


def test_a_sweep_begun_with_one_label_seed_goes_on_with_it(bench: Bench) -> None:
    given = {"protocol": "percent", "rate": "0.5", "obj_drop": "0"}
    runs = ["seed=0", "seed=1"]
    with pytest.raises(RunError, match="no run finished"):
        bench.sweep(dict.fromkeys(runs, "fail"), label_seed="0", **given)
    plan = bench.folder / "mine" / "sweep.json"
    content = json.loads(plan.read_text("utf-8"))
    plan.write_text(json.dumps({**content, "asked": {**content["asked"], "label_seed": 0}}), "utf-8")  # as it was
    for _ in range(2):
        bench.sweep(**given)
        assert json.loads(plan.read_text("utf-8"))["asked"]["label_seed"] == 0
    assert [bench.record(run)["config"]["labels"]["seed"] for run in runs] == [0, 0]
    assert any("label_seed=0" in line for line in bench.said)
    plan.write_text(json.dumps(content), "utf-8")  # of this version: given is given
    with pytest.raises(RunError, match="label_seed was 0, is not given"):
        bench.sweep(**given)


def test_a_grid_whose_labels_cannot_be_made_can_be_corrected_under_the_same_name(bench: Bench) -> None:
    images = [
        *sorted(bench.data.parent.glob("images/train/*.jpg")),
        bench.data.parent / "images" / "train" / "gone.jpg",
    ]
    (bench.data.parent / "list.txt").write_text("\n".join(map(str, images)), "utf-8")
    bench.data.write_text(bench.data.read_text("utf-8").replace("images/train", "list.txt"), "utf-8")
    with pytest.raises(DataError, match=r"1 images of train do not exist"):
        bench.sweep(protocol="extreme")
    assert bench.started() == []
    bench.sweep(protocol="normal")
    assert bench.started() == RUNS


def cells(bench: Bench, **given: str) -> list[dict[str, str]]:
    base = {"model": "m.yaml", "data": str(bench.data), "name": "mine", "seeds": "0,1", **given}
    return [{**base, "loss": "ohem,bce"}, {**base, "loss": "focal", "focal_gamma": "0,5"}, {**base, "loss": "bce"}]


CELLS = ["loss=ohem", "loss=bce", "loss=focal,focal_gamma=0", "loss=focal,focal_gamma=5"]


def test_several_grids_share_a_folder_and_are_continued_by_its_name(bench: Bench) -> None:
    runs = [f"{run},seed={seed}" for seed in (0, 1) for run in CELLS]
    bench.plan.write_text(json.dumps({runs[1]: ["die", "ok"]}), "utf-8")
    study = {"key": "brl.table4", "given": {"data": "my.yaml"}}

    def work(**given: str) -> None:
        sweep(cells(bench, **given), study=study, root=bench.folder, runner=bench.runner, say=bench.said.append)

    work()
    assert bench.started() == runs
    plan = json.loads((bench.folder / "mine" / "sweep.json").read_text("utf-8"))
    assert (plan["runs"], plan["study"]) == (runs, study)
    assert plan["asked"]["cells"] == ["loss=ohem,bce", "loss=focal focal_gamma=0,5", "loss=bce"]
    assert plan["asked"]["seeds"] == [0, 1]
    config = json.loads((bench.folder / "mine" / "runs" / runs[3] / "config.json").read_text("utf-8"))
    assert (config["varied"], config["given"]) == ({"loss": "focal", "focal_gamma": 5.0}, ["loss", "focal_gamma"])
    work()
    assert bench.started() == [*runs, runs[1]]
    with pytest.raises(RunError, match=r"was made with another grid: epochs was not given, is 3\."):
        work(epochs="3")
    changed = cells(bench)
    changed[1]["focal_gamma"] = "0,6"
    with pytest.raises(RunError, match="cells was loss=ohem,bce,loss=focal focal_gamma=0,5,"):
        sweep(changed, root=bench.folder, runner=bench.runner, say=bench.said.append)


def test_a_rate_of_nothing_is_a_training_set_like_the_others(bench: Bench) -> None:
    folder = bench.sweep(obj_drop="0", seeds="0", protocol="percent", rate="0,0.5")
    labels_of = {rate: (folder / "data" / f"percent-{rate}-0" / "withheld").rglob("*.txt") for rate in ("0", "0.5")}
    withheld = {rate: sum(path.stat().st_size for path in paths) for rate, paths in labels_of.items()}
    assert withheld["0"] == 0 < withheld["0.5"]
    labels = bench.record("rate=0,seed=0")["config"]["labels"]
    assert (labels["protocol"], labels["rate"], labels["manifest"]["reached"]) == ("percent", 0.0, 0.0)
    assert bench.record("rate=0.5,seed=0")["config"]["labels"]["manifest"]["reached"] > 0


def test_noisy_sets_are_made_and_recorded(bench: Bench) -> None:
    folder = bench.sweep(obj_drop="0", seeds="0", protocol="percent", rate="0.5", extra="0,0.5", jitter="0.5")
    made = sorted(path.name for path in (folder / "data").iterdir())
    assert made == [
        "percent-0.5-0-extra-0.5-jitter-0.5-jitter_iou-0.5-0.9",
        "percent-0.5-0-jitter-0.5-jitter_iou-0.5-0.9",
    ]
    labels = bench.record("extra=0.5,seed=0")["config"]["labels"]
    assert (labels["extra"], labels["jitter"], labels["jitter_iou"]) == (0.5, 0.5, "[0.5,0.9]")
    told = json.loads((folder / "data" / made[0] / "manifest.json").read_text("utf-8"))
    assert {kind: own["asked"] for kind, own in told["noise"].items()} == {
        "missing": 0.5, "extra": 0.5, "jitter": 0.5, "class_flip": 0.0,
    }  # fmt: skip
    with open(folder / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["drop_rate"], row["extra"], row["jitter"]) for row in rows] == [
        ("0.5", "0.0", "0.5"),
        ("0.5",) + ("0.5",) * 2,
    ]
    assert "class_flip" not in rows[0]


def test_a_diagnosis_is_of_the_runs_with_withheld_labels(bench: Bench) -> None:
    bench.sweep(obj_drop="0", seeds="0", protocol="percent", rate="0.5", complete="True", diagnose="True")
    configs = {run: bench.record(run)["config"]["train"]["diagnose"] for run in ("seed=0", "protocol=normal,seed=0")}
    assert configs == {"seed=0": True, "protocol=normal,seed=0": False}
    task = json.loads((bench.folder / "mine/runs/protocol=normal,seed=0/config.json").read_text("utf-8"))
    assert "diagnose" not in task["given"]


def test_a_diagnosis_of_complete_labels_is_refused(bench: Bench) -> None:
    with pytest.raises(DataError, match=r"diagnose=True has no meaning where no labels are withheld: .* has none"):
        bench.sweep(diagnose="True")
    assert not (bench.folder / "mine").exists()
