"""Region files: what is known about the labels of an image beyond the labels, one line a region.

    unknown 0,3 0.25 0.5 0.5 1      in this box objects of the classes 0 and 3 were not labelled
    background * 0.5 0.5 1 1        looked at: in this box, here the whole image, there is no object of any class

A line has a meaning, classes (numbers joined by commas, or * for all), and a box as label files have it: `x y w h`,
centre and size in fractions of the image. Of two regions that say different things of a place the later one counts.
The file of an image is in the folder `regions` that stands beside `labels`: the last `/images/` becomes `/regions/`.

Labels in an unknown region are trained on. One in a background region of its class contradicts it: `rebalance check`
tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebalance.data.labels import SLACK, text_lines
from rebalance.errors import DataError, nearest

MEANINGS = ("unknown", "background")
_COLUMNS = 6  # meaning, classes, x, y, w, h
_DIGITS = 9  # of a class number; more than Python reads are an error of its own
_INSIDE = 0.5  # of a box's own area
_SIDE = 16  # points a side by which a share of the image is told
_POINT = 1e-5  # half a side of a box without extent, as a fraction of the image


@dataclass(frozen=True)
class Regions:
    """Regions of one image, of n regions and C classes; of two that disagree about a place the later one counts."""

    unknown: NDArray[np.bool_]  # (n,) these classes were not labelled there; else background: looked at, none of them
    classes: NDArray[np.bool_]  # (n, C) which classes it is about
    boxes_xywh_norm: NDArray[np.float32]  # (n, 4) centre x, centre y, width, height as fractions of the image

    def __len__(self) -> int:
        """Number of regions."""
        return len(self.unknown)

    def __add__(self, other: Regions) -> Regions:
        """These and then the others."""
        return Regions(
            np.concatenate([self.unknown, other.unknown]),
            np.concatenate([self.classes, other.classes]),
            np.concatenate([self.boxes_xywh_norm, other.boxes_xywh_norm]),
        )

    @staticmethod
    def none(classes: int) -> Regions:
        """No regions, in a data set of so many classes."""
        return Regions(np.zeros(0, np.bool_), np.zeros((0, classes), np.bool_), np.zeros((0, 4), np.float32))

    @staticmethod
    def whole(classes: NDArray[np.bool_], *, unknown: bool = True) -> Regions:
        """One region, the whole image, about the classes (C,); none where that is no class."""
        if not classes.any():
            return Regions.none(len(classes))
        return Regions(np.array([unknown]), classes[None].copy(), np.array([[0.5, 0.5, 1, 1]], np.float32))

    def pick(self, chosen: NDArray[np.bool_]) -> Regions:
        """The chosen regions (n,)."""
        return Regions(self.unknown[chosen], self.classes[chosen], self.boxes_xywh_norm[chosen])


class Told(NamedTuple):
    """What regions say of m boxes."""

    unknown: NDArray[np.bool_]  # (m,) the class was not labelled there
    background: NDArray[np.bool_]  # (m,) somebody looked, and there is none of the class


def contradicted(given: Regions, label: NDArray[np.int64], boxes_xywh_norm: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which regions (n) say of which labels (m), that are there, that they are not: (n, m).

    They are background of the label's class and hold at least half of its box, and no later region says that the class
    is unknown there.

    Args:
        given: of the labels' image.
        label: (m,) classes.
        boxes_xywh_norm: (m, 4) boxes as those of the regions.
    """
    about = _about(given, label, boxes_xywh_norm)
    return about & ~given.unknown[:, None] & ~_last(given, about).unknown


def told(given: Regions, label: NDArray[np.int64], boxes_xywh_norm: NDArray[np.float32]) -> Told:
    """What the regions say of boxes and their classes; arguments as `contradicted`."""
    return _last(given, _about(given, label, boxes_xywh_norm))


def unsaid(given: Regions) -> NDArray[np.float64]:
    """(C,) of each class the share of the image of which no region says anything; as told at 16 by 16 points of it."""
    if not len(given):
        return np.ones(given.classes.shape[1])
    side = (np.arange(_SIDE, dtype=np.float32) + 0.5) / _SIDE
    points = np.stack([*(axis.ravel() for axis in np.meshgrid(side, side)), *np.zeros((2, _SIDE**2), np.float32)], 1)
    said = given.classes.T.astype(np.float64) @ _inside(given.boxes_xywh_norm, points) > 0  # (C, points)
    return np.asarray(1 - said.mean(1), np.float64)


def parse(data: bytes, *, classes: int, name: str = "regions file") -> Regions:
    """Read one region file.

    Args:
        data: the bytes of the file; empty or blank means no regions.
        classes: number of classes of the data set.
        name: the file's name, for errors.

    Raises:
        DataError: a line is no region; the message has the file, the line and the reason.
    """
    numbered = text_lines(data, name)
    if not numbered:
        return Regions.none(classes)
    read = [_row(line.split(), classes, f"{name}, line {i}") for i, line in numbered]
    unknown, mask, boxes = zip(*read, strict=True)
    return Regions(np.array(unknown, np.bool_), np.stack(mask), np.stack(boxes))


def text(regions: Regions) -> bytes:
    """The bytes of a file with these regions, as `parse` reads them again, without those that are about no class."""
    lines = []
    for unknown, mask, box in zip(regions.unknown.tolist(), regions.classes, regions.boxes_xywh_norm, strict=True):
        if mask.any():
            which = "*" if mask.all() else ",".join(map(str, np.flatnonzero(mask).tolist()))
            numbers = " ".join(np.format_float_positional(value, trim="-") for value in box)
            lines.append(f"{MEANINGS[not unknown]} {which} {numbers}\n")
    return "".join(lines).encode()


def _about(given: Regions, label: NDArray[np.int64], boxes_xywh_norm: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n, m) which regions are of a box's class and hold at least half of it."""
    return np.asarray(given.classes[:, label] & _inside(given.boxes_xywh_norm, boxes_xywh_norm), np.bool_)


def _last(given: Regions, about: NDArray[np.bool_]) -> Told:
    """What the last of the regions says that are about (n, m) a box."""
    if not about.size:
        none = np.zeros(about.shape[1], np.bool_)
        return Told(none, none)
    last = given.unknown[len(given) - 1 - np.argmax(about[::-1], axis=0)]
    return Told(about.any(0) & last, about.any(0) & ~last)


def _inside(outer: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(n, m) whether a region (n, 4) holds at least half of what of a box (m, 4) is in the image."""
    low, high = _corners(outer)
    box_low, box_high = _corners(boxes)
    box_low, box_high = box_low - _POINT, box_high + _POINT  # so that one without extent is where its centre is
    both = np.minimum(high[:, None], box_high) - np.maximum(low[:, None], box_low)  # (n, m, 2)
    held: NDArray[np.bool_] = np.maximum(both, 0).prod(-1) >= _INSIDE * (box_high - box_low).prod(-1)
    return held


def _corners(boxes: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n, 2) left and top, right and bottom, of what is in the image."""
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def _row(row: Sequence[str], classes: int, where: str) -> tuple[bool, NDArray[np.bool_], NDArray[np.float32]]:
    """Whether it is unknown, (C,) its classes and (4,) its box."""
    if row[0] not in MEANINGS:
        raise DataError(f"{where}: '{row[0]}' is not one of {', '.join(MEANINGS)}{nearest(row[0], MEANINGS)}")
    if len(row) != _COLUMNS:
        raise DataError(
            f"{where}: {len(row)} columns; a region has 6: unknown or background, classes (* or 0,3 without blanks), "
            "x y w h"
        )
    mask = np.full(classes, row[1] == "*")
    for number in row[1].split(",") if row[1] != "*" else ():
        if not (number.isascii() and number.isdecimal()):
            raise DataError(f"{where}: classes '{row[1]}' are neither * nor class numbers joined by commas")
        if len(number) > _DIGITS or int(number) >= classes:
            raise DataError(f"{where}: class {number[:80]} is not one of 0 to {classes - 1}")
        mask[int(number)] = True
    try:
        with np.errstate(over="ignore"):  # becomes inf, refused below
            box = np.array(row[2:], dtype=np.float32)
    except ValueError:
        raise DataError(f"{where}: not a number in '{' '.join(row[2:])[:80]}'") from None
    shown = " ".join(f"{value:g}" for value in box)
    if not np.isfinite(box).all():
        raise DataError(f"{where}: a value of box {shown} is not finite")
    if box.max() > 1 + SLACK or box.min() < -SLACK:
        raise DataError(f"{where}: a value of box {shown} is not within 0 to 1; boxes are fractions of the image")
    if box[2:].min() <= 0:
        raise DataError(f"{where}: box {shown} has no area, so that nothing is in it")
    return row[0] == "unknown", mask, box
