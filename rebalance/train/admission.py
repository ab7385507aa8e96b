"""Whether a training would start, found out without starting it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from rebalance.errors import ConfigError, ModelError, nearest
from rebalance.hosts.ultralytics.model import anchored, host_of, model_class
from rebalance.methods.resolve import train_flags
from rebalance.settings import TrainFlags, flags
from rebalance.train.api import YOLO
from rebalance.train.checkpoint import given_or_kept, remembered


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
    model, weights = str(host["model"]), host.get("pretrained")
    if isinstance(weights, str) and host_of(_model(model).model.yaml) == "yolo":
        file = Path(weights)
        if not file.is_file() and file.name not in GITHUB_ASSETS_NAMES:
            raise ModelError(f"pretrained={weights}: no such file, and not a published model")
    _model(model)._trainer(dict(ours), dict(host), None)
    source = _model(model).model
    on_anchors, before = anchored(source.yaml), remembered(source).get("flags", {})
    if host_of(source.yaml) == "yolo":
        chosen = train_flags(given_or_kept(ours, before), head=before.get("head", "stock"), anchored=on_anchors)
        if chosen.head != "stock":
            kept = ("head", "resobj_steps", "resobj_on", "resobj_grad")  # what the head is built from
            _with_head(model, TrainFlags(**{name: getattr(chosen, name) for name in kept}))


@lru_cache
def _model(name: str) -> YOLO:
    try:
        return YOLO(name)
    except Exception as error:  # the host raises what its file reader, its downloader or its parser raised
        raise ModelError(f"model={name} cannot be loaded: {' '.join(str(error).split())}") from None


@lru_cache
def _with_head(name: str, chosen: TrainFlags) -> None:
    """Build the model once with the head asked for."""
    yaml = _model(name).model.yaml
    model_class(yaml, chosen.head)(yaml, verbose=False, flags=chosen)
