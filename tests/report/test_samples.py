"""Which box a detection found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rebalance.experiments.record import Detection, Label, Sample
from rebalance.report.figures.samples import iou, match


def test_iou_by_hand() -> None:
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(2 / 6)
    assert iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0  # empty boxes


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((0, 0, 10, 10), "labelled"),
        ((20, 0, 30, 9), "withheld"),
        ((0, 0, 10, 5), "labelled"),  # IoU 0.5 exactly
        ((0, 0, 10, 4.9), "neither"),
        ((50, 50, 60, 60), "neither"),
        ((2, 0, 12, 10), "withheld"),  # overlaps the label too, by less
    ],
)
def test_match(box: tuple[float, float, float, float], kind: str) -> None:
    labels, withheld = (Label(0, (0, 0, 10, 10)),), (Label(0, (20, 0, 30, 10)), Label(0, (3, 0, 13, 10)))
    sample = Sample(Path("a.jpg"), (100, 100), labels, withheld, ())
    assert match(Detection(0, 0.5, box), sample) == kind


def test_the_same_box_twice_counts_as_labelled() -> None:
    sample = Sample(Path("a.jpg"), (9, 9), (Label(0, (0, 0, 5, 5)),), (Label(0, (0, 0, 5, 5)),), ())
    assert match(Detection(0, 0.5, (0, 0, 5, 5)), sample) == "labelled"
