"""KITTI's object benchmark: a text file an image, 15 values a line.

    label_2/000000.txt, image_2/000000.png     below training/ or anywhere in source
    ImageSets/{train,val,test}.txt             lists of numbers, where somebody made them; else the splits are drawn

A line: type, truncated, occluded, alpha, left, top, right, bottom (pixels), and 7 or 8 values of the object in space.
`DontCare` marks far objects that nobody labelled: an unknown region of all classes. A file without lines says:
nothing there; an image without a file is of the hidden test set, and left out. Other sets are written so, too: where
none of the classes is KITTI's, they are those that are there, by name.
"""

from __future__ import annotations

from pathlib import Path

from rebalance.data.formats.reading import Images, image_folders, lines_of, number, source_path
from rebalance.data.formats.record import SPLITS, Box, ConvertFlags, Found, Record, Region
from rebalance.errors import DataError, nearest

NAMES = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"]
_VALUES = (15, 16)  # with a score


def read(given: ConvertFlags) -> Found:
    """Read a folder of KITTI; DataError as every format."""
    source = source_path(given.source, folder=True)
    folder = next((p for p in (source, *sorted(source.rglob("label_2"))) if p.name == "label_2"), source)
    files = sorted(path for path in folder.glob("*.txt") if path.stem.isdecimal() or folder.name == "label_2")
    if not files:
        raise DataError(f"source={source} has no label_2/*.txt in it")
    images = image_folders(given.images, folder.parent / "image_2")
    lists = _lists(source)
    found = Found(names=list(NAMES), records=[], files=files)
    first: dict[str, str] = {}  # class -> where it is first
    for path in files:
        split = lists.get(path.stem, "")
        if lists and not split:
            found.left_out["images in none of the lists"] += 1
            continue
        found.records.append(_record(path, images, split, first))
    if first and not first.keys() & {*NAMES}:
        found.names = sorted(first)
        found.notes.append(f"no class is one of KITTI's, so that they are those of the files: {', '.join(found.names)}")
    for name, where in first.items():
        if name not in found.names:
            raise DataError(f"{where}: '{name}' is not one of {', '.join(NAMES)}, DontCare{nearest(name, NAMES)}")
    return found


def _lists(source: Path) -> dict[str, str]:
    """Name of an image -> its split, by the lists of ImageSets."""
    folder = next(
        (p / "ImageSets" for p in (source, source.parent, source.parent.parent) if (p / "ImageSets").is_dir()), None
    )
    found: dict[str, str] = {}
    for split in SPLITS if folder else ():
        path = Path(str(folder)) / f"{split}.txt"
        for where, line in lines_of(path) if path.is_file() else ():
            if found.setdefault(line, split) != split:
                raise DataError(f"{where}: {line} is in the list of {found[line]}, too")
    return found


def _record(path: Path, images: Images, split: str, first: dict[str, str]) -> Record:
    image = images.find(path.stem, str(path), any_suffix=True)
    record = Record(image.name if image else f"{path.stem}.png", image, str(path), split=split)
    for where, line in lines_of(path):
        kind, *values = line.split()
        if len(values) + 1 not in _VALUES:
            raise DataError(f"{where}: {len(values) + 1} values; a line of KITTI has 15, or 16 with a score")
        left, top, right, bottom = (number(value, "box", where) for value in values[3:7])
        if kind.lower() == "dontcare":
            record.regions.append(Region(True, None, (left, top, right, bottom)))
        else:
            first.setdefault(kind, where)
            record.boxes.append(Box(kind, left, top, right, bottom))
    return record
