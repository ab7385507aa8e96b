"""Sweeps on a Ray cluster: the same as on one machine, whatever becomes of a machine. Trainings are stood in for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rebalance.errors import ConfigError, RunError
from rebalance.experiments.cluster import resources
from rebalance.experiments.sweep import sweep

FAKE = Path(__file__).with_name("fake_run.py")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"CPU": 2.0, "memory": 1e9}
RUNS = [f"obj_drop={drop},seed={seed}" for seed in (0, 1) for drop in ("0", "0.5")]


@dataclass
class Bench:
    """A folder to sweep in, by a process of its own."""

    folder: Path
    data: Path

    def command(self, plan: dict[str, Any], **given: str) -> list[str]:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(plan), "utf-8")
        program = (
            "import json, sys; from pathlib import Path; from rebalance.cli.main import guarded\n"
            "from rebalance.experiments.sweep import sweep\n"
            "args, root, runner = json.loads(sys.argv[1])\n"
            "sys.exit(guarded(lambda: sweep(args, root=Path(root), runner=runner)))"
        )
        args = {"model": "m.yaml", "data": str(self.data), "obj_drop": "0,0.5", "seeds": "0,1", "name": "mine", **given}
        return [
            sys.executable,
            "-c",
            program,
            json.dumps([args, str(self.folder), [sys.executable, str(FAKE), str(path)]]),
        ]

    def start(self, plan: dict[str, Any], **given: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            self.command(plan, **given),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=self.folder,
        )  # fmt: skip

    def log(self, word: str) -> list[list[str]]:
        path = self.folder / "plan.log"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(word)]

    def files(self) -> list[str]:
        """What the sweep left, but for what each process does."""
        found = (path.relative_to(self.folder / "mine") for path in (self.folder / "mine").rglob("*"))
        return sorted(str(path) for path in found if path.name not in (".held", "attempts"))


def until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def bench(tmp_path: Path, tiny_dataset: Path) -> Bench:
    return Bench(tmp_path, tiny_dataset)


@dataclass
class Machines:
    """A cluster on this machine: two workers with a CPU and a GPU each, as far as Ray knows."""

    cluster: Any
    workers: list[Any]

    def fill(self) -> None:
        while len(self.workers) < 2:
            self.workers.append(self.cluster.add_node(num_cpus=1, num_gpus=1))


@pytest.fixture
def machines(all_machines: Machines) -> Machines:
    all_machines.fill()
    return all_machines


@pytest.fixture(scope="module")
def all_machines() -> Iterator[Machines]:
    utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed (pip install ray)")
    made = Machines(utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0}), [])
    yield made
    made.cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_machine_that_is_lost_costs_no_run(bench: Bench, machines: Machines, tmp_path: Path) -> None:
    child = bench.start({"seconds": 4}, executor="ray", address=machines.cluster.address)
    until(lambda: len(bench.log("start")) == 2 or child.poll() is not None)
    machines.cluster.remove_node(machines.workers.pop(), allow_graceful=False)
    said = child.communicate()[0]
    assert child.returncode == 0, said
    first, broken = bench.log("start"), {run for run, *_ in bench.log("start")} - {run for run, *_ in bench.log("end")}
    assert not broken
    again = [run for run, *_ in first if [other for other, *_ in first].count(run) > 1]
    assert len(first) == 5
    assert len(set(again)) == 1  # the one that was at work there, and no other
    assert not any(alive(pid) for _, pid, *_ in first)
    assert {row[4] for row in first} == {"--watch"}
    assert all(row[5:] == ["--held", "--device=0"] for row in first)  # the GPU that Ray gave
    assert "4 runs, on 2 machines of a Ray cluster, 1 at a time on each, 1 CPUs and 1 GPUs each: " in said
    assert said.splitlines()[-1] == f"4 finished: {bench.folder / 'mine' / 'results.csv'}"
    local = Bench(tmp_path / "local", bench.data)
    local.folder.mkdir()
    subprocess.run(local.command({}), check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=bench.folder)
    assert bench.files() == local.files()
    for run in RUNS:
        one, other = (each.folder / "mine" / "runs" / run / "record.json" for each in (bench, local))
        assert one.read_bytes() == other.read_bytes()
    assert (bench.folder / "mine" / "results.csv").read_bytes() == (local.folder / "mine" / "results.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_ends_its_tasks_and_is_continued(
    bench: Bench, machines: Machines, stop: signal.Signals
) -> None:
    ray = {"executor": "ray", "address": machines.cluster.address, "seeds": "0"}
    child = bench.start({RUNS[1]: "hang"}, **ray)
    until(lambda: (bench.log("end") and len(bench.log("start")) == 2) or child.poll() is not None)
    child.send_signal(stop)
    said = child.communicate()[0]
    assert child.returncode == (130 if stop == signal.SIGINT else -9), said
    until(lambda: not any(alive(pid) for _, pid, *_ in bench.log("start")))
    assert not (bench.folder / "mine" / "runs" / RUNS[1] / "record.json").exists()
    child = bench.start({}, **ray)
    said = child.communicate()[0]
    assert child.returncode == 0, said
    assert [run for run, *_ in bench.log("start")].count(RUNS[0]) == 1
    assert "2 runs, 1 finished before, on 2 machines" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_fails_by_itself_is_not_tried_again(bench: Bench, machines: Machines) -> None:
    plan = {RUNS[0]: "fail", RUNS[1]: "quit"}
    child = bench.start(plan, executor="ray", address=machines.cluster.address, device="cpu")
    said = child.communicate()[0]
    assert child.returncode == 0, said
    assert sorted(run for run, *_ in bench.log("start")) == sorted(RUNS)
    assert all(row[5:] == ["--held"] for row in bench.log("start"))
    errors = [
        json.loads((bench.folder / "mine" / "runs" / run / "record.json").read_text("utf-8"))["error"] for run in RUNS
    ]
    assert errors[0] == "ValueError: as planned"
    assert errors[1] == f"the run ended with code 7 and no record: a line of log of {RUNS[1]}"
    assert errors[2:] == [None, None]
    child = bench.start({}, executor="ray", address=machines.cluster.address, name="two", device="0,1")
    assert "device=0,1: no machine of the cluster has 2 GPUs for Ray; the most is 1" in child.communicate()[0]
    assert child.returncode == 2
    assert not (bench.folder / "two").exists()


def test_each_run_asks_for_its_share() -> None:
    one, four = {**SMALL, "GPU": 1.0}, {"CPU": 16.0, "GPU": 4.0}
    assert resources([SMALL, SMALL], None, 1) == {"num_cpus": 2, "num_gpus": 0}
    assert resources([SMALL, four], "cpu", 2) == {"num_cpus": 1, "num_gpus": 0}
    assert resources([SMALL, SMALL], None, 9) == {"num_cpus": 1, "num_gpus": 0}
    assert resources([SMALL, four], None, 2) == {"num_cpus": 8, "num_gpus": 1}  # on the machine that has them
    assert resources([one], 0, 2) == {"num_cpus": 1, "num_gpus": 0.5}
    assert resources([four], "cuda:0", 12) == {"num_cpus": 1, "num_gpus": 0.3333}
    assert resources([four, one], -1, 1) == {"num_cpus": 2, "num_gpus": 1}
    assert resources([four, one], "0,1", 1) == {"num_cpus": 16, "num_gpus": 2}
    assert resources([four], [0, 1], 1) == {"num_cpus": 16, "num_gpus": 2}
    with pytest.raises(ConfigError, match="device=0: no machine of the cluster has 1 GPUs for Ray; the most is 0"):
        resources([SMALL], 0, 1)
    with pytest.raises(ConfigError, match="device=mps: executor=ray gives CPUs and CUDA devices"):
        resources([SMALL], "mps", 1)


def test_without_ray_it_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    given = {"model": "m.yaml", "data": str(bench.data), "name": "mine"}
    with pytest.raises(RunError, match="executor=ray needs Ray, which is not installed: pip install ray"):
        sweep({**given, "executor": "ray"}, root=bench.folder)
    with pytest.raises(ConfigError, match="address=1:2 has no effect with executor=local; give executor=ray"):
        sweep({**given, "address": "1:2"}, root=bench.folder)
    with pytest.raises(ConfigError, match="executor=rai is not one of local, ray"):
        sweep({**given, "executor": "rai"}, root=bench.folder)
    assert not (bench.folder / "mine").exists()
