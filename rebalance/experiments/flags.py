"""Our training flags, as far as experiments ask about them: nowhere else do they look at the table of flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebalance.methods import ROWS
from rebalance.recipe import DEFAULTS, HEADS, REMOVALS, TRAIN
from rebalance.settings import checked, settings_of

__all__ = ["DEFAULTS", "HEADS", "OWNERS", "REMOVALS", "typed"]

# The methods that a flag is for; none: it is for all
OWNERS: Mapping[str, tuple[str, ...]] = {
    **{name: tuple(row.name for row in ROWS if name in settings_of(row)) for name in TRAIN},
    "obj_base": ("obj", "resobj"),
}


def typed(name: str, text: str) -> Any:
    """Return the value of a flag that was typed; ConfigError where it is not one."""
    return checked(name, TRAIN[name][1], text)
