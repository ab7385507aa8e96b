"""Losses and mAP by epoch, mean over seeds."""

from __future__ import annotations

from rebalance.experiments.record import Record
from rebalance.report.figures.by_epoch import curves, epoch_keys, families
from rebalance.report.figures.style import Drawn
from rebalance.report.summary import Results

_SCORES = {"metrics/mAP50(B)": "val mAP50", "metrics/mAP50-95(B)": "val mAP50-95"}


def draw(found: Results) -> Drawn | str:
    """A panel for each loss, on val dotted, and for each score on val."""
    keys = epoch_keys(found)
    if max(map(_validated, found.sweep.finished), default=0) < 2:
        keys = [key for key in keys if key.startswith("train/")]
    losses = [key for key in keys if key.startswith("train/") and key.endswith("_loss")]
    scores = [key for key in _SCORES if key in keys]
    if not losses and not scores:
        return "No training curves: the records hold no epochs."
    panels = []
    for key in losses:
        twin = key.replace("train/", "val/")
        panels.append((key.removeprefix("train/").replace("_", " "), [(key, "-"), *[(twin, ":")] * (twin in keys)]))
    dotted = " Dotted: the loss on val." if any(len(lines) > 1 for _, lines in panels) else ""
    panels += [(_SCORES[key], [(key, "-")]) for key in scores]
    figure = curves(families(found), panels, points=scores, removals=bool(found.series))
    told = "A loss from which terms were removed is not on the scale of one without."
    return Drawn(figure, f"By epoch, mean over seeds.{dotted} {told}")


def _validated(record: Record) -> int:
    """Epochs that were validated: in one that was not, the host writes 0 for every loss on val."""
    losses = [[v for k, v in row.items() if k.startswith("val/")] for row in record.epochs]
    return sum(not own or any(own) for own in losses)
