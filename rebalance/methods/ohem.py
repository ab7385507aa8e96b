"""Online hard example mining: of the negatives, only the hardest are trained on.

Shrivastava et al. 2016, "Training Region-based Object Detectors with Online Hard Example Mining", section 4. A dense
head has no proposals to choose from; it keeps a number of negatives for each positive, as Liu et al. 2016, "SSD: Single
Shot MultiBox Detector", section 2.2.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from rebalance.match.candidates import NEGATIVE, POSITIVE


def ohem_mask(loss: Tensor, state: Tensor, *, ratio: float = 3.0) -> Tensor:
    """Keep every positive and the floor(ratio · P) negatives of highest loss, in each image by itself.

    P is the number of positives of the image, so an image without one keeps nothing, as in SSD.

    Args:
        loss: (..., N) current loss of the candidates of each image.
        state: (..., N) int8, see `rebalance.match.candidates`.
        ratio: negatives for each positive, at least 0; read as the decimal it is written as.

    Returns:
        (..., N) bool, True where kept; never at IGNORE. Of equal losses the first are kept.
    """
    positive, negative = state == POSITIVE, state == NEGATIVE
    part = Fraction(str(ratio)).limit_denominator(10**9)
    count = positive.sum(-1, keepdim=True) * part.numerator // part.denominator
    hardest = torch.where(negative, loss.detach(), -torch.inf).argsort(stable=True, dim=-1, descending=True)
    kept = torch.arange(loss.shape[-1], device=loss.device) < count
    return torch.empty_like(kept).scatter_(-1, hardest, kept) & negative | positive
