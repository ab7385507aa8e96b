"""What a candidate is to the loss.

Shapes: B images, N candidates an image, C channels (the classes, or 1 for an objectness).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

POSITIVE, NEGATIVE, IGNORE = 1, 0, -1  # int8; IGNORE: no loss and no gradient, whatever the prediction
SIGMOID, SOFTMAX = "sigmoid", "softmax"  # what makes probabilities of logits
BACKGROUND = 0  # its channel on a softmax


def candidate_state(positive: Tensor, ignored: Tensor | None = None) -> Tensor:
    """(B, N) int8: POSITIVE where matched to a label, IGNORE where it takes no part, which outweighs, else NEGATIVE."""
    state = positive.to(torch.int8)  # True is POSITIVE, False is NEGATIVE
    return state if ignored is None else state.masked_fill(ignored, IGNORE)


class Candidates(NamedTuple):
    """What a loss is computed from."""

    logits: Tensor  # (B, N, C)
    # (B, N, C) in [0, 1]; the host's: IoU, an assigner's score, or 0 and 1. On a softmax (B, N) int64, 0: background
    targets: Tensor
    state: Tensor  # (B, N) int8; the channels of a candidate share it
    overlap: Tensor  # (B, N) in [0, 1] with the nearest label of the image; 0 where the loss does not ask for it
    link: str = SIGMOID
