"""The built-in benchmark: what the presets ask for, and that overrides replace them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rebalance.data.demo.seafloor import folder_name, from_yaml
from rebalance.errors import ConfigError
from rebalance.experiments.grid import read_grid
from rebalance.experiments.papers import benchmark

ROOT = Path(__file__).resolve().parents[2]
LARGE = ROOT / "data" / "seafloor-640.yaml"


@pytest.mark.parametrize(("preset", "seeds", "size"), [("cpu", [0], 256), ("full", [0, 1, 2], 640)])
def test_presets_are_the_two_series_of_the_paper_with_a_shared_base(preset: str, seeds: list[int], size: int) -> None:
    runs = read_grid(benchmark({"preset": preset})).runs
    removal = (0.1, 0.25, 0.75, 0.9)
    assert [(run.train["obj_drop"], run.train["box_drop"]) for run in runs] == [
        (0.0, 0.0),
        *((p, 0.0) for p in removal),
        *((0.0, p) for p in removal),
    ] * len(seeds)
    assert sorted({run.seed for run in runs}) == seeds
    assert {(run.train["head"], run.host["model"], run.host["imgsz"]) for run in runs} == {
        ("anchor", "yolov5n.yaml", size)
    }


def test_arguments_replace_those_of_the_preset() -> None:
    over = {"model": "yolov8n.yaml", "data": "my.yaml", "obj_drop": "0,0.5", "device": "0", "name": "mine"}
    assert benchmark({"preset": "full", **over}) == {**benchmark({"preset": "full"}), **over}
    assert benchmark({}) == benchmark({"preset": "cpu"})


def test_full_has_data_of_its_size_and_any_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert benchmark({"preset": "full"})["data"] == "data/seafloor-640.yaml"
    monkeypatch.chdir(tmp_path)
    assert benchmark({"preset": "full"})["data"] == str(LARGE)
    assert "device" not in benchmark({"preset": "full"})


def test_the_large_data_set_is_the_small_one_in_another_size() -> None:
    large, small = (yaml.safe_load((ROOT / "data" / name).read_text("utf-8")) for name in (LARGE.name, "seafloor.yaml"))
    assert large["path"] == f"data/{folder_name(from_yaml(LARGE))}"
    assert large["seafloor"] == {**small["seafloor"], "size": 640, "train": 1200, "val": 200, "test": 300}
    assert {**large, "seafloor": 0, "path": 0} == {**small, "seafloor": 0, "path": 0}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("preset=ful is not one of cpu, full (did you mean full?)")):
        benchmark({"preset": "ful"})
