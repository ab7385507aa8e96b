"""How many images a second a trained model looks at, one at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import LOGGER

from rebalance.data.dataset import DataSet
from rebalance.experiments.evaluate import predict_flags
from rebalance.experiments.record import Config
from rebalance.train.api import YOLO

WARM_UP = 4  # images that do not count: memory is taken and kernels are chosen then
IMAGES = 24  # that do
SECONDS = 10.0  # after which no more are begun


def speed(weights: Path, data: DataSet, config: Config, setting: Mapping[str, Any], threads: int) -> dict[str, float]:
    """`fps`: images in a second of inference, model and non-maximum suppression, not reading and resizing.

    One over the median time of some images of test (or val), which a machine that is busy for a moment does not move.
    Empty where it cannot be measured, as the run has all that it was for.
    """
    images = sorted(set(data.images("test" if "test" in data.splits else "val")))
    flags = predict_flags(config, weights, setting)
    model, began, times = YOLO(str(weights)), time.monotonic(), list[float]()
    model.add_callback("on_predict_start", lambda _: torch.set_num_threads(threads))
    try:
        for image in islice(cycle(images), WARM_UP + IMAGES):
            for found in model.predict(image, **flags):  # none where it cannot be read
                times.append(found.speed["inference"] + found.speed["postprocess"])  # milliseconds
            if len(times) > WARM_UP and time.monotonic() - began > SECONDS:
                break
        return {"fps": 1000 / statistics.median(times[WARM_UP:])}
    except Exception as error:  # no image that can be read
        LOGGER.warning(f"speed is not measured: {' '.join(str(error).split())}")
        return {}
