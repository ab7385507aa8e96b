"""The training of one run, which can be killed at any point and goes on as if it had not been."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from rebalance.experiments.record import NUMBERS, TRAIN, Task, read_json, write_json
from rebalance.train.api import YOLO
from rebalance.train.checkpoint import find_state, remove_states

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


class _YOLO(YOLO):
    exact = True


def train(folder: Path, task: Task, keeper: Keeper) -> Path:
    """Train to the end, from where an earlier attempt was stopped, and return the checkpoint to evaluate.

    What is trained in several attempts is the same as in one, so a checkpoint without its state is of no use here.
    The setting of the evaluation stays out of it: the host would choose best.pt by it.
    """
    data, weights = str(task.config.data), folder / TRAIN / "weights"
    found = _begun(weights / "last.pt")
    if found is None:
        shutil.rmtree(folder / TRAIN, ignore_errors=True)
        keeper.state = {"seconds": {}, "total_seconds": keeper.state.get("total_seconds", 0.0)}
        model, asked = _YOLO(task.config.host["model"]), task.config
        keeper.attach(model)
        ours = {key: asked.train[key] for key in task.given}
        host = {key: value for key, value in asked.host.items() if key not in ("model", "data", *NUMBERS)}
        places = {"project": str(folder.absolute()), "name": TRAIN, "exist_ok": True}
        model.train(data=data, seed=asked.seed, **ours, **host, **places)
    else:
        model, over = found
        if not over:
            keeper.attach(model)
            place = {key: task.config.host[key] for key in ("device",) if key in task.config.host}
            model.train(resume=True, data=data, save_dir=str((folder / TRAIN).absolute()), **place)
    keeper.state = read_json(keeper.path) or keeper.state  # what a multi-GPU training wrote from its own processes
    best = weights / "best.pt"
    return best if best.is_file() else weights / "last.pt"


def _begun(last: Path) -> tuple[Any, bool] | None:
    """The model of a training that can go on exactly, and whether there is nothing left to train; None: begin again."""
    if not last.is_file():
        return None
    try:
        model = _YOLO(str(last))
        epoch = int(model.ckpt["epoch"])
    except Exception as error:  # whatever unpickling a damaged file raises
        print(f"rebalance: {last} cannot be read ({type(error).__name__}): the run begins again", flush=True)
        return None
    if epoch < 0:  # as the host leaves it when it is through
        remove_states(last.parent)  # the last thing that it does: it may have been killed before
        return model, True
    state, missing = find_state(last, epoch)
    if state is None:
        print(f"rebalance: {missing}, so it could not go on exactly: the run begins again", flush=True)
        return None
    return model, False


def peak_memory_mb(device: Any) -> float:
    """Largest memory so far: allocated on the GPU where the device is one, else resident in this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
