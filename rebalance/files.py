"""Files that are there whole or not at all, whatever ends the process; a disk that takes nothing is told in a line."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from rebalance.errors import RunError

# Names of what is being written: hidden, with the number of the process; or of `beside`, with the lock that is held
_LEFT = re.compile(r"\..+\.(\d+|[0-9a-f]{12}\.(partial|lock))")
# No space on the device, none left to this user, a file that is longer than allowed, a disk that is only read
_UNWRITABLE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM, errno.ENOTDIR}  # the last: a file where a folder belongs


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name, and the place of an earlier one, when the block ends.

    Raises:
        RunError: it cannot be written; an earlier one is as it was.
    """
    part = _part(path)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # on a disk that is only read this fails even where there is nothing
            part.unlink()


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all, and return it; errors as `whole`."""
    with whole(path) as file:
        file.write(data)
    return path


def require_writable(path: Path) -> None:
    """Make the folder of a file that takes long to come; RunError where it could not be written then."""
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write a file to, moved to `path` when the block ends; where the block raises nothing is left."""
    part = _part(path)
    try:
        yield part
        if part.exists():
            with open(part, "rb+") as opened:
                os.fsync(opened.fileno())
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def moved(folder: Path, last: str = "") -> Iterator[Path]:
    """A folder to write files into, which are moved to `folder` when the block ends, `last` after the others.

    Nothing is left of it where the block raises, but for files that had been moved.
    """
    part = _part(folder / "files")
    try:
        part.mkdir(parents=True, exist_ok=True)
        yield part
        written = sorted(part.iterdir(), key=lambda file: file.name == last)
        for file in written:
            with open(file, "rb+") as opened:  # a name that is moved before its bytes are on the disk may end up empty
                os.fsync(opened.fileno())
        for file in written:
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden new folder beside `path` to write into, which is gone when the block ends, unless it was moved.

    What a killed process left of one for the same path is removed.
    """
    from filelock import FileLock, Timeout  # the start of a command does without

    path.parent.mkdir(parents=True, exist_ok=True)
    for lock in path.parent.glob(f".{glob.escape(path.name)}.*.lock"):
        with suppress(Timeout, OSError):
            if unfinished(lock):
                _remove(lock, FileLock(lock, timeout=0))
    name = f".{path.name}.{uuid.uuid4().hex[:12]}"
    lock, folder = path.with_name(f"{name}.lock"), path.with_name(f"{name}.partial")
    held = FileLock(lock)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            held.acquire()
        folder.mkdir()
        yield folder
    finally:
        held.release()
        _remove(lock, nullcontext())


def _remove(lock: Path, held: AbstractContextManager[object]) -> None:
    """Remove a folder of `beside`, and its lock last."""
    with held:
        shutil.rmtree(lock.with_suffix(".partial"), ignore_errors=True)
    with suppress(OSError):
        lock.unlink()


def unfinished(path: Path) -> bool:
    """Whether it is named as what is being written, or was when a process was killed."""
    return _LEFT.fullmatch(path.name) is not None


def clear(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that nobody else writes to now."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if unfinished(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def unwritable_told(where: Path | str) -> Iterator[None]:
    """Raise RunError in the place of a system error that says that the disk is full, or takes nothing from us.

    Args:
        where: what was written, where the error itself does not say it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED and error.filename:  # reading or writing: the system does not say which
            raise RunError(f"{error.filename}: {error.strerror}") from None
        if error.errno not in _UNWRITABLE:
            raise
        raise RunError(f"{error.filename or where} cannot be written: {error.strerror}") from None


@contextmanager
def long_names_told() -> Iterator[None]:
    """Raise RunError in the place of a system error that says that no file can have such a name."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise RunError(f"{str(error.filename)[:80]}… is too long to be the name of a file") from None


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
