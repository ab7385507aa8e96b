"""A data set with a part of another's training images: links, and copies of the files beside them.

out/data.yaml       train: the folder below; val and test: the source's own; names as in the source
out/images/train/   one link an image, numbered in the order of the source
out/labels/train/   and withheld/, true/, regions/: the files of these images, byte-identical
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from rebalance.data import dataset
from rebalance.data.dataset import DataSet
from rebalance.data.folder import finish, link, new_folder, put
from rebalance.data.items import NOT_COPIED
from rebalance.data.labels import read_bytes

_BESIDE = {
    "labels": dataset.label_path, "withheld": dataset.withheld_path, "true": dataset.true_path,
    "regions": dataset.region_path,
}  # fmt: skip


def part(source: DataSet, images: Collection[str], out: Path) -> Path:
    """Make the data set; returns its YAML.

    Args:
        source: only read.
        images: those of its training images that are in the new set.
        out: folder to make.

    Raises:
        DataError: `out` exists, or cannot be written.
    """
    chosen = {*images}
    moved: dict[str, str] = {}
    with new_folder(out) as folder:
        for number, image in enumerate(source.images("train")):
            if image not in chosen:
                continue
            name = f"train/{number:07d}.{image.rpartition('.')[-1]}"
            link(os.path.realpath(image), folder / "images" / name)
            moved[image] = f"images/{name}"
            for kind, beside in _BESIDE.items():
                data = read_bytes(path) if (path := beside(image)) else None
                if data is not None:
                    put((folder / kind / name).with_suffix(".txt"), data)
        others = {s: e[0] if len(e) == 1 else list(e) for s, e in source.splits.items() if s != "train"}
        content = {key: value for key, value in source.raw.items() if key not in NOT_COPIED}
        if source.knowledge.annotated:
            content["annotated"] = source.knowledge.moved(moved, [*others])
        origin = {"data": str(source.file.absolute())}
        finish(folder, {"train": "images/train", **others, **content}, {"images": len(moved), "origin": origin})
    return out / "data.yaml"
