"""What a training must be, so that an audit can ask its model afterwards: said before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebalance.data.dataset import DataSet
from rebalance.errors import ConfigError, ModelError
from rebalance.experiments.grid import Run


def require_auditable(run: Run, told: Mapping[str, Any], source: DataSet | None) -> None:
    """Refuse a training whose model could say nothing of the labels.

    Args:
        run: of a grid.
        told: what the check of `rebalance.experiments.run` says of it.
        source: its data set; None: the built-in one, which is not there yet.

    Raises:
        ConfigError: all classes are trained as one.
        ModelError: the model is no detector.
    """
    if run.host.get("single_cls") and (source is None or len(source.names) > 1):
        raise ConfigError("single_cls=True trains all classes as one, and an audit has to tell them apart")
    if told.get("task") not in (None, "detect"):
        raise ModelError(f"model={run.host['model']} is for the task {told['task']}; an audit needs a detector")


def require_folds(folds: int, images: int) -> None:
    """Raise ConfigError where so many training images cannot be divided among so many models."""
    if not 0 <= folds <= images or folds == 1:
        raise ConfigError(f"folds={folds}: 0, or 2 to {images}, the training images")
