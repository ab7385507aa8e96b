"""The short form of scripts/faults.py: a few of its tries, and that it sees what is wrong.

They are made in processes of their own: the script forks, and what is forked from a process that has had threads, as
this one from other tests, may wait for one of them forever.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from loaded_script import load

from rebalance.data import folder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks, and looks into /proc")

QUICK = [
    ("kill", "sparsify"),
    ("interrupt", "to-coco"),
    ("full", "sparsify"),
    ("read-only", "to-coco"),
    ("image-gone", "sparsify"),
    ("together", "sparsify"),
]
SLOW = [("kill", "train"), ("checkpoint-cut", "train"), ("label-cache", "train")]


@contextmanager
def in_place(out: Path) -> Iterator[Path]:
    """A data set is written in its place."""
    out.mkdir()
    yield out


@contextmanager
def careless(out: Path) -> Iterator[Path]:
    """It is written beside, never moved, and stays."""
    part = out.with_name(f".{out.name}.part")
    part.mkdir()
    with patch.object(os, "rename", lambda *_: 1 / 0):
        yield part


HARM: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "in place": lambda: patch.object(folder, "beside", in_place),
    "careless": lambda: patch.object(folder, "beside", careless),
}


def in_this_process(place: str, harm: str, tries: list[tuple[str, str]]) -> None:
    """Print for each fault and job what is wrong afterwards, where the code has been harmed."""
    script: Any = load("faults")
    bench = script.Bench(Path(place).resolve())
    for _, job in tries:
        bench.unbroken(job)
    with HARM[harm]():
        found = [script.FAULTS[fault].happen(bench, job, Random(f"{fault} {job}")) for fault, job in tries]
    bench.clean()
    print(json.dumps(found))


def tried(place: Path, tries: list[tuple[str, str]], harm: str = "none") -> list[list[str]]:
    code = "import json, sys, test_faults; test_faults.in_this_process(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps([str(place), harm, tries])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_nothing_is_half_written_and_the_same_command_goes_on(tmp_path: Path) -> None:
    assert dict(zip(QUICK, tried(tmp_path, QUICK), strict=True)) == {one: [] for one in QUICK}


@pytest.mark.slow
def test_no_checkpoint_is_half_written_and_a_training_goes_on(tmp_path: Path) -> None:
    assert dict(zip(SLOW, tried(tmp_path, SLOW), strict=True)) == {one: [] for one in SLOW}


def test_a_data_set_that_is_written_in_its_place_is_seen(tmp_path: Path) -> None:
    assert "the data set is another" in tried(tmp_path, [("kill", "sparsify")], "in place")[0]


def test_what_is_left_and_a_traceback_are_seen(tmp_path: Path) -> None:
    (found,) = tried(tmp_path, [("together", "sparsify")], "careless")
    assert any(problem.startswith("a traceback (code 1): ZeroDivisionError") for problem in found)
    assert ".sparse.part is left" in found


def test_every_command_and_fault_is_tried() -> None:
    script: Any = load("faults")
    all_tries = list(script.tries(frozenset(), [0]))
    assert {fault for fault, _, _ in all_tries} == {*script.FAULTS}
    assert {job for _, job, _ in all_tries} == {*script.JOBS}
    assert {job for fault, job, _ in all_tries if fault == "kill"} == {*script.JOBS}
    assert [job for _, job, _ in script.tries(frozenset({"full", "audit"}), [3])] == ["audit"]


def test_bad_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    script: Any = load("faults")
    for argument in ("only=kil", "seeds=x", "jobs=3"):
        assert script.main([argument]) == 2
        assert capsys.readouterr().err.count("\n") == 1
