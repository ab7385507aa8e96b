"""Ultralytics' YOLO detection models as a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from ultralytics.data.utils import exif_size
from ultralytics.nn.modules.head import Detect
from ultralytics.utils import LOGGER

from rebalance.errors import ConfigError, ModelError
from rebalance.heads.anchor import AnchorSettings
from rebalance.hosts.host import Host, head_of, refuse_weights
from rebalance.hosts.state_dict import Weights, follow_names, load_by_name, require_fit, stays_new, unnamed
from rebalance.hosts.ultralytics.model import AnchorDetect, build, class_rows, criterion_of, replaceable_head, sites_of
from rebalance.match.autoanchor import best_possible_recall, fit_anchors
from rebalance.recipe import Recipe


class Ultralytics(Host):
    """A model of Ultralytics."""

    def __init__(self, model: Any) -> None:
        self.sites = sites_of(model)

    def refuse(self, model: Any, recipe: Recipe, arguments: Mapping[str, Any], channels: int) -> None:
        """Gains of the host's loss, heads that cannot be replaced, layers to freeze that are not there."""
        freeze, count = arguments.get("freeze"), len(model.model)
        layers = [x for x in freeze if isinstance(x, int)] if isinstance(freeze, list) else [freeze or 0]
        if not all(0 <= layer < count for layer in layers):
            told = "" if isinstance(freeze, list) else "; freezing all of them leaves nothing to train"
            raise ConfigError(f"freeze={freeze}: this model has {count} layers, 0 to {count - 1}{told}")
        head, anchors = recipe["head"], "anchors" in recipe.site.gives
        if anchors:
            refuse_weights(arguments, f"head={head}; its gains are box_gain, obj_gain, cls_gain")
        if head != "stock" and head_of(model) == "stock":
            replaceable_head(model, "anchor" if anchors else head)

    def gains_idle(self, recipe: Recipe) -> bool:
        return "anchors" in recipe.site.gives

    @property
    def own(self) -> bool:
        return True

    def build(self, cfg: Any, recipe: Recipe, *, nc: int, ch: int, verbose: bool) -> Any:
        model = build(cfg, recipe, nc=nc, ch=ch, verbose=verbose)
        if not isinstance(model.model[-1], Detect):
            raise ModelError(
                f"loss={recipe['loss']} needs a YOLO detection model, not {type(model.model[-1]).__name__}"
            )
        return model

    def require(self, model: Any, given: Weights, source: str, what: str) -> None:
        require_fit(model, given.tensors, class_rows(model), source, what)

    def start(self, model: Any, pretrained: Any, given: Weights | None) -> tuple[int, int] | None:
        """Load plain weights; all else the host has loaded."""
        if given is None:
            return None
        state, rows = dict(given.tensors), class_rows(model)
        told = follow_names(model, state, given.names, rows) if given.names else unnamed(model, state, rows)
        return load_by_name(model, state, str(pretrained), told)

    def load(self, model: Any, weights: Any) -> None:
        """As the host loads, which says how much enters; what stays new is said here."""
        before = {name: x.clone() for name, x in model.state_dict().items()}
        model.load(weights)
        theirs = weights.state_dict() if isinstance(weights, torch.nn.Module) else {}
        after = model.state_dict().items()
        filled = {k for k, x in after if (k in theirs and theirs[k].shape == x.shape) or not torch.equal(x, before[k])}
        if told := stays_new(before, filled):
            LOGGER.info(f"rebalance: {told}")

    def prepare(self, model: Any, recipe: Recipe, trainer: Any) -> str:
        """Anchors of a new anchor head: how many labels they reach, fitted to the labels where that is under 98 %."""
        head = model.model[-1]
        if not isinstance(head, AnchorDetect) or trainer.resume:
            return ""
        settings = recipe.of(AnchorSettings)
        data = trainer.train_loader.dataset
        sizes = np.array([_image_size(lb) for lb in data.labels], dtype=float).reshape(-1, 2)
        sizes *= trainer.args.imgsz / sizes.max(1, keepdims=True)
        labels = np.concatenate([lb["bboxes"][:, 2:] * s for lb, s in zip(data.labels, sizes, strict=True)])
        pixels = (head.anchors * head.stride.to(head.anchors).view(-1, 1, 1)).view(-1, 2).cpu().double().numpy()
        recall = best_possible_recall(labels, pixels, settings.anchor_t)
        text = f"anchors reach {recall:.1%} of the labels (best possible recall)"
        if recall < 0.98 and settings.autoanchor and len(np.unique(labels, axis=0)) >= len(pixels):
            fitted = fit_anchors(labels, len(pixels), settings.anchor_t, seed=trainer.args.seed)
            better = best_possible_recall(labels, fitted, settings.anchor_t)
            if better > recall:
                new = torch.from_numpy(fitted).to(head.anchors).view_as(head.anchors)
                head.anchors.copy_(new / head.stride.to(new).view(-1, 1, 1))
                text += f"; fitted to the labels they reach {better:.1%}: {fitted.round().astype(int).tolist()}"
        return text

    def criterion(self, model: Any, recipe: Recipe, seed: int) -> Any:
        return criterion_of(model, recipe, seed)


def _image_size(label: dict[str, Any]) -> tuple[int, int]:
    """Width, height of the image of one of the host's label entries."""
    if "shape" in label:
        return label["shape"][1], label["shape"][0]
    with Image.open(label["im_file"]) as image:  # for rectangular training the host takes the shapes out of its entries
        width, height = exif_size(image)
    return width, height
