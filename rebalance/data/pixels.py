"""Images as they are read for training, for whatever is drawn of them: upright, in colour, eight bits.

The host's reader does the same (a test compares them), but brings torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_TIFF = (".tif", ".tiff")
_BY_PILLOW = (".avif", ".heic", ".heif")  # which it turns upright, and OpenCV does not


def read(file: str | Path) -> NDArray[Any] | None:
    """(H, W, 3) BGR; None where there is no such file, or it cannot be read.

    Of a TIFF the first page and of it the first three bands; of sixteen bits the higher eight; numbers that are no
    whole ones, which the host leaves as they are, are cut to eight bits.
    """
    path = Path(file)
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None
    if not data.size:
        return None
    pixels, suffix = None, path.suffix.lower()
    if suffix in _TIFF:
        done, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)
        if done and pages[0].ndim == 3:
            pixels = pages[0][..., :3]
    elif suffix in _BY_PILLOW:
        pixels = _by_pillow(path)
    if pixels is None:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if pixels is None or pixels.dtype == np.uint8:
        return pixels
    eight: NDArray[Any] = pixels >> 8 if pixels.dtype == np.uint16 else pixels.clip(0, 255)
    return eight.astype(np.uint8)


def _by_pillow(path: Path) -> NDArray[Any] | None:
    try:
        with ImageOps.exif_transpose(Image.open(path)) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    except Exception:  # whatever its readers raise
        return None
