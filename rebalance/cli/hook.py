"""The start-up hook: lets Ultralytics' own `yolo` command take our flags.

Python runs the lines of the `.pth` files in an environment's package folder at every start. `install` puts one line
there, in a file of its own, and `remove` deletes that file; nothing else is touched. The line does nothing unless the
program is `yolo` (or `ultralytics`, the same script under its other name), and nothing where this package is gone.
In `yolo` it waits for `ultralytics.cfg` to be imported and puts our entry point in the place of the stock one, which
ours calls when none of our flags is given.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rebalance.errors import ConfigError
from rebalance.versions import unknown

NAME = "rebalance_hook.pth"  # sorts after __editable__*.pth, which makes an editable install of ours importable
HOST = "ultralytics.cfg"
# One line, as site runs only single lines that begin with "import". ImportError: this package was removed.
LINE = (
    "import os, sys; "
    "os.path.basename((getattr(sys, 'argv', None) or [''])[0]) in "
    "('yolo', 'yolo.exe', 'ultralytics', 'ultralytics.exe') and "
    r"exec('try:\n from rebalance.cli.hook import activate\n activate()\nexcept ImportError:\n pass')"
    "\n"
)


def place() -> Path:
    """The file that holds the hook in this environment."""
    return Path(sysconfig.get_path("purelib")) / NAME


def installed() -> bool:
    """Whether this environment has the hook, as this version writes it."""
    return place().is_file() and place().read_text("utf-8") == LINE


def install() -> Path:
    """Write the hook; return its file. ConfigError where the environment cannot be written."""
    file = place()
    part = file.with_name(f"{NAME}.{os.getpid()}")  # not *.pth: a start-up in between must not read half a line
    try:
        part.write_text(LINE, "utf-8")
        part.replace(file)
    except OSError as error:
        told = f"{file}: {error.strerror}; use a virtual environment"
        raise ConfigError(f"the hook cannot be written to {told}") from None
    return file


def remove() -> bool:
    """Delete the hook; return whether there was one. ConfigError where the environment cannot be written."""
    file = place()
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"the hook {file} cannot be removed: {error.strerror}") from None
    return True


def activate() -> None:
    """Replace the stock entry point once `ultralytics.cfg` is there. Called by the hook's line; twice does no harm."""
    if HOST in sys.modules:
        _replace_entrypoint(sys.modules[HOST])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `ultralytics.cfg` as Python does, and changes it right after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != HOST:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _replace_entrypoint(module)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010, mypy forbids assigning to a method
        return spec


def _replace_entrypoint(module: ModuleType) -> None:
    stock = vars(module)["entrypoint"]

    def entrypoint(debug: str = "") -> None:
        vars(module)["entrypoint"] = stock  # what ours finds and calls when none of our flags is given
        if debug:  # a command line given from Python, not by the user
            stock(debug)
        elif told := unknown():
            print(f"rebalance: warning: {told}; yolo is the host's own until then", file=sys.stderr)
            stock()
        else:
            from rebalance.cli import host_command as command
            from rebalance.cli.main import guarded

            sys.exit(guarded(command.entrypoint))

    if stock.__module__ == HOST:
        vars(module)["entrypoint"] = entrypoint
