"""What is known about the labels of a data set and what is not, and what of it counts as background in a training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebalance.data import dataset, regions
from rebalance.data.dataset import IMAGE_SUFFIXES, DataSet, region_path
from rebalance.data.labels import Labels
from rebalance.data.progress import progress
from rebalance.data.regions import Regions
from rebalance.errors import DataError
from rebalance.settings import CheckFlags, require

Found = dict[str, Any]

# Kind of what contradicts itself -> what is said of it, with its number
WARNINGS = {
    "denied": "{} labels are in a background region of their class: the region says that they are not there",
    "not_annotated": "{} labels are of a class that `annotated` says was not labelled in their image; they stay labels",
    "no_image": "{} files in a folder of regions belong to no image",
    "skipped": "{} region files are of images that `unlabelled: skip` leaves out",
    "gone": "{} images of a list do not exist",
    "no_split": "{} splits are not there",
    "no_match": "{} paths of `annotated` mean no image of the splits that are there",
}
_EVERYWHERE, _PART, _NOWHERE = range(3)  # where in an image that which is not labelled counts as background
_SHOWN = 5  # examples of a warning on the terminal
_WHOLE = 1e-6  # how far a region may end from the borders of an image that it covers, as a fraction


def check(given: CheckFlags) -> Found:
    """Read all labels and regions of a data set; `data` is required.

    Returns:
        data, unlabelled, unknown_below; annotated: a list of {images, classes, count}; splits: for each its counts of
        images, boxes and regions, by class too; unreadable: a line a file; warnings: kind to a list of lines.

    Raises:
        ConfigError: `data` is missing.
        DataError: it is no data set, or one of the keys about its labels is wrong.
    """
    from rebalance.data.demo.seafloor import built_in

    require(given, "data")
    source = dataset.load(built_in(given.data))
    known = source.knowledge
    known.require_matched()
    warnings: dict[str, list[str]] = {kind: [] for kind in WARNINGS}
    unreadable: list[str] = []
    matched: Counter[str] = Counter()
    splits, images = {}, set[str]()
    for split, entries in source.splits.items():
        if not all(map(os.path.exists, entries)):
            warnings["no_split"].append(f"{split}: {', '.join(entries)}")
            continue
        there = list(dict.fromkeys(source.images(split)))
        images |= {*there}
        splits[split] = _split(source, split, there, matched, warnings, unreadable)
    warnings["no_match"] += [pattern for pattern in known.annotated if not matched[pattern]]
    warnings["no_image"] += _orphans(images)
    return {
        "data": str(source.file),
        "unlabelled": known.unlabelled,
        "unknown_below": known.unknown_below,
        "annotated": [
            {"images": pattern, "classes": [source.names[i] for i in sorted(numbers)], "count": matched[pattern]}
            for pattern, numbers in known.annotated.items()
        ],
        "splits": splits,
        "unreadable": list(dict.fromkeys(unreadable)),
        "warnings": {kind: lines for kind, lines in warnings.items() if lines},
    }


def text(found: Found) -> str:
    """What was found, for the terminal."""
    lines = [found["data"], f"unlabelled: {found['unlabelled']}"]
    if found["unknown_below"]:
        lines.append(f"unknown_below: {found['unknown_below']}: smaller objects are unknown in every image")
    lines += [
        f"annotated: {row['images']}: {', '.join(row['classes']) or 'no class'} ({row['count']} images)"
        for row in found["annotated"]
    ]
    for split, counts in found["splits"].items():
        lines += ["", *_split_text(split, counts, found["unlabelled"])]
    for kind, of_kind in found["warnings"].items():
        more = len(of_kind) - _SHOWN
        lines += ["", f"warning: {WARNINGS[kind].format(len(of_kind))}", *(f"  {line}" for line in of_kind[:_SHOWN])]
        lines += [f"  and {more} more; out=check.json writes all"] if more > 0 else []
    if found["unreadable"]:
        lines += ["", "cannot be read:", *(f"  {line}" for line in found["unreadable"])]
    return "\n".join(lines)


def require_readable(found: Found) -> None:
    """Raise DataError where a file cannot be read."""
    count = len(found["unreadable"])
    if count:
        raise DataError(f"{found['data']}: {count} label or region files cannot be read; all are named above")


def _split(
    source: DataSet,
    split: str,
    images: Sequence[str],
    matched: Counter[str],
    warnings: dict[str, list[str]],
    unreadable: list[str],
) -> Found:
    """Counts of one split."""
    known, classes = source.knowledge, len(source.names)
    of = Counter(dict.fromkeys(("boxes", "empty", "no_file", "unreadable", "skipped", "region_files"), 0))
    boxes, with_boxes, unknown, background = np.zeros((4, classes), np.int64)
    counted = np.zeros((3, classes), np.int64)
    regions_said = Counter(dict.fromkeys(regions.MEANINGS, 0))
    for image in progress(images, f"reading {split}"):
        matched.update(known.matched(image))
        if not os.path.exists(image):
            warnings["gone"].append(image)
        own, labels = _read(source, image, unreadable)
        skipped = known.skips(image)
        if own is not None:
            of["region_files"] += 1
            regions_said.update(regions.MEANINGS[not unknown] for unknown in own.unknown.tolist())
            unknown += own.classes[own.unknown].sum(0)
            background += own.classes[~own.unknown].sum(0)
            if skipped:
                warnings["skipped"].append(str(region_path(image)))
        if labels is None:
            of["unreadable"] += 1
            continue
        per_class = np.bincount(labels.classes, minlength=classes)
        boxes += per_class
        with_boxes += per_class > 0
        of["boxes" if len(labels) else "empty" if source.has_labels(image) else "no_file"] += 1
        of["skipped"] += skipped
        if not skipped:
            whole = known.whole(image)
            counted[_background(whole + own if own else whole), np.arange(classes)] += 1
            _contradictions(source, image, labels, own, warnings)
    return {
        "images": len(images),
        **of,
        "regions": dict(regions_said),
        "classes": [
            {
                "id": i,
                "name": name,
                "boxes": int(boxes[i]),
                "images": int(with_boxes[i]),
                "regions": {"unknown": int(unknown[i]), "background": int(background[i])},
                "background": {
                    "everywhere": int(counted[_EVERYWHERE, i]),
                    "in_part": int(counted[_PART, i]),
                    "nowhere": int(counted[_NOWHERE, i]),
                },
            }
            for i, name in source.names.items()
        ],
    }


def _read(source: DataSet, image: str, unreadable: list[str]) -> tuple[Regions | None, Labels | None]:
    """Regions of an image's file, None without one; its labels, None where the file cannot be read."""
    own = found = None
    try:
        own = source.knowledge.own(image)
    except DataError as error:
        unreadable.append(str(error))
    try:
        found = source.labels(image)
    except DataError as error:
        unreadable.append(str(error))
    return own, found


def _background(known: Regions) -> NDArray[np.int64]:
    """(C,) where in an image that which is not labelled counts as background of a class."""
    state = np.full(known.classes.shape[1], _EVERYWHERE)
    half = known.boxes_xywh_norm[:, 2:] / 2
    low, high = known.boxes_xywh_norm[:, :2] - half, known.boxes_xywh_norm[:, :2] + half
    covers = np.concatenate([low, 1 - high], 1).max(1) <= _WHOLE
    for unknown, classes, whole in zip(known.unknown.tolist(), known.classes, covers.tolist(), strict=True):
        if whole:
            state[classes] = _NOWHERE if unknown else _EVERYWHERE
        else:  # a part differs from the rest
            state[classes & (state != (_NOWHERE if unknown else _EVERYWHERE))] = _PART
    return state


def _contradictions(
    source: DataSet, image: str, found: Labels, own: Regions | None, warnings: dict[str, list[str]]
) -> None:
    """Labels that something else says are not there, or were not looked for."""
    denied = np.nonzero(regions.contradicted(own, found.classes, found.boxes_xywh_norm))[1].tolist() if own else []
    annotated = source.knowledge.labelled_classes(image)
    label = found.classes.tolist()
    alien = [] if annotated is None else [i for i in range(len(label)) if label[i] not in annotated]
    for kind, numbers in (("denied", sorted({*denied})), ("not_annotated", alien)):
        for i in numbers:
            box = " ".join(f"{value:.4g}" for value in found.boxes_xywh_norm[i].tolist())
            warnings[kind].append(f"{image}: {source.names[label[i]]} at {box}")


def _orphans(images: Iterable[str]) -> Iterator[str]:
    """Files that no image has, in the folders in which the region files of these images are."""
    expected = {os.path.normpath(path) for path in map(region_path, images) if path}
    part = f"{os.sep}regions{os.sep}"
    stems: dict[str, set[str]] = {}  # folder -> its images without suffix, of this data set or not
    for top in sorted({path.rpartition(part)[0] for path in expected}):
        for file in sorted(str(path) for path in Path(top, "regions").rglob("*") if path.is_file()):
            if file in expected or os.path.basename(file).startswith("."):
                continue
            if not file.endswith(".txt"):
                yield f"{file} (region files end in .txt)"
                continue
            folder = os.path.dirname(file).replace(f"{top}{os.sep}regions", f"{top}{os.sep}images", 1)
            if folder not in stems:
                names = os.listdir(folder) if os.path.isdir(folder) else []
                stems[folder] = {n.rpartition(".")[0] for n in names if n.rpartition(".")[2].lower() in IMAGE_SUFFIXES}
            if os.path.basename(file).rpartition(".")[0] not in stems[folder]:
                yield file


def _split_text(split: str, counts: Found, unlabelled: str) -> list[str]:
    what = [f"{counts['boxes']} with boxes", f"{counts['empty']} with an empty label file"]
    what.append(f"{counts['no_file']} without a label file")
    if counts["unreadable"]:
        what.append(f"{counts['unreadable']} with one that cannot be read, left out")
    lines = [f"{split}: {counts['images']} images: {', '.join(what)}"]
    if counts["no_file"]:
        meaning = {
            "background": "count as looked at, and as background of every class; `unlabelled:` says otherwise",
            "unknown": "are unknown",
            "skip": "are left out",
        }
        lines.append(f"  those without a label file {meaning[unlabelled]}")
    said = counts["regions"]
    if counts["region_files"]:
        kinds = ", ".join(f"{number} {meaning}" for meaning, number in said.items())
        lines.append(f"  region files: {counts['region_files']}, with {kinds}")
    lines.append("  what is not labelled counts as background everywhere, in a part, or nowhere in so many images:")
    titles = [f"{meaning} regions" for meaning in said] if counts["region_files"] else []
    rows = [["class", "boxes", "images", *titles, "everywhere", "in part", "nowhere"]]
    for row in counts["classes"]:
        numbers = [
            row["boxes"],
            row["images"],
            *(row["regions"].values() if titles else ()),
            *row["background"].values(),
        ]
        rows.append([row["name"], *map(str, numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        right = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *right]))
    return lines
