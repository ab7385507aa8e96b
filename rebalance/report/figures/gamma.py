"""mAP50 against focal loss's gamma, a line for each set of labels."""

from __future__ import annotations

from matplotlib.figure import Figure

from rebalance.report.figures import style
from rebalance.report.summary import Results, Row, Setting, apart
from rebalance.report.tables import group_text, judged_rows, study_numbers

FLAG = "focal_gamma"


def draw(found: Results) -> style.Drawn | None:
    """A line for each set of labels that has three values; None where none has."""
    lines: dict[Setting, dict[float, Row]] = {}
    for row in judged_rows(found.rows):
        value = row.setting.get(FLAG)
        if row.setting.owns(FLAG) and isinstance(value, (int, float)):
            lines.setdefault(row.setting.without([FLAG]), {})[float(value)] = row
    lines = {key: line for key, line in lines.items() if len(line) > 2}
    if not lines:
        return None
    names = apart(lines)
    texts = [group_text(key, names) for key in lines]
    published = [style.published_points(line, study_numbers(found.sweep)) for line in lines.values()]
    figure = Figure(figsize=(10.5 if any(published) else 6.5, 4.3))
    panels = figure.subplots(1, 2 if any(published) else 1, squeeze=False)[0]
    for line, text, colour in zip(lines.values(), texts, style.MORE_COLOURS, strict=False):
        gammas = sorted(line)
        style.band(panels[0], gammas, [line[g].stats["mAP50"] for g in gammas], colour, text)
    panels[0].set_title(f"mAP50 on {judged_rows(found.rows)[0].split}, points")
    told = style.paper_panel(panels[1], texts, published) if any(published) else ""
    for panel in panels:
        panel.set_xlabel("gamma")
    style.legend_below(figure, columns=3)
    intervals = style.intervals_text(found.rows, "bands")
    return style.Drawn(figure, f"mAP50 against the exponent of focal loss{intervals}.{told}")
