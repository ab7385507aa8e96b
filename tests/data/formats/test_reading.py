"""How large an image is as it is decoded, and which file a name means."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from converting import picture, write
from PIL import Image

from rebalance.data.formats.reading import Images, image_size
from rebalance.errors import DataError


@pytest.mark.parametrize(("orientation", "size"), [(1, (200, 100)), (3, (200, 100)), (6, (100, 200)), (8, (100, 200))])
def test_an_image_that_its_camera_turned_has_the_size_that_opencv_decodes(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg", "here") == size
    assert cv2.imread(str(tmp_path / "a.jpg")).shape[1::-1] == size


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list, line 3: .*a\.jpg cannot be read as an image"):
        image_size(write(tmp_path / "a.jpg", "text"), "list, line 3")


def test_a_name_means_the_file_with_most_of_its_folders(tmp_path: Path) -> None:
    for folder in ("day/left", "day/right"):
        picture(tmp_path / folder / "x.jpg")
    images = Images(tmp_path)
    assert images.find("x" * 5000, "here") is None
    assert images.find("a\0b.jpg", "here") is None
    assert images.find("C:\\data\\day\\right\\x.jpg", "here") == tmp_path / "day/right/x.jpg"
    assert images.find("/home/a/left/x.jpg", "here") == tmp_path / "day/left/x.jpg"
    assert images.find("y.jpg", "here") is None
    assert images.find("../../x.png", "here") is None
    with pytest.raises(DataError, match=r"here: image x\.jpg is .*left.* or .*right"):
        images.find("x.jpg", "here")
