"""Each reason for which a detection is no suggestion, and what is said of labels, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rebalance.audit.explain import Detections, Explained, explain, nearest

LABEL = (10, 10, 30, 30)  # 20 x 20


def held(
    *found: tuple[float, int, tuple[float, ...]],
    labels: tuple[tuple[int, tuple[float, ...]], ...] = ((0, LABEL),),
    **more,
) -> Explained:
    """Detections (score, class, box) held against labels (class, box)."""
    scores, classes, boxes = zip(*found, strict=True) if found else ((), (), ())
    detections = Detections(np.array(boxes, float).reshape(-1, 4), np.array(scores, float), np.array(classes, np.int64))
    kinds = np.array([kind for kind, _ in labels], np.int64)
    known = np.array(more.pop("known", [False] * len(found)), np.bool_)
    return explain(detections, np.array([box for _, box in labels], float).reshape(-1, 4), kinds, known, **more)


@pytest.mark.parametrize(
    ("box", "kind", "missing"),
    [
        ((10, 10, 30, 30), 0, False),  # the label
        ((10, 10, 30, 50), 0, False),  # IoU 0.5
        ((10, 10, 30, 51), 0, True),  # a little less
        ((12, 12, 16, 16), 0, False),  # a part of it: all inside
        ((28.2, 12, 30.2, 16), 0, False),  # 0.9 inside
        ((28.3, 12, 30.3, 16), 0, True),  # a little less
        ((10, 10, 30, 25), 1, False),  # another class, IoU 0.75
        ((10, 10, 30, 24.9), 1, True),  # a little less
        ((50, 50, 60, 60), 0, True),
    ],
)
def test_a_label_explains_what_lies_there(box: tuple[float, ...], kind: int, missing: bool) -> None:
    assert held((0.5, kind, box)).missing.tolist() == [0] * missing


def test_what_is_known_of_the_place_explains_and_is_counted() -> None:
    found = held((0.9, 0, (50, 50, 60, 60)), (0.8, 0, (80, 80, 90, 90)), known=[True, False])
    assert found.missing.tolist() == [1]
    assert found.silent == 1
    small = held((0.9, 0, (50, 50, 58, 58)), (0.8, 0, (80, 80, 90, 90)), small=9)
    assert small.missing.tolist() == [1]
    assert small.silent == 1


def test_several_detections_of_one_object_are_one_suggestion() -> None:
    there = (50, 50, 70, 70)
    found = held(
        (0.9, 0, there),
        (0.8, 0, (50, 50, 70, 65)),  # the same object, IoU 0.75
        (0.7, 0, (52, 52, 56, 56)),  # a part of it
        (0.6, 1, there),  # of another class: which one it is their probabilities say
        (0.5, 1, (50, 50, 70, 60)),  # that again, IoU 0.5
        (0.4, 0, (50, 66, 70, 90)),  # another object
    )
    assert found.missing.tolist() == [0, 3, 5]


def test_what_only_a_label_of_another_class_explains_is_told_with_that() -> None:
    two = ((0, LABEL), (2, (12, 10, 32, 30)))
    found = held(
        (0.9, 1, (11.5, 10, 31.5, 30)),  # nearer to the second
        (0.8, 1, LABEL),  # the same object
        (0.7, 0, LABEL),  # its own label
        (0.6, 3, (10, 10, 30, 24)),  # IoU 0.7
        (0.5, 3, LABEL),
        labels=two,
    )
    assert found.other.tolist() == [[0, 1], [4, 0]]
    assert held((0.9, 1, LABEL), known=[True]).other.tolist() == []
    assert held((0.9, 1, LABEL), labels=()).other.tolist() == []


def test_what_is_part_of_a_suppressed_detection_is_an_object_of_its_own() -> None:
    # the second is of the first; the third overlaps the second by half, and the first by less
    found = held((0.9, 0, (50, 50, 70, 70)), (0.8, 0, (50, 55, 70, 75)), (0.7, 0, (50, 61, 70, 81)))
    assert found.missing.tolist() == [0, 2]


def test_a_label_of_a_wrong_class_has_a_better_detection_of_another() -> None:
    assert held((0.9, 1, LABEL)).wrong.tolist() == [[0, 0]]
    assert held((0.9, 1, LABEL), (0.8, 0, LABEL)).wrong.tolist() == [[0, 0]]
    assert held((0.9, 0, LABEL), (0.8, 1, LABEL)).wrong.tolist() == []
    assert held((0.9, 1, LABEL), (0.8, 2, LABEL)).wrong.tolist() == [[0, 0]]  # the best
    assert held((0.9, 1, (10, 10, 30, 24))).wrong.tolist() == []  # IoU 0.7
    assert held((0.9, 1, LABEL), known=[True]).wrong.tolist() == []
    two = held((0.9, 1, LABEL), labels=((0, LABEL), (1, (10, 10, 31, 31))))
    assert two.wrong.tolist() == []  # it is the label beside


def test_a_badly_placed_label_has_its_best_detection_elsewhere() -> None:
    far = (10, 18, 30, 38)  # IoU 12 / 28
    assert held((0.9, 0, far)).placed.tolist() == [[0, 0]]
    assert held((0.9, 0, far), (0.8, 0, LABEL)).placed.tolist() == [[0, 0]]
    assert held((0.9, 0, LABEL), (0.8, 0, far)).placed.tolist() == []
    assert held((0.9, 1, far)).placed.tolist() == []
    assert held((0.9, 0, (10, 24, 30, 44))).placed.tolist() == []  # IoU 0.18
    both = held((0.9, 0, far), labels=((0, LABEL), (0, (10, 19, 30, 39))))
    assert both.placed.tolist() == []  # it is the label beside
    assert both.spurious.tolist() == [0]


def test_a_spurious_label_is_found_by_nothing() -> None:
    assert held().spurious.tolist() == [0]
    assert held((0.001, 0, LABEL)).spurious.tolist() == []
    assert held((0.9, 1, (10, 10, 30, 20))).spurious.tolist() == [0]
    assert held((0.9, 1, LABEL)).spurious.tolist() == []  # it is of a wrong class


def test_the_score_of_a_label_is_that_of_its_best_detection() -> None:
    found = held(
        (0.9, 1, LABEL), (0.8, 0, (10, 10, 30, 26)), (0.7, 0, LABEL), labels=((0, LABEL), (0, (60, 60, 70, 70)))
    )
    assert found.own.tolist() == [0.8, 0]


def test_no_detection_and_no_label_are_nothing() -> None:
    found = held(labels=())
    assert [len(part) for part in found[:5]] == [0] * 5
    assert held((0.5, 0, LABEL), labels=()).missing.tolist() == [0]
    assert held((0.5, 0, LABEL), labels=()).placed.shape == (0, 2)


def test_the_nearest_label_overlaps_most_or_has_the_nearest_centre() -> None:
    labels = np.array([(0, 0, 10, 10), (8, 0, 30, 10), (90, 0, 99, 9)], float)
    assert nearest(np.array([0, 0, 12, 10.0]), labels) == (0, pytest.approx(10 / 12))
    assert nearest(np.array([70, 0, 80, 10.0]), labels) == (2, 0)
    assert nearest(np.array([0, 0, 10, 10.0]), labels, 1) == (1, pytest.approx(20 / 300))
    assert nearest(np.array([0, 0, 10, 10.0]), labels[:0]) is None
