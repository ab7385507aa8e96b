"""COCO JSON: images, categories, annotations, one file a split.

A crowd (`iscrowd: 1`) is an unknown region of its class: there are many, and they are not labelled one by one; some
tools, CVAT among them, mark each mask so (`crowd=keep`). So is what is to be ignored (`ignore: 1`, as in person and
face sets). An image without annotations was looked at: it gets an empty label file. Class numbers follow the order of
the category ids, which may have gaps and be there once an image, as VIA writes them. Several entries of one file are
one image: else what one tells would be background in the copy of the other. The split is in the name of the file or of
its folder. A polygon without a `bbox` stands for the box around it.

Several files whose categories differ: each was labelled for its own, and data.yaml says so (`annotated`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rebalance.data.formats.reading import (
    Images,
    entry,
    files_of,
    folder_names,
    identifier,
    image_folders,
    mark,
    number,
    read_json,
    shared_names,
    source_path,
)  # fmt: skip
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region, enclosing, guess_split
from rebalance.data.progress import progress
from rebalance.errors import DataError
from rebalance.settings import setting

_NUMBERS, _SHOWN = 4, 10
_OTHER = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # COCO's own files of other tasks


@dataclass(frozen=True, kw_only=True)
class CocoFlags(ConvertFlags):
    """`rebalance convert coco`."""

    crowd: str = setting(
        "unknown",
        "annotations marked as crowds: unknown regions, labels, or neither",
        choices=("unknown", "keep", "drop"),
    )


class Annotation(NamedTuple):
    """One annotation, checked."""

    category: int | str  # its id
    box: tuple[float, float, float, float]  # left, top, right, bottom
    crowd: bool
    ignored: bool


@dataclass(frozen=True)
class File:
    """One file, checked."""

    path: Path
    names: dict[int | str, str]  # category id -> name, by id
    images: dict[int | str, dict[str, Any]]  # by id
    annotations: dict[int | str, list[Annotation]]  # by the id of the image
    repeated: int  # entries of images that were there before; what they tell belongs to the first


def read(given: CocoFlags) -> Found:
    """Read COCO's files; DataError as every format."""
    source = source_path(given.source)
    files = [read_file(path) for path in annotation_files(source)]
    found = Found(
        names=shared_names([[*file.names.values()] for file in files]), records=[], files=[file.path for file in files]
    )
    prefixes = folder_names([file.path for file in files])
    differ = len({tuple(file.names.values()) for file in files}) > 1
    for file in files:
        prefix = prefixes[file.path] if differ else ""
        images = folders(given.images, file.path, source)
        for number_, image in progress([*file.images.items()], f"convert: reading {file.path.name}"):
            record = record_of(number_, image, [image.get("file_name")], file, images, source)
            record.name = f"{prefix}/{record.name}" if prefix else record.name
            for one in file.annotations.get(number_, ()):
                name, way = file.names[one.category], given.crowd if one.crowd else "keep"
                if way == "unknown" or one.ignored:
                    record.regions.append(Region(True, [name], one.box))
                elif way == "keep":
                    record.boxes.append(Box(name, *one.box))
                else:
                    found.left_out["crowds"] += 1
            found.records.append(record)
        crowds = [one.crowd for many in file.annotations.values() for one in many]
        if crowds and all(crowds) and given.crowd == "unknown":
            found.notes.append(
                f"{file.path.name}: every annotation is a crowd ({len(crowds)}), so none is a label; some tools mark "
                "each mask so: crowd=keep"
            )
        count_repeated(file, found)
        if differ:
            found.annotated[prefix] = list(dict.fromkeys(file.names.values()))
    return found


def count_repeated(file: File, found: Found) -> None:
    """Count the entries that were joined with the first of their image."""
    if file.repeated:
        found.left_out["further entries of the same image"] += file.repeated


def annotation_files(source: Path) -> list[Path]:
    """The files of a source; of a folder those with COCO's name for boxes, if there are any.

    Raises:
        DataError: there is none, or only such of other tasks.
    """
    files = files_of(source, ".json", "COCO annotations")
    if source.is_file():
        return files
    own = [path for path in files if path.name.startswith("instances_")]
    kept = own or [path for path in files if not path.name.startswith(_OTHER)]
    if not kept:
        raise DataError(f"source={source} has files of other tasks alone, as {files[0].name}; name one that has boxes")
    return kept


def folders(images: str, file: Path, source: Path) -> Images:
    """Where the images are: `images=`, else beside the file or its folder."""
    base = source if source.is_dir() else file.parent
    return image_folders(
        images, file.parent, file.parent.parent / "images", base, base.parent if base.name == "annotations" else base
    )


def read_file(path: Path) -> File:
    """Read and check one file."""
    content = read_json(path)
    names: dict[int | str, str] = {}
    images: dict[int | str, dict[str, Any]] = {}
    first: dict[int | str, int | str] = {}  # id of an image -> that of the first entry of its file
    by_file: dict[str, int | str] = {}
    for i, category in enumerate(entry(content, "categories", list, str(path))):
        where = f"{path}, categories[{i}]"
        number_, name = identifier(category, "id", where), entry(category, "name", str, where)
        if names.setdefault(number_, name) != name:  # two ids of one name are one class
            raise DataError(f"{where}: id {number_} is {name} here and {names[number_]} before")
    for i, image in enumerate(entry(content, "images", list, str(path))):
        where = f"{path}, images[{i}]"
        number_ = identifier(image, "id", where)
        if number_ in first:
            raise DataError(f"{where}: id {number_} is there twice")
        file = image.get("file_name")
        first[number_] = by_file.setdefault(file, number_) if isinstance(file, str) and file else number_
        if first[number_] == number_:
            images[number_] = image
    annotations: dict[int | str, list[Annotation]] = defaultdict(list)
    for i, annotation in enumerate(entry(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{i}]"
        image_id, category_id = identifier(annotation, "image_id", where), identifier(annotation, "category_id", where)
        if image_id not in first:
            raise DataError(f"{where}: image_id {image_id} is not among the images")
        if category_id not in names:
            told = ", ".join(map(str, [*names][:_SHOWN]))
            raise DataError(f"{where}: category_id {category_id} is not among the categories ({told})")
        crowd, ignored = (mark(annotation.get(key), key, where) for key in ("iscrowd", "ignore"))
        annotations[first[image_id]].append(Annotation(category_id, _box(annotation, where), crowd, ignored))
    by_id = sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0]))
    return File(path, dict(by_id), images, annotations, len(first) - len(images))


def record_of(
    number_: int | str, image: dict[str, Any], names: Sequence[Any], file: File, images: Images, source: Path
) -> Record:
    """The record of an image, still without annotations; it is called by the first of its names."""
    where = f"{file.path}, image {number_}"
    told = [name for name in names if isinstance(name, str) and name]
    if not told:
        raise DataError(f"{where}: no file_name")
    size = (number(image.get("width") or 0, "width", where), number(image.get("height") or 0, "height", where))
    split = guess_split(file.path.stem) or guess_split(file.path.parent.name if source.is_dir() else "")
    found = next(filter(None, (images.find(name, where) for name in told)), None)
    return Record(told[0], found, where, size if min(size) > 0 else None, split=split)


def _box(annotation: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of an annotation."""
    polygons = annotation.get("segmentation")
    if not annotation.get("bbox") and isinstance(polygons, list) and polygons:
        flat = [v for one in polygons for v in one] if isinstance(polygons[0], list) else polygons
        values = [number(value, "segmentation", where) for value in flat]
        if not values or len(values) % 2:
            raise DataError(f"{where}: no 'bbox', and its segmentation is not x, y, x, y, ...")
        return enclosing([*zip(values[::2], values[1::2], strict=True)])
    box = entry(annotation, "bbox", list, where)
    if len(box) != _NUMBERS:
        raise DataError(f"{where}: bbox has {len(box)} numbers, not 4: x, y, width, height")
    x, y, width, height = (number(value, "bbox", where) for value in box)
    return x, y, x + width, y + height
