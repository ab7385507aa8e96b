"""`dry=True`: what a sweep would run is what it then runs, what it refuses is refused, and nothing is made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from test_sweep import RUNS, Bench

from rebalance.cli.main import main
from rebalance.data.demo import seafloor
from rebalance.errors import ConfigError, DataError, ModelError, RunError
from rebalance.experiments import papers, run, tune
from rebalance.experiments.dry import Told, tell, tell_search

SETS = {"protocol": "percent,extreme", "rate": "0.5", "extra": "0,0.5", "obj_drop": "0"}


@pytest.fixture
def bench(tmp_path: Path, tiny_dataset: Path) -> Bench:
    return Bench(tmp_path, tiny_dataset)


def dry(bench: Bench, plan: dict[str, Any] | None = None, **given: str) -> Told:
    """Ask, and hold that nothing changed but the log of the stand-in for trainings, and the time of an empty lock."""
    bench.plan.write_text(json.dumps(plan or {}), "utf-8")
    before = tree(bench.folder)
    try:
        return tell(bench.args(**given), root=bench.folder, runner=bench.runner)
    finally:
        assert tree(bench.folder) == before


def tree(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix != ".log" and path.name != ".lock"
    }


def text(told: Told) -> str:
    return "\n".join([*told.lines, *map(" | ".join, told.runs)])


def test_the_runs_and_their_settings_are_told_and_nothing_is_made(bench: Bench) -> None:
    told = dry(bench, epochs="7", imgsz="64", head="anchor", jobs="2")
    assert not (bench.folder / "mine").exists()
    assert told.lines[0] == f"dry=True: nothing was made. 4 runs, 2 at a time: {bench.folder / 'mine'}"
    assert told.lines[1] == "epochs to train: 28 (4 x 7)"
    assert (
        told.lines[2]
        == f"all runs: head=anchor protocol=normal model=m.yaml data={bench.data} epochs=7 imgsz=64 batch=16"
    )
    assert told.lines[3].startswith(f"data={bench.data} is {bench.data}: 8 train, 4 val, 4 test images, ")
    assert [row[0] for row in told.runs[1:]] == RUNS
    assert told.runs[2][1:] == ("obj_drop=0.5 seed=0", "as given", "to run")


def test_what_the_host_fills_in_is_told(bench: Bench) -> None:
    told = dry(bench, {"told": {"fetched": True}})
    assert told.lines[1] == "epochs to train: 400 (4 x 100)"
    assert "epochs=100 imgsz=640 batch=16" in told.lines[2]
    assert told.lines[3] == "model=m.yaml would be fetched"


def test_the_labels_told_are_those_that_the_sweep_then_trains_on(bench: Bench) -> None:
    before = dry(bench, seeds="0", **SETS)
    folder = bench.sweep(seeds="0", **SETS)
    sets = sorted((folder / "data").iterdir())
    assert len(sets) == 4
    for out in sets:
        made = json.loads((out / "manifest.json").read_text("utf-8"))
        (line,) = (line for line in before.lines if line.startswith(f"  {out} would be made: "))
        stay = made["total"]["boxes"] - made["total"]["withheld"]
        told = f"{stay} of {made['total']['boxes']} boxes labelled, {made['total']['withheld']} withheld"
        assert told in line
        assert line.endswith(f", extra {made['noise']['extra']['boxes']}" if "extra" in out.name else "%)")
        assert made["total"]["withheld"] > 0
    assert {row[2] for row in before.runs[1:]} == {out.name for out in sets}
    (folder / "runs" / before.runs[1][0] / "record.json").unlink()
    again = dry(bench, seeds="0", **SETS)
    assert [
        line.replace(" would be made: ", " is there: ") for line in before.lines if before.runs[1][2] + " " in line
    ] == [line for line in again.lines if before.runs[1][2] + " " in line]


def test_labels_that_all_go_are_said_to_fail(bench: Bench) -> None:
    assert "no label is left, so that its runs will fail" in text(dry(bench, protocol="percent", rate="1"))
    assert "no label is left" not in text(dry(bench, protocol="percent", rate="1", extra="1"))


def test_what_is_finished_failed_and_begun_is_told(bench: Bench) -> None:
    folder = bench.sweep({RUNS[1]: "fail"})
    (folder / "runs" / RUNS[2] / "record.json").unlink()
    (folder / "runs" / RUNS[2] / "progress.json").write_text('{"seconds": {"1": 2.5, "2": 2.5}}', "utf-8")
    told = dry(bench)
    assert told.lines[0].startswith("dry=True: nothing was made. 4 runs, 2 finished before: ")
    assert [row[3] for row in told.runs[1:]] == [
        "finished", "again; failed: ValueError: as planned", "goes on, begun (2 epochs)", "finished",
    ]  # fmt: skip
    bench.sweep()
    told = dry(bench)
    assert told.lines[1] == "epochs to train: none"
    assert {row[3] for row in told.runs[1:]} == {"finished"}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"obj_drop": "0,2"}, ConfigError, "obj_drop=2 is out of range"),
        ({"data": "nowhere.yaml"}, DataError, "nowhere.yaml does not exist"),
        ({"diagnose": "True"}, DataError, "diagnose=True has no meaning"),
        ({"data": "empty.yaml"}, DataError, "no images in test"),
        ({"classes": "[1],[7]", "obj_drop": "0"}, DataError, "no training image has a label of classes=7"),
        ({"lr0": "0.1"}, RunError, "made with another grid: lr0 was not given"),
    ],
)
def test_what_a_sweep_refuses_is_refused_in_the_same_words(
    bench: Bench, given: dict[str, str], error: type[Exception], message: str
) -> None:
    if error is RunError:
        bench.sweep()
    if given.get("data") == "empty.yaml":
        (bench.data.parent / "none").mkdir()
        given = {"data": str(bench.data.with_name("empty.yaml"))}
        Path(given["data"]).write_text(bench.data.read_text("utf-8").replace("images/test", "none"), "utf-8")
    with pytest.raises(error, match=message) as told:
        dry(bench, **given)
    with pytest.raises(error, match=message) as real:
        bench.sweep(**given)
    assert str(told.value) == str(real.value)


def test_what_the_host_refuses_is_refused(bench: Bench) -> None:
    with pytest.raises(ModelError, match="no such head"):
        dry(bench, {"check": {"kind": "ModelError", "error": "no such head"}})


def test_a_region_file_that_cannot_be_read_ends_a_sweep_before_anything_is_made(bench: Bench) -> None:
    file = bench.data.parent / "regions/test/00.txt"
    file.parent.mkdir(parents=True)
    file.write_text("unknwon * 0.5 0.5 1 1\n", "utf-8")
    for call in (dry, Bench.sweep):
        with pytest.raises(DataError, match=r"00\.txt.*did you mean unknown"):
            call(bench)
    assert not (bench.folder / "mine").exists()


def test_another_class_where_there_is_one_ends_a_sweep_before_anything_is_made(bench: Bench) -> None:
    bench.data.write_text(bench.data.read_text("utf-8").replace("  1: kind1\n", ""), "utf-8")
    for call in (dry, Bench.sweep):
        with pytest.raises(DataError, match=r"class_flip=0\.5 has no meaning .* class_flip=0 leaves it out"):
            call(bench, class_flip="0,0.5")
    assert not (bench.folder / "mine").exists()


def test_another_sweep_in_the_folder_is_told(bench: Bench) -> None:
    folder = bench.sweep()
    with FileLock(folder / ".lock"), pytest.raises(RunError, match="another sweep works in"):
        tell(bench.args(), root=bench.folder, runner=bench.runner)


def test_the_built_in_data_set_is_not_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bench.folder / "small.yaml"
    data.write_text("seafloor: {train: 3, val: 1, test: 1, size: 64, labelled: 0.5}\n", "utf-8")
    monkeypatch.setattr(seafloor, "generate", None)  # nobody calls it
    told = text(dry(bench, data=str(data), protocol="extreme", diagnose="True"))
    assert f"data={data} would be made: 3 training, 1 val and 1 test images of 64 pixels, 50% of the training" in told
    assert f"{bench.folder / 'mine/data/extreme-0-0'} would be made of it; its labels are counted then" in told
    several = dry(bench, data=f"{data},{bench.data}", protocol="extreme")
    with pytest.raises(ConfigError, match="comes with 50 % of its training boxes withheld"):
        dry(bench, data=str(data), protocol="extreme", complete="True")
    monkeypatch.undo()
    bench.sweep(data=f"{data},{bench.data}", protocol="extreme")
    assert {row[2] for row in several.runs[1:]} == {out.name for out in (bench.folder / "mine/data").iterdir()}


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid = [
        {"train": {"obj_drop": 0.5}, "host": {"model": model, "data": "x.yaml"}}
        for model in ("yolov8n.pt", "yolov5nu.pt", "yolov8n", "https://example.org/mine.pt", "yolov8n.yaml")
    ]
    told = run.check(grid, fetch=False)
    assert [(row["fetched"], row["unchecked"]) for row in told] == [(True, False)] * 3 + [(True, True), (False, False)]
    assert told[0]["epochs"] == 100
    with pytest.raises(ConfigError, match=r"box_drop=0\.5"):
        run.check([{"train": {"loss": "bce", "box_drop": 0.5}, "host": {"model": "yolov8n.pt"}}], fetch=False)
    assert not [*tmp_path.iterdir()]


STUDIES = [study for study in papers.studies().values() if study.cells]


@pytest.mark.skipif(not seafloor.data_folder().is_dir(), reason="no data/ beside the package")
@pytest.mark.parametrize("study", STUDIES, ids=[study.key for study in STUDIES])
def test_the_data_of_a_paper_is_found_by_name_or_said_how_it_is_made(
    study: papers.Study, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.plan.write_text("{}", "utf-8")
    here = seafloor.data_folder()
    monkeypatch.setattr(seafloor, "data_folder", lambda: bench.folder)
    for name in papers.data_of(study).split(","):
        file = bench.folder / f"{name}.yaml"
        file.write_bytes((here / file.name).read_bytes())
        given = {"data": name, **({"class_flip": "0"} if name in ("fddb", "indoor") else {})}
        args = papers.arguments(study, given if "class_flip" in str(study.cells) else {"data": name})
        with pytest.raises(DataError, match=re.escape(f"{file}: train images not found")) as caught:
            tell(args, root=bench.folder, runner=bench.runner)
        assert str(caught.value).endswith(f"; made by: {yaml.safe_load(file.read_text('utf-8'))['made_by']}")
        for split in ("train", "val", "test"):
            for kind in ("images", "labels"):
                there = bench.folder / yaml.safe_load(file.read_text("utf-8"))[split].replace("images", kind)
                shutil.copytree(bench.data.parent / kind / split, there, dirs_exist_ok=True)
        told = tell(args, root=bench.folder, runner=bench.runner)
        assert f"data={name} is {file}: 8 train, 4 val, 4 test images" in text(told)
        assert told.lines[0].endswith(f": {bench.folder / f'{study.key}-cpu'}")
    assert not (bench.folder / f"{study.key}-cpu").exists()


@pytest.mark.parametrize("command", ["sweep", "benchmark", "paper brl.table4"])
def test_the_commands_take_it(
    command: str,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, tiny_dataset)
    bench.plan.write_text("{}", "utf-8")
    monkeypatch.setattr(tell, "__kwdefaults__", {**tell.__kwdefaults__, "runner": bench.runner})
    words = [*command.split(), "dry=True", "model=yolov5n.yaml", f"data={tiny_dataset}", "name=mine"]
    assert main(words) == 0
    assert f"dry=True: nothing was made. {'1 runs' if command == 'sweep' else ''}" in capsys.readouterr().out
    assert main([*words, "lr0=0.1,0.1"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "rebalance: error: lr0: 0.1 is given twice\n")
    assert main([*words, "dry=perhaps"]) == 2
    assert not Path("runs").exists()


def test_the_plot_of_a_function_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["paper", "brl.fig2", "dry=True"]) == 0
    assert "One plot, in runs/benchmark/brl.fig2" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_a_plan_is_asked_about_and_cannot_ask(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bench.folder)
    monkeypatch.setattr(tell, "__kwdefaults__", {**tell.__kwdefaults__, "runner": bench.runner})
    bench.plan.write_text("{}", "utf-8")
    plan = {"question": "q", "answer": "a", "common": {"model": "yolov8n.yaml", "data": str(bench.data)}}
    file = bench.folder / "asked.yaml"
    file.write_text(yaml.safe_dump(plan), "utf-8")
    assert main(["sweep", "plan=asked.yaml", "dry=True"]) == 0
    assert ": runs/benchmark/asked\n" in capsys.readouterr().out
    file.write_text(yaml.safe_dump({**plan, "cells": [{"dry": True}]}), "utf-8")
    assert main(["sweep", "plan=asked.yaml"]) == 2
    assert "dry=True is for the command line" in capsys.readouterr().err
    assert not Path("runs").exists()


# Searches -------------------------------------------------------------------------------------------------------------


def searched(bench: Bench, **given: str) -> Told:
    """As `dry`, of a search."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    bench.plan.write_text("{}", "utf-8")
    asked = {**SEARCH, "model": "m.yaml", "data": str(bench.data), "name": "mine", **given}
    before = tree(bench.folder)
    try:
        return tell_search(asked, root=bench.folder, runner=bench.runner)
    finally:
        assert tree(bench.folder) == before


SEARCH = {"loss": "bce,drop", "obj_drop": "0..0.9", "lr0": "1e-4..1e-2:log", "epochs": "4", "trials": "3"}


def test_what_would_be_searched_is_told_and_nothing_is_made(bench: Bench) -> None:
    told = searched(bench, head="anchor", jobs="2", protocol="extreme")
    assert not (bench.folder / "mine").exists()
    assert told.lines[0] == f"dry=True: nothing was made. 3 trials, 2 at a time: {bench.folder / 'mine'}"
    assert told.lines[1] == "epochs to train: at most 12 (3 x 4)"
    given = f"head=anchor protocol=extreme epochs=4 model=m.yaml data={bench.data} imgsz=640 batch=16 seed=0"
    assert told.lines[2] == f"all trials: {given}"
    assert any(line.startswith(f"  {bench.folder / 'mine/data/extreme-0-0'} would be made: ") for line in told.lines)
    assert told.runs[1:] == [
        ("loss", "bce, drop", "all"),
        ("obj_drop", "0 to 0.9", "loss=drop"),
        ("lr0", "0.0001 to 0.01, even in its logarithm", "all"),
    ]
    assert searched(bench, prune="False").lines[1] == "epochs to train: 12 (3 x 4)"


def test_what_a_search_refuses_is_refused_in_the_same_words(bench: Bench) -> None:
    for given in ({"lr0": "2..1"}, {"data": "nowhere.yaml"}, {"loss": "bce", "obj_drop": "0"}):
        one, other = {**SEARCH, **given}, {"model": "m.yaml", "data": str(bench.data), "name": "mine", **given}
        if given.get("loss"):
            one["lr0"] = "0.1"  # nothing is left to search
        with pytest.raises((ConfigError, DataError)) as told:
            searched(bench, **one)
        with pytest.raises((ConfigError, DataError)) as real:
            tune.tune({**other, **one, "data": other["data"]}, root=bench.folder, runner=bench.runner)
        assert str(told.value) == str(real.value)
    with pytest.raises(ConfigError, match="dry=True is for the command line"):
        searched(bench, dry="True")


def test_trials_that_are_over_are_told(bench: Bench) -> None:
    asked = {**SEARCH, "model": "m.yaml", "data": str(bench.data), "name": "mine", "prune": "False"}
    bench.plan.write_text('{"score": "lr0"}', "utf-8")
    folder = tune.tune(asked, root=bench.folder, runner=bench.runner, say=lambda line: None)
    told = searched(bench, prune="False", trials="5")
    assert "5 trials, 3 over before: " in told.lines[0]
    assert told.lines[1] == "epochs to train: 8 (2 x 4)"
    assert searched(bench, prune="False").lines[1] == "epochs to train: none"
    with FileLock(folder / ".lock"), pytest.raises(RunError, match="another search works in"):
        searched(bench, prune="False")
