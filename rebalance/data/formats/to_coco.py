"""Back from Ultralytics' layout to COCO JSON.

    out/annotations/instances_<split>.json      out/images/<split>/: one link an image

Class numbers become category ids from 1. An unknown region becomes a crowd of each of its classes, which is how
COCO's evaluation passes over detections; a background region has no place in COCO and is counted. An image without a
label file is one without annotations there, as everywhere in COCO.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.data import dataset
from rebalance.data.dataset import DataSet
from rebalance.data.folder import free, link, new_folder, put
from rebalance.data.formats.reading import image_size
from rebalance.data.progress import progress
from rebalance.errors import DataError
from rebalance.settings import setting

_BACKGROUND = "background regions, which COCO cannot say"
_NO_FILE = "images without a label file, which COCO reads as looked at"
_BELOW = "images with unknown_below, which COCO cannot say"


@dataclass(frozen=True, kw_only=True)
class ToCocoFlags:
    """`rebalance convert to-coco`."""

    data: str = setting("", "data set YAML (Ultralytics detection format)")
    out: str = setting("", "folder to make; must not exist")


def write(given: ToCocoFlags) -> dict[str, Any]:
    """Write a data set as COCO JSON; returns its counts by split.

    Raises:
        DataError: it cannot be read, an image is missing, or `out` exists or lies in it. Nothing is left.
    """
    from rebalance.data.demo.seafloor import built_in

    out = free(given.out)
    source = dataset.load(built_in(given.data))
    there = [split for split in source.splits if all(os.path.exists(entry) for entry in source.splits[split])]
    for split in there:
        for entry in source.splits[split]:
            if Path(entry).resolve() in out.resolve().parents:
                raise DataError(f"out={out} is inside the source data set ({entry}); choose a folder outside it")
    counts = {}
    with new_folder(out) as folder:
        for split in there:
            content, counts[split] = _split(source, split, folder)
            if source.knowledge.unknown_below:
                counts[split][_BELOW] = counts[split]["images"]
            put(folder / "annotations" / f"instances_{split}.json", json.dumps(content, ensure_ascii=False).encode())
    return counts


def summary(counts: dict[str, Counter[str]]) -> str:
    """A line a split."""
    keys = ("images", "boxes", "crowds")
    lines = [f"{split}: {', '.join(f'{count[key]} {key}' for key in keys)}" for split, count in counts.items()]
    total = sum(counts.values(), Counter[str]())
    for key in (_BACKGROUND, _NO_FILE, _BELOW):
        if total[key]:
            lines.append(f"note: {total[key]} {key}")
    return "\n".join(lines)


def _split(source: DataSet, split: str, folder: Path) -> tuple[dict[str, Any], Counter[str]]:
    """The content of one file, and what is in it."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    count: Counter[str] = Counter()
    paths = list(dict.fromkeys(source.images(split)))
    base = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    for path in progress(paths, f"convert: {split}"):
        width, height = image_size(Path(path), path)
        name = Path(os.path.relpath(os.path.abspath(path), base)).as_posix()
        link(os.path.realpath(path), folder / "images" / split / name)
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        found, known = source.labels(path), source.knowledge.of(path)
        rows = [(int(number), box, 0) for number, box in zip(found.classes, found.boxes_xywh_norm, strict=True)]
        for mask, unknown, box in zip(known.classes, known.unknown, known.boxes_xywh_norm, strict=True):
            rows += [(number, box, 1) for number in np.flatnonzero(mask).tolist() if unknown]
            count[_BACKGROUND] += not unknown
        for number, box, crowd in rows:
            x, y, w, h = (float(str(value)) for value in box)  # the digits of the file, not those of float32
            corner = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": len(images), "category_id": number + 1, "bbox": corner,
                    "area": corner[2] * corner[3], "iscrowd": crowd, "segmentation": [],
                }
            )  # fmt: skip
            count["crowds" if crowd else "boxes"] += 1
        count["images"] += 1
        # where such an image is unknown it has crowds now
        count[_NO_FILE] += source.knowledge.unlabelled != "unknown" and not source.has_labels(path)
    categories = [{"id": number + 1, "name": name} for number, name in source.names.items()]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}, count
