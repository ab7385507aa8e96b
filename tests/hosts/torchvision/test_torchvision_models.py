"""torchvision's detectors as Ultralytics' models: shapes, weights, training, checkpoints, validation and export."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objectives import recipe_of
from small_data import STILL, by_heart, make_dataset
from small_training import log
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights, retinanet_resnet50_fpn
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.misc import FrozenBatchNorm2d
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from rebalance import YOLO
from rebalance.errors import ModelError
from rebalance.hosts.torchvision import published
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.zoo import ZOO

SMALL = {"imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "verbose": False, "device": "cpu"}
SIZE, EPOCHS, RATE = 96, 25, 0.001  # of the training that overfits: eight images, eight times an epoch


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty hub folder."""

    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise AssertionError(f"a test would fetch {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(published, "ONLINE", False)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


def tiny(nc: int = 2) -> TorchvisionModel:
    torch.manual_seed(0)
    return TorchvisionModel("retinanet_tiny", nc=nc, verbose=False)


# Every detector -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_every_detector_has_a_loss_that_reaches_every_parameter_and_predicts(name: str) -> None:
    """No parameter is unused, so that several processes can train together."""
    torch.manual_seed(0)
    model: Any = TorchvisionModel(name, nc=3, verbose=False).train()
    model.args = get_cfg(overrides={"imgsz": 64})
    if name.startswith("fasterrcnn"):  # fewer proposals, for the time it takes
        model.model[-1].numbers = model.model[-1].numbers._replace(after=(60, 60), rois=32)
    images = torch.rand(2, 3, 64, 96)
    batch = {"batch_idx": torch.tensor([0.0, 1]), "cls": torch.tensor([[2.0], [0]])}
    batch["bboxes"] = torch.tensor([[0.5, 0.5, 0.5, 0.6], [0.3, 0.4, 0.4, 0.3]])
    criterion = model.criterion_of(recipe_of({}, host=ZOO[name].head.sites.name), 0)
    loss, items = criterion(model(images), batch)
    loss.sum().backward()
    assert loss.shape == (len(items),)
    assert loss.isfinite().all()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.no_grad():
        found, raw = model(images)
        assert found.shape[:2] == (2, 4 + 3)
        assert 0 <= found[:, 4:].min() <= found[:, 4:].max() <= 1
        assert (found[:, 4:] > 0).sum(1).max() <= 1  # one class a candidate
        assert criterion((found, raw), batch)[0].isfinite().all()
    assert (model.nc, len(model.names)) == (3, 3)
    assert len(model.model) == 3
    assert model.info()[1] == sum(p.numel() for p in model.parameters())


def test_the_tiny_one_is_tiny() -> None:
    layers, parameters, _, flops = tiny(80).info(imgsz=256)
    assert parameters < 2e6
    assert flops < 2.5  # billions of operations, at 256 px
    assert layers > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cfg": "retinanet_resnet5_fpn"}, "model=retinanet_resnet5_fpn is not one of .*mean retinanet_resnet50_fpn"),
        ({"cfg": "retinanet_tiny", "ch": 1}, "retinanet_tiny takes images of 3 channels; the data set has 1"),
    ],
)
def test_models_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TorchvisionModel(**arguments)


def test_fusing_changes_nothing() -> None:
    model = tiny().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.normal_()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)[1]["logits"]
        after = model.fuse(verbose=False)(images)[1]["logits"]
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


# Weights --------------------------------------------------------------------------------------------------------------


def frozen_retinanet() -> RetinaNet:
    """torchvision's model as it is when its weights come from COCO: frozen normalisation, ε 0; random numbers."""
    torch.manual_seed(1)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None).eval()
    body = model.backbone.body
    for parent in list(body.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(layer.num_features, eps=0.0))
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.weight.uniform_(0.2, 0.6)
            layer.bias.normal_(std=0.1)
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    body.bn1.running_var[:4] = torch.tensor([1e-7, 5e-6, 1e-5, 2e-5])  # below our ε of 1e-5, and about it
    body.bn1.weight[:4] = 1e-3
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.02)
    return model


@pytest.fixture(scope="module")
def theirs() -> RetinaNet:
    return frozen_retinanet()


def outputs(model: RetinaNet, images: Tensor) -> dict[str, Tensor]:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (model.transform.image_mean, model.transform.image_std))
    found: dict[str, Tensor] = model.head(list(model.backbone((images - mean) / std).values()))
    return found


def kept_categories() -> list[int]:
    names = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [i for i, name in enumerate(names) if name not in ("__background__", "N/A")]


@pytest.mark.parametrize("nc", [80, 91, 5])
def test_coco_weights_give_torchvisions_numbers(theirs: RetinaNet, nc: int) -> None:
    """Kept by torch's hub, as if fetched before. Of 91 categories 80 have objects; 5 classes start anew."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    state = theirs.state_dict()
    torch.save(state, folder / Path(RetinaNet_ResNet50_FPN_Weights.COCO_V1.url).name)
    model = TorchvisionModel("retinanet_resnet50_fpn", nc=nc, verbose=False)
    copied, of = published.start(model, "coco") or (0, 0)
    assert of == len(state)
    assert copied == (of if nc > 5 else of - 2)  # all but the last layer of the classes
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        raw, expected = model.eval()(images)[1], outputs(theirs, images)
    torch.testing.assert_close(raw["deltas"], expected["bbox_regression"], rtol=1e-4, atol=1e-5)
    if nc > 5:
        logits = expected["cls_logits"][..., kept_categories() if nc == 80 else slice(None)]
        torch.testing.assert_close(raw["logits"], logits, rtol=1e-4, atol=1e-4)
    if nc == 80:
        assert (model.names[0], model.names[79]) == ("person", "toothbrush")


def test_a_file_of_torchvision_loads_by_name(theirs: RetinaNet, tmp_path: Path) -> None:
    """A whole detector, and a classifier's backbone; and what was copied is told."""
    model = TorchvisionModel("retinanet_resnet50_fpn", nc=91, verbose=False)
    torch.save(theirs.state_dict(), tmp_path / "whole.pth")
    with log() as lines:
        assert published.start(model, str(tmp_path / "whole.pth")) == (len(theirs.state_dict()),) * 2
    assert "match by name and shape" in lines[-1]
    body = resnet50(weights=None)
    torch.save(body.state_dict(), tmp_path / "body.pth")
    copied = published.start(model, str(tmp_path / "body.pth"))
    assert copied == (len(body.state_dict()) - 2, len(body.state_dict()))  # all but fc
    assert torch.equal(model.model[0].layer4[2].conv3.weight, body.layer4[2].conv3.weight)


def test_the_published_file_is_known_by_its_content(
    theirs: RetinaNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is called: its categories are named, and its normalisation has no ε."""
    file = tmp_path / "mine.pth"
    torch.save(theirs.state_dict(), file)
    row = ZOO["retinanet_resnet50_fpn"]
    url = f"https://example.org/retinanet-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth"
    published_as = SimpleNamespace(url=url, meta=RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta)
    monkeypatch.setitem(ZOO, "retinanet_resnet50_fpn", row._replace(coco=published_as))
    model = TorchvisionModel("retinanet_resnet50_fpn", nc=2, verbose=False)
    model.names = {0: "Dog", 1: "scooter"}
    with log() as lines:
        published.start(model, str(file))
    assert "1 of 2 classes keep their rows by name; new: scooter" in lines[-1]
    dog = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"].index("dog")
    ours, its = (x.cls_logits.weight.view(9, -1, 256, 3, 3) for x in (
        model.model[-1].layers.classification_head, theirs.head.classification_head
    ))  # fmt: skip
    assert torch.equal(ours[:, 0], its[:, dog])
    assert float(model.model[0].bn1.running_var[3]) == pytest.approx(1e-5, rel=1e-3)


def test_the_background_that_torchvision_counts_is_left_out(tmp_path: Path) -> None:
    source = TorchvisionModel("retinanet_tiny", nc=4, verbose=False)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    model = tiny(3)
    with log() as lines:
        count = len(source.state_dict())
        assert published.start(model, str(tmp_path / "x.pth")) == (count, count)
    assert lines[-1].endswith("of its classes the first is taken for background, and left out")
    ours, its = (x.model[-1].layers.classification_head.cls_logits.weight for x in (model, source))
    assert torch.equal(ours.view(9, 3, *ours.shape[1:]), its.view(9, 4, *its.shape[1:])[:, 1:])


def test_a_detector_that_would_enter_in_part_is_refused(tmp_path: Path) -> None:
    """As the file of a version whose sixth level is made of other channels: two of five levels would be random."""
    state = dict(tiny().state_dict())
    state["model.1.extra_blocks.conv.weight"] = torch.zeros(64, 256, 3, 3)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        ModelError, match=r"is another detector than retinanet_tiny: 1 of its \d+ tensors .*conv\.weight"
    ):
        published.start(tiny(), str(tmp_path / "other.pth"))


def test_a_state_dict_of_our_own_and_of_yolov5(tmp_path: Path) -> None:
    model, other = tiny(), tiny()
    for p in other.parameters():
        nn.init.normal_(p)
    torch.save(other.state_dict(), tmp_path / "ours.pt")
    assert published.start(model, str(tmp_path / "ours.pt")) == (len(other.state_dict()),) * 2
    assert torch.equal(model.model[2].layers.regression_head.bbox_reg.weight,
                       other.model[2].layers.regression_head.bbox_reg.weight)  # fmt: skip
    classic = DetectionModel("yolov5n.yaml", verbose=False).state_dict()
    torch.save(classic, tmp_path / "yolov5n.pt")
    backbone = [name for name in classic if int(name.split(".")[1]) < 10]
    assert published.start(model, str(tmp_path / "yolov5n.pt")) == (len(backbone), len(classic))
    assert torch.equal(model.model[0][0].conv.weight, classic["model.0.conv.weight"])


def test_it_says_that_it_starts_from_scratch() -> None:
    for name, pretrained, text in (
        ("retinanet_tiny", False, "rebalance: retinanet_tiny starts from scratch (pretrained=False)"),
        ("retinanet_tiny", True, "rebalance: retinanet_tiny starts from scratch: it has no weights online; "),
        ("retinanet_resnet50_fpn", True, "resnet50-0676ba61.pth could not be fetched; pretrained=<file> takes a "),
    ):
        model = TorchvisionModel(name, nc=2, verbose=False)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with log() as lines:
            assert published.start(model, pretrained) is None
        assert text in lines[-1]
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_torn_file_in_the_hub_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(torch.hub.get_dir()) / "checkpoints" / "resnet50-0676ba61.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04 half of it")
    with log() as lines:
        assert published.start(TorchvisionModel("retinanet_resnet50_fpn", nc=2, verbose=False), True) is None
    assert "starts from scratch" in lines[-1]


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("retinanet_tiny", "coco", "pretrained=coco: there are no weights of retinanet_tiny trained on COCO; "),
        ("retinanet_resnet50_fpn", "coco", "pretrained=coco: https://.*pth cannot be fetched without internet; "),
        ("retinanet_tiny", "nowhere.pth", "pretrained=nowhere.pth: no such file, and not coco"),
    ],
)
def test_weights_that_cannot_be_had(name: str, pretrained: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        published.start(TorchvisionModel(name, nc=2, verbose=False), pretrained)


def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": [1, 2]}, tmp_path / "list.pt")
    with pytest.raises(ModelError, match="is not a state dict of tensors"):
        published.start(tiny(), str(tmp_path / "list.pt"))
    torch.save({"foreign": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(
        ModelError, match=r"is of another architecture than model=retinanet_tiny: .* 0 fit by name and shape"
    ):
        published.start(tiny(), str(tmp_path / "other.pt"))


# Training -------------------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - it is no error
    pass


def test_an_interrupted_run_goes_on_with_its_loss(tiny_dataset: Path, tmp_path: Path) -> None:
    started: list[int] = []

    def stop(trainer: Any) -> None:
        started.append(trainer.epoch)
        if trainer.epoch == 1 and len(started) == 2:
            raise Stopped

    yolo = YOLO("retinanet_tiny")
    yolo.add_callback("on_train_epoch_start", stop)
    options = {"data": str(tiny_dataset), "epochs": 3, "project": str(tmp_path), "name": "run", "freeze": 1, **SMALL}
    with log() as lines, pytest.raises(Stopped):
        yolo.train(loss="ghm", **options)
    trainer = yolo.trainer
    said = "rebalance: loss=bce+ghm head=stock (cross-entropy with gradient harmonizing (GHM-C)): RetinaNetCriterion, "
    assert any(line.startswith(said) and "divisor: candidates of the batch" in line for line in lines)
    frozen = {k: p.requires_grad for k, p in trainer.model.named_parameters()}
    assert all(kept == (not k.startswith("model.0.")) for k, kept in frozen.items())

    again = YOLO(str(tmp_path / "run" / "weights" / "last.pt"))
    again.add_callback("on_train_epoch_start", lambda trainer: started.append(trainer.epoch))
    with log() as lines:
        again.train(resume=True)
    assert started == [0, 1, 1, 2]
    assert any(line.startswith(said) for line in lines)
    assert again.trainer.recipe["loss"] == "bce+ghm"
    rows = (tmp_path / "run" / "results.csv").read_text("utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    names = rows[0].split(",")
    assert {"train/cls_loss", "train/box_loss", "val/cls_loss", "val/box_loss"} <= set(names)
    assert again.trainer.model.criterion.objective.run.kept["average"] is not None


@pytest.mark.parametrize("loss", ["focal", "brl", "ghm", "focal+drop"])
def test_bfloat16_is_finite(loss: str) -> None:
    """Ultralytics' own mixed precision is for GPUs; this is the same on a CPU."""
    model: Any = tiny().train()
    model.args = get_cfg(overrides={"imgsz": 64})
    given = {"loss": loss} | ({"obj_drop": 0.5} if loss.endswith("drop") else {})
    batch = {"batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.6]])}
    with torch.autocast("cpu", torch.bfloat16):
        value = model.criterion_of(recipe_of(given, host="retinanet"), 0)(model(torch.rand(2, 3, 64, 64)), batch)
    value[0].sum().backward()
    assert value[0].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


# One that has learnt something ----------------------------------------------------------------------------------------


class Learnt:
    """`retinanet_tiny` after it has seen eight images for long enough."""

    def __init__(self, folder: Path) -> None:
        data = make_dataset(folder / "data", size=SIZE, val=200)
        self.data, self.eight = data, Path(shutil.copy(data, data.with_name("eight.yaml")))
        self.images = by_heart(self.eight)
        yolo = YOLO("retinanet_tiny")
        yolo.train(
            data=str(self.eight), epochs=EPOCHS, optimizer="AdamW", lr0=RATE, warmup_epochs=0, seed=0, val=False,
            project=str(folder), name="run", **{**SMALL, **STILL, "imgsz": SIZE, "batch": 8, "nbs": 8},
        )  # fmt: skip
        self.folder, self.trained, self.last = folder, yolo, folder / "run" / "weights" / "last.pt"


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    return Learnt(tmp_path_factory.mktemp("learnt"))


def validate(learnt: Learnt, data: Path, folder: Path, **more: Any) -> Any:
    options = {**SMALL, "imgsz": SIZE, "data": str(data), "project": str(folder), "name": "val"}
    return YOLO(str(learnt.last)).val(**{**options, **more})


@pytest.mark.slow
def test_overfits_eight_images(learnt: Learnt, tmp_path: Path) -> None:
    assert validate(learnt, learnt.eight, tmp_path).box.map50 > 0.9


@pytest.mark.slow
def test_its_checkpoint_predicts_the_same(learnt: Learnt) -> None:
    options = {"imgsz": SIZE, "verbose": False, "conf": 0.05}
    first = learnt.trained.predict(learnt.images, **options)
    again = YOLO(str(learnt.last)).predict(learnt.images, **options)
    for a, b in zip(first, again, strict=True):
        assert len(a.boxes)
        assert torch.equal(a.boxes.data, b.boxes.data)
    assert first[0].names == {0: "kind0", 1: "kind1"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_exports_give_equal_outputs(learnt: Learnt, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    copy = tmp_path / "model.pt"
    copy.write_bytes(learnt.last.read_bytes())
    more = {"simplify": False} if form == "onnx" else {}
    file = YOLO(str(copy)).export(format=form, imgsz=SIZE, verbose=False, **more)
    options = {"imgsz": SIZE, "verbose": False, "conf": 0.05, "rect": False}
    for image in learnt.images[:3]:
        mine = YOLO(str(copy)).predict(image, **options)[0].boxes.data
        other = YOLO(file, task="detect").predict(image, **options)[0].boxes.data
        assert len(mine)
        torch.testing.assert_close(other, mine, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_a_checkpoint_is_a_start_for_other_classes(learnt: Learnt, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "three", classes=3)
    yolo = YOLO(str(learnt.last))
    with log() as lines:
        yolo.train(data=str(data), epochs=1, project=str(tmp_path), name="run", val=False, **SMALL)
    assert yolo.trainer.model.nc == 3
    assert any("; 2 of 3 classes keep their rows by name; new: kind2" in line for line in lines)


@pytest.mark.slow
def test_map_equals_pycocotools(learnt: Learnt, tmp_path: Path) -> None:
    """The same detections, on images that it was not trained on: neither 0 nor 1.

    Both average the precision at 101 recalls; between two recalls that were reached Ultralytics interpolates, COCO
    takes the precision at the next one. With n labels of a class that is a difference of the order of 1/n, so there are
    some two hundred here.
    """
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed (requirements-upstream.txt)")
    from pycocotools.cocoeval import COCOeval

    metrics = validate(learnt, learnt.data, tmp_path, rect=False)  # no border round the images, as in prediction
    options = {"imgsz": SIZE, "verbose": False, "conf": 0.001, "iou": 0.7, "max_det": 300}  # the validator's
    files = sorted((learnt.data.parent / "images" / "val").iterdir())
    found = [
        {"image_id": index, "category_id": int(kind) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for index, result in enumerate(YOLO(str(learnt.last)).predict([str(file) for file in files], **options))
        for x1, y1, x2, y2, score, kind in result.boxes.data.double().tolist()
    ]
    (tmp_path / "truth.json").write_text(json.dumps(to_coco(learnt.data.parent, "val")), "utf-8")
    labels = coco.COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(labels, labels.loadRes(found), "bbox")
    evaluation.params.maxDets = [1, 10, 300]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 2]  # (thresholds, recalls, classes)
    assert 0.05 < metrics.box.map50 < 0.98
    assert metrics.box.map50 == pytest.approx(precision[0].mean(), abs=0.005)
    assert metrics.box.map == pytest.approx(precision.mean(), abs=0.005)


def to_coco(folder: Path, split: str) -> dict[str, Any]:
    """The labels of a split in COCO's form; class k is category k + 1."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for index, file in enumerate(sorted((folder / "images" / split).iterdir())):
        images.append({"id": index, "file_name": file.name, "width": SIZE, "height": SIZE})
        for line in (folder / "labels" / split / f"{file.stem}.txt").read_text("utf-8").splitlines():
            kind, *rest = line.split()
            x, y, w, h = (float(value) * SIZE for value in rest)
            boxes.append(
                {
                    "id": len(boxes) + 1, "image_id": index, "category_id": int(kind) + 1, "iscrowd": 0, "area": w * h,
                    "bbox": [x - w / 2, y - h / 2, w, h],
                }
            )  # fmt: skip
    return {"images": images, "annotations": boxes, "categories": [{"id": 1}, {"id": 2}]}
