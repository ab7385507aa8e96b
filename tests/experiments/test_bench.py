"""`rebalance bench`: what it reports. No figure is asserted: they are the machine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rebalance.adapters import rivals
from rebalance.config import BenchFlags, as_dict
from rebalance.errors import ConfigError
from rebalance.experiments import bench

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.mark.slow
def test_command_prints_a_table_and_writes_every_figure(tmp_path: Path) -> None:
    # In a process of its own: YOLOv5's package, where it is installed, changes settings of OpenCV and PyTorch.
    out = tmp_path / "figures.json"
    flags = BenchFlags(batch=2, imgsz=64, repeats=3, device="cpu", out=str(out))
    command = [sys.executable, "-m", "rebalance", "bench", *(f"{k}={v}" for k, v in as_dict(flags).items())]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())

    assert found["flags"] == as_dict(flags)
    assert found["device"] == "cpu"
    assert found["syncs"] == []
    assert {"machine", "versions", "git", "precision"} <= set(found)
    hosts = ["Ultralytics"] if found["skipped"] else ["Ultralytics", "YOLOv5"]
    ours = ["ours, nothing dropped", "ours, loss=drop obj_drop=0.75"]
    expected = {(host, measure, own) for host in hosts for measure in bench.MEASURES for own in ours}
    assert {(row["host"], row["measure"], row["ours"]) for row in found["rows"]} == expected
    for row in found["rows"]:
        assert row["unit"] == ("MiB" if "memory" in row["measure"] else "ms")
        for figures in (row["hosts"], row["own"], row["ratio"]):
            assert 0 < figures["low"] <= figures["median"] <= figures["high"]
        assert row["met"] == (None if row["aim"] is None else row["ratio"]["median"] <= row["aim"])
    for line in found["skipped"]:
        assert line.startswith("YOLOv5: No module named")
        assert line in done.stdout
    assert done.stdout.count("  ratio ") == len(found["rows"])


def test_without_yolov5_its_rows_are_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yolov5", None)
    monkeypatch.setitem(sys.modules, "yolov5.utils.loss", None)
    monkeypatch.setattr(bench, "_rows", lambda contest, repeats: [])
    found = bench.bench(BenchFlags(batch=1, imgsz=32, repeats=3, device="cpu"))
    assert len(found["skipped"]) == 1
    assert "yolov5" in found["skipped"][0]
    assert "requirements-upstream.txt" in bench.table(found)


def test_both_sides_compute_the_same_loss() -> None:
    contest = rivals.stock(2, 64, CPU)
    output = contest.model(contest.images)
    host, ours, dropping = (float(side.loss(side.adapt(output)).detach()) for side in contest.sides)
    assert ours == host
    assert 0 < dropping < host
    assert [side.drops for side in contest.sides] == [False, False, True]


@pytest.mark.upstream
def test_both_sides_compute_the_same_yolov5_loss() -> None:
    code = """
import torch
from rebalance.adapters import rivals
contest = rivals.anchor(2, 64, torch.device("cpu"))
output = contest.model(contest.images)
print(*(float(side.loss(side.adapt(output)).detach()) for side in contest.sides))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if "No module named" in done.stderr:
        pytest.skip("yolov5 is not installed: pip install --no-deps -r requirements-upstream.txt")
    assert done.returncode == 0, done.stderr
    host, ours, dropping = map(float, done.stdout.split())
    assert ours == pytest.approx(host, rel=1e-5)
    assert dropping != pytest.approx(host, rel=1e-3)


def row(ratio: float, aim: float | None, **more: Any) -> dict[str, Any]:
    figures = {"median": 2.0, "low": 1.5, "high": 2.5}
    return {
        "model": "m", "host": "h", "ours": "o", "measure": "step", "unit": "ms", "hosts": figures, "own": figures,
        "ratio": {"median": ratio, "low": 0.9, "high": 1.1}, "aim": aim, "met": None if aim is None else ratio <= aim,
        **more,
    }  # fmt: skip


def test_table_says_which_aims_are_met() -> None:
    rows = [row(1.02, 1.03), row(1.04, 1.03), row(1.5, None, measure="memory", unit="MiB")]
    facts = {"gpu": None, "cpu": "a processor", "threads": 2}
    found = {
        "rows": rows,
        "skipped": [],
        "syncs": [],
        "machine": facts,
        "versions": {"torch": "2"},
        "precision": "float32",
    }
    text = bench.table({**found, "flags": as_dict(BenchFlags())})
    lines = [line for line in text.splitlines() if "  ratio " in line]
    assert ["met" in line for line in lines] == [True, False, False]
    assert ["missed" in line for line in lines] == [False, True, False]
    assert "ratio 1.020 [0.900, 1.100]" in lines[0]
    assert text.startswith("a processor, 2 threads")


def test_quartiles_by_hand() -> None:
    assert bench._quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"low": 2.0, "median": 3.0, "high": 4.0}
    assert bench._quartiles([7.0]) == {"low": 7.0, "median": 7.0, "high": 7.0}


def test_turns_reverse_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    taken = bench._take_turns({name: lambda name=name: order.append(name) for name in "ab"}, CPU, 4)  # type: ignore[misc]
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}
    assert "".join(order) == ("abba" * 4)[: 2 * (4 + bench.WARM_UP)]


def test_memory_is_the_peak_not_the_sum() -> None:
    def run() -> None:
        for _ in range(3):
            torch.zeros(2**18)  # 1 MiB, given back each time
        both = [torch.zeros(2**18) for _ in range(2)]
        del both

    found = bench._memory(run, CPU)
    assert found == [] or 2 <= found[0] < 2.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"device": "tpu"}, "device=tpu is not one of cpu"), ({"imgsz": 100}, "imgsz=100 is not a multiple of 32")],
)
def test_bad_flags_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.bench(BenchFlags(**{"device": "cpu", **flags}))
