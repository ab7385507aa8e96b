"""The built-in benchmark: what the presets ask for, and that overrides replace them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rebalance.data.demo.seafloor import folder_name, from_yaml
from rebalance.errors import ConfigError
from rebalance.experiments.grid import Labels, read_grid
from rebalance.experiments.papers import benchmark

ROOT = Path(__file__).resolve().parents[2]
LARGE = ROOT / "data" / "seafloor-640-complete.yaml"


@pytest.mark.parametrize(("preset", "seeds", "size"), [("cpu", [0], 160), ("full", [0, 1, 2], 640)])
def test_presets_are_the_two_series_of_the_paper_their_control_and_a_run_on_complete_labels(
    preset: str, seeds: list[int], size: int
) -> None:
    runs = read_grid(benchmark({"preset": preset})).runs
    removal = (0.1, 0.25, 0.75, 0.9)
    half, whole = Labels(protocol="percent", rate=0.5), Labels()
    assert [(run.train["obj_drop"], run.train["box_drop"], run.train["drop_select"], run.labels) for run in runs] == [
        (obj, box, select, labels if labels == whole else replace(half, seed=seed))
        for seed in seeds
        for obj, box, select, labels in (
            (0.0, 0.0, "random", half),
            *((p, 0.0, "random", half) for p in removal),
            *((0.0, p, "random", half) for p in removal),
            (0.75, 0.0, "weight", half),
            (0.0, 0.75, "weight", half),
            (0.0, 0.0, "random", whole),
        )
    ]
    assert {(run.train["head"], run.host["model"], run.host["imgsz"]) for run in runs} == {
        ("anchor", "yolov5n.yaml", size)
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"data": "my.yaml"}, {"protocol": "normal", "control": "0.75"}),  # partial by nature, or complete: as it is
        (
            {"data": "my.yaml", "protocol": "percent"},
            {"protocol": "percent", "rate": "0.5", "complete": "True", "control": "0.75"},
        ),
        ({"protocol": "extreme"}, {"protocol": "extreme", "complete": "True", "control": "0.75"}),
        ({"protocol": "normal"}, {"protocol": "normal", "control": "0.75"}),
        (
            {"obj_drop": "0,0.5", "box_drop": "0", "complete": "False"},
            {"protocol": "percent", "rate": "0.5", "complete": "False"},
        ),
        ({"drop_select": "confident"}, {"protocol": "percent", "rate": "0.5", "complete": "True"}),
    ],
)  # fmt: skip
def test_what_others_make_pointless_leaves_the_preset(given: dict[str, str], kept: dict[str, str]) -> None:
    made = benchmark(given)
    assert {key: made[key] for key in ("protocol", "rate", "complete", "control") if key in made} == kept
    assert read_grid(made).runs


def test_a_single_removal_of_the_benchmark_is_a_series_of_its_own() -> None:
    runs = read_grid(benchmark({"obj_drop": "0,0.75", "box_drop": "0.75"})).runs
    found = [(run.train["obj_drop"], run.train["box_drop"]) for run in runs if run.train["drop_select"] == "random"]
    assert found == [(0, 0), (0.75, 0), (0, 0.75), (0, 0)]


def test_arguments_replace_those_of_the_preset() -> None:
    over = {"model": "yolov8n.yaml", "data": "my.yaml", "obj_drop": "0,0.5,0.75", "device": "0", "name": "mine"}
    normal = {"protocol": "normal"}
    assert benchmark({"preset": "full", **normal, **over}) == {**benchmark({"preset": "full", **normal}), **over}
    assert benchmark({}) == benchmark({"preset": "cpu"})


def test_full_has_data_of_its_size_and_any_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert benchmark({"preset": "full"})["data"] == "data/seafloor-640-complete.yaml"
    monkeypatch.chdir(tmp_path)
    assert benchmark({"preset": "full"})["data"] == str(LARGE)
    assert "device" not in benchmark({"preset": "full"})


def test_the_large_data_sets_are_the_small_ones_in_another_size() -> None:
    names = [f"seafloor{size}{labels}.yaml" for labels in ("", "-complete") for size in ("-640", "")]
    for large_name, small_name in (names[:2], names[2:]):
        file = ROOT / "data" / large_name
        large, small = (yaml.safe_load(path.read_text("utf-8")) for path in (file, file.with_name(small_name)))
        assert large["path"] == f"data/{folder_name(from_yaml(file))}"
        assert large["seafloor"] == {**small["seafloor"], "size": 640, "train": 1200, "val": 200, "test": 300}
        assert {**large, "seafloor": 0, "path": 0} == {**small, "seafloor": 0, "path": 0}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("preset=ful is not one of cpu, full (did you mean full?)")):
        benchmark({"preset": "ful"})
