"""What a detector finds on images, kept as files so that a killed audit goes on where it was."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils.patches import imread

from rebalance.audit.explain import Detections
from rebalance.data.progress import progress
from rebalance.errors import ModelError, RunError, nearest
from rebalance.files import clear, write_whole
from rebalance.hosts.evaluation import evaluation_of
from rebalance.train.api import load
from rebalance.train.validator import suppressed

CONF = 0.001  # least score of a detection
CHUNK = 64  # images a file
_FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}  # by channels; as the host reads training images


class Seen(NamedTuple):
    """What was found on one image."""

    size: tuple[int, int]  # width and height in pixels
    found: Detections


class Finder(DetectionPredictor):  # type: ignore[misc]
    """Detects with the suppression of an evaluation: a box may have several classes."""

    args: Any
    model: Any

    def postprocess(self, preds: Any, img: Any, orig_imgs: Any, **kwargs: Any) -> Any:
        """What is found on each image."""
        end2end = bool(getattr(self.model, "end2end", False))
        kept = suppressed(preds, self.args, agnostic=self.args.agnostic_nms, end2end=end2end)
        return self.construct_results(kept, img, orig_imgs, **kwargs)


class Detector:
    """A model that says what is on the images of a data set.

    Args:
        model: as `model=`.
        names: classes of the data set by number.
        channels: of its images.
        imgsz: image size; 0: that of the model's training.
        batch: images at a time.
        device: as the host's; empty: its choice.

    Attributes:
        known: classes of the data set that the model knows.

    Raises:
        ModelError: it cannot be loaded, is no detector, or knows none of the classes.
    """

    def __init__(
        self, model: str, names: Mapping[int, str], *, channels: int, imgsz: int, batch: int, device: str
    ) -> None:
        self._model = load(model)
        if self._model.task != "detect":
            raise ModelError(f"model={model} is for the task {self._model.task}; an audit needs a detector")
        self._model._ready()  # of torchvision's detectors, one that was only named
        own = dict(self._model.names)
        numbers = {name: number for number, name in names.items()}
        single = len(names) == 1 and list(own.values()) == ["item"]  # as the host names that of single_cls=True
        to = {i: 0 if single else i if names.get(i) == name else numbers.get(name, -1) for i, name in own.items()}
        self.known = frozenset({*to.values()} - {-1})
        if not self.known:
            told = ", ".join(list(own.values())[:20])
            raise ModelError(
                f"model={model} knows none of the classes {', '.join(names.values())}: it has {told}"
                f"{nearest(names[0], own.values())}; train one on the data set, or let folds= do it"
            )
        self._number = np.array([to[i] for i in range(max(own) + 1)])
        family = evaluation_of(self._model.model)
        self.setting = {"conf": CONF, "iou": family.iou, "max_det": family.max_det}
        self._flags: dict[str, Any] = {
            **self.setting, "rect": False, "save": False, "verbose": False, "predictor": Finder,
            **({"imgsz": imgsz} if imgsz else {}), **({"device": device} if device else {}),
        }  # fmt: skip
        self._read = _FLAGS.get(channels, cv2.IMREAD_UNCHANGED)
        self._batch = batch

    def __call__(self, images: Sequence[str]) -> list[Seen | None]:
        """What is on each image; None where it cannot be read."""
        result: list[Seen | None] = []
        for start in range(0, len(images), self._batch):
            pixels = [imread(image, flags=self._read) for image in images[start : start + self._batch]]
            there = [one for one in pixels if one is not None]
            found = iter(self._model.predict(there, **self._flags) if there else ())
            result += [None if one is None else self._seen(next(found)) for one in pixels]
        return result

    def _seen(self, result: Any) -> Seen:
        rows = result.boxes.data.cpu().numpy().astype(np.float64)
        height, width = map(int, result.orig_shape)
        classes = self._number[rows[:, 5].astype(np.int64)]
        boxes = np.clip(rows[:, :4], 0, (width, height, width, height))
        use = (classes >= 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        order = np.argsort(-rows[use, 4], kind="stable")
        return Seen((width, height), Detections(boxes[use][order], rows[use, 4][order], classes[use][order]))


def detect_all(detector: Detector | None, images: Sequence[str], folder: Path, what: str) -> list[Seen | None]:
    """What a detector finds on images; what an earlier call with the same images kept in the folder is taken as it is.

    Args:
        detector: the detector; None: everything must have been kept.
        images: paths.
        folder: for the files, one for each 64 images.
        what: what is said of the progress.

    Raises:
        RunError: something was not kept, and there is no detector.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if detector:
        clear(folder)
    found: list[Seen | None] = []
    starts = range(0, len(images), CHUNK)
    for start in progress(starts, f"{what}, {CHUNK} images a step:"):
        chunk, path = images[start : start + CHUNK], folder / f"{start:07d}.npz"
        made = _load(path, len(chunk))
        if made is None:
            if detector is None:
                raise RunError(f"{path} is not there or cannot be read; the same audit again makes it")
            made = detector(chunk)
            _save(path, made)
        found += made
    return found


def _save(path: Path, found: Sequence[Seen | None]) -> None:
    there = [seen for seen in found if seen]
    parts: dict[str, NDArray[Any]] = {
        "count": np.array([len(seen.found.scores) if seen else -1 for seen in found]),
        "size": np.array([seen.size for seen in there], np.int64).reshape(-1, 2),
        "boxes": np.concatenate([np.zeros((0, 4)), *(seen.found.boxes for seen in there)]),
        "scores": np.concatenate([np.zeros(0), *(seen.found.scores for seen in there)]),
        "classes": np.concatenate([np.zeros(0, np.int64), *(seen.found.classes for seen in there)]),
    }
    data = io.BytesIO()
    np.savez(data, **parts)  # type: ignore[arg-type]
    write_whole(path, data.getvalue())


def _load(path: Path, images: int) -> list[Seen | None] | None:
    """What was kept; None where that is nothing, or not of so many images."""
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as parts:
            count, size, *rest = (parts[name] for name in ("count", "size", "boxes", "scores", "classes"))
        ends = np.cumsum(np.maximum(count, 0))[:-1]
        rows = zip(count.tolist(), *(np.split(part, ends) for part in rest), strict=True)
        sizes = iter(size.tolist())
        found = [Seen(tuple(next(sizes)), Detections(*row)) if of >= 0 else None for of, *row in rows]
    except (OSError, ValueError, KeyError, StopIteration, zipfile.BadZipFile):
        return None
    return found if len(found) == images else None
