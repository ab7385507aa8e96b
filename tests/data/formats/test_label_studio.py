"""Label Studio: percent, turned boxes, tasks that nobody finished, names of uploads, and the short export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from converting import convert, picture, refused, write


def box(kind: str = "rectanglelabels", **value: Any) -> dict[str, Any]:
    told = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, kind: ["Plane"], **value}
    return {
        "id": "a1", "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0,
        "original_width": 200, "original_height": 100, "value": told,
    }  # fmt: skip


def task(image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": list(annotations), "predictions": [{"result": [box()]}]}


def done(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 2, "was_cancelled": False, "result": list(results), **more}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "0a1b2c3d-b.jpg", "sub/c d.png"):
        picture(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_tasks(photos: Path, tmp_path: Path) -> None:
    tasks = [
        task("/data/upload/3/0a1b2c3d-a.jpg", done(box(), box(rotation=90, x=50, y=50, width=10, height=20))),
        task("/data/upload/3/0a1b2c3d-b.jpg", done()),
        task("/data/local-files/?d=sub/c%20d.png", done(was_cancelled=True)),
    ]
    made = convert(
        "label-studio", tmp_path, source=write(tmp_path / "e.json", json.dumps(tasks)), images=photos, split="train"
    )
    # turned by 90 degrees about its upper left corner (100, 50): it lies to the left of it
    assert made.boxes("train/a.jpg") == [("Plane", 20, 20, 80, 60), ("Plane", 80, 50, 100, 70)]
    assert made.boxes("train/b.jpg") == []  # finished, nothing there
    assert made.boxes("train/c d.png") is None  # cancelled: nobody looked
    assert made.yaml["unlabelled"] == "unknown"


def test_polygons_ellipses_and_what_has_no_box(photos: Path, tmp_path: Path) -> None:
    results = [
        box("polygonlabels", points=[[10, 10], [20, 30], [5, 50]]),
        box("ellipselabels", x=50, y=50, radiusX=10, radiusY=5),
        {"type": "choices", "value": {"choices": ["sunny"]}},
        box("brushlabels", rle=[1, 2]),
    ]
    file = write(tmp_path / "e.json", json.dumps([task("http://host/x/a.jpg", done(*results))]))
    made = convert("label-studio", tmp_path, source=file, images=photos, split="train")
    assert made.boxes("train/a.jpg") == [("Plane", 10, 10, 40, 50), ("Plane", 80, 45, 120, 55)]
    assert made.manifest["left_out"] == {
        "annotations without a box (brushlabels)": 1,
        "annotations without a box (choices)": 1,
    }


def test_of_several_annotations_the_ground_truth_counts_else_the_latest(photos: Path, tmp_path: Path) -> None:
    first, second = done(box(), updated_at="2024-01-01"), done(box(), box(x=0), updated_at="2024-02-01")
    for marked, count in ((False, 2), (True, 1)):
        tasks = [task("a.jpg", {**first, "ground_truth": marked}, second)]
        file = write(tmp_path / "e.json", json.dumps(tasks))
        made = convert("label-studio", tmp_path, out=f"out{count}", source=file, images=photos, split="train")
        assert len(made.boxes("train/a.jpg") or ()) == count
        assert made.manifest["left_out"] == {"further annotations of the same task": 1}


def test_the_short_export(photos: Path, tmp_path: Path) -> None:
    short = {
        "x": 10,
        "y": 20,
        "width": 30,
        "height": 40,
        "rotation": 0,
        "rectanglelabels": ["Plane"],
        "original_width": 200,
        "original_height": 100,
    }
    tasks = [{"image": "/data/upload/0a1b2c3d-b.jpg", "id": 9, "label": [short], "annotator": 1, "annotation_id": 3}]
    file = write(tmp_path / "min.json", json.dumps(tasks))
    made = convert("label-studio", tmp_path, source=file, images=photos, split="train")
    assert made.boxes("train/b.jpg") == [("Plane", 20, 20, 80, 60)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": 1}, "not a list of tasks"),
        ([task("a.jpg", done(box(x="left")))], "task [0], result[0]: 'x' is \"left\", not a number"),
        (
            [task("a.jpg", done({**box(), "original_width": None}))],
            "task [0], result[0]: original_width null is not a number",
        ),
        (
            [task("a.jpg", done({**box(), "image_rotation": 90}))],
            "task [0], result[0]: the image was turned by 90 degrees",
        ),
        ([task("text without an image", done(box()))], "task [0]: none of its data is the name of an image"),
        ([{"label": [box()], "annotator": 1}], "none of its data is the name of an image"),
        (
            [{"data": {"pages": ["a.jpg", "b.jpg"]}, "annotations": [done(box())]}],
            "'pages' is a list, and several images a task are not read: give each its own task",
        ),
        ([task("a.jpg", {"id": 1})], "task [0], annotations: no 'result'"),
    ],
)
def test_malformed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, says: str) -> None:
    file = write(tmp_path / "e.json", json.dumps(content))
    assert says in refused("label-studio", tmp_path, capsys, source=file, images=photos, split="train")


def test_what_is_marked_without_a_box_is_unknown_in_its_image(photos: Path, tmp_path: Path) -> None:
    brush = {**box("brushlabels", rle=[1, 2]), "value": {"format": "rle", "rle": [1, 2], "brushlabels": ["Plane"]}}
    point = {**box(), "type": "keypointlabels", "value": {"x": 1, "y": 2, "width": 0.4, "keypointlabels": ["Bird"]}}
    tasks = [task("a.jpg", done(box(rectanglelabels=["Bird"]), brush, point, point)), task("b.jpg", done(box()))]
    file = write(tmp_path / "e.json", json.dumps(tasks))
    made = convert("label-studio", tmp_path, source=file, images=photos, split="train")
    assert made.names == ["Bird", "Plane"]
    assert made.regions("train/a.jpg") == [("unknown", "Plane", 0, 0, 200, 100), ("unknown", "Bird", 0, 0, 200, 100)]
    assert made.manifest["left_out"] == {
        "annotations without a box (brushlabels)": 1,
        "annotations without a box (keypointlabels)": 2,
    }


def test_shapes_whose_classes_are_another_result(photos: Path, tmp_path: Path) -> None:
    place = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
    plain = {**box(), "type": "rectangle", "value": place}
    classes = {**box(), "type": "labels", "value": {**place, "labels": ["Plane"]}}
    alone = {**plain, "id": "b2"}
    file = write(tmp_path / "e.json", json.dumps([task("a.jpg", done(plain, classes, alone))]))
    made = convert("label-studio", tmp_path, source=file, images=photos, split="train")
    assert made.boxes("train/a.jpg") == [("Plane", 20, 20, 80, 60)]
    assert made.manifest["left_out"] == {"annotations without a box (rectangle)": 1}


def test_an_image_that_is_named_without_its_suffix(photos: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "e.json", json.dumps([task("http://host/a?X-Amz=1", done(box()))]))
    made = convert("label-studio", tmp_path, source=file, images=photos, split="train")
    assert made.boxes("train/a.jpg") == [("Plane", 20, 20, 80, 60)]
