"""The table of detectors."""

from __future__ import annotations

from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.methods.registry import HEADS, PLACES


def test_every_detector_has_a_place_for_its_losses() -> None:
    assert {row.host for row in ZOO.values()} == set(HEADS) <= set(PLACES)
    assert all(row.about for row in ZOO.values())
