"""Open Images: verified image labels, groups, fractions."""

from __future__ import annotations

from pathlib import Path

import pytest
from converting import convert, picture, refused, write

BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
LABELS = "ImageID,Source,LabelName,Confidence\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "oid"
    write(
        folder / "oidv7-class-descriptions-boxable.csv",
        "LabelName,DisplayName\n/m/01,Tree\n/m/02,Car\n/m/03,Wheel\n/m/04,Human eye\n",
    )
    write(
        folder / "oidv6-train-annotations-bbox.csv",
        BOXES
        + "000002b66c9c498e,xclick,/m/01,1,0.25,0.5,0.1,0.6,0,0,0,0,0\n"
        + "000002b66c9c498e,xclick,/m/02,1,0,0.5,0.5,1,0,0,1,0,0\n",
    )
    write(
        folder / "train-annotations-human-imagelabels-boxable.csv",
        LABELS
        + "000002b66c9c498e,verification,/m/01,1\n000002b66c9c498e,verification,/m/02,1\n"
        + "000002b66c9c498e,verification,/m/03,0\n000002b66c9c498e,verification,/m/0unboxable,1\n"
        + "00000000000000aa,crowdsource-verification,/m/02,0\n",
    )
    for name in ("000002b66c9c498e", "00000000000000aa"):
        picture(folder / f"images/train/{name}.jpg")
    return folder


def test_verified_labels_and_groups(source: Path, tmp_path: Path) -> None:
    made = convert("open-images", tmp_path, source=source)
    whole = (0, 0, 200, 100)
    assert made.names == ["Tree", "Car", "Wheel", "Human eye"]
    assert made.boxes("train/000002b66c9c498e.jpg") == [("Tree", 50, 10, 100, 60)]
    assert made.regions("train/000002b66c9c498e.jpg") == [
        ("unknown", "Human eye", *whole),  # nobody looked for it
        ("background", "Wheel", *whole),  # verified not to be there
        ("unknown", "Car", 0, 50, 100, 100),  # a group
    ]
    # verified for one class, with no box
    assert made.boxes("train/00000000000000aa.jpg") == []
    assert made.regions("train/00000000000000aa.jpg") == [
        ("unknown", "Tree,Wheel,Human eye", *whole), ("background", "Car", *whole),
    ]  # fmt: skip


def test_without_image_labels_only_classes_with_boxes_are_known(source: Path, tmp_path: Path) -> None:
    (source / "train-annotations-human-imagelabels-boxable.csv").unlink()
    made = convert("open-images", tmp_path, source=source)
    assert made.regions("train/000002b66c9c498e.jpg")[0] == ("unknown", "Wheel,Human eye", 0, 0, 200, 100)
    assert any("only the classes with boxes are known" in note for note in made.manifest["notes"])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            "000002b66c9c498e,xclick,/m/01,1,0.25,1.5,0.1,0.6,0,0,0,0,0\n",
            "line 2: XMin, YMin, XMax, YMax are 0.25 0.1 1.5 0.6",
        ),
        (
            "000002b66c9c498e,xclick,/m/09,1,0.25,0.5,0.1,0.6,0,0,0,0,0\n",
            "line 2: LabelName /m/09 is not among the classes",
        ),
        ("000002b66c9c498e,xclick,/m/01\n", "line 2: 3 columns; the header has 13"),
        ("000002b66c9c498e,xclick,/m/01,1,left,0.5,0.1,0.6,0,0,0,0,0\n", 'line 2: XMin "left" is not a number'),
    ],
)
def test_a_malformed_row_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, says: str
) -> None:
    file = write(source / "oidv6-train-annotations-bbox.csv", BOXES + row)
    assert f"{file}, {says}" in refused("open-images", tmp_path, capsys, source=source)


def test_a_missing_column_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(source / "oidv6-train-annotations-bbox.csv", BOXES.replace("LabelName", "Labelname"))
    assert "line 1: no column LabelName (did you mean Labelname?)" in refused(
        "open-images", tmp_path, capsys, source=source
    )


def test_the_challenges_names_of_files(source: Path, tmp_path: Path) -> None:
    for old, new in {
        "oidv7-class-descriptions-boxable.csv": "challenge-2019-classes-description-500.csv",
        "oidv6-train-annotations-bbox.csv": "challenge-2019-train-detection-bbox.csv",
        "train-annotations-human-imagelabels-boxable.csv": "challenge-2019-train-detection-human-imagelabels.csv",
    }.items():
        (source / old).rename(source / new)
    names = source / "challenge-2019-classes-description-500.csv"
    write(names, '/m/01,Tree,1\n/m/02,"Car, old",2\n/m/03,Wheel,3\n/m/04,Human eye,4\n')
    made = convert("open-images", tmp_path, source=source)
    assert made.names == ["Tree", "Car, old", "Wheel", "Human eye"]
    assert made.boxes("train/000002b66c9c498e.jpg") == [("Tree", 50, 10, 100, 60)]
    assert len(made.regions("train/000002b66c9c498e.jpg")) == 3
