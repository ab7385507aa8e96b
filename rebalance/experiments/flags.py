"""Our training flags, as far as experiments ask about them: nowhere else do they look at the table of flags."""

from __future__ import annotations

from typing import Any

from rebalance.recipe import DEFAULTS, HEADS, METHODS_OF, REMOVALS, TRAIN
from rebalance.settings import checked

__all__ = ["DEFAULTS", "HEADS", "METHODS_OF", "REMOVALS", "typed"]


def typed(name: str, text: str) -> Any:
    """Return the value of a flag that was typed; ConfigError where it is not one."""
    return checked(name, TRAIN[name][1], text)
