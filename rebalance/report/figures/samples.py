"""Sample detections beside the ground truth: what was labelled, what was withheld, and what the models find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from rebalance.experiments.record import Record
from rebalance.report.figures import boxes
from rebalance.report.figures.style import Drawn, key, legend_below
from rebalance.report.summary import Results, describe, loss_text, settings_of, varying
from rebalance.report.tables import labels_text
from rebalance.report.words import say

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
    pictures = [(by_image[0][image], boxes.read(image, record.folder, found.sweep.folder)) for image in shared]
    there = [(sample, pixels) for sample, pixels in pictures if pixels is not None]
    if not there:
        return f"No sample detections: the images are not on this machine ({shared[0]} and {len(shared) - 1} more)."
    there = sorted(there, key=lambda pair: not pair[0].withheld)[:_MOST_IMAGES]  # those with withheld first
    width, height = boxes.tile_size(len(runs), there[0][0])
    figure = Figure(figsize=(width * (len(runs) + 1), (height + 0.32) * len(there) + 0.45))
    grid = figure.subplots(len(there), len(runs) + 1, squeeze=False)
    for r, (panels, (sample, pixels)) in enumerate(zip(grid, there, strict=True)):
        for panel in panels:
            boxes.show(panel, pixels, sample)
        for label in sample.labels:
            boxes.draw_box(panels[0], label.box, boxes.LABELLED)
        for label in sample.withheld:
            boxes.draw_box(panels[0], label.box, boxes.WITHHELD, dashed=True)
        text = f"{len(sample.labels)} labelled" + (f", {len(sample.withheld)} withheld" if sample.withheld else "")
        boxes.title(panels[0], "Labels" * (r == 0), text)
        for panel, heading, samples in zip(panels[1:], runs, by_image, strict=True):
            boxes.title(panel, heading * (r == 0), boxes.draw_detections(panel, samples[sample.image]))
    kinds: list[Any] = [boxes.frame(boxes.LABELLED, "labelled, or found where labelled")]
    withheld = any(sample.withheld for sample, _ in there)
    if withheld:
        kinds.append(key(boxes.WITHHELD, "withheld from training", linestyle="--", linewidth=2))
        kinds.append(boxes.frame(boxes.WITHHELD, "found although withheld"))
    kinds.append(boxes.frame(boxes.NEITHER, "found where neither is"))
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds))
    return Drawn(figure, say("samples", score=boxes.SHOWN_SCORE, overlap=boxes.SAME_OBJECT, withheld=withheld))


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
