"""Our training flags, as far as experiments ask about them: nowhere else do they look at the table of flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebalance.recipe import DEFAULTS, HEADS, REMOVALS, TRAIN
from rebalance.settings import checked

__all__ = ["DEFAULTS", "HEADS", "OWNERS", "REMOVALS", "typed"]

# The methods that a flag is for; none: it is for all
OWNERS: Mapping[str, tuple[str, ...]] = {
    **{name: (owner.name,) if hasattr(owner, "name") else () for name, (owner, _) in TRAIN.items()},
    "obj_base": ("obj", "resobj"),
}


def typed(name: str, text: str) -> Any:
    """Return the value of a flag that was typed; ConfigError where it is not one."""
    return checked(name, TRAIN[name][1], text)
