"""Photos with boxes: what the figures of detections share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from rebalance.experiments.record import Box, Detection, Sample

LABELLED, WITHHELD, NEITHER = "#00d68f", "#ffb000", "#ff7ac8"  # Okabe and Ito's green, orange, purple, lit for photos
SHOWN_SCORE = 0.25  # detections below this are not drawn, as in Ultralytics' predict
SAME_OBJECT = 0.5  # IoU at which a detection counts as finding a box
_LONG_SIDE = 560  # pixels of a drawn image


def tile_size(columns: int, sample: Sample) -> tuple[float, float]:
    """Return width and height in inches of an image among so many beside one another."""
    width = 3.7 if columns < 3 else 3.2
    return width, width * sample.size[1] / sample.size[0]


def match(detection: Detection, sample: Sample) -> str:
    """Return 'labelled', 'withheld' or 'neither': the kind of the box that a detection overlaps most, from IoU 0.5."""
    best, kind = SAME_OBJECT, "neither"
    for name, labels in (("withheld", sample.withheld), ("labelled", sample.labels)):  # a tie counts as labelled
        for box in (label.box for label in labels):
            overlap = iou(detection.box, box)
            if overlap >= best:
                best, kind = overlap, name
    return kind


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes in [0, 1]; 0 where both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def show(panel: Any, pixels: npt.NDArray[Any], sample: Sample) -> None:
    """Draw an image in the coordinates of its boxes."""
    panel.imshow(pixels, extent=(0, sample.size[0], sample.size[1], 0), interpolation="antialiased")
    panel.set_axis_off()


def draw_detections(panel: Any, sample: Sample) -> str:
    """Draw what is above the score; return the counts in words."""
    colours = {"labelled": LABELLED, "withheld": WITHHELD, "neither": NEITHER}
    counts = dict.fromkeys(colours, 0)
    shown = sorted((d for d in sample.detections if d.score >= SHOWN_SCORE), key=lambda d: d.score)
    for detection in shown:
        kind = match(detection, sample)
        counts[kind] += 1
        draw_box(panel, detection.box, colours[kind], text=f"{detection.score:.2f}")
    kinds = [k for k in counts if k != "withheld" or sample.withheld]
    return "found: " + ", ".join(f"{counts[k]} {k}" for k in kinds)


def draw_box(panel: Any, box: Box, colour: str, *, dashed: bool = False, text: str = "") -> None:
    """Draw a box with a text at its upper left corner."""
    x1, y1, x2, y2 = box
    outline = None if dashed else [withStroke(linewidth=3.2, foreground="#000000aa")]
    panel.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=(0, (3, 2)) if dashed else "-",
            linewidth=1.7, path_effects=outline,
        )
    )  # fmt: skip
    if text:
        panel.text(
            x1, y1, text, fontsize=7, color="#111827", va="bottom", clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip


def frame(colour: str, label: str) -> Patch:
    """An entry of a legend."""
    return Patch(fill=False, edgecolor=colour, linewidth=2, label=label)


def title(panel: Any, *lines: str) -> None:
    """Write lines above an image."""
    panel.set_title("\n".join(filter(None, lines)), fontsize=10.5, fontweight="normal")


def read(image: Path, *folders: Path) -> npt.NDArray[Any] | None:
    """Return the image in RGB, shrunk to what is drawn; None where it is nowhere to be found or cannot be read.

    Its path may be relative to one of the folders, of the run and its sweep, or the file may be in their samples/.
    """
    relative, copies = [folder / image for folder in folders], [folder / "samples" / image.name for folder in folders]
    for place in (image, *relative, *copies):
        if place.is_file():
            data = np.frombuffer(place.read_bytes(), np.uint8)
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
            if pixels is not None:
                scale = _LONG_SIDE / max(pixels.shape[:2])
                if scale < 1:
                    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                return np.ascontiguousarray(pixels[..., ::-1])  # BGR to RGB
    return None
