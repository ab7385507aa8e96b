"""What works with a checkpoint: a table of clients, each on a small model of every head.

    python scripts/clients.py [out=runs/clients] [only=predict,export onnx] [heads=anchor,retinanet_tiny] [page=<file>]

A cell is `ok` where the client gives what the row says was compared, a line where the model refuses it, and `not
installed` where the client is missing; `only` takes the beginnings of rows' names. <out>/table.md and <out>/table.csv
are the table; what an earlier run has put there, and this one does not try, stays. `page` is a file that gets the table
in the place of its own. What is neither is a fault: it is printed with its traceback, and the exit code is 1.

The models have random weights, spread until they find some boxes; the labels of the images are what they find, moved a
little. So every number that is compared is another one than 0 or 1.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ["YOLO_CONFIG_DIR"] = os.environ.get("YOLO_CONFIG_DIR") or tempfile.mkdtemp(prefix="clients-")
os.environ["YOLO_AUTOINSTALL"] = "false"  # a client that is missing is said to be
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

import cv2
import numpy as np
import torch
import ultralytics
from torchvision.ops import batched_nms, box_convert, box_iou
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER, SETTINGS, YAML

from rebalance import YOLO
from rebalance.errors import RebalanceError
from rebalance.files import write_whole
from rebalance.heads.anchor import AnchorHead
from rebalance.hosts import host_of
from rebalance.hosts.host import remember
from rebalance.recipe import read

SIZE, OTHER, CLASSES = 128, 96, 3
CONF, IOU, ENOUGH = 0.25, 0.7, 4  # thresholds of the host, and boxes of an image that are worth comparing
NEAR, SCORE = 0.5, 0.01  # pixels, and of a score, within which a box is the same
HALF, MORE = 4, 0.1  # times as much in half precision; of its boxes so many more than torch itself loses by it
EIGHT_BITS = 0.2  # of the boxes of random weights that stay with an IoU of 0.5; of the host's own YOLO26 0.23
MNN_HALF = 0.9  # of the boxes of random weights; of trained ones none moves by more than a pixel or so
SPLITS = ("train", "val")
NOT_INSTALLED = "not installed"
START, END = "<!-- the table of scripts/clients.py -->", "<!-- its end -->"  # on the page that holds it
Boxes = torch.Tensor  # (N, 6) corners in pixels, score, class


class Head(NamedTuple):
    """A model, the flags that make its head, and those of a training whose counts a logger is to show."""

    model: str
    flags: Mapping[str, Any]
    train: Mapping[str, Any]
    counts: str


DROP = {"loss": "drop", "obj_drop": 0.5}
HEADS = {
    "stock": Head("yolov8n.yaml", {}, DROP, "drop/"),
    "YOLO26": Head("yolo26n.yaml", {}, DROP, "drop/"),
    "anchor": Head("yolov5n.yaml", {"head": "anchor"}, {**DROP, "autoanchor": False}, "drop/"),
    "resobj": Head("yolov5n.yaml", {"head": "resobj"}, {"autoanchor": False}, "resobj/"),
    "retinanet_tiny": Head("retinanet_tiny", {}, DROP, "drop/"),
    "fasterrcnn_tiny": Head("fasterrcnn_tiny", {}, DROP, "drop/"),
    "ssd_tiny": Head("ssd_tiny", {}, DROP, "drop/"),
}
# The layers that give the class scores
LAST = re.compile(r"\.((one2one_)?cv3\.\d\.2|m\.\d|cls_logits|cls_score|classification_head\.module_list\.\d)$")


class Fault(Exception):  # noqa: N818 - it is what the table is for
    """What a client gave is not what was compared."""


def require(condition: object, text: str) -> None:
    """Raise where it does not hold."""
    if not condition:
        raise Fault(text)


@contextmanager
def said() -> Any:
    """What the host logs, in the place of the screen."""
    lines: list[str] = []
    emit, LOGGER.handle = LOGGER.handle, lambda record: lines.append(record.getMessage())
    with open(os.devnull, "w", encoding="utf-8") as silent, redirect_stdout(silent), redirect_stderr(silent):
        try:
            yield lines
        finally:
            LOGGER.handle = emit


# A model of each head, and images on which it finds something ---------------------------------------------------------


def make_model(head: Head, images: torch.Tensor) -> Any:
    """With random weights, normalisation that fits the images, and class scores spread until there are boxes."""
    torch.manual_seed(0)
    host = host_of(head.model)
    recipe = read(dict(head.flags), host.sites)
    model = host.build(head.model, recipe, nc=CLASSES, ch=3, verbose=False)
    remember(model, recipe)
    model.names, model.task = {i: f"kind{i}" for i in range(CLASSES)}, "detect"
    if getattr(model.model[-1], "reg_max", 1) > 1:  # boxes of some cells, so that they lie within the image
        for branch in getattr(model.model[-1], "cv2", ()):
            falls = -0.5 * torch.arange(model.model[-1].reg_max)
            branch[-1].bias.data = falls.repeat(4)
    if isinstance(model.model[-1], AnchorHead):
        model.model[-1].anchors.mul_(SIZE / 320)
    norms = [(m, m.momentum) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in norms:
        norm.momentum = momentum
    model.eval()
    last = [
        part.weight for name, part in model.model[-1].named_modules()
        if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)) and LAST.search(f".{name}")
    ]  # fmt: skip
    if isinstance(model.model[-1], AnchorHead):  # of its one layer the rows of boxes stay as they are
        last = [p.view(model.model[-1].na, -1, p[0].numel())[:, 4:] for p in last]
    for p in last:
        # the softmax of Faster R-CNN's linear layer begins with a quarter each, which is the threshold
        first = 5.0 if p.ndim == 2 else 0.5
        torch.nn.init.normal_(p, std=first / (p[0, 0] if p.ndim == 3 else p[0]).numel() ** 0.5)
    for _ in range(12):
        if sum(len(found) for found in raw_boxes(model, images)) >= ENOUGH * len(images):
            return model
        with torch.no_grad():
            for p in last:
                p *= 1.5
    raise Fault("the model finds nothing")


@torch.no_grad()
def raw_boxes(model: Any, images: torch.Tensor) -> list[Boxes]:
    """What a model finds, by torchvision's non-maximum suppression: what every prediction is compared with."""
    out = model(images)
    out = (out[0] if isinstance(out, tuple) else out).float()
    found = []
    for one in out:
        if getattr(model, "end2end", False):
            rows = one[one[:, 4] > CONF]
        else:
            score, kind = one[4:].max(0)
            keep = score > CONF
            corners = box_convert(one[:4, keep].T, "cxcywh", "xyxy")
            rows = torch.cat((corners, score[keep, None], kind[keep, None].float()), 1)
            rows = rows[batched_nms(rows[:, :4], rows[:, 4], rows[:, 5], IOU)]
        rows = rows[rows[:, 4].argsort(descending=True)][:300]
        found.append(torch.cat((rows[:, :4].clamp(0, images.shape[-1]), rows[:, 4:]), 1))
    return found


def draw(seed: int, size: int = SIZE) -> Any:
    """An image of shapes, (H, W, 3)."""
    g = np.random.default_rng(seed)
    image = np.full((size, size, 3), g.integers(60, 200, 3), np.uint8)
    for _ in range(8):
        x, y, w, h = (int(value) for value in g.integers(8, size // 2, 4))
        cv2.rectangle(image, (x, y), (x + w, y + h), tuple(int(c) for c in g.integers(0, 255, 3)), -1)
    return cv2.add(image, g.integers(0, 12, image.shape, np.uint8))


class Case:
    """A head, its checkpoint, and the images, video and labels on which its clients are tried."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.head, self.folder = name, HEADS[name], folder
        self.data = folder / "data.yaml"
        self.arrays = [draw(seed) for seed in range(6)]
        self.images = torch.stack([self.tensor(image) for image in self.arrays])
        self.model = make_model(self.head, self.images)
        self.raw = raw_boxes(self.model, self.images)
        self.files = []
        for split in SPLITS:
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True)
            for index, (image, boxes) in enumerate(zip(self.arrays, self.raw, strict=True)):
                self.files.append(folder / "images" / split / f"{index}.png")
                cv2.imwrite(str(self.files[-1]), image)
                (folder / "labels" / split / f"{index}.txt").write_text(self.labels(boxes, index), "utf-8")
        self.files = self.files[: len(self.arrays)]
        names = {i: f"kind{i}" for i in range(CLASSES)}
        YAML.save(self.data, {"path": str(folder), **{split: f"images/{split}" for split in SPLITS}, "names": names})
        self.weights = folder / "model.pt"
        torch.save({"model": deepcopy(self.model), "train_args": {"imgsz": SIZE, "task": "detect"}}, self.weights)
        self.video = folder / "moving.mp4"
        writer = cv2.VideoWriter(str(self.video), cv2.VideoWriter.fourcc(*"mp4v"), 10, (SIZE, SIZE))
        for step in range(8):
            writer.write(np.roll(self.arrays[0], 2 * step, 1))
        writer.release()
        self.exported: dict[str, Path] = {}

    @staticmethod
    def tensor(image: Any) -> torch.Tensor:
        """(3, H, W) RGB in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float() / 255

    @staticmethod
    def labels(boxes: Boxes, index: int) -> str:
        """The boxes, moved a little; every fourth is missing."""
        g, lines = np.random.default_rng(index), []
        for x1, y1, x2, y2, _, kind in [box for k, box in enumerate(boxes.tolist()) if k % 4 != 3]:
            w, h = max(x2 - x1, 4), max(y2 - y1, 4)
            centre = (((a + b) / 2 + g.uniform(-0.1, 0.1) * side) for a, b, side in ((x1, x2, w), (y1, y2, h)))
            row = [*centre, w * g.uniform(0.9, 1.1), h * g.uniform(0.9, 1.1)]
            lines.append(" ".join([str(int(kind)), *(f"{min(max(v / SIZE, 0.01), 0.99):.6f}" for v in row)]))
        return "\n".join(lines) + "\n"

    def truth(self, file: Path) -> Any:
        """(N, 5) class, centre, width, height of the labels of an image; of some there are none."""
        words = (self.folder / "labels" / "val" / f"{file.stem}.txt").read_text("utf-8").split()
        return np.array(words, float).reshape(-1, 5)

    def yolo(self, file: Any = None) -> Any:
        """As a client has it: the host's own class."""
        return ultralytics.YOLO(str(file or self.weights), task="detect")

    @cached_property
    def plain(self) -> list[Boxes]:
        """What `predict` finds in the images."""
        return predict(self.yolo(), [str(file) for file in self.files])

    @cached_property
    def lost_by_half(self) -> float:
        """Part of the boxes that torch's own half precision puts elsewhere; with random weights it is no small one."""
        half = deepcopy(self.model).half()
        lost, total = apart(raw_boxes(half, self.images.half()), self.raw, HALF)
        return lost / total

    @cached_property
    def trained(self) -> Path:
        """A training of an epoch, with whatever loggers are installed."""
        SETTINGS.update({"tensorboard": True, "mlflow": True})  # before the host loads its loggers
        return self.train("run")

    def train(self, name: str, **more: Any) -> Path:
        """A training of an epoch; its folder. What MLflow keeps is beside it, not where the table is made."""
        os.environ["MLFLOW_TRACKING_URI"] = (self.folder / "mlflow").as_uri()
        YOLO(str(self.weights)).train(
            data=str(self.data), epochs=1, imgsz=64, batch=6, nbs=6, workers=0, plots=False, device="cpu",
            project=str(self.folder / "train"), name=name, optimizer="SGD", lr0=1e-4, **self.head.train, **more,
        )  # fmt: skip
        return self.folder / "train" / name


def predict(model: Any, source: Any, **more: Any) -> list[Boxes]:
    """Boxes of each image, as the host gives them."""
    given = {"imgsz": SIZE, "conf": CONF, "iou": IOU, "verbose": False, "device": "cpu", **more}
    return [result.boxes.data.cpu() for result in model.predict(source, **given)]


def same(found: Sequence[Boxes], expected: Sequence[Boxes], loose: float = 1, few: float = 0) -> None:
    """Require the same boxes; a score near the threshold may be on either side, and of all a part `few` may differ."""
    lost, total = apart(found, expected, loose)
    require(total, "no boxes")
    require(lost <= few * total, f"{lost} of {total} boxes differ")


def apart(found: Sequence[Boxes], expected: Sequence[Boxes], loose: float) -> tuple[int, int]:
    """Number of boxes that one of both has alone, and of all."""
    require(len(found) == len(expected), f"{len(found)} results of {len(expected)} images")
    lost, total = 0, 0
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in ((one, other), (other, one)):
            mine = mine[mine[:, 4] > CONF + loose * SCORE]
            total += len(mine)
            if len(mine) and len(theirs):
                by = (mine[:, None] - theirs[None]).abs()
                fits = (by[..., :4].amax(2) <= loose * NEAR) & (by[..., 4] <= loose * SCORE) & (by[..., 5] == 0)
                lost += int((~fits.any(1)).sum())
            else:
                lost += len(mine)
    return lost, total


# Predict --------------------------------------------------------------------------------------------------------------


def sources(case: Case, make: Callable[[Case], Any], **more: Any) -> None:
    expected = case.raw
    source = make(case)
    if isinstance(source, (str, Path)) and Path(source).is_file():
        expected = expected[:1]
    same(predict(case.yolo(), source, **more), expected)


def video(case: Case) -> None:
    reader, frames = cv2.VideoCapture(str(case.video)), []
    while (read_one := reader.read())[0]:
        frames.append(case.tensor(read_one[1]))
    same(predict(case.yolo(), str(case.video)), raw_boxes(case.model, torch.stack(frames)))


def embed(case: Case) -> None:
    alone = [case.yolo().embed(str(file), imgsz=SIZE, verbose=False)[0] for file in case.files[:3]]
    together = case.yolo().embed([str(file) for file in case.files[:3]], imgsz=SIZE, verbose=False)
    for one, other in zip(alone, together, strict=True):
        require(one.ndim == 1 and one.std() > 0, "no vector")
        require((one - other).norm() < 1e-3 * one.norm(), "a vector depends on the other images")
    require((alone[0] - alone[1]).norm() > 1e-2 * alone[0].norm(), "all images have one vector")


def visualize(case: Case) -> None:
    out = case.folder / "visualize"
    predict(case.yolo(), str(case.files[0]), visualize=True, project=str(out), name="run")
    require([file for file in out.rglob("*") if file.suffix in (".png", ".jpg", ".npy")], "no picture was made")


def augment(case: Case) -> str:
    with said() as lines:
        found = predict(case.yolo(), [str(file) for file in case.files], augment=True)
    if told := next((line for line in lines if "augment" in line), ""):
        same(found, case.plain)
        return one_line(told)
    require(any(len(boxes) for boxes in found), "no boxes")
    return ""


def saved(case: Case) -> None:
    out = case.folder / "saved"
    more = {"save": True, "save_txt": True, "save_conf": True, "save_crop": True, "project": str(out), "name": "run"}
    found = predict(case.yolo(), str(case.files[0]), **more)[0]
    rows = np.loadtxt(out / "run" / "labels" / "0.txt", ndmin=2)
    centres = box_convert(torch.tensor(rows[:, 1:5]) * SIZE, "cxcywh", "xyxy")
    same([torch.cat((centres, torch.tensor(rows[:, [5, 0]])), 1)], [found])
    require(list((out / "run").glob("crops/*/*.jpg")), "no crop was kept")


def chosen(case: Case) -> None:
    files = [str(file) for file in case.files]
    for kind in range(CLASSES):
        found = predict(case.yolo(), files, classes=[kind])
        require(all((boxes[:, 5] == kind).all() for boxes in found), "another class was found")
    few = predict(case.yolo(), files, max_det=2)
    same(few, [boxes[boxes[:, 4].argsort(descending=True)][:2] for boxes in case.raw])


# Track ----------------------------------------------------------------------------------------------------------------

TRACKERS = sorted(file.stem for file in (Path(ultralytics.__file__).parent / "cfg" / "trackers").glob("*.yaml"))
REID = [
    name for name in TRACKERS
    if "with_reid" in YAML.load(Path(ultralytics.__file__).parent / "cfg" / "trackers" / f"{name}.yaml")
]  # fmt: skip


def tracker_file(case: Case, name: str, **changed: Any) -> str:
    """A tracker's file with other values; thresholds so low that it follows what the model finds."""
    told = YAML.load(Path(ultralytics.__file__).parent / "cfg" / "trackers" / f"{name}.yaml")
    file = case.folder / f"{name}.yaml"
    YAML.save(file, {**told, "track_high_thresh": CONF, "new_track_thresh": CONF, "min_track_len": 1, **changed})
    return str(file)


def track(case: Case, name: str, reid: str = "") -> None:
    changed = {"with_reid": True, "model": classifier(case) if reid == "model" else reid} if reid else {}
    given = {"imgsz": SIZE, "conf": CONF, "iou": IOU, "verbose": False, "device": "cpu", "max_det": 20}
    results = list(case.yolo().track(str(case.video), tracker=tracker_file(case, name, **changed), **given))
    plain = predict(case.yolo(), str(case.video), max_det=20)
    frames = [result.boxes for result in results]
    require(any(boxes.is_track for boxes in frames), "nothing has a number")
    numbers: dict[int, int] = {}
    for boxes, found in zip(frames, plain, strict=True):
        if boxes.is_track:
            scores = found[:, 4]
            for number, score in zip(boxes.id.int().tolist(), boxes.conf.tolist(), strict=True):
                numbers[number] = numbers.get(number, 0) + 1
                require((scores - score).abs().min() < SCORE, "a track has a score that no box has")
    require(max(numbers.values()) >= 3, "nothing was followed for three frames")


def classifier(case: Case) -> str:
    """A small classifier, whose features may re-identify what is tracked."""
    file = case.folder / "classifier.pt"
    if not file.is_file():
        small = {"backbone": [[-1, 1, "Conv", [8, 3, 4]], [-1, 1, "Conv", [16, 3, 4]]]}
        YAML.save(case.folder / "small-cls.yaml", {"nc": 2, **small, "head": [[-1, 1, "Classify", ["nc"]]]})
        ultralytics.YOLO(str(case.folder / "small-cls.yaml"), task="classify").save(str(file))
    return str(file)


# Val ------------------------------------------------------------------------------------------------------------------


def validate(case: Case, file: Any = None, **more: Any) -> Any:
    given = {"data": str(case.data), "imgsz": SIZE, "batch": 3, "workers": 0, "plots": False, "verbose": False}
    # not rect, which pads a square image to the next multiple of the stride and a half: a larger one, of other boxes
    given |= {"rect": False, "device": "cpu", "project": str(case.folder / "val"), "name": "run", "exist_ok": True}
    return case.yolo(file).val(**{**given, **more})


def val(case: Case, change: float = 0, **more: Any) -> None:
    plain, other = validate(case).box, validate(case, **more).box
    require(0.1 < plain.map50 < 1, f"mAP50 is {plain.map50:.3f}")
    require(abs(plain.map - other.map) <= change, f"mAP is {other.map:.3f}, without it {plain.map:.3f}")


def val_augment(case: Case) -> str:
    plain = validate(case).box
    with said() as lines:
        other = validate(case, augment=True).box
    if told := next((line for line in lines if "augment" in line), ""):
        require(plain.map == other.map, "mAP is another one")
        return one_line(told)
    require(other.map50 > 0, "mAP50 is 0")
    return ""


def val_kept(case: Case) -> None:
    validate(case, save_json=True, save_txt=True, save_conf=True, plots=True, name="kept")
    out = case.folder / "val" / "kept"
    require(json.loads((out / "predictions.json").read_text("utf-8")), "no predictions")
    require(len(list((out / "labels").iterdir())) == len(case.files), "labels of some images are missing")
    require((out / "confusion_matrix.png").is_file() and (out / "BoxPR_curve.png").is_file(), "no plots")


def val_chosen(case: Case) -> None:
    every = validate(case)
    one = validate(case, classes=[0])
    require(abs(one.box.maps[0] - every.box.maps[0]) < 1e-6, "the mAP of a class depends on the other classes")
    single = validate(case, single_cls=True).box
    require(0 < single.map50 <= 1, f"mAP50 of one class is {single.map50:.3f}")


# Exports --------------------------------------------------------------------------------------------------------------

HOW = {
    "onnx": ("onnx", "onnxruntime"), "torchscript": (), "openvino": ("openvino",), "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN", "onnx"),
}  # fmt: skip


def export(case: Case, form: str, **more: Any) -> Path:
    """The exported file, made once."""
    key = f"{form} {more}"
    if key not in case.exported:
        folder = Path(tempfile.mkdtemp(dir=case.folder, prefix="export"))
        copied = folder / "model.pt"
        copied.write_bytes(case.weights.read_bytes())
        case.exported[key] = Path(case.yolo(copied).export(format=form, imgsz=SIZE, device="cpu", **more))
    return case.exported[key]


@contextmanager
def single_precision() -> Any:
    """Let OpenVINO compute in what the file holds; by itself it takes bfloat16 where the processor has it."""
    if find_spec("openvino") is None:
        yield
        return
    import openvino

    stock = openvino.Core.compile_model

    def compiled(core: Any, model: Any, device_name: Any = None, config: Any = None, **more: Any) -> Any:
        return stock(core, model, device_name, {**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **more)

    openvino.Core.compile_model = compiled
    try:
        yield
    finally:
        openvino.Core.compile_model = stock


@single_precision()
def exported(case: Case, form: str, **more: Any) -> str:
    """The boxes of the checkpoint, at the number of images of the export and at others."""
    model, files = case.yolo(export(case, form, **more)), [str(file) for file in case.files]
    near = {"loose": HALF, "few": case.lost_by_half + MORE} if more.get("half") else {}
    told = ""
    if form == "mnn" and more.get("half"):
        lost, total = apart(predict(model, str(case.files[0].parent), batch=1, rect=False), case.plain, HALF)
        if lost > near["few"] * total:
            near["few"], told = MNN_HALF, "half precision of MNN moves more boxes than torch's: those of any head"
    folder, count = str(case.files[0].parent), more.get("batch", 1)
    same(predict(model, folder, batch=count, rect=False), case.plain, **near)
    same(predict(model, folder, batch=count, rect=False, imgsz=OTHER), at(case, model, folder), **near)
    for few in (1, 2, 3):  # a list is given to the model whole
        same(predict(model, files[:few], rect=False), case.plain[:few], **near)
    return told


@single_precision()
def quantized(case: Case, form: str) -> None:
    """In eight bits an export's own boxes at other numbers of images; of the checkpoint's at least some."""
    data = {"data": str(case.data)} if form != "mnn" else {}  # which rounds weights alone, and needs no images
    model, files = case.yolo(export(case, form, quantize=8, **data)), [str(file) for file in case.files]
    own = predict(model, str(case.files[0].parent), batch=1, rect=False)
    for few in (1, 2, 3):
        same(predict(model, files[:few], rect=False), own[:few])
    best = [
        box_iou(there[:, :4], found[:, :4]).amax(1) if len(found) else there.new_zeros(len(there))
        for there, found in zip(case.plain, own, strict=True)
    ]
    share = float((torch.cat(best) >= 0.5).float().mean())
    require(share >= EIGHT_BITS, f"{share:.2f} of the checkpoint's boxes are found")


def at(case: Case, model: Any, source: str) -> list[Boxes]:
    """What the checkpoint finds at the size that the exported file, which was asked for another one, has taken."""
    return predict(case.yolo(), source, imgsz=model.predictor.args.imgsz, rect=False)


def val_export(case: Case) -> None:
    plain = validate(case, rect=False).box
    other = validate(case, export(case, "onnx"), batch=1).box
    require(abs(plain.map50 - other.map50) < 0.02, f"mAP50 is {other.map50:.3f}, of the checkpoint {plain.map50:.3f}")


def opencv(case: Case) -> None:
    model = case.yolo(export(case, "onnx"))
    same(predict(model, str(case.files[0]), dnn=True, rect=False), case.plain[:1])


def benchmark(case: Case) -> None:
    before = Path.cwd()
    os.chdir(case.folder)
    try:
        found = case.yolo().benchmark(data=str(case.data), imgsz=SIZE, device="cpu", format="onnx", verbose=False)
    finally:
        os.chdir(before)
    text = str(found)
    require("❌" not in text, f"a format failed: {text}")


# Other libraries ------------------------------------------------------------------------------------------------------


def result(case: Case, index: int = 0) -> Any:
    return case.yolo().predict(str(case.files[index]), imgsz=SIZE, conf=CONF, verbose=False)[0]


def supervision(case: Case) -> None:
    import supervision as sv

    found = sv.Detections.from_ultralytics(result(case))
    rows = np.column_stack((found.xyxy, found.confidence, found.class_id))
    same([torch.from_numpy(rows)], case.plain[:1])
    require(set(found.data["class_name"]) <= {f"kind{i}" for i in range(CLASSES)}, "other class names")


def sahi(case: Case) -> None:
    from sahi import AutoDetectionModel
    from sahi.predict import get_prediction, get_sliced_prediction

    model = AutoDetectionModel.from_pretrained(
        model_type="ultralytics", model_path=str(case.weights), confidence_threshold=CONF, device="cpu", image_size=SIZE
    )

    def rows(found: Any) -> Boxes:
        return torch.tensor([
            [*one.bbox.to_xyxy(), one.score.value, one.category.id] for one in found.object_prediction_list
        ]).view(-1, 6)  # fmt: skip

    same([rows(get_prediction(str(case.files[0]), model))], case.plain[:1], loose=3)  # whole pixels
    sliced = get_sliced_prediction(str(case.files[0]), model, slice_height=96, slice_width=96, verbose=0)
    require(len(sliced.object_prediction_list), "nothing in the slices")


def fiftyone(case: Case) -> None:
    import fiftyone.utils.ultralytics as fou

    found = fou.to_detections(result(case)).detections
    rows = [
        [x * SIZE, y * SIZE, (x + w) * SIZE, (y + h) * SIZE, one.confidence, int(one.label.removeprefix("kind"))]
        for one in found for x, y, w, h in [one.bounding_box]
    ]  # fmt: skip
    same([torch.tensor(rows)], case.plain[:1])


def cleanlab(case: Case) -> None:
    from cleanlab.object_detection.rank import compute_badloc_box_scores

    labels, predictions = [], []
    for file, boxes in zip(case.files, case.plain, strict=True):
        if len(table := case.truth(file)):
            corners = box_convert(torch.tensor(table[:, 1:]) * SIZE, "cxcywh", "xyxy").numpy()
            labels.append({"bboxes": corners, "labels": table[:, 0].astype(int)})
            found = boxes.double().numpy()
            predictions.append(np.array([found[found[:, 5] == k][:, :5] for k in range(CLASSES)], dtype=object))

    def worth(table: Any) -> float:
        scores = compute_badloc_box_scores(labels=table, predictions=predictions, low_probability_threshold=CONF)
        return float(np.concatenate(scores).mean())

    def moved(corners: Any) -> Any:
        return corners + (corners[:, 2:] - corners[:, :2])[:, [0, 1, 0, 1]] / 2

    good, bad = worth(labels), worth([{**one, "bboxes": moved(one["bboxes"])} for one in labels])
    require(good > bad + 0.1, f"labels in their place are worth {good:.3f}, others {bad:.3f}")


class Inside(DetectionValidator):
    """As the host's, of boxes that are cut off at the image's border, as they are in its JSON file."""

    def postprocess(self, preds: Any) -> Any:
        found = super().postprocess(preds)
        for one in found:
            one["bboxes"] = one["bboxes"].clamp(0, SIZE)
        return found


def coco(case: Case) -> None:
    metrics = validate(case, save_json=True, name="coco", validator=Inside).box
    found = json.loads((case.folder / "val" / "coco" / "predictions.json").read_text("utf-8"))
    images, boxes = [], []
    for file in case.files:
        images.append({"id": int(file.stem), "file_name": file.name, "width": SIZE, "height": SIZE})
        for kind, x, y, w, h in case.truth(file):
            box = [float(v) * SIZE for v in (x - w / 2, y - h / 2, w, h)]
            boxes.append({
                "id": len(boxes) + 1, "image_id": int(file.stem), "category_id": int(kind) + 1, "iscrowd": 0,
                "bbox": box, "area": box[2] * box[3],
            })  # fmt: skip
    truth = case.folder / "truth.json"
    kinds = sorted({one["category_id"] for one in boxes})
    told = {"images": images, "annotations": boxes, "categories": [{"id": k, "name": f"kind{k - 1}"} for k in kinds]}
    truth.write_text(json.dumps(told), "utf-8")
    values = []
    for module, evaluator in (("pycocotools", "COCOeval"), ("faster_coco_eval", "COCOeval_faster")):
        if find_spec(module) is None:
            continue
        if module == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
        labels = COCO(str(truth))
        made = COCOeval(labels, labels.loadRes([dict(one) for one in found]), "bbox")
        made.params.maxDets = [1, 10, 300]
        made.evaluate()
        made.accumulate()
        precision = made.eval["precision"][..., 0, 2]
        values.append(float(precision[precision > -1].mean()))
        require(abs(values[-1] - metrics.map) < 0.01, f"{evaluator}: mAP is {values[-1]:.3f}, here {metrics.map:.3f}")
    require(max(values) - min(values) < 1e-6, "two libraries differ")


def last_row(run: Path) -> dict[str, float]:
    with (run / "results.csv").open(encoding="utf-8") as file:
        return {k.strip(): float(v) for k, v in list(csv.DictReader(file))[-1].items()}


def logged(case: Case, found: Callable[[Case], Mapping[str, float]]) -> None:
    expected = {k: v for k, v in last_row(case.trained).items() if k.startswith(case.head.counts)}
    require(expected, f"results.csv has nothing of {case.head.counts}")
    for name, value in found(case).items():
        if name in expected:
            require(abs(expected.pop(name) - value) <= 1e-4 * max(1, abs(value)), f"{name} is {value}")
    require(not expected, f"missing: {', '.join(expected)}")


def tensorboard(case: Case) -> dict[str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(case.trained))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def mlflow(case: Case) -> dict[str, float]:
    case.trained  # noqa: B018 - it is made when it is asked for
    found = {}
    for file in (case.folder / "mlflow").rglob("metrics/**/*"):
        if file.is_file():
            name = file.relative_to(next(p for p in file.parents if p.name == "metrics")).as_posix()
            found[name] = float(file.read_text("utf-8").splitlines()[-1].split()[1])
    return found


# Python ---------------------------------------------------------------------------------------------------------------


def compiled(case: Case) -> None:
    out = torch.compile(deepcopy(case.model).fuse(verbose=False), backend="aot_eager")
    same(raw_boxes(out, case.images), case.raw)


@contextmanager
def quick_compiler() -> Any:
    """Let torch trace and compile, but leave out the minutes of its code generator; gives the models compiled."""
    made: list[Any] = []
    stock = torch.compile

    def traced(model: Any = None, **_: Any) -> Any:
        made.append(model)
        return stock(model, backend="aot_eager")

    torch.compile = traced  # type: ignore[assignment]
    try:
        yield made
    finally:
        torch.compile = stock
        require(made, "nothing was compiled")


def predict_compiled(case: Case) -> None:
    with quick_compiler():
        same(predict(case.yolo(), [str(file) for file in case.files], compile=True), case.plain)


def val_compiled(case: Case) -> None:
    with quick_compiler():
        val(case, compile=True, change=1e-3)


def train_compiled(case: Case) -> None:
    """The first epoch's losses, counts and means with and without."""
    plain = last_row(case.train("plain"))
    with quick_compiler():
        other = last_row(case.train("compiled", compile=True))
    for name, value in plain.items():
        if name.startswith(("train/", "drop/", "resobj/")):
            require(abs(other[name] - value) <= 1e-3 * max(1, abs(value)), f"{name} is {other[name]}, not {value}")


def copies(case: Case) -> None:
    same(raw_boxes(deepcopy(case.model), case.images), case.raw)
    same(predict(deepcopy(case.yolo()), [str(file) for file in case.files]), case.plain)


def pickled(case: Case) -> None:
    same(raw_boxes(pickle.loads(pickle.dumps(case.model)), case.images), case.raw)


LONELY = """
import sys
class Away:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "rebalance":
            raise ModuleNotFoundError("No module named 'rebalance'", name="rebalance")
sys.meta_path.insert(0, Away())
import ultralytics
found = ultralytics.YOLO(sys.argv[1], task="detect").predict(sys.argv[2], imgsz=%d, conf=%s, rect=False, verbose=False)
print("BOXES", len(found[0].boxes))
"""


def alone(case: Case, form: str = "") -> str:
    file = export(case, form) if form else case.weights
    code = LONELY % (SIZE, CONF)
    ran = subprocess.run(
        [sys.executable, "-c", code, str(file), str(case.files[0])], capture_output=True, text=True, check=False
    )
    if f"BOXES {len(case.plain[0])}" in ran.stdout:
        return ""
    last = (ran.stderr.strip().splitlines() or ["nothing was found"])[-1]
    require("rebalance" in last, last)
    return "needs this package; an export does not"


# The table ------------------------------------------------------------------------------------------------------------


class Client(NamedTuple):
    """A row."""

    run: Callable[[Case], Any]  # "" or None: ok; else what is said
    compared: str
    needs: tuple[str, ...] = ()


def rows() -> dict[str, Client]:
    """Every client by its name."""
    raw = "boxes of the raw outputs after torchvision's suppression"
    eight = "its own boxes at other numbers of images; a fifth of the checkpoint's at least"
    exact = "boxes of the checkpoint, at other numbers of images, asked for another size"
    return {
        "predict file": Client(partial(sources, make=lambda c: str(c.files[0])), raw),
        "predict folder": Client(partial(sources, make=lambda c: str(c.files[0].parent)), raw),
        "predict list": Client(partial(sources, make=lambda c: [str(file) for file in c.files]), raw),
        "predict list batch=4": Client(partial(sources, make=lambda c: list(map(str, c.files)), batch=4), raw),
        "predict array": Client(partial(sources, make=lambda c: c.arrays), raw),
        "predict tensor": Client(partial(sources, make=lambda c: c.images), raw),
        "predict video": Client(video, raw + ", frame by frame"),
        "predict stream": Client(partial(sources, make=lambda c: str(c.files[0].parent), stream=True), raw),
        "predict classes max_det": Client(chosen, "raw outputs of a class, of the best two"),
        "predict save_txt save_crop": Client(saved, "the file's boxes and the results'"),
        "predict embed": Client(embed, "vectors of single images and of a list"),
        "predict visualize": Client(visualize, "a picture is made"),
        "predict augment": Client(augment, "boxes are found, or what is said is true"),
        **{
            f"track {name}": Client(partial(track, name=name), "scores of the plain predictions, tracks of 3 frames")
            for name in TRACKERS
        },
        **{
            f"track {name} by own features": Client(partial(track, name=name, reid="auto"), "as without")
            for name in REID
        },
        **{
            f"track {name} by a classifier": Client(partial(track, name=name, reid="model"), "as without")
            for name in REID
        },
        "val": Client(val, "mAP of two runs"),
        "val batch=1": Client(partial(val, batch=1), "mAP with batch=3", ),
        "val rect=True": Client(partial(val, rect=True, change=1), "a mAP, of images padded to a larger size"),
        "val half": Client(partial(val, half=True, change=0.02), "mAP without"),
        "val augment": Client(val_augment, "a mAP, or what is said is true"),
        "val agnostic_nms": Client(partial(val, agnostic_nms=True, change=1), "a mAP"),
        "val save_json save_txt plots": Client(val_kept, "files are there, one an image"),
        "val classes single_cls": Client(val_chosen, "mAP of a class alone and among others"),
        **{
            f"export {form}{''.join(f' {k}={v}' for k, v in more.items())}": Client(
                partial(exported, form=form, **more), exact, HOW[form]
            )
            for form, more in EXPORTS
        },
        **{
            f"export {form} quantize=8": Client(partial(quantized, form=form), eight, (*HOW[form], *more))
            for form, more in {"onnx": (), "openvino": ("nncf",), "mnn": ()}.items()
        },
        "val of the ONNX file": Client(val_export, "mAP50 of the checkpoint", HOW["onnx"]),
        "OpenCV's runtime": Client(opencv, "boxes of the checkpoint", ("onnx",)),
        "benchmark": Client(benchmark, "no format fails", HOW["onnx"]),
        "supervision": Client(supervision, "boxes of predict", ("supervision",)),
        "SAHI": Client(sahi, "boxes of predict, and slices", ("sahi",)),
        "FiftyOne": Client(fiftyone, "boxes of predict", ("fiftyone",)),
        "cleanlab": Client(cleanlab, "labels in their place against moved ones", ("cleanlab",)),
        "COCO libraries": Client(coco, "mAP of val, boxes cut off at the image, within 0.01", ("faster_coco_eval",)),
        "TensorBoard": Client(partial(logged, found=tensorboard), "counts and means of results.csv", ("tensorboard",)),
        "MLflow": Client(partial(logged, found=mlflow), "counts and means of results.csv", ("mlflow",)),
        "torch.compile": Client(compiled, raw),
        "predict compile=True": Client(predict_compiled, "boxes of predict; traced, not through the code generator"),
        "val compile=True": Client(val_compiled, "mAP without"),
        "train compile=True": Client(train_compiled, "losses, counts and means of an epoch without"),
        "deepcopy": Client(copies, raw),
        "pickle": Client(pickled, raw),
        "checkpoint without this package": Client(alone, "number of boxes"),
        "ONNX file without this package": Client(partial(alone, form="onnx"), "number of boxes", HOW["onnx"]),
    }  # fmt: skip


EXPORTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("onnx", {}), ("onnx", {"batch": 2}), ("onnx", {"dynamic": True}), ("onnx", {"half": True}),
    ("onnx", {"nms": True}),
    ("torchscript", {}), ("torchscript", {"batch": 2}), ("torchscript", {"dynamic": True}),
    ("torchscript", {"half": True}), ("torchscript", {"nms": True}),
    ("openvino", {}), ("openvino", {"batch": 2}), ("openvino", {"dynamic": True}), ("openvino", {"half": True}),
    ("openvino", {"nms": True}),
    ("ncnn", {}), ("ncnn", {"half": True}), ("mnn", {}), ("mnn", {"batch": 2}), ("mnn", {"dynamic": True}),
    ("mnn", {"half": True}), ("mnn", {"nms": True}),
)  # fmt: skip


def one_line(text: object) -> str:
    """Without line ends and the host's signs."""
    return " ".join(str(text).replace("WARNING ⚠️", "").split())


def cell(client: Client, case: Case) -> tuple[str, str]:
    """What stands in the table, and the traceback of a fault."""
    if missing := [name for name in client.needs if find_spec(name) is None]:
        return f"{NOT_INSTALLED}: {', '.join(missing)}", ""
    try:
        with said(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return client.run(case) or "ok", ""
    except RebalanceError as error:
        return re.sub(
            rf"{re.escape(str(case.folder))}{re.escape(os.sep)}|export[a-z0-9_]{{8}}/", "", one_line(error)
        ), ""
    except Fault as error:
        return f"FAULT: {one_line(error)}", traceback.format_exc()
    except ModuleNotFoundError as error:
        return f"{NOT_INSTALLED}: {error.name}", ""
    except Exception as error:  # of the host, or of the client
        where = traceback.extract_tb(error.__traceback__)[-1]
        if "ultralytics" in where.filename and str(where.line).startswith(("raise", "assert")):
            return one_line(error), ""  # the host refuses it
        return f"FAULT: {type(error).__name__}: {one_line(error)[:300]}", traceback.format_exc()


def markdown(table: Mapping[str, Mapping[str, str]], heads: Sequence[str]) -> str:
    """The table, its lines numbered below it."""
    notes: list[str] = []
    lines = ["| | " + " | ".join(heads) + " | what was compared |", "|---" * (len(heads) + 2) + "|"]
    for name, row in table.items():
        cells = []
        for head in heads:
            told = row[head]
            if told and told != "ok" and not told.startswith(NOT_INSTALLED):
                if told not in notes:
                    notes.append(told)
                told = f"[{notes.index(told) + 1}]"
            cells.append(told or "–")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {row['compared']} |")
    return "\n".join([*lines, "", *(f"{index}. {note}" for index, note in enumerate(notes, 1))]) + "\n"


def main(words: Sequence[str]) -> int:
    """Make the table; 1 where something is wrong."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    clients = every = rows()
    wanted = [part.strip() for part in given.pop("only", "").split(",") if part.strip()]
    heads = [part for part in given.pop("heads", ",".join(HEADS)).split(",") if part]
    out = Path(given.pop("out", "runs/clients"))
    page = Path(given.pop("page")) if "page" in given else None
    unknown = [part for part in wanted if not any(name.startswith(part) for name in clients)]
    unknown += [*(head for head in heads if head not in HEADS), *given, *(word for word in words if "=" not in word)]
    if unknown:
        choices = "out=, page=, only=<row>,…, heads=<head>,…"
        print(f"clients: error: {unknown[0]} is none of {choices}; rows: {', '.join(clients)}", file=sys.stderr)
        return 2
    clients = {k: v for k, v in clients.items() if not wanted or any(k.startswith(part) for part in wanted)}
    torch.set_num_threads(1)
    table: dict[str, dict[str, str]] = {name: {} for name in every}
    if (file := out / "table.csv").is_file():
        for row in csv.DictReader(file.read_text("utf-8").splitlines()):
            table.get(row["client"], {}).update(row)
    wrong = 0
    for head in heads:
        with tempfile.TemporaryDirectory() as work:
            case = Case(head, Path(work))
            for name, client in clients.items():
                told, trace = cell(client, case)
                table[name][head] = told.replace(work, "…")
                wrong += bool(trace)
                print(f"{head}, {name}: {table[name][head]}\n{trace}".rstrip(), flush=True)
    tried = [head for head in HEADS if any(head in row for row in table.values())]
    shown = {name: {**dict.fromkeys(tried, ""), **row, "compared": every[name].compared} for name, row in table.items()}
    text = markdown({name: row for name, row in shown.items() if any(row[head] for head in tried)}, tried)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "table.md", text.encode())
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["client", *tried, "what was compared"])
    writer.writerows([name, *(row[head] for head in tried), row["compared"]] for name, row in shown.items())
    write_whole(file, lines.getvalue().encode())
    if page:
        before, start, rest = page.read_text("utf-8").partition(START)
        write_whole(page, f"{before}{start}\n{text}{rest[rest.index(END) :]}".encode())
    print(f"{out / 'table.md'}: {len(clients)} rows tried, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
