"""TUT Indoor: six walks through a building, all frames labelled, dlib's XML.

    annotation/annotation_s1.xml     <image file='...'><box top left width height><label>chair</label></box></image>
    sequence_1/...                   the frames of the first, and so on

The source says no splits, so they are drawn; neighbouring frames look alike, so that 50 of a walk stay together. Any
other XML of dlib's imglab is read too; where no box has a label, as in dlib's examples, there is one class, `object`.
`ignore='1'` marks what dlib's own training passes over: an unknown region. A frame without boxes says: nothing there.
"""

from __future__ import annotations

import re
from pathlib import Path

from rebalance.data.formats.reading import (
    Element,
    Images,
    at,
    attribute,
    children,
    files_of,
    image_folders,
    number,
    read_xml,
    source_path,
)  # fmt: skip
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region
from rebalance.errors import DataError

NAMES = ["chair", "clock", "exit", "fireextinguisher", "printer", "screen", "trashbin"]
_ONE = "object"  # the class where none is named
_BLOCK = 50  # frames that stay together


def read(given: ConvertFlags) -> Found:
    """Read TUT Indoor; DataError as every format."""
    source = source_path(given.source)
    files = files_of(source, ".xml", "annotations")
    base = source if source.is_dir() else source.parent
    images = image_folders(given.images, base, base.parent)
    found = Found(names=[], records=[], files=files)
    roots = {path: read_xml(path) for path in files}
    plain = not any(box.find("label") is not None for root in roots.values() for box in root.iter("box"))
    for path, root in roots.items():
        found.records += _read(path, root, images, _ONE if plain else "")
    if plain:
        found.notes.append(f"no box has a <label>: the one class is called {_ONE}")
    seen = {box.name for record in found.records for box in record.boxes}
    found.names = list(NAMES) if seen <= {*NAMES} else sorted(seen)
    return found


def _read(path: Path, root: Element, images: Images, one: str) -> list[Record]:
    if root.tag != "dataset":
        raise DataError(f"{at(path, root)}: <{root.tag}> is not <dataset>, with which dlib's XML begins")
    number_ = re.search(r"_s(\d+)$", path.stem)
    sequence = f"sequence_{number_[1]}" if number_ else path.stem
    records = []
    for i, element in enumerate(child for parent in children(root, "images") for child in children(parent, "image")):
        where, name = at(path, element), attribute(path, element, "file").replace("\\", "/")
        image = images.find(name if "/" in name else f"{sequence}/{name}", where)
        width, height = (number(element.get(side) or 0, side, where) for side in ("width", "height"))
        size = (width, height) if min(width, height) > 0 else None
        record = Record(f"{sequence}/{Path(name).name}", image, where, size, group=f"{sequence} {i // _BLOCK}")
        for box in children(element, "box"):
            _annotate(record, path, box, one)
        records.append(record)
    return records


def _annotate(record: Record, path: Path, element: Element, one: str) -> None:
    where = at(path, element)
    left, top, width, height = (
        number(attribute(path, element, side), side, where) for side in ("left", "top", "width", "height")
    )
    box = (left, top, left + width, top + height)
    name = (element.findtext("label") or "").strip() or one
    if element.get("ignore") == "1":
        record.regions.append(Region(True, [name] if name else None, box))
    elif not name:
        raise DataError(f"{where}: a box without <label>")
    else:
        record.boxes.append(Box(name, *box))
