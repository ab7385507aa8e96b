"""Trainings that diverge end in one line, which names the loss and what to lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_data import make_dataset
from small_training import log, train

from rebalance.errors import ConfigError
from rebalance.train.trainer import RebalanceTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), train=4, val=2, test=0)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"head": "anchor", "loss": "bce+drop", "obj_drop": 0.75},
            "loss=drop diverged in epoch 1 of 2: the weights are no numbers, and no checkpoint is from before; "
            "with optimizer=SGD, lower lr0=1e+30, obj_drop=0.75",
        ),
        (
            {"head": "resobj", "obj_base": "stock", "loss": "brl", "brl_t": 0.7, "obj_weight": 20, "optimizer": "auto"},
            "with optimizer=AdamW, lower lr0=1e+30, brl_t=0.7, brl_weight=0.1, brl_beta=1, obj_weight=20, cls_weight=1",
        ),
    ],
)
def test_a_training_that_diverges_at_once(
    data: Path, tmp_path: Path, flags: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = RebalanceTrainer.build_optimizer

    def far(self: Any, *given: Any, **more: Any) -> Any:
        optimizer = stock(self, *given, **more)
        for group in optimizer.param_groups:
            group["lr"] = 1e30
        return optimizer

    monkeypatch.setattr(RebalanceTrainer, "build_optimizer", far)
    with pytest.raises(ConfigError) as caught:
        train("yolov5n.yaml", data, tmp_path, batch=2, nbs=2, **flags)
    assert told in str(caught.value)


@pytest.mark.parametrize("attempts", [0, 3])
def test_one_that_diverges_later_is_taken_back_by_the_host_and_ends_when_that_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    began = RebalanceTrainer.run_callbacks

    def spoil(self: Any, event: str) -> None:
        if event == "on_train_batch_end" and self.epoch == 1:
            if not self.nan_recovery_attempts:
                self.nan_recovery_attempts = attempts
            if attempts or self.nan_recovery_attempts == 0:
                self.loss = torch.tensor(torch.nan)
        began(self, event)

    monkeypatch.setattr(RebalanceTrainer, "run_callbacks", spoil)
    if attempts:
        with pytest.raises(
            ConfigError,
            match=r"^loss=focal diverged in epoch 2 of 2: Training failed: .*; with optimizer=SGD, lower lr0=0.01$",
        ):
            train("yolov5n.yaml", data, tmp_path, loss="focal")
        return
    with log() as lines:
        train("yolov5n.yaml", data, tmp_path, loss="focal")
    assert any("recovering from last.pt" in line for line in lines)
