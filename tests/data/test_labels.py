"""YOLO label files: what counts as a box, what is refused, and that lines keep their bytes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rebalance.data import labels
from rebalance.errors import DataError

BOXES = b"0 0.5 0.5 0.2 0.1\n1 0.25 0.75 0.1 0.1\n"


def test_boxes_by_hand() -> None:
    parsed = labels.parse(BOXES, classes=2)
    assert parsed.classes.tolist() == [0, 1]
    assert parsed.classes.dtype == np.int64
    np.testing.assert_array_equal(
        parsed.boxes_xywh_norm, np.array([[0.5, 0.5, 0.2, 0.1], [0.25, 0.75, 0.1, 0.1]], np.float32)
    )
    np.testing.assert_allclose(
        parsed.boxes_xyxy(200, 100), [[80, 45, 120, 55], [40, 70, 60, 80]], atol=1e-5
    )  # pixels: 0.5 * 200 - 0.2 * 200 / 2 = 80 ...
    assert len(parsed) == 2


def test_polygon_is_the_box_around_it() -> None:
    parsed = labels.parse(b"1 0.1 0.2 0.5 0.4 0.3 0.8\n0 .1 .1 .2 .1 .2 .2 .1 .2\n", classes=2)
    assert parsed.classes.tolist() == [1, 0]
    np.testing.assert_allclose(
        parsed.boxes_xywh_norm, [[0.3, 0.5, 0.4, 0.6], [0.15, 0.15, 0.1, 0.1]], atol=1e-6
    )  # x 0.1 to 0.5, y 0.2 to 0.8


@pytest.mark.parametrize("data", [b"", b"\n", b"  \r\n\t\n", b"\xef\xbb\xbf"])
def test_no_boxes(data: bytes) -> None:
    parsed = labels.parse(data, classes=1)
    assert len(parsed) == 0
    assert parsed.boxes_xyxy(10, 10).shape == (0, 4)
    assert parsed.pick(np.zeros(0, dtype=bool)).data == b""


def test_a_missing_file_has_no_bytes(tmp_path: Path) -> None:
    assert labels.read_bytes(tmp_path / "no.txt") is None
    (tmp_path / "empty.txt").touch()
    assert labels.read_bytes(tmp_path / "empty.txt") == b""


def test_lines_keep_their_bytes() -> None:
    lines = [b"\t 0  0.50 .5 2e-1 0.1  \r\n", b"1 +0.25 0.750000000000 0.1 0.1\n", b"0 0.5 0.5 0.3 0.3"]
    parsed = labels.parse(b"\xef\xbb\xbf" + lines[0] + b"\n  \n" + lines[1] + lines[2], classes=2)
    assert list(parsed.lines) == lines
    assert parsed.pick(np.ones(3, dtype=bool)) is parsed
    assert parsed.data == b"".join(lines)
    assert parsed.pick(np.array([True, False, True])).data == lines[0] + lines[2]


def test_equal_rows_are_one_box_and_stay_together() -> None:
    data = b"0 0.5 0.5 0.2 0.1\n1 0.5 0.5 0.2 0.1\n0 0.50 0.5 0.20 0.1\n0 -0 0.5 0.2 0.1\n0 0 0.5 0.2 0.1\n"
    parsed = labels.parse(data, classes=2)
    assert parsed.classes.tolist() == [0, 1, 0]
    assert parsed.box_of.tolist() == [0, 1, 0, 2, 2]
    first = parsed.pick(np.array([True, False, False]))
    assert first.data == b"0 0.5 0.5 0.2 0.1\n0 0.50 0.5 0.20 0.1\n"
    assert len(first) == 1
    last = parsed.pick(np.array([False, True, True]))
    again = labels.parse(last.data, classes=2)  # what is picked is what its lines say
    for name in ("classes", "boxes_xywh_norm", "box_of", "lines"):
        np.testing.assert_array_equal(getattr(last, name), getattr(again, name))


def test_polygons_with_the_same_extent_are_two_boxes() -> None:
    same = b"0 0.1 0.1 0.2 0.1 0.2 0.2\n"
    parsed = labels.parse(same + b"0 0.1 0.1 0.2 0.1 0.1 0.2\n" + same, classes=1)
    assert parsed.box_of.tolist() == [0, 1, 0]


def test_pose_lines_count_as_their_box() -> None:
    line = b"0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 1\n"
    parsed = labels.parse(line, classes=1, keypoints=(2, 3))
    np.testing.assert_allclose(parsed.boxes_xywh_norm, [[0.5, 0.5, 0.2, 0.2]], atol=1e-6)
    assert parsed.lines == (line,)


BAD = [
    (b"0 0.5 0.5 0.2\n", "line 1: 4 columns"),
    (b"0 0.5 0.5 0.2 0.1 0.9\n", "line 1: 6 columns"),
    (b"\n0 0.5 0.5 0.2 0.1\n0 0.5 x 0.2 0.1\n", "line 3: not a number"),
    (b"0 0.5 0.5 0.2 0.1\n0 0.5 nan 0.2 0.1\n", "line 2: a value is not finite"),
    (b"0 1e400 0.5 0.2 0.1\n", "line 1: a value is not finite"),
    (b"0 320 240 20 10\n", "line 1: a value of box 320 240 20 10 is above 1"),
    (b"0 0.5 0.5 0.2 1.02\n", "above 1"),
    (b"0 -0.02 0.5 0.2 0.1\n", "below 0"),
    (b"0 0.5 0.5 -0.005 0.1\n", "below 0"),
    (b"0.5 0.5 0.5 0.2 0.1\n", "class 0.5 is not a whole number"),
    (b"2 0.5 0.5 0.2 0.1\n", "class 2 is not one of 0 to 1"),
    (b"-1 0.5 0.5 0.2 0.1\n", "class -1 is not one of 0 to 1"),
    (b"0 0.1 0.1 0.2 0.1 0.2 0.2\n0 0.5 0.5 0.2 0.1\n", "line 2: 5 columns among polygons"),
    (b"0 0.1 0.1 0.2 0.1 0.2 0.2\n0 0.5 0.5\n", "line 2: 3 columns among polygons"),
    (b"0 0.1 0.1 0.2 0.1 0.2 0.2 0.4\n", "line 1: 8 columns"),
    (b"0 0.5 0.5 0.2 0.1\n\xff\xfe", "not UTF-8"),
]


@pytest.mark.parametrize(("data", "reason"), BAD)
def test_a_bad_file_names_file_line_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        labels.parse(data, classes=2, name="a/b.txt")
    assert str(caught.value).startswith("a/b.txt")
    assert reason in str(caught.value)


def test_the_tolerance_of_one_percent() -> None:
    parsed = labels.parse(b"0 1.01 -0.01 1.005 0\n", classes=1)
    np.testing.assert_allclose(parsed.boxes_xywh_norm, [[1.01, -0.01, 1.005, 0]], atol=1e-6)


def _random_file(rng: np.random.Generator) -> bytes:
    """A label file that is good about half of the time, with the oddities that turn up in real ones."""
    polygons = rng.random() < 0.4
    lines: list[str] = []
    for _ in range(rng.integers(0, 5)):
        count = 2 * int(rng.integers(3, 6)) if polygons else 4
        row = [str(rng.integers(0, 3)), *(f"{v:.{rng.integers(1, 8)}f}" for v in rng.random(count))]
        lines.append(" ".join(row))
    if lines and rng.random() < 0.4:
        lines.append(lines[rng.integers(len(lines))])
    if lines and rng.random() < 0.4:
        row = lines[at := int(rng.integers(len(lines)))].split()
        spoilt = rng.choice(["1.005", "1.02", "-0.005", "-0.02", "nan", "x", "7", "0.5", "-0", "1e-3", "1e39"])
        row[rng.integers(len(row))] = str(spoilt)
        lines[at] = " ".join(row[: rng.integers(len(row) - 1, len(row) + 1)])
    ending = str(rng.choice(["\n", "\r\n", "\n\n", " \n"]))
    text = ending.join(lines) + ending * int(rng.integers(0, 2))
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.encode()


def test_same_boxes_as_ultralytics(tmp_path: Path) -> None:
    utils = pytest.importorskip("ultralytics.data.utils")
    image, label = tmp_path / "a.png", tmp_path / "a.txt"
    cv2.imwrite(str(image), np.zeros((16, 16, 3), np.uint8))
    rng = np.random.default_rng(0)
    good = 0
    for trial in range(600):
        data = _random_file(rng)
        label.write_bytes(data)
        with np.errstate(all="ignore"):
            theirs = utils.verify_image_label((str(image), str(label), "", False, 3, 0, 0, False))
        try:
            ours = labels.parse(data, classes=3)
        except DataError:
            assert theirs[0] is None, (trial, data)
            continue
        assert theirs[0] is not None, (trial, data, theirs[-1])
        rows = np.concatenate((ours.classes[:, None].astype(np.float32), ours.boxes_xywh_norm), axis=1)
        assert sorted(rows.tolist()) == sorted(theirs[1].tolist()), (trial, data)
        good += 1
    assert 200 < good < 550  # both kinds were met
