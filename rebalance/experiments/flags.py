"""Our training flags, as far as experiments ask about them: nowhere else do they look at the table of flags."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rebalance.recipe import DEFAULTS, HEADS, METHODS_OF, REMOVALS, TRAIN
from rebalance.settings import checked

__all__ = ["DEFAULTS", "HEADS", "METHODS_OF", "REMOVALS", "is_whole", "typed"]


def typed(name: str, text: str) -> Any:
    """Return the value of a flag that was typed; ConfigError where it is not one."""
    return checked(name, TRAIN[name][1], text)


def is_whole(name: str) -> bool:
    """Whether a flag, ours or the host's, takes whole numbers alone."""
    if name not in TRAIN:
        return type(_of_host().get(name)) is int
    item = TRAIN[name][1]
    return (item.metadata["number"] or type(item.default)) is int


@cache
def _of_host() -> dict[str, Any]:
    """The host's flags with their defaults, read without importing it; none where it is not there."""
    found = importlib.util.find_spec("ultralytics")
    file = Path(found.origin).with_name("cfg") / "default.yaml" if found and found.origin else Path()
    return dict(yaml.safe_load(file.read_text("utf-8"))) if file.is_file() else {}
