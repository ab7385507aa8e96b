"""How well anchors fit the labels, and better ones where they do not (YOLOv5's automatic anchors).

Sizes are width, height in pixels of the network's input: T labels, K anchors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _ratios(sizes: Array, anchors: Array) -> Array:
    """(T, K) in [0, 1]: the worse of the two side ratios of each label to each anchor."""
    small, large = np.minimum(sizes[:, None], anchors), np.maximum(sizes[:, None], anchors)
    return np.asarray((small / large).min(2))  # anchors have an extent; a label may have none


def best_possible_recall(sizes: Array, anchors: Array, anchor_t: float = 4.0) -> float:
    """Fraction of the labels (T, 2) that at least one anchor (K, 2) fits: no side ratio reaches `anchor_t`."""
    return float((_ratios(sizes, anchors).max(1) > 1 / anchor_t).mean()) if len(sizes) else 1.0


def fit_anchors(sizes: Array, count: int, anchor_t: float = 4.0, seed: int = 0, generations: int = 500) -> Array:
    """K-means on label sizes (T, 2), then random mutations that are kept when they fit better.

    Labels under 2 px on both sides are left out where there are larger ones. (count, 2) from small to large area.
    """
    rng = np.random.default_rng(seed)
    visible = (sizes >= 2).any(1)
    sizes = sizes[visible] if visible.any() else sizes
    scale = sizes.std(0) + 1e-9
    points = sizes / scale
    # start from distinct labels spread over the sizes, so that no cluster starts empty
    centres = points[np.argsort(points.prod(1))[np.linspace(0, len(points) - 1, count).round().astype(int)]]
    for _ in range(30):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        centres = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else c for k, c in enumerate(centres)])
    anchors = np.maximum(centres * scale, 2)

    def fitness(candidate: Array) -> float:
        best = _ratios(sizes, candidate).max(1)
        return float((best * (best > 1 / anchor_t)).mean())

    best = fitness(anchors)
    for _ in range(generations):
        mutation = np.where(rng.random(anchors.shape) < 0.9, 1 + rng.random() * rng.normal(size=anchors.shape) * 0.1, 1)
        candidate = np.maximum(anchors * mutation.clip(0.3, 3), 2)
        if (score := fitness(candidate)) > best:
            best, anchors = score, candidate
    return np.asarray(anchors[np.argsort(anchors.prod(1))])
