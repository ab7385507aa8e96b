"""What becomes of the suggestions of an audit: the labels of a new data set.

    accepted by a person   missing: a box; wrong_class: the label's class; badly_placed: its box; spurious: no label
    rejected by a person   missing: verified background of the class, there; others: nothing, the label was right
    nobody's word          missing: by its probability a box, an unknown region of the class or nothing; others: nothing

Of a class without probabilities what reaches the audit's threshold is a box, where val says that of all that reaches
it at least a share of `complete_add` is right; else nothing is. Nothing is unsure.

The labels that count are those given: what an earlier round added to them is taken back first (`data.completed.given`).
What a box that comes in explains, as a label would, does not come in a second time; accepted ones come first, then the
most probable. A box that is that of another class too is unknown for that class. Nobody's word outweighs a region that
somebody verified as background, and a rejected box says nothing where it holds a label of its class.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebalance.audit import decisions, table
from rebalance.audit.explain import INSIDE, SAME, SAME_PLACE
from rebalance.audit.table import ABOUT, SUGGESTIONS, Suggestion
from rebalance.data import completed, dataset, items, regions
from rebalance.data.boxes import Boxes, held, iou, xywh, xyxy
from rebalance.data.completed import Change
from rebalance.data.dataset import DataSet
from rebalance.data.folder import Manifest, free
from rebalance.data.items import Item
from rebalance.data.labels import columns
from rebalance.data.regions import Regions
from rebalance.errors import ConfigError, DataError
from rebalance.settings import CompleteFlags, RoundsFlags, as_dict, parse, require, value_text

ACCEPT, REJECT = decisions.CHOICES
PERSON, PROBABILITY, THRESHOLD = "person", "probability", "threshold"

_OF_LABEL = {"wrong_class": "class", "badly_placed": "box", "spurious": "removed"}
_EQUAL = 0.999  # IoU: the same box
_CLOSE = 1.0  # pixels that a label may lie beside where the audit had it: the table is rounded
_LEFT = {  # why a suggestion has no effect, after its number
    "unreadable": "are in label files that cannot be read",
    "twice": "accepted ones would change a label that another accepted one changes: the first in the table counts",
    "outside": "lie outside their image",
    "there": "accepted ones are labelled already",
    "explained": "are explained by a box that was added, or by a corrected label",
    "verified": "lie where the source says that somebody looked and there is nothing of their class",
    "two_classes": "would be a second class of an added box: unknown for that class",
    "holds": "rejected ones hold a label of their class, and so say nothing of their place",
}


_AMONG = {  # of what kind of lines -> what is said, after a number
    "polygon": "boxes were added among polygons, as polygons of four corners: nobody drew their outlines",
    "pose": "boxes were added among poses, with keypoints that nobody saw",
    "moved polygon": "polygons were stretched to the box that was accepted: look at their outlines",
    "moved pose": "boxes of poses were moved, their keypoints are where they were: look at them",
}


class Completed(NamedTuple):
    """A data set that was completed."""

    out: Path
    manifest: Manifest

    @property
    def data(self) -> Path:
        """Its YAML."""
        return self.out / "data.yaml"


class Rule(NamedTuple):
    """What happens without a person's word."""

    add: float
    ignore: float
    thresholds: Mapping[int, float | None]  # of the classes without probabilities; None: nothing is confident

    def __call__(self, row: Suggestion) -> tuple[str, str]:
        """The kind of change, '' for none, and by what."""
        if row.number in self.thresholds:
            least = self.thresholds[row.number]
            return "added" if least is not None and row.score >= least else "", THRESHOLD
        p = row.probability
        return "" if p is None or p < self.ignore else "added" if p >= self.add else "unknown", PROBABILITY


def complete(given: CompleteFlags) -> Completed:
    """Make a data set with completed training labels; `data` and `audit` are required.

    Raises:
        ConfigError: a flag is missing or contradicts another.
        DataError: the labels are not those that were audited, a file of the audit cannot be used, `out` exists or lies
            in the data set, or writing failed. Nothing is left.
    """
    from rebalance.data.demo.seafloor import built_in

    require(given, "data", "audit")
    given = parse(CompleteFlags, as_dict(given))
    require_order(given)
    asked, folder = dataset.load(built_in(given.data)), Path(given.audit)
    if given.out:
        free(given.out)
    about = read_audit(folder)
    rows = table.read(folder / SUGGESTIONS)
    decided = decisions.read(Path(given.decisions), rows) if given.decisions else {}
    source = completed.given(asked)
    found = items.read(source)
    out = free(given.out or _beside(asked, found))
    if items.labels_sha256(source) != about["data_sha256"]:
        raise DataError(f"the training labels of {asked.file} are not those that were audited in {folder}: audit them")
    if "regions_sha256" in about and items.regions_sha256(source) != about["regions_sha256"]:
        raise DataError(f"the regions of {asked.file} are not those that were audited in {folder}: audit them")
    thresholds = _thresholds(about, given.complete_add)
    left: Counter[str] = Counter()
    rule = Rule(given.complete_add, given.complete_ignore, thresholds)
    changes = _changes(source, found, rows, about, decided, rule, left)
    words = Counter(decided.values())
    facts = {
        "add": given.complete_add,
        "ignore": given.complete_ignore,
        "suggestions": about["suggestions_sha256"],
        **{word: words[word] for word in (ACCEPT, REJECT)},
        "left": dict(sorted(left.items())),
    }
    manifest = completed.complete(source, found, changes, out, facts)
    notes = [f"{n} {_LEFT[why]}" for why, n in sorted(left.items())]
    for note in [*_of_thresholds(source, rows, about, thresholds), *notes, *_of_lines(source, found, changes)]:
        print(f"note: {note}", file=sys.stderr)
    return Completed(out, manifest)


def require_order(given: CompleteFlags | RoundsFlags) -> None:
    """Raise ConfigError where what is sure enough to be added would be unsure."""
    if given.complete_ignore > given.complete_add:
        raise ConfigError(
            f"complete_ignore={value_text(given.complete_ignore)} is above complete_add="
            f"{value_text(given.complete_add)}: what is sure enough to be added is not unsure"
        )


def remaining(audit: Path, data: Path, add: float) -> float:
    """How many labels an audit says are missing beyond what a data set has: one completed from the labels audited.

    The sum of the probabilities of what its boxes do not explain, and the number of what is sure by a threshold, with
    `add` as `complete_add`.
    """
    about, source = read_audit(audit), dataset.load(data)
    found = items.read(source)
    places, rule = _Places(found, str(about["images_root"])), Rule(0, 0, _thresholds(about, add))
    left = 0.0
    for row in table.read(audit / SUGGESTIONS):
        place = places(row.image) if row.kind == "missing" else None
        if place is None:
            continue
        own, box = found[place].labels, np.array(row.box) / (*about["sizes"][row.image], *about["sizes"][row.image])
        same = own.classes == row.number
        if not (same & ((iou(box, xyxy(own)) >= SAME) | (held(box, xyxy(own)) >= INSIDE))).any():
            kind, by = rule(row)
            left += (row.probability or 0.0) if by == PROBABILITY else float(kind == "added")
    return left


def summary(made: Completed) -> str:
    """A few lines for the user: where it is, and what became of each class."""
    manifest = made.manifest
    rows = [*(row for row in manifest["classes"] if any(row[k] for k in _SHOWN)), {"name": "all", **manifest["total"]}]
    shown = [key for key, title in _SHOWN.items() if key in ("boxes", "added", "unknown") or manifest["total"][key]]
    width = max(len(row["name"]) for row in rows)
    by = Counter(change["by"] for file in manifest["files"] for change in file["changes"] if change["kind"] == "added")
    lines = [
        f"{made.data}: boxes added: {manifest['total']['added']}"
        + (f" ({', '.join(f'{count} by {_BY[name]}' for name, count in sorted(by.items()))})" if by else ""),
        f"{manifest['images']['total']} images, {manifest['images']['labelled']} with boxes "
        f"({manifest['images']['labelled_before']} before)",
        f"{'class':<{width}}" + "".join(f"  {_SHOWN[key]:>12}" for key in shown),
        *(f"{row['name']:<{width}}" + "".join(f"  {row[key]:>12}" for key in shown) for row in rows),
        f"sha256 {manifest['sha256']}",
    ]
    return "\n".join(lines)


_BY = {PERSON: "a person", PROBABILITY: "their probability", THRESHOLD: "the threshold of their class"}
_SHOWN = {
    "boxes": "boxes", "added": "added", "recovered": "were withheld", "unknown": "unknown", "background": "background",
    "class": "other class", "box": "moved", "removed": "removed",
}  # fmt: skip


def read_audit(folder: Path) -> dict[str, Any]:
    """The audit.json of a folder.

    Raises:
        DataError: it is not the folder of a finished audit, or its table was changed.
    """
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["schema"] != 1:
            raise DataError(f"{path}: schema is {about['schema']!r}, this version reads 1")
        for row in about["classes"]:
            threshold, right = row.get("threshold"), row.get("right", 1)
            known = isinstance(row["id"], int) and isinstance(row["how"], str) and isinstance(right, (int, float))
            if not known or not (threshold is None or isinstance(threshold, (int, float))):
                raise ValueError(f"a class is {json.dumps(row)[:80]}")
        for name in ("data", "data_sha256", "images_root"):
            if not isinstance(about[name], str) or "\0" in about[name]:
                raise ValueError(f"{name} is not a text")
        for name, (width, height) in about["sizes"].items():
            if not (float(width) > 0 and float(height) > 0):
                raise ValueError(f"the size of {name} is {width}, {height}")
        digest = hashlib.sha256((folder / SUGGESTIONS).read_bytes()).hexdigest()
        if digest != about["suggestions_sha256"]:
            raise DataError(f"{folder / SUGGESTIONS} was changed after the audit; decisions= says what to leave out")
    except OSError as error:
        why = f"it has no {Path(error.filename or path).name}" if isinstance(error, FileNotFoundError) else str(error)
        raise DataError(f"audit={folder} is not the folder of a finished audit: {why}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} is not that of an audit: {type(error).__name__}: {error}") from None
    return dict(about)


def _beside(asked: DataSet, found: Sequence[Item]) -> Path:
    """Where the new set goes that nobody named: beside the data set, named after it."""
    file, root = asked.file.resolve(), asked.root.resolve()
    own = file.stem in dataset.UNNAMED  # the name is that of its folder
    name, folder = (file.parent.name, file.parent.parent) if own else (file.stem, file.parent)
    earlier = re.fullmatch(r"(.+-complete)(?:-([0-9]+))?", name)
    out = folder / (f"{earlier[1]}-{int(earlier[2] or 1) + 1}" if earlier else f"{name}-complete")
    if dataset.is_shipped(file) or items.inside(asked, found, out):  # neither in the host's package nor in the data set
        out = root.parent / out.name
    return out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out


def _thresholds(about: Mapping[str, Any], add: float) -> dict[int, float | None]:
    """Of the classes without probabilities the score that is enough, None where none is: val expects too many false."""
    return {
        row["id"]: row.get("threshold") if row.get("right", 1) >= add else None
        for row in about["classes"]
        if row["how"] == "threshold"
    }


def _of_thresholds(
    source: DataSet, rows: Sequence[Suggestion], about: Mapping[str, Any], thresholds: Mapping[int, float | None]
) -> Iterator[str]:
    """What is said of classes without probabilities."""
    seen = {row.number for row in rows if row.kind == "missing"}
    right = {row["id"]: row["right"] for row in about["classes"] if "right" in row}
    for number, least in thresholds.items():
        if number in seen:
            told = "nothing of it" if least is None else f"a score of {value_text(least)} and more"
            why = f" (by val {right[number]:.0%} of what is as sure as its labels is right)" if number in right else ""
            name = source.names[number]
            yield f"class {name} has no probabilities: {told} counts as confident, nothing as unsure{why}"


def _of_lines(source: DataSet, found: Sequence[Item], changes: Sequence[Sequence[Change]]) -> Iterator[str]:
    """What is said of boxes that come into files of more than boxes."""
    count: Counter[str] = Counter()
    empty = completed.kind_of_empty(source, found)
    for item, own in zip(found, changes, strict=True):
        kind = columns(item.labels.lines[0], source.keypoints) if item.labels.lines else empty
        count[kind] += sum(one.kind == "added" for one in own)
        count[f"moved {kind}"] += sum(one.kind == "box" for one in own)
    for kind, told in _AMONG.items():
        if count[kind]:
            yield f"{count[kind]} {told}"


def _changes(
    source: DataSet,
    found: Sequence[Item],
    rows: Sequence[Suggestion],
    about: Mapping[str, Any],
    decided: Mapping[str, str],
    rule: Rule,
    left: Counter[str],
) -> list[list[Change]]:
    """What becomes of each label file; `left` counts what has no effect, and why."""
    places = _Places(found, str(about["images_root"]))
    of: list[list[_Seen]] = [[] for _ in found]
    for row in rows:
        if row.kind != "missing" and row.id not in decided:
            continue
        size, place = about["sizes"].get(row.image), places(row.image)
        if place is None:
            raise DataError(f"suggestion {row.id}: {row.image} is no training image of {source.file}")
        if row.number not in source.names:
            raise DataError(f"suggestion {row.id}: class {row.number} is not one of 0 to {len(source.names) - 1}")
        try:
            width, height = map(int, size or ())
            box = np.clip(np.array(row.box) / (width, height, width, height), 0, 1)
        except (ValueError, TypeError, ZeroDivisionError):
            raise DataError(f"{ABOUT} has no width and height of {row.image}") from None
        of[place].append(_Seen(row, box, decided.get(row.id, ""), (width, height)))
    return [_of_file(source, item, own, rule, left) for item, own in zip(found, of, strict=True)]


class _Seen(NamedTuple):
    """A suggestion at its label file."""

    row: Suggestion
    box: Boxes  # (4,) corners as fractions of the image
    word: str  # of a person, '' for none
    size: tuple[int, int]  # of its image

    def change(self, kind: str, by: str = PERSON, label: int = -1) -> Change:
        """What becomes of it."""
        x1, y1, x2, y2 = self.box.tolist()
        row = self.row
        return Change(kind, by, row.number, (x1, y1, x2, y2), label, row.id, row.probability, row.score)


class _Places:
    """The label file of an image that a suggestion names."""

    def __init__(self, found: Sequence[Item], root: str) -> None:
        images = {image: i for i, item in enumerate(found) for image, *_ in item.images}
        # a completed set has links to the images of the set that it was made from; a data set may have been moved
        self.real = {os.path.realpath(image): i for image, i in reversed(images.items())}
        self.images, self.roots = images, (root, os.path.commonpath([os.path.dirname(image) for image in images]))

    def __call__(self, image: str) -> int | None:
        for root in self.roots:
            path = os.path.normpath(os.path.join(root, image))
            place = self.images.get(path, self.real.get(os.path.realpath(path)))
            if place is not None:
                return place
        return None


def _of_file(source: DataSet, item: Item, seen: Sequence[_Seen], rule: Rule, left: Counter[str]) -> list[Change]:
    """What becomes of one label file."""
    if item.error:
        left["unreadable"] += len(seen)
        return []
    made: list[Change] = []
    numbers, boxes, stays = item.labels.classes.copy(), xyxy(item.labels), np.ones(len(item.labels), np.bool_)
    new: NDArray[np.bool_] = np.zeros(
        len(item.labels), np.bool_
    )  # what no audit has seen: it may explain what the others did not

    for one in seen:
        if one.word == ACCEPT and one.row.kind != "missing":
            kind, label = _OF_LABEL[one.row.kind], _label(one, item)
            if any(other.label == label and kind in (other.kind, "removed") for other in made):
                left["twice"] += 1
            elif kind == "box" and not (one.box[2:] > one.box[:2]).all():
                left["outside"] += 1
            else:
                made.append(one.change(kind, label=label))
                new[label] = True
                if kind == "class":
                    numbers[label] = one.row.number
                elif kind == "box":
                    boxes[label] = one.box
                else:
                    stays[label] = False
    numbers, boxes, new = numbers[stays], boxes[stays], new[stays]

    missing = [one for one in seen if one.row.kind == "missing"]
    for one in [*(o for o in missing if o.word == ACCEPT), *(o for o in missing if not o.word)]:
        kind, by = ("added", PERSON) if one.word else rule(one.row)
        if not kind:
            continue
        same, overlap = numbers == one.row.number, iou(one.box, boxes)
        if not (one.box[2:] > one.box[:2]).all():
            left["outside"] += 1
        elif one.word and (same & (overlap > _EQUAL)).any():
            left["there"] += 1
        elif not one.word and (new & same & ((overlap >= SAME) | (held(one.box, boxes) >= INSIDE))).any():
            left["explained"] += 1
        elif not one.word and _denied(item.regions, one).any():
            left["verified"] += 1
        else:
            if not one.word and kind == "added" and (new & ~same & (overlap >= SAME_PLACE)).any():
                kind = "unknown"
                left["two_classes"] += 1
            made.append(one.change(kind, by))
            if kind == "added":
                numbers, boxes = np.append(numbers, one.row.number), np.concatenate([boxes, one.box[None]])
                new = np.append(new, True)

    for one in missing:
        if one.word == REJECT:
            region = _region(one, len(source.names))
            if not (one.box[2:] > one.box[:2]).all():
                left["outside"] += 1
            elif regions.contradicted(region, numbers, xywh(boxes).astype(np.float32)).any():
                left["holds"] += 1
            else:
                made.append(one.change("background"))
    return made


def _region(one: _Seen, classes: int) -> Regions:
    """Verified background of its class where it is."""
    box = xywh(one.box)[None].astype(np.float32)
    return Regions(np.zeros(1, np.bool_), np.arange(classes)[None] == one.row.number, box)


def _denied(known: Regions, one: _Seen) -> NDArray[np.bool_]:
    """Which of the source's regions say that it is not there."""
    return regions.contradicted(known, np.array([one.row.number]), xywh(one.box)[None].astype(np.float32))


def _label(one: _Seen, item: Item) -> int:
    """The label that a suggestion is about, by its place in the file; DataError where another one stands there."""
    near = one.row.label
    if near is not None and near.index < len(item.labels) and item.labels.classes[near.index] == near.number:
        there = item.labels.boxes_xyxy(*one.size)[near.index]
        if np.abs(there - near.box).max() <= _CLOSE:
            return near.index
    raise DataError(f"suggestion {one.row.id}: its label is not in {item.source}")
