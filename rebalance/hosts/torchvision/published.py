"""Weights to start from: torchvision's own where this machine has them or the internet, else none."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from ultralytics.utils import LOGGER, ONLINE
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from rebalance.errors import ModelError
from rebalance.hosts.host import COCO
from rebalance.hosts.state_dict import Weights, load_by_name, read_weights, require_fit
from rebalance.hosts.torchvision.model import KEY, TorchvisionModel
from rebalance.hosts.torchvision.zoo import FROZEN, ZOO

OTHERWISE = "pretrained=<file> takes a state dict"
# Of torchvision's 91 categories, those that no data set has
N_A = ("__background__", "N/A")


def check(name: str, pretrained: Any) -> None:
    """ModelError where weights asked for by name cannot be had; nothing is fetched or read.

    `pretrained` is as in `start`, or the name of a checkpoint that Ultralytics publishes.
    """
    if pretrained == COCO:
        if reason := missing_coco(name):
            raise ModelError(f"pretrained=coco: {reason}; {OTHERWISE}")
    elif isinstance(pretrained, (str, Path)):
        file = Path(pretrained)
        if not file.is_file() and file.name not in GITHUB_ASSETS_NAMES:
            raise ModelError(f"pretrained={pretrained}: no such file, and not {COCO}")


def missing_coco(name: str) -> str:
    """Why a detector trained on COCO cannot be had; empty where it can, as far as is known without fetching it."""
    weights = ZOO[name].coco
    if weights is None:
        return f"there are no weights of {name} trained on COCO"
    return "" if _kept(weights).is_file() or ONLINE else f"{weights.url} cannot be fetched without internet"


def start(model: TorchvisionModel, pretrained: bool | str) -> tuple[int, int] | None:
    """Fill a new model and tell what it starts from.

    Args:
        model: is changed.
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
        LOGGER.warning(f"rebalance: {name} starts from scratch: {reason}; {OTHERWISE}")
        return None
    check(name, pretrained)
    if pretrained == COCO:
        if detector.coco is None or (state := fetch(detector.coco)) is None:
            raise ModelError(f"pretrained=coco: the weights could not be fetched; {OTHERWISE}")
        return load_coco(model, state, detector.coco)
    given = read_weights(pretrained)
    if given is None:
        raise ModelError(f"pretrained={pretrained} is not a state dict of tensors")
    if detector.coco and _is_published(Path(pretrained), detector.coco):
        return load_coco(model, given.tensors, detector.coco)
    require(model, given, str(pretrained))
    state = model.translate(given.tensors)
    told = _without_background(model, state) or model.follow_names(state, given.names)
    return load_by_name(model, state, str(pretrained), told)


def _kept(weights: WeightsEnum) -> Path:
    """Where torch's hub (TORCH_HOME) has a file once it is fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name


def fetch(weights: WeightsEnum) -> dict[str, Tensor] | None:
    """A state dict from torch's hub folder, else from the internet; None where neither has it whole."""
    if not _kept(weights).is_file() and not ONLINE:
        return None
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # no answer, a wrong hash, a torn file
        LOGGER.warning(f"rebalance: {weights.url}: {' '.join(str(error).split())}")
        return None
    return state


def _is_published(file: Path, weights: WeightsEnum) -> bool:
    """Whether a file is the one that torchvision publishes: its name there ends in a hash of the content."""
    wanted = Path(weights.url).stem.rpartition("-")[2]
    return hashlib.sha256(file.read_bytes()).hexdigest().startswith(wanted)


def _without_background(model: TorchvisionModel, state: dict[str, Tensor]) -> str:
    """Take the row of torchvision's background off, where a head that needs none has one more class than ours.

    torchvision counts it among the classes of every detector, of RetinaNet too, which never trains that row.
    """
    head, own = cast(Any, model.model[-1]), model.state_dict()
    if head.background:
        return ""
    one_more = {k: len(own[k]) // model.nc * (model.nc + 1) for k in model.class_rows()}
    if not all(k in state and len(state[k]) == rows for k, rows in one_more.items()):
        return ""
    for name, take in head.class_rows().items():
        state[f"model.2.{name}"] = take(state[f"model.2.{name}"], torch.arange(1, model.nc + 1))
    return "of its classes the first is taken for background, and left out"


def load_coco(model: TorchvisionModel, state: dict[str, Tensor], weights: WeightsEnum) -> tuple[int, int]:
    """Fill a whole detector; of the class layers the 80 categories that data sets have, where the model has 80.

    Their order is that of YOLO's coco.yaml.
    """
    categories = weights.meta["categories"]
    kept = [i for i, name in enumerate(categories) if name not in N_A]
    names = {i: categories[k] for i, k in enumerate(kept)}
    state = model.translate(state)
    if model.yaml[KEY] in FROZEN:
        state = _thawed(model, state)
    head: Any = model.model[-1]
    if model.nc != len(categories):  # a model of all of torchvision's 91 takes the rows as they are
        index = torch.tensor([*range(head.background), *kept])
        for name, rows in head.class_rows().items():
            state[f"model.2.{name}"] = rows(state[f"model.2.{name}"], index)
        if model.nc == len(kept) and model.names == {i: f"{i}" for i in range(model.nc)}:
            model.names = names
        told = model.follow_names(state, names)
    else:
        told = "all of its categories are classes"
    require(model, Weights(state, {}), weights.url)
    return load_by_name(model, state, weights.url, told)


def require(model: TorchvisionModel, given: Weights, source: str) -> None:
    """Refuse weights of another architecture; a detector enters as a whole, but for the layers of other classes.

    Raises:
        ModelError: it would enter in part, or hardly at all.
    """
    own, rows, state = model.state_dict(), model.class_rows(), model.translate(given.tensors)
    if any(name.startswith("model.2.") for name in state.keys() & own.keys()):
        other = {name for name, x in state.items() if name not in own or own[name].shape != x.shape}
        if left := sorted(other - rows.keys()):
            raise ModelError(
                f"pretrained={source} is another detector than {model.yaml[KEY]}: "
                f"{len(left)} of its {len(state)} tensors have no place here, e.g. {', '.join(left[:3])}"
            )
    require_fit(model, state, rows, source, f"model={model.yaml[KEY]}")


def _thawed(model: TorchvisionModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frozen batch normalisation, which torchvision's files divide by √variance, for layers that add ε to the variance.

    (torchvision sets ε to 0 for these files, whose layers have no count of batches.)
    """
    state = dict(state)
    for name, layer in model.named_modules():
        variance = state.get(f"{name}.running_var")
        if isinstance(layer, nn.BatchNorm2d) and variance is not None and f"{name}.num_batches_tracked" not in state:
            kept = (variance - layer.eps).clamp(min=0)
            state[f"{name}.running_var"] = kept
            # where the variance is below ε, the weight makes up for the rest
            state[f"{name}.weight"] = state[f"{name}.weight"] * ((kept + layer.eps) / variance).sqrt()
    return state
