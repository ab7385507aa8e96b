"""Every error that rebalance raises on purpose.

RebalanceError          one clear line for the user: what was wrong, the value, the choices, the nearest name
├── ConfigError         a flag: unknown, out of range, or without meaning next to the others
├── DataError           a data set: missing, unreadable, or an output that would overwrite something
├── ModelError          a model or checkpoint that a head or loss cannot work with
└── RunError            a sweep or a record that cannot run or be read; a file that cannot be written

The command line prints the message and exits with code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RebalanceError(Exception):
    """Base of all errors that are the user's to solve."""


class ConfigError(RebalanceError, ValueError):
    """A flag is unknown, has a bad value, or contradicts another."""


class DataError(RebalanceError):
    """A data set cannot be read or an output cannot be written."""


class ModelError(RebalanceError):
    """A model or checkpoint does not fit the head or loss asked for."""


class RunError(RebalanceError):
    """A sweep or a record is unusable, or a file cannot be written."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the choice closest to `name`, or '' where none is close."""
    found = get_close_matches(name, list(choices), n=1, cutoff=0.75)
    return f" (did you mean {found[0]}?)" if found else ""
