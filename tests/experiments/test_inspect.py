"""Sample detections of a run, and those after each step of a head that has steps."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from objectives import recipe_of
from small_training import log
from ultralytics.cfg import get_cfg

from rebalance.data.dataset import load
from rebalance.errors import DataError, ModelError
from rebalance.experiments import inspect as module
from rebalance.experiments.record import Config, Detection, Sample
from rebalance.hosts.host import remember
from rebalance.hosts.ultralytics.model import build
from rebalance.settings import StepsFlags

SETTING = {"iou": 0.7, "conf": 0.9, "max_det": 300, "source": "here"}  # conf is of what is evaluated


def checkpoint(folder: Path, **given: Any) -> Path:
    """A model that nobody has trained; logits: objectness -1.5, each step +1, the two classes 6 and -6."""
    recipe = recipe_of({"head": "resobj", **given}, anchored=True)
    model: Any = build("yolov5n.yaml", recipe, nc=2, verbose=False)
    head = model.model[-1]
    with torch.no_grad():
        for conv in head.m:
            conv.weight.fill_(0)
            conv.bias.view(head.na, head.no)[:] = torch.tensor([0.0, 0, 0, 0, -1.5, 6, -6])
        for name, parameter in head.named_parameters():
            if name.startswith("residual") and ".logits." in name:
                parameter.fill_(1.0 if name.endswith("bias") else 0.0)
    model.args = vars(get_cfg(overrides={"imgsz": 64}))
    model.names = {0: "kind0", 1: "kind1"}
    remember(model, recipe)
    file = folder / "train" / "weights" / "best.pt"
    file.parent.mkdir(parents=True)
    torch.save({"model": model, "train_args": {"imgsz": 64, "task": "detect"}, "epoch": -1}, file)
    return file


@pytest.fixture
def config(tiny_dataset: Path) -> Config:
    """Of a data set with one training image that has a withheld box."""
    withheld = tiny_dataset.parent / "withheld" / "train" / "00.txt"
    withheld.parent.mkdir(parents=True)
    withheld.write_text("0 0.5 0.5 0.2 0.2\n", "utf-8")
    host = {"imgsz": 64, "device": "cpu", "workers": 0, "batch": 4}
    return Config(train={}, host=host, labels={"data": str(tiny_dataset)}, seed=0)


def samples(weights: Path, config: Config) -> tuple[Sample, ...]:
    return module.sample(weights, load(config.data), config, SETTING)


def score(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) / (1 + math.exp(-6))


def test_detections_after_each_step_of_one_image(tmp_path: Path, config: Config) -> None:
    found = samples(checkpoint(tmp_path, resobj_steps=2), config)
    assert [sample.split for sample in found] == ["test"] * 4 + ["train"]
    (one,) = [sample for sample in found if sample.steps]
    assert one is found[0]  # all have as many, and the training image comes last
    after = [*one.steps, one.detections]
    assert after[0] == ()  # 0.18 is not shown
    for step in (1, 2):
        assert len(after[step]) > 5
        assert [row.score for row in after[step]] == pytest.approx([score(step - 1.5)] * len(after[step]), abs=1e-3)
    assert {row.cls for row in after[2]} == {0}
    assert all(0 <= side <= 64 for row in after[2] for side in row.box)


def test_it_is_the_image_of_test_on_which_most_is_found(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(result: Any) -> tuple[Detection, ...]:
        file = Path(result.path)
        many = 9 if file.parent.name == "train" else {"00": 1, "01": 3, "02": 3, "03": 2}[file.stem]
        return (Detection(0, 0.5, (0, 0, 1, 1)),) * many

    monkeypatch.setattr(module, "_detections", found)
    shown = samples(checkpoint(tmp_path, resobj_steps=1), config)
    assert [len(sample.detections) for sample in shown] == [1, 3, 3, 2, 9]
    assert [len(sample.steps) for sample in shown] == [0, 1, 0, 0, 0]
    assert len(shown[1].steps[0]) == 3  # of the same image


def test_a_head_without_steps(tmp_path: Path, config: Config) -> None:
    found = samples(checkpoint(tmp_path, head="obj"), config)
    assert len(found) == 5
    assert not any(sample.steps for sample in found)


def test_samples_are_spread_evenly() -> None:
    items = [str(i) for i in range(10)]
    assert module.spread(items, 4) == ["0", "3", "6", "9"]
    assert module.spread(items[:4], 4) == items[:4]
    assert module.spread(items[:2], 4) == items[:2]
    assert module.spread([], 4) == []


def cut(image: Path) -> None:
    """Leave the first bytes of an image alone."""
    image.write_bytes(image.read_bytes()[:20])


def test_all_steps_see_an_image_prepared_in_one_way(tmp_path: Path, config: Config) -> None:
    folder = config.data.parent / "images" / "test"
    for index in range(4):
        cv2.imwrite(str(folder / f"{index:02d}.jpg"), np.full((64, 32) if index % 2 else (32, 64), 99, np.uint8))
    weights = checkpoint(tmp_path, resobj_steps=2)
    (one,) = [sample for sample in samples(weights, config) if sample.steps]
    flags = {"imgsz": 64, "conf": module.SCORE, "verbose": False, "save": False}
    last = module.at_step(weights, 2).predict(str(one.image), **flags)[0]
    assert one.detections == module._detections(last) != ()


def test_a_picture_that_fails_is_named_and_left_out(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(config.data.parent / "images" / "test" / "01.jpg")
    (config.data.parent / "labels" / "test" / "02.txt").write_text("no label\n", "utf-8")
    weights = checkpoint(tmp_path, resobj_steps=1)
    with log() as lines:
        found = samples(weights, config)
    assert [sample.image.name for sample in found] == ["00.jpg", "03.jpg", "00.jpg"]
    assert [bool(sample.steps) for sample in found] == [True, False, False]
    for name in ("01.jpg", "02.jpg"):
        assert any(f"{name} is not shown: " in line for line in lines)

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(module, "at_step", broken)
    with log() as lines:
        found = samples(weights, config)
    assert [bool(sample.steps) for sample in found] == [False] * 3
    assert any(line.endswith("00.jpg is not shown: out of memory") for line in lines)


def test_pictures_of_steps_pass_over_a_cut_image(tmp_path: Path, config: Config) -> None:
    weights, source = checkpoint(tmp_path, resobj_steps=1), config.data.parent / "images" / "test"
    cut(source / "00.jpg")
    (source / "01.jpg").write_bytes(b"")
    (source / "folder.jpg").mkdir()
    with contextlib.suppress(OSError):  # Windows lets few make links
        (source / "gone.jpg").symlink_to(source / "nowhere.jpg")
    flags = StepsFlags(model=str(weights), source=str(source), out=str(tmp_path / "out"))
    with log() as lines:
        written = module.panels(flags)
    assert [file.name for file in written] == ["02.png", "03.png"]
    assert all(file.is_file() for file in written)
    assert any("00.jpg is not shown: it cannot be read" in line for line in lines)
    with pytest.raises(DataError, match="no image there can be read"):
        module.panels(replace(flags, source=str(source / "01.jpg")))
    torn = tmp_path / "torn.pt"
    torn.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"torn\.pt cannot be loaded: "):
        module.panels(replace(flags, model=str(torn), out=str(tmp_path / "not")))
    assert not (tmp_path / "not").exists()


def test_two_images_of_one_stem_have_two_pictures(tmp_path: Path, config: Config) -> None:
    images, weights = tmp_path / "images", checkpoint(tmp_path)
    images.mkdir()
    for name, grey in (("a.jpg", 40), ("a.png", 200), ("b.png", 90)):
        cv2.imwrite(str(images / name), np.full((64, 64, 3), grey, np.uint8))
    written = module.panels(StepsFlags(model=str(weights), source=str(images), out=str(tmp_path / "out"), imgsz=64))
    assert [file.name for file in written] == ["a.jpg.png", "a.png.png", "b.png.png"]
    greys = [int(cv2.imread(str(file))[-5, 5, 0]) for file in written]
    assert greys == pytest.approx([40, 200, 90], abs=3)


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_images_with_other_channels_are_in_colour(tmp_path: Path, channels: int) -> None:
    from ultralytics.engine.results import Results

    pixels = np.full((64, 64, channels), 90, np.uint8)
    boxes = torch.tensor([[10.0, 10, 40, 40, 0.9, 0]])
    found = Results(pixels, path="a.png", names={0: "kind0"}, boxes=boxes)
    drawn = module._drawn(found)
    assert drawn.shape[2] == 3
    assert module._titled(drawn, "t = 0").shape[2] == 3
