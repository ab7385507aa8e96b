"""How likely it is that a label is missing where a detection is not explained, and how many labels are missing.

On images whose labels are complete (val), a detection that no label explains is false. So the same models give, for
each class, the number f(s) of false detections an image with score s. Among the N audited images they leave u(s)
detections unexplained. Of these N · f(s) are false; the others are labels that are missing:

    P(missing | class, s) = max(0, 1 − N · f(s) / u(s))

An image counts by the share of it in which the class is asked for: regions say of the other part that nothing follows
from a detection there.

made monotone: a higher score is no less likely. Isotonic regression on both kinds of detections at once (the audited
ones as 1, those of val as 0, with the weight of N over the images of val) gives q(s) = u / (u + N · f), from which
P = max(0, 2 − 1 / q).

It is 0 below the score down to which u exceeds N · f beyond chance, summed up from the highest score: by three standard
deviations, at the place where the sum less these is largest. Else each of thousands of faint detections would get a
little.

The estimate of a class is the sum of P over its suggestions. By itself that sum is too large: isotonic regression and
the choice of that score follow chance. So it is held against a count that chance cannot push up: of five parts of the
images each four say where to begin, and in the fifth u − N · f is counted from there. Where that count is lower, P
becomes the power of P, at least 1, whose sum it is: what is certain stays so, and what chance may have made goes first.
The interval, of 95 %, is that of the count over bootstrapped images, audited and val; its upper end counts from the
lowest score with P > 0 on.

It is a lower bound wherever the model was trained on the audited images with these labels: it has learnt that what is
not labelled is background. And labels that val lacks itself make f too high, and the estimate too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Shares = tuple[NDArray[np.float64], NDArray[np.float64]]
Scores = Sequence[NDArray[np.float64]]  # an entry an image: scores of the detections of one class that are unexplained

FEW_IMAGES = 20  # of val: with fewer there is no probability
PARTS = 5  # of the images; where counting begins in one is said by the others
FEW = 20  # labels of a class on val: with fewer there is none of that class
DEVIATIONS = 3.0  # standard deviations of chance by which more must be seen than is false
BOOTSTRAPS = 1000
_POWER, _HALVINGS = 5.0, 40  # largest logarithm of the power of a probability, and steps of the search for it
_LEVEL = 95  # per cent of the interval


@dataclass(frozen=True)
class Estimate:
    """What is missing of one class, or of all.

    Attributes:
        probability: of each audited detection, image by image.
        missing: how many labels are missing, the sum of the probabilities.
        low, high: interval of 95 %; the count may be below 0 by chance, these are not.
        start: from which score on there are missing labels beyond chance, infinity without any.
        draws: (2, BOOTSTRAPS) as `interval` takes them; those of several classes are added up.
    """

    probability: tuple[NDArray[np.float64], ...]
    missing: float
    low: float
    high: float
    draws: NDArray[np.float64]
    start: float = np.inf


class Interval(NamedTuple):
    """Of a count of missing labels, 95 %."""

    low: float
    high: float


def estimate(audited: Scores, judged: Scores, draw: Draws, shares: Shares | None = None) -> Estimate:
    """Estimate what is missing of a class.

    Args:
        audited: scores of the unexplained detections on each audited image.
        judged: the same on images with complete labels; of several models, one entry an image and model.
        draw: bootstrapped images, the same for all classes.
        shares: of each audited image and of each judged one the share in which the class is asked for; None: all.
            Their sums are above 0.
    """
    here, there = shares or (np.ones(len(audited)), np.ones(len(judged)))
    ratio = float(here.sum() / there.sum())
    fit = _fit(np.concatenate([np.empty(0), *audited]), np.concatenate([np.empty(0), *judged]), ratio)
    raw = [fit(scores) for scores in audited]
    fits = _fits(audited, judged, draw, ratio)
    starts = np.array([fit.start for fit in fits])
    seen, false = _counts(audited, starts[draw.audited_part]), _counts(judged, starts[draw.judged_part])
    count = float(seen.sum() - ratio * false.sum())
    shrunk = _shrunk(np.concatenate([np.empty(0), *raw]), max(0.0, count))
    lowest = min(fit.lowest for fit in fits)
    all_seen, all_false = (_counts(part, np.full(len(part), lowest)) for part in (audited, judged))
    ratios = (draw.audited @ here) / np.maximum(draw.judged @ there, 1e-9)
    draws = np.stack([draw.audited @ one - ratios * (draw.judged @ other)
                      for one, other in ((seen, false), (all_seen, all_false))])  # fmt: skip
    missing = float(shrunk.sum())
    parts = np.split(shrunk, np.cumsum([len(part) for part in raw])[:-1])
    return Estimate(tuple(parts), missing, *interval(draws, missing), draws, fit.start)


def interval(draws: NDArray[np.float64], missing: float) -> Interval:
    """The interval of a count from its bootstrapped values, (2, BOOTSTRAPS): for the lower end, for the upper end."""
    low = float(np.percentile(draws[0], (100 - _LEVEL) / 2))
    high = float(np.percentile(draws, (100 + _LEVEL) / 2, axis=1).max())
    return Interval(min(max(0.0, low), missing), max(high, missing))


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
    """What chance decides, the same for all classes: parts of the images, and how often each bootstrap takes each."""

    audited: NDArray[np.float64]  # (BOOTSTRAPS, images)
    judged: NDArray[np.float64]  # the same of the images of val, once more for each further model
    audited_part: NDArray[np.int64]  # (images,) of which part an image is
    judged_part: NDArray[np.int64]

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

        def parts(images: int) -> NDArray[np.int64]:
            return draw.permutation(images) % PARTS

        return Draws(
            taken(audited), np.tile(taken(judged), (1, models)), parts(audited), np.tile(parts(judged), models)
        )


def _shrunk(chances: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """The power of probabilities, at least 1, whose sum is the total; where none is so small, shrunk in proportion."""
    low, high = 0.0, _POWER  # of the logarithm
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if (chances ** np.exp(middle)).sum() > total else (low, middle)
    found = chances ** np.exp(low) if chances.sum() > total else chances
    return found * min(1.0, total / found.sum()) if found.any() else found


@dataclass(frozen=True)
class _Fit:
    """P by score: steps that rise."""

    at: NDArray[np.float64]  # scores, ascending
    value: NDArray[np.float64]  # P from there on
    start: float  # from which score on there are labels missing beyond chance
    lowest: float  # from which score on P is above 0 at all

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if not len(self.at):
            return np.zeros(len(scores))
        chance = self.value[np.clip(np.searchsorted(self.at, scores, "right") - 1, 0, None)]
        return np.where(scores < self.start, 0, chance)


def _fit(audited: NDArray[np.float64], judged: NDArray[np.float64], ratio: float) -> _Fit:
    from sklearn.isotonic import isotonic_regression  # half a second to import

    at, place = np.unique(np.concatenate([audited, judged]), return_inverse=True)
    if not len(at):
        return _Fit(at, at, np.inf, np.inf)
    seen, false = (np.bincount(part, minlength=len(at)) for part in np.split(place, [len(audited)]))
    weight = seen + ratio * false
    share = isotonic_regression(seen / weight, sample_weight=weight, increasing=True)
    value = np.maximum(0, 2 - 1 / np.maximum(share, 1e-12))
    above, false_above = (np.cumsum(part[::-1])[::-1] for part in (seen, false))  # of a score or more
    sure = above - ratio * false_above - DEVIATIONS * np.sqrt(above + ratio**2 * false_above)
    best = int(sure.argmax())
    return _Fit(at, value, float(at[best]) if sure[best] > 0 else np.inf, float(min(at[value > 0], default=np.inf)))


def _fits(audited: Scores, judged: Scores, draw: Draws, ratio: float) -> list[_Fit]:
    """For each part of the images what the other parts say."""

    def others(scores: Scores, parts: NDArray[np.int64], part: int) -> NDArray[np.float64]:
        return np.concatenate([np.empty(0), *(own for own, of in zip(scores, parts, strict=True) if of != part)])

    return [
        _fit(others(audited, draw.audited_part, part), others(judged, draw.judged_part, part), ratio)
        for part in range(PARTS)
    ]


def _counts(part: Scores, starts: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many detections each image has from its start on."""
    return np.array([(scores >= start).sum() for scores, start in zip(part, starts.tolist(), strict=True)], np.float64)
