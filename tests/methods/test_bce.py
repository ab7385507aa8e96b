from __future__ import annotations

import torch

from rebalance.methods.bce import bce


def test_bce_keeps_double_precision_and_raises_half() -> None:
    for given, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32)):
        assert bce(torch.zeros(2, dtype=given), torch.ones(2)).dtype == expected
    assert bce(torch.zeros(2, dtype=torch.float64), torch.ones(2)).dtype == torch.float64
