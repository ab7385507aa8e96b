"""Objectives of a training on candidates that a test makes up."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebalance.hosts import FAMILIES, SITES
from rebalance.hosts.ultralytics.sites import YoloSites
from rebalance.match.candidates import POSITIVE, SOFTMAX, Candidates
from rebalance.match.regions import Known
from rebalance.methods import JOINS, METHODS
from rebalance.methods.method import DENSE, Choice, Predictions, Run, Sites
from rebalance.objective import Objective
from rebalance.recipe import Recipe, read

# Every element loss, and every pair that may be joined, on the class scores of YOLO
LOSSES = [name for name, row in METHODS.items() if row.kind == "element"] + [
    f"{element}+{name}" for name in JOINS if METHODS[name].defined(SITES["stock"]) for element in JOINS[name]
]


def recipe(site: str = "stock", **given: Any) -> Recipe:
    """What flags come to at a site."""
    return read(given, Sites("here", {"stock": SITES[site]}))


def compose(
    loss: str, site: str = "stock", *, stage: str = DENSE, key: tuple[int, ...] = (0, 0, 0), **given: Any
) -> Objective:
    """The objective of a loss where candidates may be ignored; `key` is seed, process and stream."""
    made = recipe(site, loss=loss, **given)
    seed, rank, stream = key
    return Objective(made, Run(made.site, seed=seed, rank=rank, stream=stream), stage=stage, ignores=True)


def candidates(
    images: int = 2, count: int = 30, classes: int = 3, seed: int = 0, dtype: Any = torch.float32
) -> Candidates:
    """Candidates, some of each state; soft targets on the positive ones."""
    g = torch.Generator().manual_seed(seed)
    state = torch.randint(-1, 2, (images, count), generator=g).to(torch.int8)
    targets = torch.rand(images, count, classes, generator=g) * (state == POSITIVE).unsqueeze(-1)
    logits = torch.randn(images, count, classes, generator=g) * 2
    overlap = torch.rand(images, count, generator=g) ** 3
    return Candidates(logits.to(dtype).requires_grad_(), targets.to(dtype), state, overlap)


def on_softmax(seed: int = 0) -> Candidates:
    """Two images of 20 boxes, four classes with background; the second has no positive."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 20, 4, generator=g, dtype=torch.float64) * 2
    targets = torch.randint(4, (2, 20), generator=g)
    targets[1] = 0
    state = (targets > 0).to(torch.int8)
    state[0, :3] = -1
    overlap = torch.rand(2, 20, generator=g, dtype=torch.float64)
    return Candidates(logits.requires_grad_(), targets, state, overlap, SOFTMAX)


class Stepped(NamedTuple):
    """What one step came to."""

    loss: Tensor  # (B, N, C), 0 for what left
    choice: Choice


def step(
    objective: Objective, given: Candidates, predicted: Tensor | None = None, own: Tensor | None = None
) -> Stepped:
    """A training step: choose by the candidates' overlap and scores, then the loss, with what left at 0.

    `predicted`: overlap of the predicted boxes, where the candidates' is that of other boxes; `own`: with their labels.
    """
    objective.relabel({})
    overlap = given.overlap if predicted is None else predicted
    choice = objective.choose(
        Predictions(
            given.state,
            overlap.masked_fill(given.state < 0, 1).lt,
            lambda: given.logits.detach().amax(-1),
            own=lambda: overlap if own is None else own,
            known=Known(given.unknown, given.sure),
        )
    )

    def cost(choice: Choice) -> Tensor:
        targets = given.targets
        if choice.background is not None:
            targets = targets.masked_fill(choice.background.unsqueeze(-1), 0)
        return objective.loss(given._replace(targets=targets, state=choice.seen(given.state)))

    return Stepped(choice.of_loss(choice.trained(cost)), choice)


def gradient(loss: Tensor, given: Candidates) -> Tensor:
    """In the logits."""
    return torch.autograd.grad(loss.sum(), given.logits, materialize_grads=True)[0]


def recipe_of(given: dict[str, Any], *, head: str = "stock", host: str = "yolo", anchored: bool = False) -> Recipe:
    """What flags come to on a family of models; `anchored`: on one whose heads obj and resobj stand on anchors."""
    sites = YoloSites(on_anchors=anchored) if host == "yolo" else next(s for s in FAMILIES if s.name == host)
    return read(given, sites, head=head)
