"""What the tests of formats share: small images, a run of the command line, and a data set that was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from rebalance.cli.main import main
from rebalance.data.folder import load_manifest


def picture(path: Path, width: int = 200, height: int = 100) -> Path:
    """An image of a size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def write(path: Path, text: str) -> Path:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


@dataclass
class Made:
    """A data set that was made."""

    folder: Path

    def __post_init__(self) -> None:
        self.manifest: dict[str, Any] = load_manifest(self.folder)
        self.yaml: dict[str, Any] = yaml.safe_load((self.folder / "data.yaml").read_text("utf-8"))
        self.names: list[str] = list(self.yaml["names"].values())

    def boxes(self, image: str, width: float = 200, height: float = 100) -> list[tuple[Any, ...]] | None:
        """(class, left, top, right, bottom) in pixels of the labels of an image; None without a label file."""
        path = (self.folder / "labels" / image).with_suffix(".txt")
        if not path.is_file():
            return None
        rows = [line.split() for line in path.read_text("utf-8").splitlines()]
        return [(self.names[int(row[0])], *corners(row[1:], width, height)) for row in rows]

    def regions(self, image: str, width: float = 200, height: float = 100) -> list[tuple[Any, ...]]:
        """(meaning, class names or *, left, top, right, bottom) of the regions of an image."""
        path = (self.folder / "regions" / image).with_suffix(".txt")
        rows = [line.split() for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
        return [
            (
                row[0],
                "*" if row[1] == "*" else ",".join(self.names[int(n)] for n in row[1].split(",")),
                *corners(row[2:], width, height),
            )
            for row in rows
        ]

    def images(self) -> list[str]:
        folder = self.folder / "images"
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def corners(values: list[str], width: float, height: float) -> tuple[float, ...]:
    x, y, w, h = map(float, values)
    found = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return tuple(round(value, 3) + 0.0 for value in found)


def convert(name: str, tmp_path: Path, *, out: str = "out", **flags: Any) -> Made:
    """Run `rebalance convert` and read what it made."""
    assert main(["convert", name, f"out={tmp_path / out}", *(f"{key}={value}" for key, value in flags.items())]) == 0
    return Made(tmp_path / out)


def refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str = "refused", **flags: Any) -> str:
    """Run a conversion that must fail: exit code 2, one line, nothing left; returns the line."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["convert", name, f"out={tmp_path / out}", *(f"{key}={value}" for key, value in flags.items())]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    assert len(told) == 1
    assert told[0].startswith("rebalance: error: ")
    return told[0].removeprefix("rebalance: error: ")
