"""The hosts are inside as we know them; a test that fails here says in a sentence what a new release has changed."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rebalance
from rebalance.hosts import insides
from rebalance.hosts.insides import INSIDES, ORDERS, Order

HOSTS = ("ultralytics.", "torchvision.")
FILES = sorted(Path(rebalance.__file__).parent.rglob("*.py"))
OURS = [
    ".".join(file.relative_to(Path(rebalance.__file__).parents[1]).with_suffix("").parts)
    for file in FILES if file.stem not in ("__init__", "__main__")
]  # fmt: skip
# What the hosts document: their class of models, and what torchvision has in the pages of its reference
INTERFACE = re.compile(r"ultralytics\.YOLO|torchvision\.(ops|models|models\.detection)\.(?!_)\w+")
INSIDES_BY_NAME = {name: (why, takes) for why, names in INSIDES.items() for name, takes in names.items()}


@pytest.mark.parametrize("name", INSIDES_BY_NAME)
def test_what_we_lean_on_is_as_we_know_it(name: str) -> None:
    why, takes = INSIDES_BY_NAME[name]
    told = insides.wrong(name, takes, why)
    assert not told, told


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{order.function}, {order.texts[0]}")
def test_what_comes_first_comes_first(order: Order) -> None:
    told = insides.out_of_order(order)
    assert not told, told


def overridden() -> set[str]:
    """What our classes put in the place of something of a host's, by the host's name of it."""
    found: set[str] = set()
    for module in map(import_module, OURS):
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__.startswith("rebalance."):
                found |= {name for base in kind.__mro__ for name in of_host(kind, base)}
    return found


def of_host(kind: type[Any], base: type[Any]) -> set[str]:
    """What a base class of ours has of its own that a host's base class of the same class has too."""
    if not base.__module__.startswith("rebalance."):
        return set()
    return {
        f"{host.__module__}.{host.__qualname__}.{name}"
        for name in vars(base) for host in kind.__mro__
        if host.__module__.startswith(HOSTS) and name in vars(host)
        and (not name.startswith("__") or name in ("__init__", "__call__"))
    }  # fmt: skip


def test_every_method_of_a_host_that_we_replace_is_named() -> None:
    assert overridden() - INSIDES_BY_NAME.keys() == set()


def taken(file: Path) -> set[str]:
    """What a file of ours imports from a host, and what it takes of a module of it."""
    found, places = set(), {}
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                if whole.startswith(HOSTS):
                    places[alias.asname or alias.name] = whole
                    found.add(whole)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in places:
            whole = places[node.value.id]
            if isinstance(insides.find(whole), ModuleType):
                found.add(f"{whole}.{node.attr}")
    return {name for name in found if not isinstance(insides.find(name), ModuleType)}


def test_everything_that_is_taken_from_within_a_host_is_named() -> None:
    named = [*INSIDES_BY_NAME, *(order.function for order in ORDERS)]
    for file in FILES:
        for name in taken(file):
            known = INTERFACE.fullmatch(name) or any(f"{other}.".startswith(f"{name}.") for other in named)
            assert known, f"{file.name} takes {name}, which rebalance/hosts/insides.py does not name"


def test_what_has_changed_is_said_in_a_sentence() -> None:
    why = "it works"
    assert insides.wrong("ultralytics.nn.tasks.Gone", "", why).endswith(
        "has no ultralytics.nn.tasks.Gone any more, on which stands that it works"
    )
    told = insides.wrong("ultralytics.nn.tasks.yaml_model_load", "path device", why)
    assert told.endswith("yaml_model_load takes (path), no longer (path device); on it stands that it works")
    order = Order("ultralytics.nn.tasks.yaml_model_load", ("return d", "import re"), why)
    assert insides.out_of_order(order).endswith("has no `import re` where it had it; on it stands that it works")
    assert insides.drift() == []
