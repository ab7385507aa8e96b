"""The training of one run, that can be killed at any point and goes on from the last checkpoint that is whole."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import psutil
import torch

from rebalance.experiments.record import NUMBERS, Task, read_json, write_json
from rebalance.train.api import YOLO

PROGRESS = "progress.json"
TRAIN = "train"

_NOT_A_SETTING = ("save_dir", "project", "name", "exist_ok", "model", "data", "mode", "resume", "source")


class Keeper:
    """Callbacks of a training that keep, in the run folder, what a record needs and a kill must not take.

    Attributes:
        state: `seconds` of each epoch (training only, without validation), `total_seconds` over all attempts, `images`
            in training, `peak_memory_mb`, `gpu`, `loss_ran`, `flags` and `host_args`.
    """

    def __init__(self, path: Path, threads: int, began: float) -> None:
        self.path, self.threads = path, threads
        self.state: dict[str, Any] = read_json(path) or {"seconds": {}}
        self.origin = began - self.state.get("total_seconds", 0.0)
        self.epoch_began = 0.0

    def attach(self, model: Any) -> None:
        """Add the callbacks to a model that is about to train."""
        for event in ("on_train_start", "on_train_epoch_start", "on_train_epoch_end"):
            model.add_callback(event, getattr(self, event))

    def on_train_start(self, trainer: Any) -> None:
        """Keep what is known before the first epoch."""
        torch.set_num_threads(self.threads)  # choosing the CPU, the host has set its own number
        device, recipe = trainer.device, getattr(trainer, "recipe", None)
        args = {key: value for key, value in vars(trainer.args).items() if key not in _NOT_A_SETTING}
        self.state |= {
            "images": len(trainer.train_loader.dataset),
            "loss_ran": getattr(trainer, "loss_ran", None) or None,
            "flags": dict(recipe.values) if recipe else None,
            "host_args": {key: value for key, value in args.items() if value is not None},
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        }
        self._write()

    def on_train_epoch_start(self, trainer: Any) -> None:
        self.epoch_began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Keep the epoch's time; one that is trained again after a kill replaces the one that was lost."""
        now = time.perf_counter()
        self.state["seconds"][str(trainer.epoch + 1)] = round(now - self.epoch_began, 3)
        self.state["total_seconds"] = now - self.origin
        self.state["peak_memory_mb"] = max(self.state.get("peak_memory_mb", 0.0), peak_memory_mb(trainer.device))
        self._write()

    def _write(self) -> None:
        if os.environ.get("RANK", "-1") in ("-1", "0"):  # of several processes that train together, the first
            write_json(self.path, self.state)

    def timings(self) -> dict[str, float]:
        """Seconds of training, and images in a second of it."""
        seconds = sum(self.state["seconds"].values())
        images = self.state.get("images", 0) * len(self.state["seconds"])
        return {"train_seconds": seconds, "images_per_second": images / seconds if seconds else 0.0}


def train(folder: Path, task: Task, keeper: Keeper) -> Path:
    """Train to the end, from where an earlier attempt was stopped, and return the checkpoint to evaluate.

    The setting of the evaluation stays out of it: the host would choose best.pt by it.
    """
    data, weights = str(task.config.data), folder / TRAIN / "weights"
    found = _whole_checkpoint(weights)
    if found is None:
        shutil.rmtree(folder / TRAIN, ignore_errors=True)
        keeper.state = {"seconds": {}, "total_seconds": keeper.state.get("total_seconds", 0.0)}
        model, asked = YOLO(task.config.host["model"]), task.config
        keeper.attach(model)
        ours = {key: asked.train[key] for key in task.given}
        host = {key: value for key, value in asked.host.items() if key not in ("model", "data", *NUMBERS)}
        places = {"project": str(folder.absolute()), "name": TRAIN, "exist_ok": True}
        model.train(data=data, seed=asked.seed, **ours, **host, **places)
    else:
        model, done = found
        if not done:
            repair_csv(folder / TRAIN / "results.csv")
            keeper.attach(model)
            model.train(resume=True, data=data, save_dir=str((folder / TRAIN).absolute()))
    keeper.state = read_json(keeper.path) or keeper.state  # what a multi-GPU training wrote from its own processes
    best = weights / "best.pt"
    return best if _is_whole(best) else weights / "last.pt"


def _whole_checkpoint(weights: Path) -> tuple[Any, bool] | None:
    """The model of the newest checkpoint that can be read, and whether its training is complete.

    The host writes checkpoints in place, last.pt first: a kill can leave one of the two half-written, not both. A
    half-written best.pt is removed, because the host would stumble over it at the end.
    """
    paths = [weights / name for name in ("last.pt", "best.pt")]
    for path in paths:
        if not _is_whole(path):
            path.unlink(missing_ok=True)
    for path in filter(Path.exists, paths):
        try:
            model = YOLO(str(path))
            epoch, epochs = int(model.ckpt["epoch"]), int(model.ckpt["train_args"]["epochs"])
        except Exception:  # whatever unpickling a damaged file raises: it is of no use
            path.unlink()
        else:
            return model, epoch < 0 or epoch + 1 >= epochs  # the host writes -1 when it is through
    return None


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end, where a zip archive has its directory."""
    return path.is_file() and zipfile.is_zipfile(path)


def read_epochs(path: Path) -> list[dict[str, float]]:
    """Return the rows of Ultralytics' results.csv; of an epoch that was trained twice, the last.

    Our own columns are `drop/…`, predictions that the loss counted in the epoch (negatives, and those dropped from each
    loss), and `resobj/pos_t`, `resobj/neg_t`, the mean objectness of positives and of negatives in the epoch's training
    images after step t = 0 … T.
    """
    if not path.exists():
        return []
    rows: dict[int, dict[str, float]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        if None in row or None in row.values():
            continue  # half-written
        with contextlib.suppress(ValueError):
            numbers = {key.strip(): float(value) for key, value in row.items()}
            epoch = int(numbers.pop("epoch"))
            rows[epoch] = {"epoch": epoch, **numbers}
    return [rows[epoch] for epoch in sorted(rows)]


def repair_csv(path: Path) -> None:
    """Take the line off that a kill left half-written, so that the next one does not continue it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def peak_memory_mb(device: Any) -> float:
    """Largest memory so far: allocated on the GPU where the device is one, else resident in this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
