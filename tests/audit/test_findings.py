"""What is said of classes that a model takes for one another, against simulated detections."""

from __future__ import annotations

import numpy as np
import pytest

from rebalance.audit.explain import Detections
from rebalance.audit.findings import Findings, Image, Look, findings, look
from rebalance.data import labels
from rebalance.data.regions import Regions

NAMES = {0: "urchin", 1: "cucumber"}
PLACES = [(x, y) for x in (0.15, 0.5, 0.85) for y in (0.15, 0.5, 0.85)]
AUDITED, VAL = 150, 60


def seen(rng: np.random.Generator, name: str, kept: float) -> tuple[Look, int]:
    """An image with two objects of each class, and how many urchins have no label.

    Of the urchins a share `kept` has one. A model that learnt that many are background is not sure of them, and half of
    them are cucumbers to it.
    """
    places = rng.permutation(len(PLACES))[:5]
    lines, found, lost = [], list[tuple[float, int, float, float]](), 0
    for number, place in zip((0, 0, 1, 1), places, strict=False):
        x, y = PLACES[place]
        if number or rng.random() < kept:
            lines.append(f"{number} {x} {y} 0.2 0.2\n")
        else:
            lost += 1
        if rng.random() < 0.8:
            found.append((rng.beta(4, 3) if number else rng.beta(2, 6), number, x, y))
        if not number and rng.random() < 0.5:
            found.append((rng.beta(3, 4), 1, x, y))
    if rng.random() < 0.3:  # of nothing
        found.append((rng.beta(2, 6), int(rng.integers(2)), *PLACES[places[4]]))
    score, number, x, y = map(np.array, zip(*sorted(found, reverse=True), strict=True)) if found else [np.empty(0)] * 4
    boxes = np.stack([x - 0.1, y - 0.1, x + 0.1, y + 0.1], 1) * 100
    image = Image(name, name, labels.parse("".join(lines).encode(), classes=2), Regions.none(2))
    return look(image, (100, 100), Detections(boxes, score, number.astype(np.int64)), 0), lost


def audited(seed: int, kept: float) -> tuple[Findings, int]:
    """What is found, and how many urchins have no label."""
    rng = np.random.default_rng(seed)
    looks, lost = zip(*(seen(rng, f"{i}.jpg", kept) for i in range(AUDITED)), strict=True)
    val = [seen(rng, f"val-{i}.jpg", 1.0)[0] for i in range(VAL)]
    return findings(NAMES, looks, [val], frozenset(NAMES), seed), sum(lost)


@pytest.mark.parametrize("kept", [0.3, 0.7, 1.0])
def test_an_object_without_a_label_that_is_taken_for_another_class_is_not_missing_of_that_class(kept: float) -> None:
    runs = [audited(seed, kept) for seed in range(20)]
    urchins, cucumbers = ([found.classes[number].estimate for found, _ in runs] for number in NAMES)
    truth = np.mean([lost for _, lost in runs])
    assert np.mean([one.beyond for one in urchins]) == pytest.approx(truth, rel=0.1, abs=5)
    assert np.mean([one.beyond for one in cucumbers]) < 8  # of 300
    inside = [one.span_beyond.low <= lost <= one.span_beyond.high for one, (_, lost) in zip(urchins, runs, strict=True)]
    assert sum(inside) >= 17
    assert sum(one.span_beyond.low == 0 for one in cucumbers) >= 17


def test_one_object_may_be_suggested_as_two_classes_and_the_likelier_comes_first() -> None:
    found, _ = audited(0, 0.3)
    of = {(row.image, row.box, row.number): row for row in found.suggestions if row.kind == "missing"}
    both = [(row, of[image, box, 0]) for (image, box, number), row in of.items() if number and (image, box, 0) in of]
    assert len(both) > 20
    higher = [cucumber.score > urchin.score for cucumber, urchin in both]
    assert np.mean(higher) > 0.7
    likelier = [(urchin.probability or 0) >= (cucumber.probability or 0) for cucumber, urchin in both]
    assert np.mean(likelier) > 0.7
