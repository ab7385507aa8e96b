"""Trainings that were killed, at any point, against the same ones unbroken."""

from __future__ import annotations

import csv
import errno
import os
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_data import make_dataset
from small_training import log, train
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler
from ultralytics.engine import trainer as host

from rebalance import YOLO
from rebalance.cli import main as cli
from rebalance.errors import RunError
from rebalance.files import unfinished
from rebalance.train.checkpoint import find_state, state_of
from rebalance.train.resumable import Passes, _strips_whole, random_state, set_random_state
from rebalance.train.trainer import RebalanceTrainer

# Model, flags, and after which epoch (from 0) it is stopped. Three batches an epoch, the last of two images, and a step
# every other batch: gradients are pending after an epoch. Warm-up ends, and mosaic, within the three epochs.
USUAL = {"epochs": 3, "batch": 3, "nbs": 6, "warmup_epochs": 2, "close_mosaic": 1, "mixup": 0.3, "amp": False}
SHORT = {"warmup_epochs": 1.5}  # with it gradients are pending after the first epoch
GHM = {"loss": "ghm", **SHORT}  # it has a moving average
SLOW = pytest.mark.slow
NO_FLAG = "no flag of ours"
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "stock": ("yolov8n.yaml", GHM, 0),
    NO_FLAG: ("yolov8n.yaml", {}, 1),
    "two branches": ("yolo26n.yaml", {"loss": "drop", "obj_drop": 0.5} | SHORT, 0),
    # killed in its warm-up
    "retinanet": ("retinanet_tiny", {"loss": "brl", "lr_steps": "[2]", "warmup_from": 0.3, "grad_clip": 1}, 1),
    "anchor": ("yolov5n.yaml", {"head": "anchor", "loss": "drop", "obj_drop": 0.5, "box_drop": 0.5}, 1),
    "resobj": ("yolov8n.yaml", {"head": "resobj", "optimizer": "AdamW", "lr0": 0.001, "multi_scale": 0.4}, 1),
    "resobj anchor": ("yolov5n.yaml", {"head": "resobj", "optimizer": "MuSGD", "close_mosaic": 2}, 1),
    "whole batches": ("yolov8n.yaml", {"loss": "ghm", "batch": 4, "nbs": 4, "cos_lr": True, "cache": "ram"}, 1),
    "faster rcnn": ("fasterrcnn_tiny", {"loss": "nrd", "val": False}, 1),
    "ssd": ("ssdlite320_mobilenet_v3_large", {"loss": "ohem", "optimizer": "auto"}, 1),
}
FAST = ("stock", NO_FLAG, "two branches", "retinanet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", test=1)


class Exact(YOLO):
    """As a sweep trains: without a flag of ours too."""

    exact = True


class Unbroken:
    """A training to its end, and its folder as it was after each epoch's checkpoint."""

    def __init__(self, family: str, data: Path, folder: Path) -> None:
        name, flags, self.stopped = FAMILIES[family]
        self.folder, model = folder / "run", Exact(name)
        model.add_callback("on_model_save", lambda t: shutil.copytree(t.save_dir, folder / f"{t.epoch}"))
        train(model, data, folder, **{**USUAL, **flags})
        self.end = state_at_the_end(model.trainer)
        self.loss_ran = getattr(model.trainer, "loss_ran", None)

    def copy(self, epoch: int, to: Path) -> Path:
        """Its folder as a kill after an epoch leaves it."""
        return shutil.copytree(self.folder.with_name(str(epoch)), to)


def state_at_the_end(trainer: Any) -> dict[str, Tensor]:
    """The weights in full, the averaged ones, and those of the checkpoints."""
    parts = {"model": trainer.model, "ema": trainer.ema.ema, "last": YOLO(trainer.last).model}
    parts["best"] = YOLO(trainer.best).model
    return {f"{part}.{k}": v.clone() for part, m in parts.items() for k, v in m.state_dict().items()}


def read_csv(folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv as they are written."""
    return list(csv.DictReader((folder / "results.csv").read_text("utf-8").splitlines()))


def rows(folder: Path) -> list[dict[str, str]]:
    """The same without the time."""
    return [{k: v for k, v in row.items() if k != "time"} for row in read_csv(folder)]


def resume(folder: Path) -> tuple[Any, list[str]]:
    """Go on in a folder; the trainer, and what was said about it."""
    model = Exact(folder / "weights" / "last.pt")
    with log() as lines:
        model.train(resume=True, save_dir=str(folder))
    return model.trainer, [line.partition("rebalance: ")[2] for line in lines if "goes on" in line]


def check_same(unbroken: Unbroken, trainer: Any, folder: Path) -> None:
    """That a run has come to the same end."""
    end = state_at_the_end(trainer)
    assert [k for k, v in unbroken.end.items() if not torch.equal(v, end[k])] == []
    assert rows(folder) == rows(unbroken.folder)
    assert getattr(trainer, "loss_ran", None) == unbroken.loss_ran
    assert sorted(p.name for p in (folder / "weights").iterdir()) == ["best.pt", "last.pt"]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Unbroken]:
    """Those that several tests look at."""
    return {"stock": Unbroken("stock", data, tmp_path_factory.mktemp("stock"))}


# The same end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f if f in FAST else pytest.param(f, marks=SLOW) for f in FAMILIES])
def test_a_killed_training_ends_as_if_it_had_not_been_killed(
    runs: dict[str, Unbroken], data: Path, tmp_path: Path, family: str
) -> None:
    unbroken = runs[family] if family in runs else Unbroken(family, data, tmp_path)
    folder = unbroken.copy(unbroken.stopped, tmp_path / "killed")
    last = folder / "weights" / "last.pt"
    state = find_state(last, unbroken.stopped)[0]
    assert state is not None
    assert bool(state["gradients"]) == (state["since"] > 0) == (family != "whole batches")
    with (folder / "results.csv").open("a", encoding="utf-8") as file:
        file.write("9,9,9\n1")  # of an epoch that was not saved, and of one that was not even written
    trainer, told = resume(folder)
    assert isinstance(trainer, RebalanceTrainer) == (family != NO_FLAG)
    assert told == [f"goes on from state{unbroken.stopped}.pt as if it had not stopped"]
    check_same(unbroken, trainer, folder)
    times = [float(row["time"]) for row in read_csv(folder)]
    assert times == sorted(times)


def test_every_instant_leaves_a_checkpoint_with_its_state(
    runs: dict[str, Unbroken], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instants: list[Path] = []
    watched: list[Path] = []

    def before(call: Any) -> Any:
        def watch(self: Path, *args: Any, **kwargs: Any) -> Any:
            if watched and self.is_relative_to(watched[0]) and self.exists():
                instants.append(shutil.copytree(watched[0], tmp_path / f"{len(instants)}-{self.name}"))
            return call(self, *args, **kwargs)

        return watch

    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, before(getattr(Path, name)))
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_epoch_end", lambda t: watched.append(t.save_dir) if t.epoch == 1 else None)
    model.add_callback("on_model_save", lambda _: watched.clear())
    model.add_callback("on_fit_epoch_end", lambda t: setattr(t, "stop", t.epoch == 1))  # what comes is not looked at
    train(model, data, tmp_path, save_period=1, **{**USUAL, **GHM})
    monkeypatch.undo()
    moved = [instant.name.partition("-")[2] for instant in instants]
    assert (moved[0][:11], moved[3:]) == (".state1.pt.", ["last.pt", "state0.pt"])
    assert sorted(moved[1:3]) == ["best.pt", "epoch1.pt"]
    for instant, epoch in zip(instants, (0, 0, 0, 0, 1), strict=True):
        last = instant / "weights" / "last.pt"
        assert YOLO(last).ckpt["epoch"] == epoch
        assert find_state(last, epoch)[0] is not None
        assert len(rows(instant)) == 2  # the row of the second epoch came first
    assert any(unfinished(path) for path in (instants[3] / "weights").iterdir())
    trainer, _ = resume(instants[3])
    for epoch in range(3):
        (instants[3] / "weights" / f"epoch{epoch}.pt").unlink()
    check_same(runs["stock"], trainer, instants[3])


def test_a_training_killed_after_its_last_epoch_is_only_finished(runs: dict[str, Unbroken], tmp_path: Path) -> None:
    folder = runs["stock"].copy(2, tmp_path / "killed")
    model = YOLO(folder / "weights" / "last.pt")
    began: list[int] = []
    model.add_callback("on_train_epoch_start", lambda t: began.append(t.epoch))
    with log() as lines:
        model.train(resume=True, save_dir=str(folder))
    assert "rebalance: every epoch was trained before; what is left is the last validation" in lines
    assert began == []
    assert rows(folder) == rows(runs["stock"].folder)
    for name in ("last.pt", "best.pt"):
        found, expected = (YOLO(place / "weights" / name) for place in (folder, runs["stock"].folder))
        assert (found.ckpt["epoch"], found.ckpt["optimizer"]) == (-1, None)
        state = found.model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in expected.model.state_dict().items())
    assert sorted(p.name for p in (folder / "weights").iterdir()) == ["best.pt", "last.pt"]


def test_a_training_that_was_stopped_early_trains_no_further_epoch(data: Path, tmp_path: Path) -> None:
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_epoch_end", lambda t: setattr(t, "stop", True))  # as patience does
    model.add_callback("on_model_save", lambda t: shutil.copytree(t.save_dir, tmp_path / "killed"))
    train(model, data, tmp_path, obj_drop=0.5, epochs=3)  # it stops after one
    resume(tmp_path / "killed")
    assert len(rows(tmp_path / "killed")) == 1
    assert YOLO(tmp_path / "killed" / "weights" / "last.pt").ckpt["epoch"] == -1


def test_without_its_state_a_training_goes_on_as_the_host_does_and_says_so(
    runs: dict[str, Unbroken], tmp_path: Path
) -> None:
    folder = runs["stock"].copy(1, tmp_path / "killed")
    state = state_of(folder / "weights" / "last.pt", 1)
    state.unlink()
    with (folder / "results.csv").open("a", encoding="utf-8") as file:
        file.write("3,9,9\n")
    _, told = resume(folder)
    assert told == [f"there is no {state}: goes on from last.pt alone, which rounds, not exactly"]
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3"]
    assert rows(folder)[:2] == rows(runs["stock"].folder)[:2]


def test_nothing_is_kept_where_nothing_is_saved(data: Path, tmp_path: Path) -> None:
    model = YOLO("yolov8n.yaml")
    seen: list[str] = []
    model.add_callback("on_fit_epoch_end", lambda t: seen.extend(p.name for p in t.wdir.iterdir() if not unfinished(p)))
    train(model, data, tmp_path, obj_drop=0.5, save=False)
    assert set(seen) == {"last.pt", "best.pt"}  # of the last epoch


# A full disk ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_a_training_in_one_line_and_takes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = Path.write_bytes, list[str]()

    def fill(self: Path, content: bytes) -> int:
        written.append(self.name)
        if written.count("last.pt") == 2:
            write(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    flags = {"imgsz": 64, "batch": 4, "epochs": 3, "plots": False, "project": tmp_path, "name": "run", "obj_drop": 0.5}
    given = [f"{name}={value}" for name, value in {"model": "yolov8n.yaml", "data": data, **flags}.items()]
    before = sys.argv[:]
    code = cli.main(["train", *given])
    sys.argv[:] = before  # the host reads that very list
    assert code == 2
    folder = tmp_path / "run"
    last = folder / "weights" / "last.pt"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rebalance: error")]
    full = f"rebalance: error: {folder} cannot be written: No space left on device"
    assert told == [f"{full}; make room, then resume with model={last}"]
    assert sorted(p.name for p in last.parent.iterdir()) == ["best.pt", "last.pt", "state0.pt"]
    assert YOLO(last).ckpt["epoch"] == 0
    assert find_state(last, 0)[0] is not None


def test_an_optimizer_is_stripped_beside_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "last.pt"
    last.write_text("whole", "utf-8")

    def half(file: Any, s: str, updates: Any) -> None:
        Path(s).write_text("ha", "utf-8")
        raise RuntimeError("[enforce fail at inline_container.cc:672] .\nunexpected pos 704 vs 598")

    monkeypatch.setattr(host, "strip_optimizer", half)
    with pytest.raises(RunError, match=r"last\.pt cannot be written: .* unexpected pos 704"), _strips_whole():
        host.strip_optimizer(last)
    assert (list(tmp_path.iterdir()), last.read_text("utf-8")) == ([last], "whole")
    assert host.strip_optimizer is half


def test_a_checkpoint_says_that_it_is_finished_when_all_else_is_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("rebalance.train.resumable.remove_states", lambda *_, **__: None)
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_val_end", lambda validator: kill() if not validator.training else None)
    with pytest.raises(Killed):
        train(model, data, tmp_path, obj_drop=0.5, epochs=1)
    weights = tmp_path / "run" / "weights"
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt", "state0.pt"]
    assert [YOLO(weights / name).ckpt["epoch"] for name in ("best.pt", "last.pt")] == [-1, 0]
    monkeypatch.undo()
    with log() as told:
        trainer, _ = resume(tmp_path / "run")
    assert YOLO(trainer.last).ckpt["epoch"] == -1
    stripped = [line for line in told if "Optimizer stripped" in line]
    assert [line.partition("from ")[2].split(",")[0] for line in stripped] == [str(trainer.last), str(trainer.best)]
    assert not any("saved as" in line for line in stripped)  # under a name that nobody finds
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt"]


# What draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 4], ids=["a rest", "no rest"])
@pytest.mark.parametrize("ahead", [0, 1, 9], ids=["lazy", "a batch ahead", "passes ahead"])
def test_the_order_of_images_goes_on(batch: int, ahead: int) -> None:
    def new() -> tuple[Passes, Any]:
        generator = torch.Generator().manual_seed(7)
        passes = Passes(BatchSampler(RandomSampler(range(8), generator=generator), batch, False), generator)
        return passes, generator

    def draw(passes: Passes, queue: list[Any], stream: Any, count: int) -> list[Any]:
        found = []
        for _ in range(count):
            while len(queue) <= ahead:
                queue.append(next(stream))
            found.append(queue.pop(0))
        passes.passed()
        return found

    size = -(-8 // batch)
    passes, generator = new()
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # as an iterator does when it is made
    queue, stream = list[Any](), iter(passes)
    drawn, states = [], []
    for _ in range(4):
        drawn.append(draw(passes, queue, stream, size))
        states.append(passes.state())
    assert len({str(each) for each in drawn}) == 4
    for stopped, state in enumerate(states[:3]):
        passes, generator = new()
        passes.restore(state)
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        queue, stream = [], iter(passes)
        assert [draw(passes, queue, stream, size) for _ in drawn[stopped + 1 :]] == drawn[stopped + 1 :]


def test_a_new_iterator_begins_where_the_first_would_have(tmp_path: Path) -> None:
    drawn = []
    for stops in (False, True):
        generator = torch.Generator().manual_seed(7)
        passes = Passes(BatchSampler(RandomSampler(range(8), generator=generator), 4, False), generator)
        stream = iter(passes)
        [next(stream) for _ in range(2)]
        passes.passed()
        if stops:
            state, generator = passes.state(), torch.Generator()
            passes = Passes(BatchSampler(RandomSampler(range(8), generator=generator), 4, False), generator)
            passes.restore(state)
        passes.begin_anew()
        stream = iter(passes)
        drawn.append([next(stream) for _ in range(2)])
    assert drawn[0] == drawn[1]


def test_random_numbers_go_on(tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]

    device = torch.device("cpu")
    draw()
    state = random_state(device)
    torch.save(state, tmp_path / "state.pt")
    expected = [draw(), draw()]
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), device)
    assert [draw(), draw()] == expected


def test_what_a_method_keeps_comes_back_as_it_was(tmp_path: Path) -> None:
    def trainer(kept: dict[str, Tensor]) -> tuple[RebalanceTrainer, Any]:
        made, run = object.__new__(RebalanceTrainer), SimpleNamespace(kept=kept)
        criterion = SimpleNamespace(objectives=[SimpleNamespace(run=run)])
        made.model, made.device, made.pulls = SimpleNamespace(criterion=criterion), torch.device("cpu"), {}
        made.loss_ran = {}
        return made, run

    kept = {"sum": torch.tensor([1 / 3], dtype=torch.float64), "count": torch.tensor(3)}
    torch.save(trainer(kept)[0].criterion_state(), tmp_path / "state.pt")
    made, run = trainer({"sum": torch.zeros(1)})  # as plain numbers in last.pt would have it
    made.restore_criterion(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run.kept == kept
    assert {name: tensor.dtype for name, tensor in run.kept.items()} == {n: t.dtype for n, t in kept.items()}
