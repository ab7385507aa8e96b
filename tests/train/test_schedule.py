"""Learning rate, gradient and optimizer of a training, where they are not the host's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_data import make_dataset
from small_training import log, train

from rebalance.errors import ConfigError
from rebalance.train.schedule import tenths
from rebalance.train.trainer import trainer

Steps = list[dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """What each step of an RMSprop was done with."""
    found: Steps = []
    real = torch.optim.RMSprop.step

    def step(self: Any, closure: Any = None) -> Any:
        groups = self.param_groups
        norms = [p.grad.norm() for group in groups for p in group["params"] if p.grad is not None]
        rates = {group["param_group"]: group["lr"] for group in groups}
        found.append({**rates, "eps": {group["eps"] for group in groups}, "norm": float(torch.stack(norms).norm())})
        return real(self, closure)

    monkeypatch.setattr(torch.optim.RMSprop, "step", step)
    return found


def test_steps_of_the_rate_a_warm_up_from_a_third_the_clip_and_epsilon(
    data: Path, tmp_path: Path, steps: Steps
) -> None:
    host = {"optimizer": "RMSprop", "epochs": 3, "lr0": 0.003, "warmup_epochs": 1, "warmup_bias_lr": 0.001}
    ours = {"lr_steps": "[2,7]", "warmup_from": 1 / 3, "grad_clip": 0.1, "optim_eps": 1}
    with log() as lines:
        train("yolov8n.yaml", data, tmp_path, **host, **ours)
    assert len(steps) == 6  # two an epoch
    # the warm-up ends with the first epoch: a third, two thirds, then the whole; a tenth from the third epoch on
    rates = [0.001, 0.002, 0.003, 0.003, 0.0003, 0.0003]
    for name in ("weight", "bn", "bias"):
        assert [step[name] for step in steps] == pytest.approx(rates)
    assert all(step["eps"] == {1.0} for step in steps)
    assert all(step["norm"] == pytest.approx(0.1, rel=1e-3) for step in steps)
    found = steps[:]
    steps.clear()
    train("yolov8n.yaml", data, tmp_path / "again", cfg=str(tmp_path / "run" / "args.yaml"), **host)
    assert steps == found
    assert any(line.endswith("rebalance: lr_steps: of 3 epochs none comes after 7") for line in lines)


def test_without_a_clip_a_step_has_the_whole_gradient(data: Path, tmp_path: Path, steps: Steps) -> None:
    train("yolov8n.yaml", data, tmp_path / "host", optimizer="RMSprop", epochs=1, loss="bce")
    assert {round(step["norm"], 3) for step in steps} == {10.0}  # the host's
    steps.clear()
    train("yolov8n.yaml", data, tmp_path / "none", optimizer="RMSprop", epochs=1, grad_clip=0)
    assert all(step["norm"] > 10.1 for step in steps)
    assert all(step["eps"] == {1e-8} for step in steps)  # PyTorch's


def test_a_tenth_after_each_step() -> None:
    assert [round(tenths((8, 11), epoch), 9) for epoch in (0, 7, 8, 10, 11, 20)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_epsilon_of_an_optimizer_without_one_is_refused_in_a_trainer_of_ours_too(data: Path, tmp_path: Path) -> None:
    import ultralytics

    model = ultralytics.YOLO("yolov8n.yaml")
    with pytest.raises(ConfigError, match="optim_eps=1 has no effect with optimizer=SGD"):
        train(model, data, tmp_path, trainer=trainer(optim_eps=1))
