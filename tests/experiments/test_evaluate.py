"""The setting of an evaluation, and the metrics at it and at the host's."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from small_data import make_dataset
from test_inspect import checkpoint

from rebalance import YOLO
from rebalance.data.dataset import load
from rebalance.experiments import evaluate as module
from rebalance.experiments import speed as speeds
from rebalance.experiments import train as training
from rebalance.experiments.record import Config, Task

HOST = {"imgsz": 64, "device": "cpu", "workers": 0, "batch": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An anchor head that finds boxes everywhere, with scores by chance, and data with one image that is not square."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_dataset(folder / "data")
    cv2.imwrite(str(data.parent / "images" / "test" / "00.jpg"), np.zeros((100, 200, 3), np.uint8))
    (data.parent / "labels" / "test" / "00.txt").write_text("1 0.5 0.5 0.2 0.4\n", "utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = checkpoint(folder, resobj_steps=1)
        model = YOLO(str(weights))
        for conv in model.model.model[-1].m:
            torch.nn.init.normal_(conv.weight, std=2.0)
    model.save(weights)
    return weights, data


def evaluated(trained: tuple[Path, Path], **given: Any) -> tuple[module.Result, dict[str, Any]]:
    weights, data = trained
    config = Config(train={}, host={**HOST, **given}, labels={"data": str(data)}, seed=0)
    setting = module.setting_of(weights, config.host)
    found = module.evaluate(weights, "test", config, setting, 1)
    assert found
    return found, setting


def by_hand(trained: tuple[Path, Path], **given: Any) -> dict[str, float]:
    """As `rebalance val` evaluates."""
    weights, data = trained
    box = YOLO(str(weights)).val(data=str(data), split="test", plots=False, verbose=False, **HOST, **given).box
    return {"mAP50": box.map50, "mAP75": box.map75, "mAP50-95": box.map}


def test_both_settings_are_as_the_host_evaluates_them(trained: tuple[Path, Path]) -> None:
    found, setting = evaluated(trained)
    assert setting == {"iou": 0.6, "conf": 0.001, "max_det": 300, "source": "val.py of YOLOv5"}
    asked = {key: setting[key] for key in ("iou", "conf", "max_det")}
    assert found.at_host == by_hand(trained)  # with the host's defaults
    assert {key: found.metrics[key] for key in found.at_host} == by_hand(trained, **asked) != found.at_host
    assert found.metrics["mAP50"] > 0


def test_what_is_asked_for_wins_number_by_number(trained: tuple[Path, Path]) -> None:
    found, setting = evaluated(trained, iou=0.3, max_det=7, conf=None)
    assert setting == {"iou": 0.3, "conf": 0.001, "max_det": 7, "source": "iou, max_det as asked; val.py of YOLOv5"}
    assert found.max_det == 7
    assert found.at_host == evaluated(trained)[0].at_host
    assert {key: found.metrics[key] for key in found.at_host} == by_hand(trained, iou=0.3, max_det=7)
    assert module.setting_of(trained[0], {"iou": 0.5, "conf": 0.3, "max_det": 9})["source"] == "as asked"
    assert module.setting_text(setting).startswith("iou 0.3, conf 0.001, max_det 7 (")


def test_at_the_hosts_own_setting_the_two_are_the_same(trained: tuple[Path, Path]) -> None:
    found, _ = evaluated(trained, iou=0.7, conf=0.001, max_det=300)
    assert {key: found.metrics[key] for key in found.at_host} == found.at_host == by_hand(trained)


def test_coco_and_voc_see_pixels_of_the_image(trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(module, "coco_precision", lambda images: kept.extend(images) or {"AP": 0.25})
    found, _ = evaluated(trained)
    assert found.metrics["coco"] == {"AP": 0.25}
    assert 0 <= found.metrics["voc"]["mAP75"] <= found.metrics["voc"]["mAP50"] > 0
    assert len(kept) == 4
    (wide,) = [image for image in kept if image.label_classes.tolist() == [1] and image.boxes[:, 2].max() > 64]
    assert wide.labels[0] == pytest.approx([80, 30, 120, 70], abs=1e-3)
    assert wide.boxes.max(0) == pytest.approx([wide.boxes[:, 0].max(), wide.boxes[:, 1].max(), 200, 100])
    assert len(wide.boxes) == len(wide.scores) == len(wide.classes) == 300


def test_two_classes_of_one_name_are_both_kept(trained: tuple[Path, Path], tmp_path: Path) -> None:
    weights, data = trained
    shutil.copytree(data.parent, tmp_path / "data")
    text = data.read_text("utf-8").replace(str(data.parent), str(tmp_path / "data"))
    (tmp_path / "data" / "data.yaml").write_text(text.replace("kind1", "kind0"), "utf-8")
    model = YOLO(str(weights))
    model.model.names = {0: "kind0", 1: "kind0"}
    twins = tmp_path / "train" / "weights" / "best.pt"
    twins.parent.mkdir(parents=True)
    model.save(twins)
    found, _ = evaluated((twins, tmp_path / "data" / "data.yaml"))
    assert list(found.metrics["per_class"]) == ["0: kind0", "1: kind0"]


def test_a_split_without_labels_has_no_metrics(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    for file in (data.parent / "labels" / "test").iterdir():
        file.write_text("", "utf-8")
    config = Config(train={}, host=HOST, labels={"data": str(data)}, seed=0)
    weights = checkpoint(tmp_path, resobj_steps=1)
    assert module.evaluate(weights, "test", config, module.setting_of(weights, HOST), 1) is None


def test_the_setting_stays_out_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Model(SimpleNamespace):
        def __init__(self, name: str) -> None: ...

        def add_callback(self, *_: Any) -> None: ...

        def train(self, **given: Any) -> None:
            asked.update(given)

    monkeypatch.setattr(training, "_YOLO", Model)
    host = {"model": "yolov8n.yaml", "epochs": 3, "iou": 0.5, "conf": 0.3, "max_det": 9, "agnostic_nms": True}
    config = Config(train={}, host=host, labels={"data": "d.yaml"}, seed=1)
    keeper = training.Keeper(tmp_path / "progress.json", 1, 0.0)
    training.train(tmp_path, Task(run="a", config=config, varied={}, given=()), keeper)
    assert {key: asked[key] for key in ("epochs", "seed", "agnostic_nms")} == {
        "epochs": 3, "seed": 1, "agnostic_nms": True,
    }  # fmt: skip
    assert not {"iou", "conf", "max_det"} & set(asked)


def test_speed_is_that_of_one_image_after_the_first(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, data = trained
    config = Config(train={}, host=HOST, labels={"data": str(data)}, seed=0)
    looked: list[str] = []

    class Model:
        def __init__(self, _: str) -> None: ...

        def add_callback(self, *_: Any) -> None: ...

        def predict(self, image: str, **flags: Any) -> list[Any]:
            looked.append(image)
            assert (flags["conf"], flags["iou"], flags["imgsz"]) == (0.001, 0.6, 64)
            if image.endswith("03.jpg"):
                return []  # cannot be read
            slow = len(looked) <= speeds.WARM_UP
            return [SimpleNamespace(speed={"preprocess": 900, "inference": 700 if slow else 15, "postprocess": 5})]

    monkeypatch.setattr(speeds, "YOLO", Model)
    setting = module.setting_of(weights, HOST)
    assert speeds.speed(weights, load(data), config, setting, 1) == {"fps": 50}
    assert len(looked) == speeds.WARM_UP + speeds.IMAGES
    monkeypatch.setattr(Model, "predict", lambda *_, **__: [])
    assert speeds.speed(weights, load(data), config, setting, 1) == {}
