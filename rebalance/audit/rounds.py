"""Rounds: train, audit, complete the labels, train again. Each seed has a chain of its own.

runs/rounds/<name>/
    sweep.json, lock, results.csv, runs/<run id>/      as those of a sweep, see `rebalance.experiments.sweep`
    data/               with protocol=: the training sets; round-1-seed-0 and so on; the one with complete labels
    audits/<run id>/    what the model of a run says about the labels that were given, see `rebalance.audit.run`

`round=0` is trained on the labels as they are. Its audit says what is missing, `round=1` is trained on the labels with
that, and so on. An audit always asks about the labels that were given, and what a round adds replaces what the one
before it added: scores of a model that was trained on its own additions rise by themselves.

Where it is known which labels are missing (`protocol=`, or a data set of `rebalance sparsify`), `protocol=normal` is
trained on the complete ones, for the gap that the rounds close.

All that is done is found by its files: the same command goes on where a killed one was, and repeats no training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rebalance.audit.complete import complete, read_audit, remaining, require_order
from rebalance.audit.table import COUNTS
from rebalance.audit.trained import require_auditable, require_folds
from rebalance.data import completed, dataset
from rebalance.data.noise import KINDS
from rebalance.data.protocols import PROTOCOLS, uses_rate
from rebalance.errors import ConfigError, DataError
from rebalance.experiments import record as files
from rebalance.experiments.grid import Grid, Labels, Run, read_grid, withholds
from rebalance.experiments.record import RUNS, SWEEP, Plan, read_json, write_json
from rebalance.experiments.sweep import (
    DATA,
    RUNNER,
    SAY,
    Crew,
    Prepared,
    Source,
    check,
    check_diagnosis,
    ended,
    finished,
    has_withheld,
    locked,
    made,
    refuse_other,
    sources_of,
    time_stamp,
    training_set,
    write_config,
    write_results,
)
from rebalance.files import clear
from rebalance.settings import (
    AuditFlags,
    CompleteFlags,
    RoundsFlags,
    SeafloorFlags,
    SweepFlags,
    parse,
    settings_of,
)

ROOT = Path("runs/rounds")
MOST = 5  # rounds that rounds=auto makes

AUDITS, SECONDS = "audits", "seconds.json"
_OURS = ("rounds", "complete_add", "complete_ignore", "folds")
Look = Callable[[AuditFlags, Mapping[str, str], Path], Path]


def rounds(
    args: Mapping[str, str],
    *,
    root: Path = ROOT,
    runner: Sequence[str] = RUNNER,
    look: Look | None = None,
    say: Callable[[str], None] = SAY,
) -> Path:
    """Train, audit, complete and train again; return the folder, which is that of a sweep. The same name continues it.

    Args:
        args: key to text: flags of rounds, of ours and of Ultralytics.
        root: where the folder `name` is made.
        runner: as that of `sweep`.
        look: audits: `rebalance.audit.run.audit`, if it is not another one.
        say: takes each line of progress.

    Raises:
        ConfigError, ModelError, DataError: it cannot run; nothing was made.
        RunError: the folder holds something else, another process works in it, or not one training finished.
    """
    given, ready = prepare(args, root=root, runner=runner)
    grid, folder, (source,) = ready.grid, ready.folder, map(made, ready.sources)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for place in (folder, folder / DATA, folder / AUDITS):
            clear(place)
        refuse_other(folder, grid, {})
        if not (folder / SWEEP).exists():  # before anything that a kill would leave in a folder of nobody's
            files.write(folder / SWEEP, Plan(asked=grid.asked, runs=()))
        work = _Work(given, grid, folder, source, args, runner, look or _look, say)
        work.all()
    return ended(folder, work.planned, say)


def prepare(
    args: Mapping[str, str], *, root: Path = ROOT, runner: Sequence[str] = RUNNER, dry: bool = False
) -> tuple[RoundsFlags, Prepared]:
    """Check all that can be checked before anything is made; of the runs none is of a round yet.

    Arguments and errors as of `rounds`; `dry` as of `rebalance.experiments.sweep.prepare`.
    """
    given, grid = read(args)
    folder = root / (given.name or time_stamp(root))
    refuse_other(folder, grid, {})
    sources, told = sources_of(grid.runs, dry=dry), list[dict[str, Any]]()
    (source,) = sources.values()
    if isinstance(source, Path) and completed.is_completed(source.parent):
        origin = (read_json(source.parent / "manifest.json") or {}).get("origin", {}).get("data")
        raise DataError(f"data={args['data']} was completed before: give the set that it was made from: data={origin}")
    open_runs = [run for run in grid.runs if not finished(folder, replace(run, id=id_of(0, run)))]
    if open_runs:
        told = check([*runner, *["--dry"] * dry], open_runs)
        found = dataset.load(source) if isinstance(source, Path) else None
        require_auditable(open_runs[0], told[0], found)
        if found:
            require_folds(given.folds, sum(not found.knowledge.skips(image) for image in {*found.images("train")}))
        check_diagnosis(open_runs, sources)
    return given, Prepared(grid, folder, open_runs, sources, told)


def most(given: RoundsFlags) -> int:
    """How many rounds there are, at most."""
    return MOST if given.rounds == "auto" else int(given.rounds)


def first_runs(run: Run, source: Source) -> tuple[Run, Run | None]:
    """The first run of a seed, and the one on complete labels, where it is known what is missing.

    Args:
        run: of the grid.
        source: its data set.
    """
    labels = as_made(source) if run.labels == Labels() else run.labels
    first, whole = replace(run, id=id_of(0, run), varied={"round": 0}, labels=labels), None
    if withholds(labels) or labels.noise:
        name = f"protocol=normal,seed={run.seed}"
        whole = replace(run, id=name, varied={"protocol": "normal"}, labels=Labels())
    return first, whole


@dataclass
class _Chain:
    """The rounds of one seed."""

    runs: list[Run]  # by round
    data: list[Path]  # what they train on
    left: list[float] = field(default_factory=list)  # what each audit says is missing beyond it
    truth: Run | None = None  # on complete labels

    @property
    def seed(self) -> int:
        return self.runs[0].seed


class _Work:
    """One folder of rounds."""

    def __init__(
        self,
        given: RoundsFlags,
        grid: Grid,
        folder: Path,
        source: Path,
        args: Mapping[str, str],
        runner: Sequence[str],
        look: Look,
        say: Callable[[str], None],
    ) -> None:
        self.given, self.grid, self.folder, self.source = given, grid, folder, source
        self.args, self.runner, self.look, self.say = args, runner, look, say
        self.chains = [self._begin(run) for run in grid.runs]

    @property
    def planned(self) -> list[Run]:
        """All runs that are known of, seed by seed."""
        return [run for chain in self.chains for run in (*chain.runs, *[chain.truth] * bool(chain.truth)) if run]

    def all(self) -> None:
        """Every chain to its end."""
        whole = [chain.truth for chain in self.chains if chain.truth]
        self._train([*(chain.runs[0] for chain in self.chains), *whole])
        for number in range(1, most(self.given) + 1):
            going = [chain for chain in self.chains if len(chain.runs) == number and self._complete(chain)]
            self._train([chain.runs[number] for chain in going])
        write_results(self.folder, [run.id for run in self.planned])

    def _begin(self, run: Run) -> _Chain:
        """The first run of a seed, and the one on complete labels."""
        first, whole = first_runs(run, self.source)
        data = training_set(self.folder, self.source, run.labels, several=False)
        self._config(first, data)
        if whole:
            self._config(whole, self._whole())
        return _Chain([first], [data], truth=whole)

    def _config(self, run: Run, data: Path, **more: Any) -> None:
        if not finished(self.folder, run):
            write_config(self.folder, run, self.source, data, **more)

    def _whole(self) -> Path:
        """The YAML with complete labels: the source, or what it was before labels were withheld from it."""
        if as_made(self.source) == Labels():
            return self.source
        out = self.folder / DATA / "complete"
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            completed.restored(dataset.load(self.source), out)
        return out / "data.yaml"

    def _train(self, runs: Sequence[Run]) -> None:
        """Train those that are not over."""
        ids = tuple(run.id for run in self.planned)
        files.write(self.folder / SWEEP, Plan(asked=self.grid.asked, runs=ids))
        waiting = [run for run in runs if not finished(self.folder, run)]
        if over := len(runs) - len(waiting):
            self.say(
                f"{over} of {len(runs)} finished before: {', '.join(run.id for run in runs if run not in waiting)}"
            )
        if waiting:
            flags = replace(self.grid.flags, jobs=self.given.jobs)
            Crew(Grid(flags, tuple(self.planned), self.grid.asked), self.folder, self.runner, self.say).work(waiting)

    def _complete(self, chain: _Chain) -> bool:
        """Audit the last run of a chain and make the data of the next; whether there is a next."""
        last, data, number = chain.runs[-1], chain.data[-1], len(chain.runs)
        where = f"round {number}, seed {chain.seed}"
        if not finished(self.folder, last):
            self.say(f"{where}: not made, for {last.id} failed")
            return False
        audit, seconds = self._audit(last, data)
        chain.left.append(remaining(audit, data, self.given.complete_add))
        if self.given.rounds == "auto" and number > 1 and chain.left[-1] >= chain.left[-2]:
            self.say(
                f"{where}: not made, for the estimate of what is missing beyond round {number - 1} does not fall: "
                f"{chain.left[-2]:.0f} before, {chain.left[-1]:.0f} now"
            )
            return False
        out = self.folder / DATA / f"round-{number}-seed-{chain.seed}"  # no comma, which would make a list of data=
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            complete(
                CompleteFlags(
                    data=str(data), audit=str(audit), out=str(out),
                    complete_add=self.given.complete_add, complete_ignore=self.given.complete_ignore,
                )
            )  # fmt: skip
        manifest = read_json(out / "manifest.json") or {}
        before = read_json(data.parent / "manifest.json") or {}
        total, about = manifest["total"], read_audit(audit)
        if not any(file["changes"] for file in manifest["files"]) or (
            number > 1 and [f["sha256"] for f in manifest["files"]] == [f["sha256"] for f in before["files"]]
        ):
            self.say(f"{where}: not made, for its labels are those of round {number - 1}")
            return False
        estimate = about["total"]
        told = {
            **{key: estimate[key] for key in COUNTS if estimate.get(key) is not None},
            "left": chain.left[-1],
            "lower_bound": int(bool(about["lower_bound"])),
            **{key: total[key] for key in ("added", "unknown", "recovered")},
            "withheld": total["withheld"] + total["recovered"],
            "audit_seconds": seconds,
        }
        labels = replace(last.labels, round=number)
        run = replace(last, id=id_of(number, last), varied={"round": number}, labels=labels)
        rate = files.read(self.folder / RUNS / last.id / files.RECORD).labels["rate"]
        self._config(run, out / "data.yaml", rate=rate, completed=told)
        chain.runs.append(run)
        chain.data.append(out / "data.yaml")
        missing = f"{estimate['missing']:.0f} labels missing" if estimate.get("missing") is not None else "no estimate"
        self.say(f"{where}: {missing}; {total['added']} boxes added, {total['unknown']} places unknown")
        return True

    def _audit(self, run: Run, data: Path) -> tuple[Path, float]:
        """The folder of a run's audit, and the seconds that it took."""
        folder = self.folder / AUDITS / run.id
        took = read_json(folder / SECONDS)
        if took is None:
            record, began = files.read(self.folder / RUNS / run.id / files.RECORD), time.monotonic()
            weights = self.folder / RUNS / run.id / "train" / "weights" / record.weights
            flags = AuditFlags(
                data=str(data),
                model=str(run.host["model"] if self.given.folds else weights),
                name=run.id,
                folds=self.given.folds,
                seed=run.seed,
                device=str(self.args.get("device", "")).split(",")[0],
                review=0,
            )
            mine = {*settings_of(RoundsFlags), "model", "data", "device"} - {"jobs"}
            training = {key: text for key, text in self.args.items() if key not in mine} if self.given.folds else {}
            self.say(f"audit  {run.id}")
            self.look(flags, training, self.folder / AUDITS)
            took = {"seconds": round(time.monotonic() - began, 1)}
            write_json(folder / SECONDS, took)
        return folder, float(took["seconds"])


def _look(given: AuditFlags, training: Mapping[str, str], root: Path) -> Path:
    from rebalance.audit.run import audit  # with torch and a detector

    return audit(given, training, root)


def read(args: Mapping[str, str]) -> tuple[RoundsFlags, Grid]:
    """The flags, and a run for each seed."""
    own = settings_of(RoundsFlags)
    given = parse(RoundsFlags, {key: text for key, text in args.items() if key in own})
    require_order(given)
    if given.folds == 1:
        raise ConfigError("folds=1: 0, or 2 and more")
    for key in settings_of(SweepFlags):
        if key in args and key not in own:
            raise ConfigError(f"{key}={args[key]} is a flag of rebalance sweep, not of rounds")
    grid = read_grid({key: str(text) for key, text in args.items() if key not in _OURS})
    for key in (key for run in grid.runs for key in run.varied):
        raise ConfigError(f"{key}={args[key]}: rounds trains one setting, and takes no list of them")
    asked = {**grid.asked, **{key: [getattr(given, key)] for key in _OURS}}
    return given, Grid(grid.flags, grid.runs, asked)


def id_of(number: int, run: Run) -> str:
    return f"round={number},seed={run.seed}"


def as_made(source: Source) -> Labels:
    """What was done to the labels of a data set from which some were withheld, or that `rebalance noise` made."""
    if isinstance(source, SeafloorFlags):  # the built-in one, which is not there yet
        return Labels(protocol="percent", rate=1 - source.labelled) if has_withheld(source) else Labels()
    manifest: dict[str, Any] = read_json(source.parent / "manifest.json") or {}
    protocol, rate, seed = manifest.get("protocol"), manifest.get("asked"), manifest.get("seed")
    if manifest.get("only"):  # of the labels of all classes it is a share
        protocol, rate = "percent", round(manifest["reached"], 4)
    elif protocol not in PROTOCOLS:
        protocol, seed = "percent", 0
        rate = (rate or manifest.get("reached") or _share(source)) if dataset.load(source).has_withheld() else 0
    of_kind = manifest.get("noise") or {}
    noise = {kind: of_kind[kind]["asked"] for kind in KINDS if of_kind.get(kind, {}).get("asked")}
    if "jitter" in noise:
        noise["jitter_iou"] = manifest.get("jitter_iou")
    if uses_rate(protocol) and not rate:
        protocol = "normal"
    labels = Labels(
        protocol=protocol, rate=float(rate or 0) if uses_rate(protocol) else 0.0, noise=tuple(noise.items())
    )
    drawn = protocol != "normal" or bool(noise)
    return replace(labels, seed=seed) if drawn and isinstance(seed, int) else labels


def _share(source: Path) -> float:
    """The share of the training boxes that are withheld."""
    data = dataset.load(source)
    images = data.images("train")
    gone, there = (sum(len(of(image)) for image in images) for of in (data.withheld, data.labels))
    return round(gone / (gone + there), 4)
