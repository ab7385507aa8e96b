"""Negatives seen and predictions dropped, by epoch."""

from __future__ import annotations

from rebalance.report.figures.by_epoch import curves, epoch_keys, families
from rebalance.report.figures.style import Drawn
from rebalance.report.summary import Results


def draw(found: Results) -> Drawn | None:
    """A panel for each count; None where no loss counted any."""
    keys = [key for key in epoch_keys(found) if key.startswith("drop/")]
    counted = []
    for title, lines in families(found) if keys else ():
        own = [line for line in lines if any(keys[0] in row for record in line.records for row in record.epochs)]
        counted += [(title, own)] if own else []
    if not counted:
        return None
    panels = [(key.removeprefix("drop/").replace("_", " "), [(key, "-")]) for key in keys]
    figure = curves(counted, panels, counts=True, removals=bool(found.series))
    told = "Predictions counted by the loss in each epoch, mean over seeds: negatives seen, and dropped from each loss."
    return Drawn(figure, told)
