"""The table of detectors, and the README's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rebalance.hosts import FAMILIES, SITES
from rebalance.hosts.torchvision.zoo import ZOO

README = Path(__file__).resolve().parents[3] / "README.md"


def test_readme_lists_the_detectors() -> None:
    if not README.is_file():
        pytest.skip("no README.md beside the package")
    section = README.read_text("utf-8").partition("\n## Detectors\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])) == sorted(ZOO)


def test_every_detector_has_a_place_for_its_losses() -> None:
    assert {row.head.sites.name for row in ZOO.values()} | {"yolo"} == {sites.name for sites in FAMILIES}
    assert all(site in SITES.values() for row in ZOO.values() for site in row.head.sites.by_head.values())
    assert all(row.about for row in ZOO.values())
