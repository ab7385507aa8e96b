"""Our training flags, as far as experiments ask about them: nowhere else do they look at the table of flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebalance.settings import TrainFlags, as_dict, convert, flags

DEFAULTS: Mapping[str, Any] = as_dict(TrainFlags())
METHOD: Mapping[str, str] = {name: field.metadata["method"] for name, field in flags(TrainFlags).items()}  # '': of none


def typed(name: str, text: str) -> Any:
    """Return the value of a flag that was typed; ConfigError where it is not one."""
    return convert(TrainFlags, name, text)


def plain(made: Any) -> dict[str, Any]:
    """Return the flags that a trainer trained with."""
    return as_dict(made)
