"""Pictures of a seafloor as a towed camera sees it: ground, animals, things that are not animals, water.

`render` makes one frame. Everything is drawn from shapes and noise; no photograph is used. The scene is a plane seen at
a slant, lit by lamps on the camera: what is higher in the picture is farther away, smaller, darker and bluer.

Same generator, same picture, on any machine: arithmetic that reaches a pixel is element by element (IEEE) or integer,
OpenCV is used only for its integer rasteriser and its integer blur, and sines are rounded to 1/16 pixel before use.

Shapes: sprites are drawn at twice the size on a `Canvas` and averaged down. `r` is half the length of an animal in
pixels of that doubled canvas. Points are (..., 2) float64, x right, y down. Colours are BGR, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


# --- drawing ----------------------------------------------------------------------------------------------------------


class Canvas:
    """Colour and opacity of one sprite while it is drawn; the origin is its middle."""

    def __init__(self, r: float, fringe: Colour, reach: float = 1.25) -> None:
        side = 2 * (int(np.ceil(r * reach)) + 2)
        self.half = side / 2
        self.mask: Bytes = np.zeros((side, side), np.uint8)
        self.colour: Bytes = np.empty((side, side, 3), np.uint8)
        self.colour[:] = np.asarray(fringe)  # seen only through anti-aliased edges
        self.paint(fringe)

    def paint(self, colour: Colour) -> None:
        """Set the colour of the next strokes."""
        self.ink = tuple(float(c) for c in colour)

    def fixed(self, points: Floats) -> npt.NDArray[np.int32]:
        """Points about the middle as OpenCV's fixed-point integers."""
        return np.rint((np.asarray(points) + self.half) * (1 << SHIFT)).astype(np.int32)

    def lines(self, points: Floats, width: float) -> None:
        """Draw polylines (m, n, 2) with a width in pixels."""
        strokes = list(self.fixed(points))
        thick = max(1, round(width))
        cv2.polylines(self.colour, strokes, False, self.ink, thick, cv2.LINE_AA, SHIFT)
        cv2.polylines(self.mask, strokes, False, 255.0, thick, cv2.LINE_AA, SHIFT)

    def polygon(self, points: Floats) -> None:
        """Fill a polygon (n, 2)."""
        corners = [self.fixed(points)]
        cv2.fillPoly(self.colour, corners, self.ink, cv2.LINE_AA, SHIFT)
        cv2.fillPoly(self.mask, corners, 255.0, cv2.LINE_AA, SHIFT)

    def dots(self, points: Floats, radius: float) -> None:
        """Draw small discs at points (n, 2), inside what is there already or not."""
        reach = max(1, round(radius * (1 << SHIFT)))
        for x, y in self.fixed(points).tolist():
            cv2.circle(self.colour, (x, y), reach, self.ink, -1, cv2.LINE_AA, SHIFT)
            cv2.circle(self.mask, (x, y), reach, 255.0, -1, cv2.LINE_AA, SHIFT)

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> None:
        """Fill an ellipse with half axes rx, ry; angle in degrees."""
        (cx, cy) = self.fixed(np.array([x, y])).tolist()
        axes = (max(1, round(rx * (1 << SHIFT))), max(1, round(ry * (1 << SHIFT))))
        cv2.ellipse(self.colour, (cx, cy), axes, angle, 0, 360, self.ink, -1, cv2.LINE_AA, SHIFT)
        cv2.ellipse(self.mask, (cx, cy), axes, angle, 0, 360, 255.0, -1, cv2.LINE_AA, SHIFT)

    def relief(self, width: float, strength: float) -> None:
        """Light the shape from the upper left as if its opacity were its height."""
        size = 2 * max(1, round(width)) + 1
        height = cv2.GaussianBlur(self.mask, (size, size), 0).astype(np.float32)
        step = max(1, round(width / 2))
        slope = np.zeros_like(height)
        slope[:-step, :-step] = height[step:, step:] - height[:-step, :-step]
        factor = np.float32(1) + slope * np.float32(strength / 255)
        self.colour = to_bytes(self.colour * factor[..., None])

    def grain(self, rng: Rng, amount: float) -> None:
        """Vary the brightness in small patches by up to `amount` (fraction)."""
        n = self.mask.shape[0]
        noise = fractal(rng, n, (max(3, n // 12), max(4, n // 4)))
        self.colour = to_bytes(
            self.colour * (np.float32(1) + (noise - np.float32(0.5)) * np.float32(2 * amount))[..., None]
        )

    def finish(self) -> tuple[Bytes, Bytes]:
        """Average 2 x 2 pixels: colour (h, w, 3) and opacity (h, w)."""
        return halve(self.colour), halve(self.mask)


def halve(image: Bytes) -> Bytes:
    """Mean of 2 x 2 pixels, in integers."""
    wide = image.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def to_bytes(image: npt.NDArray[Any]) -> Bytes:
    """Clip to 0..255 and round."""
    return np.asarray(np.rint(np.clip(image, 0, 255)), np.uint8)


def fractal(rng: Rng, n: int, cells: Sequence[int], fade: float = 0.55) -> Single:
    """Value noise (n, n) in 0..1 that wraps around.

    Args:
        rng: random values of the lattices.
        n: side of the result.
        cells: lattice cells a side, one number an octave.
        fade: strength of an octave relative to the one before.
    """
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


def grow(rng: Rng, start: Floats, heading: Floats, length: Floats, steps: int, wander: float, curl: float) -> Floats:
    """Curved lines from `start` (m, 2) along `heading` (m,) radians: points (m, steps + 1, 2).

    Args:
        rng: random choices.
        start: first points.
        heading: first directions.
        length: lengths, pixels.
        steps: straight pieces a line.
        wander: change of direction a step, radians, at random.
        curl: largest steady turn over the whole line, radians.
    """
    m = len(start)
    turn = rng.uniform(-wander, wander, (m, steps)) + rng.uniform(-curl, curl, (m, 1)) / steps
    angle = heading[:, None] + np.cumsum(turn, axis=1)
    step = (length / steps)[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    points = start[:, None] + np.concatenate([np.zeros((m, 1, 2)), np.cumsum(step, axis=1)], axis=1)
    return np.asarray(points, np.float64)


def fit(levels: list[tuple[Floats, float]], r: float, half: tuple[float, float]) -> list[tuple[Floats, float]]:
    """Stretch all lines together so that they fill a frame of half width and half height `half`, in lengths r."""
    points = np.concatenate([lines.reshape(-1, 2) for lines, _ in levels])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = r * 2 * np.asarray(half) / (high - low)
    return [((lines - (low + high) / 2) * scale, width) for lines, width in levels]


def headings(points: Floats) -> Floats:
    """Direction of the last piece of each line (m, n, 2), radians."""
    last = points[:, -1] - points[:, -2]
    return np.asarray(np.arctan2(last[:, 1], last[:, 0]), np.float64)


def lay(points: Floats, slant: float = SLANT) -> Floats:
    """Lay a shape drawn from above on the slanted ground."""
    return np.asarray(points * np.array([1.0, slant]), np.float64)


def tint(rng: Rng, colour: Colour, amount: float = 0.12) -> Colour:
    """A colour of one individual: brightness ± amount, each channel ± a third of it."""
    scale = rng.uniform(1 - amount, 1 + amount) * rng.uniform(1 - amount / 3, 1 + amount / 3, 3)
    b, g, r = (float(c) for c in np.clip(np.asarray(colour) * scale, 0, 255))
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
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# --- animals ----------------------------------------------------------------------------------------------------------


def basket_star(rng: Rng, r: float) -> Canvas:
    """Five arms that fork again and again into a tangle of curled tips."""
    base = tint(rng, (122, 158, 198))
    canvas = Canvas(r, shade(base, 0.5))
    angle = rng.uniform(0, 2 * np.pi) + np.arange(5) * (2 * np.pi / 5) + rng.uniform(-0.2, 0.2, 5)
    start = np.stack([np.cos(angle), np.sin(angle)], axis=1) * r * 0.1
    length = np.full(5, r * 0.26) * rng.uniform(0.85, 1.1, 5)
    width = max(1.6, r * 0.08)
    levels: list[tuple[Floats, float]] = []
    for level in range(6):
        tip = level == 5
        lines = grow(rng, start, angle, length, 8 if tip else 4, 0.14, 5.5 if tip else 0.7)
        levels.append((lines, width))
        spread = rng.uniform(0.3, 0.7, len(angle))
        angle = np.concatenate([headings(lines) - spread, headings(lines) + spread * rng.uniform(0.5, 1.1, len(angle))])
        start = np.concatenate([lines[:, -1], lines[:, -1]])
        length = np.concatenate([length, length]) * rng.uniform(0.66, 0.9, 2 * len(length))
        width = max(1.0, width * 0.7)
    levels = fit(levels, r, (1.0, 1.0))
    canvas.paint(shade(base, 0.42))
    for lines, thick in levels:
        canvas.lines(lay(lines) + max(1.0, thick * 0.3), thick + 1.0)
    for level, (lines, thick) in enumerate(reversed(levels)):
        canvas.paint(shade(base, 1.2 - 0.05 * level - 0.1 * (level % 2)))
        canvas.lines(lay(lines), thick)
    canvas.paint(shade(base, 0.7))
    canvas.polygon(lay(ring(rng, 20, 0.05, 5, 0.2)) * r * 0.16)
    canvas.paint(shade(base, 1.05))
    canvas.polygon(lay(ring(rng, 20, 0.05, 5, 0.25)) * r * 0.11)
    canvas.relief(max(2.0, r * 0.05), 0.45)
    return canvas


def sunflower_star(rng: Rng, r: float) -> Canvas:
    """A small disc with nine to fourteen long thin arms."""
    base = tint(rng, (62, 112, 205))
    canvas = Canvas(r, shade(base, 0.5))
    arms = int(rng.integers(9, 15))
    angle = rng.uniform(0, 2 * np.pi) + np.arange(arms) * (2 * np.pi / arms) + rng.uniform(-0.12, 0.12, arms)
    start = np.stack([np.cos(angle), np.sin(angle)], axis=1) * r * 0.08
    length = r * rng.uniform(0.72, 0.98, arms)
    lines = lay(grow(rng, start, angle, length, 12, 0.09, 0.7))
    width = max(2.2, r * 0.12)
    for colour, grown, offset in ((shade(base, 0.5), 1.5, 0.6), (base, 0.0, 0.0)):
        canvas.paint(colour)
        for first in range(0, 12, 3):
            canvas.lines(lines[:, first : first + 4] + offset, max(1.0, width * (1 - first * 0.065)) + grown)
    canvas.paint(base)
    canvas.ellipse(0, 0, r * 0.17, r * 0.17 * SLANT)
    canvas.relief(max(2.0, r * 0.06), 0.8)
    canvas.paint(shade(base, 1.5))
    canvas.dots(lines[:, 1:10].reshape(-1, 2), max(0.6, r * 0.012))
    return canvas


def gorgonian(rng: Rng, r: float, colour: Colour, polyps: float) -> Canvas:
    """A fan coral: stems that fork in one upright plane."""
    base = tint(rng, colour, 0.12)
    canvas = Canvas(r, shade(base, 0.5), reach=1.1)
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
        start = np.concatenate([lines[:, -1], lines[:, -1]])
        length = np.concatenate([length, length]) * rng.uniform(0.6, 0.95, 2 * len(length))
        width = max(1.0, width * 0.76)
    levels = fit(levels, r, (rng.uniform(0.7, 1.0), rng.uniform(0.8, 1.0)))
    canvas.paint(shade(base, 0.45))
    for lines, thick in levels:
        canvas.lines(lines + 0.7, thick + 1.2)
    for level, (lines, thick) in enumerate(levels):
        canvas.paint(shade(base, 0.66 + 0.09 * level))
        canvas.lines(lines, thick)
    outer = np.concatenate([lines[:, 1:].reshape(-1, 2) for lines, _ in levels[2:]])
    outer = outer[rng.random(len(outer)) < polyps]
    canvas.paint(shade(base, 1.2))
    canvas.dots(outer + rng.uniform(-1, 1, outer.shape) * r * 0.015, max(0.7, r * 0.015))
    return canvas


def gray_gorgonian(rng: Rng, r: float) -> Canvas:
    """Fan coral, pale gray."""
    return gorgonian(rng, r, (160, 168, 174), 0.3)


def yellow_gorgonian(rng: Rng, r: float) -> Canvas:
    """Fan coral of the same build as the gray one, yellow; far away, the water hides the difference."""
    return gorgonian(rng, r, (104, 164, 190), 0.4)


def urchin(rng: Rng, r: float) -> Canvas:
    """A pink ball of fine spines."""
    base = tint(rng, (150, 128, 208))
    canvas = Canvas(r, shade(base, 0.5))
    count = 180
    angle, rise = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    out = np.stack([np.cos(angle), np.sin(angle) * 0.86], axis=1) * rise[:, None]
    order = np.argsort(-rise, kind="stable")  # spines at the rim first, those that point at the camera last
    out, rise = out[order], rise[order]
    tips = out * r * rng.uniform(0.78, 1.0, (count, 1)) + np.array([0.0, -r * 0.06])
    canvas.paint(shade(base, 0.45))
    canvas.ellipse(0, 0, r * 0.56, r * 0.5)
    for part in np.array_split(np.arange(count), 6):
        light = 0.7 + 0.55 * (1 - float(rise[part].mean()))
        canvas.paint(shade(base, light))
        if part[0] == count // 2:
            canvas.ellipse(0, 0, r * 0.5, r * 0.44)
        lines = np.stack([out[part] * r * 0.4, tips[part]], axis=1)
        canvas.lines(lines, max(1.0, r * 0.035))
        canvas.paint(shade(base, light * 1.35))
        canvas.lines(np.stack([lines.mean(axis=1), tips[part]], axis=1), 1)
    canvas.relief(max(3.0, r * 0.3), 0.55)
    return canvas


def squat_lobster(rng: Rng, r: float) -> Canvas:
    """Carapace, folded tail, three pairs of legs and two long claws held out in front."""
    base = tint(rng, (52, 92, 222))
    canvas = Canvas(r, shade(base, 0.45))
    facing = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(facing), np.sin(facing)], [-np.sin(facing), np.cos(facing)]])

    def place(points: npt.ArrayLike) -> Floats:
        """Points with x forward and y to the side, in lengths r, as they lie on the ground."""
        rough = np.asarray(points, np.float64) * r
        return lay(np.stack([(rough * turn[:, 0]).sum(-1), (rough * turn[:, 1]).sum(-1)], axis=-1), 0.75)

    opening = rng.uniform(0.75, 1.25)
    for side in (-1.0, 1.0):
        canvas.paint(shade(base, 0.72))
        for leg in range(3):
            root, out = -0.02 - 0.09 * leg, 0.2 - 0.25 * leg + rng.uniform(-0.08, 0.08)
            knee = [root + out * 0.8, side * rng.uniform(0.38, 0.46)]
            canvas.lines(
                place([[[root, side * 0.12], knee, [root + out * 1.2 - 0.1, side * rng.uniform(0.56, 0.7)]]]), r * 0.045
            )
        canvas.paint(shade(base, 0.95))
        elbow = [0.36 * rng.uniform(0.85, 1.1), side * 0.34 * opening]
        wrist = [0.66 * rng.uniform(0.92, 1.08), side * 0.3 * opening * rng.uniform(0.7, 1.15)]
        canvas.lines(place([[[0.14, side * 0.13], elbow, wrist]]), r * 0.085)
        for finger in (-1.0, 1.0):
            tip = [wrist[0] + 0.3, wrist[1] + finger * 0.045 - side * 0.03]
            line = place(np.linspace([wrist[0] - 0.06, wrist[1] + finger * 0.02], tip, 5))
            canvas.polygon(ribbon(line, r * np.array([0.035, 0.06, 0.055, 0.035, 0.012])))
    for back in range(4, 0, -1):  # tail segments, the last one folded under
        canvas.paint(shade(base, 0.68 if back % 2 else 1.05))
        oval = ring(rng, 16, 0.02) * [0.1, 0.185 - 0.018 * back] + [-0.16 - 0.085 * back, 0]
        canvas.polygon(place(oval))
    shell = np.array([[0.42, 0], [0.27, 0.07], [0.22, 0.15], [0.0, 0.2], [-0.18, 0.17], [-0.22, 0]])
    shell = np.concatenate([shell, shell[-2:0:-1] * [1, -1]])
    canvas.paint(shade(base, 1.08))
    canvas.polygon(place(shell))
    canvas.relief(max(2.0, r * 0.07), 0.9)
    canvas.paint(shade(base, 1.6))
    for x in (0.12, 0.0, -0.1):
        canvas.lines(place([[[x, -0.13], [x - 0.03, 0.0], [x, 0.13]]]), 1)
    canvas.paint((25, 25, 30))
    canvas.dots(place([[0.27, 0.09], [0.27, -0.09]]), max(1.0, r * 0.028))
    return canvas


def laced_sponge(rng: Rng, r: float) -> Canvas:
    """A pale ruffled clump, pierced like lace."""
    base = tint(rng, (140, 172, 188), 0.1)
    canvas = Canvas(r, shade(base, 0.5))
    for lobe in range(int(rng.integers(3, 6))):
        size = rng.uniform(0.36, 0.55) if lobe else 0.66
        centre = np.array([rng.uniform(-0.48, 0.48), rng.uniform(-0.38, 0.3)]) if lobe else np.array([0.0, 0.14])
        rim = ring(rng, 44, 0.07, int(rng.integers(7, 12)), 0.08) * [size, size * rng.uniform(0.75, 0.95)] + centre
        canvas.paint(shade(base, 0.5))
        canvas.polygon(rim * r + r * 0.035)
        canvas.paint(shade(base, 1.12))
        canvas.polygon(rim * r)
        canvas.paint(shade(base, rng.uniform(0.78, 0.95)))
        canvas.polygon((rim - centre) * r * 0.9 + (centre + np.array([0, 0.015])) * r)
    canvas.relief(max(3.0, r * 0.2), 0.6)
    canvas.grain(rng, 0.18)
    inside = canvas.mask.copy()
    count = int(rng.integers(80, 120))
    angle, far = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count)) * 0.82
    for x, y in (np.stack([far * np.cos(angle), far * np.sin(angle) * 0.85], axis=1) * r).tolist():
        hole, tilt = rng.uniform(0.018, 0.058) * r, rng.uniform(0, 180)
        if inside[round(y + canvas.half), round(x + canvas.half)]:
            canvas.paint(shade(base, 1.12))
            canvas.ellipse(x, y, hole * 1.4, hole * 1.05, tilt)
            canvas.paint(shade(base, rng.uniform(0.38, 0.58)))
            canvas.ellipse(x + hole * 0.1, y + hole * 0.1, hole, hole * 0.68, tilt)
    return canvas


def sea_cucumber(rng: Rng, r: float) -> Canvas:
    """A long soft body with pale conical spines."""
    base = tint(rng, (84, 98, 158), 0.15)
    canvas = Canvas(r, shade(base, 0.5))
    n = 16
    heading = rng.uniform(0, 2 * np.pi)
    forward = np.array([[np.cos(heading), np.sin(heading)]])
    line = grow(rng, -forward * r * 0.82, np.array([heading]), np.array([r * 1.64]), n - 1, 0.06, 0.7)[0]
    line = lay(line - line.mean(axis=0), 0.72)
    along = np.linspace(0, 1, n)
    width = r * rng.uniform(0.2, 0.26) * np.sqrt(np.clip(1 - (2 * along - 1) ** 4, 0.05, 1))
    canvas.paint(base)
    canvas.polygon(ribbon(line, width))
    canvas.relief(max(3.0, r * 0.16), 0.9)
    canvas.grain(rng, 0.18)
    pale: Colour = tint(rng, (205, 220, 232), 0.06)
    at = rng.uniform(0.04, 0.96, 46) * (n - 1)
    low = at.astype(np.intp)
    roots = line[low] + (line[low + 1] - line[low]) * (at - low)[:, None]
    edge = ribbon(line, width)[:n] - line
    across = np.where(np.arange(46) < 24, np.sign(rng.uniform(-1, 1, 46)), rng.uniform(-0.8, 0.8, 46))
    roots = roots + edge[low] * (across * 0.9)[:, None]
    lift = edge[low] * (across * 0.45)[:, None] + np.array([0.0, -r * 0.07])
    order = np.argsort(roots[:, 1], kind="stable")
    for i in order:
        tip, thick = roots[i] + lift[i] * rng.uniform(0.8, 1.3), r * 0.03
        foot = np.array([thick, 0.0])
        canvas.paint(shade(pale, 0.72))
        canvas.polygon(np.stack([roots[i] - foot, tip, roots[i] + foot]))
        canvas.paint(pale)
        canvas.lines(np.stack([roots[i] * 0.5 + tip * 0.5, tip])[None], 1)
    return canvas


# --- what is not an animal, or not one of ours ------------------------------------------------------------------------


def rock(rng: Rng, r: float) -> Canvas:
    """A stone, sometimes with a crust in a warm colour."""
    base = tint(rng, (88, 98, 104), 0.25)
    canvas = Canvas(r, shade(base, 0.6))
    canvas.paint(base)
    outline = ring(rng, 11, 0.16) * [r * 0.92, r * rng.uniform(0.5, 0.7)]
    canvas.polygon(outline)
    canvas.paint(shade(base, 1.25))
    canvas.polygon(outline * [0.78, 0.62] + [-r * 0.05, -r * 0.14])
    canvas.relief(max(3.0, r * 0.2), 0.8)
    canvas.grain(rng, 0.35)
    if rng.random() < 0.35:
        canvas.paint(tint(rng, (110, 105, 150), 0.2))
        spots = np.stack([rng.uniform(-0.5, 0.5, 9) * r, rng.uniform(-0.35, 0.2, 9) * r], axis=1)
        canvas.dots(spots, r * 0.06)
    return canvas


def shell(rng: Rng, r: float) -> Canvas:
    """An empty scallop: a pale ribbed fan, the size of an urchin."""
    base = tint(rng, (186, 200, 208), 0.15)
    canvas = Canvas(r, shade(base, 0.5))
    facing = rng.uniform(0, 2 * np.pi)
    angle = facing + np.linspace(-1.0, 1.0, 13)
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=1) * r * (0.92 + 0.04 * (np.arange(13) % 2))[:, None]
    hinge = np.array([[np.cos(facing), np.sin(facing)]]) * -r * 0.5
    canvas.paint(base)
    canvas.polygon(lay(np.concatenate([hinge, rim]), 0.75))
    canvas.relief(max(2.0, r * 0.15), 0.7)
    canvas.paint(shade(base, 0.68))
    canvas.lines(lay(np.stack([np.repeat(hinge, 11, axis=0), rim[1:-1]], axis=1), 0.75), 1)
    return canvas


def twig(rng: Rng, r: float) -> Canvas:
    """A dead, bare branch of a coral, lying down."""
    base = tint(rng, (72, 84, 92), 0.2)
    canvas = Canvas(r, shade(base, 0.5))
    heading = np.array([rng.uniform(0, 2 * np.pi)])
    start = -np.stack([np.cos(heading), np.sin(heading)], axis=1) * r * 0.8
    stem = grow(rng, start, heading, np.array([r * 1.5]), 8, 0.18, 0.5)
    side = headings(np.repeat(stem, 4, axis=0)) + rng.choice([-0.8, 0.8], 4) * rng.uniform(0.6, 1.2, 4)
    twigs = grow(rng, stem[0, [2, 4, 5, 6]], side, r * rng.uniform(0.2, 0.55, 4), 4, 0.2, 0.5)
    canvas.paint(base)
    canvas.lines(lay(stem), max(1.5, r * 0.06))
    canvas.lines(lay(twigs), max(1.0, r * 0.04))
    canvas.relief(2.0, 0.8)
    return canvas


def weed(rng: Rng, r: float) -> Canvas:
    """Torn blades of drift weed."""
    base = tint(rng, (48, 92, 92), 0.25)
    canvas = Canvas(r, shade(base, 0.5))
    blades = int(rng.integers(2, 5))
    lines = grow(rng, np.zeros((blades, 2)), rng.uniform(0, 2 * np.pi, blades), np.full(blades, r * 0.95), 9, 0.25, 1.2)
    width = r * 0.09 * np.sin(np.linspace(0.4, np.pi, 10))
    for line in lay(lines):
        canvas.paint(shade(base, rng.uniform(0.7, 1.2)))
        canvas.polygon(ribbon(line, width))
    canvas.relief(3.0, 0.6)
    return canvas


@dataclass(frozen=True)
class Kind:
    """A species or a thing: how it is drawn, how long it is, how often it comes."""

    name: str
    draw: Callable[[Rng, float], Canvas]
    length: tuple[float, float]  # near the camera, fraction of the frame's side
    share: float  # relative frequency
    upright: bool = False  # stands on its lower end, instead of lying on its middle
    groups: float = 0.15  # chance that the next animal is of the same species


SPECIES: tuple[Kind, ...] = (
    Kind("basket star", basket_star, (0.34, 0.46), 1.0),
    Kind("fragile pink urchin", urchin, (0.17, 0.25), 1.3, groups=0.5),
    Kind("gray gorgonian", gray_gorgonian, (0.32, 0.46), 1.0, upright=True),
    Kind("long legged sunflower star", sunflower_star, (0.32, 0.44), 1.0),
    Kind("squat lobster", squat_lobster, (0.24, 0.34), 1.2, groups=0.3),
    Kind("ui laced sponge", laced_sponge, (0.22, 0.36), 1.0, upright=True),
    Kind("white spine sea cucumber", sea_cucumber, (0.26, 0.38), 1.1),
    Kind("yellow gorgonian", yellow_gorgonian, (0.32, 0.46), 1.0, upright=True),
)
THINGS: tuple[Kind, ...] = (
    Kind("rock", rock, (0.12, 0.34), 1.6),
    Kind("shell", shell, (0.10, 0.17), 1.0),
    Kind("twig", twig, (0.22, 0.40), 0.7),
    Kind("weed", weed, (0.20, 0.36), 0.7),
)
NAMES = tuple(kind.name for kind in SPECIES)


# --- the frame --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """The camera over the ground. `t` is a row as a fraction of the frame's height, 0 far and 1 near."""

    horizon: float  # height of the horizon above the frame, in frame heights

    def scale(self, t: Any) -> Any:
        """Size of things at row t relative to the lowest row."""
        return (t + self.horizon) / (1 + self.horizon)


class Sprite(NamedTuple):
    """A drawn animal or thing with its place: `x`, `y` are the frame's pixel of its upper left corner."""

    kind: Kind
    label: int  # index into SPECIES, -1 for a thing
    colour: Bytes
    opacity: Bytes
    x: int
    y: int


def window(sprite_x: int, sprite_y: int, shape: tuple[int, ...], size: int) -> tuple[slice, slice, slice, slice] | None:
    """Rows and columns of the frame, then of the sprite, where they overlap; None where they do not."""
    height, width = shape[:2]
    top, left = max(0, sprite_y), max(0, sprite_x)
    bottom, right = min(size, sprite_y + height), min(size, sprite_x + width)
    if top >= bottom or left >= right:
        return None
    return (
        slice(top, bottom),
        slice(left, right),
        slice(top - sprite_y, bottom - sprite_y),
        slice(left - sprite_x, right - sprite_x),
    )


def trim(colour: Bytes, opacity: Bytes) -> tuple[Bytes, Bytes, int, int]:
    """Cut the empty rim off; also returns the offset (x, y) of what is left from the middle of the sprite."""
    rows, columns = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    half = opacity.shape[0] // 2
    return colour[top:bottom, left:right], opacity[top:bottom, left:right], int(left) - half, int(top) - half


def pick(rng: Rng, kinds: Sequence[Kind], near: int) -> int:
    """Index of the next kind: of the same species as the last, or by frequency."""
    if near >= 0 and rng.random() < kinds[near].groups:
        return near
    shares = np.cumsum([kind.share for kind in kinds])
    return int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))


def arrange(rng: Rng, size: int, view: View) -> list[Sprite]:
    """Place 3 to 15 animals and some things, nearest first.

    An animal of which more than `HIDDEN` would be covered by nearer ones or lie outside the frame is moved, `TRIES`
    times at most; then it is left out.
    """
    animals = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    things = int(rng.integers(1, 7))
    wanted: list[tuple[float, Kind, int]] = []
    last = -1
    for _ in range(animals):
        last = pick(rng, SPECIES, last)
        wanted.append((rng.uniform(0.14, 1.04), SPECIES[last], last))
    for _ in range(things):
        wanted.append((rng.uniform(0.05, 1.04), THINGS[pick(rng, THINGS, -1)], -1))
    covered = np.zeros((size, size), bool)
    sprites: list[Sprite] = []
    for t, kind, label in sorted(wanted, key=lambda item: -item[0]):
        length = rng.uniform(*kind.length) * float(view.scale(t)) * size
        colour, opacity, left, top = trim(*kind.draw(rng, max(6.0, length)).finish())
        if rng.random() < 0.5:
            colour, opacity, left = colour[:, ::-1], opacity[:, ::-1], -left - opacity.shape[1]
        y = round(t * size) + (-opacity.shape[0] if kind.upright else top)
        solid = opacity >= SEEN
        full = int(np.count_nonzero(solid))
        for _ in range(TRIES):
            x = round(rng.uniform(-0.02, 1.02) * size) + left
            part = window(x, y, opacity.shape, size)
            if part is None:
                continue
            shown = solid[part[2:]] & ~covered[part[:2]]
            if label >= 0 and np.count_nonzero(shown) < (1 - HIDDEN) * full:
                continue
            covered[part[:2]] |= solid[part[2:]]
            sprites.append(Sprite(kind, label, colour, opacity, x, y))
            break
    return sprites


def ground(rng: Rng, size: int, view: View) -> Single:
    """The bare ground (size, size, 3) before the water: mud, sand, cobble or rock."""
    u = size / 256
    soil = int(rng.integers(4))
    base = np.array([(92, 108, 116), (112, 132, 142), (96, 106, 110), (72, 82, 86)][soil], np.float32)
    base *= rng.uniform(0.85, 1.15, 3).astype(np.float32)
    bumps = (0.5, 0.35, 0.9, 1.5)[soil]
    t = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    near = view.scale(t).astype(np.float32)
    # A picture row at depth 1/near looks at the ground this far away, in pixels of the lowest row.
    along = np.float32(size / SLANT * (1 + view.horizon)) / near
    across = (np.arange(size, dtype=np.float32) - np.float32(size / 2))[None] / near[:, None]
    n = 256

    def spread(texture: Single, zoom: float) -> Single:
        """Look the texture up (bilinear, wrapping) where each pixel meets the ground."""
        x = across * np.float32(zoom / u) + np.float32(4 * n)
        y = np.broadcast_to((along * np.float32(zoom / u))[:, None], x.shape)
        x0, y0 = x.astype(np.int32), y.astype(np.int32)
        fx, fy = x - x0.astype(np.float32), y - y0.astype(np.float32)
        x0, x1, y0, y1 = x0 % n, (x0 + 1) % n, (y0 % n) * n, ((y0 + 1) % n) * n
        flat = texture.ravel()
        upper = flat[y0 + x0] * (1 - fx) + flat[y0 + x1] * fx
        lower = flat[y1 + x0] * (1 - fx) + flat[y1 + x1] * fx
        return np.asarray(upper * (1 - fy) + lower * fy, np.float32)

    coarse = spread(fractal(rng, n, (5, 11, 23), 0.6), 0.7)
    fine = spread(fractal(rng, n, (41, 83, 128), 0.8), 0.9)
    hue = spread(fractal(rng, n, (4, 9), 0.5), 0.5) - np.float32(0.5)
    height = coarse * np.float32(22) + (fine - np.float32(0.5)) * near[:, None] * np.float32(7)
    slope = np.zeros_like(height)
    slope[1:, 1:] = height[1:, 1:] - height[:-1, :-1]
    light = np.float32(1) - slope * np.float32(0.16 * bumps * u) + (coarse - np.float32(0.5)) * np.float32(0.5)
    light += (fine - np.float32(0.5)) * near[:, None] * np.float32(0.45)
    image = base * light[..., None]
    image += hue[..., None] * np.array([-18, 0, 34], np.float32)
    picture = to_bytes(image)
    stones(rng, picture, view, (14, 26, 210, 70)[soil], base)
    return picture.astype(np.float32)


def stones(rng: Rng, picture: Bytes, view: View, count: int, base: Single) -> None:
    """Strew small stones over the ground, far ones first."""
    size = picture.shape[0]
    count = int(count * rng.uniform(0.6, 1.4))
    rows = np.sort(rng.random(count))
    fixed = 1 << SHIFT
    for t in rows.tolist():
        scale = float(view.scale(t))
        rx = rng.uniform(0.006, 0.026) * rng.uniform(0.4, 1.0) * scale * size
        ry, angle = rx * rng.uniform(0.55, 0.85), rng.uniform(-25, 25)
        x, y = rng.random() * size, t * size
        colour = base * np.float32(rng.uniform(0.65, 1.4)) + rng.uniform(-8, 8, 3).astype(np.float32)
        for dx, dy, grow_by, factor in ((0.25, 0.35, 1.1, 0.45), (0, 0, 1.0, 0.9), (-0.12, -0.25, 0.62, 1.2)):
            centre = (round((x + dx * rx) * fixed), round((y + dy * ry) * fixed))
            axes = (max(8, round(rx * grow_by * fixed)), max(6, round(ry * grow_by * fixed)))
            ink = tuple(float(c) for c in colour * np.float32(factor))
            cv2.ellipse(picture, centre, axes, angle, 0, 360, ink, -1, cv2.LINE_AA, SHIFT)


def shadow(image: Single, sprite: Sprite) -> None:
    """Darken the ground below and to the right of a sprite."""
    height, width = sprite.opacity.shape
    if sprite.kind.upright:  # only the foot touches the ground: a flat patch there
        patch: Bytes = np.zeros((max(3, round(width * 0.3)), width), np.uint8)
        middle = (width // 2, patch.shape[0] // 2)
        cv2.ellipse(patch, middle, (max(1, round(width * 0.36)), max(1, patch.shape[0] // 3)), 0, 0, 360, 200.0, -1)
        dx, dy = round(width * 0.08), height - round(patch.shape[0] * 0.55)
    else:
        patch, dx, dy = sprite.opacity, max(1, round(width * 0.05)), max(1, round(height * 0.08))
    rim = max(2, round(width * 0.12))
    patch = cv2.copyMakeBorder(patch, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0.0)
    patch = cv2.GaussianBlur(patch, (2 * (rim // 2) + 1, 2 * (rim // 2) + 1), 0)
    part = window(sprite.x + dx - rim, sprite.y + dy - rim, patch.shape, image.shape[0])
    if part is not None:
        image[part[:2]] *= np.float32(1) - patch[part[2:]].astype(np.float32)[..., None] * np.float32(0.5 / 255)


def paste(image: Single, sprite: Sprite) -> None:
    """Lay a sprite over the image by its opacity."""
    part = window(sprite.x, sprite.y, sprite.opacity.shape, image.shape[0])
    if part is not None:
        weight = sprite.opacity[part[2:]].astype(np.float32)[..., None] * np.float32(1 / 255)
        below = image[part[:2]]
        below += (sprite.colour[part[2:]].astype(np.float32) - below) * weight


def water(rng: Rng, image: Single, view: View) -> Bytes:
    """Lamp light, absorption, haze, blur, marine snow and sensor noise; returns the frame."""
    size = image.shape[0]
    u = size / 256
    t = (np.arange(size) + 0.5) / size
    distance = 1 / view.scale(t)  # 1 at the lowest row
    murk = rng.uniform(0.02, 0.2)
    absorb = np.array([0.05, 0.04, 0.26]) * rng.uniform(0.6, 1.4) + murk  # red goes first
    veil = np.array([[118, 104, 34], [104, 112, 44], [92, 106, 60], [128, 96, 30]][int(rng.integers(4))])
    veil = veil * rng.uniform(0.7, 1.1)
    through = np.exp(-absorb * distance[:, None]).astype(np.float32)  # (size, 3)
    cx, cy = rng.uniform(0.35, 0.65), rng.uniform(0.5, 0.75)
    wide = rng.uniform(0.55, 0.85)
    off = ((t[None] - cx) / wide) ** 2 + ((t[:, None] - cy) / (wide * 0.85)) ** 2
    lamp = (0.42 + 0.85 / (1 + 0.8 * off)).astype(np.float32)[..., None]
    haze = (veil * (1 - np.exp(-(murk + 0.05) * 2.2 * distance))[:, None]).astype(np.float32)
    gain = np.float32(rng.uniform(0.95, 1.25))
    picture = to_bytes(image * lamp * through[:, None] * gain + haze[:, None])
    blur = rng.uniform(0.0, 0.9) * u
    if blur > 0.35:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    picture = snow(rng, picture)
    noise = rng.integers(-3, 4, picture.shape, dtype=np.int16) + rng.integers(-3, 4, picture.shape, dtype=np.int16)
    return np.clip(picture.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def snow(rng: Rng, picture: Bytes) -> Bytes:
    """Drifting particles: many small and sharp, a few large and out of focus."""
    size = picture.shape[0]
    fixed = 1 << SHIFT
    result = picture
    for count, radius, blur, strength in ((60, 0.0028, 0.0, 110), (14, 0.007, 0.008, 70)):
        layer = np.zeros((size, size), np.uint8)
        for _ in range(int(rng.integers(count // 6, count))):
            x, y = (round(v * size * fixed) for v in rng.random(2).tolist())
            reach = max(8, round(rng.uniform(0.4, 1.2) * radius * size * fixed))
            cv2.circle(layer, (x, y), reach, rng.uniform(0.3, 1.0) * strength, -1, cv2.LINE_AA, SHIFT)
        if blur:
            layer = cv2.GaussianBlur(layer, (0, 0), blur * size)
        result = cv2.add(result, cv2.merge([layer, layer, layer]))
    return np.asarray(result, np.uint8)


def outline(sprite: Sprite, size: int) -> Box:
    """Class and box of an animal: its extent inside the frame, hidden parts included; pixels."""
    part = window(sprite.x, sprite.y, sprite.opacity.shape, size)
    assert part is not None  # arrange places nothing outside the frame
    solid = sprite.opacity[part[2:]] >= SEEN
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    top, left = part[0].start, part[1].start
    return (
        sprite.label,
        left + float(columns[0]),
        top + float(rows[0]),
        left + float(columns[-1]) + 1,
        top + float(rows[-1]) + 1,
    )


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
    view = View(horizon=rng.uniform(0.6, 1.3))
    sprites = arrange(rng, size, view)
    while sum(sprite.label >= 0 for sprite in sprites) < MIN_OBJECTS:
        sprites = arrange(rng, size, view)
    image = ground(rng, size, view)
    for sprite in reversed(sprites):
        shadow(image, sprite)
        paste(image, sprite)
    boxes = [outline(sprite, size) for sprite in reversed(sprites) if sprite.label >= 0]
    return water(rng, image, view), boxes
