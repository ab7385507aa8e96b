"""The runs of a sweep as tasks of a Ray cluster: `executor=ray`.

A task starts the command that a sweep starts on its own machine, in the same run folder: all machines share the file
system with the sweep, see its working directory under the same path and have this package installed. Ray places the
tasks by the CPUs, and the share of a GPU, that a run asks for, and tries one again elsewhere whose worker was lost; the
run then goes on from its last saved epoch, as after any kill. A run that fails by itself is recorded, not tried again.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rebalance.errors import ConfigError, RunError, not_there
from rebalance.experiments.grid import Grid, Run
from rebalance.experiments.record import CONFIG, LOG, RECORD, RUNS, Record, read_if_whole
from rebalance.experiments.sweep import Crew, stop

RETRIES = 5  # times that a run is tried again whose worker was lost
_POLL = 0.1  # seconds between looks at a child
_GRACE = 20.0  # seconds that a cancelled task gets to stop its child


def require_ray() -> Any:
    """Return the package `ray`.

    Raises:
        RunError: it is not installed, or cannot be imported.
    """
    try:
        import ray
    except ImportError as error:
        raise not_there("executor=ray needs Ray", "ray", error) from None
    return ray


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """A cluster: that of the address, else the one that this machine belongs to, else one of this machine alone.

    Raises:
        RunError: it cannot be reached.
    """
    ray = require_ray()
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # whatever its parts raise
            what = f"address={address}" if address else "the Ray cluster of this machine"
            raise RunError(f"{what} cannot be reached: {' '.join(str(error).split())[:200]}") from None
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


def gpus_of(device: Any) -> int | None:
    """How many GPUs `device=` asks for; None: one where there are some, as where it is not given.

    Raises:
        ConfigError: a device that Ray gives to nobody.
    """
    text = "" if device is None else str(device).lower().strip("[]() ").replace("cuda:", "").replace(" ", "")
    if text in ("", "none"):
        return None
    if text == "cpu":
        return 0
    if text == "cuda" or all(part.removeprefix("-").isdecimal() for part in text.split(",")):
        return len(text.split(","))
    raise ConfigError(f"device={device}: executor=ray gives CPUs and CUDA devices to runs")


def resources(nodes: Sequence[Mapping[str, float]], device: Any, jobs: int) -> dict[str, float]:
    """Return the CPUs and GPUs that each run asks for, so that `jobs` are at work on each machine.

    Args:
        nodes: resources of each machine.
        device: of the run, as given.
        jobs: runs at a time on each machine.

    Raises:
        ConfigError: no machine has so many.
    """
    asked = gpus_of(device)
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    if asked is None:
        asked = 1 if most >= 1 else 0
    if asked > most:
        raise ConfigError(f"device={device}: no machine of the cluster has {asked} GPUs for Ray; the most is {most:g}")
    fitting = [node for node in nodes if node.get("GPU", 0) >= asked]
    cpus = min(int(node.get("CPU", 0)) for node in fitting)
    if not asked:
        return {"num_cpus": max(1, cpus // jobs), "num_gpus": 0}
    least = min(int(node["GPU"]) for node in fitting)
    share = math.floor(1e4 / math.ceil(jobs / least)) / 1e4 if asked == 1 else asked  # Ray counts in ten thousandths
    return {"num_cpus": max(1, cpus // jobs), "num_gpus": share}


def carry(command: Sequence[str], folder: str, cwd: str, threads: int, more: Sequence[str]) -> tuple[int, float, str]:
    """On a machine of the cluster: carry out a run; return its exit code, seconds and what the machine lacks."""
    import ray

    began, place, here = time.monotonic(), Path(folder), platform.node()
    if not (place / CONFIG).is_file() or not Path(cwd).is_dir():
        return 2, 0.0, f"{here} does not see {place}: executor=ray needs a file system that all machines share"
    done = read_if_whole(Record, place / RECORD)
    if done is not None and done.finished:  # the worker was lost after that
        return 0, 0.0, ""
    gpus = ",".join(map(str, ray.get_gpu_ids()))
    settings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    program = [part or sys.executable for part in command]
    with open(place / LOG, "ab") as log:
        log.write(f"rebalance: on {here}, {threads} threads{f', GPU {gpus}' if gpus else ''}\n".encode())
        log.flush()
        child = subprocess.Popen(
            [*program, folder, "--watch", "--held", *[f"--device={gpus}"] * bool(gpus), *more],
            stdin=subprocess.PIPE,  # closes when this worker dies, however it dies; the child ends itself then
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **settings, "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        while child.poll() is None:
            time.sleep(_POLL)
    except BaseException:  # the task is cancelled
        stop([child])
        raise
    if child.stdin:
        child.stdin.close()
    return child.returncode, time.monotonic() - began, ""


class _Task:
    """A run on the cluster, with what a crew asks of a child."""

    stdin = None

    def __init__(self, ray: Any, ref: Any) -> None:
        self.ray, self.ref = ray, ref
        self.returncode: int | None = None
        self.seconds, self.error = 0.0, ""

    def poll(self) -> int | None:
        """The exit code, None where it is not over."""
        if self.returncode is None and self.ray.wait([self.ref], timeout=0)[0]:
            try:
                self.returncode, self.seconds, self.error = self.ray.get(self.ref)
            except self.ray.exceptions.RayError as error:
                told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
                self.returncode, self.error = 1, f"lost on the cluster, {type(error).__name__}: {told[:200]}"
        return self.returncode


class RayCrew(Crew):
    """Hands every run to the cluster at once and waits; `jobs` is how many are at work on all machines together."""

    def __init__(self, grid: Grid, folder: Path, runner: Sequence[str], say: Callable[[str], None], ray: Any) -> None:
        super().__init__(grid, folder, runner, say)
        self.ray, here = ray, grid.flags.jobs
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not alive:
            raise RunError("no machine of the Ray cluster has a CPU for runs")
        self.asked = {run.id: resources(alive, run.host.get("device"), here) for run in grid.runs}
        self.jobs = here * len(alive)
        self.machines = len(alive)

    def pace(self, count: int) -> str:
        """How so many runs will be at work, in words."""
        share = {key: max(one[key] for one in self.asked.values()) for key in ("num_cpus", "num_gpus")}
        gpus = f" and {share['num_gpus']:g} GPUs" if share["num_gpus"] else ""
        each = f"{self.jobs // self.machines} at a time on each, {share['num_cpus']:g} CPUs{gpus} each"
        return f", on {self.machines} machine{'s' * (self.machines > 1)} of a Ray cluster, {each}"

    def work(self, runs: Sequence[Run]) -> None:
        """Run all; whatever ends this early (Ctrl-C too) ends the tasks first."""
        waiting = deque(run.id for run in runs)
        self.keep_busy(lambda: waiting.popleft() if waiting else "", lambda: len(waiting), at_once=len(runs))

    def _start(self, run: str) -> Any:
        folder, asked = (self.folder / RUNS / run).absolute(), self.asked[run]
        (folder / RECORD).unlink(missing_ok=True)  # of a failed attempt
        self.say(f"{self.place[run]} sent   {run}")
        task = self.ray.remote(max_retries=RETRIES, name=run, **asked)(carry)
        command = ["" if part == sys.executable else part for part in self.runner]  # '': the machine's own Python
        threads = int(asked["num_cpus"])
        self.began[run] = time.monotonic()
        return _Task(self.ray, task.remote(command, str(folder), os.getcwd(), threads, tuple(self.more)))

    def _ending(self, run: str, child: Any) -> str:
        return child.error or super()._ending(run, child)

    def _seconds(self, run: str, child: Any) -> float:
        return child.seconds or super()._seconds(run, child)

    def _stop(self, children: Iterable[Any]) -> None:
        left = [child.ref for child in children if child.poll() is None]
        for ref in left:
            self.ray.cancel(ref)  # an interrupt, on which the task stops its child
        if left:
            _, left = self.ray.wait(left, num_returns=len(left), timeout=_GRACE)
        for ref in left:
            self.ray.cancel(ref, force=True)
