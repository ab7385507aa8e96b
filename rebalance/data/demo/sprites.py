"""The animals of the seafloor and what lies among them, each drawn from lines, polygons and noise on a `Canvas`.

Sprites are drawn at twice the size and averaged down later. `r` is half the length of an animal in pixels of that
doubled canvas. Points are (..., 2) float64, x right, y down. Colours are BGR, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator
Colour = tuple[float, float, float]

SLANT = 0.68  # height of a flat circle on the ground over its width
UP = -np.pi / 2
SHIFT = 4  # OpenCV points are integers in 1/16 pixel
FIXED = 1 << SHIFT


def oval(image: Bytes, x: float, y: float, rx: float, ry: float, ink: Sequence[float], angle: float = 0.0) -> None:
    """Fill an ellipse with half axes rx, ry; pixels, angle in degrees."""
    axes = (max(1, round(rx * FIXED)), max(1, round(ry * FIXED)))
    cv2.ellipse(image, (round(x * FIXED), round(y * FIXED)), axes, angle, 0, 360, ink, -1, cv2.LINE_AA, SHIFT)


class Canvas:
    """Colour and opacity of one sprite while it is drawn, `image` (n, n, 4); the origin is its middle.

    What is drawn has the colour `base`, made darker (below 1) or lighter (above 1) by `light`.
    """

    def __init__(self, r: float, base: Colour, fringe: float, reach: float) -> None:
        side = 2 * (int(np.ceil(r * reach)) + 2)
        self.half, self.base = side / 2, base
        # the first colour is seen through soft edges only
        self.image: Bytes = np.full((side, side, 4), self.ink(fringe, 0.0), np.uint8)
        self.colour, self.mask = self.image[..., :3], self.image[..., 3]

    def ink(self, light: float, opacity: float = 255.0) -> tuple[float, ...]:
        """The colour at a brightness, with an opacity."""
        return (*(min(255.0, c * light) for c in self.base), opacity)

    def _fixed(self, points: Floats) -> list[npt.NDArray[np.int32]]:
        """Points (..., 2) about the middle as OpenCV's fixed-point integers."""
        return list(np.rint((points + self.half) * FIXED).astype(np.int32))

    def lines(self, points: Floats, width: float, light: float = 1.0) -> None:
        """Draw polylines (m, n, 2) with a width in pixels."""
        thick = max(1, round(width))
        cv2.polylines(self.image, self._fixed(points), False, self.ink(light), thick, cv2.LINE_AA, SHIFT)

    def polygon(self, points: Floats, light: float = 1.0) -> None:
        """Fill a polygon (n, 2)."""
        cv2.fillPoly(self.image, self._fixed(points[None]), self.ink(light), cv2.LINE_AA, SHIFT)

    def ellipse(self, x: float, y: float, rx: float, ry: float, light: float = 1.0, angle: float = 0.0) -> None:
        """Fill an ellipse with half axes rx, ry; angle in degrees."""
        oval(self.image, x + self.half, y + self.half, rx, ry, self.ink(light), angle)

    def dots(self, points: Floats, radius: float, light: float = 1.0) -> None:
        """Draw small discs at points (n, 2), inside what is there already or not."""
        for x, y in points.tolist():
            self.ellipse(x, y, radius, radius, light)

    def _times(self, factor: Single) -> None:
        self.colour[:] = to_bytes(self.colour * (np.float32(1) + factor)[..., None])

    def relief(self, width: float, strength: float) -> None:
        """Light the shape from the upper left as if its opacity were its height."""
        size, step = 2 * max(1, round(width)) + 1, max(1, round(width / 2))
        height = cv2.GaussianBlur(self.mask, (size, size), 0).astype(np.float32)
        slope = np.zeros_like(height)
        slope[:-step, :-step] = height[step:, step:] - height[:-step, :-step]
        self._times(slope * np.float32(strength / 255))

    def grain(self, rng: Rng, amount: float) -> None:
        """Vary the brightness in small patches by up to `amount` (fraction)."""
        n = len(self.mask)
        noise = fractal(rng, n, (max(3, n // 12), max(4, n // 4)))
        self._times((noise - np.float32(0.5)) * np.float32(2 * amount))


def to_bytes(image: npt.NDArray[Any]) -> Bytes:
    """Clip to 0..255 and round."""
    return np.asarray(np.rint(np.clip(image, 0, 255)), np.uint8)


def fractal(rng: Rng, n: int, cells: Sequence[int], fade: float = 0.55) -> Single:
    """Value noise (n, n) in 0..1 that wraps around: lattices of `cells` a side, each `fade` as strong as the last."""
    total = np.zeros((n, n), np.float32)
    weight, sum_of_weights = 1.0, 0.0
    for count in cells:
        lattice = rng.random((count, count), dtype=np.float32)
        place = np.arange(n, dtype=np.float32) * np.float32(count / n)
        low = place.astype(np.intp)
        part = place - low.astype(np.float32)
        part = part * part * (np.float32(3) - np.float32(2) * part)
        low %= count
        high = (low + 1) % count
        rows = lattice[low] + (lattice[high] - lattice[low]) * part[:, None]
        total += (rows[:, low] + (rows[:, high] - rows[:, low]) * part) * np.float32(weight)
        sum_of_weights += weight
        weight *= fade
    return total / np.float32(sum_of_weights)


def polar(angle: Any) -> Floats:
    """Points of the unit circle (..., 2) at angles (...), radians."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def around(rng: Rng, n: int, jitter: float) -> Floats:
    """Directions (n,) all around from a random one, each off by up to `jitter`, radians."""
    return np.asarray(rng.uniform(0, 2 * np.pi) + np.arange(n) * (2 * np.pi / n) + rng.uniform(-jitter, jitter, n))


def grow(rng: Rng, start: Floats, heading: Floats, length: Floats, steps: int, wander: float, curl: float) -> Floats:
    """Curved lines from `start` (m, 2) along `heading` (m,) with `length` (m,): points (m, steps + 1, 2).

    A step turns by up to `wander` at random, a whole line by up to `curl` steadily; radians.
    """
    m = len(start)
    turn = rng.uniform(-wander, wander, (m, steps)) + rng.uniform(-curl, curl, (m, 1)) / steps
    step = (length / steps)[:, None, None] * polar(heading[:, None] + np.cumsum(turn, axis=1))
    return np.asarray(start[:, None] + np.concatenate([np.zeros((m, 1, 2)), np.cumsum(step, axis=1)], axis=1))


def fit(levels: list[tuple[Floats, float]], r: float, half: tuple[float, float]) -> list[tuple[Floats, float]]:
    """Stretch all lines together so that they fill a frame of half width and half height `half`, in lengths r."""
    points = np.concatenate([lines.reshape(-1, 2) for lines, _ in levels])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = r * 2 * np.asarray(half) / (high - low)
    return [((lines - (low + high) / 2) * scale, width) for lines, width in levels]


def headings(points: Floats) -> Floats:
    """Direction of the last piece of each line (m, n, 2), radians."""
    last = points[:, -1] - points[:, -2]
    return np.asarray(np.arctan2(last[:, 1], last[:, 0]))


def lay(points: Floats, slant: float = SLANT) -> Floats:
    """Lay a shape drawn from above on the slanted ground."""
    return np.asarray(points * np.array([1.0, slant]))


def tint(rng: Rng, colour: Colour, amount: float) -> Colour:
    """A colour of one individual: brightness ± amount, each channel ± a third of it."""
    scale = rng.uniform(1 - amount, 1 + amount) * rng.uniform(1 - amount / 3, 1 + amount / 3, 3)
    b, g, r = np.clip(np.asarray(colour) * scale, 0, 255).tolist()
    return b, g, r


def ribbon(line: Floats, width: Floats) -> Floats:
    """Outline (2n, 2) of a band along a line (n, 2) with half widths (n,)."""
    along = np.gradient(line, axis=0)
    along /= np.hypot(along[:, :1], along[:, 1:]) + 1e-9
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * width[:, None]
    return np.concatenate([line + side, (line - side)[::-1]])


def ring(rng: Rng, n: int, jitter: float, lobes: int = 0, depth: float = 0.0) -> Floats:
    """A closed outline (n, 2) about a unit circle, jittered, with `lobes` bulges."""
    angle = np.arange(n) * (2 * np.pi / n)
    radius = 1 + rng.uniform(-jitter, jitter, n)
    if lobes:
        radius = radius + depth * np.sin(lobes * angle + rng.uniform(0, 2 * np.pi))
    return radius[:, None] * polar(angle)


# --- animals: each draws itself on a canvas of its colour -------------------------------------------------------------


def basket_star(canvas: Canvas, rng: Rng, r: float) -> None:
    """Five arms that fork again and again into a tangle of curled tips."""
    angle = around(rng, 5, 0.2)
    start, length = polar(angle) * r * 0.1, np.full(5, r * 0.26) * rng.uniform(0.85, 1.1, 5)
    width = max(1.6, r * 0.08)
    levels: list[tuple[Floats, float]] = []
    for steps, curl in [(4, 0.7)] * 5 + [(8, 5.5)]:
        lines = grow(rng, start, angle, length, steps, 0.14, curl)
        levels.append((lines, width))
        ends, spread = headings(lines), rng.uniform(0.3, 0.7, len(lines))
        angle = np.concatenate([ends - spread, ends + spread * rng.uniform(0.5, 1.1, len(lines))])
        start, length = np.tile(lines[:, -1], (2, 1)), np.tile(length, 2) * rng.uniform(0.66, 0.9, 2 * len(lines))
        width = max(1.0, width * 0.7)
    levels = fit(levels, r, (1.0, 1.0))
    for lines, thick in levels:
        canvas.lines(lay(lines) + max(1.0, thick * 0.3), thick + 1.0, 0.42)
    for level, (lines, thick) in enumerate(reversed(levels)):
        canvas.lines(lay(lines), thick, 1.2 - 0.05 * level - 0.1 * (level % 2))
    for size, depth, light in ((0.16, 0.2, 0.7), (0.11, 0.25, 1.05)):
        canvas.polygon(lay(ring(rng, 20, 0.05, 5, depth)) * r * size, light)
    canvas.relief(max(2.0, r * 0.05), 0.45)


def sunflower_star(canvas: Canvas, rng: Rng, r: float) -> None:
    """A small disc with nine to fourteen long thin arms."""
    arms = int(rng.integers(9, 15))
    angle = around(rng, arms, 0.12)
    lines = lay(grow(rng, polar(angle) * r * 0.08, angle, r * rng.uniform(0.72, 0.98, arms), 12, 0.09, 0.7))
    width = max(2.2, r * 0.12)
    for light, grown, offset in ((0.5, 1.5, 0.6), (1.0, 0.0, 0.0)):
        for first in range(0, 12, 3):
            thick = max(1.0, width * (1 - first * 0.065)) + grown
            canvas.lines(lines[:, first : first + 4] + offset, thick, light)
    canvas.ellipse(0, 0, r * 0.17, r * 0.17 * SLANT)
    canvas.relief(max(2.0, r * 0.06), 0.8)
    canvas.dots(lines[:, 1:10].reshape(-1, 2), max(0.6, r * 0.012), 1.5)


def gorgonian(canvas: Canvas, rng: Rng, r: float, polyps: float) -> None:
    """A fan coral: stems that fork in one upright plane."""
    stems = int(rng.integers(3, 6))
    start: Floats = np.zeros((stems, 2))
    angle = UP + np.linspace(-0.85, 0.85, stems) + rng.uniform(-0.15, 0.15, stems)
    length = np.full(stems, 0.4) * rng.uniform(0.8, 1.15, stems)
    width = max(1.8, r * 0.06)
    lean = rng.uniform(-0.2, 0.2)
    levels: list[tuple[Floats, float]] = []
    for _ in range(5):
        lines = grow(rng, start, angle, length, 5, 0.12, 0.3)
        levels.append((lines, width))
        ends = headings(lines)
        ends = ends + 0.3 * (UP + lean - ends)  # branches turn up again
        spread = rng.uniform(0.15, 0.55, len(ends))
        angle = np.concatenate([ends - spread, ends + spread])
        start, length = np.tile(lines[:, -1], (2, 1)), np.tile(length, 2) * rng.uniform(0.6, 0.95, 2 * len(lines))
        width = max(1.0, width * 0.76)
    levels = fit(levels, r, (rng.uniform(0.7, 1.0), rng.uniform(0.8, 1.0)))
    for lines, thick in levels:
        canvas.lines(lines + 0.7, thick + 1.2, 0.45)
    for level, (lines, thick) in enumerate(levels):
        canvas.lines(lines, thick, 0.66 + 0.09 * level)
    outer = np.concatenate([lines[:, 1:].reshape(-1, 2) for lines, _ in levels[2:]])
    outer = outer[rng.random(len(outer)) < polyps]
    canvas.dots(outer + rng.uniform(-1, 1, outer.shape) * r * 0.015, max(0.7, r * 0.015), 1.2)


def urchin(canvas: Canvas, rng: Rng, r: float) -> None:
    """A ball of fine spines."""
    angle, rise = rng.uniform(0, 2 * np.pi, 180), np.sqrt(rng.random(180))
    order = np.argsort(-rise, kind="stable")  # spines at the rim first, those that point at the camera last
    rise = rise[order]
    out = lay(polar(angle[order]), 0.86) * rise[:, None]
    tips = out * r * rng.uniform(0.78, 1.0, (180, 1)) + np.array([0.0, -r * 0.06])
    canvas.ellipse(0, 0, r * 0.56, r * 0.5, 0.45)
    for sixth, part in enumerate(np.split(np.arange(180), 6)):
        light = 0.7 + 0.55 * (1 - float(rise[part].mean()))
        if sixth == 3:
            canvas.ellipse(0, 0, r * 0.5, r * 0.44, light)
        lines = np.stack([out[part] * r * 0.4, tips[part]], axis=1)
        canvas.lines(lines, max(1.0, r * 0.035), light)
        canvas.lines(np.stack([lines.mean(axis=1), tips[part]], axis=1), 1, light * 1.35)
    canvas.relief(max(3.0, r * 0.3), 0.55)


def squat_lobster(canvas: Canvas, rng: Rng, r: float) -> None:
    """Carapace, folded tail, three pairs of legs and two long claws held out in front."""
    c, s = polar(rng.uniform(0, 2 * np.pi))
    turn = np.array([[c, s], [-s, c]])

    def place(points: npt.ArrayLike) -> Floats:
        """Points with x forward and y to the side, in lengths r, as they lie on the ground."""
        return lay(((np.asarray(points) * r)[..., None] * turn).sum(-2), 0.75)

    opening = rng.uniform(0.75, 1.25)
    for side in (-1.0, 1.0):
        for leg in range(3):
            root, out = -0.02 - 0.09 * leg, 0.2 - 0.25 * leg + rng.uniform(-0.08, 0.08)
            knee = [root + out * 0.8, side * rng.uniform(0.38, 0.46)]
            foot = [root + out * 1.2 - 0.1, side * rng.uniform(0.56, 0.7)]
            canvas.lines(place([[[root, side * 0.12], knee, foot]]), r * 0.045, 0.72)
        elbow = [0.36 * rng.uniform(0.85, 1.1), side * 0.34 * opening]
        wrist = [0.66 * rng.uniform(0.92, 1.08), side * 0.3 * opening * rng.uniform(0.7, 1.15)]
        canvas.lines(place([[[0.14, side * 0.13], elbow, wrist]]), r * 0.085, 0.95)
        for finger in (-1.0, 1.0):
            tip = [wrist[0] + 0.3, wrist[1] + finger * 0.045 - side * 0.03]
            line = place(np.linspace([wrist[0] - 0.06, wrist[1] + finger * 0.02], tip, 5))
            canvas.polygon(ribbon(line, r * np.array([0.035, 0.06, 0.055, 0.035, 0.012])), 0.95)
    for back in range(4, 0, -1):  # tail segments, the last one folded under
        oval = ring(rng, 16, 0.02) * [0.1, 0.185 - 0.018 * back] + [-0.16 - 0.085 * back, 0]
        canvas.polygon(place(oval), 0.68 if back % 2 else 1.05)
    half = np.array([[0.42, 0], [0.27, 0.07], [0.22, 0.15], [0.0, 0.2], [-0.18, 0.17], [-0.22, 0]])
    canvas.polygon(place(np.concatenate([half, half[-2:0:-1] * [1, -1]])), 1.08)
    canvas.relief(max(2.0, r * 0.07), 0.9)
    for x in (0.12, 0.0, -0.1):
        canvas.lines(place([[[x, -0.13], [x - 0.03, 0.0], [x, 0.13]]]), 1, 1.6)
    canvas.base = (25, 25, 30)  # the eyes
    canvas.dots(place([[0.27, 0.09], [0.27, -0.09]]), max(1.0, r * 0.028))


def laced_sponge(canvas: Canvas, rng: Rng, r: float) -> None:
    """A pale ruffled clump, pierced like lace."""
    for lobe in range(int(rng.integers(3, 6))):
        size = rng.uniform(0.36, 0.55) if lobe else 0.66
        centre = np.array([rng.uniform(-0.48, 0.48), rng.uniform(-0.38, 0.3)] if lobe else [0.0, 0.14])
        rim = ring(rng, 44, 0.07, int(rng.integers(7, 12)), 0.08) * [size, size * rng.uniform(0.75, 0.95)] + centre
        canvas.polygon(rim * r + r * 0.035, 0.5)
        canvas.polygon(rim * r, 1.12)
        canvas.polygon((rim - centre) * r * 0.9 + (centre + np.array([0, 0.015])) * r, rng.uniform(0.78, 0.95))
    canvas.relief(max(3.0, r * 0.2), 0.6)
    canvas.grain(rng, 0.18)
    inside = canvas.mask.copy()
    count = int(rng.integers(80, 120))
    angle, far = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count)) * 0.82
    for x, y in (lay(far[:, None] * polar(angle), 0.85) * r).tolist():
        hole, tilt = rng.uniform(0.018, 0.058) * r, rng.uniform(0, 180)
        if inside[round(y + canvas.half), round(x + canvas.half)]:
            canvas.ellipse(x, y, hole * 1.4, hole * 1.05, 1.12, tilt)
            canvas.ellipse(x + hole * 0.1, y + hole * 0.1, hole, hole * 0.68, rng.uniform(0.38, 0.58), tilt)


def sea_cucumber(canvas: Canvas, rng: Rng, r: float) -> None:
    """A long soft body with pale conical spines."""
    n, spines = 16, 46
    heading = rng.uniform(0, 2 * np.pi, 1)
    line = grow(rng, -polar(heading) * r * 0.82, heading, np.array([r * 1.64]), n - 1, 0.06, 0.7)[0]
    line = lay(line - line.mean(axis=0), 0.72)
    width = r * rng.uniform(0.2, 0.26) * np.sqrt(np.clip(1 - (2 * np.linspace(0, 1, n) - 1) ** 4, 0.05, 1))
    band = ribbon(line, width)
    canvas.polygon(band)
    canvas.relief(max(3.0, r * 0.16), 0.9)
    canvas.grain(rng, 0.18)
    canvas.base = tint(rng, (205, 220, 232), 0.06)
    at = rng.uniform(0.04, 0.96, spines) * (n - 1)
    low = at.astype(np.intp)
    across = np.where(np.arange(spines) < 24, np.sign(rng.uniform(-1, 1, spines)), rng.uniform(-0.8, 0.8, spines))
    edge = (band[:n] - line)[low]
    roots = line[low] + (line[low + 1] - line[low]) * (at - low)[:, None] + edge * (across * 0.9)[:, None]
    lift = edge * (across * 0.45)[:, None] + np.array([0.0, -r * 0.07])
    foot = np.array([r * 0.03, 0.0])
    for i in np.argsort(roots[:, 1], kind="stable"):
        tip = roots[i] + lift[i] * rng.uniform(0.8, 1.3)
        canvas.polygon(np.stack([roots[i] - foot, tip, roots[i] + foot]), 0.72)
        canvas.lines(np.stack([roots[i] * 0.5 + tip * 0.5, tip])[None], 1)


# --- what is not an animal, or not one of ours ------------------------------------------------------------------------


def rock(canvas: Canvas, rng: Rng, r: float) -> None:
    """A stone, sometimes with a crust in a warm colour."""
    rim = ring(rng, 11, 0.16) * [r * 0.92, r * rng.uniform(0.5, 0.7)]
    canvas.polygon(rim)
    canvas.polygon(rim * [0.78, 0.62] + [-r * 0.05, -r * 0.14], 1.25)
    canvas.relief(max(3.0, r * 0.2), 0.8)
    canvas.grain(rng, 0.35)
    if rng.random() < 0.35:
        canvas.base = tint(rng, (110, 105, 150), 0.2)
        canvas.dots(np.stack([rng.uniform(-0.5, 0.5, 9) * r, rng.uniform(-0.35, 0.2, 9) * r], axis=1), r * 0.06)


def shell(canvas: Canvas, rng: Rng, r: float) -> None:
    """An empty scallop: a pale ribbed fan, the size of an urchin."""
    facing = rng.uniform(0, 2 * np.pi)
    rim = polar(facing + np.linspace(-1.0, 1.0, 13)) * r * (0.92 + 0.04 * (np.arange(13) % 2))[:, None]
    hinge = polar(facing)[None] * -r * 0.5
    canvas.polygon(lay(np.concatenate([hinge, rim]), 0.75))
    canvas.relief(max(2.0, r * 0.15), 0.7)
    canvas.lines(lay(np.stack([np.repeat(hinge, 11, axis=0), rim[1:-1]], axis=1), 0.75), 1, 0.68)


def twig(canvas: Canvas, rng: Rng, r: float) -> None:
    """A dead, bare branch of a coral, lying down."""
    heading = rng.uniform(0, 2 * np.pi, 1)
    stem = grow(rng, -polar(heading) * r * 0.8, heading, np.array([r * 1.5]), 8, 0.18, 0.5)
    side = headings(np.repeat(stem, 4, axis=0)) + rng.choice([-0.8, 0.8], 4) * rng.uniform(0.6, 1.2, 4)
    twigs = grow(rng, stem[0, [2, 4, 5, 6]], side, r * rng.uniform(0.2, 0.55, 4), 4, 0.2, 0.5)
    canvas.lines(lay(stem), max(1.5, r * 0.06))
    canvas.lines(lay(twigs), max(1.0, r * 0.04))
    canvas.relief(2.0, 0.8)


def weed(canvas: Canvas, rng: Rng, r: float) -> None:
    """Torn blades of drift weed."""
    n = int(rng.integers(2, 5))
    lines = grow(rng, np.zeros((n, 2)), rng.uniform(0, 2 * np.pi, n), np.full(n, r * 0.95), 9, 0.25, 1.2)
    width = r * 0.09 * np.sin(np.linspace(0.4, np.pi, 10))
    for line in lay(lines):
        canvas.polygon(ribbon(line, width), rng.uniform(0.7, 1.2))
    canvas.relief(3.0, 0.6)


@dataclass(frozen=True)
class Kind:
    """A species or a thing: how it is drawn, how long it is, how often it comes."""

    name: str
    shape: Callable[[Canvas, Rng, float], None]
    colour: Colour
    varies: float  # brightness of individuals, ± this fraction
    length: tuple[float, float]  # near the camera, fraction of the frame's side
    share: float  # relative frequency
    upright: bool = False  # stands on its lower end, instead of lying on its middle
    groups: float = 0.15  # chance that the next animal is of the same species
    fringe: float = 0.5  # brightness of the soft edge
    reach: float = 1.25  # half the canvas, in r

    def draw(self, rng: Rng, r: float) -> Canvas:
        """Draw one individual."""
        canvas = Canvas(r, tint(rng, self.colour, self.varies), self.fringe, self.reach)
        self.shape(canvas, rng, r)
        return canvas


# Gray and yellow gorgonians have one build; far away the water hides the difference of their tints.
GRAY, YELLOW = partial(gorgonian, polyps=0.3), partial(gorgonian, polyps=0.4)
SPECIES: tuple[Kind, ...] = (
    Kind("basket star", basket_star, (122, 158, 198), 0.12, (0.34, 0.46), 1.0),
    Kind("fragile pink urchin", urchin, (150, 128, 208), 0.12, (0.17, 0.25), 1.3, groups=0.5),
    Kind("gray gorgonian", GRAY, (160, 168, 174), 0.12, (0.32, 0.46), 1.0, upright=True, reach=1.1),
    Kind("long legged sunflower star", sunflower_star, (62, 112, 205), 0.12, (0.32, 0.44), 1.0),
    Kind("squat lobster", squat_lobster, (52, 92, 222), 0.12, (0.24, 0.34), 1.2, groups=0.3, fringe=0.45),
    Kind("ui laced sponge", laced_sponge, (140, 172, 188), 0.1, (0.22, 0.36), 1.0, upright=True),
    Kind("white spine sea cucumber", sea_cucumber, (84, 98, 158), 0.15, (0.26, 0.38), 1.1),
    Kind("yellow gorgonian", YELLOW, (104, 164, 190), 0.12, (0.32, 0.46), 1.0, upright=True, reach=1.1),
)
THINGS: tuple[Kind, ...] = (
    Kind("rock", rock, (88, 98, 104), 0.25, (0.12, 0.34), 1.6, fringe=0.6),
    Kind("shell", shell, (186, 200, 208), 0.15, (0.10, 0.17), 1.0),
    Kind("twig", twig, (72, 84, 92), 0.2, (0.22, 0.40), 0.7),
    Kind("weed", weed, (48, 92, 92), 0.25, (0.20, 0.36), 0.7),
)
NAMES = tuple(kind.name for kind in SPECIES)
