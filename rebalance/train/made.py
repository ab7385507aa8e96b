"""What a run was made with, in its folder: beside `args.yaml`, which makes it again, what says whether that is so.

`rebalance.json` holds `loss` (what the criterion said of itself), `versions`, `data` (the YAML, and of each split the
images, the boxes and a hash of what the training reads of them), `regions` (likewise, of the splits that have some) and
`weights` (what was copied of a file, where it started from one).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.files import write_whole
from rebalance.versions import versions

FILE, SCHEMA = "rebalance.json", 1
COMPARED = ("loss", "versions", "data", "regions")


def of_labels(labels: Iterable[Mapping[str, Any]], root: Path) -> dict[str, Any]:
    """Number of images and boxes of a split, and a hash of them, whatever the folder is called.

    Args:
        labels: the host's entries: of each image its path, shape, classes and boxes.
        root: of the data set.

    Returns:
        `images`, `boxes` and `sha256` of the images' names and sizes in bytes, their shapes, classes and boxes.
    """
    images, boxes, parts = 0, 0, []
    for one in labels:
        file = Path(one["im_file"])
        name = Path(os.path.relpath(file, root)).as_posix()
        digest = hashlib.sha256(f"{name} {file.stat().st_size}".encode())
        for key in ("cls", "bboxes"):
            digest.update(np.ascontiguousarray(one[key], dtype=np.float32).tobytes())
        parts.append((name, digest.digest()))
        images, boxes = images + 1, boxes + len(one["cls"])
    total = hashlib.sha256(b"".join(part for _, part in sorted(parts)))
    return {"images": images, "boxes": boxes, "sha256": total.hexdigest()}


def of_regions(known: Mapping[str, tuple[Any, Any]], root: Path) -> dict[str, Any] | None:
    """Number of regions of a split, and a hash of them; None where there are none.

    Args:
        known: by image the boxes and rows of its regions, and of withheld objects, see `rebalance.train.regions`.
        root: of the data set.
    """
    count, parts = 0, []
    for file, (boxes, rows) in known.items():
        there = ~rows["withheld"]
        name, own = Path(os.path.relpath(file, root)).as_posix(), boxes[there].tobytes() + rows[there].tobytes()
        parts.append((name, hashlib.sha256(f"{name} ".encode() + own).digest()))
        count += int(there.sum())
    total = hashlib.sha256(b"".join(part for _, part in sorted(parts)))
    return {"regions": count, "sha256": total.hexdigest()} if count else None


def made_with(trainer: Any) -> dict[str, Any]:
    """What a training that is about to begin is made with."""
    data, root = trainer.data, Path(trainer.data["path"])
    splits = {"train": trainer.train_loader.dataset, trainer.args.split: trainer.test_loader.dataset}
    held = {name: of_labels(split.labels, root) for name, split in splits.items()}
    said = {name: of_regions(getattr(split, "known", {}), root) for name, split in splits.items()}
    return {
        "schema": SCHEMA,
        "loss": trainer.loss_ran,
        "versions": versions(),
        "data": {"yaml": str(data.get("yaml_file", "")), **held},
        "regions": {name: found for name, found in said.items() if found},
        "weights": list(trainer.weights_matched) if trainer.weights_matched else None,
    }


def write(folder: Path, made: Mapping[str, Any]) -> None:
    """Write it into a run's folder."""
    write_whole(folder / FILE, (json.dumps(made, indent=2) + "\n").encode())


def differences(folder: Path, made: Mapping[str, Any]) -> list[str] | None:
    """In what a run differs from that of a folder, in words; None where that one does not say what it was made with."""
    try:
        before = json.loads((folder / FILE).read_text("utf-8"))
        before = {"regions": made["regions"], **before}  # an earlier version did not say
        pairs = [(name, before[name], made[name]) for name in COMPARED]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found: list[str] = []
    for name, old, new in pairs:
        old, new = (x if isinstance(x, dict) else {} for x in (old, json.loads(json.dumps(new))))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key != "yaml":
                what = {"data": f"{key} images or labels", "regions": f"{key} regions"}.get(name, key)
                whole = isinstance(old.get(key) or new.get(key), dict)
                found.append(what if whole else f"{what} {old.get(key)} -> {new.get(key)}")
    return list(dict.fromkeys(found))
