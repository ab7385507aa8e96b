"""A folder that is a new data set: there whole or not at all, images linked one by one, a manifest with its hash."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from rebalance.errors import DataError
from rebalance.files import beside

Manifest = dict[str, Any]

_LOCK = "lock"


def free(out: str | Path) -> Path:
    """The path; DataError where there is something."""
    if os.path.lexists(out):
        raise DataError(f"out={out} exists; nothing is overwritten, choose another folder")
    return Path(out)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that gets its name at the end of the block; where the block fails nothing is left.

    Raises:
        DataError: `out` exists, or something cannot be written.
    """
    with _told(free(out)), beside(out) as partial:
        yield partial
        os.rename(partial, out)


@contextlib.contextmanager
def continued_folder(out: Path, key: str) -> Iterator[Path]:
    """As `new_folder`, but what a killed or interrupted run with the same key made is there again.

    Args:
        out: folder to make.
        key: 12 hexadecimal digits of what is asked for.

    Raises:
        DataError: as `new_folder`, or another process makes the same folder now.
    """
    partial = free(out).parent / f".{out.name}.{key}.partial"
    lock = FileLock(partial / _LOCK)
    try:
        with _told(out):
            partial.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise DataError(f"out={out} is being made by another process") from None
        try:
            with _told(out):
                yield partial
                lock.release()
                (partial / _LOCK).unlink(missing_ok=True)
                os.rename(partial, out)
        except Exception:  # not on Ctrl-C
            lock.release()
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        lock.release()


def put(path: Path, data: bytes) -> str:
    """Write a file of a new data set, with the folders above it; returns the SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def finish(folder: Path, content: Mapping[str, Any], manifest: Manifest) -> None:
    """Write data.yaml and, last of all, manifest.json."""
    put(folder / "data.yaml", yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True).encode())
    put(folder / "manifest.json", (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def load_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a data set that was made.

    Raises:
        DataError: there is none, or its hash does not fit its content.
    """
    file = Path(folder) / "manifest.json"
    try:
        manifest: Manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["sha256"] != manifest_hash(manifest):
            raise DataError(f"{file} was changed after it was written: its hash does not fit")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file} is not a manifest of a derived data set") from None
    return manifest


def manifest_hash(manifest: Manifest) -> str:
    """SHA-256 of everything that is the same on every machine: all but `origin`, and the hash itself."""
    content = {key: value for key, value in manifest.items() if key not in ("sha256", "origin")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unique(name: str, taken: set[str]) -> str:
    """The name, with the first number that makes it one of its own where it is taken; it is taken then."""
    result = next(n for i in itertools.count(1) if (n := f"{name}-{i}" if i > 1 else name) not in taken)
    taken.add(result)
    return result


def link(target: str, path: Path) -> str:
    """Make `path` the image `target`: a link, or a copy where the file system has neither kind; returns which."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for way, make in (("symlink", os.symlink), ("hard link", os.link)):
        try:
            make(target, path)
        except FileExistsError:  # copying would follow the link into the source
            raise
        except (OSError, NotImplementedError):
            continue
        return way
    shutil.copy2(target, path)
    return "copy"


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    """Raise DataError in the place of a system error."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise DataError(f"out={out} cannot be written: {error.strerror or error}{where}") from error
