from __future__ import annotations

import torch

from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, candidate_state


def test_the_three_states_differ() -> None:
    assert len({POSITIVE, NEGATIVE, IGNORE}) == 3


def test_ignored_outweighs_positive() -> None:
    positive = torch.tensor([[True, True, False, False]])
    assert candidate_state(positive).tolist() == [[POSITIVE, POSITIVE, NEGATIVE, NEGATIVE]]
    state = candidate_state(positive, torch.tensor([[False, True, False, True]]))
    assert state.tolist() == [[POSITIVE, IGNORE, NEGATIVE, IGNORE]]
    assert state.dtype == torch.int8
