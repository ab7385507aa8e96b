"""Ultralytics detection data sets: the YAML and the images, found as Ultralytics 8.4 finds them, without importing it.

    path:   folder the others are relative to; the YAML's own folder where it is not given. A relative one is looked up
            in the current folder, then in `datasets_dir` of Ultralytics' settings.
    train, val, test:  a folder (searched with its sub-folders), a text file with one image a line, or a list of these
    names:  list, or mapping from 0

The label file of an image is found by its name: the last `/images/` becomes `/labels/`, the suffix `.txt`.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rebalance.data import labels, regions
from rebalance.data.labels import Labels
from rebalance.data.regions import Regions
from rebalance.errors import DataError, nearest

if TYPE_CHECKING:
    from rebalance.data.knowledge import Knowledge

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = frozenset(
    ("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
)
MOST_CLASSES = 10**6
UNNAMED = ("data", "dataset")  # what a YAML is called whose folder has the name of the data set
_NEEDED = ("train", "val")  # no training without
_TYPES: dict[str, tuple[type, ...]] = {
    "path": (str,), "train": (str, list), "val": (str, list), "test": (str, list), "names": (list, dict),
    "kpt_shape": (list,), "download": (str,),
}  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A data set YAML with everything resolved."""

    file: Path  # the YAML
    root: Path  # `path`, or the YAML's own folder without one
    names: Mapping[int, str]  # class names by number, complete from 0
    splits: Mapping[str, tuple[str, ...]]  # absolute folders and list files of the splits that the YAML names
    keypoints: tuple[int, int]  # `kpt_shape` of a pose data set, (0, 0) without
    raw: Mapping[str, Any]  # the YAML as written

    def images(self, split: str) -> list[str]:
        """Image paths of a split, sorted; an image that is listed twice is there twice, as in training.

        Raises:
            DataError: the split is not in the YAML, is not there, or has no image.
        """
        if split not in self.splits:
            raise DataError(f"{self.file} has no '{split}:'; it has {', '.join(self.splits)}")
        found = sorted(image for entry in self.splits[split] for image in images_of(entry))
        if not found:
            raise DataError(f"{self.file}: no images in {split}: {', '.join(self.splits[split])}")
        return found

    def parse(self, data: bytes, name: str = "label file") -> Labels:
        """Labels in the bytes of a label file of this data set; DataError as `labels.parse`."""
        return labels.parse(data, classes=len(self.names), keypoints=self.keypoints, name=name)

    def labels(self, image: str) -> Labels:
        """Labels of an image, none without a label file; DataError as `labels.parse`, or the file cannot be read."""
        path = label_path(image)
        return self.parse(self.file_bytes(path) or b"", path)

    def file_bytes(self, path: str) -> bytes | None:
        """Bytes of a file beside the images, None where there is none; DataError where it cannot be read."""
        return labels.read_bytes(path)

    def has_labels(self, image: str) -> bool:
        """Whether an image has a label file, empty or not."""
        return os.path.isfile(label_path(image))

    def require_labels(self, classes: Collection[int] | None = None, *, numbered: bool = True) -> None:
        """Refuse a data set of which no training image has a label.

        Args:
            classes: of one of these, where given.
            numbered: the labels have the class numbers of this data set; else any.

        Raises:
            DataError: there is none, or as `images`.
        """
        if not self.labelled("train", classes, numbered=numbered):
            of = "" if classes is None else f" of classes={','.join(map(str, classes))}"
            raise DataError(f"{self.file}: no training image has a label{of}")

    def labelled(self, split: str, classes: Collection[int] | None = None, *, numbered: bool = True) -> bool:
        """Whether a split is there and an image of it has a label; arguments and errors as of `require_labels`."""
        if split not in self.splits:
            return False
        count = len(self.names) if numbered else sys.maxsize
        for image in self.images(split):
            path = label_path(image)
            with contextlib.suppress(DataError):  # the host leaves such an image out
                found = labels.parse(self.file_bytes(path) or b"", classes=count, keypoints=self.keypoints, name=path)
                if len(found) if classes is None else {*found.classes.tolist()} & {*classes}:
                    return True
        return False

    def withheld(self, image: str) -> Labels:
        """Boxes that were withheld from an image's labels when the data set was made; none for most data sets."""
        path = withheld_path(image)
        return self.parse((path and self.file_bytes(path)) or b"", str(path))

    def regions(self, image: str) -> tuple[bytes | None, Regions]:
        """The bytes of an image's region file, None without one, and the regions in it.

        Raises:
            DataError: as `regions.parse`, or the file cannot be read.
        """
        path = region_path(image)
        data = self.file_bytes(path) if path else None
        name = f"{path} ({os.path.basename(image)})"
        return data, regions.parse(data or b"", classes=len(self.names), name=name)

    def has_withheld(self) -> bool:
        """Whether boxes were withheld from a training image; errors as `images`, or as `labels.parse`."""
        return any(len(self.withheld(image)) for image in self.images("train"))

    @cached_property
    def knowledge(self) -> Knowledge:
        """What is known about the labels: region files, and `annotated`, `unlabelled`, `unknown_below` of the YAML.

        Raises:
            DataError: one of the keys is not what it should be.
        """
        from rebalance.data.knowledge import Knowledge  # which finds its files by this module

        return Knowledge(self)


def load(data: str | Path, *, download: bool = False) -> DataSet:
    """Read a data set YAML: a file, one in a folder, or by its name one that comes with Ultralytics (`coco8.yaml`).

    Args:
        data: as `data=`.
        download: images may be missing where the YAML says how they are fetched.

    Raises:
        DataError: there is no such YAML, it is not a valid data set, or its training or validation images are missing.
    """
    file = find(data)
    raw = _read_yaml(file)
    for key, types in _TYPES.items():
        if raw.get(key) is not None and not isinstance(raw[key], types):
            kinds = " or ".join(t.__name__ for t in types)
            raise DataError(f"{file}: '{key}' is of type {type(raw[key]).__name__}, not {kinds}")
    if "val" not in raw and "validation" in raw:
        raw["val"] = raw.pop("validation")
    _channels(file, raw)
    for split in _NEEDED:
        if not raw.get(split):
            raise DataError(f"{file} has no '{split}:'{nearest(split, map(str, raw))}")

    root = Path(raw.get("path") or file.parent)
    try:
        if not root.exists() and not root.is_absolute():
            root = (datasets_dir() / root).resolve()
        splits = {split: _entries(file, root, split, raw[split]) for split in SPLITS if raw.get(split)}
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise DataError(f"{file}: a path that cannot be one: {getattr(error, 'strerror', None) or error}") from None
    missing = [f"{split} images not found: {x}" for split in _NEEDED for x in splits[split] if not os.path.exists(x)]
    if missing and not (download and raw.get("download")):
        why = "looked up from the YAML's own folder, because it has no 'path:'"
        if raw.get("path"):
            why = f"path: {raw['path']} was found to mean {root.absolute()}; datasets_dir is {datasets_dir()}"
        made = f"; made by: {raw['made_by']}" if raw.get("made_by") else ""
        raise DataError(f"{file}: {missing[0]} ({why}){made}")
    points = raw.get("kpt_shape") or (0, 0)
    if len(points) != 2 or not all(isinstance(n, int) for n in points):
        raise DataError(f"{file}: kpt_shape={points} is not a pair of whole numbers")
    return DataSet(file, root, _names(file, raw), splits, (points[0], points[1]), raw)


def channels(file: str | Path) -> int:
    """Channels of the images of a data set YAML, 3 where it does not say; DataError where it is no number."""
    return _channels(Path(file), _read_yaml(Path(file)))


def find(data: str | Path) -> Path:
    """The YAML that `data` means; DataError where there is none, or more than one."""
    name = str(data).strip()
    if "://" in name or name.lower().endswith((".ndjson", ".zip", ".tar", ".gz")):
        raise DataError(f"data={name} is not a YAML on this machine; download and unpack it first")
    tried = [name] if Path(name).suffix in (".yaml", ".yml") else [name, f"{name}.yaml", f"{name}.yml"]
    package = _ultralytics()
    for candidate in filter(None, tried):
        if os.path.isdir(candidate):
            return _in_folder(Path(candidate))
        shipped = glob.glob(str(package / "**" / candidate), recursive=True) if package else []
        found = [candidate] if os.path.exists(candidate) else shipped
        if len(found) == 1:
            file = Path(found[0])
            if file.suffix.lower() not in (".yaml", ".yml"):
                raise DataError(f"data={file} is not a YAML (.yaml or .yml)")
            return file
    around = [p.name for p in Path(name).parent.glob("*.y*ml")] if Path(name).parent.is_dir() else []
    raise DataError(f"data={name} does not exist{nearest(Path(name).name, around)}")


def is_shipped(file: Path) -> bool:
    """Whether a YAML is one of those that come with Ultralytics."""
    package = _ultralytics()
    return package is not None and package.resolve() in file.resolve().parents


def images_of(entry: str) -> list[str]:
    """Images of one entry of a split: those below a folder, or those a text file lists.

    Lines of a list that start with `./` are relative to the list, others are taken as they are. Hidden files and
    folders, and names without the suffix of an image, are passed over, as Ultralytics does.

    Raises:
        DataError: the entry does not exist or is not text.
    """
    path = Path(entry)
    if path.is_dir():
        found = glob.glob(str(Path(glob.escape(entry)) / "**" / "*.*"), recursive=True)
        return sorted(x for x in found if _is_image(x) and not os.path.isdir(x))
    try:
        lines = path.read_text(encoding="utf-8-sig").strip().splitlines()
    except FileNotFoundError:
        raise DataError(f"{entry} does not exist") from None
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{entry} is neither a folder nor a text file with one image a line") from None
    parent = str(path.parent) + os.sep
    lines = [line.replace("./", parent, 1) if line.startswith("./") else line for line in lines]
    return sorted(line.replace("/", os.sep) for line in lines if _is_image(line))


def title(file: Path) -> str:
    """What the data set of a YAML is called: as the YAML, or as its folder where that says nothing."""
    folder = file.absolute().parent.name
    return folder if file.stem in UNNAMED and folder else file.stem


def label_path(image: str) -> str:
    """The label file that Ultralytics looks for; it need not exist."""
    return _beside(image, "labels")


def withheld_path(image: str) -> str | None:
    """The file with the boxes withheld from an image, None where the image is in no folder `images`; need not exist."""
    return _beside_labels(image, "withheld")


def region_path(image: str) -> str | None:
    """The file with the regions of an image, None as `withheld_path`; need not exist."""
    return _beside_labels(image, "regions")


def true_path(image: str) -> str | None:
    """The file with an image's labels before noise changed them, None as `withheld_path`; need not exist."""
    return _beside_labels(image, "true")


def datasets_dir() -> Path:
    """Ultralytics' setting `datasets_dir`, read from its settings file, or its default without one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Path(json.loads((_config_dir() / "settings.json").read_text(encoding="utf-8"))["datasets_dir"])
    package = _ultralytics()
    repo = next((d for d in package.resolve().parents if (d / ".git").exists()), None) if package else None
    if repo is None:
        return Path.cwd() / "datasets"
    return (repo.parent if os.access(repo.parent, os.W_OK) else repo) / "datasets"


def _beside_labels(image: str, folder: str) -> str | None:
    return _beside(image, folder) if f"{os.sep}images{os.sep}" in image else None


def _beside(image: str, folder: str) -> str:
    return f"{os.sep}{folder}{os.sep}".join(image.rsplit(f"{os.sep}images{os.sep}", 1)).rsplit(".", 1)[0] + ".txt"


def _is_image(name: str) -> bool:
    return name.rpartition(".")[-1].lower() in IMAGE_SUFFIXES


def _config_dir() -> Path:
    """Ultralytics' settings folder on this machine."""
    home = Path.home()
    default = {"win32": home / "AppData" / "Roaming", "darwin": home / "Library" / "Application Support"}.get(
        sys.platform, Path(os.environ.get("XDG_CONFIG_HOME", home / ".config"))
    )
    folder = Path(os.environ.get("YOLO_CONFIG_DIR") or default).expanduser() / "Ultralytics"
    if folder.is_dir() or not hasattr(os, "getuid"):
        return folder
    private = Path(tempfile.gettempdir()) / f"Ultralytics-{os.getuid()}"  # where the first cannot be made
    return private if private.is_dir() else folder


def _ultralytics() -> Path | None:
    """Folder of the installed Ultralytics package, without importing it."""
    spec = importlib.util.find_spec("ultralytics")
    return Path(spec.origin).parent if spec and spec.origin else None


def _in_folder(folder: Path) -> Path:
    """The one YAML in a folder; of several the one named like the folder."""
    looks = (list(look(pattern)) for pattern in ("*.yaml", "*.yml") for look in (folder.glob, folder.rglob))
    found = next(filter(None, looks), [])
    if len(found) > 1:
        found = [p for p in found if p.stem == folder.stem]
    if len(found) != 1:
        raise DataError(f"data={folder} is a folder without exactly one YAML; name the YAML")
    return found[0]


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8", errors="ignore"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, brackets without an end
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise DataError(f"{file}: not a mapping of keys to values, as a data set YAML is")
    return {key: None if value == "None" else value for key, value in raw.items()}


def _channels(file: Path, raw: Mapping[str, Any]) -> int:
    count = raw.get("channels", 3)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise DataError(f"{file}: channels: {json.dumps(count, default=str)} is not a whole number such as 3")
    return count


def _entries(file: Path, root: Path, split: str, value: str | list[Any]) -> tuple[str, ...]:
    """Absolute folders and list files of one split."""
    if isinstance(value, str):
        if not (root / value).resolve().exists():
            value = value.removeprefix("../")  # as in YAMLs that Roboflow exports
        value = [value]
    if not all(isinstance(x, str) for x in value):
        raise DataError(f"{file}: '{split}' is a list with something else than texts in it")
    return tuple(str((root / x).resolve()) for x in value)


def _names(file: Path, raw: Mapping[str, Any]) -> dict[int, str]:
    names, count = raw.get("names"), raw.get("nc")
    if "nc" in raw:
        try:
            number = float(str(count))  # neither True nor a list
        except ValueError:
            number = math.nan
        if not number.is_integer():
            raise DataError(f"{file}: nc={count} is not a whole number")
        count = int(number)
        if count > MOST_CLASSES:
            raise DataError(f"{file}: nc={raw['nc']} is more than {MOST_CLASSES} classes")
    if names is None:
        if count is None:
            raise DataError(f"{file} has neither 'names:' nor 'nc:'")
        names = [f"class_{i}" for i in range(count)]
    if count is not None and len(names) != count:
        raise DataError(f"{file}: {len(names)} names, but nc={count}")
    try:
        by_id = dict(enumerate(names)) if isinstance(names, list) else {int(k): v for k, v in names.items()}
    except (TypeError, ValueError):
        raise DataError(f"{file}: the keys of 'names' are not whole numbers") from None
    if not by_id or sorted(by_id) != list(range(len(by_id))):
        raise DataError(f"{file}: 'names' has the classes {sorted(by_id)}, not 0, 1, 2 ... without a gap")
    return {i: str(by_id[i]) for i in sorted(by_id)}
