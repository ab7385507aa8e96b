"""The host's metrics where some labels are unknown: what is found there counts neither as right nor as wrong.

As COCO has it for crowds: a detection of which at least half is in an unknown region of its class, and that matches no
label, is left out. That is asked at each IoU threshold by itself, as a detection may match at 0.5 and not at 0.75.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from ultralytics.utils.metrics import ConfusionMatrix, DetMetrics, ap_per_class

from rebalance.match.regions import RegionBatch, known

Stats = dict[str, np.ndarray[Any, Any]]


def unknown_detections(
    found: list[dict[str, torch.Tensor]], regions: RegionBatch, size: tuple[int, int], *, single_cls: bool = False
) -> list[torch.Tensor]:
    """(n,) bool of each image: which detections lie in an unknown region of their class.

    Args:
        found: of each image `bboxes` (n, 4) corners in pixels of the network's input, and `cls` (n,).
        regions: of these images.
        size: height, width of the network's input.
        single_cls: whether all classes are one.
    """
    boxes = pad_sequence([one["bboxes"] for one in found], batch_first=True)
    said = known(regions, boxes, images=len(found), size=size, each=True).unknown
    if said is None:
        return [torch.zeros_like(one["cls"], dtype=torch.bool) for one in found]
    most, masks = said.shape[-1] - 1, []
    for one, of_image in zip(found, said, strict=True):
        kind = one["cls"].long() * (not single_cls)
        at_kind = of_image[: len(kind)].gather(1, kind.clamp(max=most).unsqueeze(1)).squeeze(1)
        masks.append(at_kind & (kind <= most))
    return masks


class UnjudgedMetrics(DetMetrics):  # type: ignore[misc]
    """The host's; of each detection `unknown` says whether it is left out where it is not right."""

    stats: dict[str, Any]

    def __init__(self, names: dict[int, str] | None = None) -> None:
        super().__init__(names)
        self.stats["unknown"] = []

    def update_stats(self, stat: dict[str, Any]) -> None:
        """Add an image."""
        super().update_stats(stat)
        judged = stat["tp"][:, 0] | ~stat["unknown"]
        self.box.update_image_metrics(stat["tp"][judged], stat["target_cls"], stat["pred_cls"][judged], stat["im_name"])

    def process(self, save_dir: Path = Path(), plot: bool = False, on_plot: Any = None) -> Stats:
        """Of all images; curves, precision and recall are those at the first threshold."""
        every = {key: np.concatenate(parts) for key, parts in self.stats.items()}

        def judged(threshold: int) -> Stats:
            kept = every["tp"][:, threshold] | ~every["unknown"]
            return {key: every[key][kept] for key in ("tp", "conf", "pred_cls")}

        whole = self.stats
        self.stats = {**whole, **{key: [values] for key, values in judged(0).items()}}
        try:
            found: Stats = super().process(save_dir=save_dir, plot=plot, on_plot=on_plot)
        finally:
            self.stats = whole
        for k in range(1, every["tp"].shape[1] if every["unknown"].any() else 0):
            one = judged(k)
            results = ap_per_class(one["tp"][:, k : k + 1], one["conf"], one["pred_cls"], every["target_cls"])
            self.box.all_ap[:, k] = results[5][:, 0]
        return found


class UnjudgedConfusion(ConfusionMatrix):  # type: ignore[misc]
    """The host's, without detections in unknown regions that it matches to no label, of whatever class."""

    def process_batch(self, detections: Any, batch: Any, conf: float = 0.25, iou_thres: float = 0.45) -> None:
        """Add an image."""
        if detections["unknown"].any():
            left_over, count = _LeftOver(), len(detections["cls"])
            rows = torch.arange(count, device=detections["cls"].device)
            one = {**detections, "cls": torch.zeros_like(detections["cls"]), "row": rows}
            # where all are of one class, what is false is what has no match
            left_over.process_batch(one, {**batch, "cls": torch.zeros_like(batch["cls"])}, conf, iou_thres)
            matched = torch.tensor([row not in left_over.rows for row in range(count)], device=rows.device)
            kept = ~detections["unknown"] | matched
            detections = {key: x[kept] for key, x in detections.items()}
        super().process_batch(detections, batch, conf, iou_thres)


class _LeftOver(ConfusionMatrix):  # type: ignore[misc]
    """Keeps which detections of an image the host counts as false, by their `row`."""

    def __init__(self) -> None:
        super().__init__(names={0: ""})
        self.rows: set[int] = set()

    def _append_matches(self, mtype: str, batch: dict[str, Any], idx: int) -> None:
        if mtype == "FP":
            self.rows.add(int(batch["row"][idx]))
