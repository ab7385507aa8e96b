"""`YOLO` that knows our flags: what it loads, exports and measures, and what it refuses in one line."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
from small_data import make_dataset

from rebalance import YOLO
from rebalance.cli import host_command
from rebalance.cli.main import guarded, main
from rebalance.errors import ModelError
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import AnchorDetectionModel

SMALL = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in, and the process's arguments as they were afterwards."""
    folder, before = tmp_path / "work", sys.argv[:]
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    sys.argv[:] = before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


def checkpoint(folder: Path, name: str = "retinanet_tiny") -> Path:
    """What a finished training leaves."""
    file = folder / f"{name}.pt"
    model = TorchvisionModel(name, nc=2, verbose=False)
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    return file


def refused(capfd: pytest.CaptureFixture[str], program: str, *args: str) -> str:
    """The one line that `rebalance`, or `yolo` with the hook, answers with."""
    capfd.readouterr()
    sys.argv[:] = ["yolo", *args]
    assert (main(list(args)) if program == "rebalance" else guarded(host_command.entrypoint)) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert not list(Path.cwd().iterdir())
    return err.removeprefix("rebalance: error: ").rstrip()


@pytest.mark.parametrize("name", ["retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"])
def test_stock_training_of_a_detector_of_torchvision_says_what_to_do(tmp_path: Path, data: Path, name: str) -> None:
    file = checkpoint(tmp_path, name)
    with zipfile.ZipFile(file) as archive:
        (content,) = (archive.read(part) for part in archive.namelist() if part.endswith("data.pkl"))
    assert b"Yaml" not in content  # plain values, as in checkpoints of earlier versions
    model = ultralytics.YOLO(file)
    assert model.model.yaml.get("backbone", 0) == 0  # what exporters ask
    with pytest.raises(KeyError, match="anything"):
        model.model.yaml["anything"]
    with pytest.raises(ModelError, match=f"^{name} is a detector of torchvision: train it with rebalance.YOLO, or "):
        model.train(data=str(data), project=str(tmp_path / "runs"), **SMALL)


@pytest.mark.parametrize("program", ["rebalance", "yolo"])
def test_exports_of_torchvision_s_detectors_have_one_size(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, program: str
) -> None:
    file = checkpoint(tmp_path)
    line = refused(capfd, program, "export", f"model={file}", "format=onnx", "dynamic=True")
    assert line.startswith(f"dynamic=True: the anchors of model={file} are constants of an export")
    assert [file.name for file in tmp_path.glob("*.*")] == [file.name]


def test_other_exports_are_the_host_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[dict[str, Any]] = []
    monkeypatch.setattr("ultralytics.engine.model.Model.export", lambda self, **given: exported.append(given))
    YOLO(checkpoint(tmp_path)).export(dynamic=False)
    YOLO("yolov8n.yaml").export(dynamic=True)
    assert exported == [{"dynamic": False}, {"dynamic": True}]


@pytest.mark.parametrize("mode", ["predict", "val", "export", "benchmark"])
def test_a_name_without_weights_is_for_training_only(mode: str) -> None:
    with pytest.raises(ModelError, match="model=retinanet_tiny is not trained: there are no weights of retinanet_tiny"):
        getattr(YOLO("retinanet_tiny"), mode)()


def test_a_benchmark_needs_weights(capfd: pytest.CaptureFixture[str], data: Path) -> None:
    line = refused(capfd, "yolo", "benchmark", "model=retinanet_tiny", f"data={data}", "imgsz=64", "device=cpu")
    assert line.startswith("model=retinanet_tiny is not trained: there are no weights of retinanet_tiny")


def test_a_state_dict_is_no_model(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "classic.pt"
    torch.save(AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False).state_dict(), file)
    line = refused(capfd, "rebalance", "val", f"model={file}")
    assert line.startswith(f"model={file} is a plain state dict; name the model that it fills, e.g. ")
