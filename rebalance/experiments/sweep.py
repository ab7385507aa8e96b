"""A grid of trainings, each in a process and a folder of its own, that can be stopped and continued at any point.

runs/benchmark/<name>/
    sweep.json      what was asked for; the same name with another grid is refused
    lock            held while a sweep works here
    data/           training sets with withheld labels, made once
    runs/<run id>/  config.json, log.txt, train/ and, when the run is over, record.json
    results.csv     one row a run that is over
    pixels/         while it is at work: images that runs keep in memory (cache=ram), decoded once for all
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from filelock import FileLock, Timeout

from rebalance import errors
from rebalance.data.dataset import SPLITS, load
from rebalance.data.noise import KINDS, Noise
from rebalance.data.protocols import Withhold, uses_rate
from rebalance.errors import ConfigError, DataError, RunError
from rebalance.experiments import record as files
from rebalance.experiments.grid import DEVICE, Grid, Labels, Run, as_begun, difference, drawn, read_grids, withholds
from rebalance.experiments.machine import threads
from rebalance.experiments.record import (
    CONFIG,
    LOG,
    PIXELS,
    RECORD,
    RUNS,
    SWEEP,
    Plan,
    Record,
    Task,
    failed,
    read_if_whole,
)
from rebalance.files import clear, unfinished, write_whole
from rebalance.settings import SeafloorFlags, SweepFlags, value_text

ROOT = Path("runs/benchmark")
RUNNER = (sys.executable, "-m", "rebalance.experiments.run")

RESULTS = "results.csv"
METRICS = ("mAP50", "mAP75", "mAP50-95", "precision", "recall")

SAY = partial(print, flush=True)
LOCK, _HOLDER, DATA = ".lock", "lock", "data"
LOCKS = frozenset((LOCK, _HOLDER))  # files that are left of holding a folder
_POLL = 0.1  # seconds between looks at the children
_GRACE = 10.0  # seconds that a stopped child gets to end by itself


Source = Path | SeafloorFlags  # the YAML of a data set, or what the built-in one that is not there yet is made with


class Prepared(NamedTuple):
    """A grid that could run."""

    grid: Grid
    folder: Path
    open_runs: list[Run]  # that are not finished
    sources: dict[str, Source]  # by `data=`
    told: list[dict[str, Any]]  # of each open run, as the check of `rebalance.experiments.run` says


def sweep(
    args: Mapping[str, str] | Sequence[Mapping[str, str]],
    *,
    study: Mapping[str, Any] | None = None,
    written: Mapping[str, str] | None = None,
    root: Path = ROOT,
    runner: Sequence[str] = RUNNER,
    say: Callable[[str], None] = SAY,
) -> Path:
    """Run a grid of trainings and return its folder; the same name again continues it.

    Finished runs are not repeated, failed and interrupted ones are tried again. A run that fails is recorded and the
    others go on.

    Args:
        args: key to text: flags of a sweep, of ours and of Ultralytics; a comma list makes a dimension. Several of
            these are grids that share a folder.
        study: what the report says about the table or figure that this is.
        written: what the report says about the plan that this follows.
        root: where the folder `name` is made.
        runner: command that trains: with a run folder it makes the record there, with `--check` it reads the grid from
            standard input and answers with its error.
        say: takes each line of progress.

    Raises:
        ConfigError, ModelError, DataError: the grid cannot run; nothing was made.
        RunError: the folder holds another grid, another sweep works in it, or not one of the runs finished.
    """
    grid, folder, open_runs, _, _ = prepare(args, written=written, root=root, runner=runner)
    with crew_of(grid, folder, runner, say, open_runs) as crew:
        _work(grid, folder, crew, say, study or {}, written or {})
    return ended(folder, grid.runs, say)


def _work(
    grid: Grid,
    folder: Path,
    crew: Crew,
    say: Callable[[str], None],
    study: Mapping[str, Any],
    written: Mapping[str, str],
) -> None:
    """Make the folder, or go on in it, and let the crew run what is not finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for place in (folder, folder / DATA):
            clear(place)
        refuse_other(folder, grid, written)  # somebody may have made the folder since
        refuse_renamed(folder, grid)
        runs = tuple(run.id for run in grid.runs)
        begun = (read_if_whole(Plan, folder / SWEEP) or Plan(asked=grid.asked)).asked
        files.write(folder / SWEEP, Plan(asked=grid.asked, runs=runs, study=study, written=written))
        open_runs = [run for run in grid.runs if not finished(folder, run)]
        over, pace = len(runs) - len(open_runs), crew.pace(len(open_runs)) if open_runs else ""
        if isinstance(grid.asked.get("label_seed"), int) and any(run.labels.protocol != "normal" for run in grid.runs):
            say(f"label_seed={grid.asked['label_seed']} for all seeds, as this sweep was begun")
        elsewhere = difference(*({key: was[key] for key in was if key == DEVICE} for was in (begun, grid.asked)))
        if over and elsewhere:
            say(f"{elsewhere}: the runs that are finished stay as they are, the others are trained there")
        say(f"{len(runs)} runs{f', {over} finished before' if over else ''}{pace}: {folder}")
        if open_runs:
            _write_configs(folder, open_runs, {data: made(data) for data in data_of(grid.runs)})
            crew.work(open_runs)
        write_results(folder, runs)


@contextlib.contextmanager
def crew_of(
    grid: Grid, folder: Path, runner: Sequence[str], say: Callable[[str], None], runs: Sequence[Run]
) -> Iterator[Crew]:
    """The crew of the executor asked for, which needs no cluster where there are no runs."""
    if grid.flags.executor == "ray" and runs:
        from rebalance.experiments import cluster

        with cluster.cluster(grid.flags.address) as ray:
            yield cluster.RayCrew(grid, folder, runner, say, ray)
    else:
        yield Crew(grid, folder, runner, say)


def ended(folder: Path, runs: Sequence[Run], say: Callable[[str], None]) -> Path:
    """Say how many runs finished and return the folder; RunError where none did."""
    done = sum(finished(folder, run) for run in runs)
    again = f", {len(runs) - done} failed (the same name tries them again)" if done < len(runs) else ""
    say(f"{done} finished{again}: {folder / RESULTS}")
    records = files.load(folder).records
    if not any(record.finished for record in records):
        raise RunError(f"no run finished; the first, {records[0].run}: {records[0].error}")
    return folder


def prepare(
    args: Mapping[str, str] | Sequence[Mapping[str, str]],
    *,
    written: Mapping[str, str] | None = None,
    root: Path = ROOT,
    runner: Sequence[str] = RUNNER,
    dry: bool = False,
) -> Prepared:
    """Check all that can be checked before anything is made, but for the built-in data set; arguments as of `sweep`.

    Args:
        dry: make not even that, and fetch nothing.

    Raises:
        ConfigError, ModelError, DataError: the grid cannot run.
        RunError: the folder holds another grid.
    """
    grid = read_grids([args] if isinstance(args, Mapping) else args)
    require_executor(grid.flags)
    folder = root / (grid.flags.name or time_stamp(root))
    begun = read_if_whole(Plan, folder / SWEEP)
    grid = as_begun(grid, begun.asked if begun else {})
    refuse_other(folder, grid, written or {})
    refuse_renamed(folder, grid)
    open_runs = [run for run in grid.runs if not finished(folder, run)]
    told, sources = list[dict[str, Any]](), dict[str, Source]()
    if open_runs:
        told = check([*runner, *["--dry"] * dry], open_runs)
        sources = sources_of(open_runs, dry=dry, data=data_of(grid.runs))
        check_diagnosis(open_runs, sources)
        if grid.flags.complete:
            _require_complete(sources)
    return Prepared(grid, folder, open_runs, sources, told)


def require_executor(flags: SweepFlags) -> None:
    """Raise RunError where what the executor needs is not installed, ConfigError for an address of none."""
    if flags.executor == "ray":
        from rebalance.experiments import cluster

        cluster.require_ray()
    elif flags.address:
        raise ConfigError(f"address={flags.address} has no effect with executor={flags.executor}; give executor=ray")


def data_of(runs: Iterable[Run]) -> list[str]:
    """The data sets of runs, as they were given."""
    return list(dict.fromkeys(str(run.host["data"]) for run in runs))


class Crew:
    """Keeps `jobs` children at work until every run is over."""

    metric = METRICS[0]  # that is told of a run that is over
    more: Sequence[str] = ()  # that each run is asked beside its folder, see `rebalance.experiments.run.main`

    def __init__(self, grid: Grid, folder: Path, runner: Sequence[str], say: Callable[[str], None]) -> None:
        self.place = {run.id: f"[{index}/{len(grid.runs)}]" for index, run in enumerate(grid.runs, 1)}
        self.folder, self.runner, self.say, self.jobs = folder, runner, say, grid.flags.jobs
        self.began = dict[str, float]()
        self.seconds = list[float]()

    def pace(self, count: int) -> str:
        """How so many runs will be at work, in words."""
        jobs = min(self.jobs, count)
        return f", {jobs} at a time, {threads(jobs)} threads each"

    def work(self, runs: Sequence[Run]) -> None:
        """Run all; whatever ends this early (Ctrl-C too) stops the children first."""
        waiting = deque(run.id for run in runs)
        self.jobs = min(self.jobs, len(runs))
        self.keep_busy(lambda: waiting.popleft() if waiting else "", lambda: len(waiting))

    def keep_busy(
        self,
        next_run: Callable[[], str],
        waiting: Callable[[], int],
        judge: Callable[[str], str] = lambda run: "",
        over: Callable[[Record], None] = lambda record: None,
        at_once: int = 0,
    ) -> None:
        """As `work`, of runs that become known while others are at work.

        Args:
            next_run: the next run, whose folder is there; empty where there is none now.
            waiting: how many are still to come.
            judge: is asked about each run that is at work; what it answers, if anything, is why the run is stopped.
            over: takes the record of each run that is over.
            at_once: runs to start at once; 0: `jobs`.
        """
        active = dict[str, Any]()
        try:
            while True:
                while len(active) < (at_once or self.jobs) and (run := next_run()):
                    active[run] = self._start(run)
                if not active:
                    return
                time.sleep(_POLL)
                for run, child in [*active.items()]:
                    stopped = "" if child.poll() is not None else judge(run)
                    if stopped:
                        self._stop([child])
                    elif child.poll() is None:
                        continue
                    del active[run]
                    over(self._finish(run, child, waiting() + len(active), stopped))
        except BaseException:
            self._stop(active.values())
            raise
        finally:
            shutil.rmtree(self.folder / PIXELS, ignore_errors=True)  # large, and soon made again

    def _start(self, run: str) -> Any:
        folder = self.folder / RUNS / run
        (folder / RECORD).unlink(missing_ok=True)  # of a failed attempt
        settings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads(self.jobs)))
        self.say(f"{self.place[run]} start  {run}")
        self.began[run] = time.monotonic()
        with open(folder / LOG, "ab") as log:
            return subprocess.Popen(
                [*self.runner, str(folder), "--watch", "--share", *self.more],
                stdin=subprocess.PIPE,  # closes when this process dies, however it dies; the child ends itself then
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **settings, "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"},
                # Ctrl-C reaches the sweep alone, which stops its children by their id
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            )

    def _stop(self, children: Iterable[Any]) -> None:
        stop(children)

    def _seconds(self, run: str, child: Any) -> float:
        """How long it was at work."""
        return time.monotonic() - self.began[run]

    def _ending(self, run: str, child: Any) -> str:
        """How it ended without a record."""
        return _ending(child.returncode, self.folder / RUNS / run / LOG)

    def _finish(self, run: str, child: Any, left: int, stopped: str) -> Record:
        folder, seconds = self.folder / RUNS / run, self._seconds(run, child)
        if child.stdin:
            child.stdin.close()
        try:
            record = files.read(folder / RECORD)
        except RunError as error:
            unread = child.returncode == 0 and (folder / RECORD).exists()
            told = str(error) if unread else stopped or self._ending(run, child)
            record = failed(files.read_file(Task, folder / CONFIG), told, folder / LOG)
            files.write(folder / RECORD, record)
        write_results(self.folder, self.place)
        self.seconds.append(seconds)
        told = f"{'ended ' if stopped else 'FAILED'} {run}  {record.error}"
        if record.finished:
            split, metrics = record.headline
            told = f"done   {run}  {self.metric} {100 * metrics[self.metric]:.1f} points on {split}  {seconds:.0f} s"
        if left:  # the mean so far, times the rounds that are left
            s = sum(self.seconds) / len(self.seconds) * -(-left // self.jobs)
            about = f"{s:.0f} s" if s < 90 else f"{s / 60:.0f} min" if s < 5400 else f"{s / 3600:.1f} h"
            told += f"; {left} to go, about {about}"
        self.say(f"{self.place[run]} {told}")
        return record


def refuse_other(folder: Path, grid: Grid, written: Mapping[str, str]) -> None:
    """Raise RunError where runs of other values or another plan are in the folder, or things that no sweep makes.

    So it does of a place from which the host loads no checkpoint, which would be found out after the first training.
    The device is not such a value: each record says on which machine its run was trained.
    """
    if "?" in str(folder.absolute()):
        raise RunError(
            f"{folder.absolute()} has a ?, at which Ultralytics ends the path of a checkpoint: work elsewhere"
        )
    made = read_if_whole(Plan, folder / SWEEP)
    found = [path for path in folder.iterdir() if not unfinished(path)] if folder.exists() else []
    if made is None and {path.name for path in found} - LOCKS:
        raise RunError(f"{folder} is not a sweep (it has no {SWEEP}): give another name=")
    if made is None or not (folder / RUNS).exists():
        return
    asked = json.loads(json.dumps(grid.asked, default=str))  # as it comes back from the file
    changed = difference(*({key: was[key] for key in was if key != DEVICE} for was in (made.asked, asked)))
    if changed:
        raise RunError(f"{folder} was made with another grid: {changed}. Give the same values, or another name=")
    if made.written and made.written.get("sha256") != written.get("sha256"):
        raise RunError(f"{folder} was begun with another text of its plan. Put that back, or give another name=")


def refuse_renamed(folder: Path, grid: Grid) -> None:
    """Raise RunError where the runs of this grid are in the folder under other names, and would be trained again.

    A name has what varies in the order in which it was given.
    """
    begun = read_if_whole(Plan, folder / SWEEP) if (folder / RUNS).exists() else None
    if begun and begun.runs and (other := [run.id for run in grid.runs if run.id not in begun.runs]):
        raise RunError(
            f"{folder} has these runs under other names, such as {begun.runs[0]} and not {other[0]}: give the flags in "
            f"the order of its {SWEEP}, or another name="
        )


def finished(folder: Path, run: Run) -> bool:
    """Whether a run has its record."""
    record = read_if_whole(Record, folder / RUNS / run.id / RECORD)
    return record is not None and record.finished


def write_results(folder: Path, runs: Iterable[str]) -> None:
    """Write results.csv: the runs that are over, in the order given; one that failed has empty cells for numbers."""
    found = [read_if_whole(Record, folder / RUNS / run / RECORD) for run in runs]
    noise = [kind for kind in KINDS if any(record and record.labels.get(kind) for record in found)]
    rows = [_row(record, noise) for record in found if record is not None]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / RESULTS, text.getvalue().encode())


def _row(record: Record, noise: Sequence[str]) -> dict[str, Any]:
    split, metrics = record.headline
    numbers = [(name, metrics.get(name), 5) for name in METRICS]
    numbers += [("train_seconds", record.timings.get("train_seconds"), 1)]
    numbers += [("images_per_second", record.timings.get("images_per_second"), 2)]
    numbers += [("peak_memory_mb", record.peak_memory_mb, 1)]
    return {
        "run": record.run,
        "model": record.host["model"],
        **{name: record.loss_ran.get(name) or record.train[name] for name in ("head", "loss")},
        **{name: record.train[name] for name in ("obj_drop", "box_drop")},
        "protocol": record.labels["protocol"],
        "drop_rate": record.labels["rate"],
        **{name: record.labels.get(name, 0.0) for name in noise},
        "seed": record.seed,
        **{name: record.host.get(name) for name in ("epochs", "imgsz")},
        "split": split if record.finished else None,
        **{name: None if value is None else round(float(value), digits) for name, value, digits in numbers},
        "status": record.status,
    }


def check(runner: Sequence[str], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Let the host look at every configuration, in a process of its own: this one stays small."""
    grid = [{"train": {key: run.train[key] for key in run.given}, "host": dict(run.host)} for run in runs]
    done = subprocess.run(
        [*runner, "--check"], input=json.dumps(grid, default=str), capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        kind, error, told = answer["kind"], answer["error"], answer.get("runs", [])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(f"the grid could not be checked: {last}") from None
    if error is not None:
        raise getattr(errors, str(kind), RunError)(error)
    return list(told)


def source_of(data: str, runs: Sequence[Run] = (), judged: Sequence[str] = files.SPLITS) -> Path:
    """The data set YAML behind `data=`, generated where it is the built-in set; `runs` are to be trained on it.

    Args:
        data: as it was given.
        runs: that are to be trained.
        judged: the splits that they are evaluated on.

    Raises:
        DataError: it is not there or cannot be used, images of a split that it names are missing, it has no labels that
            a run could be trained or evaluated on, the noise of one has no meaning there, or a region file cannot be
            read.
    """
    from rebalance.data.demo import seafloor

    found = load(seafloor.built_in(data))
    for entry in found.splits.get("test", ()):
        if not os.path.exists(entry):
            raise DataError(f"{found.file}: test images not found: {entry}; correct 'test:' or take it out")
    for split in found.splits:
        found.images(split)
    found.require_labels(numbered=False)
    if not any(found.labelled(split, numbered=False) for split in judged):
        raise DataError(f"{found.file}: no image of {' or '.join(judged)} has a label, to evaluate a training on")
    for text in dict.fromkeys(json.dumps(run.host.get("classes")) for run in runs):
        if classes := json.loads(text):
            found.require_labels([classes] if isinstance(classes, int) else classes, numbered=False)
    for run in runs:
        rules(run.labels)[1].require_meaning(len(found.names))
    found.knowledge.require_readable(SPLITS)
    return found.file.absolute()


def sources_of(
    runs: Sequence[Run], judged: Sequence[str] = files.SPLITS, *, dry: bool = False, data: Sequence[str] = ()
) -> dict[str, Source]:
    """The data sets of runs, by `data=`; errors as of `source_of`.

    Args:
        runs: that are to be trained.
        judged: the splits that they are evaluated on.
        dry: leave the built-in set unmade, where it is.
        data: those that are asked for; default: those of the runs.
    """
    found = dict[str, Source]()
    for name in data or data_of(runs):
        own = [run for run in runs if run.host["data"] == name]
        found[name] = (_unmade(name) if dry else None) or source_of(name, own, judged)
    return found


def _unmade(data: str) -> SeafloorFlags | None:
    from rebalance.data.demo import seafloor

    return seafloor.unmade(data)


def made(data: str) -> Path:
    """The data set YAML behind `data=` of a grid that was prepared."""
    from rebalance.data.demo import seafloor

    return load(seafloor.built_in(data)).file.absolute()


def check_diagnosis(runs: Sequence[Run], sources: Mapping[str, Source]) -> None:
    """Raise where a diagnosis is asked for and no run has withheld labels; those on complete labels go without."""
    asked = [run for run in runs if run.train["diagnose"]]
    if asked and not any(withholds(run.labels) for run in asked):
        used = {data: sources[data] for data in data_of(asked)}
        if not any(map(has_withheld, used.values())):
            raise DataError(
                f"diagnose=True has no meaning where no labels are withheld: {', '.join(map(str, used))} has none; "
                "give protocol="
            )


def has_withheld(source: Source) -> bool:
    """Whether labels were withheld from a training image."""
    return source.labelled < 1 if isinstance(source, SeafloorFlags) else load(source).has_withheld()


def _require_complete(sources: Mapping[str, Source]) -> None:
    """Refuse data that are partial by nature where runs on complete labels are asked for: nobody has those.

    Raises:
        ConfigError: the manifest of a data set says that boxes were withheld from it.
    """
    for data, source in sources.items():
        if isinstance(source, SeafloorFlags):
            reached: Any = 1 - source.labelled
        else:
            reached = (_manifest(source) or {}).get("reached")
        if reached and isinstance(reached, (int, float)):
            told = f"comes with {100 * reached:.0f} % of its training boxes withheld"
            raise ConfigError(f"complete=True has no meaning with data={data}, which {told}")


def _write_configs(folder: Path, runs: Sequence[Run], sources: Mapping[str, Path]) -> None:
    """Make the training sets and then, for each run, its folder with config.json."""
    sets = [training_set(folder, sources[str(run.host["data"])], run.labels, len(sources) > 1) for run in runs]
    known = cache(has_withheld)  # once a data set
    for run, data in zip(runs, sets, strict=True):
        write_config(folder, run, sources[str(run.host["data"])], data, withheld=known)


def write_config(
    folder: Path, run: Run, source: Path, data: Path, *, withheld: Callable[[Path], bool] | None = None, **more: Any
) -> None:
    """Make the folder of a run, with config.json.

    Args:
        folder: of the sweep.
        run: the run.
        source: the data set that it was asked to train on.
        data: the one that it trains on.
        withheld: `has_withheld`, or one that remembers.
        more: what else is said of its labels.
    """
    if run.train["diagnose"] and not (withheld or has_withheld)(data):  # on complete labels there is nothing to measure
        given = tuple(name for name in run.given if name != "diagnose")
        run = replace(run, train={**run.train, "diagnose": False}, given=given)
    manifest, labels = _manifest(data), {**run.labels.told, **more}
    if manifest and labels["protocol"] != "normal" and not uses_rate(labels["protocol"]) and "rate" not in more:
        labels["rate"] = round(float(manifest["reached"]), 4)  # nothing was asked: the data say how much it is
    config = files.Config(
        train=run.train,
        host={**run.host, "data": files.shown(source)},
        labels={**labels, "data": files.shown(data), "manifest": manifest},
        seed=run.seed,
    )
    path = folder / RUNS / run.id
    path.mkdir(parents=True, exist_ok=True)
    files.write(path / CONFIG, Task(run=run.id, config=config, varied=run.varied, given=run.given))


def training_folder(folder: Path, source: Source, labels: Labels, several: bool) -> Path:
    """The folder of a data set with other labels; `several`: there are several sources."""
    name = f"{labels.protocol}-{value_text(labels.rate)}-{labels.seed}"
    name += "".join(f"-{key}-{value_text(value).strip('[]').replace(',', '-')}" for key, value in labels.noise)
    if several:
        yaml = Path(source.out, "data.yaml").absolute() if isinstance(source, SeafloorFlags) else source
        name += f"-{hashlib.sha256(str(yaml).encode()).hexdigest()[:8]}"
    return folder / DATA / name


def rules(labels: Labels) -> tuple[Withhold, Noise]:
    """Which labels are withheld, and what happens to the others."""
    rule = Withhold(protocol=labels.protocol, rate=labels.rate, seed=labels.seed)
    return rule, Noise(**dict(labels.noise), seed=labels.seed)


def training_set(folder: Path, source: Path, labels: Labels, several: bool) -> Path:
    """The data YAML that a run trains on: the source, or the one with other labels in the sweep's folder."""
    if not drawn(labels):
        return source
    out = training_folder(folder, source, labels, several)
    if not out.exists():  # it appears whole or not at all
        from rebalance.data.derive import derive

        out.parent.mkdir(exist_ok=True)
        rule, errors = rules(labels)
        derive(load(source), rule, out, errors)
    return out / "data.yaml"


def _manifest(data: Path) -> dict[str, Any] | None:
    """Of a generated or sparsified set: what was asked, what was reached, of which classes, and the hash."""
    path = data.parent / "manifest.json"
    content = files.read_json(path)
    if content is None:
        return None
    digest = content.get("sha256") or hashlib.sha256(path.read_bytes()).hexdigest()
    some = {"only": content["only"]} if content.get("only") else {}
    return {"asked": content.get("asked"), "reached": content.get("reached"), **some, "sha256": digest}


@contextlib.contextmanager
def locked(folder: Path, what: str = "sweep") -> Iterator[None]:
    """Hold the folder; `what` works there, in words.

    The system lets go of it when this process ends, however it ends, so no lock is ever stale.
    """
    holder = folder / _HOLDER  # beside the lock, as a locked file cannot be read everywhere
    try:
        with FileLock(folder / LOCK, blocking=False):
            holder.write_text(str(os.getpid()), encoding="utf-8")
            yield
    except Timeout:
        raise busy(folder, what) from None


def busy(folder: Path, what: str = "sweep") -> RunError:
    """The error where another one works in a folder."""
    holder = folder / _HOLDER
    number = holder.read_text(encoding="utf-8") if holder.is_file() else "?"
    return RunError(f"another {what} works in {folder} (process {number})")


def stop(children: Iterable[subprocess.Popen[bytes]]) -> None:
    """End our own children and what they started, politely first."""
    family, alive = list[psutil.Process](), [child for child in children if child.poll() is None]
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, family = psutil.wait_procs(family, _GRACE)
    for child in alive:
        child.poll()


def _ending(code: int, log: Path) -> str:
    """How a child ended that left no record, in one line."""
    last = (files.tail(log, 1) or ["its log is empty"])[-1]
    if code >= 0:
        return f"the run ended with code {code} and no record: {last}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"the run was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}: {last}"


def time_stamp(root: Path) -> str:
    """A folder name that is free."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    names = (f"{stamp}-{number}" if number > 1 else stamp for number in itertools.count(1))
    return next(name for name in names if not (root / name).exists())
