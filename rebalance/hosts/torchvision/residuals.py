"""The objectness logits of torchvision's heads, before and after its refinements.

Chen et al., "Residual Objectness for Imbalance Reduction", sections 3.1 and 3.2.
Shapes: B images, A anchors, T steps.
"""

from __future__ import annotations

from torch import Tensor

from rebalance.hosts.torchvision.head import Raw
from rebalance.match.boxes import upcast


def refined(raw: Raw, name: str, shown: int | None = None) -> Tensor:
    """(B, A) objectness logits as in inference: every residual added, without a gate.

    Args:
        raw: raw predictions, with `residuals` (B, T, A) where the head has steps.
        name: of the unrefined objectness (B, A) in them.
        shown: refinements that count; None: all.
    """
    logits: Tensor = raw[name]
    return logits + raw["residuals"][:, :shown].sum(1) if "residuals" in raw else logits


def objectness_and_residuals(raw: Raw, name: str) -> tuple[Tensor, Tensor]:
    """(B, A) unrefined objectness logits and (T, B, A) residuals, at least float32; `raw`, `name`: as in `refined`."""
    logits = upcast(raw[name])
    if "residuals" not in raw:
        return logits, logits.new_zeros(0, *logits.shape)
    return logits, upcast(raw["residuals"]).transpose(0, 1)
