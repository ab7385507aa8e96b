"""Regions through the host's data pipeline, from the data set to the batch.

They travel beside the labels, as boxes of the host's own class under `regions`, and are moved by the very method of
each transform that moves the labels, with the same random numbers. So nothing that looks at labels sees them: no cache,
no class count, no plot, and neither cutmix nor copy-paste, which choose by the boxes that are there. And nothing that
throws away small labels throws away what is left of a region.

A region of several classes is one box here; its classes and the like are a row of an array that goes where the host
has class numbers. Of an image's regions a later one outweighs an earlier one, so their order is kept.

Objects whose labels were withheld ride along for a diagnosis, as rows of a third kind that obey the rules of labels:
they go where the host would throw a label away, and leave the regions at the end.

Shapes: n regions of an image, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.data import build
from ultralytics.data.augment import (
    Albumentations,
    BaseMixTransform,
    Compose,
    CopyPaste,
    CutMix,
    Format,
    LetterBox,
    MixUp,
    Mosaic,
    RandomFlip,
    RandomHSV,
    RandomPerspective,
)
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.instance import Instances
from ultralytics.utils.metrics import bbox_ioa

from rebalance.data.dataset import DataSet
from rebalance.data.knowledge import Knowledge
from rebalance.errors import ConfigError, DataError
from rebalance.match.regions import RegionBatch, region_batch
from rebalance.match.withheld import Withheld, withheld_batch

LEAST_SEEN = 0.1  # of an object in the patch of cutmix, as the host has it of a label
WHOLE = np.array([[0.5, 0.5, 1, 1]], np.float32)  # centre, width, height as fractions

Labels = dict[str, Any]  # as the host has them
Boxes = NDArray[np.float32]
Rows = NDArray[Any]  # (n,) of `row_type`


def row_type(classes: int) -> np.dtype[Any]:
    """What a region has besides its box; `below`: it is about candidates below that size in pixels, inf: about all.

    `withheld`: it is no region, but an object of the one class whose label was withheld.
    """
    kinds = ("unknown", np.bool_), ("withheld", np.bool_)
    return np.dtype([("classes", np.bool_, (classes,)), *kinds, ("below", np.float32)])


def lasting(rows: Rows) -> NDArray[np.bool_]:
    """What may be said of more than it is about: all but verified background."""
    found: NDArray[np.bool_] = rows["unknown"] | rows["withheld"]
    return found


def labels_of(boxes: Instances, rows: Rows) -> Labels:
    """Regions as the host has labels; mosaic asks for the last two."""
    return {"instances": boxes, "cls": rows, "im_file": "", "ori_shape": ()}


class RegionDataset(YOLODataset):  # type: ignore[misc]
    """The host's data set, of which images have regions, and some may be left out.

    Attributes:
        skipped: images without a label file that are left out.
        known: by image file the boxes (n, 4) and rows of its regions; many images may share them.
        withheld: the data set whose withheld objects ride along; None: nobody asks.
    """

    def __init__(self, *args: Any, knowledge: Knowledge, withheld: DataSet | None = None, **options: Any) -> None:
        self.knowledge, self.withheld, self.skipped = knowledge, withheld, 0
        self.known: dict[str, tuple[Boxes, Rows]] = {}
        super().__init__(*args, **options)

    def get_labels(self) -> list[Labels]:
        """The host's, without those of images that are left out."""
        found: list[Labels] = super().get_labels()
        kept = [label for label in found if not self.knowledge.skips(label["im_file"])]
        self.skipped = len(found) - len(kept)
        if not kept:
            raise DataError(f"unlabelled: skip leaves out every image of {self.img_path}: none has a label file")
        self.im_files = [label["im_file"] for label in kept]
        return kept

    def update_labels(self, include_class: list[int] | None) -> None:
        """The host's, and the regions, of the classes that are left."""
        super().update_labels(include_class)
        shared: dict[tuple[bytes, bytes], tuple[Boxes, Rows]] = {}
        for label in self.labels:
            boxes, rows = self._regions(label["im_file"], include_class)
            self.known[label["im_file"]] = shared.setdefault((boxes.tobytes(), rows.tobytes()), (boxes, rows))

    def _regions(self, image: str, include: list[int] | None) -> tuple[Boxes, Rows]:
        """What is about no class that is trained is left out; with `single_cls` a region is about the one."""
        found = self.knowledge.of(image)
        boxes, unknown, classes = found.boxes_xywh_norm, found.unknown, found.classes
        below: NDArray[Any] = np.full(len(found), np.inf, np.float32)
        if self.knowledge.unknown_below:  # what is said of all the image comes first
            boxes, unknown = np.concatenate((WHOLE, boxes)), np.concatenate(([True], unknown))
            classes = np.concatenate((np.ones_like(classes, shape=(1, classes.shape[1])), classes))
            below = np.concatenate(([np.float32(self.knowledge.unknown_below)], below))
        trained = np.ones(classes.shape[1], np.bool_) if include is None else np.isin(range(classes.shape[1]), include)
        kept = (classes & trained).any(1)
        if self.single_cls:  # background where all of them are
            one = np.where(unknown, (classes & trained).any(1), (classes | ~trained).all(1))
            classes, kept = one[:, None], kept & one
        else:  # what the user left out is background, by the user's own choice
            classes = np.where(unknown[:, None], classes & trained, classes | ~trained)
        rows = np.zeros(len(boxes), row_type(classes.shape[1]))
        rows["classes"], rows["unknown"], rows["below"] = classes, unknown, below
        boxes, rows = boxes[kept].astype(np.float32), rows[kept]
        if self.withheld is None:
            return boxes, rows
        objects = self.withheld.withheld(image)
        objects = objects.pick(trained[objects.classes])
        more = np.zeros(len(objects), rows.dtype)
        more["withheld"], more["below"] = True, np.inf
        more["classes"][np.arange(len(objects)), 0 if self.single_cls else objects.classes] = True
        return np.concatenate((boxes, objects.boxes_xywh_norm)), np.concatenate((rows, more))

    def get_image_and_label(self, index: int) -> Labels:
        """The host's, with `regions`."""
        label: Labels = super().get_image_and_label(index)
        boxes, rows = self.known[label["im_file"]]
        (height, width), (h, w) = label["ori_shape"], label["resized_shape"]
        label["regions"] = labels_of(Instances(boxes.copy()), scaled(rows, math.sqrt(h / height * (w / width))))
        return label

    def build_transforms(self, hyp: Any) -> Any:
        """The host's, which carry regions."""
        found = carrying(super().build_transforms(hyp))
        found.transforms[-1].diagnose = self.withheld is not None
        return found

    @staticmethod
    def collate_fn(batch: list[Labels]) -> Labels:
        """The host's batch, with the regions of all images, and the withheld objects where they are asked for."""
        found: Labels = YOLODataset.collate_fn(batch)
        if "withheld" in found:
            found["withheld"] = withheld_batch(found["withheld"])
        return {**found, "regions": region_batch(found["regions"])}

    def counts(self) -> dict[str, int]:
        """How many images are left out or have regions, and how many of each meaning there are; sized ones apart."""
        rows = [self.known[file][1] for file in self.im_files]
        every = np.concatenate(rows)
        every = every[~every["withheld"]]
        plain = ~np.isfinite(every["below"])
        return {
            "images": len(rows),
            "with_regions": sum(not x["withheld"].all() for x in rows),
            "unknown": int((every["unknown"] & plain).sum()),
            "background": int((~every["unknown"]).sum()),
            "unknown_below": self.knowledge.unknown_below,
            "skipped": self.skipped,
        }


@contextmanager
def with_regions(knowledge: Knowledge | None, withheld: DataSet | None = None) -> Iterator[None]:
    """Let the host build data sets that have regions; None: its own, but where withheld objects are asked for."""
    stock = build.YOLODataset
    if withheld:
        knowledge = knowledge or withheld.knowledge
    if knowledge:
        build.YOLODataset = partial(RegionDataset, knowledge=knowledge, withheld=withheld)
    try:
        yield
    finally:
        build.YOLODataset = stock


def told(counts: dict[str, int]) -> str:
    """What is known of the training images, in a line."""
    said = [f"{counts['unknown']} unknown and {counts['background']} background regions"]
    if counts["unknown_below"]:
        said.append(f"objects below {counts['unknown_below']} pixels are unknown")
    if counts["skipped"]:
        said.append(f"{counts['skipped']} images without a label file are left out")
    return f"regions in {counts['with_regions']} of {counts['images']} images: {', '.join(said)}"


# Transforms -----------------------------------------------------------------------------------------------------------


def carrying(transform: Any) -> Any:
    """A transform of the host that carries regions, and whatever it is made of: changed in place, and returned.

    Raises:
        ConfigError: it is of a kind whose geometry is not known here.
    """
    kind = type(transform)
    if isinstance(transform, Compose):
        for part in transform.transforms:
            carrying(part)
    elif kind in CARRIERS:
        transform.__class__ = CARRIERS[kind]
    elif kind not in (RandomHSV, CopyPaste, *CARRIERS.values()):
        raise ConfigError(f"the transform {kind.__name__} does not move regions with the labels; leave one of them out")
    if isinstance(transform, BaseMixTransform) and transform.pre_transform is not None:
        carrying(transform.pre_transform)
    return transform


def scaled(rows: Rows, scale: float) -> Rows:
    """A copy in which sizes are other pixels."""
    found = rows.copy()
    found["below"] *= scale
    return found


def chosen(regions: Labels, keep: NDArray[np.bool_]) -> Labels:
    """Some of them."""
    return {**regions, "instances": regions["instances"][keep], "cls": regions["cls"][keep]}


class CarryingMosaic(Mosaic):  # type: ignore[misc]
    """A region of a whole image becomes that of its tile; what is between the tiles is as without regions."""

    def apply_instances(self, labels: Labels, params: Any = None) -> Labels:
        layout = [{**item, "labels_patch": item["labels_patch"]["regions"]} for item in params["layout"]]
        regions = super().apply_instances({}, {**params, "layout": layout})
        return {**super().apply_instances(labels, params), "regions": regions}


class CarryingMixUp(MixUp):  # type: ignore[misc]
    """What is unknown in one of the images is unknown in both; nothing is verified, as that goes for one alone."""

    def apply_instances(self, labels: Labels, params: Any = None) -> Labels:
        pair = (labels["regions"], labels["mix_labels"][0]["regions"])
        first, second = (chosen(regions, lasting(regions["cls"])) for regions in pair)
        regions = super().apply_instances({**first, "mix_labels": [second]}, params)
        del regions["mix_labels"]
        return {**super().apply_instances(labels, params), "regions": regions}


class CarryingCutMix(CutMix):  # type: ignore[misc]
    """In the patch the regions are the other image's, around it those of the first."""

    def apply_instances(self, labels: Labels, params: Any = None) -> Labels:
        if params.get("skip"):
            return super().apply_instances(labels, params)  # type: ignore[no-any-return]
        first, second = labels["regions"], labels["mix_labels"][0]["regions"]
        first["instances"].convert_bbox("xyxy")
        first["instances"].denormalize(params["w"], params["h"])
        second["instances"].convert_bbox("xyxy")
        second["instances"].denormalize(params["w"], params["h"])
        enough = bbox_ioa(params["area"][None], second["instances"].bboxes)[0] >= LEAST_SEEN
        around = {**without(first, params["area"].astype(np.int32)), "mix_labels": [second]}
        params_ = {**params, "indexes2": np.flatnonzero(enough | ~second["cls"]["withheld"])}
        regions = super().apply_instances(around, params_)
        del regions["mix_labels"]
        regions["cls"] = regions["cls"][regions["instances"].remove_zero_area_boxes()]
        return {**super().apply_instances(labels, params), "regions": regions}


def without(regions: Labels, cut: NDArray[np.int32]) -> Labels:
    """Regions with corners in pixels, without a rectangle: of one that it cuts the largest boxes that are left.

    A withheld object stays as a whole, where at least half of it is left.
    """
    boxes = regions["instances"].bboxes
    x1, y1, x2, y2 = boxes.T
    left, top, right, bottom = (np.full_like(x1, side) for side in cut)
    apart = (x2 <= left) | (x1 >= right) | (y2 <= top) | (y1 >= bottom)
    strips = np.stack((
        np.stack((x1, y1, np.where(apart, x2, np.minimum(x2, left)), y2), 1),
        np.stack((np.maximum(x1, right), y1, x2, y2), 1),
        np.stack((x1, y1, x2, np.minimum(y2, top)), 1),
        np.stack((x1, np.maximum(y1, bottom), x2, y2), 1),
    ), 1)  # (n, 4, 4)  # fmt: skip
    there: NDArray[np.bool_] = np.all(strips[..., 2:] > strips[..., :2], -1)
    there[:, 1:] &= ~apart[:, None]
    covered = (np.minimum(x2, right) - np.maximum(x1, left)) * (np.minimum(y2, bottom) - np.maximum(y1, top))
    objects = regions["cls"]["withheld"]
    strips[objects, 0], there[objects] = boxes[objects], False
    there[objects, 0] = (apart | (2 * covered <= (x2 - x1) * (y2 - y1)))[objects]
    found = Instances(strips[there], bbox_format="xyxy", normalized=False)
    return labels_of(found, np.repeat(regions["cls"], there.sum(1)))


class CarryingPerspective(RandomPerspective):  # type: ignore[misc]
    """Whatever is left of a region stays, and of a withheld object what the host would leave of its label."""

    def apply_instances(self, labels: Labels, params: Any = None) -> Labels:
        regions = labels.pop("regions")
        mover = copy(self)
        mover.__class__ = PerspectiveOfRegions
        mover.around, mover.objects = lasting(regions["cls"]), regions["cls"]["withheld"]
        (height, width), m = params["orig_shape"], params["M"]
        depth = m[2] @ np.array([width / 2, height / 2, 1])
        grown = math.sqrt(abs(np.linalg.det(m) / depth**3))  # of a length in the middle of the image
        moved = mover.apply_instances({**regions, "cls": scaled(regions["cls"], grown)}, params)
        return {**super().apply_instances(labels, params), "regions": moved}


class PerspectiveOfRegions(RandomPerspective):  # type: ignore[misc]
    """Where a box is turned, the box around it is unknown, as the host has it of a label; the one in it is verified."""

    around: NDArray[np.bool_]  # of which the box around is taken
    objects: NDArray[np.bool_]

    def apply_bboxes(self, bboxes: NDArray[Any], M: NDArray[Any]) -> NDArray[Any]:  # noqa: N803 - the host's name
        corners = bboxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        points = np.concatenate((corners, np.ones_like(corners[..., :1])), -1)
        moved = self.apply_keypoints(points, M, (0, 0))[..., :2]  # (n, 4, 2), clockwise from the upper left
        (a, b, c, d) = moved.transpose(1, 0, 2)
        outer = np.concatenate((moved.min(1), moved.max(1)), 1)
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = a.T, b.T, c.T, d.T
        inner = np.stack((np.maximum(ax, dx), np.maximum(ay, by), np.minimum(bx, cx), np.minimum(cy, dy)), 1)
        inner[:, 2:] = np.maximum(inner[:, :2], inner[:, 2:])
        return np.where(self.around[:, None], outer, inner).astype(bboxes.dtype)

    def box_candidates(self, box1: NDArray[Any], box2: NDArray[Any], **thresholds: float) -> NDArray[np.bool_]:
        """What has an area; of objects what the host would keep."""
        there = (box2[2] > box2[0]) & (box2[3] > box2[1])
        return np.asarray(there & (~self.objects | super().box_candidates(box1, box2, **thresholds)))


class CarryingFlip(RandomFlip):  # type: ignore[misc]
    """The host flips in fractions or in pixels, whichever the labels are in."""

    def apply_instances(self, labels: Labels, params: Any) -> Labels:
        regions = labels.pop("regions")
        boxes, (height, width) = regions["instances"], labels["img"].shape[:2]
        (boxes.normalize if labels["instances"].normalized else boxes.denormalize)(width, height)
        moved = super().apply_instances(regions, params)
        return {**super().apply_instances(labels, params), "regions": moved}


class CarryingLetterBox(LetterBox):  # type: ignore[misc]
    """Its border is as without regions: background."""

    def apply_instances(self, labels: Labels, params: Any) -> Labels:
        regions = labels.pop("regions")
        grown = math.sqrt(params["ratio"][0] * params["ratio"][1])
        moved = super().apply_instances({**regions, "cls": scaled(regions["cls"], grown)}, params)
        return {**super().apply_instances(labels, params), "regions": moved}


class CarryingAlbumentations(Albumentations):  # type: ignore[misc]
    """Transforms of one's own that move boxes; what is turned there comes back larger, so nothing stays verified."""

    transform: Any

    def __call__(self, labels: Labels) -> Labels:
        if self.transform is None or not self.contains_spatial:
            return super().__call__(labels)  # type: ignore[no-any-return]
        stock, regions = self.transform, labels["regions"]
        self.transform = ride = Ride(stock, chosen(regions, lasting(regions["cls"])), labels["img"].shape[:2])
        try:
            labels = super().__call__(labels)
        finally:
            self.transform = stock
        if ride.moved and labels["img"] is ride.image:  # the host keeps the image where it has lost every label
            labels["regions"] = ride.moved
        return labels


class Ride:
    """Boxes of regions that go through Albumentations behind those of the labels, which come back alone."""

    def __init__(self, transform: Any, regions: Labels, shape: tuple[int, int]) -> None:
        self._transform, self._rows = transform, regions["cls"]
        self._boxes, self._shape = regions["instances"], shape
        self.moved: Labels = {}
        self.image: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transform, name)

    def __call__(self, **given: Any) -> Any:
        height, width = self._shape
        self._boxes.convert_bbox("xyxy")
        self._boxes.normalize(width, height)
        corners = self._boxes.bboxes.clip(0, 1)
        boxes = np.concatenate(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
        probe = np.array([[0.5, 0.5], [0.75, 0.5], [0.5, 0.75]], np.float32) * (width, height)
        found = self._transform(**{
            **given,
            "bboxes": np.concatenate((np.asarray(given["bboxes"]).reshape(-1, 4), boxes)),
            "class_labels": np.concatenate((given["class_labels"], np.zeros((len(boxes), 1)))),
            "idx": np.concatenate((given["idx"], -1 - np.arange(len(boxes)))),
            "keypoints": np.concatenate((np.asarray(given["keypoints"]).reshape(-1, 2), probe)),
            "pidx": np.concatenate((given["pidx"], -1 - np.arange(3))),
        })  # fmt: skip
        index, point = np.array(found["idx"], int), np.array(found["pidx"], int)
        rows, points = np.array(found["bboxes"], np.float32).reshape(-1, 4), np.array(found["keypoints"]).reshape(-1, 2)
        ours, probes = index < 0, points[point < 0]
        grown = 1.0
        if len(probes) == 3:
            (a, b), (c, d) = probes[1:] - probes[0]
            grown = math.sqrt(abs(a * d - b * c) / (width * height)) * 4
        self.image = found["image"]
        self.moved = labels_of(Instances(rows[ours]), scaled(self._rows[-1 - index[ours]], grown))
        mine = {
            "bboxes": rows[~ours], "idx": index[~ours], "keypoints": points[point >= 0], "pidx": point[point >= 0],
            "class_labels": [x for x, gone in zip(found["class_labels"], ours, strict=True) if not gone],
        }  # fmt: skip
        return {**found, **mine}


class CarryingFormat(Format):  # type: ignore[misc]
    """At its end regions are tensors.

    Attributes:
        diagnose: whether withheld objects are asked for.
    """

    diagnose = False

    def apply_instances(self, labels: Labels, params: Any = None) -> Labels:
        carried, width, height = labels.pop("regions"), params["w"], params["h"]
        carried["instances"].convert_bbox("xywh")
        carried["instances"].normalize(width, height)
        boxes, every = carried["instances"].bboxes.astype(np.float32), carried["cls"]
        there = ~every["withheld"]
        rows = every[there]
        one = RegionBatch(
            torch.zeros(len(rows), dtype=torch.int64), torch.from_numpy(boxes[there]),
            torch.from_numpy(rows["classes"].copy()), torch.from_numpy(rows["unknown"].copy()),
            torch.from_numpy(rows["below"] / math.sqrt(width * height)), len(rows),
        )  # fmt: skip
        found = {**super().apply_instances(labels, params), "regions": one}
        if self.diagnose:
            classes = torch.from_numpy(every[~there]["classes"].argmax(1))
            image, names = torch.zeros_like(classes), every.dtype["classes"].shape[0]
            found["withheld"] = Withheld(image, classes, torch.from_numpy(boxes[~there]), len(classes), names)
        return found


CARRIERS: dict[type, type] = {
    Mosaic: CarryingMosaic, MixUp: CarryingMixUp, CutMix: CarryingCutMix, RandomPerspective: CarryingPerspective,
    RandomFlip: CarryingFlip, LetterBox: CarryingLetterBox, Albumentations: CarryingAlbumentations,
    Format: CarryingFormat,
}  # fmt: skip
