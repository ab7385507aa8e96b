"""Which box a detection found, and which image is drawn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rebalance.experiments.record import Detection, Label, Sample
from rebalance.report.figures.samples import iou, match, read_image


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


def test_an_image_of_another_size_is_not_the_one_that_was_looked_at(tmp_path: Path) -> None:
    """As where two images of a set have one name, and one copy is in samples/."""
    (tmp_path / "samples").mkdir()
    cv2.imwrite(str(tmp_path / "samples" / "a.png"), np.full((20, 30, 3), (10, 20, 30), np.uint8))
    found = read_image(Sample(Path("there/a.png"), (30, 20), (), (), ()), tmp_path)
    assert found is not None
    assert found[0, 0].tolist() == [30, 20, 10]
    assert read_image(Sample(Path("there/a.png"), (20, 30), (), (), ()), tmp_path) is None
