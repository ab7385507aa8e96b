"""What detections and labels of a data set say together: suggestions, and an estimate of what is missing of each class.

No model is called here: all comes from what was found on the training images and on val.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rebalance.audit import probability
from rebalance.audit.explain import Boxes, Detections, Explained, explain, nearest
from rebalance.audit.probability import FEW, FEW_IMAGES, Draws, Estimate, Scores, Shares
from rebalance.audit.table import Box, Near, Suggestion, sort
from rebalance.data import regions
from rebalance.data.boxes import xywh
from rebalance.data.labels import Labels
from rebalance.data.regions import Regions

FALLBACK = 0.25  # of the threshold: from that score on a detection is suggested whatever its probability is
_TURNS = 8  # in which estimates and what they say of one another are found, at most
_SHOWN = 5e-5  # the least probability that is not 0 in the table


@dataclass(frozen=True)
class Image:
    """An image and what is said of it."""

    path: str
    name: str  # as in the table
    labels: Labels
    known: Regions


@dataclass(frozen=True)
class Look:
    """An image as a model saw it, held against its labels; all in pixels."""

    image: Image
    size: tuple[int, int]  # width and height
    found: Detections
    boxes: Boxes  # of the labels
    explained: Explained


@dataclass(frozen=True)
class Class:
    """What an audit says of a class.

    Attributes:
        labels: how many it has.
        how: probability; threshold where too little is known for that; unknown where a model does not know the class.
        threshold: the median score of its labels that were found, None where none was. Without probability, a
            detection of that score is as sure as half of the labels.
        estimate: of what is missing, None without probability.
        why: without probability, what is not known enough.
        right: of what is found at the threshold or above and no label explains, the share that val does not expect to
            be false; None where nothing is found.
    """

    labels: int
    how: str
    threshold: float | None
    estimate: Estimate | None = None
    why: str = ""
    right: float | None = None


@dataclass(frozen=True)
class Findings:
    """What an audit found."""

    suggestions: list[Suggestion]  # in the order of the table
    classes: Mapping[int, Class]
    total: Estimate | None  # of all classes with an estimate; without probabilities, which the suggestions have
    silent: int  # detections about which regions, or unknown_below, say that nothing follows from them


def look(image: Image, size: tuple[int, int], found: Detections, unknown_below: int) -> Look:
    """Hold what was found on an image against its labels.

    Args:
        image: the image.
        size: width and height in pixels.
        found: what a model found.
        unknown_below: objects of a smaller size, in pixels, were not labelled.
    """
    boxes = image.labels.boxes_xyxy(*size)
    told = regions.told(image.known, found.classes, xywh(found.boxes / (*size, *size)).astype(np.float32))
    held = explain(found, boxes, image.labels.classes, told.unknown | told.background, unknown_below)
    return Look(image, size, found, boxes, held)


def findings(
    names: Mapping[int, str],
    audited: Sequence[Look],
    judged: Sequence[Sequence[Look]],
    known: frozenset[int],
    seed: int,
) -> Findings:
    """Tell what is missing.

    Args:
        names: classes by number.
        audited: each training image once.
        judged: the images of val as each model saw them, in one order.
        known: classes that all models know.
        seed: of the intervals.
    """
    draws = Draws.of(len(audited), len(judged[0]), len(judged), seed)
    labels = Counter(number for one in audited for number in one.image.labels.classes.tolist())
    thresholds = {number: _threshold(audited, number) for number in names}
    every = [one for looks in judged for one in looks]
    missing, false = ([_missing(one, thresholds) for one in looks] for looks in (audited, every))
    asked, of_val = (np.array([regions.unsaid(one.image.known) for one in looks]) for looks in (audited, judged[0]))
    judging = np.tile(of_val, (len(judged), 1))  # (images, C), as `asked`
    chances = [np.full(len(some), np.nan) for some in missing]  # of each suggestion; NaN: there is none
    confused = [_confused(one) for one in every]
    classes: dict[int, Class] = {}
    evidence: dict[int, _Evidence] = {}
    masks: dict[int, list[NDArray[np.bool_]]] = {}  # of each image which suggestions are of a class
    for number in names:
        shares = asked[:, number], judging[:, number]
        how, right = "unknown" if number not in known else "threshold", None
        own = _own(every, number)
        why = "the model does not know it" if number not in known else _why_not(own, len(judged), shares)
        here, there = ([one.found.classes[some] == number for one, some in zip(*part, strict=True)]
                       for part in ((audited, missing), (every, false)))  # fmt: skip
        seen, wrong = _scores(audited, missing, here), _scores(every, false, there)
        if not why:
            how, masks[number] = "probability", here
            evidence[number] = _Evidence(seen, wrong, [of.get(number, _NONE) for of in confused], own, shares)
        elif (limit := thresholds[number]) is not None:
            right = probability.right(seen, wrong, limit, shares)
        classes[number] = Class(labels[number], how, thresholds[number], None, why, right)
    for number, made in _estimates(evidence, draws).items():
        classes[number] = replace(classes[number], estimate=made)
        for chance, mask, found in zip(chances, masks[number], made.probability, strict=True):
            chance[mask] = found
    rows = [
        row
        for one, some, chance in zip(audited, missing, chances, strict=True)
        for row in (*_rows_missing(names, one, some, chance, classes), *_rows_apart(names, one, thresholds))
    ]
    return Findings(sort(rows), classes, _total(classes), sum(one.explained.silent for one in audited))


class _Confused(NamedTuple):
    """Detections of a class, on an image, that a label of another class alone explains."""

    scores: NDArray[np.float64]
    labels: list[int]  # classes of the labels


_NONE = _Confused(np.empty(0), [])


class _Evidence(NamedTuple):
    """What is known of a class: arguments of `probability.estimate`."""

    audited: Scores
    judged: Scores
    other: Sequence[_Confused]  # of each judged image
    own: Scores
    shares: Shares

    @property
    def labels(self) -> int:
        """Of val, once for each model."""
        return sum(map(len, self.own))

    def estimate(self, draws: Draws, missing: Mapping[int, float]) -> Estimate:
        """Of a class; of the others so many labels are missing for each one of val."""
        ratio = self.shares[0].sum() / self.shares[1].sum()
        weights = [
            np.concatenate([np.ones(len(false)), [missing.get(number, 0.0) / ratio for number in other.labels]])
            for false, other in zip(self.judged, self.other, strict=True)
        ]
        judged = [np.concatenate([false, other.scores]) for false, other in zip(self.judged, self.other, strict=True)]
        return probability.estimate(self.audited, judged, self.own, draws, self.shares, weights)


def _confused(one: Look) -> dict[int, _Confused]:
    """By the class of the detections."""
    detections, labels = one.explained.other.T
    found, classes = one.found.classes[detections], one.image.labels.classes[labels]
    return {
        number: _Confused(one.found.scores[detections[found == number]], classes[found == number].tolist())
        for number in {*found.tolist()}
    }


def _estimates(evidence: Mapping[int, _Evidence], draws: Draws) -> dict[int, Estimate]:
    """Of each class; in turns, see `rebalance.audit.probability`."""
    made: dict[int, Estimate] = {}
    missing = dict.fromkeys(evidence, 0.0)  # labels of a class, for each one of val
    again = [*evidence]
    for _ in range(_TURNS):
        made |= {number: evidence[number].estimate(draws, missing) for number in again}
        now = {number: one.beyond / evidence[number].labels for number, one in made.items()}
        moved = sum(abs(now[number] - missing[number]) * evidence[number].labels for number in now)
        again = [number for number, own in evidence.items() if any(other.labels for other in own.other)]
        if moved < 1 or not again:
            break
        missing = now
    return made


def _own(looks: Sequence[Look], number: int) -> list[NDArray[np.float64]]:
    """Of each image the scores with which its labels of a class are found, 0 where none is."""
    return [one.explained.own[one.image.labels.classes == number] for one in looks]


def _why_not(own: Scores, models: int, shares: Shares) -> str:
    """Why there is no probability of a class, '' where there is one.

    Args:
        own: of val's labels of the class, as of `probability.estimate`.
        models: how many.
        shares: as of `probability.estimate`.
    """
    images, labels, (here, there) = len(own) // models, np.concatenate(own), map(np.sum, shares)
    if images < FEW_IMAGES:
        return f"val has {images} image{'s' * (images != 1)}"
    if not here:
        return "regions say of all training images that nothing follows from what is found"
    if there < FEW_IMAGES * models:
        return f"regions leave fewer than {FEW_IMAGES} images of val in which they were labelled"
    if len(labels) < FEW * models:
        return f"val has fewer than {FEW} labels of them"
    return "" if (labels > 0).any() else "no model finds any of val's labels of them"


def _scores(
    looks: Sequence[Look], some: Sequence[NDArray[np.int64]], masks: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.float64]]:
    return [one.found.scores[these[mask]] for one, these, mask in zip(looks, some, masks, strict=True)]


def _threshold(looks: Sequence[Look], number: int) -> float | None:
    """The median score with which labels of a class are found."""
    found = np.concatenate([np.empty(0), *_own(looks, number)])
    found = found[found > 0]
    return float(np.median(found)) if len(found) else None


def _placed(one: Look, thresholds: Mapping[int, float | None]) -> NDArray[np.int64]:
    """(k, 2) detection and label that is badly placed: the detection is as sure as half of those of labels."""
    sure = [
        (limit := thresholds[int(one.found.classes[detection])]) is not None and one.found.scores[detection] >= limit
        for detection, _ in one.explained.placed.tolist()
    ]
    return one.explained.placed[np.array(sure, np.bool_)]


def _missing(one: Look, thresholds: Mapping[int, float | None]) -> NDArray[np.int64]:
    """Detections that nothing explains, without those that say where a badly placed label belongs."""
    missing = one.explained.missing
    return missing[~np.isin(missing, _placed(one, thresholds)[:, 0])]


def _rows_missing(
    names: Mapping[int, str],
    one: Look,
    some: NDArray[np.int64],
    chance: NDArray[np.float64],
    classes: Mapping[int, Class],
) -> list[Suggestion]:
    rows = []
    for detection, p in zip(some.tolist(), chance.tolist(), strict=True):
        number, score = int(one.found.classes[detection]), float(one.found.scores[detection])
        limit = classes[number].threshold
        near_labels = limit is not None and score >= FALLBACK * limit
        if p >= _SHOWN or near_labels:  # NaN, that there is none, is no number above another
            row = _row(names, one, "missing", number, one.found.boxes[detection], score)
            rows.append(replace(row, probability=None if p != p else round(p, 4)))
    return rows


def _rows_apart(names: Mapping[int, str], one: Look, thresholds: Mapping[int, float | None]) -> list[Suggestion]:
    """Suggestions about the labels that are there."""
    rows = []
    for kind, pairs in (("wrong_class", one.explained.wrong), ("badly_placed", _placed(one, thresholds))):
        for detection, label in pairs.tolist():
            number, score = int(one.found.classes[detection]), float(one.found.scores[detection])
            rows.append(_row(names, one, kind, number, one.found.boxes[detection], score, label))
    for label in one.explained.spurious.tolist():
        number = int(one.image.labels.classes[label])
        if thresholds[number] is not None:  # of a class that no model finds nothing follows
            rows.append(_row(names, one, "spurious", number, one.boxes[label], 0.0, label))
    return rows


def _row(
    names: Mapping[int, str], one: Look, kind: str, number: int, box: Boxes, score: float, label: int | None = None
) -> Suggestion:
    near = nearest(box, one.boxes, label)
    told = near and Near(near[0], int(one.image.labels.classes[near[0]]), _box(one.boxes[near[0]]), round(near[1], 4))
    return Suggestion(one.image.name, kind, number, names[number], _box(box), round(score, 5), None, told)


def _box(box: Boxes) -> Box:
    x1, y1, x2, y2 = (round(side, 2) for side in box.tolist())
    return x1, y1, x2, y2


def _total(classes: Mapping[int, Class]) -> Estimate | None:
    made = [row.estimate for row in classes.values() if row.estimate]
    if not made:
        return None
    missing, beyond = (sum(values) for values in zip(*((row.missing, row.beyond) for row in made), strict=True))
    return Estimate((), missing, beyond, np.sum([row.draws for row in made], axis=0))
