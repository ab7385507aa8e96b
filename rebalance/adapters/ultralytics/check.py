"""Whether a training would start, found out without starting it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from rebalance.adapters.ultralytics.model import AnchorDetectionModel
from rebalance.adapters.ultralytics.yolo import YOLO
from rebalance.config import TrainFlags, flags
from rebalance.errors import ConfigError, ModelError, nearest


def check_training(ours: Mapping[str, Any], host: Mapping[str, Any]) -> None:
    """Raise for what `YOLO(host["model"]).train(**ours, **host)` would raise at its start.

    The data set is not looked at.

    Args:
        ours: our training flags that were given.
        host: Ultralytics' arguments that were given, with `model`.

    Raises:
        ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
        ModelError: there is no such model, or it does not take the head asked for.
    """
    known = [*DEFAULT_CFG_DICT, *flags(TrainFlags)]
    for name, value in {**ours, **host}.items():
        if name not in known:
            raise ConfigError(f"unknown flag {name}={value}{nearest(name, known)}")
    try:
        get_cfg(overrides=dict(host))
    except (TypeError, ValueError, SyntaxError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    weights = host.get("pretrained")
    if isinstance(weights, str) and not Path(weights).is_file() and Path(weights).name not in GITHUB_ASSETS_NAMES:
        raise ModelError(f"pretrained={weights}: no such file, and not a published model")
    model = str(host["model"])
    _model(model)._trainer(dict(ours), dict(host), None)
    if ours.get("head") == "anchor":
        _with_anchor_head(model)


@lru_cache
def _model(name: str) -> YOLO:
    try:
        return YOLO(name)
    except Exception as error:  # the host raises what its file reader, its downloader or its parser raised
        raise ModelError(f"model={name} cannot be loaded: {' '.join(str(error).split())}") from None


@lru_cache
def _with_anchor_head(name: str) -> None:
    """Build the model once with the anchor head."""
    AnchorDetectionModel(_model(name).model.yaml, verbose=False)
