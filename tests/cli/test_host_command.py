"""`rebalance train` and what the hook puts in the place of `yolo`, up to the host's own entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ultralytics
from small_data import make_dataset

from rebalance.cli import host_command as command
from rebalance.cli.hook import LINE
from rebalance.cli.main import main
from rebalance.errors import ConfigError
from rebalance.hosts.ultralytics.criterion import AnchorCriterion, DetectionCriterion
from rebalance.recipe import TRAIN
from rebalance.settings import value_text

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["epochs=1", "imgsz=64", "batch=4", "workers=0", "plots=False"]


@pytest.fixture(autouse=True)
def arguments() -> Iterator[None]:
    """The process's arguments, which the host keeps and our commands change in place."""
    before = sys.argv[:]
    yield
    sys.argv[:] = before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """Stands in for the training: the host's arguments and the trainer class of each."""
    calls: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr(
        "ultralytics.engine.model.Model.train", lambda self, trainer=None, **given: calls.append((given, trainer))
    )
    return calls


def yolo(*args: str) -> None:
    """What `yolo` runs where the hook is installed."""
    sys.argv[:] = ["yolo", *args]
    command.entrypoint()


# A slip ---------------------------------------------------------------------------------------------------------------

# Of the command line alone; what is wrong with a training by every route is in tests/train/test_admission.py
SLIPS = [
    (["zzz=1"], "unknown flag zzz=1"),
    (["epohcs=3"], "unknown flag epohcs=3 (did you mean epochs?)"),
    (["obj_drop"], "obj_drop needs a value, e.g. obj_drop=0.0\n"),
    (["obj_drop="], "obj_drop needs a value, e.g. obj_drop=0.0\n"),
    (["autoanchor"], "autoanchor needs a value, e.g. autoanchor=True\n"),
    (["loss="], "loss needs a value, e.g. loss=focal\n"),
    (["obj_drop=1.5"], "obj_drop=1.5 is out of range: 0 to 1"),  # before anyone looks for the data
    (["obj_drop=0.5", "cfg=none.yaml"], "cfg=none.yaml: no such file"),
    (["cfg=none.yaml"], "cfg=none.yaml: no such file"),
    (["obj_drop=0.5", "data=none.yaml"], "data=none.yaml: no such file"),
    (["model="], "model= is missing, e.g. model="),
    (["model=retinanet_tiny", "data=."], "data=. is a folder without a YAML, or with several; name the YAML\n"),
    (["obj_drop=0.5", "somthing"], "'somthing' is not key=value"),
]


@pytest.mark.parametrize(("args", "message"), SLIPS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_a_slip_is_one_line_and_exit_code_2_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": "yolov8n.yaml", "data": "none-either.yaml"} | dict(
        a.split("=") for a in args if a.count("=") == 1
    )
    rest = [a for a in args if "=" not in a]
    assert main(["train", *(f"{k}={v}" for k, v in given.items()), *rest]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rebalance: error: ")
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["train", "val", "predict", "export"])
def test_the_model_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, mode: str, trained: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^model= is missing, e\.g\. "):
        command.run(mode, [f"data={data}"])
    with pytest.raises(ConfigError, match=r"^model= is missing, e\.g\. "):
        yolo("train", f"data={data}", "loss=brl")
    assert not list(tmp_path.iterdir())
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: yolov8n.yaml\ndata: {data}\n", "utf-8")
    command.run("train", [f"cfg={file}"])
    assert len(trained) == 1


@pytest.mark.parametrize("mode", ["predict", "track"])
def test_a_source_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr("ultralytics.cfg.entrypoint", lambda: asked.append(sys.argv[-1]))
    for source in ("none.jpg", "none/at/all", "-"):
        with pytest.raises(ConfigError, match=f"^source={source}: no such file or folder$"):
            command.run(mode, ["model=yolov8n.yaml", f"source={source}"])
    for source in (".", "0", "screen", "*.png", "rtsp://none", "['a.jpg','b.jpg']"):
        command.run(mode, ["model=yolov8n.yaml", f"source={source}"])
    assert len(asked) == 6


def test_a_training_flag_is_refused_by_the_other_modes() -> None:
    for name, (_, item) in TRAIN.items():
        value = value_text(item.default or (isinstance(item.default, bool) or 1))
        for mode in ("predict", "export") if name == command.OF_VAL else ("val", "predict", "export"):
            with pytest.raises(ConfigError, match=f"^{name}={value} is a training flag; {mode} does not take it$"):
                command.run(mode, ["model=yolov8n.yaml", f"{name}={value}"])


@pytest.mark.parametrize(
    "model", ["yolov8n-seg.yaml", "rtdetr-l.yaml", "yolov8s-worldv2.yaml", "yoloe-v8s.yaml", "FastSAM-s.pt", "sam_b.pt"]
)
def test_models_without_our_losses_are_refused_where_a_flag_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, model: str, trained: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^obj_drop: only for"):
        command.run("train", [f"model={model}", f"data={data}", "obj_drop=0.5"])
    assert not trained
    assert not list(tmp_path.iterdir())


# What reaches the host ------------------------------------------------------------------------------------------------


def test_flags_reach_the_trainer_and_the_rest_the_host(data: Path, trained: list[Any]) -> None:
    args = ["model=yolov8n.yaml", f"data={data}", "obj_drop", "=", "0.5", "--box_drop=0.25,", "imgsz=96", "cos_lr"]
    for call in (
        lambda: command.run("train", args),
        lambda: yolo("train", *args),
        lambda: yolo("detect", "train", *args),
    ):
        call()
        given, trainer = trained.pop()
        assert dict(trainer.given) == {"obj_drop": 0.5, "box_drop": 0.25, "head": "stock"}
        assert (given["data"], given["imgsz"], given["cos_lr"]) == (str(data), 96, True)
        assert not given.keys() & TRAIN.keys()


def test_without_a_flag_of_ours_the_host_trains(data: Path, trained: list[Any]) -> None:
    for call in (yolo, lambda mode, *args: command.run(mode, list(args))):
        call("train", "model=yolov8n.yaml", f"data={data}", "imgsz=96")
        given, trainer = trained.pop()
        assert trainer is None
        assert given["imgsz"] == 96


def test_yolo_itself_answers_where_no_flag_of_ours_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    yolo("version")
    yolo()  # its help
    with pytest.raises(SyntaxError, match="zzzz"):
        yolo("train", "model=yolov8n.yaml", "zzzz=3")
    with pytest.raises(ConfigError, match=r"unknown flag obj_dropp=3 \(did you mean obj_drop\?\)"):
        yolo("train", "model=yolov8n.yaml", "obj_dropp=3")


def test_the_host_gets_its_own_classes_back(data: Path, trained: list[Any]) -> None:
    stock = ultralytics.YOLO, ultralytics.RTDETR
    command.run("train", ["model=yolov8n.yaml", f"data={data}", "obj_drop=0.5"])
    assert stock == (ultralytics.YOLO, ultralytics.RTDETR)
    with pytest.raises(ConfigError):
        command.run("train", ["model=rtdetr-l.yaml", f"data={data}", "obj_drop=0.5"])
    assert stock == (ultralytics.YOLO, ultralytics.RTDETR)


def test_without_a_network_the_host_goes_on_without_its_check_of_mixed_precision(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = list[str]()

    def check(*_: Any, **__: Any) -> None:
        """As `ultralytics.utils.checks.check_amp` begins, which passes over a CPU."""
        try:
            ultralytics.YOLO(data.parent / "yolo26n.pt")
        except ConnectionError as error:
            raised.append(str(error))

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Download failure")

    monkeypatch.setattr("ultralytics.engine.model.Model.train", check)
    monkeypatch.setattr("ultralytics.engine.model.load_checkpoint", unreachable)
    command.run("train", [f"data={data}", "model=yolov8n.yaml", "obj_drop=0.5"])
    assert raised == [f"model={data.parent / 'yolo26n.pt'} cannot be loaded: Download failure"]


def test_a_file_of_flags(tmp_path: Path, data: Path, trained: list[Any]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("obj_drop: 0.5\ndrop_scope: literal\nimgsz: 96\nlr0: 0.02\nname:\nclasses: [0, 1]\n", "utf-8")
    for call in (yolo, lambda mode, *args: command.run(mode, list(args))):
        call("train", "model=yolov8n.yaml", f"data={data}", f"cfg={file}", "obj_drop=0.25", "lr0=0.03")
        given, trainer = trained.pop()
        assert dict(trainer.given) == {"obj_drop": 0.25, "drop_scope": "literal", "head": "stock"}
        assert (given["imgsz"], given["lr0"], given["classes"]) == (96, 0.03, [0, 1])
    file.write_text("obj_drop: 1.5\n", "utf-8")
    with pytest.raises(ConfigError, match=r"obj_drop=1\.5 is out of range"):
        yolo("train", f"cfg={file}")
    file.write_text("imgsz: 96\n", "utf-8")  # none of ours: left to the host
    yolo("train", "model=yolov8n.yaml", f"data={data}", f"cfg={file}")
    given, trainer = trained.pop()
    assert (trainer, given["imgsz"]) == (None, 96)


# Whole commands -------------------------------------------------------------------------------------------------------


def test_train_val_predict_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.chdir(tmp_path)
    models: list[Any] = []
    train = ultralytics.engine.model.Model.train
    monkeypatch.setattr(
        "ultralytics.engine.model.Model.train",
        lambda self, *args, **given: (models.append(self), train(self, *args, **given))[1],
    )
    place = [f"project={tmp_path}", "name=run"]
    assert main(["train", "model=yolov5n.yaml", f"data={data}", "head=anchor", "obj_drop=0.5", *SMALL, *place]) == 0
    assert type(models[0].trainer.model.criterion) is AnchorCriterion
    best = tmp_path / "run" / "weights" / "best.pt"
    assert "drop/obj_dropped" in (tmp_path / "run" / "results.csv").read_text("utf-8")

    # the checkpoint's head is known without saying it again
    assert (
        main(["train", f"model={best}", f"data={data}", "anchor_t=3", *SMALL, f"project={tmp_path}", "name=more"]) == 0
    )
    assert type(models[1].trainer.model.criterion) is AnchorCriterion

    assert main(["val", f"model={best}", f"data={data}", "imgsz=64", "plots=False", *place[:1], "name=val"]) == 0
    pictures = data.parent / "images" / "val"
    assert main(["predict", f"model={best}", f"source={pictures}", "imgsz=64", *place[:1], "name=predict"]) == 0
    assert len(list((tmp_path / "predict").glob("*.jpg"))) == 4
    assert main(["export", f"model={best}", "format=torchscript", "imgsz=64"]) == 0
    assert best.with_suffix(".torchscript").is_file()


def test_resume_by_path_whatever_the_model(tmp_path: Path, data: Path) -> None:
    from rebalance import YOLO

    small = {"imgsz": 64, "batch": 4, "workers": 0, "plots": False, "project": str(tmp_path), "name": "run"}

    def break_off(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise InterruptedError

    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_epoch_start", break_off)
    with pytest.raises(InterruptedError):
        model.train(data=str(data), obj_drop=0.5, epochs=2, **small)
    last = tmp_path / "run" / "weights" / "last.pt"
    again = YOLO("yolov8n.yaml")
    again.train(resume=str(last))
    assert type(again.trainer.model.criterion) is DetectionCriterion
    assert again.trainer.recipe["obj_drop"] == 0.5


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a script called yolo, and with the hook's line run at start-up."""
    folder = tmp_path_factory.mktemp("hooked")
    (folder / "sitecustomize.py").write_text(LINE, "utf-8")
    (folder / "yolo").write_text(
        "import sys\nfrom ultralytics.cfg import entrypoint\nsys.exit(entrypoint())\n", "utf-8"
    )
    return folder


def run(hooked: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(hooked), str(ROOT)))}
    command = [sys.executable, str(hooked / "yolo"), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


def test_yolo_trains_with_our_flags(hooked: Path, tmp_path: Path, data: Path) -> None:
    args = ["train", "model=yolov8n.yaml", f"data={data}", *SMALL, f"project={tmp_path}", "name=run"]
    done = run(hooked, tmp_path, *args, "loss=drop", "obj_drop=0.75")
    assert done.returncode == 0, done.stderr
    assert "rebalance: loss=drop head=stock" in done.stdout
    assert "obj_drop=0.75" in done.stdout
    assert "drop/obj_dropped" in (tmp_path / "run" / "results.csv").read_text("utf-8")


def test_yolo_trains_as_stock_without_them(hooked: Path, tmp_path: Path, data: Path) -> None:
    args = ["train", "model=yolov8n.yaml", f"data={data}", *SMALL, f"project={tmp_path}", "name=run"]
    done = run(hooked, tmp_path, *args)
    assert done.returncode == 0, done.stderr
    assert "rebalance" not in done.stdout
    assert "drop/" not in (tmp_path / "run" / "results.csv").read_text("utf-8")


def test_yolo_refuses_a_misspelt_flag_in_one_line(hooked: Path, tmp_path: Path, data: Path) -> None:
    done = run(hooked, tmp_path, "train", "model=yolov8n.yaml", f"data={data}", "obj_dorp=0.75")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rebalance: error: unknown flag obj_dorp=0.75 (did you mean obj_drop?)\n"
    assert not list(tmp_path.iterdir())
