"""Ultralytics' detection validator without its time limit.

The host's non-maximum suppression gives up on the rest of a batch after about three seconds, and those images then
count as images without detections: on a slow machine a detector that is sure of nothing (focal loss early in training)
loses most of its mAP. Here every image is done, and done sooner.
"""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.nms import non_max_suppression

FIRST = 3000  # pairs of box and class that are tried first


class Validator(DetectionValidator):  # type: ignore[misc]
    """Validates as the host does, with every image's detections."""

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The host's; regions are taken to the device too, for the loss."""
        batch = super().preprocess(batch)
        return {**batch, "regions": batch["regions"].to(self.device)} if "regions" in batch else batch

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Non-maximum suppression: for each image `bboxes` (n, 4), `conf` (n,), `cls` (n,), `extra` (n, 0).

        Suppression goes through the boxes by falling score, so where the best 3000 already leave `max_det`, the others
        could not have changed that.
        """
        found = preds[0] if isinstance(preds, (list, tuple)) else preds
        args = self.args

        def suppress(some: torch.Tensor, most: int) -> list[torch.Tensor]:
            kept: list[torch.Tensor] = non_max_suppression(
                some, args.conf, args.iou, multi_label=True, agnostic=args.single_cls or args.agnostic_nms,
                max_det=args.max_det, end2end=self.end2end, max_nms=most, max_time_img=float("inf"),
            )  # fmt: skip
            return kept

        outputs = suppress(found, FIRST)
        if not self.end2end:
            many = (found[:, 4:] > args.conf).flatten(1).sum(1) > FIRST
            short = torch.tensor([len(x) < args.max_det for x in outputs], device=many.device)
            again = (many & short).nonzero().flatten()
            if len(again):
                for index, output in zip(again.tolist(), suppress(found[again], 30000), strict=True):
                    outputs[index] = output
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in outputs]
