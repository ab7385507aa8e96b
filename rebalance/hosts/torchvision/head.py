"""What torchvision's heads have in common when Ultralytics runs them.

Shapes: B images, A candidates, C classes, K candidates that are kept for non-maximum suppression.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from ultralytics.nn.modules.head import Detect

from rebalance.errors import ModelError
from rebalance.hosts.evaluation import Evaluation
from rebalance.match.boxes import decode_deltas, upcast
from rebalance.methods.method import Sites
from rebalance.methods.resobj import ResObj

Raw = dict[str, Any]  # what the head predicts, before boxes are made of it


class TorchvisionHead(Detect):  # type: ignore[misc]
    """A torchvision head as Ultralytics sees a head.

    It is a Detect for exporters and validators, but has none of its layers; `cv2` and `cv3` say so.

    Attributes:
        sites: where the loss acts on it.
        evaluation: the setting at which its family is evaluated.
        criterion: its loss, made of the head, `recipe` and `seed`.
        with_steps: the same head with an objectness, which has `add_objectness`; None: it has no such form.
        nc: classes, background not counted.
        background: number of logits for it: 1 where it has a class of its own, as the first (softmax), else 0.
        stride: (1,) pixels; the sides of images are multiples of it.
        steps: T, refinements of its objectness.
        shown: refinements that count in inference; None: all.
    """

    cv2 = ()
    cv3 = None
    sites: ClassVar[Sites]
    evaluation: Evaluation
    criterion: ClassVar[Any]
    with_steps: ClassVar[Any] = None
    background = 0
    steps = 0
    shown: int | None = None

    def __init__(self, nc: int, stride: int) -> None:
        nn.Module.__init__(self)
        self.nc, self.nl, self.reg_max = nc, 1, 1
        self.stride = torch.tensor([float(stride)])

    @abstractmethod
    def predict(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Raw:
        """Raw predictions, from the neck's maps, fine to coarse, and the images' height and width in pixels."""

    @abstractmethod
    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of candidate and class: (B, K, 4) corners in pixels, (B, K) scores, (B, K) classes."""

    def trained_at(self, imgsz: int) -> None:
        """Take note of the longer side of the images that it is trained on, in pixels."""

    def with_objectness(self, settings: ResObj) -> TorchvisionHead:
        """This head, made into one that refines an objectness over all candidates in so many steps, or ModelError."""
        if self.with_steps is None:
            raise ModelError(f"head=obj is not defined for {self.sites.name}")
        self.__class__ = self.with_steps
        made: Any = self
        made.steps = settings.resobj_steps
        made.add_objectness(settings)
        return self

    def with_sigmoid(self) -> TorchvisionHead:
        """This head, made into one whose scores are sigmoids, or ModelError."""
        raise ModelError(f"head=sigmoid is not defined for {self.sites.name}")

    def class_rows(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """For each parameter with a row for each class: (tensor, (C',) classes to keep) -> the smaller tensor."""
        raise NotImplementedError

    def forward(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Any:
        """Raw predictions in training; else (B, 4 + C, K) boxes and scores, with the raw ones unless exported."""
        raw = self.predict(features, size)
        if self.training:
            return raw
        corners, best, classes = self.decode(raw)
        corners = within(corners, size)
        # one class a candidate, as torchvision has it: the others score 0
        scores = best.new_zeros(*best.shape, self.nc).scatter(2, classes.unsqueeze(-1), best.unsqueeze(-1))
        if self.xyxy:
            boxes = corners
        else:
            low, high = corners[..., :2], corners[..., 2:]
            boxes = torch.cat(((low + high) / 2, high - low), -1)
        decoded = torch.cat((boxes, scores), -1).transpose(1, 2)
        if not self.export:
            return decoded, raw
        if self.format == "torchscript":
            return decoded
        # as constants: a shape that is left open would be taken for one that varies
        return decoded.reshape([int(side) for side in decoded.shape])


def within(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut off at the borders of the image, as torchvision does it before non-maximum suppression."""
    height, width = (int(side) for side in size)
    x, y = corners[..., 0::2].clamp(0, width), corners[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


def take(x: Tensor, place: Tensor) -> Tensor:
    """(B, K, D) rows of x (B, A, D) at the places (B, K)."""
    return x.gather(1, place.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def boxes_at(raw: Raw, kept: Tensor, scale: tuple[float, float] = (1, 1)) -> Tensor:
    """(B, K, 4) boxes of the candidates `kept` (B, K)."""
    # at least float32: half precision knows pixels beyond 512 by halves only
    return decode_deltas(upcast(take(raw["deltas"], kept)), raw["anchors"][kept], scale)


def by_cell(levels: Sequence[Tensor], *last: int) -> Tensor:
    """(B, M·D, H, W) of each level -> (B, A), or with `last` D (B, A, D): candidates in the order of H, W, M."""
    # not len(x), which a trace would take for a constant
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, *last) for x in levels], 1)


def class_rows(x: Tensor, kept: Tensor, *, per_cell: int) -> Tensor:
    """Of a parameter (per_cell · C, …) of a convolution the rows of some classes: (per_cell · C', …)."""
    return x.view(per_cell, -1, *x.shape[1:])[:, kept].flatten(0, 1)


def best_pairs(
    logits: Tensor, counts: list[int], most: int, objects: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of candidate and class of highest score, level by level, as torchvision keeps them.

    The best pairs are of candidates whose best class is among the best, so only the pairs of those are sorted.

    Args:
        logits: (B, A, C), the scores or what rises with them.
        counts: candidates of each level, in order; their sum is A.
        most: pairs kept of each level.
        objects: (B, A) in [0, 1]; the score is then this times the logits' sigmoid. None: the logits as they are.

    Returns:
        (B, K) scores, candidates and classes.
    """
    classes, start, values, places = logits.shape[-1], 0, [], []
    for count in counts:
        level = logits[:, start : start + count]
        best = level.amax(-1)
        factor = None if objects is None else objects[:, start : start + count]
        few = (best if factor is None else best.sigmoid() * factor).topk(min(most, count), 1).indices
        pairs = take(level, few)  # (B, few, C)
        if factor is not None:
            pairs = pairs.sigmoid() * factor.gather(1, few).unsqueeze(-1)
        value, place = pairs.flatten(1).topk(min(most, few.shape[1] * classes), 1)
        values.append(value)
        candidate = few.gather(1, place.div(classes, rounding_mode="floor")) + start
        places.append(candidate * classes + place % classes)
        start += count
    place = torch.cat(places, 1)
    return torch.cat(values, 1), place.div(classes, rounding_mode="floor"), place % classes


class Anchors(NamedTuple):
    """What torchvision's anchors are made from: one entry a level, from fine to coarse."""

    sizes: tuple[tuple[float, ...], ...]  # side in pixels
    ratios: tuple[tuple[float, ...], ...]  # height over width

    @property
    def per_cell(self) -> int:
        return len(self.sizes[0]) * len(self.ratios[0])

    def __call__(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, list[int]]:
        """(A, 4) corners in pixels, float32, in the order of the predictions, and the number of each level.

        `maps` are the features (…, H, W) of the levels, `size` is height and width of the image in pixels.
        """
        shapes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in maps)
        return _anchors(self, shapes, (int(size[0]), int(size[1])), maps[0].device)


@lru_cache(maxsize=32)
def _anchors(
    anchors: Anchors, shapes: tuple[tuple[int, int], ...], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, list[int]]:
    with torch.inference_mode(False):  # validation may be the first to ask, and training the next
        generator = AnchorGenerator(anchors.sizes, anchors.ratios)
        generator.set_cell_anchors(torch.float32, device)
        steps = [
            [torch.tensor(whole // cells, device=device) for whole, cells in zip(size, s, strict=True)] for s in shapes
        ]
        levels = generator.grid_anchors([list(shape) for shape in shapes], steps)
        return torch.cat(levels), [len(level) for level in levels]
