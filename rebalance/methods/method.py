"""What a method is, and what a place in a host gives it.

A method is a frozen dataclass: its fields are its settings (flags of the same names), its class attributes say what it
is, and one or two verbs say what it does. `rebalance.objective` runs the verbs, in this order:

    relabel   the labels of a batch, before the host matches them
    choose    which candidates leave the loss, or are trained as background
    cost      the loss of every candidate, unreduced
    weigh     how much each candidate counts
    divide    what the sum is divided by

Shapes: B images, N candidates an image, C channels (the classes, or 1 for an objectness).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rebalance.match import device
from rebalance.match.candidates import NEGATIVE, Candidates
from rebalance.match.device import filled_up, places, zeroed
from rebalance.match.regions import NOTHING_SAID, Known
from rebalance.processes import number, summed

DENSE, RPN, ROI = "dense", "rpn", "roi"  # stages: over every candidate at once, or the two of Faster R-CNN


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where a loss acts, as its host describes it.

    Attributes:
        name: for records, e.g. `anchor`.
        where: for messages, e.g. `head=anchor`.
        about: what the loss is of, in words.
        own: the host's own loss, as `loss=` names it.
        gives: what methods and settings may need: "overlap" of candidates and labels; the link of the logits; "one"
            logit a candidate, not several that refine it; "objectness"; "cells" with a centre; "anchors" of ours;
            "samples" drawn at random; "proposals"; "scores" as targets, anything in [0, 1], not 0 and 1 alone.
        stages: of the loss.
        divisors: values of `divisor` that have a meaning here, in words.
        host: which of them `divisor=host` is.
        positives: which of them suits a loss whose negatives hardly count.
    """

    name: str
    where: str
    about: str
    own: str
    gives: frozenset[str]
    divisors: Mapping[str, str]
    stages: tuple[str, ...] = (DENSE,)
    host: str = "host"
    positives: str = "host"

    def has(self, needs: frozenset[str]) -> bool:
        """Whether it gives all of that; a stage can be needed too."""
        return needs <= self.gives | set(self.stages)


@dataclass(frozen=True)
class Sites:
    """The sites of a family of models."""

    name: str  # of the family, for messages
    by_head: Mapping[str, Site]  # by the value of `head`

    def site(self, head: str, base: str = "auto") -> Site:
        """Where the loss acts with this `head` and `obj_base`."""
        return self.by_head[head]


class Run:
    """Where a run stands, and what a method keeps from step to step.

    Attributes:
        site: where the method acts.
        epoch: from 0.
        epochs: of the training; 0 where nobody has said.
        step: of the epoch, from 1; does not move in validation.
        kept: what a method keeps, by name; goes into checkpoints.
    """

    def __init__(self, site: Site, *, seed: int = 0, rank: int = 0, stream: int = 0) -> None:
        """Start at epoch 0; `rank` of the process and `stream` of the criterion let each draw differently."""
        self.site, self.key = site, (seed, rank, stream)
        self.epoch = self.step = self.epochs = 0
        self.kept: dict[str, Tensor] = {}

    @property
    def training(self) -> bool:
        """Whether gradients are recorded; they are not in validation."""
        return torch.is_grad_enabled()

    @property
    def summed(self) -> Callable[[Tensor], Tensor]:
        """Counts of the whole batch from those of a part of it, which each of several processes has.

        In validation those of the part: there the processes may have different numbers of batches.
        """
        return summed if self.training else lambda counts: counts

    @property
    def parts(self) -> int:
        """How many processes have a part of the batch at hand."""
        return number() if self.training else 1

    def generator(self, device: torch.device, *purpose: str) -> torch.Generator:
        """The random numbers of this step for one purpose: what one draws does not change what another draws.

        They depend on seed, process, criterion, epoch and step alone, so a resumed run draws what the interrupted one
        would have drawn and nothing has to be saved. In validation they are the same for every batch.
        """
        step = (self.epoch, self.step) if self.training else ("validation",)
        return torch.Generator(device).manual_seed(seed_of(*self.key, *step, *purpose))


def seed_of(*key: int | str) -> int:
    """A seed for torch's generators, the same for the same key on every machine."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=7).digest(), "big")


class Predictions(NamedTuple):
    """What candidates are chosen from. Overlaps and confidence are computed only where a method asks for them."""

    state: Tensor  # (B, N) int8, see `rebalance.match.candidates`
    # (B, N) bool, whether the IoU of the predicted box with every label of its image is below what is given, in [0, 1]
    below: Callable[[float], Tensor]
    confidence: Callable[[], Tensor]  # (B, N) predicted objectness, any monotone scale
    # in the shape of `pairs`, else (B, N): complete IoU of a matched prediction with its own label, 0 below 0; where
    # nothing is matched any number
    own: Callable[[], Tensor]
    # (...) int64 index into the flattened candidates, or -1: the matched predictions of the box loss. None: each
    # matched candidate once, in its own place
    pairs: Callable[[], Tensor] | None = None
    known: Known = NOTHING_SAID  # of the candidates


class Rest(NamedTuple):
    """What is left of each candidate that was chosen, where it is chosen in part."""

    loss: float | Tensor  # of its loss; of each (B, N) or of all the same
    divisor: Tensor  # of its count in a divisor, (B, N) or a scalar


class Choice(NamedTuple):
    """What was chosen; None: nothing."""

    left: Tensor | None = None  # (B, N) bool, takes no part in the objectness (classification) loss
    background: Tensor | None = None  # (B, N) bool, is trained as background in it
    box: Tensor | None = None  # bool in the shape of `pairs` (else (B, N)), takes no part in the box loss
    kept: bool = True  # divisors count what is kept, else everything as in the host
    matched: bool = False  # whether `left` or `background` may hold candidates that are matched to a label
    counts: Tensor | None = None  # int64, see the method: summed up over an epoch for results.csv
    # bool in the shape of `pairs`: sets no target, so that a candidate that no other match sets becomes background
    unset: Tensor | None = None
    rest: Rest | None = None  # what is left of `left`, `background` or `unset`; None: nothing
    box_rest: Rest | None = None  # what is left of `box`; None: nothing
    sure: Tensor | None = None  # (B, N, C) bool: what of `left` stays nevertheless, and counts; None: nothing

    @property
    def gone(self) -> Tensor | None:
        """(B, N) bool: what is no positive any more, or in part."""
        return self.left if self.background is None else self.background

    def seen(self, state: Tensor) -> Tensor:
        """(B, N) int8: the state, with what is trained as background negative."""
        return state if self.background is None else state.masked_fill(self.background, NEGATIVE)

    def stays(self) -> Tensor | None:
        """(K,) places of the B·N candidates that keep their loss, where the others need not be looked at; else None.

        So it is on a CPU where what leaves does so as a whole, in all its classes. A place may be there several times.
        """
        if self.left is None or self.rest is not None or self.sure is not None or not device.free_to_read(self.left):
            return None
        return filled_up(places(~self.left))

    def trained(self, loss: Callable[[Choice], Tensor]) -> Tensor:
        """Losses of candidates that are trained as this choice says; of what becomes background in part, the mean.

        Args:
            loss: what they cost, by what becomes background as a whole.
        """
        found = loss(self)
        if self.background is None or self.rest is None:
            return found
        return found + self.rest.loss * (loss(NOTHING) - found)

    def of_loss(self, loss: Tensor) -> Tensor:
        """Losses (B, N) or (B, N, C) without what left."""
        return _without(loss, self._gone(self.left, loss), self.rest and self.rest.loss)

    def of_count(self, counted: Tensor, gone: Tensor | None) -> Tensor:
        """What divisors count, (B, N) or (B, N, C), without `gone`, which is chosen as a whole or in part."""
        return _without(counted, self._gone(gone, counted) if self.kept else None, self.rest and self.rest.divisor)

    def _gone(self, chosen: Tensor | None, values: Tensor) -> Tensor | None:
        """What of `chosen` does leave, in the shape of these values."""
        if chosen is None or self.sure is None or values.dim() != self.sure.dim():
            return chosen
        return chosen.unsqueeze(-1) & ~self.sure

    def in_box(self, matched: Tensor) -> Tensor:
        """Bool in the shape of `box`: which of the matches take part in the box loss, as a whole or in part."""
        return matched if self.box is None or self.box_rest is not None else matched & ~self.box

    def of_box_loss(self, loss: Tensor) -> Tensor:
        """Box losses of the matches, in the shape of `box`, or with more dimensions, without what left."""
        return _without(loss, self.box, self.box_rest and self.box_rest.loss)

    def of_box_count(self, counted: Tensor) -> Tensor:
        """What divisors of the box loss count, in the shape of `box`, or with more dimensions."""
        return _without(counted, self.box if self.kept else None, self.box_rest and self.box_rest.divisor)


def _without(values: Tensor, chosen: Tensor | None, rest: float | Tensor | None) -> Tensor:
    """Values with what is left of those that were chosen."""
    if chosen is None:
        return values
    chosen = chosen.view(*chosen.shape, *(1,) * (values.dim() - chosen.dim()))
    if rest is not None:
        return torch.where(chosen, values * rest, values)
    if values.dtype == torch.bool:
        return values & ~chosen
    return zeroed(values, chosen)


NOTHING = Choice()


class Golden(NamedTuple):
    """Candidates of one image with one channel, positive where the target is not 0, and what their losses must be."""

    logits: Sequence[float]
    targets: Sequence[float]
    loss: Sequence[float]
    settings: Mapping[str, Any] = {}
    overlap: Sequence[float] | None = None  # None: 0 everywhere


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the registry: what it is, and verbs that do nothing until a method says otherwise."""

    name: ClassVar[str]
    kind: ClassVar[str]  # element: what a candidate costs; weighting: how much it counts; head: chooses a head
    title: ClassVar[str]
    summary: ClassVar[str]  # what it does, in a sentence
    helps: ClassVar[str]  # for which gap in the labels
    source: ClassVar[str]  # paper and section or equation
    equation: ClassVar[str]  # as TeX
    stages: ClassVar[tuple[str, ...]] = (DENSE,)  # of a loss in which it acts
    needs: ClassVar[frozenset[str]] = frozenset()  # what a site must give, see `Site`
    neutral: ClassVar[Mapping[str, Any]] = {}  # settings at which it is the host's own loss
    by_image: ClassVar[bool] = True  # the loss of an image is the same without the other images of the batch
    steep: ClassVar[tuple[str, ...]] = ()  # settings that a training which diverged may need lower
    counted: ClassVar[tuple[str, ...]] = ()  # names of `Choice.counts`
    golden: ClassVar[tuple[Golden, ...]] = ()  # numbers worked out by hand; the tests run them through the objective

    @classmethod
    def defined(cls, site: Site) -> bool:
        """Whether it has a meaning at a site."""
        return site.has(cls.needs) and not set(cls.stages).isdisjoint(site.stages)

    @classmethod
    def joins(cls, element: type[Method]) -> bool:
        """Whether it, a weighting, has a meaning for an element loss."""
        return True

    def at(self, site: Site) -> Method:
        """Itself, with what its settings leave to a site settled."""
        return self

    def tells(self, run: Run) -> tuple[Mapping[str, Any], str]:
        """For a run's first line: what settings leave to the run, settled, and what is to be said about it or ''."""
        return {}, ""

    def acts(self, stage: str) -> bool:
        """Whether it acts in this stage with these settings."""
        return stage in self.stages

    def relabel(self, batch: dict[str, Any], run: Run) -> dict[str, Any]:
        """The batch with other labels; `batch_idx` stays sorted."""
        return batch

    def choose(self, predictions: Predictions, run: Run) -> Choice | None:
        """What leaves the loss in this step; None: nothing."""
        return None

    def cost(self, candidates: Candidates, run: Run) -> Tensor:
        """(B, N, C) loss of every element, on a softmax (B, N, 1); at least float32. Of an element loss alone."""
        raise NotImplementedError

    def weigh(self, candidates: Candidates, loss: Tensor, run: Run) -> Tensor | None:
        """(B, N, C) or (B, N, 1) factor of the loss, 0 at IGNORE; None: all 1 but there."""
        return None

    def spares(self, stage: str) -> str:
        """What a diagnosis calls the negatives that it treats as if they might be objects; '': it has none.

        dropped: those it chooses; recalibrated: those of `recalibrated`; lowered: those that weigh less than a half.
        """
        return ""

    def recalibrated(self, candidates: Candidates, run: Run) -> Tensor | None:
        """(B, N, C) bool: the negatives that it trains as objects; None: it has none. Of an element loss alone."""
        return None

    def mines(self) -> int:
        """Proposals of an image that the RoI head trains on, the hardest of all; 0: the host samples at random."""
        return 0

    def divide(self, site: Site) -> str:
        """What `divisor=auto` means at a site: a key of its `divisors`, or host."""
        return "host"
