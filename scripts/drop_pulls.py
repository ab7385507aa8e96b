r"""What dropping does to the loss of each head: pull on positives and push on negatives, of the loss without dropping.

    python scripts/drop_pulls.py data=<data set>.yaml out=<folder> [images=16] [imgsz=320]

A detector with random weights takes one step, on the first training images of the data set as they are, with
`obj_drop=0.75`; what a training then says of itself (`pull`, `push`) is a row of <folder>/pulls.csv.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from rebalance import YOLO
from rebalance.cli.main import guarded, pairs
from rebalance.data import dataset
from rebalance.files import require_writable, write_whole
from rebalance.settings import parse, require, setting

MODELS: dict[str, dict[str, Any]] = {
    "yolov5n.yaml": {"head": "anchor"}, "yolov8n.yaml": {}, "yolo26n.yaml": {}, "retinanet_tiny": {}, "ssd_tiny": {},
    "fasterrcnn_tiny": {},
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "kept": {}, "host": {"drop_divisor": "host"}, "confident": {"drop_select": "confident"},
    "control": {"drop_select": "weight"},
}  # fmt: skip
AS_THEY_ARE = {"mosaic": 0, "scale": 0, "translate": 0, "fliplr": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0}
STEP: dict[str, Any] = {
    **AS_THEY_ARE, "epochs": 1, "seed": 0, "optimizer": "SGD", "pretrained": False, "device": "cpu", "workers": 0,
    "plots": False, "val": False, "save": False, "verbose": False, "amp": False, "exist_ok": True,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Flags:
    """See above."""

    data: str = setting("", "data set YAML")
    out: str = setting("", "folder of the table")
    images: int = setting(16, "how many", low=1)
    imgsz: int = setting(320, "image size", low=32, unit="pixels")


def measured(model: str, flags: dict[str, Any], data: Path, images: int, imgsz: int, folder: Path) -> dict[str, Any]:
    """The row of a step."""
    detector = YOLO(model)
    given = {**STEP, **flags, "loss": "drop", "obj_drop": 0.75}
    detector.train(data=str(data), batch=images, nbs=images, imgsz=imgsz, project=str(folder), name="run", **given)
    ran = detector.trainer.loss_ran
    return {"model": model, **{name: round(ran[name], 4) for name in ("pull", "push")}}


def main(argv: list[str]) -> None:
    """`data=` and `out=`, see above."""
    given = parse(Flags, pairs(argv, Flags))
    require(given, "data", "out")
    source, out, rows = dataset.load(given.data), Path(given.out, "pulls.csv"), list[dict[str, Any]]()
    require_writable(out)
    with tempfile.TemporaryDirectory() as work:
        os.environ |= {"MLFLOW_TRACKING_URI": Path(work, "mlflow").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
        listed, data = Path(work, "train.txt"), Path(work, "data.yaml")
        listed.write_text("\n".join(sorted(source.images("train"))[: given.images]) + "\n", "utf-8")
        content = {"train": str(listed), "val": list(source.splits["val"]), "names": dict(source.names)}
        data.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
        for model, own in MODELS.items():
            for way, flags in WAYS.items():
                row = measured(model, {**own, **flags}, data, given.images, given.imgsz, Path(work))
                rows.append({"way": way, **row})
                print(rows[-1], flush=True)
    write_whole(out, pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
