"""Pascal VOC: an XML file an image, as the challenge, LabelImg, CVAT and Roboflow write it.

    VOCdevkit/VOC2012/Annotations/x.xml, JPEGImages/x.jpg, ImageSets/Main/{train,val,trainval,test}.txt
    or XML files in any folders, the images beside them; a folder's name may say the split

Lists: where a year of the challenge has the annotations of its test list (VOC2007), `trainval` of all years is for
training and the tests are val and test, as in the papers; else, and in folders that are not called VOC and a year,
`train`, `val` and `test`. `trainval` alone says no split. An image of a list without an XML file was looked at by
nobody; an XML file without objects says: nothing there.

The challenge counts pixels from 1, and the last one is inside the box. Tools that write its XML count from 0
(`first_pixel`). `difficult`: as labels, as unknown regions, or nowhere. A turned box (roLabelImg) stands for the box
around it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebalance.data.formats.reading import (
    Element,
    Images,
    at,
    children,
    files_of,
    image_folders,
    lines_of,
    mark,
    number,
    read_xml,
    source_path,
)  # fmt: skip
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region, guess_split, turned
from rebalance.data.progress import progress
from rebalance.errors import DataError
from rebalance.settings import setting

NAMES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
_CORNERS, _TURNED = ("xmin", "ymin", "xmax", "ymax"), ("cx", "cy", "w", "h")
_YEAR = re.compile(r"VOC\d{4}")


@dataclass(frozen=True, kw_only=True)
class VocFlags(ConvertFlags):
    """`rebalance convert voc`."""

    difficult: str = setting(
        "keep", "objects marked as difficult: labels, unknown regions, or neither", choices=("keep", "unknown", "drop")
    )
    first_pixel: str = setting(
        "auto",
        "number of the first pixel; auto: 1, or 0 where a box of the source begins at 0 or is turned",
        choices=("auto", "0", "1"),
    )


def read(given: VocFlags) -> Found:
    """Read a folder of VOC; DataError as every format."""
    source = source_path(given.source, folder=True)
    years = sorted(path.parent for path in source.rglob("Annotations") if path.is_dir())
    years = [year for year in years if (year / "ImageSets" / "Main").is_dir()]
    found = Found(names=[], records=[])
    if years:
        records = [record for year in years for record in _year(year, given, found, tested=any(map(_tested, years)))]
    else:
        records = _loose(source, given)
    first, objects = 1, []
    for record, root in progress(records, "convert: reading XML"):
        rows = [] if root is None else _objects(root, Path(record.where), given.difficult)
        objects.append(rows)
        if root is not None:
            record.size = _size(root, Path(record.where))
        turned_ = root is not None and root.find("object/robndbox") is not None
        if turned_ or any(min(corners[:2]) < 1 for _, corners, _ in rows):
            first = 0
    if given.first_pixel != "auto":
        first = int(given.first_pixel)
    elif not first:
        found.notes.append("boxes begin at 0 or are turned, so pixels were counted from 0 (first_pixel=)")
    for (record, _), rows in zip(records, objects, strict=True):
        for name, (left, top, right, bottom), meaning in rows:
            box = (left - first, top - first, right, bottom)
            if meaning == "keep":
                record.boxes.append(Box(name, *box))
            elif meaning == "unknown":
                record.regions.append(Region(True, [name], box))
            else:
                found.left_out["difficult objects"] += 1
    seen = {name for rows in objects for name, *_ in rows}
    found.names = list(NAMES) if seen <= {*NAMES} else sorted(seen)
    found.records = [record for record, _ in records]
    return found


def _tested(year: Path) -> bool:
    """Whether this is a year of the challenge and the images of its test list have annotations."""
    names = _listed(year, "test")
    return bool(_YEAR.fullmatch(year.name) and names) and (year / "Annotations" / f"{names[0]}.xml").is_file()


def _listed(year: Path, which: str) -> list[str]:
    """The names in a list. They may have spaces; a mark behind a name is that of a list of one class."""
    path = year / "ImageSets" / "Main" / f"{which}.txt"
    found = []
    for _, line in lines_of(path) if path.is_file() else ():
        name, _, mark_ = line.rpartition(" ")
        whole = mark_ not in ("-1", "0", "1") or (year / "Annotations" / f"{line}.xml").is_file()
        found.append(line if whole else name.rstrip())
    return found


def _year(year: Path, given: VocFlags, found: Found, *, tested: bool) -> list[tuple[Record, Element | None]]:
    """The images that the lists of one year name."""
    lists = {which: _listed(year, which) for which in ("train", "val", "trainval", "test")}
    if (tested and lists["trainval"]) or not (lists["train"] or lists["val"]):
        splits = {"trainval": "train" if tested or lists["test"] else "", "test": "test"}
    else:
        splits = {split: split for split in ("train", "val", "test")}
    images = Images(year / "JPEGImages")
    if given.images:
        images = image_folders(given.images)
    listed: dict[str, str] = {}
    for which, split in reversed(splits.items()):  # what is held out stays so
        for name in lists[which]:
            if listed.setdefault(name, split) != split:
                found.left_out[f"images of the list {which}.txt that another list has, too"] += 1
    if not listed:
        raise DataError(f"{year / 'ImageSets' / 'Main'} has no list {', '.join(lists)}.txt with images")
    made: list[tuple[Record, Element | None]] = []
    for name, split in listed.items():
        file = year / "Annotations" / f"{name}.xml"
        root = read_xml(file) if file.is_file() else None
        if split == "test" and root is None:
            continue  # the test lists of later years have no public annotations
        image = images.find(f"{name}.jpg", str(file)) or images.find(name, str(file), any_suffix=True)
        new = f"{year.name}/{image.name if image else f'{name}.jpg'}"
        made.append((Record(new, image, str(file), split=split, labelled=root is not None), root))
    return made


def _loose(source: Path, given: VocFlags) -> list[tuple[Record, Element | None]]:
    """XML files anywhere."""
    images = image_folders(given.images, source)
    beside: dict[Path, Images] = {}
    made: list[tuple[Record, Element | None]] = []
    for file in files_of(source, ".xml", "VOC annotations"):
        root = read_xml(file)
        named = (root.findtext("filename") or "").strip()
        places = [images]
        if not given.images:
            places.insert(0, beside.setdefault(file.parent, Images(file.parent)))
        image = _image(file, named, places)
        folder = file.parent.relative_to(source).as_posix()
        new = f"{folder}/{image.name if image else named or f'{file.stem}.jpg'}".removeprefix("./")
        made.append((Record(new, image, str(file), split=guess_split(folder)), root))
    return made


def _image(file: Path, named: str, places: Sequence[Images]) -> Path | None:
    """The image of an XML file: by `<filename>`, by its own name; older LabelImg leaves the suffix away."""
    names = [(named, False), (f"{file.stem}{Path(named).suffix}" if named else "", False), (file.stem, True)]
    for name, any_suffix in names:
        for place in places if name else ():
            if found := place.find(name, str(file), any_suffix=any_suffix):
                return found
    return None


def _size(root: Element, path: Path) -> tuple[float, float] | None:
    """Width and height that the file tells of; None where it does not, or says 0, as some tools do."""
    found = [number(root.findtext(f"size/{side}") or 0, side, str(path)) for side in ("width", "height")]
    return (found[0], found[1]) if min(found) > 0 else None


def _objects(root: Element, path: Path, difficult: str) -> list[tuple[str, tuple[float, float, float, float], str]]:
    """Name, corners as they are written, and what becomes of it, of every object."""
    if root.tag != "annotation":
        raise DataError(f"{at(path, root)}: <{root.tag}> is not <annotation>, with which VOC begins")
    rows = []
    for element in children(root, "object"):
        where, name = at(path, element), (element.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{where}: an object without <name>")
        box = _box(path, element, name)
        hard = mark((element.findtext("difficult") or "").strip(), "difficult", where)
        rows.append((name, box, difficult if hard else "keep"))
    return rows


def _box(path: Path, element: Element, name: str) -> tuple[float, float, float, float]:
    """Corners of an object as they are written; of a turned one those around it."""
    box, around = element.find("bndbox"), element.find("robndbox")
    if box is None and around is None:
        raise DataError(f"{at(path, element)}: {name} has no <bndbox>")
    if box is None and around is not None:
        where = at(path, around)
        x, y, width, height = (number((around.findtext(key) or "").strip(), key, where) for key in _TURNED)
        angle = number((around.findtext("angle") or "0").strip(), "angle", where)
        return turned((x - width / 2, y - height / 2, x + width / 2, y + height / 2), math.degrees(angle))
    assert box is not None
    left, top, right, bottom = (
        number((box.findtext(corner) or "").strip(), corner, at(path, box)) for corner in _CORNERS
    )
    if right < left or bottom < top:
        raise DataError(
            f"{at(path, box)}: the box of {name} ends before it begins ({left:g} {top:g} {right:g} {bottom:g})"
        )
    return left, top, right, bottom
