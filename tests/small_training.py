"""A training of two epochs of two steps, and what it wrote and said."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from rebalance import YOLO


def train(model: Any, data: Path, folder: Path, **arguments: Any) -> Any:
    """Train for two epochs of two steps and return the model; `arguments` come first."""
    model = YOLO(model) if isinstance(model, (str, Path)) else model
    small = {"epochs": 2, "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "verbose": False}
    small |= {"optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 0, "project": str(folder), "name": "run"}
    model.train(data=str(data), **{**small, **arguments})
    return model


def results(folder: Path) -> list[dict[str, float]]:
    """The rows of its results.csv."""
    with (folder / "run" / "results.csv").open(encoding="utf-8") as file:
        return [{k.strip(): float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@contextmanager
def log() -> Iterator[list[str]]:
    """What Ultralytics logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    try:
        yield lines
    finally:
        LOGGER.removeHandler(handler)
