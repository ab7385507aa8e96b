"""SSD and SSDLite: torchvision's layers, default boxes and matching; the loss is ours, for the whole batch at once.

Liu et al. 2016, "SSD: Single Shot MultiBox Detector". torchvision squeezes every image into a square of 300 or 320 px;
here images keep their shape and validation pads them, so default boxes have the size in pixels that they had in
training, measured by the longer side of a training image. In a square image of that size they are torchvision's.
Shapes: B images, A default boxes, C classes, G labels of the fullest image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection.ssd import SSDHead
from torchvision.models.detection.ssdlite import SSDLiteHead

from rebalance.heads.objectness import logit
from rebalance.hosts.evaluation import SSD, SSDLITE, Evaluation
from rebalance.hosts.torchvision.dense import DenseCriterion, one_hot
from rebalance.hosts.torchvision.head import Raw, TorchvisionHead, best_pairs, boxes_at, class_rows
from rebalance.match.boxes import encode_deltas, upcast
from rebalance.match.candidates import BACKGROUND, SIGMOID, SOFTMAX
from rebalance.match.iou import Matched, match_by_iou
from rebalance.match.padded import Padded
from rebalance.methods.method import Site, Sites

MATCH_IOU = 0.5
PRIOR = 0.01  # of a class at the start, where each has a sigmoid: Lin et al. 2017, section 4.1
STRIDE = 32  # images are padded to multiples of it; the coarser levels need no more
SCALE = (10.0, 5.0)  # of the offsets of centre and size; SSD calls the inverse variances

CLASSES = Site(
    name="ssd", where="ssd", about="class scores of all default boxes", own="ohem",
    gives=frozenset({"overlap", SOFTMAX, "one"}),
    divisors={
        "image": "positives of each image, mean over images",
        "batch": "positives of the batch",
        "candidates": "candidates of the batch",
    },
    host="batch",
)  # fmt: skip
SCORES = replace(
    CLASSES, name="ssd-sigmoid", where="ssd with head=sigmoid", gives=frozenset({"overlap", SIGMOID, "one"}),
    divisors={**CLASSES.divisors, "candidates": "candidates of the batch times classes"},
)  # fmt: skip


class DefaultBoxes(NamedTuple):
    """What default boxes are made from (section 2.2): one entry a level, from fine to coarse."""

    scales: tuple[float, ...]  # side as a fraction of a training image's; one more than there are levels
    ratios: tuple[tuple[float, ...], ...]  # width over height and the inverse, besides 1
    strides: tuple[int, ...]  # in pixels
    exact: int = 0  # so many levels, the first, have a box every `stride` pixels; else the cells divide the image
    lost: tuple[int, ...] = ()  # cells that convolutions without padding have taken from a side

    @property
    def per_cell(self) -> list[int]:
        return [2 + 2 * len(ratios) for ratios in self.ratios]

    def sides(self, level: int) -> list[tuple[float, float]]:
        """Width and height of a level's default boxes as fractions of a training image's, in torchvision's order."""
        scale, following = self.scales[level : level + 2]
        between = math.sqrt(scale * following)
        found = [(scale, scale), (between, between)]
        for ratio in self.ratios[level]:
            w, h = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            found += [(w, h), (h, w)]
        return [(min(w, 1), min(h, 1)) for w, h in found]

    def spacing(self, level: int, side: int) -> float:
        """Pixels between the centres of a level's cells."""
        stride = self.strides[level]
        if level < self.exact:
            return stride
        lost = self.lost[level] if self.lost else 0
        return side / max(1, math.ceil(side / stride) - lost)

    def __call__(self, maps: Sequence[Tensor], side: int) -> Tensor:
        """(A, 4) corners in pixels, float32, in the order of the predictions, from features (…, H, W) of the levels.

        `side` is the longer side of the images in training, in pixels.
        """
        shapes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in maps)
        return _default_boxes(self, shapes, side, maps[0].device)


@lru_cache(maxsize=32)
def _default_boxes(boxes: DefaultBoxes, shapes: tuple[tuple[int, int], ...], side: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # validation may be the first to ask, and training the next
        levels = []
        for level, shape in enumerate(shapes):
            y, x = ((torch.arange(n) + 0.5) * boxes.spacing(level, side) for n in shape)
            sides = torch.tensor(boxes.sides(level)) * side
            centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 1, 2)  # (H·W, 1, 2)
            levels.append(torch.cat((centres - sides / 2, centres + sides / 2), -1).view(-1, 4))
        return torch.cat(levels).to(device)


class SSDCriterion(DenseCriterion):
    """Softmax cross-entropy or one of our methods on all default boxes, smooth L1 on the offsets of the positives.

    Positive is a default box with an IoU of at least 0.5 with its nearest label, or the best of a label; the others are
    negative. `loss=ohem` is SSD's own loss: of the negatives of an image the three hardest for each positive; an image
    without labels counts nothing. (Where an image has fewer negatives than that, torchvision counts positives twice.)
    With any other loss nothing is mined.
    """

    link = SOFTMAX
    scale = SCALE

    def match(self, anchors: Tensor, labels: Padded) -> Matched:
        return match_by_iou(anchors, labels, high=MATCH_IOU, low=MATCH_IOU, rescue="first")

    def box_loss(self, deltas: Tensor, boxes: Tensor, anchors: Tensor) -> Tensor:
        """(…) smooth L1, summed over the four offsets."""
        targets = encode_deltas(boxes, anchors, self.scale)
        return smooth_l1_loss(deltas, targets, reduction="none").sum(-1)

    def class_targets(self, logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
        """(B, A) class of a positive, counted from 1; else background."""
        return torch.where(positive, classes + 1, BACKGROUND)

    def confidence(self, logits: Tensor) -> Tensor:
        """(B, A) log odds of any class against background."""
        return logits[..., BACKGROUND + 1 :].logsumexp(-1) - logits[..., BACKGROUND]


class SigmoidSSDCriterion(SSDCriterion):
    """The same with a binary cross-entropy for each class; background is where all of them are 0.

    With `loss=ohem` the three negatives of the highest sum over classes.
    """

    link = SIGMOID

    def class_targets(self, logits: Tensor, classes: Tensor, positive: Tensor) -> Tensor:
        """(B, A, C) 1 for the class of a positive."""
        return one_hot(logits, classes, positive)

    def confidence(self, logits: Tensor) -> Tensor:
        """(B, A) the highest of the classes' logits."""
        return logits.amax(-1)


class SSDDetect(TorchvisionHead):
    """torchvision's SSD or SSDLite head with its default boxes.

    Attributes:
        side: longer side of the images in training, in pixels; the trainer sets it.
    """

    sites = Sites("ssd", {"stock": CLASSES, "sigmoid": SCORES})
    criterion: ClassVar[Any] = SSDCriterion
    background = 1
    unused = 0  # of the first logits

    def __init__(
        self, layers: SSDHead | SSDLiteHead, boxes: DefaultBoxes, nc: int, *, side: int, most: int = 2000
    ) -> None:
        """Build the head of torchvision's convolutions for nc + 1 classes.

        Args:
            side: of the images that published weights were trained on; a training of ours sets its own.
            most: pairs of default box and class kept for non-maximum suppression. torchvision keeps 400 of each class,
                which for 80 classes would be 32000.
        """
        super().__init__(nc, STRIDE)
        self.layers, self.boxes_of, self.side, self.most = layers, boxes, side, most

    @property
    def evaluation(self) -> Evaluation:  # type: ignore[override]
        """SSDLite's numbers are others than SSD's."""
        return SSDLITE if isinstance(self.layers, SSDLiteHead) else SSD

    def predict(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Raw:
        """`logits` (B, A, 1 + C), `deltas` (B, A, 4), `anchors` (A, 4) in pixels."""
        maps = list(features.values())
        found = self.layers(maps)
        return {
            "logits": found["cls_logits"][..., self.unused :], "deltas": found["bbox_regression"],
            "anchors": self.boxes_of(maps, self.side), "size": size,
        }  # fmt: skip

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of the best pairs of all levels."""
        probs = self.probabilities(upcast(raw["logits"]))
        scores, kept, classes = best_pairs(probs, [probs.shape[1]], self.most)
        return boxes_at(raw, kept, SCALE), scores, classes

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, A, C) of the classes."""
        return logits.softmax(-1)[..., BACKGROUND + 1 :]

    def with_sigmoid(self) -> TorchvisionHead:
        """This head, made into one with a sigmoid for each class, which at first has a probability of 0.01.

        The background's row stays, unused, so that published weights fit.
        """
        self.__class__ = SigmoidSSDDetect
        for name in self.class_rows():
            if name.endswith(".bias"):
                nn.init.constant_(self.get_parameter(name), logit(PRIOR))
        return self

    def class_rows(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """The last convolution of each level: (default boxes · (1 + C), …)."""
        found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        for level, per_cell in enumerate(self.boxes_of.per_cell):
            block = f"layers.classification_head.module_list.{level}"
            last = f"{block}.1" if isinstance(self.layers, SSDLiteHead) else block
            found |= dict.fromkeys((f"{last}.weight", f"{last}.bias"), partial(class_rows, per_cell=per_cell))
        return found

    def trained_at(self, imgsz: int) -> None:
        """Default boxes have the size in pixels that they have in training."""
        self.side = imgsz


class SigmoidSSDDetect(SSDDetect):
    """SSD as TensorFlow's object detection has it: scores are sigmoids, one a class. Made by `with_sigmoid`.

    There the background has a sigmoid too, which is trained and then left out of the scores; here it has none.
    """

    criterion = SigmoidSSDCriterion
    unused = 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, A, C) of the classes."""
        return logits.sigmoid()
