"""Label noise besides missing boxes: extra boxes, displaced boxes, wrong classes.

The kinds are those of Figure 1 of Adhikari et al. 2021 ("Effect of Label Noise on Robustness of Deep Neural Network
Object Detectors"), of which the paper itself runs missing boxes alone, and of UNA (Ryoo et al. 2023).

For each kind every box draws one uniform number, and what would become of it: where it would be displaced to, which
class it would get. A rate says how many boxes it happens to, those with the smallest numbers. The draws of a kind know
nothing of the other kinds and rates, so with one seed what a lower rate changes is inside what a higher one changes, to
the last digit, whatever else is asked.

* `jitter` moves the four edges of a box along a random direction until its IoU with the true one is a number drawn from
  the range; the box stays within the image.
* `class_flip` gives a box one of the other classes, each as likely.
* `extra` adds boxes of nothing: each has the size and class of a box drawn from the whole set, and lies anywhere in an
  image that has a label file, where it touches no box, neither a label nor a withheld one.

All is computed in fractions of the image: an IoU is the same in them as in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebalance.data import lines
from rebalance.data.boxes import Boxes, iou, xyxy
from rebalance.data.labels import Labels
from rebalance.data.protocols import share
from rebalance.errors import ConfigError, DataError
from rebalance.settings import NoiseFlags, convert

KINDS = ("extra", "jitter", "class_flip")

_TRIES = 100  # places that are tried for an extra box, each in an image of its own, before it is given up
_HALVINGS = 50  # of the way of a displaced box: as exact as its numbers are


class Noisy(NamedTuple):
    """What noise makes of a label file."""

    labels: Labels  # every box, in the same order, as it is after noise; the file's own labels where none changed
    extra: Labels  # boxes of nothing
    jitter: NDArray[np.bool_]  # (n,) which boxes were displaced
    class_flip: NDArray[np.bool_]  # (n,) which boxes got another class


class File(NamedTuple):
    """A label file that noise may change."""

    labels: Labels
    carried: Labels  # boxes that were withheld from it before
    extendable: bool  # it is there and can be read: somebody looked at its images


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The rates of each kind, fractions of the boxes; for `rebalance.data.derive`.

    Raises:
        ConfigError: a rate out of range, or a range of IoU that is none.
    """

    extra: float = 0.0
    jitter: float = 0.0
    class_flip: float = 0.0
    jitter_iou: str = "[0.5,0.9]"
    seed: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        for name in KINDS:
            convert(NoiseFlags, name, getattr(self, name))
        iou_range(self.jitter_iou)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(getattr(self, kind) for kind in KINDS)

    def require_meaning(self, classes: int) -> None:
        """Raise DataError where another class is asked for and a data set has so few that there is none."""
        if self.class_flip and classes < 2:
            raise DataError(
                f"class_flip={self.class_flip:g} has no meaning in a data set of one class; class_flip=0 leaves it out"
            )

    def __call__(self, files: Sequence[File], *, classes: int, keypoints: tuple[int, int] = (0, 0)) -> list[Noisy]:
        """What becomes of each file; their order is part of the choice, as in `protocols.Withhold`.

        Args:
            files: of the training split.
            classes: number of classes of the data set.
            keypoints: `kpt_shape` of a pose data set.

        Raises:
            DataError: another class is asked for where there is only one.
        """
        self.require_meaning(classes)
        sizes = [len(file.labels) for file in files]
        ends = np.cumsum(sizes)[:-1]
        true = np.concatenate([xyxy(file.labels) for file in files])
        label = np.concatenate([file.labels.classes for file in files])
        moved = self._displaced(true)
        size = true[:, 2:] - true[:, :2]
        jitter = self._drawn("jitter", size.min(1, initial=np.inf) > 0)  # a box without area has no IoU
        flip = self._drawn("class_flip", np.ones(len(true), np.bool_))
        step = self._generator("class_flip", 1).integers(1, max(classes, 2), len(true))
        boxes, label_after = np.where(jitter[:, None], moved, true), np.where(flip, (label + step) % classes, label)
        extras = self._extra(files, true, label, np.split(moved, ends), keypoints)
        made = []
        for file, extra, *parts in zip(
            files, extras, *(np.split(x, ends) for x in (boxes, label_after, jitter, flip)), strict=True
        ):
            to, classes_to, moves, flips = parts
            labels = lines.changed(file.labels, to, classes_to, moves, flips, keypoints)
            made.append(Noisy(labels, extra, moves, flips))
        return made

    def _generator(self, kind: str, use: int = 0) -> np.random.Generator:
        """Random numbers of a kind, apart from those of the others and of `Withhold`."""
        seed = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        return np.random.default_rng([*seed, 1 + KINDS.index(kind), use])

    def _drawn(self, kind: str, possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which boxes (n,) a kind happens to."""
        draw = np.where(possible, self._generator(kind).random(len(possible)), np.inf)
        chosen = np.zeros(len(possible), np.bool_)
        chosen[np.argsort(draw, kind="stable")[: share(getattr(self, kind), len(possible))]] = True
        return chosen & possible

    def _displaced(self, true: Boxes) -> Boxes:
        """Where each box would go."""
        generator = self._generator("jitter", 1)
        low, high = iou_range(self.jitter_iou)
        target = generator.uniform(low, high, len(true))
        way = generator.uniform(-1, 1, (len(true), 4))
        way /= np.abs(way).max(1, keepdims=True, initial=1e-9)  # at distance 1 an edge has moved by the box's own size
        size = np.tile(true[:, 2:] - true[:, :2], 2)

        def at(distance: NDArray[np.float64], way: Boxes) -> Boxes:
            return np.clip(true + distance[:, None] * way * size, 0, 1)

        # Growing by an edge alone has IoU 1 / (1 + distance), unless the image ends before. Then the way back is taken:
        # on that the edge that moves most moves inwards, and at distance 1 nothing is left.
        far: NDArray[np.float64] = np.full(len(true), 1 / low)
        back = iou(true, at(far, way)) > target
        way[back], far[back] = -way[back], 1.0
        near: NDArray[np.float64] = np.zeros(len(true))
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            over = iou(true, at(middle, way)) > target
            near, far = np.where(over, middle, near), np.where(over, far, middle)
        return at(near, way)

    def _extra(
        self,
        files: Sequence[File],
        true: Boxes,
        label: NDArray[np.int64],
        moved: Sequence[Boxes],
        keypoints: tuple[int, int],
    ) -> list[Labels]:
        """Boxes of nothing, by file; neither where a box is, nor where it would be displaced to."""
        generator, rows = self._generator("extra"), [list[tuple[int, Boxes]]() for _ in files]
        places = [i for i, file in enumerate(files) if file.extendable]
        taken = {i: np.concatenate([xyxy(files[i].labels), moved[i], xyxy(files[i].carried)]) for i in places}
        count = share(self.extra, len(true)) if places else 0
        for box in generator.integers(len(true), size=len(true))[:count] if count else ():
            own = np.random.default_rng(generator.integers(2**63))  # so that a box draws as often as it needs to
            size = np.minimum(true[box, 2:] - true[box, :2], 1)
            for _ in range(_TRIES):
                place = places[own.integers(len(places))]
                corner = own.random(2) * (1 - size)
                found, others = np.concatenate([corner, corner + size]), taken[place]
                if not ((found[:2] < others[:, 2:]) & (others[:, :2] < found[2:])).all(1).any():
                    taken[place] = np.concatenate([others, found[None]])
                    rows[place].append((int(label[box]), found))
                    break
        return [lines.written(own, file.labels, keypoints) for own, file in zip(rows, files, strict=True)]


def iou_range(text: str) -> tuple[float, float]:
    """The two numbers of a text such as [0.5,0.9].

    Raises:
        ConfigError: it is no range within 0 to 1.
    """
    try:
        low, high = map(float, text.strip().removeprefix("[").removesuffix("]").split(","))
        if 0.01 <= low <= high <= 1:
            return low, high
    except ValueError:
        pass
    raise ConfigError(f"jitter_iou={text} is not a range of IoU such as [0.5,0.9], within 0.01 to 1")
