"""Every error that rebalance raises on purpose.

RebalanceError          one clear line for the user: what was wrong, the value, the choices, the nearest name
├── ConfigError         a flag: unknown, out of range, or without meaning next to the others
├── DataError           a data set: missing, unreadable, or an output that would overwrite something
├── ModelError          a model or checkpoint that a head or loss cannot work with
│   └── FetchError      a model that is not on this machine and cannot be fetched
├── RunError            a sweep or a record that cannot run or be read; a file that cannot be written
└── VersionError        a host of a version that this package does not know

The command line prints the message and exits with code 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class RebalanceError(Exception):
    """Base of all errors that are the user's to solve."""

    def __str__(self) -> str:
        """The message in one line, whatever a value that it names holds."""
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().__str__())


class ConfigError(RebalanceError, ValueError):
    """A flag is unknown, has a bad value, or contradicts another."""


class DataError(RebalanceError):
    """A data set cannot be read or an output cannot be written."""


class VersionError(RebalanceError, ImportError):
    """A host is of a version that this package does not know."""


class ModelError(RebalanceError):
    """A model or checkpoint does not fit the head or loss asked for."""


class FetchError(ModelError, ConnectionError):
    """A model is not on this machine and cannot be fetched; the host goes by the second of its kinds."""


class RunError(RebalanceError):
    """A sweep or a record is unusable, or a file cannot be written."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the choice closest to `name`, or '' where none is close."""
    found = get_close_matches(name, list(choices), n=1, cutoff=0.75)
    return f" (did you mean {found[0]}?)" if found else ""


def not_there(needs: str, package: str, error: ImportError) -> RunError:
    """The error where a package that not everybody needs is missing, or is there and cannot be imported."""
    if error.name == package:
        return RunError(f"{needs}, which is not installed: pip install {package}")
    return RunError(f"{needs}, which cannot be imported: {error}")
