"""Versions of what a result depends on."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

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
