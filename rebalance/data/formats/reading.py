"""Reading files of others: each fault is one line with the file and the place, and XML cannot make anything grow."""

from __future__ import annotations

import csv
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element as _Element
from xml.etree.ElementTree import TreeBuilder
from xml.parsers import expat

from PIL import Image

from rebalance.data import dataset
from rebalance.data.folder import unique
from rebalance.errors import DataError, nearest

_ORIENTATION = 274  # EXIF tag; from 5 on width and height change places, as whoever decodes the image does


class Element(_Element):
    """An element of XML that knows its line."""

    line = 0


def source_path(source: str, *, folder: bool = False, flag: str = "source") -> Path:
    """The path of `source=`, or of another flag; DataError where it is not there."""
    path = Path(source)
    if not path.exists():
        around = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{flag}={source} does not exist{nearest(path.name, around)}")
    if folder and not path.is_dir():
        raise DataError(f"{flag}={source} is not a folder")
    return path


def files_of(source: Path, suffix: str, what: str) -> list[Path]:
    """The file that `source` is, or those below it with a suffix; hidden ones are passed over.

    Raises:
        DataError: there is none.
    """
    if source.is_file():
        if source.suffix.lower() != suffix:
            raise DataError(f"source={source} is not {what} ({suffix})")
        return [source]
    found = sorted(
        p for p in source.rglob(f"*{suffix}") if not any(n.startswith(".") for n in p.relative_to(source).parts)
    )
    if not found:
        raise DataError(f"source={source} has no {what} ({suffix}) in it")
    return found


def read_text(path: Path) -> str:
    """The text of a file; DataError where it cannot be read or is no text."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """`file, line n` and the line, of those that are not blank."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def read_xml(path: Path) -> Element:
    """The root of an XML file. A document type is refused, so that no entity can be declared, let alone grow.

    Raises:
        DataError: it cannot be read, is not well-formed, or declares a document type.
    """
    parser, builder = expat.ParserCreate(), TreeBuilder(element_factory=Element)

    def start(tag: str, attributes: dict[str, str]) -> None:
        made = builder.start(tag, attributes)
        assert isinstance(made, Element)
        made.line = parser.CurrentLineNumber

    def refuse(*_: Any) -> None:
        raise DataError(
            f"{path}, line {parser.CurrentLineNumber}: a document type (<!DOCTYPE) is not read: it can declare entities"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(path.read_bytes(), True)
        root = builder.close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"{path}: not well-formed XML: {error}") from None
    assert isinstance(root, Element)
    return root


def children(element: _Element, tag: str) -> list[Element]:
    """The elements of a name right below an element."""
    return [found for found in element.findall(tag) if isinstance(found, Element)]


def at(path: Path, element: _Element) -> str:
    """`file, line n` of an element."""
    return f"{path}, line {getattr(element, 'line', 0)}"


def attribute(path: Path, element: _Element, name: str) -> str:
    """An attribute; DataError without it."""
    value = element.get(name)
    if value is None:
        raise DataError(f"{at(path, element)}: <{element.tag}> has no {name}=")
    return value


def number(text: Any, what: str, where: str) -> float:
    """A finite number; DataError where it is none."""
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {what} {json.dumps(text, default=str)[:80]} is not a number")
    return value


def whole(text: Any, what: str, where: str) -> int:
    """A whole number; DataError where it is none."""
    value = number(text, what, where)
    if value != int(value):
        raise DataError(f"{where}: {what} {text} is not a whole number")
    return int(value)


def read_json(path: Path) -> Any:
    """The content of a JSON file; DataError where it cannot be read."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def entry(value: Any, key: str, kind: type[Any] | tuple[type[Any], ...], where: str) -> Any:
    """`value[key]` of a JSON object, of a kind; DataError where it is not there, or of another."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: {json.dumps(value, default=str)[:40]} is not an object with keys")
    if key not in value:
        raise DataError(f"{where}: no '{key}'{nearest(key, map(str, value))}")
    if not isinstance(value[key], kind) or (isinstance(value[key], bool) and kind is not bool):
        raise DataError(f"{where}: '{key}' is {json.dumps(value[key], default=str)[:40]}, not {_kind(kind)}")
    return value[key]


def _kind(kind: type[Any] | tuple[type[Any], ...]) -> str:
    """What a value of JSON should be."""
    first = kind[0] if isinstance(kind, tuple) else kind
    return {list: "a list", str: "a text", dict: "an object", int: "a number", float: "a number"}.get(
        first, "of the kind it should be"
    )


def identifier(value: Any, key: str, where: str) -> int | str:
    """`value[key]`, a number or a text that stands for something; some tools write `1` as `"1"` or `1.0`."""
    found: int | float | str = entry(value, key, (int, float, str), where)
    if isinstance(found, str):
        return int(found) if found.isascii() and found.isdecimal() else found
    return whole(found, key, where)


def mark(value: Any, what: str, where: str) -> bool:
    """A mark that is set or not, however it is spelled; DataError where it is neither."""
    text = str(value).strip().lower()
    if text not in ("", "0", "0.0", "false", "none", "1", "1.0", "true"):
        raise DataError(f"{where}: {what} is {json.dumps(value, default=str)[:40]}, not 0 or 1")
    return text in ("1", "1.0", "true")


def read_csv(path: Path, needed: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """`file, line n` and the row by column, of a CSV file with a header.

    Raises:
        DataError: it cannot be read, a column is missing, or a row is too short.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            for column in needed:
                if column not in header:
                    raise DataError(f"{path}, line 1: no column {column}{nearest(column, header)}")
            for row in rows:
                if row and len(row) < len(header):
                    raise DataError(f"{path}, line {rows.line_num}: {len(row)} columns; the header has {len(header)}")
                if row:
                    yield f"{path}, line {rows.line_num}", dict(zip(header, row, strict=False))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not CSV text: {error}") from None


def image_size(path: Path, where: str) -> tuple[int, int]:
    """Width and height of an image as it is decoded, from its header; DataError where it is no image."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    # ImportError: where the host is loaded too, what no one knows is tried with a package that may not be there
    except (OSError, SyntaxError, ValueError, TypeError, ImportError, Image.DecompressionBombError):
        raise DataError(f"{where}: {path} cannot be read as an image") from None
    return (height, width) if turned else (width, height)


class Images:
    """The image files below some folders, found by the names that annotations have for them."""

    def __init__(self, *folders: Path) -> None:
        self.folders = [folder for folder in folders if folder.is_dir()]
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        self._read = False

    def find(self, name: str, where: str, *, any_suffix: bool = False) -> Path | None:
        """The file of a name, which may have folders; None where there is none.

        Without folders in the name, or where those are another machine's, the file is looked for by its own name; of
        several the one with most of the folders is it.

        Raises:
            DataError: several fit equally.
        """
        name = name.replace("\\", "/")
        relative = Path(name.lstrip("/"))
        for folder in self.folders:
            if ".." not in relative.parts and not any_suffix and os.path.isfile(folder / relative):
                return folder / relative
        found = self._named(any_suffix).get(relative.name, [])
        if len(found) > 1:
            wanted = [*reversed(relative.parts[:-1])]
            score = {path: _common([*reversed(Path(path).parts[:-1])], wanted) for path in found}
            best = max(score.values())
            found = [path for path in found if score[path] == best]
        if len(found) > 1:
            raise DataError(f"{where}: image {name} is {found[0]} or {found[1]}")
        return Path(found[0]) if found else None

    def _named(self, any_suffix: bool) -> dict[str, list[str]]:
        if not self._read:
            self._read = True
            for path in sorted({os.path.abspath(p) for folder in self.folders for p in dataset.images_of(str(folder))}):
                self._by_name.setdefault(os.path.basename(path), []).append(path)
                self._by_stem.setdefault(os.path.basename(path).rpartition(".")[0], []).append(path)
        return self._by_stem if any_suffix else self._by_name


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts are equal from the start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def image_folders(images: str, *others: Path) -> Images:
    """The images below `images=`, or below the first of the others that has some; DataError where it is no folder."""
    return Images(source_path(images, folder=True, flag="images")) if images else Images(*others)


def folder_name(name: str) -> str:
    """A name as that of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")


def folder_names(files: Sequence[Path]) -> dict[Path, str]:
    """A folder for what each of several files tells of: its name, with that of its folder where two have one name."""
    stems = [path.stem for path in files]
    taken: set[str] = set()
    plain = {path: stems.count(path.stem) == 1 for path in files}
    return {
        path: unique(folder_name(path.stem if plain[path] else f"{path.parent.name}-{path.stem}"), taken)
        for path in files
    }


def shared_names(sets: Sequence[Sequence[str]]) -> list[str]:
    """The names of several lists, each once, in the order in which they come."""
    return list(dict.fromkeys(name for names in sets for name in names))
