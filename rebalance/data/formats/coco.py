"""COCO JSON: images, categories, annotations, one file a split.

A crowd (`iscrowd: 1`) is an unknown region of its class: there are many, and they are not labelled one by one. An
image without annotations was looked at: it gets an empty label file. Class numbers follow the order of the category
ids, which may have gaps. The split is in the name of the file or of its folder.

Several files whose categories differ: each was labelled for its own, and data.yaml says so (`annotated`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance.data.formats.reading import (
    Images,
    entry,
    files_of,
    folder_names,
    image_folders,
    number,
    read_json,
    shared_names,
    source_path,
)  # fmt: skip
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region, guess_split
from rebalance.data.progress import progress
from rebalance.errors import DataError

_NUMBERS = 4
_OTHER = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")  # COCO's own files of other tasks


@dataclass(frozen=True)
class File:
    """One file, checked."""

    path: Path
    names: dict[int, str]  # category id -> name, by id
    images: list[dict[str, Any]]
    annotations: dict[int, list[tuple[str, dict[str, Any]]]]  # image id -> place and annotation


def read(given: ConvertFlags) -> Found:
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
        for image in progress(file.images, f"convert: reading {file.path.name}"):
            record = record_of(image, image.get("file_name"), file, images, source)
            record.name = f"{prefix}/{record.name}" if prefix else record.name
            for where, annotation in file.annotations.get(image["id"], ()):
                box, name = box_of(annotation, where), file.names[annotation["category_id"]]
                if annotation.get("iscrowd", 0):
                    record.regions.append(Region(True, [name], box))
                else:
                    record.boxes.append(Box(name, *box))
            found.records.append(record)
        if differ:
            found.annotated[prefix] = list(dict.fromkeys(file.names.values()))
    return found


def annotation_files(source: Path) -> list[Path]:
    """The files of a source; of a folder those with COCO's name for boxes, if there are any."""
    files = files_of(source, ".json", "COCO annotations")
    if source.is_file():
        return files
    own = [path for path in files if path.name.startswith("instances_")]
    return own or [path for path in files if not path.name.startswith(_OTHER)]


def folders(images: str, file: Path, source: Path) -> Images:
    """Where the images are: `images=`, else beside the file or its folder."""
    base = source if source.is_dir() else file.parent
    return image_folders(
        images, file.parent, file.parent.parent / "images", base, base.parent if base.name == "annotations" else base
    )


def read_file(path: Path) -> File:
    """Read and check one file."""
    content = read_json(path)
    names: dict[int, str] = {}
    images: dict[int, dict[str, Any]] = {}
    for i, category in enumerate(entry(content, "categories", list, str(path))):
        where = f"{path}, categories[{i}]"
        number_, name = entry(category, "id", int, where), entry(category, "name", str, where)
        if number_ in names:
            raise DataError(f"{where}: id {number_} is there twice")
        names[number_] = name  # two ids of one name are one class
    for i, image in enumerate(entry(content, "images", list, str(path))):
        where = f"{path}, images[{i}]"
        if entry(image, "id", int, where) in images:
            raise DataError(f"{where}: id {image['id']} is there twice")
        images[image["id"]] = image
    annotations: dict[int, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for i, annotation in enumerate(entry(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{i}]"
        if entry(annotation, "image_id", int, where) not in images:
            raise DataError(f"{where}: image_id {annotation['image_id']} is not among the images")
        if entry(annotation, "category_id", int, where) not in names:
            raise DataError(f"{where}: category_id {annotation['category_id']} is not among the categories")
        annotations[annotation["image_id"]].append((where, annotation))
    return File(path, dict(sorted(names.items())), list(images.values()), annotations)


def record_of(image: dict[str, Any], name: Any, file: File, images: Images, source: Path) -> Record:
    """The record of an image, still without annotations."""
    where = f"{file.path}, image {image['id']}"
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: no file_name")
    size = (number(image.get("width", 0), "width", where), number(image.get("height", 0), "height", where))
    split = guess_split(file.path.stem) or guess_split(file.path.parent.name if source.is_dir() else "")
    return Record(name, images.find(name, where), where, size if min(size) > 0 else None, split=split)


def box_of(annotation: dict[str, Any], where: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of an annotation."""
    box = entry(annotation, "bbox", list, where)
    if len(box) != _NUMBERS:
        raise DataError(f"{where}: bbox has {len(box)} numbers, not 4: x, y, width, height")
    x, y, width, height = (number(value, "bbox", where) for value in box)
    return x, y, x + width, y + height
