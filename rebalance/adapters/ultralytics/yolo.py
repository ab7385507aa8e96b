"""`YOLO` that knows our flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.downloads import GITHUB_ASSETS_STEMS

from rebalance.adapters.torchvision.model import KEY as TORCHVISION
from rebalance.adapters.torchvision.model import TorchvisionModel
from rebalance.adapters.torchvision.weights import COCO, check, missing_coco, start
from rebalance.adapters.torchvision.zoo import ZOO
from rebalance.adapters.ultralytics.model import (
    KEY,
    anchored,
    given_or_kept,
    host_of,
    read_state_dict,
    remembered,
    replaceable_head,
)
from rebalance.adapters.ultralytics.trainer import HOST_WEIGHTS, trainer
from rebalance.adapters.ultralytics.validator import Validator
from rebalance.config import TrainFlags, flags
from rebalance.data.seafloor import resolve
from rebalance.errors import ConfigError, ModelError, nearest
from rebalance.losses.registry import train_flags


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate our training flags from Ultralytics' own arguments."""
    ours = {k: v for k, v in arguments.items() if k in flags(TrainFlags)}
    return ours, {k: v for k, v in arguments.items() if k not in ours}


class YOLO(ultralytics.YOLO):  # type: ignore[misc]
    """`ultralytics.YOLO` whose `train` takes our flags; everything else is as there.

    Without a flag of ours, and from a checkpoint that has no head of ours, training is stock Ultralytics. A checkpoint
    keeps its head; resuming keeps its loss too. `YOLO("retinanet_tiny")`, or another name of
    `rebalance.adapters.torchvision.zoo`, is a detector of torchvision.
    """

    def _load(self, weights: str, task: Any = None) -> None:
        if str(weights) not in ZOO:
            if not Path(weights).suffix and not Path(weights).exists() and str(weights) not in GITHUB_ASSETS_STEMS:
                raise ModelError(f"model={weights} is not one of {', '.join(ZOO)}, nor a file{nearest(weights, ZOO)}")
            super()._load(weights, task=task)
            return
        self.task, self.cfg, self.model_name = "detect", weights, weights
        self.model = TorchvisionModel(weights, verbose=False)
        self.overrides |= {"model": weights, "task": "detect"}
        self.model.args = {**DEFAULT_CFG_DICT, **self.overrides}
        self.model.task = "detect"

    def load(self, weights: Any = "yolo26n.pt") -> Any:
        """Fill the model, as there; one of torchvision also with `coco`, or with a state dict of torchvision's."""
        named = isinstance(weights, (str, Path))
        if isinstance(self.model, TorchvisionModel) and named:
            check(self.model_name, weights)
            if weights == COCO or (Path(weights).is_file() and read_state_dict(weights) is not None):
                start(self.model, str(weights))
                self.ckpt = {"model": self.model}
                return self
        return super().load(weights)

    def _ready(self) -> None:
        """Give a detector of torchvision that was only named COCO's weights: nobody wants random boxes."""
        if isinstance(self.model, TorchvisionModel) and not self.ckpt:
            if reason := missing_coco(self.model_name):
                raise ModelError(f"model={self.model_name} is not trained: {reason}; name a checkpoint (.pt) or train")
            self.load(COCO)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, as there."""
        self._ready()
        return super().predict(*args, **kwargs)

    def val(self, validator: Any = None, **kwargs: Any) -> Any:
        """Validate, as there, but on slow machines too with every image's detections."""
        self._ready()
        return super().val(validator=validator or (Validator if self.task == "detect" else None), **kwargs)

    def export(self, **kwargs: Any) -> Any:
        """Export, as there."""
        self._ready()
        return super().export(**kwargs)

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Train.

        Args:
            trainer: a trainer class of your own; cannot be joined with our flags.
            kwargs: our training flags and Ultralytics' arguments.

        Raises:
            ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
            ModelError: the model cannot have the head asked for.
        """
        if kwargs.get("cfg") and (held := YAML.load(check_yaml(kwargs["cfg"]))).keys() & flags(TrainFlags).keys():
            kwargs = {**held, **{k: v for k, v in kwargs.items() if k != "cfg"}}
        ours, theirs = split(kwargs)
        if isinstance(theirs.get("data"), str):
            theirs["data"] = resolve(theirs["data"])
        return super().train(trainer=self._trainer(ours, theirs, trainer), **theirs)

    def _trainer(self, ours: dict[str, Any], theirs: dict[str, Any], custom: Any) -> Any:
        source, resume = self.model, theirs.get("resume")
        if isinstance(resume, (str, Path)) and Path(resume).is_file():
            source = load_checkpoint(resume)[0]  # goes on with that file, whatever this model is
        before = remembered(source).get("flags", {})
        head = before.get("head", "stock")
        host = host_of(getattr(source, "yaml", None))
        if host == "yolo" and not (ours or head != "stock" or (before and theirs.get("resume"))):
            if before and source is self.model:  # the host's loss from here on: resuming must not bring this one back
                del self.model.yaml[KEY]
            return custom
        if custom is not None:
            with_what = ", ".join(ours) or (f"head={head}" if host == "yolo" else f"model={self.model_name}")
            raise ConfigError(f"trainer={custom.__name__} cannot be joined with {with_what}")
        if self.task != "detect":
            raise ConfigError(
                f"{', '.join(ours)}: only for detection models, and {self.model_name} is a {self.task} model"
            )
        on_anchors = anchored(getattr(source, "yaml", None))
        chosen = train_flags(given_or_kept(ours, before), head=head, host=host, anchored=on_anchors)
        kind = "anchor" if chosen.head in ("obj", "resobj") and on_anchors else chosen.head
        if kind == "anchor" or host != "yolo":
            own = f"head={chosen.head}; its gains are box_gain, obj_gain, cls_gain"
            for k in HOST_WEIGHTS:
                if theirs.get(k, DEFAULT_CFG_DICT[k]) != DEFAULT_CFG_DICT[k]:
                    raise ConfigError(f"{k}={theirs[k]} has no effect with {own if host == 'yolo' else host}")
        if host == "yolo" and chosen.head != "stock" and head == "stock":
            replaceable_head(self.model, kind)
        if host != "yolo" and not resume:
            _check_start(source.yaml[TORCHVISION], theirs)
        return trainer(**{**ours, "head": chosen.head})


def _check_start(name: str, theirs: Mapping[str, Any]) -> None:
    """Raise for what a detector of torchvision cannot start with, before anything is created."""
    check(name, theirs.get("pretrained"))
    if theirs.get("distill_model"):
        raise ConfigError(f"distill_model={theirs['distill_model']} cannot be joined with model={name}")
    data = check_yaml(str(theirs.get("data") or ""), hard=False)
    channels = YAML.load(data).get("channels", 3) if str(data).endswith((".yaml", ".yml")) else 3
    if channels != 3:
        raise ModelError(f"model={name} takes images of 3 channels; {theirs['data']} has {channels}")
