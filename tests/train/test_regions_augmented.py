"""Regions from the data set through the host's augmentation to the batch, against a mask painted into the images."""

from __future__ import annotations

import math
import random
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_data import make_dataset
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.augment import (
    Albumentations,
    Compose,
    CutMix,
    LetterBox,
    MixUp,
    Mosaic,
    RandomFlip,
    RandomPerspective,
)
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils.instance import Instances

from rebalance.data import dataset
from rebalance.errors import ConfigError, DataError
from rebalance.match.regions import RegionBatch
from rebalance.train.regions import (
    CarryingAlbumentations,
    RegionDataset,
    carrying,
    labels_of,
    row_type,
    told,
    with_regions,
    without,
)

SIZE = 96
STILL = {
    "mosaic": 0, "mixup": 0, "cutmix": 0, "copy_paste": 0, "translate": 0, "scale": 0, "degrees": 0, "shear": 0,
    "perspective": 0, "fliplr": 0, "flipud": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight dark images of four shapes with one white rectangle each, the region, and an outlined label below it."""
    folder = tmp_path_factory.mktemp("painted")
    rng = np.random.default_rng(0)
    for part in ("images", "labels", "regions"):
        (folder / part / "train").mkdir(parents=True)
    for index in range(8):
        width, height = [(96, 96), (96, 64), (64, 96), (192, 128)][index % 4]
        image = np.zeros((height, width, 3), np.uint8)
        x1, y1 = (int(rng.integers(4, side // 3)) for side in (width, height))
        x2, y2 = (int(rng.integers(side // 2, side * 3 // 4)) for side in (width, height))
        image[y1:y2, x1:x2] = 255
        image[height * 4 // 5 :, :] = 128  # where the labels are, which are pasted elsewhere
        cv2.imwrite(str(folder / "images/train" / f"{index}.png"), image)
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        meaning = ("unknown", "background")[index % 2]
        (folder / "regions/train" / f"{index}.txt").write_text(f"{meaning} {index % 3} {' '.join(map(str, box))}\n")
        left = (0.02, 0.82)[index // 2 % 2]
        points = ((left, 0.82), (left + 0.15, 0.82), (left + 0.15, 0.97), (left, 0.97))
        polygon = " ".join(f"{x:.3f} {y}" for x, y in points)
        (folder / "labels/train" / f"{index}.txt").write_text(f"1 {polygon}\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/train\nnames: [a, b, c]\n")
    return file


def build(file: Path, mode: str = "train", *, plain: bool = False, **given: Any) -> Any:
    """The data set of a training, with regions or, `plain`, as the host has it."""
    cfg = get_cfg(overrides={"imgsz": SIZE, "task": "detect", **STILL, **given})
    data = check_det_dataset(str(file))
    if cfg.single_cls:
        data |= {"names": {0: "item"}, "nc": 1}
    with with_regions(None if plain else dataset.load(file).knowledge):
        return build_yolo_dataset(cfg, data["train"], 4, data, mode=mode, rect=bool(given.get("rect")))


def seeded(data: Any, index: int, seed: int) -> Any:
    """One image, by these random numbers."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return data[index]


def covered(found: RegionBatch, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose middle is in a region."""
    height, width = shape
    y, x = (np.arange(n) + 0.5 for n in shape)
    mask = np.zeros(shape, np.bool_)
    for cx, cy, w, h in found.boxes_xywh.tolist():
        inside = [
            (p >= (c - s / 2) * n) & (p <= (c + s / 2) * n) for p, c, s, n in ((y, cy, h, height), (x, cx, w, width))
        ]
        mask |= inside[0][:, None] & inside[1][None]
    return mask


def agree(item: Any, slack: int = 1) -> None:
    """The augmented mask and the augmented regions are the same but for their edges."""
    white = (item["img"].numpy().transpose(1, 2, 0).min(2) > 200).astype(np.uint8)
    dark = (item["img"].numpy().transpose(1, 2, 0).max(2) < 50).astype(np.uint8)
    mask = covered(item["regions"], white.shape)
    kernel = np.ones((2 * slack + 1, 2 * slack + 1), np.uint8)
    sure_white, sure_other = cv2.erode(white, kernel), cv2.erode(dark, kernel)
    assert mask[sure_white > 0].all()
    assert not mask[sure_other > 0].any()
    assert (sure_white > 0).any() or not mask.any() or cv2.erode(mask.astype(np.uint8), kernel).sum() == 0


MOVES: dict[str, dict[str, Any]] = {
    "still": {}, "translate": {"translate": 0.4}, "scale": {"scale": 0.7}, "flips": {"fliplr": 0.5, "flipud": 0.5},
    "mosaic": {"mosaic": 1.0}, "mosaic and all": {"mosaic": 1.0, "translate": 0.3, "scale": 0.6, "fliplr": 0.5},
    "rect": {"rect": True}, "rect and scale": {"rect": True, "scale": 0.5, "translate": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_a_region_stays_on_what_is_painted_where_it_is(painted: Path, name: str) -> None:
    data = build(painted, **MOVES[name])
    kept = 0
    for seed in range(12):
        item = seeded(data, seed % 8, seed)
        agree(item)
        kept += len(item["regions"].image)
    assert kept > 6


def test_in_validation_the_host_letterboxes(painted: Path) -> None:
    for options in ({}, {"rect": True}):
        data = build(painted, mode="val", **options)
        for index in range(8):
            agree(data[index])
            assert len(data[index]["regions"].image) == 1


@pytest.mark.parametrize("tiles", [4, 9])
def test_mosaic_of_four_and_of_nine(painted: Path, tiles: int) -> None:
    data = build(painted)
    mosaic = carrying(Mosaic(data, imgsz=SIZE, p=1.0, n=tiles))
    data.buffer = list(range(8))
    seen = 0
    for seed in range(6):
        random.seed(seed)
        label = mosaic(data.get_image_and_label(seed % 8))
        item = data.transforms.transforms[-1](label)
        agree(item)
        seen = max(seen, len(item["regions"].image))
    assert seen > (2 if tiles == 4 else 4)


@pytest.mark.parametrize("moves", [{"degrees": 30.0}, {"shear": 20.0}, {"perspective": 0.001}])
def test_where_it_is_turned_the_box_around_is_unknown_and_the_box_within_is_verified(
    painted: Path, moves: dict[str, float]
) -> None:
    data, kept = build(painted, **moves), [0, 0]
    for seed in range(24):
        item = seeded(data, seed % 8, seed)
        white = item["img"].numpy().transpose(1, 2, 0).min(2) > 200
        dark = item["img"].numpy().transpose(1, 2, 0).max(2) < 50
        unknown = seed % 8 % 2 == 0
        mask = covered(item["regions"], white.shape)
        kept[unknown] += mask.any()
        if unknown:
            assert mask[cv2.erode(white.astype(np.uint8), np.ones((3, 3))) > 0].all()
            (x, y, w, h), *_ = (item["regions"].boxes_xywh * SIZE).tolist()
            rows, columns = np.nonzero(white)
            assert abs(columns.min() - (x - w / 2)) < 2
            assert abs(rows.max() + 1 - (y + h / 2)) < 2
        else:
            assert not (mask & cv2.erode(dark.astype(np.uint8), np.ones((3, 3))).astype(bool)).any()
    assert min(kept) > 4


def test_in_a_blend_what_is_unknown_in_one_image_is_unknown_and_nothing_is_verified(painted: Path) -> None:
    data = build(painted, mixup=1.0)
    counts = set()
    for seed in range(20):
        item = seeded(data, 0, seed)
        assert item["regions"].unknown.all()
        white = item["img"].numpy().transpose(1, 2, 0).min(2) > 90  # of either
        mask = covered(item["regions"], white.shape)
        assert not (mask & ~cv2.dilate(white.astype(np.uint8), np.ones((3, 3))).astype(bool)).any()
        counts.add(len(item["regions"].image))
    assert counts == {1, 2}


def test_cutmix_brings_the_regions_of_the_patch_and_takes_those_it_covers(painted: Path) -> None:
    data = build(painted)
    cut = carrying(CutMix(data, pre_transform=Compose([RandomPerspective(0, 0, 0, size=(SIZE, SIZE))]), p=1.0))
    done = 0
    for seed in range(80):
        random.seed(seed)
        np.random.seed(seed)
        label = cut.pre_transform(data.get_image_and_label(seed % 8))
        before = label["img"].copy()
        label = cut(label)
        item = data.transforms.transforms[-1](label)
        agree(item)
        done += not np.array_equal(before, np.asarray(label["img"].permute(1, 2, 0))[..., ::-1])
    assert done > 3


def test_of_a_region_that_the_patch_does_not_touch_there_is_one_box_and_of_others_what_is_left() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 40, 40], [20, 0, 90, 90], [25, 25, 28, 28]], np.float32)
    rows = np.zeros(4, row_type(1))
    rows["below"] = range(4)
    regions = labels_of(Instances(boxes, bbox_format="xyxy", normalized=False), rows)
    found = without(regions, np.array([20, 20, 30, 60], np.int32))
    assert found["cls"]["below"].tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert found["instances"].bboxes.tolist() == [
        [0, 0, 10, 10], [0, 0, 20, 40], [30, 0, 40, 40], [0, 0, 40, 20], [30, 0, 90, 90], [20, 0, 90, 20],
        [20, 60, 90, 90],
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["flip", "mixup"])
def test_copy_paste_leaves_the_regions_where_they_are_and_pastes_none(painted: Path, mode: str) -> None:
    moves = {"scale": 0.3, "fliplr": 0.5}
    data, plain = build(painted, copy_paste=1.0, copy_paste_mode=mode, **moves), build(painted, **moves)
    pasted = 0
    for seed in range(16):
        item = seeded(data, seed % 8, seed)
        agree(item)
        assert len(item["regions"].image) <= 1
        pasted += len(item["cls"]) > 1
        if mode == "flip":  # which draws no random number
            assert torch.equal(item["regions"].boxes_xywh, seeded(plain, seed % 8, seed)["regions"].boxes_xywh)
    assert pasted > 3


@pytest.mark.parametrize("mode", ["flip", "mixup"])
def test_labels_and_images_are_those_of_the_host_to_the_bit(painted: Path, mode: str) -> None:
    options: dict[str, Any] = {
        "mosaic": 0.7,
        "mixup": 0.4,
        "cutmix": 0.4,
        "degrees": 10.0,
        "scale": 0.5,
        "fliplr": 0.5,
        "hsv_v": 0.4,
    }
    options |= {"copy_paste": 0.5, "copy_paste_mode": mode}
    ours, plain = build(painted, **options), build(painted, plain=True, **options)
    assert type(plain) is YOLODataset
    for seed in range(16):
        a, b = seeded(ours, seed % 8, seed), seeded(plain, seed % 8, seed)
        regions = a.pop("regions")
        assert a.keys() == b.keys()
        for name in ("img", "cls", "bboxes", "batch_idx"):
            assert torch.equal(a[name], b[name])
        assert isinstance(regions, RegionBatch)


# Transforms of one's own ----------------------------------------------------------------------------------------------


class Mirrored:
    """What a composition of Albumentations is to the host: here it mirrors, halves the size and loses some boxes."""

    seed = torch.initial_seed()

    def __call__(self, **given: Any) -> dict[str, Any]:
        image = given["image"][::2, ::-2].copy()
        boxes = np.asarray(given["bboxes"], np.float64).reshape(-1, 4).copy()
        boxes[:, 0] = 1 - boxes[:, 0]
        keep = boxes[:, 2] > 0.1
        points = np.asarray(given["keypoints"], np.float64).reshape(-1, 2).copy()
        points[:, 0] = given["image"].shape[1] - points[:, 0]
        rows = {name: [x for x, k in zip(given[name], keep, strict=True) if k] for name in ("class_labels", "idx")}
        return {"image": image, "bboxes": boxes[keep], **rows, "keypoints": points / 2, "pidx": list(given["pidx"])}


def test_regions_go_through_the_user_s_own_transforms_with_the_labels(painted: Path) -> None:
    data = build(painted)
    step = Albumentations(p=1.0)
    step.transform, step.contains_spatial, step.topology_transforms = Mirrored(), True, []
    step = carrying(step)
    assert isinstance(step, CarryingAlbumentations)
    for index in range(8):
        label = data.get_image_and_label(index)
        label["regions"]["cls"]["below"] = 20
        plain = {k: deepcopy(v) for k, v in label.items() if k != "regions"}
        plain = Albumentations.__call__(step, plain)
        found = step(label)
        assert np.array_equal(found["cls"], plain["cls"])
        assert np.allclose(found["instances"].bboxes, plain["instances"].bboxes)
        assert found["img"].shape == plain["img"].shape
        assert len(found["regions"]["cls"]) == (index % 2 == 0)  # what is turned may come back larger: not verified
        if index % 2 == 0:
            assert np.allclose(found["regions"]["cls"]["below"], 10)
            agree(data.transforms.transforms[-1](found))
    assert isinstance(step.transform, Mirrored)


def test_where_the_host_keeps_an_image_that_lost_its_labels_the_flip_after_it_is_in_fractions(painted: Path) -> None:
    class Losing(Mirrored):
        def __call__(self, **given: Any) -> dict[str, Any]:
            found = super().__call__(**given)
            return {**found, **{name: [] for name in ("class_labels", "idx")}, "bboxes": np.zeros((0, 4))}

    data = build(painted)
    step = Albumentations(p=1.0)
    step.transform, step.contains_spatial, step.topology_transforms = Losing(), True, []
    label = data.transforms.transforms[0](data.get_image_and_label(0))  # from here on in pixels
    before = label["img"].copy()
    flipped = carrying(RandomFlip(p=1.0))(carrying(step)(label))
    assert flipped["instances"].normalized
    assert np.array_equal(flipped["img"], before[:, ::-1])
    assert len(flipped["regions"]["cls"]) == 1
    agree(data.transforms.transforms[-1](flipped))


def test_a_transform_whose_geometry_is_unknown_is_refused(painted: Path) -> None:
    class Twist(RandomPerspective):  # type: ignore[misc]
        pass

    with pytest.raises(ConfigError, match="Twist does not move regions"):
        carrying(Compose([Twist()]))


# What a data set says -------------------------------------------------------------------------------------------------


def four(folder: Path, more: str) -> Path:
    """Four groups of two images, four classes."""
    file = make_dataset(folder, classes=4)
    names = sorted((folder / "images/train").iterdir())
    for index, image in enumerate(names):
        group = folder / "images/train" / "abcd"[index // 2]
        for part in (group, folder / "labels/train" / group.name):
            part.mkdir(exist_ok=True)
        image.rename(group / image.name)
        (folder / "labels/train" / f"{image.stem}.txt").rename(
            folder / "labels/train" / group.name / f"{image.stem}.txt"
        )
    file.write_text(file.read_text("utf-8") + more, "utf-8")
    return file


ANNOTATED = """annotated:
  images/train/a: [kind0]
  images/train/b: [kind1, kind2]
  images/train/c: []
"""


def test_of_four_images_in_a_mosaic_each_part_keeps_its_own_knowledge(tmp_path: Path) -> None:
    data = build(four(tmp_path / "set", ANNOTATED))
    unknown = {"a": [1, 2, 3], "b": [0, 3], "c": [0, 1, 2, 3], "d": []}
    mosaic = carrying(Mosaic(data, imgsz=SIZE, p=1.0))
    for seed in range(6):
        random.seed(seed)
        data.buffer = list(range(8))
        label = data.get_image_and_label(seed)
        params = mosaic.get_params(label)
        tiles = [
            (Path(x["labels_patch"]["im_file"]).parent.name, [x[k] for k in ("x1a", "y1a", "x2a", "y2a")])
            for x in params["layout"]
        ]
        rows = [row for name, row in tiles if unknown[name]]
        found = mosaic.apply_instances(mosaic.apply_image(label, params), params)["regions"]
        assert np.allclose(found["instances"].bboxes, [r for r in rows if r[2] > r[0] and r[3] > r[1]])
        expected = [unknown[name] for name, (x1, y1, x2, y2) in tiles if unknown[name] and x2 > x1 and y2 > y1]
        assert [np.flatnonzero(x).tolist() for x in found["cls"]["classes"]] == expected
        assert found["cls"]["unknown"].all()


def test_classes_that_are_left_out_are_background_by_choice_and_single_cls_is_about_the_one(tmp_path: Path) -> None:
    file = four(tmp_path / "set", ANNOTATED)
    folder = tmp_path / "set/regions/train/d"
    folder.mkdir(parents=True)
    image = next((tmp_path / "set/images/train/d").iterdir())
    (folder / f"{image.stem}.txt").write_text("background 0,2 0.5 0.5 1 1\nbackground * 0.5 0.5 0.5 0.5\n")

    def rows(**options: Any) -> dict[str, list[list[int]]]:
        known = build(file, **options).known
        return {Path(k).parent.name + Path(k).stem[-1]: [np.flatnonzero(x).tolist() for x in v[1]["classes"]]
                for k, v in known.items()}  # fmt: skip

    d = f"d{image.stem[-1]}"
    plain = rows()
    assert (plain["a0"], plain["b2"], plain["c4"], plain[d]) == (
        [[1, 2, 3]], [[0, 3]], [[0, 1, 2, 3]], [[0, 2], [0, 1, 2, 3]],
    )  # fmt: skip
    some = rows(classes=[0, 2])
    assert (some["a0"], some["b2"], some["c4"], some[d]) == ([[2]], [[0]], [[0, 2]], [[0, 1, 2, 3], [0, 1, 2, 3]])
    one = rows(single_cls=True)
    assert (one["a0"], one["b2"], one["c4"], one[d]) == ([[0]], [[0]], [[0]], [[0]])
    assert rows(single_cls=True, classes=[0])["a0"] == []


def test_sizes_are_pixels_of_the_image_on_disk_wherever_it_goes(painted: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(painted.read_text("utf-8") + "unknown_below: 16\n", "utf-8")
    data = build(file, mode="val")
    for index in range(8):
        item, (height, width) = data[index], data[index]["ori_shape"]
        small = item["regions"].below[0] * SIZE  # in pixels of the input
        assert item["regions"].classes[0].all()
        assert item["regions"].unknown[0]
        assert float(small) == pytest.approx(16 * SIZE / max(height, width), rel=1e-3)
        assert item["regions"].below[1:].isinf().all()
        half = carrying(LetterBox(new_shape=SIZE // 2))(data.get_image_and_label(index))["regions"]["cls"]["below"]
        assert half[0] == pytest.approx(8 * SIZE / max(height, width), rel=1e-3)
    for moves in ({"scale": 0.5}, {"degrees": 45.0, "scale": 0.5}):
        data = build(file, **moves)
        for seed in range(6):
            item = seeded(data, 0, seed)  # square, the size of the input
            random.seed(seed)
            random.random()  # of mosaic
            assert float(item["regions"].below[0]) * SIZE / 16 == pytest.approx(_scale(data, seed), rel=1e-3)


def _scale(data: Any, seed: int) -> float:
    """What the host's own matrix does to a length."""
    affine = next(t for t in data.transforms.transforms[0].transforms if isinstance(t, RandomPerspective))
    random.seed(seed)
    random.uniform(0, 1)  # of mosaic
    matrix = RandomPerspective.get_params(affine, {"img": np.zeros((SIZE, SIZE, 3))})["M"]
    return math.hypot(matrix[0, 0], matrix[1, 0])


def test_images_without_a_label_file_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    file = make_dataset(tmp_path / "set")
    labels = sorted((tmp_path / "set/labels/train").iterdir())
    labels[0].unlink()
    labels[1].unlink()
    labels[2].write_text("")  # looked at, nothing there
    plain = file.read_text("utf-8")
    file.write_text(plain + "unlabelled: skip\n", "utf-8")
    for options in ({}, {"rect": True}, {"cache": "ram"}, {"fraction": 0.5}):
        data = build(file, **options)
        names = sorted(Path(f).stem for f in data.im_files)
        assert names == [f"{i:02d}" for i in range(2, 4 if "fraction" in options else 8)]
        assert len(data) == len(names)
        assert data.counts()["skipped"] == 2
        assert "2 images without a label file are left out" in told(data.counts())
        assert len(data.collate_fn([data[i] for i in range(2)])["im_file"]) == 2
    file.write_text(plain + "unlabelled: unknown\n", "utf-8")
    data = build(file)
    assert [len(data.known[f][1]) for f in sorted(data.im_files)] == [1, 1, *[0] * 6]
    for label in labels[2:]:
        label.unlink()
    labels[5].write_text("")
    file.write_text(plain + "unlabelled: skip\n", "utf-8")
    (tmp_path / "set/labels/train.cache").unlink(missing_ok=True)
    assert len(build(file, mode="val")) == 1
    labels[5].unlink()
    (tmp_path / "set/labels/train.cache").unlink(missing_ok=True)
    with pytest.raises(DataError, match="leaves out every image"):
        build(file, mode="val")


def test_neither_labels_nor_caches_hold_regions(painted: Path) -> None:
    data = build(painted, mosaic=1.0, mixup=0.5)
    for seed in range(4):
        seeded(data, seed, seed)
    assert all(label["cls"].tolist() == [[1.0]] for label in data.labels)
    for cached in (False, "ram", "disk"):
        again = build(painted, cache=cached)
        assert isinstance(again, RegionDataset)
        agree(again[3])
    assert type(build(painted, plain=True)) is YOLODataset
    data.close_mosaic(SimpleNamespace(**vars(get_cfg(overrides={**STILL, "imgsz": SIZE}))))
    agree(seeded(data, 0, 0))
    assert len(seeded(data, 0, 0)["regions"].image) == 1


def test_images_share_what_is_said_of_all_of_them(tmp_path: Path) -> None:
    data = build(four(tmp_path / "set", ANNOTATED))
    assert len({id(rows) for _, rows in data.known.values()}) == 4


def test_mixing_transforms_that_share_a_step_change_it_once(painted: Path) -> None:
    data = build(painted, mixup=0.5, cutmix=0.5)
    mix = [t for t in data.transforms.transforms if isinstance(t, (MixUp, CutMix))]
    assert mix[0].pre_transform is mix[1].pre_transform
    assert all(carrying(t) is t for t in mix)
