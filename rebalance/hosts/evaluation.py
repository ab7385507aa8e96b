"""At which setting a family of detectors is evaluated: that of its own tools, with which its results were published.

Non-maximum suppression at 0.7 in the place of 0.5 costs a RetinaNet up to six points of mAP50 and a YOLO two: with one
number for all, families would be compared by it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ultralytics.utils import DEFAULT_CFG_DICT


class Evaluation(NamedTuple):
    """Which boxes are kept before they are compared with labels."""

    iou: float  # above which non-maximum suppression takes the lesser of two boxes of a class away
    conf: float  # least score
    max_det: int  # of an image
    source: str  # of the three, in words


# `iou` and `max_det` of Ultralytics' configuration, and the `conf` that its validator takes where none is given
HOST = Evaluation(DEFAULT_CFG_DICT["iou"], 0.001, DEFAULT_CFG_DICT["max_det"], "Ultralytics' defaults")
# --iou-thres, --conf-thres and --max-det of val.py in YOLOv5, and the first two of that in YOLOv3
ANCHORS = Evaluation(0.6, 0.001, 300, "val.py of YOLOv5")
# iou: torchvision, Detectron and mmdetection alike. max_det: Detectron, mmdetection, torchvision's Faster R-CNN (its
# RetinaNet: 300), and what COCO's AP counts at most. conf: all three have 0.05, below which most scores of a focal loss
# are after a short training. Chen et al., Table 1: RetinaNet has the same AP at 0.05 and 0.001 (34.2), with an
# objectness more at 0.001 (34.1, 33.6 at 0.05).
RCNN = Evaluation(0.5, 0.001, 100, "Detectron and mmdetection, but scores from 0.001 as in Chen et al., Table 1")
# Liu et al. 2016, section 3.7: 0.45, 0.01, 200; torchvision's ssd300_vgg16 has the same
SSD = Evaluation(0.45, 0.01, 200, "SSD's own, in Liu et al. and torchvision")
# The defaults of torchvision's ssdlite320_mobilenet_v3_large
SSDLITE = Evaluation(0.55, 0.001, 300, "SSDLite's own, in torchvision")


def evaluation_of(model: Any) -> Evaluation:
    """The setting of a model's family: what its head says, else the host's."""
    found: Evaluation = getattr(model.model[-1], "evaluation", HOST)
    return found
