"""What a data set says of its labels: the keys of its YAML, joined with the region files of its images.

    annotated:              the classes that were labelled in some of the images; the others are unknown there
      images/train/reef: [fish, crab]       a folder, or one image
      images/train/sand_*: [star]           * and ? stand for a part of a name, [ab] for a character, ** for any folders
    unlabelled: background  or unknown, skip: what an image without a label file is. That it has an empty one says:
                            looked at, nothing there
    unknown_below: 12       objects smaller than so many pixels of the image as it is on disk were not labelled; the
                            size of an object is the square root of its area

A path is relative to `path:`, as those of the splits are, or to the folder of a split; or it is absolute. It means the
images below it: `images/a` means `images/a/1.jpg` and not `images/ab/1.jpg`. Where several mean the same image, their
classes add up. An image that none of them means has all classes labelled. A path that means no image is an error.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rebalance.data.dataset import SPLITS, DataSet, images_of, region_path
from rebalance.data.patterns import Pattern, located, slashes
from rebalance.data.regions import Regions
from rebalance.errors import DataError, nearest

KEYS = ("annotated", "unlabelled", "unknown_below")
UNLABELLED = ("background", "unknown", "skip")


class Knowledge:
    """What is known about the labels of a data set.

    Attributes:
        annotated: pattern of the YAML to the numbers of the classes that were labelled in the images it means.
        unlabelled: what an image without a label file is: background, unknown or skip.
        unknown_below: objects of a smaller size, in pixels of the image on disk, were not labelled; 0: none.

    Raises:
        DataError: a key of the YAML is not what it should be, or is a misspelt one.
    """

    def __init__(self, source: DataSet) -> None:
        _refuse_misspelt(source)
        self.annotated = _annotated(source)
        self.unlabelled = _unlabelled(source)
        self.unknown_below = _unknown_below(source)
        self._source = source
        self._patterns = _patterns(source, self.annotated)
        self._classes = len(source.names)
        self._folders: dict[str, bool] = {}  # whether there is such a folder
        self._whole: dict[frozenset[int] | None, Regions] = {}  # by the classes that were labelled, None: all

    @cached_property
    def any(self) -> bool:
        """Whether anything is known that a data set without these keys and files does not say.

        Raises:
            DataError: a pattern of `annotated` means no image.
        """
        self.require_matched()
        return self.about(self._source.splits)

    def about(self, splits: Collection[str]) -> bool:
        """Whether there are keys, which may be about any images, or region files of these splits."""
        return bool(self.annotated or self.facts) or any(map(_holds_text, self._region_folders(splits)))

    def of(self, image: str) -> Regions:
        """The regions of an image: what is said of all of it, then those of its file, which count more.

        Raises:
            DataError: its region file cannot be read; the message has the file, the line and the reason.
        """
        whole, own = self.whole(image), self.own(image)
        return whole + own if own else whole

    def whole(self, image: str) -> Regions:
        """What the YAML says of a whole image: which classes are unknown in it."""
        known = self.labelled_classes(image)
        if self.unlabelled == "unknown" and not self._source.has_labels(image):
            known = frozenset()
        if known not in self._whole:
            missing = np.array([known is not None and i not in known for i in range(self._classes)], np.bool_)
            self._whole[known] = Regions.whole(missing)
        return self._whole[known]

    def own(self, image: str) -> Regions | None:
        """The regions of an image's file, None without one; errors as `of`."""
        path = region_path(image)
        folder = path and os.path.dirname(path)
        if not folder:
            return None
        if folder not in self._folders:  # so that images are not looked up one by one where there is none
            self._folders[folder] = os.path.isdir(folder)
        data, found = self._source.regions(image) if self._folders[folder] else (None, None)
        return None if data is None else found

    @property
    def facts(self) -> dict[str, Any]:
        """Of the keys that are about no images in particular, those that say something."""
        found = {"unlabelled": self.unlabelled, "unknown_below": self.unknown_below}
        return {key: value for key, value in found.items() if value not in ("background", 0)}

    def skips(self, image: str) -> bool:
        """Whether the image is left out: it has no label file, and `unlabelled: skip`."""
        return self.unlabelled == "skip" and not self._source.has_labels(image)

    def labelled_classes(self, image: str) -> frozenset[int] | None:
        """Numbers of the classes that `annotated` says were labelled in an image; None: no pattern means it."""
        matched = self.matched(image)
        return frozenset().union(*(self.annotated[pattern] for pattern in matched)) if matched else None

    def matched(self, image: str) -> list[str]:
        """The patterns of `annotated` that mean an image, in their order."""
        if not self.annotated:
            return []
        place = located(image)
        return [pattern.text for pattern in self._patterns if pattern.means(place)]

    def moved(self, images: Mapping[str, str], staying: Collection[str]) -> dict[str, list[str]]:
        """`annotated` for a data set in which some images have other paths.

        Args:
            images: path of an image to its new one, relative to the new data set's root, with /.
            staying: splits whose images are where they are.
        """
        others = [located(image) for image in self._images(staying)]
        places = {new: located(image) for image, new in images.items()}
        said: dict[str, set[int]] = {}
        for pattern in self._patterns:
            means = {new: pattern.means(place) for new, place in places.items()}
            elsewhere = [place for place in others if pattern.means(place)]
            found = list(pattern.moved(means))
            found += pattern.absolute(elsewhere) if elsewhere or not found else ()
            for text in found:
                said.setdefault(text, set()).update(self.annotated[pattern.text])
        names = self._source.names
        return {text: list(dict.fromkeys(names[i] for i in sorted(numbers))) for text, numbers in said.items()}

    def require_matched(self) -> None:
        """Raise DataError for a pattern of `annotated` that means no image of the splits that are there."""
        left = dict.fromkeys(self.annotated)
        for image in self._images() if left else ():
            for pattern in self.matched(image):
                left.pop(pattern, None)
            if not left:
                return
        if left and all(os.path.exists(entry) for entries in self._source.splits.values() for entry in entries):
            pattern = next(iter(left))
            images = [slashes(os.path.relpath(image, self._source.root)) for image in self._images()]
            near = nearest(pattern.rstrip("/"), {os.path.dirname(image) for image in images})
            if any(image.startswith(pattern) for image in images):
                near = f" (did you mean {pattern}*?)"
            raise DataError(
                f"{self._source.file}: annotated: '{pattern}' means no image; it is a folder, an image or a glob of "
                f"them, relative to {self._source.root.absolute()} or to the folder of a split{near}"
            )

    def require_readable(self, splits: Collection[str] = ("train", "val")) -> None:
        """Read what is said of each image of these splits that are there; errors as `any` and `of`."""
        for image in self._images(splits) if self.any else ():
            self.of(image)

    def _images(self, splits: Collection[str] = SPLITS) -> Iterator[str]:
        """Images of those splits that are there."""
        for split in splits:
            for entry in self._source.splits.get(split, ()):
                if os.path.exists(entry):
                    yield from images_of(entry)

    def _region_folders(self, splits: Collection[str]) -> set[str]:
        """Folders that would hold region files of splits; images in folders are not looked up one by one."""
        folders = set[str]()
        for entry in (entry for split in splits for entry in self._source.splits[split]):
            if os.path.isdir(entry):
                folders.update(folder for folder, *_ in os.walk(entry, followlinks=True))
            elif os.path.exists(entry):
                folders.update(map(os.path.dirname, images_of(entry)))
        paths = (region_path(os.path.join(folder, "x.jpg")) for folder in folders)
        return {os.path.dirname(path) for path in paths if path}


def _holds_text(folder: str) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(entry.name.endswith(".txt") for entry in found)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _annotated(source: DataSet) -> dict[str, frozenset[int]]:
    raw = source.raw.get("annotated")
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise DataError(
            f"{source.file}: annotated is of type {type(raw).__name__}, not a mapping of images to lists of class names"
        )
    return {str(pattern): _numbers(source, str(pattern), names) for pattern, names in raw.items()}


def _patterns(source: DataSet, annotated: Collection[str]) -> list[Pattern]:
    if not annotated:
        return []
    bases = [source.root.absolute()]
    bases += [Path(entry) for entries in source.splits.values() for entry in entries if os.path.isdir(entry)]
    found = []
    for text in annotated:
        try:
            found.append(Pattern(text, bases))
        except ValueError as error:
            raise DataError(f"{source.file}: annotated: {text} is not a glob: {error}") from None
    return found


def _numbers(source: DataSet, pattern: str, names: Any) -> frozenset[int]:
    """The numbers of the classes of one pattern; a name that two classes have is both."""
    where = f"{source.file}: annotated: {pattern}:"
    if not pattern.strip("/ "):
        raise DataError(f"{where} names no images")
    if not isinstance(names, list):
        raise DataError(f"{where} {names} is not a list of class names ([] where no class was labelled)")
    by_name: dict[str, set[int]] = {}
    for number, name in source.names.items():
        by_name.setdefault(name, set()).add(number)
    for name in names:
        if str(name) not in by_name:
            known = source.names.get(name) if isinstance(name, int) and not isinstance(name, bool) else None
            hint = f" (class {name} is '{known}')" if known else nearest(str(name), by_name)
            raise DataError(f"{where} '{name}' is not a class{hint}; classes: {', '.join(by_name)}")
    return frozenset().union(*(by_name[str(name)] for name in names))


def _unlabelled(source: DataSet) -> str:
    value = source.raw.get("unlabelled")
    value = "background" if value is None else value
    if value not in UNLABELLED:
        raise DataError(
            f"{source.file}: unlabelled: {value} is not one of {', '.join(UNLABELLED)}{nearest(str(value), UNLABELLED)}"
        )
    return str(value)


def _unknown_below(source: DataSet) -> int:
    value = source.raw.get("unknown_below")
    value = 0 if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9 or value != int(value):
        raise DataError(f"{source.file}: unknown_below: {value} is not a whole number of pixels, 0 or more")
    return int(value)


def _refuse_misspelt(source: DataSet) -> None:
    """Raise DataError for a key that is nearly one of ours and has a value as ours have: it would say nothing."""
    kinds: Mapping[str, Any] = {
        "annotated": lambda value: isinstance(value, dict),
        "unlabelled": lambda value: value in UNLABELLED,
        "unknown_below": lambda value: isinstance(value, int | float),
    }
    for name, value in source.raw.items():
        for key, fits in kinds.items():
            near = nearest(str(name).lower().replace("-", "_"), [key])
            if name not in KEYS and near and fits(value):
                raise DataError(f"{source.file}: unknown key '{name}'{near}")
