"""What rounds would train: all that they check is checked, and nothing is made or fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rebalance.audit import rounds
from rebalance.experiments.dry import Told, labels_of, of_data, of_models, refuse_busy, settings, state, typed
from rebalance.experiments.record import RECORD, RUNS, Record, read_if_whole
from rebalance.experiments.sweep import RUNNER


def tell(args: Mapping[str, str], *, root: Path = rounds.ROOT, runner: Sequence[str] = RUNNER) -> Told:
    """Say what rounds would train, where the results would go and what of them is there.

    Arguments and errors are those of `rebalance.audit.rounds.rounds`, which is then not called.
    """
    given, ready = rounds.prepare(args, root=root, runner=runner, dry=True)
    refuse_busy(ready.folder)
    (source,), most = ready.sources.values(), rounds.most(given)
    rows: list[tuple[str, ...]] = [("Run", "Training labels", "State")]
    trainings = 0
    for run in ready.grid.runs:
        first, whole = rounds.first_runs(run, source)
        chain = [(first, labels_of(ready, run, None)), *([(whole, "complete")] if whole else ())]
        for number in range(1, most + 1):
            later = replace(first, id=rounds.id_of(number, run))
            chain.append((later, f"those, and what the audit of round={number - 1} finds"))
            audit = ready.folder / rounds.AUDITS / rounds.id_of(number - 1, run) / rounds.SECONDS
            trainings += given.folds * (not audit.exists())
        for one, labels in chain:
            record = read_if_whole(Record, ready.folder / RUNS / one.id / RECORD)
            trainings += not (record and record.finished)
            rows.append((one.id, labels, state(ready.folder, one, record)))
    jobs, auto, seeds = given.jobs, "at most " * (given.rounds == "auto"), len(ready.grid.runs)
    lines = [
        f"dry=True: nothing was made. {auto}{most} round{'s' * (most > 1)} of {seeds} seed{'s' * (seeds > 1)}"
        f"{f', {jobs} at a time' if jobs > 1 else ''}: {ready.folder}",
    ]
    if ready.told:
        epochs = ready.told[0]["epochs"]
        lines.append(f"epochs to train: at most {trainings * epochs} ({trainings} x {epochs})")
        lines.append(f"all runs: {typed(settings(ready.open_runs[0], ready.told[0], seed=False))}")
    return Told([*lines, *of_models(ready), *of_data(ready)], rows)
