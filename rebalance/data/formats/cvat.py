"""CVAT 1.1 XML: tasks of images and tasks of videos, one file or several.

Images: every image of the task is named, `subset` says its split; one without shapes was looked at: it gets an empty
label file (`empty=unknown` where the task is not finished). Videos: a `<track>` has a box for each frame; where it is
`outside="1"` the object is not there. All frames of a task were looked at, from `start_frame` to `stop_frame`; they
are cut out of the video, or taken from a folder in which they are called `frame_000012.png`, as CVAT exports them.

A polygon, a polyline, a mask, an ellipse, a cuboid and a skeleton stand for the box around them, as does a box that is
turned. Points have none: where an object is marked by them alone, its class is unknown in the whole image. Tags are of
the image; labels of tags, and those of the points of a skeleton, are no classes. Several tasks with different labels:
each was labelled for its own, and data.yaml says so (`annotated`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rebalance.data.formats import video
from rebalance.data.formats.reading import (
    Element,
    Images,
    at,
    attribute,
    children,
    files_of,
    folder_name,
    folder_names,
    image_folders,
    number,
    read_xml,
    shared_names,
    source_path,
    whole,
)  # fmt: skip
from rebalance.data.formats.record import (
    Box,
    ConvertFlags,
    Found,
    Frame,
    Record,
    enclosing,
    guess_split,
    turned,
)
from rebalance.errors import DataError
from rebalance.settings import setting

_SHAPES = ("box", "polygon", "polyline", "mask", "ellipse", "cuboid", "skeleton")
_WITHOUT = ("points", "tag")
_CUBOID = [f"{end}{face}" for face in (1, 2) for end in ("tl", "bl", "tr", "br")]  # x and y of its eight corners
_BLOCK = 50  # frames of a video that stay together where splits are drawn


@dataclass(frozen=True, kw_only=True)
class CvatFlags(ConvertFlags):
    """`rebalance convert cvat`."""

    every: int = setting(1, "of a video, take each n-th frame", low=1)


def read(given: CvatFlags) -> Found:
    """Read CVAT's files; DataError as every format."""
    source = source_path(given.source)
    files = files_of(source, ".xml", "CVAT annotations")
    roots = {path: root_of(path) for path in files}
    labels = {path: labels_of(path, root) for path, root in roots.items()}
    found = Found(names=shared_names([*labels.values()]), records=[], files=files)
    prefixes = folder_names(files)
    differ = len({tuple(names) for names in labels.values()}) > 1
    for path, root in roots.items():
        task = root.findtext("meta/task/name") or path.stem
        prefix = prefixes[path] if len(files) > 1 else ""
        records = (
            _images(path, root, given, found) if children(root, "image") else _video(path, root, task, given, found)
        )
        for record in records:
            record.name = f"{prefix}/{record.name}" if prefix else record.name
        found.records += records
        if differ:
            found.annotated[prefix] = labels[path]
    return found


def root_of(path: Path) -> Element:
    """The root of a file of CVAT."""
    root = read_xml(path)
    if root.tag != "annotations":
        raise DataError(f"{at(path, root)}: <{root.tag}> is not <annotations>, with which CVAT's XML begins")
    return root


def labels_of(path: Path, root: Element) -> list[str]:
    """The labels of a task or project, or those that are used, where it names none."""
    named = [
        label.findtext("name") or ""
        for label in root.iter("label")
        if label.find("parent") is None and label.findtext("type") != "tag"
    ]
    used = [shape.get("label") or "" for shape in root.iter() if shape.tag in ("track", *_SHAPES)]
    return list(dict.fromkeys(filter(None, named or used)))


def corners(path: Path, element: Element) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a shape, of a turned one those around it."""
    where = at(path, element)

    def value(name: str) -> float:
        return number(attribute(path, element, name), name, where)

    if element.tag in ("polygon", "polyline"):
        return enclosing(_points(path, element))
    if element.tag == "skeleton":
        seen = [part for part in children(element, "points") if part.get("outside") != "1"]
        return enclosing([point for part in seen or [element] for point in _points(path, part)])
    if element.tag == "cuboid":
        return enclosing([(value(f"x{corner}"), value(f"y{corner}")) for corner in _CUBOID])
    if element.tag == "mask":
        left, top = value("left"), value("top")
        return left, top, left + value("width"), top + value("height")
    if element.tag == "ellipse":
        x, y, a, b = value("cx"), value("cy"), value("rx"), value("ry")
        box = (x - a, y - b, x + a, y + b)
    else:
        box = (value("xtl"), value("ytl"), value("xbr"), value("ybr"))
    if box[2] < box[0] or box[3] < box[1]:
        raise DataError(f"{where}: the box ends before it begins")
    return turned(box, number(element.get("rotation", "0"), "rotation", where))


def _points(path: Path, element: Element) -> list[tuple[float, float]]:
    """The points of a shape."""
    where = at(path, element)
    pairs = [pair.split(",") for pair in attribute(path, element, "points").split(";") if pair]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{where}: points='{element.get('points')}' are not x,y;x,y;...")
    return [(number(x, "points", where), number(y, "points", where)) for x, y in pairs]


def _shapes(parent: Element) -> list[Element]:
    """The annotations in an image or a track."""
    return [shape for shape in parent if isinstance(shape, Element) and shape.tag in (*_SHAPES, *_WITHOUT)]


def _annotate(record: Record, path: Path, shape: Element, label: str, found: Found) -> None:
    """Add a shape to an image: its box, or what is not known without one."""
    if shape.tag in _SHAPES:
        record.boxes.append(Box(label, *corners(path, shape)))
    else:
        found.left_out[f"annotations without a box (<{shape.tag}>)"] += 1
        if shape.tag == "points":
            record.add_unknown(label)


def _images(path: Path, root: Element, given: CvatFlags, found: Found) -> list[Record]:
    """The images of a task of images."""
    images = image_folders(given.images, path.parent / "images", path.parent)
    records = []
    for element in children(root, "image"):
        where, name = at(path, element), attribute(path, element, "name")
        size = tuple(number(attribute(path, element, side), side, where) for side in ("width", "height"))
        split = guess_split(element.get("subset") or "")
        record = Record(name, images.find(name, where), where, (size[0], size[1]), split=split)
        for shape in _shapes(element):
            _annotate(record, path, shape, attribute(path, shape, "label"), found)
        records.append(record)
    return records


def _video(path: Path, root: Element, task: str, given: CvatFlags, found: Found) -> list[Record]:
    """The frames of a task of a video."""
    span = []
    for key in ("start_frame", "stop_frame"):
        text = root.findtext(f"meta/task/{key}") or root.findtext(f"meta/job/{key}")
        if text is None:
            raise DataError(f"{path}: neither <image> nor <{key}>: a project of videos is exported task by task")
        span.append(whole(text, key, str(path)))
    step = (root.findtext("meta/task/frame_filter") or "step=1").replace(" ", "").partition("step=")[2] or "1"
    frames = range(span[0], span[1] + 1, whole(step, "frame_filter", str(path)) * given.every)
    size = tuple(
        number(
            root.findtext(f"meta/{part}original_size/{side}") or root.findtext(f"meta/original_size/{side}") or 0,
            side,
            str(path),
        )
        for part, side in (("task/", "width"), ("task/", "height"))
    )
    where = _where(path, root, given)
    records = {}
    for frame in frames:
        image = (
            Frame(where, frame)
            if isinstance(where, Path)
            else where.find(f"frame_{frame:06d}", str(path), any_suffix=True)
        )
        suffix = image.suffix if isinstance(image, Path) else ".jpg"
        records[frame] = Record(
            f"{folder_name(task)}/frame_{frame:06d}{suffix}",
            image,
            f"{path}, frame {frame}",
            (size[0], size[1]) if min(size) > 0 else None,
            group=f"{path.name} {frame // _BLOCK}",
        )
    for track in children(root, "track"):
        label = attribute(path, track, "label")
        for shape in _shapes(track):
            if shape.get("outside") != "1":
                frame = whole(attribute(path, shape, "frame"), "frame", at(path, shape))
                if not span[0] <= frame <= span[1]:
                    raise DataError(f"{at(path, shape)}: frame {frame} is not one of {span[0]} to {span[1]}")
                if frame in records:
                    _annotate(records[frame], path, shape, label, found)
    return list(records.values())


def _where(path: Path, root: Element, given: CvatFlags) -> Path | Images:
    """The video of a task, or the folder with its frames."""
    given_path = Path(given.images) if given.images else path.parent
    if given_path.is_file():
        return given_path
    source = (root.findtext("meta/source") or root.findtext("meta/task/source") or "").strip()
    for name in filter(None, (source, root.findtext("meta/task/name"), path.stem)):
        file = given_path / Path(name).name
        if file.suffix.lower() in video.SUFFIXES and file.is_file():
            return file
        found = [p for p in sorted(given_path.glob(f"{file.stem}.*")) if p.suffix.lower() in video.SUFFIXES]
        if found:
            return found[0]
    return image_folders(given.images, path.parent / "images", path.parent)
