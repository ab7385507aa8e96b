"""What losses do to objects whose labels were withheld, over training: why a method helps, or does not."""

from __future__ import annotations

from rebalance.experiments.record import DIAGNOSE
from rebalance.report.figures import by_epoch
from rebalance.report.figures.style import Drawn
from rebalance.report.summary import Results, apart, grouped, loss_key, loss_text, varying
from rebalance.report.tables import group_text
from rebalance.report.words import say

STAGES = {"": "", "rpn_": "RPN: ", "roi_": "RoI head: "}  # beginning of a name -> of a title
SPARED = {"dropped": "-", "recalibrated": "--", "lowered": "-."}  # with how they are drawn


def draw(found: Results) -> Drawn | None:
    """A row for each group of settings, panels for push, precision, recall and scores; None where none was measured."""
    keys = {key for key in by_epoch.epoch_keys(found) if key.startswith(DIAGNOSE)}
    runs = {s: kept for s, records in found.runs.items() if (kept := [r for r in records if r.diagnostics])}
    if not runs:
        return None
    groups = grouped(runs, loss_key)
    apart_by = apart(groups)
    measured: list[tuple[str, list[by_epoch.Curve]]] = []
    for group, settings in groups.items():
        names = varying(settings)
        curves = [(loss_text(setting, names), runs[setting]) for setting in settings]
        title = group_text(group, apart_by).replace(", ", ",\n") if len(groups) > 1 else ""
        measured.append((title, by_epoch.coloured(curves)))
    panels: list[tuple[str, list[tuple[str, str]]]] = []
    points: list[str] = []
    for stage, name in STAGES.items():
        begin = f"{DIAGNOSE}{stage}"
        if f"{begin}gradient" not in keys:
            continue
        blind = [(f"{begin}rate", ":")]
        kinds = {kind: stroke for kind, stroke in SPARED.items() if f"{begin}{kind}_recall" in keys}
        own = [(f"{name}push, %", [(f"{begin}gradient", "-"), *blind])]
        if kinds:
            own.append((f"{name}precision, %", [*((f"{begin}{k}_precision", s) for k, s in kinds.items()), *blind]))
            own.append((f"{name}recall, %", [(f"{begin}{kind}_recall", stroke) for kind, stroke in kinds.items()]))
        own.append((f"{name}score, %", [(f"{begin}score", "-"), (f"{begin}background", ":")]))
        points += [key for _, lines in own for key, _ in lines]
        panels += own
    figure = by_epoch.curves(measured, panels, points=points, removals=False)
    drawn = [kind for kind in SPARED if any(f"{DIAGNOSE}{stage}{kind}_recall" in keys for stage in STAGES)]
    return Drawn(figure, say("diagnosis", kinds=drawn))
