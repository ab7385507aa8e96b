"""Label Studio's JSON exports: JSON (tasks with annotations) and JSON-MIN (tasks with their results).

Boxes are in percent of the image. A box that is turned, a polygon and an ellipse stand for the box around them;
brushes and points have none: where an object is marked by them alone, its class is unknown in the whole image. Classes
of the whole image are left out. A task without a finished annotation (none, or cancelled) was looked at by nobody: no
label file. A finished one without boxes says: nothing there. Of several annotations of a task the one marked as ground
truth counts, else the latest. Predictions do not count.

Images are found by their names: `/data/upload/3/0a1b2c3d-x.jpg` is x.jpg or 0a1b2c3d-x.jpg, `/data/local-
files/?d=a/x.jpg` is a/x.jpg, of a URL the path. Where `image` has no suffix, any image of that name is it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rebalance.data import dataset
from rebalance.data.formats.reading import Images, entry, files_of, image_folders, number, read_json, source_path
from rebalance.data.formats.record import Box, ConvertFlags, Found, Record, enclosing
from rebalance.errors import DataError

_SHAPES = {
    "polygon": {"points"},
    "ellipse": {"x", "y", "radiusX", "radiusY"},
    "rectangle": {"x", "y", "width", "height"},
}
_TASK = ("data", "annotations", "completions")  # completions: before version 1
_SHAPED = ("labels", *(f"{shape}labels" for shape in _SHAPES))  # the keys of classes that a shape stands beside
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


def read(given: ConvertFlags) -> Found:
    """Read exports of Label Studio; DataError as every format."""
    source = source_path(given.source)
    files = files_of(source, ".json", "a Label Studio export")
    images = image_folders(given.images, source if source.is_dir() else source.parent)
    found = Found(names=[], records=[], files=files)
    for path in files:
        tasks = read_json(path)
        if not isinstance(tasks, list):
            raise DataError(f"{path}: not a list of tasks; export as JSON or JSON-MIN")
        found.records += [_record(task, f"{path}, task [{i}]", images, found) for i, task in enumerate(tasks)]
    found.names = sorted({box.name for record in found.records for box in record.boxes})
    return found


def _record(task: Any, where: str, images: Images, found: Found) -> Record:
    if not isinstance(task, dict):
        raise DataError(f"{where}: not an object with keys")
    full = any(key in task for key in _TASK)
    name, image = _image(task.get("data", {}) if full else task, where, images)
    record = Record(name, image, where)
    results = _results(task, where, found) if full else _minimal(task)
    record.labelled = results is not None
    classed = {result.get("id") for _, result in results or () if isinstance(result, dict) and _classes(result)}
    for i, (place, result) in enumerate(results or ()):
        _annotate(record, result, f"{where}, {place}[{i}]", classed, found)
    return record


def _value(result: dict[str, Any]) -> dict[str, Any]:
    """What a result says; of JSON-MIN the result itself."""
    return result["value"] if isinstance(result.get("value"), dict) else result


def _classes(result: dict[str, Any]) -> str:
    """The key of the classes of a result: `rectanglelabels`, or `labels`, whatever the shape; empty: it has none."""
    return next(
        (key for key, names in _value(result).items() if key.endswith("labels") and isinstance(names, list)), ""
    )


def _image(data: Any, where: str, images: Images) -> tuple[str, Path | None]:
    """The name of the image of a task, and its file."""
    texts = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    for text in texts:
        parts = urlsplit(text)
        path = unquote(parse_qs(parts.query).get("d", [parts.path])[0])
        if path.rpartition(".")[2].lower() not in dataset.IMAGE_SUFFIXES:
            continue
        name = Path(path).name
        short = _UPLOADED.sub("", name)
        return short, images.find(path, where) or (images.find(short, where) if short != name else None)
    plain = data.get("image") if isinstance(data, dict) else None
    name = Path(urlsplit(plain).path).name if isinstance(plain, str) else ""
    if name and (file := images.find(name, where, any_suffix=True)):
        return file.name, file
    told = data if isinstance(data, dict) else {}
    many = next((key for key, value in told.items() if isinstance(value, list) and value and _linked(value[0])), "")
    why = f"; '{many}' is a list, and several images a task are not read: give each its own task" if many else ""
    raise DataError(f"{where}: none of its data is the name of an image{why}")


def _linked(value: Any) -> bool:
    """Whether an entry of a list names a file, as those of several images of a task do."""
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("url"), str))


def _results(task: dict[str, Any], where: str, found: Found) -> list[tuple[str, Any]] | None:
    """The results of the annotation that counts; None where nobody finished one."""
    key = "annotations" if "annotations" in task else "completions"
    given = entry(task, key, list, where) if key in task else []
    kept = [one for one in given if isinstance(one, dict) and not one.get("was_cancelled")]
    if not kept:
        return None
    if len(kept) > 1:
        found.left_out["further annotations of the same task"] += len(kept) - 1
    best = max(
        kept, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at") or one.get("created_at") or ""))
    )
    return [("result", result) for result in entry(best, "result", list, f"{where}, {key}")]


def _minimal(task: dict[str, Any]) -> list[tuple[str, Any]] | None:
    """The results of a task of JSON-MIN, which has a list under the name of each control."""
    lists = {key: value for key, value in task.items() if isinstance(value, list) and key != "image"}
    return [(key, result) for key, value in lists.items() for result in value] if "annotator" in task or lists else None


def _annotate(record: Record, result: Any, where: str, classed: Collection[Any], found: Found) -> None:
    if not isinstance(result, dict):
        raise DataError(f"{where}: not an object with keys")
    value, kind = _value(result), _classes(result)
    shape = next((shape for shape, keys in _SHAPES.items() if keys <= {*value}), "")
    if kind not in _SHAPED or not shape:
        if not kind and result.get("type") in _SHAPES and result.get("id") in classed:
            return  # the plain shape of <Rectangle>, whose classes are another result, of <Labels>
        found.left_out[f"annotations without a box ({result.get('type', 'of another kind')})"] += 1
        for name in value[kind] if kind else ():
            record.add_unknown(str(name))
        return
    size = tuple(number(result.get(f"original_{side}"), f"original_{side}", where) for side in ("width", "height"))
    if min(size) <= 0:
        raise DataError(f"{where}: the image is {size[0]:g}×{size[1]:g} pixels")
    record.size = (size[0], size[1])
    if result.get("image_rotation"):
        raise DataError(
            f"{where}: the image was turned by {result['image_rotation']} degrees; turn it back before the export"
        )
    scale = (size[0] / 100, size[1] / 100)

    def percent(key: str) -> float:
        return number(entry(value, key, (int, float), where), key, where) * scale[key in ("y", "height", "radiusY")]

    if shape == "polygon":
        points = entry(value, "points", list, where)
        if not points or any(not isinstance(point, list) or len(point) != 2 for point in points):
            raise DataError(f"{where}: points are not pairs of x and y")
        box = enclosing([(number(x, "x", where) * scale[0], number(y, "y", where) * scale[1]) for x, y in points])
    else:
        x, y = percent("x"), percent("y")
        angle = math.radians(number(value.get("rotation") or 0, "rotation", where))
        cos, sin = math.cos(angle), math.sin(angle)
        if shape == "rectangle":  # x, y is the upper left corner, about which it is turned
            w, h = percent("width"), percent("height")
            box = enclosing([(x + a * cos - b * sin, y + a * sin + b * cos) for a in (0, w) for b in (0, h)])
        else:
            a, b = percent("radiusX"), percent("radiusY")
            half, tall = math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)
            box = (x - half, y - tall, x + half, y + tall)
    names = entry(value, kind, list, where)
    if not names:
        found.left_out["boxes without a class"] += 1
    for name in names:
        record.boxes.append(Box(str(name), *box))
