"""Which boxes of a data set are withheld: the label protocols of the papers on incomplete labels.

Every box draws one uniform number, and every protocol is a fixed rule on these numbers: of a group, the boxes with the
smallest go first. So the same seed gives sets that lie inside one another, box for box:

* `percent` and `per_class` at a lower rate inside the same protocol at a higher one (with and without `keep_one`);
* `easy` inside `hard` inside `extreme`, and `keep_one_per_class` inside `extreme`.

Counts are exact and rounded down: of n boxes in a group, rate p withholds floor(p·n), and `hard` floor(n / 2), so three
boxes lose one and a single box stays. Rounding down is also what Table 1 of Zhang et al. (BRL) implies for `hard` on
VOC: half of every image with several boxes would be 42.8 % of all, up 46.6 %, down 39.0 %, and they report 39.00 %.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from rebalance.errors import ConfigError, nearest

_Ids = NDArray[np.int64]
_Mask = NDArray[np.bool_]


def withhold(
    image: _Ids,
    label: _Ids,
    *,
    protocol: str,
    rate: float = 0.5,
    keep_one: bool = False,
    rng: np.random.Generator,
) -> _Mask:
    """Choose the boxes that are withheld from training.

    Args:
        image: (n,) image of every box; any numbers, equal for boxes of one image. The order of the boxes is part of the
            choice, so sort them by something that is the same on every machine.
        label: (n,) class of every box.
        protocol: a name of `PROTOCOLS`.
        rate: fraction withheld, 0 to 1; only `percent` and `per_class` look at it.
        keep_one: `percent` only: the last box of an image stays, so less than asked may be reached.
        rng: gives one number a box.

    Returns:
        (n,) True for a withheld box.

    Raises:
        ConfigError: an unknown protocol, a rate out of range, or `keep_one` with another protocol than `percent`.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol={protocol} is not one of {', '.join(PROTOCOLS)}{nearest(protocol, PROTOCOLS)}")
    if not 0 <= rate <= 1:
        raise ConfigError(f"rate={rate} is out of range: 0 to 1")
    if keep_one and protocol != "percent":
        raise ConfigError(f"keep_one=True goes with protocol=percent, not with protocol={protocol}")
    draw = rng.random(len(image))
    if keep_one:
        return _percent_keep_one(image, draw, rate)
    return PROTOCOLS[protocol](image, label, draw, rate)


def uses_rate(protocol: str) -> bool:
    """Whether the protocol withholds a given fraction of the boxes."""
    return protocol in ("percent", "per_class")


def share(rate: float, count: int) -> int:
    """floor(rate · count), with the rate as it is written: 0.29 of 100 is 29, not 28."""
    return int(Fraction(str(float(rate))) * count)


def _place(group: _Ids, draw: NDArray[np.float64]) -> tuple[_Ids, _Ids]:
    """(n,) place of every box in its group by draw, from 0, and (n,) size of its group."""
    order = np.lexsort((draw, group))
    _, start, inverse, size = np.unique(group[order], return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(group), dtype=np.int64)
    place[order] = np.arange(len(group)) - start[inverse]
    sizes = np.empty(len(group), dtype=np.int64)
    sizes[order] = size[inverse]
    return place, sizes


def _normal(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    return np.zeros(len(image), dtype=np.bool_)


def _easy(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    place, size = _place(image, draw)
    gone: _Mask = (place == 0) & (size > 1)
    return gone


def _hard(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    place, size = _place(image, draw)
    return place < size // 2


def _extreme(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    place, size = _place(image, draw)
    return place < size - 1


def _percent(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    return _per_class(image, np.zeros_like(label), draw, rate)


def _percent_keep_one(image: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    """`percent` among the boxes that `extreme` would take; that set does not depend on the rate, so nesting holds."""
    free = _extreme(image, image, draw, rate)
    place, _ = _place((~free).astype(np.int64), draw)
    return free & (place < share(rate, len(image)))


def _per_class(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    place, size = _place(label, draw)
    share_of = {int(n): share(rate, int(n)) for n in np.unique(size)}
    return place < np.array([share_of[n] for n in size.tolist()], dtype=np.int64)


def _keep_one_per_class(image: _Ids, label: _Ids, draw: NDArray[np.float64], rate: float) -> _Mask:
    pairs = np.unique(np.stack((image, label)), axis=1, return_inverse=True)[1].reshape(-1)
    return _extreme(pairs, label, draw, rate)


PROTOCOLS: dict[str, Callable[[_Ids, _Ids, NDArray[np.float64], float], _Mask]] = {
    "normal": _normal,  # none
    "easy": _easy,  # one box of every image that has more
    "hard": _hard,  # half of the boxes of every image
    "extreme": _extreme,  # all but one box of every image
    "percent": _percent,  # a fraction of all boxes
    "per_class": _per_class,  # a fraction of each class
    "keep_one_per_class": _keep_one_per_class,  # all but one box of each class of every image
}
