"""A picture of some images with what was written about them: labels, unknown (hatched) and background regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rebalance.data.pixels import read
from rebalance.data.regions import Regions

_COUNT, _COLUMNS, _SIDE = 12, 4, 320  # images, images a row, pixels of a cell
_UNKNOWN, _BACKGROUND = (60, 200, 255), (90, 220, 90)  # BGR


def draw(items: Sequence[tuple[Path, str, Sequence[str], Regions]], names: Sequence[str]) -> bytes | None:
    """JPEG of up to twelve images, spread over the set, those with labels or regions first; None where there is none.

    Args:
        items: image file, its title, its label lines and its regions.
        names: of the classes.
    """
    told = [item for item in items if item[2] or len(item[3])] or list(items)
    chosen = (
        [told[i] for i in np.unique(np.linspace(0, len(told) - 1, min(_COUNT, len(told)), dtype=int))] if told else []
    )
    cells = [_cell(path, title, lines, known, names) for path, title, lines, known in chosen]
    cells = [cell for cell in cells if cell is not None]
    if not cells:
        return None
    blank = np.full((_SIDE, _SIDE, 3), 40, np.uint8)
    columns = min(_COLUMNS, len(cells))
    cells += [blank] * (-len(cells) % columns)
    grid = np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])
    data: bytes = cv2.imencode(".jpg", grid)[1].tobytes()
    return data


def _cell(path: Path, title: str, lines: Sequence[str], regions: Regions, names: Sequence[str]) -> Any:
    image: Any = read(path)
    if image is None:
        return None
    scale = min(_SIDE / image.shape[1], (_SIDE - 20) / image.shape[0])
    width, height = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    for unknown, mask, box in zip(regions.unknown.tolist(), regions.classes, regions.boxes_xywh_norm, strict=True):
        x1, y1, x2, y2 = _corners(box, width, height)
        colour = _UNKNOWN if unknown else _BACKGROUND
        if unknown:
            for x in range(x1 - (y2 - y1), x2, 9):
                inside, start, end = cv2.clipLine((x1, y1, x2 - x1 + 1, y2 - y1 + 1), (x, y2), (x + y2 - y1, y1))
                if inside:
                    cv2.line(image, start, end, colour, 1)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 1)
        which = "all" if mask.all() else f"{int(mask.sum())} classes" if mask.sum() > 1 else names[int(mask.argmax())]
        _text(image, f"{'unknown' if unknown else 'background'}: {which}", (x1 + 2, y2 - 3), colour)
    for line in lines:
        number, *values = line.split()
        x1, y1, x2, y2 = _corners(np.array(values, np.float32), width, height)
        hue = np.array([[[int(number) * 47 % 180, 220, 255]]], np.uint8)
        blue, green, red = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].tolist()
        colour = (blue, green, red)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, 1)
        _text(image, names[int(number)], (x1 + 1, max(y1 - 2, 8)), colour)
    cell = np.full((_SIDE, _SIDE, 3), 40, np.uint8)
    cell[20 : 20 + height, :width] = image
    _text(cell, title[-48:], (2, 13), (230, 230, 230))
    return cell


def _corners(box: Any, width: int, height: int) -> tuple[int, int, int, int]:
    x, y, w, h = (float(v) for v in box)
    left, top = round((x - w / 2) * width), round((y - h / 2) * height)
    return left, top, min(round((x + w / 2) * width), width - 1), min(round((y + h / 2) * height), height - 1)


def _text(image: Any, text: str, place: tuple[int, int], colour: tuple[int, ...]) -> None:
    text = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no others
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
