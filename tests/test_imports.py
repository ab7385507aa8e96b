"""The import arrows, read from the source: who may import whom, and which packages from outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "rebalance"
MODULES = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))
NAMES = [str(m.with_suffix("")).replace("/", ".").removesuffix(".__init__") for m in MODULES if m.stem != "__main__"]

# Part of the house, a folder or a top-level module -> what it may import: other parts or modules of them, then packages
# from outside. "rebalance" is the package itself: its version and its lazy names.
ARROWS = {
    "errors": "",
    "files": "errors  filelock",
    "settings": "errors",
    "data": "rebalance errors files settings  PIL cv2 filelock numpy yaml",
    "match": "numpy torch",  # numpy: the fit of anchors to label sizes
    "processes": "torch",
    "methods": "match processes settings  torch",
    "heads": "errors settings  torch",
    "recipe": "errors heads methods settings",
    "diagnosis": "match  torch",
    "objective": "diagnosis match methods recipe  torch",
    "hosts": "diagnosis errors heads match methods objective processes recipe versions"
    "  PIL numpy torch torchvision ultralytics",
    "train": "data errors files hosts match.regions match.withheld methods processes recipe settings versions"
    "  numpy torch ultralytics",
    "experiments": "rebalance data errors files hosts.evaluation match.boxes recipe settings train versions"
    "  cv2 faster_coco_eval filelock numpy optuna psutil ray sqlalchemy torch ultralytics yaml",
    "report": "rebalance data.pixels errors files experiments.papers experiments.record settings"
    "  cv2 jinja2 matplotlib numpy pandas scipy yaml",
    "bench": "errors experiments files hosts match methods recipe report.figures settings versions"
    "  torch torchvision ultralytics yolov5",
    "audit": "data errors experiments.dry experiments.grid experiments.machine experiments.record experiments.sweep"
    " files hosts.evaluation report.build report.figures settings train versions"
    "  cv2 fiftyone filelock jinja2 markupsafe numpy sklearn ultralytics",
    "cli": "audit bench data errors experiments files hosts methods recipe report settings train versions  ultralytics",
    "versions": "errors",
    "moved": "",
    "__init__": "audit moved train",
    "__main__": "cli",
}
WITHOUT_TORCH = ("settings", "data", "errors", "report")  # when only imported
# What Windows has not. That functions do without it is for mypy, which reads our code as on Windows (pyproject.toml)
POSIX_MODULES = ["fcntl", "grp", "pwd", "resource", "termios"]
POSIX_OF_OS = ["fork", "getpgrp", "getuid", "killpg", "sched_getaffinity", "setsid", "sysconf", "uname"]
POSIX_SIGNALS = ["SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1"]


def part_of(module: Path) -> str:
    """'methods' for rebalance/methods/drop.py, 'settings' for rebalance/settings.py."""
    return module.parts[1].removesuffix(".py")


def imports(source: str, module: Path) -> set[str]:
    """All modules that a source imports, also within functions; relative names made whole, `from a import b` as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*(module.parts[: -node.level] if node.level else ()), *filter(None, [node.module])]
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def wrong(source: str, module: Path) -> list[str]:
    """The imports of a source that its part of the house does not allow."""
    allowed = {part_of(module), *ARROWS[part_of(module)].split()}
    bad = []
    for name in imports(source, module):
        top, part, module_of_it = (*name.split("."), "", "")[:3]
        if top != "rebalance":
            names = {top}
        elif part in ARROWS:
            names = {part, f"{part}.{module_of_it}"}
        else:
            names = {"rebalance"}
        if not names & {*sys.stdlib_module_names, *allowed}:
            bad.append(name)
    return sorted(bad)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_imports_only_what_its_part_may(module: Path) -> None:
    assert part_of(module) in ARROWS, "a new part of the house needs its row in ARROWS"
    assert wrong((PACKAGE.parent / module).read_text("utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("methods/drop.py", "import torch\nfrom rebalance.match.boxes import iou", []),
        ("methods/drop.py", "from ultralytics.utils import ops", ["ultralytics.utils.ops"]),
        ("methods/drop.py", "def f():\n    import torchvision", ["torchvision"]),
        ("methods/drop.py", "from rebalance.hosts import ultralytics", ["rebalance.hosts.ultralytics"]),
        ("methods/drop.py", "from .bce import bce\nfrom ..data import labels", ["rebalance.data.labels"]),
        ("data/labels.py", "import torch.nn as nn", ["torch.nn"]),
        ("data/labels.py", "from rebalance import __version__", []),
        ("data/labels.py", "import rebalance.report", ["rebalance.report"]),
        ("report/build.py", "from rebalance.data import labels", ["rebalance.data.labels"]),
        ("report/build.py", "from rebalance.experiments import record, papers", []),
        ("report/build.py", "from rebalance.experiments.sweep import sweep", ["rebalance.experiments.sweep.sweep"]),
        ("experiments/grid.py", "from rebalance.report import papers", ["rebalance.report.papers"]),
        ("hosts/a/b.py", "from rebalance.experiments.run import run", ["rebalance.experiments.run.run"]),
        ("settings.py", "import yaml", ["yaml"]),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str, bad: list[str]) -> None:
    assert wrong(source, Path("rebalance") / module) == bad


def test_what_needs_no_torch_loads_none() -> None:
    names = [name for name in NAMES if name.startswith(tuple(f"rebalance.{part}" for part in WITHOUT_TORCH))]
    done = run(f"for name in {names}: importlib.import_module(name)\nprint(*sys.modules)")
    assert not {"torch", "torchvision", "ultralytics"} & set(done.split())


def test_every_module_imports_where_there_is_no_posix() -> None:
    # Once as here, so that other packages are there; then our modules again, as Windows would have them
    done = run(f"""
for name in {NAMES}: importlib.import_module(name)
for name in [name for name in sys.modules if name.split(".")[0] == "rebalance"]: del sys.modules[name]
sys.modules.update(dict.fromkeys({POSIX_MODULES}))
for module, names in ((os, {POSIX_OF_OS}), (signal, {POSIX_SIGNALS})):
    for name in names: vars(module).pop(name, None)
for name in {NAMES}: importlib.import_module(name)
print("imported", len([name for name in sys.modules if name.split(".")[0] == "rebalance"]))
""")
    assert int(done.split("imported ")[1]) >= len(NAMES)


def run(code: str) -> str:
    """What Python prints in a process of its own."""
    given = [sys.executable, "-c", f"import importlib, os, signal, sys\n{code}"]
    done = subprocess.run(given, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout
