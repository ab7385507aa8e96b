"""The side that is ours: models, losses and heads, built as `train` builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from ultralytics.nn.tasks import yaml_model_load

from rebalance.hosts import host_of
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.methods import METHODS
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl, confusion
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.recipe import read

CLASSES = 10
STEPS = 3  # most refinements that are timed
GIVEN = {"drop": {"obj_drop": 0.75}}  # flags of the methods that do nothing by default


def written(given: dict[str, Any]) -> str:
    """Flags as a user writes them."""
    return " ".join(f"{k}={v}" for k, v in given.items())


def model(name: str, **given: Any) -> Any:
    """A model of random weights, from a YOLO's file or the name of a detector of torchvision."""
    host = host_of(name)
    cfg = name if name in ZOO else {**yaml_model_load(name), "nc": CLASSES}
    return host.build(cfg, read(given, host.sites), nc=CLASSES, ch=3, verbose=False)


def heads(name: str) -> list[dict[str, Any]]:
    """Flags of the heads that a model may have: its own first, then one with objectness, then those that refine it."""
    own = "anchor" if "anchors" in host_of(name).sites.site("obj").gives else "stock"
    return [{"head": own}, {"head": "obj"}, *({"head": "resobj", "resobj_steps": t + 1} for t in range(STEPS))]


def losses(model: Any, labels: dict[str, Any], head: str) -> dict[str, Callable[[Any], Tensor]]:
    """Every loss that is defined on a head, the host's own first: flags -> predictions -> scalar."""
    host = host_of(model)
    site = host.sites.site(head)

    def one(given: dict[str, Any]) -> Callable[[Any], Tensor]:
        criterion = host.criterion(model, read(given, host.sites, head=head), seed=0)
        return lambda preds: criterion(preds, labels)[0].sum()

    names = [site.own, *(row.name for row in METHODS.values() if row.kind != "head" and row.defined(site))]
    return {written(given): one(given) for name in names for given in [{"loss": name, **GIVEN.get(name, {})}]}


def elements(targets: Tensor, state: Tensor, overlap: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Element losses on logits (B, N, C) of these targets (likewise), state and overlap (B, N)."""
    everything = torch.ones((), dtype=torch.bool, device=state.device)
    return {
        "brl": lambda x: brl(x, targets, confusion(state, overlap, 0.1).unsqueeze(-1)),
        "focal": lambda x: focal(x, targets),
        "bce": lambda x: bce(x, targets),
        "ghm": lambda x: bce(x, targets) * ghm_weights(x, targets, everything)[0],
    }
