"""What a run was made with, in its folder: beside `args.yaml`, which makes it again, what says whether that is so.

`rebalance.json` holds `loss` (what the criterion said of itself), `versions`, `data` (the YAML, and of each split the
images, the boxes and a hash of what the training reads of them) and `weights` (what was copied of a file, where it
started from one).
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
COMPARED = ("loss", "versions", "data")


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


def made_with(trainer: Any) -> dict[str, Any]:
    """What a training that is about to begin is made with."""
    data, root = trainer.data, Path(trainer.data["path"])
    splits = {"train": trainer.train_loader.dataset, trainer.args.split: trainer.test_loader.dataset}
    held = {name: of_labels(split.labels, root) for name, split in splits.items()}
    return {
        "schema": SCHEMA,
        "loss": trainer.loss_ran,
        "versions": versions(),
        "data": {"yaml": str(data.get("yaml_file", "")), **held},
        "weights": list(trainer.weights_matched) if trainer.weights_matched else None,
    }


def write(folder: Path, made: Mapping[str, Any]) -> None:
    """Write it into a run's folder."""
    write_whole(folder / FILE, (json.dumps(made, indent=2) + "\n").encode())


def differences(folder: Path, made: Mapping[str, Any]) -> list[str] | None:
    """In what a run differs from that of a folder, in words; None where that one does not say what it was made with."""
    try:
        before = json.loads((folder / FILE).read_text("utf-8"))
        pairs = [(name, before[name], made[name]) for name in COMPARED]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found: list[str] = []
    for name, old, new in pairs:
        old, new = (x if isinstance(x, dict) else {} for x in (old, json.loads(json.dumps(new))))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and key != "yaml":
                what = f"{key} images or labels" if name == "data" else key
                found.append(what if isinstance(new.get(key), dict) else f"{what} {old.get(key)} -> {new.get(key)}")
    return found
