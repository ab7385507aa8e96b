"""`YOLO` that knows our flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.data.utils import find_dataset_yaml
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.downloads import GITHUB_ASSETS_STEMS

from rebalance.data.demo.seafloor import resolve
from rebalance.errors import ConfigError, ModelError, nearest
from rebalance.hosts.torchvision.model import KEY as TORCHVISION
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.weights import COCO, check, missing_coco, start
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.hosts.ultralytics.model import anchored, host_of, replaceable_head
from rebalance.methods.resolve import train_flags
from rebalance.settings import TrainFlags, flags
from rebalance.train.checkpoint import KEY, given_or_kept, read_state_dict, remembered
from rebalance.train.trainer import HOST_WEIGHTS, trainer
from rebalance.train.validator import Validator


def split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate our training flags from Ultralytics' own arguments."""
    ours = {k: v for k, v in arguments.items() if k in flags(TrainFlags)}
    return ours, {k: v for k, v in arguments.items() if k not in ours}


class YOLO(ultralytics.YOLO):  # type: ignore[misc]
    """`ultralytics.YOLO` whose `train` takes our flags; everything else is as there.

    Without a flag of ours, and from a checkpoint that has no head of ours, training is stock Ultralytics, but for two
    things: `pretrained` may be a plain state dict, and resuming what is finished is an error instead of a new training.
    A checkpoint keeps its head; resuming keeps its loss too. `YOLO("retinanet_tiny")`, or another name of
    `rebalance.hosts.torchvision.zoo`, is a detector of torchvision.
    """

    def _load(self, weights: str, task: Any = None) -> None:
        if str(weights) not in ZOO:
            if not Path(weights).suffix and not Path(weights).exists() and str(weights) not in GITHUB_ASSETS_STEMS:
                raise ModelError(f"model={weights} is not one of {', '.join(ZOO)}, nor a file{nearest(weights, ZOO)}")
            try:
                super()._load(weights, task=task)
            except TypeError:
                if _is_state_dict(weights):
                    raise ModelError(
                        f"model={weights} is a plain state dict; name the model that it fills, e.g. "
                        f"model=yolov5n.yaml pretrained={weights}"
                    ) from None
                raise
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
        """Export, as there; of torchvision's detectors with images of one size."""
        if isinstance(self.model, TorchvisionModel) and kwargs.get("dynamic"):
            raise ConfigError(
                f"dynamic={kwargs['dynamic']}: the anchors of model={self.model_name} are constants of an export, "
                "for images of one size; leave dynamic away and give imgsz= and batch="
            )
        self._ready()
        return super().export(**kwargs)

    def benchmark(self, *args: Any, **kwargs: Any) -> Any:
        """Measure the exports, as there."""
        self._ready()
        return super().benchmark(*args, **kwargs)

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
        chosen = self._trainer(ours, theirs, trainer)
        if chosen is not trainer and isinstance(theirs.get("data"), str):
            data_yaml(theirs["data"])
        return super().train(trainer=chosen, **theirs)

    def _resumed(self, resume: Any) -> Any:
        """The model that a training goes on with.

        Raises:
            ConfigError: it is not one of a training that was interrupted.
        """
        model, checkpoint, file = self.model, self.ckpt, self.ckpt_path or self.model_name
        if isinstance(resume, (str, Path)):  # goes on with that file, whatever this model is
            if not Path(resume).is_file():
                raise ConfigError(f"resume={resume}: no such file")
            file = str(resume)
            model, checkpoint = load_checkpoint(file)
        if not checkpoint:
            raise ConfigError(f"resume: model={file} is not a checkpoint; give the last.pt of the interrupted training")
        if checkpoint.get("epoch", -1) < 0 or checkpoint.get("optimizer") is None:
            raise ConfigError(f"resume: the training of {file} is finished; nothing to resume")
        return model

    def _trainer(self, ours: dict[str, Any], theirs: dict[str, Any], custom: Any) -> Any:
        resume = theirs.get("resume")
        source = self._resumed(resume) if resume else self.model
        before = remembered(source).get("flags", {})
        head = before.get("head", "stock")
        host = host_of(getattr(source, "yaml", None))
        if plain := self.task == "detect" and not resume and _is_state_dict(theirs.get("pretrained")):
            if self.ckpt:
                given = f"pretrained={theirs['pretrained']}"
                raise ConfigError(f"{given} cannot be joined with model={self.model_name}, which has weights")
            plain = custom is None  # which has to read it itself
        if host == "yolo" and not (ours or plain or head != "stock" or (before and resume)):
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
        if host != "yolo":
            _check_freeze(source.yaml[TORCHVISION], theirs.get("freeze"))
            if not resume:
                _check_start(source.yaml[TORCHVISION], theirs)
        return trainer(**{**ours, "head": chosen.head})


def data_yaml(data: str) -> str:
    """The YAML of a detection data set, as the host will find it; empty where it has to be fetched first.

    Raises:
        ConfigError: there is no such file.
    """
    path, found = Path(data), data
    if "://" in data:
        return ""
    if path.is_dir():
        try:
            return str(find_dataset_yaml(path))
        except (AssertionError, FileNotFoundError):
            raise ConfigError(f"data={data} is a folder without a YAML, or with several; name the YAML") from None
    if path.suffix not in (".yaml", ".yml"):
        if path.is_file():
            return ""  # an archive
        found = f"{data}.yaml"  # of those that come with the host, e.g. coco8
    if not (found := check_yaml(found, hard=False)):
        raise ConfigError(f"data={data}: no such file")
    return str(found)


def _is_state_dict(pretrained: Any) -> bool:
    """Whether `pretrained` names a file of tensors alone, e.g. of an original YOLOv5."""
    if not isinstance(pretrained, (str, Path)) or not Path(pretrained).is_file():
        return False
    return read_state_dict(pretrained) is not None


def _check_freeze(name: str, freeze: Any) -> None:
    """Raise for what would freeze all of a detector of torchvision, or nothing of it."""
    known = set(freeze) <= {0, 1} if isinstance(freeze, list) else freeze is None or freeze in (0, 1, 2)
    if not known:
        raise ConfigError(
            f"freeze={freeze}: {name} has three modules, 0 its body, 1 its neck and 2 its head; "
            "freeze takes 1 (the body), 2 (the neck too), or a list of 0 and 1"
        )


def _check_start(name: str, theirs: Mapping[str, Any]) -> None:
    """Raise for what a detector of torchvision cannot start with, before anything is created."""
    check(name, theirs.get("pretrained"))
    if theirs.get("distill_model"):
        raise ConfigError(f"distill_model={theirs['distill_model']} cannot be joined with model={name}")
    try:
        data = data_yaml(str(theirs.get("data") or ""))
    except ConfigError:  # for those to say who know that nobody makes it first
        data = ""
    channels = YAML.load(data).get("channels", 3) if data else 3
    if channels != 3:
        raise ModelError(f"model={name} takes images of 3 channels; {theirs['data']} has {channels}")
