"""The part of an image in which a suggestion is shown, as JPEG."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2

from rebalance.audit.table import Suggestion
from rebalance.data.pixels import read
from rebalance.data.progress import progress

Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the image

_CONTEXT = 2.5  # sides of the window in longer sides of the box
_LEAST = 128  # pixels of the image: what a small object is lies around it
_MOST = 320  # pixels of a JPEG; a larger window is shrunk, a smaller one is not blown up
_QUALITY = 82


def window(row: Suggestion, width: int, height: int) -> Window:
    """What is shown of an image of a size: a square around the box, and the label that the suggestion is about.

    It is moved into the image, and of an image that is smaller it is all.
    """
    x1, y1, x2, y2 = row.box
    if row.label and row.kind != "missing":
        x1, y1 = min(x1, row.label.box[0]), min(y1, row.label.box[1])
        x2, y2 = max(x2, row.label.box[2]), max(y2, row.label.box[3])
    side = max(_LEAST, _CONTEXT * max(x2 - x1, y2 - y1))
    spans = [_span((x1 + x2) / 2, side, width), _span((y1 + y2) / 2, side, height)]
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def make(
    rows: Sequence[Suggestion], files: Mapping[str, str], sizes: Mapping[str, Sequence[int]], folder: Path
) -> dict[str, str]:
    """Write `<id>.jpg` of each suggestion.

    Args:
        rows: the suggestions.
        files: image of a suggestion -> its file.
        sizes: image -> width and height when it was audited.
        folder: where to.

    Returns:
        Image -> why it has no crops: it cannot be read, or has another size now.
    """
    by_image: dict[str, list[Suggestion]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)

    def of_image(image: str) -> str:
        return _of_image(by_image[image], files[image], sizes[image], folder)

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8))  # OpenCV lets go of the interpreter while it decodes
    try:
        waiting = [(image, pool.submit(of_image, image)) for image in by_image]
        told = {image: future.result() for image, future in progress(waiting, "audit: crops of image")}
    finally:
        pool.shutdown(cancel_futures=True)
    return {image: why for image, why in told.items() if why}


def _of_image(rows: Iterable[Suggestion], file: str, size: Sequence[int], folder: Path) -> str:
    pixels = read(file)
    if pixels is None:
        return "cannot be read"
    height, width = pixels.shape[:2]
    if (width, height) != tuple(size):
        return f"has {width}×{height} pixels, and had {size[0]}×{size[1]} when it was audited"
    for row in rows:
        x1, y1, x2, y2 = window(row, width, height)
        crop = pixels[y1:y2, x1:x2]
        scale = _MOST / max(crop.shape[:2])
        if scale < 1:
            shape = [max(round(side * scale), 1) for side in (x2 - x1, y2 - y1)]
            crop = cv2.resize(crop, shape, interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        (folder / f"{row.id}.jpg").write_bytes(data.tobytes())
    return ""


def _span(centre: float, side: float, size: int) -> tuple[int, int]:
    """First pixel and the one after the last."""
    length = min(round(side), size)
    first = min(max(round(centre - length / 2), 0), size - length)
    return first, first + length
