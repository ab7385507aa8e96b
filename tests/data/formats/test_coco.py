"""COCO: ids with gaps, crowds, images without annotations; several files of different categories; and back again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converting import convert, picture, refused, write

CONTENT: dict[str, Any] = {
    "info": {}, "licenses": [],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    "images": [
        {"id": 397133, "file_name": "000000397133.jpg", "width": 200, "height": 100, "coco_url": "x"},
        {"id": 7, "file_name": "b.jpg", "width": 200, "height": 100},
        {"id": 8, "file_name": "absent.jpg", "width": 200, "height": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 397133, "category_id": 90, "bbox": [10.5, 20, 30.25, 40], "iscrowd": 0, "area": 9,
         "segmentation": [[10, 20, 40, 20, 40, 60]]},
        {"id": 2, "image_id": 397133, "category_id": 1, "bbox": [100, 0, 100, 100], "iscrowd": 1, "area": 9,
         "segmentation": {"counts": [0, 9, 99], "size": [100, 200]}},
        {"id": 3, "image_id": 397133, "category_id": 1, "bbox": [5, 5, 0, 10], "iscrowd": 0, "area": 0},
        {"id": 4, "image_id": 397133, "category_id": 13, "bbox": [150, 50, 80, 20], "area": 0},
        {"id": 5, "image_id": 397133, "category_id": 13, "bbox": [150, 50, 80, 20], "area": 0},
    ],
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "coco"
    for split in ("train", "val"):
        write(folder / f"annotations/instances_{split}2017.json", json.dumps(CONTENT))
        for name in ("000000397133.jpg", "b.jpg"):
            picture(folder / f"images/{split}2017" / name)
    write(folder / "annotations/captions_train2017.json", json.dumps({"annotations": [{"caption": "a"}]}))
    return folder


def test_labels_crowds_and_classes(source: Path, tmp_path: Path) -> None:
    made = convert(
        "coco", tmp_path, source=source / "annotations/instances_val2017.json", images=source / "images/val2017"
    )
    assert made.names == ["person", "stop sign", "toothbrush"]  # by id
    image = "val/000000397133.jpg"
    assert made.boxes(image) == [
        ("toothbrush", 10.5, 20, 40.75, 60),
        ("stop sign", 150, 50, 200, 70),
    ]  # cut to the image
    assert made.regions(image) == [("unknown", "person", 100, 0, 200, 100)]
    assert made.boxes("val/b.jpg") == []  # looked at
    assert made.manifest["missing"] == ["absent.jpg"]
    assert made.manifest["left_out"] == {"boxes that are there twice": 1, "boxes without an area in the image": 1}


def test_a_folder_of_both_splits_with_images_of_one_name(source: Path, tmp_path: Path) -> None:
    write(source / "annotations/instances_train2017.json", json.dumps({**CONTENT, "images": CONTENT["images"][:2]}))
    made = convert(
        "coco", tmp_path, source=source / "annotations/instances_train2017.json", images=source / "images/train2017"
    )
    assert (made.folder / "images/train/b.jpg").resolve() == (source / "images/train2017/b.jpg").resolve()
    assert made.manifest["total"] == {"images": 2, "boxes": 2, "unlabelled": 0, "unknown": 1, "background": 0}


def test_images_that_two_files_could_mean_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused("coco", tmp_path, capsys, source=source / "annotations", images=source / "images")
    assert "image 397133: image 000000397133.jpg is " in told


def test_files_of_different_categories_were_each_labelled_for_their_own(tmp_path: Path) -> None:
    for name, kind in (("cars", "car"), ("signs", "sign")):
        picture(tmp_path / f"s/{name}/{name}.jpg")
        image = {"id": 1, "file_name": f"{name}.jpg", "width": 200, "height": 100}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}
        content = {"images": [image], "categories": [{"id": 1, "name": kind}], "annotations": [box]}
        write(tmp_path / f"s/{name}/{name}.json", json.dumps(content))
    made = convert("coco", tmp_path, source=tmp_path / "s", split="train")
    assert made.names == ["car", "sign"]
    assert made.yaml["annotated"] == {"images/train/cars": ["car"], "images/train/signs": ["sign"]}
    from rebalance.data import dataset

    source = dataset.load(made.folder / "data.yaml")
    known = source.knowledge.of(source.images("train")[0])
    assert (known.unknown.tolist(), known.classes.tolist()) == ([True], [[False, True]])


def test_files_of_one_name_and_a_class_that_is_there_twice(tmp_path: Path) -> None:
    for split, kinds in {"train": ("fish", "fish"), "valid": ("fish", "crab")}.items():
        picture(tmp_path / f"s/{split}/{split}.jpg")
        image = {"id": 0, "file_name": f"{split}.jpg", "width": 200, "height": 100}
        box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10]}
        categories = [{"id": i, "name": kind, "supercategory": "none"} for i, kind in enumerate(kinds)]
        content = {"images": [image], "categories": categories, "annotations": [box]}
        write(tmp_path / f"s/{split}/_annotations.coco.json", json.dumps(content))
    made = convert("coco", tmp_path, source=tmp_path / "s")
    assert made.names == ["fish", "crab"]
    assert made.boxes("train/train-_annotations.coco/train.jpg") == [("fish", 0, 0, 10, 10)]
    assert made.yaml["annotated"] == {
        "images/train/train-_annotations.coco": ["fish"],
        "images/val/valid-_annotations.coco": ["fish", "crab"],
    }


def test_what_an_image_without_annotations_means_can_be_said(source: Path, tmp_path: Path) -> None:
    file, images = source / "annotations/instances_val2017.json", source / "images/val2017"
    made = convert("coco", tmp_path, source=file, images=images, empty="unknown")
    assert made.boxes("val/b.jpg") is None
    assert made.yaml["unlabelled"] == "unknown"
    assert made.boxes("val/000000397133.jpg")


def test_classes_are_chosen_and_numbered(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"source": source / "annotations/instances_val2017.json", "images": source / "images/val2017"}
    made = convert("coco", tmp_path, **flags, classes="toothbrush,stop sign")
    assert made.yaml["names"] == {0: "toothbrush", 1: "stop sign"}
    assert made.manifest["total"]["unknown"] == 0
    told = refused("coco", tmp_path, capsys, **flags, classes="toothbrsh")
    assert "'toothbrsh' is not a class of the source (did you mean toothbrush?)" in told


def broken(path: list[Any], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (broken(["annotations", 1, "bbox"], [1, 2, 3]), "annotations[1]: bbox has 3 numbers, not 4"),
        (broken(["annotations", 1, "bbox"], None), "annotations[1]: no 'bbox'"),
        (broken(["annotations", 0, "bbox"], [1, 2, 3, "w"]), 'annotations[0]: bbox "w" is not a number'),
        (broken(["annotations", 3, "category_id"], 2), "annotations[3]: category_id 2 is not among the categories"),
        (broken(["annotations", 3, "image_id"], 99), "annotations[3]: image_id 99 is not among the images"),
        (broken(["images", 1, "id"], 397133), "images[1]: id 397133 is there twice"),
        (broken(["images", 1, "file_name"], None), "image 7: no file_name"),
        (broken(["categories"], {}), "'categories' is {}, not a list"),
        (broken(["images", 0, "width"], float("nan")), "image 397133: width NaN is not a number"),
        (broken(["images", 0, "width"], 10**400), "is not a number"),
    ],
)
def test_a_malformed_file_is_named_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, says: str
) -> None:
    picture(tmp_path / "s/000000397133.jpg")
    picture(tmp_path / "s/b.jpg")
    file = write(tmp_path / "s/x.json", json.dumps(content))
    told = refused("coco", tmp_path, capsys, source=file, split="train")
    assert str(file) in told
    assert says in told


def test_text_that_is_no_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "s/x.json", '{"images": [')
    assert f"{file}: not JSON: " in refused("coco", tmp_path, capsys, source=file)


def test_there_and_back_gives_the_same_label_files(tmp_path: Path) -> None:
    source = tmp_path / "yolo"
    lines = [
        "2 0.479492 0.688771 0.955609 0.5955",
        "0 0.736516 0.247188 0.498875 0.476417",
        "1 1 0.5 0.000001 1",
        "0 0.1 0.2 0.2 0.3333333",
    ]
    for split in ("train", "val"):
        for name, text in {"a": "\n".join(lines) + "\n", "sub/b": ""}.items():
            picture(source / f"images/{split}/{name}.jpg", 427, 613)
            write(source / f"labels/{split}/{name}.txt", text)
    write(source / "regions/train/a.txt", "unknown 0,2 0.25 0.5 0.5 1\nbackground * 0.5 0.5 1 1\n")
    file = write(source / "data.yaml", "train: images/train\nval: images/val\nnames: [x, y, z]\n")
    from rebalance.cli.main import main

    assert main(["convert", "to-coco", f"data={file}", f"out={tmp_path / 'json'}"]) == 0
    content = json.loads((tmp_path / "json/annotations/instances_train.json").read_text("utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "sub/b.jpg"]
    assert [(a["category_id"], a["iscrowd"]) for a in content["annotations"]] == [
        (3, 0),
        (1, 0),
        (2, 0),
        (1, 0),
        (1, 1),
        (3, 1),
    ]
    assert content["annotations"][0]["bbox"] == pytest.approx(
        [(0.479492 - 0.955609 / 2) * 427, (0.688771 - 0.5955 / 2) * 613, 0.955609 * 427, 0.5955 * 613]
    )
    for split in ("train", "val"):
        flags = {
            "source": tmp_path / f"json/annotations/instances_{split}.json",
            "images": tmp_path / f"json/images/{split}",
        }
        made = convert("coco", tmp_path, out=f"back-{split}", **flags)
        back = made.folder / "labels" / split
        assert back.joinpath("a.txt").read_text("utf-8").splitlines() == lines
        assert back.joinpath("sub/b.txt").read_text("utf-8") == ""
        if split == "train":
            assert (made.folder / "regions/train/a.txt").read_text("utf-8").splitlines() == [
                "unknown 0 0.25 0.5 0.5 1",
                "unknown 2 0.25 0.5 0.5 1",
            ]


def test_real_labels_there_and_back(shared_data: Path, tmp_path: Path) -> None:
    """COCO's own labels in YOLO's layout: every box comes back, to the last digit that the file has."""
    from rebalance.cli.main import main

    assert main(["convert", "to-coco", f"data={shared_data / 'coco_mini/data.yaml'}", f"out={tmp_path / 'json'}"]) == 0
    made = convert(
        "coco", tmp_path, source=tmp_path / "json/annotations/instances_val.json", images=tmp_path / "json/images/val"
    )
    files = sorted((shared_data / "coco_mini/labels/val").glob("*.txt"))
    assert len(files) > 10
    for file in files:
        rows = [
            [float(v) for v in line.split()]
            for line in dict.fromkeys(file.read_text("utf-8").split("\n"))
            if line.strip()
        ]
        back = [
            [float(v) for v in line.split()]
            for line in (made.folder / "labels/val" / file.name).read_text("utf-8").splitlines()
        ]
        assert np.array(back) == pytest.approx(np.array(rows), abs=2e-6)


@pytest.mark.parametrize(
    ("keys", "notes"),
    [
        ("", ["note: 2 images without a label file, which COCO reads as looked at"]),
        ("unlabelled: unknown\n", []),  # such an image has crowds
        (
            "unlabelled: skip\nunknown_below: 12\n",
            [
                "note: 2 images without a label file, which COCO reads as looked at",
                "note: 4 images with unknown_below, which COCO cannot say",
            ],
        ),
    ],
)
def test_what_coco_cannot_say_is_said(
    keys: str, notes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "yolo"
    for name in "ab":
        picture(source / f"images/{name}.jpg", 20, 20)
    write(source / "labels/a.txt", "0 0.5 0.5 0.5 0.5\n")
    file = write(source / "data.yaml", f"train: images\nval: images\nnames: [x]\n{keys}")
    from rebalance.cli.main import main

    assert main(["convert", "to-coco", f"data={file}", f"out={tmp_path / 'json'}"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("note")] == notes


def small(annotations: list[dict[str, Any]], **more: Any) -> str:
    """A file of one image, a.jpg, and two classes."""
    image = {"id": 0, "file_name": "a.jpg", "width": 200, "height": 100}
    categories = [{"id": 1, "name": "fish"}, {"id": 2, "name": "crab"}]
    return json.dumps({"images": [image], "categories": categories, "annotations": annotations, **more})


def test_numbers_as_texts_and_categories_that_are_there_once_an_image(tmp_path: Path) -> None:
    picture(tmp_path / "s/a.jpg")
    categories = [{"id": i, "name": name} for _ in range(3) for i, name in (("2", "crab"), (1.0, "fish"))]
    one = {"image_id": "0", "category_id": 2, "bbox": [10, 20, 30, 40], "iscrowd": "0"}
    image = {"id": 0, "file_name": "a.jpg", "width": "200", "height": "100"}
    file = write(tmp_path / "s/via.json", small([one], categories=categories, images=[image]))
    made = convert("coco", tmp_path, source=file, split="train")
    assert made.names == ["fish", "crab"]
    assert made.boxes("train/a.jpg") == [("crab", 10, 20, 40, 60)]


def test_one_id_of_two_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "s/a.jpg")
    file = write(tmp_path / "s/x.json", small([], categories=[{"id": 1, "name": "fish"}, {"id": 1, "name": "crab"}]))
    told = refused("coco", tmp_path, capsys, source=file, split="train")
    assert told.endswith("x.json, categories[1]: id 1 is crab here and fish before")


def test_polygons_without_a_box_and_marks_however_they_are_spelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "s/a.jpg")
    rows: list[dict[str, Any]] = [
        {"category_id": 1, "segmentation": [[10, 20, 40, 20, 40, 60], [50, 5, 60, 5, 60, 9]], "iscrowd": False},
        {"category_id": 1, "segmentation": [1, 2, 3, 4, 5, 6], "bbox": [], "iscrowd": "false"},
        {"category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": "true"},
        {"category_id": 2, "bbox": [20, 0, 10, 10], "iscrowd": 0, "ignore": 1},
    ]
    file = write(tmp_path / "s/x.json", small([{"image_id": 0, **row} for row in rows]))
    made = convert("coco", tmp_path, source=file, split="train")
    assert made.boxes("train/a.jpg") == [("fish", 10, 5, 60, 60), ("fish", 1, 2, 5, 6)]
    assert made.regions("train/a.jpg") == [("unknown", "crab", 0, 0, 10, 10), ("unknown", "crab", 20, 0, 30, 10)]
    for more, says in (
        ({"bbox": [1, 2, 3, 4], "iscrowd": "maybe"}, 'annotations[0]: iscrowd is "maybe", not 0 or 1'),
        ({"segmentation": {"counts": "x", "size": [1, 2]}}, "annotations[0]: no 'bbox'"),
        ({"segmentation": [[1, 2, 3]]}, "annotations[0]: no 'bbox', and its segmentation is not x, y, x, y"),
    ):
        write(file, small([{"image_id": 0, "category_id": 1, **more}]))
        assert says in refused("coco", tmp_path, capsys, source=file, split="train")


@pytest.mark.parametrize(("way", "boxes", "regions"), [("unknown", 0, 2), ("keep", 2, 0), ("drop", 0, 0)])
def test_a_file_whose_annotations_all_are_crowds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str, boxes: int, regions: int
) -> None:
    picture(tmp_path / "s/a.jpg")
    rows = [{"image_id": 0, "category_id": 1, "bbox": [x, 0, 10, 10], "iscrowd": 1} for x in (0, 20)]
    file = write(tmp_path / "s/x.json", small(rows))
    made = convert("coco", tmp_path, source=file, split="train", crowd=way)
    assert len(made.boxes("train/a.jpg") or ()) == boxes
    assert len(made.regions("train/a.jpg")) == regions
    assert made.manifest["left_out"] == ({"crowds": 2} if way == "drop" else {})
    told = capsys.readouterr().err
    assert ("every annotation is a crowd (2), so none is a label" in told) == (way == "unknown")
    assert ("warning: no image has a box" in told) == (not boxes)


def test_a_folder_with_files_of_other_tasks_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "s/a.jpg")
    file = write(
        tmp_path / "s/annotations/person_keypoints_val.json",
        small([{"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9]}]),
    )
    told = refused("coco", tmp_path, capsys, source=tmp_path / "s/annotations", images=tmp_path / "s")
    assert "has files of other tasks alone, as person_keypoints_val.json; name one that has boxes" in told
    assert convert("coco", tmp_path, source=file, images=tmp_path / "s").boxes("val/a.jpg") == [("fish", 0, 0, 9, 9)]


def test_several_entries_of_one_file_are_one_image(tmp_path: Path) -> None:
    picture(tmp_path / "s/a.jpg")
    images = [{"id": i, "file_name": "a.jpg", "width": 200, "height": 100} for i in (4, 5)]
    rows = [{"image_id": i, "category_id": i - 3, "bbox": [0, 0, 10 * i, 10]} for i in (4, 5)]
    file = write(tmp_path / "s/x.json", small(rows, images=images))
    made = convert("coco", tmp_path, source=file, split="train")
    assert made.images() == ["train/a.jpg"]
    assert made.boxes("train/a.jpg") == [("fish", 0, 0, 40, 10), ("crab", 0, 0, 50, 10)]
    assert made.manifest["left_out"] == {"further entries of the same image": 1}
