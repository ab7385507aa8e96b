"""What stands in a record, and that nothing is written by halves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from mutations import places, put, small_sweep

from rebalance.errors import RunError
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
    with pytest.raises(RunError, match=r"a\.json cannot be written: disk full"):
        record.write_json(path, {"a": 2})
    assert record.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "null", "\x00"])
def test_what_is_no_object_reads_as_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "record.json").write_text(text, "utf-8")
    assert record.read_json(tmp_path / "record.json") is None
    assert record.read_if_whole(record.Record, tmp_path / "record.json") is None


def test_tail_of_a_log_has_no_colours_and_no_drawn_over_bars(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = "".join(f"line {i}\n" for i in range(50))
    log.write_bytes((lines + "\x1b[1mbold\x1b[0m\n\n0%\r50%\r\x1b[K100%\nlast\xff\n").encode("latin-1"))
    assert record.tail(log, 4) == ["line 49", "bold", "100%", "last\ufffd"]
    assert len(record.tail(log)) == 25
    assert record.tail(tmp_path / "none") == []


def test_paths_are_shown_relative_where_they_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert record.shown(tmp_path / "data" / "a.yaml") == "data/a.yaml"
    assert record.shown("data/a.yaml") == "data/a.yaml"
    assert record.shown("/elsewhere/a.yaml") == "/elsewhere/a.yaml"


RECORDS = sorted((Path(__file__).resolve().parents[2] / "runs" / "reference").glob("*/records.jsonl"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda path: path.parent.name)
def test_what_is_read_is_written_as_it_was(tmp_path: Path, file: Path) -> None:
    plan, *lines = file.read_text("utf-8").splitlines()
    for kind, text in ((record.Plan, plan), *((record.Record, line) for line in lines)):
        record.write(tmp_path / "a.json", record.decode(kind, text, "line"))
        written, before = json.loads((tmp_path / "a.json").read_text("utf-8")), json.loads(text)
        assert written == before
        assert list(written) == list(before)  # and in the same order


def test_a_task_and_a_failed_run_are_read_as_they_were_written(tmp_path: Path) -> None:
    labels = {"protocol": "percent", "rate": 0.5, "seed": 0, "data": "d.yaml", "manifest": None}
    config = record.Config(train={"obj_drop": 0.5}, host={"model": "m.yaml", "classes": [0, 1]}, labels=labels, seed=1)
    task = record.Task(run="a", config=config, varied={}, given=("obj_drop",))
    record.write(tmp_path / "config.json", task)
    assert record.read_file(record.Task, tmp_path / "config.json") == task
    (tmp_path / "log.txt").write_text("a line\nboom\n", "utf-8")
    failed = record.failed(task, "boom", tmp_path / "log.txt", machine={"cores": 2})
    record.write(tmp_path / "record.json", failed)
    assert record.read(tmp_path / "record.json") == replace(failed, folder=tmp_path)
    content = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert (content["metrics"], content["loss_ran"], content["log_tail"]) == (None, None, ["a line", "boom"])
    assert failed.headline == ("val", {})


def test_the_headline_is_test_where_there_is_one() -> None:
    config = record.Config(train={}, host={}, labels={}, seed=0)
    val, test = {"mAP50": 0.1}, {"mAP50": 0.2}
    one = record.Record(run="a", status="finished", config=config, metrics={"val": val})
    assert one.headline == ("val", val)
    assert replace(one, metrics={"val": val, "test": test}).headline == ("test", test)


def test_a_class_has_its_index_where_another_has_its_name() -> None:
    config = record.Config(train={}, host={}, labels={}, seed=0)
    one = record.Record(run="a", status="finished", config=config, metrics={"val": {"mAP50": 0.1}})

    def named(*keys: str) -> list[str]:
        per_class = {key: {"mAP50": 0.5} for key in keys}
        return list(replace(one, metrics={"val": {"mAP50": 0.1, "per_class": per_class}}).per_class["val"])

    assert named("0: fish", "1: 2: crab", "3: fish") == ["0: fish", "2: crab", "3: fish"]
    assert named("fish", "crab") == ["fish", "crab"]  # an older record
    assert named("fish", "0: crab") == ["fish", "0: crab"]


def test_the_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = record.Config(train={}, host={}, labels={}, seed=0)
    means = dict.fromkeys(record.METRICS, 0.5)
    one = record.Record(
        run="a", status="finished", config=config, host_metrics={"test": means},
        metrics={"test": {**means, "coco": {"AP": 0.25, "AP_small": 0.5}, "voc": {"mAP50": 0.75}}},
        evaluation={"iou": 0.5, "conf": 0.001, "max_det": 100, "source": "here"},
    )  # fmt: skip
    record.write(tmp_path / "record.json", one)
    assert record.read(tmp_path / "record.json") == replace(one, folder=tmp_path)
    text = (tmp_path / "record.json").read_text("utf-8").replace('"max_det": 100', '"max_det": {}')
    with pytest.raises(record.RunError, match=r"evaluation\.max_det is dict, not a number"):
        record.decode(record.Record, text, "line")


WRONG = (7, 1.5, True, "x", "", None, [], [[1]], {}, {"a": {"b": 1}})


def test_a_record_with_anything_anywhere_is_read_or_refused_in_one_line() -> None:
    plan, content, _ = small_sweep()
    passed, refused = 0, {}
    for kind, given in ((record.Plan, plan), (record.Record, content)):
        for path in places(given):
            for wrong in WRONG:
                try:
                    record.build(kind, put(given, path, wrong))
                    passed += 1
                except record.RunError as error:
                    refused[path] = str(error)
    assert passed > 100
    assert not any("\n" in text for text in refused.values())
    assert {("metrics", "test", "mAP50"), ("host_metrics", "test", "mAP75"), ("evaluation", "iou")} <= set(refused)
    assert {("epochs",), ("samples", 0, "labels"), ("config", "labels", "manifest"), ("timings",)} <= set(refused)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "9" * 400, "[" * 100000, '"\\ud800"'])
def test_what_no_file_of_ours_holds_is_refused(text: str) -> None:
    line = '{"schema": 1, "asked": {"a": %s}}'
    assert record.decode(record.Plan, line % '"\\ud83d\\ude00"', "line").asked == {"a": "\U0001f600"}
    with pytest.raises(record.RunError, match="line is not valid JSON: "):
        record.decode(record.Plan, line % text, "line")
