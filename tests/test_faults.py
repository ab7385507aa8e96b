"""The short form of scripts/faults.py: a few of its tries, and that it sees what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from loaded_script import load

from rebalance.data import folder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks, and looks into /proc")


@pytest.fixture(scope="module")
def script() -> Any:
    return load("faults")


@pytest.fixture(scope="module")
def bench(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    settings = os.environ["YOLO_CONFIG_DIR"]
    made = script.Bench(tmp_path_factory.mktemp("faults"))
    yield made
    made.clean()
    os.environ["YOLO_CONFIG_DIR"] = settings


@pytest.mark.parametrize(
    ("fault", "job"),
    [
        ("kill", "sparsify"),
        ("interrupt", "to-coco"),
        ("full", "sparsify"),
        ("read-only", "to-coco"),
        ("image-gone", "sparsify"),
        ("together", "sparsify"),
        pytest.param("kill", "train", marks=pytest.mark.slow),
        pytest.param("checkpoint-cut", "train", marks=pytest.mark.slow),
        pytest.param("label-cache", "train", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_half_written_and_the_same_command_goes_on(script: Any, bench: Any, fault: str, job: str) -> None:
    assert script.FAULTS[fault].happen(bench, job, Random(f"{fault} {job}")) == []


def test_every_command_and_fault_is_tried(script: Any) -> None:
    tried = list(script.tries(frozenset(), [0]))
    assert {fault for fault, _, _ in tried} == {*script.FAULTS}
    assert {job for _, job, _ in tried} == {*script.JOBS}
    assert {job for fault, job, _ in tried if fault == "kill"} == {*script.JOBS}
    assert [job for _, job, _ in script.tries(frozenset({"full", "audit"}), [3])] == ["audit"]


def test_a_data_set_that_is_written_in_its_place_is_seen(
    script: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def in_place(out: Path) -> Iterator[Path]:
        out.mkdir()
        yield out

    bench.unbroken("sparsify")
    monkeypatch.setattr(folder, "beside", in_place)
    found = script.FAULTS["kill"].happen(bench, "sparsify", Random(1))
    assert "the data set is another" in found


def test_what_is_left_and_a_traceback_are_seen(script: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def careless(out: Path) -> Iterator[Path]:
        part = out.with_name(f".{out.name}.part")
        part.mkdir()
        yield part

    bench.unbroken("sparsify")
    monkeypatch.setattr(folder, "beside", careless)
    monkeypatch.setattr(folder.os, "rename", lambda *_: 1 / 0)
    found = script.FAULTS["together"].happen(bench, "sparsify", Random(1))
    assert any(problem.startswith("a traceback (code 1): ZeroDivisionError") for problem in found)
    assert ".sparse.part is left" in found


def test_bad_arguments_are_one_line(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("only=kil", "seeds=x", "jobs=3"):
        assert script.main([argument]) == 2
        assert capsys.readouterr().err.count("\n") == 1
