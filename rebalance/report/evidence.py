"""What a few paired values can show: intervals, tests corrected for their number, seeds needed, gap closed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import nctdtr, stdtr, stdtrit

ALPHA = 0.05  # a comparison holds below this p-value; intervals are of 1 - ALPHA
POWER = 0.8  # chance with which `seeds` finds the difference, if it is what was seen
MOST_SEEDS = 100  # nobody trains more to settle one comparison
LEAST_GAP = 0.001  # a tenth of a point of mAP: the last digit shown


@dataclass(frozen=True)
class Stat:
    """Mean of n values, their standard deviation (n - 1) and the half-width of the mean's 95 % interval."""

    n: int
    mean: float
    std: float | None  # None for a single value, as `half`
    half: float | None

    @property
    def evidence(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        return self.half is not None and abs(self.mean) > self.half


@dataclass(frozen=True)
class Comparison:
    """A paired t-test among the several that share a baseline, corrected by Holm (1979).

    Attributes:
        p: of this comparison alone, two-sided.
        corrected: Holm's p-value.
        count: comparisons of the family.
        half: half-width of the interval at the level of Holm's step for this comparison; the interval leaves out 0
            exactly where `corrected` is below ALPHA.
        seeds: with which that interval would leave out 0 with a chance of POWER, were the mean and the spread those
            that were seen; None: more than MOST_SEEDS.
    """

    p: float
    corrected: float
    count: int
    half: float
    seeds: int | None

    @property
    def holds(self) -> bool:
        """Whether the difference survives the correction."""
        return self.corrected < ALPHA


@dataclass(frozen=True)
class Gap:
    """Share of the gap to complete labels that is closed, with Fieller's 95 % interval; none of a single run."""

    share: float
    low: float | None = None
    high: float | None = None


def stat(values: Sequence[float]) -> Stat:
    """Mean, standard deviation and 95 % interval of at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Stat(1, mean, None, None)
    std = statistics.stdev(values)
    return Stat(n, mean, std, quantile(n - 1, 1 - ALPHA) * std / math.sqrt(n))


def compare(family: Sequence[Stat]) -> list[Comparison]:
    """Return the test of each paired difference from one baseline; each has at least two seeds."""
    alone = [_p_value(change) for change in family]
    made: dict[int, Comparison] = {}
    corrected, step = 0.0, len(family)
    for rank, i in enumerate(sorted(range(len(family)), key=alone.__getitem__)):
        if corrected < ALPHA:  # no step has failed: later ones are tested at the level of the first that does
            step = len(family) - rank
        corrected = max(corrected, min(1.0, (len(family) - rank) * alone[i]))
        level, n = 1 - ALPHA / step, family[i].n
        half = quantile(n - 1, level) * (family[i].std or 0.0) / math.sqrt(n)
        made[i] = Comparison(alone[i], corrected, len(family), half, seeds_needed(family[i], level))
    return [made[i] for i in range(len(family))]


def _p_value(change: Stat) -> float:
    if not change.std:
        return 0.0 if change.mean else 1.0  # the seeds agree to the last digit
    return float(2 * stdtr(change.n - 1, -abs(change.mean) / (change.std / math.sqrt(change.n))))


def seeds_needed(change: Stat, level: float = 1 - ALPHA) -> int | None:
    """Return the seeds with which an interval of `level` leaves out 0, on the side of what was seen, with a chance of
    POWER; None: > MOST_SEEDS.

    The t statistic of n seeds is a non-central t of n - 1 degrees of freedom, about sqrt(n)·|mean| / std.
    """
    if not change.std:
        return 2 if change.mean else None
    size = abs(change.mean) / change.std
    within = ((n, nctdtr(n - 1, math.sqrt(n) * size, quantile(n - 1, level))) for n in range(2, MOST_SEEDS + 1))
    return next((n for n, chance in within if chance <= 1 - POWER), None)


def quantile(freedom: int, level: float = 1 - ALPHA) -> float:
    """Return t such that a Student t variable of so many degrees of freedom lies in [-t, t] with this probability."""
    return float(stdtrit(freedom, (1 + level) / 2))


def gap_closed(gained: Sequence[float], gap: Sequence[float]) -> Gap | None:
    """Return mean(gained) / mean(gap), of differences from one baseline, seed by seed.

    None where the gap is smaller than what is shown of it or within its interval: the ratio would be of noise, and
    Fieller's (1954) interval of it without an end.
    """
    own, whole = stat(gained), stat(gap)
    if whole.mean < LEAST_GAP or (whole.half is not None and not whole.evidence):
        return None
    share = own.mean / whole.mean
    if own.std is None or whole.std is None:
        return Gap(share)
    n = own.n
    factor = quantile(n - 1, 1 - ALPHA) ** 2 / n
    covariance = math.fsum((g - own.mean) * (d - whole.mean) for g, d in zip(gained, gap, strict=True)) / (n - 1)
    # the shares r for which mean(gained) - r·mean(gap) is within its interval: a·r² - 2·b·r + c <= 0
    a = whole.mean**2 - factor * whole.std**2
    b = own.mean * whole.mean - factor * covariance
    c = own.mean**2 - factor * own.std**2
    root = math.sqrt(max(0.0, b * b - a * c))
    return Gap(share, (b - root) / a, (b + root) / a)
