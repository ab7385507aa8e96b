"""What a suggestion is shown in."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from rebalance.audit import crops
from rebalance.audit.table import Near, Suggestion


def row(box: tuple[float, ...], kind: str = "missing", label: Near | None = None) -> Suggestion:
    x1, y1, x2, y2 = box
    return Suggestion("a.jpg", kind, 0, "fish", (x1, y1, x2, y2), 0.5, None, label)


def test_the_window_is_a_square_around_the_box_with_context() -> None:
    assert crops.window(row((500, 400, 600, 440)), 2000, 1000) == (425, 295, 675, 545)  # 2.5 · 100 pixels
    assert crops.window(row((500, 400, 510, 410)), 2000, 1000) == (441, 341, 569, 469)  # no less than 128


def test_the_window_stays_in_the_image() -> None:
    assert crops.window(row((0, 0, 100, 100)), 2000, 1000) == (0, 0, 250, 250)
    assert crops.window(row((1950, 960, 2000, 1000)), 2000, 1000) == (1872, 872, 2000, 1000)
    assert crops.window(row((0, 0, 100, 100)), 200, 100) == (0, 0, 200, 100)
    assert crops.window(row((-5, 10, 60, 70)), 64, 64) == (0, 0, 64, 64)


def test_the_label_that_is_spoken_of_is_in_the_window_and_another_need_not_be() -> None:
    label = Near(0, 0, (700.0, 400.0, 800.0, 440.0), 0.4)
    assert crops.window(row((500, 400, 600, 440), "badly_placed", label), 4000, 3000) == (275, 45, 1025, 795)
    assert crops.window(row((500, 400, 600, 440), "missing", label), 2000, 1000) == (425, 295, 675, 545)


def test_a_crop_is_what_training_sees_of_a_turned_photograph(tmp_path: Path) -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:150, :150, 0] = 255  # red, in the upper left corner as stored
    exif = Image.Exif()
    exif[274] = 6  # shown turned to the right: the corner is the upper right one
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    corner, plain = row((250, 50, 290, 90)), row((100, 500, 140, 540))
    assert crops.make([corner, plain], {"a.jpg": str(tmp_path / "a.jpg")}, {"a.jpg": [300, 600]}, tmp_path) == {}
    blue, green, red = cv2.imread(str(tmp_path / f"{corner.id}.jpg")).reshape(-1, 3).mean(0)
    assert red > 200 > 20 > max(blue, green)
    assert cv2.imread(str(tmp_path / f"{plain.id}.jpg")).max() < 20


def test_a_large_window_is_shrunk_and_a_small_one_is_not_blown_up(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((900, 1600, 3), np.uint8))
    large, small = row((100, 100, 700, 300)), row((100, 100, 110, 110))
    crops.make([large, small], {"a.jpg": str(tmp_path / "a.png")}, {"a.jpg": [1600, 900]}, tmp_path)
    assert cv2.imread(str(tmp_path / f"{large.id}.jpg")).shape == (192, 320, 3)  # of a window of 1500 × 900
    assert cv2.imread(str(tmp_path / f"{small.id}.jpg")).shape == (128, 128, 3)


def test_an_image_that_is_gone_or_changed_has_no_crops_and_the_others_have(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "c.png").write_bytes(b"no image")
    rows = [Suggestion(name, "missing", 0, "fish", (1, 1, 9, 9), 0.5) for name in "abcd"]
    files = {name: str(tmp_path / f"{name}.png") for name in "abc"} | {"d": str(tmp_path / "b.png")}
    told = crops.make(rows, files, {name: [64, 64] for name in "abc"} | {"d": [64, 32]}, tmp_path)
    assert told == {
        "a": "cannot be read",
        "c": "cannot be read",
        "d": "has 64×64 pixels, and had 64×32 when it was audited",
    }
    assert [path.name for path in tmp_path.glob("*.jpg")] == [f"{rows[1].id}.jpg"]
