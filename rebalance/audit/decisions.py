"""decisions.json: what a person accepted and rejected, as review.html downloads it.

    {"schema": 1, "suggestions_sha256": "...", "decisions":
     [{"id": "...", "image": "...", "kind": "missing", "class": 0, "box": [x1, y1, x2, y2], "decision": "accept"}]}

A decision belongs to its suggestion by the id, which follows from image, kind, class and box, so it holds in a later
audit that suggests the same box.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rebalance.audit.table import KINDS, Suggestion
from rebalance.data.formats.reading import entry, number, read_json, whole
from rebalance.errors import DataError, nearest
from rebalance.files import write_whole

SCHEMA = 1
CHOICES = ("accept", "reject")


def read(path: str | Path, suggestions: Iterable[Suggestion]) -> dict[str, str]:
    """The decisions by the ids of their suggestions; those about a suggestion that is not there are told on stderr.

    Raises:
        DataError: the file cannot be read, is of another kind, or contradicts itself.
    """
    path = Path(path)
    content = read_json(path)
    schema = entry(content, "schema", int, str(path))
    if schema != SCHEMA:
        raise DataError(f"{path}: decisions of schema {schema}; this version reads {SCHEMA}")
    entry(content, "suggestions_sha256", str, str(path))
    found: dict[str, str] = {}
    for i, one in enumerate(entry(content, "decisions", list, str(path))):
        where = f"{path}, decision {i + 1}"
        name, decision = _one(one, where)
        if found.setdefault(name, decision) != decision:
            raise DataError(f"{where}: {name} is accepted and rejected")
    there = {row.id for row in suggestions}
    gone = len(found.keys() - there)
    if gone:
        print(
            f"note: {path}: {gone} of {len(found)} decisions are about suggestions that are not there", file=sys.stderr
        )
    return {name: decision for name, decision in found.items() if name in there}


def write(path: Path, suggestions: Iterable[Suggestion], decided: Mapping[str, str], sha256: str) -> Path:
    """Write what was decided on suggestions, whole or not at all, in their order.

    Args:
        path: file to write.
        suggestions: of the table.
        decided: id -> one of CHOICES.
        sha256: of the table's file.

    Raises:
        RunError: it cannot be written.
    """
    rows = [
        {
            "id": row.id, "image": row.image, "kind": row.kind, "class": row.number, "box": list(row.box),
            "decision": decided[row.id],
        }
        for row in suggestions
        if row.id in decided
    ]  # fmt: skip
    content = {"schema": SCHEMA, "suggestions_sha256": sha256, "decisions": rows}
    return write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def _one(one: Any, where: str) -> tuple[str, str]:
    """The id and the decision of an entry."""
    name, decision = entry(one, "id", str, where), entry(one, "decision", str, where)
    if decision not in CHOICES:
        raise DataError(f"{where}: '{decision[:40]}' is not one of {', '.join(CHOICES)}{nearest(decision, CHOICES)}")
    image, kind, box = entry(one, "image", str, where), entry(one, "kind", str, where), entry(one, "box", list, where)
    if kind not in KINDS:
        raise DataError(f"{where}: kind '{kind[:40]}' is not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if len(box) != 4:
        raise DataError(f"{where}: 'box' has {len(box)} numbers, not x1, y1, x2, y2")
    x1, y1, x2, y2 = (number(value, "box", where) for value in box)
    about = Suggestion(image, kind, whole(entry(one, "class", int, where), "class", where), "", (x1, y1, x2, y2), 0.0)
    if about.id != name:
        raise DataError(f"{where}: id {name[:40]} is not that of its image, kind, class and box: it was changed")
    return name, decision
