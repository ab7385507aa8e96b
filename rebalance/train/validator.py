"""Ultralytics' detection validator without its time limit, and with what is known about the labels.

The host's non-maximum suppression gives up on the rest of a batch after about three seconds, and those images then
count as images without detections: on a slow machine a detector that is sure of nothing (focal loss early in training)
loses most of its mAP. Here every image is done, and done sooner.
"""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.nms import non_max_suppression

from rebalance.train.admission import source_of, spoken
from rebalance.train.regions import RegionDataset, with_regions
from rebalance.train.unjudged import UnjudgedConfusion, UnjudgedMetrics, unknown_detections

FIRST = 3000  # pairs of box and class that are tried first


class Validator(DetectionValidator):  # type: ignore[misc]
    """Validates as the host does, with every image's detections.

    Where the data set says that labels are unknown, a detection there that matches none counts neither as right nor as
    wrong; see `rebalance.train.unjudged`.

    Attributes:
        val_regions: whether that is so; else it counts as wrong.
    """

    val_regions = True
    metrics: Any
    _told = False
    _unjudged = False  # whether the data set at hand has regions, and they count

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """The host's, with the regions of the data set; a training brings its own."""
        with with_regions(spoken(source_of(self.data.get("yaml_file")))):
            return super().build_dataset(img_path, mode, batch)

    def init_metrics(self, model: torch.nn.Module) -> None:
        """The host's, and say once how what is unknown counts."""
        regions = isinstance(self.dataloader.dataset, RegionDataset)
        self._unjudged = self.val_regions and regions
        if self._unjudged and not isinstance(self.metrics, UnjudgedMetrics):
            self.metrics = UnjudgedMetrics()
        super().init_metrics(model)
        if self._unjudged:
            self.confusion_matrix = UnjudgedConfusion(
                names=model.names, save_matches=self.args.plots and self.args.visualize
            )
        if regions and not self._told and RANK in {-1, 0}:
            self._told = True
            LOGGER.info(f"rebalance: {counting(self.val_regions)}")
            if self._unjudged and self.args.save_json:
                LOGGER.warning("rebalance: save_json: the host's COCO figures know no regions; the others do")

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The host's; regions are taken to the device too, for the loss."""
        batch = super().preprocess(batch)
        return {**batch, "regions": batch["regions"].to(self.device)} if "regions" in batch else batch

    def update_metrics(self, preds: list[dict[str, torch.Tensor]], batch: dict[str, Any]) -> None:
        """The host's; of each detection `unknown` says whether it is in an unknown region of its class."""
        if self._unjudged:
            height, width = batch["img"].shape[2:]
            masks = unknown_detections(preds, batch["regions"], (height, width), single_cls=self.args.single_cls)
            for pred, unknown in zip(preds, masks, strict=True):
                pred["unknown"] = unknown
        super().update_metrics(preds, batch)

    def _process_batch(self, preds: dict[str, torch.Tensor], batch: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = super()._process_batch(preds, batch)
        return {**found, "unknown": preds["unknown"].cpu().numpy()} if self._unjudged else found

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Non-maximum suppression: for each image `bboxes` (n, 4), `conf` (n,), `cls` (n,), `extra` (n, 0)."""
        args = self.args
        outputs = suppressed(preds, args, agnostic=args.single_cls or args.agnostic_nms, end2end=self.end2end)
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in outputs]


def suppressed(preds: Any, args: Any, *, agnostic: bool, end2end: bool) -> list[torch.Tensor]:
    """Non-maximum suppression as in evaluation: every class of a box counts, and no image is given up.

    Suppression goes through the boxes by falling score, so where the best 3000 already leave `max_det`, the others
    could not have changed that.

    Args:
        preds: what the model puts out.
        args: with `conf`, `iou` and `max_det`.
        agnostic: whether boxes of different classes suppress each other.
        end2end: whether the model leaves nothing to suppress.

    Returns:
        For each image (n, 6 or more): box as x1, y1, x2, y2, score, class, and what else the model says.
    """
    found = preds[0] if isinstance(preds, (list, tuple)) else preds

    def suppress(some: torch.Tensor, most: int) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = non_max_suppression(
            some, args.conf, args.iou, multi_label=True, agnostic=agnostic, max_det=args.max_det, end2end=end2end,
            max_nms=most, max_time_img=float("inf"),
        )  # fmt: skip
        return kept

    outputs = suppress(found, FIRST)
    if not end2end:
        many = (found[:, 4:] > args.conf).flatten(1).sum(1) > FIRST
        short = torch.tensor([len(x) < args.max_det for x in outputs], device=many.device)
        again = (many & short).nonzero().flatten()
        if len(again):
            for index, output in zip(again.tolist(), suppress(found[again], 30000), strict=True):
                outputs[index] = output
    return outputs


def counting(val_regions: bool) -> str:
    """How detections in unknown regions count, in words."""
    how = "neither as right nor as wrong" if val_regions else "as wrong"
    return f"what is found in unknown regions and matches no label counts {how} (val_regions={val_regions})"
