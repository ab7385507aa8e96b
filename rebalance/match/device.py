"""Where the number of elements that a mask holds may be asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def free_to_read(x: Tensor) -> bool:
    """Whether its values can be read without waiting: on a CPU, where a shorter way may depend on them."""
    return x.is_cpu


def places(mask: Tensor) -> Tensor:
    """(K,) int64 where a flattened mask, free to read, is set; NumPy finds that several times faster than torch."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def rows(x: Tensor, place: Tensor) -> Tensor:
    """(1, K, …) of (B, N, …) what is at places (K,) of the flattened first two dimensions, each at most once."""
    if not x.requires_grad:
        return x.flatten(0, 1).index_select(0, place).unsqueeze(0)
    found: Tensor = _Rows.apply(x, place)  # type: ignore[no-untyped-call]
    return found


class _Rows(torch.autograd.Function):
    """As by indices, whose gradient is added up row by row; here no row is there twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.shape = x.shape
        ctx.save_for_backward(place)
        return x.flatten(0, 1).index_select(0, place).unsqueeze(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        found = gradient.new_zeros(ctx.shape)
        found.flatten(0, 1).index_copy_(0, ctx.saved_tensors[0], gradient.squeeze(0))
        return found, None


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    """As masked_fill(mask, 0) of at least float32, whatever is there, which takes thrice as long on a CPU."""
    found: Tensor = _Zeroed.apply(x, mask)  # type: ignore[no-untyped-call]
    return found


class _Zeroed(torch.autograd.Function):
    """By bits: no branch, and no number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        kept = mask.to(torch.int64 if x.dtype == torch.float64 else torch.int32) - 1  # no bit where set, else all
        if kept.numel() < x.numel():
            kept = kept.expand_as(x).contiguous()  # two short passes are as long as this one
        ctx.save_for_backward(kept)
        return _masked(x, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _masked(gradient, ctx.saved_tensors[0]), None


def _masked(x: Tensor, kept: Tensor) -> Tensor:
    return (x.view(kept.dtype) & kept).view(x.dtype)
