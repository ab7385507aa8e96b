"""Which images a path or a glob means, and how to say the same of a data set in which they have other places.

`*` and `?` stand for a part of a name, `[ab]` for a character, `**` for any folders. A pattern means the images it
names and those in the folders it names, at any depth.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

_WILD = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])")


class Pattern:
    """A path or glob, relative to any of some folders, or absolute.

    Raises:
        ValueError: it is no glob.
    """

    def __init__(self, text: str, bases: Iterable[Path]) -> None:
        self.text = text
        _compiled("", slashes(text))  # also where the folders are not there
        # Where it begins, an absolute path without wildcards, and what may follow
        self._places = list(dict.fromkeys(place for base in bases for place in sorted(_places(base, text))))
        self._heads = {head for head, tail in self._places if not tail}
        self._globs = [_compiled(head, tail) for head, tail in self._places if tail]

    def means(self, image: tuple[str, set[str]]) -> bool:
        """Whether it means an image, as `located` gives it."""
        path, above = image
        return bool(self._heads & above) or any(found.match(path) for found in self._globs)

    def absolute(self, images: Collection[tuple[str, set[str]]]) -> Iterator[str]:
        """As absolute ones: those that mean some of these images, or where none does, the one in the first folder."""
        found = []
        for head, tail in self._places:
            if any(head in above if not tail else _compiled(head, tail).match(path) for path, above in images):
                found.append((head, tail))
        for head, tail in found or self._places[:1]:
            yield "/".join(filter(None, [glob.escape(head).rstrip("/"), tail]))

    def moved(self, means: Mapping[str, bool]) -> Iterator[str]:
        """Patterns for the same images where they have other paths.

        Args:
            means: all images there, relative paths with /, and whether this pattern means them.
        """
        below: dict[str, list[str]] = {}  # folder -> all images in it, at any depth
        for image in means:
            for folder in _folders(image):
                below.setdefault(folder, []).append(image)
        count = Counter(folder for image, meant in means.items() if meant for folder in _folders(image))
        whole = {folder for folder, images in below.items() if count[folder] == len(images)}
        left: dict[str, None] = {}
        said = set()
        for image in (image for image, meant in means.items() if meant):
            folders = _folders(image)  # the first holds all splits, and means them only where there is no other
            top = next((folder for folder in folders[1:] or folders if folder in whole), None)
            if top is None:
                left[image] = None
            elif top not in said:
                said.add(top)
                yield top
        tail = slashes(self.text).rstrip("/").rpartition("/")[2]
        for folder in dict.fromkeys(os.path.dirname(image) for image in left) if _WILD.search(tail) else ():
            expression = _compiled(f"/{folder}", tail)
            found = [image for image in below.get(folder, ()) if expression.match(f"/{image}")]
            if found and all(means[image] for image in found):
                yield f"{glob.escape(folder)}/{tail}"
                for image in found:
                    left.pop(image, None)
        yield from left


def located(image: str) -> tuple[str, set[str]]:
    """The absolute path of an image with /, and those of it and of the folders above it."""
    path = slashes(os.path.abspath(image))
    parts = path.split("/")
    return path, {"/".join(parts[:end]) or "/" for end in range(1, len(parts) + 1)}


def slashes(path: str) -> str:
    """The path as it is compared, with / between its parts."""
    return os.path.normcase(path).replace(os.sep, "/")


def _folders(image: str) -> list[str]:
    """The folders that a relative path names, the uppermost first."""
    parts = image.split("/")[:-1]
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _places(base: Path, pattern: str) -> set[tuple[str, str]]:
    """Where a pattern begins and what may follow it: an absolute path without and the rest with wildcards.

    The path is there as it is written, and with links of folders followed, as those of the splits are.
    """
    parts = Path(pattern).parts
    wild = next((i for i, part in enumerate(parts) if _WILD.search(part)), len(parts))
    if wild < len(parts) and os.path.lexists(base / pattern):  # brackets in a name
        wild = len(parts)
    head, tail = base.joinpath(*parts[:wild]), "/".join(parts[wild:])
    if parts[:1] == ("..",) and not head.exists():
        head = base.joinpath(*parts[1:wild])  # as the splits in YAMLs that Roboflow exports
    real = head.resolve() if head.is_dir() else head.parent.resolve() / head.name  # an image that is a link is itself
    return {(slashes(os.path.normpath(path)), slashes(tail)) for path in (head, real)}


def _compiled(head: str, tail: str) -> re.Pattern[str]:
    """Regular expression of a path that ends in wildcards; it also matches what is below the path."""
    parts = [re.escape(head.rstrip("/") + "/")]
    for part in _WILD.split(tail):
        special = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        if special is None and _WILD.fullmatch(part):
            inner = re.sub(r"([\\^\[])", r"\\\1", part[1:-1])
            special = f"[^/{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        parts.append(re.escape(part) if special is None else special)
    try:
        return re.compile(f"(?s:{''.join(parts)})(?:/|$)")
    except re.error as error:
        raise ValueError(error.msg) from None
