"""TUT Indoor: dlib's XML, frames of six walks."""

from __future__ import annotations

from pathlib import Path

import pytest
from converting import convert, picture, refused, write

BOX = "<box top='10' left='20' width='30' height='40'>\n<label>{1}</label></box>"
FRAME = f"<image file='frame{{0:04d}}.jpg'>\n{BOX}</image>\n"


def make(tmp_path: Path, *, frames: int = 120, body: str = "") -> Path:
    folder = tmp_path / "Indoor Object Detection Dataset"
    for walk in (1, 2):
        images = "".join(FRAME.format(n, "chair" if walk == 1 else "exit") for n in range(frames))
        head = "<?xml version='1.0'?>\n<?xml-stylesheet type='text/xsl' href='x.xsl'?>\n"
        text = f"{head}<dataset>\n<images>\n{images}{body}</images>\n</dataset>"
        write(folder / f"annotation/annotation_s{walk}.xml", text)
        for n in range(frames):
            picture(folder / f"sequence_{walk}/frame{n:04d}.jpg", 20, 10)
    return folder


def test_frames_that_look_alike_stay_in_one_split(tmp_path: Path) -> None:
    source = make(tmp_path, body="<image file='frame0000.png'></image>")
    for walk in (1, 2):
        picture(source / f"sequence_{walk}/frame0000.png", 200, 100)
    made = convert("indoor", tmp_path, source=source, val=0.2)
    assert made.names == ["chair", "clock", "exit", "fireextinguisher", "printer", "screen", "trashbin"]
    where = {}
    for name in made.images():
        split, walk, frame = name.split("/")
        if frame.endswith(".jpg"):
            where.setdefault((walk, int(frame[5:9]) // 50), set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert {split for splits in where.values() for split in splits} == {"train", "val"}
    assert made.boxes(next(n for n in made.images() if n.endswith("frame0000.png"))) == []


def test_boxes_and_ignored_ones(tmp_path: Path) -> None:
    more = "<image file='x.png'><box top='10' left='20' width='30' height='40'><label>clock</label></box>"
    more += "<box top='0' left='0' width='10' height='10' ignore='1'><label>clock</label></box></image>"
    source = make(tmp_path, frames=1, body=more)
    for walk in (1, 2):
        picture(source / f"sequence_{walk}/x.png")
    made = convert("indoor", tmp_path, source=source, split="train")
    assert made.boxes("train/sequence_1/x.png") == [("clock", 20, 10, 50, 50)]
    assert made.regions("train/sequence_2/x.png") == [("unknown", "clock", 0, 0, 10, 10)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("<image file='x.png'><box top='1' left='2' width='3'/></image>", "line 8: <box> has no height="),
        ("<image file='x.png'><box top='1' left='2' width='3' height='4'/></image>", "line 8: a box without <label>"),
        ("<image><box/></image>", "line 8: <image> has no file="),
    ],
)
def test_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, says: str) -> None:
    source = make(tmp_path, frames=1, body=body)
    assert says in refused("indoor", tmp_path, capsys, source=source, split="train")


def test_xml_of_dlib_without_labels_has_one_class_and_its_own_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "faces/a.jpg", 100, 50)  # half as large as when it was labelled
    picture(tmp_path / "faces/b.jpg")
    picture(tmp_path / "faces/c.jpg")
    body = (
        "<image file='{}.jpg' width='200' height='100'><box top='10' left='20' width='30' height='40'>"
        "<part name='00' x='1' y='2'/></box></image>"
    )
    text = f"<dataset><images>{''.join(map(body.format, 'abc'))}</images></dataset>"
    made = convert("indoor", tmp_path, source=write(tmp_path / "faces/training.xml", text))
    assert made.names == ["object"]
    # one walk: none is drawn away from it
    assert made.images() == [f"train/training/{name}.jpg" for name in "abc"]
    assert made.boxes("train/training/a.jpg", 100, 50) == [("object", 10, 5, 25, 25)]
    told = capsys.readouterr().err
    assert "no box has a <label>: the one class is called object" in told
    assert "no image is of val" in told
