"""Published source of other projects: where it is, a patched copy of it, and a child process that imports the copy."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"


def installed(name: str, wanted: str) -> Path:
    """Folder of an installed package whose version matches the pattern `wanted`; skips the test without it."""
    try:
        found = version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed: pip install --no-deps -r requirements-upstream.txt")
    if not re.fullmatch(wanted, found):
        pytest.skip(f"{name} {found} is installed, the patch is for {wanted}")
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def copy(package: Path, to: Path) -> Path:
    """Copy the source of a package, without what it has compiled."""
    shutil.copytree(package, to, ignore=shutil.ignore_patterns("__pycache__", "*.jpg", "*.png"))
    return to


def apply(diff: Path, folder: Path, *options: str) -> None:
    """Apply a diff in `folder` with git, which refuses a hunk that does not fit exactly."""
    # without a ceiling git would look for a repository above the temporary folder
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(["git", "apply", *options, diff], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def python(script: str, *arguments: object, path: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in a child process that finds packages in `path` before the installed ones."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(path), str(ROOT))),
        "YOLO_CONFIG_DIR": str(scratch),
        "YOLO_OFFLINE": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *map(str, arguments)]
    return subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)


def results(done: subprocess.CompletedProcess[str]) -> dict[str, bool]:
    """What a comparison script found: the name of each check, and whether it holds."""
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return found


class Checks:
    """Named checks of a comparison script, printed as one line of JSON."""

    def __init__(self) -> None:
        self.found: dict[str, bool] = {}

    def that(self, name: str, holds: object) -> None:
        assert name not in self.found, name
        self.found[name] = bool(holds)

    def raises(self, name: str, error: type[Exception], call: Callable[[], object], *words: str) -> None:
        try:
            call()
        except error as e:
            self.that(name, all(word in str(e) for word in words))
        else:
            self.that(name, False)

    def report(self) -> None:
        print(json.dumps(self.found))
