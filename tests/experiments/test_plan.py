"""A plan: what it must say, what it gives to a sweep, and that report and record repeat it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from rebalance.errors import ConfigError, RunError
from rebalance.experiments import plan
from rebalance.experiments.grid import read_grid, read_grids
from rebalance.experiments.record import load
from rebalance.experiments.sweep import sweep

TEXT = """
title: Two losses
question: Does focal loss help?
answer: an interval above zero
baseline: bce
common: {model: yolov8n.yaml, data: seafloor.yaml, epochs: 2, seeds: [0, 1]}
cells: [{loss: bce}, {loss: focal, focal_gamma: [1, 2]}]
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "plan.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def test_a_plan_gives_its_cells_and_its_words(written: Path) -> None:
    read = plan.read(written, {"epochs": "3", "jobs": "2"})
    assert [cell["name"] for cell in read.cells] == ["mine", "mine"]
    assert [cell["epochs"] for cell in read.cells] == ["3", "3"]
    assert read.words["question"] == "Does focal loss help?"
    assert read.words["given"] == "epochs=3"
    assert read.words["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert [run.id for run in read_grids(read.cells).runs[:3]] == [
        "loss=bce,seed=0", "loss=focal,focal_gamma=1,seed=0", "loss=focal,focal_gamma=2,seed=0",
    ]  # fmt: skip


def test_a_plan_is_named_after_its_file_unless_that_is_plan_yaml(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(TEXT)
    assert plan.read(path, {}).cells[0]["name"] == "other"
    assert plan.read(path, {"name": "third"}).cells[0]["name"] == "third"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "cannot be read: No such file"),
        ("[1, 2]", "is not a mapping of title"),
        (TEXT.replace("question", "qestion"), "qestion is not one of .* question"),
        (TEXT.replace("answer: an interval above zero", ""), "answer is missing"),
        (TEXT.replace("Two losses", "[2]"), "title is not a text"),
        (TEXT.replace("cells: [", "cells: [3, "), "cells a list of such mappings"),
        ("a: [", "cannot be read"),
        ("a: " + "[" * 3000, "cannot be read: maximum recursion depth"),
        (TEXT.replace("cells: [", "cells: [{3: a}, "), "3: a is not a key with a value"),
        (TEXT.replace("cells: [", "cells: [{a: {b: 1}}, "), "a: {'b': 1} is not a key with a value"),
        (TEXT.replace("cells: [", "cells: [{a: [[{b: 1}]]}, "), "is not a key with a value"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        plan.read(path, {})
    assert "\n" not in str(caught.value)


def test_a_plan_is_refused_where_it_would_be_ignored() -> None:
    with pytest.raises(ConfigError, match=r"plan=x\.yaml is for rebalance sweep"):
        read_grid({"plan": "x.yaml", "model": "a", "data": "b"})


def test_a_sweep_keeps_its_plan_and_the_report_repeats_it(written: Path, tmp_path: Path) -> None:
    from rebalance.report import build

    script = tmp_path / "script.json"
    script.write_text("{}")
    runner = (sys.executable, str(Path(__file__).with_name("fake_run.py")), str(script))

    def run(read: plan.Written) -> Path:
        return sweep(read.cells, written=read.words, root=tmp_path / "runs", runner=runner, say=lambda _: None)

    read = plan.read(written, {})
    folder = run(read)
    assert load(folder).written["question"] == "Does focal loss help?"
    assert json.loads((folder / "sweep.json").read_text())["written"]["file"].endswith("plan.yaml")
    page = build.report(folder).with_suffix(".md").read_text()
    assert "Question: Does focal loss help?" in page
    assert "What would answer it: an interval above zero" in page
    assert f"rebalance sweep plan={read.words['file']} name=mine" in page
    written.write_text(TEXT.replace("an interval above zero", "whatever came out"))
    with pytest.raises(RunError, match="begun with another text of its plan"):
        run(plan.read(written, {}))
