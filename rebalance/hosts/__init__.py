"""The libraries whose detectors are trained. Neither of the two packages below imports the other."""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

from rebalance.versions import require_known

require_known()  # before the modules below, which lean on the hosts' insides

from rebalance.hosts.host import Host
from rebalance.hosts.torchvision.host import Torchvision, detector_of
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.hosts.ultralytics.host import Ultralytics
from rebalance.hosts.ultralytics.sites import YoloSites
from rebalance.methods.method import Site, Sites

# YOLO, and torchvision's families of detectors
FAMILIES: tuple[Sites, ...] = (YoloSites(), *{row.head.sites.name: row.head.sites for row in ZOO.values()}.values())
# Where a loss can act, by name
SITES: dict[str, Site] = {site.name: site for sites in FAMILIES for site in sites.by_head.values()}


def host_of(model: Any) -> Host:
    """The host of a model, of its `yaml`, or of the name of one of torchvision's detectors."""
    name = detector_of(model)
    return Torchvision(name) if name else Ultralytics(model)
