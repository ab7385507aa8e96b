"""Fusing adds up the refinements of every host's head: equal outputs, what is refused, and what stays possible."""

from __future__ import annotations

import io
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebalance import YOLO
from rebalance.errors import ModelError
from rebalance.experiments.inspect import panels
from rebalance.hosts import host_of
from rebalance.hosts.host import remember
from rebalance.hosts.torchvision.head import best_pairs
from rebalance.recipe import read
from rebalance.settings import StepsFlags

HOSTS = ("yolov5n.yaml", "yolov8n.yaml", "yolo26n.yaml", "retinanet_tiny", "fasterrcnn_tiny")
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(name: str, **given: Any) -> Any:
    """A model in evaluation mode whose objectness and residuals are spread."""
    torch.manual_seed(0)
    host = host_of(name)
    recipe = read({"head": "resobj", **given}, host.sites)
    model = host.build(name, recipe, nc=3, ch=3, verbose=False)
    remember(model, recipe)
    for key, parameter in model.named_parameters():
        if key.endswith(("logits.weight", "logits.bias")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    """(B, 4 + C, K) or (B, K, 6), in double precision: no tie within rounding changes an order."""
    found: Tensor = deepcopy(model).double()(IMAGES.double())[0]
    return found


@pytest.mark.parametrize(
    ("name", "on", "steps"),
    [
        *((name, on, 2) for name in ("yolov5n.yaml", "yolov8n.yaml") for on in ("obj", "cls")),
        ("yolo26n.yaml", "cls", 2), ("retinanet_tiny", "obj", 2), ("fasterrcnn_tiny", "cls", 2),
        ("yolov5n.yaml", "cls", 1), ("yolov8n.yaml", "obj", 1), ("yolo26n.yaml", "obj", 3),
        ("retinanet_tiny", "cls", 3), ("fasterrcnn_tiny", "obj", 1),
    ],
)  # fmt: skip
def test_a_fused_model_predicts_the_same(name: str, on: str, steps: int) -> None:
    model, found = build(name, resobj_on=on, resobj_steps=steps), []
    for shown in (0, 1, None) if steps == 2 else (None,):
        model.model[-1].shown = shown
        fused = deepcopy(model).fuse(verbose=False)
        assert not model.is_fused()
        assert fused.is_fused()
        found.append(outputs(fused))
        torch.testing.assert_close(found[-1], outputs(model), rtol=1e-5, atol=1e-7)
    assert not any(torch.allclose(one, other) for one, other in pairwise(found))  # each step counts


@pytest.mark.parametrize("name", HOSTS)
def test_a_model_without_steps_has_nothing_more_to_fuse(name: str) -> None:
    model = build(name, head="obj")
    fused = deepcopy(model).fuse(verbose=False)
    assert fused.is_fused()
    torch.testing.assert_close(outputs(fused), outputs(model), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", HOSTS)
def test_a_fused_model_is_kept_and_counted_and_fuses_once(name: str) -> None:
    model = build(name).fuse(verbose=False)
    before = outputs(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(outputs(again.fuse(verbose=False)), before)
    assert again.is_fused()
    assert again.info()[1] == sum(p.numel() for p in again.parameters())
    head = model.model[-1]
    assert not any(p.requires_grad for k, p in head.named_parameters() if "residual" in k and "squeeze" not in k)
    convolutions = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.groups in (1, m.in_channels) for m in convolutions)  # none is left with a group for each step


@pytest.mark.parametrize("name", HOSTS)
def test_a_fused_model_is_no_longer_trained_and_shows_no_other_steps(name: str) -> None:
    model = build(name)
    model.model[-1].shown = 1
    model.fuse(verbose=False)
    model.model[-1].shown = 1  # as it is
    for step in (None, 0, 2):
        with pytest.raises(ModelError, match=f"shown={step}: this model is fused, its 2 refinements have been added"):
            model.model[-1].shown = step
    with pytest.raises(ModelError, match="a fused model cannot be trained"):
        model.train()(IMAGES)


def test_fusing_draws_no_random_numbers() -> None:
    model = build("yolov8n.yaml")
    state = torch.get_rng_state()
    model.model[-1].fuse()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "retinanet_tiny"])
def test_steps_of_a_fused_file_are_refused_and_a_prediction_fuses_a_copy(name: str, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    model = build(name)
    torch.save({"model": deepcopy(model), "train_args": {}}, tmp_path / "model.pt")
    torch.save({"model": deepcopy(model).fuse(verbose=False), "train_args": {}}, tmp_path / "fused.pt")
    given = {"source": str(tmp_path / "a.jpg"), "imgsz": 64, "out": str(tmp_path / "out")}
    with pytest.raises(ModelError, match="this model is fused"):
        panels(StepsFlags(model=str(tmp_path / "fused.pt"), **given))
    yolo = YOLO(tmp_path / "model.pt")
    yolo.predict(str(tmp_path / "a.jpg"), imgsz=64, verbose=False)
    assert not yolo.model.model[-1].fused
    assert yolo.predictor.model.backend.model.model[-1].fused
    yolo.fuse()
    assert yolo.model.model[-1].fused


@pytest.mark.parametrize("weighed", [False, True])
def test_best_pairs_are_the_best_of_all(weighed: bool) -> None:
    g = torch.Generator().manual_seed(1)
    logits, objects = torch.randn(2, 70, 5, generator=g), torch.rand(2, 70, generator=g)
    counts, most = [40, 25, 5], 30
    found = best_pairs(logits, counts, most, objects if weighed else None)
    scores = logits.sigmoid() * objects.unsqueeze(-1) if weighed else logits
    for image in range(2):
        start, kept = 0, 0
        for count in counts:
            level = scores[image, start : start + count]
            few = min(most, level.numel())
            value, place = level.flatten().topk(few)
            expected = (value, place // 5 + start, place % 5)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one[image, kept : kept + few], other)
            start, kept = start + count, kept + few
        assert found[0].shape[1] == kept
