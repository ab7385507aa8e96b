"""review.html: one page on which a person decides about the suggestions, without a server and without a network.

The page holds everything. Where the crops are too many for that they are beside it, in `crops/<table>/<id>.jpg`.

Names of files and classes are a stranger's text. They are in the page only as JSON, in which no `<` is left, and the
script makes text of them, never HTML; what could still be smuggled in does not run, because the page's content security
policy allows its own script and style by their hashes and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from rebalance.audit import crops
from rebalance.audit.table import KINDS, Suggestion
from rebalance.data.dataset import title
from rebalance.data.labels import Labels
from rebalance.files import clear, unwritable_told, write_whole

PAGE = "review.html"
CROPS = "crops"
_WITHIN = 24_000_000  # bytes of JPEG that a page may hold; beyond they are files beside it


def write(
    folder: Path,
    suggestions: Sequence[Suggestion],
    about: Mapping[str, Any],
    files: Mapping[str, str],
    labels: Callable[[str], Labels],
) -> Path:
    """Write review.html, and crops/ where it needs it; returns the page. An earlier page is there until this one is.

    Args:
        folder: of the audit.
        suggestions: in the order in which they are to be shown.
        about: what audit.json holds.
        files: image of a suggestion -> its file.
        labels: file -> the labels that were audited.

    Raises:
        RunError: something cannot be written.
    """
    beside, name = folder / CROPS, str(about["suggestions_sha256"])[:12]
    part = beside / f".{name}.{os.getpid()}"
    with unwritable_told(folder):
        clear(beside)
        part.mkdir(parents=True)
        try:
            without = crops.make(suggestions, files, about["sizes"], part)
            made = [part / f"{row.id}.jpg" for row in suggestions if row.image not in without]
            if sum(file.stat().st_size for file in made) <= _WITHIN:
                pictures: Any = [
                    "" if row.image in without else b64encode((part / f"{row.id}.jpg").read_bytes()).decode("ascii")
                    for row in suggestions
                ]
                kept = None
            else:
                pictures, kept = f"{CROPS}/{name}/", beside / name
                shutil.rmtree(kept, ignore_errors=True)  # of the same suggestions: an earlier page can use the new ones
                part.rename(kept)
            page = _page(suggestions, about, _data(suggestions, about, without, pictures, files, labels))
            write_whole(folder / PAGE, page.encode("utf-8", "backslashreplace"))
            for old in beside.iterdir():  # of earlier pages
                if old != kept:
                    shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if not any(beside.iterdir()):
                beside.rmdir()
    for image, why in list(without.items())[:3]:
        print(f"note: no crops of {image}: it {why}", file=sys.stderr)
    if len(without) > 3:
        print(f"note: no crops of {len(without) - 3} more images", file=sys.stderr)
    return folder / PAGE


def first(suggestions: Sequence[Suggestion], most: int) -> list[Suggestion]:
    """The first of the suggestions that a page shows, in their order.

    A fifth is kept for each of the kinds that are about labels, as far as there are so many: they have no probability,
    come last, and would not be shown where ten thousand boxes are missing.
    """
    of_kind = {kind: [row.id for row in suggestions if row.kind == kind] for kind in KINDS}
    room = {kind: min(len(rows), most // 5) for kind, rows in of_kind.items()}
    for kind, rows in of_kind.items():
        room[kind] += min(len(rows) - room[kind], most - sum(room.values()))
    chosen = {name for kind, rows in of_kind.items() for name in rows[: room[kind]]}
    return [row for row in suggestions if row.id in chosen]


def _page(suggestions: Sequence[Suggestion], about: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The page, with what its script reads."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("rebalance.audit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = resources.files("rebalance.audit") / "templates"
    style, script = ((parts / name).read_text("utf-8") for name in ("review.css", "review.js"))
    return templates.get_template(PAGE).render(
        title=title(Path(str(about["data"]))),
        images=len({row.image for row in suggestions}),
        suggestions=len(suggestions),
        found=sum(about["kinds"].values()),
        style=Markup(style),
        script=Markup(script),
        allowed={"style": _hash(style), "script": _hash(script)},
        data=data,
    )


def _data(
    suggestions: Sequence[Suggestion],
    about: Mapping[str, Any],
    without: Mapping[str, str],
    pictures: Any,
    files: Mapping[str, str],
    labels: Callable[[str], Labels],
) -> dict[str, Any]:
    """What the page's script reads; rows as lists, so that ten thousand of them are small.

    `pictures` are the crops in base64, or the folder where they are.
    """
    names = {one["id"]: one["name"] for one in about["classes"]} | {row.number: row.name for row in suggestions}
    windows = [crops.window(row, *about["sizes"][row.image]) for row in suggestions]
    seen: dict[str, list[crops.Window]] = {}
    for row, window in zip(suggestions, windows, strict=True):
        seen.setdefault(row.image, []).append(window)
    number = {image: i for i, image in enumerate(seen)}
    images = []
    for image, own in seen.items():
        found, (width, height) = labels(files[image]), about["sizes"][image]
        boxes = np.round(found.boxes_xyxy(width, height), 1)
        corners = np.array(own)
        shown = (boxes[:, None, :2] < corners[:, 2:]) & (boxes[:, None, 2:] > corners[:, :2])
        near: NDArray[np.bool_] = np.any(np.all(shown, 2), 1)  # in one of the windows
        rows = zip(np.flatnonzero(near).tolist(), found.classes[near].tolist(), boxes[near].tolist(), strict=True)
        images.append([image, width, height, [[i, of, *box] for i, of, box in rows], without.get(image, "")])
    return {
        "sha256": about["suggestions_sha256"],
        "lower": bool(about["lower_bound"]),
        "names": names,
        "kinds": KINDS,
        "classes": [
            {key: one[key] for key in ("id", "missing", "low", "high")}
            for one in about["classes"]
        ],
        "total": about["total"],
        "images": images,
        "rows": [
            [
                row.id, number[row.image], KINDS.index(row.kind), row.number, row.box, row.score, row.probability,
                row.label and [row.label.index, row.label.number, row.label.box, row.label.iou], window,
            ]
            for row, window in zip(suggestions, windows, strict=True)
        ],
        "pictures": pictures,
    }  # fmt: skip


def _hash(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
