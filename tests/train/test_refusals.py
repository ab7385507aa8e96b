"""What cannot be trained, resumed or exported is refused in one line before anything is made."""

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
from rebalance.cli import host_command as command
from rebalance.cli.main import main
from rebalance.errors import ConfigError, ModelError
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import AnchorDetectionModel
from rebalance.train.admission import data_yaml
from rebalance.train.trainer import RebalanceTrainer

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


def checkpoint(folder: Path, name: str = "retinanet_tiny", **more: Any) -> Path:
    """What a finished training leaves."""
    file = folder / f"{name}.pt"
    model = TorchvisionModel(name, nc=2, verbose=False)
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1, **more}, file)
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain state dict."""
    file = tmp_path_factory.mktemp("tensors") / "classic.pt"
    torch.save(AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False).state_dict(), file)
    return file


def refused(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that `rebalance` answers with."""
    capfd.readouterr()
    assert main(list(args)) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert not list(Path.cwd().iterdir())
    return err.removeprefix("rebalance: error: ").rstrip()


# Freezing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", ["3", "10", "-1", "[0,1,2]", "[2]", "[0,7]", "0,1"])
def test_what_would_freeze_everything_or_nothing(capfd: pytest.CaptureFixture[str], data: Path, freeze: str) -> None:
    line = refused(capfd, "train", "model=retinanet_tiny", f"data={data}", f"freeze={freeze}")
    assert line.startswith("freeze=")
    assert "retinanet_tiny has three modules, 0 its body, 1 its neck and 2 its head; freeze takes 1 " in line


@pytest.mark.parametrize("freeze", [None, 0, 1, 2, [], [0], [1], [0, 1]])
def test_what_can_be_frozen(freeze: Any) -> None:
    chosen = YOLO("retinanet_tiny")._trainer({}, {"freeze": freeze}, None)
    assert issubclass(chosen, RebalanceTrainer)


# A stock trainer ------------------------------------------------------------------------------------------------------


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


# Resuming -------------------------------------------------------------------------------------------------------------


def test_a_finished_training_is_not_resumed(
    capfd: pytest.CaptureFixture[str], finished: Path, data: Path, tmp_path: Path
) -> None:
    told = f"resume: the training of {finished} is finished; nothing to resume"
    assert refused(capfd, "train", "resume", f"model={finished}") == told
    assert refused(capfd, "train", f"resume={finished}", "model=retinanet_tiny") == told
    sys.argv[:] = ["yolo", "train", "resume", f"model={finished}"]
    with pytest.raises(ConfigError, match="nothing to resume"):
        command.entrypoint()
    half = checkpoint(tmp_path, epoch=3)  # of which the optimizer was taken out
    with pytest.raises(ConfigError, match="nothing to resume"):
        YOLO(half).train(resume=True, data=str(data))
    assert not list(Path.cwd().iterdir())


def test_what_was_never_trained_is_not_resumed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capfd, "train", "resume", "model=yolov8n.yaml")
    assert line == "resume: model=yolov8n.yaml is not a checkpoint; give the last.pt of the interrupted training"
    line = refused(capfd, "train", f"resume={tmp_path / 'none.pt'}", "model=yolov8n.yaml")
    assert line == f"resume={tmp_path / 'none.pt'}: no such file"


# State dicts ----------------------------------------------------------------------------------------------------------


def test_a_state_dict_needs_no_flag_of_ours(tensors: Path, data: Path, tmp_path: Path) -> None:
    model = YOLO("yolov5n.yaml")
    model.train(data=str(data), pretrained=str(tensors), project=str(tmp_path / "runs"), **SMALL)
    assert model.trainer.recipe["loss"] == "bce"
    matched, count = model.trainer.weights_matched
    assert 300 < matched < count  # the head is another
    own = type("Own", (), {})
    assert YOLO("yolov5n.yaml")._trainer({}, {"pretrained": str(tensors)}, own) is own


def test_the_host_s_own_weights_leave_the_host_alone(tmp_path: Path) -> None:
    ultralytics.YOLO("yolov5n.yaml").save(tmp_path / "own.pt")
    for pretrained in (True, False, str(tmp_path / "own.pt"), "yolov5nu.pt"):
        assert YOLO("yolov5n.yaml")._trainer({}, {"pretrained": pretrained}, None) is None


def test_a_state_dict_in_the_wrong_place(capfd: pytest.CaptureFixture[str], tensors: Path, finished: Path) -> None:
    line = refused(capfd, "train", f"model={finished}", f"pretrained={tensors}")
    assert line == f"pretrained={tensors} cannot be joined with model={finished}, which has weights"
    line = refused(capfd, "val", f"model={tensors}")
    assert line.startswith(f"model={tensors} is a plain state dict; name the model that it fills, e.g. ")


# Data sets ------------------------------------------------------------------------------------------------------------


def test_the_yaml_of_a_data_set(data: Path, tmp_path: Path) -> None:
    assert data_yaml(str(data)) == str(data)
    assert data_yaml(str(data.parent)) == str(data)
    assert data_yaml("coco8") == data_yaml("coco8.yaml") != ""
    assert data_yaml("https://example.org/set.zip") == ""
    (tmp_path / "set.zip").write_bytes(b"PK")
    assert data_yaml(str(tmp_path / "set.zip")) == ""
    for name in ("nothing", "nothing.yaml", "nothing.zip", str(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match=f"^data={name}: no such file$"):
            data_yaml(name)
    with pytest.raises(ConfigError, match="is a folder without a YAML"):
        data_yaml(str(Path.cwd()))


@pytest.mark.parametrize("given", [{"model": "retinanet_tiny"}, {"model": "yolov8n.yaml", "loss": "focal"}])
def test_a_data_set_that_is_not_there(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^data=/nowhere/nothing: no such file$"):
        YOLO(given["model"]).train(data="/nowhere/nothing", **{k: v for k, v in given.items() if k != "model"})
    assert not list(Path.cwd().iterdir())


# Exports --------------------------------------------------------------------------------------------------------------


def test_exports_of_torchvision_s_detectors_have_one_size(
    capfd: pytest.CaptureFixture[str], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f"dynamic=True: the anchors of model={finished} are constants of an export"
    assert refused(capfd, "export", f"model={finished}", "format=onnx", "dynamic=True").startswith(told)
    sys.argv[:] = ["yolo", "export", f"model={finished}", "format=onnx", "dynamic"]
    with pytest.raises(ConfigError, match=r"^dynamic=True: the anchors of model="):
        command.entrypoint()
    assert [file.name for file in finished.parent.iterdir()] == [finished.name]
    exported: list[dict[str, Any]] = []
    monkeypatch.setattr("ultralytics.engine.model.Model.export", lambda self, **given: exported.append(given))
    YOLO(finished).export(dynamic=False)
    YOLO("yolov8n.yaml").export(dynamic=True)
    assert exported == [{"dynamic": False}, {"dynamic": True}]


def test_a_benchmark_needs_weights(data: Path) -> None:
    sys.argv[:] = ["yolo", "benchmark", "model=retinanet_tiny", f"data={data}", "imgsz=64", "device=cpu"]
    with pytest.raises(ModelError, match="model=retinanet_tiny is not trained: there are no weights of retinanet_tiny"):
        command.entrypoint()
    assert not list(Path.cwd().iterdir())
