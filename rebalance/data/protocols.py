"""Rules that withhold boxes: the label protocols of the papers on incomplete labels.

Every box draws one uniform number, and of a group of boxes those with the smallest numbers go first. A protocol is what
a group is, and how many of its boxes go. So the same seed gives sets that lie inside one another, box for box:

* `percent` and `per_class` at a lower rate inside the same protocol at a higher one (with and without `keep_one`);
* `easy` inside `hard` inside `extreme`, and `keep_one_per_class` inside `extreme`.

Where some classes alone lose boxes, a protocol is of their boxes: `extreme` leaves an image one of them.

Counts are exact and rounded down: of n boxes in a group, rate p withholds floor(p·n), and `hard` floor(n / 2), so three
boxes lose one and a single box stays. Rounding down is also what Table 1 of Zhang et al. (BRL) implies for `hard` on
VOC: half of every image with several boxes would be 42.8 % of all, up 46.6 %, down 39.0 %, and they report 39.00 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebalance.data.labels import Labels
from rebalance.errors import ConfigError
from rebalance.settings import SparsifyFlags, convert

_Ids = NDArray[np.int64]
_Mask = NDArray[np.bool_]


def share(rate: float, count: int) -> int:
    """floor(rate · count), with the rate as it is written: 0.29 of 100 is 29, not 28."""
    return int(Fraction(str(float(rate))) * count)


# Name -> what the boxes of a group have in common (I: image, C: class), and how many of its n boxes go.
PROTOCOLS: dict[str, tuple[str, Callable[[float, int], int]]] = {
    "normal": ("", lambda rate, n: 0),
    "easy": ("I", lambda rate, n: min(1, n - 1)),
    "hard": ("I", lambda rate, n: n // 2),
    "extreme": ("I", lambda rate, n: n - 1),
    "percent": ("", share),
    "per_class": ("C", share),
    "keep_one_per_class": ("IC", lambda rate, n: n - 1),
}


def uses_rate(protocol: str) -> bool:
    """Whether the protocol withholds a given fraction of the boxes."""
    return protocol in ("percent", "per_class")


@dataclass(frozen=True, kw_only=True)
class Withhold:
    """The rule that withholds the boxes of a protocol; for `rebalance.data.derive`.

    Raises:
        ConfigError: an unknown protocol, a rate out of range, or `keep_one` with another protocol than `percent`.
    """

    protocol: str  # a name of `PROTOCOLS`
    rate: float = 0.5  # fraction withheld, 0 to 1; only `percent` and `per_class` look at it
    keep_one: bool = False  # `percent` only: the last box of an image stays, so less than asked may be reached
    classes: tuple[int, ...] = ()  # those that lose boxes; none: all
    seed: int | tuple[int, ...] = 0  # one number, or several, of the generator that gives every box its number

    def __post_init__(self) -> None:
        for name in ("protocol", "rate"):
            convert(SparsifyFlags, name, getattr(self, name))
        if self.keep_one and self.protocol != "percent":
            raise ConfigError(f"keep_one=True goes with protocol=percent, not with protocol={self.protocol}")

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of the rule; `asked` is None where the protocol has no rate."""
        asked = self.rate if uses_rate(self.protocol) else None
        some = {"only": list(self.classes)} if self.classes else {}
        return {"protocol": self.protocol, "asked": asked, "keep_one": self.keep_one, **some, "seed": self.seed}

    def __call__(self, files: Sequence[Labels]) -> list[tuple[Labels, Labels]]:
        """For the labels of every image those that stay and those that go; their order as in `masks`."""
        return [(found.pick(~mask), found.pick(mask)) for found, mask in zip(files, self.masks(files), strict=True)]

    def masks(self, files: Sequence[Labels]) -> list[_Mask]:
        """For the labels of every image which of its boxes go.

        The order of the files is part of the choice: sort them by something that is the same on every machine.
        """
        sizes = [len(found) for found in files]
        gone = self.gone(np.repeat(np.arange(len(files)), sizes), np.concatenate([found.classes for found in files]))
        return np.split(gone, np.cumsum(sizes)[:-1])

    def gone(self, image: _Ids, label: _Ids) -> _Mask:
        """Which boxes go, (n,), of boxes with these images (n,) and classes (n,)."""
        draw, gone = np.random.default_rng(self.seed).random(len(image)), np.zeros(len(image), np.bool_)
        asked = np.isin(label, self.classes) if self.classes else ~gone
        gone[asked] = self._chosen(image[asked], label[asked], draw[asked])
        return gone

    def _chosen(self, image: _Ids, label: _Ids, draw: NDArray[np.float64]) -> _Mask:
        """Which boxes go by their numbers, (n,)."""
        if self.keep_one:  # `percent` of what `extreme` would take; that does not depend on the rate, so nesting holds
            free = _smallest(image, draw, lambda n: n - 1)
            return free & _smallest(~free, draw, lambda n: share(self.rate, len(image)))
        groups, count = PROTOCOLS[self.protocol]
        keys = np.stack([image if "I" in groups else 0 * image, label if "C" in groups else 0 * label])
        group = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
        return _smallest(group, draw, lambda n: count(self.rate, n))


def _smallest(group: NDArray[Any], draw: NDArray[np.float64], count: Callable[[int], int]) -> _Mask:
    """(n,) whether a box is among the count(m) with the smallest numbers of its group of m boxes."""
    order = np.lexsort((draw, group))
    _, start, size = np.unique(group[order], return_index=True, return_counts=True)
    mask = np.empty(len(group), np.bool_)
    mask[order] = np.arange(len(group)) - np.repeat(start, size) < np.repeat([count(m) for m in size.tolist()], size)
    return mask
