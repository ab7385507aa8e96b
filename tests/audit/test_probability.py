"""Probabilities and estimates against simulated detections of which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rebalance.audit.probability import Draws, Estimate, estimate, right

IMAGES, VAL = 120, 60


def simulated(
    seed: int, missing: float, *, false: float = 4.0, models: int = 1, unsure: bool = False, lost: float = 0.0
):
    """Scores of the missing labels, the audited detections and an estimate.

    `missing` and `false` are detections an image, `unsure` ones have low scores, of all a share `lost` is not found.
    """
    rng = np.random.default_rng(seed)

    def noise() -> NDArray[np.float64]:
        return np.clip(rng.exponential(0.05, rng.poisson(false)), 0.001, 0.999)

    def labels(count: int) -> NDArray[np.float64]:
        return (rng.beta(1.2, 8, count) if unsure else rng.beta(4, 3, count)) * (rng.random(count) >= lost)

    audited, judged = [noise() for _ in range(IMAGES)], [noise() for _ in range(VAL * models)]
    gone = [labels(count) for count in rng.poisson(missing, IMAGES)]
    own = [labels(count) for count in np.tile(rng.poisson(2, VAL), models)]
    audited = [np.concatenate((some, scores[scores > 0])) for some, scores in zip(audited, gone, strict=True)]
    return np.concatenate(gone), audited, estimate(audited, judged, own, Draws.of(IMAGES, VAL, models, seed))


@pytest.mark.parametrize(
    "case",
    [
        {"missing": 0.0},
        {"missing": 2.0},
        {"missing": 2.0, "unsure": True},
        {"missing": 2.0, "unsure": True, "lost": 0.4},
        {"missing": 1.0, "models": 3, "false": 1.0},
        {"missing": 0.3, "false": 10.0, "lost": 0.2},
    ],
)
def test_the_truth_is_in_the_interval_nine_times_of_ten_and_near_the_mean(case: dict[str, float]) -> None:
    runs = [simulated(seed, **case) for seed in range(100)]
    found = [(gone >= made.start).sum() for gone, _, made in runs]
    inside = sum(made.span.low <= truth <= made.span.high for truth, (*_, made) in zip(found, runs, strict=True))
    assert inside >= 90
    assert sum(made.span_beyond.low <= len(gone) <= made.span_beyond.high for gone, _, made in runs) >= 90
    all_of, said, said_of_all = (
        np.mean(values)
        for values in zip(*((len(gone), made.missing, made.beyond) for gone, _, made in runs), strict=True)
    )
    assert said == pytest.approx(np.mean(found), rel=0.08, abs=3)
    assert said_of_all == pytest.approx(all_of, rel=0.08, abs=3)


def test_where_nothing_is_missing_the_estimate_is_0() -> None:
    runs = [simulated(seed, 0.0)[2] for seed in range(50)]
    assert sum(made.missing == made.span.low == made.beyond == 0 for made in runs) >= 48


def test_a_probability_is_as_often_right_as_it_says() -> None:
    said, true_of = [], []
    rng = np.random.default_rng(7)
    for _ in range(20):
        false = [rng.exponential(0.05, rng.poisson(4)) for _ in range(IMAGES + VAL)]
        found = [rng.beta(2, 8, rng.poisson(1)) for _ in range(IMAGES)]
        audited = [np.concatenate(pair) for pair in zip(false[:IMAGES], found, strict=True)]
        own = [rng.beta(2, 8, rng.poisson(2)) for _ in range(VAL)]
        made = estimate(audited, false[IMAGES:], own, Draws.of(IMAGES, VAL, 1, 0))
        said += [np.concatenate(made.probability)]
        true_of += [np.concatenate([np.arange(len(a)) >= len(f) for a, f in zip(audited, false[:IMAGES], strict=True)])]
    chance, true = np.concatenate(said), np.concatenate(true_of)
    assert (chance[chance > 0] > 0.3).mean() > 0.9
    for low in (0.3, 0.5, 0.7):
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
        assert made.span.low <= made.missing <= made.span.high


def test_the_same_seed_gives_the_same_estimate() -> None:
    one, other, third = (simulated(seed, 1.0)[2] for seed in (1, 1, 2))
    assert isinstance(one, Estimate)
    assert (one.missing, one.span, one.span_beyond) == (other.missing, other.span, other.span_beyond)
    assert one.missing != third.missing


def test_a_class_that_is_never_found_has_nothing_missing() -> None:
    none, draws = [np.empty(0)] * 30, Draws.of(30, 30, 1, 0)
    for own in (none, [np.zeros(1)] * 30, [np.array([0.4])] * 30):
        for judged in (none, [np.array([0.5])] * 30):
            made = estimate(none, judged, own, draws)
            assert (made.missing, made.span.low, made.beyond) == (0, 0, 0)
            assert made.recall == (1 if own[0].any() else None)


def test_what_stands_out_is_missing_however_many_faint_detections_there_are() -> None:
    rng = np.random.default_rng(0)
    faint = [rng.uniform(0.001, 0.05, rng.poisson(200)) for _ in range(IMAGES + VAL)]
    gone = rng.uniform(0.2, 0.6, IMAGES)  # one an image
    audited = [np.append(some, score) for some, score in zip(faint[:IMAGES], gone, strict=True)]
    own = [rng.uniform(0.2, 0.6, 2) for _ in range(VAL)]
    made = estimate(audited, faint[IMAGES:], own, Draws.of(IMAGES, VAL, 1, 0))
    assert made.missing == pytest.approx(IMAGES, rel=0.1)
    assert made.span.low > IMAGES / 2
    assert made.span.high < IMAGES * 1.5
