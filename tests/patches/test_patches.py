"""Each diff of patches/ on the published source."""

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from upstream import PATCHES, apply, copy, installed, python, results

pytestmark = pytest.mark.upstream


class Patch(NamedTuple):
    package: str
    version: str  # that the diff is for, as a pattern
    diff: Path
    files: tuple[str, ...]  # that it changes
    checks: int  # the comparison makes at least so many


YOLOV5 = Patch(
    "yolov5",
    r"7\.0\.14",
    PATCHES / "yolov5-7.0/rebalance.diff",
    ("data/hyps/hyp.scratch-low.yaml", "train.py", "utils/loss.py"),
    100,
)
ULTRALYTICS = Patch(
    "ultralytics",
    r"8\.4\.190",
    PATCHES / "ultralytics-8.4/rebalance.diff",
    ("cfg/__init__.py", "cfg/default.yaml", "utils/loss.py"),
    80,
)
each = pytest.mark.parametrize("patch", [YOLOV5, ULTRALYTICS], ids=lambda patch: patch.package)


def patched(patch: Patch, site: Path) -> Path:
    """Lay the patched package into `site`, a folder like site-packages, and return the published one."""
    published = installed(patch.package, patch.version)
    copy(published, site / patch.package)
    apply(patch.diff, site)
    return published


@each
def test_loss_gives_the_published_and_our_numbers(patch: Patch, tmp_path: Path) -> None:
    site = tmp_path / "site"
    published = patched(patch, site)
    script = f"compare_{patch.package}.py"
    found = results(python(script, published, site / patch.package, path=site, scratch=tmp_path))
    assert len(found) >= patch.checks
    assert [name for name, holds in found.items() if not holds] == []


@each
def test_diff_comes_off_again(patch: Patch, tmp_path: Path) -> None:
    published = patched(patch, tmp_path)
    for name in patch.files:
        assert (tmp_path / patch.package / name).read_bytes() != (published / name).read_bytes()
    apply(patch.diff, tmp_path, "-R")
    for name in patch.files:
        assert (tmp_path / patch.package / name).read_bytes() == (published / name).read_bytes()


@each
def test_diff_needs_nothing_of_this_project(patch: Patch) -> None:
    added = [line for line in patch.diff.read_text().splitlines() if line.startswith("+")]
    assert not any("import" in line and "rebalance" in line for line in added)


def test_yolov5_diff_also_fits_the_layout_of_the_repository(tmp_path: Path) -> None:
    # The repository's root is the package's folder, and its modules import `utils.…`, not `yolov5.utils.…`.
    def to_repository(text: str) -> str:
        return re.sub(r"^(\s*)(from|import) yolov5\.", r"\1\2 ", text, flags=re.MULTILINE)

    published = patched(YOLOV5, tmp_path / "site")
    root = copy(published, tmp_path / "repository")
    for name in YOLOV5.files:
        (root / name).write_text(to_repository((root / name).read_text()))
    assert "from utils.metrics import bbox_iou" in (root / "utils/loss.py").read_text()
    apply(YOLOV5.diff, root, "-p2")
    for name in YOLOV5.files:
        assert (root / name).read_text() == to_repository((tmp_path / "site/yolov5" / name).read_text())


@pytest.mark.slow
def test_patched_yolo_trains_with_the_flags(tmp_path: Path) -> None:
    patched(ULTRALYTICS, tmp_path / "site")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            image, label = (tmp_path / kind / split / name for kind in ("images", "labels"))
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(f"{image}.png", rng.integers(0, 255, (32, 32, 3), np.uint8))
            Path(f"{label}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    common = ["train", "model=yolov8n.yaml", f"data={data}", "epochs=1", "imgsz=32", "batch=2", "workers=0"]
    common += ["device=cpu", "plots=False", f"project={tmp_path / 'runs'}"]

    where = {"path": tmp_path / "site", "scratch": tmp_path}
    flags = ("obj_drop=0.75", "box_drop=0.5", "drop_divisor=host")
    done = python("yolo_command.py", *common, "name=dropped", *flags, **where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "obj_drop: 0.75" in (tmp_path / "runs/dropped/args.yaml").read_text()
    assert (tmp_path / "runs/dropped/weights/last.pt").exists()

    refused = python("yolo_command.py", *common, "name=refused", "obj_drop=1.5", **where)
    assert refused.returncode != 0
    assert "obj_drop=1.5" in refused.stdout + refused.stderr
    assert not (tmp_path / "runs/refused").exists()
