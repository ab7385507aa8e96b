r"""What dropping does to the loss of each head: pull on positives and push on negatives, of the loss without dropping.

    python scripts/drop_pulls.py data=<data set>.yaml out=<folder> [images=16] [imgsz=320]

A detector with random weights takes one step, on the first training images of the data set as they are, with
`obj_drop=0.75`; what a training then says of itself (`pull`, `push`) is a row of <folder>/pulls.csv.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas
import yaml

from rebalance import YOLO
from rebalance.data import dataset
from rebalance.files import write_whole

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


def measured(model: str, flags: dict[str, Any], data: Path, images: int, imgsz: int, folder: Path) -> dict[str, Any]:
    """The row of a step."""
    detector = YOLO(model)
    given = {**STEP, **flags, "loss": "drop", "obj_drop": 0.75}
    detector.train(data=str(data), batch=images, nbs=images, imgsz=imgsz, project=str(folder), name="run", **given)
    ran = detector.trainer.loss_ran
    return {"model": model, **{name: round(ran[name], 4) for name in ("pull", "push")}}


def main(argv: list[str]) -> None:
    """`data=` and `out=`, see above."""
    given = dict(part.partition("=")[::2] for part in argv)
    if missing := {"data", "out"} - {*given}:
        sys.exit(f"missing: {', '.join(sorted(missing))}; see the first lines of this file")
    source, out = dataset.load(given.pop("data")), Path(given.pop("out"))
    images, imgsz = int(given.pop("images", "16")), int(given.pop("imgsz", "320"))
    if given:
        sys.exit(f"{next(iter(given))}= is not one of data, out, images, imgsz")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        listed, data = Path(work, "train.txt"), Path(work, "data.yaml")
        listed.write_text("\n".join(sorted(source.images("train"))[:images]) + "\n", "utf-8")
        content = {"train": str(listed), "val": list(source.splits["val"]), "names": dict(source.names)}
        data.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
        for model, own in MODELS.items():
            for way, flags in WAYS.items():
                rows.append({"way": way, **measured(model, {**own, **flags}, data, images, imgsz, Path(work))})
                print(rows[-1], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "pulls.csv", pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
