"""The shapes: each fits its canvas, no two individuals are alike, and look-alikes have one build."""

from __future__ import annotations

import numpy as np
import pytest

from rebalance.data.demo import sprites
from rebalance.data.demo.scenery import SEEN, halve
from rebalance.data.demo.sprites import SPECIES, THINGS


def rng(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("kind", SPECIES + THINGS, ids=lambda kind: kind.name)
def test_a_drawing_fits_its_canvas_and_varies(kind: sprites.Kind) -> None:
    masks = []
    for number in range(6):
        canvas = kind.draw(rng(number), 60.0)
        rim = np.concatenate([canvas.mask[0], canvas.mask[-1], canvas.mask[:, 0], canvas.mask[:, -1]])
        assert rim.max() == 0  # nothing is cut off
        colour, opacity = halve(canvas.colour), halve(canvas.mask)
        assert 0.02 < (opacity >= SEEN).mean() < 0.9
        assert colour[opacity > 200].std() > 8  # shaded, not one flat colour
        masks.append(opacity.tobytes())
    assert len(set(masks)) == 6


def test_look_alikes_have_one_build_and_two_tints() -> None:
    gray, yellow = (kind.draw(rng(3), 60.0) for kind in SPECIES if "gorgonian" in kind.name)
    both = (gray.mask > 200) & (yellow.mask > 200)
    assert both.sum() > 0.9 * (gray.mask > 200).sum()
    tint = [np.asarray(c.colour[both], float).mean(axis=0) for c in (gray, yellow)]
    assert tint[0][0] > 1.3 * tint[1][0]  # blue


def test_shapes_help_by_hand() -> None:
    line = sprites.grow(rng(0), np.zeros((1, 2)), np.array([0.0]), np.array([4.0]), 4, 0.0, 0.0)
    assert line[0].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]]
    band = sprites.ribbon(line[0], np.full(5, 0.5))
    assert np.allclose(band[[0, 4, 5, 9]], [[0, 0.5], [4, 0.5], [4, -0.5], [0, -0.5]])
    noise = sprites.fractal(rng(0), 32, (4, 8))
    assert 0 <= noise.min() < 0.4 < 0.6 < noise.max() <= 1
    assert abs(float(noise[0, 0] - noise[0, -1])) < 0.2  # wraps around
