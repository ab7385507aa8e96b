"""Where modules have moved to: checkpoints, data YAMLs and hooks of earlier versions name them by the old place."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "rebalance.hook": "rebalance.cli.hook",
    "rebalance.data.seafloor": "rebalance.data.demo.seafloor",
    "rebalance.adapters": "rebalance.hosts",
    "rebalance.adapters.ultralytics": "rebalance.hosts.ultralytics",
    "rebalance.adapters.ultralytics.model": "rebalance.hosts.ultralytics.model",
    "rebalance.adapters.torchvision": "rebalance.hosts.torchvision",
    "rebalance.adapters.torchvision.anchors": "rebalance.hosts.torchvision.head",
    "rebalance.hosts.torchvision.anchors": "rebalance.hosts.torchvision.head",
    "rebalance.adapters.torchvision.faster_rcnn": "rebalance.hosts.torchvision.faster_rcnn",
    "rebalance.adapters.torchvision.head": "rebalance.hosts.torchvision.head",
    "rebalance.adapters.torchvision.model": "rebalance.hosts.torchvision.model",
    "rebalance.adapters.torchvision.retinanet": "rebalance.hosts.torchvision.retinanet",
    "rebalance.adapters.torchvision.ssd": "rebalance.hosts.torchvision.ssd",
    "rebalance.adapters.torchvision.zoo": "rebalance.hosts.torchvision.zoo",
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the module that stands at the new place for the name of the old one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for the names in MOVED alone."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """An empty module; a package where others lie below it."""
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Fill it with what the module at the new place holds."""
        held = vars(importlib.import_module(MOVED[module.__name__]))
        vars(module).update({name: value for name, value in held.items() if not name.startswith("__")})
        module.__path__ = []  # names below it are asked of this finder


def install() -> None:
    """Ask this finder for names that nothing else knows; twice does no harm."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
