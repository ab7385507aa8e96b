"""`seafloor`, the built-in data set: pictures made by `rebalance.data.demo.scenery`, laid out like a sparsified set.

    seafloor-<size>-<hash of the flags>/
        data.yaml  manifest.json
        images/{train,val,test}  labels/{train,val,test}  withheld/train

Validation and test labels are complete. Of the training boxes only the fraction `labelled` is in labels/train; the
rest is in withheld/train, under the same names. The same flags give the same bytes: every image has its own generator,
seeded by (seed, split, number), so neither order nor the number of processes matters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from rebalance.data import labels
from rebalance.data.demo.scenery import render
from rebalance.data.demo.sprites import NAMES
from rebalance.data.folder import finish, new_folder, put
from rebalance.data.labels import Labels
from rebalance.data.protocols import Withhold
from rebalance.errors import DataError
from rebalance.settings import SeafloorFlags, as_dict, parse

VERSION = 1  # raise it with every change of a picture or a label: old folders are then left alone and new ones made
SPLITS = ("train", "val", "test")
YAML, COMPLETE = "seafloor.yaml", "seafloor-complete.yaml"
BUILT_IN = {YAML: SeafloorFlags(), COMPLETE: SeafloorFlags(labelled=1.0)}  # names that always work
READY = (
    "voc0712",
    "voc2012",
    "coco2017",
    "coco50",
    "dusia",
    "fddb",
    "indoor",
)  # YAMLs of data sets of others, in `data`
QUALITY = 92  # JPEG
SHARE = 32  # images that make another process worth its start
PROJECT = Path(__file__).resolve().parents[3]


def ensure(flags: SeafloorFlags, root: Path | None = None) -> Path:
    """Return the data set's data.yaml; make the data set first where it is not there yet.

    With `flags.out` that new folder is made, otherwise `folder_name(flags)` in `root`, by default `data_folder()`.

    Raises:
        DataError: `out` exists already, or the folder cannot be written.
    """
    if flags.out:
        return generate(flags, flags.out)
    final = (data_folder() if root is None else root) / folder_name(flags)
    made = final / "data.yaml"
    try:
        if not made.is_file():
            generate(flags, final)
    except DataError:
        if not made.is_file():  # else another process was faster, with the same bytes
            raise
    return made


def generate(flags: SeafloorFlags, out: str | Path) -> Path:
    """Make the data set in the new folder `out`, not in `flags.out`, and return the path of its data.yaml.

    Nothing has the final name before all of it is there.

    Raises:
        DataError: the folder exists or cannot be written.
    """
    out = Path(out)
    rule = Withhold(protocol="percent", rate=round(1 - flags.labelled, 9), seed=(flags.seed, len(SPLITS)))
    with new_folder(out) as work:
        with contextlib.closing(_draw_all(flags, work)) as drawn:
            _count(drawn, flags, out)
        files = sorted((work / "labels" / "train").iterdir())
        for file, (stay, gone) in zip(files, rule([_read(file) for file in files]), strict=True):
            put(file, stay.data)
            put(work / "withheld" / "train" / file.name, gone.data)
        # Without `path` the splits are relative to the file, so the folder can be moved.
        content = {**{split: f"images/{split}" for split in SPLITS}, "names": dict(enumerate(NAMES))}
        finish(work, content, _manifest(flags, rule.rate, work))
    return out / "data.yaml"


def built_in(data: str) -> str:
    """Return the data.yaml that `data=` means: for a seafloor YAML the generated one, else `data` itself.

    A seafloor YAML is a file with the key `seafloor`; its data set lies beside it. The bare names in `BUILT_IN` always
    work: without such a file in the current folder it is the one of this project, or the flags there. So
    do those in `READY`, with or without their suffix: the YAML of this project.

    Raises:
        ConfigError: the YAML has an unknown flag or a bad value.
        DataError: the data set cannot be made.
    """
    if named := _named(data):
        return str(ensure(*named))
    path, own = Path(data), data_folder() / f"{Path(data).stem}.yaml"
    if data in (path.stem, own.name) and path.stem in READY and own.is_file() and not (path.suffix and path.is_file()):
        return str(own)
    return data


def unmade(data: str) -> SeafloorFlags | None:
    """The flags of the built-in set that `data=` means and that is not there yet, `out` where it will be made.

    None: it is there, or `data=` means another; ConfigError as `built_in`.
    """
    if (named := _named(data)) and not ((out := named[1] / folder_name(named[0])) / "data.yaml").is_file():
        return dataclasses.replace(named[0], out=str(out))
    return None


def _named(data: str) -> tuple[SeafloorFlags, Path] | None:
    """The flags of the built-in set that `data=` means, and where it lies; None: it means another data set."""
    path = Path(data)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        flags = _flags(path)
        return None if flags is None else (flags, path.parent)
    if data in BUILT_IN:
        own = data_folder() / data
        return (from_yaml(own) if own.is_file() else BUILT_IN[data]), data_folder()
    return None


def from_yaml(path: str | Path) -> SeafloorFlags:
    """Read the flags under the key `seafloor` of a YAML.

    Raises:
        ConfigError: an unknown flag or a bad value.
        DataError: the file has no such key.
    """
    flags = _flags(Path(path))
    if flags is None:
        raise DataError(f"{path} has no key 'seafloor' with the flags of the built-in data set")
    return flags


def _flags(path: Path) -> SeafloorFlags | None:
    """As `from_yaml`; None where there is no such key, or no YAML, which is for others to say."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if not isinstance(content, dict) or "seafloor" not in content:
        return None
    settings = content["seafloor"] or {}
    if not isinstance(settings, dict):
        raise DataError(f"{path}: 'seafloor' is not a mapping of flags to values")
    return dataclasses.replace(parse(SeafloorFlags, settings), out="")


def folder_name(flags: SeafloorFlags) -> str:
    """Name of the folder for these flags: the same flags and generator, the same name."""
    key = json.dumps([VERSION, _facts(flags)], sort_keys=True)
    return f"seafloor-{flags.size}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def data_folder() -> Path:
    """Where data sets go: `data` of this project, or of the current folder where only the package is installed."""
    own = PROJECT / "data"
    return own if (own / YAML).is_file() else Path("data")


def _facts(flags: SeafloorFlags) -> dict[str, Any]:
    """The flags that decide what is in the data set."""
    return {name: value for name, value in as_dict(flags).items() if name != "out"}


def _jobs(flags: SeafloorFlags) -> list[tuple[str, int]]:
    """Every image as (split, number)."""
    return [(split, number) for split in SPLITS for number in range(getattr(flags, split))]


def _draw(flags: SeafloorFlags, work: Path, split: str, number: int) -> None:
    """Write one image and its complete label file."""
    rng = np.random.Generator(np.random.PCG64([flags.seed, SPLITS.index(split), number]))
    image, boxes = render(rng, flags.size)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise DataError("OpenCV was built without JPEG")
    name = f"{split}/{split}_{number:05d}"
    put(work / "images" / f"{name}.jpg", data.tobytes())
    text = ""
    for label, x1, y1, x2, y2 in boxes:
        numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        text += f"{label} {' '.join(f'{value / flags.size:.6f}' for value in numbers)}\n"
    put(work / "labels" / f"{name}.txt", text.encode())


def _draw_all(flags: SeafloorFlags, work: Path) -> Generator[int, None, None]:
    """Write all images and complete labels on all cores that this process may use; yields how many more are done.

    The workers are processes of their own, started by command: a forked copy of a process that has used threads can
    hang, and `multiprocessing` would run an unguarded script of the user again.
    """
    jobs = _jobs(flags)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, len(jobs) // SHARE)
    if count < 2:
        for job in jobs:
            _draw(flags, work, *job)
            yield 1
        return
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))}
    reader, writer = os.pipe()  # one byte an image, from all workers
    with open(reader, "rb", 0) as marks, tempfile.TemporaryFile() as log, contextlib.ExitStack() as stack:
        workers: list[subprocess.Popen[bytes]] = []
        with open(writer, "wb", 0):  # ours is closed once the workers have theirs
            for first in range(count):
                task = json.dumps([_facts(flags), str(work.absolute()), first, count])
                command = [sys.executable, "-m", "rebalance.data.demo.seafloor", task]
                workers.append(stack.enter_context(subprocess.Popen(command, stdout=writer, stderr=log, env=env)))
                stack.callback(workers[-1].kill)
        while done := marks.read(4096):
            yield len(done)
        if any(worker.wait() for worker in workers):
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines() or ["a process ended without a word"]
            raise DataError(f"making the seafloor images failed: {said[-1]}")


def _worker(task: str) -> None:
    """Draw every n-th image; what a process of `_draw_all` runs."""
    facts, work, first, step = json.loads(task)
    flags = parse(SeafloorFlags, facts)
    cv2.setNumThreads(1)
    for job in _jobs(flags)[first::step]:
        _draw(flags, Path(work), *job)
        os.write(1, b".")


def _count(drawn: Iterable[int], flags: SeafloorFlags, out: Path) -> None:
    """Count the images on stderr: rewritten in place on a terminal, four lines elsewhere."""
    done, total, terminal = 0, len(_jobs(flags)), sys.stderr.isatty()
    print(f"seafloor: making {total} images of {flags.size} px in {out}", file=sys.stderr, flush=True)
    for more in drawn:
        before, done = done, done + more
        if terminal or done * 4 // total > before * 4 // total:
            start, end = ("\r", "\n" * (done == total)) if terminal else ("", "\n")
            print(f"{start}seafloor: {done}/{total} images", end=end, file=sys.stderr, flush=True)


def _read(file: Path) -> Labels:
    return labels.parse(file.read_bytes(), classes=len(NAMES), name=str(file))


def _manifest(flags: SeafloorFlags, asked: float, work: Path) -> dict[str, Any]:
    """What manifest.json says of the finished files."""
    boxes = {folder: dict.fromkeys(NAMES, 0) for folder in (*(f"labels/{split}" for split in SPLITS), "withheld/train")}
    hashes: dict[str, str] = {}
    text = ""
    for file in sorted(work.rglob("*/*/*")):
        name = file.relative_to(work).as_posix()
        hashes[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        if file.suffix == ".txt":
            text += f"{name} {hashes[name]}\n"
            for label in _read(file).classes.tolist():
                boxes[name.rpartition("/")[0]][NAMES[label]] += 1
    kept, gone = boxes["labels/train"], boxes["withheld/train"]

    def reached(gone: int, kept: int) -> float:
        return round(gone / (gone + kept), 6) if gone + kept else 0.0

    return {
        "schema": 1,
        "made_by": "rebalance seafloor",
        "version": VERSION,
        "flags": _facts(flags),
        "images": {split: getattr(flags, split) for split in SPLITS},
        "boxes": boxes,
        "asked": asked,
        "reached": reached(sum(gone.values()), sum(kept.values())),
        "reached_per_class": {name: reached(gone[name], kept[name]) for name in NAMES},
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "files": hashes,
    }


if __name__ == "__main__":
    _worker(sys.argv[1])
