"""The experiments of scripts/ start, and say in a line what is wrong with what they were given."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import pandas
import pytest
from loaded_script import SCRIPTS, load
from small_data import make_dataset

from rebalance.cli.main import guarded
from rebalance.data import dataset
from rebalance.errors import RunError
from rebalance.experiments import sweep as module
from rebalance.experiments.record import load as records

FAKE = Path(__file__).parent / "experiments" / "fake_run.py"
EXPERIMENTS = ("completion", "drop_pulls", "known_regions")


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_every_script_finds_what_it_imports(name: str) -> None:
    assert load(name).main


def test_what_mlflow_keeps_of_a_script_s_trainings_is_with_its_other_files() -> None:
    """Where MLflow is installed the host has it note every training, in the current folder if nobody names another."""
    for file in SCRIPTS.glob("*.py"):
        if re.search(r"\.train\(\s*data=", text := file.read_text("utf-8")):
            assert '"MLFLOW_TRACKING_URI"' in text, file.name


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "data= is missing"),
        (["data=none.yaml", "out=o"], "data=none.yaml does not exist"),
        (["data"], "'data' is not key=value"),
        (["data={data}", "out={data}/x"], "data.yaml/x/{file} cannot be written: Not a directory"),
    ],
)
def test_bad_words_are_one_line_and_make_nothing(
    name: str, words: list[str], line: str, elsewhere: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load(name)
    given = [word.format(data=tiny_dataset) for word in words]
    assert guarded(lambda: script.main(given)) == 2
    file = "pulls.csv" if name == "drop_pulls" else "table.csv"
    assert re.search(re.escape(line.format(file=file)), capsys.readouterr().err)
    assert [*elsewhere.iterdir()] == []


def test_what_regions_are_worth_is_asked_on_six_sets_a_seed(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "tiny", train=12)
    nested = tmp_path / "tiny/images/train"
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):  # two images of one name
        place = nested.parents[1] / kind / "train" / "more"
        place.mkdir()
        (nested.parents[1] / kind / "train" / f"00.{suffix}").rename(place / f"01.{suffix}")
    script: Any = load("known_regions")
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    runner = [sys.executable, str(FAKE), str(tmp_path / "plan.json")]
    monkeypatch.setattr(script, "sweep", lambda cells: module.sweep(cells, runner=runner))
    script.main([f"data={data}", "out=kept", "seeds=0,1", "epochs=1"])
    found = pandas.read_csv("kept/table.csv")
    said = ["complete labels", "nothing", "annotated", "complete labels", "nothing", "region files", "painted over"]
    assert [*found.said] == said
    assert (found.seeds == 2).all()
    assert len(records(Path("kept")).finished) == 12
    made = Path("kept/table.csv").read_text("utf-8")
    script.main(["records=kept", "out=again"])
    assert Path("again/table.csv").read_text("utf-8") == made
    whole = {Path(image).name: len(dataset.load(data).labels(image)) for image in dataset.load(data).images("train")}
    for seed, way in ((seed, way) for seed in (0, 1) for way in ("merge", "cover")):
        silent, said = (dataset.load(Path(f"runs/kept/{seed}/{way}-{what}/data.yaml")) for what in ("silent", "said"))
        assert len(silent.images("train")) == 12
        boxes = [sum(len(one.labels(image)) for image in one.images("train")) for one in (silent, said)]
        assert boxes[0] == boxes[1] < sum(whole.values())
        assert (said.knowledge.any, silent.knowledge.any) == (True, False)
    over = dataset.load(Path("runs/kept/0/cover-painted/data.yaml"))
    for image in over.images("train"):
        grey = (cv2.imread(image) == 114).all(axis=(0, 2))
        assert grey.mean() == pytest.approx(1 / 3, abs=2 / len(grey))
    run = next(Path("runs/benchmark/kept/runs").iterdir())
    (run / "record.json").unlink()
    (tmp_path / "plan.json").write_text(json.dumps({run.name: "fail"}), "utf-8")
    capsys.readouterr()
    assert guarded(lambda: script.main([f"data={data}", "out=kept", "seeds=0,1", "epochs=1"])) == 2
    assert capsys.readouterr().err.endswith(
        "1 run failed (the same command tries again), the first: ValueError: as planned\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "rounds= is missing"),
        (["rounds=none", "out=o"], "none/sweep.json"),
        (["rounds=none", "out=o", "pairs=0.7"], "pairs=0.7: 0.7 is not two probabilities such as 0.7/0.2"),
        (["rounds=none", "out=o", "pairs=0.7/0.2,0.2/0.7"], "complete_ignore=0.7 is above complete_add=0.2"),
        (["rounds=none", "out=o", "decided=500,all"], "decided=500,all: all is not a number of suggestions"),
    ],
)
def test_bad_words_for_thresholds_are_one_line_and_make_nothing(
    words: list[str], line: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: load("thresholds").main(words)) == 2
    assert line in capsys.readouterr().err
    assert [*elsewhere.iterdir()] == []


@pytest.mark.parametrize("protocol", ["extreme", "percent", "hard"])
def test_the_table_of_completed_labels_is_that_of_its_records(protocol: str) -> None:
    kept = SCRIPTS.parent / "runs" / "reference" / "completion-deeppcb"
    table = pandas.read_csv(kept / "table.csv")
    found = pandas.DataFrame(load("completion").rows(protocol, records(kept / protocol).finished))
    own = table[table.protocol == protocol].reset_index(drop=True)
    assert [*found.trained] == [*own.trained]
    for name in own.select_dtypes("number"):
        assert found[name].to_numpy() == pytest.approx(own[name].to_numpy(), abs=0.06, nan_ok=True)


@pytest.mark.parametrize(
    ("table", "kept"),
    [
        ("completion-urchin", ("completion-urchin",)),
        ("completion-urchin-again", ("completion-urchin-again",)),
        ("completion-urchin-both", ("completion-urchin", "completion-urchin-again")),
    ],
)
def test_the_table_of_one_class_is_that_of_its_records(table: str, kept: tuple[str, ...], tmp_path: Path) -> None:
    of = SCRIPTS.parent / "runs" / "reference"
    data = make_dataset(tmp_path / "set")
    data.write_text(data.read_text("utf-8").replace(dataset.load(data).names[0], "fragile pink urchin"), "utf-8")
    folders = ",".join(str(of / name) for name in kept)
    given = [f"data={data}", f"out={tmp_path / 'out'}", "protocols=percent", "classes=fragile pink urchin"]
    assert guarded(lambda: load("completion").main([*given, f"records={folders}"])) == 0
    assert (tmp_path / "out" / "table.csv").read_text() == (of / table / "table.csv").read_text()


def test_kept_records_count_as_finished_but_for_those_of_completed_labels(elsewhere: Path) -> None:
    script, kept = load("completion"), SCRIPTS.parent / "runs" / "reference" / "completion-deeppcb" / "percent"
    asked = script.Flags(seeds="0,2")
    for command in script.commands(asked, "c", "percent", {**script.RECIPE, "data": "data/deeppcb/data.yaml"}):
        folder, (word, *flags) = command
        script.lay_out(kept, command)
        runs = {path.parent.name for path in folder.glob("runs/*/record.json")}
        if word == "sweep":
            assert runs == {"seed=0", "seed=2"}
            assert all(record.train["loss"] in ("drop", "brl") for record in records(folder).finished)
        else:
            seed = re.search(r"\d$", folder.name)[0]
            assert runs == {f"round=0,seed={seed}", f"protocol=normal,seed={seed}"}
        read = script.rounds_asked if word == "rounds" else script.read_grid
        grid = read(dict(flag.split("=", 1) for flag in flags))
        module.refuse_other(folder, grid[1] if word == "rounds" else grid, {})
        with pytest.raises(RunError, match="other values: epochs was 12, is 1"):
            script.lay_out(kept, (Path("other"), [word, *(f.replace("epochs=12", "epochs=1") for f in flags)]))
    assert not Path("other").exists()


def test_what_is_kept_and_not_trained_here_stays(elsewhere: Path, tmp_path: Path) -> None:
    script, kept = load("completion"), SCRIPTS.parent / "runs" / "reference" / "completion-deeppcb" / "percent"
    asked = script.Flags(seeds="0")
    command, *_ = script.commands(asked, "c", "percent", {**script.RECIPE, "data": "data/deeppcb/data.yaml"})
    script.lay_out(kept, command)
    out = shutil.copytree(kept, tmp_path / "kept")
    script.merge([command[0]], out)
    before, after = ({record.run: record for record in records(one).finished} for one in (kept, out))
    assert {run: one.metrics for run, one in after.items()} == {run: one.metrics for run, one in before.items()}
    assert {**records(out).asked, "device": None} == {**records(kept).asked, "device": None}


def test_where_some_classes_lose_labels_each_seed_has_a_set_of_its_own(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, words = load("completion"), []
    done = type("Done", (), {"returncode": 0})
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: words.append(command[3:]) or done)
    data = make_dataset(tmp_path / "set", train=12, test=4, seed=21)
    name = dataset.load(data).names[0]
    given = [f"data={data}", "out=kept", "protocols=percent", "rate=0.8", "seeds=0,1", f"classes={name}"]
    assert guarded(lambda: script.main(given)) != 0  # of no record there is a table
    asked = [dict(word.split("=", 1) for word in command[1:]) for command in words]
    assert [one["data"] for one in asked] == [f"runs/kept/percent-{seed}/data.yaml" for seed in "010101"]
    assert not any("protocol" in one for one in asked)
    assert len({one["name"] for one in asked}) == 6
    lost = [json.loads(Path(one["data"]).with_name("manifest.json").read_text("utf-8")) for one in asked[:2]]
    assert lost[0]["sha256"] != lost[1]["sha256"]
    assert all(one["classes"][0]["reached"] == pytest.approx(0.8, abs=0.1) for one in lost)
    assert not any(row["withheld"] for one in lost for row in one["classes"][1:])


def test_of_an_audit_is_kept_what_it_said_and_the_truth(tmp_path: Path) -> None:
    said = {"kinds": {"missing": 3}, "classes": [], "total": {"missing": 2.5}, "truth": {"withheld": 3}}
    for seed, more in ((1, said), (0, {"total": {"missing": None}})):
        place = tmp_path / f"rounds-{seed}" / "audits" / f"round=0,seed={seed}"
        place.mkdir(parents=True)
        (place / "audit.json").write_text(json.dumps({**more, "sizes": {"a.jpg": [1, 1]}}), "utf-8")
    found = load("completion").audits([tmp_path / "rounds-1", tmp_path / "rounds-0"])
    assert list(found.items()) == [("round=0,seed=0", {"total": {"missing": None}}), ("round=0,seed=1", said)]


def test_the_table_of_both_records_of_regions_is_theirs() -> None:
    kept = SCRIPTS.parent / "runs" / "reference"
    both = [one for name in ("regions-deeppcb", "regions-deeppcb-again") for one in records(kept / name).finished]
    table = pandas.read_csv(kept / "regions-deeppcb-both" / "table.csv")
    pandas.testing.assert_frame_equal(pandas.DataFrame(load("known_regions").table(both)), table, check_dtype=False)


@pytest.mark.parametrize("name", ["regions", "regions-deeppcb", "regions-deeppcb-again"])
def test_the_table_of_regions_is_that_of_its_records(name: str, tmp_path: Path) -> None:
    kept = SCRIPTS.parent / "runs" / "reference" / name
    made = pandas.DataFrame(load("known_regions").table(records(kept).finished))
    made.to_csv(tmp_path / "table.csv", index=False, lineterminator="\n")
    assert (tmp_path / "table.csv").read_text() == (kept / "table.csv").read_text()


def test_the_page_of_dropping_has_the_pulls_of_the_record() -> None:
    found = pandas.read_csv(SCRIPTS.parent / "runs/reference/drop-pulls/pulls.csv").set_index(["model", "way"])
    page = (SCRIPTS.parent / "docs/methods/drop.md").read_text("utf-8")
    for model in load("drop_pulls").MODELS:
        (row,) = re.findall(rf"^\| {model.removesuffix('.yaml')}(?:, anchor head)? \|(.*)\|$", page, re.MULTILINE)
        ways = [found.loc[(model, way)] for way in ("kept", "host", "confident", "control")]
        assert [cell.strip() for cell in row.split("|")] == [f"{way.pull:.2f}, {way.push:.2f}" for way in ways]
