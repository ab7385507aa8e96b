"""What a host is to the rest of the house, and what a model remembers of its training.

A host is the family of models that one kind of detection head belongs to: Ultralytics' YOLO models, or one of
torchvision's detectors. The trainer, the admission and the benchmark know hosts by this class alone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.engine.model import Model
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.loss import E2ELoss

from rebalance.diagnosis import values
from rebalance.errors import ConfigError, ModelError
from rebalance.hosts.state_dict import Weights
from rebalance.methods.method import DENSE, Sites
from rebalance.methods.resobj import means
from rebalance.objective import Objective
from rebalance.processes import summed
from rebalance.recipe import Recipe

KEY = "rebalance"  # of model.yaml: what a checkpoint remembers of our flags
COCO = "coco"  # value of `pretrained` that is no file: the whole detector as published, trained on COCO

USES = ("predict", "track", "val", "export")  # of the host's models, of which one of ours may refuse some
HOST_WEIGHTS = ("box", "cls", "dfl", "cls_pw")  # of Ultralytics' own losses, which other heads do not use


class Host(ABC):
    """A family of models."""

    sites: Sites  # where the loss acts

    @abstractmethod
    def refuse(self, model: Any, recipe: Recipe, arguments: Mapping[str, Any], channels: int) -> None:
        """Raise for a training that could not start, or for arguments that would have no effect. Makes nothing.

        Args:
            model: that is to be trained, or that a training goes on with.
            arguments: Ultralytics' own.
            channels: of the data set's images.
        """

    def gains_idle(self, recipe: Recipe) -> bool:
        """Whether the gains of Ultralytics' own losses have no effect."""
        return True

    @property
    def own(self) -> bool:
        """Whether Ultralytics trains such a model by itself."""
        return False

    @abstractmethod
    def build(self, cfg: Any, recipe: Recipe, *, nc: int, ch: int, verbose: bool) -> Any:
        """A model with random weights and the head of the recipe."""

    @abstractmethod
    def require(self, model: Any, given: Weights, source: str, what: str) -> None:
        """Refuse weights of another architecture than a model's; `source` is their file, `what` the model, in words.

        Raises:
            ModelError: they are.
        """

    @abstractmethod
    def start(self, model: Any, pretrained: Any, given: Weights | None) -> tuple[int, int] | None:
        """Fill a model that was just built, from `given` where the file that `pretrained` names has plain weights.

        Returns:
            Number of tensors copied, and number in the file; None where there is nothing to copy.
        """

    def load(self, model: Any, weights: Any) -> None:
        """Fill a model that was just built from another one, and say what enters."""
        model.load(weights)

    def prepare(self, model: Any, recipe: Recipe, trainer: Any) -> str:
        """Set what needs the data, before the EMA copies the model; returns what is to be said about it, or ''."""
        return ""

    @abstractmethod
    def criterion(self, model: Any, recipe: Recipe, seed: int) -> Any:
        """The loss, called as Ultralytics calls a criterion. Its `objectives` are those of all its stages.

        It takes the head's raw predictions, in validation a pair (decoded, raw), and a batch: `batch_idx` (T,) sorted,
        `cls` (T, 1), `bboxes` (T, 4) centre, width, height as fractions; optionally `most_labels`, the number of labels
        of the fullest image. It returns the losses times B, and the same without B, detached, by name.
        """


class OwnYaml(dict[str, Any]):
    """The `yaml` of a model with a head of ours: Ultralytics' own trainer would build another head from its layers.

    It stops there, in one line, whichever way it came: `train` of a checkpoint, `tune`, a list of data sets, Ray.
    """

    def __getitem__(self, key: str) -> Any:
        if key in ("backbone", "head"):  # what the host asks for first
            raise self.other_trainer()
        return super().__getitem__(key)

    def other_trainer(self) -> ModelError:
        """What is to be said where another trainer than ours would train the model."""
        flags = self.get(KEY, {}).get("flags", {})
        what = f"a checkpoint with head={flags.get('head', 'anchor')} has a head of rebalance"
        if "torchvision" in self:
            what = f"{self['torchvision']} is a detector of torchvision"
        return ModelError(f"{what}: train it with rebalance.YOLO, or with trainer=rebalance.trainer()")


def guard() -> None:
    """Let the host's own models refuse what a model of ours cannot do before they make a folder; twice does no harm.

    That is to train or tune it with another trainer, and what its `refuse_use` says. A checkpoint of ours imports this
    module, so whoever has one loaded has the guard too.
    """
    guards = {"train": _guarded, "tune": _guarded, **dict.fromkeys(USES, _asked)}
    for name, guarded in guards.items():
        stock = getattr(Model, name)
        if not hasattr(stock, "guarded"):
            setattr(Model, name, guarded(stock))


def _guarded(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        yaml, trainer = getattr(self.model, "yaml", None), kwargs.get("trainer", args[0] if args else None)
        if isinstance(yaml, OwnYaml) and not any(getattr(x, "trains_ours", False) for x in (self, trainer)):
            raise yaml.other_trainer()
        return stock(self, *args, **kwargs)

    vars(run)["guarded"] = True
    return run


def _asked(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if refuse := getattr(self.model, "refuse_use", None):
            refuse({**self.overrides, **kwargs}, f"model={self.model_name}", stock.__name__)
        if isinstance(self.model, (str, Path)):
            if {**self.overrides, **kwargs}.get("dnn"):
                refuse_opencv(self.model)
            if number_as_exported not in self.callbacks["on_predict_batch_start"]:
                self.add_callback("on_predict_batch_start", number_as_exported)
        return stock(self, *args, **kwargs)

    vars(run)["guarded"] = True
    return run


# Of an ONNX file's metadata, its last part: the head, as the host's export names it
TORCHVISION_HEAD = re.compile(rb"\x04head\x12.\w*(RetinaNet|FasterRCNN|SSD)Detect", re.DOTALL)


def refuse_opencv(model: str | Path) -> None:
    """Refuse an ONNX file of one of torchvision's detectors, whose operators OpenCV's own runtime does not know."""
    file = Path(model)
    if file.suffix == ".onnx" and file.is_file():
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - 2**16))
            if TORCHVISION_HEAD.search(opened.read()):
                raise ConfigError(
                    f"dnn=True: OpenCV's own runtime does not know the operators of model={model}, a detector of "
                    "torchvision; leave dnn away"
                )


def number_as_exported(predictor: Any) -> None:
    """Refuse what TorchScript would: proposals are chosen image by image, for as many as the export was made with."""
    backend, images = predictor.model, len(predictor.batch[0])
    one_number = backend.format == "torchscript" and "FasterRCNN" in (backend.metadata or {}).get("head", "")
    if one_number and images != backend.batch:
        raise ConfigError(
            f"model={predictor.args.model} takes {backend.batch} images at a time, not {images}; give so many, or "
            f"export with batch={images}"
        )


guard()


def refuse_own_features(arguments: Mapping[str, Any], what: str) -> None:
    """Raise where tracking would re-identify by the features of a head that has several boxes a cell."""
    tracker = arguments.get("tracker") or DEFAULT_CFG_DICT["tracker"]
    told = YAML.load(check_yaml(tracker))
    if told.get("with_reid") and told.get("model", "auto") == "auto":
        raise ConfigError(
            f"tracker={tracker}: with_reid and model: auto take one feature a cell, and the head of {what} has several "
            "boxes there; name another model in the tracker's file, or set with_reid: False"
        )


def refuse_weights(arguments: Mapping[str, Any], what: str) -> None:
    """Raise where weights of the host's own losses are given for another loss."""
    for name in HOST_WEIGHTS:
        if arguments.get(name, DEFAULT_CFG_DICT[name]) != DEFAULT_CFG_DICT[name]:
            raise ConfigError(f"{name}={arguments[name]} has no effect with {what}")


def remember(model: Any, recipe: Recipe) -> None:
    """Write the flags into the model, as plain values that a checkpoint keeps and any installation can read."""
    model.yaml[KEY] = {"flags": dict(recipe.values)}


def remembered(model: Any) -> dict[str, Any]:
    """What `remember` wrote, and beside it what a loss has kept; or an empty dict."""
    yaml = getattr(model, "yaml", None)
    return yaml.get(KEY, {}) if isinstance(yaml, dict) else {}


def head_of(model: Any) -> str:
    """The value of `head` that a model has: what it remembers, else what its class is for."""
    head: str = remembered(model).get("flags", {}).get("head") or getattr(model, "own_head", "stock")
    return head


# What a criterion keeps from step to step -----------------------------------------------------------------------------


def branches(criterion: Any) -> list[Any]:
    """The criteria that a criterion is made of: two for YOLO26, else itself."""
    return [criterion.one2many, criterion.one2one] if isinstance(criterion, E2ELoss) else [criterion]


def objectives(criterion: Any) -> list[Objective]:
    """Of every branch and stage."""
    return [objective for branch in branches(criterion) for objective in branch.objectives]


def begin_epoch(criterion: Any, epoch: int, epochs: int = 0) -> None:
    """Tell every branch of a criterion where the run stands (from 0), and how long it is; 0: that is not known."""
    for objective in objectives(criterion):
        objective.begin_epoch(epoch, epochs)


def counts(criterion: Any) -> dict[str, int]:
    """What was chosen in this epoch, summed over branches and processes; reads from the device once."""
    found = [o for o in objectives(criterion) if o.counts is not None and o.weighting is not None]
    if not found:
        return {}
    names = found[0].weighting.counted  # type: ignore[union-attr]
    return dict(zip(names, _summed([o.counts for o in found]).tolist(), strict=True))


def pulls(criterion: Any) -> dict[str, float]:
    """By what dropping multiplies the loss's `pull` on positives and `push` on negatives, as it was in this epoch.

    Each is a sum of gradients in the logits, over branches and processes; without what is 0 without dropping. Reads
    from the device once.
    """
    found = [o.slopes for o in objectives(criterion) if o.slopes is not None]
    rows = zip(*_summed(found).tolist(), strict=True) if found else ()
    pairs = zip(("pull", "push"), rows, strict=False)
    return {name: round(chosen / none, 4) for name, (chosen, none) in pairs if none > 0}


def step_means(criterion: Any) -> dict[str, float]:
    """Mean objectness of this epoch's positives and negatives after each step; empty without an objectness of ours."""
    found = [o.steps.sums for o in objectives(criterion) if o.steps.sums is not None]
    return means(_summed(found)) if found else {}


def diagnosis(criterion: Any) -> dict[str, float]:
    """What this epoch's loss did to objects without a label, over branches and processes; reads from the device once.

    Of a detector with two stages the names begin with the stage.
    """
    found = [o for o in objectives(criterion) if o.diagnosis is not None and o.diagnosis.sums is not None]
    told: dict[str, float] = {}
    for stage in dict.fromkeys(o.stage for o in found):
        own = [o.diagnosis for o in found if o.stage == stage]
        sums = _summed([one.sums for one in own if one]).tolist()
        named = values(own[0].kinds, sums) if own[0] else {}
        told |= {name if stage == DENSE else f"{stage}_{name}": value for name, value in named.items()}
    return told


def keep(criterion: Any) -> list[dict[str, list[float]]]:
    """What the methods of each branch keep, as plain numbers for a checkpoint."""
    return [{name: x.tolist() for name, x in branch.objectives[0].run.kept.items()} for branch in branches(criterion)]


def restore(criterion: Any, kept: Iterable[Mapping[str, list[float]] | list[float] | None]) -> None:
    """Put back what `keep` gave; earlier versions kept GHM's average alone, as a list."""
    for branch, found in zip(branches(criterion), kept, strict=False):
        named = {"average": found} if isinstance(found, list) else found or {}
        branch.objectives[0].run.kept = {name: torch.tensor(values) for name, values in named.items()}


def describe(model: Any) -> dict[str, Any]:
    """What runs, in words and as data, read from the model's criterion rather than from the flags alone."""
    criterion = model.criterion
    branch = branches(criterion)[0]
    run, ran = branch.objectives[0].run, branch.objectives[0].recipe
    name = type(criterion).__name__
    if isinstance(criterion, E2ELoss):
        name = f"{name} of two {type(branch).__name__}"
    element, weighting = ran.methods[0].name, "".join(method.name for method in ran.methods[1:])
    divisor = ran.site.divisors[ran.divisor]
    if weighting == "drop":
        divisor += ", what is left" if ran["drop_divisor"] == "kept" else ", as in the host"
    told = [method.tells(run) for method in ran.methods]
    used = {**ran.used, **{k: v for values, _ in told for k, v in values.items()}}
    settings = " ".join(f"{k}={v}" for k, v in used.items())
    said = ", ".join(filter(None, (name, settings, *(words for _, words in told), f"divisor: {divisor}")))
    return {
        "loss": ran["loss"], "head": ran["head"], "element": element, "weighting": weighting, "criterion": name,
        "settings": used, "divisor": divisor, "text": f"{ran.text}: {said}",
    }  # fmt: skip


def _summed(parts: list[Any]) -> Tensor:
    """Over branches and processes."""
    return summed(torch.stack(parts).sum(0))
