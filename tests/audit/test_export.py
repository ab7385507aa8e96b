"""Suggestions for other tools, read back by their own libraries, or by our converters of their formats."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from audits import HOSTILE, Audit, Maker, about_label, missing

from rebalance.audit import export
from rebalance.cli.main import main
from rebalance.data import dataset
from rebalance.data.formats import cvat, label_studio
from rebalance.data.formats.record import ConvertFlags
from rebalance.errors import ConfigError, DataError

MIDDLE = "0 0.5 0.5 0.2 0.4\n"  # 80, 30, 120, 70 of 200 by 100 pixels


@pytest.fixture
def made(maker: Maker) -> Audit:
    maker.image("a.jpg", labels=MIDDLE)
    maker.image("b/c.jpg")
    rows = [missing("a.jpg", 10, 0.9), missing("b/c.jpg", 150, None, number=1, name="crab"),
            about_label("a.jpg", "wrong_class"), about_label("a.jpg", "spurious", number=0, name="fish")]  # fmt: skip
    return maker.audit(rows)


def write(made: Audit, tool: str) -> list[str]:
    return export.write(tool, made.folder, made.rows, made.about, made.files, made.labels)


def boxes_of(found: Any) -> dict[str, list[tuple[Any, ...]]]:
    """What our converters read: image -> names and rounded corners."""
    return {
        record.name: [(box.name, *(round(v, 2) for v in box[1:])) for box in record.boxes] for record in found.records
    }


READ = {
    "a.jpg": [("fish", 80, 30, 120, 70), ("fish", 10, 30, 30, 50), ("crab", 82, 30, 122, 70)],
    "b/c.jpg": [("crab", 150, 30, 170, 50)],
}


def test_cvat_reads_labels_and_suggestions_where_they_are(made: Audit, tmp_path: Path) -> None:
    told = write(made, "cvat")
    file = made.folder / "cvat.xml"
    assert told == [
        f"{file}: 3 suggestions and 1 labels of 2 images",
        "note: 1 suspicions of spurious labels have no place in CVAT's XML",
    ]
    found = cvat.read(cvat.CvatFlags(source=str(file), images=str(made.images)))
    assert boxes_of(found) == READ
    assert found.names == ["fish", "crab"]
    boxes = list(ET.parse(file).iter("box"))
    assert [box.get("source") for box in boxes] == ["manual", "auto", "auto", "auto"]
    assert ET.parse(file).findtext("version") == "1.1"
    out = tmp_path / "converted"
    assert main(["convert", "cvat", f"source={file}", f"images={made.images}", f"out={out}"]) == 0
    back = dataset.load(out / "data.yaml")
    lines = {Path(i).name: len(back.labels(i)) for split in back.splits for i in back.images(split)}
    assert lines == {"a.jpg": 3, "c.jpg": 1}


def test_label_studio_gets_a_prediction_a_task_and_its_interface(made: Audit) -> None:
    (line,) = write(made, "label-studio")
    assert "4 suggestions and 1 labels of 2 images" in line
    assert f"DOCUMENT_ROOT={made.about['images_root']}" in line
    tasks = json.loads((made.folder / "label-studio.json").read_text("utf-8"))
    assert [task["data"] for task in tasks] == [
        {"image": "/data/local-files/?d=a.jpg", "name": "a.jpg"},
        {"image": "/data/local-files/?d=b/c.jpg", "name": "b/c.jpg"},
    ]
    (prediction,) = tasks[0]["predictions"]
    assert prediction["score"] == 0.9
    regions = {region["id"]: region for region in prediction["result"]}
    assert list(regions) == ["label-0", made.rows[0].id, made.rows[2].id]
    assert regions["label-0"]["meta"]["text"] == ["spurious: no model finds it"]
    assert "score" not in regions["label-0"]
    assert regions[made.rows[0].id]["meta"]["text"] == ["missing, probability 0.90"]
    assert regions[made.rows[0].id]["score"] == 0.9
    assert regions[made.rows[0].id]["value"] == {
        "x": 5.0, "y": 30.0, "width": 10.0, "height": 20.0, "rotation": 0, "rectanglelabels": ["fish"],
    }  # fmt: skip


def test_what_label_studio_makes_of_an_accepted_prediction_is_read_by_our_converter(made: Audit) -> None:
    write(made, "label-studio")
    file = made.folder / "label-studio.json"
    tasks = json.loads(file.read_text("utf-8"))
    for task in tasks:  # as its export has them
        task["annotations"] = [{"result": task.pop("predictions")[0]["result"], "was_cancelled": False}]
    file.write_text(json.dumps(tasks), "utf-8")
    found = label_studio.read(ConvertFlags(source=str(file), images=str(made.images)))
    assert boxes_of(found) == {Path(name).name: boxes for name, boxes in READ.items()}


@pytest.mark.upstream
def test_label_studios_own_library_takes_tasks_and_interface(made: Audit) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    write(made, "label-studio")
    view = interface.LabelInterface((made.folder / "label-studio.xml").read_text("utf-8"))
    tasks = json.loads((made.folder / "label-studio.json").read_text("utf-8"))
    for task in tasks:
        assert view.validate_prediction(task["predictions"][0])
    tasks[0]["predictions"][0]["result"][0]["value"]["rectanglelabels"] = ["whale"]
    assert not view.validate_prediction(tasks[0]["predictions"][0])


@pytest.mark.parametrize("package", ["faster_coco_eval", pytest.param("pycocotools.coco", marks=pytest.mark.upstream)])
def test_cocos_own_library_evaluates_the_results(made: Audit, package: str) -> None:
    library = pytest.importorskip(package, reason=f"{package} is not installed")
    told = write(made, "coco")
    assert told[1] == "note: 1 suspicions of spurious labels have no place in COCO's results"
    with contextlib.redirect_stdout(io.StringIO()):
        given = library.COCO(str(made.folder / "coco.json"))
        found = given.loadRes(str(made.folder / "coco-results.json"))
    assert [image["file_name"] for image in given.dataset["images"]] == ["a.jpg", "b/c.jpg"]
    assert [one["name"] for one in given.dataset["categories"]] == ["fish", "crab"]
    assert [(a["category_id"], [float(v) for v in a["bbox"]]) for a in given.anns.values()] == [(1, [80, 30, 40, 40])]
    assert [
        (a["image_id"], a["category_id"], [float(v) for v in a["bbox"]], a["score"]) for a in found.anns.values()
    ] == [
        (1, 1, [10, 30, 20, 20], 0.9),
        (1, 2, [82, 30, 40, 40], 0.6),
        (2, 2, [150, 30, 20, 20], 0.5),
    ]
    results = json.loads((made.folder / "coco-results.json").read_text("utf-8"))
    assert [(one["suggestion"], one["kind"], one["probability"]) for one in results] == [
        (row.id, row.kind, row.probability) for row in (made.rows[0], made.rows[2], made.rows[1])
    ]


def test_fiftyone_itself_keeps_labels_and_suggestions(
    made: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    import fiftyone as fo

    (line,) = write(made, "fiftyone")
    name = line.split()[3].rstrip(":")
    try:
        assert write(made, "fiftyone") == [f"FiftyOne has {name} already; it was left as it is"]
        kept = fo.load_dataset(name)
        sample = next(iter(kept.match({"filepath": made.files["a.jpg"]})))
        assert [(d.label, d.bounding_box) for d in sample.labels.detections] == [("fish", [0.4, 0.3, 0.2, 0.4])]
        assert [(d.kind, d.suggestion) for d in sample.suggestions.detections] == [
            (row.kind, row.id) for row in made.rows if row.image == "a.jpg"
        ]
        assert kept.persistent
    finally:
        fo.delete_dataset(name)


def test_a_tool_that_is_unknown_or_not_there_is_told_before_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert export.check(" cvat,coco,cvat ") == ("cvat", "coco")
    assert export.check("") == ()
    with pytest.raises(ConfigError, match=r"export=labelstudio is not one of label-studio, .* \(did you mean label-s"):
        export.check("coco,labelstudio")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="export=fiftyone needs the package fiftyone, which is not installed"):
        export.check("fiftyone")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleType(name))
    assert export.check("fiftyone") == ("fiftyone",)


def test_hostile_names_come_back_as_they_were(maker: Maker) -> None:
    image = maker.image(HOSTILE.replace("/", "∕") + ".jpg")
    made = maker.audit([missing(image, 10, 0.75, name=HOSTILE)], (HOSTILE, "a&b<c>"))
    for tool in ("cvat", "label-studio", "coco"):
        write(made, tool)
    root = ET.parse(made.folder / "cvat.xml").getroot()
    assert [element.get("name") for element in root.iter("image")] == [image]
    assert [element.get("label") for element in root.iter("box")] == [HOSTILE]
    assert [element.text for element in root.iter("name")] == [HOSTILE, "a&b<c>"]
    view = ET.parse(made.folder / "label-studio.xml").getroot()
    assert [element.get("value") for element in view.iter("Label")] == [HOSTILE, "a&b<c>"]
    (task,) = json.loads((made.folder / "label-studio.json").read_text("utf-8"))
    found = label_studio._image(task["data"], "task", label_studio.Images(made.images))
    assert found == (image, made.images / image)
    assert json.loads((made.folder / "coco.json").read_text("utf-8"))["categories"][0]["name"] == HOSTILE


def test_a_character_that_xml_cannot_hold_is_one_line_and_nothing_is_written(maker: Maker) -> None:
    image = maker.image("a\x01.jpg")
    made = maker.audit([missing(image, 10, 0.75)])
    with pytest.raises(DataError, match=r"export=cvat: 'a\\x01.jpg' has the character '\\x01', which XML cannot hold"):
        write(made, "cvat")
    assert not (made.folder / "cvat.xml").exists()
    write(made, "coco")
    made = maker.audit([missing(image, 10, 0.75, name="\udce9")], ("\udce9", "crab"))
    with pytest.raises(DataError, match="export=label-studio"):
        write(made, "label-studio")
    assert not list(made.folder.glob("label-studio*"))


def test_boxes_that_stand_out_of_the_image_are_cut_where_a_tool_wants_it(maker: Maker) -> None:
    image = maker.image("a.jpg", labels="0 0 0.5 0.1 0.4\n")  # -10, 30, 10, 70
    made = maker.audit([missing(image, 190.5, 0.75)])  # to 210.5
    write(made, "cvat")
    boxes = [[box.get(side) for side in ("xtl", "xbr")] for box in ET.parse(made.folder / "cvat.xml").iter("box")]
    assert boxes == [["0.00", "10.00"], ["190.50", "200.00"]]
    write(made, "coco")
    assert json.loads((made.folder / "coco.json").read_text("utf-8"))["annotations"][0]["bbox"] == [-10, 30, 20, 40]
