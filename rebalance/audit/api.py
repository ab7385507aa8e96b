"""The commands in Python: flags as keywords, errors as exceptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rebalance.settings import CompleteFlags, parse, value_text


def complete(**flags: Any) -> Any:
    """Make a data set with completed labels: `rebalance complete`.

    Returns:
        `out`, `data` (its YAML) and `manifest`, see `rebalance.audit.complete.Completed`.

    Raises:
        ConfigError, DataError: as the command.
    """
    from rebalance.audit.complete import complete

    return complete(parse(CompleteFlags, flags))


def rounds(**flags: Any) -> Path:
    """Train, audit, complete and train again: `rebalance rounds`; returns the folder, which has the report.

    Flags of a training may be lists where Ultralytics takes one: `classes=[0, 1]`.

    Raises:
        ConfigError, DataError, ModelError, RunError: as the command.
    """
    from rebalance.audit.rounds import rounds
    from rebalance.report.build import report

    folder = rounds({key: _text(key, value) for key, value in flags.items()})
    report(folder)
    return folder


def _text(key: str, value: Any) -> str:
    """A flag as it is typed."""
    if isinstance(value, (list, tuple)):
        inside = ",".join(map(value_text, value))
        return inside if key == "seeds" else f"[{inside}]"
    return value_text(value)
