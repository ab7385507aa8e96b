"""What a format is read into, whatever it is: images with their boxes and regions, in pixels, by class name.

A format is a function from its flags to `Found`. It says what is in the source and no more: numbers of classes,
splits that are drawn, files and counts are the writer's (`write`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rebalance.settings import setting

SPLITS = ("train", "val", "test")


class Box(NamedTuple):
    """A label: an object of a class, left, top, right, bottom in pixels from the corner of the image."""

    name: str
    left: float
    top: float
    right: float
    bottom: float


class Region(NamedTuple):
    """What is known about a part of an image: these classes were not labelled there, or there are none of them."""

    unknown: bool
    names: Sequence[str] | None  # None: all classes
    box: tuple[float, float, float, float] | None  # left, top, right, bottom in pixels; None: the whole image
    others: bool = False  # all classes but these


class Frame(NamedTuple):
    """A frame of a video, by its number from 0, without the rows above `top`."""

    video: Path
    number: int
    top: int = 0


@dataclass
class Record:
    """One image."""

    name: str  # as it is to be called: a relative path with its suffix, folders by /
    image: Path | Frame | None  # None: it is not there
    where: str  # file, and line or entry, that tells of it
    size: tuple[float, float] | None = None  # width, height that boxes are in; None: those of the image file
    boxes: list[Box] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    split: str = ""  # train, val or test; empty: the source does not say
    labelled: bool = True  # somebody looked at it; else no label file is written
    group: str = ""  # images that look alike, which stay together where a split is drawn

    def add_unknown(self, name: str) -> None:
        """An object of a class is there, and no box says where: the class is unknown in the whole image."""
        region = Region(True, [name], None)
        if region not in self.regions:
            self.regions.append(region)


@dataclass
class Found:
    """All that is in a source."""

    names: list[str]  # the classes, in the order of their numbers
    records: list[Record]
    annotated: dict[str, list[str]] = field(default_factory=dict)  # folder in the names -> classes labelled in it
    left_out: Counter[str] = field(default_factory=Counter)  # what of the source has no place in the new set
    notes: list[str] = field(default_factory=list)  # what was decided where the source leaves it open
    labels_alone: bool = False  # labels of images that are not there are written all the same
    files: list[Path] = field(default_factory=list)  # what was read, for the check that `out` is not among it


@dataclass(frozen=True, kw_only=True)
class ConvertFlags:
    """`rebalance convert FORMAT`: the flags of every format."""

    source: str = setting("", "file or folder with the annotations")
    images: str = setting("", "folder with the images; empty: where the format has them, below source")
    out: str = setting("", "folder to make; must not exist")
    classes: str = setting(
        "", "names of the classes to keep, comma separated, in the order of their numbers; empty: all"
    )
    split: str = setting(
        "auto", "auto: as the source says; else all images are of this split", choices=("auto", *SPLITS)
    )
    val: float = setting(
        0.2, "share of the images drawn for validation, where the source says no splits", low=0, high=1
    )
    test: float = setting(0.0, "share of the images drawn for the test, where the source says no splits", low=0, high=1)
    seed: int = setting(0, "seed of that draw", low=0)
    empty: str = setting(
        "format",
        "what an image without annotations means: nothing, nothing is there (an empty label file); unknown, nobody "
        "looked (no label file); format, what the format says",
        choices=("format", "nothing", "unknown"),
    )


@dataclass(frozen=True)
class Format:
    """A format that `rebalance convert` reads.

    Attributes:
        title: what it is.
        example: what stands after its name in an example.
        flags: its flags.
        read: from the flags to what is in the source.
    """

    title: str
    example: str
    flags: type[ConvertFlags]
    read: Callable[[Any], Found]


def enclosing(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of points."""
    x, y = zip(*points, strict=True)
    return min(x), min(y), max(x), max(y)


def turned(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The box around a box that is turned about its centre."""
    if not degrees:
        return box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half, tall = (width * cos + height * sin) / 2, (width * sin + height * cos) / 2
    return x - half, y - tall, x + half, y + tall


def guess_split(text: str) -> str:
    """The split that a name speaks of: val for `instances_val2017`, `valid`, `VisDrone2019-DET-val`; empty: none."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    known: Mapping[str, str] = {
        "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "minival": "val",
        "test": "test", "testing": "test",
    }  # fmt: skip
    found = {known[word] for word in words if word in known}
    return found.pop() if len(found) == 1 else "test" if found == {"test", "val"} else ""
