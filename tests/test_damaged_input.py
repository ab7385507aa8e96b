"""Damaged input of every kind, the short form of `scripts/fuzz.py`: read, or refused in one line, and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaded_script import load

NAMES = (
    "labels", "regions", "data", "voc", "coco", "lvis", "open-images", "kitti", "visdrone", "fddb", "indoor", "cvat",
    "dusia", "label-studio", "audit", "plan", "records", "flags", "training-flags", "grid-flags", "checkpoints",
)  # fmt: skip
EACH = 16  # inputs of a kind


@pytest.fixture(scope="module")
def script() -> Any:
    return load("fuzz")


@pytest.fixture(scope="module")
def fuzzer(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = script.Fuzzer(tmp_path_factory.mktemp("fuzz"))
    made.watch.passed.append(".hypothesis")
    yield made
    made.watch.allowed = None


def test_every_kind_of_input_is_tried(fuzzer: Any) -> None:
    assert tuple(fuzzer.surfaces) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_or_refused_in_a_line(fuzzer: Any, name: str) -> None:
    @settings(
        max_examples=EACH, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def attempt(random: Random) -> None:
        assert fuzzer.attempt(name, random) == ""

    attempt()


@pytest.mark.parametrize("name", NAMES)
def test_the_undamaged_input_is_read(fuzzer: Any, name: str, monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
    """Else the damage would be tried on what is refused anyway."""
    monkeypatch.setattr(script, "damaged", lambda random, data: data)
    monkeypatch.setattr(script, "_mixed", lambda random, line: line.split())
    codes: list[Any] = []
    surface = fuzzer.surfaces[name]
    object.__setattr__(surface, "run", lambda *given, run=surface.run: codes.append(run(*given)) or codes[-1])
    for seed in range(6):
        assert fuzzer.attempt(name, Random(seed)) == ""
    read = [code for code in codes if not code]
    assert len(read) == 6 if name not in ("flags", "checkpoints") else read


# That faults are found -----------------------------------------------------------------------------------------------


def outside(source: Path, out: Path, random: Random) -> None:
    (out.parent / "escaped").write_text("x")


def changes(source: Path, out: Path, random: Random) -> None:
    fd = os.open(str(source / "x"), os.O_RDONLY)
    os.close(fd)
    os.utime(source / "x", (1, 1))


def starts(source: Path, out: Path, random: Random) -> None:
    os.system("true")


def leaves(source: Path, out: Path, random: Random) -> int:
    (out / "made").mkdir()
    print("rebalance: error: no", file=sys.stderr)
    return 2


def talks(source: Path, out: Path, random: Random) -> int:
    print("rebalance: error: no\nand no", file=sys.stderr)
    return 2


def falls(source: Path, out: Path, random: Random) -> None:
    raise KeyError("x")


def hangs(source: Path, out: Path, random: Random) -> None:
    while True:
        pass


def is_silent(source: Path, out: Path, random: Random) -> int:
    return 2


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (outside, "outside the output: open"),
        (changes, "outside the output: os.utime"),
        (starts, "outside the output: os.system"),
        (leaves, "left after a refusal: made"),
        (talks, "a message of 2 lines"),
        (falls, "KeyError at test_damaged_input.py"),
        (hangs, "Late at"),
        (is_silent, "refused without a word"),
    ],
)
def test_faults_are_seen(fuzzer: Any, script: Any, monkeypatch: pytest.MonkeyPatch, does: Any, told: str) -> None:
    monkeypatch.setattr(fuzzer, "seconds", 0.5)
    monkeypatch.setitem(fuzzer.surfaces, "labels", script.Surface({"x": b"1"}, does, "x"))
    assert fuzzer.attempt("labels", Random(0)).startswith(told)


def test_a_changed_input_is_seen(fuzzer: Any, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = script._state
    seen = iter([0, 1])
    monkeypatch.setattr(script, "_state", lambda folder: (next(seen), state(folder)))
    monkeypatch.setitem(fuzzer.surfaces, "labels", script.Surface({"x": b"1"}, lambda *_: None, "x"))
    assert fuzzer.attempt("labels", Random(0)) == "the input was changed"
