"""Lines of label files that are written anew, in the way of the file that they are in.

A box in a file of polygons is a polygon of four corners, in one of poses it has keypoints that nobody saw (all 0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebalance.data.boxes import Boxes, xywh, xyxy
from rebalance.data.labels import Labels, columns


def box_text(label: int, box: NDArray[Any]) -> str:
    """A box (4,) in centre form as a line of a label file."""
    return " ".join([str(label), *(f"{v:.10g}" for v in box.tolist())])


def changed(
    true: Labels,
    boxes: Boxes,
    label: NDArray[np.int64],
    moves: NDArray[np.bool_],
    flips: NDArray[np.bool_],
    keypoints: tuple[int, int],
) -> Labels:
    """The labels with the boxes of those that move and the classes of those that flip; other lines keep their bytes."""
    if not (moves | flips).any():
        return true
    before, texts = xyxy(true), list(true.lines)
    for i, box in enumerate(true.box_of.tolist()):
        if flips[box]:
            texts[i] = re.sub(rb"\S+", b"%d" % label[box], texts[i], count=1)
        if moves[box]:
            texts[i] = _moved(texts[i], before[box], boxes[box], keypoints)
    after = np.where(moves[:, None], xywh(boxes), true.boxes_xywh_norm).astype(np.float32)
    return replace(true, classes=label, boxes_xywh_norm=after, lines=tuple(texts))


def written(
    rows: Sequence[tuple[int, Boxes]], beside: Labels, keypoints: tuple[int, int], empty: str = "box"
) -> Labels:
    """Boxes as labels, their lines written as those of the file that they come into; `empty`: of one without lines."""
    label = np.array([found for found, _ in rows], np.int64)
    boxes: Boxes = np.array([box for _, box in rows], np.float64)
    boxes = boxes.reshape(-1, 4)
    kind = columns(beside.lines[0], keypoints) if beside.lines else empty
    texts = []
    for found, box in zip(label.tolist(), boxes, strict=True):
        corners = box[[0, 1, 2, 1, 2, 3, 0, 3]].tolist()
        polygon = " ".join([str(found), *(f"{v:.10g}" for v in corners)])
        unseen = " 0" * (keypoints[0] * keypoints[1] * (kind == "pose"))
        texts.append(polygon if kind == "polygon" else box_text(found, xywh(box)) + unseen)
    lines = tuple(f"{text}\n".encode() for text in texts)
    return Labels(label, xywh(boxes).astype(np.float32), lines, np.arange(len(rows)))


def _moved(line: bytes, old: NDArray[np.float64], new: NDArray[np.float64], keypoints: tuple[int, int]) -> bytes:
    """The line with its box moved; a polygon goes with its box, keypoints stay."""
    ending = line[len(line.rstrip()) :]
    name, *values = line.split()
    if columns(line, keypoints) == "polygon":
        given, size = np.array(values, np.float64).reshape(-1, 2), old[2:] - old[:2]
        points = np.clip(new[:2] + (given - old[:2]) / np.where(size > 0, size, 1) * (new[2:] - new[:2]), 0, 1)
        points = points if size.min() > 0 else new[[0, 1, 2, 1, 2, 3, 0, 3]]  # of a line there is no shape to keep
        values = [b"%.10g" % v for v in points.ravel().tolist()]
    else:
        values[:4] = [b"%.10g" % v for v in xywh(new).tolist()]
    return b" ".join([name, *values]) + ending
