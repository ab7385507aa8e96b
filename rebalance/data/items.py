"""The label files of a training split with their images, as data sets are made from them.

A data set that is made has `images/train/`, one link an image, and beside it `labels/train/` and the like, with names
that are the same on every machine. `read` finds what there is and names it, `link_images` and `content` lay it out,
`write` ends it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rebalance
from rebalance.data import dataset
from rebalance.data.dataset import DataSet
from rebalance.data.folder import Manifest, finish, link, manifest_hash, put, unique
from rebalance.data.labels import Labels
from rebalance.data.progress import progress
from rebalance.data.regions import Regions
from rebalance.errors import DataError

SPLIT = "train"
_SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))
NOT_COPIED = frozenset(
    (*dataset.SPLITS, "path", "minival", "validation", "download", "made_by", "masks_dir")
)  # name other paths


@dataclass(frozen=True)
class Item:
    """A label file and its images."""

    source: str  # the label file; need not exist
    label: str  # its new path below labels/, with /
    images: list[tuple[str, str, int]]  # source path, new path below images/, and how often the split names it
    data: bytes | None  # bytes of the label file, None without one
    labels: Labels
    carried: Labels  # withheld from the source before
    error: str | None  # why the label file cannot be used, with the line
    true: bytes | None  # bytes of the file with the true labels, where noise changed the source before
    region_data: bytes | None  # bytes of the region file, None without one
    regions: Regions


def read(source: DataSet) -> list[Item]:
    """All label files of the training split, sorted by their new names."""
    source.knowledge.require_matched()
    names = _new_names(source)
    grouped: dict[str, Counter[str]] = {}
    for image in source.images(SPLIT):
        grouped.setdefault(_label_key(image), Counter())[os.path.abspath(image)] += 1
    missing = [image for times in grouped.values() for image in times if not os.path.exists(image)]
    if missing:
        raise DataError(f"{source.file}: {len(missing)} images of {SPLIT} do not exist, the first is {missing[0]}")
    items = []
    for key in progress(sorted(grouped, key=names.__getitem__), "reading labels"):
        data, error = source.file_bytes(key), None
        try:
            found = source.parse(data or b"", key)
        except DataError as bad:
            found, error = source.parse(b""), str(bad).removeprefix(key).lstrip(",: ")
        new = f"{SPLIT}/{names[key]}"
        images = [(image, f"{new}.{image.rpartition('.')[-1]}", times) for image, times in grouped[key].items()]
        first = images[0][0]
        true = source.file_bytes(path) if (path := dataset.true_path(first)) else None
        items.append(
            Item(key, f"{new}.txt", images, data, found, source.withheld(first), error, true, *source.regions(first))
        )
    if all(item.data is None for item in items):
        raise DataError(
            f"{source.file}: no image of {SPLIT} has a label file; looked for {items[0].source} and the like"
        )
    refused = [f"{item.source}, {item.error}" for item in items if item.error]
    if len(refused) == len(items):
        raise DataError(f"{source.file}: no label file of {SPLIT} can be used: {refused[0]}")
    for reason in refused:
        print(f"warning: {reason}; copied as it is, Ultralytics leaves this image out", file=sys.stderr)
    return items


def _label_key(image: str) -> str:
    return os.path.abspath(dataset.label_path(image))


def _new_names(source: DataSet) -> dict[str, str]:
    """Source label file to its new name without suffix, the same on every machine.

    A name is the path below the entry of the split that has the image; with several entries the folder's own name comes
    first. Ultralytics replaces the last `images` of a path, so ours must be the last: folders of that name are left
    out. Names that are then equal get a number.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    prefixes: set[str] = set()
    entries = source.splits[SPLIT]
    for entry in entries:
        images = [os.path.abspath(image) for image in dataset.images_of(entry)]
        if not images:
            continue
        base = entry if os.path.isdir(entry) else os.path.commonpath([os.path.dirname(image) for image in images])
        own = next((part for part in reversed(Path(base).parts[1:]) if part != "images"), "images_")
        prefix = [unique(own, prefixes)] if len(entries) > 1 else []
        for image in images:
            key = _label_key(image)
            if key in names:
                continue
            parts = Path(os.path.relpath(image, base).rpartition(".")[0]).parts
            kept = (*(part for part in (*prefix, *parts[:-1]) if part != "images"), *parts[-1:])
            # a leading dot would hide the image from Ultralytics' search
            names[key] = unique("/".join(f"_{p}" if p.startswith(".") else p for p in kept) or "_", taken)
    return names


def _source_folders(source: DataSet, items: Sequence[Item]) -> set[Path]:
    """Folders that belong to the source: images, labels, and the folder that holds the two."""
    images = {image for item in items for image, *_ in item.images}
    images |= {os.path.realpath(image) for image in images}  # where they are links, also what they point to
    images |= {os.path.join(e, "x.jpg") for entries in source.splits.values() for e in entries if os.path.isdir(e)}
    folders: set[Path] = set()
    for pair in {(os.path.dirname(image), os.path.dirname(_label_key(image))) for image in images}:
        image, label = (Path(p).resolve() for p in pair)
        both = Path(os.path.commonpath([image, label]))
        if both.name in _SPLIT_FOLDERS:  # train/images, train/labels
            both = both.parent
        folders |= {image, label, both}
    return {folder for folder in folders if folder.name}  # without the root of the file system


def require_outside(source: DataSet, items: Sequence[Item], out: Path) -> None:
    """Raise DataError where the new folder would lie in the source."""
    if folder := inside(source, items, out):
        raise DataError(f"out={out} is inside the source data set ({folder}); choose a folder outside it")


def inside(source: DataSet, items: Sequence[Item], out: Path) -> Path | None:
    """The folder of the source in which a new one would lie, None where it is outside."""
    around = (out.resolve(), *out.resolve().parents)
    return next((folder for folder in sorted(_source_folders(source, items)) if folder in around), None)


def link_images(folder: Path, item: Item) -> list[str]:
    """Link the images of a label file into a new set; how each was linked."""
    return [link(os.path.realpath(image), folder / "images" / name) for image, name, _ in item.images]


def content(folder: Path, source: DataSet, items: Sequence[Item]) -> dict[str, Any]:
    """What the YAML of a new set says; a list of images beside it where one is named twice."""
    listed = [(name, times) for item in items for _, name, times in item.images]
    train = f"images/{SPLIT}"
    if any(times > 1 for _, times in listed):
        train = f"{SPLIT}.txt"
        put(folder / train, "".join(f"./images/{name}\n" * times for name, times in listed).encode())
    others = {s: e[0] if len(e) == 1 else list(e) for s, e in source.splits.items() if s != SPLIT}
    kept = {key: value for key, value in source.raw.items() if key not in NOT_COPIED}
    if source.knowledge.annotated:
        moved = {image: f"images/{name}" for item in items for image, name, _ in item.images}
        kept["annotated"] = source.knowledge.moved(moved, [split for split in source.splits if split != SPLIT])
    return {SPLIT: train, **others, **kept}


def write(
    folder: Path,
    source: DataSet,
    found: Sequence[Item],
    about: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
    labelled: int,
    how: Mapping[str, int],
) -> Manifest:
    """Write data.yaml and the manifest of a new set, whose files are there; returns the manifest.

    Args:
        folder: of the new set.
        source: what it was made from.
        found: its label files.
        about: what the manifest begins with, after `schema`.
        files: what it says of each of them: with `images`, `boxes` and `unreadable`.
        labelled: images that have boxes now.
        how: how many images were linked in which way.
    """
    manifest: Manifest = {
        "schema": 1,
        **about,
        "images": {
            "total": sum(len(file["images"]) for file in files),
            "labelled_before": sum(len(file["images"]) for file in files if file["boxes"]),
            "labelled": labelled,
            "unreadable": sum(len(file["images"]) for file in files if file["unreadable"]),
        },
        **source.knowledge.facts,
        "files": files,
    }
    manifest["sha256"] = manifest_hash(manifest)
    manifest["origin"] = {
        "data": str(source.file.absolute()),
        SPLIT: list(source.splits[SPLIT]),
        "images": how,
        "rebalance": rebalance.__version__,
    }
    finish(folder, content(folder, source, found), manifest)
    return manifest


def annotated(source: DataSet, item: Item) -> dict[str, Any]:
    """What a manifest says of the classes that `annotated` says were labelled, for each image; None: all."""
    if not source.knowledge.annotated:
        return {}
    known = (source.knowledge.labelled_classes(image) for image, *_ in item.images)
    return {"annotated": [None if classes is None else sorted(classes) for classes in known]}


def labels_sha256(source: DataSet) -> str:
    """SHA-256 over the training labels, by their new names: the same on every machine and in every derived set."""
    digest = hashlib.sha256()
    for key, name in sorted(_new_names(source).items(), key=lambda found: found[1]):
        data = source.file_bytes(key)
        own = "-" if data is None else hashlib.sha256(data).hexdigest()
        digest.update(f"{name}\n{own}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def regions_sha256(source: DataSet) -> str:
    """As `labels_sha256`, over what is known of the training images beside their labels; "" where that is nothing."""
    known, names = source.knowledge, _new_names(source)
    first: dict[str, str] = {}
    for image in source.images(SPLIT):
        first.setdefault(names[_label_key(image)], image)
    rows = list[str]()
    for name, image in sorted(first.items()):
        data, classes = source.regions(image)[0], known.labelled_classes(image)
        if data or classes is not None:
            rows.append(f"{name}\n{hashlib.sha256(data or b'').hexdigest()}\n{sorted(classes or ())}\n")
    if not rows and not known.facts:
        return ""
    return hashlib.sha256("".join([*rows, f"{known.facts}"]).encode("utf-8", "surrogateescape")).hexdigest()
