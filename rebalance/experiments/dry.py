"""What a sweep or a search would run: all that it checks is checked, and nothing is made or fetched."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from rebalance.data.dataset import DataSet, load
from rebalance.data.derive import rehearse
from rebalance.data.noise import KINDS
from rebalance.errors import DataError
from rebalance.experiments import tune
from rebalance.experiments.grid import Run, drawn, values_of
from rebalance.experiments.record import PROGRESS, RECORD, RUNS, Record, read_if_whole, read_json
from rebalance.experiments.run import FILLED_IN
from rebalance.experiments.sweep import LOCK, ROOT, RUNNER, Prepared, Source, busy, prepare, rules, training_folder
from rebalance.settings import SeafloorFlags, value_text


class Told(NamedTuple):
    """What would run."""

    lines: list[str]
    runs: list[tuple[str, ...]]  # a table, its head first


def tell(
    args: Mapping[str, str] | Sequence[Mapping[str, str]],
    *,
    written: Mapping[str, str] | None = None,
    root: Path = ROOT,
    runner: Sequence[str] = RUNNER,
) -> Told:
    """Say what a sweep would run, where its results would go and what of them is there.

    Arguments and errors are those of `rebalance.experiments.sweep.sweep`, which is then not called.
    """
    ready = prepare(args, written=written, root=root, runner=runner, dry=True)
    refuse_busy(ready.folder)
    runs, over = ready.grid.runs, len(ready.grid.runs) - len(ready.open_runs)
    jobs = min(ready.grid.flags.jobs, len(ready.open_runs))
    about = dict(zip((run.id for run in ready.open_runs), ready.told, strict=True))
    lines = [
        f"dry=True: nothing was made. {len(runs)} runs{f', {over} finished before' if over else ''}"
        f"{f', {jobs} at a time' if jobs > 1 else ''}: {ready.folder}",
        f"epochs to train: {_epochs(ready, about)}",
    ]
    values = {run.id: settings(run, about.get(run.id, {})) for run in runs}
    first = values[runs[0].id]
    common = {key: text for key, text in first.items() if all(own.get(key) == text for own in values.values())}
    lines.append(f"all runs: {typed(common)}")
    lines += of_models(ready) + of_data(ready)
    rows: list[tuple[str, ...]] = [("Run", "What not all have", "Training labels", "State")]
    for run in runs:
        own = {key: text for key, text in values[run.id].items() if key not in common}
        record = read_if_whole(Record, ready.folder / RUNS / run.id / RECORD)
        rows.append((run.id, typed(own), labels_of(ready, run, record), state(ready.folder, run, record)))
    return Told(lines, rows)


def tell_search(args: Mapping[str, str], *, root: Path = tune.ROOT, runner: Sequence[str] = RUNNER) -> Told:
    """Say what a search would search, as `tell`; arguments and errors are those of `tune`, which is not called."""
    space, ready = tune.prepare(args, root=root, runner=runner, dry=True)
    refuse_busy(ready.folder, "search")
    trials, over = space.flags.trials, tune.over_before(ready.folder)
    left, most = max(trials - over, 0), tune.most_epochs(ready)
    jobs = min(space.flags.jobs, left)
    at_most = "at most " * (space.flags.prune or "epochs" in space.searched)
    lines = [
        f"dry=True: nothing was made. {trials} trials{f', {over} over before' if over else ''}"
        f"{f', {jobs} at a time' if jobs > 1 else ''}: {ready.folder}",
        f"epochs to train: {f'{at_most}{left * most} ({left} x {most})' if left else 'none'}",
    ]
    values = [settings(run, told) for run, told in zip(ready.open_runs, ready.told, strict=True)]
    common = {key: text for key, text in values[0].items() if all(own.get(key) == text for own in values)}
    lines.append(f"all trials: {typed({key: text for key, text in common.items() if key not in space.searched})}")
    rows: list[tuple[str, ...]] = [("Flag", "Searched", "In trials with")]
    for name, kind in space.searched.items():
        firsts = space.firsts()
        counts = [first for first in firsts if space.counts(name, first)]
        with_ = "; ".join(map(typed, counts)) if len(counts) < len(firsts) else "all"
        rows.append((name, str(kind), with_))
    return Told([*lines, *of_models(ready), *of_data(ready)], rows)


def refuse_busy(folder: Path, what: str = "sweep") -> None:
    """Raise RunError where another process works in the folder; `what` works there, in words."""
    lock = folder / LOCK
    if lock.exists():  # else asking would make it
        try:
            with FileLock(lock, blocking=False):
                pass
        except Timeout:
            raise busy(folder, what) from None


def settings(run: Run, told: Mapping[str, Any], *, seed: bool = True) -> dict[str, str]:
    """All values of a run, as typed."""
    filled = {key: told[key] for key in FILLED_IN if told} | ({"seed": run.seed} if seed else {})
    return {key: value_text(value) for key, value in {**values_of(run), **filled}.items()}


def typed(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in values.items())


def _epochs(ready: Prepared, about: Mapping[str, Mapping[str, Any]]) -> str:
    """How many, of so many runs each."""
    counts = Counter(about[run.id]["epochs"] for run in ready.open_runs)
    parts = " + ".join(f"{count} x {epochs}" for epochs, count in counts.items())
    return f"{sum(epochs * count for epochs, count in counts.items())} ({parts})" if counts else "none"


def of_models(ready: Prepared) -> list[str]:
    """Models that are not here, and whether the flags were checked without them."""
    found = {}
    for run, told in zip(ready.open_runs, ready.told, strict=True):
        if told["fetched"]:
            found[str(run.host["model"])] = "; its flags are checked then" if told["unchecked"] else ""
    return [f"model={model} would be fetched{how}" for model, how in found.items()]


def state(folder: Path, run: Run, record: Record | None) -> str:
    if record is not None:
        return "finished" if record.finished else f"again; failed: {record.error}"
    begun = (read_json(folder / RUNS / run.id / PROGRESS) or {}).get("seconds")
    return f"goes on, begun ({len(begun)} epochs)" if begun else "to run"


def labels_of(ready: Prepared, run: Run, record: Record | None) -> str:
    """The training set of a run, by the name of its folder."""
    if not drawn(run.labels):
        return "as given"
    if record is not None and record.finished:
        return record.config.data.parent.name
    return training_folder(ready.folder, ready.sources[str(run.host["data"])], run.labels, len(ready.sources) > 1).name


def of_data(ready: Prepared) -> list[str]:
    """The data sets and those that would be made of them, with the counts of their labels."""
    return [line for data, source in ready.sources.items() for line in _data(ready, data, source)]


def _data(ready: Prepared, data: str, source: Source) -> list[str]:
    open_runs = [run for run in ready.open_runs if str(run.host["data"]) == data]
    several = len(ready.sources) > 1
    labels = dict.fromkeys(run.labels for run in open_runs if drawn(run.labels))
    sets = {training_folder(ready.folder, source, one, several): one for one in labels}
    if isinstance(source, SeafloorFlags):
        told = (
            f"data={data} would be made: {source.train} training, {source.val} val and {source.test} test images of "
            f"{source.size} pixels, {source.labelled:.0%} of the training boxes labelled"
        )
        return [told, *(f"  {out} would be made of it; its labels are counted then" for out in sets)]
    found = load(source)
    splits = ", ".join(f"{len(found.images(split))} {split}" for split in found.splits)
    lines = [f"data={data} is {source}: {splits} images, {_boxes(found)} boxes in train"]
    asked = [(*rules(one), out) for out, one in sets.items() if not out.exists()]
    counts = dict(zip((out for *_, out in asked), rehearse(found, asked) if asked else (), strict=True))
    for out in sets:
        what = "would be made" if out in counts else "is there"
        lines.append(f"  {out} {what}: {_counted(counts.get(out) or read_json(out / 'manifest.json') or {})}")
    return lines


def _boxes(source: DataSet) -> int:
    """Labels of the training split; a file that cannot be read counts for none, as in training."""
    count = 0
    for image in source.images("train"):
        with contextlib.suppress(DataError):
            count += len(source.labels(image))
    return count


def _counted(manifest: Mapping[str, Any]) -> str:
    total = manifest.get("total")
    if not total:
        return "without a manifest"
    stay = total["boxes"] - total["withheld"]
    told = [f"{stay} of {total['boxes']} boxes labelled, {total['withheld']} withheld ({total['reached']:.1%})"]
    noise = manifest.get("noise", {})
    told += [f"{kind} {noise[kind]['boxes']}" for kind in KINDS if noise.get(kind, {}).get("boxes")]
    if not stay and not noise.get("extra", {}).get("boxes"):
        told.append("no label is left, so that its runs will fail")
    return ", ".join(told)
