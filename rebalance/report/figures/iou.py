"""mAP at each IoU threshold of a match."""

from __future__ import annotations

from matplotlib.figure import Figure

from rebalance.report.figures.style import COLOURS, MORE_COLOURS, Drawn, intervals_text, legend_below, means
from rebalance.report.summary import Results, as_list, loss_text, stat, varying
from rebalance.report.tables import judged_rows, labels_text


def draw(found: Results) -> Drawn | str | None:
    """A line for each setting; None where a study does not ask for it and the lines are too many to tell apart."""
    wanted = "iou" in as_list(found.sweep.study.get("figures"))
    rows = [row for row in judged_rows(found.rows) if all(r.by_iou.get(row.split) for r in row.records)]
    if not rows:
        return "No mAP over IoU thresholds: the records hold none." if wanted else None
    if not wanted and (found.series or len(rows) > len(COLOURS)):
        return None
    names = varying(row.setting for row in rows)
    several = len({labels_text(row.setting) for row in rows}) > 1
    figure = Figure(figsize=(7.5, 4.8))
    panel = figure.subplots()
    for row, colour in zip(rows, MORE_COLOURS, strict=False):
        curves = [r.by_iou[row.split] for r in row.records]
        thresholds = [t for t in curves[0] if all(t in curve for curve in curves)]
        stats = [stat([curve[t] for curve in curves]) for t in thresholds]
        label = loss_text(row.setting, names) + (f", {labels_text(row.setting)}" if several else "")
        means(panel, [float(t) for t in thresholds], stats, colour, label)
    panel.set_xlabel("IoU threshold of a match")
    panel.set_ylabel(f"mAP on {rows[0].split}, points")
    legend_below(figure)
    return Drawn(figure, f"mAP at each IoU threshold{intervals_text(rows, 'bands')}.")
