"""CVAT: tasks of images and of videos, shapes that are no boxes, several tasks with different labels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from converting import convert, picture, refused, write

META = (
    "<version>1.1</version><meta><task><name>{name}</name>{more}<labels>{labels}</labels></task>"
    "<dumped>2024-01-01</dumped>{end}</meta>"
)


def xml(body: str, *labels: str, name: str = "trip", more: str = "", end: str = "") -> str:
    told = "".join(f"<label><name>{label}</name><attributes></attributes></label>" for label in labels)
    meta = META.format(name=name, more=more, labels=told, end=end)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{meta}\n{body}\n</annotations>'


IMAGES = """<image id="0" name="a/x.jpg" subset="Train" width="200" height="100">
  <box label="car" occluded="0" xtl="10.00" ytl="20.00" xbr="30.50" ybr="40.00" z_order="0">
    <attribute name="a">1</attribute></box>
  <box label="car" xtl="100" ytl="40" xbr="140" ybr="60" rotation="90.0"></box>
  <polygon label="bus" points="50.0,10.0;70.0,30.0;60.0,50.0" z_order="0"></polygon>
  <points label="bus" points="1,2"></points>
  <ellipse label="bus" cx="20" cy="80" rx="10" ry="5"></ellipse>
  <mask label="bus" rle="1, 2" left="150" top="60" width="20" height="10"></mask>
</image>
<image id="1" name="y.jpg" subset="Validation" width="200" height="100">
</image>"""


def test_images_with_shapes_and_one_without(tmp_path: Path) -> None:
    picture(tmp_path / "s/images/a/x.jpg")
    picture(tmp_path / "s/images/y.jpg")
    file = write(tmp_path / "s/annotations.xml", xml(IMAGES, "bus", "car"))
    made = convert("cvat", tmp_path, source=file)
    assert made.names == ["bus", "car"]  # in the task's order
    assert made.boxes("train/a/x.jpg") == [
        ("car", 10, 20, 30.5, 40), ("car", 110, 30, 130, 70), ("bus", 50, 10, 70, 50),
        ("bus", 10, 75, 30, 85), ("bus", 150, 60, 170, 70),
    ]  # fmt: skip
    assert made.boxes("val/y.jpg") == []
    assert made.manifest["left_out"] == {"annotations without a box (<points>)": 1}


TRACKS = """<track id="0" label="car">
  <box frame="2" outside="0" occluded="0" keyframe="1" xtl="1" ytl="2" xbr="11" ybr="12"></box>
  <box frame="3" outside="0" occluded="0" keyframe="0" xtl="2" ytl="2" xbr="12" ybr="12"></box>
  <box frame="4" outside="1" occluded="0" keyframe="1" xtl="2" ytl="2" xbr="12" ybr="12"></box>
</track>"""
SPAN = "<start_frame>1</start_frame><stop_frame>6</stop_frame><frame_filter></frame_filter>"
SIZE = "<original_size><width>64</width><height>48</height></original_size>"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "films/trip.avi"
    path.parent.mkdir()
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(8):
        video.write(np.full((48, 64, 3), 30 * number, np.uint8))
    video.release()
    return path


def test_all_frames_of_a_video_are_cut_and_outside_is_not_there(film: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "s/job.xml", xml(TRACKS, "car", more=SPAN + SIZE, end="<source>trip.avi</source>"))
    made = convert("cvat", tmp_path, source=file, images=film, split="train")
    assert made.images() == [f"train/trip/frame_{n:06d}.jpg" for n in range(1, 7)]
    assert made.boxes("train/trip/frame_000003.jpg", 64, 48) == [("car", 2, 2, 12, 12)]
    assert made.boxes("train/trip/frame_000004.jpg", 64, 48) == []
    assert abs(float(cv2.imread(str(made.folder / "images/train/trip/frame_000005.jpg")).mean()) - 150) < 3
    third = convert("cvat", tmp_path, out="third", source=file, images=film.parent, split="train", every=2)
    assert third.images() == [f"train/trip/frame_{n:06d}.jpg" for n in (1, 3, 5)]


def test_frames_that_were_exported_beside_the_file(tmp_path: Path) -> None:
    for number in range(1, 7):
        picture(tmp_path / f"s/images/frame_{number:06d}.PNG", 64, 48)
    write(tmp_path / "s/annotations.xml", xml(TRACKS, "car", more=SPAN + SIZE))
    made = convert("cvat", tmp_path, source=tmp_path / "s/annotations.xml", split="train")
    assert made.boxes("train/trip/frame_000002.PNG", 64, 48) == [("car", 1, 2, 11, 12)]


def test_tasks_with_different_labels_were_each_labelled_for_their_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture(tmp_path / f"s/{name}/x.jpg")
        body = f'<image id="0" name="{name}/x.jpg" width="200" height="100"></image>'
        write(tmp_path / f"s/{name}.xml", xml(body, name, "car"))
    made = convert("cvat", tmp_path, source=tmp_path / "s", images=tmp_path / "s", split="train")
    assert made.yaml["annotated"] == {"images/train/one": ["one", "car"], "images/train/two": ["two", "car"]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (IMAGES.replace('xtl="10.00"', ""), "line 5: <box> has no xtl="),
        (IMAGES.replace("70.0,30.0", "70.0"), "line 8: points='50.0,10.0;70.0;60.0,50.0' are not x,y;x,y;"),
        (IMAGES.replace('height="100"', 'height="x"'), 'line 4: height "x" is not a number'),
        (IMAGES.replace('width="200"', 'width="-200"'), "a/x.jpg is said to be -200×100 pixels"),
        (IMAGES.replace('height="100"', 'height="0"'), "a/x.jpg is said to be 200×0 pixels"),
        (TRACKS, "neither <image> nor <start_frame>"),
        ("<image>", "not well-formed XML"),
    ],
)
def test_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, says: str) -> None:
    picture(tmp_path / "s/images/a/x.jpg")
    file = write(tmp_path / "s/annotations.xml", xml(body, "bus", "car"))
    assert says in refused("cvat", tmp_path, capsys, source=file, split="train")


def test_a_frame_outside_of_the_task_or_a_film_that_is_not_there(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "s/job.xml", xml(TRACKS.replace('frame="3"', 'frame="9"'), "car", more=SPAN + SIZE))
    assert "line 6: frame 9 is not one of 1 to 6" in refused("cvat", tmp_path, capsys, source=file, images=film)
    near = film.with_name("tripp.avi")
    told = refused("cvat", tmp_path, capsys, source=file, images=near)
    assert told == f"images={near} does not exist (did you mean trip.avi?)"


def test_cuboids_and_skeletons_have_a_box_and_points_leave_their_class_unknown(tmp_path: Path) -> None:
    corners = {"tl1": (20, 30), "bl1": (20, 50), "tr1": (40, 30), "br1": (40, 52)}
    corners |= {"tl2": (30, 25), "bl2": (30, 45), "tr2": (60, 25), "br2": (60, 45)}
    cuboid = " ".join(f'x{corner}="{x}" y{corner}="{y}"' for corner, (x, y) in corners.items())
    limb = '<points label="{}" outside="{}" points="{}"></points>'
    body = (
        '<image id="0" name="x.jpg" width="200" height="100">'
        f'<cuboid label="car" {cuboid}></cuboid>'
        f'<skeleton label="man">{limb.format("1", 0, "100,10")}{limb.format("2", 0, "120,60")}'
        f"{limb.format('3', 1, '190,90')}</skeleton>"
        '<points label="bird" points="5,5"></points><points label="bird" points="9,9"></points>'
        '<tag label="rain"></tag><box label="" xtl="1" ytl="1" xbr="5" ybr="5"></box></image>'
    )
    text = xml(body, "car", "man", "bird", "rain", "1").replace(
        "<name>rain</name>", "<name>rain</name><type>tag</type>"
    )
    text = text.replace("<name>1</name>", "<name>1</name><type>points</type><parent>man</parent>")
    picture(tmp_path / "s/x.jpg")
    made = convert("cvat", tmp_path, source=write(tmp_path / "s/a.xml", text), split="train")
    assert made.names == ["car", "man", "bird"]
    assert made.boxes("train/x.jpg") == [("car", 20, 25, 60, 52), ("man", 100, 10, 120, 60)]
    assert made.regions("train/x.jpg") == [("unknown", "bird", 0, 0, 200, 100)]
    assert made.manifest["left_out"] == {
        "annotations without a box (<points>)": 2,
        "annotations without a box (<tag>)": 1,
        "boxes without a class": 1,
    }


def test_a_task_of_tags_says_why_there_is_nothing_to_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "s/x.jpg")
    body = '<image id="0" name="x.jpg" width="200" height="100"><tag label="rain"></tag></image>'
    text = xml(body, "rain").replace("</name><attributes>", "</name><type>tag</type><attributes>")
    told = refused("cvat", tmp_path, capsys, source=write(tmp_path / "s/a.xml", text), split="train")
    assert told == "the source names no class; it has 1 annotations without a box (<tag>)"


def test_points_that_are_outside_say_nothing(film: Path, tmp_path: Path) -> None:
    points = (
        '<track id="1" label="bus"><points frame="2" outside="0" points="1,1"></points>'
        '<points frame="3" outside="1" points="1,1"></points></track>'
    )
    file = write(tmp_path / "a.xml", xml(TRACKS + points, "car", "bus", more=SPAN + SIZE))
    made = convert("cvat", tmp_path, source=file, images=film, split="train")
    assert made.regions("train/trip/frame_000002.jpg", 64, 48) == [("unknown", "bus", 0, 0, 64, 48)]
    assert made.regions("train/trip/frame_000003.jpg", 64, 48) == []
    assert made.manifest["left_out"] == {"annotations without a box (<points>)": 1}
