"""The suggestions of an audit, as a file: one row a suggestion.

    id            12 hexadecimal digits from image, kind, class and box: the same wherever the same box is suggested
    image         path below the images' common folder (`images_root` of audit.json), with /; else an absolute one
    kind          missing: a box that no label explains
                  wrong_class: a label of another class lies there; class and box are those proposed
                  badly_placed: the label of this class lies somewhat elsewhere; the box is the one proposed
                  spurious: a label that no model finds; class and box are the label's
    class, name   number and name of the class
    x1 .. y2      box in pixels of the image as it is read for training
    score         of the detection, 0 to 1; of a spurious label 0
    probability   that the label is missing, 0 to 1; empty where there is none: other kinds, and classes of which too
                  little is known
    label         the nearest label, by its place among the boxes of the label file; empty without one
    label_class, label_x1 .. label_y2, iou   its class and box, and the IoU with it

Rows are sorted by kind as above, then by falling probability, then by falling score.

The file is for machines, so a name is what it is, but for one case: a spreadsheet runs a cell that begins with = + - @
as a formula, and names of files and classes are a stranger's text. Such a name has an apostrophe in front, and so has
one that begins with an apostrophe itself; who reads the file takes the first apostrophe away, as `read` does.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rebalance.errors import DataError, nearest
from rebalance.files import write_whole

ABOUT, SUGGESTIONS = "audit.json", "suggestions.csv"  # of an audit: what it found out, and this table
TOLD = ("kinds", "classes", "total", "truth")  # of audit.json: what was found, without what was asked
# of an estimate in it
COUNTS = ("missing", "low", "high", "with_unfound", "with_unfound_low", "with_unfound_high")
KINDS = ("missing", "wrong_class", "badly_placed", "spurious")
COLUMNS = (
    "id", "image", "kind", "class", "name", "x1", "y1", "x2", "y2", "score", "probability",
    "label", "label_class", "label_x1", "label_y1", "label_x2", "label_y2", "iou",
)  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")  # what a spreadsheet would run, and the mark itself

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Near:
    """The label nearest to a suggestion."""

    index: int  # among the boxes of its label file
    number: int  # of its class
    box: Box
    iou: float


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One row."""

    image: str
    kind: str
    number: int  # of the class
    name: str  # of the class
    box: Box  # left, top, right, bottom in pixels
    score: float
    probability: float | None = None
    label: Near | None = None

    @property
    def id(self) -> str:
        """The same wherever the same box is suggested."""
        told = "\n".join([self.image, self.kind, str(self.number), *map(_pixels, self.box)])
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def sort(rows: Iterable[Suggestion]) -> list[Suggestion]:
    """The rows in the order of the file."""

    def place(row: Suggestion) -> tuple[int, float, float, str, tuple[float, ...]]:
        probability = -1.0 if row.probability is None else row.probability
        return KINDS.index(row.kind), -probability, -row.score, row.image, row.box

    return sorted(rows, key=place)


def write(path: Path, rows: Iterable[Suggestion]) -> Path:
    """Write the file, whole or not at all, sorted; returns it. Errors as `rebalance.files.whole`."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(COLUMNS)
    for row in sort(rows):
        near = row.label
        label = [near.index, near.number, *map(_pixels, near.box), f"{near.iou:.4f}"] if near else [""] * 7
        probability = "" if row.probability is None else f"{row.probability:.4f}"
        box = map(_pixels, row.box)
        writer = quoted if "\r" in row.image + row.name else plain  # which quotes what holds its own line ending
        writer.writerow(
            [
                row.id,
                _safe(row.image),
                row.kind,
                row.number,
                _safe(row.name),
                *box,
                f"{row.score:.5f}",
                probability,
                *label,
            ]
        )
    return write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def read(path: Path) -> list[Suggestion]:
    """Read the file.

    Raises:
        DataError: it cannot be read, or a row is none; the message has the line.
    """
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")  # as text line endings in names would change
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    header, *rows = csv.reader(io.StringIO(text, newline="")) if text else ([],)
    if tuple(header) != COLUMNS:
        missing = [name for name in COLUMNS if name not in header]
        raise DataError(f"{path} is not a table of suggestions: no column {', '.join(missing) or 'in its place'}")
    return [_row(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _row(row: Sequence[str], where: str) -> Suggestion:
    try:
        value = dict(zip(COLUMNS, row, strict=True))
        made = Suggestion(
            image=value["image"].removeprefix("'"),
            kind=value["kind"],
            number=_number(value["class"]),
            name=value["name"].removeprefix("'"),
            box=_box(value, ""),
            score=_fraction(value["score"]),
            probability=_fraction(value["probability"]) if value["probability"] else None,
            label=_near(value) if value["label"] else None,
        )
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    if made.kind not in KINDS:
        raise DataError(f"{where}: kind '{made.kind}' is not one of {', '.join(KINDS)}{nearest(made.kind, KINDS)}")
    if made.id != value["id"]:
        raise DataError(f"{where}: id {value['id']} is not that of its image, kind, class and box: the row was changed")
    return made


def _near(value: dict[str, str]) -> Near:
    return Near(_number(value["label"]), _number(value["label_class"]), _box(value, "label_"), _fraction(value["iou"]))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"'{text}' is not a number of a class or label")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text} is not within 0 to 1")
    return value


def _box(value: dict[str, str], before: str) -> Box:
    x1, y1, x2, y2 = (float(value[f"{before}{side}"]) for side in ("x1", "y1", "x2", "y2"))
    if not (all(map(math.isfinite, (x1, y1, x2, y2))) and x1 <= x2 and y1 <= y2):
        raise ValueError(f"box {x1:g} {y1:g} {x2:g} {y2:g} is none")
    return x1, y1, x2, y2


def _safe(name: str) -> str:
    return f"'{name}" if name.startswith(_FORMULA) else name


def _pixels(value: float) -> str:
    """A coordinate as it stands in the file: what is read again and written again is the same text."""
    return f"{value:.2f}"
