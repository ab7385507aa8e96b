"""What it gains to complete the labels: trainings on labels that were taken away, found again, or never taken away.

For each protocol and seed, with labels of its own draw: the labels that are left, the same with dropping and with BRL,
labels completed once and more often by models that have not seen the image (`rebalance rounds`), and complete labels.

    python scripts/completion.py data=<complete data set>.yaml out=<folder> [protocols=extreme,percent,hard]
        [rate=0.5] [seeds=0,1,2] [classes=fish] [rounds=2] [workers=1]

With `classes`, names, those alone lose labels, and the table is of them alone. Each seed then has a data set of its
own, which `rebalance report` shows as a setting of its own.

Any other key takes the place of one of the trainings' (epochs=1). `workers` commands run at a time, each with `jobs`
trainings; what was finished is not repeated. Where a command's folder is on another machine, the records that <out>
keeps count as finished, but for those of completed labels, whose audits it does not keep. workers=0 runs nothing, and
makes the table of what is there, and of records that are kept where nothing else is. With `records` the table is that
of several kept folders, of other seeds each.

<out>/<protocol>/records.jsonl keeps the records, for `rebalance report`, and audits.json beside it what each audit said
and the truth. <out>/table.csv is the table: mAP in points on test and val, differences from the labels that are left,
and of a round from the one before, paired by seed, with 95 % intervals, p after Holm's correction over the rows of a
protocol (of a round against the one before: by itself), and the gap closed to complete labels.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas

from rebalance.audit.rounds import read as rounds_asked
from rebalance.audit.table import TOLD
from rebalance.cli.main import guarded, pairs
from rebalance.data import dataset
from rebalance.data.derive import sparsify
from rebalance.data.protocols import uses_rate
from rebalance.errors import ConfigError, DataError, RunError
from rebalance.experiments.grid import difference, read_grid
from rebalance.experiments.record import (
    COLUMNS,
    PACKED,
    RECORD,
    RUNS,
    SWEEP,
    Plan,
    Record,
    Sweep,
    load,
    pack,
    points,
    read_json,
    write,
    write_json,
)
from rebalance.files import beside, require_writable, write_whole
from rebalance.report.evidence import compare, gap_closed, stat
from rebalance.settings import SparsifyFlags, classes_of, parse, require, setting, settings_of, value_text

RECIPE = {
    "model": "yolov5n.yaml", "head": "stock", "epochs": "12", "imgsz": "320", "batch": "16", "nbs": "16",
    "optimizer": "AdamW", "lr0": "0.002", "warmup_epochs": "1", "cos_lr": "True", "mosaic": "0", "cache": "ram",
    "val": "False", "plots": "False", "amp": "False", "workers": "0", "device": "cpu", "jobs": "2",
}  # fmt: skip
METHODS = {"dropping": {"loss": "drop", "obj_drop": "0.75"}, "BRL": {"loss": "brl"}}
OF_METHODS = {key for flags in METHODS.values() for key in flags}
HOST = {"loss": "bce"}
GIVEN, COMPLETE = "as labelled", "complete labels"
PROTOCOLS = settings_of(SparsifyFlags)["protocol"].metadata["choices"][1:]
FOLDS = "3"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """See above."""

    data: str = setting("", "data set YAML with complete labels")
    out: str = setting("", "folder of the records and the table")
    protocols: str = setting("extreme,percent,hard", "how labels are taken away, comma separated")
    rate: float = setting(0.5, "fraction of the boxes that percent and per_class take away", low=0, high=1)
    seeds: str = setting("0,1,2", "training seeds, comma separated")
    classes: str = setting("", "names of the classes that lose labels, comma separated; default: all")
    rounds: int = setting(2, "how often labels are completed", low=1)
    records: str = setting("", "folders of kept records, comma separated, whose table is made; nothing is trained")
    workers: int = setting(1, "commands at a time; 0: none", low=0)


Command = tuple[Path, list[str]]  # the folder that it makes, and what follows `rebalance`


def commands(asked: Flags, name: str, protocol: str, recipe: Mapping[str, str]) -> list[Command]:
    """What is to be run for one protocol; where some classes alone lose labels, on the sets that `damaged` names."""
    seeds, some = asked.seeds.split(","), bool(asked.classes)

    def command(word: str, root: str, own: str, flags: Mapping[str, str]) -> Command:
        rate = {"rate": value_text(asked.rate)} if uses_rate(protocol) else {}
        lost = {"data": str(damaged(name, protocol, flags["seeds"]))} if some else {"protocol": protocol, **rate}
        given = {**recipe, **lost, **flags, "name": f"{name}-{protocol}-{own}"}
        return Path("runs", root, given["name"]), [word, *(f"{key}={value}" for key, value in given.items())]

    of_rounds = {**HOST, "rounds": str(asked.rounds), "folds": FOLDS}
    return [
        *(command("rounds", "rounds", seed, {**of_rounds, "seeds": seed}) for seed in seeds),
        *(
            command("sweep", "benchmark", "-".join([flags["loss"], *[one] * some]), {**flags, "seeds": one})
            for flags in METHODS.values()
            for one in (seeds if some else [",".join(seeds)])
        ),
    ]


def damaged(name: str, protocol: str, seed: str) -> Path:
    """The YAML of a set of which some classes alone lost labels."""
    return Path("runs", name, f"{protocol}-{seed}", "data.yaml")


def lay_out(kept: Path, command: Command) -> None:
    """Make the folder of a command from kept records: of the labels that are left and of complete ones.

    Raises:
        RunError: they are of other values.
    """
    folder, (word, *flags) = command
    args = dict(flag.split("=", 1) for flag in flags)
    asked = (rounds_asked(args)[1] if word == "rounds" else read_grid(args)).asked
    sweep, mine = load(kept), json.loads(json.dumps(asked, default=str))
    both = [key for key in mine if key in sweep.asked and key not in ("seeds", "device", *OF_METHODS)]
    if changed := difference(*({key: values[key] for key in both} for values in (sweep.asked, mine))):
        raise RunError(f"{kept} keeps records of other values: {changed}. Give the same, or another out=")
    runs = {}
    for record in sweep.finished:
        loss, _, run = record.run.removeprefix("loss=").partition(",")
        given = not record.labels.get("round") and str(record.seed) in args["seeds"].split(",")
        if run and given and loss == args["loss"]:
            runs[run] = record
    if not runs:
        return
    with beside(folder) as part:
        write(part / SWEEP, Plan(asked=asked, runs=tuple(runs)))
        for run, record in runs.items():
            (part / RUNS / run).mkdir(parents=True)
            write(part / RUNS / run / RECORD, replace(record, run=run))
        part.rename(folder)


def merge(folders: Sequence[Path], out: Path) -> None:
    """Keep the records of several folders as those of one, beside those that are kept and in none of them."""
    kept = [load(out)] if (out / PACKED).is_file() else []
    found = [load(folder) for folder in folders]
    records = {record.run: record for sweep in kept for record in sweep.records}
    records |= {f"loss={record.train['loss']},{record.run}": record for one in found for record in one.records}
    asked = {key: value for one in reversed([*found, *kept]) for key, value in one.asked.items()}
    asked["seeds"] = sorted({record.seed for record in records.values()})
    with TemporaryDirectory() as work:
        write(Path(work, SWEEP), Plan(asked=asked, runs=tuple(records)))
        for name, record in records.items():
            place = Path(work, RUNS, name)
            place.mkdir(parents=True)
            write(place / RECORD, replace(record, run=name))
        pack(Path(work), out)


def audits(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What the audits of rounds said, by round and seed."""
    found = {file.parent.name: read_json(file) or {} for one in folders for file in one.glob("audits/*/audit.json")}
    return {name: {key: about[key] for key in TOLD if key in about} for name, about in sorted(found.items())}


def stage(record: Record) -> str:
    """The row of a table that a record belongs to."""
    for name, flags in METHODS.items():
        if record.train["loss"] == flags["loss"]:
            return name
    number = record.labels.get("round") or 0
    if not number:
        return COMPLETE if record.labels["protocol"] == "normal" else GIVEN
    return f"{number} round{'s' * (number > 1)}"


def rows(protocol: str, records: Sequence[Record], classes: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A row for what was trained on or with, from the seeds that have it and the labels that are left.

    Args:
        protocol: how labels were taken away.
        records: of the trainings.
        classes: names of those that the row is about; none: all.
    """
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(stage(record), {})[record.seed] = record
    order = [GIVEN, *METHODS, *sorted(name for name in found if "round" in name), COMPLETE]
    order = [name for name in order if name in found]
    base, whole = found.get(GIVEN, {}), found.get(COMPLETE, {})
    paired = {name: sorted(set(found[name]) & set(base)) for name in order}
    paired = {name: seeds for name, seeds in paired.items() if len(seeds) > 1}

    def levels(name: str, column: str, seeds: Sequence[int]) -> list[float]:
        return [points(found[name][seed], column, classes) for seed in seeds]

    def gains(name: str, column: str, seeds: Sequence[int]) -> list[float]:
        return [one - given for one, given in zip(*(levels(of, column, seeds) for of in (name, GIVEN)), strict=True)]

    others = [name for name in paired if name not in (GIVEN, COMPLETE)]
    rounds = [name for name in others if name not in METHODS]
    tests = {
        column: dict(zip(others, compare([stat(gains(name, column, paired[name])) for name in others]), strict=True))
        for column in COLUMNS
    }
    for name, seeds in paired.items():
        row: dict[str, Any] = {"protocol": protocol, "trained": name, "seeds": len(seeds)}
        for column in COLUMNS:
            level = stat(levels(name, column, seeds))
            row |= {column: level.mean, f"{column} ±": level.half}
            if name == GIVEN:
                continue
            gain = stat(gains(name, column, seeds))
            row |= {f"{column} gain": gain.mean, f"{column} gain ±": gain.half}
            if name == COMPLETE:
                continue
            row[f"{column} p"] = tests[column][name].corrected
            if name in rounds[1:]:
                before = rounds[rounds.index(name) - 1]
                both = zip(*(gains(of, column, seeds) for of in (name, before)), strict=True)
                more = stat([one - other for one, other in both])
                row |= {f"{column} more": more.mean, f"{column} more ±": more.half}
                row[f"{column} more p"] = compare([more])[0].corrected
            known = [seed for seed in seeds if seed in whole]
            if known and (gap := gap_closed(*(gains(of, column, known) for of in (name, COMPLETE)))):
                row |= {f"{column} gap closed": gap.share, f"{column} from": gap.low, f"{column} to": gap.high}
        yield row


def all_of(sweeps: Sequence[Sweep]) -> list[Record]:
    """The records of several kept folders, of other seeds each."""
    return [record for sweep in sweeps for record in sweep.finished]


def write_table(out: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write table.csv and show it."""
    frame = pandas.DataFrame(table)
    shares = [name for name in frame if name.endswith((" p", " gap closed", " from", " to"))]
    frame = frame.round({name: 3 if name in shares else 1 for name in frame.select_dtypes("number")})
    write_whole(out / "table.csv", frame.to_csv(index=False, lineterminator="\n").encode())
    print((out / "table.csv").read_text("utf-8"))


def main(argv: list[str]) -> None:
    """`data=` and `out=`, see above."""
    own = settings_of(Flags)
    given = pairs(argv, Flags)
    asked = parse(Flags, {key: text for key, text in given.items() if key in own})
    require(asked, "data", "out")
    if unknown := set(asked.protocols.split(",")) - {*PROTOCOLS}:
        raise ConfigError(f"protocols={asked.protocols}: {min(unknown)} is not one of {', '.join(PROTOCOLS)}")
    if asked.rate != Flags.rate and not any(map(uses_rate, asked.protocols.split(","))):
        raise ConfigError(f"rate={value_text(asked.rate)} has no effect with protocols={asked.protocols}")
    source, out = dataset.load(asked.data), Path(asked.out)
    if not source.labelled("test"):
        raise DataError(f"{source.file}: no test image has a label, and the table is of test")
    require_writable(out / "table.csv")
    recipe = {**RECIPE, **{key: text for key, text in given.items() if key not in own}, "data": asked.data}
    classes = classes_of(asked.classes, source.names.values())
    words = {protocol: commands(asked, out.name, protocol, recipe) for protocol in asked.protocols.split(",")}
    if asked.records:
        kept = {name: [load(Path(one) / name) for one in asked.records.split(",")] for name in words}
        write_table(out, [row for name, of in kept.items() for row in rows(name, all_of(of), classes)])
        return
    if classes and asked.workers:
        of_all = {"data": asked.data, "rate": value_text(asked.rate), "classes": asked.classes}
        for protocol, seed in product(words, asked.seeds.split(",")):
            flags = parse(SparsifyFlags, {**of_all, "protocol": protocol, "seed": seed})
            place = damaged(out.name, protocol, seed).parent
            if not place.exists():
                sparsify(replace(flags, out=str(place)))
            made = read_json(place / "manifest.json") or {}
            only = [row["name"] for row in made.get("classes", ()) if row["id"] in made.get("only", ())]
            if {*only} != {*classes} or made.get("asked") not in (None, flags.rate):
                raise RunError(f"{place} lost {made.get('asked')} of {', '.join(only)}: give another out=")

    def run(command: list[str]) -> int:
        return subprocess.run([sys.executable, "-m", "rebalance", *command], check=False).returncode

    codes = [0]
    if asked.workers:
        for protocol, made in words.items():
            for command in made:
                if (out / protocol / PACKED).is_file() and not command[0].exists():
                    lay_out(out / protocol, command)
        with ThreadPoolExecutor(asked.workers) as pool:
            codes = list(pool.map(run, [command for own in words.values() for _, command in own]))
    table = list[dict[str, Any]]()
    for protocol, made in words.items():
        folders = [folder for folder, _ in made if any(folder.glob(f"{RUNS}/*/{RECORD}"))]
        if folders:
            merge(folders, out / protocol)
            said = read_json(out / protocol / "audits.json") or {}
            write_json(out / protocol / "audits.json", {**said, **audits(folders)})
        if folders or (not asked.workers and (out / protocol / PACKED).is_file()):
            table += rows(protocol, load(out / protocol).finished, classes)
    if table:
        write_table(out, table)
    if not table or any(codes):
        raise RunError(f"{sum(map(bool, codes))} of {len(codes)} commands failed, and {len(table)} rows have two seeds")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
