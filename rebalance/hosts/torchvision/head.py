"""What torchvision's heads have in common when Ultralytics runs them.

Shapes: B images, A candidates, C classes, K candidates that are kept for non-maximum suppression.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect

from rebalance.errors import ModelError
from rebalance.methods.method import Sites
from rebalance.methods.resobj import ResObj

Raw = dict[str, Any]  # what the head predicts, before boxes are made of it


class TorchvisionHead(Detect):  # type: ignore[misc]
    """A torchvision head as Ultralytics sees a head.

    It is a Detect for exporters and validators, but has none of its layers; `cv2` and `cv3` say so.

    Attributes:
        sites: where the loss acts on it.
        criterion: its loss, made of the head, `recipe` and `seed`.
        nc: classes, background not counted.
        background: number of logits for it: 1 where it has a class of its own, as the first (softmax), else 0.
        stride: (1,) pixels; the sides of images are multiples of it.
        steps: T, refinements of its objectness.
        shown: refinements that count in inference; None: all.
    """

    cv2 = ()
    cv3 = None
    sites: ClassVar[Sites]
    criterion: ClassVar[Any]
    background = 0
    steps = 0
    shown: int | None = None

    def __init__(self, nc: int, stride: int) -> None:
        """Build the part that all heads have.

        Args:
            nc: classes.
            stride: what the sides of images are multiples of, in pixels.
        """
        nn.Module.__init__(self)
        self.nc, self.nl, self.reg_max = nc, 1, 1
        self.stride = torch.tensor([float(stride)])

    @abstractmethod
    def predict(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Raw:
        """Raw predictions.

        Args:
            features: maps of the neck, from fine to coarse.
            size: height, width of the images in pixels.
        """

    @abstractmethod
    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of candidate and class: (B, K, 4) corners in pixels, (B, K) scores, (B, K) classes."""

    def trained_at(self, imgsz: int) -> None:
        """Take note of the longer side of the images that it is trained on, in pixels."""

    def with_objectness(self, settings: ResObj) -> TorchvisionHead:
        """This head, made into one that refines an objectness over all candidates in so many steps.

        Raises:
            ModelError: it has no such form.
        """
        raise ModelError(f"head=obj is not defined for {self.sites.name}")

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
        if self.export:  # as constants: a shape that is left open would be taken for one that varies
            return decoded.reshape([int(side) for side in decoded.shape])
        return decoded, raw


def within(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut off at the borders of the image, as torchvision does it before non-maximum suppression.

    Args:
        corners: (..., 4) in pixels.
        size: height, width of the image.
    """
    height, width = (int(side) for side in size)
    x, y = corners[..., 0::2].clamp(0, width), corners[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


def take(x: Tensor, place: Tensor) -> Tensor:
    """(B, K, D) rows of x (B, A, D) at the places (B, K)."""
    return x.gather(1, place.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


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
