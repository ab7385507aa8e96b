"""FDDB: faces as ellipses, ten folds of images from news.

    FDDB-folds/FDDB-fold-01-ellipseList.txt     image, number of faces, then a line a face:
                                                major radius, minor radius, angle, centre x, centre y, 1
    originalPics/2002/08/11/big/img_591.jpg     below images=

A label is the box around the ellipse, cut to the image. The benchmark has no training set: the tenth fold is val and
test, the others are for training, unless `split=` says else.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from rebalance.data.formats.reading import Images, files_of, image_folders, lines_of, number, source_path, whole
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record
from rebalance.errors import DataError

_FOLD = re.compile(r"fold-(\d+)-ellipseList$", re.IGNORECASE)
_VALUES, _LAST = 5, 10


def read(given: ConvertFlags) -> Found:
    """Read FDDB's folds; DataError as every format."""
    source = source_path(given.source)
    files = [path for path in files_of(source, ".txt", "FDDB's lists of ellipses") if _FOLD.search(path.stem)]
    if not files:
        raise DataError(f"source={source} has no FDDB-fold-*-ellipseList.txt in it")
    base = source if source.is_dir() else source.parent
    images = image_folders(given.images, base, base.parent)
    found = Found(names=["face"], records=[], files=files)
    folds = {path: int(match[1]) for path in files if (match := _FOLD.search(path.stem))}
    for path, fold in folds.items():
        split = ("test" if fold == _LAST else "train") if len({*folds.values()}) == _LAST else ""
        found.records += _read(path, images, split)
    return found


def _read(path: Path, images: Images, split: str) -> list[Record]:
    """The images of one fold."""
    lines, records = list(lines_of(path)), []
    i = 0
    while i < len(lines):
        where, name = lines[i]
        if i + 1 == len(lines):
            raise DataError(f"{where}: the file ends where the number of faces of {name} should be")
        count = whole(lines[i + 1][1], "number of faces", lines[i + 1][0])
        rows = lines[i + 2 : i + 2 + count]
        if count < 0 or len(rows) < count:
            raise DataError(f"{lines[i + 1][0]}: {count} faces, but {len(rows)} lines follow")
        image = images.find(f"{name}.jpg", where) or images.find(f"originalPics/{name}.jpg", where)
        record = Record(f"{name}.jpg", image, where, split=split)
        record.boxes = [_box(*row) for row in rows]
        records.append(record)
        i += 2 + count
    return records


def _box(where: str, line: str) -> Box:
    values = [number(value, "ellipse", where) for value in line.split()]
    if len(values) not in (_VALUES, _VALUES + 1):
        raise DataError(f"{where}: {len(values)} values; an ellipse has 5, and a 1 after them")
    major, minor, angle, x, y = values[:_VALUES]
    if min(major, minor) <= 0:
        raise DataError(f"{where}: an ellipse of radii {major:g} and {minor:g}")
    half = math.hypot(major * math.cos(angle), minor * math.sin(angle))
    tall = math.hypot(major * math.sin(angle), minor * math.cos(angle))
    return Box("face", x - half, y - tall, x + half, y + tall)
