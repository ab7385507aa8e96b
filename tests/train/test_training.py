"""Trainings of a few seconds through Ultralytics' own machinery: what they use, write, keep and refuse."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import ultralytics
from small_data import STILL, by_heart, make_dataset
from small_training import log, results, train
from torch import Tensor
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

import rebalance
from rebalance import YOLO
from rebalance.errors import ConfigError, DataError, ModelError
from rebalance.hosts import FAMILIES
from rebalance.hosts.host import objectives, remembered
from rebalance.hosts.state_dict import read_weights
from rebalance.hosts.ultralytics.criterion import AnchorCriterion, DetectionCriterion
from rebalance.hosts.ultralytics.model import AnchorDetect, AnchorDetectionModel
from rebalance.recipe import read
from rebalance.settings import SparsifyFlags
from rebalance.train.trainer import RebalanceTrainer

ROOT = Path(__file__).resolve().parents[2]
CLASSIC = ROOT.parent / "shared" / "weights" / "yolov5n_classic.pt"
DROP = {"loss": "drop", "obj_drop": 0.75, "box_drop": 0.5}
# Model and flags of each kind of head: with distances in bins, with anchors, and with two branches
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("yolov8n.yaml", DROP),
    "anchor": ("yolov5n.yaml", {**DROP, "head": "anchor"}),
    "two": ("yolo26n.yaml", DROP),
}


def weights(file: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = YOLO(file).model.float().state_dict()
    return state


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


class Run:
    """A finished training of one kind of head."""

    def __init__(self, head: str, data: Path, folder: Path) -> None:
        name, self.flags = HEADS[head]
        self.folder, self.data = folder, data
        self.logged: list[dict[str, float]] = []  # what loggers as TensorBoard's and MLflow's read after each epoch
        model = YOLO(name)
        model.add_callback("on_fit_epoch_end", lambda t: self.logged.append(dict(t.metrics)))
        with log() as self.lines:
            self.trainer = train(model, data, folder, **self.flags).trainer
        self.best, self.last = (folder / "run" / "weights" / f"{k}.pt" for k in ("best", "last"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {head: Run(head, data, tmp_path_factory.mktemp(head)) for head in HEADS}


@pytest.fixture(params=HEADS)
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


# What a training says and writes --------------------------------------------------------------------------------------


def test_the_loss_that_ran_is_printed_and_kept(runs: dict[str, Run]) -> None:
    classes = {"stock": "DetectionCriterion", "anchor": "AnchorCriterion", "two": "E2ELoss of two DetectionCriterion"}
    for head, name in classes.items():
        ran, kept = runs[head].trainer.loss_ran, "anchor" if head == "anchor" else "stock"
        expected = {"loss": "drop", "head": kept, "element": "bce", "weighting": "drop", "criterion": name}
        assert {k: ran[k] for k in expected} == expected
        drops = {"obj_drop": 0.75, "box_drop": 0.5, "neg_iou": 0.3, "drop_scope": "background"}
        drops |= {"drop_divisor": "kept", "drop_select": "random", "drop_warmup": 0}
        anchor = {"anchor_t": 4.0, "box_gain": 0.05, "obj_gain": 1.0, "cls_gain": 0.5}
        assert ran["settings"] == (drops | anchor if head == "anchor" else drops)
        assert ran["divisor"].endswith("what is left")
        assert f"rebalance: {ran['text']}" in runs[head].lines
        assert "obj_drop=0.75" in ran["text"]


def test_results_count_what_was_dropped(run: Run) -> None:
    rows = results(run.folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        steps = 2 * (2 if isinstance(run.trainer.model.criterion, E2ELoss) else 1)
        assert 0 <= 0.75 * row["drop/negatives"] - row["drop/obj_dropped"] < steps  # the floor of each step
        assert 0 <= 0.5 * row["drop/low_iou_matches"] - row["drop/box_dropped"] < steps
        assert row["drop/obj_dropped"] > 100
        assert row["drop/box_dropped"] > 1
        assert all(np.isfinite(value) for value in row.values())
        assert row["drop/pull"] > 0
        assert 0.2 < row["drop/push"] < 1
    ran = run.trainer.loss_ran
    assert {k: ran[k] for k in ("pull", "push")} == {k: rows[0][f"drop/{k}"] for k in ("pull", "push")}
    told = f"pull on positives x{ran['pull']:.2f}, push on negatives x{ran['push']:.2f} of the loss without dropping"
    assert [line for line in run.lines if "pull on" in line] == [
        f"rebalance: drop: obj_drop=0.75 drop_divisor=kept drop_select=random: {told}"
    ]
    counted = run.trainer.drop_counts
    assert {k: rows[-1][f"drop/{k}"] for k in counted} == counted


def test_loggers_get_what_results_have(run: Run) -> None:
    for row, logged in zip(results(run.folder), run.logged, strict=False):  # and once more after the last validation
        assert {k: logged[k] for k in logged if k.startswith("drop/")} == {k: row[k] for k in row if k[:5] == "drop/"}
        assert logged["drop/obj_dropped"] > 100
        assert "metrics/mAP50(B)" in logged


def test_columns_stay_in_place_where_metrics_are_those_of_the_last_epoch(tmp_path: Path) -> None:
    trainer = object.__new__(RebalanceTrainer)
    trainer.recipe = read({"head": "resobj", "obj_drop": 0.5}, FAMILIES[0])
    trainer.csv, trainer.train_time_start, trainer.metrics = tmp_path / "results.csv", 0.0, {"metrics/mAP50(B)": 0.0}
    for trainer.epoch in range(2):  # as without validation
        trainer.drop_counts = {"negatives": 8, "obj_dropped": 4 + trainer.epoch}
        trainer.step_means = {"pos_0": 0.5 + trainer.epoch / 8}
        trainer.pulls, trainer.diagnosis = {"pull": 1.5, "push": 0.5}, {}
        trainer.save_metrics({"train/cls_loss": 1.0, **trainer.metrics, "lr/pg0": 0.1})
    header, *rows = (line.split(",")[2:] for line in trainer.csv.read_text("utf-8").splitlines())
    drop = ["negatives", "obj_dropped", "low_iou_matches", "box_dropped", "pull", "push"]
    assert header == [
        "train/cls_loss", "metrics/mAP50(B)", "lr/pg0", *(f"drop/{name}" for name in drop), "resobj/pos_0"
    ]  # fmt: skip
    assert [row[-7:] for row in rows] == [
        ["8", "4", "0", "0", "1.5", "0.5", "0.5"], ["8", "5", "0", "0", "1.5", "0.5", "0.625"]
    ]  # fmt: skip
    last = dict(zip(header[-7:], [8, 5, 0, 0, 1.5, 0.5, 0.625], strict=True))
    assert trainer.metrics == {"metrics/mAP50(B)": 0.0, **last}


def test_validation_took_no_part_in_the_counts(run: Run) -> None:
    for objective in objectives(run.trainer.model.criterion):
        assert (objective.run.epoch, objective.run.step) == (1, 2)
    validated = objectives(run.trainer.ema.ema.criterion)
    assert all((objective.run.step, objective.counts) == (0, None) for objective in validated)


def test_names_of_the_losses(runs: dict[str, Run]) -> None:
    expected = {"stock": ["box", "cls", "dfl"], "anchor": ["box", "obj", "cls"], "two": ["box", "cls", "l1"]}
    for head, names in expected.items():
        for split in ("train", "val"):
            assert [f"{split}/{name}_loss" in results(runs[head].folder)[0] for name in names] == [True] * 3


def test_checkpoints_hold_no_class_of_ours_unless_the_head_is(run: Run) -> None:
    with zipped(run.best) as pickle:
        assert (b"rebalance.hosts" in pickle) == (run.flags.get("head") == "anchor")
        assert b"Criterion" not in pickle


@contextmanager
def zipped(file: Path) -> Iterator[bytes]:
    """The pickle within a checkpoint."""
    import zipfile

    with zipfile.ZipFile(file) as archive:
        yield archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_a_rate_of_zero_trains_as_stock_to_the_last_bit(data: Path, tmp_path: Path) -> None:
    train(ultralytics.YOLO("yolov8n.yaml"), data, tmp_path / "stock")
    train("yolov8n.yaml", data, tmp_path / "ours", loss="drop")
    train("yolov8n.yaml", data, tmp_path / "drop", obj_drop=0.75)
    stock, ours, drop = (weights(tmp_path / name / "run" / "weights" / "last.pt") for name in ("stock", "ours", "drop"))
    assert all(torch.equal(stock[k], ours[k]) for k in stock)
    assert any(not torch.equal(stock[k], drop[k]) for k in stock)
    columns = results(tmp_path / "stock")[0].keys()
    assert [{k: row[k] for k in columns if k != "time"} for row in results(tmp_path / "ours")] == [
        {k: v for k, v in row.items() if k != "time"} for row in results(tmp_path / "stock")
    ]


def test_stock_yolo_with_our_trainer(data: Path, tmp_path: Path) -> None:
    model = ultralytics.YOLO("yolo11n.yaml")
    train(model, data, tmp_path, trainer=rebalance.trainer(loss="drop", obj_drop=0.25), epochs=1)
    assert isinstance(model.trainer.model.criterion, DetectionCriterion)
    assert model.trainer.loss_ran["settings"]["obj_drop"] == 0.25
    assert results(tmp_path)[0]["drop/obj_dropped"] > 100
    with pytest.raises(ConfigError, match=r"unknown flag obj_dorp=0\.5 \(did you mean obj_drop\?\)"):
        rebalance.trainer(obj_dorp=0.5)


def test_a_training_limited_by_hours_has_no_warm_up_that_is_a_share_of_epochs(data: Path, tmp_path: Path) -> None:
    model, known = YOLO("yolov8n.yaml"), list[int]()
    model.add_callback("on_train_batch_start", lambda t: known.append(objectives(t.model.criterion)[0].run.epochs))
    train(model, data, tmp_path, loss="brl", epochs=40, time=1e-9)
    assert known == [0]  # one step: the time is over then
    assert model.trainer.loss_ran["settings"]["brl_warmup"] == 0


def test_without_a_flag_of_ours_training_is_stock(data: Path, tmp_path: Path) -> None:
    model = train("yolov8n.yaml", data, tmp_path, epochs=1)
    assert type(model.trainer) is ultralytics.models.yolo.detect.DetectionTrainer
    assert type(model.trainer.model.criterion) is v8DetectionLoss
    assert not any(name.startswith("drop/") for name in results(tmp_path)[0])


def test_flags_from_a_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("obj_drop: 0.5\nhead: anchor\nepochs: 1\n", "utf-8")
    model = YOLO("yolov5n.yaml")
    small = {"imgsz": 64, "batch": 4, "workers": 0, "plots": False, "project": str(tmp_path), "name": "run"}
    model.train(data=str(data), cfg=str(file), box_drop=0.25, **small)
    assert len(results(tmp_path)) == 1
    assert (model.trainer.recipe["head"], model.trainer.recipe["obj_drop"], model.trainer.recipe["box_drop"]) == (
        "anchor",
        0.5,
        0.25,
    )


# Models with the anchor head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "what"), [("yolov10n.yaml", "v10Detect"), ("rtdetr-l.yaml", "RTDETRDecoder")])
def test_models_that_cannot_have_the_anchor_head(name: str, what: str) -> None:
    with pytest.raises(ModelError, match=f"head=anchor needs a detection model .* ends in {what}"):
        AnchorDetectionModel(name, verbose=False)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov5n6.yaml", "yolov3-tiny.yaml", "yolov8n.yaml", "yolo26n.yaml"])
def test_models_that_can(name: str) -> None:
    model = AnchorDetectionModel(name, nc=3, verbose=False).eval()
    head = model.model[-1]
    with torch.no_grad():
        decoded, raw = model(torch.rand(1, 3, 64, 64))
    assert decoded.shape == (1, 7, sum(3 * int(64 / s) ** 2 for s in head.stride.tolist()))
    assert len(raw["maps"]) == head.nl
    assert model.stride.tolist() == head.stride.tolist()


# Resume ---------------------------------------------------------------------------------------------------------------

# Trains each kind of head for four epochs in a process of its own, which kills itself in the middle of the third
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import HEADS, train
from rebalance import YOLO

def die(trainer):
    if trainer.epoch == 2 and trainer.model.criterion is not None and trainer.tloss is not None:
        os.kill(os.getpid(), signal.SIGKILL)

for head, (name, flags) in HEADS.items():
    child = os.fork()
    if not child:
        model = YOLO(name)
        model.add_callback("on_train_batch_end", die)
        train(model, {data!r}, Path({folder!r}) / head, epochs=4, **flags)
        os._exit(1)
    print(head, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a killed run of each kind of head."""
    folder = tmp_path_factory.mktemp("killed")
    here = Path(__file__).parent
    code = KILLED.format(tests=str(here), data=str(data), folder=str(folder))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"), str(here)))}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env)
    assert [f"{head} {-signal.SIGKILL}" in done.stdout for head in HEADS] == [True] * 3, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_a_killed_run_resumes_with_its_loss_and_draws(killed: Path, head: str) -> None:
    folder = killed / head
    draws: list[tuple[Any, ...]] = []  # what the random numbers of each step depend on

    def record(trainer: Any) -> None:
        runs = [objective.run for objective in objectives(trainer.model.criterion)]
        draws.extend((*run.key, run.epoch, run.step) for run in runs)

    assert len(results(folder)) == 2
    gains: list[float] = []
    # the anchor run goes on in stock YOLO with our trainer, and with another rate, which a run that goes on keeps out
    other = {"trainer": rebalance.trainer(obj_drop=0.1)} if head == "anchor" else {}
    model = (ultralytics.YOLO if other else YOLO)(folder / "run" / "weights" / "last.pt")
    model.add_callback("on_train_epoch_start", lambda t: gains.append(getattr(t.model.criterion, "o2m", 0)))
    model.add_callback("on_train_batch_end", record)
    with log() as lines:
        model.train(resume=True, workers=0, **other)
    ignored = [line for line in lines if "resume keeps the checkpoint's flags; ignored: obj_drop" in line]
    assert len(ignored) == len(other)
    trainer = model.trainer
    expected = {"stock": DetectionCriterion, "anchor": AnchorCriterion, "two": E2ELoss}[head]
    assert type(trainer.model.criterion) is expected
    assert trainer.loss_ran["settings"]["obj_drop"] == 0.75
    assert trainer.loss_ran["settings"]["box_drop"] == 0.5
    assert f"rebalance: {trainer.loss_ran['text']}" in lines
    streams = (0, 1) if head == "two" else (0,)
    # seed 0, process 0, epochs 2 and 3 from 0, two steps each: as if the run had never stopped
    assert draws == [(0, 0, stream, epoch, step) for epoch in (2, 3) for step in (1, 2) for stream in streams]
    if head == "two":
        # from 0.8 to 0.1 in the three updates after the epochs
        assert gains == pytest.approx([0.8 - 0.7 * epoch / 3 for epoch in (2, 3)])
        assert all(
            type(b) is DetectionCriterion for b in (trainer.model.criterion.one2many, trainer.model.criterion.one2one)
        )
    rows = results(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all(row["drop/obj_dropped"] > 0 for row in rows)


# From one training to the next ----------------------------------------------------------------------------------------


def test_an_anchor_checkpoint_keeps_its_head_and_weights(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    before = weights(runs["anchor"].best)
    started: dict[str, Tensor] = {}
    model = YOLO(runs["anchor"].best)
    model.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    train(model, data, tmp_path, epochs=1, anchor_t=3.0, obj_drop=0.1)
    assert before.keys() == started.keys()
    assert all(torch.equal(before[k], started[k]) for k in before)
    assert type(model.trainer.model.criterion) is AnchorCriterion
    flags = model.trainer.recipe
    assert (flags["head"], flags["anchor_t"], flags["obj_drop"], flags["box_drop"]) == ("anchor", 3.0, 0.1, 0)


def test_an_anchor_checkpoint_on_other_classes_without_a_flag(runs: dict[str, Run], tmp_path: Path) -> None:
    model = train(runs["anchor"].best, make_dataset(tmp_path / "three", classes=3), tmp_path, epochs=1)
    head = model.trainer.model.model[-1]
    assert isinstance(head, AnchorDetect)
    assert (head.nc, head.no) == (3, 8)
    assert model.trainer.recipe["loss"] == "bce"  # a new training starts from the plain loss
    assert np.isfinite(results(tmp_path)[0]["train/obj_loss"])


def test_stock_training_from_a_checkpoint_forgets_its_loss(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    assert remembered(YOLO(runs["stock"].best).model)["flags"]["obj_drop"] == 0.75
    model = train(runs["stock"].best, data, tmp_path, epochs=1)
    assert type(model.trainer.model.criterion) is v8DetectionLoss
    assert remembered(YOLO(tmp_path / "run" / "weights" / "last.pt").model) == {}


def test_a_failed_training_leaves_the_model_as_it_was(runs: dict[str, Run], tmp_path: Path) -> None:
    model = YOLO("yolov8n.yaml")
    (tmp_path / "none.yaml").write_text("train: none\nval: none\nnames: {0: kind}\n", "utf-8")
    with pytest.raises(DataError, match=r"none\.yaml"):
        model.train(data=str(tmp_path / "none.yaml"), head="anchor", project=str(tmp_path))
    assert remembered(model.model) == {}


def test_stock_ultralytics_loads_and_predicts_without_this_package(runs: dict[str, Run], data: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        class Gone:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "rebalance":
                    print("ASKED FOR", name)
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Gone())
        from ultralytics import YOLO
        for file in {[str(runs["stock"].best), str(runs["two"].last)]!r}:
            model = YOLO(file)
            found = model.predict({str(data.parent / "images" / "val")!r}, imgsz=64, conf=0.0001, verbose=False)
            print("DETECTIONS", sum(map(len, found)), model.model.yaml["rebalance"]["flags"]["obj_drop"])
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=data.parent)
    assert done.returncode == 0, done.stderr
    assert "ASKED FOR" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("DETECTIONS")]
    assert [line[2] for line in lines] == ["0.75", "0.75"]
    assert all(int(line[1]) > 0 for line in lines)


def test_the_trainer_class_survives_the_way_to_other_processes(runs: dict[str, Run]) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")  # how the host starts its workers on several GPUs
    copy = cloudpickle.loads(cloudpickle.dumps(type(runs["anchor"].trainer)))
    assert dict(copy.given) == runs["anchor"].flags


def test_a_process_that_is_given_the_model_has_its_flags(run: Run) -> None:
    """On several GPUs the first process builds the model from a checkpoint, the others get it built."""
    given = {"model": str(run.best), "data": str(run.data), "workers": 0, "project": str(run.folder), "name": "given"}
    first, other = (type(run.trainer)(overrides=given) for _ in range(2))
    first.model = other.model = first.get_model(cfg=YOLO(run.best).model.yaml, verbose=False)
    other.setup_model()
    assert other.recipe == first.recipe == run.trainer.recipe


# Weights --------------------------------------------------------------------------------------------------------------


def loaded(data: Path, folder: Path, state: Path, **arguments: Any) -> tuple[Any, dict[str, Tensor], list[str]]:
    """Trainer, its weights at the start of training, and the log, of a training that starts from a state dict."""
    started: dict[str, Tensor] = {}
    model = YOLO("yolov5n.yaml")
    model.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    with log() as lines:
        train(model, data, folder, head="anchor", pretrained=str(state), epochs=1, **arguments)
    return model.trainer, started, lines


class Code:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_only_tensors_are_read(runs: dict[str, Run], tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Code(tmp_path / "ran")}, tmp_path / "code.pt")
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "more.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("no weights", "utf-8")
    for file in (*sorted(tmp_path.glob("*.pt")), runs["stock"].best):
        assert read_weights(file) is None
    assert not (tmp_path / "ran").exists()
    torch.save({"a": torch.ones(2)}, tmp_path / "tensors.pt")
    given = read_weights(tmp_path / "tensors.pt")
    assert given is not None
    assert list(given.tensors) == ["a"]


def test_a_state_dict_loads_by_name(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = {k: v.clone() for k, v in AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False).state_dict().items()}
    state["model.24.anchors"] *= 1.125
    torch.save(state, tmp_path / "all.pt")
    trainer, started, lines = loaded(data, tmp_path / "a", tmp_path / "all.pt", autoanchor=False)
    assert trainer.weights_matched == (len(state), len(state))
    assert all(torch.equal(started[k], state[k]) for k in state)
    assert any(f"{len(state)} of {len(state)} tensors of {tmp_path / 'all.pt'} match" in line for line in lines)

    state["model.24.m.0.weight"] = state["model.24.m.0.weight"][:18]  # fewer classes
    state["model.99.new"] = torch.ones(3)
    torch.save(state, tmp_path / "some.pt")
    trainer, started, lines = loaded(data, tmp_path / "b", tmp_path / "some.pt", autoanchor=False)
    assert trainer.weights_matched == (len(state) - 2, len(state))
    told = (
        "not: model.24.m.0.weight, model.99.new; it names no classes: their rows keep their order; new are model.24.m.0"
    )
    assert any(line.endswith(told) for line in lines)

    torch.save({"other.weight": torch.ones(3)}, tmp_path / "none.pt")
    with pytest.raises(
        ModelError,
        match=r"is of another architecture than model=yolov5n\.yaml: of the \d+ weights in its first layers 0 fit",
    ):
        loaded(data, tmp_path / "c", tmp_path / "none.pt")
    assert not (tmp_path / "c").exists()


@pytest.mark.skipif(not CLASSIC.is_file(), reason=f"no {CLASSIC}")
def test_original_yolov5_weights_load_but_for_their_classes(data: Path, tmp_path: Path) -> None:
    state = torch.load(CLASSIC, weights_only=True)
    trainer, started, _ = loaded(data, tmp_path, CLASSIC)
    assert trainer.weights_matched == (
        len(state) - 6,
        len(state),
    )  # weight and bias of three levels hang on the classes
    left = [k for k in state if k not in started or started[k].shape != state[k].shape]
    assert left == [f"model.24.m.{level}.{kind}" for level in range(3) for kind in ("weight", "bias")]
    assert all(torch.equal(started[k], state[k].float()) for k in state if k not in left and "anchors" not in k)


def test_a_checkpoint_of_the_host_is_pretrained_weights_too(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    before = weights(runs["stock"].best)
    started: dict[str, Tensor] = {}
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_start", lambda t: started.update(deepcopy(t.model.state_dict())))
    train(model, data, tmp_path, epochs=1, obj_drop=0.5, pretrained=str(runs["stock"].best))
    assert all(torch.equal(before[k], started[k]) for k in before)
    assert model.trainer.weights_matched is None


# Anchors --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that are long and flat, which the usual anchors do not fit; one has no height."""
    data = make_dataset(tmp_path_factory.mktemp("bars") / "bars", train=12, classes=1)
    for number, file in enumerate(sorted((data.parent / "labels" / "train").iterdir())):
        file.write_text(f"0 0.5 0.5 {0.7 + number / 50:.3f} {0.035 + number / 2000:.4f}\n", "utf-8")
    file.write_text("0 0.5 0.5 0.8 0\n", "utf-8")
    return data


def test_anchors_are_fitted_reported_and_kept(bars: Path, tmp_path: Path) -> None:
    with log() as lines:
        model = train("yolov5n.yaml", bars, tmp_path, head="anchor", epochs=1)
    line = next(line for line in lines if line.startswith("rebalance: anchors reach"))
    assert line.startswith("rebalance: anchors reach 0.0% of the labels (best possible recall); fitted")
    assert "they reach 91.7%" in line  # 11 of 12
    found = model.trainer.model.model[-1].anchors * torch.tensor([8.0, 16, 32]).view(-1, 1, 1)
    ratio = found[..., 0] / found[..., 1]
    assert ratio.min() > 4
    kept = YOLO(tmp_path / "run" / "weights" / "last.pt").model.model[-1]
    torch.testing.assert_close(kept.anchors.float(), model.trainer.model.model[-1].anchors, rtol=1e-3, atol=0)
    assert model.trainer.ema.ema.model[-1].anchors.equal(model.trainer.model.model[-1].anchors)


def test_anchors_stay_where_asked(bars: Path, tmp_path: Path) -> None:
    with log() as lines:
        model = train("yolov5n.yaml", bars, tmp_path, head="anchor", autoanchor=False, epochs=1)
    assert "rebalance: anchors reach 0.0% of the labels (best possible recall)" in lines
    assert model.trainer.model.model[-1].anchors[0, 0].tolist() == [10 / 8, 13 / 8]
    row = results(tmp_path)[0]
    assert row["train/box_loss"] == 0  # no label has an anchor
    assert row["train/obj_loss"] > 0


# Labels ---------------------------------------------------------------------------------------------------------------


def damage(data: Path) -> None:
    """Empty and missing label files, a corrupt line, an image of no bytes, and a class that never occurs."""
    images, labels = data.parent / "images" / "train", data.parent / "labels" / "train"
    (labels / "00.txt").write_text("", "utf-8")
    (labels / "01.txt").unlink()
    (labels / "02.txt").write_text("0 0.5 0.5 0.2\n", "utf-8")
    (labels / "03.txt").write_text("0 0.5 0.5 1.7 nan\n", "utf-8")
    (images / "04.jpg").write_bytes(b"")
    (data.parent / "labels" / "val" / "00.txt").unlink()
    data.write_text(data.read_text("utf-8") + "  2: never\n", "utf-8")


@pytest.mark.parametrize("head", HEADS)
def test_labels_that_are_empty_missing_or_corrupt(head: str, tiny_dataset: Path, tmp_path: Path) -> None:
    damage(tiny_dataset)
    name, flags = HEADS[head]
    model = train(name, tiny_dataset, tmp_path, **flags, batch=2, nbs=2, imgsz=96, multi_scale=0.33)
    found = {Path(lb["im_file"]).stem: len(lb["cls"]) for lb in model.trainer.train_loader.dataset.labels}
    assert found.keys() == {"00", "01", "05", "06", "07"}
    assert (found["00"], found["01"]) == (0, 0)
    assert all(np.isfinite(value) for row in results(tmp_path) for value in row.values())
    assert (tmp_path / "run" / "weights" / "best.pt").is_file()


@pytest.mark.parametrize("head", HEADS)
def test_no_labels_at_all(head: str, tiny_dataset: Path, tmp_path: Path) -> None:
    for file in (tiny_dataset.parent / "labels" / "train").iterdir():
        file.write_text("", "utf-8")
    name, flags = HEADS[head]
    with pytest.raises(DataError, match="no training image has a label"):
        train(name, tiny_dataset, tmp_path / "runs", **flags, epochs=1)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("head", ["stock", "anchor"])
def test_one_image_of_one_class(head: str, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "one", train=1, val=1, test=1, classes=1)
    name, flags = HEADS[head]
    model = train(name, data, tmp_path, **flags, rect=True)
    rows = results(tmp_path)
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert model.trainer.model.model[-1].nc == 1
    if head == "anchor":
        assert [row["train/cls_loss"] for row in rows] == [0, 0]  # objectness says it all
    assert len(model.predict(np.zeros((64, 64, 3), np.uint8), conf=0.0, imgsz=64, verbose=False)[0]) > 0


def test_images_that_are_not_square(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "wide")
    for file in (data.parent / "images").rglob("*.jpg"):
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (64, 32)))
    train("yolov5n.yaml", data, tmp_path, **HEADS["anchor"][1], rect=True)
    assert all(np.isfinite(value) for row in results(tmp_path) for value in row.values())


def test_a_sparsified_set_trains_on_the_surviving_labels_alone(tiny_dataset: Path, tmp_path: Path) -> None:
    from rebalance.data.derive import sparsify

    train("yolov5n.yaml", tiny_dataset, tmp_path / "full", head="anchor", epochs=1)  # leaves a cache of all labels
    before = {p: p.read_bytes() for p in (tiny_dataset.parent / "labels").rglob("*.txt")}
    sparsify(SparsifyFlags(data=str(tiny_dataset), protocol="extreme", out=str(tmp_path / "partial")))
    partial = tmp_path / "partial"
    model = train("yolov5n.yaml", partial / "data.yaml", tmp_path / "less", head="anchor", obj_drop=0.5, epochs=1)
    seen = {Path(lb["im_file"]).stem: lb for lb in model.trainer.train_loader.dataset.labels}
    assert len(seen) == 8
    for stem, label in seen.items():
        lines = (partial / "labels" / "train" / f"{stem}.txt").read_text("utf-8").splitlines()
        assert len(lines) == 1  # extreme leaves one box an image
        rows = np.array([[float(x) for x in line.split()] for line in lines])
        np.testing.assert_allclose(np.concatenate((label["cls"], label["bboxes"]), 1), rows, atol=1e-6)
    counted = sum(len(text.split(b"\n")) - 1 for path, text in before.items() if path.parent.name == "train")
    assert counted > 8  # there was something to withhold
    validation = model.trainer.test_loader.dataset.labels
    assert sum(len(lb["cls"]) for lb in validation) == sum(
        len(text.split(b"\n")) - 1 for path, text in before.items() if path.parent.name == "val"
    )
    assert {p: p.read_bytes() for p in (tiny_dataset.parent / "labels").rglob("*.txt")} == before


# Inference and export -------------------------------------------------------------------------------------------------


def outputs(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(images)
    return found[0] if isinstance(found, tuple) else found


def test_val_predict_and_fuse(run: Run, data: Path) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    plain = outputs(YOLO(run.best).model.float(), images)
    fused = YOLO(run.best)
    fused.model.float()
    fused.fuse()
    if "two" not in str(run.folder):  # its fused output goes through a top-k, whose ties may fall either way
        torch.testing.assert_close(outputs(fused.model, images), plain, rtol=1e-4, atol=1e-4)
    model = YOLO(run.best)
    metrics = model.val(data=str(data), imgsz=64, workers=0, plots=False, verbose=False, project=str(run.folder))
    assert 0 <= metrics.box.map50 <= 1
    assert metrics.box.map50 == pytest.approx(run.trainer.metrics["metrics/mAP50(B)"], abs=1e-3)
    found = model.predict(str(data.parent / "images" / "val"), imgsz=64, conf=0.0, verbose=False)
    assert len(found) == 4
    boxes = found[0].boxes
    assert len(boxes) > 0
    assert boxes.conf.le(1).all()
    assert boxes.xyxy.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["stock", "anchor"])
def test_exports_give_the_same_outputs(runs: dict[str, Run], data: Path, head: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    file = tmp_path / "best.pt"
    shutil.copy(runs[head].best, file)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = YOLO(file).model.float()

    script = YOLO(file).export(format="torchscript", imgsz=64, verbose=False)
    torch.testing.assert_close(torch.jit.load(script)(images), outputs(reference, images), rtol=1e-4, atol=1e-4)

    exported = YOLO(file).export(format="onnx", imgsz=64, verbose=False, dynamic=True)
    session = onnxruntime.InferenceSession(exported)
    for shape in ((1, 3, 64, 64), (2, 3, 96, 64)):
        images = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs(reference, images), rtol=1e-4, atol=1e-4)

    picture = str(data.parent / "images" / "val" / "00.jpg")
    options = {"imgsz": 64, "conf": 0.0001, "verbose": False}
    expected = YOLO(file).predict(picture, **options)[0].boxes.conf
    for name in (script, exported):  # as many boxes only where no two overlap by just the limit of the suppression
        found = YOLO(name, task="detect").predict(picture, **options)[0].boxes.conf
        torch.testing.assert_close(found[:5], expected[:5], rtol=1e-3, atol=1e-4)


def test_bfloat16_on_the_processor(run: Run) -> None:
    model = deepcopy(run.trainer.model).train()
    g = torch.Generator().manual_seed(0)
    batch = {"img": torch.rand(2, 3, 64, 64, generator=g), "batch_idx": torch.tensor([0.0, 0, 1])}
    batch |= {"cls": torch.tensor([[0.0], [1], [0]]), "bboxes": torch.rand(3, 4, generator=g) * 0.4 + 0.2}
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = model(batch)
    loss.sum().backward()
    assert all(value.isfinite() for value in items.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 100
    assert all(g.isfinite().all() for g in gradients)


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not CLASSIC.is_file(), reason=f"no {CLASSIC}")
def test_the_anchor_head_overfits_eight_real_images(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "aquarium"

    def easy(file: Path) -> bool:
        sides = [min(map(float, line.split()[3:5])) for line in file.read_text("utf-8").splitlines()]
        return 1 <= len(sides) <= 4 and min(sides) > 0.12

    chosen = [file for file in sorted((source / "labels" / "train").glob("*.txt")) if easy(file)][::3][:8]
    assert len(chosen) == 8
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (tmp_path / kind / "train").mkdir(parents=True)
        for file in chosen:
            shutil.copy(source / kind / "train" / f"{file.stem}{suffix}", tmp_path / kind / "train")
    names = ["fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray"]
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: {names}\n", "utf-8")
    by_heart(data)
    model = train(
        "yolov5n.yaml", data, tmp_path / "runs", head="anchor", pretrained=str(CLASSIC), epochs=13, imgsz=160, batch=2,
        nbs=2, optimizer="AdamW", lr0=0.001, warmup_epochs=0.25, obj_gain=4.0, cls_gain=2.0, val=False, amp=False,
        **STILL,
    )  # fmt: skip
    assert model.trainer.metrics["metrics/mAP50(B)"] > 0.9
