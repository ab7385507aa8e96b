"""Damaged input for everything that reads input: `python scripts/fuzz.py seeds=0,1 inputs=100000 only=labels,voc`.

Each of SURFACES is a small input that is right and the command, or the function, that reads it. A try damages the
input at random and looks at what comes of it. Right is: it is read, or it is refused in one line (exit code 2). Wrong:

    a traceback; a message of several lines; more than `seconds`; memory beyond `memory_gb`
    anything written, removed or renamed outside the folder that the command may write to, the input included
    anything left in that folder after a refusal
    a process that is started, a connection, a module of the input that is run

`inputs` is spread over the surfaces. Ends with the number of tries and of faults; each fault is told once, with the
surface, the seed and the number of the try, which make it again: `only=labels seeds=3 first=17 inputs=1`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import yaml

import rebalance
from rebalance.cli.main import main as command_line
from rebalance.errors import RebalanceError

PACKAGE = Path(rebalance.__file__).parent
# In the place of a word or a number
NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "-0.0", "1e309", "1e-320", "9" * 400, "99999999999", "2147483648", "1_000", "0x10",
    "1,5",
)  # fmt: skip
TEXTS = (
    "", "null", "true", "~", "[]", "{}", "[[0]]", "{a: {b: 1}}", "*", "?", "%s%n", "a" * 5000, "\U0001f41f", "é", "<b>",
    "&amp;", "&x;", "=", "==", "a=b", "-", "--", "#", ";",
)  # fmt: skip
PATHS = ("../../../escape", "../escape.png", "/etc/passwd", "..", ".", "C:\\x", "con", "~/x")
TOKENS = (
    *NUMBERS, *TEXTS, *PATHS, "!!python/object/apply:os.system ['touch pwned']", "!!python/name:os.system",
)  # fmt: skip
# Anywhere
BYTES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\t", b"'", b'"', b"`", b"\\", b"\xc3", b"\xf0\x9f",
    b"]", b"}", b">", b"</", b":", b",", b"#", b"%", b"@",
)  # fmt: skip
PIECES = (
    *BYTES,
    *(piece * 3000 for piece in (b"[", b"{", b"(", b"- ", b"<a>")),
    b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>",
    b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;&a;'>]>",
    b"\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nnames: [*e,*e,*e,*e,*e,*e,*e,*e]\n",
)
# In the place of a part of JSON or YAML
PARTS = (
    *(None, True, False, 0, -1, 3, 0.5, 1e300, 10**30, "", "x", "../x", "a\nb", "\x00", "é" * 300, "<b>|*"),
    *([], {}, [1], ["a"], [[1, 2]], [None], {"a": 1}, {"a": {"b": 1}}, [{"a": 1}]),
)
_TOKEN = re.compile(rb"[A-Za-z_./-]+|[-+]?[0-9][0-9.eE]*")


def damaged(random: Random, data: bytes) -> bytes:
    """Bytes with one to four things wrong; JSON and YAML perhaps in their structure."""
    for kind in (json, yaml) if random.random() < 0.5 else ():
        with contextlib.suppress(Exception):
            content = json.loads(data) if kind is json else yaml.safe_load(data)
            if isinstance(content, (dict, list)):
                for _ in range(random.choice((1, 1, 2))):
                    content = _replaced(random, content)
                return (json.dumps(content) if kind is json else yaml.safe_dump(content)).encode()
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        data = random.choice((_word, _word, _word, _word, _line, _piece, _slice))(random, data)
    return data


def _word(random: Random, data: bytes) -> bytes:
    found = list(_TOKEN.finditer(data))
    if not found:
        return random.choice(TOKENS).encode()
    match = random.choice(found)
    return data[: match.start()] + random.choice(TOKENS).encode() + data[match.end() :]


def _line(random: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    i, j = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.randrange(4)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 2:
        lines.insert(i, lines[j])
    else:
        lines[i] *= 200
    return b"".join(lines)


def _piece(random: Random, data: bytes) -> bytes:
    i = random.randrange(len(data) + 1)
    return data[:i] + random.choice(PIECES) + data[i:]


def _slice(random: Random, data: bytes) -> bytes:
    i, j = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
    kind = random.randrange(4)
    if kind == 0:
        return data[:i]
    if kind == 1:
        return data[:i] + data[j:]
    if kind == 2 or i == len(data):
        return data[:j] + data[i:j] + data[j:]
    return data[:i] + bytes([data[i] ^ 1 << random.randrange(8)]) + data[i + 1 :]


def _replaced(random: Random, content: Any) -> Any:
    """A structure with another thing in the place of a part, without a part, or with one more."""
    places = list(_places(content))
    *way, last = random.choice(places) if places else (None,)
    if last is None:
        return random.choice(PARTS)
    copied = json.loads(json.dumps(content, default=str))
    into = copied
    for key in way:
        into = into[key if isinstance(into, list) else str(key)]
    if isinstance(into, dict):
        last = str(last)
    kind = random.random()
    if kind < 0.7:
        into[last] = random.choice(PARTS)
    elif kind < 0.85 or isinstance(into, list):
        del into[last]
    else:
        into[random.choice((f"{last} ", "x", "", "../x", "0", "-1"))] = into[last]
    return copied


def _places(content: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, item in items:
        yield (*way, key)
        yield from _places(item, (*way, key))


# What is read ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """Something that reads input.

    Attributes:
        files: path below the input folder -> content; those that begin with `damage` are damaged, one at a time.
        run: of the input folder and the folder that it may write to: an exit code, or it raises a RebalanceError.
        damage: see `files`; "" for any of them but pictures.
        keeps: whether a refusal may leave something in the folder that it may write to.
        settle: what is done to the input folder once a file in it is damaged.
    """

    files: Mapping[str, bytes]
    run: Callable[[Path, Path, Random], int | None]
    damage: str | tuple[str, ...] = ""
    keeps: bool = False
    settle: Callable[[Path], None] | None = None


def _commands(*lines: str) -> Callable[[Path, Path, Random], int]:
    """One of some commands, in which {source} and {out} stand for the folders."""

    def run(source: Path, out: Path, random: Random) -> int:
        line = random.choice(lines).format(source=source, out=out / "made")
        return command_line(line.split())

    return run


def _picture() -> bytes:
    return bytes(cv2.imencode(".png", np.full((20, 40, 3), 90, np.uint8))[1])


PICTURE = _picture()
DATA = b"train: images/train\nval: images/val\nnames:\n  0: crab\n  1: star\n  2: urchin\n"
KNOWN = DATA + b"annotated:\n  a*: [crab, star]\nunlabelled: unknown\nunknown_below: 6\n"
LABELS = b"0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.1 0.2\n2 0.75 0.25 0.2 0.2\n2 0.1 0.1 0.1 0.1\n"
REGIONS = b"unknown 0,2 0.5 0.5 1 1\nbackground * 0.25 0.25 0.5 0.5\nunknown * 0.1 0.1 0.1 0.1\n"
SET: dict[str, bytes] = {
    **{f"images/{name}.png": PICTURE for name in ("train/a", "train/b", "val/c")},
    **{f"labels/{name}.txt": LABELS for name in ("train/a", "train/b", "val/c")},
    "regions/train/a.txt": REGIONS, "data.yaml": KNOWN,
}  # fmt: skip
DERIVED = (
    "check data={source}/data.yaml",
    "sparsify data={source}/data.yaml protocol=percent rate=0.5 out={out}",
    "sparsify data={source}/data.yaml protocol=extreme out={out}",
    "noise data={source}/data.yaml missing=0.3 extra=0.3 jitter=0.3 class_flip=0.3 out={out}",
    "convert to-coco data={source}/data.yaml out={out}",
)

VOC = b"""<annotation><folder>VOC2012</folder><filename>a.png</filename><size><width>40</width><height>20</height>
<depth>3</depth></size><object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax><ymax>12</ymax></bndbox></object><object><name>dog</name>
<difficult>1</difficult><bndbox><xmin>21</xmin><ymin>2</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object></annotation>
"""
COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [{"id": i, "file_name": f"{n}.png", "width": 40, "height": 20} for i, n in enumerate("ab", 1)],
    "categories": [{"id": 1, "name": "cat", "supercategory": "x"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0, "segmentation": []},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [20, 2, 10, 8], "area": 80, "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0.5, 0.5, 3, 3], "iscrowd": 0, "ignore": 1},
    ],
}
LVIS = {
    **COCO,
    "images": [{**image, "neg_category_ids": [3], "not_exhaustive_category_ids": [1]} for image in COCO["images"]],
    "categories": [{**row, "frequency": "r", "synset": "cat.n.01"} for row in COCO["categories"]],
    "annotations": COCO["annotations"][:1],
}
_SIZED = {"original_width": 40, "original_height": 20, "image_rotation": 0}
STUDIO = [
    {"id": 1, "data": {"image": "/data/upload/3/0a1b2c3d-a.png"}, "predictions": [], "annotations": [
        {"id": 2, "was_cancelled": False, "ground_truth": True, "result": [
            {"id": "r", "type": "rectanglelabels", **_SIZED, "value": {
                "x": 10, "y": 20, "width": 30, "height": 40, "rotation": 15, "rectanglelabels": ["Plane"]}},
            {"type": "polygonlabels", **_SIZED, "value": {
                "points": [[1, 2], [30, 4], [9, 50]], "polygonlabels": ["Car"]}},
        ]},
    ]},
    {"id": 2, "data": {"image": "b.png"}, "annotations": []},
]  # fmt: skip
CVAT = b"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>t</name><size>2</size><mode>annotation</mode><labels><label>
<name>car</name></label><label><name>bus</name></label></labels></task></meta>
<image id="0" name="a.png" subset="Train" width="40" height="20">
<box label="car" occluded="0" xtl="1.0" ytl="2.0" xbr="30.5" ybr="14.0" rotation="10.5" z_order="0"></box>
<polygon label="bus" points="5.0,1.0;7.0,3.0;6.0,5.0" z_order="0"></polygon>
<ellipse label="bus" cx="20" cy="8" rx="10" ry="5"></ellipse>
<mask label="bus" rle="1, 2" left="15" top="6" width="2" height="1"></mask></image>
<image id="1" name="b.png" subset="Validation" width="40" height="20"></image></annotations>
"""
TRACKS = b"""<annotations><version>1.1</version><meta><task><name>v</name><size>4</size><mode>interpolation</mode>
<start_frame>0</start_frame><stop_frame>3</stop_frame><labels><label><name>squat lobster</name></label></labels>
<original_size><width>40</width><height>1080</height></original_size></task></meta>
<track id="0" label="squat lobster"><box frame="0" outside="0" xtl="1" ytl="600" xbr="20" ybr="700"></box>
<box frame="1" outside="0" xtl="1" ytl="600" xbr="20" ybr="700"></box>
<box frame="3" outside="1" xtl="1" ytl="600" xbr="20" ybr="700"></box></track>
<track id="1" label="squat lobster"><box frame="2" outside="0" xtl="1" ytl="600" xbr="9" ybr="650"></box>
<box frame="3" outside="1" xtl="1" ytl="600" xbr="9" ybr="650"></box></track></annotations>
"""
INDOOR = b"""<?xml version='1.0'?><dataset><images><image file='a.png'><box top='1' left='2' width='30' height='10'>
<label>chair</label></box><box top='1' left='2' width='3' height='4' ignore='1'><label>exit</label></box></image>
<image file='b.png'></image></images></dataset>
"""
KITTI = b"""Car 0.00 0 -1.58 10.5 2.00 30.25 8.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59
DontCare -1 -1 -10 1.00 1.00 18.00 5.00 -1 -1 -1 -1000 -1000 -1000 -10
"""
DRONE = b"1,2,10,8,1,4,0,1,\n10,0,5,5,0,0,0,0,\n0,0,9,9,0,11,0,0\n"
FDDB = b"a\n1\n8.5 4.25 -1.265839 20.5 10.25  1\nb\n0\n"
OPEN_BOXES = (
    b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
    b"a,xclick,/m/01,1,0.25,0.5,0.1,0.6,0,0,0,0,0\na,xclick,/m/02,1,0,0.5,0.5,1,0,0,1,0,0\n"
)
OPEN_LABELS = b"ImageID,Source,LabelName,Confidence\na,verification,/m/01,1\na,verification,/m/02,0\n"
OPEN_NAMES = b"LabelName,DisplayName\n/m/01,Tree\n/m/02,Car\n"
AUDITED = ("suggestions.csv", "audit.json", "decisions.json")
PLAN = b"""title: a
question: does it help
answer: a difference above its interval
baseline: bce
common: {model: yolov5n.yaml, head: anchor, data: seafloor.yaml, seeds: [0, 1], epochs: 3}
cells:
  - {loss: [bce, focal], protocol: extreme}
  - {obj_drop: [0, 0.25, 0.75], control: 0.75, series: true}
"""


def _pictures(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, PICTURE)


def _convert(name: str, flags: str, files: Mapping[str, bytes], damage: str = "") -> Surface:
    return Surface(files, _commands(f"convert {name} source={{source}}/{flags} out={{out}}"), damage)


def _dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


def _record(run: str, **train: Any) -> dict[str, Any]:
    metrics = {"mAP50": 0.5, "mAP75": 0.3, "mAP50-95": 0.3, "precision": 0.6, "recall": 0.5}
    return {
        "schema": 1, "run": run, "status": "finished", "error": None, "weights": "w.pt", "varied": dict(train),
        "config": {"train": {"loss": "drop", "head": "anchor", "obj_drop": 0.0, "box_drop": 0.0, **train},
                   "host": {"model": "yolov5n.yaml", "data": "d.yaml", "epochs": 3, "iou": 0.5, "imgsz": 64},
                   "labels": {"protocol": "extreme", "rate": 0.9, "seed": 0, "data": "d.yaml", "missing": 0.1,
                              "manifest": {"reached": 0.5}}, "seed": 0, "host_args": {"lr0": 0.01}},
        "loss_ran": {"loss": "drop", "head": "anchor", "element": "bce", "weighting": "drop", "divisor": "host",
                     "text": "drop", "pull": 3.4, "push": 0.9, "settings": {"obj_drop": 0.5}},
        "versions": {"torch": "2"}, "git": {"commit": "abc", "dirty": False}, "machine": {"cpu": "x", "cores": 2},
        "timings": {"train_seconds": 3.5, "fps": 9.0}, "peak_memory_mb": 100.0,
        "metrics": {"val": metrics, "test": {**metrics, "mAP_by_iou": {"0.5": 0.5}, "coco": {"AP": 0.4},
                    "voc": {"mAP50": 0.5}, "per_class": {"0: crab": {"mAP50": 0.4}}}},
        "host_metrics": {"test": {"mAP50": 0.5, "mAP75": 0.3, "mAP50-95": 0.3}},
        "evaluation": {"iou": 0.5, "conf": 0.001, "max_det": 100, "source": "here", "val_regions": True},
        "epochs": [{"epoch": 1, "train/box_loss": 0.5, "diagnose/loss": 0.5}], "log_tail": [],
        "samples": [{"image": "a.png", "size": [40, 20], "labels": [[0, 1, 2, 3, 4]], "withheld": [[1, 1, 2, 3, 4]],
                     "detections": [[0, 0.5, 1, 2, 3, 4]], "steps": [], "split": "test"}],
    }  # fmt: skip


def _sweep() -> dict[str, bytes]:
    rows = {f"obj{x}_{seed}": {**_record(f"obj{x}_{seed}", obj_drop=x)} for x in (0.0, 0.75) for seed in (0, 1)}
    for name, row in rows.items():
        row["config"]["seed"] = int(name[-1])
    asked = {"obj_drop": [0, 0.75], "seeds": [0, 1], "model": ["yolov5n.yaml"], "loss": ["drop"], "data": ["d.yaml"]}
    plan = {
        "schema": 1, "asked": asked, "runs": [*rows, "gone"],
        "study": {"key": "brl.table4", "title": "Table 4", "compared": "losses", "note": "n", "tables": [["BRL", "4"]],
                  "figures": ["iou"], "baseline": "bce", "given": {"seeds": "0,1"}},
        "written": {"title": "a", "question": "b", "answer": "c", "file": "d.yaml", "sha256": "e", "given": "lr0=1"},
    }  # fmt: skip
    return {"sweep.json": _dumped(plan), **{f"runs/{name}/record.json": _dumped(row) for name, row in rows.items()}}


def _report(source: Path, out: Path, random: Random) -> None:
    """All of a report but its plots, which are drawn of the same numbers."""
    from rebalance.experiments.record import load
    from rebalance.report.build import terminal_table
    from rebalance.report.page import pages
    from rebalance.report.summary import results

    terminal_table(source)
    for text in pages(results(load(source)), [], [], source).values():
        text.encode()


def _plan(source: Path, out: Path, random: Random) -> None:
    """A plan, and the grid that it asks for."""
    from rebalance.experiments.grid import read_grids
    from rebalance.experiments.plan import read

    read_grids(read(source / "plan.yaml", {}).cells)


FLAGS = (
    "sparsify data={source}/data.yaml protocol=percent rate=0.5 keep_one=True seed=1",
    "noise data={source}/data.yaml missing=0.3 extra=0.1 jitter=0.2 jitter_iou=[0.5,0.9] class_flip=0.1 seed=0",
    "check data={source}/data.yaml",
    "convert to-coco data={source}/data.yaml",
    "convert voc source={source} images={source} first_pixel=0 difficult=region split=train val=0.2 seed=3",
    "steps model={source}/data.yaml source={source} conf=0.4 imgsz=32 device=cpu",
    "report {source} baseline=bce reference={source}",
    "help train",
    "methods x",
    "version x",
    "hook state",
)
TRAINING = (
    "loss=focal+drop obj_drop=0.75 box_drop=0.1 neg_iou=0.3 drop_scope=matched drop_select=confident drop_warmup=2",
    "loss=brl brl_t=0.5 brl_beta=1 brl_weight=0.1 brl_iou=0.1 brl_warmup=1 head=anchor",
    "head=resobj resobj_steps=2 resobj_gate=image obj_width=0.5 loss=focal focal_gamma=1.5 lr_steps=3,5",
    "loss=ohem ohem_ratio=3 divisor=batch diagnose=True",
    "loss=ghm ghm_momentum=0.75",
)
GRIDS = (
    "obj_drop=0,0.25,0.75 seeds=0,1 model=yolov5n.yaml head=anchor data=x.yaml control=0.75 series=True",
    "loss=bce,focal protocol=percent,hard rate=0.5,0.9 label_seed=3 model=yolov8n.yaml data=x.yaml epochs=1",
    "brl_t=0.3,0.5 loss=brl jitter=0.1,0.2 jitter_iou=[0.5,0.9] extra=0.1 model=a.yaml data=x.yaml name=n jobs=2",
)


def _mixed(random: Random, line: str) -> list[str]:
    """A line of flags with some of them damaged, gone, or twice; the first word stays."""
    first, *words = line.split()
    for _ in range(random.choice((1, 1, 2, 3))):
        i = random.randrange(len(words)) if words else 0
        word = words[i] if words else "x=1"
        name, _, value = word.partition("=")
        kind = random.randrange(6)
        if kind < 3:
            words[i : i + 1] = [f"{name}={random.choice(TOKENS)}"]
        elif kind == 3:
            words[i : i + 1] = []
        elif kind == 4:
            words.insert(
                i, random.choice((f"{name}x={value}", f"--{word}", name, f"{name} =", "[", word.upper(), "\udc80=1"))
            )
        else:
            words[i : i + 1] = [_word(random, os.fsencode(word)).decode(errors="replace")]
    return [first, *words]


def _flags(source: Path, out: Path, random: Random) -> int:
    line = random.choice(FLAGS).format(source=source)
    words = [word for word in _mixed(random, line) if not re.match(r"-*\s*(out|name|project)\b", word)]
    if words[0] in ("sparsify", "noise", "convert", "steps"):
        words.append(f"out={out / 'made'}")
    return command_line(words)


def _pairs(line: list[str]) -> dict[str, str]:
    from rebalance.cli.main import pairs
    from rebalance.settings import SweepFlags

    return pairs(line, SweepFlags)


def _training_flags(source: Path, out: Path, random: Random) -> None:
    from rebalance.recipe import TRAIN
    from rebalance.train.admission import check_flags

    given = _pairs(_mixed(random, f"seed=0 {random.choice(TRAINING)}")[1:])
    check_flags({name: value for name, value in given.items() if name in TRAIN})


def _grid_flags(source: Path, out: Path, random: Random) -> None:
    from rebalance.experiments.grid import read_grid

    read_grid(_pairs(_mixed(random, f"seed=0 {random.choice(GRIDS)}")[1:]))


def _weights(whole: bool) -> bytes:
    """A state dict as training scripts keep it, or a whole module."""
    import torch

    held, module = io.BytesIO(), torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save({"model": module if whole else module.state_dict(), "names": ["crab"], "epoch": 3}, held)
    return held.getvalue()


def _checkpoints(source: Path, out: Path, random: Random) -> int | None:
    from rebalance.hosts.state_dict import is_checkpoint, read_weights
    from rebalance.train.checkpoint import cut_csv, find_state

    way = random.randrange(6)
    if way < 2:
        read_weights(source / ("last.pt", "module.pt")[way])
    elif way == 2:
        is_checkpoint(source / random.choice(("last.pt", "module.pt")))
    elif way == 3:
        find_state(source / "last.pt", 3)
    elif way == 4:
        shutil.copy(source / "results.csv", out / "results.csv")
        cut_csv(out / "results.csv", random.choice((0, 1, 5)))
    else:
        words = [f"model={source / 'last.pt'}", f"source={source}", f"out={out / 'made'}", "device=cpu"]
        return command_line(["steps", *words])
    return None


def _audit(source: Path) -> Surface:
    """A data set in `source`, an audit of it and decisions; the hash of the suggestions is made to fit them."""
    from rebalance.audit import decisions, table
    from rebalance.data import dataset
    from rebalance.data.items import labels_sha256

    for file, content in SET.items():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_bytes(content)
    near = table.Near(0, 0, (15.0, 5.0, 25.0, 15.0), 0.8)
    rows = [
        table.Suggestion("a.png", "missing", 0, "crab", (1.0, 2.0, 9.0, 8.0), 0.5, 0.9),
        table.Suggestion("b.png", "missing", 1, "star", (1.0, 2.0, 9.0, 8.0), 0.5, 0.3),
        table.Suggestion("a.png", "wrong_class", 1, "star", (15.0, 5.0, 25.0, 15.0), 0.5, None, near),
        table.Suggestion("a.png", "badly_placed", 0, "crab", (12.0, 4.0, 25.0, 15.0), 0.5, None, near),
    ]
    csv = table.write(source / "suggestions.csv", rows).read_bytes()
    sha256 = hashlib.sha256(csv).hexdigest()
    decided = {row.id: choice for row, choice in zip(rows, ("accept", "reject", "accept", "reject"), strict=True)}
    told = decisions.write(source / "decisions.json", rows, decided, sha256).read_bytes()
    about = {
        "schema": 1,
        "data": str(source / "data.yaml"),
        "data_sha256": labels_sha256(dataset.load(source / "data.yaml")),
        "images_root": str(source / "images" / "train"),
        "suggestions_sha256": sha256,
        "sizes": {"a.png": [40, 20], "b.png": [40, 20]},
        "classes": [
            {"id": 0, "name": "crab", "how": "probability", "threshold": None},
            {"id": 1, "name": "star", "how": "threshold", "threshold": 0.5},
            {"id": 2, "name": "urchin", "how": "probability", "threshold": None},
        ],
    }

    def settle(source: Path) -> None:
        now = hashlib.sha256((source / "suggestions.csv").read_bytes()).hexdigest()
        for name in ("audit.json", "decisions.json"):
            held = (source / name).read_bytes()
            (source / name).write_bytes(held.replace(sha256.encode(), now.encode()))

    def run(source: Path, out: Path, random: Random) -> int:
        words = ["complete", f"data={source / 'data.yaml'}", f"audit={source}", f"out={out / 'made'}"]
        return command_line([*words, f"decisions={source / 'decisions.json'}"] if random.random() < 0.7 else words)

    given = {"suggestions.csv": csv, "audit.json": _dumped(about), "decisions.json": told}
    return Surface({**SET, **given}, run, AUDITED, settle=settle)


def surfaces(folder: Path) -> dict[str, Surface]:
    """All of them, by name; each will be in a folder of that name."""
    weights, walk = _weights(whole=False), _pictures("sequence_1/a.png", "sequence_1/b.png")
    ab, jpegs = _pictures("a.png", "b.png"), _pictures("a.jpg", "b.jpg")
    drone = _pictures("VisDrone2019-DET-train/images/a.jpg")
    oid = {"oidv7-class-descriptions-boxable.csv": OPEN_NAMES, "train-annotations-bbox.csv": OPEN_BOXES,
           "train-annotations-human-imagelabels-boxable.csv": OPEN_LABELS}  # fmt: skip
    return {
        "labels": Surface(SET, _commands(*DERIVED), "labels/"),
        "regions": Surface(SET, _commands(*DERIVED), "regions/"),
        "data": Surface({**SET, "data.yaml": b"path: .\n" + KNOWN}, _commands(*DERIVED), "data.yaml"),
        "voc": _convert("voc", "", {**ab, "a.xml": VOC, "b.xml": VOC.replace(b"a.png", b"b.png")}, "a.xml"),
        "coco": _convert("coco", "c.json images={source} split=train", {**ab, "c.json": _dumped(COCO)}, "c"),
        "lvis": _convert("lvis", "c.json images={source} split=train", {**ab, "c.json": _dumped(LVIS)}, "c"),
        "open-images": _convert("open-images", " images={source}", {**_pictures("train/a.jpg"), **oid}, ""),
        "kitti": _convert("kitti", " split=train", {**_pictures("image_2/0.png"), "label_2/0.txt": KITTI}, "label"),
        "visdrone": _convert("visdrone", "", {**drone, "VisDrone2019-DET-train/annotations/a.txt": DRONE}, ""),
        "fddb": _convert("fddb", " split=train", {**jpegs, "FDDB-fold-01-ellipseList.txt": FDDB}, "F"),
        "indoor": _convert("indoor", "a_s1.xml images={source} split=train", {**walk, "a_s1.xml": INDOOR}, "a_s1"),
        "cvat": _convert("cvat", "x.xml images={source}", {**ab, "x.xml": CVAT}, "x"),
        "dusia": _convert("dusia", "", {"v.xml": TRACKS, "trainkf.txt": b"v_0000000\nv_0000001\n",
                                        "valfull.txt": b"v_0000002\n", "testfull.txt": b"v_0000003\n"}, ""),
        "label-studio": _convert("label-studio", "x.json images={source}", {**ab, "x.json": _dumped(STUDIO)}, "x"),
        "audit": _audit(folder / "audit" / "in"),
        "plan": Surface({"plan.yaml": PLAN}, _plan),
        "records": Surface(_sweep(), _report),
        "flags": Surface(SET, _flags, "none", keeps=True),
        "training-flags": Surface({}, _training_flags, "none"),
        "grid-flags": Surface({}, _grid_flags, "none"),
        "checkpoints": Surface(
            {**ab, "last.pt": weights, "state3.pt": weights, "module.pt": _weights(whole=True),
             "results.csv": b"epoch,time,x\n1,0.5,3\n2,0.9,\n"}, _checkpoints, "", keeps=True,
        ),
    }  # fmt: skip


# What comes of it -----------------------------------------------------------------------------------------------------


class Watch:
    """Says what a try does to files, processes and the network, by the interpreter's own audit events.

    What libraries in C write is not seen; `Folder` compares what is there afterwards.
    """

    WRITES = frozenset({"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate",
                        "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move"})  # fmt: skip
    RUNS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
                      "socket.getaddrinfo", "pty.spawn", "webbrowser.open"})  # fmt: skip

    def __init__(self) -> None:
        self.allowed: str | None = None  # below which may be written; None: nobody watches
        self.seen: list[str] = []
        self.passed = ["__pycache__"]  # folders that are the interpreter's own affair
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in self.RUNS:
            self.seen.append(f"{event} {arguments[:2]!r:.200}")
        elif event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
                self._written(event, path)
        elif event in self.WRITES:
            places = arguments[:2] if event in ("os.rename", "shutil.move") else arguments[1:2] if event in (
                "os.link", "os.symlink") else arguments[:1]  # fmt: skip
            if event in ("os.remove", "os.rmdir") and arguments[-1] >= 0:
                return  # relative to an open folder, as shutil.rmtree does it, which was told of before
            for path in places:
                self._written(event, path)

    def _written(self, event: str, path: Any) -> None:
        assert self.allowed is not None
        if isinstance(path, int) or path is None:
            return
        text = os.path.abspath(os.fsdecode(path))
        inside = f"{text}{os.sep}".startswith(self.allowed + os.sep)  # the folder itself may be made
        if inside or text == os.devnull or any(name in text for name in self.passed):
            return
        self.seen.append(f"{event} {text}")


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, to see what was changed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            told = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = (told.st_size if name in files else 0, told.st_mtime_ns * (name in files))
    return found


class Fuzzer:
    """Tries of the surfaces, in a folder of its own."""

    def __init__(self, folder: Path, *, seconds: float = 30) -> None:
        self.folder, self.seconds, self.watch = folder, seconds, Watch()
        self.surfaces = surfaces(folder)
        for name, surface in self.surfaces.items():
            for file, content in surface.files.items():
                path = folder / name / "in" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            (folder / name / "in").mkdir(parents=True, exist_ok=True)
            (folder / name / "out").mkdir()
            with contextlib.suppress(Exception):  # what is imported and set up once is no try's doing
                self._run(surface, name, Random(0))

    def attempt(self, name: str, random: Random) -> str:
        """Damage the input of a surface and look at what comes of it; what is wrong, in a line, or ''."""
        surface, source = self.surfaces[name], self.folder / name / "in"
        files = [
            file for file in surface.files if file.startswith(surface.damage) and not file.endswith((".png", ".jpg"))
        ]
        file = random.choice(files) if files else ""
        if file:
            (source / file).write_bytes(damaged(random, surface.files[file]))
        if surface.settle:
            surface.settle(source)
        before = _state(source)
        try:
            return self._run(surface, name, random) or ("the input was changed" if _state(source) != before else "")
        finally:
            for changed in files if surface.settle else [file] * bool(file):
                (source / changed).write_bytes(surface.files[changed])

    def _run(self, surface: Surface, name: str, random: Random) -> str:
        source, out = self.folder / name / "in", self.folder / name / "out"
        told, fault, code = io.StringIO(), "", None
        self.watch.seen.clear()
        here = os.getcwd()
        os.chdir(source)
        old = signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        self.watch.allowed = str(out)
        try:
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
                try:
                    code = surface.run(source, out, random)
                except RebalanceError as error:
                    code = 2
                    print(f"rebalance: error: {error}", file=told)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = _of(error)
        finally:
            self.watch.allowed = None
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
            os.chdir(here)
        left = sorted(path.name for path in out.iterdir())
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if fault:
            return fault
        if self.watch.seen:
            return f"outside the output: {self.watch.seen[0]}"
        if code not in (None, 0, 2):
            return f"exit code {code}"
        if code == 2:
            message = told.getvalue().rpartition("rebalance: error: ")[2].rstrip("\n")
            if not message.strip():
                return "refused without a word"
            if "\n" in message:
                return f"a message of {len(message.splitlines())} lines: {message[:200]!r}"
            if left and not surface.keeps:
                return f"left after a refusal: {', '.join(left)}"
        return ""


class Late(BaseException):
    """A try took too long."""


def _late(*_: object) -> None:
    raise Late


def _of(error: BaseException) -> str:
    """The exception and where it came from, the innermost place of ours first."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = next((f for f in reversed(frames) if f.filename.startswith(str(PACKAGE))), frames[-1])
    last = frames[-1]
    place = f"{Path(ours.filename).name}:{ours.lineno}"
    deeper = "" if last is ours else f" ({Path(last.filename).name}:{last.lineno})"
    return f"{type(error).__name__} at {place}{deeper}: {' '.join(str(error).split())[:160]}"


def main(arguments: list[str]) -> int:
    """See the head of this file."""
    given = {"seeds": "0", "inputs": "2000", "only": "", "first": "0", "seconds": "30", "memory_gb": "12"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in given or not equals:
            print(f"fuzz: {argument} is not one of {', '.join(f'{key}=' for key in given)}", file=sys.stderr)
            return 2
        given[key] = value
    limit = int(float(given["memory_gb"]) * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        fuzzer = Fuzzer(Path(folder).resolve(), seconds=float(given["seconds"]))
        names = [name for name in given["only"].split(",") if name] or list(fuzzer.surfaces)
        if unknown := [name for name in names if name not in fuzzer.surfaces]:
            print(f"fuzz: {unknown[0]} is not one of {', '.join(fuzzer.surfaces)}", file=sys.stderr)
            return 2
        seeds = [int(seed) for seed in given["seeds"].split(",")]
        each = -(-int(given["inputs"]) // (len(names) * len(seeds)))
        faults, tries, start = Counter[str](), 0, time.monotonic()
        for seed in seeds:
            for name in names:
                for n in range(int(given["first"]), int(given["first"]) + each):
                    tries += 1
                    if fault := fuzzer.attempt(name, Random(f"{name} {seed} {n}")):
                        key = f"{name}: {fault}"
                        if key not in faults:
                            print(f"{key}   [only={name} seeds={seed} first={n} inputs=1]", flush=True)
                        faults[key] += 1
    seconds = time.monotonic() - start
    print(
        f"{tries} inputs, {len(names)} surfaces, seeds {given['seeds']}, {seconds:.0f} s: {sum(faults.values())} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
