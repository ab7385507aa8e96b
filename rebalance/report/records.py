"""Read the records of a sweep: `runs/*/record.json` below its folder, checked and typed.

A record is written once, whole, when its run is over; a run folder without one is unfinished. Boxes are
(x1, y1, x2, y2) in pixels of the image; metrics are fractions in [0, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebalance.errors import RunError
from rebalance.settings import TrainFlags, as_dict

SCHEMA = 1
METRICS = ("mAP50", "mAP75", "mAP50-95")
SPLITS = ("val", "test")
TABLES = ("per_class", "mAP_by_iou")  # entries of a split's metrics that are no single number

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One predicted box with its class index and score in [0, 1]."""

    cls: int
    score: float
    box: Box


@dataclass(frozen=True)
class Sample:
    """One image with what was labelled, what was withheld from training, and what the trained model finds.

    Attributes:
        steps: what it finds with its first 0, 1 … T - 1 refinements alone; `detections` are with all T. Empty for a
            head without steps, for images that were not looked at step by step, and in older records.
    """

    image: Path
    size: tuple[int, int]  # width, height in pixels
    labels: tuple[Box, ...]
    withheld: tuple[Box, ...]
    detections: tuple[Detection, ...]
    steps: tuple[tuple[Detection, ...], ...] = ()


@dataclass(frozen=True)
class Record:
    """One training run that is over. Mappings are as in the file; `metrics` and `per_class` are empty if it failed."""

    run: str
    folder: Path
    status: str  # finished | failed
    error: str
    seed: int
    train: Mapping[str, Any]
    host: Mapping[str, Any]
    labels: Mapping[str, Any]
    loss_ran: Mapping[str, Any]
    versions: Mapping[str, Any]
    git: Mapping[str, Any]
    machine: Mapping[str, Any]
    timings: Mapping[str, float]
    peak_memory_mb: float | None
    metrics: Mapping[str, Mapping[str, float]]  # split -> metric -> fraction
    per_class: Mapping[str, Mapping[str, Mapping[str, float]]]  # split -> class -> metric -> fraction
    by_iou: Mapping[str, Mapping[str, float]]  # split -> IoU threshold, e.g. '0.55' -> mAP; none in older records
    epochs: tuple[Mapping[str, float], ...]
    samples: tuple[Sample, ...]
    log_tail: tuple[str, ...]  # last lines of the log of a failed run

    @property
    def finished(self) -> bool:
        """Whether the run has metrics."""
        return self.status == "finished"


@dataclass(frozen=True)
class Sweep:
    """Everything found below a sweep folder.

    Attributes:
        folder: the sweep folder.
        asked: key to list of values that the sweep was started with; empty where it left no sweep.json.
        study: of a paper's table or figure: `key`, `title`, `compared`, `note`, `tables` (paper and table of the
            reported numbers), `figures`, `baseline` (a loss), `command`; else empty.
        records: runs that are over, in the order of the grid, else of their ids.
        missing: ids of runs that were planned or begun and have no record.
        warnings: one line for each record that was skipped.
        baseline: the loss that the others are compared with, with flags where several settings have it; empty where
            none was chosen.
    """

    folder: Path
    asked: Mapping[str, Any]
    study: Mapping[str, Any]
    records: tuple[Record, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    baseline: str = ""

    @property
    def finished(self) -> tuple[Record, ...]:
        """The records with metrics."""
        return tuple(r for r in self.records if r.finished)

    @property
    def failed(self) -> tuple[Record, ...]:
        """The records of runs that ended in an error."""
        return tuple(r for r in self.records if not r.finished)


def load(folder: str | Path, baseline: str = "") -> Sweep:
    """Read every record below a sweep folder; a corrupt one is skipped and named in `warnings`.

    Args:
        folder: of the sweep.
        baseline: the loss that the others are compared with; empty: the study's, else the first that was asked for.

    Raises:
        RunError: the folder does not exist or has no run in it.
    """
    folder = Path(folder)
    plan = _plan(folder / "sweep.json")
    begun = sorted(p.name for p in (folder / "runs").glob("*") if p.is_dir()) if folder.is_dir() else []
    runs = [*plan.get("runs", []), *(name for name in begun if name not in plan.get("runs", []))]
    if not runs:
        raise RunError(f"{folder} is not the folder of a sweep: it has no runs/<run>/record.json")
    records, missing, warnings = [], [], []
    for run in runs:
        path = folder / "runs" / run / "record.json"
        if not path.exists():
            missing.append(run)
            continue
        try:
            records.append(read(path))
        except RunError as error:
            warnings.append(f"skipped: {error}")
    study, asked = plan.get("study") or {}, plan.get("asked", {})
    return Sweep(folder, asked, study, tuple(records), tuple(missing), tuple(warnings), baseline)


def by_epoch(records: Iterable[Record], key: str) -> dict[float, list[float]]:
    """Return the values of one column of the epochs, of the runs that have it; epochs ascend."""
    values: dict[float, list[float]] = {}
    for record in records:
        for i, row in enumerate(record.epochs):
            if key in row:
                values.setdefault(row.get("epoch", i + 1.0), []).append(row[key])
    return dict(sorted(values.items()))


def _plan(path: Path) -> dict[str, Any]:
    """What the sweep was asked for and its run ids, {} where it did not say."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(plan, dict) and isinstance(plan.get("asked"), dict) and isinstance(plan.get("runs"), list)
    return plan if usable else {}


def read(path: str | Path) -> Record:
    """Read one record.json.

    Raises:
        RunError: unreadable, not JSON, of another schema, or a field is missing or of the wrong kind; names the field.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from None
    try:
        return _record(raw, path.parent)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def _record(raw: Any, folder: Path) -> Record:
    top = _mapping(raw, "the record")
    if top.get("schema") != SCHEMA:
        raise RunError(f"schema is {top.get('schema')!r}, this version reads {SCHEMA}")
    status = top.get("status")
    if status not in ("finished", "failed"):
        raise RunError(f"status is {status!r}, not finished or failed")
    config = _mapping(top.get("config"), "config")
    splits = _mapping(top.get("metrics") or {}, "metrics") if status == "finished" else {}
    metrics = {s: _metrics(splits[s], f"metrics.{s}") for s in SPLITS if splits.get(s)}
    if status == "finished" and not metrics:
        raise RunError("metrics has neither val nor test")
    memory = top.get("peak_memory_mb")
    return Record(
        run=_text(top.get("run"), "run"),
        folder=folder,
        status=status,
        error=str(top.get("error") or ""),
        seed=int(_number(config.get("seed"), "config.seed")),
        # a flag that came after the record was written had its default
        train={**as_dict(TrainFlags()), **_mapping(config.get("train"), "config.train")},
        host=_mapping(config.get("host"), "config.host"),
        labels=_mapping(config.get("labels"), "config.labels"),
        loss_ran=_optional(top, "loss_ran"),
        versions=_optional(top, "versions"),
        git=_optional(top, "git"),
        machine=_optional(top, "machine"),
        timings={k: v for k, v in _optional(top, "timings").items() if _is_number(v)},
        peak_memory_mb=None if memory is None else _number(memory, "peak_memory_mb"),
        metrics=metrics,
        per_class={s: _mapping(splits[s].get("per_class") or {}, f"metrics.{s}.per_class") for s in metrics},
        by_iou={
            s: _fractions(splits[s]["mAP_by_iou"], f"metrics.{s}.mAP_by_iou")
            for s in metrics
            if "mAP_by_iou" in splits[s]
        },
        epochs=tuple(
            # a loss that overflowed is written as NaN or null; a curve has a gap there, the record stays readable
            {k: float(v) for k, v in _mapping(row, f"epochs[{i}]").items() if _is_number(v)}
            for i, row in enumerate(_list(top.get("epochs"), "epochs"))
        ),
        samples=tuple(_sample(s, f"samples[{i}]") for i, s in enumerate(_list(top.get("samples"), "samples"))),
        log_tail=tuple(str(line) for line in _list(top.get("log_tail"), "log_tail")),
    )


def _metrics(raw: Any, name: str) -> dict[str, float]:
    values = {k: v for k, v in _mapping(raw, name).items() if k not in TABLES}
    result = {k: _number(v, f"{name}.{k}") for k, v in values.items()}
    for metric in METRICS:
        if metric not in result:
            raise RunError(f"{name}.{metric} is missing")
        if not 0 <= result[metric] <= 1:
            raise RunError(f"{name}.{metric} is {result[metric]}, not a fraction in [0, 1]")
    return result


def _fractions(raw: Any, name: str) -> dict[str, float]:
    result = {k: _number(v, f"{name}.{k}") for k, v in _mapping(raw, name).items()}
    if bad := [k for k, v in result.items() if not 0 <= v <= 1]:
        raise RunError(f"{name}.{bad[0]} is {result[bad[0]]}, not a fraction in [0, 1]")
    return result


def _sample(raw: Any, name: str) -> Sample:
    top = _mapping(raw, name)
    width, height = _numbers(top.get("size"), 2, f"{name}.size")
    boxes = {
        key: tuple(_box(b, 5, f"{name}.{key}[{i}]") for i, b in enumerate(_list(top.get(key), f"{name}.{key}")))
        for key in ("labels", "withheld")
    }
    steps = _list(top.get("steps"), f"{name}.steps")
    return Sample(
        Path(_text(top.get("image"), f"{name}.image")),
        (int(width), int(height)),
        boxes["labels"],
        boxes["withheld"],
        _detections(top.get("detections"), f"{name}.detections"),
        tuple(_detections(found, f"{name}.steps[{t}]") for t, found in enumerate(steps)),
    )


def _detections(raw: Any, name: str) -> tuple[Detection, ...]:
    found = []
    for i, b in enumerate(_list(raw, name)):
        cls, score, *_ = _numbers(b, 6, f"{name}[{i}]")
        found.append(Detection(int(cls), score, _box(b, 6, f"{name}[{i}]")))
    return tuple(found)


def _box(raw: Any, size: int, name: str) -> Box:
    x1, y1, x2, y2 = _numbers(raw, size, name)[-4:]
    return (x1, y1, x2, y2)


def _numbers(raw: Any, size: int, name: str) -> list[float]:
    values = [_number(v, name) for v in _list(raw, name)]
    if len(values) != size:
        raise RunError(f"{name} has {len(values)} numbers, not {size}")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, name: str) -> float:
    if not _is_number(value):
        raise RunError(f"{name} is {value!r}, not a number")
    return float(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise RunError(f"{name} is {value!r}, not a text")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RunError(f"{name} is {type(value).__name__}, not a list")
    return value


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RunError(f"{name} is {'missing' if value is None else type(value).__name__ + ', not an object'}")
    return value


def _optional(top: dict[str, Any], name: str) -> dict[str, Any]:
    return {} if top.get(name) is None else _mapping(top[name], name)
