"""An audit's folder made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rebalance.audit import review, table
from rebalance.audit.table import KINDS, Near, Suggestion
from rebalance.data.labels import Labels, parse

HOSTILE = "</script><script>document.title='hit'</script>\"'`<img src=x onerror=alert(1)>{{7*7}}${7*7}\u2028\u202e=1+1"


@dataclass
class Audit:
    """What an audit leaves, without the audit."""

    folder: Path
    images: Path
    names: tuple[str, ...]
    rows: list[Suggestion]
    about: dict[str, Any]
    files: dict[str, str]

    def labels(self, file: str) -> Labels:
        """Labels beside the image."""
        path = Path(file).with_suffix(".txt")
        return parse(path.read_bytes() if path.is_file() else b"", classes=len(self.names))

    def page(self) -> Path:
        """The review page, written."""
        return review.write(self.folder, self.rows, self.about, self.files, self.labels)


@dataclass
class Maker:
    """Makes audits in a folder."""

    folder: Path

    def image(self, name: str, width: int = 200, height: int = 100, labels: str = "") -> str:
        """An image of noise with its labels; its name below the folder of images."""
        path = self.folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(60, 190, (height, width, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())  # imwrite knows no odd names
        if labels:
            path.with_suffix(".txt").write_text(labels, "utf-8")
        return name

    def audit(
        self,
        rows: Sequence[Suggestion],
        names: Sequence[str] = ("fish", "crab"),
        *,
        sizes: dict[str, list[int]] | None = None,
        **about: Any,
    ) -> Audit:
        """The audit of suggestions; of the first class an estimate is known, the sum of its probabilities."""
        rows, folder = table.sort(rows), self.folder / "audit"
        file = table.write(_made(folder) / "suggestions.csv", rows)
        classes = []
        for number, name in enumerate(names):
            own = [row for row in rows if row.number == number and row.kind == "missing"]
            sure = [row.probability for row in own if row.probability is not None]
            low, missing, high = (round(sum(sure) * part, 2) if sure else None for part in (0.5, 1, 1.5))
            classes.append(
                {
                    "id": number, "name": name, "labels": 9, "suggestions": len(own), "missing": missing, "low": low,
                    "high": high, "how": "probability" if sure else "threshold", "threshold": None if sure else 0.3,
                }
            )  # fmt: skip
        known = [one for one in classes if one["missing"] is not None]
        told = {
            "schema": 1,
            "data": str(self.folder / "data.yaml"),
            "images_root": str(self.folder / "images"),
            "images": len({row.image for row in rows}),
            "kinds": {kind: sum(row.kind == kind for row in rows) for kind in KINDS},
            "model": ["best.pt"],
            "folds": 3,
            "lower_bound": False,
            "classes": classes,
            "total": {key: sum(one[key] for one in known) if known else None for key in ("missing", "low", "high")},
            "suggestions_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "sizes": {row.image: [200, 100] for row in rows} | (sizes or {}),
        }
        files = {row.image: str(self.folder / "images" / row.image) for row in rows}
        return Audit(folder, self.folder / "images", tuple(names), rows, told | about, files)


def missing(image: str, x: float, probability: float | None, *, number: int = 0, name: str = "fish") -> Suggestion:
    """A missing box of 20 by 20 pixels at a place."""
    score = 0.5 if probability is None else probability
    return Suggestion(image, "missing", number, name, (x, 30.0, x + 20, 50.0), score, probability)


def about_label(image: str, kind: str, *, number: int = 1, name: str = "crab") -> Suggestion:
    """A suggestion about the label in the middle of an image, which is 40 by 40 pixels."""
    near = Near(0, 0, (80.0, 30.0, 120.0, 70.0), 0.8)
    return Suggestion(image, kind, number, name, (82.0, 30.0, 122.0, 70.0), 0.6, None, near)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
