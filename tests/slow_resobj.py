"""Algorithm 1 of Residual Objectness, a candidate at a time, by other code than the product's: values and gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, POSITIVE


class Slow(NamedTuple):
    losses: Tensor  # (T, B, N), with their graph
    entered: list[list[list[bool]]]  # (T, B, N)


def slow_resobj(
    objectness: Tensor, residuals: Tensor, targets: Tensor, state: Tensor, *, gate: str = "batch",
    grad: str = "isolated",
) -> Slow:  # fmt: skip
    """Of logits (B, N) and (T, B, N): each o_t is a sum, of terms that get no gradient and of those that do."""
    images, count = objectness.shape
    logits = [[float(x) for x in row] for row in objectness.detach()]
    terms: list[list[list[Tensor]]] = [[[objectness[b, n]] for n in range(count)] for b in range(images)]
    all_losses, all_gates = [], []
    for t in range(len(residuals)):
        scores = [[1 / (1 + 2.718281828459045**-x) for x in row] for row in logits]
        matched = [[scores[b][n] for n in range(count) if int(state[b, n]) == POSITIVE] for b in range(images)]
        gates, losses = [], []
        for b in range(images):
            rivals = matched[b] if gate == "image" else [x for row in matched for x in row]
            gates.append([bool(rivals) and scores[b][n] >= min(rivals) for n in range(count)])
            for n in range(count):
                loss = objectness.new_zeros(())
                if gates[b][n]:
                    own, earlier = residuals[t, b, n], terms[b][n]
                    free = {"joint": 0, "isolated": 1, "stepwise": len(earlier)}[grad]  # the first that get a gradient
                    fixed = sum(float(x.detach()) for x in earlier[:free])
                    logit = own + fixed + sum(earlier[free:])
                    if int(state[b, n]) != IGNORE:
                        y = float(targets[b, n])
                        loss = y * torch.log1p(torch.exp(-logit)) + (1 - y) * torch.log1p(torch.exp(logit))
                    terms[b][n] = [*terms[b][n], own]
                    logits[b][n] = float(logit.detach())
                losses.append(loss)
        all_gates.append(gates)
        all_losses.append(torch.stack(losses).view(images, count))
    return Slow(torch.stack(all_losses), all_gates)


def slopes(losses: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Gradients of the losses' sum, zeros where there is none."""
    if not losses.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(losses.sum(), leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
