"""The table of detectors."""

from __future__ import annotations

from rebalance.hosts import FAMILIES, SITES
from rebalance.hosts.torchvision.zoo import ZOO


def test_every_detector_has_a_place_for_its_losses() -> None:
    assert {row.head.sites.name for row in ZOO.values()} | {"yolo"} == {sites.name for sites in FAMILIES}
    assert all(site in SITES.values() for row in ZOO.values() for site in row.head.sites.by_head.values())
    assert all(row.about for row in ZOO.values())
