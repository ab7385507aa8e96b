"""A data set that is made in a moment and easy to learn."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

COLOURS = ((40, 60, 220), (60, 200, 60), (220, 80, 60))  # BGR, one a class


def make_dataset(
    folder: Path, *, train: int = 8, val: int = 4, test: int = 4, size: int = 64, classes: int = 2, seed: int = 0
) -> Path:
    """Make a detection data set of filled shapes on noise, in YOLO's layout; return its YAML.

    Every image has 1 to 3 boxes. The same arguments give the same bytes of labels.
    """
    rng = np.random.default_rng(seed)
    for split, count in {"train": train, "val": val, "test": test}.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(count):
            image = rng.integers(90, 150, (size, size, 3), dtype=np.uint8)
            lines = []
            for _ in range(rng.integers(1, 4)):
                kind = int(rng.integers(classes))
                width, height = rng.integers(size // 5, size // 2, 2)
                x, y = (int(rng.integers(0, size - side)) for side in (width, height))
                cv2.rectangle(image, (x, y), (x + int(width) - 1, y + int(height) - 1), COLOURS[kind % 3], -1)
                box = ((x + width / 2) / size, (y + height / 2) / size, width / size, height / size)
                lines.append(f"{kind} " + " ".join(f"{value:.6f}" for value in box))
            cv2.imwrite(str(images / f"{index:02d}.jpg"), image)
            (labels / f"{index:02d}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    names = "".join(f"  {kind}: kind{kind}\n" for kind in range(classes))
    yaml = folder / "data.yaml"
    splits = "train: images/train\nval: images/val\ntest: images/test\n"
    yaml.write_text(f"path: {folder.resolve()}\n{splits}names:\n{names}", "utf-8")
    return yaml


# What alters an image in training, off
STILL = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0)


def by_heart(data: Path, times: int = 8) -> list[str]:
    """Let a data set be trained on each of its images so many times an epoch, and judged by them; return them."""
    images = sorted(str(file) for file in (data.parent / "images" / "train").iterdir())
    data.with_name("often.txt").write_text("\n".join(images * times) + "\n", "utf-8")
    text = data.read_text("utf-8").replace("val: images/val", "val: images/train")
    data.write_text(text.replace("train: images/train", "train: often.txt"), "utf-8")
    return images
