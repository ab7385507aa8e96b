"""A grid of trainings, each in a process and a folder of its own, that can be stopped and continued at any point.

runs/benchmark/<name>/
    sweep.json      what was asked for; the same name with another grid is refused
    lock            held while a sweep works here
    data/           training sets with withheld labels, made once
    runs/<run id>/  config.json, log.txt, train/ and, when the run is over, record.json
    results.csv     one row a run that is over
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rebalance import errors
from rebalance.data.protocols import uses_rate
from rebalance.errors import DataError, RunError
from rebalance.experiments.grid import Grid, Labels, Run, difference, read_grids
from rebalance.experiments.record import (
    CONFIG,
    LOG,
    RECORD,
    SCHEMA,
    cores,
    failed_record,
    read_json,
    read_record,
    shown,
    tail,
    write_json,
)
from rebalance.experiments.results import RUNS, SWEEP, headline, records, write_results
from rebalance.settings import SparsifyFlags, as_dict, parse, value_text

ROOT = Path("runs/benchmark")
RUNNER = (sys.executable, "-m", "rebalance.experiments.run")

_LOCK = "lock"
_POLL = 0.1  # seconds between looks at the children
_GRACE = 10.0  # seconds that a stopped child gets to end by itself


def sweep(
    args: Mapping[str, str] | Sequence[Mapping[str, str]],
    *,
    study: Mapping[str, Any] | None = None,
    root: Path = ROOT,
    runner: Sequence[str] = RUNNER,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Run a grid of trainings and return its folder; the same name again continues it.

    Finished runs are not repeated, failed and interrupted ones are tried again. A run that fails is recorded and the
    others go on.

    Args:
        args: key to text: flags of a sweep, of ours and of Ultralytics; a comma list makes a dimension. Several of
            these are grids that share a folder.
        study: what the report says about the table or figure that this is.
        root: where the folder `name` is made.
        runner: command that trains: with a run folder it makes the record there, with `--check` it reads the grid from
            standard input and answers with its error.
        say: takes each line of progress; default: print.

    Raises:
        ConfigError, ModelError, DataError: the grid cannot run; nothing was made.
        RunError: the folder holds another grid, another sweep works in it, or not one of the runs finished.
    """
    say = say or _print
    grid = read_grids([args] if isinstance(args, Mapping) else args)
    folder = root / (grid.flags.name or _time_stamp(root))
    _refuse_other_grid(folder, grid)
    open_runs = [run for run in grid.runs if not _finished(folder, run)]
    if open_runs:
        _check(runner, open_runs)
        sources = {data: _source(data) for data in dict.fromkeys(str(run.host["data"]) for run in grid.runs)}
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _refuse_other_grid(folder, grid)  # somebody may have made the folder since
        plan: dict[str, Any] = {"schema": SCHEMA, "asked": grid.asked, "runs": [run.id for run in grid.runs]}
        write_json(folder / SWEEP, {**plan, "study": dict(study)} if study else plan)
        open_runs = [run for run in grid.runs if not _finished(folder, run)]
        say(_opening(grid, folder, len(open_runs)))
        if open_runs:
            _write_configs(folder, open_runs, sources)
            _Crew(grid, folder, runner, say).work(open_runs)
        write_results(folder)
    say(_closing(grid, folder))
    _refuse_no_result(folder)
    return folder


@dataclass
class _Child:
    """One run at work."""

    number: int
    run: Run
    process: subprocess.Popen[bytes]
    began: float


class _Crew:
    """Keeps `jobs` children at work until every run is over."""

    def __init__(self, grid: Grid, folder: Path, runner: Sequence[str], say: Callable[[str], None]) -> None:
        self.number = {run.id: index for index, run in enumerate(grid.runs, 1)}
        self.folder, self.runner, self.say = folder, runner, say
        self.asked_jobs = grid.flags.jobs
        self.jobs = self.asked_jobs
        self.seconds: list[float] = []

    def work(self, runs: Sequence[Run]) -> None:
        """Run all; whatever ends this early (Ctrl-C too) stops the children first."""
        waiting, active = deque(runs), list[_Child]()
        self.jobs = min(self.asked_jobs, len(runs))
        try:
            while waiting or active:
                while waiting and len(active) < self.jobs:
                    active.append(self._start(waiting.popleft()))
                time.sleep(_POLL)
                for child in [child for child in active if child.process.poll() is not None]:
                    active.remove(child)
                    self._finish(child, len(waiting) + len(active))
        except BaseException:
            _stop([child.process for child in active])
            raise

    def _start(self, run: Run) -> _Child:
        number, folder = self.number[run.id], self.folder / RUNS / run.id
        (folder / RECORD).unlink(missing_ok=True)  # of a failed attempt
        threads = str(max(1, cores() // self.jobs))
        settings = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "MPLBACKEND": "Agg",
            "PYTHONUNBUFFERED": "1",
        }
        self.say(f"[{number}/{len(self.number)}] start  {run.id}")
        with open(folder / LOG, "ab") as log:
            process = subprocess.Popen(
                [*self.runner, str(folder), "--watch"],
                stdin=subprocess.PIPE,  # closes when this process dies, however it dies; the child ends itself then
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops its children by their id
            )
        return _Child(number, run, process, time.monotonic())

    def _finish(self, child: _Child, left: int) -> None:
        folder, seconds = self.folder / RUNS / child.run.id, time.monotonic() - child.began
        if child.process.stdin:
            child.process.stdin.close()
        record = read_record(folder)
        if record is None:
            error = _ending(child.process.returncode, folder / LOG)
            record = failed_record(read_json(folder / CONFIG) or {}, error, folder / LOG, {})
            write_json(folder / RECORD, record)
        write_results(self.folder)
        self.seconds.append(seconds)
        place = f"[{child.number}/{len(self.number)}]"
        if record["status"] == "failed":
            self.say(f"{place} FAILED {child.run.id}  {record['error']}{self._left(left)}")
            return
        split, metrics = headline(record)
        score = f"mAP50 {_points(metrics.get('mAP50'))} points on {split}"
        self.say(f"{place} done   {child.run.id}  {score}  {seconds:.0f} s{self._left(left)}")

    def _left(self, runs: int) -> str:
        """'; 3 to go, about 4 min': the mean so far, times the rounds that are left."""
        if not runs:
            return ""
        seconds = sum(self.seconds) / len(self.seconds) * -(-runs // self.jobs)
        return f"; {runs} to go, about {_duration(seconds)}"


def _refuse_other_grid(folder: Path, grid: Grid) -> None:
    """Raise where runs of other values are in the folder, or things that are not a sweep's."""
    made = read_json(folder / SWEEP)
    if made is None and folder.exists() and {path.name for path in folder.iterdir()} - {_LOCK}:
        raise RunError(f"{folder} is not a sweep (it has no {SWEEP}): give another name=")
    if made is None or not (folder / RUNS).exists():
        return
    asked = json.loads(json.dumps(grid.asked, default=str))  # as it comes back from the file
    changed = difference(made.get("asked", {}), asked)
    if changed:
        raise RunError(f"{folder} was made with another grid: {changed}. Give the same values, or another name=")


def _refuse_no_result(folder: Path) -> None:
    """Raise where there is nothing to report."""
    over = records(folder)
    if not any(record["status"] == "finished" for record in over):
        raise RunError(f"no run finished; the first, {over[0]['run']}: {over[0]['error']}")


def _finished(folder: Path, run: Run) -> bool:
    record = read_record(folder / RUNS / run.id)
    return record is not None and record["status"] == "finished"


def _check(runner: Sequence[str], runs: Sequence[Run]) -> None:
    """Let the host look at every configuration, in a process of its own: this one stays small."""
    grid = [{"train": {key: getattr(run.train, key) for key in run.given}, "host": dict(run.host)} for run in runs]
    done = subprocess.run(
        [*runner, "--check"], input=json.dumps(grid, default=str), capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        kind, error = answer["kind"], answer["error"]
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the grid could not be checked: {last}") from None
    if error is not None:
        raise getattr(errors, str(kind), RunError)(error)


def _source(data: str) -> Path:
    """The data set YAML behind `data=`, generated where it is the built-in set.

    Raises:
        DataError: it is not there or cannot be used, or the test images that it names are missing.
    """
    from rebalance.data import dataset
    from rebalance.data.demo import seafloor

    found = dataset.load(seafloor.built_in(data))
    for entry in found.splits.get("test", ()):
        if not os.path.exists(entry):
            raise DataError(f"{found.file}: test images not found: {entry}; correct 'test:' or take it out")
    return found.file.absolute()


def _write_configs(folder: Path, runs: Sequence[Run], sources: Mapping[str, Path]) -> None:
    """Make the training sets and then, for each run, its folder with config.json."""
    made = {}
    for run in runs:
        source = sources[str(run.host["data"])]
        made[run.id] = source, _training_set(folder, source, run.labels, several=len(sources) > 1)
    for run in runs:
        source, data = made[run.id]
        manifest = _manifest(data)
        labels = as_dict(run.labels)
        if manifest and run.labels.protocol != "normal" and not uses_rate(run.labels.protocol):
            labels["rate"] = round(float(manifest["reached"]), 4)  # nothing was asked: the data say how much it is
        config = {
            "train": as_dict(run.train),
            "host": {**run.host, "data": shown(source)},
            "labels": {**labels, "data": shown(data), "manifest": manifest},
            "seed": run.seed,
        }
        path = folder / RUNS / run.id
        path.mkdir(parents=True, exist_ok=True)
        content = {"schema": SCHEMA, "run": run.id, "config": config, "varied": run.varied, "given": run.given}
        write_json(path / CONFIG, content)


def _training_set(folder: Path, source: Path, labels: Labels, *, several: bool) -> Path:
    """The data YAML that a run trains on: the source, or the one with withheld labels in the sweep's folder."""
    if labels.protocol == "normal":
        return source
    name = f"{labels.protocol}-{value_text(labels.rate)}-{labels.seed}"
    if several:
        name += f"-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}"
    out = folder / "data" / name
    if not out.exists():  # it appears whole or not at all
        from rebalance.data.derive import sparsify

        out.parent.mkdir(exist_ok=True)
        asked = {"data": str(source), "protocol": labels.protocol, "seed": labels.seed, "out": str(out)}
        sparsify(parse(SparsifyFlags, {**asked, **({"rate": labels.rate} if uses_rate(labels.protocol) else {})}))
    return out / "data.yaml"


def _manifest(data: Path) -> dict[str, Any] | None:
    """Of a generated or sparsified set: what was asked, what was reached, and the hash of the manifest."""
    path = data.parent / "manifest.json"
    content = read_json(path)
    if content is None:
        return None
    digest = content.get("sha256") or hashlib.sha256(path.read_bytes()).hexdigest()
    return {"asked": content.get("asked"), "reached": content.get("reached"), "sha256": digest}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it when this process ends, however it ends, so no lock is ever stale."""
    with open(folder / _LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"another sweep works in {folder} (process {file.read().strip() or '?'})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End our own children and what they started, politely first."""
    for sent, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        for child in children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, sent)  # a child leads its own group
        deadline = time.monotonic() + patience
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))


def _ending(code: int, log: Path) -> str:
    """How a child ended that left no record, in one line."""
    last = (tail(log, 1) or ["its log is empty"])[-1]
    if code >= 0:
        return f"the run ended with code {code} and no record: {last}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"the run was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}: {last}"


def _time_stamp(root: Path) -> str:
    """A folder name that is free."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    names = [stamp, *(f"{stamp}-{number}" for number in range(2, 100))]
    return next(name for name in names if not (root / name).exists())


def _opening(grid: Grid, folder: Path, left: int) -> str:
    over = len(grid.runs) - left
    threads = max(1, cores() // max(1, min(grid.flags.jobs, left)))
    done = f", {over} finished before" if over else ""
    pace = f", {min(grid.flags.jobs, left)} at a time, {threads} threads each" if left else ""
    return f"{len(grid.runs)} runs{done}{pace}: {folder}"


def _closing(grid: Grid, folder: Path) -> str:
    finished = sum(_finished(folder, run) for run in grid.runs)
    failed = len(grid.runs) - finished
    again = f", {failed} failed (the same name tries them again)" if failed else ""
    return f"{finished} finished{again}: {folder / 'results.csv'}"


def _points(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(line: str) -> None:
    print(line, flush=True)
