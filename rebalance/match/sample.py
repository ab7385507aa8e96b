"""Random samples of candidates with a fixed share of positives, as two-stage detectors train on.

Ren et al. 2015, "Faster R-CNN", section 3.1.3; Girshick 2015, "Fast R-CNN", section 2.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE


class Sampled(NamedTuple):
    """What was chosen in each image; the same number of places in every image."""

    place: Tensor  # (B, S) int64 into the candidates
    state: Tensor  # (B, S) int8, see `rebalance.match.candidates`; IGNORE where the image had no more to choose


def sample(state: Tensor, count: int, share: float, *, generator: torch.Generator | None = None) -> Sampled:
    """Choose at most `count` candidates of each image: floor(count · share) positives at most, negatives for the rest.

    Uniformly and without replacement, all images at once; nothing is read back from the device.

    Args:
        state: (B, N) int8, see `rebalance.match.candidates`.
        count: S = min(count, N), at least 1.
        share: of positives, in [0, 1]. Where there are fewer, more negatives are taken; where there are fewer
            negatives, the sample is smaller.
        generator: source of the random order, on the device of `state`.
    """
    total = state.shape[1]
    key = torch.randint(2**31 - 1, state.shape, dtype=torch.int32, device=state.device, generator=generator)
    parts = []
    for kind, most in ((POSITIVE, int(count * share)), (NEGATIVE, count)):
        value, found = torch.where(state == kind, key, -1).topk(min(most, total), 1)
        parts.append((found, value >= 0))
    (positive, kept), (negative, left) = parts
    left = left & (torch.arange(left.shape[1], device=left.device) < count - kept.sum(1, keepdim=True))
    place, chosen = torch.cat((positive, negative), 1), torch.cat((kept, left), 1)
    kinds = torch.cat((torch.full_like(positive, POSITIVE), torch.full_like(negative, NEGATIVE)), 1)
    kinds = kinds.masked_fill(~chosen, IGNORE).to(torch.int8)
    first = chosen.byte().argsort(stable=True, dim=1, descending=True)[:, : min(count, total)]
    return Sampled(place.gather(1, first), kinds.gather(1, first))
