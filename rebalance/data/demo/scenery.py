"""Pictures of a seafloor as a towed camera sees it: ground, animals, things that are not animals, water.

`render` makes one frame. Everything is drawn from shapes and noise; no photograph is used. The scene is a plane seen at
a slant, lit by lamps on the camera: what is higher in the picture is farther away, smaller, darker and bluer.

Same generator, same picture, on any machine: arithmetic that reaches a pixel is element by element (IEEE) or integer,
OpenCV is used only for its integer rasteriser and its integer blur, and sines are rounded to 1/16 pixel before use.

`t` is a row as a fraction of the frame's height, 0 far and 1 near; `horizon` is how far above the frame the horizon
lies, in frame heights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from rebalance.data.demo.sprites import SLANT, SPECIES, THINGS, Bytes, Kind, Rng, Single, fractal, oval, to_bytes

Box = tuple[int, float, float, float, float]

MIN_OBJECTS, MAX_OBJECTS = 3, 15
HIDDEN = 0.7  # an animal with more than this fraction covered or outside the frame is placed again
TRIES = 12  # places tried for one animal or thing
SEEN = 96  # opacity, of 255, from which a pixel counts as part of an animal
SOILS = (  # mud, sand, cobble, rock: colour, how strong its bumps are, number of small stones
    ((92, 108, 116), 0.5, 14), ((112, 132, 142), 0.35, 26), ((96, 106, 110), 0.9, 210), ((72, 82, 86), 1.5, 70),
)  # fmt: skip


class Sprite(NamedTuple):
    """A drawn animal or thing with its place: `x`, `y` are the frame's pixel of its upper left corner."""

    kind: Kind
    label: int  # index into SPECIES, -1 for a thing
    image: Bytes  # (height, width, 4): colour and opacity
    x: int
    y: int


def scale(t: Any, horizon: float) -> Any:
    """Size of things at row t relative to the lowest row."""
    return (t + horizon) / (1 + horizon)


def halve(image: Bytes) -> Bytes:
    """Mean of 2 x 2 pixels, in integers."""
    wide = image.astype(np.uint16)
    total = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


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
        image = halve(canvas.image)
        middle = len(image) // 2
        left, top, right, bottom = extent(image[..., 3] > 0)
        image, dx = image[top:bottom, left:right], left - middle
        if rng.random() < 0.5:
            image, dx = image[:, ::-1], middle - right
        y = round(t * size) + (top - bottom if kind.upright else top - middle)
        solid = image[..., 3] >= SEEN
        least = (1 - HIDDEN) * int(np.count_nonzero(solid)) if label >= 0 else 0
        for _ in range(TRIES):
            x = round(rng.uniform(-0.02, 1.02) * size) + dx
            there, here = window(x, y, solid.shape, size)
            shown = solid[here] & ~covered[there]
            if shown.size and np.count_nonzero(shown) >= least:
                covered[there] |= solid[here]
                sprites.append(Sprite(kind, label, image, x, y))
                break
    return sprites


def ground(rng: Rng, size: int, horizon: float) -> Single:
    """The bare ground (size, size, 3) before the water: mud, sand, cobble or rock."""
    u, n = size / 256, 256
    colour, bumps, pebbles = SOILS[int(rng.integers(4))]
    base = np.array(colour, np.float32) * rng.uniform(0.85, 1.15, 3).astype(np.float32)
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
    stones(rng, picture, horizon, pebbles, base)
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
    height, width = sprite.image.shape[:2]
    if sprite.kind.upright:  # only the foot touches the ground: a flat patch there
        patch: Bytes = np.zeros((max(3, round(width * 0.3)), width), np.uint8)
        middle, axes = (width // 2, len(patch) // 2), (max(1, round(width * 0.36)), max(1, len(patch) // 3))
        cv2.ellipse(patch, middle, axes, 0, 0, 360, 200.0, -1)
        dx, dy = round(width * 0.08), height - round(len(patch) * 0.55)
    else:
        patch, dx, dy = sprite.image[..., 3], max(1, round(width * 0.05)), max(1, round(height * 0.08))
    rim = max(2, round(width * 0.12))
    patch = cv2.copyMakeBorder(patch, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0.0)
    patch = cv2.GaussianBlur(patch, (2 * (rim // 2) + 1, 2 * (rim // 2) + 1), 0)
    there, here = window(sprite.x + dx - rim, sprite.y + dy - rim, patch.shape, len(image))
    image[there] *= np.float32(1) - patch[here].astype(np.float32)[..., None] * np.float32(0.5 / 255)


def paste(image: Single, sprite: Sprite) -> None:
    """Lay a sprite over the image by its opacity."""
    there, here = window(sprite.x, sprite.y, sprite.image.shape, len(image))
    pixels = sprite.image[here].astype(np.float32)
    image[there] += (pixels[..., :3] - image[there]) * (pixels[..., 3:] * np.float32(1 / 255))


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
        layer = np.zeros_like(picture)
        for _ in range(int(rng.integers(count // 6, count))):
            x, y = (rng.random(2) * size).tolist()
            r = max(0.5, rng.uniform(0.4, 1.2) * radius * size)
            oval(layer, x, y, r, r, (rng.uniform(0.3, 1.0) * strength,) * 3)
        picture = cv2.add(picture, cv2.GaussianBlur(layer, (0, 0), blur * size) if blur else layer)
    return picture


def outline(sprite: Sprite, size: int) -> Box:
    """Class and box of an animal: its extent inside the frame, hidden parts included; pixels."""
    there, here = window(sprite.x, sprite.y, sprite.image.shape, size)
    left, top, right, bottom = extent(sprite.image[here][..., 3] >= SEEN)
    x, y = float(there[1].start), float(there[0].start)
    return sprite.label, x + left, y + top, x + right, y + bottom


def render(rng: Rng, size: int) -> tuple[Bytes, list[Box]]:
    """Draw one frame of the seafloor; the same state of the generator gives the same frame.

    Returns the image (size, size, 3), BGR, and one (class, x1, y1, x2, y2) per animal in pixels, far ones first. The
    class is an index into `NAMES`. A box holds the animal's whole extent inside the frame, parts hidden behind others
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
