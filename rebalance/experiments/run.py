"""One training of a sweep, in a process of its own: `python -m rebalance.experiments.run <run folder>`.

Reads config.json, trains, evaluates on val and test, and writes record.json last. Killed at any point, the same command
goes on from the last checkpoint that is whole, or starts again in an emptied folder where there is none.

What is evaluated is best.pt, the checkpoint that Ultralytics and YOLOv5 keep, and that a user goes on with: the epoch
with the best fitness on val, whose labels are complete. The budget is fixed, so this selection is the same for every
method; val figures are a little optimistic by it, test figures are not, and test is what the tables show. With
`val=False` there is no selection: best.pt is then the last epoch.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebalance.errors import DataError, RebalanceError, RunError
from rebalance.experiments.record import (
    CONFIG,
    LOG,
    RECORD,
    SCHEMA,
    failed_record,
    git,
    machine,
    read_json,
    shown,
    versions,
    write_json,
)
from rebalance.settings import as_dict

if TYPE_CHECKING:
    from rebalance.data.dataset import DataSet

PROGRESS = "progress.json"
TRAIN = "train"
SAMPLES = 4  # images of each kind in a record
SCORE = 0.25  # least score of a detection that is shown, Ultralytics' own for predicting
MOST_SHOWN = 100  # detections of one image
ALSO_IN_VAL = ("imgsz", "device", "workers", "classes", "single_cls", "conf", "iou", "max_det", "agnostic_nms")

IOU_THRESHOLDS = tuple(f"{0.5 + 0.05 * k:.2f}" for k in range(10))  # of a match, as COCO and the host have them

_FILLED_IN = ("epochs", "imgsz", "batch")  # host flags that a record always names
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
        set_threads(self.threads)  # choosing the CPU, the host has set its own number
        loss_ran, flags = getattr(trainer, "loss_ran", None), getattr(trainer, "flags", None)
        args = {key: value for key, value in vars(trainer.args).items() if key not in _NOT_A_SETTING}
        self.state |= {
            "images": len(trainer.train_loader.dataset),
            "loss_ran": loss_ran or None,
            "flags": as_dict(flags) if is_dataclass(flags) else None,
            "host_args": {key: value for key, value in args.items() if value is not None},
            "gpu": _gpu(trainer.device),
        }
        self._write()

    def on_train_epoch_start(self, trainer: Any) -> None:
        """Start the clock."""
        self.epoch_began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any) -> None:
        """Keep the epoch's time; one that is trained again after a kill replaces the one that was lost."""
        now = time.perf_counter()
        self.state["seconds"][str(trainer.epoch + 1)] = round(now - self.epoch_began, 3)
        self.state["total_seconds"] = now - self.origin
        self.state["peak_memory_mb"] = max(self.state.get("peak_memory_mb", 0.0), peak_memory_mb(trainer.device))
        self._write()

    def reload(self) -> None:
        """Take up what a multi-GPU training has written from its own processes."""
        self.state = read_json(self.path) or self.state

    def _write(self) -> None:
        if os.environ.get("RANK", "-1") in ("-1", "0"):  # of several processes that train together, the first
            write_json(self.path, self.state)

    def timings(self) -> dict[str, float]:
        """Seconds of training, and images in a second of it."""
        seconds = sum(self.state["seconds"].values())
        images = self.state.get("images", 0) * len(self.state["seconds"])
        return {"train_seconds": seconds, "images_per_second": images / seconds if seconds else 0.0}


def carry_out(folder: Path) -> dict[str, Any]:
    """Train and evaluate one run and return its record.

    Raises:
        RunError: the folder has no config.json.
        Exception: whatever the training raised.
    """
    began = time.perf_counter()
    config = read_config(folder)
    keeper = Keeper(folder / PROGRESS, int(os.environ.get("OMP_NUM_THREADS", "1")), began)
    weights = train(folder, config, keeper)
    evaluation_began = time.perf_counter()
    data = _data_set(config)
    metrics = {split: evaluate(weights, split, config, keeper) for split in ("val", "test") if split in data.splits}
    samples = sample(weights, data, config)
    now = time.perf_counter()
    state, asked = keeper.state, config["config"]
    args = state.get("host_args", {})
    host = {**{key: args[key] for key in _FILLED_IN if key in args}, **asked["host"]}
    return {
        "schema": SCHEMA,
        "run": config["run"],
        "status": "finished",
        "error": None,
        "config": {**asked, "train": state.get("flags") or asked["train"], "host": host, "host_args": args},
        "varied": config["varied"],
        "weights": weights.name,
        "loss_ran": state.get("loss_ran") or {"loss": "stock", "head": "stock", "text": "the host's own loss and head"},
        **facts(keeper),
        "timings": {
            **keeper.timings(),
            "eval_seconds": now - evaluation_began,
            "total_seconds": now - keeper.origin,
        },
        "peak_memory_mb": state.get("peak_memory_mb"),
        "metrics": {"val": None, "test": None, **metrics},
        "epochs": read_epochs(folder / TRAIN / "results.csv"),
        "samples": samples,
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a run folder asks for.

    Raises:
        RunError: it does not.
    """
    config = read_json(folder / CONFIG)
    if config is None or config.get("schema") != SCHEMA:
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG} that can be read")
    return config


def facts(keeper: Keeper) -> dict[str, Any]:
    """The part of a record that a failed run has too."""
    return {"versions": versions(), "git": git(), "machine": machine(keeper.threads, keeper.state.get("gpu"))}


def train(folder: Path, config: Mapping[str, Any], keeper: Keeper) -> Path:
    """Train to the end, from where an earlier attempt was stopped, and return the checkpoint to evaluate."""
    from rebalance import YOLO

    weights = folder / TRAIN / "weights"
    found = _whole_checkpoint(weights)
    if found is None:
        shutil.rmtree(folder / TRAIN, ignore_errors=True)
        keeper.state = {"seconds": {}, "total_seconds": keeper.state.get("total_seconds", 0.0)}
        asked = config["config"]
        model = YOLO(asked["host"]["model"])
        keeper.attach(model)
        ours = {key: asked["train"][key] for key in config["given"]}
        host = {key: value for key, value in asked["host"].items() if key not in ("model", "data")}
        places = {"project": str(folder.absolute()), "name": TRAIN, "exist_ok": True}
        model.train(data=str(_data_yaml(config)), seed=asked["seed"], **ours, **host, **places)
    else:
        model, done = found
        if not done:
            repair_csv(folder / TRAIN / "results.csv")
            keeper.attach(model)
            model.train(resume=True, data=str(_data_yaml(config)), save_dir=str((folder / TRAIN).absolute()))
    keeper.reload()
    best = weights / "best.pt"
    return best if _is_whole(best) else weights / "last.pt"


def _whole_checkpoint(weights: Path) -> tuple[Any, bool] | None:
    """The model of the newest checkpoint that can be read, and whether its training is complete.

    The host writes checkpoints in place, last.pt first: a kill can leave one of the two half-written, not both. A
    half-written best.pt is removed, because the host would stumble over it at the end.
    """
    from rebalance import YOLO

    for name in ("last.pt", "best.pt"):
        path = weights / name
        if not _is_whole(path):
            path.unlink(missing_ok=True)
    for name in ("last.pt", "best.pt"):
        if not (weights / name).exists():
            continue
        try:
            model = YOLO(str(weights / name))
            epoch, epochs = int(model.ckpt["epoch"]), int(model.ckpt["train_args"]["epochs"])
        except Exception:  # whatever unpickling a damaged file raises: it is of no use
            (weights / name).unlink()
            continue
        return model, epoch < 0 or epoch + 1 >= epochs  # the host writes -1 when it is through
    return None


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end, where a zip archive has its directory."""
    return path.is_file() and zipfile.is_zipfile(path)


def evaluate(weights: Path, split: str, config: Mapping[str, Any], keeper: Keeper) -> dict[str, Any] | None:
    """Return Ultralytics' metrics on a split as fractions; None where the split has no labels.

    Args:
        weights: the checkpoint.
        split: val or test; its labels are complete.
        config: content of config.json.
        keeper: tells the number of threads.
    """
    from rebalance import YOLO

    model = YOLO(str(weights))
    model.add_callback("on_val_start", lambda _: set_threads(keeper.threads))
    found = model.val(
        data=str(_data_yaml(config)), split=split, plots=False, verbose=False, **_eval_flags(config, weights)
    )
    if found.nt_per_class is None or not sum(found.nt_per_class):
        return None
    box = found.box
    per_class = {
        str(found.names[int(index)]): {"mAP50": float(ap[0]), "mAP50-95": float(ap.mean())}
        for index, ap in zip(box.ap_class_index, box.all_ap, strict=True)
    }
    by_iou = dict(zip(IOU_THRESHOLDS, box.all_ap.mean(0).tolist(), strict=True))
    return {
        "mAP50": float(box.map50),
        "mAP75": float(box.map75),
        "mAP50-95": float(box.map),
        "precision": float(box.mp),
        "recall": float(box.mr),
        "mAP_by_iou": by_iou,
        "per_class": per_class,
    }


def sample(weights: Path, data: DataSet, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return detections beside labels, in pixels, on fixed images.

    Of test (or val), and of the training images with withheld boxes, both spread evenly over the sorted list: runs on
    the same data show the same images. Where the head has T steps, the image of test on which it finds most has the
    detections with the first 0 to T - 1 of them too, as `steps`.
    """
    from rebalance import YOLO
    from rebalance.experiments.inspect import at_step, steps_of

    split = "test" if "test" in data.splits else "val"
    partial = [image for image in sorted(set(data.images("train"))) if _has_withheld(image)]
    wanted = dict.fromkeys(spread(sorted(set(data.images(split))), SAMPLES), split)
    wanted |= dict.fromkeys(spread(partial, SAMPLES), "train")
    chosen = {image: split for image, split in wanted.items() if _readable(data, image)}
    if not chosen:
        return []
    flags = {key: value for key, value in _eval_flags(config, weights).items() if key not in ("workers", "batch")}
    flags |= {"conf": SCORE, "save": False, "verbose": False}  # a conf that was given is of the metrics
    model = YOLO(str(weights))
    steps, results = steps_of(model), model.predict(list(chosen), **flags)
    samples = [
        _sample(data, image, split, result) for (image, split), result in zip(chosen.items(), results, strict=True)
    ]
    if steps:
        most = max(range(len(samples)), key=lambda i: (samples[i]["split"] == split, len(samples[i]["detections"])))
        image = list(chosen)[most]
        found = [at_step(weights, step).predict(image, **flags) for step in range(steps)]
        samples[most]["steps"] = [_detections(result) for (result,) in found]
    return samples


def _sample(data: DataSet, image: str, split: str, result: Any) -> dict[str, Any]:
    height, width = (int(side) for side in result.orig_shape)

    def boxes(labels: Any) -> list[list[float]]:
        xyxy = labels.boxes_xyxy(width, height).tolist()
        return [[int(c), *(round(v, 1) for v in box)] for c, box in zip(labels.classes, xyxy, strict=True)]

    return {
        "image": shown(image),
        "split": split,
        "size": [width, height],
        "labels": boxes(data.labels(image)),
        "withheld": boxes(data.withheld(image)) if split == "train" else [],
        "detections": _detections(result),
    }


def _detections(result: Any) -> list[list[float]]:
    """[class, score, x1, y1, x2, y2] of each, at most MOST_SHOWN."""
    found = result.boxes
    rows = zip(found.cls.tolist(), found.conf.tolist(), found.xyxy.tolist(), strict=True)
    return [[int(c), round(s, 4), *(round(v, 1) for v in box)] for c, s, box in rows][:MOST_SHOWN]


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` of the items at even distances, the first and the last among them; all where there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index * (len(items) - 1) // (count - 1)] for index in range(count)]


def read_epochs(path: Path) -> list[dict[str, float]]:
    """Return the rows of Ultralytics' results.csv; of an epoch that was trained twice, the last.

    Our own columns are `drop/…`, predictions that the loss counted in the epoch (negatives, and those dropped from each
    loss), and `resobj/pos_t`, `resobj/neg_t`, the mean objectness of positives and of negatives in the epoch's training
    images after step t = 0 … T.
    """
    rows: dict[int, dict[str, float]] = {}
    for row in _rows(path):
        try:
            numbers = {key.strip(): float(value) for key, value in row.items()}
        except ValueError:
            continue
        epoch = int(numbers.pop("epoch"))
        rows[epoch] = {"epoch": epoch, **numbers}
    return [rows[epoch] for epoch in sorted(rows)]


def repair_csv(path: Path) -> None:
    """Take the line off that a kill left half-written, so that the next one does not continue it."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    """Complete rows of a CSV file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


def check(grid: Sequence[Mapping[str, Any]]) -> None:
    """Raise where the host would not train one of the configurations; nothing is trained.

    Args:
        grid: for each run the given flags `train` (ours) and `host`.

    Raises:
        ConfigError: an unknown flag or a bad value, of ours or of the host.
        ModelError: a model that cannot be built with its head.
    """
    from rebalance.train.admission import check_training

    for text in dict.fromkeys(json.dumps(run, sort_keys=True) for run in grid):
        run = json.loads(text)
        check_training(run["train"], run["host"])


def set_threads(number: int) -> None:
    """Let torch compute with this many CPU threads."""
    import torch

    torch.set_num_threads(number)


def peak_memory_mb(device: Any) -> float:
    """Largest memory so far: allocated on the GPU where the device is one, else resident in this process."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def end_with_parent() -> None:
    """End this process group when the sweep that started it is gone: its end of our standard input closes then."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with the workers of a data loader and of a multi-GPU training
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def one_line(error: BaseException) -> str:
    """What an error says, in one line, with its kind unless it is one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RebalanceError) else f"{type(error).__name__}: {text}".rstrip(": ")


def main(argv: Sequence[str]) -> int:
    """`<run folder> [--watch]`: carry out a run; `--check`: read a grid from standard input, answer with its error."""
    if "--check" in argv:
        answer: dict[str, str | None] = {"kind": None, "error": None}
        try:
            check(json.load(sys.stdin))
        except Exception as error:
            answer = {"kind": type(error).__name__, "error": one_line(error)}
        print("\n" + json.dumps(answer), flush=True)
        return 0
    if "--watch" in argv:
        end_with_parent()
    folder = Path(argv[0])
    try:
        record = carry_out(folder)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        keeper = Keeper(folder / PROGRESS, int(os.environ.get("OMP_NUM_THREADS", "1")), time.perf_counter())
        record = failed_record(read_json(folder / CONFIG) or {}, one_line(error), folder / LOG, facts(keeper))
    write_json(folder / RECORD, record)
    return 0 if record["status"] == "finished" else 1


def _data_yaml(config: Mapping[str, Any]) -> Path:
    """The YAML that the run trains on."""
    return Path(config["config"]["labels"]["data"]).absolute()


def _data_set(config: Mapping[str, Any]) -> DataSet:
    from rebalance.data.dataset import load

    return load(_data_yaml(config))


def _eval_flags(config: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Host flags that mean the same in evaluation, and a folder that exists anyway."""
    host = config["config"]["host"]
    batch = host.get("batch", 16)
    place = {
        "batch": batch if isinstance(batch, int) and batch > 0 else 16,
        "save_dir": str(weights.parents[1].absolute()),
    }
    return {**{key: host[key] for key in ALSO_IN_VAL if key in host}, **place}


def _has_withheld(image: str) -> bool:
    from rebalance.data.dataset import withheld_path

    path = withheld_path(image)
    return path is not None and os.path.isfile(path) and os.path.getsize(path) > 0


def _readable(data: DataSet, image: str) -> bool:
    """Whether image and labels can be shown; the host passes over broken ones too."""
    import cv2

    try:
        data.labels(image)
        data.withheld(image)
    except DataError:
        return False
    return cv2.imread(image) is not None


def _gpu(device: Any) -> str | None:
    if device.type != "cuda":
        return None
    import torch

    return str(torch.cuda.get_device_name(device))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
