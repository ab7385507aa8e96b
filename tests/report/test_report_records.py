"""Reading records: what is there, what is missing, and what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rebalance.errors import RunError
from rebalance.experiments.record import load, main, read

REFERENCE = Path(__file__).resolve().parents[2] / "runs" / "reference"


def broken(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The record with one field replaced, e.g. 'metrics.test.mAP50'."""
    content = json.loads(json.dumps(content))
    *parents, last = path.split(".")
    inner = content
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return content


def test_reads_a_record(make_sweep: Any, make_record: Any) -> None:
    sample = {"image": "a.jpg", "size": [20, 10], "labels": [[1, 0, 0, 5, 5]], "withheld": []}
    sample["detections"] = [[2, 0.9, 1, 2, 3, 4]]
    folder = make_sweep(make_record("a", 3, test=0.4, val=0.5, samples=[sample], obj_drop=0.5))
    (record,) = load(folder).records
    assert (record.run, record.seed, record.finished) == ("a", 3, True)
    assert record.metrics["test"]["mAP75"] == 0.2
    assert record.per_class["val"]["lobster"]["mAP50"] == 0.25
    assert record.samples[0].labels == ((1, (0, 0, 5, 5)),)
    assert record.samples[0].detections[0].box == (1, 2, 3, 4)
    assert record.samples[0].detections[0].score == 0.9
    assert "lr/pg0" not in record.epochs[0]  # null: what was not a number


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "schema is 2, this version reads 1"),
        ("status", "running", "status is 'running', not finished or failed"),
        ("run", "", "run is '', not a text"),
        ("config", None, "config is missing"),
        ("config.seed", "one", "config.seed is 'one', not a number"),
        ("config.host", [], "config.host is list, not an object"),
        ("metrics", {}, "metrics has neither val nor test"),
        ("metrics.test.mAP50", 1.5, "metrics.test.mAP50 is 1.5, not a fraction"),
        ("metrics.test.mAP50-95", None, "metrics.test.mAP50-95 is missing"),
        ("epochs", {}, "epochs is dict, not a list"),
        ("samples", [{"image": "a.jpg", "size": [1]}], r"samples\[0\].size has 1 numbers, not 2"),
    ],
)
def test_a_broken_field_is_named(make_sweep: Any, make_record: Any, path: str, value: Any, message: str) -> None:
    folder = make_sweep(make_record("a", 0), make_record("b", 1))
    file = folder / "runs" / "a" / "record.json"
    file.write_text(json.dumps(broken(make_record("a", 0), path, value)), "utf-8")
    with pytest.raises(RunError, match=message):
        read(file)
    sweep = load(folder)
    assert [r.run for r in sweep.records] == ["b"]
    assert len(sweep.warnings) == 1
    assert str(file) in sweep.warnings[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1, "run', "\x00\x01"])
def test_a_corrupt_file_is_named_and_skipped(make_sweep: Any, make_record: Any, content: str) -> None:
    folder = make_sweep(make_record("a", 0), make_record("b", 1))
    (folder / "runs" / "a" / "record.json").write_text(content, "utf-8")
    sweep = load(folder)
    assert [r.run for r in sweep.records] == ["b"]
    assert "a/record.json" in sweep.warnings[0].replace("\\", "/")


def test_bytes_that_are_no_text(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0))
    (folder / "runs" / "a" / "record.json").write_bytes(b"\xff\xfe{")
    assert len(load(folder).warnings) == 1


def test_missing_runs(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("b", 0), make_record("a", 1), asked={"model": ["m"]})
    plan = json.loads((folder / "sweep.json").read_text("utf-8"))
    (folder / "sweep.json").write_text(json.dumps({**plan, "runs": ["b", "later", "a"]}), "utf-8")
    (folder / "runs" / "begun").mkdir()
    sweep = load(folder)
    assert [r.run for r in sweep.records] == ["b", "a"]  # in the order of the grid
    assert sweep.missing == ("later", "begun")


def test_a_corrupt_plan_is_no_plan(make_sweep: Any, make_record: Any) -> None:
    folder = make_sweep(make_record("a", 0))
    (folder / "sweep.json").write_text('{"runs"', "utf-8")
    assert [r.run for r in load(folder).records] == ["a"]
    assert load(folder).asked == {}


def test_not_a_sweep(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="not the folder of a sweep"):
            load(folder)


def test_a_failed_run(make_sweep: Any, make_record: Callable[..., dict[str, Any]]) -> None:
    failed = {**make_record("a", 0), "status": "failed", "error": "boom", "metrics": None, "loss_ran": None}
    failed |= {"timings": None, "peak_memory_mb": None, "log_tail": ["x", "boom"]}
    (record,) = load(make_sweep(failed)).failed
    assert (record.error, record.metrics, record.log_tail) == ("boom", {}, ("x", "boom"))


def test_a_sweep_kept_as_one_file_reads_as_its_folder_and_becomes_one_again(
    make_sweep: Any, make_record: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {**make_record("b", 1), "status": "failed", "error": "boom", "metrics": None}
    folder = make_sweep(make_record("a", 0), failed, asked={"loss": ["drop"]})
    plan = json.loads((folder / "sweep.json").read_text("utf-8"))
    plan |= {"runs": ["b", "a", "later"], "study": {"title": "brl, Table 1", "tables": [["brl", "1"]]}}
    (folder / "sweep.json").write_text(json.dumps(plan), "utf-8")
    kept = tmp_path / "kept" / "mine"
    assert main([str(folder), str(kept)]) == 0
    assert [path.name for path in kept.iterdir()] == ["records.jsonl"]
    one, other = load(folder), load(kept)
    assert [r.run for r in other.records] == ["b", "a"]
    assert other.records[0].folder == kept / "runs" / "b"
    moved = tuple(replace(r, folder=folder / "runs" / r.run) for r in other.records)
    assert replace(other, folder=folder, records=moved) == one
    assert other.missing == ("later",)
    again = tmp_path / "again"
    assert main([str(kept), str(again)]) == 0
    assert replace(load(again), folder=folder, records=one.records) == one
    assert main([str(again), str(tmp_path / "twice")]) == 0
    assert (tmp_path / "twice/records.jsonl").read_bytes() == (kept / "records.jsonl").read_bytes()
    assert main([str(kept), str(again)]) == 2  # what is there stays
    assert "again is there already" in capsys.readouterr().err
    (first, *lines) = (kept / "records.jsonl").read_text("utf-8").splitlines()
    (kept / "records.jsonl").write_text("\n".join([first, lines[0][:50], *lines[1:]]), "utf-8")
    assert [r.run for r in load(kept).records] == ["a"]
    assert "records.jsonl, line 2 is not valid JSON" in load(kept).warnings[0]


def test_only_a_whole_sweep_is_kept(
    make_sweep: Any, make_record: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_sweep(make_record("a", 0), asked={})
    assert main([str(folder)]) == 2
    (folder / "runs" / "a" / "record.json").write_text("{", "utf-8")
    assert main([str(folder), str(tmp_path / "kept")]) == 2
    assert "a/record.json is not valid JSON" in capsys.readouterr().err.replace("\\", "/")
    assert not (tmp_path / "kept").exists()


def test_no_run_is_laid_out_outside_its_sweep(
    make_sweep: Any, make_record: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    main([str(make_sweep(make_record("a", 0), asked={})), str(kept)])
    text = (kept / "records.jsonl").read_text("utf-8")
    (kept / "records.jsonl").write_text(text.replace('"run":"a"', '"run":"../../a"'), "utf-8")
    assert main([str(kept), str(tmp_path / "out")]) == 2
    assert "../../a is not the name of a run's folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", sorted(REFERENCE.glob("*/records.jsonl")), ids=lambda path: path.parent.name)
def test_the_records_that_are_kept_can_all_be_read(file: Path) -> None:
    sweep = load(file.parent)
    assert sweep.records
    planned = any(file.parent.glob("plan.*"))  # may be kept before all of it has run
    assert (() if planned else sweep.missing, sweep.warnings) == ((), ())
