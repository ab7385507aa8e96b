"""torchvision's detectors as models that Ultralytics trains, validates, predicts with and exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import QUANTIZE_ALIASES
from ultralytics.nn.tasks import DetectionModel

from rebalance.errors import ConfigError, ModelError, nearest
from rebalance.heads.objectness import unfused
from rebalance.hosts.host import OwnYaml, head_of, refuse_own_features, remembered
from rebalance.hosts.state_dict import Rows, follow_names, load_by_name, unnamed
from rebalance.hosts.torchvision.zoo import ZOO, Detector
from rebalance.recipe import Recipe, kept

KEY = "torchvision"  # of model.yaml: the detector's name


class TorchvisionModel(DetectionModel):  # type: ignore[misc]
    """A detector of torchvision in three parts, `model.0` its backbone, `model.1` its neck, `model.2` its head.

    Images come as Ultralytics gives them, RGB in [0, 1], and are normalised here as the backbone's weights want it.

    Attributes:
        yaml: name, classes and channels; a checkpoint keeps it and builds the model again from it.
    """

    def __init__(
        self, cfg: Any = "retinanet_tiny", ch: int = 3, nc: int | None = None, verbose: bool = True,
        recipe: Recipe | None = None,
    ) -> None:  # fmt: skip
        """Build a detector with random weights.

        Args:
            cfg: its name, or the `yaml` of a model.
            nc: classes; None: 80, as COCO.
            recipe: says which head; None: the one that the `yaml` keeps, else the stock head.

        Raises:
            ModelError: there is no such detector, or it does not take images of `ch` channels.
        """
        nn.Module.__init__(self)
        self.yaml = OwnYaml(cfg if isinstance(cfg, dict) else {KEY: cfg, "yaml_file": cfg})
        name = self.yaml[KEY]
        if name not in ZOO:
            raise ModelError(f"model={name} is not one of {', '.join(ZOO)}{nearest(name, ZOO)}")
        if ch != 3:
            raise ModelError(f"model={name} takes images of 3 channels; the data set has {ch}")
        self.yaml |= {"nc": nc or self.yaml.get("nc", 80), "channels": ch}
        detector: Detector = ZOO[name]
        body, neck, head = detector.build(self.yaml["nc"])
        recipe = recipe or kept(remembered(self).get("flags", {}), head.sites)
        if recipe["head"] == "sigmoid":
            head = head.with_sigmoid()
        elif recipe["head"] != "stock":
            head = head.with_objectness(recipe.resobj)
        self.nc = self.yaml["nc"]
        self.model = nn.Sequential(body, neck, head)
        parts: list[Any] = [body, neck, head]
        for index, part in enumerate(parts):
            part.i, part.f, part.np = index, -1, sum(p.numel() for p in part.parameters())  # as Ultralytics' layers
            setattr(part, "type", type(part).__name__)  # noqa: B010 - nn.Module has a method of that name
        self.save: list[int] = []
        self.names = {i: f"{i}" for i in range(self.nc)}
        self.inplace = True
        self.stride = head.stride
        self.register_buffer("mean", torch.tensor(detector.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(detector.std).view(3, 1, 1), persistent=False)
        if verbose:
            self.info()

    def __getstate__(self) -> dict[str, Any]:
        """What a checkpoint keeps: of `yaml` plain values."""
        return {**self.__dict__, "yaml": dict(self.yaml)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "yaml": OwnYaml(state["yaml"])})

    def is_fused(self) -> bool:
        """As the host's, and the refinements of the head have been added up."""
        return super().is_fused() and not unfused(self.model[-1])

    def _predict_once(self, x: Tensor, profile: bool = False, embed: Any = None) -> Any:
        body, neck, head = self.model
        x = (x - self.mean) / self.std
        if x.device.type == "cpu":  # a fifth faster; on a GPU Ultralytics chooses the format
            x = x.contiguous(memory_format=torch.channels_last)
        features = body(x)
        if embed:
            pooled = nn.functional.adaptive_avg_pool2d(list(features.values())[-1], 1).flatten(1)
            return torch.unbind(pooled, dim=0)
        return head(neck(features), (x.shape[-2], x.shape[-1]))

    def refuse_use(self, arguments: Mapping[str, Any], what: str, mode: str) -> None:
        """Raise for what a client asks of a detector of torchvision and does not get."""
        if mode == "track":
            refuse_own_features(arguments, what)
        if mode == "predict" and arguments.get("visualize"):
            raise ConfigError(
                f"visualize={arguments['visualize']}: class activation maps are made from one score a cell and class, "
                f"which {what}, a detector of torchvision, does not put out"
            )
        if mode == "predict" and arguments.get("embed") not in (None, [], [1], (1,)):  # [1]: the host's default
            raise ConfigError(
                f"embed={arguments['embed']}: {what}, a detector of torchvision, gives the last features of its "
                "backbone alone; leave embed away"
            )
        if mode != "export":
            return
        if arguments.get("dynamic"):
            raise ConfigError(
                f"dynamic={arguments['dynamic']}: the anchors of {what} are constants of an export, for images of one "
                "size; leave dynamic away and give imgsz= and batch="
            )
        if arguments.get("format") == "ncnn":
            raise ConfigError(
                f"format=ncnn: {what}, a detector of torchvision, chooses its boxes by what ncnn's converter does not "
                "know; give onnx, openvino, torchscript or mnn"
            )
        bits, form = QUANTIZE_ALIASES.get(str(arguments.get("quantize")).lower()), arguments.get("format")
        two_stages = self.yaml[KEY].startswith("fasterrcnn")
        if (arguments.get("half") or bits == 16) and form == "onnx" and two_stages:
            raise ConfigError(f"half=True: no runtime loads {what} as ONNX in half precision; leave half away")
        # of softmax scores the host looks for a sigmoid; NNCF does not follow the loop over a batch's proposals
        beyond = two_stages or (self.yaml[KEY].startswith("ssd") and head_of(self) == "stock")
        if (arguments.get("int8") or bits == 8) and form == "openvino" and beyond:
            raise ConfigError(f"quantize=8: OpenVINO's quantizer does not take {what}; give onnx or mnn")

    def load(self, weights: Any, verbose: bool = True) -> None:
        """Copy the tensors of a model, or of a checkpoint, that match by name and shape; how many is always told.

        The rows of classes follow the classes' names, as the host has it.
        """
        model = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        state = self.translate(dict(model.float().state_dict()))
        told = self.follow_names(state, getattr(model, "names", None))
        load_by_name(self, state, str(getattr(model, "pt_path", "the model given")), told)

    def class_rows(self) -> dict[str, Rows]:
        """Of the parameters that have rows of classes how to take some."""
        head: Any = self.model[-1]
        return {f"model.2.{name}": take for name, take in head.class_rows().items()}

    def follow_names(self, state: dict[str, Tensor], names: Any) -> str:
        """Bring the class rows of a state dict with class names (index to name) into the order of this model's.

        Returns:
            What was done, in words.
        """
        head: Any = self.model[-1]
        if not isinstance(names, dict) or not names:
            return unnamed(self, state, self.class_rows())
        return follow_names(self, state, names, self.class_rows(), head.background)

    def init_criterion(self) -> Any:
        """The loss that this model was trained with."""
        head: Any = self.model[-1]
        recipe = kept(remembered(self).get("flags", {}), head.sites)
        return self.criterion_of(recipe, int(getattr(self.args, "seed", 0)))

    def criterion_of(self, recipe: Recipe, seed: int) -> Any:
        """The loss of a training with this seed."""
        head: Any = self.model[-1]
        return head.criterion(head, recipe=recipe, seed=seed)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a state dict of torchvision, or of a backbone, as they are named here.

        One of this model's own is left as it is.
        """
        prefixes, own = ZOO[self.yaml[KEY]].prefixes, self.state_dict()
        if any(name in own for name in state):
            return state
        found = {}
        for name, tensor in state.items():
            prefix = next((theirs for theirs in prefixes if name.startswith(theirs)), None)
            ours = name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)
            found[ours] = tensor  # with those that have no place here, which are reported
        return found
