"""What a trained model finds: on fixed images for a record, and after each step of a refined objectness as pictures.

The pictures are Figure 5 of Chen et al., "Residual Objectness for Imbalance Reduction", section 4.3.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz

from rebalance.data.dataset import DataSet, withheld_path
from rebalance.errors import DataError, ModelError
from rebalance.experiments.evaluate import predict_flags
from rebalance.experiments.record import Box, Config, Detection, Label, Sample, shown
from rebalance.files import write_whole
from rebalance.settings import StepsFlags
from rebalance.train.api import YOLO, load

SAMPLES = 4  # images of each kind in a record
SCORE = 0.25  # least score of a detection in a record, Ultralytics' own for predicting
MOST_SHOWN = 100  # detections of one image in a record

TITLE = 34  # pixels of the line above a picture
HEIGHT = 640  # pixels of a picture, at most
WIDTH = 340  # pixels of a panel, at least: what the longest line of text takes
STRIDE = 32  # what the host rounds image sizes up to, at least


def sample(weights: Path, data: DataSet, config: Config, setting: Mapping[str, Any]) -> tuple[Sample, ...]:
    """Return detections beside labels, in pixels, on fixed images.

    Of test (or val), and of the training images with withheld boxes, both spread evenly over the sorted list: runs on
    the same data show the same images. Where the head has T steps, the image of test on which it finds most has the
    detections with the first 0 to T - 1 of them too, as `steps`.

    Each image is given to the model alone, by its path: the host prepares those of a list in another way. One that
    cannot be shown is named and left out, as the run has all that it was for.
    """
    split = "test" if "test" in data.splits else "val"
    withheld = {image: withheld_path(image) for image in sorted(set(data.images("train")))}
    partial = [image for image, file in withheld.items() if file and os.path.isfile(file) and os.path.getsize(file)]
    wanted = dict.fromkeys(spread(sorted(set(data.images(split))), SAMPLES), split)
    wanted |= dict.fromkeys(spread(partial, SAMPLES), "train")
    flags = {**predict_flags(config, weights, setting), "conf": SCORE}  # that of the setting is of the metrics
    model = YOLO(str(weights))
    found: dict[str, Sample] = {}
    for image, of in wanted.items():
        with _named(image):
            found[image] = _sample(data, image, of, seen(model, image, flags))
    if found and (steps := steps_of(model)):
        most = max(found, key=lambda image: (found[image].split == split, len(found[image].detections)))
        with _named(most):
            after = [_detections(seen(at_step(weights, step), most, flags)) for step in range(steps)]
            found[most] = replace(found[most], steps=tuple(after))
    return tuple(found.values())


@contextlib.contextmanager
def _named(image: str | Path) -> Iterator[None]:
    """Turn what goes wrong with an image into a warning: a file that is cut, labels that are none."""
    try:
        yield
    except Exception as error:  # of our readers, of the host's, of the image library
        LOGGER.warning(f"{shown(image)} is not shown: {' '.join(str(error).split()) or type(error).__name__}")


def seen(model: YOLO, image: str | Path, flags: Mapping[str, Any]) -> Results:
    """What a model finds on an image; DataError where that cannot be read, which the host passes over."""
    for result in model.predict(str(image), **flags):
        return result
    raise DataError("it cannot be read")


def _sample(data: DataSet, image: str, split: str, result: Results) -> Sample:
    height, width = map(int, result.orig_shape)

    def boxes(labels: Any) -> tuple[Label, ...]:
        xyxy = labels.boxes_xyxy(width, height).tolist()
        return tuple(Label(int(c), _rounded(box)) for c, box in zip(labels.classes, xyxy, strict=True))

    return Sample(
        image=Path(shown(image)),
        size=(width, height),
        labels=boxes(data.labels(image)),
        withheld=boxes(data.withheld(image)) if split == "train" else (),
        detections=_detections(result),
        split=split,
    )


def _detections(result: Any) -> tuple[Detection, ...]:
    """What was found, at most MOST_SHOWN."""
    rows = result.boxes.data[:MOST_SHOWN].tolist()  # x1, y1, x2, y2, score, class
    return tuple(Detection(int(cls), round(score, 4), _rounded(box)) for *box, score, cls in rows)


def _rounded(box: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (round(side, 1) for side in box)
    return x1, y1, x2, y2


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` of the items at even distances, the first and the last among them; all where there are fewer."""
    last = len(items) - 1
    return list(items) if last < count else [items[index * last // (count - 1)] for index in range(count)]


def panels(flags: StepsFlags) -> list[Path]:
    """Draw the detections of step 0 (the objectness alone) to T beside each other, one PNG an image; return the files.

    Raises:
        ModelError: there is no such file, or its head has no steps.
        DataError: there are no images, or none that can be read.
    """
    source, folder = Path(flags.source), Path(flags.out)
    files = [source] if source.is_file() else []
    if source.is_dir():  # with links that lead nowhere, which are named like images that cannot be read
        files = sorted(f for f in source.iterdir() if f.suffix[1:].lower() in IMG_FORMATS and not f.is_dir())
    if not files:
        raise DataError(f"source={flags.source}: no image there")
    if not Path(flags.model).is_file():
        raise ModelError(f"model={flags.model}: no such file")
    model = load(flags.model)
    steps = steps_of(model)
    if not steps:
        raise ModelError(f"model={flags.model} has no steps: it was not trained with head=resobj")
    models = [*(at_step(flags.model, step) for step in range(steps)), model]
    # once, as the host would round and warn for every image and step
    stride = max(int(model.model.stride.max()), STRIDE)
    imgsz = check_imgsz(flags.imgsz or model.overrides["imgsz"], stride=stride, max_dim=1)
    options = {"imgsz": imgsz, "conf": flags.conf, "device": flags.device or None, "save": False, "verbose": False}
    folder.mkdir(parents=True, exist_ok=True)
    alone = len({file.stem.lower() for file in files}) == len(files)  # else a.jpg and a.png are two pictures
    written = []
    for file in files:
        with _named(file):
            pictures = []
            for step, model in enumerate(models):
                found = seen(model, file, options)
                scores = found.boxes.conf
                mean = f", mean score {scores.mean():.2f}" if len(scores) else ""
                pictures.append(_titled(_drawn(found), f"t = {step}: {len(scores)} found{mean}"))
            picture = cv2.imencode(".png", np.hstack(pictures))[1].tobytes()
            written.append(write_whole(folder / f"{file.stem if alone else file.name}.png", picture))
    if not written:
        raise DataError(f"source={flags.source}: no image there can be read")
    return written


def steps_of(model: YOLO) -> int:
    """Number of refinements T of a model's head, 0 where it has none."""
    head: Any = model.model.model[-1]
    return int(getattr(head, "steps", 0))


def at_step(file: str | Path, step: int) -> YOLO:
    """A model that predicts with the first `step` refinements alone, 0 (the objectness alone) to T."""
    model: YOLO = YOLO(file)
    head: Any = model.model.model[-1]
    head.shown = step  # before it first predicts: the host predicts with a copy
    return model


def _drawn(found: Results) -> Any:
    """The image with its boxes: at most HEIGHT high, and a small one enlarged before anything is drawn on it."""
    height, width = found.orig_img.shape[:2]
    scale = min(HEIGHT / height, max(1.0, WIDTH / width))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(found.orig_img, None, fx=scale, fy=scale, interpolation=method)
    if image.ndim == 2 or image.shape[2] != 3:  # of one channel, or of many: what is drawn has three
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image[..., :3]
    image = np.ascontiguousarray(image)
    boxes = found.boxes.data.clone()
    boxes[:, :4] *= scale
    return Results(image, path=found.path, names=found.names, boxes=boxes).plot()


def _titled(image: Any, text: str) -> Any:
    """The image under a line of text, at least WIDTH wide."""
    image = cv2.copyMakeBorder(image, 0, 0, 0, max(0, WIDTH - image.shape[1]), cv2.BORDER_CONSTANT, value=(255,) * 3)
    line = np.full((TITLE, image.shape[1], 3), 255, np.uint8)
    cv2.putText(line, text, (6, TITLE - 11), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA)
    framed = np.vstack((line, image))
    framed[:, -2:] = 255  # keeps neighbours apart
    return framed
