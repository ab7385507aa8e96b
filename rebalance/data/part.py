"""A data set with a part of another's label files and their images; val and test are the source's own.

Laid out as `rebalance.data.derive` has it, with the files as they are, and no manifest but where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rebalance.data import items
from rebalance.data.dataset import DataSet
from rebalance.data.folder import finish, new_folder, put
from rebalance.data.items import Item


def part(source: DataSet, chosen: Sequence[Item], out: Path) -> Path:
    """Make the data set; returns its YAML.

    Args:
        source: only read.
        chosen: those of its label files, as `items.read` finds them, that are in the new set.
        out: folder to make.

    Raises:
        DataError: `out` exists, or cannot be written.
    """
    with new_folder(out) as folder:
        for item in chosen:
            items.link_images(folder, item)
            files = {
                "labels": item.data, "withheld": item.carried.data or None, "true": item.true,
                "regions": item.region_data,
            }  # fmt: skip
            for kind, data in files.items():
                if data is not None:
                    put(folder / kind / item.label, data)
        origin = {"data": str(source.file.absolute())}
        finish(folder, items.content(folder, source, chosen), {"files": len(chosen), "origin": origin})
    return out / "data.yaml"
