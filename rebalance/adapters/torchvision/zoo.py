"""The detectors, by the name that `model=` takes: how each is built, and where its weights come from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, WeightsEnum, resnet50, resnet101
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork, LastLevelP6P7
from ultralytics.nn.tasks import DetectionModel

from rebalance.adapters.torchvision.anchors import Anchors
from rebalance.adapters.torchvision.head import TorchvisionHead
from rebalance.adapters.torchvision.retinanet import RetinaNetDetect

Parts = tuple[nn.Module, nn.Module, TorchvisionHead]  # backbone, neck, head
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
AS_IT_IS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Detector(NamedTuple):
    """One row of the table."""

    host: str  # a key of rebalance.losses.registry.PLACES
    build: Callable[[int], Parts]  # from the number of classes
    about: str
    mean: tuple[float, float, float]  # of the images that the backbone was trained on, RGB in [0, 1]
    std: tuple[float, float, float]
    prefixes: Mapping[str, str]  # a parameter's name in torchvision's (or YOLOv5's) files -> here
    backbone: WeightsEnum | None = None  # of ImageNet
    coco: WeightsEnum | None = None  # of the whole detector


class Levels(nn.Sequential):
    """A chain of layers of which some outputs are handed on, by index, from fine to coarse."""

    def __init__(self, layers: list[nn.Module], kept: tuple[int, ...]) -> None:
        """Build the chain; `kept` are the indices of the outputs."""
        super().__init__(*layers)
        self.kept = kept

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Outputs by index."""
        found: OrderedDict[str, Tensor] = OrderedDict()
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.kept:
                found[str(index)] = x
        return found


class Halved(ExtraFPNBlock):  # type: ignore[misc]
    """One more level of a pyramid, the coarsest by a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        """Build it for a pyramid of so many channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append the level."""
        return [*results, self.conv(results[-1])], [*names, "half"]


def resnet_levels(network: Callable[..., nn.Module], first: int) -> IntermediateLayerGetter:
    """The four stages of a ResNet, handed on from stage `first` (1 to 4); random weights."""
    return IntermediateLayerGetter(network(weights=None), {f"layer{k}": str(k - first) for k in range(first, 5)})


def yolov5n_levels() -> Levels:
    """YOLOv5n's backbone: 64, 128 and 256 channels at strides 8, 16 and 32. The layers are Ultralytics'."""
    layers = list(DetectionModel("yolov5n.yaml", verbose=False).model[:10])
    return Levels(layers, kept=(4, 6, 9))


def retinanet_resnet(network: Callable[..., nn.Module], nc: int) -> Parts:
    """torchvision's RetinaNet: five levels from stride 8 to 128, nine anchors a cell, four convolutions a tower."""
    neck = FeaturePyramidNetwork([512, 1024, 2048], 256, extra_blocks=LastLevelP6P7(2048, 256))
    sizes = tuple(
        (float(x), float(int(x * 2 ** (1 / 3))), float(int(x * 2 ** (2 / 3)))) for x in (32, 64, 128, 256, 512)
    )
    anchors = Anchors(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetDetect(RetinaNetHead(256, anchors.per_cell, nc), anchors, nc, stride=128)
    return resnet_levels(network, 2), neck, head


def retinanet_tiny(nc: int) -> Parts:
    """For CPUs: YOLOv5n's backbone, a pyramid of 64 channels from stride 8 to 64, two convolutions a tower."""
    neck = FeaturePyramidNetwork([64, 128, 256], 64, extra_blocks=Halved(64))
    sizes = tuple((float(x), x * 2 ** (1 / 3), x * 2 ** (2 / 3)) for x in (16, 32, 64, 128))  # for images of 256 px
    anchors = Anchors(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    layers = RetinaNetHead(64, anchors.per_cell, nc, norm_layer=partial(nn.GroupNorm, 8))
    for tower in (layers.classification_head, layers.regression_head):
        tower.conv = tower.conv[:2]
    return yolov5n_levels(), neck, RetinaNetDetect(layers, anchors, nc, stride=64, most=300)


WHOLE = {"backbone.body.": "model.0.", "backbone.fpn.": "model.1.", "head.": "model.2.layers."}
RESNET = {
    **WHOLE,
    **{part: f"model.0.{part}" for part in ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")},
}
YOLOV5 = {"model.": "model.0."}  # its later layers have no place here

ZOO: dict[str, Detector] = {
    "retinanet_resnet50_fpn": Detector(
        "retinanet", partial(retinanet_resnet, resnet50), "RetinaNet, ResNet-50 and FPN", **IMAGENET, prefixes=RESNET,
        backbone=ResNet50_Weights.IMAGENET1K_V1, coco=RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    ),
    "retinanet_resnet101_fpn": Detector(
        "retinanet", partial(retinanet_resnet, resnet101), "RetinaNet, ResNet-101 and FPN (BRL's)", **IMAGENET,
        prefixes=RESNET, backbone=ResNet101_Weights.IMAGENET1K_V1,
    ),
    "retinanet_tiny": Detector(
        "retinanet", retinanet_tiny, "RetinaNet for CPUs: YOLOv5n's backbone, narrow FPN, shallow head", **AS_IT_IS,
        prefixes=YOLOV5,
    ),
}  # fmt: skip
