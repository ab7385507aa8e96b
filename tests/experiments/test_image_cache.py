"""Images that are kept in memory, shared between processes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_data import make_dataset
from small_training import log, results, train
from ultralytics.cfg import get_cfg
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from rebalance.experiments import image_cache
from rebalance.experiments.image_cache import shared


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "tiny")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are decoded from now on."""
    files: list[str] = []
    stock = BaseDataset.load_image

    def load_image(self: Any, i: int, *args: Any, **kwargs: Any) -> Any:
        if self.ims[i] is None:
            files.append(Path(self.im_files[i]).name)
        return stock(self, i, *args, **kwargs)

    monkeypatch.setattr(BaseDataset, "load_image", load_image)
    monkeypatch.setattr(BaseDataset, "check_cache_ram", lambda *_, **__: True)  # it reads some, to know how large
    return files


def dataset(data: Path, **options: Any) -> YOLODataset:
    found = check_det_dataset(str(data))
    return YOLODataset(
        img_path=found["train"], data=found, imgsz=48, hyp=get_cfg(), augment=True, **{"cache": "ram", **options}
    )


def same(one: YOLODataset, other: YOLODataset) -> bool:
    pairs = [(one.load_image(i), other.load_image(i)) for i in range(one.ni)]
    return all(np.array_equal(a, b) and before == after for (a, *before), (b, *after) in pairs)


def test_images_are_decoded_once_and_are_the_hosts_own(data: Path, tmp_path: Path, decoded: list[str]) -> None:
    expected = dataset(data)
    with shared(tmp_path / "pixels"):
        first = dataset(data)
        decoded.clear()
        with log() as lines:
            second = dataset(data)
    assert decoded == []
    assert sum("8 images in memory, as another run has decoded them" in line for line in lines) == 1
    assert same(expected, first)
    assert same(expected, second)
    assert dataset(data).ni == 8
    assert len(decoded) == 8  # outside nothing is shared
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "pixels"))


def test_links_to_the_same_images_are_the_same(data: Path, tmp_path: Path, decoded: list[str]) -> None:
    linked = tmp_path / "linked"
    (linked / "images/train").mkdir(parents=True)
    (linked / "labels/train").mkdir(parents=True)
    for image in (data.parent / "images/train").iterdir():
        (linked / "images/train" / image.name).symlink_to(image)
        (linked / "labels/train" / f"{image.stem}.txt").write_text("", "utf-8")
    (linked / "data.yaml").write_text(
        f"path: {linked}\ntrain: images/train\nval: images/train\nnames: [a, b]\n", "utf-8"
    )
    with shared(tmp_path / "pixels"):
        dataset(data)
        decoded.clear()
        dataset(linked / "data.yaml")
    assert decoded == []


def test_another_size_or_an_image_that_changed_is_decoded_anew(data: Path, tmp_path: Path, decoded: list[str]) -> None:
    with shared(tmp_path / "pixels"):
        dataset(data)
        image = data.parent / "images/train/00.jpg"
        decoded.clear()
        dataset(data, fraction=4)
        assert len(decoded) == 4
        cv2.imwrite(str(image), np.zeros((32, 64, 3), np.uint8))
        decoded.clear()
        found = dataset(data)
        assert len(decoded) == 8
        assert found.load_image(0)[1] == (32, 64)
        decoded.clear()
        assert dataset(data, cache=False).ni == 8
        assert dataset(data, cache="disk").ni == 8
        assert (data.parent / "images/train/00.npy").exists()  # as the host keeps them


def test_what_one_writes_into_an_image_nobody_else_sees(data: Path, tmp_path: Path) -> None:
    with shared(tmp_path / "pixels"):
        first, second = dataset(data), dataset(data)
    first.ims[0][:] = 7
    assert (first.ims[0] == 7).all()
    assert not (second.ims[0] == 7).all()
    assert not (pickle.loads(pickle.dumps(second.ims))[0] == 7).all()
    assert np.array_equal(pickle.loads(pickle.dumps(second.ims))[7], second.ims[7])


def test_where_the_folder_takes_nothing_the_images_are_the_runs_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.np, "savez", full)
    with shared(tmp_path / "pixels"), log() as lines:
        found = dataset(data)
    assert len(decoded) == 8
    (told,) = (line for line in lines if "not shared" in line)
    assert told.endswith(
        "rebalance: images in memory are not shared with other runs: [Errno 28] No space left on device"
    )
    (tmp_path / "file").touch()
    with shared(tmp_path / "file"), log() as lines:
        other = dataset(data)
    assert any("not shared" in line for line in lines)
    assert same(found, other)


def test_a_training_is_the_same(data: Path, tmp_path: Path) -> None:
    with log():
        train("yolov8n.yaml", data, tmp_path / "own", cache="ram", epochs=1)
        with shared(tmp_path / "pixels"):
            for name in ("first", "second"):
                train("yolov8n.yaml", data, tmp_path / name, cache="ram", epochs=1)
    own, first, second = (
        [{k: v for k, v in row.items() if k != "time"} for row in results(tmp_path / name)]
        for name in ("own", "first", "second")
    )
    assert own == first == second
