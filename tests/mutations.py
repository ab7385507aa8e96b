"""Records in which something is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebalance.experiments import record

REFERENCE = Path(__file__).resolve().parents[1] / "runs" / "reference"


def places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Where something stands in a record, the first of a list for all of it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: object) -> Any:
    """A record with something else at a place."""
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = put(value[path[0]], path[1:], new)
    return copied


def small_sweep() -> list[Any]:
    """A plan and two records, cut down so that everything in them can be changed in turn."""
    file = REFERENCE / "aquarium-anchor" / "records.jsonl"
    plan, *records = map(json.loads, file.read_text("utf-8").splitlines()[:3])
    plan["written"] = {"title": "a", "question": "b", "answer": "c", "file": "d.yaml", "sha256": "e", "given": "lr0=1"}
    for content in records:
        content["config"]["host_args"] = {"epochs": 5, "lr0": 0.01}
        content["config"]["host"]["iou"] = 0.5
        content |= {"epochs": [{"epoch": 1, "train/box_loss": 0.5}], "samples": content["samples"][:1]}
        content["evaluation"] = {"iou": 0.5, "conf": 0.001, "max_det": 100, "source": "here"}
        content["host_metrics"] = {"test": dict.fromkeys(record.METRICS, 0.5)}
        content["metrics"] = {"test": {**content["metrics"]["test"], "coco": {"AP": 0.5}, "voc": {"mAP50": 0.5}}}
    records[1]["config"]["labels"] |= {"round": 1, "completed": {"added": 3, "withheld": 4, "recovered": 2, "low": 1.5}}
    return [plan, *records]
