"""Open Images CSV: boxes, and of each image the classes that somebody looked for.

    *class-descriptions-boxable.csv            LabelName,DisplayName, with or without that header
    *<split>-annotations-bbox.csv              ImageID, LabelName, XMin, XMax, YMin, YMax (fractions), IsGroupOf
    *<split>-annotations-human-imagelabels-boxable.csv   ImageID, LabelName, Confidence: 1 there, 0 not there
    challenge-2019-*: classes-description-500, <split>-detection-bbox, <split>-detection-human-imagelabels
    <images>/<split>/<ImageID>.jpg             or without the folder

A class that is verified to be there is labelled in the whole image; one that is verified not to be there is
background in the whole image; every other one nobody looked for: unknown in the whole image. A group (`IsGroupOf`:
more than five that touch) is an unknown region of its class. Without the image labels only the classes with boxes are
known.

Classes form a tree, and the labels are the most specific: of a Man that is labelled, Person is still unknown.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

from rebalance.data.formats.reading import Images, files_of, image_folders, lines_of, number, read_csv, source_path
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, Region, guess_split
from rebalance.errors import DataError

_BOXES, _LABELS = re.compile(r"(annotations|detection)-bbox"), re.compile(r"human-imagelabels")
_NAMES = re.compile(r"class(es)?-descriptions?")
_SIDES = ("XMin", "YMin", "XMax", "YMax")


def read(given: ConvertFlags) -> Found:
    """Read a folder of Open Images; DataError as every format."""
    source = source_path(given.source, folder=True)
    files = files_of(source, ".csv", "Open Images annotations")
    names = _names(source, files)
    images = image_folders(given.images, source)
    found = Found(names=list(dict.fromkeys(names.values())), records=[], files=files)
    boxes = [path for path in files if _BOXES.search(path.name)]
    if not boxes:
        raise DataError(f"source={source} has no *-annotations-bbox.csv in it")
    for path in boxes:
        split = guess_split(path.stem) or given.split
        verified = [other for other in files if _LABELS.search(other.name) and guess_split(other.stem) in (split, "")]
        found.records += _read(path, verified, split, names, images)
        if not verified:
            found.notes.append(
                f"{path.name}: no *-human-imagelabels*.csv beside it, so that only the classes with boxes are known"
            )
    return found


def _names(source: Path, files: list[Path]) -> dict[str, str]:
    """Code -> name of the classes, in the order of the file."""
    path = next((path for path in files if _NAMES.search(path.name)), None)
    if path is None:
        raise DataError(f"source={source} has no *class-descriptions*.csv in it, with the names of the classes")
    names = {}
    for where, line in lines_of(path):
        code, *others = next(csv.reader([line], skipinitialspace=True))
        if not others:
            raise DataError(f"{where}: not LabelName,DisplayName")
        names[code.strip()] = others[0].strip()  # what stands behind them is a number
    names.pop("LabelName", None)
    return names


def _read(path: Path, verified: list[Path], split: str, names: dict[str, str], images: Images) -> list[Record]:
    folder = {"val": "validation"}.get(split, split)
    records: dict[str, Record] = {}
    present: dict[str, set[str]] = defaultdict(set)
    absent: dict[str, set[str]] = defaultdict(set)

    def record_of(image: str, where: str) -> Record:
        if image not in records:
            file = images.find(f"{folder}/{image}.jpg", where)
            records[image] = Record(f"{image}.jpg", file, where, (1, 1), split=split if split != "auto" else "")
        return records[image]

    def name_of(code: str, where: str) -> str:
        if code not in names:
            raise DataError(f"{where}: LabelName {code} is not among the classes")
        return names[code]

    for where, row in read_csv(path, ("ImageID", "LabelName", *_SIDES)):
        record, name = record_of(row["ImageID"], where), name_of(row["LabelName"], where)
        box = tuple(number(row[side], side, where) for side in _SIDES)
        if min(box) < 0 or max(box) > 1:
            raise DataError(
                f"{where}: {', '.join(_SIDES)} are {' '.join(f'{v:g}' for v in box)}, not fractions of the image"
            )
        if row.get("IsGroupOf", "0").strip() == "1":
            record.regions.append(Region(True, [name], (box[0], box[1], box[2], box[3])))
        else:
            record.boxes.append(Box(name, *box))
        present[row["ImageID"]].add(name)
    for other in verified:
        for where, row in read_csv(other, ("ImageID", "LabelName", "Confidence")):
            if row["LabelName"] not in names:
                continue  # not one of those with boxes
            record_of(row["ImageID"], where)
            sure = number(row["Confidence"], "Confidence", where)
            if sure not in (0, 1):
                raise DataError(f"{where}: Confidence {sure:g} is not 0 or 1: not verified by a person")
            if not sure:
                absent[row["ImageID"]].add(names[row["LabelName"]])
    for image, record in records.items():
        gone = absent[image] - present[image]
        whole = [Region(True, sorted(gone | present[image]), None, others=True)]
        whole += [Region(False, sorted(gone), None)] if gone else []
        record.regions[:0] = whole
    return list(records.values())
