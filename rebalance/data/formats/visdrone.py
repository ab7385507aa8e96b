"""VisDrone-DET: a text file an image, a line a box, perhaps with a comma at its end.

    left,top,width,height,score,category,truncation,occlusion
    VisDrone2019-DET-train/{annotations/x.txt,images/x.jpg}      and so for -val and -test-dev; one of them or all

Category 0, an ignored region: objects that are too small or too many to label: unknown for all classes. Category 11,
others, a vehicle that is none of the ten: unknown for all classes in its box, as in the benchmark, which counts a
detection there neither as right nor as wrong; so is a box of the ten whose score is 0. A file without lines says:
nothing there.
"""

from __future__ import annotations

from pathlib import Path

from rebalance.data.formats.reading import image_folders, lines_of, number, source_path, whole
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region, guess_split
from rebalance.errors import DataError

NAMES = [
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
]  # fmt: skip
_IGNORED, _OTHERS, _VALUES = 0, 11, 8


def read(given: ConvertFlags) -> Found:
    """Read a folder of VisDrone; DataError as every format."""
    source = source_path(given.source, folder=True)
    folders = sorted(p for p in (source, *source.rglob("annotations")) if p.name == "annotations" and p.is_dir())
    if not folders:
        raise DataError(f"source={source} has no folder annotations in it")
    found = Found(names=list(NAMES), records=[])
    for folder in folders:
        images = image_folders(given.images, folder.parent / "images")
        split = guess_split(folder.parent.name.replace("test-dev", "test"))
        for path in sorted(folder.glob("*.txt")):
            image = images.find(f"{path.stem}.jpg", str(path))
            record = Record(f"{path.stem}.jpg", image, str(path), split=split)
            _annotate(record, path, found)
            found.records.append(record)
    return found


def _annotate(record: Record, path: Path, found: Found) -> None:
    for where, line in lines_of(path):
        values = line.rstrip(",").split(",")
        if len(values) != _VALUES:
            raise DataError(f"{where}: {len(values)} values; a line of VisDrone has 8")
        left, top, width, height, score = (number(value, "value", where) for value in values[:5])
        category = whole(values[5], "category", where)
        if not _IGNORED <= category <= _OTHERS:
            raise DataError(f"{where}: category {category} is not one of 0 to 11")
        box = (left, top, left + width, top + height)
        if category in (_IGNORED, _OTHERS) or score == 0:
            record.regions.append(Region(True, None, box))
        else:
            record.boxes.append(Box(NAMES[category - 1], *box))
