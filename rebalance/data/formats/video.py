"""Frames cut out of videos, counted from the start: seeking lands elsewhere in many files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2

from rebalance.data.formats.record import Frame
from rebalance.data.progress import progress
from rebalance.errors import DataError

SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"))
_QUALITY = 95  # of JPEG


def size(path: Path) -> tuple[int, int]:
    """Width and height of a video; DataError where it cannot be opened."""
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: OpenCV cannot open this video")
        return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    finally:
        capture.release()


def cut(frames: Sequence[tuple[Frame, Path]]) -> list[Path]:
    """Write frames as images, those that are there already not again; returns those that their video does not have.

    Raises:
        DataError: a video cannot be opened, or has none of its frames.
    """
    wanted: dict[Path, dict[int, list[tuple[Frame, Path]]]] = {}
    for frame, path in frames:
        if not path.exists():
            wanted.setdefault(frame.video, {}).setdefault(frame.number, []).append((frame, path))
    lost: list[Path] = []
    for video, numbers in wanted.items():
        missed = _cut(video, numbers)
        if len(missed) == len(numbers) and len({f.number for f, _ in frames if f.video == video}) == len(numbers):
            raise DataError(
                f"{video}: none of the {len(numbers)} frames wanted of it can be read, the first is {min(numbers)}"
            )
        lost += [path for number in missed for _, path in numbers[number]]
    return lost


def _cut(video: Path, numbers: dict[int, list[tuple[Frame, Path]]]) -> list[int]:
    """Cut one video; returns the numbers that it does not have."""
    capture = cv2.VideoCapture(str(video))
    try:
        if not capture.isOpened():
            raise DataError(f"{video}: OpenCV cannot open this video")
        left = dict(numbers)
        for number in progress(range(max(numbers) + 1), f"convert: {video.name}, frame"):
            if not capture.grab():
                break
            if number in numbers:
                read, image = capture.retrieve()
                if not read:
                    continue
                for frame, path in left.pop(number):
                    _save(image[frame.top :], path)
        return sorted(left)
    finally:
        capture.release()


def _save(image: object, path: Path) -> None:
    """Write an image, which takes its name when it is whole."""
    part = path.with_name(f".{path.name}.part")
    done, data = cv2.imencode(path.suffix, image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise DataError(f"{path.name}: OpenCV cannot write this frame")
    part.write_bytes(data.tobytes())
    os.replace(part, path)
