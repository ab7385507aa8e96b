from __future__ import annotations

import pytest
import torch

from rebalance.match.device import LANES, filled_up, places, put_back, rows, zeroed


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_places_are_those_of_nonzero_in_the_flattened_mask() -> None:
    mask = random(3, 40) > 0.5
    assert torch.equal(places(mask), mask.flatten().nonzero().squeeze(1))
    assert places(torch.zeros(2, 3, dtype=torch.bool)).tolist() == []


def test_rows_are_those_by_index_with_its_gradient() -> None:
    x, place = random(2, 9, 3).requires_grad_(), torch.tensor([17, 0, 4, 9])
    assert torch.equal(rows(x, place), x.flatten(0, 1)[place].unsqueeze(0))
    assert torch.equal(rows(x.detach(), place), rows(x, place))
    same = torch.ones(()).expand(2, 9)
    assert torch.equal(rows(same, place), torch.ones(1, 4))
    weights = random(1, 4, 3)
    expected = torch.autograd.grad((x.flatten(0, 1)[place] * weights[0]).sum(), x)[0]
    assert torch.equal(torch.autograd.grad((rows(x, place) * weights).sum(), x)[0], expected)


def test_what_is_put_back_is_where_it_was_with_its_gradient() -> None:
    x, place = random(2, 9, 3).requires_grad_(), filled_up(torch.tensor([17, 0, 4, 9]))
    assert len(place) == LANES
    assert place[4:].eq(17).all()
    kept = torch.zeros(18, 1).index_fill(0, place, 1).view(2, 9, 1)
    found = put_back(rows(x, place).square(), place, x.shape[:2])
    assert torch.equal(found, x.square() * kept)
    assert torch.equal(torch.autograd.grad((found * random(2, 9, 3)).sum(), x)[0], 2 * x * kept * random(2, 9, 3))
    assert torch.equal(filled_up(place), place)
    assert filled_up(place[:0]).tolist() == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_zeroed_is_masked_fill_whatever_is_there(dtype: torch.dtype, channels: int) -> None:
    x, mask = random(2, 9, channels).to(dtype), random(2, 9, 1) > 0
    x[mask.squeeze(-1)] = torch.tensor([torch.inf, torch.nan, -torch.inf], dtype=dtype)[:channels]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = zeroed(ours, mask), theirs.masked_fill(mask, 0)
    assert torch.equal(found, expected)
    assert not torch.signbit(found[mask.expand_as(found)]).any()
    for y in (found, expected):
        (y * random(2, 9, channels).to(dtype)).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert torch.equal(x.isfinite(), ours.isfinite())  # its input is as it was
