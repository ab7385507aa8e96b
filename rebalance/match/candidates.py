"""What a candidate is to the loss.

Shapes: B images, N candidates an image, C channels (the classes, or 1 for an objectness).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.device import rows

POSITIVE, NEGATIVE, IGNORE = 1, 0, -1  # int8; IGNORE: no loss and no gradient, whatever the prediction
SIGMOID, SOFTMAX = "sigmoid", "softmax"  # what makes probabilities of logits
BACKGROUND = 0  # its channel on a softmax


def candidate_state(positive: Tensor, ignored: Tensor | None = None) -> Tensor:
    """(B, N) int8: POSITIVE where matched to a label, IGNORE where it takes no part, which outweighs, else NEGATIVE."""
    state = positive.to(torch.int8)  # True is POSITIVE, False is NEGATIVE
    return state if ignored is None else state.masked_fill(ignored, IGNORE)


def negative(state: Tensor) -> Tensor:
    """(B, N) bool: `state == NEGATIVE`, on a CPU in a tenth of its time, where bytes are compared one by one."""
    return state.logical_not()  # NEGATIVE is 0


def every(mask: Tensor) -> Tensor:
    """(B, N) bool: whether all channels of (B, N, C) bool are set; several times faster on a CPU than `all`."""
    return mask.view(torch.uint8).amin(-1).bool()


class Candidates(NamedTuple):
    """What a loss is computed from."""

    logits: Tensor  # (B, N, C)
    # (B, N, C) in [0, 1]; the host's: IoU, an assigner's score, or 0 and 1. On a softmax (B, N) int64, 0: background
    targets: Tensor
    state: Tensor  # (B, N) int8; the channels of a candidate share it
    overlap: Tensor  # (B, N) in [0, 1] with the nearest label of the image; 0 where the loss does not ask for it
    link: str = SIGMOID
    # (B, N, C), on a softmax (B, N, 1), bool: whether that class may be there without a label; no loss unless matched
    unknown: Tensor | None = None
    # the same shape, bool: verified that there is none; of a negative not dropped, recalibrated, down-weighted or mined
    sure: Tensor | None = None
    # the same shape, bool: whether an object is there whose label was withheld; for a diagnosis, no loss knows of it
    hidden: Tensor | None = None

    def at(self, place: Tensor) -> Candidates:
        """Those at places (K,) of all B·N, as of one image; see `rows`."""
        found = (rows(x, place) if isinstance(x, Tensor) else x for x in self)
        return Candidates(*found)  # type: ignore[arg-type]

    def settled(self) -> Candidates:
        """With the say of `unknown` where nothing is matched to a label, and of `sure` where it is a negative.

        A candidate that is unknown in every channel is IGNORE.
        """
        if self.unknown is None and self.sure is None:
            return self
        state, unknown, sure = self.state, self.unknown, self.sure
        if unknown is not None:
            unknown = unknown & (state != POSITIVE).unsqueeze(-1)
            state = state.masked_fill(every(unknown), IGNORE)
        if sure is not None:
            sure = sure & (state == NEGATIVE).unsqueeze(-1)
        return self._replace(state=state, unknown=unknown, sure=sure)
