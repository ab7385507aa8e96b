"""What is found in unknown regions counts neither as right nor as wrong: by hand, and as COCO has it for crowds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import ultralytics
from faster_coco_eval import COCO, COCOeval_faster
from small_data import make_dataset
from small_training import log
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.metrics import DetMetrics, box_iou

from rebalance import YOLO
from rebalance.cli import host_command
from rebalance.errors import ConfigError
from rebalance.experiments import evaluate as module
from rebalance.experiments.precision import Seen, coco_precision, voc_precision
from rebalance.experiments.record import Config
from rebalance.match.regions import RegionBatch, region_batch
from rebalance.train.unjudged import UnjudgedConfusion, UnjudgedMetrics, unknown_detections
from rebalance.train.validator import Validator

SIZE = 64
HOST = {"imgsz": SIZE, "device": "cpu", "workers": 0, "batch": 1}
BORDER = 16  # pixels that the host puts around an image of 64 in validation
PERFECT = 0.995  # the host's AP of a detector without fault

Row = tuple[int, float, float, float, float, float]  # class, score and corners in pixels
# In the first image a label of each class, and below them, at the left, what is no label: it is more certain
FOUND: dict[int, list[Row]] = {
    0: [(0, 0.95, 4, 40, 20, 56), (0, 0.9, 8, 8, 24, 24), (1, 0.95, 4, 40, 20, 56), (1, 0.9, 40, 8, 56, 24)]
}


class Fixed(Validator):
    """Finds what the test says."""

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        rows = torch.tensor(FOUND.get(int(self.batch_i or 0), [])).view(-1, 6)  # type: ignore[call-overload]
        return [{"bboxes": rows[:, 2:] + BORDER, "conf": rows[:, 1], "cls": rows[:, 0], "extra": rows[:, 6:]}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that nobody has trained; what it finds is what the test says."""
    model: Any = DetectionModel("yolov5n.yaml", nc=2, verbose=False)
    model.args, model.names = vars(get_cfg(overrides={"imgsz": SIZE})), {0: "kind0", 1: "kind1"}
    made = YOLO("yolov5n.yaml")
    made.model = model
    file = tmp_path_factory.mktemp("weights") / "runs" / "weights" / "last.pt"
    file.parent.mkdir(parents=True)
    made.save(file)
    return file


def data_of(folder: Path, *, keys: str = "", region: str = "") -> Path:
    """Two test images of 64 pixels, labels in the first."""
    file = make_dataset(folder)
    labels = folder / "labels/test"
    for label in labels.glob("*.txt"):
        label.write_text("")
    (labels / "00.txt").write_text("0 0.25 0.25 0.25 0.25\n1 0.75 0.25 0.25 0.25\n")
    file.write_text(file.read_text("utf-8") + keys, "utf-8")
    if region:
        (folder / "regions/test").mkdir(parents=True)
        (folder / "regions/test/00.txt").write_text(region)
    return file


REGION = "unknown 0 0.25 0.75 0.5 0.5\n"  # of class 0, the lower left quarter


@pytest.mark.parametrize(
    ("said", "left_out"),
    [
        ({"region": REGION}, [0]), ({"region": "unknown * 0.25 0.75 0.5 0.5\n"}, [0, 1]),
        ({"region": "unknown 0 0.75 0.75 0.5 0.5\n"}, []),  # elsewhere
        ({"region": "unknown 0 0.05 0.75 0.1 0.5\n"}, []),  # 2.4 of the 16 pixels
        ({"region": REGION + "background 0 0.25 0.75 0.5 0.5\n"}, []),  # the later counts
        ({"keys": "annotated:\n  images/test: [kind0]\n"}, [1]),
        ({"keys": "unknown_below: 17\n"}, [0, 1]), ({"keys": "unknown_below: 15\n"}, []),
    ],
)  # fmt: skip
def test_by_hand_in_every_metric(
    said: dict[str, str], left_out: list[int], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Validator", Fixed)
    config = Config(train={}, host=HOST, labels={"data": str(data_of(tmp_path / "data", **said))}, seed=0)
    for val_regions in (True, False) if left_out else (True,):
        setting = module.setting_of(weights, config.host, val_regions)
        with log() as lines:
            found = module.evaluate(weights, "test", config, setting, 1)
        assert found
        right = left_out if val_regions else []
        aps = [1.0 if kind in right else 0.5 for kind in (0, 1)]
        each = [row["mAP50"] for row in found.metrics["per_class"].values()]
        assert each == pytest.approx([PERFECT if ap == 1 else PERFECT / 2 for ap in aps], abs=1e-3)
        assert found.metrics["mAP50-95"] == pytest.approx(sum(each) / 2)
        assert found.at_host["mAP50"] == pytest.approx(sum(each) / 2)
        assert found.metrics["coco"]["AP"] == found.metrics["coco"]["AP50"] == pytest.approx(sum(aps) / 2)
        assert found.metrics["voc"]["mAP50"] == pytest.approx(sum(aps) / 2)
        how = "neither as right nor as wrong" if val_regions else "as wrong"
        assert any(f"counts {how} (val_regions={val_regions})" in line for line in lines)
        assert any(f"val_regions {val_regions}" in line for line in lines)


def test_without_regions_nothing_is_said_and_the_host_s_metrics_count(weights: Path, tmp_path: Path) -> None:
    model, seen = YOLO(weights), []
    model.add_callback("on_val_end", seen.append)
    data = data_of(tmp_path / "data")
    with log() as lines:
        model.val(validator=Fixed, data=str(data), split="test", rect=False, plots=False, verbose=False, **HOST)
    assert type(seen[0].metrics) is DetMetrics
    assert not any("val_regions" in line for line in lines)


# Against COCO ---------------------------------------------------------------------------------------------------------


def random_image(rng: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Labels (class, corners), regions (class, corners) and detections (class, score, corners) of three classes."""

    def boxes(count: int, low: float, high: float) -> np.ndarray[Any, Any]:
        size = rng.uniform(low, high, (count, 2))
        corner = rng.uniform(0, SIZE - size)
        return np.concatenate((rng.integers(0, 3, (count, 1)), corner, corner + size), 1)

    labels, regions = boxes(6, 8, 24), boxes(3, 16, 40)
    near = labels[rng.integers(0, 6, 8)].copy()
    near[:, 1:] = (near[:, 1:] + rng.normal(0, 1.5, (8, 4))).clip(0, SIZE)
    found = np.concatenate((near, boxes(12, 8, 24)))
    return labels, regions, np.concatenate((found[:, :1], rng.permutation(20)[:, None] / 32 + 0.1, found[:, 1:]), 1)


def batch_of(images: list[np.ndarray[Any, Any]]) -> RegionBatch:
    one = []
    for rows in images:
        corners = torch.from_numpy(rows[:, 1:]).float() / SIZE
        boxes = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
        classes = torch.nn.functional.one_hot(torch.from_numpy(rows[:, 0]).long(), 3).bool()
        count = len(rows)
        one.append(RegionBatch(
            torch.zeros(count).long(), boxes, classes, torch.ones(count).bool(), torch.full((count,), math.inf), count
        ))  # fmt: skip
    return region_batch(one)


def seen_of(images: list[Any]) -> list[Seen]:
    """What an evaluation keeps; masks are the product's."""
    found = [
        {"bboxes": torch.from_numpy(x[:, 2:]).float(), "cls": torch.from_numpy(x[:, 0]).float()} for *_, x in images
    ]
    masks = unknown_detections(found, batch_of([regions for _, regions, _ in images]), (SIZE, SIZE))
    return [
        Seen(labels[:, 1:], labels[:, 0], x[:, 2:], x[:, 1], x[:, 0], mask.numpy())
        for (labels, _, x), mask in zip(images, masks, strict=True)
    ]


def by_crowds(images: list[Any]) -> float:
    """COCO's AP at 0.5 where each region is a crowd."""
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []

    def xywh(corners: Any) -> list[float]:
        return [*corners[:2], *(corners[2:] - corners[:2])]

    for index, (labels, regions, detections) in enumerate(images, 1):
        for crowd, rows in enumerate((labels, regions)):
            for kind, *box in rows:
                one = xywh(np.array(box))
                truths.append({
                    "id": len(truths) + 1, "image_id": index, "category_id": int(kind) + 1, "bbox": one,
                    "area": one[2] * one[3], "iscrowd": crowd,
                })  # fmt: skip
        found += (
            {"image_id": index, "category_id": int(kind) + 1, "bbox": xywh(np.array(box)), "score": score}
            for kind, score, *box in detections
        )
    content = {
        "images": [{"id": k + 1} for k in range(len(images))], "annotations": truths,
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
    }  # fmt: skip
    labelled = COCO(content, print_function=lambda *_: None)
    judge = COCOeval_faster(labelled, labelled.loadRes(found), iouType="bbox", print_function=lambda *_: None)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats_as_dict["AP_50"])


@pytest.mark.parametrize("seed", range(3))
def test_at_an_iou_of_a_half_it_is_coco_s_rule_for_crowds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(8)]
    seen = seen_of(images)
    assert sum(int(one.unknown.sum()) for one in seen if one.unknown is not None) > 10
    found = coco_precision(seen)["AP50"]
    assert found == pytest.approx(by_crowds(images), abs=1e-9)
    assert found > coco_precision([one._replace(unknown=None) for one in seen])["AP50"]
    assert voc_precision(seen)["mAP50"] > voc_precision([one._replace(unknown=None) for one in seen])["mAP50"]


def test_the_host_s_metric_is_that_without_what_matches_nothing_at_each_threshold() -> None:
    rng = np.random.default_rng(5)
    count, kinds = 300, rng.integers(0, 3, 300).astype(float)
    overlap, unknown = rng.uniform(0.2, 1, count), rng.uniform(0, 1, count) < 0.4
    tp = overlap[:, None] >= np.linspace(0.5, 0.95, 10)
    stat: dict[str, Any] = {
        "tp": tp, "conf": rng.permutation(count) / count, "pred_cls": kinds, "target_cls": np.repeat([0.0, 1, 2], 90),
        "target_img": np.array([0.0, 1, 2]), "im_name": "x", "unknown": unknown,
    }  # fmt: skip
    names = {k: str(k) for k in range(3)}
    ours = UnjudgedMetrics(names)
    ours.update_stats(stat)
    ours.process()
    assert ours.box.image_metrics["x"]["fp"] == int((~tp[:, 0] & ~unknown).sum())
    for k in range(10):
        kept = tp[:, k] | ~unknown
        host = DetMetrics(names)
        host.update_stats({**stat, **{key: stat[key][kept] for key in ("tp", "conf", "pred_cls")}})
        host.process()
        assert np.array_equal(ours.box.all_ap[:, k], host.box.all_ap[:, k])
        if k == 0:
            assert np.array_equal(ours.box.p, host.box.p)
            assert np.array_equal(ours.box.r, host.box.r)
    none = UnjudgedMetrics(names)
    none.update_stats({**stat, "unknown": np.zeros(count, bool)})
    host = DetMetrics(names)
    host.update_stats(stat)
    none.process()
    host.process()
    assert np.array_equal(none.box.all_ap, host.box.all_ap)


def test_the_confusion_matrix_leaves_out_what_overlaps_no_label() -> None:
    label, away = [0.0, 0, 10, 10], [30.0, 30, 40, 40]
    found = {
        "bboxes": torch.tensor([label, away, away]), "cls": torch.tensor([0.0, 0, 1]),
        "conf": torch.tensor([0.9, 0.8, 0.7]), "unknown": torch.tensor([True, True, False]),
    }  # fmt: skip
    matrix = UnjudgedConfusion(names={0: "a", 1: "b"})
    matrix.process_batch(found, {"cls": torch.tensor([0.0]), "bboxes": torch.tensor([label])})
    assert box_iou(found["bboxes"][:1], found["bboxes"][1:]).eq(0).all()
    assert matrix.matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    matrix.process_batch(found, {"cls": torch.zeros(0), "bboxes": torch.zeros(0, 4)})
    assert matrix.matrix.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_the_confusion_matrix_leaves_out_a_second_detection_of_a_label_too() -> None:
    label, near = [0.0, 0, 10, 10], [0.0, 0, 10, 9]
    found = {
        "bboxes": torch.tensor([near, label, near, label]), "cls": torch.tensor([0.0, 1, 1, 0]),
        "conf": torch.tensor([0.6, 0.9, 0.8, 0.1]), "unknown": torch.tensor([True, True, False, True]),
    }  # fmt: skip
    matrix = UnjudgedConfusion(names={0: "a", 1: "b"})
    matrix.process_batch(found, {"cls": torch.tensor([0.0]), "bboxes": torch.tensor([label])})
    # the surest is matched, to a label of another class; of the two that are left over one is in a known place
    assert matrix.matrix.tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_a_class_that_the_data_set_does_not_know_is_not_unknown() -> None:
    found = [{"bboxes": torch.tensor([[0.0, 0, 9, 9]] * 2), "cls": torch.tensor([2.0, 3.0])}]
    whole = batch_of([np.array([[2.0, 0, 0, SIZE, SIZE]])])
    assert unknown_detections(found, whole, (SIZE, SIZE))[0].tolist() == [True, False]
    empty = [{"bboxes": torch.zeros(0, 4), "cls": torch.zeros(0)}]
    assert unknown_detections(empty, whole, (SIZE, SIZE))[0].tolist() == []


# The flag -------------------------------------------------------------------------------------------------------------


def test_the_flag_is_one_of_validation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(ultralytics.engine.model.Model, "val", lambda self, validator=None, **_: used.append(validator))
    monkeypatch.setattr(host_command.host, "entrypoint", lambda: ultralytics.YOLO("yolov8n.yaml").val())
    host_command.run("val", ["model=yolov8n.yaml"])
    host_command.run("val", ["model=yolov8n.yaml", "val_regions=False"])
    assert used[0] is Validator
    assert issubclass(used[1], Validator)
    assert [x.val_regions for x in used] == [True, False]
    with pytest.raises(ConfigError, match=r"val_regions=False is a training flag; predict does not take it"):
        host_command.run("predict", ["model=yolov8n.yaml", "val_regions=False"])
    with pytest.raises(ConfigError, match=r"loss=focal is a training flag; val does not take it"):
        host_command.run("val", ["model=yolov8n.yaml", "loss=focal"])


def test_the_flag_where_it_has_no_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"val_regions=False has no effect with a segment model"):
        YOLO("yolov8n-seg.yaml").val(val_regions=False)
    with pytest.raises(ConfigError, match=r"val_regions=maybe is not True or False"):
        YOLO("yolov8n.yaml").val(val_regions="maybe")  # type: ignore[arg-type]
