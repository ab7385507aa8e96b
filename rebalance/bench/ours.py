"""The side that is ours: models, losses and heads, built as `train` builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from rebalance.hosts.torchvision.model import KEY, TorchvisionModel
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.hosts.ultralytics.criterion import build_criterion
from rebalance.hosts.ultralytics.model import anchored, model_class
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl, confusion
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.methods.registry import METHODS, PLACES, YOLO
from rebalance.methods.resolve import train_flags

CLASSES = 10
STEPS = 3  # most refinements that are timed
GIVEN = {"drop": {"obj_drop": 0.75}}  # flags of the methods that do nothing by default


def written(given: dict[str, Any]) -> str:
    """Flags as a user writes them."""
    return " ".join(f"{k}={v}" for k, v in given.items())


def model(name: str, **given: Any) -> Any:
    """A model of random weights of a YOLO's file or a detector of torchvision, with the head of the flags."""
    if name in ZOO:
        flags = train_flags(given, host=ZOO[name].host)
        return TorchvisionModel({KEY: name, "nc": CLASSES}, flags=flags, verbose=False)
    flags = train_flags(given)
    cfg = {**yaml_model_load(name), "nc": CLASSES}
    if flags.head == "stock":
        return DetectionModel(cfg, verbose=False)
    return model_class(name, flags.head)(cfg, flags=flags, verbose=False)


def heads(name: str) -> list[dict[str, Any]]:
    """Flags of the heads that a model may have: its own first, then one with objectness, then those that refine it."""
    own = "anchor" if name not in ZOO and anchored(name) else "stock"
    return [{"head": own}, {"head": "obj"}, *({"head": "resobj", "resobj_steps": t + 1} for t in range(STEPS))]


def losses(model: Any, labels: dict[str, Any], place: str) -> dict[str, Callable[[Any], Tensor]]:
    """Every loss that is defined at a place, the host's own first: flags -> predictions -> scalar."""
    head, host = (place, "yolo") if place in YOLO else ("stock", place)
    defined = [name for name, row in METHODS.items() if row.kind != "head" and place in row.places]

    def one(given: dict[str, Any]) -> Callable[[Any], Tensor]:
        criterion = build_criterion(model, train_flags(given, head=head, host=host), seed=0)
        return lambda preds: criterion(preds, labels)[0].sum()

    named = [{"loss": name, **GIVEN.get(name, {})} for name in dict.fromkeys((PLACES[place], *defined))]
    return {written(given): one(given) for given in named}


def elements(targets: Tensor, state: Tensor, overlap: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Element losses on logits (B, N, C) of these targets (likewise), state and overlap (B, N)."""
    everything = torch.ones((), dtype=torch.bool, device=state.device)
    return {
        "brl": lambda x: brl(x, targets, confusion(state, overlap, 0.1).unsqueeze(-1)),
        "focal": lambda x: focal(x, targets),
        "bce": lambda x: bce(x, targets),
        "ghm": lambda x: bce(x, targets) * ghm_weights(x, targets, everything)[0],
    }
