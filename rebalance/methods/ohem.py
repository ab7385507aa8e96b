"""Online hard example mining: of the negatives, only the hardest are trained on.

Shrivastava et al. 2016, "Training Region-based Object Detectors with Online Hard Example Mining", section 4. A dense
head has no proposals to choose from; it keeps a number of negatives for each positive, as Liu et al. 2016, "SSD: Single
Shot MultiBox Detector", section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates, every
from rebalance.methods.method import DENSE, ROI, Golden, Method, Run, Site
from rebalance.settings import setting


def ohem_mask(loss: Tensor, state: Tensor, *, ratio: float = 3.0) -> Tensor:
    """Keep every positive and the floor(ratio · P) negatives of highest loss, in each image by itself.

    P is the number of positives of the image, so an image without one keeps nothing, as in SSD. The ratio, at least 0,
    is read as the decimal it is written as. (..., N) True where kept, never at IGNORE; of equal losses the first.
    """
    positive, negative = state == POSITIVE, state == NEGATIVE
    part = Fraction(str(ratio)).limit_denominator(10**9)
    count = positive.sum(-1, keepdim=True) * part.numerator // part.denominator
    hardest = torch.where(negative, loss.detach(), -torch.inf).argsort(stable=True, dim=-1, descending=True)
    kept = torch.arange(loss.shape[-1], device=loss.device) < count
    return torch.empty_like(kept).scatter_(-1, hardest, kept) & negative | positive


@dataclass(frozen=True, kw_only=True)
class Ohem(Method):
    """Online hard example mining.

    >>> state = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE]])
    >>> ohem_mask(torch.tensor([[0.1, 0.2, 0.9, 0.5]]), state, ratio=2)
    tensor([[ True, False,  True,  True]])
    """

    name = "ohem"
    kind = "weighting"
    title = "online hard example mining"
    summary = "online hard example mining: of the negatives of an image only the hardest"
    helps = "none: objects without a label are the hardest negatives of all"
    source = "Shrivastava et al. 2016, section 4"
    equation = r"\sum_{i\in P}\ell_i+\sum_{i\in\mathrm{top}_{r|P|}(N)}\ell_i"
    stages = (DENSE, ROI)
    needs = frozenset({"one"})  # mining says nothing about the candidates of a refinement
    neutral: ClassVar = {"ohem_ratio": 1e6}
    golden = (
        # one positive, so the two of highest loss of three negatives
        Golden([2, -2, 2, 0], [1, 0, 0, 0], [0.126928, 0, 2.126928, 0.693147], {"ohem_ratio": 2}),
    )

    ohem_ratio: float = setting(3.0, "negatives kept for each positive of an image", low=0, needs=DENSE)
    ohem_rois: int = setting(128, "Faster R-CNN: proposals of an image that are trained on", low=1, needs="proposals")

    @classmethod
    def joins(cls, element: type[Method]) -> bool:
        """Not what goes by overlap: BRL lowers the loss of the very candidates that mining would find."""
        return "overlap" not in element.needs

    def weigh(self, candidates: Candidates, loss: Tensor, run: Run) -> Tensor | None:
        """0 for the easy negatives of a dense head; in the RoI head the sample holds the hard ones alone.

        A sure negative is not mined: it is there in any case, and takes no place of another.
        """
        if run.site.has(frozenset({"proposals"})):
            return None
        state, sure = candidates.state, candidates.sure
        if sure is not None:
            loss, state = loss.masked_fill(sure, 0), state.masked_fill(every(sure), IGNORE)
        return ohem_mask(loss.sum(-1), state, ratio=self.ohem_ratio).unsqueeze(-1)

    def spares(self, stage: str) -> str:
        """The easy ones; in the RoI head they are not in the sample."""
        return "lowered" if stage == DENSE else ""

    def mines(self) -> int:
        return self.ohem_rois

    def divide(self, site: Site) -> str:
        """By the positives, for each of which a number of negatives is left."""
        return site.positives
