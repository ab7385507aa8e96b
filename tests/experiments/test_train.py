"""The training of one run: what is kept through a kill, and what the host left that can be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rebalance import YOLO
from rebalance.experiments import train as module
from rebalance.experiments.record import read_epochs
from rebalance.train.checkpoint import state_of, write_state
from rebalance.train.resumable import Resumable


def test_epochs_are_read_once_each_and_half_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(
        "epoch, time,train/box_loss\n1,2.0,0.5\n2,4.0,0.4\n2,4.5,0.3\n3,6.0,nan\n4,7.0\n5,x,0.1\n6,8", "utf-8"
    )
    rows = read_epochs(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[1] == {"epoch": 2, "time": 4.5, "train/box_loss": 0.3}
    assert read_epochs(tmp_path / "none.csv") == []


def checkpoint(folder: Path, epoch: int) -> Path:
    """A last.pt as a training leaves it after an epoch; -1: at its end."""
    folder.mkdir()
    torch.save({"epoch": epoch, "model": YOLO("yolov8n.yaml").model, "train_args": {}}, folder / "last.pt")
    return folder / "last.pt"


def test_a_training_goes_on_from_a_checkpoint_with_its_state_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = checkpoint(tmp_path / "weights", 1)
    assert module._begun(tmp_path / "last.pt") is None
    assert capsys.readouterr().out == ""
    assert module._begun(last) is None
    told = f"rebalance: there is no {last.parent / 'state1.pt'}, so it could not go on exactly: the run begins again\n"
    assert capsys.readouterr().out == told
    write_state(state_of(last, 1), last, {})
    found = module._begun(last)
    assert found is not None
    assert found[0].ckpt["epoch"] == 1
    assert not found[1]
    last.write_bytes(last.read_bytes()[:1000])
    assert module._begun(last) is None
    assert capsys.readouterr().out.startswith(f"rebalance: {last} cannot be read (")
    found = module._begun(checkpoint(tmp_path / "through", -1))
    assert found is not None
    assert found[1]


def test_a_sweep_trains_without_our_flags_too_so_that_it_goes_on_exactly(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = []
    monkeypatch.setattr("ultralytics.engine.model.Model.train", lambda _, trainer=None, **__: trainers.append(trainer))
    for make in (YOLO, module._YOLO):
        make("yolov8n.yaml").train(data=str(tiny_dataset))
    assert trainers == [None, Resumable]


def fake_trainer(epoch: int) -> SimpleNamespace:
    device = SimpleNamespace(type="cpu")
    loader = SimpleNamespace(dataset=range(100))
    args = SimpleNamespace(epochs=3, imgsz=64, lr0=0.01, save_dir="/somewhere", conf=None)
    return SimpleNamespace(epoch=epoch, device=device, train_loader=loader, args=args, loss_ran={"loss": "drop"})


def test_times_outlive_a_kill_and_an_epoch_that_is_trained_again_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    clock = iter([10.0, 12.0, 20.0, 23.0, 105.0, 108.5])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    first = module.Keeper(tmp_path / "progress.json", 1, began=5.0)
    first.on_train_start(fake_trainer(0))
    for epoch in (0, 1):
        first.on_train_epoch_start(fake_trainer(epoch))
        first.on_train_epoch_end(fake_trainer(epoch))
    second = module.Keeper(tmp_path / "progress.json", 1, began=100.0)
    assert second.state["host_args"] == {"epochs": 3, "imgsz": 64, "lr0": 0.01}
    second.on_train_epoch_start(fake_trainer(1))
    second.on_train_epoch_end(fake_trainer(1))
    assert second.state["seconds"] == {"1": 2.0, "2": 3.5}
    assert second.state["total_seconds"] == (23.0 - 5.0) + (108.5 - 100.0)
    assert second.timings() == {"train_seconds": 5.5, "images_per_second": 200 / 5.5}
    assert second.state["peak_memory_mb"] > 10
    assert second.state["loss_ran"] == {"loss": "drop"}


def test_epochs_keep_every_column(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    names = [f"resobj/{kind}_{t}" for kind in ("pos", "neg") for t in range(3)]
    path.write_text(f"epoch,train/res_loss,{','.join(names)}\n1,0.5,{','.join(['0.25'] * 6)}\n", "utf-8")
    (row,) = read_epochs(path)
    assert row == {"epoch": 1, "train/res_loss": 0.5, **dict.fromkeys(names, 0.25)}
