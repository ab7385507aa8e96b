"""Our validator's suppression against the host's, with all the time it wants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objectives import recipe_of
from ultralytics.cfg import get_cfg
from ultralytics.utils import nms

from rebalance.train import validator as module
from rebalance.train.trainer import RebalanceTrainer
from rebalance.train.validator import Validator


def make(max_det: int = 300, agnostic: bool = False) -> Any:
    found = Validator.__new__(Validator)
    found.args = SimpleNamespace(conf=0.001, iou=0.7, single_cls=False, agnostic_nms=agnostic, max_det=max_det)
    found.end2end = False
    return found


def predictions(images: int, boxes: int, classes: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(boxes)
    centre = torch.rand(images, 2, boxes, generator=generator) * spread
    size = torch.rand(images, 2, boxes, generator=generator) * 30 + 10
    return torch.cat((centre, size, torch.rand(images, classes, boxes, generator=generator)), 1)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("boxes", "spread"), [(40, 200), (900, 20), (900, 400)])  # few; many of which few are left
def test_detections_are_those_of_a_full_suppression(
    boxes: int, spread: float, agnostic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST", 200)
    given = predictions(3, boxes, 4, spread)
    given[1, 4:] = 0  # an image without a candidate
    expected = nms.non_max_suppression(
        given.clone(), 0.001, 0.7, multi_label=True, agnostic=agnostic, max_det=100, max_time_img=1e9
    )
    found = make(100, agnostic).postprocess((given, {}))
    assert [len(x["conf"]) for x in found] == [len(x) for x in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.cat((ours["bboxes"], ours["conf"][:, None], ours["cls"][:, None]), 1), theirs)


def test_a_slow_machine_loses_no_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(nms, "time", SimpleNamespace(time=lambda: float(next(clock))))  # 100 s between two looks
    found = make().postprocess(predictions(4, 50, 2, 300))
    assert all(len(x["conf"]) for x in found)


def test_training_with_our_losses_validates_with_it() -> None:
    trainer = RebalanceTrainer.__new__(RebalanceTrainer)
    trainer.test_loader, trainer.save_dir, trainer.callbacks = None, None, {}
    trainer.args = get_cfg(overrides={"task": "detect"})
    for given in (True, False):
        trainer.recipe = recipe_of({"val_regions": given})
        found = trainer.get_validator()
        assert type(found) is Validator
        assert found.val_regions is given
