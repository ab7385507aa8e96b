"""A search for flags, ours and the host's, by what the trained detectors reach on val.

runs/tune/<name>/
    sweep.json      what was asked for; the same name with another space is refused
    trials.db       Optuna's own storage, which its tools read too
    trials.csv      one row a trial: values, state, mAP50-95 on val
    runs/trial=1/ … the runs of a sweep, see `rebalance.experiments.sweep`; a pruned one has a record that says so

Optuna samples, prunes and stores. What a trial samples follows from the seed, its number and the trials before, so
that a search that was killed goes on as if it had not been. Trials are evaluated on val; the best alone, at the end, on
test.
"""

from __future__ import annotations

import csv
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.data.dataset import load
from rebalance.errors import RunError, not_there
from rebalance.experiments import record as files
from rebalance.experiments.grid import Grid
from rebalance.experiments.record import RECORD, RUNS, SWEEP, TRAIN, Plan, Record, read_epochs, read_if_whole
from rebalance.experiments.space import Space, read_space
from rebalance.experiments.sweep import (
    DATA,
    RUNNER,
    SAY,
    Crew,
    Prepared,
    check,
    check_diagnosis,
    locked,
    made,
    refuse_other,
    sources_of,
    time_stamp,
    training_set,
    write_config,
    write_results,
)
from rebalance.files import clear, write_whole
from rebalance.settings import SweepFlags, value_text

ROOT = Path("runs/tune")
METRIC = "mAP50-95"
STORAGE, TRIALS = "trials.db", "trials.csv"

PATIENCE = 20.0  # seconds that another program may hold the storage
_BY_EPOCH = f"metrics/{METRIC}(B)"  # of val, in the host's results.csv
_RUN, _AGAIN = "run", "again"  # of a trial: the id of its run; whether it takes up one that was broken off
_PRUNED = "pruned after epoch "
_STARTUP = 5  # trials that are finished before one is pruned


def tune(
    args: Mapping[str, str],
    *,
    root: Path = ROOT,
    runner: Sequence[str] = RUNNER,
    say: Callable[[str], None] = SAY,
) -> Path:
    """Search for the flags with the best mAP50-95 on val, and return the folder; the same name again continues it.

    Args:
        args: key to text, see `rebalance.experiments.space`.
        root: where the folder `name` is made.
        runner: as that of `sweep`.
        say: takes each line of progress, and at the end the best trial and the command that trains it.

    Raises:
        ConfigError, ModelError, DataError: it cannot run; nothing was made.
        RunError: Optuna is not installed; the folder holds something else; another process works in it; or not one of
            the trials finished.
    """
    optuna, (space, ready) = _optuna(), prepare(args, root=root, runner=runner)
    grid, folder = ready.grid, ready.folder
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "search"):
        for place in (folder, folder / DATA):
            clear(place)
        refuse_other(folder, grid, {})
        files.write(folder / SWEEP, Plan(asked=space.asked))
        (source,) = map(made, ready.sources)
        with _stored(optuna, folder):
            _Search(optuna, space, grid, folder, source, runner, say, most_epochs(ready)).all()
    return folder


def prepare(
    args: Mapping[str, str], *, root: Path = ROOT, runner: Sequence[str] = RUNNER, dry: bool = False
) -> tuple[Space, Prepared]:
    """Check all that can be checked before anything is made; the runs are the corners of the space.

    Arguments and errors as of `tune`; `dry` as of `rebalance.experiments.sweep.prepare`.
    """
    _optuna()
    space = read_space(args)
    folder = root / (space.flags.name or time_stamp(root))
    grid = Grid(SweepFlags(jobs=space.flags.jobs), (), space.asked)
    refuse_other(folder, grid, {})
    corners = space.corners()
    told = check([*runner, *["--dry"] * dry], corners)
    sources = sources_of(corners, ("val",), dry=dry)
    check_diagnosis(corners, sources)
    return space, Prepared(grid, folder, corners, sources, told)


def most_epochs(ready: Prepared) -> int:
    """Of a trial."""
    return max(int(one["epochs"]) for one in ready.told)


def over_before(folder: Path) -> int:
    """Trials of a search that are finished or pruned, by its table."""
    path = folder / TRIALS
    rows = path.read_text("utf-8").splitlines() if path.is_file() else []
    return sum(row["state"] in ("COMPLETE", "PRUNED") for row in csv.DictReader(rows))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise not_there("rebalance tune needs Optuna", "optuna", error) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def _stored(optuna: Any, folder: Path) -> Iterator[None]:
    """Say in one line that the storage cannot be read or written."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.OptunaError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        raise RunError(f"{folder / STORAGE} cannot be used: {' '.join(str(cause).split())[:200]}") from None


class _Search:
    """One folder of trials."""

    def __init__(
        self,
        optuna: Any,
        space: Space,
        grid: Grid,
        folder: Path,
        source: Path,
        runner: Sequence[str],
        say: Callable[[str], None],
        epochs: int,
    ) -> None:
        self.optuna, self.space, self.folder, self.source, self.say = optuna, space, folder, source, say
        self.grid, self.runner, self.epochs = grid, runner, epochs
        self.states = optuna.trial.TrialState
        from sqlalchemy import URL  # which Optuna stands on

        self.study = optuna.create_study(
            study_name="tune",
            storage=optuna.storages.RDBStorage(
                URL.create("sqlite", database=str(folder / STORAGE)).render_as_string(),
                engine_kwargs={"connect_args": {"timeout": PATIENCE}},
            ),
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(_STARTUP, n_warmup_steps=epochs // 4)
            if space.flags.prune
            else optuna.pruners.NopPruner(),
        )
        self.crew = Crew(grid, folder, runner, say)
        self.crew.metric = METRIC
        self.trials = dict[str, list[Any]]()  # of each run that is at work; several where they chose the same values
        self.told = dict[str, int]()  # epochs of each run that its trial was told

    def all(self) -> None:
        """Every trial, then the best on test."""
        before = self._take_up()
        flags = self.space.flags
        self.left = flags.trials - before
        many = f", {flags.jobs} at a time" if flags.jobs > 1 else ""
        self.say(f"{flags.trials} trials{f', {before} over before' if before else ''}{many}: {self.folder}")
        self.crew.more = ("--val",)
        self.crew.keep_busy(self._next, lambda: max(self.left, 0), self._judge, self._over)
        self._write()
        best = self._best()
        run = best.user_attrs[_RUN]
        record = read_if_whole(Record, self.folder / RUNS / run / RECORD)
        if load(self.source).labelled("test", numbered=False) and (record is None or "test" not in record.metrics):
            self.say(f"the best is asked on test too: {run}")
            self.crew.place[run] = "[test]"
            self.crew.more = ()
            waiting = [run]
            self.crew.keep_busy(lambda: waiting.pop() if waiting else "", lambda: 0)
            self._write()
            if not (record := files.read(self.folder / RUNS / run / RECORD)).finished:
                raise RunError(f"the best, {run}, failed on test (the same name tries it again): {record.error}")
        self._tell(best)

    def _take_up(self) -> int:
        """Let trials that were broken off or failed be tried again, in their run folders; return how many are over."""
        trials, latest = self.study.get_trials(), self._latest()
        for trial in trials:
            if trial.state == self.states.RUNNING:
                self.study.tell(trial.number, state=self.states.FAIL)
        for run, trial in latest.items():
            if trial.state in (self.states.RUNNING, self.states.FAIL):
                self.study.enqueue_trial(trial.params, user_attrs={_RUN: run, _AGAIN: True})
        return sum(trial.state in (self.states.COMPLETE, self.states.PRUNED) for trial in trials)

    def _latest(self) -> dict[str, Any]:
        """The last trial of each run."""
        return {trial.user_attrs[_RUN]: trial for trial in self.study.get_trials() if _RUN in trial.user_attrs}

    def _next(self) -> str:
        """The run of the next trial whose values no other has; what is over already is told at once."""
        while self.left > 0:
            self.left -= 1
            trial, values = self._ask()
            run = trial.user_attrs[_RUN]
            if run in self.trials:
                self.trials[run].append(trial)
                continue
            record = read_if_whole(Record, self.folder / RUNS / run / RECORD)
            self.trials[run] = [trial]
            if record and (record.finished or record.error.startswith(_PRUNED)):
                self.say(f"{run} has these values, and is over")
                self._over(record)
                continue
            self.told[run] = 0
            self.crew.place[run] = f"[{self.space.flags.trials - self.left}/{self.space.flags.trials}]"
            self._prepare(run, values)
            self.say(f"{run}: {_typed(values)}")
            return str(run)
        return ""

    def _ask(self) -> tuple[Any, dict[str, Any]]:
        """A trial that has chosen its values and knows its run: that of an earlier one with the same values, or new."""
        earlier = [trial for trial in self.study.get_trials() if _RUN in trial.user_attrs]
        number = sum(not trial.user_attrs.get(_AGAIN) for trial in earlier)
        seed = int(np.random.SeedSequence([self.space.flags.seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():  # before version 5 the second argument was called experimental
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=self.space.flags.jobs > 1)
        trial, values = self.study.ask(), dict[str, Any]()
        for name, kind in self.space.searched.items():
            if self.space.counts(name, values):
                values[name] = kind.suggest(trial, name)
        if _RUN not in trial.user_attrs:
            same = [other.user_attrs[_RUN] for other in earlier if other.params == values]
            new = f"trial={len({other.user_attrs[_RUN] for other in earlier}) + 1}"
            trial.set_user_attr(_RUN, same[0] if same else new)
        return trial, values

    def _prepare(self, run: str, values: Mapping[str, Any]) -> None:
        """The run's folder, with config.json."""
        one = replace(self.space.run(values), id=run, varied=values)
        write_config(self.folder, one, self.source, training_set(self.folder, self.source, one.labels, False))

    def _judge(self, run: str) -> str:
        """Tell a trial what val says of its epochs so far; why its training is ended, if it is."""
        trial = self.trials[run][0]
        epochs = int(trial.params.get("epochs", self.epochs))
        for row in read_epochs(self.folder / RUNS / run / TRAIN / "results.csv")[self.told[run] :]:
            self.told[run] += 1
            epoch, value = int(row["epoch"]), row.get(_BY_EPOCH, float("nan"))
            trial.report(value, epoch)
            if epoch < epochs and trial.should_prune():
                return f"{_PRUNED}{epoch} of {epochs}: {METRIC} on val is below the median of the trials before"
        return ""

    def _over(self, record: Record) -> None:
        """Tell the trials of a run that is over."""
        for trial in self.trials.pop(record.run):
            if record.finished:
                self.study.tell(trial, record.metrics["val"][METRIC])
            else:
                pruned = record.error.startswith(_PRUNED)
                self.study.tell(trial, state=self.states.PRUNED if pruned else self.states.FAIL)
        self._write()

    def _best(self) -> Any:
        try:
            return self.study.best_trial
        except ValueError:
            records = files.load(self.folder).records
            raise RunError(f"no trial finished; the first, {records[0].run}: {records[0].error}") from None

    def _write(self) -> None:
        """results.csv and trials.csv anew."""
        runs = {trial.user_attrs[_RUN]: None for trial in self.study.get_trials() if _RUN in trial.user_attrs}
        write_results(self.folder, runs)
        table = self.study.trials_dataframe(attrs=("user_attrs", "state", "value", "params"))
        if len(table):
            write_whole(self.folder / TRIALS, table.to_csv(index=False, lineterminator="\n").encode())

    def _tell(self, best: Any) -> None:
        """The best trial, and the command that trains it."""
        run, states = best.user_attrs[_RUN], [trial.state for trial in self.study.get_trials()]
        counts = ((self.states.COMPLETE, "finished"), (self.states.PRUNED, "pruned"))
        told = ", ".join(f"{states.count(state)} {name}" for state, name in counts if state in states)
        if failed := sum(trial.state == self.states.FAIL for trial in self._latest().values()):
            told += f", {failed} failed (the same command tries them again)"
        record = files.read(self.folder / RUNS / run / RECORD)
        points = [f"{METRIC} {100 * found[METRIC]:.1f} points on {split}" for split, found in record.metrics.items()]
        self.say(f"{told}: {self.folder / TRIALS}")
        self.say(f"the best is {run}: {_typed(best.params)}; {', '.join(points)}")
        self.say(_command(files.read_file(files.Task, self.folder / RUNS / run / files.CONFIG)))


def _typed(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in values.items())


def _command(task: files.Task) -> str:
    """What trains the same on the command line."""
    ours = {key: task.config.train[key] for key in task.given}
    host = {key: value for key, value in task.config.host.items() if key not in ("data", *files.NUMBERS)}
    given = {**host, "data": task.config.labels["data"], **ours, "seed": task.config.seed}
    return shlex.join(["rebalance", "train", *(f"{key}={value_text(value)}" for key, value in given.items())])
