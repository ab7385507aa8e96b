"""An image is read for a picture as the host reads it for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from ultralytics.utils.patches import imread

from rebalance.data.pixels import read

RAMP = np.arange(24 * 16 * 3, dtype=np.uint16).reshape(24, 16, 3)
SMALL = (RAMP % 251).astype(np.uint8)


def turned(file: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    Image.fromarray(SMALL).save(file, exif=exif)


def pages(file: Path) -> None:
    first, second = Image.fromarray(SMALL[..., 0]), Image.fromarray(SMALL[..., 1])
    first.save(file, save_all=True, append_images=[second])


def written(pixels: Any) -> Any:
    return lambda file: cv2.imwrite(str(file), pixels)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("turned.jpg", turned), ("turned.png", turned), ("grey.png", written(SMALL[..., 0])),
        ("alpha.png", written(np.dstack((SMALL, SMALL[..., 0])))), ("sixteen.png", written(RAMP * 50)),
        ("grey16.png", written(RAMP[..., 0] * 50)), ("colour.tif", written(SMALL)), ("sixteen.tif", written(RAMP * 50)),
        ("grey16.tiff", written(RAMP[..., 0] * 50)), ("alpha.tif", written(np.dstack((SMALL, SMALL[..., 0])))),
        ("pages.tif", pages), ("x.bmp", written(SMALL)), ("x.webp", written(SMALL)),
        ("b\u00fchne.png", lambda file: file.write_bytes(cv2.imencode(".png", SMALL)[1].tobytes())),
        ("turned.avif", turned),
    ],
)  # fmt: skip
def test_it_is_read_as_the_host_reads_it(tmp_path: Path, name: str, write: Any) -> None:
    file = tmp_path / name
    try:
        write(file)
    except (KeyError, OSError):
        pytest.skip(f"Pillow writes no {file.suffix} here")
    expected, found = imread(file), read(file)
    assert found is not None
    assert found.dtype == np.uint8
    assert found.shape in ((24, 16, 3), (16, 24, 3))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numbers_that_are_no_whole_ones_are_cut_to_eight_bits(tmp_path: Path, kind: Any) -> None:
    file = tmp_path / "float.tif"
    written(SMALL.astype(kind) * 2 - 100.5)(file)
    found = read(file)
    assert found is not None
    assert (found.dtype, found.min(), found.max()) == (np.uint8, 0, 255)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_what_is_no_image_is_nothing(tmp_path: Path, content: bytes | None) -> None:
    for suffix in (".jpg", ".tif", ".avif"):
        file = tmp_path / f"a{suffix}"
        if content is not None:
            file.write_bytes(content)
        assert read(file) is None
    assert read(tmp_path) is None
