"""The state of a training beside its checkpoint: what the checkpoint leaves out, so that a resumed run is the same run.

The host's last.pt holds the moving average of the weights and the optimizer, both rounded to fp16, no random state and
none of the gradients that add up over several batches. `weights/state<epoch>.pt` holds all of that as it is. The two
are written in an order that leaves, at every instant, a last.pt with its own state beside it:

1. state<e>.pt is written to a temporary name and moved; last.pt is still that of epoch e − 1, whose state is there too;
2. best.pt and epoch<e>.pt are moved, then last.pt: from here on the run is in epoch e;
3. state<e−1>.pt is removed.

A state names the bytes of its checkpoint, so that it is never taken for another's. `results.csv` gets its row before
all this; the state has its text, and on resume the file is as the state says.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from rebalance.files import whole, write_whole

VERSION = 1
_NAME = re.compile(r"state\d+\.pt")


def state_of(checkpoint: Path, epoch: int) -> Path:
    """The file of the state of a checkpoint. Not `last*.pt`, which the host takes for a run to resume."""
    return checkpoint.with_name(f"state{epoch}.pt")


def write_state(file: Path, checkpoint: Path, state: dict[str, Any]) -> None:
    """Write the state of a checkpoint that has been written, under any name.

    Raises:
        RunError: it cannot be written.
    """
    with whole(file) as opened:
        torch.save({"version": VERSION, "checkpoint": _digest(checkpoint), **state}, opened)


def find_state(checkpoint: Path, epoch: int) -> tuple[dict[str, Any] | None, str]:
    """The state of a checkpoint, its tensors on the CPU; or None, and why."""
    file = state_of(checkpoint, epoch)
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        belongs = (state["version"], state["checkpoint"]) == (VERSION, _digest(checkpoint))
    except FileNotFoundError:
        return None, f"there is no {file}"
    except Exception:  # whatever unpickling a damaged file raises
        return None, f"{file} is damaged"
    return (state, "") if belongs else (None, f"{file} is of another checkpoint")


def remove_states(weights: Path, keep: Path | None = None) -> None:
    """Remove the states in a folder of checkpoints, all but one."""
    for path in weights.iterdir() if weights.is_dir() else ():
        if _NAME.fullmatch(path.name) and path != keep:
            path.unlink(missing_ok=True)


def cut_csv(path: Path, epochs: int) -> None:
    """Take off results.csv what the first `epochs` epochs have not written: later rows, a half-written one."""
    if not path.exists():
        return
    text = path.read_bytes().decode(errors="surrogateescape")  # whatever is there is kept as it is
    header, *rows = [line for line in text.splitlines(keepends=True) if line.endswith("\n")] or [""]
    found = {row.partition(",")[0].strip(): row for row in rows}  # of an epoch that stands twice, the last
    kept = header + "".join(row for epoch, row in found.items() if epoch.isdigit() and int(epoch) <= epochs)
    if kept != text:
        write_whole(path, kept.encode(errors="surrogateescape"))


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
