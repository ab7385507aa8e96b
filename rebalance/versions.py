"""Versions of what a result depends on."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

from rebalance.errors import VersionError

# What pyproject.toml asks pip for: the first that is known and the first that is not any more; "": there is none yet
KNOWN = {"ultralytics": ("8.4.180", "8.5"), "torch": ("2.4", ""), "torchvision": ("0.19", "")}
PACKAGES = ("rebalance", "torch", "ultralytics", "torchvision", "numpy")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:  # of ours: it runs from a checkout that is not installed
            project = Path(__file__).resolve().parents[1] / "pyproject.toml"
            found = re.search(r'version = "(.+)"', project.read_text("utf-8")) if project.is_file() else None
            return found[1] if name == "rebalance" and found else None

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def unknown() -> str:
    """Which host is of a version that this package does not know, in a sentence; "" where none is."""
    found = versions()
    for name, (first, end) in KNOWN.items():
        version = found[name]
        if version and not _numbers(first) <= _numbers(version) < (_numbers(end) if end else (float("inf"),)):
            least = f"{first} or newer" + (f", before {end}" if end else "")
            return f"{name} {version} is not known to rebalance, which needs {least}: pip install '{_asked(name)}'"
    return ""


def require_known() -> None:
    """Raise VersionError where a host is of a version that this package does not know; called before it is imported."""
    if told := unknown():
        raise VersionError(told)


def _asked(name: str) -> str:
    first, end = KNOWN[name]
    return f"{name}>={first}" + (f",<{end}" if end else "")


def _numbers(version: str) -> tuple[float, ...]:
    """8.4.190 as (8, 4, 190); what follows the numbers is left out."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(float, found[0].split("."))) if found else ()
