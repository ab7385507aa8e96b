"""Where the number of elements that a mask holds may be asked for, and the shorter ways that this opens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LANES = 32  # elements that any processor computes as vectors, without a rest


def free_to_read(x: Tensor) -> bool:
    """Whether its values can be read without waiting: on a CPU, where a shorter way may depend on them.

    It is asked as `device.free_to_read`, so that a test can take the way of a GPU.
    """
    return x.is_cpu


def places(mask: Tensor) -> Tensor:
    """(K,) int64 where a flattened mask, free to read, is set; NumPy finds that several times faster than torch."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def filled_up(place: Tensor) -> Tensor:
    """Places (K,), the first of them once more until they are a multiple of LANES.

    What a processor computes in vectors, and the rest that it computes one by one, may differ by a bit.
    """
    return torch.cat((place, place[:1].expand(-len(place) % LANES)))


def rows(x: Tensor, place: Tensor) -> Tensor:
    """(1, K, …) of (B, N, …) what is at places (K,) of the flattened first two dimensions.

    Of a place that is there several times one has the gradient, so that all must have the same.
    """
    if not any(x.stride()):  # the same everywhere
        return x[:1, :1].expand(1, len(place), *x.shape[2:])
    found: Tensor = _Rows.apply(x, place)  # type: ignore[no-untyped-call]
    return found


class _Rows(torch.autograd.Function):
    """As by indices, whose gradient is added up row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.shape = x.shape[:2]
        ctx.save_for_backward(place)
        return x.flatten(0, 1).index_select(0, place).unsqueeze(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _put(gradient, ctx.saved_tensors[0], ctx.shape), None


def put_back(x: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
    """(B, N, …) what `rows` took, or was made of it, where it was; 0 elsewhere."""
    found: Tensor = _PutBack.apply(x, place, shape)  # type: ignore[no-untyped-call]
    return found


class _PutBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(place)
        return _put(x, place, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.flatten(0, 1).index_select(0, ctx.saved_tensors[0]).unsqueeze(0), None, None


def _put(x: Tensor, place: Tensor, shape: torch.Size) -> Tensor:
    found = x.new_zeros(*shape, *x.shape[2:])
    found.flatten(0, 1).index_copy_(0, place, x.squeeze(0))
    return found


def lowest(key: Tensor, eligible: Tensor, total: int, count: int, end: int) -> Tensor | None:
    """(N,) bool: the `count` of `total` eligible elements of lowest key, of equal ones the first.

    Keys are uniform below `end`, so the highest among them is known to within six standard deviations, and only what
    lies in between is looked for it. None where it does not lie there, as in one of many millions of calls. NumPy
    compares and finds several times faster than torch.
    """
    keys, part = key.numpy(), count / max(total, 1)
    wide = (6 * math.sqrt(part * (1 - part) * total) + 6) / max(total, 1)
    low, high = (min(max(int(x * end), 0), end) for x in (part - wide, part + wide))
    there = eligible.numpy()
    chosen = (keys < low) & there
    near = np.flatnonzero((keys < high) & there & ~chosen)
    more = count - np.count_nonzero(chosen)
    if not 0 <= more <= len(near):
        return None
    if more:
        found = keys[near]
        last = np.partition(found, more - 1)[more - 1]  # the highest key that is chosen
        chosen[near[found < last]] = True
        chosen[near[found == last][: count - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(chosen)


def zeroed(x: Tensor, mask: Tensor) -> Tensor:
    """As masked_fill(mask, 0), whatever is there, which of 32 bits and more takes thrice as long on a CPU."""
    if x.element_size() < 4 or not free_to_read(x):
        return torch.where(mask, 0.0, x)  # its backward is twice masked_fill's
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
