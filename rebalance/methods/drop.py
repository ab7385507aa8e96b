"""Box Prediction Rebalancing: a fraction of the negatives takes no part in the loss.

Haque & McEver, "Box Prediction Rebalancing for Training Single-Stage Object Detectors with Partially Labeled Data",
section 2. An object without a label looks like background; the fewer negatives the loss sees, the less the detector
learns to suppress it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from rebalance.match import device
from rebalance.match.candidates import POSITIVE, negative
from rebalance.methods.method import DENSE, RPN, Choice, Golden, Method, Predictions, Rest, Run
from rebalance.settings import setting

KEYS = 2**31 - 1  # random keys lie below; what is not eligible has this one


def drop_mask(
    eligible: Tensor, rate: float, *, generator: torch.Generator | None = None, confidence: Tensor | None = None
) -> Tensor:
    """Choose exactly floor(rate · N) of the N eligible elements, uniformly and without replacement.

    Nothing is read back from the device: all elements are ordered and the first floor(rate · N) are marked. On a CPU,
    where reading back costs nothing, the random order is looked at only near its floor(rate · N)-th place; the same
    elements are marked.

    Args:
        eligible: bool, any shape; what may be dropped.
        rate: fraction p in [0, 1], read as the decimal it is written as, so that 0.29 of 100 is 29.
        generator: source of the random order, on the device of `eligible`; each call draws afresh.
        confidence: same shape; if given, the most confident elements are chosen instead of random ones.

    Returns:
        bool, same shape: True where the element is dropped.
    """
    if rate == 0:
        return torch.zeros_like(eligible)
    flat = eligible.flatten()
    total = flat.sum()
    count = part_of(total, rate)
    if confidence is None:
        # 32-bit integers sort by radix on the CPU, some 15 times faster than floats
        key = torch.randint(KEYS, flat.shape, dtype=torch.int32, device=flat.device, generator=generator)
        if device.free_to_read(key) and (found := device.lowest(key, flat, int(total), int(count), KEYS)) is not None:
            return found.view_as(eligible)
    else:
        bits = confidence.detach().float().flatten().view(torch.int32)
        key = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))  # integers in the order of the floats, reversed: highest first
    order = torch.where(flat, key, KEYS).argsort(stable=True)
    chosen = torch.arange(flat.numel(), device=flat.device) < count
    return torch.empty_like(flat).scatter_(0, order, chosen).view_as(eligible) & eligible


def part_of(count: Tensor, rate: float) -> Tensor:
    """Floor(rate · N) of int64 counts N."""
    over, under = _fraction(rate)
    return count * over // under


@lru_cache
def _fraction(rate: float) -> tuple[int, int]:
    """A rate as the decimal it is written as; nine digits, so that the product with a count fits into int64."""
    return Fraction(str(rate)).limit_denominator(10**9).as_integer_ratio()


def expected(eligible: Tensor, rate: float) -> Rest:
    """What is left of each eligible element where `rate` leaves of every one, and not every one of a rate.

    Of its loss 1 − rate, and of its count what is left of it on average where floor(rate · N) leave of the N.
    """
    count = eligible.sum()
    return Rest(1 - rate, 1 - part_of(count, rate) / count.clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class Drop(Method):
    """Box Prediction Rebalancing.

    >>> negatives = torch.tensor([True, True, False, True, True])
    >>> int(drop_mask(negatives, 0.75).sum())  # exactly three of the four, whichever
    3
    """

    name = "drop"
    kind = "weighting"
    title = "Box Prediction Rebalancing"
    summary = "Box Prediction Rebalancing: a random fraction of the negatives takes no part in the loss"
    helps = "images of which few objects are labelled, so that many negatives are objects"
    steep = ("obj_drop", "box_drop")
    source = "Haque & McEver, section 2"
    equation = r"\frac{1}{N-\lfloor pN_-\rfloor}\sum_{i\,\mathrm{kept}}\ell_i"
    stages = (DENSE, RPN)
    neutral: ClassVar = {"obj_drop": 0.0, "box_drop": 0.0}
    counted = ("negatives", "obj_dropped", "low_iou_matches", "box_dropped")
    golden = (
        # of the four negatives (overlap below neg_iou) three, the most confident: 3, 1 and 0; cross-entropy of the rest
        Golden(
            [0, -2, 3, 1, 2, 2], [0, 0, 0, 0, 0, 1], [0, 0.126928, 0, 0, 2.126928, 0.126928],
            {"obj_drop": 0.75, "drop_select": "confident"}, overlap=[0, 0.29, 0.1, 0, 0.3, 0],
        ),
        # of each of the four a quarter: of 0.693147, 0.126928, 3.048587 and 2.126928
        Golden(
            [0, -2, 3, 2, 2, 2], [0, 0, 0, 0, 0, 1], [0.173287, 0.031732, 0.762147, 0.531732, 2.126928, 0.126928],
            {"obj_drop": 0.75, "drop_select": "weight"}, overlap=[0, 0.29, 0.1, 0, 0.3, 0],
        ),
    )  # fmt: skip

    obj_drop: float = setting(0.0, "fraction of negatives that leaves the objectness loss", low=0, high=1)
    box_drop: float = setting(0.0, "fraction of low-IoU matches that leaves the box loss", low=0, high=1)
    neg_iou: float = setting(
        0.3, "a prediction is negative below this IoU with every label of its image", low=0, high=1
    )
    drop_scope: str = setting("background", "what obj_drop draws from", choices=("background", "matched", "literal"))
    drop_divisor: str = setting(
        "kept", "the loss is a mean over what is left, or over all as in the host", choices=("kept", "host")
    )
    drop_select: str = setting(
        "random",
        "drop at random, or the most confident first; weight, the control: drop none, but weigh each by 1 - p",
        choices=("random", "confident", "weight"),
    )
    drop_warmup: int = setting(0, "dropping starts after this", low=0, unit="epochs")

    def spares(self, stage: str) -> str:
        """The control drops none."""
        return "lowered" if self.drop_select == "weight" else "dropped"

    def choose(self, predictions: Predictions, run: Run) -> Choice | None:
        """Draw from the negatives for the objectness loss, and from the matched ones of low IoU for the box loss.

        In scope `literal` both draw from the matches whose complete IoU with their own label is low, in one order, so
        that the same leave both at the same rate: so it is where YOLOv5's IoU tensor is edited. A match that is drawn
        sets no target of the objectness, and is background unless another match of the candidate sets one.
        """
        if not (self.obj_drop or self.box_drop) or not run.training or run.epoch < self.drop_warmup:
            return None
        state, pairs, literal = predictions.state, predictions.pairs, self.drop_scope == "literal"
        places = None if pairs is None else pairs()
        matches = state == POSITIVE if places is None else places >= 0

        def at_matches(values: Tensor) -> Tensor:
            return values if places is None else values.flatten()[places.clamp(min=0)]

        if literal:
            negatives = low_matches = matches & (predictions.own() < self.neg_iou)
        else:
            low = predictions.below(self.neg_iou)
            negatives = low & (negative(state) if self.drop_scope == "background" else state == POSITIVE)
            low_matches = matches & at_matches(low)
        obj = box = None  # what they are ranked by
        if self.drop_select == "confident":
            obj = predictions.confidence()
            box = at_matches(obj)
            obj = box if literal else obj
        weigh, generator = self.drop_select == "weight", run.generator(state.device)
        obj = negatives if weigh else drop_mask(negatives, self.obj_drop, generator=generator, confidence=obj)
        if literal:
            generator = run.generator(state.device)
        box = low_matches if weigh else drop_mask(low_matches, self.box_drop, generator=generator, confidence=box)
        return Choice(
            left=obj if self.obj_drop and not literal else None,
            background=obj if self.obj_drop and literal and places is None else None,
            unset=obj if self.obj_drop and literal and places is not None else None,
            box=box if self.box_drop else None,
            kept=self.drop_divisor == "kept",
            matched=self.drop_scope != "background",
            counts=torch.stack([negatives.sum(), obj.sum() * (not weigh), low_matches.sum(), box.sum() * (not weigh)]),
            rest=expected(negatives, self.obj_drop) if weigh else None,
            box_rest=expected(low_matches, self.box_drop) if weigh else None,
        )
