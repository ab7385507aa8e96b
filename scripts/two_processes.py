"""Trains each family in two processes on a CPU, as on two GPUs: `python scripts/two_processes.py only=anchor,ssd`.

The processes are started as the host starts them, by its own launch file; what it does for GPUs alone is replaced:
their choice, NCCL (gloo), and where the checkpoint is validated. Of each training it is asked

    whether the weights are the same in both processes after every step, and what a loss keeps from step to step
    whether the gradient is the sum of those that one process finds on the two parts of the batch, with each part's
    draws, and with the same draws on both parts another one
    whether the loss is that of one process on the whole batch, where it is divided by what the whole batch has
    whether the regions of its images have a say in each of them
    whether the counts in results.csv are the sum of those of the processes, and every file has one writer
    whether it goes on from its first epoch to the same weights and the same rows

A few minutes on two cores. Ends with one line for each training, and exit code 1 where something is wrong.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.engine import trainer as host
from ultralytics.engine import validator as host_validator
from ultralytics.utils import LOCAL_RANK, RANK
from ultralytics.utils.torch_utils import unwrap_model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from small_data import make_dataset

from rebalance import YOLO
from rebalance.experiments.train import Keeper
from rebalance.hosts import host_of
from rebalance.hosts.host import branches, objectives
from rebalance.match.regions import RegionBatch
from rebalance.methods import method
from rebalance.train.trainer import RebalanceTrainer

PROCESSES = 2
LOOPBACK = "127.0.0.1"
SMALL = {
    "epochs": 2, "imgsz": 64, "batch": 4, "nbs": 4, "plots": False, "verbose": False, "optimizer": "SGD", "lr0": 0.01,
    "warmup_epochs": 0, "amp": False, "device": "cpu",
    "mosaic": 0, "scale": 0, "translate": 0,  # so that what regions cover is no matter of chance
}  # fmt: skip
MODELS = {
    "anchor": ("yolov5n.yaml", {"head": "anchor"}),
    "stock": ("yolov8n.yaml", {}),
    "yolo26": ("yolo26n.yaml", {}),
    "retinanet": ("retinanet_tiny", {}),
    "fasterrcnn": ("fasterrcnn_tiny", {}),
    "ssd": ("ssd_tiny", {}),
}
DROP = {"loss": "drop", "obj_drop": 0.5, "box_drop": 0.5}
FLAGS: dict[str, dict[str, Any]] = {"drop": DROP, "ghm": {"loss": "ghm"}, "resobj": {"head": "resobj"}}
HEADS = {("ssd", "ghm"): {"head": "sigmoid"}}
ABSENT = {("fasterrcnn", "ghm"), ("ssd", "resobj")}  # they have no meaning there


class TwoProcesses(RebalanceTrainer):
    """Trains in two processes on a CPU, and keeps of each what the checks look at, beside the run's folder."""

    world_size = property(lambda _: PROCESSES, lambda *_: None)
    ddp = property(lambda _: LOCAL_RANK == -1, lambda *_: None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: dict[str, Any] = {"weights": [], "kept": [], "counts": []}
        self._at: dict[str, Any] = {}
        written = self.seen["written"] = []
        if RANK > 0:
            sys.addaudithook(lambda event, args: written.extend(changed(event, args)))
        super().__init__(*args, **kwargs)

    def _setup_ddp(self) -> None:
        host.nn.parallel.DistributedDataParallel = OnCPU
        host_validator.get_torch_device_backend = lambda _: SimpleNamespace(current_device=lambda: 0)
        stock = host_validator.AutoBackend
        host_validator.AutoBackend = lambda *a, **k: stock(*a, **{**k, "device": torch.device("cpu")})
        distributed.init_process_group("gloo", timeout=timedelta(minutes=5), rank=RANK, world_size=PROCESSES)

    def _do_train(self) -> None:
        super()._do_train()
        torch.save(self.seen, kept_by(self.save_dir, RANK))

    def run_callbacks(self, event: str) -> None:
        criterion = unwrap_model(self.model).criterion if event.startswith("on_train_") else None
        if event == "on_train_batch_start":
            runs = [branch.objectives[0].run for branch in branches(criterion)]
            self._at = {
                "parameters": [p.detach().clone() for p in self.model.parameters()],
                "runs": [(run.key, run.epoch, run.epochs, run.step, dict(run.kept)) for run in runs],
            }
        if event == "on_train_epoch_end":
            found = [o.counts for o in objectives(criterion) if o.counts is not None]
            self.seen["counts"].append(torch.stack(found).sum(0).tolist() if found else [])
        super().run_callbacks(event)
        if event == "on_model_save" and self.epoch == 0:
            shutil.copytree(self.save_dir, after_first(self.save_dir))

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._at["batch"] = super().preprocess_batch(batch)
        return self._at["batch"]

    def take_step(self) -> None:
        model = unwrap_model(self.model)
        if "step" not in self.seen and self._at["runs"][0][3] == 1:  # the second: something was kept in the first
            untied = deepcopy({k: v for k, v in vars(model).items() if k != "criterion"})
            bare = type(model).__new__(type(model))
            bare.__dict__.update(untied)
            gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            self.seen["step"] = {
                **self._at, "model": bare, "recipe": self.recipe, "gradients": gradients, "items": self.loss_items,
            }  # fmt: skip
        super().take_step()
        self.seen["weights"].append(digest(model.parameters()))
        kept = [branch.objectives[0].run.kept for branch in branches(model.criterion)]
        self.seen["kept"].append([{k: v.tolist() for k, v in one.items()} for one in kept])


class OnCPU(DistributedDataParallel):
    """The host's, without the GPU that it names."""

    def __init__(self, module: Any, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


def changed(event: str, args: tuple[Any, ...]) -> list[str]:
    """The files that a process is about to write, rename or remove; folders that are there it may ask for."""
    if event == "open":
        path, _, flags = args
        args = (path,) if flags & (os.O_WRONLY | os.O_RDWR) else ()
    elif event not in ("os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"):
        args = ()
    return [os.fsdecode(path) for path in args[:2] if isinstance(path, (str, bytes))]


def kept_by(folder: Path, rank: int) -> Path:
    """Where a process keeps what the checks look at."""
    return folder.with_name(f"{folder.name}-process{rank}.pt")


def record_of(folder: Path) -> Path:
    """Where a sweep would keep what it records of a run."""
    return folder.with_name(f"{folder.name}.json")


def after_first(folder: Path) -> Path:
    """A run's folder as it was after its first epoch."""
    return folder.with_name(f"{folder.name}-stopped")


def digest(tensors: Any) -> str:
    """Of their bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().numpy().tobytes())
    return found.hexdigest()


# Of one training ------------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A training in two processes, and what is wrong with it."""

    folder: Path
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = [torch.load(kept_by(self.folder, rank), weights_only=False) for rank in range(PROCESSES)]
        self.rows = [
            {k.strip(): float(v) for k, v in row.items()}
            for row in csv.DictReader((self.folder / "results.csv").read_text("utf-8").splitlines())
        ]

    def ask(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong."""
        if not holds:
            self.wrong.append(otherwise)

    def check(self) -> Trained:
        """Everything but going on."""
        first, second = self.parts
        self.ask(first["weights"] == second["weights"], "weights differ between the processes")
        self.ask(len(set(first["weights"])) == len(first["weights"]) > 0, "steps without effect")
        self.ask(first["kept"] == second["kept"], "what the loss keeps differs between the processes")
        self.ask(not torch.equal(*(part["step"]["batch"]["img"] for part in self.parts)), "the same images in both")
        within = [path for path in second["written"] if Path(path).is_relative_to(self.folder)]
        self.ask(not within, f"the second process writes too: {within[:3]}")
        self.check_gradient()
        self.check_counts()
        self.check_records()
        return self

    def check_gradient(self) -> None:
        """That it is the sum of those of the parts, and of `ghm` the loss is that of the whole batch."""
        steps = [part["step"] for part in self.parts]
        self.ask(len({step["runs"][0][0] for step in steps}) == PROCESSES, "the processes draw the same")
        found = gradients(steps)
        self.ask(close(found, steps[0]["gradients"]), "the gradient is not the sum of those of the parts")
        for one in range(PROCESSES):
            unsaid = {k: v for k, v in steps[one]["batch"].items() if k != "regions"}
            other = gradients([*steps[:one], {**steps[one], "batch": unsaid}, *steps[one + 1 :]])
            self.ask(not same(other, found), f"the regions have no say in process {one}")
        if "drop" in steps[0]["recipe"]["loss"]:
            key = steps[0]["runs"]
            drawn = gradients([{**step, "runs": key} for step in steps])
            self.ask(not same(drawn, found), "the draws have no say")
        elif (divisor := steps[0]["recipe"].divisor) != "host" or "anchors" in steps[0]["recipe"].site.gives:
            whole, items = of_whole(steps), steps[0]["items"]
            name = "obj_loss" if "obj_loss" in items else "cls_loss"  # the gates of residual losses are of the part
            mean = sum(float(step["items"][name]) for step in steps) / PROCESSES
            right = abs(mean - whole[name]) <= 1e-5 * abs(whole[name])
            self.ask(right, f"by {divisor} {name} {mean} is not {whole[name]}, that of the whole batch")

    def check_counts(self) -> None:
        """That results.csv has the sum over the processes, a row an epoch."""
        self.ask([row["epoch"] for row in self.rows] == [1, 2], "not one row an epoch")
        for row, *counts in zip(self.rows, *(part["counts"] for part in self.parts), strict=True):
            summed = [sum(x) for x in zip(*counts, strict=True)]
            names = ("negatives", "obj_dropped", "low_iou_matches", "box_dropped")
            if summed:
                self.ask([row[f"drop/{name}"] for name in names] == summed, f"counts {summed} are not those of {row}")
                self.ask(summed[1] > 0 and min(c[1] for c in counts) > 0, "nothing was dropped")

    def check_records(self) -> None:
        """That a sweep's record of the run, and what it was made with, are there and say the same."""
        kept = json.loads(record_of(self.folder).read_text("utf-8"))
        made = json.loads((self.folder / "rebalance.json").read_text("utf-8"))
        self.ask(sorted(kept["seconds"]) == ["1", "2"], f"the record has the times {kept['seconds']}")
        self.ask(kept["images"] == made["data"]["train"]["images"] == 8, "the record has another number of images")
        self.ask(kept["loss_ran"]["text"] == made["loss"]["text"], "the record has another loss")

    def check_going_on(self, other: Trained) -> None:
        """That another one, which went on from its first epoch, came to the same end."""
        for part, resumed in zip(self.parts, other.parts, strict=True):
            half = len(part["weights"]) // 2
            self.ask(part["weights"][half:] == resumed["weights"], "resumed, the weights are others")
            self.ask(part["kept"][half:] == resumed["kept"], "resumed, what the loss keeps is other")
        timeless = [[{k: v for k, v in row.items() if k != "time"} for row in run.rows] for run in (self, other)]
        self.ask(timeless[0] == timeless[1], "resumed, results.csv is another")
        for name in ("last.pt", "best.pt"):
            states = [YOLO(run.folder / "weights" / name).model.state_dict() for run in (self, other)]
            self.ask(all(torch.equal(v, states[1][k]) for k, v in states[0].items()), f"resumed, {name} is another")


def prepared(step: dict[str, Any], rank_of: dict[str, Any]) -> tuple[Any, Any]:
    """The model of a step as it was before, and its criterion as that of a process was."""
    model, recipe = step["model"], step["recipe"]
    model.train()
    for parameter, before in zip(model.parameters(), step["parameters"], strict=True):
        parameter.data.copy_(before)
    criterion = host_of(model).criterion(model, recipe, seed=0)
    for branch, (key, epoch, epochs, number, kept) in zip(branches(criterion), rank_of["runs"], strict=True):
        for objective in branch.objectives:
            objective.begin_epoch(epoch, epochs)
        run = branch.objectives[0].run
        run.key, run.step, run.kept = key, number, dict(kept)
    return model, criterion


def gradients(steps: list[dict[str, Any]]) -> list[Tensor]:
    """What one process finds on the parts one after the other, where both know what is summed over the processes."""
    told: list[list[Tensor]] = []
    for step in steps:
        told.append([])
        run_part(step, steps[0], lambda x: told[-1].append(x) or x, backward=False)
    steps[0]["model"].zero_grad(set_to_none=True)
    for step in steps:
        numbers: Iterator[Tensor] = (sum(found) for found in zip(*told, strict=True))
        run_part(step, steps[0], lambda _: next(numbers), backward=True)  # noqa: B023 - called here
    return [p.grad for p in steps[0]["model"].parameters()]


def run_part(step: dict[str, Any], of: dict[str, Any], summed: Callable[[Tensor], Tensor], *, backward: bool) -> None:
    """The loss of a part of the batch."""
    model, criterion = prepared(of, step)
    with patch.object(method, "summed", summed), patch.object(method, "number", lambda: PROCESSES):
        loss = criterion(model(step["batch"]["img"]), step["batch"])[0].sum()
    if backward:
        loss.backward()


def of_whole(steps: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The losses of one process on the whole batch; only normalisation is by part, as in two processes."""
    model, criterion = prepared(steps[0], steps[0])
    preds = [model(step["batch"]["img"]) for step in steps]
    batches = [step["batch"] for step in steps]
    images = len(batches[0]["img"])
    batch = {key: torch.cat([one[key] for one in batches]) for key in ("img", "cls", "bboxes")}
    batch["batch_idx"] = torch.cat([one["batch_idx"] + images * i for i, one in enumerate(batches)])
    parts = [one["regions"] for one in batches]
    image = torch.cat([part.image + images * i for i, part in enumerate(parts)])
    fields = [torch.cat(each) for each in list(zip(*parts, strict=True))[1:5]]
    batch["regions"] = RegionBatch(image, *fields, max(part.most for part in parts))
    items: dict[str, Tensor] = criterion(joined(preds, images), batch)[1]
    return items


def joined(parts: list[Any], images: int) -> Any:
    """Predictions of both parts."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.shape[:1] == (images,) else first
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts], images) for key in first}
    if isinstance(first, (list, tuple)) and any(isinstance(x, (Tensor, list, dict)) for x in first):
        return type(first)(joined(list(each), images) for each in zip(*parts, strict=True))
    return first


def close(found: list[Any], expected: list[Any]) -> bool:
    """Whether gradients are the same, but for roundings; what has none has zeros."""
    pairs = [(x, y) for x, y in zip(found, expected, strict=True) if x is not None or y is not None]
    flat = [
        torch.cat([(torch.zeros_like(pair[1 - i]) if pair[i] is None else pair[i]).flatten() for pair in pairs])
        for i in range(2)
    ]
    return bool((flat[0] - flat[1]).norm() <= 1e-4 * flat[1].norm()) and bool(flat[1].norm() > 0)


def same(found: list[Any], others: list[Any]) -> bool:
    """Whether gradients are the same to the bit."""
    return all(x is y or torch.equal(x, y) for x, y in zip(found, others, strict=True))


def train(family: str, flags: str, data: Path, folder: Path, *, go_on: bool = True) -> Trained:
    """Train, check, go on from the first epoch, and check that."""
    name, own = MODELS[family]
    run = folder / f"{family}-{flags}"
    model = YOLO(name)
    Keeper(record_of(run), threads=1, began=time.perf_counter()).attach(model)
    arguments = {**SMALL, **own, **HEADS.get((family, flags), {}), **FLAGS[flags]}
    model.train(data=str(data), project=str(folder), name=run.name, trainer=TwoProcesses, **arguments)
    trained = Trained(run).check()
    if go_on:
        stopped = after_first(trained.folder)
        YOLO(stopped / "weights" / "last.pt").train(resume=True, trainer=TwoProcesses, save_dir=str(stopped))
        trained.check_going_on(Trained(stopped))
    return trained


def apart(seconds: float = 20) -> str:
    """Why two processes of this machine do not reach each other, as where it has no loopback network; else nothing."""
    limit, told = timedelta(seconds=seconds), queue.Queue[str]()

    def join(rank: int, port: int) -> None:
        try:
            store = distributed.TCPStore(LOOPBACK, port, timeout=limit)
            group = distributed.ProcessGroupGloo(distributed.PrefixStore("apart", store), rank, PROCESSES, limit)
            group.allreduce([torch.ones(1)]).wait()
            told.put("")
        except RuntimeError as error:  # torch's own errors of networks are
            told.put(str(error).partition("\n")[0])

    try:
        with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname()[:2], seconds):
            pass
        store = distributed.TCPStore(LOOPBACK, 0, is_master=True, timeout=limit, wait_for_workers=False)
        for rank in range(PROCESSES):
            threading.Thread(target=join, args=(rank, store.port), daemon=True).start()
        return next(filter(None, [told.get(timeout=2 * seconds) for _ in range(PROCESSES)]), "")
    except (OSError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    except queue.Empty:
        return f"no answer in {2 * seconds:g} s"


def make_data(folder: Path) -> Path:
    """A data set of 8 + 4 images, of whose right quarters alone it is known whether they show the first class."""
    data = make_dataset(folder, test=1)
    for split in ("train", "val"):
        (folder / "regions" / split).mkdir(parents=True)
        for labels in (folder / "labels" / split).glob("*.txt"):
            (folder / "regions" / split / labels.name).write_text("unknown 0 0.375 0.5 0.75 1\n", "utf-8")
    return data


def main(arguments: list[str]) -> int:
    """See the head of this file."""
    given = {"only": ",".join(MODELS), "methods": ",".join(FLAGS)}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in given or not equals:
            print(f"two_processes: {argument} is not one of {', '.join(f'{key}=' for key in given)}", file=sys.stderr)
            return 2
        given[key] = value
    for key, known in (("only", MODELS), ("methods", FLAGS)):
        if unknown := [name for name in given[key].split(",") if name not in known]:
            print(f"two_processes: {unknown[0]} is not one of {', '.join(known)}", file=sys.stderr)
            return 2
    if why := apart():
        print(f"two_processes: two processes do not reach each other here: {why}", file=sys.stderr)
        return 2
    faults = 0
    with tempfile.TemporaryDirectory(prefix="two-processes-") as place:
        os.environ |= {"MLFLOW_TRACKING_URI": Path(place, "mlflow").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
        data = make_data(Path(place) / "data")
        for family in given["only"].split(","):
            for name in given["methods"].split(","):
                if (family, name) in ABSENT:
                    continue
                wrong = train(family, name, data, Path(place)).wrong
                faults += len(wrong)
                print(f"two_processes: {family} {name}: {'; '.join(wrong) or 'right'}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from two_processes import main as imported  # the processes find the trainer by its name

    sys.exit(imported(sys.argv[1:]))
