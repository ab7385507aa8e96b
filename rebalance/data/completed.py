"""Data sets whose training labels were completed, and the labels that were given before that.

    out/data.yaml, images/, withheld/, true/, regions/     as `rebalance.data.derive` has them
    out/labels/train/   the source's lines, but for those that somebody corrected; what was added comes last
    out/given/          labels/, regions/ and withheld/ with the source's files, where ours are others

A withheld box that was found again is no longer among the withheld ones. What was unsure goes before the regions that
the source has, which then count more, and what somebody looked at goes after them. An image without a label file of
which the source says that it was not looked at (`unlabelled: unknown` or `skip`) is unknown but for what was added.

The manifest, in this order:

    schema      1
    completed   what the rule says of itself
    asked, reached   with withheld boxes only: null, and those still missing ÷ all that are known
    total       {boxes, withheld, recovered, added, class, box, removed, unknown, background}: boxes of the source,
                boxes still withheld, those found again, and how many there are of each kind below
    classes     the same of each class, with its id and name
    images      of the training split, each counted once: {total, labelled_before, labelled, unreadable}
    unlabelled, unknown_below   as in data.yaml, where they are not what is meant without
    files       one a label file: label, images (names below labels/ and images/), boxes, withheld, recovered,
                unreadable (why, or null), sha256 {source, label} and, where there are such files, {source_withheld,
                withheld, true, source_regions, regions} (null: there is no file);
                with `annotated`: annotated, as in `derive`;
                changes: a list of {kind, by, id, probability, score, was, now}, a box or region each:
                  kind  added, class, box, removed: of a label; unknown, background: a region
                  by    person, probability, threshold: who said so
                  was, now   `class x y w h`, null where there is none
    sha256      of everything but `origin`: the same labels and audit give the same hash on every machine
    origin      what differs between machines: data, train, images (how they were linked), rebalance (version)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebalance.data import dataset, items, lines, regions
from rebalance.data.boxes import iou, xywh, xyxy
from rebalance.data.dataset import DataSet
from rebalance.data.folder import Manifest, load_manifest, new_folder, put
from rebalance.data.items import Item
from rebalance.data.labels import Labels, columns
from rebalance.data.lines import box_text
from rebalance.data.progress import progress
from rebalance.data.regions import Regions
from rebalance.errors import DataError

KINDS = ("added", "class", "box", "removed", "unknown", "background")
SAME = 0.5  # IoU of an added box with the withheld one that it is

_GIVEN = "given"
_FOLDERS = {"label": "labels", "regions": "regions", "withheld": "withheld"}  # by the key of their hashes
_SOURCE = {"label": "source", "regions": "source_regions", "withheld": "source_withheld"}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that becomes of a label file or its regions."""

    kind: str  # of KINDS
    by: str  # person, probability or threshold
    number: int  # of the class: the new one
    box: tuple[float, float, float, float]  # corners as fractions of the image: the new one
    label: int = -1  # which box of the file it is about, for `class`, `box` and `removed`
    id: str = ""
    probability: float | None = None
    score: float | None = None
    line: bytes = b""  # of an added box, where it has one of its own


def complete(
    source: DataSet,
    found: Sequence[Item],
    changes: Sequence[Sequence[Change]],
    out: Path,
    facts: Mapping[str, Any],
) -> Manifest:
    """Make a data set with changed training labels; returns its manifest.

    Args:
        source: only read.
        found: its label files, as `items.read` finds them.
        changes: of each file, at most one of each kind to a label; none to one that cannot be read.
        out: folder to make.
        facts: what the manifest says of the rule.

    Raises:
        DataError: `out` exists or lies in the source, or writing failed. Nothing is left.
    """
    items.require_outside(source, found, out)
    files: list[dict[str, Any]] = []
    how: Counter[str] = Counter()
    empty = kind_of_empty(source, found)
    count = {key: np.zeros(len(source.names), np.int64) for key in ("boxes", "withheld", "recovered", *KINDS)}
    labelled = 0
    with new_folder(out) as folder:
        for item, own in progress(list(zip(found, changes, strict=True)), "writing"):
            how.update(items.link_images(folder, item))
            labels = _labels(item, own, source.keypoints, empty)
            back = _recovered(item.carried, own)
            files.append({**_write(folder, item, own, labels, back, source), **items.annotated(source, item)})
            labelled += len(item.images) * bool(len(labels))
            of = {"boxes": item.labels.classes, "withheld": item.carried.classes[~back]}
            of["recovered"] = item.carried.classes[back]
            of |= {kind: np.array([c.number for c in own if c.kind == kind], np.int64) for kind in KINDS}
            for key, numbers in of.items():
                count[key] += np.bincount(numbers, minlength=len(source.names))
        total = {key: int(of.sum()) for key, of in count.items()}
        missing = total["withheld"] + total["recovered"]
        reached = {"asked": None, "reached": total["withheld"] / (total["boxes"] + missing)} if missing else {}
        about = {
            "completed": dict(facts),
            **reached,
            "total": total,
            "classes": [
                {"id": i, "name": name, **{key: int(of[i]) for key, of in count.items()}}
                for i, name in source.names.items()
            ],
        }
        return items.write(folder, source, found, about, files, labelled, how)


@dataclass(frozen=True)
class Given(DataSet):
    """A completed data set as it was before: the images of the new one, the labels of the one that it was made from."""

    before: Mapping[str, bytes | None]  # absolute path of a file that was changed -> what it was, None: not there

    def file_bytes(self, path: str) -> bytes | None:
        """As it was."""
        full = os.path.abspath(path)
        return self.before[full] if full in self.before else super().file_bytes(path)

    def has_labels(self, image: str) -> bool:
        """Whether it had a label file."""
        full = os.path.abspath(dataset.label_path(image))
        return self.before[full] is not None if full in self.before else super().has_labels(image)


def is_completed(folder: Path) -> bool:
    """Whether it is a completed data set."""
    return _says(folder, "completed")


def given(source: DataSet) -> DataSet:
    """The data set with the labels that it was given: one that was completed without what that changed.

    Raises:
        DataError: a file that completing changed was changed again, so that the one cannot be told from the other.
    """
    folder = source.file.parent.resolve()
    if not is_completed(folder):
        return source
    manifest = load_manifest(folder)
    before: dict[str, bytes | None] = {}
    for file in manifest["files"]:
        for kind, where in _FOLDERS.items():
            now, was = (file["sha256"].get(key) for key in (kind, _SOURCE[kind]))
            if now == was:
                continue
            path = folder / where / file["label"]
            if _hash(path) != now:
                raise DataError(
                    f"{path} was changed after the set was completed, so that what was added cannot be taken back; "
                    f"give the labels that were there before: data={manifest['origin']['data']}"
                )
            kept = folder / _GIVEN / where / file["label"]
            before[os.path.abspath(path)] = kept.read_bytes() if was else None
            if was and _hash(kept) != was:
                raise DataError(
                    f"{kept} was changed after it was written: it is not the file that {path} was made from"
                )
    own = {f.name: getattr(source, f.name) for f in fields(DataSet)}
    return Given(**own, before=before)


def restored(source: DataSet, out: Path) -> Manifest:
    """Make the data set that a source was before labels were withheld from it, and before noise; returns its manifest.

    Raises:
        DataError: as `complete`, nothing was withheld, or it was after noise.
    """
    found = items.read(source)
    if all(item.true is None and not len(item.carried) for item in found):
        raise DataError(f"{source.file}: nothing was withheld from its labels")
    if any(item.true is not None for item in found) and not _says(source.file.parent, "noise"):
        raise DataError(
            f"{source.file}: labels were withheld after noise had falsified them: their true boxes are not known"
        )
    whole, changes = list[Item](), list[list[Change]]()
    for item in found:
        true = item.labels if item.true is None else source.parse(item.true, f"true labels of {item.source}")
        known = {_row(true, i) for i in range(len(true))}
        gone = item.carried.pick(np.array([_row(item.carried, i) not in known for i in range(len(item.carried))], bool))
        first = [gone.lines[int(np.flatnonzero(gone.box_of == i)[0])] for i in range(len(gone))]
        rows = zip(gone.classes.tolist(), map(tuple, xyxy(gone).tolist()), first, strict=True)
        changes.append([Change("added", "withheld", number, box, line=line) for number, box, line in rows])
        data = item.data if item.true is None else item.true
        whole.append(replace(item, labels=true, data=data, carried=gone, true=None))
    return complete(source, whole, changes, out, {"restored": True})


def kind_of_empty(source: DataSet, found: Sequence[Item]) -> str:
    """How boxes are written into a file without lines: as in the other files."""
    if source.keypoints[0]:
        return "pose"
    return "polygon" if any(columns(line) == "polygon" for item in found for line in item.labels.lines[:1]) else "box"


def _labels(item: Item, changes: Sequence[Change], keypoints: tuple[int, int], empty: str) -> Labels:
    """The labels of a file after its changes; the file's own where there is none."""
    n = len(item.labels)
    moves, flips, stays = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.ones(n, np.bool_)
    boxes, numbers = xyxy(item.labels), item.labels.classes.copy()
    for one in changes:
        if one.kind == "class":
            flips[one.label], numbers[one.label] = True, one.number
        elif one.kind == "box":
            moves[one.label], boxes[one.label] = True, one.box
        elif one.kind == "removed":
            stays[one.label] = False
    added = [(one.number, np.array(one.box)) for one in changes if one.kind == "added"]
    kept = lines.changed(item.labels, boxes, numbers, moves, flips, keypoints).pick(stays)
    new = lines.written(added, item.labels, keypoints, empty)
    own = [one.line for one in changes if one.kind == "added"]
    texts = tuple(line or text for line, text in zip(own, new.lines, strict=True))
    return kept + replace(new, lines=tuple(text if text.endswith((b"\n", b"\r")) else text + b"\n" for text in texts))


def _recovered(withheld: Labels, changes: Sequence[Change]) -> NDArray[np.bool_]:
    """(n,) which withheld boxes an added box of their class is, each added box at most one: the best pairs first."""
    added = [one for one in changes if one.kind == "added"]
    back = np.zeros(len(withheld), np.bool_)
    if not (added and len(withheld)):
        return back
    overlap = iou(xyxy(withheld)[:, None], np.array([one.box for one in added]))
    overlap[withheld.classes[:, None] != np.array([one.number for one in added])] = 0
    while overlap.max() >= SAME:
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        back[i] = True
        overlap[i], overlap[:, j] = 0, 0
    return back


def _regions(item: Item, changes: Sequence[Change], labels: Labels, source: DataSet) -> bytes | None:
    """The region file after the changes, None where there is none; the lines that were there keep their bytes."""

    def said(kind: str) -> bytes:
        rows = [one for one in changes if one.kind == kind]
        mask = np.array([np.arange(len(source.names)) == one.number for one in rows], np.bool_)
        boxes = xywh(np.array([one.box for one in rows], np.float64).reshape(-1, 4)).astype(np.float32)
        return regions.text(
            Regions(np.full(len(rows), kind == "unknown"), mask.reshape(len(rows), len(source.names)), boxes)
        )

    unseen = item.data is None and len(labels) and source.knowledge.unlabelled != "background"
    whole = regions.text(Regions.whole(np.ones(len(source.names), np.bool_))) if unseen else b""
    own, data = item.regions, item.region_data or b""
    told = [one for one in changes if one.kind == "added" and one.by == "person"]
    if told and len(own):  # what somebody labelled is there, whatever was said before
        numbers = np.array([one.number for one in told])
        wrong = regions.contradicted(own, numbers, xywh(np.array([one.box for one in told])).astype(np.float32))
        if wrong.any():
            denied = wrong @ (numbers[:, None] == np.arange(len(source.names)))
            data = regions.text(replace(own, classes=own.classes & ~denied))
    after = said("background")
    if after and data and not data.endswith((b"\n", b"\r")):
        data += b"\n"
    made = whole + said("unknown") + data + after
    return made if made or item.region_data is not None else None


def _write(
    folder: Path, item: Item, changes: Sequence[Change], labels: Labels, back: NDArray[np.bool_], source: DataSet
) -> dict[str, Any]:
    """Write the files of one label file; what nothing happens to is copied as it is."""
    lost = item.carried.pick(~back)
    given = {"label": item.data, "withheld": item.carried.data or None, "regions": item.region_data}
    made = {
        "label": item.data if labels is item.labels else labels.data,
        "withheld": lost.data or None,
        "regions": _regions(item, changes, labels, source),
    }
    hashes: dict[str, str | None] = {}
    for kind, where in _FOLDERS.items():
        was, now = given[kind], made[kind]
        if kind == "label" or was is not None or now is not None:
            hashes[_SOURCE[kind]] = None if was is None else hashlib.sha256(was).hexdigest()
            hashes[kind] = None if now is None else put(folder / where / item.label, now)
        if was is not None and was != now:
            put(folder / _GIVEN / where / item.label, was)
    if item.true is not None:
        hashes["true"] = put(folder / "true" / item.label, item.true)
    return {
        "label": item.label,
        "images": [name for _, name, _ in item.images],
        "boxes": len(item.labels),
        "withheld": len(lost),
        "recovered": int(back.sum()),
        "unreadable": item.error,
        "changes": [_told(item.labels, one) for one in changes],
        "sha256": hashes,
    }


def _told(before: Labels, one: Change) -> dict[str, Any]:
    """A change as the manifest has it."""
    of_label = one.label >= 0
    was = box_text(int(before.classes[one.label]), before.boxes_xywh_norm[one.label]) if of_label else None
    number = int(before.classes[one.label]) if one.kind == "box" else one.number
    box = before.boxes_xywh_norm[one.label] if one.kind == "class" else xywh(np.array(one.box))
    now = None if one.kind == "removed" else box_text(number, box)
    return {
        "kind": one.kind, "by": one.by, "id": one.id, "probability": one.probability, "score": one.score,
        "was": was, "now": now,
    }  # fmt: skip


def _says(folder: Path, key: str) -> bool:
    """Whether the manifest of a data set has a key; it may have none, or one that is not of `derive`."""
    try:
        return key in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _row(found: Labels, i: int) -> tuple[int, bytes]:
    return int(found.classes[i]), found.boxes_xywh_norm[i].tobytes()


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
