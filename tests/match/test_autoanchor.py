from __future__ import annotations

import numpy as np
import pytest

from rebalance.match.autoanchor import Array, best_possible_recall, fit_anchors


def clusters(*centres: tuple[float, float], count: int = 60, spread: float = 0.05, seed: int = 0) -> Array:
    """(T, 2) sizes around each of the given ones."""
    rng = np.random.default_rng(seed)
    return np.concatenate([np.array(c) * (1 + spread * rng.normal(size=(count, 2))) for c in centres])


def test_best_possible_recall_by_hand() -> None:
    sizes = np.array([[10.0, 10], [39, 10], [41, 10], [2.4, 10], [100, 100]])
    assert best_possible_recall(sizes, np.array([[10.0, 10]])) == 2 / 5  # ratios 1, 3.9 | 4.1, 4.2, 10
    assert best_possible_recall(sizes, np.array([[10.0, 10]]), 4.15) == 3 / 5
    assert best_possible_recall(sizes, np.array([[10.0, 10], [90, 110]])) == 3 / 5
    assert best_possible_recall(np.array([[40.0, 10], [10, 2.5]]), np.array([[10.0, 10]])) == 0  # 4 is not under 4


def test_best_possible_recall_agrees_with_the_matching() -> None:
    import torch

    from rebalance.match.anchor import match

    sizes = 10 ** (2 * np.random.default_rng(0).random((200, 2)))
    anchors = np.array([[10.0, 13], [30, 60]])
    number = torch.arange(200).unsqueeze(1)  # as a class
    labels = torch.cat((number * 0, number, torch.full((200, 2), 0.5), torch.from_numpy(sizes / 64)), 1)
    found = match(labels.double(), torch.from_numpy(anchors / 8).view(1, 2, 2), [(8, 8)])
    assert 0 < best_possible_recall(sizes, anchors) == len(found.label[found.valid].unique()) / 200 < 1


def test_labels_without_an_extent_fit_no_anchor() -> None:
    assert best_possible_recall(np.array([[0.0, 10], [0, 0], [10, 10]]), np.array([[10.0, 10]])) == 1 / 3


def test_no_labels_are_all_reached() -> None:
    assert best_possible_recall(np.zeros((0, 2)), np.array([[10.0, 10]])) == 1


def test_anchors_find_the_clusters() -> None:
    centres = ((8.0, 8), (40, 10), (20, 60), (90, 90), (200, 50))
    found = fit_anchors(clusters(*centres), 5)
    expected = np.array(sorted(centres, key=lambda c: c[0] * c[1]))
    assert np.abs(found / expected - 1).max() < 0.1


def test_fitted_anchors_reach_more_than_the_start() -> None:
    sizes = clusters((4, 40), (300, 12), (500, 500), (8, 8))
    coco = np.array([[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326.0]])
    before = best_possible_recall(sizes, coco)
    found = fit_anchors(sizes, 9)
    assert before < 0.8
    assert best_possible_recall(sizes, found) > 0.98
    assert found.shape == (9, 2)
    assert (np.diff(found.prod(1)) >= 0).all()
    assert (found > 0).all()


def test_the_same_seed_gives_the_same_anchors() -> None:
    sizes = clusters((10, 20), (40, 30), spread=0.3)
    before = sizes.copy()
    assert np.array_equal(fit_anchors(sizes, 6), fit_anchors(sizes, 6))
    assert not np.array_equal(fit_anchors(sizes, 6), fit_anchors(sizes, 6, seed=1))
    assert np.array_equal(sizes, before)


@pytest.mark.parametrize(
    "sizes",
    [
        [(1.0, 1.0), (0.5, 1.5), (1.9, 0.1)],  # all under 2 px
        [(30.0, 40.0)],  # fewer labels than anchors
        [(30.0, 40.0)] * 20,  # no spread
        [(0.0, 50.0), (50.0, 0.0), (0.0, 0.0), (60.0, 60.0)],  # no extent on one side
        [(30.0, 40.0)] * 5 + [(1.0, 1.0)] * 5,
    ],
)
def test_odd_labels_still_give_usable_anchors(sizes: list[tuple[float, float]]) -> None:
    found = fit_anchors(np.array(sizes), 9, generations=50)
    assert found.shape == (9, 2)
    assert np.isfinite(found).all()
    assert (found > 0).all()
