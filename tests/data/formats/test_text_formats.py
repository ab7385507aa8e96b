"""KITTI, VisDrone and FDDB: a text file an image, or a list of ellipses."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from converting import convert, picture, refused, write

CAR = "Car 0.00 0 -1.58 10.5 20.00 60.25 80.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
CARELESS = "DontCare -1 -1 -10 100.00 10.00 180.00 50.00 -1 -1 -1 -1000 -1000 -1000 -10\n"


def kitti(tmp_path: Path, text: str = CAR + CARELESS) -> Path:
    folder = tmp_path / "training"
    for name, content in {"000000": text, "000001": "", "000002": CAR}.items():
        write(folder / f"label_2/{name}.txt", content)
        picture(folder / f"image_2/{name}.png")
    return folder


def test_kitti_dont_care_is_unknown_for_all_classes(tmp_path: Path) -> None:
    made = convert("kitti", tmp_path, source=kitti(tmp_path), split="train")
    assert made.boxes("train/000000.png") == [("Car", 10.5, 20, 60.25, 80)]
    assert made.regions("train/000000.png") == [("unknown", "*", 100, 10, 180, 50)]
    assert made.boxes("train/000001.png") == []
    assert made.yaml["val"] == "images/train"


def test_kitti_splits_are_drawn_or_read_from_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kitti(tmp_path)
    made = convert("kitti", tmp_path, source=source, val=0.34)
    assert [made.manifest["splits"][split]["images"] for split in ("train", "val")] == [2, 1]
    again = convert("kitti", tmp_path, out="again", source=source, val=0.34)
    assert again.images() == made.images()
    assert "drawn with seed 0" in capsys.readouterr().err
    write(source / "ImageSets/train.txt", "000000\n")
    write(source / "ImageSets/val.txt", "000002\n")
    made = convert("kitti", tmp_path, out="listed", source=source)
    assert made.images() == ["train/000000.png", "val/000002.png"]
    assert made.manifest["left_out"] == {"images in none of the lists": 1}
    told = refused("kitti", tmp_path, capsys, out="new", source=source, val=0.5)
    assert "val, test and seed have no effect: the source says the splits" in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CAR + "Car 0 0\n", "000000.txt, line 2: 3 values; a line of KITTI has 15"),
        (CAR.replace("Car", "Cyclst"), "000000.txt, line 1: 'Cyclst' is not one of Car,"),
        (CAR.replace("60.25", "inf"), '000000.txt, line 1: box "inf" is not a number'),
    ],
)
def test_kitti_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    assert says in refused("kitti", tmp_path, capsys, source=kitti(tmp_path, text), split="train")


def visdrone(tmp_path: Path, text: str) -> Path:
    for split in ("train", "val", "test-dev"):
        folder = tmp_path / f"vis/VisDrone2019-DET-{split}"
        picture(folder / f"images/{split}_0000001.jpg")
        write(folder / f"annotations/{split}_0000001.txt", text if split == "train" else "")
    return tmp_path / "vis"


def test_visdrone_ignored_regions_and_others(tmp_path: Path) -> None:
    text = "10,20,30,40,1,4,0,1,\n100,0,50,50,0,0,0,0,\n0,0,9,9,0,11,0,0\n5,50,10,10,0,1,0,0\n"
    made = convert("visdrone", tmp_path, source=visdrone(tmp_path, text))
    assert made.images() == ["test/test-dev_0000001.jpg", "train/train_0000001.jpg", "val/val_0000001.jpg"]
    assert made.boxes("train/train_0000001.jpg") == [("car", 10, 20, 40, 60)]
    assert made.regions("train/train_0000001.jpg") == [
        ("unknown", "*", 100, 0, 150, 50), ("unknown", "*", 0, 0, 9, 9), ("unknown", "*", 5, 50, 15, 60),
    ]  # fmt: skip
    assert made.boxes("val/val_0000001.jpg") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10,20,30,40,1,4\n", "line 1: 6 values; a line of VisDrone has 8"),
        ("10,20,30,40,1,12,0,0\n", "line 1: category 12 is not one of 0 to 11"),
        ("10,20,30,x,1,1,0,0\n", 'line 1: value "x" is not a number'),
    ],
)
def test_visdrone_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    assert says in refused("visdrone", tmp_path, capsys, source=visdrone(tmp_path, text))


ELLIPSE = "30.5 18.25 -1.265839 100.5 50.25  1\n"


def fddb(tmp_path: Path, text: str) -> Path:
    write(tmp_path / "fddb/FDDB-folds/FDDB-fold-01-ellipseList.txt", text)
    write(tmp_path / "fddb/FDDB-folds/FDDB-fold-01.txt", "2002/08/11/big/img_591\n")  # a list without ellipses
    for name in ("2002/08/11/big/img_591", "2002/08/26/big/img_265"):
        picture(tmp_path / f"fddb/originalPics/{name}.jpg")
    return tmp_path / "fddb/FDDB-folds"


def test_fddb_box_is_the_extent_of_the_ellipse(tmp_path: Path) -> None:
    text = f"2002/08/11/big/img_591\n1\n{ELLIPSE}2002/08/26/big/img_265\n0\n"
    made = convert("fddb", tmp_path, source=fddb(tmp_path, text), images=tmp_path / "fddb/originalPics", split="train")
    [(name, *box)] = made.boxes("train/2002/08/11/big/img_591.jpg") or []
    mask = np.zeros((100, 200), np.uint8)  # drawn by OpenCV instead of computed
    cv2.ellipse(mask, ((100.5, 50.25), (61, 36.5), math.degrees(-1.265839)), 255, -1)
    ys, xs = np.nonzero(mask)
    assert name == "face"
    assert box == pytest.approx([xs.min(), ys.min(), xs.max(), ys.max()], abs=1.5)
    assert made.boxes("train/2002/08/26/big/img_265.jpg") == []


def test_fddb_ten_folds_are_split(tmp_path: Path) -> None:
    source = fddb(tmp_path, f"2002/08/11/big/img_591\n1\n{ELLIPSE}")
    for fold in range(2, 11):
        write(source / f"FDDB-fold-{fold:02d}-ellipseList.txt", f"2003/{fold}/img\n1\n{ELLIPSE}")
        picture(tmp_path / f"fddb/originalPics/2003/{fold}/img.jpg")
    made = convert("fddb", tmp_path, source=source, images=tmp_path / "fddb/originalPics")
    assert [made.manifest["splits"][split]["images"] for split in ("train", "test")] == [9, 1]
    assert made.yaml["val"] == "images/test"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2002/08/11/big/img_591\n2\n" + ELLIPSE, "line 2: 2 faces, but 1 lines follow"),
        ("2002/08/11/big/img_591\n1\n30.5 18.25\n", "line 3: 2 values; an ellipse has 5"),
        ("2002/08/11/big/img_591\n", "line 1: the file ends where the number of faces"),
        ("2002/08/11/big/img_591\nimg\n", 'line 2: number of faces "img" is not a number'),
    ],
)
def test_fddb_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    images = tmp_path / "fddb/originalPics"
    told = refused("fddb", tmp_path, capsys, source=fddb(tmp_path, text), images=images, split="train")
    assert says in told


def test_kittis_lines_with_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = kitti(tmp_path, CAR.replace("Car", "forklift") + CARELESS.lower())
    write(source / "label_2/000002.txt", CAR.replace("Car", "box"))
    made = convert("kitti", tmp_path, source=source, split="train")
    assert made.names == ["box", "forklift"]
    assert made.boxes("train/000000.png") == [("forklift", 10.5, 20, 60.25, 80)]
    assert made.regions("train/000000.png") == [("unknown", "*", 100, 10, 180, 50)]
    assert "no class is one of KITTI's" in capsys.readouterr().err
