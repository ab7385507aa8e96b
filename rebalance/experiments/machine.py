"""The code and the machine that a result was made with, as they stand in a record."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil


def git() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, None where it is not a checkout of it."""
    here = Path(__file__).resolve()

    def ask(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *command], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An environment inside somebody else's checkout is not that checkout: the file must be one that git tracks.
    commit = ask("ls-files", "--error-unmatch", here.name) and ask("rev-parse", "HEAD")
    changed = ask("status", "--porcelain", "--untracked-files=no", "--", str(here.parents[1]))
    return {"commit": commit, "dirty": bool(changed)} if commit else None


def machine(threads: int, gpu: str | None) -> dict[str, Any]:
    """The machine in the words a reader of a table needs; `gpu` is None where the run was on the CPU."""
    return {
        "cpu": _line(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
        "platform": platform.platform(),
    }


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(jobs: int) -> int:
    """Threads of each of so many processes: its share of the cores, and no more than OMP_NUM_THREADS says."""
    share, given = max(1, cores() // jobs), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdecimal() and int(given) else share


def _line(path: Path, pattern: str) -> str | None:
    """What a line of a file says, None where there is no such file or line."""
    try:
        found = re.search(rf"^{pattern}$", path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None
