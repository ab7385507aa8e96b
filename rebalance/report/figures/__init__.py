"""The figures of a report, one file each: results -> a figure and its caption, None, or a line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.style

from rebalance.report.figures import against, by_epoch, diagnosis, objectness, removal, samples, settings
from rebalance.report.figures.style import DPI, PHOTO_DPI, STYLE, Drawn
from rebalance.report.summary import Results


class Plot(NamedTuple):
    """One file in plots/, with its heading, where the report has it, and how it is drawn."""

    file: str
    title: str
    place: str  # above or below the tables of results; withheld, samples or training, sections of their own
    draw: Callable[[Results], Drawn | str | None]
    dpi: int = DPI


FIGURES = (
    Plot("rates.png", "mAP50 against missing labels", "above", against.rates),
    Plot("gamma.png", "mAP50 against gamma", "above", against.gamma),
    Plot("iou.png", "mAP over IoU thresholds", "above", against.iou),
    Plot("change.png", "Change from the 0 % run", "above", removal.change),
    Plot("removal.png", "mAP against removal percentage", "below", removal.curves),
    Plot("settings.png", "mAP50 by setting", "below", settings.draw),
    Plot("diagnosis.png", "What the loss does to withheld objects", "withheld", diagnosis.draw),
    Plot("samples.png", "Sample detections", "samples", samples.draw, PHOTO_DPI),
    Plot("steps.png", "Detections after each step", "samples", samples.steps, PHOTO_DPI),
    Plot("training.png", "Training curves", "training", by_epoch.training),
    Plot("objectness.png", "Objectness after each step", "training", objectness.draw),
    Plot("drops.png", "What the loss counted", "training", by_epoch.drops),
)


class Picture(NamedTuple):
    """A plot that was made, with the caption that the report gives it."""

    file: str
    title: str
    place: str
    caption: str


def draw(found: Results, folder: Path) -> tuple[list[Picture], list[str]]:
    """Write the plots that the records have data for to a folder; return them, and a line for each that is missing."""
    pictures, notes = [], []
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's own style is
        for plot in FIGURES:
            made = plot.draw(found)
            if isinstance(made, str):
                notes.append(made)
            elif made:
                # no metadata: the same records give the same bytes
                made.figure.savefig(folder / plot.file, dpi=plot.dpi, metadata={"Software": None})
                pictures.append(Picture(plot.file, plot.title, plot.place, made.caption))
    return pictures, notes
