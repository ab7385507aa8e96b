"""Writes what a format was read into as a data set in Ultralytics' layout.

    out/data.yaml              train, val, test; names; `annotated` and `unlabelled` where something is known
    out/images/<split>/        one link an image, or the frame that was cut out of a video
    out/labels/<split>/        `class x y w h`; an empty file: looked at, nothing there; none: nobody looked
    out/regions/<split>/       of the images that have regions
    out/preview.jpg            some images with their labels and regions
    out/manifest.json          as follows

The source is only read. All is written to a hidden folder beside `out` that is renamed at the end. A killed or
interrupted run leaves that folder; the same command goes on from it, and takes the images that are in it as they are.

The manifest, in this order:

    schema    1
    format    and the flags that decide what is in the set
    total     {images, boxes, unlabelled, unknown, background}; the last two are regions
    splits    the same of each split, and of each class its boxes
    left_out  what of the source has no place in the set, and how often
    notes     what was decided where the source leaves it open
    missing   images that are not there
    files     one an image: image, label, boxes, unknown, background, sha256 {label, regions} (null: there is no file)
    sha256    of everything but `origin`
    origin    what differs between machines: source, images, how they were linked, rebalance (version)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import rebalance
from rebalance.data import regions
from rebalance.data.folder import Manifest, continued_folder, finish, free, link, manifest_hash, put, unique
from rebalance.data.formats import preview, video
from rebalance.data.formats.reading import image_size
from rebalance.data.formats.record import SPLITS, ConvertFlags, Format, Found, Frame, Record
from rebalance.data.progress import progress
from rebalance.data.regions import Regions
from rebalance.errors import ConfigError, DataError
from rebalance.settings import as_dict, classes_of

_SELDOM = {"unlabelled": "nobody looked at", "unknown": "unknown regions", "background": "background regions"}
_BEYOND = 2e-6  # of the image; a box that reaches farther out is cut. Less is the rounding of six digits
_SHAPE = 0.01  # relative; sizes that differ more than this in their ratio show different things


@dataclass(frozen=True)
class _Item:
    """An image as it is written."""

    record: Record
    name: str  # below images/, with its split
    lines: tuple[str, ...]
    classes: tuple[int, ...]  # of the lines
    regions: Regions


def write(name: str, row: Format, given: ConvertFlags) -> Manifest:
    """Read a source and write the data set; returns its manifest.

    Raises:
        ConfigError: a flag has no effect, or names a class that is not there.
        DataError: the source cannot be read, or `out` exists or lies in it. Nothing is left.
    """
    out = free(given.out)
    found = row.read(given)
    _outside(out, given, found)
    if not found.records:
        raise DataError(f"source={given.source} tells of no image")
    names = _names(found, given.classes)
    left, notes = found.left_out.copy(), list(found.notes)
    records, missing = _present(found, given)
    records = _split(_empty(records, given.empty), given, notes)
    items = _items(records, names, left, notes)
    asked = {key: value for key, value in as_dict(given).items() if key not in ("source", "images", "out")}
    key = json.dumps([name, asked, *(os.path.abspath(p) if p else "" for p in (given.source, given.images))])
    with continued_folder(out, hashlib.sha256(key.encode()).hexdigest()[:12]) as folder:
        _clear(folder, items)
        how, cut = _images(folder, items)
        if cut:
            left["frames that their video does not have"] += len(cut)
            missing += cut
        manifest = _manifest({"format": name, **asked}, items, names, left, notes, missing, folder)
        manifest["origin"] = {
            "source": os.path.abspath(given.source),
            "images": os.path.abspath(given.images) if given.images else "",
            "linked": dict(how),
            "rebalance": rebalance.__version__,
        }
        drawn = [(folder / "images" / item.name, item.name, item.lines, item.regions) for item in items]
        if picture := preview.draw([row for row in drawn if row[0].exists()], names):
            put(folder / "preview.jpg", picture)
        finish(folder, _yaml(folder, items, names, found, missing), manifest)
    for reason in notes:
        print(f"note: {reason}", file=sys.stderr)
    if not manifest["total"]["boxes"]:
        print("warning: no image has a box, so nothing can be learned from it", file=sys.stderr)
    if missing:
        print(f"warning: {len(missing)} images are not there, the first is {missing[0]}", file=sys.stderr)
    return manifest


def summary(manifest: Manifest) -> str:
    """A few lines for the user: images, boxes and regions of each split, and boxes of each class."""
    splits = manifest["splits"]
    names = list(manifest["splits"][next(iter(splits))]["classes"])
    kept = [name for name in names if any(split["classes"][name] for split in splits.values())]
    rows = [
        ("", *splits),
        *((key, *(str(split[key]) for split in splits.values())) for key in ("images", "boxes")),
        *(
            (title, *(str(split[key]) for split in splits.values()))
            for key, title in _SELDOM.items()
            if manifest["total"][key]
        ),
        *((name, *(str(split["classes"][name]) for split in splits.values())) for name in kept),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    if len(kept) < len(names):
        lines.append(f"{len(names) - len(kept)} more classes without a box")
    lines += [f"left out: {count} {what}" for what, count in manifest["left_out"].items()]
    if manifest["missing"]:
        lines.append(f"not there: {len(manifest['missing'])} images, see manifest.json")
    return "\n".join([*lines, f"sha256 {manifest['sha256']}"])


def _outside(out: Path, given: ConvertFlags, found: Found) -> None:
    """Refuse an `out` in a folder of the source; beside a source that is one file it may lie."""
    folders = [Path(p) for p in (given.source, given.images) if p and Path(p).is_dir()]
    for folder in folders:
        if folder.resolve() in out.resolve().parents:
            raise DataError(f"out={out} is inside the source ({folder}); choose a folder outside it")
    if out.resolve() in (path.resolve() for path in found.files):
        raise DataError(f"out={out} is a file of the source")


def _names(found: Found, kept: str) -> list[str]:
    """The classes of the new set."""
    names = found.names
    if not kept:
        if not names:
            why = ", ".join(f"{count} {what}" for what, count in found.left_out.items())
            raise DataError("the source names no class" + (f"; it has {why}" if why else ""))
        return list(names)
    return classes_of(kept, names)


def _present(found: Found, given: ConvertFlags) -> tuple[list[Record], list[str]]:
    """The records that are written, and the names of the images that are not there."""
    gone = [record for record in found.records if record.image is None]
    if found.labels_alone:
        return found.records, [record.name for record in gone]
    if len(gone) == len(found.records):
        raise DataError(
            f"no image is there: {gone[0].where} tells of {gone[0].name}; "
            + (f"images={given.images} has none of them" if given.images else "give their folder: images=")
        )
    return [record for record in found.records if record.image is not None], [record.name for record in gone]


def _empty(records: list[Record], meaning: str) -> list[Record]:
    """Records in which those without annotations mean what the user says."""
    for record in records if meaning != "format" else ():
        if not record.boxes and not record.regions:
            record.labelled = meaning == "nothing"
    return records


def _split(records: list[Record], given: ConvertFlags, notes: list[str]) -> list[Record]:
    """Records with their splits, drawn where the source says none."""
    told = [record.split for record in records if record.split]
    drawn = given.val != ConvertFlags.val or given.test != ConvertFlags.test or given.seed != ConvertFlags.seed
    if drawn and (told or given.split != "auto"):
        why = f"split={given.split}" if given.split != "auto" else "the source says the splits"
        raise ConfigError(f"val, test and seed have no effect: {why}")
    if given.split != "auto":
        return [replace(record, split=given.split) for record in records]
    if told:
        if len(told) < len(records):
            record = next(record for record in records if not record.split)
            raise DataError(
                f"{record.where}: of which split {record.name} is, is not said, of others it is; give split="
            )
        return records
    if given.val + given.test > 1:
        raise ConfigError(f"val={given.val:g} and test={given.test:g} are more than all images")
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.name):
        groups.setdefault(record.group or record.name, []).append(record)
    keys = list(groups)
    random.Random(given.seed).shuffle(keys)
    made: list[Record] = []
    spared = 0 if drawn else 1  # a group that stays for training, unless somebody asks otherwise
    for split, share in (("val", given.val), ("test", given.test), ("train", 1.0)):
        wanted, count = math.floor(share * len(records) + 0.5), 0
        while keys and (split == "train" or (count < wanted and len(keys) > spared)):
            made += [replace(record, split=split) for record in groups[keys[-1]]]
            count += len(groups[keys.pop()])
    counts = Counter(record.split for record in made)
    if not counts["train"]:
        raise DataError(
            f"no image is left for training: {len(groups)} images or groups of them, val={given.val:g}; "
            "give val=0 or split=train"
        )
    parts = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
    notes.append(f"the source says no splits: {parts} images were drawn with seed {given.seed} (val=, test=, split=)")
    return made


def _items(records: Sequence[Record], names: Sequence[str], left: Counter[str], notes: list[str]) -> list[_Item]:
    """Label lines and regions of every image, sorted by their new names."""
    number = {name: i for i, name in enumerate(names)}
    taken: set[str] = set()
    scaled: list[str] = []
    shaped: list[str] = []
    items = []
    for record in progress(sorted(records, key=lambda record: (record.split, record.name)), "convert: reading images"):
        if (size := _size(record, scaled, shaped)) is None:
            continue
        width, height = size
        rows: dict[str, int] = {}
        for box in record.boxes:
            if box.name not in number:
                left[f"boxes of other classes ({box.name})" if box.name else "boxes without a class"] += 1
                continue
            line = _line((box.left / width, box.top / height, box.right / width, box.bottom / height))
            if line is None:
                left["boxes without an area in the image"] += 1
            elif (text := f"{number[box.name]} {line}") in rows:
                left["boxes that are there twice"] += 1
            else:
                rows[text] = number[box.name]
        known = _regions(record, number, (width, height))
        name = f"{record.split}/{_name(record.name)}"
        stem, _, suffix = name.rpartition(".")
        items.append(_Item(record, f"{unique(stem, taken)}.{suffix}", tuple(rows), tuple(rows.values()), known))
    if not items:
        raise DataError(f"the annotations are for images of other shapes: {shaped[0]}")
    if shaped:
        left["images of another shape than their annotations"] = len(shaped)
        notes.append(f"{len(shaped)} images have another shape than their annotations are for; the first: {shaped[0]}")
    if scaled:
        notes.append(f"{len(scaled)} images have another size than their annotations are for; the first: {scaled[0]}")
    return items


def _size(record: Record, scaled: list[str], shaped: list[str]) -> tuple[float, float] | None:
    """Width and height that the boxes of a record are in; None where the image is another one, or was turned."""
    own = image_size(record.image, record.where) if isinstance(record.image, Path) else None
    size = record.size or own
    if size is None:
        raise DataError(f"{record.where}: how large {record.name} is, is not said, and it is not there")
    if min(size) <= 0:
        raise DataError(f"{record.where}: {record.name} is said to be {size[0]:g}×{size[1]:g} pixels")
    if own and own != size and size != (1, 1):
        told = f"{record.where}: {record.name} is {own[0]}×{own[1]} pixels, not {size[0]:g}×{size[1]:g}"
        if abs(math.log(size[0] * own[1] / (size[1] * own[0]))) > _SHAPE:
            shaped.append(told)
            return None
        scaled.append(told)
    return size


def _line(box: tuple[float, float, float, float]) -> str | None:
    """`x y w h` of left, top, right, bottom as fractions of the image, cut to it; None where nothing is left."""
    left, top, right, bottom = (min(max(v, 0.0), 1.0) if v < -_BEYOND or v > 1 + _BEYOND else v for v in box)
    if right <= left or bottom <= top:
        return None
    return " ".join(map(_digits, ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)))


def _digits(value: float) -> str:
    """Ten digits, so that what came from a text of fewer becomes that text again."""
    return f"{round(value, 10) + 0:.10f}".rstrip("0").rstrip(".")


def _regions(record: Record, number: Mapping[str, int], size: tuple[float, float]) -> Regions:
    found = Regions.none(len(number))
    for region in record.regions:
        wanted = number if region.names is None else region.names
        mask = np.full(len(number), region.others)
        mask[[number[name] for name in wanted if name in number]] = not region.others
        box = (0.0, 0.0, 1.0, 1.0)
        if region.box is not None:
            box = tuple(min(max(v / size[i % 2], 0.0), 1.0) for i, v in enumerate(region.box))  # type: ignore[assignment]
        left, top, right, bottom = box
        if mask.any() and right > left and bottom > top:
            row = np.array([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]], np.float32)
            found += Regions(np.array([region.unknown]), mask[None], row)
    return found


def _name(name: str) -> str:
    """A path below images/<split>/ at which Ultralytics finds the image and its labels."""
    *folders, file = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    parts = [part for part in folders if part != "images"]  # the last folder of that name is the one it replaces
    return "/".join(f"_{part}" if part.startswith(".") else part for part in (*parts, file))


def _clear(folder: Path, items: Sequence[_Item]) -> None:
    """Leave of what an earlier run made the images that are wanted."""
    for path in folder.iterdir():
        if path.name not in ("images", "lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    wanted = {folder / "images" / item.name for item in items if item.record.image is not None}
    for path in (folder / "images").rglob("*"):
        if (path.is_symlink() or path.is_file()) and path not in wanted:
            path.unlink()


def _images(folder: Path, items: Sequence[_Item]) -> tuple[Counter[str], list[str]]:
    """Make the images; returns how they were linked, and the frames that could not be had."""
    how: Counter[str] = Counter()
    for item in progress(items, "convert: images"):
        (folder / "images" / item.name).parent.mkdir(parents=True, exist_ok=True)
        target = item.record.image
        if isinstance(target, Path):
            path = folder / "images" / item.name
            if path.is_symlink() or path.exists():
                path.unlink()  # the source may have changed since
            how[link(os.path.realpath(target), path)] += 1
    frames = [
        (item.record.image, folder / "images" / item.name) for item in items if isinstance(item.record.image, Frame)
    ]
    lost = video.cut(frames)
    if frames:
        how["frame of a video"] = len(frames) - len(lost)
    return how, [path.relative_to(folder / "images").as_posix() for path in lost]


def _manifest(
    facts: Mapping[str, Any],
    items: Sequence[_Item],
    names: Sequence[str],
    left: Counter[str],
    notes: Sequence[str],
    missing: Sequence[str],
    folder: Path,
) -> Manifest:
    """Write labels and regions, and tell of them."""
    files: list[dict[str, Any]] = []
    classes = {split: Counter[int]() for split in SPLITS if any(item.record.split == split for item in items)}
    counts = {split: Counter[str]() for split in classes}
    for item in progress(items, "convert: labels"):
        text = item.name.rpartition(".")[0] + ".txt"
        known = regions.text(item.regions)
        label = (
            put(folder / "labels" / text, "".join(f"{line}\n" for line in item.lines).encode())
            if item.record.labelled
            else None
        )
        unknown = int(item.regions.unknown.sum())
        told = {"boxes": len(item.lines), "unknown": unknown, "background": len(item.regions) - unknown}
        files.append(
            {
                "image": item.name,
                "label": text,
                **told,
                "sha256": {"label": label, "regions": put(folder / "regions" / text, known) if known else None},
            }
        )
        counts[item.record.split].update({"images": 1, "unlabelled": int(label is None), **told})
        classes[item.record.split].update(item.classes)
    keys = ("images", "boxes", "unlabelled", "unknown", "background")
    manifest: Manifest = {
        "schema": 1,
        **facts,
        "total": {key: sum(count[key] for count in counts.values()) for key in keys},
        "splits": {
            split: {key: counts[split][key] for key in keys}
            | {"classes": {name: classes[split][i] for i, name in enumerate(names)}}
            for split in classes
        },
        "left_out": dict(sorted(left.items())),
        "notes": list(notes),
        "missing": sorted(missing),
        "files": files,
    }
    manifest["sha256"] = manifest_hash(manifest)
    return manifest


def _yaml(
    folder: Path, items: Sequence[_Item], names: Sequence[str], found: Found, missing: Sequence[str]
) -> dict[str, Any]:
    """Content of data.yaml. A split that is not there is another, said: Ultralytics wants train and val."""
    there = {split for split in SPLITS if (folder / "images" / split).is_dir()}
    content: dict[str, Any] = {split: f"images/{split}" for split in SPLITS if split in there}
    for split, others in (("val", ("test", "train")), ("train", ("val", "test"))):
        if split not in there:
            content[split] = next(f"images/{other}" for other in others if other in there)
            print(f"warning: no image is of {split}; data.yaml names those of {content[split]}", file=sys.stderr)
    content = {split: content[split] for split in SPLITS if split in content} | {"names": dict(enumerate(names))}
    annotated = {
        f"images/{split}/{prefix}": [name for name in labelled if name in names]
        for prefix, labelled in found.annotated.items()
        for split in SPLITS
        if (folder / "images" / split / prefix).is_dir()
    }
    if annotated:
        content["annotated"] = annotated
    if any(not item.record.labelled for item in items):
        content["unlabelled"] = "unknown"
    return content
