"""Make `.venv`: a thin environment of this clone on top of a heavy one that all clones share.

The heavy environment (torch and the rest, several GB) is installed once for each combination of requirements, Python
and platform, in the cache folder. The thin one is made in seconds: it adds the packages of the heavy one to its path,
holds this package (editable) and its own copies of the console scripts, so that clones do not disturb each other.
An environment of links into a cache of packages would be shorter, but each clone then compiles its own bytecode: most
of a minute and most of a GB.

Standard library only: it runs on a Python that has nothing else. `scripts/setup.sh` finds that Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from importlib.metadata import Distribution
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
THIN = ROOT / ".venv"
STAMP = THIN / ".rebalance"  # first line: what the environment was made from; absent or other: make it again
UPSTREAM = ROOT / "requirements-upstream.txt"
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(f"rebalance: {text}", flush=True)


def fail(text: str) -> NoReturn:
    """End the set-up with one clear line."""
    print(f"rebalance: error: {text}", file=sys.stderr, flush=True)
    sys.exit(2)


def digest(*parts: str | Path) -> str:
    """Sixteen hex digits that change with any of the texts, or with the content of any of the files."""
    data = [part if isinstance(part, str) else part.read_bytes() if part.exists() else b"" for part in parts]
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]


def heavy_folder() -> Path:
    """Where the shared environment of these requirements, this Python and this platform belongs."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    base = Path(os.environ.get("REBALANCE_CACHE") or os.path.join(cache, "rebalance")).resolve()
    python = f"{sys.implementation.cache_tag}{sys.abiflags} {sys.base_prefix} {sysconfig.get_platform()}"
    return base / f"venv-{digest(ROOT / 'requirements.txt', UPSTREAM, python)}"


def locked(path: Path) -> int:
    """Take an exclusive lock; the system frees it when the last process that inherits it ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another set-up is running; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def call(lock: int, python: Path, *args: str | Path) -> int:
    """Run a module in an environment's Python, apart from the user's own packages and settings; return its exit code.

    The child keeps the lock: where this process is killed and pip lives on, nobody else starts on the same folder.
    """
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
    command = [str(python), "-I", "-m", *map(str, args)]
    return subprocess.run(command, env={**os.environ, **settings}, pass_fds=(lock,), cwd=ROOT).returncode


def make_heavy(heavy: Path, lock: int) -> None:
    """Install the requirements; the mark of completion is written last, so a broken-off install is made again."""
    done, upstream, python = heavy / "complete", heavy / "upstream", heavy / "bin" / "python"
    if not done.exists():
        say(f"installing the requirements into {heavy} (once for all clones: about 5.5 GB, a minute or more)")
        free = shutil.disk_usage(heavy.parent).free / 1e9
        if free < 8:
            say(f"warning: only {free:.1f} GB are free there; REBALANCE_CACHE=/another/folder moves it")
        start = time.monotonic()
        try:
            venv.EnvBuilder(clear=True, symlinks=True, with_pip=True).create(heavy)
        except subprocess.CalledProcessError:
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            fail(
                f"{sys.executable} cannot make environments with pip (ensurepip does not work). On Debian and Ubuntu: "
                f"apt install {version}-venv. Or name another Python: PYTHON=/path/to/python3"
            )
        progress = [] if sys.stdout.isatty() else ["-q"]
        if call(lock, python, "pip", "install", *progress, "-r", ROOT / "requirements.txt"):
            fail(
                f"pip could not install requirements.txt with Python {sys.version.split()[0]} (its own message is "
                "above). Known to work: Python 3.10 to 3.13; PYTHON=/path/to/python3 names another one"
            )
        if subprocess.run([python, "-I", "-c", "import cv2"], stderr=subprocess.DEVNULL).returncode:
            version = next(Distribution.discover(name="opencv-python", path=[str(heavy / SITE)])).version
            headless = f"opencv-python-headless=={version}"
            say(f"the machine has no graphics libraries: {headless} takes the place of opencv-python")
            # Over the files of opencv-python, whose metadata stays: Ultralytics asks for that name.
            if call(lock, python, "pip", "install", "-q", "--no-deps", headless):
                fail(f"cannot install {headless}")
        done.touch()
        say(f"installed in {time.monotonic() - start:.0f} s")
    if UPSTREAM.exists() and not upstream.exists():
        if call(lock, python, "pip", "install", "-q", "--no-deps", "-r", UPSTREAM):
            say("warning: requirements-upstream.txt was not installed; what compares with other projects is skipped")
        else:
            upstream.touch()


def scripts(heavy: Path) -> None:
    """Give the thin environment the heavy one's commands, run by the thin one's Python."""
    # A first line for /bin/sh, and a string for Python: the kernel takes no spaces there and no long paths.
    head = f"#!/bin/sh\n'''exec' \"{THIN / 'bin' / 'python'}\" \"$0\" \"$@\"\n' '''\n".encode()
    for source in (heavy / "bin").iterdir():
        target = THIN / "bin" / source.name
        if source.name.lower().startswith(("python", "activate")) or target.exists() or not source.is_file():
            continue
        body, found = re.subn(rb"\A#!(/bin/sh\n'''exec' .*\n' '''|.*python.*)\n", b"", source.read_bytes())
        if found:
            target.write_bytes(head + body)
            target.chmod(0o755)
        else:
            target.symlink_to(source)


def make_thin(heavy: Path, stamp: str, lock: int) -> None:
    """Make `.venv` anew."""
    say(f"making {THIN}")
    THIN.mkdir(exist_ok=True)
    STAMP.write_text("not finished\n", "utf-8")  # from here on a set-up that is broken off knows the folder as its own
    for old in THIN.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old != STAMP:
            old.unlink()
    venv.EnvBuilder(symlinks=True, prompt="rebalance").create(THIN)
    packages = repr(str(heavy / SITE))
    (THIN / SITE / "_rebalance_packages.pth").write_text(f"import site; site.addsitedir({packages})\n", "utf-8")
    scripts(heavy)
    python = THIN / "bin" / "python"
    if call(lock, python, "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ROOT):
        fail("pip could not install this package (its own message is above)")
    if call(lock, python, "rebalance", "hook", "install"):
        fail("the start-up hook could not be installed (the message is above)")
    STAMP.write_text(f"{stamp}\nheavy part: {heavy}\n", "utf-8")


def main() -> None:
    """Make what is missing or out of date."""
    heavy = heavy_folder()
    stamp = digest(str(heavy), str(ROOT), ROOT / "pyproject.toml", Path(__file__))

    def current() -> bool:
        return STAMP.exists() and STAMP.read_text("utf-8").startswith(stamp) and (heavy / "complete").exists()

    if current():
        return
    if (THIN.exists() or THIN.is_symlink()) and not STAMP.exists():
        fail(f"{THIN} was not made by this script; move it away and start again")
    try:
        heavy.parent.mkdir(parents=True, exist_ok=True)
        lock = locked(heavy.with_name(f"{heavy.name}.lock"))
        if not current():  # while this one waited, another may have done the work
            make_heavy(heavy, lock)
            make_thin(heavy, stamp, lock)
            say(f"ready: source {os.path.relpath(THIN / 'bin' / 'activate')}")
    except OSError as error:
        fail(f"cannot write the environment: {error}. REBALANCE_CACHE=/another/folder moves its heavy part")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
