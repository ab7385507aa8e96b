"""The training of one run: what is kept through a kill, and what the host left that can be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rebalance.experiments import train as module


def test_epochs_are_read_once_each_and_half_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(
        "epoch, time,train/box_loss\n1,2.0,0.5\n2,4.0,0.4\n2,4.5,0.3\n3,6.0,nan\n4,7.0\n5,x,0.1\n6,8", "utf-8"
    )
    rows = module.read_epochs(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[1] == {"epoch": 2, "time": 4.5, "train/box_loss": 0.3}
    assert module.read_epochs(tmp_path / "none.csv") == []


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
    (row,) = module.read_epochs(path)
    assert row == {"epoch": 1, "train/res_loss": 0.5, **dict.fromkeys(names, 0.25)}
