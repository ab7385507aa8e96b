"""The set-up scripts. Nothing is installed: one test borrows the heavy environment that the tests themselves run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loaded_script import load

ROOT = Path(__file__).resolve().parent.parent


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup.sh of a folder."""
    settings = {**os.environ, **environment}
    settings.pop("PYTHONPATH", None)
    return subprocess.run(
        ["bash", str(folder / "scripts" / "setup.sh")], capture_output=True, text=True, env=settings, cwd=folder.parent
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """scripts/environment.py, loaded for a project folder and a cache of this test's own."""
    monkeypatch.setenv("REBALANCE_CACHE", str(tmp_path / "cache"))
    module = load("environment")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "UPSTREAM", tmp_path / "requirements-upstream.txt")
    monkeypatch.setattr(module, "THIN", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / ".rebalance")
    (tmp_path / "requirements.txt").write_text("torch\n", "utf-8")
    return module


def make_heavy(script: ModuleType, monkeypatch: pytest.MonkeyPatch, failing: str = "nothing") -> list[str]:
    """Make the heavy environment; return the commands that would have run, of which those with `failing` fail."""
    commands: list[str] = []

    def run(command: list[Any], **settings: Any) -> subprocess.CompletedProcess[str]:
        commands.append(" ".join(map(str, command[2:])))
        return subprocess.CompletedProcess(command, int(failing in commands[-1]))

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.venv.EnvBuilder, "create", lambda self, path: Path(path).mkdir(exist_ok=True))
    heavy = script.heavy_folder()
    heavy.parent.mkdir(exist_ok=True)
    script.make_heavy(heavy, 0)
    return commands


def test_no_fitting_python_is_one_clear_line() -> None:
    done = setup(ROOT, PYTHON="/bin/false")
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith("rebalance: error: Python 3.10 or newer is needed; tried: /bin/false.")
    assert done.stderr.count("\n") == 1


def test_an_environment_of_the_user_s_own_is_left_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine").touch()
    done = setup(tmp_path, PYTHON=sys.executable, REBALANCE_CACHE=str(tmp_path / "cache"))
    assert (done.stdout, done.returncode) == ("", 2)
    assert ".venv was not made by this script; move it away" in done.stderr
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == ["mine"]
    assert not (tmp_path / "cache").exists()


def test_the_shared_part_belongs_to_the_requirements(script: ModuleType, tmp_path: Path) -> None:
    first = script.heavy_folder()
    assert first.parent == tmp_path / "cache"
    assert script.heavy_folder() == first
    (tmp_path / "README.md").write_text("other", "utf-8")
    assert script.heavy_folder() == first
    for name in ("requirements.txt", "requirements-upstream.txt"):
        before = script.heavy_folder()
        (tmp_path / name).write_text("other", "utf-8")
        assert script.heavy_folder() != before


def test_a_finished_install_is_kept_and_a_broken_off_one_is_not_trusted(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        make_heavy(script, monkeypatch, failing="requirements.txt")
    assert not (script.heavy_folder() / "complete").exists()
    assert any("requirements.txt" in command for command in make_heavy(script, monkeypatch))
    assert (script.heavy_folder() / "complete").exists()
    assert make_heavy(script, monkeypatch) == []


def test_a_python_without_ensurepip_is_a_clear_error(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(*args: Any, **settings: Any) -> None:
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(subprocess, "check_output", fails)  # as venv calls it
    with pytest.raises(SystemExit) as caught:
        script.make_heavy(tmp_path / "heavy", 0)
    assert caught.value.code == 2
    assert f"apt install python3.{sys.version_info.minor}-venv" in capsys.readouterr().err


def test_opencv_gives_way_to_the_build_without_a_screen(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("headless" in command for command in make_heavy(script, monkeypatch))
    (script.heavy_folder() / "complete").unlink()
    facts = script.heavy_folder() / script.SITE / "opencv_python-4.5.dist-info" / "METADATA"
    facts.parent.mkdir(parents=True)
    facts.write_text("Name: opencv-python\nVersion: 4.5\n", "utf-8")
    commands = make_heavy(script, monkeypatch, failing="import cv2")
    assert commands[-1] == "-m pip install -q --no-deps opencv-python-headless==4.5"


def test_the_sources_to_compare_with_are_optional(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.UPSTREAM.write_text("yolov5\n", "utf-8")
    make_heavy(script, monkeypatch, failing="requirements-upstream.txt")
    assert "warning: requirements-upstream.txt was not installed" in capsys.readouterr().out
    assert (script.heavy_folder() / "complete").exists()
    again = make_heavy(script, monkeypatch)
    assert again == [f"-m pip install -q --no-deps -r {script.UPSTREAM}"]
    assert make_heavy(script, monkeypatch) == []


def heavy_part() -> Path:
    """The shared environment under the one that runs this test."""
    stamp = ROOT / ".venv" / ".rebalance"
    text = stamp.read_text("utf-8") if stamp.exists() and Path(sys.prefix) == ROOT / ".venv" else ""
    if "heavy part: " not in text:
        pytest.skip("the tests do not run in the environment that ./tests/run.sh makes")
    return Path(text.split("heavy part: ")[1].strip())


def test_a_second_clone_shares_the_heavy_part_and_nothing_else(tmp_path: Path) -> None:
    heavy = heavy_part()
    mine = sorted((ROOT / ".venv" / "bin").iterdir())
    clone = tmp_path / "second clone"
    clone.mkdir()
    for path in (ROOT / "rebalance", ROOT / "scripts"):
        shutil.copytree(path, clone / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.txt"), *ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "LICENSE"]:
        shutil.copy(path, clone)
    python = str(getattr(sys, "_base_executable", sys.executable))

    done = setup(clone, PYTHON=python, REBALANCE_CACHE=str(heavy.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installing" not in done.stdout

    binaries = clone / ".venv" / "bin"
    facts = "import rebalance, torch, sys; print(rebalance.__file__, torch.__file__, sys.prefix, sep='\\n')"
    seen = subprocess.run([binaries / "python", "-c", facts], capture_output=True, text=True, cwd=tmp_path)
    lines = [Path(line) for line in seen.stdout.splitlines()]
    assert lines[0] == clone / "rebalance" / "__init__.py", seen.stderr
    assert heavy in lines[1].parents
    assert lines[2] == clone / ".venv"
    for name in ("rebalance", "yolo", "pytest", "ruff", "mypy", "pip"):
        shown = subprocess.run([binaries / name, "--help"], capture_output=True, text=True, cwd=tmp_path)
        assert shown.returncode == 0, f"{name}: {shown.stderr}"
    status = subprocess.run([binaries / "rebalance", "hook", "status"], capture_output=True, text=True, cwd=tmp_path)
    assert status.stdout.startswith(f"installed: {clone}")

    stamp = (clone / ".venv" / ".rebalance").stat().st_mtime_ns
    again = setup(clone, PYTHON=python, REBALANCE_CACHE=str(heavy.parent))
    assert (again.stdout, again.stderr, again.returncode) == ("", "", 0)
    assert (clone / ".venv" / ".rebalance").stat().st_mtime_ns == stamp
    assert sorted((ROOT / ".venv" / "bin").iterdir()) == mine
