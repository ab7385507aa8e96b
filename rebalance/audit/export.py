"""Suggestions as pre-annotations for other tools: Label Studio, CVAT, COCO's results, FiftyOne.

    label-studio.json, label-studio.xml   tasks with one prediction each, and the labelling interface they are for
    cvat.xml                              CVAT 1.1 for images
    coco-results.json, coco.json          detections, and the images, categories and given labels that they refer to
    FiftyOne                              a persistent data set `rebalance-<audit>-<table>` in its own database

Only images with suggestions are in them. The given labels are there too, because what a person corrects in these tools
is the whole image, and CVAT replaces what an image has by what is uploaded. A suggested box is put beside the label
that it is about, never in its place. A spurious label is a label already: Label Studio and FiftyOne say of it what it
is suspected of, CVAT and COCO's results have no place for that.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import numpy as np

from rebalance.audit.table import Box, Suggestion
from rebalance.data.labels import Labels
from rebalance.errors import ConfigError, DataError, nearest
from rebalance.files import write_whole

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


@dataclass(frozen=True)
class _Shown:
    """An image with suggestions."""

    name: str  # as in the table
    file: str
    size: tuple[int, int]
    labels: list[tuple[int, Box]]  # class and box, in the order of the label file
    rows: list[Suggestion]


@dataclass(frozen=True)
class _Audit:
    folder: Path
    about: Mapping[str, Any]
    names: Mapping[int, str]
    images: list[_Shown]

    @property
    def table(self) -> str:
        return str(self.about["suggestions_sha256"])[:12]


def check(tools: str) -> tuple[str, ...]:
    """The tools of `export=`, in the order given.

    Raises:
        ConfigError: one is unknown, or needs a package that is not installed.
    """
    given = tuple(dict.fromkeys(filter(None, (tool.strip() for tool in tools.split(",")))))
    for tool in given:
        if tool not in TOOLS:
            raise ConfigError(f"export={tool} is not one of {', '.join(TOOLS)}{nearest(tool, TOOLS)}")
    if "fiftyone" in given and importlib.util.find_spec("fiftyone") is None:
        raise ConfigError("export=fiftyone needs the package fiftyone, which is not installed: pip install fiftyone")
    return given


def write(
    tool: str,
    folder: Path,
    suggestions: Sequence[Suggestion],
    about: Mapping[str, Any],
    files: Mapping[str, str],
    labels: Callable[[str], Labels],
) -> list[str]:
    """Write the suggestions for a tool; returns lines that say what was written and what had no place in it.

    Args:
        tool: one of TOOLS.
        folder: of the audit; an earlier export is replaced.
        suggestions: of the table.
        about: what audit.json holds.
        files: image of a suggestion -> its file.
        labels: file -> the labels that were audited.

    Raises:
        DataError: a name has a character that the tool's format cannot hold; nothing was written.
        RunError: a file cannot be written.
    """
    names = {one["id"]: one["name"] for one in about["classes"]} | {row.number: row.name for row in suggestions}
    rows: dict[str, list[Suggestion]] = {}
    for row in suggestions:
        rows.setdefault(row.image, []).append(row)
    images = []
    for name, own in rows.items():
        found, (width, height) = labels(files[name]), about["sizes"][name]
        boxes = [_corners(box) for box in np.round(found.boxes_xyxy(width, height), 4).tolist()]
        given = list(zip(found.classes.tolist(), boxes, strict=True))
        images.append(_Shown(name, files[name], (width, height), given, own))
    return TOOLS[tool](_Audit(folder, about, names, images))


def label_studio(audit: _Audit) -> list[str]:
    """Tasks with a prediction each, whose regions are the given labels and the suggestions, and their interface.

    Images are served by Label Studio's local files storage; its document root is `images_root` of audit.json.
    """
    tasks = []
    for image in audit.images:
        doubts: dict[int, list[str]] = {}
        for row in image.rows:
            if row.kind == "spurious" and row.label:
                doubts.setdefault(row.label.index, []).append(f"{_said(row)}: no model finds it")
        regions = [
            _region(f"label-{i}", audit.names[number], box, image.size, doubts.get(i, []))
            for i, (number, box) in enumerate(image.labels)
        ]
        boxes = [row for row in image.rows if row.kind != "spurious"]
        regions += [
            _region(row.id, row.name, row.box, image.size, [_said(row)]) | {"score": row.score} for row in boxes
        ]
        served = quote(image.name.removeprefix("/"), errors="surrogateescape")
        tasks.append(
            {
                "data": {"image": f"/data/local-files/?d={served}", "name": image.name},
                "predictions": [
                    {
                        "model_version": f"rebalance audit {audit.table}",
                        "score": max((_sure(row) for row in image.rows), default=0.0),
                        "result": regions,
                    }
                ],
            }
        )
    view = ET.Element("View")
    ET.SubElement(view, "Image", name="image", value="$image", zoom="true")
    controls = ET.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in dict.fromkeys(audit.names.values()):
        ET.SubElement(controls, "Label", value=_xml(name, "label-studio"))
    ET.indent(view)
    write_whole(audit.folder / "label-studio.xml", ET.tostring(view, encoding="utf-8") + b"\n")
    file = write_whole(audit.folder / "label-studio.json", _json(tasks))
    root = audit.about["images_root"] or "/"
    return [
        f"{file}: {_counted(audit, spurious=True)}; interface: {file.with_suffix('.xml')}; "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}"
    ]


def cvat(audit: _Audit) -> list[str]:
    """CVAT 1.1 for images: labels as of a person (source manual), suggestions as of a machine (source auto)."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    told = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    for name in dict.fromkeys(audit.names.values()):
        ET.SubElement(ET.SubElement(told, "label"), "name").text = _xml(name, "cvat")
    for number, image in enumerate(audit.images):
        width, height = image.size
        element = ET.SubElement(
            root, "image", id=str(number), name=_xml(image.name, "cvat"), width=str(width), height=str(height)
        )
        boxes = [(audit.names[of], box, "manual") for of, box in image.labels]
        boxes += [(row.name, row.box, "auto") for row in image.rows if row.kind != "spurious"]
        for name, box, source in boxes:
            sides = zip(("xtl", "ytl", "xbr", "ybr"), _inside(box, image.size), strict=True)
            corners = {side: f"{value:.2f}" for side, value in sides}
            ET.SubElement(element, "box", {"label": name, "source": source, "occluded": "0", **corners, "z_order": "0"})
    ET.indent(root)
    data = ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
    file = write_whole(audit.folder / "cvat.xml", data)
    return [f"{file}: {_counted(audit)}", *_without_spurious(audit, "CVAT's XML")]


def coco(audit: _Audit) -> list[str]:
    """Detections as COCO's evaluation reads them, and the images and categories whose ids they use."""
    images, annotations, results = list[Any](), list[Any](), list[Any]()
    for number, image in enumerate(audit.images, 1):
        width, height = image.size
        images.append({"id": number, "file_name": image.name, "width": width, "height": height})
        for of, box in image.labels:
            x, y, w, h = _xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": of + 1, "bbox": [x, y, w, h],
                    "area": round(w * h, 4), "iscrowd": 0, "segmentation": [],
                }
            )  # fmt: skip
        results += [
            {
                "image_id": number, "category_id": row.number + 1, "bbox": _xywh(row.box), "score": row.score,
                "suggestion": row.id, "kind": row.kind, "probability": row.probability,
            }
            for row in image.rows
            if row.kind != "spurious"
        ]  # fmt: skip
    categories = [{"id": number + 1, "name": name} for number, name in sorted(audit.names.items())]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    given = write_whole(audit.folder / "coco.json", _json(content))
    file = write_whole(audit.folder / "coco-results.json", _json(results))
    return [
        f"{file}: {_counted(audit)}; images, categories and labels: {given}",
        *_without_spurious(audit, "COCO's results"),
    ]


def fiftyone(audit: _Audit) -> list[str]:
    """A persistent data set of FiftyOne with the fields `labels` and `suggestions`; one that is there stays."""
    import fiftyone as fo

    name = f"rebalance-{audit.folder.resolve().name}-{audit.table}"
    if fo.dataset_exists(name):
        return [f"FiftyOne has {name} already; it was left as it is"]

    def detections(boxes: Iterator[tuple[str, Box, dict[str, Any]]], size: tuple[int, int]) -> Any:
        made = []
        for label, box, facts in boxes:
            x, y, w, h = _xywh(_inside(box, size))
            placed = [x / size[0], y / size[1], w / size[0], h / size[1]]
            made.append(fo.Detection(label=label, bounding_box=placed, **facts))
        return fo.Detections(detections=made)

    def facts_of(row: Suggestion) -> dict[str, Any]:
        return {"confidence": row.score, "kind": row.kind, "probability": row.probability, "suggestion": row.id}

    samples = []
    for image in audit.images:
        sample = fo.Sample(filepath=image.file)
        sample["labels"] = detections(((audit.names[of], box, {}) for of, box in image.labels), image.size)
        sample["suggestions"] = detections(((row.name, row.box, facts_of(row)) for row in image.rows), image.size)
        samples.append(sample)
    dataset = fo.Dataset(name)
    try:
        dataset.add_samples(samples, progress=False)
        dataset.persistent = True
    except BaseException:
        dataset.delete()
        raise
    return [f"FiftyOne data set {name}: {_counted(audit, spurious=True)}"]


TOOLS: dict[str, Callable[[_Audit], list[str]]] = {
    "label-studio": label_studio,
    "cvat": cvat,
    "coco": coco,
    "fiftyone": fiftyone,
}


def _region(name: str, label: str, box: Box, size: tuple[int, int], notes: list[str]) -> dict[str, Any]:
    """A rectangle of Label Studio, in percent of the image."""
    x, y, w, h = _xywh(_inside(box, size))
    width, height = size
    return {
        "id": name,
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x / width,
            "y": 100 * y / height,
            "width": 100 * w / width,
            "height": 100 * h / height,
            "rotation": 0,
            "rectanglelabels": [label],
        },
        **({"meta": {"text": notes}} if notes else {}),
    }


def _said(row: Suggestion) -> str:
    kind = row.kind.replace("_", " ")
    return kind if row.probability is None else f"{kind}, probability {row.probability:.2f}"


def _sure(row: Suggestion) -> float:
    return row.score if row.probability is None else row.probability


def _counted(audit: _Audit, *, spurious: bool = False) -> str:
    rows = sum(spurious or row.kind != "spurious" for image in audit.images for row in image.rows)
    labels = sum(len(image.labels) for image in audit.images)
    return f"{rows} suggestions and {labels} labels of {len(audit.images)} images"


def _without_spurious(audit: _Audit, where: str) -> list[str]:
    count = sum(row.kind == "spurious" for image in audit.images for row in image.rows)
    return [f"note: {count} suspicions of spurious labels have no place in {where}"] * bool(count)


def _corners(box: Sequence[float]) -> Box:
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The part that is in the image: labels may stand out of it a little."""
    (x1, y1, x2, y2), (width, height) = box, size
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def _xywh(box: Box) -> list[float]:
    """Left, top, width, height."""
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)]


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _xml(text: str, tool: str) -> str:
    if found := _NO_XML.search(text):
        raise DataError(f"export={tool}: {text[:60]!a} has the character {found[0]!a}, which XML cannot hold")
    return text
