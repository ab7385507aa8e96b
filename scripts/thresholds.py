"""From which probability on to add a suggestion, from which its place is unknown, and what a person's word is worth.

Each first audit of rounds that are done (`rebalance rounds`) is taken, the labels that were left are completed anew for
each pair of `complete_add` and `complete_ignore`, and a detector is trained on them, as the rounds trained theirs. What
they trained on the labels that were left and on complete ones is what it is compared with. With `decided`, somebody who
knows the truth accepts and rejects so many suggestions of missing labels, from the top of the list, and the first pair
holds for the others.

    python scripts/thresholds.py rounds=<folder>,<folder> out=<folder> [pairs=0.7/0.2,0.5/0.1] [decided=500,2000]
        [classes=fish] [jobs=2]

The sweep is `runs/benchmark/<name of out>` and goes on where it was stopped. <out>/records.jsonl keeps its records, and
audits.json beside it what each audit said and the truth. <out>/table.csv is the table: for each pair how many
suggestions were decided and boxes added, how many places are unknown, the share of the boxes that is right, the share
of the missing labels that is found again, and mAP in points on test and val with its difference from the labels that
were left, paired by seed, with 95 % intervals, and the gap closed to complete labels. With `classes`, names, all of
these are of those alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from rebalance.audit.api import complete
from rebalance.audit.complete import read_audit, require_order
from rebalance.audit.decisions import CHOICES
from rebalance.audit.decisions import write as write_decisions
from rebalance.audit.table import SUGGESTIONS, TOLD
from rebalance.audit.table import read as read_table
from rebalance.audit.truth import Withheld, right
from rebalance.cli.main import guarded, pairs
from rebalance.data import dataset
from rebalance.data.dataset import DataSet
from rebalance.errors import ConfigError, RunError
from rebalance.experiments.record import (
    COLUMNS,
    SWEEP,
    Plan,
    Record,
    keep,
    load,
    points,
    read_file,
    read_json,
    write_json,
)
from rebalance.experiments.sweep import sweep
from rebalance.files import require_writable, write_whole
from rebalance.report.evidence import gap_closed, stat
from rebalance.settings import CompleteFlags, classes_of, parse, require, setting

LEFT, COMPLETE = "as labelled", "complete labels"
OF_ROUNDS = ("rounds", "folds", "complete_add", "complete_ignore", "protocol", "rate", "label_seed", "seeds", "series")
COUNTS = ("added", "recovered", "unknown", "withheld")  # of a manifest


@dataclass(frozen=True, kw_only=True)
class Flags:
    """See above."""

    rounds: str = setting("", "folders of rounds, comma separated, with one seed each")
    out: str = setting("", "folder of the records and the table")
    pairs: str = setting("0.9/0.2,0.7/0.2,0.5/0.2,0.3/0.3", "complete_add/complete_ignore, comma separated")
    decided: str = setting("", "how many suggestions a person decides, comma separated")
    classes: str = setting("", "names of the classes that mAP is of, comma separated; default: all")
    jobs: int = setting(2, "trainings at a time", low=1)


def trained(folder: Path) -> dict[str, Record]:
    """What rounds of one seed trained on the labels that were left and on complete ones."""
    found = {}
    for record in load(folder).finished:
        if record.labels["protocol"] == "normal":
            found[COMPLETE] = record
        elif not record.labels.get("round"):
            found[LEFT] = record
    if len(found) < 2:
        raise RunError(f"{folder}: its trainings on the labels that were left and on complete ones are not finished")
    return found


class Way(NamedTuple):
    """How labels are completed."""

    name: str
    add: str
    ignore: str
    decided: int = 0  # suggestions, from the top of the list


def ways(asked: Flags) -> list[Way]:
    """Those that are asked for."""
    made = []
    for pair in asked.pairs.split(","):
        add, slash, ignore = pair.partition("/")
        if not slash:
            raise ConfigError(f"pairs={asked.pairs}: {pair} is not two probabilities such as 0.7/0.2")
        require_order(parse(CompleteFlags, {"complete_add": add, "complete_ignore": ignore}))
        made.append(Way(pair, add, ignore))
    for count in filter(None, asked.decided.split(",")):
        if not (count.isdecimal() and int(count)):
            raise ConfigError(f"decided={asked.decided}: {count} is not a number of suggestions")
        made.append(made[0]._replace(name=f"{made[0].name}, {count} decided", decided=int(count)))
    return made


def completed(folder: Path, left: Record, way: Way, work: Path) -> Path:
    """The YAML of the labels that were left, completed."""
    out = work / str(left.seed) / way.name.replace("/", "-").replace(", ", "-").replace(" ", "-")
    if not out.exists():
        audit = folder / "audits" / left.run
        given = {"data": left.config.data, "audit": audit, "complete_add": way.add, "complete_ignore": way.ignore}
        if way.decided:
            given["decisions"] = decide(dataset.load(left.config.data), audit, way.decided, out.with_suffix(".json"))
        complete(**given, out=out)
    return out / "data.yaml"


def decide(source: DataSet, audit: Path, count: int, out: Path) -> Path:
    """The decisions of somebody who knows what was withheld, on the first suggestions of missing labels."""
    about = read_audit(audit)
    rows = [row for row in read_table(audit / SUGGESTIONS) if row.kind == "missing"][:count]
    missing = {}
    for name, size in about["sizes"].items():
        lost = source.withheld(str(Path(about["images_root"], name)))
        missing[name] = Withheld(lost.boxes_xyxy(*size), lost.classes, np.zeros(len(lost.classes)))
    accept, reject = CHOICES
    words = {row.id: accept if good else reject for row, good in zip(rows, right(rows, missing)[0], strict=True)}
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_decisions(out, rows, words, about["suggestions_sha256"])


def counted(manifest: Mapping[str, Any], classes: Sequence[str]) -> dict[str, int]:
    """What became of the labels of a completed set, of all classes or of those named, and how many were decided."""
    rows = [row for row in manifest["classes"] if row["name"] in classes or not classes]
    decided = manifest["completed"]["accept"] + manifest["completed"]["reject"]
    return {**{key: sum(row[key] for row in rows) for key in COUNTS}, "decided": decided}


def table(
    found: Mapping[str, Mapping[int, Record]],
    counts: Mapping[str, Sequence[Mapping[str, int]]],
    classes: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """A row for each way, between those of what was left and of complete labels, from the seeds that have all.

    Args:
        found: by the name of the row its records by seed.
        counts: by the name of a way the totals of the completed sets.
        classes: names of those that mAP is of; none: all.
    """
    seeds = sorted(set.intersection(*({*runs} for runs in found.values())))

    def levels(name: str, column: str) -> list[float]:
        return [points(found[name][seed], column, classes) for seed in seeds]

    for name in sorted(found, key=lambda name: (name == COMPLETE, name != LEFT)):
        row: dict[str, Any] = {"trained": name, "seeds": len(seeds)}
        if name in counts:
            total = {key: sum(one[key] for one in counts[name]) for key in COUNTS}
            missing = total["withheld"] + total["recovered"]
            row |= {"decided": sum(one["decided"] for one in counts[name])}
            row |= {"added": total["added"], "unknown": total["unknown"]}
            row |= {
                "right": round(total["recovered"] / max(1, total["added"]), 3),
                "found": round(total["recovered"] / missing, 3),
            }
        for column in COLUMNS:
            gain = [one - left for one, left in zip(levels(name, column), levels(LEFT, column), strict=True)]
            for key, values in ((column, levels(name, column)), *(((f"{column} gain", gain),) if name != LEFT else ())):
                mean = stat(values)
                row |= {key: round(mean.mean, 1), f"{key} ±": mean.half and round(mean.half, 1)}
            if name in counts and len(seeds) > 1:
                gap = [one - left for one, left in zip(levels(COMPLETE, column), levels(LEFT, column), strict=True)]
                if closed := gap_closed(gain, gap):
                    ends = {"gap closed": closed.share, "from": closed.low, "to": closed.high}
                    row |= {f"{column} {end}": share and round(share, 3) for end, share in ends.items()}
        yield row


def main(argv: list[str]) -> None:
    """`rounds=` and `out=`, see above."""
    asked = parse(Flags, pairs(argv, Flags))
    require(asked, "rounds", "out")
    folders, wanted, out = [Path(name) for name in asked.rounds.split(",")], ways(asked), Path(asked.out)
    names_of = dataset.load(trained(folders[0])[COMPLETE].config.data).names if asked.classes else {}
    classes = classes_of(asked.classes, names_of.values())
    plans = [read_file(Plan, folder / SWEEP).asked for folder in folders]
    require_writable(out / "table.csv")
    work, cells, names = Path("runs", out.name), list[dict[str, str]](), dict[tuple[int, str], str]()
    counts: dict[str, list[Mapping[str, int]]] = {way.name: [] for way in wanted}
    found: dict[str, dict[int, Record]] = {LEFT: {}, COMPLETE: {}}
    audits: dict[str, dict[str, Any]] = {}
    for folder, plan in zip(folders, plans, strict=True):
        recipe = {key: str(value[0]) for key, value in plan.items() if key not in OF_ROUNDS}
        own = trained(folder)
        seed = own[LEFT].seed
        about = read_audit(folder / "audits" / own[LEFT].run)
        audits[f"seed={seed}"] = {key: about[key] for key in TOLD if key in about}
        for name, record in own.items():
            found[name][seed] = record
        for way in wanted:
            file = completed(folder, own[LEFT], way, work)
            given = {"data": os.path.relpath(file), "seeds": str(seed), "jobs": str(asked.jobs), "name": out.name}
            cells.append({**recipe, **given})
            names[seed, given["data"]] = way.name
            counts[way.name].append(counted(read_json(file.parent / "manifest.json") or {}, classes))
    done = keep(sweep(cells), out)
    write_json(out / "audits.json", audits)
    for record in done:
        found.setdefault(names[record.seed, str(record.host["data"])], {})[record.seed] = record
    rows = pandas.DataFrame(table(found, counts, classes)).to_csv(index=False, lineterminator="\n")
    write_whole(out / "table.csv", rows.encode())
    print(rows)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
