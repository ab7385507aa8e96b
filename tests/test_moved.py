"""Names of earlier versions, which checkpoints, data YAMLs and start-up hooks hold."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from typing import Any

import pytest

from rebalance.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_of_an_earlier_version_is_the_one_at_its_new_place(old: str) -> None:
    there, here = importlib.import_module(old), importlib.import_module(MOVED[old])
    named = {name: value for name, value in vars(here).items() if not name.startswith("__")}
    assert all(getattr(there, name) is value for name, value in named.items())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("rebalance.adapters.ultralytics.model", "AnchorDetectionModel"),
        ("rebalance.adapters.ultralytics.model", "ObjectnessDetect"),
        ("rebalance.adapters.torchvision.model", "TorchvisionModel"),
        ("rebalance.adapters.torchvision.retinanet", "RefinedRetinaNetDetect"),
        ("rebalance.adapters.torchvision.faster_rcnn", "FasterRCNNDetect"),
        ("rebalance.adapters.torchvision.ssd", "SSDDetect"),
        ("rebalance.adapters.torchvision.zoo", "Levels"),
        ("rebalance.adapters.torchvision.anchors", "Anchors"),
    ],
)
def test_a_class_that_a_checkpoint_names_by_its_old_module_is_today_s(module: str, name: str) -> None:
    found: Any = pickle.loads(f"c{module}\n{name}\n.".encode())
    assert found.__module__.startswith("rebalance.hosts.")
    assert found is getattr(importlib.import_module(found.__module__), name)


def test_it_works_where_nothing_of_ours_was_imported_before() -> None:
    code = "import pickle; print(pickle.loads(b'crebalance.adapters.torchvision.ssd\\nSSDDetect\\n.').__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["SSDDetect"], done.stderr
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("rebalance.adapters.nothing")
