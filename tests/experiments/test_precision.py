"""COCO's and VOC's average precision against numbers worked out by hand and, of VOC's, a slow reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rebalance.experiments.precision import RECALLS, Seen, coco_precision, eleven_points, voc_precision

FAR = [500.0, 500, 540, 540]


def seen(labels: list[Any], found: list[Any]) -> Seen:
    """`labels`: class and four sides; `found`: class, score and four sides."""
    boxes, rows = np.array(labels, np.float32).reshape(-1, 5), np.array(found, np.float32).reshape(-1, 6)
    return Seen(boxes[:, 1:], boxes[:, 0], rows[:, 2:], rows[:, 1], rows[:, 0])


def test_one_false_box_between_two_true_ones() -> None:
    """Precision 1 up to half of the recall, 2/3 beyond: 51 and 50 of COCO's recalls, 6 and 5 of VOC's."""
    one, two = [0.0, 0, 40, 40], [100.0, 0, 140, 40]
    images = [seen([[0, *one], [0, *two]], [[0, 0.7, *two], [0, 0.9, *one], [0, 0.8, *FAR]])]
    coco = (51 + 50 * 2 / 3) / 101
    assert coco_precision(images) == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75", "AP_medium"), coco))
    assert voc_precision(images) == pytest.approx(dict.fromkeys(("mAP50", "mAP75"), (6 + 5 * 2 / 3) / 11))


def test_a_box_that_fits_by_six_tenths_counts_at_three_of_the_ten_thresholds() -> None:
    images = [seen([[0, 0, 0, 100, 100]], [[0, 0.5, 0, 0, 100, 61]])]  # IoU 0.61: at 0.5, 0.55 and 0.6
    assert coco_precision(images) == pytest.approx({"AP": 0.3, "AP50": 1, "AP75": 0, "AP_large": 0.3})
    assert voc_precision(images) == {"mAP50": 1, "mAP75": 0}


def test_objects_are_small_medium_and_large_by_pixels_of_the_image() -> None:
    sides = {"AP_small": 31, "AP_medium": 33, "AP_large": 97}
    for missed in sides:
        labels = [[0, 200 * k, 0, 200 * k + side, side] for k, side in enumerate(sides.values())]
        found = [[0, 0.9, *row[1:]] for row, name in zip(labels, sides, strict=True) if name != missed]
        values = coco_precision([seen(labels, found)])
        assert {name: values[name] for name in sides} == {name: float(name != missed) for name in sides}


def test_a_box_of_32_pixels_is_small_and_medium_whatever_rounding_made_of_it() -> None:
    for error in (-1e-5, 1e-5):
        values = coco_precision([seen([[0, 10, 10, 42 + error, 42 + error]], [[0, 0.9, 10, 10, 42, 42]])])
        assert (values["AP_small"], values["AP_medium"]) == (1, 1)
        assert "AP_large" not in values


def test_only_classes_with_labels_count_and_a_class_is_its_index() -> None:
    box = [0.0, 0, 40, 40]
    images = [seen([[3, *box], [7, 100, 0, 140, 40]], [[3, 0.9, *box], [5, 0.99, *box]]), seen([], [[7, 0.5, *FAR]])]
    assert coco_precision(images)["AP"] == 0.5  # 3 is found, 7 is not, 5 is nowhere
    assert voc_precision(images)["mAP50"] == 0.5


def test_nothing_found() -> None:
    images = [seen([[0, 0, 0, 40, 40]], []), seen([], [])]
    assert coco_precision(images) == {"AP": 0, "AP50": 0, "AP75": 0, "AP_medium": 0}
    assert voc_precision(images) == {"mAP50": 0, "mAP75": 0}


def test_to_voc_a_box_belongs_to_the_label_that_it_overlaps_most() -> None:
    """The second box does for both labels, for the first one more, which is taken: COCO gives it the other one."""
    labels = [[0, 0, 0, 100, 100], [0, 0, 30, 100, 130]]
    found = [[0, 0.9, 0, 0, 100, 100], [0, 0.8, 0, 12, 100, 112]]  # 0.79 with the first, 0.69 with the second
    assert coco_precision([seen(labels, found)])["AP50"] == pytest.approx(1)
    assert voc_precision([seen(labels, found)])["mAP50"] == pytest.approx(6 / 11)


def test_three_of_ten_labels_reach_a_recall_of_three_tenths() -> None:
    assert eleven_points(np.array([True, True, True]), 10) == pytest.approx(4 / 11)
    assert eleven_points(np.array([False, True]), 1) == pytest.approx(0.5)


def slow_voc(images: list[Seen], threshold: float) -> float:
    """As the development kit goes about it: class by class, box by box."""

    def iou(a: Any, b: Any) -> float:
        w, h = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
        inter = max(w, 0) * max(h, 0)
        return float(inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter))

    means = []
    for kind in sorted({int(k) for image in images for k in image.label_classes}):
        labels = [[box for box, k in zip(i.labels, i.label_classes, strict=True) if k == kind] for i in images]
        taken = [[False] * len(boxes) for boxes in labels]
        found = [
            (score, index, box)
            for index, i in enumerate(images)
            for box, score, k in zip(i.boxes, i.scores, i.classes, strict=True)
            if k == kind
        ]
        true, false, curve = 0, 0, []
        for _, index, box in sorted(found, key=lambda row: -row[0]):
            overlaps = [iou(box, label) for label in labels[index]]
            best = max(range(len(overlaps)), key=overlaps.__getitem__, default=-1)
            if best >= 0 and overlaps[best] >= threshold and not taken[index][best]:
                taken[index][best] = True
                true += 1
            else:
                false += 1
            curve.append((true, true / (true + false)))
        count = sum(map(len, labels))
        tenths = range(RECALLS)
        means.append(sum(max((p for t, p in curve if 10 * t >= k * count), default=0) for k in tenths) / RECALLS)
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(3))
def test_voc_equals_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(12):
        corner, size = rng.uniform(0, 60, (9, 2)), rng.uniform(20, 40, (9, 2))
        labels = np.concatenate((rng.integers(0, 3, (9, 1)), corner, corner + size), 1)[: rng.integers(0, 10)]
        near = labels[rng.integers(0, len(labels), 30)] if len(labels) else np.zeros((0, 5))
        near[:, 1:] += rng.normal(0, 4, near[:, 1:].shape)
        scores = rng.permutation(len(near))[:, None] / 64 + rng.uniform(0, 0.01)
        images.append(seen(labels.tolist(), np.concatenate((near[:, :1], scores, near[:, 1:]), 1).tolist()))
    values = voc_precision(images)
    assert 0.05 < values["mAP75"] < values["mAP50"] < 0.95
    for name, threshold in (("mAP50", 0.5), ("mAP75", 0.75)):
        assert values[name] == pytest.approx(slow_voc(images, threshold), abs=1e-12)
