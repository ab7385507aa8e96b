"""`rebalance sparsify`: a copy of a data set whose training labels are incomplete, by a protocol and a seed.

    out/data.yaml       train: the folders below; val and test: the source's own, untouched; names as in the source
    out/images/train/   one link an image; never a linked folder, which would lead Ultralytics back to the full labels
    out/labels/train/   the lines that stay, byte-identical
    out/withheld/train/ the lines that went, under the same names (and those that were withheld from the source before)
    out/manifest.json   what was asked, what was reached, and the SHA-256 of every label file

The source is only read. Everything is written to a hidden folder beside `out` that is renamed at the end, so `out` is
either complete or not there.

A label file that Ultralytics would reject is copied as it is, with a warning: its image is left out of the training on
the new set as on the source, and its boxes do not count. Images that share a label file (`a.jpg`, `a.png`) share one
here too; an image that a list names twice is trained on twice here too (`train.txt` then replaces the folder).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import yaml
from numpy.typing import NDArray

import rebalance
from rebalance.data import dataset, labels, protocols
from rebalance.data.dataset import DataSet
from rebalance.data.demo import seafloor
from rebalance.data.labels import Labels
from rebalance.errors import ConfigError, DataError
from rebalance.settings import SparsifyFlags, convert, flags, require

_SPLIT = "train"
_SPLIT_FOLDERS = frozenset(("train", "val", "valid", "validation", "test"))
_NOT_COPIED = frozenset((*dataset.SPLITS, "path", "minival", "validation", "download", "masks_dir"))  # name other paths


class Counts(TypedDict):
    """Boxes of one class, or of all."""

    boxes: int
    withheld: int
    reached: float


class ClassCounts(Counts):
    """Boxes of one class."""

    id: int
    name: str


class Hashes(TypedDict):
    """SHA-256 of the three label files of an image; None where there is no file."""

    source: str | None
    label: str | None
    withheld: str | None


class FileEntry(TypedDict):
    """One label file; the names are relative to `images/`, `labels/` and `withheld/`."""

    label: str
    images: list[str]
    boxes: int
    withheld: int
    carried: int
    unreadable: str | None
    sha256: Hashes


class ImageCounts(TypedDict):
    """Images of the training split, each counted once."""

    total: int
    labelled_before: int
    labelled: int
    unreadable: int


class Manifest(TypedDict):
    """`manifest.json`.

    `asked` is the rate for the protocols that have one, else None; `reached` is withheld boxes ÷ boxes. `sha256` covers
    everything but `origin`, which holds what differs between machines: the same labels and flags give the same hash.
    """

    schema: int
    protocol: str
    asked: float | None
    keep_one: bool
    seed: int
    reached: float
    total: Counts
    classes: list[ClassCounts]
    images: ImageCounts
    files: list[FileEntry]
    sha256: str
    origin: dict[str, Any]


@dataclass(frozen=True)
class _Item:
    """A label file and its images."""

    name: str  # new path below images/train, without suffix, with /
    images: tuple[str, ...]  # source paths
    times: tuple[int, ...]  # how often the split names each image
    data: bytes | None  # bytes of the label file, None without one
    labels: Labels
    carried: bytes  # lines that were withheld from the source before
    carried_boxes: int
    error: str | None  # why the label file cannot be used, with the line

    def image_name(self, image: str) -> str:
        """Path of an image below images/."""
        return f"{_SPLIT}/{self.name}.{image.rpartition('.')[-1]}"


def sparsify(given: SparsifyFlags) -> Manifest:
    """Make a data set with some of the training labels withheld.

    Args:
        given: the flags; `data` and `out` are required.

    Returns:
        the manifest, as written to `out/manifest.json`.

    Raises:
        ConfigError: a flag is missing, or has no meaning with the protocol.
        DataError: the source cannot be used, `out` exists or lies in the source, or writing failed. Nothing is left.
    """
    require(given, "data", "out")
    for name in flags(SparsifyFlags):
        convert(SparsifyFlags, name, getattr(given, name))
    if given.keep_one and given.protocol != "percent":
        raise ConfigError(f"keep_one=True goes with protocol=percent, not with protocol={given.protocol}")
    out = Path(given.out)
    if os.path.lexists(out):
        raise DataError(f"out={out} exists; nothing is overwritten, choose another folder")
    source = dataset.load(seafloor.resolve(given.data))
    items = _read(source)
    for folder in sorted(_source_folders(source, items)):
        if folder in (out.resolve(), *out.resolve().parents):
            raise DataError(f"out={out} is inside the source data set ({folder}); choose a folder outside it")
    gone = _choose(items, given)

    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        partial.mkdir(parents=True)
        manifest = _write(partial, source, items, gone, given)
        os.rename(partial, out)
    except OSError as error:
        raise DataError(f"out={out} cannot be written: {error.strerror} ({error.filename})") from error
    finally:  # gone after the rename; also on Ctrl-C
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def load_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a sparsified set.

    Raises:
        DataError: there is none, or its hash does not fit its content.
    """
    file = Path(folder) / "manifest.json"
    try:
        manifest = cast("Manifest", json.loads(file.read_text(encoding="utf-8")))
        if manifest["sha256"] != _manifest_hash(manifest):
            raise DataError(f"{file} was changed after it was written: its hash does not fit")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file} is not a manifest that sparsify wrote") from None
    return manifest


def summary(manifest: Manifest) -> str:
    """A few lines for the user: what was asked and reached, overall and per class."""
    total, images = manifest["total"], manifest["images"]
    asked = "" if manifest["asked"] is None else f", asked {manifest['asked']:.1%}"
    rows = [(c["name"], c["boxes"], c["withheld"], c["reached"]) for c in manifest["classes"] if c["boxes"]]
    width = max(len(name) for name in ["all", *(row[0] for row in rows)])
    lines = [
        f"{manifest['protocol']}, seed {manifest['seed']}{', keep_one' if manifest['keep_one'] else ''}: "
        f"{total['withheld']} of {total['boxes']} boxes withheld ({total['reached']:.1%}{asked})",
        f"{images['total']} images, {images['labelled']} with boxes ({images['labelled_before']} before)"
        + (f", {images['unreadable']} with an unreadable label file" if images["unreadable"] else ""),
        f"{'class':<{width}}  {'boxes':>8}  {'withheld':>8}  reached",
    ]
    rows.append(("all", total["boxes"], total["withheld"], total["reached"]))
    lines += [f"{name:<{width}}  {boxes:>8}  {gone:>8}  {reached:>7.1%}" for name, boxes, gone, reached in rows]
    return "\n".join([*lines, f"sha256 {manifest['sha256']}"])


def _read(source: DataSet) -> list[_Item]:
    """All label files of the training split, sorted by their new names."""
    names = _new_names(source)
    grouped: dict[str, dict[str, int]] = {}
    for image in source.images(_SPLIT):
        times, path = grouped.setdefault(_label_key(image), {}), os.path.abspath(image)
        times[path] = times.get(path, 0) + 1
    missing = [image for times in grouped.values() for image in times if not os.path.exists(image)]
    if missing:
        raise DataError(f"{source.file}: {len(missing)} images of {_SPLIT} do not exist, the first is {missing[0]}")
    order = sorted(grouped, key=names.__getitem__)
    items = [_item(source, names[key], key, grouped[key]) for key in _progress(order, "reading labels")]
    if all(item.data is None for item in items):
        raise DataError(f"{source.file}: no image of {_SPLIT} has a label file; looked for {order[0]} and the like")
    bad = [f"{key}, {item.error}" for key, item in zip(order, items, strict=True) if item.error]
    if len(bad) == len(items):
        raise DataError(f"{source.file}: no label file of {_SPLIT} can be used: {bad[0]}")
    for error in bad:
        print(f"warning: {error}; copied as it is, Ultralytics leaves this image out", file=sys.stderr)
    return items


def _item(source: DataSet, name: str, label: str, times: dict[str, int]) -> _Item:
    count, error = len(source.names), None
    data = labels.read_bytes(Path(label))
    try:
        parsed = labels.parse(data or b"", classes=count, keypoints=source.keypoints, name=label)
    except DataError as bad:
        parsed, error = labels.parse(b"", classes=count), str(bad).removeprefix(label).lstrip(",: ")
    before = source.withheld(next(iter(times)))
    carried = before.pick(np.ones(len(before), dtype=np.bool_))
    return _Item(name, tuple(times), tuple(times.values()), data, parsed, carried, len(before), error)


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
    entries = source.splits[_SPLIT]
    for entry in entries:
        images = dataset.images_of(entry)
        if not images:
            continue
        listed = [os.path.dirname(os.path.abspath(image)) for image in images]
        base = entry if os.path.isdir(entry) else os.path.commonpath(listed)
        own = next((part for part in reversed(Path(base).parts[1:]) if part != "images"), "images_")
        prefix = [_unique(own, prefixes)] if len(entries) > 1 else []
        for image in images:
            key = _label_key(image)
            if key in names:
                continue
            parts = Path(os.path.relpath(os.path.abspath(image), base).rpartition(".")[0]).parts
            kept = (*(part for part in (*prefix, *parts[:-1]) if part != "images"), *parts[-1:])
            # a leading dot would hide the image from Ultralytics' search
            names[key] = _unique("/".join(f"_{p}" if p.startswith(".") else p for p in kept) or "_", taken)
    return names


def _unique(name: str, taken: set[str]) -> str:
    number, result = 1, name
    while result in taken:
        number += 1
        result = f"{name}-{number}"
    taken.add(result)
    return result


def _source_folders(source: DataSet, items: Sequence[_Item]) -> set[Path]:
    """Folders that belong to the source: images, labels, and the folder that holds the two."""
    pairs = {(os.path.dirname(i), os.path.dirname(_label_key(i))) for item in items for i in item.images}
    # where the images are links, also what they point to
    real = {os.path.realpath(i) for item in items for i in item.images}
    pairs |= {(os.path.dirname(i), os.path.dirname(_label_key(i))) for i in real}
    pairs |= {
        (entry, os.path.dirname(_label_key(os.path.join(entry, "x.jpg"))))
        for entries in source.splits.values() for entry in entries if os.path.isdir(entry)
    }  # fmt: skip
    folders: set[Path] = set()
    for pair in pairs:
        image, label = (Path(p).resolve() for p in pair)
        both = Path(os.path.commonpath([image, label]))
        if both.name in _SPLIT_FOLDERS:  # train/images, train/labels
            both = both.parent
        folders |= {image, label, both}
    return {folder for folder in folders if folder.name}  # without the root of the file system


def _choose(items: Sequence[_Item], given: SparsifyFlags) -> list[NDArray[np.bool_]]:
    """For every item which of its boxes go."""
    sizes = [len(item.labels) for item in items]
    gone = protocols.withhold(
        np.repeat(np.arange(len(items)), sizes),
        np.concatenate([item.labels.classes for item in items]),
        protocol=given.protocol,
        rate=given.rate,
        keep_one=given.keep_one,
        rng=np.random.default_rng(given.seed),
    )
    return np.split(gone, np.cumsum(sizes)[:-1])


def _write(
    folder: Path, source: DataSet, items: Sequence[_Item], gone: Sequence[NDArray[np.bool_]], given: SparsifyFlags
) -> Manifest:
    """Write the whole data set below `folder`, the manifest last."""
    files: list[FileEntry] = []
    how: dict[str, int] = {}
    for item, mask in _progress(list(zip(items, gone, strict=True)), "writing"):
        for image in item.images:
            way = _link(os.path.realpath(image), folder / "images" / item.image_name(image))
            how[way] = how.get(way, 0) + 1
        files.append(_write_labels(folder, item, mask))
    listed = [(item.image_name(i), n) for item in items for i, n in zip(item.images, item.times, strict=True)]
    train = f"images/{_SPLIT}"
    if any(n > 1 for _, n in listed):
        train = f"{_SPLIT}.txt"
        _put(folder / train, "".join(f"./images/{name}\n" * n for name, n in listed).encode())
    content = {key: value for key, value in source.raw.items() if key not in _NOT_COPIED}
    content = {"train": train, **{s: _plain(e) for s, e in source.splits.items() if s != _SPLIT}, **content}
    _put(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())

    manifest = _manifest(source, items, gone, given, files)
    manifest["origin"] = {
        "data": str(source.file.absolute()),
        _SPLIT: list(source.splits[_SPLIT]),
        "images": how,
        "rebalance": rebalance.__version__,
    }
    _put(folder / "manifest.json", (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def _write_labels(folder: Path, item: _Item, mask: NDArray[np.bool_]) -> FileEntry:
    """Write what stays and what goes of one label file; a file that loses nothing is copied as it is."""
    label = f"{_SPLIT}/{item.name}.txt"
    kept = item.labels.pick(~mask) if mask.any() else item.data
    lost = item.labels.pick(mask)
    if item.carried:
        lost += b"" if not lost or lost.endswith((b"\n", b"\r")) else b"\n"
        lost += item.carried
    if kept is not None:  # no label file stays no label file; a file that lost everything is an empty one
        _put(folder / "labels" / label, kept)
    if lost:
        _put(folder / "withheld" / label, lost)
    return {
        "label": label,
        "images": [item.image_name(image) for image in item.images],
        "boxes": len(mask),
        "withheld": int(mask.sum()),
        "carried": item.carried_boxes,
        "unreadable": item.error,
        "sha256": {"source": _sha256(item.data), "label": _sha256(kept), "withheld": _sha256(lost or None)},
    }


def _manifest(
    source: DataSet,
    items: Sequence[_Item],
    gone: Sequence[NDArray[np.bool_]],
    given: SparsifyFlags,
    files: list[FileEntry],
) -> Manifest:
    every, mask = np.concatenate([item.labels.classes for item in items]), np.concatenate(gone)
    boxes, withheld = (np.bincount(ids, minlength=len(source.names)).tolist() for ids in (every, every[mask]))
    total = _counts(len(every), int(mask.sum()))
    sizes = [len(item.images) for item in items]
    manifest: Manifest = {
        "schema": 1,
        "protocol": given.protocol,
        "asked": given.rate if protocols.uses_rate(given.protocol) else None,
        "keep_one": given.keep_one,
        "seed": given.seed,
        "reached": total["reached"],
        "total": total,
        "classes": [{"id": i, "name": n, **_counts(boxes[i], withheld[i])} for i, n in source.names.items()],
        "images": {
            "total": sum(sizes),
            "labelled_before": sum(n for n, item in zip(sizes, items, strict=True) if len(item.labels)),
            "labelled": sum(n for n, m in zip(sizes, gone, strict=True) if not m.all()),
            "unreadable": sum(n for n, item in zip(sizes, items, strict=True) if item.error),
        },
        "files": files,
        "sha256": "",
        "origin": {},
    }
    manifest["sha256"] = _manifest_hash(manifest)
    return manifest


def _counts(boxes: int, withheld: int) -> Counts:
    return {"boxes": boxes, "withheld": withheld, "reached": withheld / boxes if boxes else 0.0}


def _manifest_hash(manifest: Manifest) -> str:
    content = {key: value for key, value in manifest.items() if key not in ("sha256", "origin")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _plain(entries: tuple[str, ...]) -> str | list[str]:
    return entries[0] if len(entries) == 1 else list(entries)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _link(target: str, path: Path) -> str:
    """Make `path` the image `target`: a link, or a copy where the file system has neither kind; returns which."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for way, make in (("symlink", os.symlink), ("hard link", os.link)):
        try:
            make(target, path)
        except FileExistsError:  # copying would follow the link into the source
            raise
        except (OSError, NotImplementedError):
            continue
        return way
    shutil.copy2(target, path)
    return "copy"


def _progress(things: Sequence[Any], what: str, every: float = 2.0) -> Iterator[Any]:
    """Yield the things and, where it takes long, say on stderr how far it is (interval in seconds)."""
    said = time.monotonic()
    for done, thing in enumerate(things):
        if time.monotonic() - said > every:
            said = time.monotonic()
            print(f"sparsify: {what} {done}/{len(things)}", file=sys.stderr, flush=True)
        yield thing
