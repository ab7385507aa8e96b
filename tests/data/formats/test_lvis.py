"""LVIS: what was searched for in an image, and what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from converting import convert, picture, refused, write

NAMES = {1: "aerosol_can", 2: "air_conditioner", 3: "airplane", 7: "almond"}


def content(**image: Any) -> str:
    told = {
        "id": 391895, "width": 200, "height": 100,
        "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg",
        "neg_category_ids": [2], "not_exhaustive_category_ids": [7], **image,
    }  # fmt: skip
    boxes = [(3, [10, 10, 20, 20]), (7, [50, 50, 10, 10]), (1, [0, 0, 5, 5])]
    return json.dumps(
        {
            "images": [told],
            "categories": [{"id": number, "name": name, "frequency": "r"} for number, name in NAMES.items()],
            "annotations": [
                {"id": i, "image_id": 391895, "category_id": n, "bbox": b} for i, (n, b) in enumerate(boxes)
            ],
        }
    )


def test_lists_become_regions_of_the_whole_image(tmp_path: Path) -> None:
    picture(tmp_path / "coco/train2017/000000391895.jpg")
    # another one of the name, elsewhere: the folder of the URL decides
    picture(tmp_path / "coco/val2017/000000391895.jpg")
    file = write(tmp_path / "lvis/lvis_v1_val.json", content(not_exhaustive_category_ids=[7, 1]))
    made = convert("lvis", tmp_path, source=file, images=tmp_path / "coco")
    assert made.images() == ["val/train2017/000000391895.jpg"]
    whole = (0, 0, 200, 100)
    assert made.regions("val/train2017/000000391895.jpg") == [
        ("unknown", "aerosol_can,almond", *whole),  # some are labelled, not all
        ("background", "air_conditioner", *whole),  # searched for, none is there
    ]  # airplane: labelled, all of them
    assert [name for name, *_ in made.boxes("val/train2017/000000391895.jpg") or ()] == [
        "airplane",
        "almond",
        "aerosol_can",
    ]


def test_a_class_that_nobody_searched_for_is_unknown(tmp_path: Path) -> None:
    picture(tmp_path / "s/train2017/000000391895.jpg")
    file = write(tmp_path / "s/lvis_v1_train.json", content(neg_category_ids=[], not_exhaustive_category_ids=[]))
    made = convert("lvis", tmp_path, source=file)
    assert made.regions("train/train2017/000000391895.jpg") == [("unknown", "air_conditioner", 0, 0, 200, 100)]


@pytest.mark.parametrize("wrong", [5, [2], {"a": 1}, None])
def test_a_list_with_a_category_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: Any
) -> None:
    picture(tmp_path / "s/train2017/000000391895.jpg")
    file = write(tmp_path / "s/lvis_v1_train.json", content(neg_category_ids=[wrong]))
    told = refused("lvis", tmp_path, capsys, source=file)
    assert f"image 391895: neg_category_ids has {wrong}, which is not among the categories" in told


def test_a_class_with_labels_is_not_background_whatever_the_list_says(tmp_path: Path) -> None:
    picture(tmp_path / "s/train2017/000000391895.jpg")
    file = write(tmp_path / "s/lvis_v1_train.json", content(neg_category_ids=[2, 3]))
    made = convert("lvis", tmp_path, source=file)
    assert ("background", "air_conditioner", 0, 0, 200, 100) in made.regions("train/train2017/000000391895.jpg")


def test_images_of_cocos_2014_are_found_by_their_file_names(tmp_path: Path) -> None:
    picture(tmp_path / "coco/COCO_train2014_000000391895.jpg")
    file = write(tmp_path / "lvis/lvis_v0.5_val.json", content(file_name="COCO_train2014_000000391895.jpg"))
    made = convert("lvis", tmp_path, source=file, images=tmp_path / "coco")
    assert made.manifest["missing"] == []
    assert made.manifest["total"]["boxes"] == 3
