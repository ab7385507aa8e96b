"""An element loss times weights, as one criterion applies it to its candidates.

Shapes: B images, N candidates an image, C channels (the classes, or 1 for an objectness).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, Candidates
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl, confusion
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.methods.ohem import ohem_mask
from rebalance.methods.registry import select
from rebalance.methods.soft import soft_weights
from rebalance.methods.softmax import softmax_cross_entropy, softmax_focal
from rebalance.settings import TrainFlags


class Composition:
    """Keeps what a loss needs from step to step: where the run stands, and GHM's moving average.

    Dropping is not in it: what is dropped depends on the step alone, see `rebalance.methods.drop.Dropping`.

    Attributes:
        average: (bins,) GHM's moving average of counts; None before the first step. Validation, where no gradient is
            recorded, uses the counts of its own batch and leaves the average as it is.
    """

    def __init__(self, flags: TrainFlags, *, softmax: bool = False) -> None:
        """Start at epoch 0.

        Args:
            flags: training flags.
            softmax: the classes exclude each other and the first channel is background; `bce` is cross-entropy then,
                and a candidate's targets are one class.
        """
        self.flags, self.selected, self.softmax = flags, select(flags.loss), softmax
        self.epoch = 0
        self.average: Tensor | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Take note of the epoch (from 0)."""
        self.epoch = epoch

    @property
    def plain(self) -> bool:
        """Whether every candidate has the host's own loss, with the same weight."""
        return self.selected.element == "bce" and self.selected.weighting in ("", "drop")

    @property
    def by_image(self) -> bool:
        """Whether the loss of an image is the same without the other images; GHM counts over the batch."""
        return self.selected.weighting != "ghm"

    @property
    def uses_overlap(self) -> bool:
        """Whether the loss depends on how far a candidate is from the labels."""
        return self.selected.element == "brl" or self.selected.weighting == "soft"

    def __call__(self, candidates: Candidates) -> Tensor:
        """Loss of every element, weighted and not reduced.

        Returns:
            (B, N, C), on a softmax (B, N, 1), at least float32; 0 without gradient at IGNORE.
        """
        loss = self._element(candidates)
        weights = self._weights(candidates, loss)
        if weights is None:
            return loss.masked_fill((candidates.state == IGNORE).unsqueeze(-1), 0)
        return loss * weights

    def of_objectness(self, logits: Tensor, targets: Tensor, state: Tensor, overlap: Tensor) -> Tensor:
        """(B, N) loss of one logit a candidate, all four (B, N); what is to be ignored is the caller's to leave out."""
        if self.plain:
            return bce(logits, targets)
        return self(Candidates(logits.unsqueeze(-1), targets.unsqueeze(-1), state, overlap)).squeeze(-1)

    def _element(self, candidates: Candidates) -> Tensor:
        (logits, targets, state, overlap), flags = candidates, self.flags
        if self.softmax:
            if self.selected.element == "focal":
                loss = softmax_focal(logits, targets, gamma=flags.focal_gamma, alpha=flags.focal_alpha)
            else:
                loss = softmax_cross_entropy(logits, targets)
            return loss.unsqueeze(-1)
        if self.selected.element == "focal":
            return focal(logits, targets, gamma=flags.focal_gamma, alpha=flags.focal_alpha)
        if self.selected.element == "brl":
            if self.epoch < flags.brl_warmup:
                return focal(logits, targets, gamma=flags.brl_gamma, alpha=flags.brl_alpha)
            confused = confusion(state, overlap, flags.brl_iou).unsqueeze(-1)
            return brl(
                logits, targets, confused, t=flags.brl_t, weight=flags.brl_weight, beta=flags.brl_beta,
                gamma=flags.brl_gamma, alpha=flags.brl_alpha,
            )  # fmt: skip
        return bce(logits, targets)

    def _weights(self, candidates: Candidates, loss: Tensor) -> Tensor | None:
        """(B, N, C) or (B, N, 1), 0 at IGNORE; None: all 1 but there."""
        (logits, targets, state, overlap), flags = candidates, self.flags
        if self.selected.weighting == "ghm":
            training = torch.is_grad_enabled()
            weights, average = ghm_weights(
                logits, targets, (state != IGNORE).unsqueeze(-1), bins=flags.ghm_bins, momentum=flags.ghm_momentum,
                regions=flags.ghm_regions, average=self.average if training else None,
            )  # fmt: skip
            if training:
                self.average = average
            return weights
        if self.selected.weighting == "ohem":
            return ohem_mask(loss.sum(-1), state, ratio=flags.ohem_ratio).unsqueeze(-1)
        if self.selected.weighting == "soft":
            return soft_weights(overlap, state, a=flags.soft_a, b=flags.soft_b, c=flags.soft_c).unsqueeze(-1)
        return None
