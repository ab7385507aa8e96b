"""Sample detections beside the ground truth: what was labelled, what was withheld, and what the models find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from rebalance.report.records import Box, Detection, Record, Sample

LABELLED, WITHHELD, NEITHER = "#00d68f", "#ffb000", "#ff7ac8"  # Okabe and Ito's green, orange, purple, lit for photos
SHOWN_SCORE = 0.25  # detections below this are not drawn, as in Ultralytics' predict
STEPS_SCORE = 0.4  # the same for the detections after each step, as in the paper and in `rebalance steps`
SAME_OBJECT = 0.5  # IoU at which a detection counts as finding a box
_MOST_IMAGES = 3
_LONG_SIDE = 560  # pixels of a drawn image


def sample_figure(runs: Mapping[str, Record], folder: Path) -> tuple[Any, str] | str:
    """Draw images down, and across them the labels and each run's detections.

    Args:
        runs: heading -> run; the images that all of them have are used.
        folder: of the sweep; image paths may be relative to it or to a run's folder.

    Returns:
        the figure and its caption, or a line that says why there is none.
    """
    by_image = [{s.image: s for s in record.samples} for record in runs.values()]
    shared = [image for image in by_image[0] if all(image in samples for samples in by_image)]
    if not shared:
        return "No sample detections: the runs were not looked at on the same images."
    record = next(iter(runs.values()))
    pictures = [(image, _read(image, record.folder, folder)) for image in shared]
    found = [(image, pixels) for image, pixels in pictures if pixels is not None]
    found = sorted(found, key=lambda pair: not by_image[0][pair[0]].withheld)[
        :_MOST_IMAGES
    ]  # those with withheld first
    if not found:
        return f"No sample detections: the images are not on this machine ({shared[0]} and {len(shared) - 1} more)."
    width, height = by_image[0][found[0][0]].size
    tile = 3.7 if len(runs) < 3 else 3.2  # inches
    size = (tile * (len(runs) + 1), (tile * height / width + 0.32) * len(found) + 0.45)
    figure = Figure(figsize=size)
    grid = figure.subplots(len(found), len(runs) + 1, squeeze=False)
    withheld = False
    for r, (panels, (image, pixels)) in enumerate(zip(grid, found, strict=True)):
        sample = by_image[0][image]
        withheld = withheld or bool(sample.withheld)
        for panel in panels:
            panel.imshow(pixels, extent=(0, sample.size[0], sample.size[1], 0), interpolation="antialiased")
            panel.set_axis_off()
        for label in sample.labels:
            _draw(panels[0], label.box, LABELLED, "-")
        for label in sample.withheld:
            _draw(panels[0], label.box, WITHHELD, (0, (3, 2)))
        text = f"{len(sample.labels)} labelled" + (f", {len(sample.withheld)} withheld" if sample.withheld else "")
        _title(panels[0], "Labels" if r == 0 else "", text)
        for panel, heading, samples in zip(panels[1:], runs, by_image, strict=True):
            _title(panel, heading if r == 0 else "", _draw_detections(panel, samples[image]))
    kinds = [
        *_frames(LABELLED, "labelled, or found where labelled"),
        *([Line2D([], [], color=WITHHELD, linestyle="--", linewidth=2, label="withheld from training")] * withheld),
        *(_frames(WITHHELD, "found although withheld") * withheld),
        *_frames(NEITHER, "found where neither is"),
    ]
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds))
    caption = (
        f"Left: the boxes of the data set; then what each model finds, with its score (from {SHOWN_SCORE}). "
        f"A detection has the colour of the box that it overlaps with an IoU of at least {SAME_OBJECT}."
    )
    return figure, caption + (" Dashed boxes were withheld from training." if withheld else "")


def steps_figure(sample: Sample, run: str, run_folder: Path, folder: Path) -> tuple[Any, str] | str:
    """Draw what one run finds on an image after each step, as Figure 5 of Chen et al. does.

    Args:
        sample: with steps.
        run: what the run is called.
        run_folder, folder: of the run and of its sweep, where image paths may be relative to.

    Returns:
        the figure and its caption, or a line that says why there is none.
    """
    pixels = _read(sample.image, run_folder, folder)
    if pixels is None:
        return f"No detections after each step: the image is not on this machine ({sample.image})."
    sample = replace(sample, labels=sample.labels + sample.withheld, withheld=())  # all that is there
    scores = [d.score for found in (*sample.steps, sample.detections) for d in found]
    if not any(score >= SHOWN_SCORE for score in scores):
        return f"No detections after each step: nothing was found with a score of {SHOWN_SCORE}."
    least = STEPS_SCORE if max(scores) >= STEPS_SCORE else SHOWN_SCORE
    shown = [
        replace(sample, detections=tuple(d for d in found if d.score >= least))
        for found in (*sample.steps, sample.detections)
    ]
    columns = len(shown) if len(shown) <= 3 else (len(shown) + 1) // 2
    lines = -(-len(shown) // columns)
    tile = 3.7 if columns < 3 else 3.2  # inches
    width, height = sample.size
    figure = Figure(figsize=(tile * columns, (tile * height / width + 0.6) * lines + 0.4))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for t, (panel, one) in enumerate(zip(panels, shown, strict=False)):
        panel.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
        text = _draw_detections(panel, one)
        own = [d.score for d in one.detections]
        mean = f", mean score {sum(own) / len(own):.2f}" if own else ""
        _title(panel, f"t = {t}{' (objectness)' * (t == 0)}{mean}", text)
    kinds = _frames(LABELLED, "labelled") + _frames(NEITHER, "not labelled")
    figure.legend(handles=kinds, loc="outside lower center", ncols=2)
    caption = (
        f"What {run} finds on the image {sample.image.name} with its objectness alone (t = 0) and after each step, "
        f"with its score (from {least}; after Figure 5 of Chen et al., where it is above {STEPS_SCORE})."
    )
    return figure, caption


def match(detection: Detection, sample: Sample) -> str:
    """Return 'labelled', 'withheld' or 'neither': the kind of the box that a detection overlaps most, from IoU 0.5."""
    best, kind = SAME_OBJECT, "neither"
    for name, labels in (("withheld", sample.withheld), ("labelled", sample.labels)):  # a tie counts as labelled
        for label in labels:
            overlap = iou(detection.box, label.box)
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


def _draw_detections(panel: Any, sample: Sample) -> str:
    """Draw what is above the score; return the counts in words."""
    colours = {"labelled": LABELLED, "withheld": WITHHELD, "neither": NEITHER}
    counts = dict.fromkeys(colours, 0)
    shown = sorted((d for d in sample.detections if d.score >= SHOWN_SCORE), key=lambda d: d.score)
    for detection in shown:
        kind = match(detection, sample)
        counts[kind] += 1
        _draw(panel, detection.box, colours[kind], "-", f"{detection.score:.2f}")
    kinds = [k for k in counts if k != "withheld" or sample.withheld]
    return "found: " + ", ".join(f"{counts[k]} {k}" for k in kinds)


def _draw(panel: Any, box: Box, colour: str, stroke: Any, text: str = "") -> None:
    x1, y1, x2, y2 = box
    outline = [withStroke(linewidth=3.2, foreground="#000000aa")]
    panel.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=stroke, linewidth=1.7,
            path_effects=outline if stroke == "-" else None,
        )
    )  # fmt: skip
    if text:
        panel.text(
            x1, y1, text, fontsize=7, color="#111827", va="bottom", clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip


def _frames(colour: str, label: str) -> list[Any]:
    return [Patch(fill=False, edgecolor=colour, linewidth=2, label=label)]


def _title(panel: Any, heading: str, text: str) -> None:
    panel.set_title(f"{heading}\n{text}" if heading else text, fontsize=10.5, fontweight="normal")


def _read(image: Path, run: Path, folder: Path) -> npt.NDArray[Any] | None:
    """The image in RGB, shrunk to what is drawn; None where it is nowhere to be found or cannot be read."""
    places: Sequence[Path] = (
        image,
        run / image,
        folder / image,
        run / "samples" / image.name,
        folder / "samples" / image.name,
    )
    for place in places:
        if place.is_file():
            data = np.frombuffer(place.read_bytes(), np.uint8)
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
            if pixels is not None:
                scale = _LONG_SIDE / max(pixels.shape[:2])
                if scale < 1:
                    pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                return np.ascontiguousarray(pixels[..., ::-1])  # BGR to RGB
    return None
