"""What a run leaves behind: `record.json`, and the facts about code and machine that stand in it.

A record is written last, to a temporary name, and moved: a run folder with a record is over, one without is not.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1
RECORD = "record.json"
CONFIG = "config.json"
LOG = "log.txt"
PACKAGES = ("rebalance", "torch", "ultralytics", "torchvision", "numpy")

_TAIL = 25  # lines of log kept in the record of a failed run
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, one key a line, whole or not at all; NaN and infinity become null."""
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in _plain(content).items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None where there is no such file or it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_record(run: Path) -> dict[str, Any] | None:
    """Return the record of a run folder, None where the run is not over."""
    record = read_json(run / RECORD)
    complete = record and record.get("schema") == SCHEMA and record.get("status") in ("finished", "failed")
    return record if complete else None


def failed_record(config: Mapping[str, Any], error: str, log: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run that ended without a result.

    Args:
        config: content of the run's config.json.
        error: one line for the user.
        log: the run's log; its last lines go into the record.
        known: fields of the record that are known all the same, e.g. `machine`, `versions`.
    """
    return {
        "schema": SCHEMA,
        "run": config.get("run"),
        "status": "failed",
        "error": error,
        "config": config.get("config"),
        "varied": config.get("varied"),
        "loss_ran": None,
        "timings": None,
        "peak_memory_mb": None,
        "metrics": None,
        "epochs": [],
        "samples": [],
        **known,
        "log_tail": tail(log),
    }


def tail(log: Path, lines: int = _TAIL) -> list[str]:
    """Return the last lines of a log, without colours and without the progress bars that were drawn over."""
    try:
        text = log.read_bytes()[-65536:].decode("utf-8", errors="replace")
    except OSError:
        return []
    kept = [_ANSI.sub("", line.rsplit("\r", 1)[-1]).rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in kept if line][-lines:]


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return _own_version() if name == "rebalance" else None

    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


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
    """The machine in the words a reader of a table needs.

    Args:
        threads: CPU threads that the run computes with.
        gpu: name of the GPU it ran on, None for the CPU.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "threads": threads,
        "memory_gb": round(memory, 1),
        "gpu": gpu,
        "platform": platform.platform(),
    }


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shown(path: str | Path) -> str:
    """Return a path as a record shows it: relative where it lies below the working directory, so that it moves."""
    full = Path(path).absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def _own_version() -> str | None:
    """Version from pyproject.toml, where the package runs from a checkout that is not installed."""
    try:
        text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """Mappings, sequences, numbers and texts only; not-a-number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None  # infinity and NaN both fail
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
