"""The plots of removals, with their controls."""

from __future__ import annotations

from typing import Any

import pytest

from rebalance.experiments.record import load
from rebalance.report.figures import removal
from rebalance.report.summary import results


def test_a_control_is_a_mark_of_its_own_and_not_on_the_line(partial_sweep: Any) -> None:
    found = results(load(partial_sweep()))
    drawn = removal.change(found)
    assert drawn is not None
    lines = {line.get_marker(): line for line in drawn.figure.axes[0].lines if line.get_marker() in ("o", "x")}
    assert list(lines["o"].get_ydata()) == pytest.approx([0.0, 11.0])
    assert (list(lines["x"].get_ydata()), lines["x"].get_linestyle()) == (pytest.approx([3.0]), "None")
    other = removal.curves(found)
    assert other is not None
    for figure in (drawn.figure, other.figure):
        (legend,) = figure.legends
        assert "control" in [text.get_text() for text in legend.get_texts()]


def test_without_a_control_there_is_none_in_the_legend(series_sweep: Any) -> None:
    drawn = removal.change(results(load(series_sweep)))
    assert drawn is not None
    assert "control" not in [text.get_text() for text in drawn.figure.legends[0].get_texts()]
