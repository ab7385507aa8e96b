"""Faults in mid-work: `python scripts/faults.py seeds=0-4 only=kill,train`.

Each of JOBS is a command on small data; each of FAULTS is something that happens to it while it works. A try is a
process of its own in a folder that is made anew. Right is, afterwards:

    nothing is half-written: every file under its own name can be read to its end, a data set is whole or not there
    the same command goes on (a training by resume) and comes to the unbroken run's results, weights bit by bit
    nothing temporary is left, no process outlives its command, no run that was finished is trained again
    a command that could not go on said why in one line (exit code 2; 130 after Ctrl-C), and there is no traceback

A kill comes at a moment, or at the nth thing that the command does to files, drawn by the seed: by turns, as the one
meets what a file is half full at, and the other what lies between two files. `only` takes names of faults and of jobs.
As root the full and the read-only disk are a small tmpfs; else a limit of the size of files, and the folder's mode.
Linux only. Ends with a table, and with exit code 1 where a try failed; each failure is told when it is seen.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import hashlib
import io
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # images so small that a second costs more than it brings
os.environ.setdefault("MPLBACKEND", "Agg")

LATE = 1200  # seconds after which a command hangs; the machine may have other work
SMALL = """\
nc: 3
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[2, 3, 4], 1, Detect, [nc]]
"""
TRAINED = "imgsz=64 batch=4 workers=0 plots=False device=cpu"  # besides what a job says of its training
WRITES = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"})
Trap = Callable[[], None]


# Commands -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        line: what is typed, in the folder of the try, {place}.
        out: what it makes there.
        needs: jobs whose unbroken results are its input.
        again: what goes on, where that is another line; None: the same.
        kind: what it makes: "set", a folder that is there whole or not at all; "runs", folders of trainings; "files".
        prepare: what else is done to the input.
        kills: tries of a kill by seed.
        alone: whether it refuses to work beside another one in the same folder.
        goes_on: whether it leaves what it had made where it is interrupted, hidden, to go on with.
    """

    line: str
    out: str
    needs: tuple[str, ...] = ()
    again: Callable[[Path], str] | None = None
    kind: str = "files"
    prepare: Callable[[Path], None] | None = None
    kills: int = 4
    alone: bool = True
    goes_on: bool = False


def _resume(place: Path) -> str:
    last = place / "trained/run/weights/last.pt"
    return f"train resume=True model={last}" if last.exists() else JOBS["train"].line


def _to_report(place: Path) -> None:
    """A sweep of two runs, one of which is not over."""
    asked = {"obj_drop": [0, 0.5], "seeds": [0], "model": ["small.yaml"], "data": ["data/data.yaml"], "loss": ["drop"]}
    runs = ["obj_drop=0.5", "obj_drop=0"]
    (place / "swept").mkdir()
    (place / "swept/sweep.json").write_text(json.dumps({"schema": 1, "asked": asked, "runs": runs}), "utf-8")
    shutil.copytree(place / "run", place / "swept/runs" / runs[0])
    shutil.rmtree(place / "run")


def _to_run(place: Path) -> None:
    """The folder of a run as a sweep makes it."""
    from rebalance.experiments.grid import read_grid
    from rebalance.experiments.sweep import write_config

    source = place / "data/data.yaml"
    words = {"model": "small.yaml", "data": str(source), "obj_drop": "0.5", "loss": "drop", "epochs": "2"}
    grid = read_grid({**words, **dict(word.split("=") for word in TRAINED.split())})
    write_config(place / "made", grid.runs[0], source, source)
    (place / "made/runs" / grid.runs[0].id).rename(place / "run")
    shutil.rmtree(place / "made")


def _to_convert(place: Path) -> None:
    shutil.move(place / "coco/annotations", place / "annotations")
    shutil.rmtree(place / "coco")


_SWEPT = f"model=small.yaml data=data/data.yaml loss=drop epochs=1 {TRAINED}"
JOBS = {
    "train": Job(
        f"train model=small.yaml data=data/data.yaml loss=ghm epochs=3 {TRAINED} "
        "project={place}/trained name=run exist_ok=True",
        "trained", again=_resume, kind="runs", alone=False,
    ),
    "run": Job("run", "run", kind="runs", prepare=_to_run, alone=False),
    "sparsify": Job("sparsify data=data/data.yaml protocol=percent rate=0.5 out=sparse", "sparse", kind="set"),
    "to-coco": Job("convert to-coco data=data/data.yaml out=coco", "coco", kind="set"),
    "convert": Job(
        "convert coco source=annotations/instances_train.json images=data/images/train split=train out=converted",
        "converted", ("to-coco",), kind="set", prepare=_to_convert, goes_on=True,
    ),
    "report": Job("report swept", "swept", ("run",), prepare=_to_report, alone=False),
    "audit": Job("audit data=data/data.yaml model=trained/run/weights/best.pt name=a device=cpu batch=4",
                 "runs/audit/a", ("train",)),
    "complete": Job("complete data=data/data.yaml audit=runs/audit/a complete_ignore=0 out=complete", "complete",
                    ("train", "audit"), kind="set"),
    "sweep": Job(f"sweep {_SWEPT} obj_drop=0,0.5 name=s", "runs/benchmark/s", kind="runs", kills=1),
    "rounds": Job(f"rounds {_SWEPT} obj_drop=0.5 rounds=1 name=r protocol=percent complete_ignore=0", "runs/rounds/r",
                  kind="runs", kills=1),
}  # fmt: skip


# Processes ------------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a command ended: its exit code, negative for a signal, and what it said."""

    code: int
    text: str

    @property
    def told(self) -> list[str]:
        """What it said of an error of the user's, which is all that follows, to the end."""
        _, error, told = self.text.rpartition("rebalance: error: ")
        return told.strip().splitlines() if error else []


class Child:
    """A command in a process of its own, forked from this one, which has imported everything.

    What has had threads may not be that one: a lock that they hold, and what waits for them, waits forever.
    """

    def __init__(self, line: str, place: Path, trap: Trap | None = None, *, log: Path) -> None:
        self.log, self.place, self.began = log, place, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads in a process that forks: the imports' own, which are idle
            self.pid = os.fork()
        if not self.pid:
            self._work(line, trap)

    def _work(self, line: str, trap: Trap | None) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(self.place)
            # before and after a command Ctrl-C is the interpreter's affair
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            opened = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(opened, stream)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, "utf-8", closefd=False) for n in (1, 2))
            from ultralytics.utils import LOGGER

            for handler in LOGGER.handlers:
                handler.setStream(sys.stderr)
            from rebalance.cli.main import guarded, main
            from rebalance.experiments import run

            if trap:
                trap()
            words = line.replace("{place}", str(self.place)).split()
            sys.argv[1:] = words

            def command() -> int:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                return guarded(lambda: run.main(["run"]) and sys.exit(3)) if line == "run" else main(words)

            code = command()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def over(self) -> bool:
        """Whether it has ended; it is not waited for."""
        return bool(os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def wait(self, seconds: float = LATE) -> bool:
        """Wait for its end, or so long; returns whether it came."""
        end = self.began + seconds
        while not self.over() and time.monotonic() < end:
            time.sleep(0.005)
        return self.over()

    def send(self, number: int) -> None:
        """Send it a signal; a process that is over stays until it is asked how it ended, so the number is its own."""
        os.kill(self.pid, number)

    def ended(self) -> Ended:
        """Wait for its end and that of all it has started."""
        late = not self.wait()
        if late:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        text = self.log.read_text("utf-8", errors="replace")
        left = outliving(self.place)
        if left:
            text += "".join(f"\nTraceback: process {pid} outlived its command" for pid in left)
        return Ended(code, text + ("\nTraceback: it hangs" if late else ""))


def outliving(place: Path) -> list[int]:
    """Processes that work in a folder after a time in which they might have ended; they are ended."""
    import psutil

    def found() -> list[Any]:
        working = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.cwd() == str(place) and process.status() != psutil.STATUS_ZOMBIE:
                    working.append(process)
        return working

    end = time.monotonic() + 30
    while (left := found()) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return [process.pid for process in left]


def at_write(nth: int, place: Path, act: Callable[[], None], count: Path | None = None) -> Trap:
    """Do something right before the nth thing that a process does to the files of a folder; or count them in a file."""
    below = f"{place}{os.sep}"

    def trap() -> None:
        seen = 0

        def event(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if name == "open":
                flags = arguments[2]
                if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                    return
            elif name not in WRITES:
                return
            if isinstance(arguments[0], int) or not os.path.abspath(os.fsdecode(arguments[0])).startswith(below):
                return
            seen += 1
            if count:
                with contextlib.suppress(OSError):
                    os.pwrite(counter, b"%09d" % seen, 0)
            elif seen == nth:
                act()

        counter = os.open(count, os.O_WRONLY | os.O_CREAT) if count else -1
        sys.addaudithook(event)

    return trap


# What is there --------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """SHA-256 of what is the same whenever it is made: of weights and of figures, not of times."""
    if path.is_symlink():
        return os.readlink(path)
    if path.suffix == ".pt":
        return _weights(path)
    if path.name == "results.csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
        kept = [{k: v for k, v in row.items() if k not in CLOCKED} for row in rows]
        return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    if path.name in ("record.json", "manifest.json"):
        return hashlib.sha256(json.dumps(recorded(path)).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recorded(path: Path) -> dict[str, Any]:
    """What a record or a manifest says but of times and the machine."""
    content = json.loads(path.read_bytes())
    for row in content.get("epochs", ()):
        row.pop("time", None)
    passing = ("timings", "peak_memory_mb", "machine", "host_metrics", "origin", "git")
    return {key: value for key, value in content.items() if key not in passing}


CLOCKED = ("time", "train_seconds", "images_per_second", "peak_memory_mb")
# What says when and how fast, or is written by the host for the eye
PASSING = ("progress.json", "log.txt", "lock", ".lock", "args.yaml")
# In a folder of runs: a report, with times; an audit, which names the bytes of weights, in which there is a date
OF_RECORDS = frozenset(
    {".md", ".html", ".png", ".jpg", ".cache", "summary.csv", "question.json", "audit.json", "seconds.json"}
)


def _weights(path: Path) -> str:
    import torch

    held = torch.load(path, map_location="cpu", weights_only=False)
    made = hashlib.sha256(f"{held.get('epoch')}".encode())
    for part in ("model", "ema"):
        state = getattr(held.get(part), "state_dict", lambda part=part: held.get(part) or {})()
        for name, tensor in state.items():
            made.update(f"{name} {tensor.dtype}".encode() + tensor.contiguous().view(-1).numpy().tobytes())
    return made.hexdigest()


def results(place: Path, job: Job) -> dict[str, str]:
    """What a job made, as it is the same whenever it is made."""
    found = {}
    for path in sorted((place / job.out).rglob("*")):
        stays = path.name.startswith("state")  # of a training that was killed after its end, which nothing resumes
        timed = job.kind == "runs" and not OF_RECORDS.isdisjoint({path.suffix, path.name})
        if (path.is_symlink() or path.is_file()) and path.name not in PASSING and not (timed or stays):
            found[str(path.relative_to(place))] = digest(path)
        if path.name == "record.json":  # for a message that says what is another
            found |= {f"{path.relative_to(place)}: {k}": str(v) for k, v in recorded(path).items()}
    return found


def torn(place: Path, job: Job) -> list[str]:
    """Files under their own names that cannot be read to their end."""
    found = []
    for path in sorted((place / job.out).rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
        of_host = path.parent.name in ("train", "run") and path.suffix in (".csv", ".yaml", ".jpg", ".png")
        if path.is_file() and not hidden and not of_host and path.name not in ("lock", "log.txt"):
            try:
                _read(path)
            except Exception as error:
                found.append(f"{path.relative_to(place)} is torn: {type(error).__name__}: {str(error)[:80]}")
    return found


def _read(path: Path) -> None:
    import cv2
    import torch
    import yaml

    data = path.read_bytes()
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix in (".yaml", ".yml"):
        assert isinstance(yaml.safe_load(data), dict)
    elif path.suffix == ".pt":
        torch.load(path, map_location="cpu", weights_only=False)
    elif path.suffix == ".csv":
        assert data.endswith(b"\n")
        assert len({len(row) for row in csv.reader(io.StringIO(data.decode()))}) == 1
    elif path.suffix == ".html":
        assert data.rstrip().endswith(b"</html>")
    elif path.suffix in (".png", ".jpg"):
        assert cv2.imread(str(path)) is not None


def left(place: Path) -> list[str]:
    """What is named as temporary, anywhere in the folder.

    Not a lock alone: where a command was killed after its last move but one nothing else is, and it is empty.
    """
    hidden = [path for path in place.rglob(".*") if not path.name.endswith(".lock") and path.parent.name[0] != "."]
    return [f"{path.relative_to(place)} is left" for path in sorted(hidden)]


def finished(place: Path) -> dict[str, int]:
    """The records of runs that are finished, with the time at which they were written."""
    found = {}
    for path in place.rglob("record.json"):
        with contextlib.suppress(ValueError, OSError):
            if json.loads(path.read_bytes())["status"] == "finished":
                found[str(path)] = path.stat().st_mtime_ns
    return found


def said(ended: Ended, codes: tuple[int, ...]) -> list[str]:
    """What is wrong with the way in which a command ended and what it said."""
    if "Traceback" in ended.text:
        last = [line for line in ended.text.strip().splitlines() if line.strip()][-1]
        return [f"a traceback (code {ended.code}): {last[:300]}"]
    if ended.code not in codes:
        return [f"exit code {ended.code}: {' / '.join(ended.text.strip().splitlines()[-2:])[:300]}"]
    if ended.code == 2 and len(ended.told) != 1:
        return [f"{len(ended.told)} lines of error: {ended.text[-300:]!r}"]
    if ended.code == 130 and not ended.text.rstrip().endswith("rebalance: interrupted"):
        return [f"interrupted without a word: {ended.text[-200:]!r}"]
    return []


# Tries ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unbroken:
    """A job that nothing happened to: what it made, how long it took, what it did to files and how much it wrote."""

    results: dict[str, str]
    seconds: float
    writes: int
    size: int


@dataclass
class Bench:
    """A folder in which every try has the same place, so that paths are the same too."""

    folder: Path
    known: dict[str, Unbroken] = field(default_factory=dict)
    as_root: bool = False

    def __post_init__(self) -> None:
        self.place, self.log, self.kept = self.folder / "try", self.folder / "log", self.folder / "kept"
        self.kept.mkdir()
        self.as_root = os.geteuid() == 0 and self._mounts()
        self._preload()
        self.clean()
        (self.place / "small.yaml").write_text(SMALL, "utf-8")
        made = Child("seafloor train=8 val=4 test=4 size=64 out=data", self.place, log=self.log).ended()
        if made.code:
            raise RuntimeError(made.text)
        shutil.copytree(self.place, self.kept / "input")

    def _mounts(self) -> bool:
        self.place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.place], capture_output=True, check=False)
        if not done.returncode:
            self.unmount()
        return not done.returncode

    def _preload(self) -> None:
        """Import what commands import, once."""
        os.environ["YOLO_CONFIG_DIR"] = str(self.folder / "settings")
        (self.folder / "settings").mkdir()
        import torchvision  # noqa: F401
        import ultralytics  # noqa: F401

        import rebalance.audit.run
        import rebalance.cli.host_command
        import rebalance.experiments.evaluate
        import rebalance.experiments.train
        import rebalance.report.build
        import rebalance.train.trainer  # noqa: F401

    def unmount(self) -> None:
        """Take away the small disk."""
        subprocess.run(["umount", "-l", self.place], check=True)

    def clean(self) -> None:
        """An empty place."""
        if self.place.is_mount():
            self.unmount()
        if self.place.exists():
            self.place.chmod(0o755)
            shutil.rmtree(self.place)
        self.place.mkdir(parents=True)

    def fill(self, job: Job) -> None:
        """Put the input of a job into the place."""
        for need in job.needs:
            self.unbroken(need)
        self.clean()
        self._put(job)

    def _put(self, job: Job) -> None:
        shutil.copytree(self.kept / "input", self.place, dirs_exist_ok=True)
        for need in job.needs:
            shutil.copytree(self.kept / need, self.place / JOBS[need].out, symlinks=True)
        if job.prepare:
            job.prepare(self.place)

    def unbroken(self, name: str) -> Unbroken:
        """A job that nothing happens to, which is run once."""
        if name not in self.known:
            job, count = JOBS[name], self.folder / "count"
            self.fill(job)
            before = _size(self.place)
            count.write_text("0", "utf-8")
            child = Child(job.line, self.place, at_write(0, self.place, lambda: None, count), log=self.log)
            ended, seconds = child.ended(), time.monotonic() - child.began
            if ended.code or "Traceback" in ended.text:
                raise RuntimeError(f"{name} fails by itself: {ended.text}")
            shutil.copytree(self.place / job.out, self.kept / name, symlinks=True)
            made, size = results(self.place, job), _size(self.place) - before
            self.known[name] = Unbroken(made, seconds, int(count.read_text("utf-8")), size)
        return self.known[name]

    def start(self, line: str, trap: Trap | None = None, log: str = "log") -> Child:
        """Start a command in the place."""
        return Child(line, self.place, trap, log=self.folder / log)

    def at_random(self, name: str, random: Random, act: int) -> Child:
        """Start a job and send it a signal at a random moment, or before a random one of its writes."""
        unbroken, line = self.unbroken(name), JOBS[name].line
        self.fill(JOBS[name])
        if random.random() < 0.5:
            nth = random.randint(1, max(unbroken.writes, 1))
            child = self.start(line, at_write(nth, self.place, lambda: os.kill(os.getpid(), act)))
            child.wait()
            return child
        child = self.start(line)
        if not child.wait(random.uniform(0, unbroken.seconds)):
            child.send(act)
        return child

    def go_on(self, name: str) -> list[str]:
        """Go on after a fault; what is wrong then."""
        job, before, wrong = JOBS[name], finished(self.place), list[str]()
        line = job.again(self.place) if job.again else job.line
        if job.kind == "set" and (self.place / job.out).exists():
            wrong += [] if results(self.place, job) == self.unbroken(name).results else ["the data set is another"]
        elif not (job.again and self.done(name)):
            wrong += said(self.start(line).ended(), (0,))
        now = finished(self.place)
        wrong += [
            f"{path} was made again" for path, stamp in before.items() if now.get(path) != stamp and name != "run"
        ]
        return wrong + ([] if wrong else self.compare(name)) + left(self.place) + torn(self.place, job)

    def done(self, name: str) -> bool:
        """Whether a job's results are there already."""
        try:
            return results(self.place, JOBS[name]) == self.unbroken(name).results
        except Exception:  # what is half-written is not
            return False

    def compare(self, name: str) -> list[str]:
        """What is another than in the unbroken run."""
        found, expected = results(self.place, JOBS[name]), self.unbroken(name).results
        other = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
        return [f"not as unbroken: {', '.join(other)[:300]}"] if other else []


def _size(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def kill(bench: Bench, name: str, random: Random) -> list[str]:
    """kill -9."""
    bench.at_random(name, random, signal.SIGKILL).ended()
    return torn(bench.place, JOBS[name]) + bench.go_on(name)


def interrupt(bench: Bench, name: str, random: Random) -> list[str]:
    """Ctrl-C."""
    ended = bench.at_random(name, random, signal.SIGINT).ended()
    wrong = said(ended, (0, 130)) + torn(bench.place, JOBS[name])
    return wrong + ([] if JOBS[name].goes_on else left(bench.place)) + bench.go_on(name)


def full(bench: Bench, name: str, random: Random) -> list[str]:
    """The disk is full."""
    unbroken, job = bench.unbroken(name), JOBS[name]
    bench.fill(job)
    room = random.random()
    if bench.as_root:
        bench.clean()
        _mount(bench.place, "size=1g")
        bench._put(job)
        _mount(bench.place, f"remount,size={(_size(bench.place) + int(room * unbroken.size)) // 1024 + 4}k")
        child = bench.start(job.line)
    else:
        limit = int(room * max((path.stat().st_size for path in (bench.kept / name).rglob("*")), default=0))
        child = bench.start(job.line, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    wrong = said(child.ended(), (0, 2, 3)) + torn(bench.place, job) + left(bench.place)
    if bench.as_root:
        _mount(bench.place, "remount,size=1g")
    return wrong + bench.go_on(name)


def read_only(bench: Bench, name: str, random: Random) -> list[str]:
    """What shall be written to is read-only."""
    job = JOBS[name]
    bench.fill(job)
    if bench.as_root:
        bench.clean()
        _mount(bench.place, "size=1g")
        bench._put(job)
        _mount(bench.place, "remount,ro")
    else:
        bench.place.chmod(0o555)
    before = _size(bench.place)
    wrong = said(bench.start(job.line).ended(), (2,))
    wrong += ["something was written"] if _size(bench.place) != before else []
    if bench.as_root:
        _mount(bench.place, "remount,rw")
    else:
        bench.place.chmod(0o755)
    return wrong + bench.go_on(name)


def _mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)


def image_gone(bench: Bench, name: str, random: Random) -> list[str]:
    """An image vanishes in mid-run."""
    return _image(bench, name, random, lambda path: path.unlink())


def image_cut(bench: Bench, name: str, random: Random) -> list[str]:
    """An image is cut in mid-run."""
    keep = random.random()
    return _image(bench, name, random, lambda path: os.truncate(path, int(keep * path.stat().st_size)))


def _image(bench: Bench, name: str, random: Random, harm: Callable[[Path], None]) -> list[str]:
    unbroken, job = bench.unbroken(name), JOBS[name]
    bench.fill(job)
    image = random.choice(sorted((bench.place / "data/images/train").iterdir()))
    nth, whole = random.randint(1, max(unbroken.writes, 1)), image.read_bytes()
    ended = bench.start(job.line, at_write(nth, bench.place, lambda: harm(image))).ended()
    wrong = said(ended, (0, 2, 3)) + torn(bench.place, job)
    if not ended.code and image.name not in ended.text and "cannot be read" not in ended.text:
        wrong += [f"{problem}, without a word" for problem in bench.compare(name)]
    image.write_bytes(whole)
    return wrong + (bench.go_on(name) if ended.code else left(bench.place))


def label_cache(bench: Bench, name: str, random: Random) -> list[str]:
    """The host's cache of labels is none."""
    bench.fill(JOBS[name])
    cache = bench.place / "data/labels/train.cache"
    bench.start(JOBS[name].line).ended()
    whole = cache.read_bytes()
    bench.fill(JOBS[name])
    at = random.randrange(len(whole))
    cache.write_bytes(
        random.choice((b"", whole[:at], random.randbytes(64), whole[:at] + random.randbytes(9) + whole[at:]))
    )
    return said(bench.start(JOBS[name].line).ended(), (0,)) + bench.go_on(name)


def checkpoint_cut(bench: Bench, name: str, random: Random) -> list[str]:
    """A checkpoint of a killed training is cut."""
    while True:
        bench.at_random(name, random, signal.SIGKILL).ended()
        last = next((bench.place / JOBS[name].out).rglob("weights/last.pt"), None)
        if last and 0 <= (epoch := _epoch(last)) < {"train": 3, "run": 2}[name] - 1:  # after the last none is asked
            break
    file = random.choice((last, last.with_name(f"state{epoch}.pt")))
    os.truncate(file, int(random.random() * file.stat().st_size))
    before = file.read_bytes()
    line = JOBS[name].again(bench.place) if JOBS[name].again else JOBS[name].line  # type: ignore[misc]
    ended = bench.start(line).ended()
    if name == "run":  # begins again
        return said(ended, (0,)) + bench.go_on(name)
    wrong = said(ended, (2,) if file.name == "last.pt" else (0,))
    if file.name == "last.pt":
        wrong += [] if str(file) in ended.text else [f"{file} is not named: {ended.told}"]
        return wrong + ([] if file.read_bytes() == before else [f"{file} was changed"])  # nor is anything else touched
    return wrong + ([] if file.name in ended.text else [f"{file.name} is not named"]) + left(bench.place)


def _epoch(last: Path) -> int:
    import torch

    return int(torch.load(last, map_location="cpu", weights_only=False)["epoch"])


def clock(bench: Bench, name: str, random: Random) -> list[str]:
    """The clock jumps, forth or back."""
    unbroken = bench.unbroken(name)
    bench.fill(JOBS[name])
    true, jump = time.time, random.choice((-1, 1)) * 10 ** random.uniform(1, 8)

    def act() -> None:
        time.time = lambda: true() + jump

    nth = random.randint(1, max(unbroken.writes, 1))
    wrong = said(bench.start(JOBS[name].line, at_write(nth, bench.place, act)).ended(), (0,)) + bench.compare(name)
    for path in bench.place.rglob("record.json"):
        for key, value in json.loads(path.read_bytes())["timings"].items():
            wrong += [] if math.isfinite(value) and 0 <= value < 1e4 else [f"{key} is {value}"]
    return wrong + left(bench.place)


def together(bench: Bench, name: str, random: Random) -> list[str]:
    """The same command twice at the same time, in one folder."""
    unbroken, job = bench.unbroken(name), JOBS[name]
    bench.fill(job)
    first = bench.start(job.line)
    first.wait(random.choice((0.0, random.uniform(0, unbroken.seconds))))
    second = bench.start(job.line, log="other")
    second.wait()
    ends = [first.ended(), second.ended()]
    wrong = [problem for end in ends for problem in said(end, (0, 2))]
    if job.alone and job.kind == "set":
        wrong += [] if sorted(end.code for end in ends) == [0, 2] else ["not one made it and one was refused"]
    elif 0 not in {end.code for end in ends}:
        wrong += ["none made it"]
    for log in bench.place.rglob("log.txt"):
        wrong += (
            [f"{log.parent.name} was trained twice"] if log.read_text("utf-8").count("Starting training") > 1 else []
        )
    return wrong + bench.compare(name) + left(bench.place) + torn(bench.place, job)


@dataclass(frozen=True)
class Fault:
    """What happens, and to which jobs."""

    happen: Callable[[Bench, str, Random], list[str]]
    jobs: tuple[str, ...] = tuple(JOBS)


_READS = ("train", "run", "audit", "sparsify", "to-coco", "convert")
FAULTS = {
    "kill": Fault(kill),
    "interrupt": Fault(interrupt),
    "full": Fault(full),
    "read-only": Fault(read_only),
    "image-gone": Fault(image_gone, _READS),
    "image-cut": Fault(image_cut, _READS),
    "label-cache": Fault(label_cache, ("train", "run")),
    "checkpoint-cut": Fault(checkpoint_cut, ("train", "run")),
    "clock": Fault(clock, ("train", "run", "report", "audit", "complete")),
    "together": Fault(together, ("sparsify", "to-coco", "report", "audit", "complete", "sweep", "rounds")),
}


def tries(only: frozenset[str], seeds: list[int]) -> Iterator[tuple[str, str, str]]:
    """Fault, job and what the try is drawn from."""
    faults = [name for name in FAULTS if name in only] or list(FAULTS)
    jobs = [name for name in JOBS if name in only] or list(JOBS)
    for seed in seeds:
        for fault in faults:
            for job in (job for job in FAULTS[fault].jobs if job in jobs):
                for n in range(JOBS[job].kills if fault == "kill" else 1):
                    yield fault, job, f"{seed} {n}"


def _seeds(text: str) -> list[int]:
    spans = [part.partition("-") for part in text.split(",")]
    return [seed for low, _, high in spans for seed in range(int(low), int(high or low) + 1)]


def main(arguments: list[str]) -> int:
    """See the head of this file."""
    given = {"seeds": "0", "only": ""}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in given or not equals:
            print(f"faults: {argument} is not one of {', '.join(f'{key}=' for key in given)}", file=sys.stderr)
            return 2
        given[key] = value
    only = frozenset(filter(None, given["only"].split(",")))
    if unknown := sorted(only - {*FAULTS, *JOBS}):
        print(f"faults: {unknown[0]} is not one of {', '.join((*FAULTS, *JOBS))}", file=sys.stderr)
        return 2
    try:
        seeds = _seeds(given["seeds"])
    except ValueError:
        print(f"faults: seeds={given['seeds']} is no list of numbers, as 0-9 or 0,3", file=sys.stderr)
        return 2
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what a killed command has started stays ours to see
    tried, failed, began = Counter[tuple[str, str]](), Counter[tuple[str, str]](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder).resolve())
        try:
            for fault, job, drawn in tries(only, seeds):
                tried[fault, job] += 1
                wrong = FAULTS[fault].happen(bench, job, Random(f"{fault} {job} {drawn}"))
                if wrong:
                    failed[fault, job] += 1
                    print(
                        f"{fault} {job} ({drawn}): {wrong[0]}" + "".join(f"\n    {more}" for more in wrong[1:]),
                        flush=True,
                    )
        finally:
            bench.clean()
        how = "a small tmpfs" if bench.as_root else "a limit of the size of files"
    print(f"{'fault':<16}{'command':<12}{'tries':>6}{'failures':>10}")
    for (fault, job), count in tried.items():
        print(f"{fault:<16}{job:<12}{count:>6}{failed[fault, job]:>10}")
    seconds = time.monotonic() - began
    print(f"{tried.total()} tries, {failed.total()} failures, {seconds:.0f} s; the full disk is {how}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
