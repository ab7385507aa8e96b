"""`rebalance check`: what is known about the labels, counted by hand, and what contradicts itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rebalance.cli.main import main
from rebalance.data import check
from rebalance.errors import ConfigError, DataError
from rebalance.settings import CheckFlags

WHOLE = ".5 .5 1 1"
# image -> label file, region file
TRAIN: dict[str, tuple[str | None, str | None]] = {
    "reef/a": ("0 .5 .5 .1 .1\n0 .2 .2 .1 .1\n1 .9 .9 .1 .1\n", None),  # a crab where only fish were labelled
    "reef/b": ("", f"background 1 {WHOLE}\n"),
    "reef/c": ("0 .5 .5 .1 .1\n", "unknown 0 .1 .1 .2 .2\nbackground 2 .9 .9 .1 .1\n"),
    "sand/d": ("2 .5 .5 .1 .1\n2 .8 .5 .1 .1\n", "background * .25 .5 .5 1\nunknown 2 .8 .8 .1 .1\n"),  # 55 % of a star
    "sand/e": (None, None),
    "sand/f": (None, "unknown * .5 .5 1 1\nbackground 0 .5 .5 .5 .5"),
}
VAL: dict[str, tuple[str | None, str | None]] = {"g": ("1 .5 .5 .1 .1\n", None), "h": (None, None)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for split, images in (("train", TRAIN), ("val", VAL)):
        for name, texts in images.items():
            put(tmp_path / f"set/images/{split}/{name}.jpg")
            for kind, text in zip(("labels", "regions"), texts, strict=True):
                if text is not None:
                    put(tmp_path / f"set/{kind}/{split}/{name}.txt", text)
    text = "train: images/train\nval: images/val\nnames: [fish, crab, star]\nannotated: {images/train/reef: [fish]}\n"
    return put(tmp_path / "set/data.yaml", text)


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def run(file: Path) -> check.Found:
    return check.check(CheckFlags(data=str(file)))


def column(counts: dict[str, Any], *keys: str) -> list[int]:
    found = []
    for row in counts["classes"]:
        for key in keys:
            row = row[key]
        found.append(row)
    return found


def test_counts_by_hand(file: Path) -> None:
    found = run(file)
    train, val = found["splits"]["train"], found["splits"]["val"]
    keys = ("images", "boxes", "empty", "no_file", "unreadable", "skipped", "region_files")
    assert [train[key] for key in keys] == [6, 3, 1, 2, 0, 0, 4]
    assert [val[key] for key in keys] == [2, 1, 0, 1, 0, 0, 0]
    assert train["regions"] == {"unknown": 3, "background": 4}
    assert column(train, "boxes") == [3, 1, 2]
    assert column(train, "images") == [2, 1, 1]
    assert column(train, "regions", "unknown") == [2, 1, 2]
    assert column(train, "regions", "background") == [2, 2, 2]
    # fish: not in a part of c, in a part of f. crab, star: unknown in the reef, but for b's crab and a part of c's star
    assert column(train, "background", "everywhere") == [4, 3, 1]
    assert column(train, "background", "in_part") == [2, 0, 2]
    assert column(train, "background", "nowhere") == [0, 3, 3]
    assert column(val, "background", "everywhere") == [2, 2, 2]
    assert found["annotated"] == [{"images": "images/train/reef", "classes": ["fish"], "count": 3}]
    assert (found["unlabelled"], found["unknown_below"], found["unreadable"]) == ("background", 0, [])


@pytest.mark.parametrize(
    ("key", "skipped", "everywhere", "nowhere"),
    [("unlabelled: unknown", 0, [3, 2, 0], [1, 4, 4]), ("unlabelled: skip", 2, [3, 2, 0], [0, 2, 2])],
)
def test_images_without_a_label_file(
    file: Path, key: str, skipped: int, everywhere: list[int], nowhere: list[int]
) -> None:
    file.write_text(f"{file.read_text()}{key}\nunknown_below: 9\n")
    found = run(file)
    train = found["splits"]["train"]
    assert (train["skipped"], train["no_file"], found["unknown_below"]) == (skipped, 2, 9)
    assert column(train, "background", "everywhere") == everywhere
    assert column(train, "background", "nowhere") == nowhere
    assert found["warnings"].get("skipped", []) == ([str(file.parent / "regions/train/sand/f.txt")] if skipped else [])


def test_contradictions(file: Path) -> None:
    root = file.parent
    put(root / "regions/train/reef/typo.txt", f"unknown * {WHOLE}")
    put(root / "regions/trian/reef/a.txt", f"unknown * {WHOLE}")
    put(root / "images/extra/x.PNG")
    put(root / "regions/extra/x.txt")  # its image is there, in no split
    put(root / "regions/train/reef/a.TXT", f"unknown * {WHOLE}")
    put(root / "regions/train/reef/.hidden")
    put(root / "lists/val.txt", "./../images/val/g.jpg\n./../images/val/lost.jpg\n")
    text = file.read_text().replace("val: images/val", "val: lists/val.txt\ntest: images/test")
    file.write_text(text.replace("reef: [fish]", "reef: [fish], images/test: [fish]"))
    found = run(file)
    assert {kind: len(lines) for kind, lines in found["warnings"].items()} == {
        "denied": 1, "not_annotated": 1, "no_image": 3, "gone": 1, "no_split": 1, "no_match": 1,
    }  # fmt: skip
    said = found["warnings"]
    assert said["denied"] == [f"{root}/images/train/sand/d.jpg: star at 0.5 0.5 0.1 0.1"]
    assert said["not_annotated"] == [f"{root}/images/train/reef/a.jpg: crab at 0.9 0.9 0.1 0.1"]
    assert said["no_image"] == [
        f"{root}/regions/train/reef/a.TXT (region files end in .txt)", f"{root}/regions/train/reef/typo.txt",
        f"{root}/regions/trian/reef/a.txt",
    ]  # fmt: skip
    assert said["gone"] == [f"{root}/lists/../images/val/lost.jpg"]
    assert said["no_match"] == ["images/test"]


def test_what_is_not_labelled_is_trained_as_told(file: Path) -> None:
    """The counts of images against what every image says of itself."""
    from rebalance.data import dataset

    source = dataset.load(file)
    whole = sum(
        bool(regions.unknown[0] and regions.classes[0, 1] and (regions.boxes_xywh_norm[0] == [0.5, 0.5, 1, 1]).all())
        for image in source.images("train")
        if len(regions := source.knowledge.of(image))
    )
    assert whole == 1 + column(run(file)["splits"]["train"], "background", "nowhere")[1]  # b is verified after that


def test_every_file_that_cannot_be_read_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = file.parent
    put(root / "labels/train/reef/a.txt", "7 .5 .5 .1 .1\n")
    put(root / "labels/val/g.txt", "0 .5 .5\n")
    put(root / "regions/train/reef/a.txt", "ignore * .5 .5 1 1\n")
    put(root / "regions/train/sand/d.txt", "unknown x .5 .5 1 1\n")
    out = root.parent / "check.json"
    assert main(["check", f"data={file}", f"out={out}"]) == 2
    told = capsys.readouterr()
    below = told.out.partition("cannot be read:\n")[2].splitlines()
    assert [re.sub(r"^.*/set/", "", line).split(":")[0] for line in below] == [
        "regions/train/reef/a.txt (a.jpg), line 1", "labels/train/reef/a.txt, line 1",
        "regions/train/sand/d.txt (d.jpg), line 1", "labels/val/g.txt, line 1",
    ]  # fmt: skip
    assert told.err == f"rebalance: error: {file}: 4 label or region files cannot be read; all are named above\n"
    found = json.loads(out.read_text("utf-8"))
    assert len(found["unreadable"]) == 4
    assert (found["splits"]["train"]["unreadable"], found["splits"]["val"]["unreadable"]) == (1, 1)
    assert "6 images: 2 with boxes, 1 with an empty label file, 2 without a label file, 1 with one that" in told.out


def test_on_the_terminal(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(file.parent / "labels/train/reef/b.txt", "1 .5 .5 .1 .1\n2 .5 .5 .1 .1\n" * 4 + "1 .5 .5 .2 .1\n" * 9)
    put(file.parent / "labels/train/reef/c.txt", "".join(f"1 .5 .5 .1 .{i}\n" for i in range(1, 9)))
    assert main(["check", f"data={file}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        str(file), "unlabelled: background", "annotated: images/train/reef: fish (3 images)",
    ]  # fmt: skip
    train = lines.index("train: 6 images: 4 with boxes, 0 with an empty label file, 2 without a label file")
    assert lines[train + 1].startswith("  those without a label file count as looked at, and as background of every")
    assert lines[train + 2] == "  region files: 4, with 3 unknown, 4 background"
    assert [" ".join(line.split()) for line in lines[train + 4 : train + 8]] == [
        "class boxes images unknown regions background regions everywhere in part nowhere",
        "fish 2 1 2 2 4 2 0", "crab 11 3 1 2 3 0 3", "star 3 2 2 2 1 2 3",
    ]  # fmt: skip
    shown = lines.index("warning: 12 labels are of a class that `annotated` says was not labelled in their image; "
                        "they stay labels")  # fmt: skip
    assert [line.startswith("  ") for line in lines[shown + 1 : shown + 7]] == [True] * 6
    assert lines[shown + 6] == "  and 7 more; out=check.json writes all"
    val = lines.index("val: 2 images: 1 with boxes, 0 with an empty label file, 1 without a label file")
    assert " ".join(lines[val + 3].split()) == "class boxes images everywhere in part nowhere"  # no regions there


def test_what_is_wrong_with_the_data_set_is_an_error(file: Path) -> None:
    with pytest.raises(ConfigError, match="data= is missing"):
        check.check(CheckFlags())
    file.write_text(file.read_text().replace("reef: [fish]", "reef: [fihs]"))
    with pytest.raises(DataError, match="did you mean fish"):
        run(file)
    file.write_text(file.read_text().replace("reef: [fihs]", "reeef: [fish]"))
    with pytest.raises(DataError, match=r"'images/train/reeef' means no image"):
        run(file)
