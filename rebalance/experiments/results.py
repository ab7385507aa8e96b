"""The records of a sweep as `results.csv`, one row a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rebalance.experiments.record import read_json, read_record, write_text

SWEEP = "sweep.json"
RUNS = "runs"
RESULTS = "results.csv"
METRICS = ("mAP50", "mAP75", "mAP50-95", "precision", "recall")
COLUMNS = (
    *(
        "run",
        "model",
        "head",
        "loss",
        "obj_drop",
        "box_drop",
        "protocol",
        "drop_rate",
        "seed",
        "epochs",
        "imgsz",
        "split",
    ),
    *METRICS,
    *("train_seconds", "images_per_second", "peak_memory_mb", "status"),
)


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the runs that are over, in the order of the sweep's grid."""
    order = (read_json(folder / SWEEP) or {}).get("runs", [])
    found = [read_record(folder / RUNS / run) for run in order]
    return [record for record in found if record is not None]


def headline(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the split that a run is judged by and its metrics: test where the data has one, else val."""
    metrics = record.get("metrics") or {}
    split = "test" if metrics.get("test") else "val"
    return split, metrics.get(split) or {}


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of results.csv; a run that failed has empty cells where there is no number."""
    config, finished = record["config"], record["status"] == "finished"
    train, host, labels = config["train"], config["host"], config["labels"]
    loss_ran, timings = record.get("loss_ran") or {}, record.get("timings") or {}
    split, metrics = headline(record)
    return {
        "run": record["run"],
        "model": host["model"],
        "head": loss_ran.get("head") or train["head"],
        "loss": loss_ran.get("loss") or train["loss"],
        "obj_drop": train["obj_drop"],
        "box_drop": train["box_drop"],
        "protocol": labels["protocol"],
        "drop_rate": labels["rate"],
        "seed": config["seed"],
        "epochs": host.get("epochs"),
        "imgsz": host.get("imgsz"),
        "split": split if finished else None,
        **{name: _rounded(metrics.get(name), 5) if finished else None for name in METRICS},
        "train_seconds": _rounded(timings.get("train_seconds"), 1),
        "images_per_second": _rounded(timings.get("images_per_second"), 2),
        "peak_memory_mb": _rounded(record.get("peak_memory_mb"), 1),
        "status": record["status"],
    }


def write_results(folder: Path, over: Iterable[Mapping[str, Any]] | None = None) -> Path:
    """Write results.csv of a sweep folder, whole or not at all, and return its path.

    Args:
        folder: of the sweep.
        over: the records; read from the folder where they are not given.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(record) for record in (records(folder) if over is None else over))
    write_text(folder / RESULTS, text.getvalue())
    return folder / RESULTS


def _rounded(value: Any, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)
