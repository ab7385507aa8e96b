"""The tables and figures of the papers as grids, in two sizes: `rebalance paper brl.table4 data=my.yaml preset=cpu`.

A study is a list of *cells*: grids that are run into one folder with one report. A cell names its detector by family;
which one that is, and the budget, is the size's.

* `cpu`: detectors and a schedule for two cores. It shows which way a method moves the figures, not where they end.
* `gpu`: the papers' detectors and schedules, as near as Ultralytics' flags come; what differs is in each row's note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rebalance.data.protocols import uses_rate
from rebalance.errors import ConfigError, nearest
from rebalance.experiments.presets import PRESETS
from rebalance.report.papers import family

Cell = Mapping[str, str]

SIZES = ("cpu", "gpu")
FOUR = "normal,easy,hard,extreme"
RATES = "0,0.1,0.2,0.3,0.4,0.5"  # nested: one label seed
GAMMAS = "0,1,2,3,4,5,6,7,8"

# Detector of a cell -> its `model=` in each size. `retinanet-coco` is the one of the BRL paper's COCO rows; `-600` and
# `-1x` are Residual Objectness': shorter sides of 600 pixels in its ablations, of 800 in its results.
MODELS: Mapping[str, Mapping[str, str]] = {
    "cpu": {
        "retinanet": "retinanet_tiny",
        "retinanet-coco": "retinanet_tiny",
        "fasterrcnn": "fasterrcnn_tiny",
        "ssd": "ssd_tiny",
        "yolov5": "yolov5n.yaml",
        "retinanet-600": "retinanet_tiny",
        "retinanet-1x": "retinanet_tiny",
        "fasterrcnn-1x": "fasterrcnn_tiny",
        "yolov3": "yolov3-tiny.yaml",
    },
    "gpu": {
        "retinanet": "retinanet_resnet101_fpn",
        "retinanet-coco": "retinanet_resnet50_fpn",
        "fasterrcnn": "fasterrcnn_resnet101_fpn",
        "ssd": "ssd_mobilenet_v1",
        "yolov5": "yolov5s.yaml",
        "retinanet-600": "retinanet_resnet50_fpn",
        "retinanet-1x": "retinanet_resnet50_fpn",
        "fasterrcnn-1x": "fasterrcnn_resnet50_fpn",
        "yolov3": "yolov3.yaml",
    },
}

_SERIES = ("model", "head", "data", "obj_drop", "box_drop", "series")  # of the benchmark's presets
_YOLO_CPU = {key: text for key, text in PRESETS["cpu"].items() if key not in _SERIES}
_CPU = {
    **_YOLO_CPU,
    "batch": "16",
    "nbs": "16",
    "lr0": "0.002",
}
_MMDETECTION = {
    "imgsz": "800",
    "epochs": "12",
    "batch": "16",
    "nbs": "16",
    "optimizer": "SGD",
    "lr0": "0.01",
    "lrf": "0.01",
    "momentum": "0.9",
    "weight_decay": "0.0001",
    "warmup_epochs": "0.5",  # 500 steps of 16 images in the 16551 of VOC
    "mosaic": "0",
    "hsv_h": "0",
    "hsv_s": "0",
    "hsv_v": "0",
    "translate": "0",
    "scale": "0",
    "fliplr": "0.5",
    "val": "False",
    "seeds": "0,1,2",
}
_SSD = {
    "imgsz": "320",
    "epochs": "200",  # 100 000 steps of 24 images are 208 epochs of VOC 2012's 11540
    "batch": "24",
    "nbs": "24",
    "optimizer": "SGD",
    "lr0": "0.004",
    "cos_lr": "True",
    "mosaic": "0",
    "val": "False",
    "seeds": "0,1,2",
}
_YOLOV5 = {key: text for key, text in PRESETS["full"].items() if key not in _SERIES}
_DETECTRON = {**_MMDETECTION, "imgsz": "1344", "warmup_epochs": "0.07"}  # 500 steps of 16 of COCO's 118287 images
_DARKNET = {"imgsz": "320", "epochs": "273", "batch": "64", "nbs": "64", "seeds": "0,1,2"}  # 500200 steps of 64 images

# Detector of a cell -> schedule in each size
SCHEDULES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "cpu": {
        **dict.fromkeys(MODELS["cpu"], _CPU),
        "yolov5": _YOLO_CPU,
        "yolov3": _YOLO_CPU,
    },
    "gpu": {
        **dict.fromkeys(MODELS["gpu"], _MMDETECTION),
        "ssd": _SSD,
        "yolov5": _YOLOV5,
        "retinanet-600": {**_DETECTRON, "imgsz": "1024"},  # sides of 600 and at most 1000
        "retinanet-1x": _DETECTRON,
        "fasterrcnn-1x": {**_DETECTRON, "lr0": "0.02"},
        "yolov3": _DARKNET,
    },
}


@dataclass(frozen=True)
class Study:
    """One table or figure of a paper.

    Attributes:
        key: as typed.
        paper: of `rebalance.report.papers.TITLES`.
        title: the paper's name for it.
        compared: what is compared.
        cells: grids, each with `detector` (a key of MODELS) and what it varies; () for a plot of a function.
        tables: the paper's tables whose numbers stand beside ours.
        baseline: the loss that the others are compared with.
        figures: plots of the report that are the point of it: rates, gamma, iou; or of a function: brl, focal.
        note: what differs from the paper in size `gpu`.
        runs_of: another study whose runs these are.
    """

    key: str
    paper: str
    title: str
    compared: str
    cells: tuple[Cell, ...] = ()
    tables: tuple[str, ...] = ()
    baseline: str = ""
    figures: tuple[str, ...] = ()
    note: str = ""
    runs_of: str = ""


_BRL = (
    "Ultralytics' schedule, not mmdetection's: the rate falls linearly instead of in steps, images are letterboxed to "
    "800 pixels, gradients are clipped as the host does; the paper does not state image size or rate."
)
_FROM_COCO = (
    "The paper fine-tunes for 100 000 steps from COCO weights, which ssd_mobilenet_v1 has none of here "
    "(model=ssdlite320_mobilenet_v3_large pretrained=coco has); optimizer, rate and batch are not stated there, "
    "300 pixels become 320."
)
_DUSIA = "YOLOv5 of Ultralytics 8 with the anchor head, its own hyperparameters; the paper tuned them on DUSIA."
_RESOBJ = (
    "Detectron's schedule of 12 epochs as far as Ultralytics' flags come: the rate falls linearly instead of in steps, "
    "images are letterboxed to their longer side, gradients are clipped as the host does; what the residual losses are "
    "divided by is not stated in the paper, here it is what the objectness loss is divided by."
)
_ABLATED: Cell = {"detector": "retinanet-600", "loss": "resobj", "resobj_steps": "1"}
_FOCAL: Cell = {"detector": "retinanet", "loss": "focal", "protocol": "extreme"}
_BRL_ROWS: Cell = {"detector": "retinanet", "loss": "brl", "protocol": "extreme"}

STUDIES: tuple[Study, ...] = (
    Study(
        "brl.table1", "brl", "Table 1", "focal loss on normal, easy, hard and extreme labels",
        cells=({"detector": "retinanet", "loss": "focal", "protocol": FOUR},),
        tables=("1",), baseline="focal", note=_BRL,
    ),
    Study(
        "brl.table2", "brl", "Table 2", "BRL below an overlap of 0.2, 0.1 and 0.05 on extreme labels, and focal loss",
        cells=(_FOCAL, {**_BRL_ROWS, "brl_iou": "0.2,0.1,0.05", "brl_t": "0.5", "brl_weight": "0.5"}),
        tables=("1", "2"), baseline="focal", note=_BRL,
    ),
    Study(
        "brl.table3", "brl", "Table 3", "BRL's threshold t, BRL- and weight on extreme labels, and focal loss",
        cells=(
            _FOCAL,
            {**_BRL_ROWS, "brl_t": "0,0.1,0.25,0.5", "brl_weight": "0.5"},
            {**_BRL_ROWS, "brl_t": "0.5", "brl_weight": "0.5", "brl_beta": "0"},
            {**_BRL_ROWS, "brl_t": "0.5", "brl_weight": "1,0.5,0.25,0.1,0.01"},
        ),
        tables=("1", "3a", "3b"), baseline="focal", note=_BRL,
    ),
    Study(
        "brl.table4", "brl", "Table 4", "GHM, OHEM on Faster R-CNN and BRL on the four sets and on half of each class",
        cells=(
            {"detector": "retinanet", "loss": "focal,ghm,brl", "protocol": FOUR},
            {"detector": "fasterrcnn", "loss": "ohem", "protocol": FOUR},
            {"detector": "retinanet-coco", "loss": "focal,brl", "protocol": "per_class", "rate": "0.5"},
        ),
        tables=("1", "4"), baseline="focal",
        note=_BRL + " The rows on half of each class are COCO's in the paper: brl.coco50 runs them alone, on data of "
        "their own. focal is its Table 1.",
    ),
    Study(
        "brl.coco50", "brl", "Table 4, COCO-50 %", "focal loss and BRL with half of the labels of each class",
        cells=({"detector": "retinanet-coco", "loss": "focal,brl", "protocol": "per_class", "rate": "0.5"},),
        tables=("4",), baseline="focal", note=_BRL,
    ),
    Study(
        "brl.fig2", "brl", "Figure 2", "the loss of a confusion candidate, focal and BRL (a function: no training)",
        figures=("brl",),
    ),
    Study(
        "brl.fig3", "brl", "Figure 3", "mAP over IoU thresholds on extreme labels: focal, GHM, BRL, OHEM",
        cells=(
            {"detector": "retinanet", "loss": "focal,ghm,brl", "protocol": "extreme"},
            {"detector": "fasterrcnn", "loss": "ohem", "protocol": "extreme"},
        ),
        tables=("1", "4"), baseline="focal", figures=("iou",), note=_BRL,
    ),
    Study(
        "label-noise.fig3", "label-noise", "Figure 3", "mined CE, unmined CE, focal loss over 0 to 50 % missing labels",
        cells=(
            {"detector": "ssd", "loss": "ohem,bce", "protocol": "percent", "rate": RATES},
            {
                "detector": "ssd", "loss": "focal", "focal_alpha": "0.75", "focal_gamma": "2",
                "protocol": "percent", "rate": RATES,
            },
        ),
        tables=("fig3",), baseline="ohem", figures=("rates",),
        note=_FROM_COCO + " Its CE was mined, its focal loss was not; the unmined CE is added here.",
    ),
    Study(
        "label-noise.fig4", "label-noise", "Figure 4", "the relative drop of mAP in the runs of Figure 3",
        runs_of="label-noise.fig3",
    ),
    Study(
        "label-noise.fig5", "label-noise", "Figure 5", "focal loss with gamma 0 to 8 at 50 % missing labels",
        cells=(
            {
                "detector": "ssd", "loss": "focal", "focal_alpha": "0.75", "focal_gamma": GAMMAS,
                "protocol": "percent", "rate": "0.5",
            },
        ),
        tables=("fig5b",), baseline="focal", figures=("gamma",),
        note=_FROM_COCO + " rate=0,0.1,0.5 gives all three curves of the paper.",
    ),
    Study(
        "label-noise.fig6", "label-noise", "Figure 6", "focal loss over the prediction (a function: no training)",
        figures=("focal",),
    ),
    Study(
        "rebalancing.table2", "rebalancing", "Table 2", "removing 0 to 90 % of low-IoU matches from the box loss",
        cells=({"detector": "yolov5", "head": "anchor", "box_drop": "0,0.1,0.25,0.75,0.9"},), note=_DUSIA,
    ),
    Study(
        "rebalancing.table3", "rebalancing", "Table 3", "removing 0 to 90 % of negatives from the objectness loss",
        cells=({"detector": "yolov5", "head": "anchor", "obj_drop": "0,0.1,0.25,0.75,0.9"},), note=_DUSIA,
    ),
    Study(
        "resobj.table1", "residual", "Table 1", "RetinaNet: focal loss and an objectness, each at its best threshold",
        cells=(
            {"detector": "retinanet-600", "loss": "focal", "conf": "0.05", "iou": "0.5"},
            {"detector": "retinanet-600", "loss": "obj", "conf": "0.001", "iou": "0.5"},
        ),
        tables=("1a", "1b"), baseline="focal",
        note=_RESOBJ + " conf=0.1,0.05,0.01,0.005,0.001 gives the paper's other thresholds, each trained anew.",
    ),
    Study(
        "resobj.table2a", "residual", "Table 2a", "the residual losses' gradient into the objectness, or not; one step",
        cells=({**_ABLATED, "resobj_grad": "joint,isolated"},), tables=("2a",), note=_RESOBJ,
    ),
    Study(
        "resobj.table2b", "residual", "Table 2b", "residual subnets on the class tower or on the objectness; one step",
        cells=({**_ABLATED, "resobj_on": "cls,obj"},), tables=("2b",), note=_RESOBJ,
    ),
    Study(
        "resobj.table2c", "residual", "Table 2c", "RetinaNet with focal loss, an objectness, and one to three steps",
        cells=({"detector": "retinanet-600", "loss": "focal,obj"}, {**_ABLATED, "resobj_steps": "1,2,3"}),
        tables=("2c",), baseline="focal", note=_RESOBJ + " Its speed is a Titan X's.",
    ),
    Study(
        "resobj.table3", "residual", "Table 3", "RetinaNet, Faster R-CNN and YOLOv3 with residual objectness and as is",
        cells=(
            {"detector": "retinanet-1x", "loss": "focal,ghm,resobj"},
            {"detector": "fasterrcnn-1x", "loss": "bce,resobj"},
            {"detector": "yolov3", "head": "anchor"},
            {"detector": "yolov3", "loss": "resobj"},
        ),
        tables=("3",),
        note=_RESOBJ + " YOLOv3: Darknet's 273 epochs with Ultralytics' hyperparameters, from scratch, at 320 pixels; "
        "imgsz=608 model=yolov3.yaml is the paper's other size. The paper has GHM with ResNet-101 alone; model= takes "
        "retinanet_resnet101_fpn and fasterrcnn_resnet101_fpn.",
    ),
)  # fmt: skip


def find(key: str) -> Study:
    """Return the study of a key; of one that shows runs of another, the other.

    Raises:
        ConfigError: there is no such study; the nearest is named.
    """
    known = {study.key: study for study in STUDIES}
    if key not in known:
        raise ConfigError(f"there is no '{key}'{nearest(key, known)}; tables and figures: {', '.join(known)}")
    return known[known[key].runs_of or key]


def arguments(study: Study, given: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what to give to `sweep`, cell by cell.

    Args:
        study: one with cells.
        given: `data`, `preset` (cpu or gpu; default cpu), and any key of a sweep, which then replaces the study's in
            every cell. A `model` replaces those of its own family where there are some, else all.

    Raises:
        ConfigError: no data, or no such preset.
    """
    size = given.get("preset", "cpu")
    if size not in SIZES:
        raise ConfigError(f"preset={size} is not one of {', '.join(SIZES)}{nearest(size, SIZES)}")
    if not given.get("data"):
        raise ConfigError(f"data= is missing: rebalance paper {study.key} data=my.yaml")
    over = {key: text for key, text in given.items() if key not in ("preset", "model")}
    families = {family(MODELS[size][cell["detector"]]) for cell in study.cells}
    asked = [name for name in given.get("model", "").split(",") if name]
    cells = []
    for cell in study.cells:
        model = MODELS[size][cell["detector"]]
        fitting = [name for name in asked if family(name) == family(model)]
        others = [name for name in asked if family(name) not in families]
        rated = any(uses_rate(name) for name in over.get("protocol", cell.get("protocol", "")).split(","))
        own = {key: text for key, text in cell.items() if key != "detector" and (key != "rate" or rated)}
        name = {"name": f"{study.key}-{size}", "model": ",".join(fitting or others) or model}
        cells.append({**name, **SCHEDULES[size][cell["detector"]], **own, **over})
    return cells


def about(study: Study, given: Mapping[str, str]) -> dict[str, Any]:
    """Return what a report says about a study, for sweep.json.

    Args:
        study: the study.
        given: as in `arguments`.
    """
    return {
        "key": study.key,
        "title": f"{study.paper}, {study.title}",
        "compared": study.compared,
        "note": study.note if given.get("preset") == "gpu" else "",
        "tables": [[study.paper, table] for table in study.tables],
        "baseline": study.baseline,
        "figures": list(study.figures),
        "given": {key: text for key, text in given.items() if key != "name"},
    }
