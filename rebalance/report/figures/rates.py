"""mAP50 and its relative drop against the fraction of missing labels, with the paper's in a panel of its own."""

from __future__ import annotations

from matplotlib.figure import Figure

from rebalance.report.figures import style
from rebalance.report.summary import Results, Row, Stat, loss_text, stat, varying
from rebalance.report.tables import judged_rows, rate_lines, study_numbers


def draw(found: Results) -> style.Drawn | None:
    """A line for each loss; None where labels are not missing at three rates."""
    lines = rate_lines(found.rows)
    if not lines:
        return None
    names = varying(lines)
    texts = [loss_text(key, names) for key in lines]
    published = [style.published_points(line, study_numbers(found.sweep)) for line in lines.values()]
    with_all = any(0.0 in line for line in lines.values())
    titles = ["mAP50", *["drop"] * with_all, *["paper"] * any(published)]
    figure = Figure(figsize=(1.5 + 3.8 * len(titles), 4.3))
    panels = dict(zip(titles, figure.subplots(1, len(titles), sharex=True, squeeze=False)[0], strict=True))
    for line, text, colour in zip(lines.values(), texts, style.MORE_COLOURS, strict=False):
        rates = sorted(line)
        x = [100 * rate for rate in rates]
        style.band(panels["mAP50"], x, [line[rate].stats["mAP50"] for rate in rates], colour, text)
        if 0.0 in line:
            style.band(panels["drop"], x, [relative_drop(line[0.0], line[rate]) for rate in rates], colour)
    panels["mAP50"].set_title(f"mAP50 on {judged_rows(found.rows)[0].split}, points")
    if with_all:
        panels["drop"].set_title("drop, % of that on all labels")
    in_percent = [{100 * rate: value for rate, value in points.items()} for points in published]
    told = style.paper_panel(panels["paper"], texts, in_percent, "%") if any(published) else ""
    for panel in panels.values():
        panel.set_xlabel("missing labels, %")
    style.legend_below(figure, columns=4)
    intervals = style.intervals_text(found.rows, "bands")
    return style.Drawn(figure, f"mAP50 against the fraction of training labels that is missing{intervals}.{told}")


def relative_drop(full: Row, partial: Row) -> Stat | None:
    """1 - mAP50 / mAP50 on all labels, over the seeds that both have; None where there is none."""
    base = {r.seed: r.metrics[full.split]["mAP50"] for r in full.records}
    mine = {r.seed: r.metrics[partial.split]["mAP50"] for r in partial.records}
    drops = [1 - mine[seed] / base[seed] for seed in mine if base.get(seed)]
    return stat(drops) if drops else None
