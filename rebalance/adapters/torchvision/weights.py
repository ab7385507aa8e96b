"""Weights to start from: torchvision's own where this machine has them or the internet, else none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import WeightsEnum
from ultralytics.utils import LOGGER, ONLINE

from rebalance.adapters.torchvision.model import KEY, TorchvisionModel
from rebalance.adapters.torchvision.zoo import ZOO
from rebalance.adapters.ultralytics.model import load_by_name, read_state_dict
from rebalance.errors import ModelError

COCO = "coco"  # value of `pretrained`: the whole detector, trained on COCO
# Of torchvision's 91 categories, those that data sets have; in the order of YOLO's coco.yaml
N_A = ("__background__", "N/A")


def start(model: TorchvisionModel, pretrained: bool | str) -> tuple[int, int] | None:
    """Fill a new model and tell what it starts from.

    Args:
        model: with random weights.
        pretrained: True: torchvision's backbone, trained on ImageNet, where it can be had; `coco`: the whole detector;
            a file: a state dict of torchvision's detector or backbone, for the small models of YOLOv5n; False: nothing.

    Returns:
        Number of tensors copied, and number in the file; None where the model starts from scratch.

    Raises:
        ModelError: weights that were asked for by name and are not there.
    """
    name = model.yaml[KEY]
    detector = ZOO[name]
    if pretrained is False:
        LOGGER.info(f"rebalance: {name} starts from scratch (pretrained=False)")
        return None
    if pretrained is True:
        if detector.backbone and (found := fetch(detector.backbone)):
            return load_by_name(model, model.translate(found), detector.backbone.url)
        reason = f"{detector.backbone.url} could not be fetched" if detector.backbone else "it has no weights online"
        LOGGER.warning(f"rebalance: {name} starts from scratch: {reason}; pretrained=<file> takes a state dict")
        return None
    if pretrained == COCO:
        if detector.coco is None or (state := fetch(detector.coco)) is None:
            reason = f"{detector.coco.url} could not be fetched" if detector.coco else f"{name} has none"
            raise ModelError(f"pretrained=coco: {reason}; pretrained=<file> takes a state dict")
        return load_coco(model, state, detector.coco)
    state = read_state_dict(pretrained)
    if state is None:
        raise ModelError(f"pretrained={pretrained} is not a state dict of tensors")
    return load_by_name(model, model.translate(state), str(pretrained))


def fetch(weights: WeightsEnum) -> dict[str, Tensor] | None:
    """A state dict from torch's hub folder (TORCH_HOME), else from the internet; None where neither has it."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not kept.is_file() and not ONLINE:
        return None
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        LOGGER.warning(f"rebalance: {weights.url}: {error}")
        return None
    return state


def load_coco(model: TorchvisionModel, state: dict[str, Tensor], weights: WeightsEnum) -> tuple[int, int]:
    """Fill a whole detector; of the class layers the 80 categories that data sets have, where the model has 80."""
    categories = weights.meta["categories"]
    kept = [i for i, name in enumerate(categories) if name not in N_A]
    state = model.translate(state)
    head: Any = model.model[-1]
    if model.nc == len(kept):
        index = torch.tensor([*range(head.background), *kept])
        for name, rows in head.class_rows().items():
            state[f"model.2.{name}"] = rows(state[f"model.2.{name}"], index)
        model.names = {i: categories[k] for i, k in enumerate(kept)}
    return load_by_name(model, state, weights.url)
