"""How likely it is that a label is missing where a detection is not explained, and how many labels are missing.

On images whose labels are complete (val), a detection that no label explains is false. So the same models give, for
each class, the number f(s) of false detections an image with score s. Among the N audited images they leave u(s)
detections unexplained. Of these N · f(s) are false; the others are labels that are missing:

    P(missing | class, s) = max(0, 1 − N · f(s) / u(s))

made monotone: a higher score is no less likely. Isotonic regression on both kinds of detections at once (the audited
ones as 1, those of val as 0, with the weight of N over the images of val) gives q(s) = u / (u + N · f), from which
P = max(0, 2 − 1 / q).

The estimate of a class is the sum of P over its suggestions. By itself that sum is too large: isotonic regression
follows chance, and what is below 0 counts as 0, so that there is a sum even where nothing is missing. So it is held
against a count that chance cannot push up: the images are cut in two halves, each half says at which scores P > 0, and
in the other half u − N · f is counted there. Where that count is lower, P is shrunk by their ratio. The interval, of
95 %, is that of the count over bootstrapped images, audited and val.

It is a lower bound wherever the model was trained on the audited images with these labels: it has learnt that what is
not labelled is background. And labels that val lacks itself make f too high, and the estimate too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = Sequence[NDArray[np.float64]]  # an entry an image: scores of the detections of one class that are unexplained

FEW_IMAGES = 20  # of val: with fewer there is no probability
FEW = 20  # labels of a class on val: with fewer there is none of that class
LEAST = 0.02  # a smaller probability is taken for 0: many of them would make the count a sum of chances
BOOTSTRAPS = 1000
_LEVEL = 95  # per cent of the interval


@dataclass(frozen=True)
class Estimate:
    """What is missing of one class, or of all.

    Attributes:
        probability: of each audited detection, image by image.
        missing: how many labels are missing, the sum of the probabilities.
        low, high: interval of 95 %; the count may be below 0 by chance, these are not.
        draws: (BOOTSTRAPS,) the count over bootstrapped images, from which the interval of a sum of classes is made.
    """

    probability: tuple[NDArray[np.float64], ...]
    missing: float
    low: float
    high: float
    draws: NDArray[np.float64]


class Interval(NamedTuple):
    """Of a count of missing labels, 95 %."""

    low: float
    high: float


def estimate(audited: Scores, judged: Scores, draw: Draws) -> Estimate:
    """Estimate what is missing of a class.

    Args:
        audited: scores of the unexplained detections on each audited image.
        judged: the same on images with complete labels; of several models, one entry an image and model.
        draw: bootstrapped images, the same for all classes.
    """
    ratio = len(audited) / len(judged)
    fit = _fit(np.concatenate([np.empty(0), *audited]), np.concatenate([np.empty(0), *judged]), ratio)
    raw = [fit(scores) for scores in audited]
    seen, false = _counts(audited, judged, draw, ratio)
    count = float(seen.sum() - ratio * false.sum())
    total = float(sum(part.sum() for part in raw))
    shrink = min(1.0, max(0.0, count) / total) if total else 0.0
    draws = draw.audited @ seen - ratio * (draw.judged @ false)
    low, high = interval(draws)
    missing = shrink * total
    return Estimate(tuple(shrink * part for part in raw), missing, min(low, missing), max(high, missing), draws)


def interval(draws: NDArray[np.float64]) -> Interval:
    """The interval of a count from its bootstrapped values."""
    low, high = np.percentile(draws, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return Interval(max(0.0, float(low)), max(0.0, float(high)))


@dataclass(frozen=True)
class Draws:
    """What chance decides, the same for all classes: the two halves, and how often each bootstrap takes each image."""

    audited: NDArray[np.float64]  # (BOOTSTRAPS, images)
    judged: NDArray[np.float64]  # the same of the images of val, once more for each further model
    audited_half: NDArray[np.bool_]  # (images,)
    judged_half: NDArray[np.bool_]

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

        def half(images: int) -> NDArray[np.bool_]:
            return np.asarray(draw.permutation(images) % 2 == 0)

        return Draws(taken(audited), np.tile(taken(judged), (1, models)), half(audited), np.tile(half(judged), models))


class _Fit:
    """P by score: steps that rise."""

    def __init__(self, at: NDArray[np.float64], value: NDArray[np.float64]) -> None:
        self.at, self.value = at, value

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if not len(self.at):
            return np.zeros(len(scores))
        return np.asarray(self.value[np.clip(np.searchsorted(self.at, scores, "right") - 1, 0, None)], np.float64)


def _fit(audited: NDArray[np.float64], judged: NDArray[np.float64], ratio: float) -> _Fit:
    from sklearn.isotonic import isotonic_regression  # half a second to import

    scores = np.concatenate([audited, judged])
    at, place = np.unique(scores, return_inverse=True)
    seen, false = (np.bincount(part, minlength=len(at)) for part in np.split(place, [len(audited)]))
    weight = seen + ratio * false
    if not len(at):
        return _Fit(at, at)
    share = isotonic_regression(seen / weight, sample_weight=weight, increasing=True)
    value = 2 - 1 / np.maximum(share, 1e-12)
    return _Fit(at, np.where(value < LEAST, 0, value))


def _counts(
    audited: Scores, judged: Scores, draw: Draws, ratio: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many detections each audited image and each one of val has, at scores where the other half says P > 0."""
    seen, false = np.zeros(len(audited)), np.zeros(len(judged))
    sides = ((audited, draw.audited_half, seen), (judged, draw.judged_half, false))
    for half in (False, True):
        other_audited, other_judged = (
            np.concatenate([np.empty(0), *(scores for scores, of in zip(part, halves, strict=True) if of != half)])
            for part, halves, _ in sides
        )
        fit = _fit(other_audited, other_judged, ratio)
        for part, halves, counts in sides:
            for image in np.flatnonzero(halves == half).tolist():
                counts[image] = (fit(part[image]) > 0).sum()
    return seen, false
