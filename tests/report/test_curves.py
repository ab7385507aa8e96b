"""The plotted losses have the values of the losses that train, and those worked out by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rebalance.methods import brl as trained_brl
from rebalance.methods import focal as trained_focal
from rebalance.report.figures import curves

LOG2 = math.log(2)


def test_focal_by_hand() -> None:
    # at 1/2: alpha (1/2)^gamma log 2
    assert curves.focal([0.5], gamma=0)[0] == pytest.approx(LOG2)
    assert curves.focal([0.5], gamma=2)[0] == pytest.approx(LOG2 / 4)
    assert curves.focal([0.5], gamma=8, alpha=0.75)[0] == pytest.approx(0.75 * LOG2 / 256)
    assert curves.focal([0.25], gamma=1)[0] == pytest.approx(0.75 * 2 * LOG2)


def test_brl_by_hand() -> None:
    # above t the negative branch, 0.75 (1 - 0.75)^2 log(1 / 0.75); below the mirrored one, 0.75 · 0.25^2 log(1 / 0.75)
    assert curves.brl([0.75])[0] == pytest.approx(0.75 / 16 * math.log(4 / 3))
    assert curves.brl([0.25])[0] == pytest.approx(0.75 / 16 * math.log(4 / 3))
    assert curves.brl([0.25], t=0.1)[0] == pytest.approx(0.75 * 9 / 16 * 2 * LOG2)
    assert curves.brl([0.25], beta=0)[0] == 0
    assert curves.brl([0.5])[0] == curves.brl([0.5], t=0.4)[0] == pytest.approx(0.75 * LOG2 / 4)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 1.0])
def test_the_same_as_what_trains(t: float) -> None:
    p_t = np.array([0.02, 0.1, 0.3, 0.499, 0.501, 0.9, 0.99])
    logits = torch.logit(1 - torch.tensor(p_t)).reshape(1, -1, 1)  # of the object
    zeros = torch.zeros_like(logits)
    focal = trained_focal.focal(logits, zeros, gamma=2.0, alpha=0.25)
    assert curves.focal(p_t, gamma=2, alpha=0.75) == pytest.approx(focal.reshape(-1).numpy())
    confusion = torch.ones_like(logits, dtype=torch.bool)
    element = trained_brl.brl(logits, zeros, confusion, t=t, weight=1.0, beta=1.0, gamma=2.0, alpha=0.25)
    assert curves.brl(p_t, t=t) == pytest.approx(element.reshape(-1).numpy())


@pytest.mark.parametrize(("name", "x", "columns"), [("brl", "p_t", 5), ("focal", "prediction", 11)])
def test_files(tmp_path: Path, name: str, x: str, columns: int) -> None:
    path = curves.write(name, tmp_path / "new")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in path.parent.iterdir()) == [f"{name}.csv", f"{name}.png"]
    rows = list(csv.DictReader(path.with_suffix(".csv").read_text("utf-8").splitlines()))
    assert [len(row) for row in rows] == [columns] * 199
    (middle,) = [row for row in rows if row[x] == "0.5"]
    expected = {"brl_t=0.5": 0.75 * LOG2 / 4, "focal": 0.75 * LOG2 / 4, "negative_gamma=8": LOG2 / 256}
    for column in expected.keys() & middle.keys():
        assert float(middle[column]) == pytest.approx(expected[column], rel=1e-5)
