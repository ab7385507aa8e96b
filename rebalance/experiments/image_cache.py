"""`cache=ram` of several runs: each image is decoded once, into a file that all of them map into memory.

The runs of a sweep differ in labels and losses, seldom in images. Two runs at a time need the memory of one, and the
next one begins at once. What they train on is the same to the bit.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from ultralytics.data.base import BaseDataset
from ultralytics.utils import LOGGER

from rebalance.errors import RunError
from rebalance.files import replaced, write_whole
from rebalance.versions import versions


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Let the data sets of this process that are kept in memory share images with other processes, through a folder.

    Where the folder takes no more, the images are this process's own, as the host has them, and it is said.
    """
    stock = BaseDataset.cache_images

    def cache_images(dataset: Any) -> None:
        if dataset.cache != "ram":
            stock(dataset)
            return
        own: list[Any] = []
        try:
            _map(dataset, folder / _key(dataset), lambda: own.append(stock(dataset)))
        except (OSError, RunError) as error:
            LOGGER.warning(f"{dataset.prefix}rebalance: images in memory are not shared with other runs: {error}")
            if not own:
                stock(dataset)

    BaseDataset.cache_images = cache_images
    try:
        yield
    finally:
        BaseDataset.cache_images = stock


def _map(dataset: Any, place: Path, decode: Any) -> None:
    pixels, index = place.with_suffix(".pixels"), place.with_suffix(".npz")
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):  # another run may be decoding them
        if not index.exists():
            decode()
            images = [dataset.ims[i] for i in range(dataset.ni)]
            if any(image.dtype != np.uint8 for image in images):
                return
            with replaced(pixels) as part, open(part, "wb") as file:
                for image in images:
                    image.tofile(file)
            written = BytesIO()
            np.savez(written, shapes=[image.shape for image in images], before=dataset.im_hw0)
            write_whole(index, written.getvalue())
        else:
            LOGGER.info(f"{dataset.prefix}rebalance: {dataset.ni} images in memory, as another run has decoded them")
    with np.load(index) as found:
        shapes, before = found["shapes"], found["before"]
    dataset.ims = Mapped(pixels, shapes)
    dataset.im_hw0 = [(int(h), int(w)) for h, w in before]
    dataset.im_hw = [(int(h), int(w)) for h, w, _ in shapes]


def _key(dataset: Any) -> str:
    """Of the files, whatever their names: a data set with withheld labels has links to them."""
    found = [os.stat(file) for file in dataset.im_files]
    files = [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]
    return hashlib.sha256(json.dumps([versions(), dataset.imgsz, dataset.channels, files]).encode()).hexdigest()[:16]


class Mapped:
    """Images in a file, (H, W, C) each; what is written into one stays with this process."""

    def __init__(self, file: Path, shapes: NDArray[np.int64]) -> None:
        self.file, self.shapes = file, shapes
        self.ends = shapes.prod(1).cumsum()
        with open(file, "rb") as opened:
            self.pixels = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        end = self.ends[i]
        return self.pixels[end - self.shapes[i].prod() : end].reshape(self.shapes[i])

    def __reduce__(self) -> tuple[type[Mapped], tuple[Path, NDArray[np.int64]]]:
        return Mapped, (self.file, self.shapes)  # for a worker that is not forked: it maps the file anew
