"""The label assignment of the anchor head, one label at a time: what the tests hold the fast one against."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from torch import Tensor


class Slow(NamedTuple):
    """One match, in plain numbers."""

    image: int
    anchor: int
    row: int
    column: int
    candidate: int
    label: int
    box: tuple[float, float, float, float]
    anchor_wh: tuple[float, float]


def slow_match(
    labels: Tensor, anchors: Tensor, shapes: list[tuple[int, int]], anchor_t: float = 4.0
) -> list[list[Slow]]:
    """YOLOv5's rule one label, anchor and cell at a time; for each level the matches, own cells first.

    A label looks half a cell to the left, up, right and down from its centre: where that is another cell of the grid,
    that is a match too. On the line between two cells the look to the right or down ends in the cell itself, which then
    counts twice.
    """
    found, first = [], 0
    for (rows, columns), level in zip(shapes, anchors.tolist(), strict=True):
        matches = []
        for look, (number, (aw, ah)), (image, kind, x, y, w, h) in product(
            ("own", "left", "up", "right", "down"), enumerate(level), labels.tolist()
        ):
            x, y, w, h = x * columns, y * rows, w * columns, h * rows
            if min(w, h) == 0 or max(w / aw, aw / w, h / ah, ah / h) >= anchor_t:
                continue
            along, size = (x, columns) if look in ("left", "right") else (y, rows)
            into, before, after = along - int(along), along, size - along
            if look in ("left", "up") and not (into < 0.5 and before > 1):
                continue
            if look in ("right", "down") and not ((into > 0.5 or into == 0) and after > 1):
                continue
            column = int(x + {"left": -0.5, "right": 0.5}.get(look, 0))
            row = int(y + {"up": -0.5, "down": 0.5}.get(look, 0))
            column, row = min(column, columns - 1), min(row, rows - 1)
            matches.append(
                Slow(
                    image=int(image),
                    anchor=number,
                    row=row,
                    column=column,
                    candidate=first + number * rows * columns + row * columns + column,
                    label=int(kind),
                    box=(x - column, y - row, w, h),
                    anchor_wh=(aw, ah),
                )
            )
        found.append(matches)
        first += len(level) * rows * columns
    return found
