"""`YOLO` that knows our flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml

from rebalance.adapters.ultralytics.model import KEY, remembered, replaceable_head
from rebalance.adapters.ultralytics.trainer import HOST_WEIGHTS, trainer
from rebalance.config import TrainFlags, flags
from rebalance.data.seafloor import resolve
from rebalance.errors import ConfigError
from rebalance.losses.registry import train_flags


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate our training flags from Ultralytics' own arguments."""
    ours = {k: v for k, v in arguments.items() if k in flags(TrainFlags)}
    return ours, {k: v for k, v in arguments.items() if k not in ours}


class YOLO(ultralytics.YOLO):  # type: ignore[misc]
    """`ultralytics.YOLO` whose `train` takes our flags; everything else is as there.

    Without a flag of ours, and from a checkpoint that has no head of ours, training is stock Ultralytics. A checkpoint
    keeps its head; resuming keeps its loss too.
    """

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
        if not (ours or head != "stock" or (before and theirs.get("resume"))):
            if before and source is self.model:  # the host's loss from here on: resuming must not bring this one back
                del self.model.yaml[KEY]
            return custom
        if custom is not None:
            raise ConfigError(f"trainer={custom.__name__} cannot be joined with {', '.join(ours) or f'head={head}'}")
        if self.task != "detect":
            raise ConfigError(
                f"{', '.join(ours)}: only for detection models, and {self.model_name} is a {self.task} model"
            )
        chosen = train_flags(ours, head=head)
        if chosen.head == "anchor":
            for k in HOST_WEIGHTS:
                if theirs.get(k, DEFAULT_CFG_DICT[k]) != DEFAULT_CFG_DICT[k]:
                    raise ConfigError(
                        f"{k}={theirs[k]} has no effect with head=anchor; its gains are box_gain, obj_gain, cls_gain"
                    )
            if head != "anchor":
                replaceable_head(self.model)
        return trainer(**{**ours, "head": chosen.head})
