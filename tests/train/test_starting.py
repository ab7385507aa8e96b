"""What a training starts from: class rows that follow the classes' names, and the same run from its args.yaml."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import ultralytics
import yaml
from small_data import make_dataset
from small_training import log, results, train
from torch import Tensor
from torchvision.models import resnet18
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

import rebalance
from rebalance import YOLO
from rebalance.errors import ModelError
from rebalance.hosts.state_dict import read_weights
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.ultralytics.model import AnchorDetectionModel, ObjectnessDetectionModel, class_rows
from rebalance.methods.resobj import ResObj

NAMES = ("red", "green", "blue")
HEADS: dict[str, Any] = {
    "stock": lambda nc: DetectionModel("yolov8n.yaml", nc=nc, verbose=False),
    "anchor": lambda nc: AnchorDetectionModel("yolov5n.yaml", nc=nc, verbose=False),
    "anchor, steps": lambda nc: AnchorDetectionModel("yolov5n.yaml", nc=nc, verbose=False, settings=ResObj()),
    "obj": lambda nc: ObjectnessDetectionModel("yolov8n.yaml", nc=nc, verbose=False),
    "two branches, steps": lambda nc: ObjectnessDetectionModel("yolo26n.yaml", nc=nc, verbose=False, settings=ResObj()),
    **{
        name: lambda nc, name=name: TorchvisionModel(name, nc=nc, verbose=False)
        for name in ("retinanet_tiny", "ssd_tiny", "fasterrcnn_tiny")
    },
}


def named(head: str, names: tuple[str, ...], seed: int) -> Any:
    torch.manual_seed(seed)
    model = HEADS[head](len(names)).eval()
    model.names = dict(enumerate(names))
    for name, x in model.model[-1].named_parameters():
        if name.startswith(("m.", "cv3", "one2one_cv3", "layers.classification", "predictor")):
            torch.nn.init.normal_(x, std=0.1)
    return model


def scores(model: Any) -> Tensor:
    """(C, N) scores of an image."""
    torch.manual_seed(5)
    with torch.no_grad():
        found = model(torch.rand(1, 3, 64, 64))
    found = found[0] if isinstance(found, tuple) else found
    if found.shape[-1] == 6:  # of two branches: boxes, best score, class
        return torch.zeros(len(model.names), found.shape[1]).scatter(
            0, found[0, :, 5].long()[None], found[0, :, 4][None]
        )
    return found[0, 4:]


@pytest.mark.parametrize("names", [("blue", "red", "green"), ("Blue ", "RED"), ("blue", "new", "green", "red")])
@pytest.mark.parametrize("head", HEADS)
def test_class_rows_follow_the_names(head: str, names: tuple[str, ...]) -> None:
    before, after = named(head, NAMES, 0), named(head, names, 1)
    with log() as lines:
        after.load(before)
    places = [NAMES.index(name.strip().lower()) if name != "new" else -1 for name in names]
    softmax = head in ("ssd_tiny", "fasterrcnn_tiny")
    if len(names) == 3 or not (softmax or "two" in head):  # a softmax over other classes gives other scores
        kept = torch.tensor([k for k, place in enumerate(places) if place >= 0])
        expected = scores(before)[[place for place in places if place >= 0]]
        if head.startswith("retinanet") and len(names) != 3:
            assert expected.sum() > 0  # the best pairs are others
        else:
            torch.testing.assert_close(scores(after)[kept], expected)
    if head not in ("stock", "obj", "two branches, steps"):  # where the host says it
        told = f"rebalance: {3 if len(names) != 2 else 2} of {len(names)} classes keep their rows by name"
        assert any(
            told.removeprefix("rebalance: ") + ("; new: new" if "new" in names else "") in line for line in lines
        )


@pytest.mark.parametrize("head", HEADS)
def test_rows_stay_in_place_where_the_model_is_not_told_the_names(head: str) -> None:
    """As with cls_remap=False: the model that is filled has numbers for names."""
    before, after = named(head, NAMES, 0), named(head, NAMES, 1)
    after.names = {i: f"{i}" for i in range(3)}
    after.load(before)
    torch.testing.assert_close(scores(after), scores(before))


@pytest.mark.parametrize("names", [("item",), ("cat", "dog", "cow", "emu"), ("0", "1")])
@pytest.mark.parametrize("head", HEADS)
def test_what_belongs_to_no_class_enters_where_no_class_does(head: str, names: tuple[str, ...]) -> None:
    """As on the host's own heads, whose boxes are a layer of their own."""
    before, after = named(head, NAMES, 0), named(head, names, 1)
    own, theirs = ({name: x.clone() for name, x in model.state_dict().items()} for model in (after, before))
    after.load(before)
    rows = after.class_rows() if isinstance(after, TorchvisionModel) else class_rows(after)
    none = torch.arange(getattr(after.model[-1], "background", 0))
    for name, x in after.state_dict().items():
        if name not in rows:
            assert torch.equal(x, theirs[name]), name
            continue
        place, given = (rows[name](torch.arange(len(held[name])), none) for held in (own, theirs))
        assert len(place) == {"anchor": 15, "anchor, steps": 15}.get(head, len(given))
        assert torch.equal(x[place], theirs[name][given])
        new = torch.ones(len(x), dtype=torch.bool).index_fill(0, place.long(), False)
        assert torch.equal(x[new], own[name][new])


def renamed(folder: Path, names: list[str]) -> Path:
    """The small data set with these class names."""
    data = make_dataset(folder, classes=len(names))
    told = yaml.safe_load(data.read_text())
    data.write_text(yaml.safe_dump({**told, "names": dict(enumerate(names))}))
    return data


@pytest.mark.parametrize("remap", [True, False])
def test_a_training_on_renumbered_classes_starts_with_rows_by_name(tmp_path: Path, remap: bool) -> None:
    model = AnchorDetectionModel("yolov5n.yaml", nc=3, verbose=False)
    model.names = dict(enumerate(NAMES))
    file, started = tmp_path / "before.pt", dict[str, Tensor]()
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    again = YOLO(file)
    again.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    train(again, renamed(tmp_path / "data", ["blue", "red", "green"]), tmp_path, epochs=1, cls_remap=remap, val=False)
    rows = started["model.24.m.0.bias"].view(3, 8)
    expected = model.model[-1].m[0].bias.view(3, 8)[:, [0, 1, 2, 3, 4, *((7, 5, 6) if remap else (5, 6, 7))]]
    torch.testing.assert_close(rows, expected.detach().float(), atol=1e-3, rtol=0)


def state(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = YOLO(folder / "weights" / "last.pt").model.float().state_dict()
    return found


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("yolov5n.yaml", {"head": "anchor", "loss": "drop", "obj_drop": 0.75, "autoanchor": False}),
        ("yolov8n.yaml", {"loss": "resobj", "resobj_steps": 1}),
        ("retinanet_tiny", {"loss": "brl+drop", "brl_t": 0.3, "obj_drop": 0.5}),
    ],
)
def test_args_yaml_makes_the_same_run_again(tmp_path: Path, model: str, flags: dict[str, Any]) -> None:
    data = make_dataset(tmp_path / "data")
    first = train(model, data, tmp_path, epochs=1, seed=3, **flags)
    kept = YAML.load(tmp_path / "run" / "args.yaml")
    assert {name: kept[name] for name in flags if name != "loss"} == {k: v for k, v in flags.items() if k != "loss"}
    assert "obj_gain" not in kept
    again = YOLO(model)
    again.train(cfg=str(tmp_path / "run" / "args.yaml"), name="again")
    assert again.trainer.save_dir == tmp_path / "again"
    assert again.trainer.recipe.values == first.trainer.recipe.values
    one, other = state(tmp_path / "run"), state(tmp_path / "again")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert results(tmp_path)[0]["train/box_loss"] > 0


@pytest.mark.parametrize(("head", "called"), [("anchor", "anchor"), ("obj", "obj"), ("two branches, steps", "resobj")])
def test_stock_ultralytics_does_not_train_another_head_than_the_checkpoint_s(
    tmp_path: Path, head: str, called: str
) -> None:
    model = named(head, NAMES, 0)
    model.yaml["rebalance"] = {"flags": {"head": called}}
    file = tmp_path / "before.pt"
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    data = str(make_dataset(tmp_path / "data"))
    stock = ultralytics.YOLO(file)
    told = f"a checkpoint with head={called} has a head of rebalance: train it with rebalance.YOLO, or with "
    with pytest.raises(ModelError, match=told):
        stock.train(data=data, project=str(tmp_path), epochs=1, imgsz=64, workers=0, plots=False)
    with pytest.raises(ModelError, match=told):
        DetectionModel(deepcopy(stock.model.yaml))
    ours = ultralytics.YOLO(file)
    small = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "project": str(tmp_path)}
    ours.train(trainer=rebalance.trainer(), data=data, **small)
    assert type(ours.trainer.model.model[-1]) is type(model.model[-1])


# Files of weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "model", "state_dict", "module.", "torchvision"])
def test_a_state_dict_is_found_in_its_wrappers(tmp_path: Path, form: str) -> None:
    plain = {"a.weight": torch.ones(2), "b.num": torch.tensor(3)}
    several = {f"module.{name}": x for name, x in plain.items()}
    made = {
        "plain": plain,
        "model": {"model": plain, "epoch": 3},
        "state_dict": {"state_dict": several},
        "module.": several,
        "torchvision": {"model": plain, "optimizer": {}, "args": Namespace(lr=0.1)},
    }[form]
    torch.save(made, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found is not None
    assert found.tensors.keys() == plain.keys()


class Elsewhere(torch.nn.Module):
    """A module of code that is not here when its file is read; see `foreign`."""


def foreign(model: torch.nn.Module, module: str) -> Any:
    """A model whose classes are all of a package that nobody can import."""
    made = Elsewhere()
    kind = type(type(model).__name__, (torch.nn.Module,), {"__module__": module})
    made.__class__ = kind
    made.__dict__ = {**model.__dict__, "_modules": {k: foreign(x, module) for k, x in model._modules.items() if x}}
    made.__dict__.pop("criterion", None)
    if hasattr(model, "yaml"):
        made.__dict__["yaml"] = dict(model.yaml)
    return made


def saved(model: Any, file: Path, module: str, wrap: Any, **options: Any) -> Path:
    """A file of it, as a program writes it that has that package; afterwards it is gone."""
    package = ModuleType(module)
    made = foreign(model, module)
    for part in made.modules():
        setattr(package, type(part).__name__, type(part))
    for part in list(made.modules()):
        part.__class__ = getattr(package, type(part).__name__)
    sys.modules[module] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old format keeps source code, and there is none
        torch.save(wrap(made), file, **options)
    del sys.modules[module]
    return file


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("form", ["yolov5", "whole", "ema", "several GPUs"])
def test_whole_modules_are_read_without_their_code(tmp_path: Path, form: str, old: bool) -> None:
    """An original YOLOv5's checkpoint, and others': their class rows follow the names, as in a state dict of ours."""
    source, other = named("anchor", ("Green", "red", "blue"), 3), named("anchor", NAMES, 4)
    wrap: Any = {
        "yolov5": lambda x: {"epoch": -1, "best_fitness": 0.1, "model": x.half(), "ema": None, "optimizer": None},
        "whole": lambda x: x,
        "ema": lambda x: {"model": foreign(other, "models"), "ema": x, "updates": 3},
        "several GPUs": lambda x: {"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}},
    }[form]
    options = {"_use_new_zipfile_serialization": not old}
    file = saved(source, tmp_path / "x.pt", "models", wrap if form != "ema" else lambda x: {"ema": x}, **options)
    found = read_weights(file)
    assert found is not None
    assert found.names == ({} if form == "several GPUs" else {0: "Green", 1: "red", 2: "blue"})
    own = source.state_dict()
    assert found.tensors.keys() == own.keys()
    assert all(torch.allclose(x.float(), own[name].float(), atol=1e-2) for name, x in found.tensors.items())


@pytest.mark.parametrize("remap", [True, False])
def test_an_original_yolov5_starts_a_training_with_rows_by_name(tmp_path: Path, remap: bool) -> None:
    source, started = named("anchor", NAMES, 3), dict[str, Tensor]()
    file = saved(source, tmp_path / "x.pt", "models", lambda x: {"model": x, "ema": None, "epoch": -1})
    model = YOLO("yolov5n.yaml")
    model.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    options = {"epochs": 1, "val": False, "cls_remap": remap, "head": "anchor", "pretrained": str(file)}
    with log() as lines:
        train(model, renamed(tmp_path / "data", ["blue", "red", "new"]), tmp_path, autoanchor=False, **options)
    rows, own = (x.view(3, 8) for x in (started["model.24.m.0.bias"], source.model[-1].m[0].bias.detach()))
    if remap:
        torch.testing.assert_close(rows[:, [0, 1, 2, 3, 4, 5, 6]], own[:, [0, 1, 2, 3, 4, 7, 5]])
        assert any("match by name and shape; 2 of 3 classes keep their rows by name; new: new" in x for x in lines)
    else:
        torch.testing.assert_close(rows, own)
        assert any("match by name and shape; class rows keep their order" in x for x in lines)


@pytest.mark.parametrize(
    ("model", "flags", "other"),
    [
        ("yolov5n.yaml", {"head": "anchor"}, "yolov5s.yaml"),
        ("yolov8n.yaml", {"loss": "focal"}, "yolov8s.yaml"),
        ("yolov8n.yaml", {"head": "obj"}, "resnet"),
        ("retinanet_tiny", {}, "yolov8n.yaml"),
        ("fasterrcnn_tiny", {}, "resnet"),
        ("ssd_tiny", {}, "yolov8n.pt"),
    ],
)
def test_weights_of_another_architecture_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, flags: dict[str, Any], other: str
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    if other == "resnet":
        made: Any = resnet18(weights=None)
    elif "yolo" in other:
        made = DetectionModel(other.replace(".pt", ".yaml"), nc=3, verbose=False)
    else:
        made = TorchvisionModel(other, nc=3, verbose=False)
    checkpoint = {"model": made, "train_args": {"task": "detect"}, "epoch": -1}
    torch.save(checkpoint if other.endswith(".pt") else made.state_dict(), tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"is (of )?another (architecture|detector) than ") as caught:
        YOLO(model).train(
            data=str(make_dataset(tmp_path / "data")), pretrained=str(tmp_path / "x.pt"), epochs=1, imgsz=64, **flags
        )
    assert "\n" not in str(caught.value)
    assert not list(Path.cwd().iterdir())


def test_a_file_that_names_other_code_is_neither_run_nor_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host would install a package of that name from the internet, and import it."""
    monkeypatch.setattr("ultralytics.utils.checks.check_requirements", lambda *_, **__: pytest.fail("asked for it"))
    kind = type("Thing", (), {"__module__": "nowhere"})
    package = ModuleType("nowhere")
    package.Thing = kind  # type: ignore[attr-defined]
    sys.modules["nowhere"] = package
    torch.save({"model": kind()}, tmp_path / "x.pt")
    del sys.modules["nowhere"]
    with pytest.raises(ModelError, match="is neither a checkpoint of Ultralytics"):
        YOLO("yolov5n.yaml").train(
            data=str(make_dataset(tmp_path / "data")),
            head="anchor",
            pretrained=str(tmp_path / "x.pt"),
            epochs=1,
            imgsz=64,
        )


def test_a_model_is_filled_with_plain_weights_in_python_too(tmp_path: Path) -> None:
    source = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "x.pth")
    model = YOLO("yolov8n.yaml").load(tmp_path / "x.pth")
    assert all(torch.equal(x, source.state_dict()[name]) for name, x in model.model.state_dict().items())
    with pytest.raises(ModelError, match="another architecture"):
        YOLO("yolov5n.yaml").load(tmp_path / "x.pth")


@pytest.mark.parametrize(("model", "head"), [("yolov8n.yaml", "obj"), ("yolo26n.yaml", "resobj")])
def test_an_objectness_is_as_wide_as_the_class_towers_that_the_host_takes_over(model: str, head: str) -> None:
    """Towers of 80 classes are wider than those of two, and the host makes them so: as of its published checkpoints."""
    source = DetectionModel(model, nc=80, verbose=False).eval()
    made = ObjectnessDetectionModel(model, nc=2, verbose=False, settings=ResObj(resobj_steps=head == "resobj")).eval()
    made.yaml["rebalance"] = {"flags": {"head": head, "obj_prior": "code"}}
    made.load(source, verbose=False)
    inner, theirs = made.model[-1], source.model[-1]
    assert inner.cv3[0][-1].in_channels == theirs.cv3[0][-1].in_channels == 80
    assert torch.equal(next(inner.cv3[0].parameters()), next(theirs.cv3[0].parameters()))
    with torch.no_grad():
        made.train()(torch.rand(2, 3, 64, 64))
    again = ObjectnessDetectionModel(model, nc=2, verbose=False, settings=ResObj(resobj_steps=head == "resobj"))
    again.yaml["rebalance"] = made.yaml["rebalance"]
    again.load(made, verbose=False)
    assert all(torch.equal(x, made.state_dict()[name]) for name, x in again.state_dict().items())


def test_what_stays_new_is_said(tmp_path: Path) -> None:
    """Of a checkpoint of the host with another head: its backbone enters, the anchor head is new."""
    file = tmp_path / "x.pt"
    model = DetectionModel("yolov5n.yaml", nc=2, verbose=False)
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}, "epoch": -1}, file)
    made = YOLO("yolov5n.yaml")
    options = {"epochs": 1, "val": False, "autoanchor": False}
    with log() as lines:
        train(made, make_dataset(tmp_path / "data"), tmp_path, head="anchor", pretrained=str(file), **options)
    assert "rebalance: new are model.24, model.24.m.0, model.24.m.1, model.24.m.2" in lines


def test_what_is_no_weights_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, empty, a page, a pointer to a file elsewhere, a number: by content, whatever the suffix says."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    data, whole = str(make_dataset(tmp_path / "data")), tmp_path / "whole.pt"
    torch.save({"a": torch.ones(1000)}, whole)
    contents = {
        "cut": whole.read_bytes()[:-200], "empty": b"", "page": b"<!DOCTYPE html><title>404</title>",
        "pointer": b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 3\n",
    }  # fmt: skip
    for name, content in contents.items():
        for suffix in (".pt", ".pth"):
            file = tmp_path / f"{name}{suffix}"
            file.write_bytes(content)
            for model, flags in (("retinanet_tiny", {}), ("yolov5n.yaml", {"head": "anchor"})):
                with pytest.raises(ModelError, match="is neither a checkpoint of Ultralytics") as caught:
                    YOLO(model).train(data=data, pretrained=str(file), **flags)
                assert "\n" not in str(caught.value)
    assert not list(Path.cwd().iterdir())


def test_torchvisions_own_checkpoint_starts_a_detector(tmp_path: Path) -> None:
    source = TorchvisionModel("retinanet_tiny", nc=2, verbose=False)
    torch.save({"model": source.state_dict(), "optimizer": {}, "epoch": 3}, tmp_path / "x.pth")
    started: dict[str, Tensor] = {}
    model = YOLO("retinanet_tiny")
    model.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    train(model, make_dataset(tmp_path / "data"), tmp_path, epochs=1, val=False, pretrained=str(tmp_path / "x.pth"))
    assert all(torch.equal(x, started[name]) for name, x in source.state_dict().items())


def test_a_list_of_data_sets_starts_from_a_state_dict_too(tmp_path: Path) -> None:
    source = AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False)
    torch.save(source.state_dict(), tmp_path / "x.pt")
    sets = [str(make_dataset(tmp_path / name)) for name in ("one", "two")]
    started: list[dict[str, Tensor]] = []
    model = YOLO("yolov5n.yaml")
    model.add_callback("on_train_start", lambda t: started.append(deepcopy(t.model.state_dict())))
    small = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "autoanchor": False}
    model.train(data=sets, pretrained=str(tmp_path / "x.pt"), head="anchor", project=str(tmp_path / "runs"), **small)
    assert len(started) == 2
    for state in started:
        assert all(torch.equal(x, state[name]) for name, x in source.state_dict().items())


# Trainers of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["retinanet_tiny", "yolov8n.yaml"])
def test_a_trainer_made_from_ours_is_the_one_that_trains(tmp_path: Path, model: str) -> None:
    seen = []

    class Own(rebalance.trainer(loss="focal")):  # type: ignore[misc]
        def save_model(self) -> Any:
            seen.append(self.recipe["loss"])
            return super().save_model()

    small = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "plots": False, "val": False, "project": str(tmp_path)}
    made = YOLO(model)
    made.train(trainer=Own, data=str(make_dataset(tmp_path / "data")), focal_gamma=1.5, **small)
    assert seen == ["focal"]
    assert made.trainer.model.criterion.objectives[0].recipe["focal_gamma"] == 1.5


def test_names_that_the_host_fetches_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("ultralytics.YOLO._load", lambda self, weights, task=None: asked.append(weights))
    for name in ("ul://user/project/model", "https://example.org/weights"):
        YOLO(name)
    assert asked == ["ul://user/project/model", "https://example.org/weights"]
