"""Where one of several processes stops there is a line, and no traceback but of what is a bug."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from loaded_script import load
from torch import distributed

from rebalance.errors import ConfigError, RebalanceError
from rebalance.train import launch

STOCK = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29511"]


def test_a_process_that_is_killed_is_named_without_a_traceback(tmp_path: Path) -> None:
    if why := load("two_processes").apart():
        pytest.skip(f"two processes do not reach each other here: {why}")
    file = tmp_path / "ends.py"
    file.write_text("import os\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 9)\n", "utf-8")
    done = subprocess.run(launch.command([*STOCK, str(file)]), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "rebalance: process 1 was ended by SIGKILL (out of memory?)"
    assert "Traceback" not in done.stderr
    assert launch.command(["another", "command"]) == ["another", "command"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("lr0=9 is too much"), 2, "lr0=9 is too much"),
        (RuntimeError("[gloo/tcp/pair.cc:547] Connection closed by peer [::1]:2693"), 1, "another one is gone"),
        (distributed.DistBackendError("NCCL says much"), 1, "another one is gone"),
    ],
)
def test_each_process_says_in_a_line_what_stopped_it(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), launch.told():  # one process alone: it is told where it always is
        raise error
    monkeypatch.setattr(launch, "LOCAL_RANK", 1)
    with pytest.raises(SystemExit) as ended, launch.told():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"rebalance: error: process 1: {line}\n"
    assert isinstance(error, RebalanceError) == (code == 2)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LOCAL_RANK", 0)
    for bug in (RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(bug)), launch.told():
            raise bug
