"""Pictures of a seafloor as a towed camera sees it: ground, animals, things that are not animals, water.

`render` makes one frame. Everything is drawn from shapes and noise; no photograph is used. The scene is a plane seen at
a slant, lit by lamps on the camera: what is higher in the picture is farther away, smaller, darker and bluer.

Same generator, same picture, on any machine: arithmetic that reaches a pixel is element by element (IEEE) or integer,
OpenCV is used only for its integer rasteriser and its integer blur, and sines are rounded to 1/16 pixel before use.

Shapes: sprites are drawn at twice the size on a `Canvas` and averaged down. `r` is half the length of an animal in
pixels of that doubled canvas. Points are (..., 2) float64, x right, y down. Colours are BGR, 0 to 255. `t` is a row as
a fraction of the frame's height, 0 far and 1 near; `horizon` is its height above the frame, in frame heights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Rng = np.random.Generator
Colour = tuple[float, float, float]
Box = tuple[int, float, float, float, float]

MIN_OBJECTS, MAX_OBJECTS = 3, 15
HIDDEN = 0.7  # an animal with more than this fraction covered or outside the frame is placed again
TRIES = 12  # places tried for one animal or thing
SEEN = 96  # opacity, of 255, from which a pixel counts as part of an animal
SLANT = 0.68  # height of a flat circle on the ground over its width
UP = -np.pi / 2
SHIFT = 4  # OpenCV points are integers in 1/16 pixel
FIXED = 1 << SHIFT


# --- drawing ----------------------------------------------------------------------------------------------------------


def oval(image: Bytes, x: float, y: float, rx: float, ry: float, ink: Colour, angle: float = 0.0) -> None:
    """Fill an ellipse with half axes rx, ry; pixels, angle in degrees."""
    axes = (max(1, round(rx * FIXED)), max(1, round(ry * FIXED)))
    cv2.ellipse(image, (round(x * FIXED), round(y * FIXED)), axes, angle, 0, 360, ink, -1, cv2.LINE_AA, SHIFT)


class Canvas:
    """Colour and opacity of one sprite while it is drawn; the origin is its middle.

    What is drawn has the colour `base`, made darker (below 1) or lighter (above 1) by `light`.
    """

    def __init__(self, r: float, base: Colour, fringe: float, reach: float) -> None:
        side = 2 * (int(np.ceil(r * reach)) + 2)
        self.half, self.base = side / 2, base
        self.mask: Bytes = np.zeros((side, side), np.uint8)
        self.colour: Bytes = np.full((side, side, 3), shade(base, fringe), np.uint8)  # seen through soft edges only

    def _layers(self, light: float) -> tuple[tuple[Bytes, Colour], tuple[Bytes, Colour]]:
        return (self.colour, shade(self.base, light)), (self.mask, (255.0, 0.0, 0.0))

    def _fixed(self, points: Floats) -> list[npt.NDArray[np.int32]]:
        """Points (..., 2) about the middle as OpenCV's fixed-point integers."""
        return list(np.rint((points + self.half) * FIXED).astype(np.int32))

    def lines(self, points: Floats, width: float, light: float = 1.0) -> None:
        """Draw polylines (m, n, 2) with a width in pixels."""
        for image, ink in self._layers(light):
            cv2.polylines(image, self._fixed(points), False, ink, max(1, round(width)), cv2.LINE_AA, SHIFT)

    def polygon(self, points: Floats, light: float = 1.0) -> None:
        """Fill a polygon (n, 2)."""
        for image, ink in self._layers(light):
            cv2.fillPoly(image, self._fixed(points[None]), ink, cv2.LINE_AA, SHIFT)

    def ellipse(self, x: float, y: float, rx: float, ry: float, light: float = 1.0, angle: float = 0.0) -> None:
        """Fill an ellipse with half axes rx, ry; angle in degrees."""
        for image, ink in self._layers(light):
            oval(image, x + self.half, y + self.half, rx, ry, ink, angle)

    def dots(self, points: Floats, radius: float, light: float = 1.0) -> None:
        """Draw small discs at points (n, 2), inside what is there already or not."""
        for x, y in points.tolist():
            self.ellipse(x, y, radius, radius, light)

    def _times(self, factor: Single) -> None:
        self.colour = to_bytes(self.colour * (np.float32(1) + factor)[..., None])

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


def halve(image: Bytes) -> Bytes:
    """Mean of 2 x 2 pixels, in integers."""
    wide = image.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


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


def shade(colour: Colour, factor: float) -> Colour:
    """A colour made darker (below 1) or lighter (above 1)."""
    b, g, r = (min(255.0, c * factor) for c in colour)
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


# --- the frame --------------------------------------------------------------------------------------------------------


class Sprite(NamedTuple):
    """A drawn animal or thing with its place: `x`, `y` are the frame's pixel of its upper left corner."""

    kind: Kind
    label: int  # index into SPECIES, -1 for a thing
    colour: Bytes
    opacity: Bytes
    x: int
    y: int


def scale(t: Any, horizon: float) -> Any:
    """Size of things at row t relative to the lowest row."""
    return (t + horizon) / (1 + horizon)


def window(x: int, y: int, shape: tuple[int, ...], size: int) -> tuple[Any, Any]:
    """Where a sprite at x, y and a frame of side `size` overlap: slices of the frame and the sprite, may be empty."""
    top, left = max(0, y), max(0, x)
    bottom, right = max(top, min(size, y + shape[0])), max(left, min(size, x + shape[1]))
    return np.s_[top:bottom, left:right], np.s_[top - y : bottom - y, left - x : right - x]


def extent(solid: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is set; right and bottom are the first that is not."""
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def pick(rng: Rng, kinds: Sequence[Kind], last: int = -1) -> int:
    """Index of the next kind: of the same species as the last, or by frequency."""
    if last >= 0 and rng.random() < kinds[last].groups:
        return last
    shares = np.cumsum([kind.share for kind in kinds])
    return int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))


def arrange(rng: Rng, size: int, horizon: float) -> list[Sprite]:
    """Place 3 to 15 animals and some things, nearest first.

    An animal of which more than `HIDDEN` would be covered by nearer ones or lie outside the frame is moved, `TRIES`
    times at most; then it is left out.
    """
    animals, things = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1)), int(rng.integers(1, 7))
    wanted: list[tuple[float, Kind, int]] = []
    last = -1
    for _ in range(animals):
        last = pick(rng, SPECIES, last)
        wanted.append((rng.uniform(0.14, 1.04), SPECIES[last], last))
    wanted += [(rng.uniform(0.05, 1.04), THINGS[pick(rng, THINGS)], -1) for _ in range(things)]
    covered = np.zeros((size, size), bool)
    sprites: list[Sprite] = []
    for t, kind, label in sorted(wanted, key=lambda item: -item[0]):
        canvas = kind.draw(rng, max(6.0, rng.uniform(*kind.length) * float(scale(t, horizon)) * size))
        colour, opacity = halve(canvas.colour), halve(canvas.mask)
        middle = len(opacity) // 2
        left, top, right, bottom = extent(opacity > 0)
        colour, opacity, dx = colour[top:bottom, left:right], opacity[top:bottom, left:right], left - middle
        if rng.random() < 0.5:
            colour, opacity, dx = colour[:, ::-1], opacity[:, ::-1], middle - right
        y = round(t * size) + (top - bottom if kind.upright else top - middle)
        solid = opacity >= SEEN
        least = (1 - HIDDEN) * int(np.count_nonzero(solid)) if label >= 0 else 0
        for _ in range(TRIES):
            x = round(rng.uniform(-0.02, 1.02) * size) + dx
            there, here = window(x, y, solid.shape, size)
            shown = solid[here] & ~covered[there]
            if shown.size and np.count_nonzero(shown) >= least:
                covered[there] |= solid[here]
                sprites.append(Sprite(kind, label, colour, opacity, x, y))
                break
    return sprites


def ground(rng: Rng, size: int, horizon: float) -> Single:
    """The bare ground (size, size, 3) before the water: mud, sand, cobble or rock."""
    u, n = size / 256, 256
    soil = int(rng.integers(4))
    base = np.array([(92, 108, 116), (112, 132, 142), (96, 106, 110), (72, 82, 86)][soil], np.float32)
    base *= rng.uniform(0.85, 1.15, 3).astype(np.float32)
    bumps = (0.5, 0.35, 0.9, 1.5)[soil]
    near = scale((np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size), horizon)[:, None]
    # A picture row at depth 1/near looks at the ground this far away, in pixels of the lowest row.
    along = np.float32(size / SLANT * (1 + horizon)) / near
    across = (np.arange(size, dtype=np.float32) - np.float32(size / 2)) / near

    def spread(cells: Sequence[int], fade: float, zoom: float) -> Single:
        """Noise, looked up (bilinear, wrapping) where each pixel meets the ground."""
        flat = fractal(rng, n, cells, fade).ravel()
        x = across * np.float32(zoom / u) + np.float32(4 * n)
        y = np.broadcast_to(along * np.float32(zoom / u), x.shape)
        x0, y0 = x.astype(np.int32), y.astype(np.int32)
        fx, fy = x - x0.astype(np.float32), y - y0.astype(np.float32)
        x0, x1, y0, y1 = x0 % n, (x0 + 1) % n, (y0 % n) * n, ((y0 + 1) % n) * n
        upper = flat[y0 + x0] * (1 - fx) + flat[y0 + x1] * fx
        lower = flat[y1 + x0] * (1 - fx) + flat[y1 + x1] * fx
        return np.asarray(upper * (1 - fy) + lower * fy, np.float32)

    coarse, fine = spread((5, 11, 23), 0.6, 0.7), spread((41, 83, 128), 0.8, 0.9) - np.float32(0.5)
    hue = spread((4, 9), 0.5, 0.5) - np.float32(0.5)
    height = coarse * np.float32(22) + fine * near * np.float32(7)
    slope = np.zeros_like(height)
    slope[1:, 1:] = height[1:, 1:] - height[:-1, :-1]
    light = np.float32(1) - slope * np.float32(0.16 * bumps * u) + (coarse - np.float32(0.5)) * np.float32(0.5)
    light += fine * near * np.float32(0.45)
    picture = to_bytes(base * light[..., None] + hue[..., None] * np.array([-18, 0, 34], np.float32))
    stones(rng, picture, horizon, (14, 26, 210, 70)[soil], base)
    return picture.astype(np.float32)


def stones(rng: Rng, picture: Bytes, horizon: float, count: int, base: Single) -> None:
    """Strew small stones over the ground, far ones first."""
    size = len(picture)
    for t in np.sort(rng.random(int(count * rng.uniform(0.6, 1.4)))).tolist():
        rx = rng.uniform(0.006, 0.026) * rng.uniform(0.4, 1.0) * float(scale(t, horizon)) * size
        ry, angle = rx * rng.uniform(0.55, 0.85), rng.uniform(-25, 25)
        x, y = rng.random() * size, t * size
        colour = base * np.float32(rng.uniform(0.65, 1.4)) + rng.uniform(-8, 8, 3).astype(np.float32)
        for dx, dy, grown, light in ((0.25, 0.35, 1.1, 0.45), (0, 0, 1.0, 0.9), (-0.12, -0.25, 0.62, 1.2)):
            axes = max(0.5, rx * grown), max(0.375, ry * grown)
            oval(picture, x + dx * rx, y + dy * ry, *axes, (colour * np.float32(light)).tolist(), angle)


def shadow(image: Single, sprite: Sprite) -> None:
    """Darken the ground below and to the right of a sprite."""
    height, width = sprite.opacity.shape
    if sprite.kind.upright:  # only the foot touches the ground: a flat patch there
        patch: Bytes = np.zeros((max(3, round(width * 0.3)), width), np.uint8)
        middle, axes = (width // 2, len(patch) // 2), (max(1, round(width * 0.36)), max(1, len(patch) // 3))
        cv2.ellipse(patch, middle, axes, 0, 0, 360, 200.0, -1)
        dx, dy = round(width * 0.08), height - round(len(patch) * 0.55)
    else:
        patch, dx, dy = sprite.opacity, max(1, round(width * 0.05)), max(1, round(height * 0.08))
    rim = max(2, round(width * 0.12))
    patch = cv2.copyMakeBorder(patch, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0.0)
    patch = cv2.GaussianBlur(patch, (2 * (rim // 2) + 1, 2 * (rim // 2) + 1), 0)
    there, here = window(sprite.x + dx - rim, sprite.y + dy - rim, patch.shape, len(image))
    image[there] *= np.float32(1) - patch[here].astype(np.float32)[..., None] * np.float32(0.5 / 255)


def paste(image: Single, sprite: Sprite) -> None:
    """Lay a sprite over the image by its opacity."""
    there, here = window(sprite.x, sprite.y, sprite.opacity.shape, len(image))
    weight = sprite.opacity[here].astype(np.float32)[..., None] * np.float32(1 / 255)
    image[there] += (sprite.colour[here].astype(np.float32) - image[there]) * weight


def water(rng: Rng, image: Single, horizon: float) -> Bytes:
    """Lamp light, absorption, haze, blur, marine snow and sensor noise; returns the frame."""
    size = len(image)
    t = (np.arange(size) + 0.5) / size
    distance = 1 / scale(t, horizon)[:, None]  # 1 at the lowest row
    murk = rng.uniform(0.02, 0.2)
    absorb = np.array([0.05, 0.04, 0.26]) * rng.uniform(0.6, 1.4) + murk  # red goes first
    veil = np.array([[118, 104, 34], [104, 112, 44], [92, 106, 60], [128, 96, 30]][int(rng.integers(4))])
    veil = veil * rng.uniform(0.7, 1.1)
    through = np.exp(-absorb * distance).astype(np.float32)  # (size, 3)
    cx, cy = rng.uniform(0.35, 0.65), rng.uniform(0.5, 0.75)
    wide = rng.uniform(0.55, 0.85)
    off = ((t[None] - cx) / wide) ** 2 + ((t[:, None] - cy) / (wide * 0.85)) ** 2
    lamp = (0.42 + 0.85 / (1 + 0.8 * off)).astype(np.float32)[..., None]
    haze = (veil * (1 - np.exp(-(murk + 0.05) * 2.2 * distance))).astype(np.float32)
    gain = np.float32(rng.uniform(0.95, 1.25))
    picture = to_bytes(image * lamp * through[:, None] * gain + haze[:, None])
    blur = rng.uniform(0.0, 0.9) * (size / 256)
    if blur > 0.35:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    picture = snow(rng, picture)
    noise = rng.integers(-3, 4, picture.shape, dtype=np.int16) + rng.integers(-3, 4, picture.shape, dtype=np.int16)
    return np.clip(picture.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def snow(rng: Rng, picture: Bytes) -> Bytes:
    """Drifting particles: many small and sharp, a few large and out of focus."""
    size = len(picture)
    for count, radius, blur, strength in ((60, 0.0028, 0.0, 110), (14, 0.007, 0.008, 70)):
        layer = np.zeros((size, size), np.uint8)
        for _ in range(int(rng.integers(count // 6, count))):
            x, y = (rng.random(2) * size).tolist()
            r = max(0.5, rng.uniform(0.4, 1.2) * radius * size)
            oval(layer, x, y, r, r, (rng.uniform(0.3, 1.0) * strength, 0.0, 0.0))
        if blur:
            layer = cv2.GaussianBlur(layer, (0, 0), blur * size)
        picture = cv2.add(picture, cv2.merge([layer, layer, layer]))
    return picture


def outline(sprite: Sprite, size: int) -> Box:
    """Class and box of an animal: its extent inside the frame, hidden parts included; pixels."""
    there, here = window(sprite.x, sprite.y, sprite.opacity.shape, size)
    left, top, right, bottom = extent(sprite.opacity[here] >= SEEN)
    x, y = float(there[1].start), float(there[0].start)
    return sprite.label, x + left, y + top, x + right, y + bottom


def render(rng: Rng, size: int) -> tuple[Bytes, list[Box]]:
    """Draw one frame of the seafloor.

    Args:
        rng: source of everything in the picture; the same state gives the same frame.
        size: height and width, pixels.

    Returns:
        The image (size, size, 3), BGR, and one (class, x1, y1, x2, y2) per animal in pixels, far ones first. The class
        is an index into `NAMES`. A box holds the animal's whole extent inside the frame, parts hidden behind others
        included; at least 30 % of every animal is to be seen.
    """
    horizon = rng.uniform(0.6, 1.3)
    sprites = arrange(rng, size, horizon)
    while sum(sprite.label >= 0 for sprite in sprites) < MIN_OBJECTS:
        sprites = arrange(rng, size, horizon)
    image = ground(rng, size, horizon)
    for sprite in reversed(sprites):
        shadow(image, sprite)
        paste(image, sprite)
    boxes = [outline(sprite, size) for sprite in reversed(sprites) if sprite.label >= 0]
    return water(rng, image, horizon), boxes
