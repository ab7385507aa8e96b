"""How likely it is that a label is missing where a detection is not explained, and how many labels are missing.

On images whose labels are complete (val), a detection that no label explains is false. So the same models give, for
each class, the number f(s) of false detections an image with score s. Among the N audited images they leave u(s)
detections unexplained. Of these N · f(s) are false; the others are labels that are missing:

    P(missing | class, s) = max(0, 1 − N · f(s) / u(s))

made monotone: a higher score is no less likely. Isotonic regression on both kinds of detections at once (the audited
ones as 1, those of val as 0, with the weight of N over the images of val) gives q(s) = u / (u + N · f), from which
P = max(0, 2 − 1 / q).

An image counts by the share of it in which the class is asked for: regions say of the other part that nothing follows
from a detection there.

A detection on an object of another class is explained where that has its label, as all have on val, and not where the
label is missing. So f has those of val too, each with a weight: of that other class the labels that are missing, as
they are estimated, for each one of val. Estimates and weights follow from each other, and are found in turns.

P is 0 below the score from which on missing labels would stand out most: where, if as many were missing as val has,
what is seen of them would exceed what is false by the most standard deviations. The labels of val and the scores with
which they are found say where that is, and the audited detections have no say in it. Else each of thousands of faint
detections would get a little. And all is 0 where what is seen from there on does not exceed what is false beyond
chance, by three standard deviations.

The estimate of a class is the sum of P over its suggestions. By itself that sum is too large, since isotonic regression
follows chance. So it is held against the count u − N · f from that score on. Where that count is lower, P becomes the
power of P, at least 1, whose sum it is: what is certain stays so, and what chance may have made goes first.

What the models do not find, or with lower scores, is in no sum. On val they find a share of the labels from that score
on, their recall; the estimate divided by it is that of all missing labels, as far as those are found as often as val's.
The intervals, of 95 %, are those of both over bootstrapped images, audited and val.

It is a lower bound wherever the model was trained on the audited images with these labels: it has learnt that what is
not labelled is background. And labels that val lacks itself make f too high, and the estimate too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Shares = tuple[NDArray[np.float64], NDArray[np.float64]]
Scores = Sequence[NDArray[np.float64]]  # an entry an image: scores of the detections of one class that are unexplained

FEW_IMAGES = 20  # of val: with fewer there is no probability
FEW = 20  # labels of a class on val: with fewer there is none of that class
DEVIATIONS = 3.0  # standard deviations of chance by which more must be seen than is false
BOOTSTRAPS = 1000
_POWER, _HALVINGS = 5.0, 40  # largest logarithm of the power of a probability, and steps of the search for it
_LEVEL = 95  # per cent of the interval


class Interval(NamedTuple):
    """Of a count of missing labels, 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """What is missing of one class, or of all.

    Attributes:
        probability: of each audited detection, image by image.
        missing: how many of the missing labels are found, the sum of the probabilities.
        beyond: how many are missing, with those that are not found.
        span, span_beyond: intervals of 95 % of both; a count may be below 0 by chance, these are not.
        draws: (2, BOOTSTRAPS) both counts over bootstrapped images; those of several classes are added up.
        recall: share of val's labels that is found from the start on.
        start: score from which on missing labels are looked for.
    """

    probability: tuple[NDArray[np.float64], ...]
    missing: float
    beyond: float
    draws: NDArray[np.float64]
    recall: float | None = None
    start: float = np.inf

    @property
    def span(self) -> Interval:
        return _interval(self.draws[0], self.missing)

    @property
    def span_beyond(self) -> Interval:
        return _interval(self.draws[1], self.beyond)


def estimate(
    audited: Scores,
    judged: Scores,
    own: Scores,
    draw: Draws,
    shares: Shares | None = None,
    weights: Scores | None = None,
) -> Estimate:
    """Estimate what is missing of a class.

    Args:
        audited: scores of the unexplained detections on each audited image.
        judged: the same on images with complete labels; of several models, one entry an image and model.
        own: of each label on those the score with which it is found, 0 where it is not.
        draw: bootstrapped images, the same for all classes.
        shares: of each audited image and of each judged one the share in which the class is asked for; None: all.
            Their sums are above 0.
        weights: of each judged detection, as how many it counts; None: each as one.
    """
    here, there = shares or (np.ones(len(audited)), np.ones(len(judged)))
    weights = weights or [np.ones(len(part)) for part in judged]
    ratio = float(here.sum() / there.sum())
    every, false_ones, weight, labels = (
        np.concatenate([np.empty(0), *part]) for part in (audited, judged, weights, own)
    )
    start = _start(labels, false_ones, weight, ratio)
    seen, found = (_count(part, start) for part in (audited, own))
    false = np.array([of[part >= start].sum() for part, of in zip(judged, weights, strict=True)])
    count = float(seen.sum() - ratio * false.sum())
    chances, above = np.zeros(len(every)), every >= start
    if count >= DEVIATIONS * _deviation(seen.sum(), false.sum(), ratio):
        wrong = false_ones >= start
        chances[above] = _shrunk(_fit(every[above], false_ones[wrong], ratio * weight[wrong]), count)
    missing, recall = float(chances.sum()), float(found.sum() / max(1, len(labels))) or None

    ratios = (draw.audited @ here) / np.maximum(draw.judged @ there, 1e-9)
    counts = draw.audited @ seen - ratios * (draw.judged @ false)
    of_labels = draw.judged @ np.array([len(part) for part in own], np.float64)
    recalls = (draw.judged @ found) / np.maximum(of_labels, 1)
    draws = np.stack([counts, counts / np.maximum(recalls, (recall or 1) / 10)])  # no draw has as good as no recall
    parts = np.split(chances, np.cumsum([len(part) for part in audited])[:-1])
    return Estimate(tuple(parts), missing, missing / (recall or 1), draws, recall, start)


def _interval(draws: NDArray[np.float64], middle: float) -> Interval:
    """The interval of a count from its bootstrapped values."""
    low, high = (float(np.percentile(draws, 50 + sign * _LEVEL / 2)) for sign in (-1, 1))
    return Interval(min(max(0.0, low), middle), max(high, middle))


def right(audited: Scores, judged: Scores, least: float, shares: Shares) -> float | None:
    """Of the audited detections from a score on the share that is not false, by those of val and one more.

    That one stands for what so few images do not show: from one image without a false detection nothing follows.

    Args:
        audited, judged, shares: as those of `estimate`; the sums may be 0.
        least: the score.

    Returns:
        A share, None where there is no such detection.
    """
    seen, false = (int(sum((scores >= least).sum() for scores in part)) for part in (audited, judged))
    if not seen:
        return None
    here, there = map(np.sum, shares)
    return max(0.0, 1 - float(here / there) * (false + 1) / seen) if there else 0.0


@dataclass(frozen=True)
class Draws:
    """How often each bootstrap takes each image, the same for all classes."""

    audited: NDArray[np.float64]  # (BOOTSTRAPS, images)
    judged: NDArray[np.float64]  # the same of the images of val, once more for each further model

    @staticmethod
    def of(audited: int, judged: int, models: int, seed: int) -> Draws:
        """Drawn anew.

        Args:
            audited: images.
            judged: images of val.
            models: that saw each of those; the entries of one model come after those of another.
            seed: of the draws.
        """
        draw = np.random.default_rng([seed, audited, judged])

        def taken(images: int) -> NDArray[np.float64]:
            return draw.multinomial(images, np.full(images, 1 / images), BOOTSTRAPS).astype(np.float64)

        return Draws(taken(audited), np.tile(taken(judged), (1, models)))


def _shrunk(chances: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """The power of probabilities, at least 1, whose sum is the total; where none is so small, shrunk in proportion."""
    low, high = 0.0, _POWER  # of the logarithm
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if (chances ** np.exp(middle)).sum() > total else (low, middle)
    found = chances ** np.exp(low) if chances.sum() > total else chances
    return found * min(1.0, total / found.sum()) if found.any() else found


def _deviation(seen: Any, false: Any, ratio: float) -> Any:
    """Of seen − ratio · false by chance, with one more false one than there are: of none nothing follows."""
    return np.sqrt(seen + ratio**2 * (false + 1))


def _start(own: NDArray[np.float64], false: NDArray[np.float64], weight: NDArray[np.float64], ratio: float) -> float:
    """From which score on missing labels stand out most, if as many are missing as are labelled on val; see above."""
    at = np.unique(own[own > 0])
    if not len(at):
        return np.inf
    labels, wrong = (_above(*part, at) for part in ((own, np.ones(len(own))), (false, weight)))
    apart = ratio * labels / _deviation(ratio * (labels + wrong), wrong, ratio)
    return float(at[apart.argmax()])


def _above(scores: NDArray[np.float64], weight: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the scores from each of some on, summed."""
    order = np.argsort(scores)
    sums = np.concatenate([[0.0], np.cumsum(weight[order])])
    found: NDArray[np.float64] = sums[-1] - sums[np.searchsorted(scores[order], at)]
    return found


def _fit(audited: NDArray[np.float64], judged: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """P of each audited detection, which rises with the score; a judged one stands for `weight` audited ones."""
    from sklearn.isotonic import isotonic_regression  # half a second to import

    at, place = np.unique(np.concatenate([audited, judged]), return_inverse=True)
    of_seen, of_false = np.split(place, [len(audited)])
    seen = np.bincount(of_seen, minlength=len(at))
    every = seen + np.bincount(of_false, weight, minlength=len(at))
    some = every > 0  # one that counts as none says nothing
    share = np.zeros(len(at))
    share[some] = isotonic_regression(seen[some] / every[some], sample_weight=every[some], increasing=True)
    value = np.maximum(0, 2 - 1 / np.maximum(share, 1e-12))
    found: NDArray[np.float64] = value[place[: len(audited)]]
    return found


def _count(part: Scores, start: float) -> NDArray[np.float64]:
    """How many detections of each image have at least this score."""
    return np.array([(scores >= start).sum() for scores in part], np.float64)
