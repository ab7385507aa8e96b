"""One run of a sweep, in a process of its own: `python -m rebalance.experiments.run <run folder>`.

Reads config.json, trains, evaluates on val and test, and writes record.json last. Killed at any point, the same command
goes on after the last epoch that was saved, to the figures of a run that was not killed (`rebalance.train.resumable`),
or starts again in an emptied folder where there is none.

What is evaluated is best.pt, the checkpoint that Ultralytics and YOLOv5 keep, and that a user goes on with: the epoch
with the best fitness on val, whose labels are complete. The budget is fixed, so this selection is the same for every
method; val figures are a little optimistic by it, test figures are not, and test is what the tables show. With
`val=False` there is no selection: best.pt is then the last epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from rebalance.errors import RebalanceError
from rebalance.experiments.machine import git, machine
from rebalance.experiments.record import (
    CONFIG,
    LOG,
    PIXELS,
    PROGRESS,
    RECORD,
    SPLITS,
    TRAIN,
    Record,
    Task,
    failed,
    read_epochs,
    read_file,
    write,
)
from rebalance.files import clear
from rebalance.versions import versions

HELD = ".held"  # in a run folder: held while the run is carried out where several machines may try
_DEVICE = "--device="
FILLED_IN = ("epochs", "imgsz", "batch")  # host flags that a record always names


def carry_out(folder: Path, splits: Sequence[str] = SPLITS, device: str = "", pixels: Path | None = None) -> Record:
    """Train and evaluate one run, or find out why that cannot be, and return its record.

    Args:
        folder: of the run.
        splits: that it is evaluated on, of those that its data have.
        device: the one that this machine gave to the run, in the place of the one asked for.
        pixels: where runs share the images that they keep in memory; None: they do not.

    Raises:
        RunError: the folder is not a run's: it has no config.json that can be read.
    """
    began, task = time.perf_counter(), read_file(Task, folder / CONFIG)
    clear(folder)
    from rebalance.experiments.train import Keeper

    keeper = Keeper(folder / PROGRESS, int(os.environ.get("OMP_NUM_THREADS", "1")), began)
    try:
        made = _result(folder, task, keeper, splits, device, pixels)
    except Exception as error:
        if isinstance(error, RebalanceError):
            print(f"rebalance: error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        made = failed(task, one_line(error), folder / LOG)
    about = machine(keeper.threads, keeper.state.get("gpu"))
    return replace(made, versions=versions(), git=git() or {}, machine=about)


def _result(
    folder: Path, task: Task, keeper: Any, judged_on: Sequence[str], device: str, pixels: Path | None
) -> Record:
    from rebalance.data.dataset import load
    from rebalance.experiments.evaluate import evaluate, setting_of
    from rebalance.experiments.image_cache import shared
    from rebalance.experiments.inspect import sample
    from rebalance.experiments.speed import speed
    from rebalance.experiments.train import train

    asked, config = task.config, task.config
    if device:
        config = replace(config, host={**config.host, "device": device})
    with shared(pixels) if pixels else contextlib.nullcontext():
        weights = train(folder, replace(task, config=config), keeper)
    began, data = time.perf_counter(), load(config.data)
    splits = [split for split in judged_on if split in data.splits]
    judged = data.knowledge.about(splits)  # regions of training images alone have no say in an evaluation
    setting = setting_of(weights, config.host, config.train.get("val_regions", True) if judged else None)
    found = {split: evaluate(weights, split, config, setting, keeper.threads) for split in splits}
    results = {split: result for split, result in found.items() if result}
    most = max((result.max_det for result in results.values()), default=setting["max_det"])
    samples = sample(weights, data, config, setting)
    fps = speed(weights, data, config, setting, keeper.threads)
    now, state = time.perf_counter(), keeper.state
    args = state.get("host_args", {})
    host = {**{key: args[key] for key in FILLED_IN if key in args}, **asked.host}
    return Record(
        run=task.run,
        status="finished",
        config=replace(config, train=state.get("flags") or config.train, host=host, host_args=args),
        varied=task.varied,
        weights=weights.name,
        loss_ran=state.get("loss_ran") or {"loss": "stock", "head": "stock", "text": "the host's own loss and head"},
        timings={**keeper.timings(), **fps, "eval_seconds": now - began, "total_seconds": now - keeper.origin},
        peak_memory_mb=state.get("peak_memory_mb"),
        metrics={split: result.metrics for split, result in results.items()},
        host_metrics={split: result.at_host for split, result in results.items()},
        evaluation={**setting, "max_det": most},
        epochs=tuple(read_epochs(folder / TRAIN / "results.csv")),
        samples=samples,
    )


def check(grid: Sequence[Mapping[str, Any]], *, fetch: bool = True) -> list[dict[str, Any]]:
    """Raise where the host would not train one of the configurations; nothing is trained.

    Args:
        grid: for each run the given flags `train` (ours) and `host`.
        fetch: fetch models that are not on this machine; else a published one is judged by its YAML, another not.

    Returns:
        For each run epochs, imgsz and batch, the host's own where the run says nothing; `fetched`: its model, where
        that is yet to be fetched; `unchecked`: whether it could not be judged, else `task`: what the model is for.

    Raises:
        ConfigError: an unknown flag or a bad value, of ours or of the host.
        ModelError: a model that cannot be built with its head.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    from rebalance.train.admission import admit, check_names, separate
    from rebalance.train.api import load, to_fetch

    loaded, told = cache(load), {}
    texts = [json.dumps(run, sort_keys=True) for run in grid]
    for text in dict.fromkeys(texts):
        run = json.loads(text)
        check_names({**run["train"], **run["host"]})
        host = {key: value for key, value in run["host"].items() if key != "model"}
        model, instead = str(run["host"]["model"]), "" if fetch else to_fetch(str(run["host"]["model"]))
        unchecked = instead == model
        if not unchecked:
            admit(loaded(instead or model), run["train"], host, strict=True, data=False)
        filled = {**DEFAULT_CFG_DICT, **separate(host)[1]}
        task = None if unchecked else loaded(instead or model).task
        seen = {"fetched": bool(instead), "unchecked": unchecked, "task": task}
        told[text] = {**{key: filled[key] for key in FILLED_IN}, **seen}
    return [told[text] for text in texts]


def end_with_parent() -> None:
    """End this process and what it started when the sweep is gone: its end of our standard input closes then."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        for child in psutil.Process().children(recursive=True):  # workers of a data loader, of a multi-GPU training
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def one_line(error: BaseException) -> str:
    """What an error says, in one line, with its kind unless it is one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RebalanceError) else f"{type(error).__name__}: {text}".rstrip(": ")


def main(argv: Sequence[str]) -> int:
    """`<run folder>`: carry out a run; `--check`: read a grid from standard input, answer with its error.

    `--check --dry` fetches nothing. With a run folder: `--watch` ends with the sweep that started it, `--val` evaluates
    on val alone, `--held` waits until nobody else carries the run out, `--device=0` trains there, whatever is asked;
    with `--share` it shares images that are kept in memory with the other runs of its sweep.
    """
    if "--check" in argv:
        answer: dict[str, Any] = {"kind": None, "error": None}
        try:
            answer["runs"] = check(json.load(sys.stdin), fetch="--dry" not in argv)
        except Exception as error:
            answer = {"kind": type(error).__name__, "error": one_line(error)}
        print("\n" + json.dumps(answer), flush=True)
        return 0
    if "--watch" in argv:
        end_with_parent()
    folder, splits = Path(argv[0]), ("val",) if "--val" in argv else SPLITS
    device = "".join(word.removeprefix(_DEVICE) for word in argv if word.startswith(_DEVICE))
    try:
        with FileLock(folder / HELD) if "--held" in argv else contextlib.nullcontext():
            made = carry_out(folder, splits, device, folder.parents[1] / PIXELS if "--share" in argv else None)
            write(folder / RECORD, made)
    except RebalanceError as error:
        print(f"rebalance: error: {error}", file=sys.stderr)
        return 2
    return 0 if made.finished else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
