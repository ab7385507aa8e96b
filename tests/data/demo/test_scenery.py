"""The pictures: same everywhere, in range, and boxes that are the animals' extents."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rebalance.data.demo.scenery import SEEN, Sprite, arrange, halve, outline, render, window
from rebalance.data.demo.sprites import NAMES, SPECIES

ROOT = Path(__file__).resolve().parents[3]
BASELINE = {  # the plainest instructions that the wheels of NumPy and OpenCV can be held to
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX2 FMA3",
    "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX",
    "OPENCV_IPP": "disabled",
    "OPENCV_LOG_LEVEL": "SILENT",
}
GOLDEN_IMAGE = "267069b259db18f1"
GOLDEN_BOXES = [
    (0, 0.0, 9.0, 20.0, 33.0),
    (3, 51.0, 12.0, 83.0, 32.0),
    (4, 109.0, 56.0, 128.0, 69.0),
    (6, 22.0, 70.0, 39.0, 91.0),
    (7, 68.0, 42.0, 109.0, 88.0),
    (3, 75.0, 84.0, 105.0, 108.0),
    (0, 30.0, 87.0, 74.0, 118.0),
    (0, 0.0, 98.0, 47.0, 128.0),
    (4, 24.0, 115.0, 54.0, 128.0),
]
FRAMES = """
import hashlib, numpy as np
from rebalance.data.demo.scenery import render
digest = hashlib.sha256()
for number in range(6):
    image, boxes = render(np.random.Generator(np.random.PCG64([3, number])), (128, 200)[number % 2])
    digest.update(image.tobytes() + repr(boxes).encode())
print(digest.hexdigest())
"""


def rng(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def sprite(opacity: np.ndarray, x: int, y: int) -> Sprite:
    return Sprite(SPECIES[4], 4, np.dstack([np.zeros((*opacity.shape, 3), np.uint8), opacity]), x, y)


def test_a_frame_is_what_it_always_was() -> None:
    # Whoever changes a picture on purpose raises seafloor.VERSION and takes the new numbers.
    image, boxes = render(rng(0, 0, 0), 128)
    assert boxes == GOLDEN_BOXES
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == GOLDEN_IMAGE


def test_the_instruction_set_of_the_processor_does_not_matter() -> None:
    def digest(more: dict[str, str]) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        done = subprocess.run([sys.executable, "-c", FRAMES], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert digest({}) == digest(BASELINE)


def test_the_generator_alone_decides() -> None:
    first, second, other = render(rng(5), 96), render(rng(5), 96), render(rng(6), 96)
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("size", [64, 160])
def test_boxes_are_in_the_frame_and_3_to_15(size: int) -> None:
    counts, kinds = set(), set()
    for number in range(25):
        image, boxes = render(rng(1, number), size)
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert 3 <= len(boxes) <= 15
        counts.add(len(boxes))
        for label, x1, y1, x2, y2 in boxes:
            kinds.add(label)
            assert 0 <= x1 < x2 <= size
            assert 0 <= y1 < y2 <= size
            assert max(x2 - x1, y2 - y1) >= size / 20
    assert kinds == set(range(len(NAMES)))
    assert len(counts) > 6


def test_most_boxes_are_25_to_110_pixels_long_at_256() -> None:
    sides = [max(b[3] - b[1], b[4] - b[2]) for number in range(12) for b in render(rng(2, number), 256)[1]]
    assert np.mean([24 <= side <= 110 for side in sides]) > 0.9
    assert np.percentile(sides, 90) > 1.7 * np.percentile(sides, 10)  # near and far


def test_pictures_are_neither_flat_nor_clipped() -> None:
    for number in range(8):
        image, _ = render(rng(4, number), 160)
        assert image.std() > 12
        assert np.mean((image == 0) | (image == 255)) < 0.2
        blue, _, red = image.reshape(-1, 3).mean(axis=0)
        assert red < blue + 25  # water takes the red


def test_at_least_30_percent_of_every_animal_is_seen() -> None:
    size, border = 128, 128
    for number in range(15):
        covered = np.zeros((size + 2 * border, size + 2 * border), bool)
        frame = np.zeros_like(covered)
        frame[border:-border, border:-border] = True
        sprites = arrange(rng(8, number), size, 0.8)
        for item in sprites:  # nearest first
            solid = np.zeros_like(covered)
            height, width = item.image.shape[:2]
            left, top = item.x + border, item.y + border
            solid[top : top + height, left : left + width] = item.image[..., 3] >= SEEN
            if item.label >= 0:
                assert (solid & frame & ~covered).sum() >= 0.3 * solid.sum()
            covered |= solid
        assert sum(item.label >= 0 for item in sprites) <= 15
        assert any(item.label < 0 for item in sprites)


def test_a_box_is_the_extent_inside_the_frame() -> None:
    opacity = np.zeros((5, 8), np.uint8)
    opacity[1:4, 2:7] = 255
    opacity[0, 0] = SEEN - 1  # too faint to count
    assert outline(sprite(opacity, 10, 20), 64) == (4, 12.0, 21.0, 17.0, 24.0)
    assert outline(sprite(opacity, -4, 61), 64) == (4, 0.0, 62.0, 3.0, 64.0)  # cut at the left and at the bottom


def test_where_a_sprite_meets_the_frame_by_hand() -> None:
    there, here = window(-2, 5, (4, 6), 8)
    assert (there, here) == (np.s_[5:8, 0:4], np.s_[0:3, 2:6])
    frame, shape = np.zeros((8, 8)), np.zeros((4, 6))
    for x, y in ((8, 0), (0, 8), (-6, 0), (0, -4), (-20, -20), (30, 30)):  # beside it
        there, here = window(x, y, shape.shape, 8)
        assert frame[there].size == shape[here].size == 0
        assert frame[there].shape == shape[here].shape


def test_four_pixels_become_one() -> None:
    assert halve(np.array([[0, 1], [1, 4]], np.uint8)).tolist() == [[2]]  # 6/4 rounds up
