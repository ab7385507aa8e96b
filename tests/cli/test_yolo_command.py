"""The real `yolo` in a process of its own, in an environment with the hook."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import os
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from rebalance.cli import hook

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "import sys\nfrom ultralytics.cfg import entrypoint\nif __name__ == '__main__':\n    sys.exit(entrypoint())\n"
SMALL = "epochs=1 imgsz=64 batch=4 workers=0 device=cpu plots=False seed=0 amp=False"

Yolo = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the hook, and in it the packages that run this test."""
    folder = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(symlinks=True).create(folder)
    site = next(folder.glob("lib/python3*/site-packages"))
    ultralytics = importlib.util.find_spec("ultralytics")
    assert ultralytics is not None
    assert ultralytics.origin is not None
    (site / "packages.pth").write_text(f"{Path(ultralytics.origin).parents[1]}\n{ROOT}\n", "utf-8")
    (site / hook.NAME).write_text(hook.LINE, "utf-8")
    (folder / "bin" / "yolo").write_text(f"#!{folder / 'bin' / 'python'}\n{SCRIPT}", "utf-8")
    return folder


@pytest.fixture
def yolo(environment: Path, tmp_path: Path) -> Yolo:
    """Runs yolo in an empty folder, where it also writes."""
    folder = tmp_path / "work"
    folder.mkdir()
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        program = [str(environment / "bin" / "python"), str(environment / "bin" / "yolo")]
        return subprocess.run([*program, *command.split()], capture_output=True, text=True, cwd=folder, env=settings)

    return run


def columns(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return next(csv.reader(lines))


@pytest.mark.slow
def test_our_flags_train_and_the_stock_modes_use_what_they_made(yolo: Yolo, tiny_dataset: Path, tmp_path: Path) -> None:
    flags = "head=anchor loss=drop obj_drop=0.75 autoanchor=False"
    done = yolo(f"train model=yolov5n.yaml data={tiny_dataset} {flags} {SMALL} project={tmp_path} name=ours")
    assert done.returncode == 0, done.stderr
    assert "loss=drop head=anchor" in done.stdout + done.stderr
    assert "drop/obj_dropped" in columns(tmp_path / "ours" / "results.csv")
    best = tmp_path / "ours" / "weights" / "best.pt"
    done = yolo(f"val model={best} data={tiny_dataset} split=test imgsz=64 workers=0 device=cpu")
    assert done.returncode == 0, done.stderr
    images = tiny_dataset.parent / "images" / "test"
    done = yolo(f"predict model={best} source={images} imgsz=64 device=cpu project={tmp_path} name=seen")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "seen").glob("*.jpg"))) == 4


@pytest.mark.slow
def test_without_our_flags_it_is_stock(yolo: Yolo, tiny_dataset: Path, tmp_path: Path, environment: Path) -> None:
    command = f"train model=yolov8n.yaml data={tiny_dataset} {SMALL} project={tmp_path} deterministic=True"
    done = yolo(f"{command} name=hooked")
    assert done.returncode == 0, done.stderr
    assert "rebalance" not in done.stdout + done.stderr
    file = next(environment.glob(f"lib/python3*/site-packages/{hook.NAME}"))
    file.unlink()
    try:
        done = yolo(f"{command} name=stock")
    finally:
        file.write_text(hook.LINE, "utf-8")
    assert done.returncode == 0, done.stderr
    rows = []
    for name in ("hooked", "stock"):
        with (tmp_path / name / "results.csv").open(encoding="utf-8") as lines:
            rows.append([{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(lines)])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("command", "message"),  # few, as each loads torch; the rest is tested without a process
    [
        ("train obj_dorp=0.75", "unknown flag obj_dorp=0.75 (did you mean obj_drop?)"),
        ("train obj_drop=0.5 box_gain=1", "box_gain=1 has no effect with head=stock; add head=anchor"),
        ("train obj_drop=0.5 epoch=3", "unknown flag epoch=3 (did you mean epochs?)"),
        ("val obj_drop=0.5", "obj_drop=0.5 is a training flag; val does not take it"),
    ],
)
def test_a_slip_is_one_line_before_anything_is_made(
    yolo: Yolo, tiny_dataset: Path, tmp_path: Path, command: str, message: str
) -> None:
    done = yolo(f"{command} model=yolov8n.yaml data={tiny_dataset} project={tmp_path / 'made'}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"rebalance: error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "made").exists()
    assert not list((tmp_path / "work").iterdir())


def test_version_is_the_host_s_own(yolo: Yolo) -> None:
    done = yolo("version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(importlib.metadata.version("ultralytics"))
