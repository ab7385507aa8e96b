"""Hosts of versions that the package does not know are refused by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rebalance import versions

ROOT = Path(__file__).resolve().parent.parent


def test_what_is_known_is_what_pip_is_asked_for() -> None:
    asked = re.findall(
        r'"(torch|torchvision|ultralytics)>=([\d.]+)(?:,<([\d.]+))?"', (ROOT / "pyproject.toml").read_text()
    )
    assert {name: (first, end) for name, first, end in asked} == versions.KNOWN


@pytest.mark.parametrize(
    ("host", "version", "known"),
    [
        ("ultralytics", "8.4.179", False),
        ("ultralytics", "8.4.180", True),
        ("ultralytics", "8.4.999", True),
        ("ultralytics", "8.5.0", False),
        ("ultralytics", "8.10.0", False),
        ("torch", "2.3.1", False),
        ("torch", "2.13.0+cpu", True),
        ("torchvision", "0.18.1", False),
    ],
)
def test_a_version_is_known_or_named(monkeypatch: pytest.MonkeyPatch, host: str, version: str, known: bool) -> None:
    found = versions.versions()
    monkeypatch.setattr(versions, "versions", lambda: {**found, host: version})
    assert known != versions.unknown().startswith(f"{host} {version} is not known to rebalance, which needs ")


def with_host(tmp_path: Path, version: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python beside an Ultralytics of another version."""
    facts = tmp_path / f"ultralytics-{version}.dist-info" / "METADATA"
    facts.parent.mkdir()
    facts.write_text(f"Metadata-Version: 2.1\nName: ultralytics\nVersion: {version}\n", "utf-8")
    paths = (str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path)


def test_it_says_so_at_import_and_in_a_command_in_one_line(tmp_path: Path) -> None:
    done = with_host(tmp_path, "8.3.9", "-m", "rebalance", "train", "model=yolov8n.yaml", "data=x.yaml", "loss=focal")
    line = (
        "rebalance: error: ultralytics 8.3.9 is not known to rebalance, which needs 8.4.180 or newer, before 8.5: "
        "pip install 'ultralytics>=8.4.180,<8.5'\n"
    )
    assert (done.returncode, done.stderr) == (2, line)
    done = with_host(tmp_path, "8.3.8", "-c", "from rebalance import YOLO")
    assert done.stderr.splitlines()[-1].startswith("rebalance.errors.VersionError: ultralytics 8.3.")
