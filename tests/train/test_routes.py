"""Every way in which a training starts, times every head: the criterion that ran is asked, not the log.

Each training is stopped after its first step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import ultralytics
from small_data import make_dataset
from ultralytics.utils import YAML
from ultralytics.utils.callbacks import default_callbacks
from ultralytics.utils.torch_utils import unwrap_model

import rebalance
from rebalance import YOLO
from rebalance.cli import host_command
from rebalance.cli.main import guarded, main
from rebalance.errors import ConfigError, ModelError
from rebalance.hosts.host import describe
from rebalance.recipe import TRAIN
from rebalance.train.trainer import RebalanceTrainer

SMALL = {"imgsz": 64, "batch": 8, "workers": 0, "plots": False, "val": False, "device": "cpu", "verbose": False}


class Head(NamedTuple):
    """A head, the flags that ask for it and a loss, and what is to run."""

    model: str
    flags: dict[str, Any]
    criterion: str
    loss: str
    losses: tuple[str, ...]


HEADS = {
    "stock": Head(
        "yolov8n.yaml", {"loss": "drop", "obj_drop": 0.5}, "DetectionCriterion", "drop",
        ("box_loss", "cls_loss", "dfl_loss"),
    ),
    "two branches": Head(
        "yolo26n.yaml", {"loss": "brl", "brl_t": 0.3}, "E2ELoss of two DetectionCriterion", "brl",
        ("box_loss", "cls_loss", "l1_loss"),
    ),
    "anchor": Head(
        "yolov5n.yaml", {"head": "anchor", "loss": "focal", "focal_gamma": 1.5, "autoanchor": False},
        "AnchorCriterion", "focal", ("box_loss", "obj_loss", "cls_loss"),
    ),
    "resobj": Head(
        "yolov5n.yaml", {"head": "resobj", "resobj_steps": 1, "autoanchor": False}, "AnchorCriterion", "bce",
        ("box_loss", "obj_loss", "cls_loss", "res_loss"),
    ),
    "obj": Head(
        "yolov8n.yaml", {"head": "obj", "loss": "soft"}, "ObjectnessCriterion", "soft",
        ("box_loss", "cls_loss", "dfl_loss", "obj_loss"),
    ),
    "retinanet_tiny": Head(
        "retinanet_tiny", {"loss": "brl", "brl_t": 0.3}, "RetinaNetCriterion", "brl", ("cls_loss", "box_loss")
    ),
    "fasterrcnn_tiny": Head(
        "fasterrcnn_tiny", {"loss": "ohem", "ohem_rois": 32}, "FasterRCNNCriterion", "ohem",
        ("obj_loss", "prop_loss", "cls_loss", "box_loss"),
    ),
    "ssd_tiny": Head(
        "ssd_tiny", {"head": "sigmoid", "loss": "focal"}, "SigmoidSSDCriterion", "focal", ("cls_loss", "box_loss")
    ),
}  # fmt: skip


class Stopped(Exception):  # noqa: N818 - it is no error
    """After the first step."""


class Seen(NamedTuple):
    """What ran."""

    told: dict[str, Any]  # what the criterion says of itself
    losses: tuple[str, ...]  # that it returned
    head: str  # class


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """What every training of this process runs, whoever starts it; each is stopped after its first step."""
    found: list[Seen] = []

    def stop(trainer: Any) -> None:
        model = unwrap_model(trainer.model)
        found.append(Seen(describe(model), tuple(trainer.loss_names), type(model.model[-1]).__name__))
        raise Stopped

    monkeypatch.setitem(default_callbacks, "on_train_batch_end", [stop])
    return found


pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_dataset(tmp_path_factory.mktemp("data") / "tiny"))


@pytest.fixture(scope="module")
def checkpoints(data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of one epoch of two, which was stopped in the second; made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def interrupt(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Stopped

    def of(head: str) -> Path:
        if head not in made:
            options = {**SMALL, "epochs": 2, "project": str(folder), "name": head.replace(" ", "-")}
            with pytest.MonkeyPatch.context() as patch, suppress(Stopped):
                patch.setitem(default_callbacks, "on_train_batch_end", [])  # it is the run before the one that is asked
                model = YOLO(HEADS[head].model)
                model.add_callback("on_train_epoch_start", interrupt)
                model.train(data=data, **options, **HEADS[head].flags)
            made[head] = folder / head.replace(" ", "-")
        return made[head]

    return of


def args(data: str, folder: Path, flags: dict[str, Any], *first: str) -> list[str]:
    given = {**SMALL, "epochs": 1, "data": data, "project": folder, **flags}
    return [*first, *(f"{name}={value}" for name, value in given.items())]


def without_head(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name != "head"}


def command(run: Callable[[], Any]) -> None:
    with suppress(Stopped):
        assert run() == 0


def yolo(given: list[str]) -> Any:
    sys.argv[:] = ["yolo", *given]
    return guarded(host_command.entrypoint)


# Name -> starts it, from the head's row, the folder of an interrupted run of it, the data set and a folder to write to
ROUTES: dict[str, Callable[[Head, Path, str, Path], Any]] = {
    "rebalance.YOLO": lambda head, run, data, out: YOLO(head.model).train(
        data=data, project=str(out), epochs=1, **SMALL, **head.flags
    ),
    "a checkpoint, which carries its head": lambda head, run, data, out: YOLO(run / "weights" / "last.pt").train(
        data=data, project=str(out), epochs=1, **SMALL, **without_head(head.flags)
    ),
    "a trainer with flags": lambda head, run, data, out: ultralytics.YOLO(run / "weights" / "last.pt").train(
        trainer=rebalance.trainer(**head.flags), data=data, project=str(out), epochs=1, **SMALL
    ),
    "a subclass of it": lambda head, run, data, out: YOLO(head.model).train(
        trainer=type("Own", (rebalance.trainer(**head.flags),), {}), data=data, project=str(out), epochs=1, **SMALL
    ),
    "args.yaml": lambda head, run, data, out: YOLO(head.model).train(cfg=str(run / "args.yaml"), project=str(out)),
    "a list of data sets": lambda head, run, data, out: YOLO(head.model).train(
        data=[data], project=str(out), epochs=1, **SMALL, **head.flags
    ),
    "tune": lambda head, run, data, out: YOLO(head.model).tune(
        data=data, project=str(out), epochs=1, iterations=1, **SMALL, **head.flags
    ),
    "rebalance train": lambda head, run, data, out: command(
        lambda: main(args(data, out, head.flags, "train", f"model={head.model}"))
    ),
    "yolo train with the hook": lambda head, run, data, out: command(
        lambda: yolo(args(data, out, head.flags, "train", f"model={head.model}"))
    ),
    "yolo train cfg=": lambda head, run, data, out: command(
        lambda: yolo(["train", f"cfg={run / 'args.yaml'}", f"model={head.model}", f"project={out}"])
    ),
    "resume": lambda head, run, data, out: YOLO(run / "weights" / "last.pt").train(resume=True),
    "yolo train resume": lambda head, run, data, out: command(
        lambda: yolo(["train", "resume=True", f"model={run / 'weights' / 'last.pt'}"])
    ),
    "resume by its path": lambda head, run, data, out: YOLO("yolov8n.yaml").train(
        resume=str(run / "weights" / "last.pt")
    ),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", HEADS)
def test_what_runs_is_what_was_asked(
    name: str, route: str, seen: list[Seen], checkpoints: Callable[[str], Path], data: str, tmp_path: Path
) -> None:
    head = HEADS[name]
    run = checkpoints(name)
    seen.clear()
    with suppress(Stopped):
        ROUTES[route](head, run, data, tmp_path / "out")
    (ran,) = seen
    assert ran.told["criterion"] == head.criterion
    assert ran.told["loss"] == head.loss
    assert ran.told["head"] == head.flags.get("head", "stock")
    assert ran.losses == head.losses
    given = {key: value for key, value in head.flags.items() if key in ran.told["settings"]}
    assert {key: ran.told["settings"][key] for key in given} == given


# Routes of the host itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, head in HEADS.items() if name not in ("stock", "two branches")])
def test_the_host_refuses_to_train_a_head_of_ours_before_it_makes_anything(
    name: str, checkpoints: Callable[[str], Path], data: str, tmp_path: Path
) -> None:
    last = checkpoints(name) / "weights" / "last.pt"
    kept = (last.parents[1] / "args.yaml").read_bytes()
    ways: tuple[Callable[[Any], Any], ...] = (
        lambda model: model.train(data=data, project=str(tmp_path / "out"), epochs=1, **SMALL),
        lambda model: model.train(data=[data, data], project=str(tmp_path / "out"), epochs=1, **SMALL),
        lambda model: model.train(resume=True),
        lambda model: model.tune(data=data, project=str(tmp_path / "out"), iterations=1, epochs=1, **SMALL),
        lambda model: model.tune(use_ray=True, data=data, iterations=1),
        lambda model: model.train(trainer=ultralytics.models.yolo.detect.DetectionTrainer, data=data, **SMALL),
    )
    for way in ways:
        with pytest.raises(
            ModelError, match=r"train it with rebalance\.YOLO, or with trainer=rebalance\.trainer"
        ) as caught:
            way(ultralytics.YOLO(last))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert (last.parents[1] / "args.yaml").read_bytes() == kept


def arguments_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML.load(run / "args.yaml")
    return found


@pytest.mark.parametrize("name", HEADS)
def test_the_host_does_not_resume_a_run_of_ours_with_its_own_loss(
    name: str, checkpoints: Callable[[str], Path]
) -> None:
    """Also where the head is its own, and nothing but the loss is ours; and the run's arguments keep our flags."""
    run = checkpoints(name)
    kept = arguments_of(run)
    with pytest.raises((SyntaxError, ModelError), match=r"is not a valid YOLO argument|train it with rebalance"):
        ultralytics.YOLO("yolov8n.yaml").train(resume=str(run / "weights" / "last.pt"))
    flags = {name: value for name, value in kept.items() if name in TRAIN}
    assert flags.keys() >= {"loss", "head"}
    assert {name: value for name, value in arguments_of(run).items() if name in TRAIN} == flags
    YAML.save(run / "args.yaml", kept)


@pytest.mark.parametrize("name", ["stock", "anchor", "ssd_tiny"])
def test_a_run_that_goes_on_can_still_be_made_again(
    name: str, checkpoints: Callable[[str], Path], seen: list[Seen]
) -> None:
    """The host's own `args.yaml` then asks to resume the run, which at its end cannot be resumed."""
    run = checkpoints(name)
    seen.clear()
    kept = arguments_of(run)
    with suppress(Stopped):
        YOLO(run / "weights" / "last.pt").train(resume=True)
    assert len(seen) == 1
    assert arguments_of(run) == kept
    assert kept["model"] == HEADS[name].model


def test_a_finished_checkpoint_is_left_as_the_host_knows_it(data: str, tmp_path: Path) -> None:
    model = YOLO("yolov8n.yaml")
    model.train(data=data, project=str(tmp_path), name="run", epochs=1, **SMALL, loss="drop", obj_drop=0.5)
    kept = torch.load(tmp_path / "run" / "weights" / "last.pt", map_location="cpu", weights_only=False)
    assert not kept["train_args"].keys() & {"loss", "head", "obj_drop"}


def test_the_host_s_class_with_a_trainer_of_ours_refuses_what_holds_no_weights(data: str, tmp_path: Path) -> None:
    file = tmp_path / "page.pt"
    file.write_text("<html></html>", "utf-8")
    with pytest.raises(ModelError, match=r"^pretrained=.*page\.pt is neither a checkpoint of Ultralytics"):
        ultralytics.YOLO("yolov8n.yaml").train(
            trainer=rebalance.trainer(loss="drop", obj_drop=0.5), pretrained=str(file), data=data,
            project=str(tmp_path / "out"), epochs=1, **SMALL,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


# Searches -------------------------------------------------------------------------------------------------------------


def test_a_search_varies_our_flags_and_keeps_the_others(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []

    def stop(trainer: Any) -> None:
        tried.append(describe(unwrap_model(trainer.model))["settings"])
        raise Stopped

    monkeypatch.setitem(default_callbacks, "on_train_batch_end", [stop])
    space = {"obj_drop": (0.25, 0.75), "lr0": (1e-4, 1e-2)}
    YOLO("yolov5n.yaml").tune(
        data=data, project=str(tmp_path), epochs=1, iterations=3, space=space, loss="drop", head="anchor", **SMALL
    )
    drops = [settings["obj_drop"] for settings in tried]
    assert drops[0] == 0.25
    assert len(drops) == 3
    assert all(0.25 <= drop <= 0.75 for drop in drops)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"loss": (0, 1)}, "space: loss is not a number"),
        ({"obj_drop": 0.5}, r"space: obj_drop=0.5 is not \(lowest, highest\)"),
        ({"obj_dropp": (0, 1)}, "space: unknown flag obj_dropp"),
    ],
)
def test_a_search_over_what_is_no_number_is_refused(
    data: str, tmp_path: Path, space: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        YOLO("yolov8n.yaml").tune(data=data, project=str(tmp_path / "out"), space=space, loss="drop", **SMALL)
    assert not (tmp_path / "out").exists()


def test_a_search_by_ray_trains_with_our_flags(
    data: str, tmp_path: Path, seen: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the host's integration calls it: in another process, a copy of the model, with what Ray has drawn."""

    def run_ray_tune(model: Any, *, space: Any, iterations: int, **train_args: Any) -> None:
        copied = deepcopy(model)
        with suppress(Stopped):
            copied.train(**{name: low for name, (low, _) in space.items()}, **train_args)

    monkeypatch.setattr("ultralytics.utils.tuner.run_ray_tune", run_ray_tune)
    model = YOLO("yolov8n.yaml")
    model.tune(
        use_ray=True, iterations=1, space={"obj_drop": (0.25, 0.75)}, data=data, project=str(tmp_path), epochs=1,
        loss="drop", **SMALL,
    )  # fmt: skip
    assert seen[0].told["loss"] == "drop"
    assert seen[0].told["settings"]["obj_drop"] == 0.25
    assert model.flags == {}


# Weights to start from on the route of several sets -------------------------------------------------------------------


def test_of_several_sets_each_starts_from_torchvision_s_backbone(
    data: str, tmp_path: Path, seen: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "rebalance.hosts.torchvision.published.start", lambda model, pretrained: asked.append(pretrained)
    )
    YOLO("retinanet_tiny").train(data=[data, data], project=str(tmp_path), epochs=1, **SMALL)
    assert asked == [True, True]


def test_so_it_does_in_a_process_of_several_that_gets_the_model_from_the_one_before(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfSeveralSets(RebalanceTrainer):
        starts_from = True

    asked = []
    monkeypatch.setattr(
        "rebalance.hosts.torchvision.published.start", lambda model, pretrained: asked.append(pretrained)
    )
    first, second = (
        OfSeveralSets(overrides={"model": "retinanet_tiny", "data": data, "project": str(tmp_path), **SMALL})
        for _ in range(2)
    )
    begun = YOLO("retinanet_tiny").model
    second.model = first.get_model(weights=begun, cfg=begun.yaml)  # as the host starts processes
    second.setup_model()
    assert asked == [True]


def test_every_set_of_a_list_is_checked_before_anything_is_made(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        YOLO("yolov8n.yaml").train(
            data=[data, "nowhere.yaml"], loss="focal", project=str(tmp_path / "out"), epochs=1, **SMALL
        )
    assert not (tmp_path / "out").exists()


# What makes a run again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_a_run_is_made_again_from_its_folder_bit_for_bit(data: str, tmp_path: Path, name: str) -> None:
    head = HEADS[name]
    YOLO(head.model).train(
        data=data, project=str(tmp_path), name="run", epochs=1, **{**SMALL, "batch": 4}, **head.flags, seed=3
    )
    folder = tmp_path / "run"
    command(lambda: main(["train", f"cfg={folder / 'args.yaml'}", "name=again"]))
    one, other = (
        YOLO(tmp_path / run / "weights" / "last.pt").model.state_dict() for run in ("run", "again")
    )  # fmt: skip
    assert all(torch.equal(x, other[key]) for key, x in one.items())
    made, again = (json.loads((tmp_path / run / "rebalance.json").read_text("utf-8")) for run in ("run", "again"))
    assert made == again
    assert made["loss"]["criterion"] == head.criterion
    assert made["versions"]["ultralytics"] == ultralytics.__version__
    assert made["data"]["train"]["images"] == 8
    assert len(made["data"]["train"]["sha256"]) == len(made["data"]["val"]["sha256"]) == 64


def test_a_run_is_made_again_whose_device_nobody_named(data: str, tmp_path: Path, seen: list[Seen]) -> None:
    """And of which something was taken away that there is by default."""
    given = {"auto_augment": None, **{name: value for name, value in SMALL.items() if name != "device"}}
    with suppress(Stopped):
        YOLO("yolov8n.yaml").train(data=data, project=str(tmp_path), name="run", loss="soft", **given)
    with suppress(Stopped):
        main(["train", f"cfg={tmp_path / 'run' / 'args.yaml'}", "name=again"])
    assert [ran.told["loss"] for ran in seen] == ["soft", "soft"]
    run, again = (arguments_of(tmp_path / name) for name in ("run", "again"))
    assert {name for name, value in run.items() if again[name] != value} == {"name", "save_dir"}


def test_what_a_run_was_made_with_is_compared_when_it_is_made_again(tmp_path: Path) -> None:
    from rebalance.train import made

    file = make_dataset(tmp_path / "data")
    labels = [
        {"im_file": str(image), "cls": torch.zeros(1, 1).numpy(), "bboxes": torch.rand(1, 4).numpy()}
        for image in sorted((tmp_path / "data" / "images" / "train").iterdir())
    ]
    loader = SimpleNamespace(dataset=SimpleNamespace(labels=labels))
    trainer = SimpleNamespace(
        data={"path": tmp_path / "data", "yaml_file": file}, train_loader=loader, test_loader=loader,
        args=SimpleNamespace(split="val"), loss_ran={"loss": "bce", "settings": {}}, weights_matched=None,
    )  # fmt: skip
    first = made.made_with(trainer)
    assert made.differences(tmp_path, first) is None
    made.write(tmp_path, first)
    assert made.differences(tmp_path, first) == []
    labels[0]["cls"][:] = 1
    trainer.loss_ran = {"loss": "focal", "settings": {}}
    assert made.differences(tmp_path, made.made_with(trainer)) == [
        "loss bce -> focal", "train images or labels", "val images or labels"
    ]  # fmt: skip


def test_regions_that_are_others_than_those_a_run_was_made_with_are_told(tmp_path: Path) -> None:
    from rebalance.train import made
    from rebalance.train.regions import row_type

    file, image = make_dataset(tmp_path / "data"), str(tmp_path / "data/images/train/00.jpg")
    boxes, rows = np.array([[0.5, 0.5, 0.2, 0.2], [0, 0, 1, 1]], np.float32), np.zeros(2, row_type(2))
    rows["withheld"][1] = True  # which is no region
    splits = [SimpleNamespace(dataset=SimpleNamespace(labels=[], known={image: (boxes, rows)})) for _ in range(2)]
    splits[1].dataset.known = {}
    trainer = SimpleNamespace(
        data={"path": tmp_path / "data", "yaml_file": file}, train_loader=splits[0], test_loader=splits[1],
        args=SimpleNamespace(split="val"), loss_ran={"loss": "bce"}, weights_matched=None,
    )  # fmt: skip
    first = made.made_with(trainer)
    assert [*first["regions"]] == ["train"]
    assert first["regions"]["train"]["regions"] == 1
    made.write(tmp_path, first)
    boxes[1] = 0.5
    assert made.differences(tmp_path, made.made_with(trainer)) == []
    for change in (boxes[0], rows[0]["classes"]):
        change[1] += 1
        assert made.differences(tmp_path, made.made_with(trainer)) == ["train regions"]
        change[1] -= 1
    splits[0].dataset.known, splits[1].dataset.known = {}, {image: (boxes, rows)}
    assert made.differences(tmp_path, made.made_with(trainer)) == ["train regions", "val regions"]
    del first["regions"]  # an earlier version did not say
    made.write(tmp_path, first)
    assert made.differences(tmp_path, made.made_with(trainer)) == []
