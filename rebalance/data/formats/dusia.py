"""DUSIA: deep-sea video, CVAT 1.1 XML a video, and lists of the frames of each split.

    *.xml                                       in source, named as its video
    trainkf.txt, valfull.txt, testfull.txt      in source: `<video>_<frame, 7 digits>` a line
    <video>.<suffix>                            in images=, where they are there

Training frames have the boxes of tracks, which are some of the animals: the labels are partial. Validation and test
frames have the boxes of *shapes*, tracks of two boxes of which the second is `outside`, and all animals have one. The
other kind of boxes on a frame is not used. A frame of val or test without boxes says: nothing there; of a training
frame whose boxes all lie above the cut nothing is known, so it gets no label file.

The authors use the lower half of a frame: the top 540 of 1080 rows are cut off, boxes move up, and what lies above
goes. Without a video its frames are listed as missing, and their labels are written all the same.
"""

from __future__ import annotations

from pathlib import Path

from rebalance.data.formats import cvat, video
from rebalance.data.formats.reading import (
    at,
    attribute,
    children,
    files_of,
    image_folders,
    lines_of,
    number,
    source_path,
    whole,
)  # fmt: skip
from rebalance.data.formats.record import Box, ConvertFlags, Found, Frame, Record
from rebalance.data.progress import progress
from rebalance.errors import DataError

NAMES = [
    "basket star", "fragile pink urchin", "gray gorgonian", "long legged sunflower star", "red swiftia gorgonian",
    "squat lobster", "ui laced sponge", "white slipper sea cucumber", "white spine sea cucumber", "yellow gorgonian",
]  # fmt: skip
LISTS = {"train": "trainkf.txt", "val": "valfull.txt", "test": "testfull.txt"}
_SHAPE = 2  # boxes of a track that stands for one box on one frame


def read(given: ConvertFlags) -> Found:
    """Read a folder of DUSIA; DataError as every format."""
    source = source_path(given.source, folder=True)
    files = files_of(source, ".xml", "annotations of videos")
    wanted = _wanted(source)
    videos = _videos(given.images or str(source), given)
    found = Found(names=list(NAMES), records=[], labels_alone=True, files=files)
    by_video: dict[str, dict[int, str]] = {}
    for (name, frame), (split, _) in wanted.items():
        by_video.setdefault(name, {})[frame] = split
    known = {path.stem: path for path in files}
    for name in by_video:
        if name not in known:
            found.left_out[f"frames of videos without annotations ({name})"] = len(by_video[name])
    if not {*known} & {*by_video}:
        raise DataError(f"source={source}: no list names a frame of {', '.join(sorted(known))}")
    for name in progress(sorted({*known} & {*by_video}), "convert: reading videos"):
        found.records += _read(known[name], by_video[name], videos.get(name), found)
    return found


def _wanted(source: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(video, frame) -> its split and where that is said."""
    wanted: dict[tuple[str, int], tuple[str, str]] = {}
    for split, name in LISTS.items():
        paths = sorted(source.rglob(name))
        if len(paths) != 1:
            raise DataError(f"source={source} has {len(paths) or 'no'} {name} in it, the list of the frames of {split}")
        for where, line in lines_of(paths[0]):
            own, underscore, frame = line.rpartition("_")
            if not (underscore and own and frame.isascii() and frame.isdecimal()):
                raise DataError(f"{where}: '{line[:60]}' is not <video>_<frame>")
            other = wanted.setdefault((own, int(frame)), (split, where))
            if other != (split, where):
                raise DataError(f"{where}: {line} is named before ({other[1]})")
    return wanted


def _videos(folder: str, given: ConvertFlags) -> dict[str, Path]:
    """Name -> file of the videos."""
    image_folders(given.images)  # says where it is no folder
    return {path.stem: path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in video.SUFFIXES}


def _read(path: Path, frames: dict[int, str], film: Path | None, found: Found) -> list[Record]:
    """The frames of one video that the lists name."""
    root = cvat.root_of(path)
    sides = [
        number(root.findtext(f"meta/task/original_size/{side}") or 0, side, str(path)) for side in ("width", "height")
    ]
    if min(sides) <= 0:
        raise DataError(f"{path}: <original_size>, how large the frames are, is not said")
    if film and video.size(film) != tuple(sides):
        own = "×".join(map(str, video.size(film)))
        raise DataError(f"{film} is {own} pixels, its annotations are for {sides[0]:g}×{sides[1]:g}")
    top = int(sides[1]) // 2
    records = {
        frame: Record(
            f"{path.stem}_{frame:07d}.jpg", Frame(film, frame, top) if film else None, f"{path}, frame {frame}",
            (sides[0], sides[1] - top), split=split,
        )
        for frame, split in frames.items()
    }  # fmt: skip
    for track in children(root, "track"):
        name = attribute(path, track, "label").lower()
        boxes = children(track, "box")
        shape = len(boxes) == _SHAPE and boxes[1].get("outside") == "1"
        for box in boxes:
            frame = whole(attribute(path, box, "frame"), "frame", at(path, box))
            split = frames.get(frame)
            if box.get("outside") == "1" or split is None or shape == (split == "train"):
                continue
            left, upper, right, lower = cvat.corners(path, box)
            if lower <= top:
                found.left_out["boxes above the cut"] += 1
            else:
                records[frame].boxes.append(Box(name, left, max(upper - top, 0.0), right, lower - top))
    for record in records.values():
        record.labelled = record.split != "train" or bool(record.boxes)
    return list(records.values())
