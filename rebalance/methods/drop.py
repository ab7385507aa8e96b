"""Box Prediction Rebalancing: a fraction of the negatives takes no part in the loss.

Haque & McEver, "Box Prediction Rebalancing for Training Single-Stage Object Detectors with Partially Labeled Data",
section 2. An object without a label looks like background; the fewer negatives the loss sees, the less the detector
learns to suppress it.
"""

from __future__ import annotations

from fractions import Fraction
from hashlib import blake2b

import torch
from torch import Tensor

from rebalance.settings import TrainFlags

COUNTS = ("negatives", "obj_dropped", "low_iou_matches", "box_dropped")


def drop_mask(
    eligible: Tensor, rate: float, *, generator: torch.Generator | None = None, confidence: Tensor | None = None
) -> Tensor:
    """Choose exactly floor(rate · N) of the N eligible elements, uniformly and without replacement.

    Nothing is read back from the device: all elements are ordered and the first floor(rate · N) are marked.

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
    if confidence is None:
        # 32-bit integers sort by radix on the CPU, some 15 times faster than floats
        key = torch.randint(2**31 - 1, flat.shape, dtype=torch.int32, device=flat.device, generator=generator)
    else:
        bits = confidence.detach().float().flatten().view(torch.int32)
        key = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))  # integers in the order of the floats, reversed: highest first
    order = torch.where(flat, key, 2**31 - 1).argsort(stable=True)
    part = Fraction(str(rate)).limit_denominator(10**9)  # nine digits, so that the product fits into int64
    count = flat.sum() * part.numerator // part.denominator
    chosen = torch.arange(flat.numel(), device=flat.device) < count
    return torch.empty_like(flat).scatter_(0, order, chosen).view_as(eligible) & eligible


def seed_of(*key: int | str) -> int:
    """A seed for torch's generators, the same for the same key on every machine."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=7).digest(), "big")


class Dropping:
    """Chooses what leaves the losses of one criterion.

    The random draw depends on (seed, rank, stream, epoch, step) alone, so a resumed run draws what the interrupted one
    would have drawn and nothing has to be saved. It is off in validation, where no gradient is recorded.

    Shapes: B images, N candidates an image.
    """

    def __init__(self, flags: TrainFlags, *, seed: int = 0, rank: int = 0, stream: int = 0) -> None:
        """Start at epoch 0.

        Args:
            flags: the `drop` flags.
            seed: of the run.
            rank: of the process, so that processes draw differently.
            stream: of the criterion, where a model has several.
        """
        self.flags = flags
        self.key = (seed, rank, stream)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Forget the counts and take the random sequence of `epoch` (from 0)."""
        self.epoch, self.step = epoch, 0
        self.counts: Tensor | None = None

    @property
    def on(self) -> bool:
        """Whether anything is dropped now."""
        wanted = self.flags.obj_drop > 0 or self.flags.box_drop > 0
        return wanted and torch.is_grad_enabled() and self.epoch >= self.flags.drop_warmup

    def draw(
        self, matched: Tensor, overlap: Tensor, confidence: Tensor, pairs: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose for one step.

        Args:
            matched: (B, N) bool, candidates matched to a label.
            overlap: (B, N) IoU with the nearest label of the image.
            confidence: (B, N) predicted objectness, any monotone scale.
            pairs: (...) int64 index into the flattened candidates, or −1; the matched predictions of the box loss.
                None: each matched candidate once, in its own place.

        Returns:
            (B, N) bool, what leaves the objectness loss (in scope `literal`: what becomes background), and
            bool in the shape of `pairs` (else (B, N)), what leaves the box loss.
        """
        flags = self.flags
        generator = torch.Generator(overlap.device).manual_seed(self._seed())
        low = overlap < flags.neg_iou
        negatives = low & (~matched if flags.drop_scope == "background" else matched)
        ranking = confidence if flags.drop_select == "confident" else None
        obj = drop_mask(negatives, flags.obj_drop, generator=generator, confidence=ranking)
        low_pairs = low & matched
        if pairs is not None:
            low_pairs = low.flatten()[pairs.clamp(min=0)] & (pairs >= 0)
            ranking = None if ranking is None else ranking.flatten()[pairs.clamp(min=0)]
        box = drop_mask(low_pairs, flags.box_drop, generator=generator, confidence=ranking)
        seen = torch.stack([mask.sum() for mask in (negatives, obj, low_pairs, box)])
        self.counts = seen if self.counts is None else self.counts + seen
        return obj, box

    def _seed(self) -> int:
        self.step += 1
        return seed_of(*self.key, self.epoch, self.step)
