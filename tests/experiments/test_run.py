"""One run: what is kept through a kill, what is checked before, and one real training from end to end."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rebalance.errors import ConfigError, ModelError, RunError
from rebalance.experiments import run as module
from rebalance.experiments.record import Plan
from rebalance.experiments.sweep import sweep

ROOT = Path(__file__).resolve().parents[2]
TINY = {"model": "yolov5n.yaml", "head": "anchor", "imgsz": "64", "batch": "4", "plots": "False", "amp": "False"}


def test_a_run_ends_with_the_sweep_that_started_it() -> None:
    program = "import time; from rebalance.experiments.run import end_with_parent; end_with_parent(); time.sleep(60)"
    sleeper = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {program!r}], stdin=subprocess.PIPE,"
    )
    sleeper += " start_new_session=True); print(p.pid, flush=True); import time; time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    os.kill(child, 0)  # it is there
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text("utf-8").rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the run went on without its sweep")


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json cannot be read"):
        module.carry_out(tmp_path)
    assert module.main([str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line() -> None:
    assert module.one_line(ConfigError("a\n  b")) == r"a\n b"  # a line break in a value is shown
    assert module.one_line(ValueError("a\nb")) == "ValueError: a b"
    assert module.one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("train", "host", "error", "message"),
    [
        ({"obj_drop": 0.5}, {"epoch": 3}, ConfigError, "unknown flag epoch=3 (did you mean epochs?)"),
        ({}, {"obj_drp": 0.5}, ConfigError, "unknown flag obj_drp=0.5 (did you mean obj_drop?)"),
        ({}, {"epochs": "many"}, ConfigError, "epochs=many"),
        ({}, {"lr0": 3.0}, ConfigError, "lr0=3.0"),
        ({"loss": "drp"}, {}, ConfigError, "did you mean drop?"),
        ({"anchor_t": 3.0}, {}, ConfigError, "anchor_t=3 has no effect with head=stock"),
        ({"loss": "bce", "obj_drop": 0.5}, {}, ConfigError, "obj_drop=0.5 has no effect with loss=bce"),
        ({"head": "anchor"}, {"box": 3.0}, ConfigError, "box=3.0 has no effect with head=anchor"),
        ({}, {"model": "yolov5nn.yaml"}, ModelError, "model=yolov5nn.yaml: no such file"),
        ({}, {"model": "here/none.pt"}, ModelError, "model=here/none.pt: no such file"),
        ({}, {"pretrained": "here/none.pt"}, ModelError, "pretrained=here/none.pt: no such file"),
        ({"head": "anchor"}, {"model": "yolov10n.yaml"}, ModelError, "head=anchor needs"),
    ],
)
def test_what_the_host_would_not_train_is_refused(
    train: dict[str, Any], host: dict[str, Any], error: type[Exception], message: str
) -> None:
    good = {"train": {"head": "anchor", "obj_drop": 0.5}, "host": {"model": "yolov5n.yaml", "data": "x.yaml"}}
    with pytest.raises(error, match=re.escape(message)) as caught:
        module.check([good, {"train": train, "host": {"model": "yolov5n.yaml", "data": "x.yaml", **host}}])
    assert "\n" not in str(caught.value)


def test_what_the_host_trains_is_accepted() -> None:
    host = {"model": "yolov8n.yaml", "data": "x.yaml", "epochs": 3, "device": "cpu", "classes": [0, 1]}
    module.check([{"train": train, "host": host} for train in ({}, {"obj_drop": 0.5}, {"head": "anchor"})])


def arguments(data: Path, **more: str) -> dict[str, str]:
    return {**TINY, "data": str(data), "name": "mine", **more}


@pytest.mark.slow
def test_a_real_sweep_from_end_to_end(tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tiny_dataset.parent / "labels" / "train" / "00.txt").write_text("9 2 2 2 2\n", "utf-8")  # broken: passed over
    folder = sweep(arguments(tiny_dataset, epochs="1", obj_drop="0,0.5", protocol="percent", jobs="2", loss="drop"))
    assert folder == Path("runs/benchmark/mine")
    records = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("runs/*/record.json"))]
    assert [record["status"] for record in records] == ["finished"] * 2
    record = records[1]
    assert record["loss_ran"]["loss"] == record["config"]["train"]["loss"] == "drop"
    assert record["loss_ran"]["head"] == "anchor"
    assert record["config"]["host"]["data"] == "tiny/data.yaml"
    assert record["config"]["labels"]["data"] == "runs/benchmark/mine/data/percent-0.5-0/data.yaml"
    assert record["config"]["host"]["imgsz"] == 64
    for split in ("val", "test"):
        metrics = record["metrics"][split]
        named = ["mAP50", "mAP75", "mAP50-95", "precision", "recall", "mAP_by_iou", "per_class", "coco", "voc"]
        assert list(metrics) == named
        assert {"AP", "AP50", "AP75", "AP_small"} <= set(metrics["coco"])
        assert set(metrics["voc"]) == {"mAP50", "mAP75"}
        assert set(record["host_metrics"][split]) == {"mAP50", "mAP75", "mAP50-95"}
        assert all(0 <= metrics[name] <= 1 for name in list(metrics)[:5])
        by_iou = metrics["mAP_by_iou"]
        assert list(by_iou) == [f"{t / 100:.2f}" for t in range(50, 100, 5)]
        assert (by_iou["0.50"], by_iou["0.75"]) == pytest.approx((metrics["mAP50"], metrics["mAP75"]))
        assert sum(by_iou.values()) / 10 == pytest.approx(metrics["mAP50-95"])
        assert set(metrics["per_class"]) == {"0: kind0", "1: kind1"}
    assert record["epochs"][0]["drop/obj_dropped"] > 0 == records[0]["epochs"][0]["drop/obj_dropped"]
    assert record["timings"]["images_per_second"] == pytest.approx(7 / record["timings"]["train_seconds"])
    assert record["timings"]["fps"] > 0
    assert record["evaluation"] == {"iou": 0.6, "conf": 0.001, "max_det": 300, "source": "val.py of YOLOv5"}
    assert "iou 0.6, conf 0.001, max_det 300" in (folder / "runs" / record["run"] / "log.txt").read_text("utf-8")
    assert record["peak_memory_mb"] > 100
    shown = {sample["split"] for sample in record["samples"]}
    assert shown == {"train", "test"}
    for sample in record["samples"]:
        assert sample["image"].startswith("runs/benchmark/" if sample["split"] == "train" else "tiny/images/test/")
        assert sample["size"] == [64, 64]
        assert bool(sample["withheld"]) == (sample["split"] == "train")
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["obj_drop"], row["drop_rate"], row["split"], row["status"]) for row in rows] == [
        ("0.0", "0.5", "test", "finished"),
        ("0.5", "0.5", "test", "finished"),
    ]


@pytest.mark.slow
def test_a_killed_run_gives_the_figures_of_an_unbroken_one_and_a_finished_one_is_only_evaluated(
    tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    given = arguments(tiny_dataset, epochs="6", obj_drop="0.5", warmup_epochs="1")
    fake = [sys.executable, str(Path(__file__).with_name("fake_run.py")), str(tmp_path / "plan.json")]
    folder = sweep(given, runner=fake, say=lambda _: None) / "runs" / "seed=0"  # for its config.json
    (folder / "record.json").unlink()
    unbroken = shutil.copytree(folder, tmp_path / "unbroken")
    rows = folder / "train" / "results.csv"

    def start(folder: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rebalance.experiments.run", str(folder), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    with start(folder) as process:
        end = time.monotonic() + 120
        while time.monotonic() < end and not (rows.exists() and len(rows.read_text("utf-8").splitlines()) >= 3):
            time.sleep(0.05)
        process.kill()
    assert not (folder / "record.json").exists()
    with open(rows, "a", encoding="utf-8") as file:
        file.write("4,1")  # as a kill in the middle of a line leaves it
    (folder / ".record.json.99").touch()  # and of a record

    with start(folder, "--device=cpu") as process, start(unbroken) as other:  # as a cluster goes on elsewhere
        told, _ = process.communicate()
        other.communicate()
    assert "as if it had not stopped" in told
    record, expected = (json.loads((each / "record.json").read_text("utf-8")) for each in (folder, unbroken))
    assert record["status"] == "finished"
    assert record["metrics"] == expected["metrics"]
    assert record["config"]["host"] == expected["config"]["host"]  # as it was asked
    without_time = [[{**row, "time": 0} for row in each["epochs"]] for each in (record, expected)]
    assert without_time[0] == without_time[1]
    assert [row["epoch"] for row in record["epochs"]] == [1, 2, 3, 4, 5, 6]
    assert record["loss_ran"]["settings"]["obj_drop"] == 0.5
    assert list(json.loads((folder / "progress.json").read_text("utf-8"))["seconds"]) == ["1", "2", "3", "4", "5", "6"]
    assert not [path for path in (*folder.iterdir(), *rows.parent.iterdir()) if path.name.startswith(".")]

    (folder / "record.json").unlink()
    best = folder / "train" / "weights" / "best.pt"
    trained = best.stat().st_mtime_ns
    with start(folder, "--val", "--held") as process:  # as a trial of a search
        process.communicate()
    again = json.loads((folder / "record.json").read_text("utf-8"))
    assert best.stat().st_mtime_ns == trained
    assert (again["metrics"]["val"], again["metrics"]["test"]) == (record["metrics"]["val"], None)
    assert again["timings"]["train_seconds"] == record["timings"]["train_seconds"]


def test_a_record_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "carry_out", lambda *_: Plan())  # whatever can be written
    monkeypatch.setattr("os.fsync", full)
    assert module.main([str(tmp_path)]) == 2
    told = f"rebalance: error: {tmp_path / 'record.json'} cannot be written: No space left on device\n"
    assert capsys.readouterr().err == told
    assert list(tmp_path.iterdir()) == []
