"""LVIS JSON: COCO's, in which each image was searched for some classes only, and says for which.

Classes with labels in an image: all of them are labelled. `neg_category_ids`: searched for, none is there: background
in the whole image. `not_exhaustive_category_ids`: some are labelled, not all: unknown in the whole image. Every other
class was not searched for: unknown in the whole image.

Images are COCO's: version 1 names them by `coco_url` alone (`.../train2017/000000391895.jpg`); its validation images
are in train2017, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rebalance.data.formats import coco
from rebalance.data.formats.reading import entry, source_path
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region
from rebalance.data.progress import progress
from rebalance.errors import DataError


def read(given: ConvertFlags) -> Found:
    """Read LVIS's files; DataError as every format."""
    source = source_path(given.source)
    files = [coco.read_file(path) for path in coco.annotation_files(source)]
    if len({tuple(file.names.items()) for file in files}) > 1:
        raise DataError(f"source={source}: its files have different categories: {files[0].path} and others")
    names = files[0].names
    found = Found(names=list(dict.fromkeys(names.values())), records=[], files=[file.path for file in files])
    for file in files:
        coco.count_repeated(file, found)
        images = coco.folders(given.images, file.path, source)
        for number, image in progress([*file.images.items()], f"convert: reading {file.path.name}"):
            record = coco.record_of(number, image, _file_names(image, file.path), file, images, source)
            _annotate(record, image, file.annotations.get(number, []), names)
            found.records.append(record)
    return found


def _file_names(image: dict[str, Any], path: Path) -> list[Any]:
    """The name with the folder of COCO's split, then the plain one: version 0.5 has `COCO_val2014_` and the like."""
    told = [image.get("file_name")]
    if "coco_url" in image:
        url: str = entry(image, "coco_url", str, f"{path}, image {image['id']}")
        told.insert(0, "/".join(url.split("/")[-2:]))
    return told


def _annotate(
    record: Record, image: dict[str, Any], annotations: list[coco.Annotation], names: dict[int | str, str]
) -> None:
    lists = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        told = entry(image, key, list, record.where)
        for number in told:
            if not isinstance(number, int) or number not in names:
                raise DataError(f"{record.where}: {key} has {number}, which is not among the categories")
        lists[key] = {*told}
    present = {one.category for one in annotations}
    record.boxes += [Box(names[one.category], *one.box) for one in annotations]
    absent = lists["neg_category_ids"] - present
    complete = present - lists["not_exhaustive_category_ids"]
    # in the order of the categories
    known = [name for number, name in names.items() if number in absent | complete]
    record.regions.append(Region(True, known, None, others=True))
    if absent:
        record.regions.append(Region(False, [name for number, name in names.items() if number in absent], None))
