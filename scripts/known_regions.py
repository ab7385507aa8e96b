"""What it is worth to say which labels are missing: trainings with and without regions, beside complete labels.

Two ways in which labels are missing, made from a data set whose training labels are complete, drawn anew for each seed:

    merge   two halves of the images: in one the classes of even number were labelled, in the other those of odd number,
            as where two data sets are joined. `annotated:` in the YAML says so, or nothing does.
    cover   in each image a strip of a third of its area, anywhere, was not looked at: boxes of which half or more lies
            in it are gone. A region file says so, or nothing does, or the strip is painted over: no object, no label.

    python scripts/known_regions.py data=<complete data set>.yaml out=<folder> [pretrained=<weights>] [seeds=0,1,2]
    python scripts/known_regions.py records=<folder>,<folder> out=<folder>

Any other key takes the place of one of the trainings' (epochs=1). The sweep is `runs/benchmark/<name of out>` and goes
on where it was stopped. Its records are kept in <out>/records.jsonl, the table is <out>/table.csv: mAP in points on
test and val, differences from "nothing said" paired by seed, with 95 % intervals, p after Holm's correction over the
ways, and the gap closed to complete labels. With `records=` nothing is trained: it is the table of what these folders
keep, whose seeds differ.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas
from numpy.typing import NDArray

from rebalance.cli.main import guarded, pairs
from rebalance.data import dataset, regions
from rebalance.data.dataset import DataSet
from rebalance.data.folder import finish, link, new_folder, put
from rebalance.data.labels import Labels
from rebalance.data.regions import Regions
from rebalance.errors import ConfigError, DataError
from rebalance.experiments.record import COLUMNS, Record, keep, load, points
from rebalance.experiments.sweep import sweep
from rebalance.files import require_writable, write_whole
from rebalance.report.evidence import Comparison, compare, gap_closed, stat
from rebalance.settings import parse, require, setting, settings_of

RECIPE = {
    "model": "yolov5n.yaml", "loss": "bce", "head": "stock", "freeze": "10", "epochs": "12", "imgsz": "320",
    "batch": "16", "nbs": "16", "optimizer": "AdamW", "lr0": "0.002", "warmup_epochs": "1", "cos_lr": "True",
    "mosaic": "0", "cache": "ram", "val": "False", "plots": "False", "amp": "False", "workers": "0", "device": "cpu",
    "jobs": "2",
}  # fmt: skip
SETS = {
    "merge": {"silent": "nothing", "said": "annotated"},
    "cover": {"silent": "nothing", "said": "region files", "painted": "painted over"},
}  # the data sets of a way, and what says in each that labels are missing
NAMES = [f"{way}-{what}" for way, sets in SETS.items() for what in sets]
COMPLETE = "complete"
COVERED = 1 / 3  # of an image's area
GREY = 114  # that letterboxes are filled with


@dataclass(frozen=True, kw_only=True)
class Flags:
    """See above."""

    data: str = setting("", "data set YAML with complete labels")
    out: str = setting("", "folder of the records and the table")
    seeds: str = setting("0,1,2", "training seeds, comma separated")
    records: str = setting("", "folders of kept records, comma separated, of which to make the table instead")


Made = tuple[NDArray[np.bool_], Regions, str]  # which labels (n,) stay, what a region file says, the half of the image


def merge(source: DataSet, found: Labels, draw: np.random.Generator) -> Made:
    """One of the halves, with labels of its own classes."""
    half = draw.integers(2)
    return found.classes % 2 == half, Regions.none(len(source.names)), f"half{half}/"


def cover(source: DataSet, found: Labels, draw: np.random.Generator) -> Made:
    """Labels outside a strip, and the region that is the strip."""
    left = draw.random() * (1 - COVERED)
    x, width = found.boxes_xywh_norm[:, 0].astype(float), found.boxes_xywh_norm[:, 2].astype(float)
    inside = np.minimum(x + width / 2, left + COVERED) - np.maximum(x - width / 2, left)
    strip = np.array([[left + COVERED / 2, 0.5, COVERED, 1]], np.float32)
    return inside < width / 2, Regions(np.array([True]), np.ones((1, len(source.names)), np.bool_), strip), ""


def painted(image: str, strips: Regions) -> bytes:
    """An image as PNG, grey where regions are."""
    pixels = cv2.imread(image)
    if pixels is None:
        raise DataError(f"{image} is no image")
    width = pixels.shape[1]
    for x, _, w, _ in strips.boxes_xywh_norm:
        pixels[:, round((x - w / 2) * width) : round((x + w / 2) * width)] = GREY
    return bytes(cv2.imencode(".png", pixels)[1])


def make(source: DataSet, way: Callable[..., Made], seed: int, out: Path) -> None:
    """Data sets `<out>-<name>` of a way, with the same labels, which differ in what is said of those that are gone."""
    for what in SETS[way.__name__]:
        place, said = out.with_name(f"{out.name}-{what}"), what == "said"
        if place.exists():
            continue
        with new_folder(place) as folder:
            images = source.images("train")
            above = os.path.commonpath([os.path.dirname(image) for image in images])
            for image in images:
                found = source.labels(image)
                draw = np.random.default_rng([seed, *Path(image).stem.encode()])
                stays, known, part = way(source, found, draw)
                name = f"train/{part}{os.path.relpath(image, above)}"
                if what == "painted":
                    put((folder / "images" / name).with_suffix(".png"), painted(image, known))
                else:
                    link(str(Path(image).resolve()), folder / "images" / name)
                put((folder / "labels" / name).with_suffix(".txt"), found.pick(stays).data)
                if said and len(known):
                    put((folder / "regions" / name).with_suffix(".txt"), regions.text(known))
            content: dict[str, Any] = {
                "train": "images/train", **{split: list(source.splits[split]) for split in ("val", "test")},
                "names": dict(source.names),
            }  # fmt: skip
            if said and way is merge:
                names = list(source.names.values())
                content["annotated"] = {f"images/train/half{half}": names[half::2] for half in (0, 1)}
            finish(folder, content, {"seed": seed})


def run(asked: Flags, flags: Mapping[str, str]) -> Sequence[Record]:
    """Make the data sets, train on them, keep the records and return them."""
    if not all(seed.isdecimal() for seed in asked.seeds.split(",")):
        raise ConfigError(f"seeds={asked.seeds} is not a list of whole numbers such as 0,1,2")
    source, out = dataset.load(asked.data), Path(asked.out)
    if not source.labelled("test"):
        raise DataError(f"{source.file}: no test image has a label, and the table is of test")
    require_writable(out / "table.csv")
    cells = []
    for seed in map(int, asked.seeds.split(",")):
        work = Path("runs", out.name, str(seed))
        for way in (merge, cover):
            make(source, way, seed, work / way.__name__)
        for name in (COMPLETE, *NAMES):
            data = source.file if name == COMPLETE else work / name / "data.yaml"
            cells.append({**RECIPE, **flags, "name": out.name, "data": os.path.relpath(data), "seeds": str(seed)})
    return keep(sweep(cells), out)


def table(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """A row for each way and what is said, from the seeds that have it, nothing said and complete labels."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        name = Path(record.host["data"]).parent.name
        found.setdefault(name if name in NAMES else COMPLETE, {})[record.seed] = record
    ways = {way: sets for way, sets in SETS.items() if f"{way}-silent" in found}

    def levels(name: str, column: str, seeds: Sequence[int]) -> NDArray[np.float64]:
        return np.array([points(found[name][seed], column) for seed in seeds])

    def seeds_of(way: str, *names: str) -> list[int]:
        return sorted(set.intersection(*({*found[name]} for name in (*names, f"{way}-silent", COMPLETE))))

    def gained(name: str, other: str, column: str, seeds: Sequence[int]) -> list[float]:
        return list(levels(name, column, seeds) - levels(other, column, seeds))

    def told(name: str, values: Sequence[float]) -> dict[str, float | None]:
        mean = stat(values)
        return {name: round(mean.mean, 1), f"{name} ±": mean.half and round(mean.half, 1)}

    own = {way: seeds_of(way, f"{way}-said") for way in ways}
    tests = dict[tuple[str, str], Comparison]()
    for column in COLUMNS if own and min(map(len, own.values())) > 1 else ():
        family = [stat(gained(f"{way}-said", f"{way}-silent", column, own[way])) for way in ways]
        tests |= {(way, column): test for way, test in zip(ways, compare(family), strict=True)}
    for way, sets in ways.items():
        silent, said = f"{way}-silent", f"{way}-said"
        names = {COMPLETE: "complete labels", **{f"{way}-{what}": shown for what, shown in sets.items()}}
        for name in (name for name in names if name in found):
            seeds = seeds_of(way, name, said)
            row: dict[str, Any] = {"missing": way, "said": names[name], "seeds": len(seeds)}
            for column in COLUMNS:
                row |= told(column, list(levels(name, column, seeds)))
                if name != silent:
                    row |= told(f"{column} vs nothing", gained(name, silent, column, seeds))
                if name == said and (test := tests.get((way, column))):
                    row |= {f"{column} of {len(ways)} ±": round(test.half, 1), f"{column} p": round(test.corrected, 3)}
                if name not in (silent, said, COMPLETE):
                    row |= told(f"{column} less than said", gained(said, name, column, seeds))
                if name not in (silent, COMPLETE) and (
                    closed := gap_closed(gained(name, silent, column, seeds), gained(COMPLETE, silent, column, seeds))
                ):
                    shares = {"gap closed": closed.share, "from": closed.low, "to": closed.high}
                    row |= {f"{column} {end}": share and round(share, 2) for end, share in shares.items()}
            yield row


def main(argv: list[str]) -> None:
    """`data=` and `out=`, see above."""
    own, given = settings_of(Flags), pairs(argv, Flags)
    asked = parse(Flags, {key: text for key, text in given.items() if key in own})
    require(asked, *(() if asked.records else ("data",)), "out")
    out = Path(asked.out)
    if asked.records:
        found: Sequence[Record] = [one for folder in asked.records.split(",") for one in load(folder).finished]
        require_writable(out / "table.csv")
    else:
        found = run(asked, {key: text for key, text in given.items() if key not in own})
    rows = pandas.DataFrame(table(found)).to_csv(index=False, lineterminator="\n")
    write_whole(out / "table.csv", rows.encode())
    print(rows)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
