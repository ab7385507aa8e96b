"""What a run is asked and what it leaves behind, in one definition that writes and reads the files.

    runs/benchmark/<name>/sweep.json                  Plan: what the sweep was asked for
    runs/benchmark/<name>/runs/<run>/config.json      Task: what one run is to do
    runs/benchmark/<name>/runs/<run>/record.json      Record: what came of it

A file is written to a temporary name and moved. A record is written last: a run folder with one is over, one without is
not. `python -m rebalance.experiments.record <sweep folder> <new folder>` keeps a sweep as one file, records.jsonl: the
plan on its first line, then a record a line, word for word. Such a folder is read as the sweep's own. The same command,
given such a folder, lays the files out again, and the sweep goes on there, on another machine too.

Boxes are (x1, y1, x2, y2) in pixels of the image; metrics are fractions in [0, 1].
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
import sys
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache, partial
from os.path import exists  # of a name that is too long, False
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from rebalance.data.noise import KINDS
from rebalance.errors import RunError
from rebalance.files import beside, write_whole

SCHEMA = 1
SWEEP, RUNS, PACKED = "sweep.json", "runs", "records.jsonl"
CONFIG, RECORD, LOG, PROGRESS = "config.json", "record.json", "log.txt", "progress.json"
PIXELS = "pixels"  # folder of a sweep at work: images that its runs keep in memory, see `image_cache`
TRAIN = "train"  # folder of a run that the host writes to; its weights are below
SPLITS = ("val", "test")
METRICS = ("mAP50", "mAP75", "mAP50-95")
COLUMNS = {  # of a table of comparisons -> split and metric
    "mAP50": ("test", "mAP50"),
    "mAP50-95": ("test", "mAP50-95"),
    "val mAP50": ("val", "mAP50"),
    "val mAP50-95": ("val", "mAP50-95"),
}
DIAGNOSE = "diagnose/"  # of the columns of epochs that are of a diagnosis
NOISE = (*KINDS, "jitter_iou")  # of the training labels, see `rebalance.data.noise`
NUMBERS = ("iou", "conf", "max_det")  # of an evaluation, by the names of the host's flags
VAL_REGIONS = "val_regions"  # of an evaluation with regions: whether what is found in unknown ones is left out

Box = tuple[float, float, float, float]
T = TypeVar("T")

_TAIL = 25  # lines of log kept in the record of a failed run
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Label(NamedTuple):
    """One box of the data set with its class index; a flat row of 5 numbers in the file."""

    cls: int
    box: Box


class Detection(NamedTuple):
    """One predicted box with its class index and score in [0, 1]; a flat row of 6 numbers in the file."""

    cls: int
    score: float
    box: Box


class Rule(NamedTuple):
    """What a value out of JSON must be, in words that follow 'not', and how it is typed."""

    good: Callable[[Any], bool]
    what: str
    make: Callable[[Any], Any] = lambda value: value


def _is_number(value: Any) -> bool:
    """Not NaN, not infinite, and no whole number that no float holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_one(value: Any) -> bool:
    return not isinstance(value, (dict, list))


_OBJECT = Rule(lambda value: isinstance(value, dict), "an object")
_RULES: Mapping[Any, Rule] = {
    str: Rule(lambda value: isinstance(value, str), "a text"),
    int: Rule(_is_number, "a number", int),
    float: Rule(_is_number, "a number", float),
    list: Rule(lambda value: isinstance(value, list), "a list"),
    dict: _OBJECT,
    Path: Rule(lambda value: isinstance(value, str), "a path", Path),
    Any: Rule(lambda value: True, ""),
}
_ROWS: Mapping[Any, tuple[int, Callable[..., Any]]] = {  # numbers in it, and what they make
    tuple[int, int]: (2, lambda width, height: (int(width), int(height))),
    Label: (5, lambda cls, *box: Label(int(cls), box)),
    Detection: (6, lambda cls, score, *box: Detection(int(cls), score, box)),
}

# `Annotated[what a reader sees, what is checked first]`: a rule, or the kinds of the known keys; other keys are free.
Name = Annotated[str, Rule(lambda value: isinstance(value, str) and value != "", "a text")]
Status = Annotated[str, Rule(lambda value: value in ("finished", "failed"), "finished or failed")]
Fraction = Annotated[float, Rule(lambda value: _is_number(value) and 0 <= value <= 1, "a fraction in [0, 1]")]
Scalar = Annotated[Any, Rule(_is_one, "one value")]
Setting = Annotated[Any, Rule(lambda value: all(map(_is_one, value if type(value) is list else [value])), "a setting")]
Settings = Mapping[str, Setting]
Flags = Annotated[Mapping[str, Scalar], {"obj_drop": float, "box_drop": float}]  # the two are plotted over
# A loss that overflowed is written as null: a curve has a gap there, the record is readable.
_finite = _OBJECT._replace(make=lambda value: {key: item for key, item in value.items() if _is_number(item)})
Numbers = Annotated[Mapping[str, float], _finite]
_HOST_METRICS = dict.fromkeys(METRICS, Fraction)  # must be there
_METRICS = {
    **_HOST_METRICS,
    **dict.fromkeys(("precision", "recall"), float | None),
    "mAP_by_iou": Mapping[str, Fraction] | None,  # IoU threshold, e.g. '0.55' -> mAP; none in older records
    "per_class": Mapping[str, Numbers] | None,  # '<index>: <name>'; in older records the name alone
    **dict.fromkeys(("coco", "voc"), Numbers | None),  # as COCO and VOC 2007 count; none in older records
}
_present = _OBJECT._replace(make=lambda value: {split: value[split] for split in SPLITS if value.get(split)})
Metrics = Annotated[Mapping[str, Annotated[Mapping[str, Any], _METRICS]], _present]
HostMetrics = Annotated[Mapping[str, Annotated[Mapping[str, float], _HOST_METRICS]], _present]
_EVALUATION = {"iou": float, "conf": float, "max_det": int, "source": str}
_LOSS_RAN = {
    **dict.fromkeys(("loss", "head", "element", "weighting", "divisor", "text"), str | None),
    **dict.fromkeys(("pull", "push"), float | None),  # by what dropping multiplies them, see `hosts.host.pulls`
}
_LABELS = {
    **dict.fromkeys(("protocol", "data", "jitter_iou"), str | None),
    **dict.fromkeys(("rate", *KINDS), float | None),
    **dict.fromkeys(("seed", "round"), int | None),
    "completed": Numbers | None,
}
_STUDY = {
    **dict.fromkeys(("key", "title", "compared", "note", "baseline"), str | None),
    "tables": tuple[tuple[str, ...], ...] | None,
    "figures": tuple[str, ...] | None,
    "given": Settings | None,
}


@dataclass(frozen=True)
class Sample:
    """One image with what was labelled, what was withheld from training, and what the trained model finds.

    Attributes:
        image: as a record shows paths.
        size: width, height in pixels.
        labels, withheld, detections: boxes.
        steps: what it finds with its first 0, 1 … T - 1 refinements alone; `detections` are with all T. Empty for a
            head without steps, for images that were not looked at step by step, and in older records.
        split: train, val or test.
    """

    image: Path
    size: tuple[int, int]
    labels: tuple[Label, ...] = ()
    withheld: tuple[Label, ...] = ()
    detections: tuple[Detection, ...] = ()
    steps: tuple[tuple[Detection, ...], ...] = ()
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a run trains with: our flags, the host's that were given (`host_args`: all of them), labels and seed."""

    train: Flags
    host: Settings
    labels: Annotated[Mapping[str, Any], {**_LABELS, "manifest": Mapping[str, Any] | None}]
    seed: int
    host_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The YAML that the run trains on."""
        return Path(self.labels["data"]).absolute()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run folder asks for; `given` are the names of our flags that were given, the only ones passed on."""

    run: Name
    config: Config
    varied: Settings
    given: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run that is over. `metrics` are empty if it failed; `log_tail` are then the last lines of its log.

    Attributes:
        metrics: of the boxes that `evaluation` keeps.
        host_metrics: of those that Ultralytics' defaults keep; empty in older records, whose `metrics` these are unless
            the sweep had `iou`, `conf` or `max_det`.
        evaluation: `iou`, `conf` and `max_det`, and their `source` in words; `val_regions` where the splits have
            regions; empty in older records.
    """

    run: Name
    status: Status
    error: str = ""
    config: Config
    varied: Settings = field(default_factory=dict)
    weights: str = ""
    loss_ran: Annotated[Mapping[str, Any], {**_LOSS_RAN, "settings": Settings | None}] = field(default_factory=dict)
    versions: Mapping[str, Scalar] = field(default_factory=dict)
    git: Mapping[str, Scalar] = field(default_factory=dict)
    machine: Mapping[str, Scalar] = field(default_factory=dict)
    timings: Numbers = field(default_factory=dict)
    peak_memory_mb: float | None = None
    metrics: Metrics = field(default_factory=dict)
    host_metrics: HostMetrics = field(default_factory=dict)
    evaluation: Annotated[Mapping[str, Scalar], _EVALUATION] = field(default_factory=dict)
    epochs: tuple[Numbers, ...] = ()
    samples: tuple[Sample, ...] = ()
    log_tail: tuple[str, ...] = ()
    folder: Path = Path()

    def __post_init__(self) -> None:
        if self.finished and not self.metrics:
            raise RunError("metrics has neither val nor test")

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def train(self) -> Mapping[str, Any]:
        return self.config.train

    @property
    def host(self) -> Mapping[str, Any]:
        return self.config.host

    @property
    def labels(self) -> Mapping[str, Any]:
        return self.config.labels

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def per_class(self) -> dict[str, Mapping[str, Mapping[str, float]]]:
        """Split -> class -> metric -> fraction; a class is named, with its index where another has the same name."""
        return {split: _named(found.get("per_class") or {}) for split, found in self.metrics.items()}

    @property
    def by_iou(self) -> dict[str, Mapping[str, float]]:
        """Split -> IoU threshold -> mAP, of the splits that have it."""
        return {split: found["mAP_by_iou"] for split, found in self.metrics.items() if found.get("mAP_by_iou")}

    @property
    def diagnostics(self) -> dict[str, dict[float, float]]:
        """What the loss did to objects whose labels were withheld: name -> epoch -> value, see `rebalance.diagnosis`.

        Empty where it was not measured; no value where there was nothing to divide by.
        """
        found: dict[str, dict[float, float]] = {}
        for i, row in enumerate(self.epochs):
            for key in (key for key in row if key.startswith(DIAGNOSE) and row[key] == row[key]):
                found.setdefault(key.removeprefix(DIAGNOSE), {})[row.get("epoch", i + 1.0)] = row[key]
        return found

    @property
    def headline(self) -> tuple[str, Mapping[str, Any]]:
        """The split that a run is judged by and its metrics: test where the data has one, else val."""
        split = "test" if "test" in self.metrics else "val"
        return split, self.metrics.get(split, {})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep was asked for: key to list of values, run ids in order, and the table or figure that it is.

    `written` is what was written down before it ran, see `rebalance.experiments.plan`.
    """

    asked: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    study: Annotated[Mapping[str, Any], _STUDY] = field(default_factory=dict)
    written: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """Everything found below a sweep folder.

    Attributes:
        folder: the sweep folder.
        asked: key to list of values that the sweep was started with; empty where it left no sweep.json.
        study: of a paper's table or figure: `key`, `title`, `compared`, `note`, `tables` (paper and table of the
            reported numbers), `figures`, `baseline` (a loss), `given`; else empty.
        records: runs that are over, in the order of the grid, else of their ids.
        missing: ids of runs that were planned or begun and have no record.
        warnings: one line for each record that was skipped.
        baseline: the loss that the others are compared with, with flags where several settings have it; empty where
            none was chosen.
        written: of a sweep with a plan: its `title`, `question`, `answer`, `baseline`, `file`, `sha256`, `given`.
    """

    folder: Path
    asked: Mapping[str, Any]
    study: Mapping[str, Any]
    records: tuple[Record, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    baseline: str = ""
    written: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[Record, ...]:
        return tuple(r for r in self.records if r.finished)

    @property
    def failed(self) -> tuple[Record, ...]:
        return tuple(r for r in self.records if not r.finished)


def _named(classes: Mapping[str, T]) -> dict[str, T]:
    """Take the index off the keys '<index>: <name>' of classes whose name is theirs alone."""
    if not all(re.match(r"[0-9]+: ", key) for key in classes):
        return dict(classes)
    names = [key.split(": ", 1)[1] for key in classes]
    return {name if names.count(name) == 1 else key: classes[key] for key, name in zip(classes, names, strict=True)}


@cache
def _parts(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Field of a dataclass -> its kind, and whether it must be there."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (hints[f.name], f.default is f.default_factory is MISSING) for f in fields(kind)}


def build(kind: Any, value: Any, name: str = "") -> Any:
    """Return a value out of JSON as `kind`, checked all through; null where there is a default means the default.

    Raises:
        RunError: a part is missing or of the wrong kind; it is named.
    """
    origin, args = get_origin(kind), get_args(kind)
    if NoneType in args:
        return None if value is None else build(args[0], value, name)
    if origin is Annotated:
        return build(args[0], build(args[1], value, name), name)
    if isinstance(kind, dict):
        given = build(dict, value, name)
        wanted = [key for key in kind if key in given or key in METRICS]
        return {**given, **{key: build(kind[key], given.get(key), f"{name}.{key}") for key in wanted}}
    typed: bool = is_dataclass(kind)  # said so, as the checker would take the kind for an instance
    if typed:
        given = build(dict, value, name or "the record")
        parts = {key: part for key, (part, needed) in _parts(kind).items() if needed or given.get(key) is not None}
        return kind(**{key: build(part, given.get(key), f"{name}.{key}".lstrip(".")) for key, part in parts.items()})
    if origin is abc.Mapping:
        return {key: build(args[1], item, f"{name}.{key}") for key, item in build(dict, value, name).items()}
    if kind in _ROWS:
        size, make = _ROWS[kind]
        row = [build(float, item, name) for item in build(list, value, name)]
        if len(row) != size:
            raise RunError(f"{name} has {len(row)} numbers, not {size}")
        return make(*row)
    if origin is tuple:
        return tuple(build(args[0], item, f"{name}[{i}]") for i, item in enumerate(build(list, value, name)))
    rule = kind if isinstance(kind, Rule) else _RULES[kind]
    if not rule.good(value):
        told = type(value).__name__ if isinstance(value, (dict, list)) else repr(value)
        raise RunError(f"{name} is {'missing' if value is None else f'{told}, not {rule.what}'}")
    return rule.make(value)


def _held(text: str, kind: type[float] = float) -> float:
    """A number that floats hold; NaN, infinity and what would become it are none in JSON, and are never written."""
    value = kind(text)
    if not _is_number(value):
        raise ValueError(f"{text[:20]} is not a number")
    return value


def decode(kind: type[T], text: str, what: str) -> T:
    """Return the object in a JSON text as `kind`: Record, Task or Plan; `what` is the file or line, for errors.

    Raises:
        RunError: not JSON, of another schema, or a part is missing or of the wrong kind; it is named.
    """
    try:
        content = json.loads(text, parse_constant=_held, parse_float=_held, parse_int=partial(_held, kind=int))
        if r"\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # half a character, which no page can hold
        if build(dict, content, "the content").get("schema") != SCHEMA:
            raise RunError(f"schema is {content.get('schema')!r}, this version reads {SCHEMA}")
        made: T = build(kind, content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{what} is not valid JSON: {error}") from None
    except RunError as error:
        raise RunError(f"{what}: {error}") from None
    return made


def read_file(kind: type[T], path: Path) -> T:
    """Read one of these files.

    Raises:
        RunError: it cannot be read, or as `decode`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return decode(kind, text, str(path))


def read(path: str | Path) -> Record:
    """Read one record.json; errors as `read_file`."""
    return replace(read_file(Record, Path(path)), folder=Path(path).parent)


def read_if_whole(kind: type[T], path: Path) -> T | None:
    """Return what `read_file` does, None where it would raise: of a record, where the run is not over."""
    try:
        return read_file(kind, path)
    except RunError:
        return None


def load(folder: str | Path, baseline: str = "") -> Sweep:
    """Read every record of a sweep folder, or of one kept as records.jsonl; a corrupt one is skipped and named.

    Args:
        folder: of the sweep.
        baseline: the loss that the others are compared with; empty: the study's, else the first that was asked for.

    Raises:
        RunError: the folder does not exist or has no run in it.
    """
    folder = Path(folder)
    packed = folder / PACKED
    if packed.is_file():
        first, *lines = packed.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        plan = decode(Plan, first, f"{packed}, line 1")
        found = [partial(decode, Record, line, f"{packed}, line {number}") for number, line in enumerate(lines, 2)]
    else:
        plan = read_if_whole(Plan, folder / SWEEP) or Plan()
        begun = sorted(path.name for path in (folder / RUNS).glob("*") if path.is_dir())
        paths = {run: folder / RUNS / run / RECORD for run in dict.fromkeys([*plan.runs, *begun])}
        found = [partial(read, path) for path in paths.values() if exists(path)]
    records, warnings = list[Record](), list[str]()
    for reader in found:
        try:
            records.append(reader())
        except RunError as error:
            warnings.append(f"skipped: {error}")
    if packed.is_file():
        records = [replace(record, folder=folder / RUNS / record.run) for record in records]
        missing = [run for run in plan.runs if run not in {record.run for record in records}]
    else:
        missing = [run for run, path in paths.items() if not exists(path)]
    if not (records or missing or warnings):
        raise RunError(f"{folder} is not the folder of a sweep: it has no {RUNS}/<run>/{RECORD}")
    return Sweep(
        folder, plan.asked, plan.study, tuple(records), tuple(missing), tuple(warnings), baseline, plan.written
    )


def points(record: Record, column: str, classes: Sequence[str] = ()) -> float:
    """The number of a table of comparisons, a key of COLUMNS, in points: of all classes, or the mean of those named.

    Raises:
        RunError: a class has no number, as the split has no label of it.
    """
    split, metric = COLUMNS[column]
    if not classes:
        return float(100 * record.metrics[split][metric])
    found = record.per_class[split]
    if unknown := [name for name in classes if metric not in found.get(name, {})]:
        raise RunError(f"{record.run}: {split} has no {metric} of {', '.join(unknown)}; it has {', '.join(found)}")
    return float(100 * sum(found[name][metric] for name in classes) / len(classes))


def by_epoch(records: Iterable[Record], key: str) -> dict[float, list[float]]:
    """Return the values of one column of the epochs, of the runs that have it; epochs ascend."""
    values: dict[float, list[float]] = {}
    for record in records:
        for i, row in enumerate(record.epochs):
            if key in row:
                values.setdefault(row.get("epoch", i + 1.0), []).append(row[key])
    return dict(sorted(values.items()))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None where there is no such file or it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_epochs(path: Path) -> list[dict[str, float]]:
    """Return the rows of Ultralytics' results.csv; of an epoch that was trained twice, the last.

    Our own columns are `drop/…`, predictions that the loss counted in the epoch (negatives, and those dropped from each
    loss), `drop/pull` and `drop/push`, by what dropping multiplied the loss's gradient on positives and on negatives in
    the epoch's first step, and `resobj/pos_t`, `resobj/neg_t`, the mean objectness of positives and of negatives in the
    epoch's training images after step t = 0 … T.
    """
    if not path.exists():
        return []
    rows: dict[int, dict[str, float]] = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        if None in row or None in row.values():
            continue  # half-written
        with contextlib.suppress(ValueError):
            numbers = {key.strip(): float(value) for key, value in row.items()}
            epoch = int(numbers.pop("epoch"))
            rows[epoch] = {"epoch": epoch, **numbers}
    return [rows[epoch] for epoch in sorted(rows)]


# where empty
_LEFT_OUT = (
    "evaluation", "host_args", "host_metrics", "log_tail", "machine", "steps", "study", "versions", "weights",
    "written",
)  # fmt: skip
_NULL = ("error", "git", "loss_ran", "metrics", "timings")  # where empty


def write(path: Path, made: Record | Task | Plan) -> None:
    """Write the file that `read` reads, whole or not at all."""
    content = _plain(made)
    if isinstance(made, Record) and made.metrics:
        content["metrics"] = {split: content["metrics"].get(split) for split in SPLITS}
    write_json(path, {"schema": SCHEMA, **content})


def failed(task: Task, error: str, log: Path, **known: Any) -> Record:
    """The record of a run that ended without a result: `error` is one line, `known` are fields known all the same."""
    told = {"run": task.run, "config": task.config, "varied": task.varied, "log_tail": tuple(tail(log)), **known}
    return Record(status="failed", error=error, **told)


def pack(folder: Path, out: Path) -> Path:
    """Keep the plan and the records of a sweep as one file in another folder, every value as it is; return the file.

    Raises:
        RunError: the folder is not a sweep's, or its plan or a record in it is corrupt.
    """
    sweep = load(folder)
    read_file(Plan, folder / SWEEP)
    if sweep.warnings:
        raise RunError(sweep.warnings[0].removeprefix("skipped: "))
    files = [folder / SWEEP, *(record.folder / RECORD for record in sweep.records)]
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(read_json(file), separators=(",", ":")) for file in files]
    return write_whole(out / PACKED, "".join(f"{line}\n" for line in lines).encode())


def keep(folder: Path, out: Path) -> tuple[Record, ...]:
    """Keep a sweep of which all runs finished as one file, and return them.

    Raises:
        RunError: a run failed, or as of `pack`.
    """
    sweep = load(folder)
    if sweep.failed:
        count = f"{len(sweep.failed)} run{'s' * (len(sweep.failed) > 1)} failed"
        raise RunError(f"{count} (the same command tries again), the first: {sweep.failed[0].error}")
    pack(folder, out)
    return sweep.finished


def unpack(folder: Path, out: Path) -> Path:
    """Lay the plan and the records of a sweep that was kept as one file out in a new folder; return that.

    Raises:
        RunError: the new folder is there, or the plan or a record is corrupt.
    """
    sweep = load(folder)
    if sweep.warnings:
        raise RunError(sweep.warnings[0].removeprefix("skipped: "))
    plan, *lines = (folder / PACKED).read_text(encoding="utf-8").splitlines()
    if exists(out):
        raise RunError(f"{out} is there already")
    for outside in (run for record in sweep.records if Path(run := record.run).name != run):
        raise RunError(f"{outside} is not the name of a run's folder")
    with beside(out) as part:
        write_json(part / SWEEP, json.loads(plan))
        for record, line in zip(sweep.records, lines, strict=True):
            (part / RUNS / record.run).mkdir(parents=True)
            write_json(part / RUNS / record.run / RECORD, json.loads(line))
        part.rename(out)
    return out


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, one key a line, whole or not at all; NaN and infinity become null."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in _plain(content).items()]
    write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _plain(value: Any) -> Any:
    """Mappings, sequences, numbers and texts only; not-a-number becomes None."""
    if is_dataclass(value):
        content = {f.name: getattr(value, f.name) for f in fields(value)}
        kept = {key: item for key, item in content.items() if key != "folder" and (item or key not in _LEFT_OUT)}
        return {key: _plain(item or None if key in _NULL else item) for key, item in kept.items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (Label, Detection)):
        return [*value[:-1], *value.box]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None  # infinity and NaN both fail
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def tail(log: Path, lines: int = _TAIL) -> list[str]:
    """Return the last lines of a log, without colours and without the progress bars that were drawn over."""
    try:
        text = log.read_bytes()[-65536:].decode("utf-8", errors="replace")
    except OSError:
        return []
    kept = [_ANSI.sub("", line.rsplit("\r", 1)[-1]).rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in kept if line][-lines:]


def shown(path: str | Path) -> str:
    """Return a path as a record shows it: relative where it lies below the working directory, so that it moves."""
    full = Path(path).absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def main(args: Sequence[str]) -> int:
    """`<sweep folder> <new folder>`: keep a sweep as one file, or lay one that was kept so out again."""
    try:
        if len(args) != 2:
            raise RunError(f"give the folder of a sweep and a new folder; got '{' '.join(args)}'")
        folder, out = map(Path, args)
        print((unpack if (folder / PACKED).is_file() else pack)(folder, out))
    except RunError as error:
        print(f"rebalance: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
