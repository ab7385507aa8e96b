"""What one run finds on an image after each step, as Figure 5 of Chen et al. shows it."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure

from rebalance.report.figures import boxes
from rebalance.report.figures.style import Drawn, legend_below
from rebalance.report.summary import Results, describe, settings_of, varying
from rebalance.report.words import say

STEPS_SCORE = 0.4  # the least score that is drawn where there is one, as in the paper and in `rebalance steps`


def draw(found: Results) -> Drawn | str | None:
    """A panel for each step, of the run with most of them and of the first seed; None where no record holds any."""
    finished = found.sweep.finished
    settings = settings_of(finished)
    looked_at = [
        (setting, record, sample)
        for setting, record in zip(settings, finished, strict=True)
        for sample in record.samples
        if sample.steps
    ]
    if not looked_at:
        return None
    setting, record, sample = min(looked_at, key=lambda one: (-len(one[2].steps), one[1].seed))
    pixels = boxes.read(sample.image, record.folder, found.sweep.folder)
    if pixels is None:
        return f"No detections after each step: the image is not on this machine ({sample.image})."
    everything = (*sample.steps, sample.detections)
    highest = max((d.score for detections in everything for d in detections), default=0.0)
    if highest < boxes.SHOWN_SCORE:
        return f"No detections after each step: nothing was found with a score of {boxes.SHOWN_SCORE}."
    least = STEPS_SCORE if highest >= STEPS_SCORE else boxes.SHOWN_SCORE
    columns = len(everything) if len(everything) <= 3 else (len(everything) + 1) // 2
    lines = -(-len(everything) // columns)
    width, height = boxes.tile_size(columns, sample)
    figure = Figure(figsize=(width * columns, (height + 0.6) * lines + 0.4))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels[len(everything) :]:
        panel.set_axis_off()
    for t, (panel, detections) in enumerate(zip(panels, everything, strict=False)):
        own = tuple(d for d in detections if d.score >= least)
        boxes.show(panel, pixels, sample)
        labels = sample.labels + sample.withheld  # all that is there
        text = boxes.draw_detections(panel, replace(sample, labels=labels, withheld=(), detections=own))
        mean = f", mean score {sum(d.score for d in own) / len(own):.2f}" if own else ""
        boxes.title(panel, f"t = {t}{' (objectness)' * (t == 0)}{mean}", text)
    legend_below(figure, [boxes.frame(boxes.LABELLED, "labelled"), boxes.frame(boxes.NEITHER, "not labelled")])
    names = varying(settings)
    run = f"{describe(setting, names)}, seed {record.seed}" if names else record.run
    return Drawn(figure, say("steps", run=run, image=sample.image.name, least=least, usual=STEPS_SCORE))
