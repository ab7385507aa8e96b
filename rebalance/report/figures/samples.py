"""Sample detections beside the ground truth: what was labelled, what was withheld, and what the models find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from rebalance.data.pixels import read
from rebalance.experiments.record import Box, Detection, Record, Sample
from rebalance.report.figures.style import Drawn, key, legend_below
from rebalance.report.summary import Results, describe, loss_text, settings_of, varying
from rebalance.report.tables import labels_text
from rebalance.report.words import say

LABELLED, WITHHELD, NEITHER = "#00d68f", "#ffb000", "#ff7ac8"  # Okabe and Ito's green, orange, purple, lit for photos
SHOWN_SCORE = 0.25  # detections below this are not drawn, as in Ultralytics' predict
SAME_OBJECT = 0.5  # IoU at which a detection counts as finding a box
_LONG_SIDE = 560  # pixels of a drawn image
_MOST_IMAGES = 3
STEPS_SCORE = 0.4  # the least score that is drawn where there is one, as in the paper and in `rebalance steps`


def draw(found: Results) -> Drawn | str:
    """Images down, and across them the labels and each run's detections."""
    runs = shown_runs(found)
    if not runs:
        return "No sample detections: the records hold none."
    by_image = [{s.image: s for s in record.samples} for record in runs.values()]
    shared = [image for image in by_image[0] if all(image in samples for samples in by_image)]
    if not shared:
        return "No sample detections: the runs were not looked at on the same images."
    record = next(iter(runs.values()))
    pictures = [
        (by_image[0][image], read_image(by_image[0][image], record.folder, found.sweep.folder)) for image in shared
    ]
    there = [(sample, pixels) for sample, pixels in pictures if pixels is not None]
    if not there:
        return f"No sample detections: the images are not on this machine ({shared[0]} and {len(shared) - 1} more)."
    there = sorted(there, key=lambda pair: not pair[0].withheld)[:_MOST_IMAGES]  # those with withheld first
    width, height = tile_size(len(runs), there[0][0])
    figure = Figure(figsize=(width * (len(runs) + 1), (height + 0.32) * len(there) + 0.45))
    grid = figure.subplots(len(there), len(runs) + 1, squeeze=False)
    for r, (panels, (sample, pixels)) in enumerate(zip(grid, there, strict=True)):
        for panel in panels:
            _show(panel, pixels, sample)
        for label in sample.labels:
            draw_box(panels[0], label.box, LABELLED)
        for label in sample.withheld:
            draw_box(panels[0], label.box, WITHHELD, dashed=True)
        text = f"{len(sample.labels)} labelled" + (f", {len(sample.withheld)} withheld" if sample.withheld else "")
        _title(panels[0], "Labels" * (r == 0), text)
        for panel, heading, samples in zip(panels[1:], runs, by_image, strict=True):
            _title(panel, heading * (r == 0), draw_detections(panel, samples[sample.image]))
    kinds: list[Any] = [_frame(LABELLED, "labelled, or found where labelled")]
    withheld = any(sample.withheld for sample, _ in there)
    if withheld:
        kinds.append(key(WITHHELD, "withheld from training", linestyle="--", linewidth=2))
        kinds.append(_frame(WITHHELD, "found although withheld"))
    kinds.append(_frame(NEITHER, "found where neither is"))
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds))
    return Drawn(figure, say("samples", score=SHOWN_SCORE, overlap=SAME_OBJECT, withheld=withheld))


def shown_runs(found: Results) -> Mapping[str, Record]:
    """Heading -> run: the baseline and the best beside it, of a group with withheld labels if there is one."""
    finished = found.sweep.finished
    with_samples = [(s, r) for s, r in zip(settings_of(finished), finished, strict=True) if r.samples]
    if not with_samples:
        return {}
    shown: list[tuple[str, Record]] = []
    if groups := found.series or found.compared:
        key = next((one.key for one in groups if one.key.get("protocol") != "normal"), groups[0].key)
        for one in (group for group in groups if group.key == key):
            # val where there is one: choosing by test would be choosing by the answer
            own = [by_split[one.splits[0]] for by_split in one.rows.values() if one.splits[0] in by_split]
            own.sort(key=lambda row: (row.setting != one.base, -row.stats["mAP50"].mean))
            names = varying(row.setting for row in own)
            texts = [f"{loss_text(row.setting, names)}, {labels_text(row.setting)}" for row in own]
            if removals := [row.setting.removal(one.axis) for row in own if one.axis]:
                texts = [f"{one.axis}={removal:g}" if removal else "0 %" for removal in removals]
                texts = texts[: 1 + (not removals[0])]  # the 0 % run may be missing
            shown += [(text, row.records[0]) for text, row in zip(texts[:2], own, strict=False)]
    else:
        names = varying(setting for setting, _ in with_samples)
        shown = [(describe(setting, names), record) for setting, record in with_samples[:2]]
        if not names:
            return {record.run: record for _, record in shown}
    return {f"{name}, seed {record.seed}": record for name, record in shown if record.samples}


def steps(found: Results) -> Drawn | str | None:
    """What one run finds on an image after each step, as Figure 5 of Chen et al. shows it.

    A panel for each step, of the run with most of them and of the first seed; None where no record holds any.
    """
    finished = found.sweep.finished
    settings = settings_of(finished)
    looked_at = [(s, r, one) for s, r in zip(settings, finished, strict=True) for one in r.samples if one.steps]
    if not looked_at:
        return None
    setting, record, sample = min(looked_at, key=lambda one: (-len(one[2].steps), one[1].seed))
    pixels = read_image(sample, record.folder, found.sweep.folder)
    if pixels is None:
        return f"No detections after each step: the image is not on this machine ({sample.image})."
    everything = (*sample.steps, sample.detections)
    highest = max((d.score for detections in everything for d in detections), default=0.0)
    if highest < SHOWN_SCORE:
        return f"No detections after each step: nothing was found with a score of {SHOWN_SCORE}."
    least = STEPS_SCORE if highest >= STEPS_SCORE else SHOWN_SCORE
    columns = len(everything) if len(everything) <= 3 else (len(everything) + 1) // 2
    lines = -(-len(everything) // columns)
    width, height = tile_size(columns, sample)
    figure = Figure(figsize=(width * columns, (height + 0.6) * lines + 0.4))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels[len(everything) :]:
        panel.set_axis_off()
    for t, (panel, detections) in enumerate(zip(panels, everything, strict=False)):
        own = tuple(d for d in detections if d.score >= least)
        _show(panel, pixels, sample)
        labels = sample.labels + sample.withheld  # all that is there
        text = draw_detections(panel, replace(sample, labels=labels, withheld=(), detections=own))
        mean = f", mean score {sum(d.score for d in own) / len(own):.2f}" if own else ""
        _title(panel, f"t = {t}{' (objectness)' * (t == 0)}{mean}", text)
    legend_below(figure, [_frame(LABELLED, "labelled"), _frame(NEITHER, "not labelled")])
    names = varying(settings)
    run = f"{describe(setting, names)}, seed {record.seed}" if names else record.run
    return Drawn(figure, say("steps", run=run, image=sample.image.name, least=least, usual=STEPS_SCORE))


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


def _show(panel: Any, pixels: NDArray[Any], sample: Sample) -> None:
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


def _frame(colour: str, label: str) -> Patch:
    """An entry of a legend."""
    return Patch(fill=False, edgecolor=colour, linewidth=2, label=label)


def _title(panel: Any, *lines: str) -> None:
    """Write lines above an image."""
    panel.set_title("\n".join(filter(None, lines)), fontsize=10.5, fontweight="normal")


def read_image(sample: Sample, *folders: Path) -> NDArray[Any] | None:
    """Return the image in RGB, shrunk to what is drawn; None where it is nowhere to be found or cannot be read.

    Its path may be relative to one of the folders, of the run and its sweep, or the file may be in their samples/. A
    file of another size is another image, on which the boxes would be in the wrong places.
    """
    relative = [folder / sample.image for folder in folders]
    copies = [folder / "samples" / sample.image.name for folder in folders]
    for place in (sample.image, *relative, *copies):
        pixels = read(place)
        if pixels is not None and pixels.shape[1::-1] == sample.size:
            scale = _LONG_SIDE / max(pixels.shape[:2])
            if scale < 1:
                pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            return np.ascontiguousarray(pixels[..., ::-1])  # BGR to RGB
    return None
