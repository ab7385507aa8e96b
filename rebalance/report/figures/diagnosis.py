"""What losses do to objects whose labels were withheld, over training: why a method helps, or does not."""

from __future__ import annotations

from rebalance.experiments.record import DIAGNOSE
from rebalance.report.figures import by_epoch
from rebalance.report.figures.style import Drawn
from rebalance.report.summary import Results
from rebalance.report.words import say

STAGES = {"": "", "rpn_": "RPN: ", "roi_": "RoI head: "}  # beginning of a name -> of a title
SPARED = {"dropped": "-", "recalibrated": "--", "lowered": "-."}  # with how they are drawn


def draw(found: Results) -> Drawn | None:
    """A row for each group of settings, panels for push, precision, recall and scores; None where none was measured."""
    keys = {key for key in by_epoch.epoch_keys(found) if key.startswith(DIAGNOSE)}
    measured: list[tuple[str, list[by_epoch.Curve]]] = []
    for title, lines in by_epoch.families(found) if keys else ():
        if curves := [line for line in lines if any(record.diagnostics for record in line.records)]:
            measured.append((title, curves))
    if not measured:
        return None
    panels: list[tuple[str, list[tuple[str, str]]]] = []
    points: list[str] = []
    for stage, name in STAGES.items():
        begin = f"{DIAGNOSE}{stage}"
        if f"{begin}gradient" not in keys:
            continue
        blind = [(f"{begin}rate", ":")]
        kinds = {kind: stroke for kind, stroke in SPARED.items() if f"{begin}{kind}_recall" in keys}
        own = [(f"{name}push on withheld, %", [(f"{begin}gradient", "-"), *blind])]
        if kinds:
            own.append((f"{name}precision, %", [*((f"{begin}{k}_precision", s) for k, s in kinds.items()), *blind]))
            own.append((f"{name}recall, %", [(f"{begin}{kind}_recall", stroke) for kind, stroke in kinds.items()]))
        own.append((f"{name}mean score, %", [(f"{begin}score", "-"), (f"{begin}background", ":")]))
        points += [key for _, lines in own for key, _ in lines]
        panels += own
    figure = by_epoch.curves(measured, panels, points=points, removals=bool(found.series))
    drawn = [kind for kind in SPARED if any(f"{DIAGNOSE}{stage}{kind}_recall" in keys for stage in STAGES)]
    return Drawn(figure, say("diagnosis", kinds=drawn))
