"""What a loss does to objects whose labels were withheld, summed up over an epoch on the device.

A withheld object is a negative like any other to the loss; who withheld the label knows better. So it can be measured
whom the negatives' loss really falls on, and whether what a method spares are the objects that it is meant to spare.

    loss           share of the negatives' loss that falls on candidates at withheld objects; what the method trains as
                   objects there is no loss of a negative
    gradient       share of the gradient that pushes negatives down, in the logits
    score          mean score of candidates at withheld objects, and
    background     of the other negatives
    rate           share of the negatives that are at withheld objects: the precision of choosing blindly
    candidates     how many those are
    <kind>_precision, <kind>_recall    of what was spared, by kind: which share is at withheld objects, and of those
                   which share was spared

Loss and gradient are those of the whole divided loss: each element's loss times the gradient of the total in it. They
are taken on the backward pass, which passes unchanged: a training is the same with and without, to the last bit.

Where a loss has a score for each class, everything is about the pairs of candidate and class: at a withheld urchin the
lobster's score is rightly pushed down. A softmax and an objectness are about all classes at once.

Shapes: B images, N candidates an image, C channels (the classes, or 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rebalance.match.candidates import BACKGROUND, IGNORE, NEGATIVE, POSITIVE, SOFTMAX, Candidates

DROPPED, RECALIBRATED, LOWERED, IGNORED = "dropped", "recalibrated", "lowered", "ignored"
LOW = 0.5  # a negative that weighs less is spared
_SHARES = ("loss", "gradient", "score", "background", "rate")


class Diagnosis:
    """The sums of an epoch of one stage of a loss.

    Attributes:
        kinds: in which ways its methods may spare a negative.
        sums: (P, 3) of each share and kind, see `values`; None before the first step.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = tuple(dict.fromkeys(kinds))
        self.sums: Tensor | None = None

    def begin_epoch(self) -> None:
        """Forget."""
        self.sums = None

    def chosen(self, kind: str, left: Tensor, state: Tensor, hidden: Tensor) -> None:
        """Take note of the candidates (B, N) that a method has chosen."""
        negative = (state == NEGATIVE).unsqueeze(-1)
        self._spared(kind, left.unsqueeze(-1) & negative, hidden & negative)

    def follow(self, candidates: Candidates, loss: Tensor, spared: Mapping[str, Tensor]) -> None:
        """Take note of a loss, and of its gradients when they are there.

        Args:
            candidates: settled, of a step that trains; those without a graph are passed over.
            loss: of every element, weighted; (B, N) or (B, N, C), as the logits.
            spared: kind -> (B, N, 1 or C) bool, what a method spares.
        """
        if candidates.hidden is None or not loss.requires_grad:
            return
        logits, state = candidates.logits, candidates.state

        def by_channel(x: Tensor) -> Tensor:
            return x.reshape(*state.shape, -1)

        negative = (state == NEGATIVE).unsqueeze(-1)
        if candidates.unknown is not None:
            negative = negative & ~candidates.unknown
        hidden = candidates.hidden & negative
        rest = negative & ~hidden
        scores = by_channel(logits.detach()).float()
        if candidates.link == SOFTMAX:
            scores = 1 - scores.softmax(-1)[..., BACKGROUND : BACKGROUND + 1]
        else:
            scores = scores.sigmoid()
        self._add("score", scores.where(hidden, 0).sum(), hidden.sum())
        self._add("background", scores.where(rest, 0).sum(), rest.sum())
        # counted once a candidate, whatever its channels
        there = hidden.any(-1)
        self._add("rate", there.sum(), (state == NEGATIVE).sum())
        for kind, mask in spared.items():
            self._spared(kind, mask & negative, hidden)
        if IGNORED in self.kinds:
            ignored = (state == IGNORE).unsqueeze(-1)
            ignored = ignored if candidates.unknown is None else ignored | candidates.unknown
            self._spared(IGNORED, ignored, candidates.hidden & (state != POSITIVE).unsqueeze(-1))

        turned = spared.get(RECALIBRATED)
        pushed = negative if turned is None else negative & ~turned
        cost = by_channel(loss.detach())

        def on_loss(factor: Tensor) -> None:
            found = (cost * by_channel(factor)).where(pushed, 0)
            self._add("loss", found.where(hidden, 0).sum(), found.sum())

        def on_logits(slope: Tensor) -> None:
            push = by_channel(slope).float().clamp(min=0)
            if push.shape[-1] > hidden.shape[-1]:
                push = push.sum(-1, keepdim=True)
            push = push.where(negative, 0)
            self._add("gradient", push.where(hidden, 0).sum(), push.sum())

        loss.register_hook(on_loss)  # type: ignore[no-untyped-call]
        logits.register_hook(on_logits)  # type: ignore[no-untyped-call]

    def _spared(self, kind: str, mask: Tensor, hidden: Tensor) -> None:
        if mask.shape[-1] < hidden.shape[-1]:  # it is about candidates
            hidden = hidden.any(-1, keepdim=True)
        elif mask.shape[-1] > hidden.shape[-1]:
            mask = mask.any(-1, keepdim=True)
        self._add(kind, (mask & hidden).sum(), mask.sum(), hidden.sum())

    def _add(self, name: str, *numbers: Tensor) -> None:
        """Add up to three numbers; a step that overflowed is left out."""
        names = (*_SHARES, *self.kinds)
        device = numbers[0].device
        if self.sums is None:
            kind = torch.float32 if device.type == "mps" else torch.float64  # counts are exact in it
            self.sums = torch.zeros(len(names), 3, dtype=kind, device=device)
        found = torch.stack([number.to(self.sums.dtype) for number in numbers])
        self.sums[names.index(name), : len(numbers)] += found.where(found.isfinite().all(), 0)


def values(kinds: Sequence[str], sums: Sequence[Sequence[float]]) -> dict[str, float]:
    """What summed `Diagnosis.sums` come to; NaN where there was nothing to divide by."""
    rows = dict(zip((*_SHARES, *kinds), sums, strict=True))

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    found = {name: ratio(*rows[name][:2]) for name in _SHARES}
    found["candidates"] = rows["rate"][0]
    for kind in kinds:
        hit, picked, hidden = rows[kind]
        found |= {f"{kind}_precision": ratio(hit, picked), f"{kind}_recall": ratio(hit, hidden)}
    return found
