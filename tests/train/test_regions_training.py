"""A data set with regions trains with them, whether or not a flag of ours is given; what does not use them says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
from small_data import make_dataset
from small_training import log, train
from ultralytics.models.yolo.detect import DetectionTrainer

from rebalance import YOLO
from rebalance.cli import host_command
from rebalance.data.knowledge import Knowledge
from rebalance.errors import DataError
from rebalance.hosts.host import objectives
from rebalance.hosts.ultralytics.criterion import DetectionCriterion
from rebalance.train.admission import admit, source_of, spoken
from rebalance.train.regions import RegionDataset
from rebalance.train.trainer import RebalanceTrainer

SAID = """annotated:
  images/train/0[0-3].jpg: [kind0]
unknown_below: 9
unlabelled: skip
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of eight images one has no label file, four have one class labelled and one a region of its own."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    file = make_dataset(folder)
    (folder / "labels/train/07.txt").unlink()
    (folder / "regions/train").mkdir(parents=True)
    (folder / "regions/train/05.txt").write_text("background 1 0.25 0.5 0.5 1\n")
    file.write_text(file.read_text("utf-8") + SAID, "utf-8")
    return file


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str], Path]:
    folder = tmp_path_factory.mktemp("trained")
    with log() as lines:
        model = train("yolov8n.yaml", data, folder, mixup=0.5, multi_scale=0.3, close_mosaic=1, epochs=2)
    return model, lines, folder


def test_no_flag_is_needed_and_the_run_says_and_keeps_what_is_known(trained: tuple[Any, list[str], Path]) -> None:
    model, lines, _ = trained
    trainer = model.trainer
    assert isinstance(trainer, RebalanceTrainer)
    counts = {
        "images": 7, "with_regions": 7, "unknown": 4, "background": 1, "unknown_below": 9, "skipped": 1,
    }  # fmt: skip
    assert trainer.loss_ran["regions"] == counts
    said = [line for line in lines if line.startswith("rebalance: regions")]
    assert said == [
        "rebalance: regions in 7 of 7 images: 4 unknown and 1 background regions, objects below 9 pixels are unknown, "
        "1 images without a label file are left out"
    ]


def test_the_criterion_had_the_regions_of_its_batch(trained: tuple[Any, list[str], Path]) -> None:
    model = trained[0]
    criterion = model.trainer.model.criterion
    assert isinstance(criterion, DetectionCriterion)
    (objective,) = objectives(criterion)
    assert objective.regions is not None
    assert objective.regions.most >= 1
    assert objective.regions.classes.shape[1] == 2
    assert isinstance(model.trainer.train_loader.dataset, RegionDataset)
    assert isinstance(model.trainer.test_loader.dataset, RegionDataset)  # for the loss in validation


def test_the_checkpoint_is_one_of_the_host(trained: tuple[Any, list[str], Path], data: Path) -> None:
    last = trained[2] / "run" / "weights" / "last.pt"
    assert ultralytics.YOLO(last).val(data=str(data), imgsz=64, workers=0, plots=False, verbose=False)
    assert admit(YOLO(last), {}, {"data": str(make_plain(data))}).recipe is None


def make_plain(data: Path) -> Path:
    """The same images, nothing said of them."""
    folder = data.parent.parent / "plain"
    return folder / "data.yaml" if folder.exists() else make_dataset(folder)


def test_another_loss_heads_and_torchvision_s_detectors_have_them_too(data: Path) -> None:
    for model, flags in (("yolov8n.yaml", {"loss": "drop", "obj_drop": 0.5}), ("yolov5n.yaml", {"head": "anchor"})):
        assert admit(YOLO(model), flags, {"data": str(data)}).recipe is not None
    several = admit(YOLO("yolov8n.yaml"), {}, {"data": [str(make_plain(data)), str(data)]})
    assert several.recipe is not None
    assert admit(YOLO("yolov8n.yaml"), {}, {"data": str(make_plain(data))}).recipe is None
    assert spoken(source_of(make_plain(data))) is None
    assert source_of("no such file.yaml") is None


def test_what_does_not_use_them_says_so(data: Path) -> None:
    with log() as lines:
        assert admit(YOLO("yolov8n-seg.yaml"), {}, {"data": str(data)}).recipe is None
        assert admit(YOLO("yolov8n.yaml"), {}, {"data": str(data)}, DetectionTrainer).recipe is None
    told = [line.partition(f"rebalance: the regions of data={data} are not used: ")[2] for line in lines]
    assert list(filter(None, told)) == [
        "they are for detection, and yolov8n-seg.yaml is a segment model",
        "trainer=DetectionTrainer does not know them",
    ]  # fmt: skip


def test_a_training_that_began_before_they_were_there_goes_on_without_and_says_so(data: Path) -> None:
    for file, expected in ((data, 1), (make_plain(data), 0), (data.with_name("gone.yaml"), 0)):
        model = YOLO("yolov8n.yaml")
        model.ckpt = {"epoch": 1, "optimizer": {}, "train_args": {"data": str(file)}}
        with log() as lines:
            assert admit(model, {}, {"resume": True}).recipe is None
        told = f"the regions of data={data} are not used: the training began without any"
        assert sum(told in line for line in lines) == expected


def test_tuning_uses_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own tuner trains what says nothing of its labels, ours the others."""
    used: list[str] = []

    def tuner(name: str) -> type[Any]:
        class Nothing:
            def __init__(self, *_: Any, **__: Any) -> None:
                used.append(name)

            def __call__(self, iterations: int) -> int:
                return iterations

        return Nothing

    monkeypatch.setattr("ultralytics.engine.tuner.Tuner", tuner("host's"))
    monkeypatch.setattr("rebalance.train.api.RebalanceTuner", tuner("ours"))
    monkeypatch.setattr("ultralytics.utils.tuner.run_ray_tune", lambda model, iterations, **_: iterations)
    for file, ray in ((data, False), (data, True), (make_plain(data), False)):
        assert YOLO("yolov8n.yaml").tune(use_ray=ray, iterations=3, data=str(file)) == 3
    assert used == ["ours", "host's"]


def test_the_command_says_so_of_other_models(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    cfg = tmp_path / "mine.yaml"
    cfg.write_text(f"data: {data}\n", "utf-8")
    monkeypatch.setattr("ultralytics.models.RTDETR", lambda *args, **_: made.append(args))
    for unheard, expected in (({"data": str(data)}, 1), ({"cfg": str(cfg)}, 1), ({}, 0), (None, 0)):
        with log() as lines, host_command._bound({}, False, unheard):
            ultralytics.RTDETR("rtdetr-l.yaml")
        told = f"the regions of data={data} are not used: only YOLO detection models, not rtdetr-l.yaml"
        assert sum(told in line for line in lines) == expected
        monkeypatch.setattr("ultralytics.RTDETR", lambda *args, **_: None, raising=False)
    assert made == [("rtdetr-l.yaml",)] * 3


def test_a_region_file_that_is_wrong_stops_the_training_before_anything_is_made(tmp_path: Path) -> None:
    file = make_dataset(tmp_path / "tiny")
    (tmp_path / "tiny/regions/train").mkdir(parents=True)
    (tmp_path / "tiny/regions/train/03.txt").write_text("unknown 0 0.5 0.5 0.2 0.2\nunknwon 0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"03\.txt.*line 2.*unknwon") as caught:
        train("yolov8n.yaml", file, tmp_path / "out")
    assert "\n" not in str(caught.value)
    (tmp_path / "tiny/regions/test").mkdir()
    (tmp_path / "tiny/regions/test/01.txt").write_text("unknwon 0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"01\.txt.*unknwon"):
        YOLO("yolov8n.yaml").val(data=str(file), split="test", project=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_interrupted_goes_on_with_the_regions(
    trained: tuple[Any, list[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):  # noqa: N818 - it is none
        pass

    def stop(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Stop

    model, read, real = YOLO("yolov8n.yaml"), list[Any](), Knowledge.__init__
    model.add_callback("on_train_epoch_start", stop)
    monkeypatch.setattr(Knowledge, "__init__", lambda self, source: read.append(source) or real(self, source))
    with pytest.raises(Stop):
        train(model, data, tmp_path, mixup=0.5, multi_scale=0.3, close_mosaic=1)
    assert len(read) == 1  # handed on from the check of the start to the training
    again = YOLO(tmp_path / "run/weights/last.pt")
    again.train(resume=True)
    assert again.trainer.loss_ran["regions"]["unknown"] == 4
    whole = torch.load(trained[2] / "run/weights/last.pt", weights_only=False)["model"].state_dict()
    resumed = torch.load(tmp_path / "run/weights/last.pt", weights_only=False)["model"].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
