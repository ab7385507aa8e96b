"""Would this training start? The same line by every route, and nothing is made where it would not."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
import yaml
from small_data import make_dataset
from small_training import train
from ultralytics.engine.trainer import BaseTrainer

from rebalance import YOLO
from rebalance.cli import host_command
from rebalance.cli.main import guarded, main
from rebalance.errors import ConfigError, ModelError, RebalanceError
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import AnchorDetectionModel
from rebalance.train.admission import admit, data_yaml, separate
from rebalance.train.api import load
from rebalance.train.arguments import OPTIMIZERS
from rebalance.train.trainer import RebalanceTrainer

ROUTES = ("python", "rebalance", "yolo", "grid")
OWN = type("Own", (), {})  # a trainer of the user's


@pytest.fixture(autouse=True)
def offline(elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and without what was fetched before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("rebalance.hosts.torchvision.published.ONLINE", False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain state dict."""
    file = tmp_path_factory.mktemp("tensors") / "classic.pt"
    torch.save(AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False).state_dict(), file)
    return file


def checkpoint(folder: Path, **more: Any) -> Path:
    """What a finished training leaves."""
    file = folder / "retinanet_tiny.pt"
    model = TorchvisionModel("retinanet_tiny", nc=2, verbose=False)
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1, **more}, file)
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("finished"))


def refused(capfd: pytest.CaptureFixture[str], route: str, model: Any, **given: Any) -> str:
    """The one line of a training that does not start; a bare word has the value None."""
    words = [name if value is None else f"{name}={value}" for name, value in given.items()]
    capfd.readouterr()
    if route in ("rebalance", "yolo"):
        sys.argv[:] = ["yolo", "train", f"model={model}", *words]
        code = main(["train", f"model={model}", *words]) if route == "rebalance" else guarded(host_command.entrypoint)
        out, line = capfd.readouterr()
        assert (code, out) == (2, "")
        assert line.startswith("rebalance: error: ")
        line = line.removeprefix("rebalance: error: ").removesuffix("\n")
    else:
        typed = {name: True if value is None else value for name, value in given.items()}
        with pytest.raises(RebalanceError) as caught:  # noqa: PT012 - which of the two is what is asked
            if route == "python":
                YOLO(model).train(**typed)
            else:
                admit(load(str(model)), *separate(typed), strict=True, data=False)
        line = str(caught.value)
    assert "\n" not in line
    assert not list(Path.cwd().iterdir())
    return line


# By every route -------------------------------------------------------------------------------------------------------

MODULES = "has three modules, 0 its body, 1 its neck and 2 its head; freeze takes 1 (the body)"


SLIPS: list[tuple[str, dict[str, Any], str]] = [
    # names and values
    ("yolov8n.yaml", {"loss": "drop", "obj_dorp": 0.5}, "unknown flag obj_dorp=0.5 (did you mean obj_drop?)"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "epoch": 3}, "unknown flag epoch=3 (did you mean epochs?)"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "epochs": "two"}, "epochs=two"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "lr0": 2.0}, "lr0=2.0"),
    ("yolov8n.yaml", {"obj_drop": 1.5}, "obj_drop=1.5 is out of range: 0 to 1"),
    ("yolov8n.yaml", {"obj_drop": "half"}, "obj_drop=half is not a number"),
    ("yolov8n.yaml", {"drop_scope": "match"}, "drop_scope=match is not one of background, matched, literal (did "),
    ("yolov8n.yaml", {"head": "ancor"}, "head=ancor is not one of stock, anchor, obj, resobj, sigmoid (did you mean"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "imgsz": "abc"}, "imgsz=abc is not a whole number of pixels"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "imgsz": [64, 0]}, "imgsz=[64, 0] is not a whole number of pixels"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "batch": "abc"}, "'batch=abc' is of invalid type str"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "batch": 2.5}, "batch=2.5 is not a whole number of images, -1 "),
    ("yolov8n.yaml", {"obj_drop": 0.5, "batch": 0}, "batch=0 is not a whole number of images, -1 "),
    ("yolov8n.yaml", {"obj_drop": 0.5, "workers": -1}, "workers=-1 is not a whole number from 0"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "seed": 2**32}, "seed=4294967296 is not a whole number from 0 to 4294967294"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "optimizer": "LBFGS"}, "optimizer=LBFGS is not one of auto, SGD, MuSGD, Adam"),
    ("retinanet_tiny", {"optimizer": "adamm"}, "optimizer=adamm is not one of auto, SGD, MuSGD, Adam, Adamax, AdamW, "),
    ("yolov8n.yaml", {"head": "anchor", "cache": "dsik"}, "cache=dsik is not one of True, False, ram, disk (did you"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "compile": "fast"}, "compile=fast is not one of True, False, default, "),
    ("yolov8n.yaml", {"obj_drop": 0.5, "copy_paste_mode": "flop"}, "copy_paste_mode=flop is not one of flip, mixup"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "freeze": "body"}, "freeze=body is not a number of layers, or a list "),
    ("yolov8n.yaml", {"obj_drop": 0.5, "classes": "cat"}, "classes=cat is not a class number, or a list such as [0,2]"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "device": "gpu"}, "device=gpu is not there; devices here: cpu"),
    ("fasterrcnn_tiny", {"device": 99}, "device=99 is not there; devices here: cpu"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "device": "cuda:99"}, "device=cuda:99 is not there; devices here: cpu"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "quantize": 8}, "quantize=8 needs what is not installed: pip install 'nv"),
    ("retinanet_tiny", {"quantize": "int8"}, "quantize=8 needs what is not installed: pip install 'nv"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "split": "tets"}, "split=tets is not one of train, val, test (did you mean tes"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "time": -1}, "time=-1 is not a number of hours above 0"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "pretrained": 5}, "pretrained=5 is not True, False or a file"),
    ("retinanet_tiny", {"amp": "bf16", "device": "cpu"}, "amp=bf16 needs a GPU that computes in it; device=cpu"),
    ("yolov8n.yaml", {"obj_drop": 0.5, "optimizer": "adam", "momentum": 1.0}, "momentum=1.0: of optimizer=adam it is "),
    ("yolov8n.yaml", {"obj_drop": 0.5, "freeze": 99}, "freeze=99: this model has 23 layers, 0 to 22; freezing all "),
    ("yolov8n.yaml", {"head": "anchor", "freeze": [0, 99]}, "freeze=[0, 99]: this model has 23 layers, 0 to 22"),
    ("yolov8n.yaml", {"head": "anchor", "freeze": -1}, "freeze=-1: this model has 23 layers, 0 to 22"),
    # the schedule
    ("yolov8n.yaml", {"lr_steps": "11,8"}, "lr_steps=11,8 is not a list of rising epochs such as [8,11]"),
    ("yolov8n.yaml", {"lr_steps": "[0,8]"}, "lr_steps=[0,8] is not a list of rising epochs such as [8,11]"),
    ("yolov8n.yaml", {"lr_steps": "[8]", "cos_lr": True}, "lr_steps=[8] cannot be joined with cos_lr=True"),
    ("yolov8n.yaml", {"lr_steps": "[8]", "lrf": 0.1}, "lr_steps=[8] cannot be joined with lrf=0.1"),
    ("yolov8n.yaml", {"warmup_from": 0.3, "warmup_epochs": 0}, "warmup_from=0.3 has no effect with warmup_epochs=0"),
    ("yolov8n.yaml", {"optim_eps": 1.0}, "optim_eps=1 has no effect with optimizer=auto; it is for Adam, "),
    ("yolov8n.yaml", {"optim_eps": 1.0, "optimizer": "SGD"}, "optim_eps=1 has no effect with optimizer=SGD"),
    ("yolov8n.yaml", {"grad_clip": -1}, "grad_clip=-1 is out of range: at least 0"),
    # losses and heads
    ("yolov8n.yaml", {"loss": "dorp"}, "loss=dorp: dorp is not one of bce, focal, "),
    ("yolov8n.yaml", {"loss": "bce", "box_drop": 0.5}, "box_drop=0.5 has no effect with loss=bce; add "),
    ("yolov8n.yaml", {"anchor_t": 3.0}, "anchor_t=3 has no effect with head=stock; add head=anchor"),
    ("yolov8n.yaml", {"head": "anchor", "box": 3.0}, "box=3.0 has no effect with head=anchor; its gains are box_gain"),
    ("yolov8n.yaml", {"head": "anchor", "cls_pw": 0.5}, "cls_pw=0.5 has no effect with head=anchor"),
    ("yolov8n.yaml", {"head": "sigmoid"}, "head=sigmoid is not defined for yolo; heads: stock, anchor, obj, resobj"),
    ("ssd_tiny", {"loss": "brl"}, "loss=brl is not defined for ssd; losses there: "),
    ("yolov10n.yaml", {"head": "anchor"}, "head=anchor needs a detection model that ends in Detect; this one ends in "),
    ("yolov8n-seg.yaml", {"obj_drop": 0.5}, "obj_drop: only for detection models, and yolov8n-seg.yaml is a segme"),
    ("yolov8n-cls.yaml", {"loss": "focal"}, "loss: only for detection models, and yolov8n-cls.yaml is a classify "),
    ("retinanet_tiny", {"head": "anchor"}, "head=anchor is not defined for retinanet; heads: stock, obj, resobj"),
    ("retinanet_tiny", {"loss": "nrd"}, "loss=nrd is not defined for retinanet; losses there: bce, focal, "),
    ("retinanet_tiny", {"loss": "brl", "brl_overlap": "centre"}, "brl_overlap=centre has no effect with retinanet"),
    ("retinanet_tiny", {"box": 7}, "box=7 has no effect with retinanet"),
    ("fasterrcnn_tiny", {"ohem_ratio": 2.5}, "ohem_ratio=2.5 has no effect with fasterrcnn; it is for "),
    # weights, and what else has to be there
    ("yolov8n.yaml", {"loss": "drop", "pretrained": "a/none.pt"}, "pretrained=a/none.pt: no such file, and not "),
    ("retinanet_tiny", {"pretrained": "none.pth"}, "pretrained=none.pth: no such file, and not coco"),
    ("retinanet_tiny", {"pretrained": "coco"}, "pretrained=coco: there are no weights of retinanet_tiny "),
    ("retinanet_resnet50_fpn", {"pretrained": "coco"}, "pretrained=coco: https://"),
    ("yolov8n.yaml", {"loss": "drop", "distill_model": "a/none.pt"}, "distill_model=a/none.pt: no such file, and not "),
    ("yolov8n.yaml", {"loss": "drop", "cfg": "none.yaml"}, "cfg=none.yaml: no such file"),
    ("retinanet_tiny", {"distill_model": "yolov8n.pt"}, "distill_model=yolov8n.pt cannot be joined with model="),
    # what would freeze everything or nothing
    ("retinanet_tiny", {"freeze": 3}, f"freeze=3: retinanet_tiny {MODULES}"),
    ("retinanet_tiny", {"freeze": -1}, f"freeze=-1: retinanet_tiny {MODULES}"),
    ("ssd_tiny", {"freeze": [0, 1, 2]}, f"freeze=[0, 1, 2]: ssd_tiny {MODULES}"),
    ("retinanet_tiny", {"freeze": [0, 7]}, f"freeze=[0, 7]: retinanet_tiny {MODULES}"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "given", "message"), SLIPS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_a_slip_gets_the_same_line_by_every_route(
    capfd: pytest.CaptureFixture[str], data: Path, model: str, given: dict[str, Any], message: str
) -> None:
    lines = {route: refused(capfd, route, model, data=data, project="runs", **given) for route in ROUTES}
    assert len(set(lines.values())) == 1, lines
    assert message in lines["python"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "unknown flag epoch=3 (did you mean epochs?)"),
        ({"obj_drp": 0.5}, "unknown flag obj_drp=0.5 (did you mean obj_drop?)"),
        ({"epochs": "many"}, "epochs=many"),
        ({"lr0": 3.0}, "lr0=3.0"),
        ({"optimizer": "foo"}, "optimizer=foo is not one of auto, SGD"),
        ({"quantize": 8}, "quantize=8 needs what is not installed"),
        ({"pretrained": "here/none.pt"}, "pretrained=here/none.pt: no such file, and not a published model"),
    ],
)
def test_our_own_commands_look_at_a_stock_training_too(
    capfd: pytest.CaptureFixture[str], data: Path, given: dict[str, Any], message: str
) -> None:
    lines = {refused(capfd, route, "yolov5n.yaml", data=data, **given) for route in ("rebalance", "grid")}
    assert len(lines) == 1
    assert message in lines.pop()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("none.yaml", "model=none.yaml: no such file"),
        ("here/none.pt", "model=here/none.pt: no such file, and not a published model"),
        ("yolov8m-n.pt", "model=yolov8m-n.pt: no such file, and not a published model (did you mean yolov8"),
        ("retinanet_tinny", "model=retinanet_tinny is not one of retinanet_resnet50_fpn, "),
    ],
)
def test_a_model_that_is_not_there(capfd: pytest.CaptureFixture[str], data: Path, model: str, message: str) -> None:
    lines = {refused(capfd, route, model, data=data, loss="focal") for route in ROUTES if route != "python"}
    assert len(lines) == 1
    assert lines.pop().startswith(message)


def test_a_misspelt_detector_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"model=retinanet_tinny is not one of .*mean retinanet_tiny\?"):
        YOLO("retinanet_tinny")


# Trainings that start -------------------------------------------------------------------------------------------------


def test_what_starts_is_admitted_with_what_it_comes_to(data: Path) -> None:
    host = {"data": str(data), "epochs": 3, "device": "cpu", "classes": [0, 1], "amp": "fp32"}
    for given in ({}, {"obj_drop": 0.5}, {"head": "anchor"}):
        found = admit(load("yolov8n.yaml"), given, host, strict=True, data=False)
        assert (found.recipe is None) == (given == {})
        assert found.arguments == host
    assert found.recipe is not None
    assert (found.recipe["head"], found.recipe["loss"], found.given) == ("anchor", "bce", {"head": "anchor"})
    assert admit(load("yolov8n.yaml"), {}, host, OWN).trainer is OWN


@pytest.mark.parametrize(
    "host",
    [
        {"imgsz": 64, "batch": -1, "workers": 0, "cache": True, "compile": False, "freeze": 3, "classes": 1},
        {"imgsz": "64", "batch": 0.5, "cache": "RAM", "compile": "default", "freeze": [0, "23.cv2"], "classes": [0, 1]},
        {"imgsz": [64, 96], "batch": 1, "cache": None, "freeze": [], "device": "cpu", "quantize": 16, "seed": 0},
        {"cache": "disk", "device": "", "quantize": None, "copy_paste_mode": "mixup", "compile": True},
        {"device": torch.device("cpu"), "optimizer": "adamw", "freeze": 22, "split": "test", "time": 0.5},
        {"optimizer": "SGD", "momentum": 1.0, "pretrained": False, "freeze": ["22"], "amp": "fp16", "task": "detect"},
    ],
)
def test_good_values_of_the_host_are_good_here(host: dict[str, Any]) -> None:
    assert admit(load("yolov8n.yaml"), {"obj_drop": 0.5}, host, strict=True).arguments == host


@pytest.mark.parametrize("model", ["yolov8n.yaml", "retinanet_tiny"])
def test_an_earlier_name_of_the_host_is_taken_for_what_it_became(model: str) -> None:
    for given in ({"int8": True}, {"half": True, "int8": True}):
        with pytest.raises(ConfigError, match="quantize=8 needs what is not installed"):
            YOLO(model).train(loss="focal", **given)
    assert admit(load(model), {"loss": "focal"}, {"int8": False, "half": True}, strict=True).recipe is not None


def test_optimizers_are_the_host_s() -> None:
    build = functools.partial(BaseTrainer.build_optimizer, None, torch.nn.Linear(1, 1))
    with pytest.raises(NotImplementedError) as caught:
        build(name="none")
    named = ast.literal_eval(str(caught.value).partition("optimizers ")[2].partition(".")[0])
    assert named == set(OPTIMIZERS)


@pytest.mark.parametrize("freeze", [None, 0, 1, 2, [], [0], [1], [0, 1]])
def test_what_can_be_frozen(freeze: Any) -> None:
    assert admit(YOLO("retinanet_tiny"), {}, {"freeze": freeze}).recipe is not None


def test_the_host_s_own_weights_leave_the_host_alone(tmp_path: Path) -> None:
    ultralytics.YOLO("yolov5n.yaml").save(tmp_path / "own.pt")
    for pretrained in (True, False, str(tmp_path / "own.pt"), "yolov5nu.pt"):
        assert admit(YOLO("yolov5n.yaml"), {}, {"pretrained": pretrained}).recipe is None


@pytest.mark.parametrize(
    ("model", "given", "with_what"),
    [
        ("yolov8n.yaml", {"obj_drop": 0.5, "box_drop": 0.5}, "obj_drop, box_drop"),
        ("retinanet_tiny", {}, "model=retinanet_tiny"),
    ],
)
def test_a_trainer_of_one_s_own(model: str, given: dict[str, Any], with_what: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=f"^trainer=Own cannot be joined with {with_what}$"):
        YOLO(model).train(data=str(data), trainer=OWN, **given)
    assert not list(Path.cwd().iterdir())


# State dicts ----------------------------------------------------------------------------------------------------------


def test_a_state_dict_needs_no_flag_of_ours(tensors: Path, data: Path, tmp_path: Path) -> None:
    model = train("yolov5n.yaml", data, tmp_path, epochs=1, val=False, pretrained=str(tensors))
    assert isinstance(model.trainer, RebalanceTrainer)
    assert model.trainer.recipe["loss"] == "bce"
    matched, count = model.trainer.weights_matched
    assert 300 < matched < count  # the head is another
    found = admit(YOLO("yolov5n.yaml"), {}, {"pretrained": str(tensors)}, OWN)  # which reads it itself
    assert (found.recipe, found.trainer) == (None, OWN)


def test_a_state_dict_in_the_wrong_place(capfd: pytest.CaptureFixture[str], tensors: Path, finished: Path) -> None:
    for route in ROUTES:
        line = refused(capfd, route, finished, pretrained=tensors)
        assert line == f"pretrained={tensors} cannot be joined with model={finished}, which has weights"
        line = refused(capfd, route, tensors, loss="focal")
        assert line.startswith(f"model={tensors} holds weights without their model; name the model that it fills")


# Resuming -------------------------------------------------------------------------------------------------------------


def test_a_finished_training_is_not_resumed(
    capfd: pytest.CaptureFixture[str], finished: Path, data: Path, tmp_path: Path
) -> None:
    half = checkpoint(tmp_path, epoch=3)  # of which the optimizer was taken out
    for route in ROUTES:
        for file in (finished, half):
            told = f"resume: the training of {file} is finished; nothing to resume"
            assert refused(capfd, route, file, resume=None, data=data) == told
            assert refused(capfd, route, "retinanet_tiny", resume=file) == told


def test_what_was_never_trained_is_not_resumed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for route in ROUTES:
        line = refused(capfd, route, "yolov8n.yaml", resume=None)
        assert line == "resume: model=yolov8n.yaml is not a checkpoint; give the last.pt of the interrupted training"
        line = refused(capfd, route, "yolov8n.yaml", resume=tmp_path / "none.pt")
        assert line == f"resume={tmp_path / 'none.pt'}: no such file"


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


@pytest.mark.parametrize(("model", "given"), [("retinanet_tiny", {}), ("yolov8n.yaml", {"loss": "focal"})])
def test_a_data_set_that_is_not_there(capfd: pytest.CaptureFixture[str], model: str, given: dict[str, str]) -> None:
    for name in ("none.yaml", "nothing", "/nowhere/nothing"):
        lines = {refused(capfd, route, model, data=name, **given) for route in ROUTES if route != "grid"}
        assert lines == {f"data={name}: no such file"}
    assert refused(capfd, "rebalance", "yolov8n.yaml", data="nothing") == "data=nothing: no such file"


def test_flags_are_looked_at_before_the_built_in_data_set_is_made(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text("seafloor: {train: 1, val: 1, test: 1, size: 64}\n", "utf-8")
    for model, given in (("yolov8n.yaml", {"obj_drop": 2}), ("retinanet_tiny", {"loss": "nrd"})):
        with pytest.raises(ConfigError):
            YOLO(model).train(data="mine.yaml", **given)
    assert [file.name for file in elsewhere.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(("model", "given"), [("retinanet_tiny", {}), ("yolov8n.yaml", {"head": "anchor"})])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('channels: "3"', 'channels: "3" is not a whole number such as 3'),
        ("channels:", "channels: null is not a whole number such as 3"),
        ("channels: 3.0", "channels: 3.0 is not a whole number such as 3"),
        ("nc: two", "nc=two is not a whole number"),
        ("nc: 9", "2 names, but nc=9"),
        ("path: 7", "'path' is of type int, not str"),
        ("train: 7", "'train' is of type int, not str or list"),
        ("val: [7]", "'val' is a list with something else than texts in it"),
        ("names: red", "'names' is of type str, not list or dict"),
        ("names: {0: red, 2: blue}", "'names' has the classes [0, 2], not 0, 1, 2 ... without a gap"),
        ("download: 7", "'download' is of type int, not str"),
        ("train: images/tarin", "train images not found: "),
    ],
)
def test_a_value_of_a_data_set_yaml_that_cannot_be(
    capfd: pytest.CaptureFixture[str], tiny_dataset: Path, model: str, given: dict[str, str], line: str, message: str
) -> None:
    content = yaml.safe_load(tiny_dataset.read_text("utf-8"))
    tiny_dataset.write_text(yaml.safe_dump({**content, **yaml.safe_load(line)}), "utf-8")
    lines = {refused(capfd, route, model, data=tiny_dataset, **given) for route in ROUTES if route != "grid"}
    assert len(lines) == 1
    assert lines.pop().startswith(f"{tiny_dataset}: {message}")


@pytest.mark.parametrize(("model", "given"), [("fasterrcnn_tiny", {}), ("yolov8n.yaml", {"loss": "focal"})])
@pytest.mark.parametrize("how", ["no files", "empty files", "files of another number of classes"])
def test_training_images_without_a_single_label(
    capfd: pytest.CaptureFixture[str], tiny_dataset: Path, model: str, given: dict[str, str], how: str
) -> None:
    for file in tiny_dataset.parent.glob("labels/train/*.txt"):
        if how == "no files":
            file.unlink()
        else:
            file.write_text("" if how == "empty files" else "7 0.5 0.5 0.2 0.2\n", "utf-8")
    before = sorted(tiny_dataset.parent.rglob("*"))
    lines = {refused(capfd, route, model, data=tiny_dataset, **given) for route in ROUTES if route != "grid"}
    assert lines == {f"{tiny_dataset}: no training image has a label"}
    assert sorted(tiny_dataset.parent.rglob("*")) == before
    if how.startswith("files of another"):  # one class of many, as the host reads it
        assert admit(load(model), given, {"data": str(tiny_dataset), "single_cls": True}).recipe


def test_classes_of_which_no_training_image_has_a_label(capfd: pytest.CaptureFixture[str], tiny_dataset: Path) -> None:
    for classes, told in (("[8,9]", "8,9"), (9, "9")):
        for route in ("rebalance", "yolo"):
            line = refused(capfd, route, "yolov8n.yaml", data=tiny_dataset, loss="focal", classes=classes)
            assert line == f"{tiny_dataset}: no training image has a label of classes={told}"
    assert admit(load("yolov8n.yaml"), {"loss": "focal"}, {"data": str(tiny_dataset), "classes": [0, 9]}).recipe


def test_a_task_or_a_split_that_is_not_there(capfd: pytest.CaptureFixture[str], tiny_dataset: Path) -> None:
    line = refused(capfd, "python", "yolov8n.yaml", data=tiny_dataset, loss="focal", task="segment")
    assert line == "task=segment cannot be joined with model=yolov8n.yaml, which is a detect model"
    for route in ROUTES:
        line = refused(capfd, route, "yolov8n.yaml", data=tiny_dataset, loss="focal", cfg=5)
        assert line == "cfg=5 is not a YAML (.yaml or .yml)"
    text = tiny_dataset.read_text("utf-8")
    tiny_dataset.write_text(text.replace("test: images/test\n", ""), "utf-8")
    for route in ("python", "rebalance", "yolo"):
        line = refused(capfd, route, "yolov8n.yaml", data=tiny_dataset, loss="focal", split="test")
        assert line == f"{tiny_dataset} has no 'test:'"


def test_a_data_set_that_the_host_fetches_is_its_own_affair(tmp_path: Path) -> None:
    file = tmp_path / "far.yaml"
    file.write_text(
        "path: far\ntrain: images\nval: images\nnames: [a]\ndownload: https://example.org/far.zip\n", "utf-8"
    )
    assert admit(load("yolov8n.yaml"), {"loss": "focal"}, {"data": str(file)}).arguments == {"data": str(file)}


def test_images_of_one_channel_are_refused(capfd: pytest.CaptureFixture[str], tiny_dataset: Path) -> None:
    tiny_dataset.write_text(tiny_dataset.read_text("utf-8") + "channels: 1\n", "utf-8")
    for route in ROUTES:
        line = refused(capfd, route, "retinanet_tiny", data=tiny_dataset)
        assert line == f"model=retinanet_tiny takes images of 3 channels; {tiny_dataset} has 1"
