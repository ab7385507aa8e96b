"""The metrics of a trained run, and the host's flags that count when it is not training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rebalance.experiments.record import Config
from rebalance.train.api import YOLO

IOU_THRESHOLDS = tuple(f"{0.5 + 0.05 * k:.2f}" for k in range(10))  # of a match, as COCO and the host have them
ALSO_HERE = ("imgsz", "device", "workers", "classes", "single_cls", "conf", "iou", "max_det", "agnostic_nms")


def evaluate(weights: Path, split: str, config: Config, threads: int) -> dict[str, Any] | None:
    """Return Ultralytics' metrics on val or test, whose labels are complete, as fractions; None without labels."""
    model = YOLO(str(weights))
    model.add_callback("on_val_start", lambda _: torch.set_num_threads(threads))
    found = model.val(data=str(config.data), split=split, plots=False, verbose=False, **eval_flags(config, weights))
    if found.nt_per_class is None or not sum(found.nt_per_class):
        return None
    box = found.box
    per_class = {
        str(found.names[int(index)]): {"mAP50": float(ap[0]), "mAP50-95": float(ap.mean())}
        for index, ap in zip(box.ap_class_index, box.all_ap, strict=True)
    }
    scores = {"mAP50": box.map50, "mAP75": box.map75, "mAP50-95": box.map, "precision": box.mp, "recall": box.mr}
    by_iou = dict(zip(IOU_THRESHOLDS, box.all_ap.mean(0).tolist(), strict=True))
    return {**{name: float(score) for name, score in scores.items()}, "mAP_by_iou": by_iou, "per_class": per_class}


def eval_flags(config: Config, weights: Path) -> dict[str, Any]:
    """Host flags that mean the same in evaluation, and a folder that exists anyway."""
    host, batch = config.host, config.host.get("batch")
    batch = batch if isinstance(batch, int) and batch > 0 else 16
    place = {"batch": batch, "save_dir": str(weights.parents[1].absolute())}
    return {**{key: host[key] for key in ALSO_HERE if key in host}, **place}
