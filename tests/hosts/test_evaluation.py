"""Each family is evaluated as its own tools do it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from objectives import recipe_of
from torchvision.models import detection
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import DetectionModel

from rebalance.hosts.evaluation import HOST, evaluation_of
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import build


def numbers(model: Any) -> tuple[float, float, int]:
    found = evaluation_of(model)
    assert found.source
    return found[:3]


def test_the_hosts_own_is_what_its_validator_takes(tmp_path: Any) -> None:
    args = DetectionValidator(save_dir=tmp_path, args=get_cfg(overrides={"task": "detect", "mode": "val"})).args
    assert HOST[:3] == (args.iou, args.conf, args.max_det) == (0.7, 0.001, 300)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("yolov8n.yaml", None, HOST[:3]),
        ("yolov5n.yaml", None, HOST[:3]),  # the file names YOLOv5, its head is YOLOv8's
        ("yolov8n.yaml", {"head": "resobj"}, HOST[:3]),
        ("yolov5n.yaml", {"head": "anchor"}, (0.6, 0.001, 300)),
        ("yolov5n.yaml", {"head": "resobj"}, (0.6, 0.001, 300)),  # stands on anchors there
    ],
)
def test_of_yolo_the_head_decides(name: str, given: Any, expected: Any) -> None:
    anchored = "v5" in name
    if given is None:
        assert numbers(DetectionModel(name, verbose=False)) == expected
    else:
        assert numbers(build(name, recipe_of(given, anchored=anchored), nc=2, verbose=False)) == expected


@pytest.mark.parametrize("name", ["retinanet_tiny", "fasterrcnn_tiny"])
def test_retinanet_and_faster_rcnn(name: str) -> None:
    """Suppression as in torchvision; 100 boxes as in torchvision's Faster R-CNN."""
    assert numbers(TorchvisionModel(name, nc=2, verbose=False)) == (0.5, 0.001, 100)
    theirs = inspect.signature(detection.FasterRCNN).parameters
    assert (theirs["box_nms_thresh"].default, theirs["box_detections_per_img"].default) == (0.5, 100)
    assert inspect.signature(detection.RetinaNet).parameters["nms_thresh"].default == 0.5


def test_ssd_and_ssdlite_are_torchvisions() -> None:
    ssd = inspect.signature(detection.ssd.SSD).parameters
    own = tuple(ssd[name].default for name in ("nms_thresh", "score_thresh", "detections_per_img"))
    assert numbers(TorchvisionModel("ssd_tiny", nc=2, verbose=False)) == own == (0.45, 0.01, 200)
    lite = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    own = (lite.nms_thresh, lite.score_thresh, lite.detections_per_img)
    assert numbers(TorchvisionModel("ssdlite320_mobilenet_v3_large", nc=2, verbose=False)) == own == (0.55, 0.001, 300)
