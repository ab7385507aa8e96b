"""The metrics of a trained run, at the setting of the study or of the detector's family, and at the host's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER, ops

from rebalance.experiments.precision import Seen, coco_precision, voc_precision
from rebalance.experiments.record import METRICS, NUMBERS, VAL_REGIONS, Config
from rebalance.hosts.evaluation import HOST, evaluation_of
from rebalance.train.api import YOLO
from rebalance.train.validator import Validator

IOU_THRESHOLDS = tuple(f"{0.5 + 0.05 * k:.2f}" for k in range(10))  # of a match, as COCO and the host have them
ALSO_HERE = ("imgsz", "device", "workers", "classes", "single_cls", "agnostic_nms")


class Result(NamedTuple):
    """Of one split, as a record has it; fractions."""

    metrics: dict[str, Any]
    at_host: dict[str, float]
    max_det: int  # that was used: the host raises its own default where an image has more labels


def setting_of(weights: Path, host: Mapping[str, Any], val_regions: bool | None = None) -> dict[str, Any]:
    """`iou`, `conf` and `max_det` of a run's evaluation and their `source`: what was asked for, else the family's.

    And `val_regions` where the data set has regions.
    """
    family = evaluation_of(YOLO(str(weights)).model)
    asked = {key: host[key] for key in NUMBERS if host.get(key) is not None}
    if not asked:
        source = family.source
    elif len(asked) == len(NUMBERS):
        source = "as asked"
    else:
        source = f"{', '.join(asked)} as asked; {family.source}"
    found = {**{key: getattr(family, key) for key in NUMBERS}, **asked, "source": source}
    return found if val_regions is None else {**found, VAL_REGIONS: val_regions}


def setting_text(setting: Mapping[str, Any]) -> str:
    """A setting in one line."""
    more = f", {VAL_REGIONS} {setting[VAL_REGIONS]}" if VAL_REGIONS in setting else ""
    return f"{', '.join(f'{key} {setting[key]:g}' for key in NUMBERS)} ({setting['source']}){more}"


def evaluate(weights: Path, split: str, config: Config, setting: Mapping[str, Any], threads: int) -> Result | None:
    """Evaluate on val or test, whose labels are complete; None without labels.

    The model sees each image once; what differs between the two settings comes after it.
    """
    model = YOLO(str(weights))
    judges: list[Any] = []
    model.add_callback("on_val_start", lambda _: torch.set_num_threads(threads))
    model.add_callback("on_val_start", judges.append)
    host = Validator if isinstance(model, YOLO) and model.task == "detect" else model._smart_load("validator")
    LOGGER.info(f"Evaluation on {split}: {setting_text(setting)}")
    flags = eval_flags(config, weights, setting)
    if not setting.get(VAL_REGIONS, True):
        flags[VAL_REGIONS] = False
    found = model.val(
        type("Judge", (Judge, host), {}), data=str(config.data), split=split, plots=False, verbose=False, **flags
    )
    if found.nt_per_class is None or not sum(found.nt_per_class):
        return None
    judge, box = judges[0], found.box
    per_class = {
        f"{index}: {found.names[int(index)]}": {"mAP50": float(ap[0]), "mAP50-95": float(ap.mean())}
        for index, ap in zip(box.ap_class_index, box.all_ap, strict=True)
    }
    by_iou = dict(zip(IOU_THRESHOLDS, box.all_ap.mean(0).tolist(), strict=True))
    metrics = {
        **_means(found), "precision": float(box.mp), "recall": float(box.mr), "mAP_by_iou": by_iou,
        "per_class": per_class, "coco": coco_precision(judge.images), "voc": voc_precision(judge.images),
    }  # fmt: skip
    return Result(metrics, _means(judge.at_host), judge.args.max_det)


def _means(found: Any) -> dict[str, float]:
    box = found.box
    return dict(zip(METRICS, map(float, (box.map50, box.map75, box.map)), strict=True))


def eval_flags(config: Config, weights: Path, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Host flags that mean the same in evaluation, the setting, and a folder that exists anyway."""
    host, batch = config.host, config.host.get("batch")
    batch = batch if isinstance(batch, int) and batch > 0 else 16
    place = {"batch": batch, "save_dir": str(weights.parents[1].absolute())}
    return {**{key: host[key] for key in ALSO_HERE if key in host}, **{key: setting[key] for key in NUMBERS}, **place}


def predict_flags(config: Config, weights: Path, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The same for looking at single images."""
    flags = eval_flags(config, weights, setting)
    return {**{key: flags[key] for key in flags if key not in ("workers", "batch")}, "save": False, "verbose": False}


class Judge(DetectionValidator):  # type: ignore[misc]
    """Joined with a validator of the host: keeps what it compares, and compares at the host's setting as well.

    Attributes:
        images: labels and detections of each image, at the setting asked for.
        at_host: metrics at the host's setting.
    """

    args: Any  # the host's class has them untyped
    metrics: Any
    seen: Any

    def init_metrics(self, model: Any) -> None:
        """Start anew; `args_at_host` are the arguments with the host's setting."""
        super().init_metrics(model)
        self.args.save_json = False  # of COCO the host would write a file
        self.images: list[Seen] = []
        self.args_at_host = copy.copy(self.args)
        for key in NUMBERS:
            setattr(self.args_at_host, key, getattr(HOST, key))
        self._check_max_det(self.args_at_host, {self.args.split: self.dataloader.dataset})
        same = all(getattr(self.args, key) == getattr(self.args_at_host, key) for key in NUMBERS)
        self.at_host = self.metrics if same else type(self.metrics)(names=model.names)

    def postprocess(self, preds: Any) -> Any:
        """What is kept of a batch's predictions; beside it, what the host's setting keeps."""
        if self.at_host is not self.metrics:
            args, self.args = self.args, self.args_at_host
            self.kept_at_host = super().postprocess(preds)
            self.args = args
        return super().postprocess(preds)

    def update_metrics(self, preds: Any, batch: Any) -> None:
        """Compare a batch with its labels, at both settings."""
        super().update_metrics(preds, batch)
        if self.at_host is not self.metrics:
            metrics, self.metrics, seen = self.metrics, self.at_host, self.seen
            self.seen = seen - len(preds)
            super().update_metrics(self.kept_at_host, batch)
            self.metrics, self.seen = metrics, seen
        for index, pred in enumerate(preds):
            about = self._prepare_batch(index, batch)

            def in_pixels(boxes: torch.Tensor, about: Any = about) -> Any:
                boxes = ops.scale_boxes(about["imgsz"], boxes.clone(), about["ori_shape"], about["ratio_pad"])
                return boxes.cpu().numpy()

            kinds, scores = (x.cpu().numpy() for x in (pred["cls"], pred["conf"]))
            labels, label_kinds = in_pixels(about["bboxes"]), about["cls"].cpu().numpy()
            unknown = pred["unknown"].cpu().numpy() if "unknown" in pred else None
            self.images.append(Seen(labels, label_kinds, in_pixels(pred["bboxes"]), scores, kinds, unknown))

    def get_stats(self) -> Any:
        """The metrics of all batches."""
        if self.at_host is not self.metrics:
            self.at_host.process(save_dir=self.save_dir)
        return super().get_stats()
