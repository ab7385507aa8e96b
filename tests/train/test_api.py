"""`YOLO` that knows our flags: what it loads, exports and measures, and what it refuses in one line."""

from __future__ import annotations

import sys
import zipfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import ultralytics
from small_data import make_dataset
from ultralytics.nn.tasks import DetectionModel

from rebalance import YOLO
from rebalance.cli import host_command
from rebalance.cli.main import guarded, main
from rebalance.errors import ConfigError, ModelError
from rebalance.hosts.host import refuse_opencv
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import AnchorDetectionModel, ObjectnessDetectionModel
from rebalance.methods.resobj import ResObj

SMALL = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "device": "cpu"}


pytestmark = pytest.mark.usefixtures("elsewhere")


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


@pytest.mark.parametrize("name", ["retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"])
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision", "ignore::torch.jit.TracerWarning")
def test_torchscript_takes_any_number_of_images_or_says_how_many(tmp_path: Path, name: str) -> None:
    model = YOLO(checkpoint(tmp_path, name))
    file = model.export(format="torchscript", imgsz=64, verbose=False)
    exported, images = YOLO(file, task="detect"), [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 200)]
    if name.startswith("fasterrcnn"):
        with pytest.raises(
            ConfigError, match=r"takes 1 images at a time, not 2; give so many, or export with batch=2$"
        ):
            exported.predict(images, imgsz=64, verbose=False)
        with pytest.raises(ConfigError, match="takes 1 images at a time, not 2"):
            ultralytics.YOLO(file, task="detect").predict(images, imgsz=64, verbose=False)
        return
    options = {"imgsz": 64, "verbose": False, "conf": 0.001}
    for mine, other in zip(model.predict(images, **options), exported.predict(images, **options), strict=True):
        assert len(mine.boxes)
        torch.testing.assert_close(other.boxes.data, mine.boxes.data, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("program", ["rebalance", "yolo"])
@pytest.mark.parametrize("name", ["retinanet_tiny", "fasterrcnn_tiny", "ssd_tiny"])
def test_ncnn_does_not_take_torchvision_s_detectors(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, program: str
) -> None:
    file = checkpoint(tmp_path, name)
    line = refused(capfd, program, "export", f"model={file}", "format=ncnn")
    assert line.startswith(f"format=ncnn: model={file}, a detector of torchvision, chooses its boxes by what")
    assert [found.name for found in tmp_path.glob("*.*")] == [file.name]


@pytest.mark.parametrize("head", ["RetinaNetDetect", "RefinedFasterRCNNDetect", "SigmoidSSDDetect", "Detect"])
def test_opencv_s_runtime_does_not_take_torchvision_s_detectors(tmp_path: Path, head: str) -> None:
    file = tmp_path / "model.onnx"
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"description": "x" * 99, "head": head, "names": str({0: "RetinaNetDetect"})})
    onnx.save(model, file)
    if head == "Detect":
        refuse_opencv(file)
        return
    for kind, use in product((YOLO, ultralytics.YOLO), ("predict", "track", "val")):
        with pytest.raises(ConfigError, match=rf"^dnn=True: OpenCV's own runtime does not know .*{file.name}, a det"):
            getattr(kind(str(file), task="detect"), use)(dnn=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision", "ignore::torch.jit.TracerWarning")
def test_the_host_names_the_head_in_an_export(tmp_path: Path) -> None:
    file = YOLO(checkpoint(tmp_path, "ssd_tiny")).export(format="onnx", imgsz=64, verbose=False)
    with pytest.raises(ConfigError, match=r"^dnn=True: OpenCV's own runtime does not know"):
        ultralytics.YOLO(file, task="detect").predict(np.zeros((64, 64, 3), np.uint8), dnn=True)


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


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["classic.pt", "classic.pth", "classic"])
def test_a_state_dict_is_no_model(capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str, whole: bool) -> None:
    """Nor is a module that was saved whole, whatever the file is called."""
    file, model = tmp_path / name, AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False)
    torch.save(model if whole else model.state_dict(), file)
    for mode in ("val", "train"):
        line = refused(capfd, "rebalance", mode, f"model={file}")
        assert line.startswith(f"model={file} holds weights without their model; name the model that it fills, e.g. ")


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "folder.d"])
def test_only_a_checkpoint_or_a_yaml_is_trained(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, data: Path, name: str
) -> None:
    file = tmp_path / name
    file.mkdir() if name.startswith("folder") else file.write_bytes(b"nothing")
    line = refused(capfd, "rebalance", "train", f"model={file}", f"data={data}", "task=detect")
    assert line == f"model={file} is neither a checkpoint of Ultralytics (.pt) nor a YAML"
    with pytest.raises(ModelError, match="is neither a checkpoint of Ultralytics"):
        YOLO(str(file), task="detect").train(loss="drop", obj_drop=0.5, data=str(data))
    assert not list(Path.cwd().iterdir())


# Class activation maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["stock", "anchor", "resobj", "obj"])
def test_class_activation_maps_are_those_of_the_head_s_scores(tmp_path: Path, data: Path, head: str) -> None:
    models = {
        "stock": lambda: DetectionModel("yolov8n.yaml", nc=2, verbose=False),
        "anchor": lambda: AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False),
        "resobj": lambda: AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False, settings=ResObj()),
        "obj": lambda: ObjectnessDetectionModel("yolov8n.yaml", nc=2, verbose=False),
    }
    file, image = tmp_path / "x.pt", data.parent / "images" / "val" / "00.jpg"
    torch.save({"model": models[head](), "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    options = {"imgsz": 64, "conf": 0.001, "project": str(tmp_path), "name": "out", "verbose": False}
    found = YOLO(file).predict(str(image), visualize=True, **options)[0].boxes.data
    assert (tmp_path / "out" / "00_cam.jpg").is_file()
    torch.testing.assert_close(found, YOLO(file).predict(str(image), **options)[0].boxes.data)


def test_a_detector_of_torchvision_has_no_class_activation_maps(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = checkpoint(tmp_path)
    line = refused(capfd, "yolo", "predict", f"model={file}", "visualize=True", f"source={tmp_path}")
    assert line.startswith(
        "visualize=True: class activation maps are made from one score a cell and class, which model="
    )


# What a head cannot do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [YOLO, ultralytics.YOLO])
@pytest.mark.parametrize("model", ["anchor", "retinanet_tiny", "yolov8n.yaml"])
def test_tracking_by_the_detector_s_own_features_needs_one_box_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, kind: Any
) -> None:
    tracked: list[str] = []
    monkeypatch.setattr(
        "ultralytics.engine.model.Model.predict", lambda self, **given: tracked.append(given["tracker"])
    )
    trackers = SimpleNamespace(register_tracker=lambda *_: None)  # the host's need a package that may not be there
    monkeypatch.setitem(sys.modules, "ultralytics.trackers", trackers)
    tracker = tmp_path / "own.yaml"
    tracker.write_text("tracker_type: botsort\nwith_reid: True\nmodel: auto\n", "utf-8")
    file = tmp_path / "x.pt"
    made = AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False)
    torch.save({"model": made, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    if model == "retinanet_tiny":
        file = checkpoint(tmp_path)
    yolo = kind(model if model == "yolov8n.yaml" else file)
    if model == "yolov8n.yaml":
        yolo.track(tracker=str(tracker))
    else:
        with pytest.raises(ConfigError, match="with_reid and model: auto take one feature a cell"):
            yolo.track(tracker=str(tracker))
    tracker.write_text("tracker_type: botsort\nwith_reid: True\nmodel: other.pt\n", "utf-8")
    yolo.track(tracker=str(tracker))
    yolo.track(tracker="botsort.yaml")
    assert len(tracked) == (3 if model == "yolov8n.yaml" else 2)


@pytest.mark.parametrize(
    ("use", "given", "said"),
    [
        ("predict", {"visualize": True}, "^visualize=True: class activation maps"),
        ("predict", {"embed": [0]}, r"^embed=\[0\]: model=.* gives the last features of its backbone alone"),
        ("embed", {"embed": [0, 2]}, r"^embed=\[0, 2\]: model=.* gives the last features of its backbone alone"),
        ("export", {"dynamic": True}, "^dynamic=True: the anchors of model="),
        ("export", {"format": "onnx", "half": True}, "^half=True: no runtime loads model="),
    ],
)
def test_the_host_s_own_class_refuses_what_ours_refuses(
    tmp_path: Path, use: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        getattr(ultralytics.YOLO(checkpoint(tmp_path, "fasterrcnn_tiny")), use)(**given)


@pytest.mark.parametrize("given", [{"half": True}, {"quantize": 16}, {"quantize": "fp16"}])
def test_faster_rcnn_has_no_onnx_in_half_precision(tmp_path: Path, given: dict[str, Any]) -> None:
    model = YOLO(checkpoint(tmp_path, "fasterrcnn_tiny"))
    with pytest.raises(ConfigError, match=r"^half=True: no runtime loads model=.*fasterrcnn_tiny"):
        model.export(format="onnx", **given)


@pytest.mark.parametrize("given", [{"int8": True}, {"quantize": 8}, {"quantize": "w8a8"}])
@pytest.mark.parametrize("name", ["fasterrcnn_tiny", "ssd_tiny"])
def test_what_openvino_s_quantizer_does_not_take_is_refused(tmp_path: Path, name: str, given: dict[str, Any]) -> None:
    model = YOLO(checkpoint(tmp_path, name))
    with pytest.raises(ConfigError, match=rf"^quantize=8: OpenVINO's quantizer does not take model=.*{name}"):
        model.export(format="openvino", **given)
