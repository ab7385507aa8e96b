"""torchvision's detectors as hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebalance.errors import ConfigError, ModelError
from rebalance.hosts.host import Host, refuse_weights
from rebalance.hosts.state_dict import Weights
from rebalance.hosts.torchvision import published
from rebalance.hosts.torchvision.model import KEY, TorchvisionModel
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.recipe import Recipe


class Torchvision(Host):
    """A detector of torchvision."""

    def __init__(self, name: str) -> None:
        self.name, self.sites = name, ZOO[name].head.sites

    def refuse(self, model: Any, recipe: Recipe, arguments: Mapping[str, Any], channels: int) -> None:
        """Gains of the host's losses, what would freeze all or nothing, weights that cannot be had."""
        refuse_weights(arguments, self.sites.name)
        freeze = arguments.get("freeze")
        if not (set(freeze) <= {0, 1} if isinstance(freeze, list) else freeze is None or freeze in (0, 1, 2)):
            raise ConfigError(
                f"freeze={freeze}: {self.name} has three modules, 0 its body, 1 its neck and 2 its head; "
                "freeze takes 1 (the body), 2 (the neck too), or a list of 0 and 1"
            )
        if arguments.get("resume"):
            return
        published.check(self.name, arguments.get("pretrained"))
        if arguments.get("distill_model"):
            raise ConfigError(f"distill_model={arguments['distill_model']} cannot be joined with model={self.name}")
        if channels != 3:
            raise ModelError(f"model={self.name} takes images of 3 channels; {arguments['data']} has {channels}")

    def build(self, cfg: Any, recipe: Recipe, *, nc: int, ch: int, verbose: bool) -> Any:
        return TorchvisionModel(cfg, nc=nc, ch=ch, verbose=verbose, recipe=recipe)

    def require(self, model: Any, given: Weights, source: str, what: str) -> None:
        published.require(model, given, source)

    def start(self, model: Any, pretrained: Any, given: Weights | None) -> tuple[int, int] | None:
        """From torchvision's own weights, or a file of them."""
        return published.start(model, pretrained)

    def prepare(self, model: Any, recipe: Recipe, trainer: Any) -> str:
        model.model[-1].trained_at(trainer.args.imgsz)
        return ""

    def criterion(self, model: Any, recipe: Recipe, seed: int) -> Any:
        return model.criterion_of(recipe, seed)


def detector_of(model: Any) -> str:
    """The name of a detector from its `yaml`, a model or a text; '' where it is none of torchvision's."""
    yaml = model if isinstance(model, Mapping) else getattr(model, "yaml", None)
    name = yaml.get(KEY) if isinstance(yaml, Mapping) else model
    return name if isinstance(name, str) and name in ZOO else ""
