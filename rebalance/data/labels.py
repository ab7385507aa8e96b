"""YOLO label files: one line a box, `class x y w h` in fractions of the image, or a polygon, `class x1 y1 x2 y2 ...`.

A file is read exactly as Ultralytics 8.4 reads it for detection, but every line keeps its bytes, so that a line that is
written again is the same to the last byte. What Ultralytics does silently and matters here:

* A polygon stands for the box around it. A file holds boxes or polygons, not both.
* Equal rows of a file are one box. They are one box here too, and its lines stay or go together: were only one of them
  withheld, the box would still be trained on.
* A file with a bad line is not used, and neither is its image. `parse` raises with the file, the line and the reason.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebalance.errors import DataError

_BOX = 5  # columns of a box: class, x, y, w, h
_POLYGON = 7  # columns of the smallest polygon: class and three points
SLACK = 0.01  # Ultralytics' tolerance around [0, 1]


@dataclass(frozen=True)
class Labels:
    """The boxes of one label file in the order of their first lines."""

    classes: NDArray[np.int64]  # (n,)
    boxes_xywh_norm: NDArray[np.float32]  # (n, 4) centre x, centre y, width, height as fractions of the image
    lines: tuple[bytes, ...]  # every line that is not blank, with its line ending
    box_of: NDArray[np.int64]  # (len(lines),) the box that a line describes; equal lines describe one box

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.classes)

    def boxes_xyxy(self, width: int, height: int) -> NDArray[np.float64]:
        """Boxes as (n, 4) left, top, right, bottom in pixels of an image of `width` x `height`."""
        box = self.boxes_xywh_norm.astype(np.float64) * (width, height, width, height)
        return np.concatenate((box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2), axis=1)

    @property
    def data(self) -> bytes:
        """The lines, byte-identical and in file order: what a file of these labels holds."""
        return b"".join(self.lines)

    def pick(self, chosen: NDArray[np.bool_]) -> Labels:
        """The chosen boxes (n,) with their lines; all of them are these labels themselves."""
        if chosen.all():
            return self
        kept, number = chosen[self.box_of], np.cumsum(chosen) - 1
        lines = tuple(line for line, stays in zip(self.lines, kept.tolist(), strict=True) if stays)
        return Labels(self.classes[chosen], self.boxes_xywh_norm[chosen], lines, number[self.box_of[kept]])

    def __add__(self, other: Labels) -> Labels:
        """These labels and then others; where one of the two has none, the other itself."""
        if not (len(self) and len(other)):
            return other if len(other) else self
        *before, last = self.lines
        last += b"" if last.endswith((b"\n", b"\r")) else b"\n"
        return Labels(
            np.concatenate([self.classes, other.classes]),
            np.concatenate([self.boxes_xywh_norm, other.boxes_xywh_norm]),
            (*before, last, *other.lines),
            np.concatenate([self.box_of, other.box_of + len(self)]),
        )


def parse(data: bytes, *, classes: int, keypoints: tuple[int, int] = (0, 0), name: str = "label file") -> Labels:
    """Read one label file.

    Args:
        data: the bytes of the file; empty or blank means an image without boxes.
        classes: number of classes of the data set.
        keypoints: `kpt_shape` of a pose data set, points and values per point; a pose line counts as its box.
        name: the file's name, for errors.

    Raises:
        DataError: Ultralytics would reject the file; the message has the file, the line and the reason. Stricter than
            Ultralytics in one case: a polygon of fewer than three points is refused, because alone in its file it
            would not be read as a polygon.
    """
    numbered = text_lines(data, name)
    where = [f"{name}, line {i}" for i, _ in numbered]
    rows = [line.split() for _, line in numbered]
    pose = _BOX + keypoints[0] * keypoints[1]
    if keypoints[0]:
        rows = [row[:_BOX] if len(row) == pose else row for row in rows]
    polygons = any(len(row) >= _POLYGON for row in rows)
    read = [_row(row, polygons, at) for row, at in zip(rows, where, strict=True)]
    table = np.stack([box for _, box in read]) if read else np.zeros((0, _BOX), np.float32)
    _check(table, classes, where)

    first: dict[bytes, int] = {}
    # + 0 makes -0 equal to 0; polygons that share a box but not their points are two boxes
    box_of = [first.setdefault((v if polygons else v + np.float32(0)).tobytes(), len(first)) for v, _ in read]
    start = np.unique(np.array(box_of, dtype=np.int64), return_index=True)[1]
    return Labels(
        classes=table[start, 0].astype(np.int64),
        boxes_xywh_norm=table[start, 1:],
        lines=tuple(line.encode("utf-8") for _, line in numbered),
        box_of=np.array(box_of, dtype=np.int64),
    )


def text_lines(data: bytes, name: str) -> list[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1 and its line ending; DataError where it is no text."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text (byte {error.start})") from None
    return [(i, line) for i, line in enumerate(text.splitlines(keepends=True), 1) if line.strip()]


def columns(line: bytes, keypoints: tuple[int, int] = (0, 0)) -> str:
    """What a line of a file that can be read holds: `box`, `polygon`, or `pose`, a box with keypoints."""
    count = len(line.split())
    if keypoints[0] and count == _BOX + keypoints[0] * keypoints[1]:
        return "pose"
    return "polygon" if count >= _POLYGON else "box"


def read_bytes(path: str | Path) -> bytes | None:
    """Bytes of a file, None where there is no such file.

    Raises:
        DataError: it is there and cannot be read.
    """
    if not os.path.isfile(path):
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _row(row: Sequence[str], polygons: bool, where: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The numbers of a row, and (5,) class, x, y, w, h of its box or the extent of its polygon.

    All is float32, as Ultralytics computes it.
    """
    if polygons and len(row) < _POLYGON:
        raise DataError(f"{where}: {len(row)} columns among polygons; a polygon has a class and at least 3 points")
    if polygons and len(row) % 2 == 0:
        raise DataError(f"{where}: {len(row)} columns; a polygon has a class and pairs of x and y")
    if not polygons and len(row) != _BOX:
        raise DataError(f"{where}: {len(row)} columns; a box has 5 (class x y w h), a polygon 7 or more")
    try:
        with np.errstate(over="ignore"):  # becomes inf, refused below
            values = np.array(row, dtype=np.float32)
    except ValueError:
        raise DataError(f"{where}: not a number in '{' '.join(row)[:80]}'") from None
    if not np.isfinite(values).all():
        raise DataError(f"{where}: a value is not finite in '{' '.join(row)[:80]}'")
    if not polygons:
        return values, values
    points = values[1:].reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return values, np.concatenate((values[:1], (low + high) / 2, high - low))


def _check(table: NDArray[np.float32], classes: int, where: Sequence[str]) -> None:
    """Raise for the first row that Ultralytics would reject the file for."""
    label, box = table[:, 0], table[:, 1:]
    lowest = table.min(1)
    reasons = (
        (label % 1 != 0, "class {0:g} is not a whole number"),
        ((label < 0) | (label >= classes), f"class {{0:g}} is not one of 0 to {classes - 1}"),
        ((box > 1 + SLACK).any(1), "a value of box {1} is above 1; boxes are fractions of the image"),
        ((lowest < -SLACK) | ((lowest < 0) & (box[:, 2:].min(1) < 0)), "a value of box {1} is below 0"),
    )
    bad = [(int(np.argmax(mask)), text) for mask, text in reasons if mask.any()]
    if bad:
        row, text = min(bad, key=lambda found: found[0])
        raise DataError(f"{where[row]}: {text.format(label[row], ' '.join(f'{v:g}' for v in box[row]))}")
