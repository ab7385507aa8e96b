"""The facts about code and machine that stand in a record."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rebalance.experiments import machine
from rebalance.versions import versions as installed


def test_versions_and_machine_have_what_a_reader_needs() -> None:
    versions = installed()
    assert list(versions) == ["python", "rebalance", "torch", "ultralytics", "torchvision", "numpy"]
    assert all(versions.values())
    found = machine.machine(3, None)
    assert list(found) == ["cpu", "cores", "threads", "memory_gb", "gpu", "platform"]
    assert found["threads"] == 3
    assert found["cores"] == machine.cores() >= 1
    assert found["memory_gb"] > 0.1
    assert found["cpu"]


def test_git_is_this_checkout_and_not_one_around_an_installed_package(tmp_path: Path) -> None:
    root = Path(machine.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        found = machine.git()
        assert found is not None
        assert found["commit"] == head.stdout.strip()
    package = tmp_path / "rebalance" / "experiments"  # a copy in somebody else's checkout, which does not track it
    package.mkdir(parents=True)
    for file in ("rebalance/__init__.py", "rebalance/experiments/__init__.py", "rebalance/experiments/machine.py"):
        (tmp_path / file).write_bytes((root / file).read_bytes())
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    program = "from rebalance.experiments.machine import git; print(git())"
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "None"


FILES = sorted(Path(machine.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_nothing_that_only_posix_has_is_imported_or_called(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    imports = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not imports & {"fcntl", "resource", "termios", "pwd", "grp", "pty"}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not called & {"killpg", "getpgrp", "sysconf", "fork", "setsid", "SIGKILL", "WIFEXITED"}
