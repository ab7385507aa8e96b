from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.methods.ohem import ohem_mask

P, N, I = POSITIVE, NEGATIVE, IGNORE  # noqa: E741


def states(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int8)


def test_golden() -> None:
    # one positive, ratio 2: it and the negatives of loss 5 and 3; the ignored one of loss 9 is not looked at.
    # two positives: four of the five negatives
    loss = torch.tensor([[0.1, 5, 1, 9, 3, 2, 0.5], [4, 1, 2, 7, 3, 6, 0]])
    state = states([P, N, N, I, N, N, N], [P, N, N, N, N, P, N])
    assert ohem_mask(loss, state, ratio=2.0).int().tolist() == [[1, 1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 0), (0.3, 0), (0.5, 1), (1.5, 3), (2.9, 5), (3.0, 6), (100.0, 8)])
def test_the_number_is_the_floor_and_at_most_all(ratio: float, kept: int) -> None:
    state = states([P, P, *[N] * 8])
    mask = ohem_mask(torch.rand(1, 10, generator=torch.Generator().manual_seed(0)), state, ratio=ratio)
    assert mask[state == P].all()
    assert int(mask[state == N].sum()) == kept


def test_an_image_without_positives_keeps_nothing() -> None:
    assert not ohem_mask(torch.rand(2, 6), states([N] * 6, [N, N, I, N, I, N])).any()
    assert ohem_mask(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int8)).shape == (2, 0)


def test_each_image_by_itself_against_a_slow_reference() -> None:
    g = torch.Generator().manual_seed(1)
    loss, state = torch.rand(5, 40, generator=g), torch.randint(-1, 2, (5, 40), generator=g).to(torch.int8)
    state[3][state[3] == P] = N
    mask = ohem_mask(loss, state, ratio=0.7)
    for image in range(5):
        negatives = [i for i in range(40) if state[image, i] == N]
        count = int(7 * int((state[image] == P).sum()) // 10)
        hardest = sorted(negatives, key=lambda i: -loss[image, i].item())[:count]
        kept = {*hardest, *(i for i in range(40) if state[image, i] == P)}
        assert set(mask[image].nonzero().flatten().tolist()) == kept


def test_of_equal_losses_the_first() -> None:
    assert ohem_mask(torch.ones(1, 5), states([N, N, P, N, N])).int().tolist() == [[1, 1, 1, 1, 0]]


def test_the_loss_s_graph_is_left_alone() -> None:
    loss = torch.rand(1, 5, requires_grad=True)
    assert not ohem_mask(loss, states([N, N, P, N, N])).requires_grad
