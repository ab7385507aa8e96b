"""What all tests share: Ultralytics kept away from the user's settings, one thread, and small data."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "ultralytics" in sys.modules:
    raise RuntimeError("ultralytics was imported before its settings were moved to a temporary folder")
_SCRATCH = tempfile.TemporaryDirectory(prefix="rebalance-tests-")
os.environ["YOLO_CONFIG_DIR"] = _SCRATCH.name  # one a process; its subprocesses inherit it, and what follows
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # images so small that a second costs more than it brings

import pytest  # noqa: E402
from small_data import make_dataset  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    """The YAML of a data set made for this test alone: 8 + 4 + 4 images of 64 pixels, two classes."""
    return make_dataset(tmp_path / "tiny")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in, and the process's arguments as they were afterwards."""
    folder, before = tmp_path / "work", sys.argv[:]
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    sys.argv[:] = before
