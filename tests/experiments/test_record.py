"""What stands in a record, and that nothing is written by halves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from rebalance.experiments.results import headline

from rebalance.experiments import record


def test_json_is_written_whole_and_without_numbers_it_has_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"a": [math.nan, math.inf, -math.inf, 1.5], "b": {"c": (1, True, None)}, "d": Path("x"), "ü": "ü"}
    record.write_json(path, content)
    assert json.loads(path.read_text("utf-8")) == {
        "a": [None, None, None, 1.5],
        "b": {"c": [1, True, None]},
        "d": "x",
        "ü": "ü",
    }
    assert len(path.read_text("utf-8").splitlines()) == len(content) + 2
    record.write_json(path, {})
    assert record.read_json(path) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_writing_that_breaks_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    record.write_json(path, {"a": 1})

    def broken(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        record.write_json(path, {"a": 2})
    assert record.read_json(path) == {"a": 1}


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "null", "\x00"])
def test_what_is_no_object_reads_as_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "record.json").write_text(text, "utf-8")
    assert record.read_json(tmp_path / "record.json") is None
    assert record.read_record(tmp_path) is None


def test_tail_of_a_log_has_no_colours_and_no_drawn_over_bars(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = "".join(f"line {i}\n" for i in range(50))
    log.write_bytes((lines + "\x1b[1mbold\x1b[0m\n\n0%\r50%\r\x1b[K100%\nlast\xff\n").encode("latin-1"))
    assert record.tail(log, 4) == ["line 49", "bold", "100%", "last\ufffd"]
    assert len(record.tail(log)) == 25
    assert record.tail(tmp_path / "none") == []


def test_versions_and_machine_have_what_a_reader_needs() -> None:
    versions = record.versions()
    assert list(versions) == ["python", "rebalance", "torch", "ultralytics", "torchvision", "numpy"]
    assert all(versions.values())
    machine = record.machine(3, None)
    assert list(machine) == ["cpu", "cores", "threads", "memory_gb", "gpu", "platform"]
    assert machine["threads"] == 3
    assert machine["cores"] == record.cores() >= 1
    assert machine["memory_gb"] > 0.1
    assert machine["cpu"]


def test_git_is_this_checkout_and_not_one_around_an_installed_package(tmp_path: Path) -> None:
    root = Path(record.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        found = record.git()
        assert found is not None
        assert found["commit"] == head.stdout.strip()
    package = tmp_path / "rebalance" / "experiments"  # a copy in somebody else's checkout, which does not track it
    package.mkdir(parents=True)
    for file in ("rebalance/__init__.py", "rebalance/experiments/__init__.py", "rebalance/experiments/record.py"):
        (tmp_path / file).write_bytes((root / file).read_bytes())
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    program = "from rebalance.experiments.record import git; print(git())"
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "None"


def test_paths_are_shown_relative_where_they_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert record.shown(tmp_path / "data" / "a.yaml") == "data/a.yaml"
    assert record.shown("data/a.yaml") == "data/a.yaml"
    assert record.shown("/elsewhere/a.yaml") == "/elsewhere/a.yaml"


def test_the_headline_is_test_where_there_is_one() -> None:
    assert headline({"metrics": {"val": {"mAP50": 0.1}, "test": {"mAP50": 0.2}}}) == ("test", {"mAP50": 0.2})
    assert headline({"metrics": {"val": {"mAP50": 0.1}, "test": None}}) == ("val", {"mAP50": 0.1})
    assert headline({"metrics": None}) == ("val", {})
