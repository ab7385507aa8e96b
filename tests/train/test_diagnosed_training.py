"""diagnose=True in trainings: withheld objects go where their labels would, nothing else changes, what is written."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import make_dataset
from small_training import results, train
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from rebalance import YOLO
from rebalance.data import dataset
from rebalance.data.derive import sparsify
from rebalance.errors import DataError
from rebalance.match.withheld import Withheld
from rebalance.settings import SparsifyFlags
from rebalance.train.regions import with_regions

SIZE = 96
STILL = {
    "mosaic": 0, "mixup": 0, "cutmix": 0, "copy_paste": 0, "translate": 0, "scale": 0, "degrees": 0, "shear": 0,
    "perspective": 0, "fliplr": 0, "flipud": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose withheld boxes are those that are labelled, so that both must come out alike."""
    file = make_dataset(tmp_path_factory.mktemp("doubled") / "set", classes=3)
    shutil.copytree(file.parent / "labels", file.parent / "withheld")
    return file


def build(file: Path, *, withheld: bool = True, **given: Any) -> Any:
    cfg = get_cfg(overrides={"imgsz": SIZE, "task": "detect", **STILL, **given})
    data = check_det_dataset(str(file))
    if cfg.single_cls:
        data |= {"names": {0: "item"}, "nc": 1}
    with with_regions(None, dataset.load(file) if withheld else None):
        return build_yolo_dataset(cfg, data["train"], 4, data, mode="train", rect=bool(given.get("rect")))


def seeded(data: Any, seed: int) -> list[Any]:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return [data[i] for i in range(len(data))]


@pytest.mark.parametrize(
    "given",
    [
        {}, {"mosaic": 1.0}, {"mosaic": 1.0, "mixup": 1.0}, {"cutmix": 1.0}, {"rect": True},
        {"scale": 0.9, "translate": 0.4}, {"degrees": 30, "shear": 10, "perspective": 0.0005},
        {"fliplr": 1.0, "flipud": 0.5},
        {"mosaic": 1.0, "scale": 0.9, "translate": 0.3, "degrees": 45, "mixup": 0.5, "fliplr": 0.5, "cutmix": 0.5},
        {"single_cls": True}, {"classes": [0, 2]}, {"cache": "ram", "mosaic": 0.5},
    ],
    ids=lambda given: ",".join(f"{k}={v}" for k, v in given.items()) or "still",
)  # fmt: skip
def test_withheld_objects_go_where_their_labels_would(doubled: Path, given: dict[str, Any]) -> None:
    data, plain = build(doubled, **given), build(doubled, withheld=False, **given)
    boxes = 0
    for seed in range(4):
        items = seeded(data, seed)
        for item, stock in zip(items, seeded(plain, seed), strict=True):
            assert torch.equal(item["img"], stock["img"])
            assert torch.equal(item["bboxes"], stock["bboxes"])
            assert torch.equal(item["cls"], stock["cls"])
        batch = data.collate_fn(items)
        found: Withheld = batch["withheld"]
        rows = [
            sorted([int(i), int(c), *(round(float(v), 3) for v in box)] for i, c, box in zip(*each, strict=True))
            for each in (
                (batch["batch_idx"], batch["cls"].flatten(), batch["bboxes"]),
                (found.image, found.classes, found.boxes_xywh),
            )
        ]
        assert len(rows[0]) == len(rows[1])
        np.testing.assert_allclose(np.array(rows[0]), np.array(rows[1]), atol=2e-3)
        assert found.most == max(found.image.bincount().tolist())
        assert torch.equal(found.image, found.image.sort().values)
        assert found.names == (1 if given.get("single_cls") else 3)
        boxes += len(rows[0])
    assert boxes > 30


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partial")
    file = make_dataset(folder / "set", train=8)
    out = folder / "half"
    sparsify(SparsifyFlags(data=str(file), protocol="percent", rate=0.5, out=str(out)))
    return out / "data.yaml"


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = YOLO(folder / "run/weights/last.pt").model.state_dict()
    return found


@pytest.mark.parametrize(
    ("model", "flags", "kind"),
    [
        ("yolov8n.yaml", {"loss": "brl", "brl_warmup": 0}, "recalibrated"),
        ("yolo26n.yaml", {"loss": "soft"}, "lowered"),
        ("yolov5n.yaml", {"head": "anchor", "loss": "drop", "obj_drop": 0.5}, "dropped"),
    ],
)
def test_a_diagnosis_leaves_the_training_as_it_is_to_the_bit(
    partial: Path, tmp_path: Path, model: str, flags: dict[str, Any], kind: str
) -> None:
    for name in ("plain", "asked"):
        asked = {"diagnose": True} if name == "asked" else {}
        train(model, partial, tmp_path / name, **flags, **asked, seed=3, mosaic=1.0, mixup=0.3, cutmix=0.3)
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "asked")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    plain, asked_rows = results(tmp_path / "plain"), results(tmp_path / "asked")
    assert not any(key.startswith("diagnose/") for key in plain[0])
    for before, row in zip(plain, asked_rows, strict=True):
        assert all(row[key] == value for key, value in before.items() if key != "time")
        told = {key.removeprefix("diagnose/"): v for key, v in row.items() if key.startswith("diagnose/")}
        shares = ["loss", "gradient", "score", "background", "rate", "candidates"]
        assert list(told)[:8] == [*shares, f"{kind}_precision", f"{kind}_recall"]
        assert all(math.isnan(v) or v >= 0 for v in told.values())
        assert told["background"] > 0
    if model == "yolov5n.yaml":  # anchors do not wait for predictions to be at an object
        assert asked_rows[0]["diagnose/candidates"] > 0
        assert 0 < asked_rows[0]["diagnose/gradient"] < 1
        assert 0.2 < asked_rows[0]["diagnose/dropped_recall"] < 0.8


def test_a_data_set_without_withheld_labels_is_refused_before_anything_is_made(doubled: Path, tmp_path: Path) -> None:
    file = make_dataset(tmp_path / "set")
    with pytest.raises(DataError, match=r"diagnose=True has no meaning with data=.*: no training image has a withheld"):
        train("yolov8n.yaml", file, tmp_path / "out", diagnose=True)
    assert not (tmp_path / "out").exists()


def test_the_flag_is_kept_for_the_same_training_again(partial: Path, tmp_path: Path) -> None:
    train("yolov8n.yaml", partial, tmp_path, diagnose=True, epochs=1, val=False)
    assert "diagnose: true" in (tmp_path / "run/args.yaml").read_text("utf-8")
