"""Student's t, for intervals and tests of small samples; exact for whole degrees of freedom, so SciPy is not needed."""

from __future__ import annotations

import math
from functools import cache


@cache
def quantile(freedom: int, level: float = 0.95) -> float:
    """Return t such that a Student t variable lies in [-t, t] with probability `level`, in (0, 1).

    `freedom` is the number of values - 1, at least 1.
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"no t quantile at freedom={freedom}, level={level}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves pi/2 down to the spacing of floats
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def p_value(t: float, freedom: int) -> float:
    """Return the two-sided p-value of a t statistic, which may be infinite; `freedom` as in `quantile`."""
    if freedom < 1:
        raise ValueError(f"no t test at freedom={freedom}")
    return max(0.0, 1.0 - _inside(math.atan(abs(t) / math.sqrt(freedom)), freedom))


def _inside(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom)·tan(angle)); Abramowitz and Stegun (1964), equations 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    first = 1 if freedom % 2 else 0  # the powers of the cosine go first, first + 2, ... freedom - 2
    term, total = cosine**first, 0.0
    for power in range(first, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if first else sine * total
