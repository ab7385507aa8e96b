"""Sample detections beside the ground truth: what was labelled, what was withheld, and what the models find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from rebalance.experiments.record import Record
from rebalance.report.figures import boxes
from rebalance.report.figures.style import Drawn, key
from rebalance.report.summary import Results, Row, describe, loss_text, settings_of, varying
from rebalance.report.tables import labels_text

_MOST_IMAGES = 3


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
    caption = (
        f"Left: the boxes of the data set; then what each model finds, with its score (from {boxes.SHOWN_SCORE}). "
        f"A detection has the colour of the box that it overlaps with an IoU of at least {boxes.SAME_OBJECT}."
    )
    if any(sample.withheld for sample, _ in there):
        kinds.append(key(boxes.WITHHELD, "withheld from training", linestyle="--", linewidth=2))
        kinds.append(boxes.frame(boxes.WITHHELD, "found although withheld"))
        caption += " Dashed boxes were withheld from training."
    kinds.append(boxes.frame(boxes.NEITHER, "found where neither is"))
    figure.legend(handles=kinds, loc="outside lower center", ncols=len(kinds))
    return Drawn(figure, caption)


def shown_runs(found: Results) -> Mapping[str, Record]:
    """Heading -> run: the baseline and the best beside it, of a group with withheld labels if there is one."""
    finished = found.sweep.finished
    with_samples = [(s, r) for s, r in zip(settings_of(finished), finished, strict=True) if r.samples]
    if not with_samples:
        return {}
    shown: list[tuple[str, Record]] = []
    if found.series:
        base = next((s.setting for s in found.series if s.setting.get("protocol") != "normal"), found.series[0].setting)
        for one in (s for s in found.series if s.setting == base):
            # val where there is one: choosing by test would be choosing by the answer
            points = [(p.removal, p.rows[one.splits[0]]) for p in one.points if one.splits[0] in p.rows]
            rest = sorted((p for p in points if p[0] > 0), key=lambda p: -_map50(p[1]))
            told = [("0 %", row) for removal, row in points if removal == 0]
            told += [(f"{one.axis}={removal:g}", row) for removal, row in rest[:1]]
            shown += [(name, row.records[0]) for name, row in told]
    elif found.compared:
        losses = next((c for c in found.compared if c.key.get("protocol") != "normal"), found.compared[0])
        own = [by_split[losses.splits[0]] for by_split in losses.rows.values() if losses.splits[0] in by_split]
        own.sort(key=lambda row: (row.setting != losses.base, -_map50(row)))
        names = varying(row.setting for row in own)
        texts = (f"{loss_text(row.setting, names)}, {labels_text(row.setting)}" for row in own)
        shown = [(text, row.records[0]) for text, row in zip(texts, own[:2], strict=False)]
    else:
        names = varying(setting for setting, _ in with_samples)
        shown = [(describe(setting, names), record) for setting, record in with_samples[:2]]
        if not names:
            return {record.run: record for _, record in shown}
    return {f"{name}, seed {record.seed}": record for name, record in shown if record.samples}


def _map50(row: Row) -> float:
    return row.stats["mAP50"].mean
