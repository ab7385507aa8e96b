"""`YOLO` that knows our flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ultralytics
from ultralytics.nn.tasks import BaseModel, DetectionModel, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT, SETTINGS
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, GITHUB_ASSETS_STEMS

from rebalance.errors import ConfigError, FetchError, ModelError, RebalanceError, nearest
from rebalance.hosts import host_of
from rebalance.hosts.host import COCO, KEY, remembered
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.published import check, missing_coco, start
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.recipe import TRAIN
from rebalance.settings import checked
from rebalance.train.admission import (
    Admitted,
    admit,
    is_state_dict,
    plain_weights,
    run_of,
    says,
    separate,
    source_of,
    spoken,
    tell_unused,
)
from rebalance.train.resumable import Resumable
from rebalance.train.trainer import RebalanceTrainer, with_flags
from rebalance.train.tune import RebalanceTuner, start_of
from rebalance.train.validator import Validator

# Arguments of a search, which are of no training
SEARCH = (
    "space", "mongodb_uri", "mongodb_db", "mongodb_collection", "grace_period", "gpu_per_trial", "search_alg"
)  # fmt: skip


class YOLO(ultralytics.YOLO):  # type: ignore[misc]
    """`ultralytics.YOLO` whose `train` takes our flags; everything else is as there.

    Without a flag of ours, and from a checkpoint that has no head of ours, training is stock Ultralytics, but for two
    things: `pretrained` may be a plain state dict, and resuming what is finished is an error instead of a new training.
    A checkpoint keeps its head; resuming keeps its loss too. `YOLO("retinanet_tiny")`, or another name of
    `rebalance.hosts.torchvision.zoo`, is a detector of torchvision.

    Attributes:
        flags: ours that every `train` has, where nothing else is given; of a search by Ray.
        again: folder of the run that is made again, where the command line has read its `args.yaml`.
        strict: whether a stock training has its arguments checked in one line too, as the command line wants it.
        exact: whether a stock training goes on exactly after a kill too, as a sweep wants it.
    """

    model: Any
    trains_ours: ClassVar[bool] = True  # see `rebalance.hosts.host.guard`
    strict: ClassVar[bool] = False
    again: ClassVar[Path | None] = None
    flags: Mapping[str, Any] = {}
    exact: ClassVar[bool] = False

    def _load(self, weights: str, task: Any = None) -> None:
        if str(weights) not in ZOO:
            known = "://" in str(weights) or Path(weights).exists() or str(weights) in GITHUB_ASSETS_STEMS
            if not Path(weights).suffix and not known:
                raise ModelError(f"model={weights} is not one of {', '.join(ZOO)}, nor a file{nearest(weights, ZOO)}")
            try:
                super()._load(weights, task=task)
                loaded = isinstance(self.model, BaseModel)
            except Exception:  # whatever its reader meets
                if not is_state_dict(weights):
                    raise
                loaded = False
            if not loaded and is_state_dict(weights):  # by its suffix an export, or a module that was saved whole
                raise ModelError(
                    f"model={weights} holds weights without their model; name the model that it fills, e.g. "
                    f"model=yolov5n.yaml pretrained={weights}"
                )
            return
        self.task, self.cfg, self.model_name = "detect", weights, weights
        self.model = TorchvisionModel(weights, verbose=False)
        self.overrides |= {"model": weights, "task": "detect"}
        self.model.args = {**DEFAULT_CFG_DICT, **self.overrides}
        self.model.task = "detect"

    def load(self, weights: Any = "yolo26n.pt") -> Any:
        """Fill the model, as there, also with plain weights; one of torchvision with `coco` too."""
        named = isinstance(weights, (str, Path))
        if isinstance(self.model, TorchvisionModel) and named:
            check(self.model_name, weights)
            if weights == COCO or is_state_dict(weights):
                start(self.model, str(weights))
                self.ckpt = {"model": self.model}
                return self
        elif isinstance(self.model, DetectionModel) and named and (given := plain_weights(weights)):
            host = host_of(self.model)
            host.require(self.model, given, str(weights), f"model={self.model_name}")
            host.start(self.model, str(weights), given)
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

    def val(self, validator: Any = None, *, val_regions: bool = True, **kwargs: Any) -> Any:
        """Validate, as there, but on slow machines too with every image's detections.

        Args:
            validator: as there.
            val_regions: whether what is found in an unknown region of the data set, and matches no label, counts
                neither as right nor as wrong; else as wrong.
            kwargs: as there.

        Raises:
            ConfigError: val_regions=False with another task or a validator that knows no regions.
            DataError: a region file cannot be read.
        """
        self._ready()
        made = validator or (Validator if self.task == "detect" else None)
        counted = checked("val_regions", TRAIN["val_regions"][1], val_regions)
        given = {**self.overrides, **kwargs}
        if not (isinstance(made, type) and issubclass(made, Validator)):
            what = f"validator={getattr(made, '__name__', made)}" if made else f"a {self.task} model"
            if not counted:
                raise ConfigError(f"val_regions=False has no effect with {what}")
            if data := says(given):
                tell_unused(data, f"{what} knows none")
            return super().val(validator=made, **kwargs)
        if (source := source_of(given.get("data"))) and spoken(source):  # before a folder is made
            source.knowledge.require_readable((str(given.get("split") or "val"),))
        if not counted:
            made = type(made.__name__, (made,), {"val_regions": False})
        return super().val(validator=made, **kwargs)

    def export(self, **kwargs: Any) -> Any:
        """Export, as there."""
        self._ready()
        return super().export(**kwargs)

    def tune(self, use_ray: bool = False, iterations: int = 10, *args: Any, **kwargs: Any) -> Any:
        """Tune, as there, with our flags too, given or searched in `space`; then, and for our heads, our trainer runs.

        Args:
            use_ray: as there.
            iterations: as there.
            args: as there.
            kwargs: our training flags, Ultralytics' arguments, and those of the search.

        Raises:
            ConfigError: as `train`, or a flag in the space that is not a number.
        """
        search = {name: kwargs.pop(name) for name in SEARCH if name in kwargs}
        ours, arguments = separate(kwargs)
        searched = start_of(search.get("space"), bounded=not use_ray)
        admitted = admit(self, {**searched, **ours}, arguments)
        if admitted.recipe is None:
            return super().tune(use_ray, iterations, *args, **search, **kwargs)
        if use_ray:
            self.flags = ours
            try:
                return super().tune(True, iterations, *args, **search, **admitted.arguments)
            finally:
                self.flags = {}
        if args:
            raise ConfigError(f"{args}: options of the search are given by name")
        if "optimizer" not in (search.get("space") or {}):
            admitted.arguments.setdefault("optimizer", "AdamW")  # as there
        recipe = admitted.recipe

        def makes(flags: dict[str, Any], theirs: dict[str, Any]) -> Any:
            known = {k: v for k, v in theirs.items() if k in DEFAULT_CFG_DICT and v is not None}
            found = admit(self, flags, known, data=False)
            theirs |= found.arguments
            return self._trainer(found, theirs, several=True)

        made = RebalanceTuner(
            {**self.overrides, **admitted.arguments, **search, "mode": "train"}, {**searched, **ours}, makes,
            idle=host_of(self.model).gains_idle(recipe), model=self.model, _callbacks=self.callbacks,
        )  # fmt: skip
        return made(iterations=iterations)

    def benchmark(self, *args: Any, **kwargs: Any) -> Any:
        """Measure the exports, as there."""
        self._ready()
        return super().benchmark(*args, **kwargs)

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Train.

        Args:
            trainer: a trainer class of your own. With our flags, heads and detectors it is one made from
                `rebalance.trainer(...)`, whose flags count where none are given here.
            kwargs: our training flags and Ultralytics' arguments.

        Raises:
            ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
            ModelError: the model cannot have the head asked for.
        """
        ours, arguments = separate(kwargs)
        base = trainer if isinstance(trainer, type) and issubclass(trainer, RebalanceTrainer) else None
        ours = {**(base.given if base else {}), **self.flags, **ours}
        admitted = admit(self, ours, arguments, None if base else trainer, strict=self.strict)
        if admitted.recipe is None:
            if remembered(self.model):  # the host's loss from here on: resuming must not bring an earlier one back
                del self.model.yaml[KEY]
            if self.exact and self.task == "detect":
                trainer = trainer or Resumable
            return super().train(trainer=trainer, **admitted.arguments)
        several = isinstance(arguments.get("data"), (list, tuple))
        made = self._trainer(admitted, admitted.arguments, several=several, base=base or RebalanceTrainer)
        made.again = self.again or run_of(kwargs.get("cfg"))
        return super().train(trainer=made, **admitted.arguments)

    def _trainer(
        self,
        admitted: Admitted,
        arguments: dict[str, Any],
        *,
        several: bool,
        base: type[RebalanceTrainer] = RebalanceTrainer,
    ) -> type[RebalanceTrainer]:
        """A trainer class; of several sets the host would read a file of weights itself, so ours does it before."""
        made, pretrained = with_flags(admitted.given, admitted.recipe, base, admitted.data), arguments.get("pretrained")
        if several and (pretrained == COCO or is_state_dict(pretrained)):
            made.starts_from, arguments["pretrained"] = pretrained, True
        elif several and isinstance(self.model, TorchvisionModel) and not self.ckpt and pretrained in (None, True):
            made.starts_from = True  # torchvision's backbone; the host would go on from this model's random numbers
        return made


def to_fetch(name: str) -> str:
    """What can be loaded in the place of a model that has to be fetched: the YAML of most published ones, else itself.

    Empty where it is on this machine, or is nothing that can be fetched.
    """
    file = Path(f"{name}.pt" if name in GITHUB_ASSETS_STEMS else name)
    there = file.is_file() or (Path(SETTINGS["weights_dir"]) / file.name).is_file()
    if there or (file.name not in GITHUB_ASSETS_NAMES and "://" not in name):
        return ""
    described = f"{file.stem.removesuffix('u')}.yaml"
    try:
        yaml_model_load(described)
    except FileNotFoundError:
        return name
    return described


def load(name: str, task: Any = None, make: type[YOLO] = YOLO) -> YOLO:
    """A model by its name or file, or one line that says why not.

    Args:
        name: as `model=`.
        task: as there.
        make: class of the model.

    Raises:
        ModelError: there is no such model, or its file cannot be read.
        FetchError: it is not on this machine and cannot be fetched.
    """
    file = Path(name)
    if file.suffix in (".yaml", ".yml"):
        try:
            yaml_model_load(name)
        except FileNotFoundError:
            raise ModelError(f"model={name}: no such file") from None
    elif (
        file.suffix == ".pt" and "://" not in str(name) and not file.is_file() and file.name not in GITHUB_ASSETS_NAMES
    ):
        hint = nearest(str(name), GITHUB_ASSETS_NAMES)
        raise ModelError(f"model={name}: no such file, and not a published model{hint}")
    try:
        return make(name, task=task)
    except RebalanceError:
        raise
    except Exception as error:  # the host raises what its file reader, its downloader or its parser raised
        kind = FetchError if isinstance(error, ConnectionError) else ModelError
        raise kind(f"model={name} cannot be loaded: {' '.join(str(error).split())}") from None
