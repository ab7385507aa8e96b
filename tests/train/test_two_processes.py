"""Two processes on a CPU train one model, as two GPUs do; `scripts/two_processes.py` asks the same of every family."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from loaded_script import SCRIPTS, load
from ultralytics.engine import trainer as host

from rebalance import YOLO
from rebalance.errors import RunError

two_processes: Any = load("two_processes")


@pytest.fixture(autouse=True)
def _found_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture(scope="module")
def together() -> None:
    if why := two_processes.apart():
        pytest.skip(f"two processes do not reach each other here: {why}")


@pytest.mark.slow
@pytest.mark.usefixtures("together")
def test_dropping_on_the_anchor_head_with_regions_and_a_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = two_processes.make_data(tmp_path / "data")
    assert two_processes.train("anchor", "drop", data, tmp_path).wrong == []
    said = capfd.readouterr()
    begun = [line for line in (said.out + said.err).splitlines() if "rebalance: loss=drop" in line]
    assert len(begun) == 2  # of the training and of the one that goes on, one each


@pytest.mark.slow
@pytest.mark.usefixtures("together")
def test_gradient_harmonizing_counts_over_both(tmp_path: Path) -> None:
    data = two_processes.make_data(tmp_path / "data")
    assert two_processes.train("stock", "ghm", data, tmp_path, go_on=False).wrong == []


def test_a_process_that_stops_ends_the_training_in_a_line(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(host, "generate_ddp_command", lambda trainer: (command, None))
    with pytest.raises(RunError, match=r"^one of the 2 processes stopped, and says above why$"):
        YOLO("yolov8n.yaml").train(
            data=str(tiny_dataset), loss="ghm", trainer=two_processes.TwoProcesses, project=str(tmp_path), device="cpu"
        )
