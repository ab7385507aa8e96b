from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from rebalance.heads.roi_align import roi_align

SIZE = (160, 224)


def maps(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, SIZE[0] // s, SIZE[1] // s, generator=g, dtype=dtype, requires_grad=True) for s in (8, 16, 32)
    ]


def boxes() -> Tensor:
    """(2, 60, 4) of all sizes, some beyond the image, without extent or turned round."""
    g = torch.Generator().manual_seed(1)
    low = torch.rand(2, 60, 2, generator=g, dtype=torch.float64) * torch.tensor([240, 180]) - 20
    found = torch.cat((low, low + torch.rand(2, 60, 2, generator=g, dtype=torch.float64) ** 3 * 300), -1)
    found[:, 0], found[:, 1] = 0, torch.tensor([-500.0, -500, -400, -400])
    found[:, 2] = found[:, 2, [2, 3, 0, 1]]
    return found


def both(bins: tuple[int, int], samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
    """torchvision's and ours, of the same maps, which have a scale of canonical size 40, so that all levels are met."""
    levels, at = maps(dtype), boxes().to(dtype)
    pool = MultiScaleRoIAlign(["a", "b", "c"], bins, samples, canonical_scale=40)
    expected = pool(dict(zip("abc", levels, strict=True)), list(at), [SIZE] * 2)
    flat, image = at.flatten(0, 1), torch.arange(2).repeat_interleave(60)
    level = pool.map_levels([flat])
    assert level.unique().tolist() == [0, 1, 2]
    return expected, roi_align(levels, flat, image, level, scales=pool.scales, bins=bins, samples=samples), levels


@pytest.mark.parametrize(("bins", "samples"), [((3, 4), 2), ((1, 1), 1), ((2, 5), 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pools_as_torchvision_and_with_its_gradient(bins: tuple[int, int], samples: int, dtype: torch.dtype) -> None:
    expected, found, levels = both(bins, samples, dtype)
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **near)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), levels) for x in (found, expected)), strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, **near)


def test_a_box_that_is_no_number_reads_within_the_maps() -> None:
    at = torch.full((1, 4), torch.nan, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.int64)
    found = roi_align(maps(), at, zero, zero, scales=[1 / 8, 1 / 16, 1 / 32], bins=(2, 2), samples=2)
    assert found.shape == (1, 3, 2, 2)


def test_no_roi_and_a_gradient_of_zero() -> None:
    levels, none = maps(), torch.zeros(0, dtype=torch.int64)
    at = torch.zeros(0, 4, dtype=torch.float64)
    found = roi_align(levels, at, none, none, scales=[1 / 8, 1 / 16, 1 / 32], bins=(2, 2), samples=2)
    assert found.shape == (0, 3, 2, 2)
    assert all(x.eq(0).all() for x in torch.autograd.grad(found.sum(), levels))
