"""Probabilities and estimates against simulated detections of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rebalance.audit.probability import Draws, Estimate, estimate, right

IMAGES, VAL = 120, 60


def simulated(seed: int, missing: float, *, false: float = 4.0, models: int = 1, unsure: bool = False):
    """Missing labels and an estimate; `missing` and `false` are detections an image, `unsure` ones have low scores."""
    rng = np.random.default_rng(seed)

    def noise() -> NDArray[np.float64]:
        return np.clip(rng.exponential(0.05, rng.poisson(false)), 0.001, 0.999)

    audited, judged = [noise() for _ in range(IMAGES)], [noise() for _ in range(VAL * models)]
    counts = rng.poisson(missing, IMAGES)
    found = [rng.beta(1.2, 8, count) if unsure else rng.beta(4, 3, count) for count in counts]
    audited = [np.concatenate(pair) for pair in zip(audited, found, strict=True)]
    return int(counts.sum()), audited, estimate(audited, judged, Draws.of(IMAGES, VAL, models, seed))


@pytest.mark.parametrize(
    "case",
    [
        {"missing": 0.0},
        {"missing": 2.0},
        {"missing": 2.0, "unsure": True},
        {"missing": 1.0, "models": 3, "false": 1.0},
    ],
)
def test_the_truth_is_in_the_interval_nine_times_of_ten_and_near_the_mean(case: dict[str, float]) -> None:
    runs = [simulated(seed, **case) for seed in range(100)]
    inside = sum(made.low <= truth <= made.high for truth, _, made in runs)
    assert inside >= 90
    truths, means = (
        np.mean(values) for values in zip(*((truth, made.missing) for truth, _, made in runs), strict=True)
    )
    assert means == pytest.approx(truths, abs=0.1 * truths + 0.12 * IMAGES)


def test_without_missing_labels_the_interval_holds_0() -> None:
    assert sum(simulated(seed, 0.0)[2].low == 0 for seed in range(50)) >= 45


def test_a_probability_is_as_often_right_as_it_says() -> None:
    said, true_of = [], []
    rng = np.random.default_rng(7)
    for _ in range(20):
        false = [rng.exponential(0.05, rng.poisson(4)) for _ in range(IMAGES + VAL)]
        found = [rng.beta(2, 8, rng.poisson(1)) for _ in range(IMAGES)]
        audited = [np.concatenate(pair) for pair in zip(false[:IMAGES], found, strict=True)]
        made = estimate(audited, false[IMAGES:], Draws.of(IMAGES, VAL, 1, 0))
        said += [np.concatenate(made.probability)]
        true_of += [np.concatenate([np.arange(len(a)) >= len(f) for a, f in zip(audited, false[:IMAGES], strict=True)])]
    chance, true = np.concatenate(said), np.concatenate(true_of)
    for low in (0.1, 0.3, 0.5, 0.7):
        some = (chance >= low) & (chance < low + 0.2)
        assert true[some].mean() == pytest.approx(chance[some].mean(), abs=0.1)


def test_what_is_as_sure_as_labels_is_right_by_what_val_has_of_it() -> None:
    some = [np.array([0.9, 0.5, 0.1]), np.array([0.6]), np.empty(0), np.array([0.8])]  # 4 of 0.5 and more
    all_of = np.ones(4), np.ones(8)
    assert right(some, [np.empty(0)] * 8, 0.5, all_of) == pytest.approx(1 - 4 / 8 * 1 / 4)
    assert right(some, [np.array([0.5, 0.4]), *[np.empty(0)] * 7], 0.5, all_of) == pytest.approx(1 - 4 / 8 * 2 / 4)
    assert right(some, [np.empty(0)], 0.5, (np.ones(4), np.ones(1))) == 0  # one image says nothing
    assert right(some, [np.empty(0)] * 8, 0.5, (np.ones(4), np.zeros(8))) == 0
    assert right(some, [np.empty(0)] * 8, 0.95, all_of) is None


def test_a_higher_score_is_no_less_likely() -> None:
    _, audited, made = simulated(3, 1.0)
    scores, chances = np.concatenate(audited), np.concatenate(made.probability)
    order = np.argsort(scores)
    assert (np.diff(chances[order]) >= 0).all()
    assert chances.min() >= 0
    assert 0.5 < chances.max() <= 1


def test_the_estimate_is_the_sum_of_the_probabilities() -> None:
    for missing in (0.0, 0.1, 2.0):
        _, _, made = simulated(5, missing)
        assert sum(map(np.sum, made.probability)) == pytest.approx(made.missing)
        assert made.low <= made.missing <= made.high


def test_the_same_seed_gives_the_same_estimate() -> None:
    one, other, third = (simulated(seed, 1.0)[2] for seed in (1, 1, 2))
    assert isinstance(one, Estimate)
    assert (one.missing, one.low, one.high) == (other.missing, other.low, other.high)
    assert one.missing != third.missing


def test_a_class_that_is_never_found_has_nothing_missing() -> None:
    none = [np.empty(0)] * 30
    made = estimate(none, none, Draws.of(30, 30, 1, 0))
    assert (made.missing, made.low, made.high) == (0, 0, 0)
    only_false = estimate(none, [np.array([0.5])] * 30, Draws.of(30, 30, 1, 0))
    assert (only_false.missing, only_false.low, only_false.high) == (0, 0, 0)
