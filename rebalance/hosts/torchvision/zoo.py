"""The detectors, by the name that `model=` takes: how each is built, and where its weights come from."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import batch_norm, pad
from torchvision import models
from torchvision.models import WeightsEnum, detection
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.ssd import SSDHead
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign
from torchvision.ops import feature_pyramid_network as fpn
from ultralytics.nn.tasks import DetectionModel

from rebalance.hosts.torchvision.faster_rcnn import FasterRCNNDetect, Numbers
from rebalance.hosts.torchvision.head import Anchors, TorchvisionHead
from rebalance.hosts.torchvision.retinanet import RetinaNetDetect
from rebalance.hosts.torchvision.ssd import DefaultBoxes, SSDDetect
from rebalance.match.candidates import BACKGROUND

Parts = tuple[nn.Module, nn.Module, TorchvisionHead]  # backbone, neck, head
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ROUND_ZERO = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CAFFE = {"mean": (0.48235, 0.45882, 0.40784), "std": (1 / 255, 1 / 255, 1 / 255)}
AS_IT_IS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Detector(NamedTuple):
    """One row of the table."""

    head: type[TorchvisionHead]
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
        super().__init__(*layers)
        self.kept = kept

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        found: OrderedDict[str, Tensor] = OrderedDict()
        for index, layer in enumerate(self):
            x = layer(x)
            if index in self.kept:
                found[str(index)] = x
        return found


class Halved(fpn.ExtraFPNBlock):  # type: ignore[misc]
    """One more level of a pyramid, the coarsest by a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2, 1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        return [*results, self.conv(results[-1])], [*names, "half"]


def resnet_levels(network: Callable[..., nn.Module], first: int) -> IntermediateLayerGetter:
    """The four stages of a ResNet, handed on from stage `first` (1 to 4); random weights."""
    return IntermediateLayerGetter(network(weights=None), {f"layer{k}": str(k - first) for k in range(first, 5)})


def yolov5n_levels() -> Levels:
    """YOLOv5n's backbone: 64, 128 and 256 channels at strides 8, 16 and 32. The layers are Ultralytics'."""
    return Levels(list(DetectionModel("yolov5n.yaml", verbose=False).model[:10]), kept=(4, 6, 9))


def _anchors(sizes: Sequence[Sequence[float]]) -> Anchors:
    """Of these sides, flat, square and upright ones."""
    return Anchors(tuple(map(tuple, sizes)), ((0.5, 1.0, 2.0),) * len(sizes))


def retinanet_resnet(network: Callable[..., nn.Module], sixth: int, nc: int) -> Parts:
    """torchvision's RetinaNet: five levels from stride 8 to 128, nine anchors a cell, four convolutions a tower.

    The sixth level is made of the pyramid's fifth where it takes 256 channels, as in torchvision's first version, or of
    the body's last stage where it takes 2048, as in Lin et al. 2017, Detectron and mmdetection.
    """
    neck = fpn.FeaturePyramidNetwork([512, 1024, 2048], 256, extra_blocks=fpn.LastLevelP6P7(sixth, 256))
    anchors = _anchors([[float(int(x * 2 ** (k / 3))) for k in range(3)] for x in (32, 64, 128, 256, 512)])
    head = RetinaNetDetect(RetinaNetHead(256, anchors.per_cell, nc), anchors, nc)
    return resnet_levels(network, 2), neck, head


def retinanet_resnet_v2(nc: int) -> Parts:
    """torchvision's second version: normalised towers, the sixth level made of the body's last stage, GIoU on boxes."""
    whole = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=nc)
    anchors = Anchors(whole.anchor_generator.sizes, whole.anchor_generator.aspect_ratios)
    return whole.backbone.body, whole.backbone.fpn, RetinaNetDetect(whole.head, anchors, nc, giou=True)


def retinanet_tiny(nc: int) -> Parts:
    """For CPUs: YOLOv5n's backbone, a pyramid of 64 channels from stride 8 to 64, two convolutions a tower."""
    neck = fpn.FeaturePyramidNetwork([64, 128, 256], 64, extra_blocks=Halved(64))
    anchors = _anchors([[x * 2 ** (k / 3) for k in range(3)] for x in (16, 32, 64, 128)])  # for images of 256 px
    layers = RetinaNetHead(64, anchors.per_cell, nc, norm_layer=partial(nn.GroupNorm, 8))
    for tower in (layers.classification_head, layers.regression_head):
        tower.conv = tower.conv[:2]
    return yolov5n_levels(), neck, RetinaNetDetect(layers, anchors, nc, most=300)


class Unpadded(nn.Conv2d):
    """A convolution without padding that also takes maps smaller than its kernel, with zeros at their end."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [max(0, k - n) for k, n in zip(self.kernel_size, x.shape[2:], strict=True)]
        return super().forward(pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x)


class LastImageNorm(nn.BatchNorm2d):
    """Batch normalisation that in training also takes one value a channel: a 1×1 map of an epoch's last, single image.

    It has no variance, so the moving statistics are used, and left as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class Smaller(nn.Module):
    """Further levels, each by a 1×1 and a 3×3 convolution of stride 2 from the one before."""

    def __init__(self, channels: int, added: tuple[int, ...]) -> None:
        """Build them: `channels` of the coarsest level there is, and of each level added."""
        super().__init__()
        sides = zip((channels, *added), added, strict=False)
        self.blocks = nn.ModuleList(_smaller(*pair, partial(nn.GroupNorm, 8), nn.SiLU) for pair in sides)

    def forward(self, features: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        found = OrderedDict(features)
        x = list(features.values())[-1]
        for index, block in enumerate(self.blocks):
            x = block(x)
            found[f"smaller{index}"] = x
        return found


def _smaller(inside: int, out: int, norm: Callable[..., nn.Module], activation: Callable[..., nn.Module]) -> nn.Module:
    made = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=activation)
    return nn.Sequential(made(inside, out // 2, 1), made(out // 2, out, 3, 2))


def ssd_vgg(nc: int) -> Parts:
    """torchvision's SSD300: six levels, four or six default boxes a cell.

    The last two convolutions have no padding, and would not take maps of less than 257 px.
    """
    whole = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=nc + 1)
    for block in whole.backbone.extra[3:]:
        old = block[2]
        block[2] = Unpadded(old.in_channels, old.out_channels, old.kernel_size)
        block[2].load_state_dict(old.state_dict())
    boxes = DefaultBoxes(
        (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        (8, 16, 32, 64, 64, 64), exact=4, lost=(0, 0, 0, 0, 2, 4),
    )  # fmt: skip
    return whole.backbone, nn.Identity(), SSDDetect(whole.head, boxes, nc, side=300)


# SSDLite's
SIX_LEVELS = DefaultBoxes((0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), ((2, 3),) * 6, (16, 32, 64, 128, 256, 512))


def ssdlite_mobilenet(nc: int) -> Parts:
    """torchvision's SSDLite320, its last stage halved as in the detector trained on COCO.

    Of a MobileNet-v3 trained on ImageNet, whose last stage is not, the stages before it fit.
    """
    norm = partial(LastImageNorm, eps=0.001, momentum=0.03)
    build = detection.ssdlite320_mobilenet_v3_large
    whole = build(weights=None, weights_backbone=None, num_classes=nc + 1, norm_layer=norm)
    return whole.backbone, nn.Identity(), SSDDetect(whole.head, SIX_LEVELS, nc, side=320)


def ssd_head(channels: list[int], boxes: DefaultBoxes, nc: int, side: int) -> SSDDetect:
    """SSD's 3×3 convolutions, one a level. At first a box is background with a probability of 0.99.

    That is Lin et al. 2017, section 4.1: without mining, the sum over all that is background would swamp the loss.
    """
    layers = SSDHead(channels, boxes.per_cell, nc + 1)
    for conv in layers.classification_head.module_list:
        conv.bias.data.view(-1, nc + 1)[:, BACKGROUND] = math.log(nc * 0.99 / 0.01)
    return SSDDetect(layers, boxes, nc, side=side)


def mobilenet_v1_levels() -> Levels:
    """MobileNet-v1 (Howard et al. 2017, table 1) and four smaller levels: 512 channels at stride 16, 1024 at 32, 512 …

    torchvision has no MobileNet-v1; the blocks are its own.
    """
    made = partial(Conv2dNormActivation, norm_layer=LastImageNorm, activation_layer=nn.ReLU6)
    layers: list[nn.Module] = [made(3, 32, 3, 2)]
    inside = 32
    for out in (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024):
        stride = 2 if out > inside > 32 else 1
        layers.append(nn.Sequential(made(inside, inside, 3, stride, groups=inside), made(inside, out, 1)))
        inside = out
    for out in (512, 256, 256, 128):
        layers.append(_smaller(inside, out, LastImageNorm, nn.ReLU6))
        inside = out
    return Levels(layers, kept=(11, 13, 14, 15, 16, 17))


def ssd_mobilenet_v1(nc: int) -> Parts:
    """The label-noise paper's: MobileNet-v1 with SSD's heads at six levels, default boxes of side 0.2 to 0.95.

    The paper's is TensorFlow's, trained on COCO. That one has 1×1 convolutions for heads where torchvision's are 3×3,
    and only three default boxes a cell on the finest level; its weights do not fit, so this one starts from scratch.
    """
    return mobilenet_v1_levels(), nn.Identity(), ssd_head([512, 1024, 512, 256, 256, 128], SIX_LEVELS, nc, 320)


def ssd_tiny(nc: int) -> Parts:
    """For CPUs: YOLOv5n's backbone and two smaller levels, from stride 8 to 128; no pyramid."""
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,))
    boxes = DefaultBoxes((0.08, 0.18, 0.35, 0.55, 0.75, 0.95), ratios, (8, 16, 32, 64, 128))
    return yolov5n_levels(), Smaller(256, (128, 128)), ssd_head([64, 128, 256, 128, 128], boxes, nc, 256)


def faster_rcnn_head(
    channels: int, sides: tuple[float, ...], levels: list[str], pooled: int, hidden: int, nc: int, numbers: Numbers
) -> FasterRCNNDetect:
    """An RPN with anchors of one side a level, and two layers on RoIs of `pooled`² cells from the levels named."""
    anchors = _anchors([[side] for side in sides])
    return FasterRCNNDetect(
        RPNHead(channels, anchors.per_cell), MultiScaleRoIAlign(levels, output_size=pooled, sampling_ratio=2),
        TwoMLPHead(channels * pooled**2, hidden), FastRCNNPredictor(hidden, 1 + nc), anchors, nc, 32, numbers,
    )  # fmt: skip


def fasterrcnn_resnet(network: Callable[..., nn.Module], nc: int) -> Parts:
    """torchvision's Faster R-CNN: five levels from stride 4 to 64, three anchors a cell, 7×7 RoIs of four levels."""
    neck = fpn.FeaturePyramidNetwork([256, 512, 1024, 2048], 256, extra_blocks=fpn.LastLevelMaxPool())
    head = faster_rcnn_head(256, (32.0, 64.0, 128.0, 256.0, 512.0), ["0", "1", "2", "3"], 7, 1024, nc, Numbers())
    return resnet_levels(network, 1), neck, head


def fasterrcnn_of(build: Callable[..., Any], numbers: Numbers, nc: int) -> Parts:
    """The parts of one of torchvision's Faster R-CNNs, random: of its second version, or on a MobileNet."""
    whole = build(weights=None, weights_backbone=None, num_classes=1 + nc)
    made, rois = whole.rpn.anchor_generator, whole.roi_heads
    head = FasterRCNNDetect(
        whole.rpn.head, rois.box_roi_pool, rois.box_head, rois.box_predictor,
        Anchors(made.sizes, made.aspect_ratios), nc, 32, numbers,
    )  # fmt: skip
    return whole.backbone.body, whole.backbone.fpn, head


def fasterrcnn_tiny(nc: int) -> Parts:
    """For CPUs: YOLOv5n's backbone, a pyramid of 64 channels from stride 8 to 64, 5×5 RoIs, few proposals."""
    neck = fpn.FeaturePyramidNetwork([64, 128, 256], 64, extra_blocks=fpn.LastLevelMaxPool())
    numbers = Numbers(before=(300, 300), after=(200, 200), anchors=128, rois=64, most=300)
    sides = (24.0, 48.0, 96.0, 192.0)  # for images of 256 px
    head = faster_rcnn_head(64, sides, ["4", "6", "9"], 5, 128, nc, numbers)
    return yolov5n_levels(), neck, head


WHOLE = {"backbone.body.": "model.0.", "backbone.fpn.": "model.1.", "head.": "model.2.layers."}
RESNET = {**WHOLE, **{part: f"model.0.{part}" for part in ("conv1.", "bn1.", *(f"layer{k}." for k in range(1, 5)))}}
# Files from before torchvision 0.14 have other names for single convolutions
OLD_FPN = {
    f"backbone.fpn.{part}.{i}.{k}": f"model.1.{part}.{i}.0.{k}"
    for part in ("inner_blocks", "layer_blocks") for i in range(4) for k in ("weight", "bias")
}  # fmt: skip
FASTER_RCNN = {
    **OLD_FPN, **{f"rpn.head.conv.{k}": f"model.2.rpn.conv.0.0.{k}" for k in ("weight", "bias")},
    "rpn.head.": "model.2.rpn.", "roi_heads.box_head.": "model.2.mlp.",
    "roi_heads.box_predictor.": "model.2.predictor.", **RESNET,
}  # fmt: skip
SSD = {"backbone.": "model.0.", "head.": "model.2.layers."}
# SSD cuts the backbone in the middle of a stage
VGG = {
    **SSD, **{f"features.{i}.": f"model.0.extra.0.{i - 23}." for i in (24, 26, 28)}, "features.": "model.0.features.",
}  # fmt: skip
MOBILENET_V3 = {
    **SSD, "features.13.block.0.": "model.0.features.0.13.", "features.13.block.": "model.0.features.1.0.",
    **{f"features.{i}.": f"model.0.features.1.{i - 13}." for i in (14, 15, 16)}, "features.": "model.0.features.0.",
}  # fmt: skip
MOBILENET_FPN = {**FASTER_RCNN, "features.": "model.0."}
YOLOV5 = {f"model.{i}.": f"model.0.{i}." for i in range(10)}  # its later layers have no place here

# Of whose COCO weights the batch normalisation was frozen, and added no ε to the variance
FROZEN = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")

ZOO: dict[str, Detector] = {
    "retinanet_resnet50_fpn": Detector(
        RetinaNetDetect, partial(retinanet_resnet, models.resnet50, 256), "RetinaNet, ResNet-50 and FPN", **IMAGENET,
        prefixes=RESNET, backbone=models.ResNet50_Weights.IMAGENET1K_V1,
        coco=detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    ),
    "retinanet_resnet50_fpn_v2": Detector(
        RetinaNetDetect, retinanet_resnet_v2, "RetinaNet, ResNet-50 and FPN, torchvision's second: GIoU, GroupNorm",
        **IMAGENET, prefixes=RESNET, backbone=models.ResNet50_Weights.IMAGENET1K_V1,
        coco=detection.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
    ),
    "retinanet_resnet101_fpn": Detector(
        RetinaNetDetect, partial(retinanet_resnet, models.resnet101, 2048), "RetinaNet, ResNet-101 and FPN (BRL's)",
        **IMAGENET, prefixes=RESNET, backbone=models.ResNet101_Weights.IMAGENET1K_V1,
    ),
    "retinanet_tiny": Detector(
        RetinaNetDetect, retinanet_tiny, "RetinaNet for CPUs: YOLOv5n's backbone, narrow FPN, shallow head", **AS_IT_IS,
        prefixes=YOLOV5,
    ),
    "fasterrcnn_resnet50_fpn": Detector(
        FasterRCNNDetect, partial(fasterrcnn_resnet, models.resnet50), "Faster R-CNN, ResNet-50 and FPN", **IMAGENET,
        prefixes=FASTER_RCNN, backbone=models.ResNet50_Weights.IMAGENET1K_V1,
        coco=detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    ),
    "fasterrcnn_resnet50_fpn_v2": Detector(
        FasterRCNNDetect, partial(fasterrcnn_of, detection.fasterrcnn_resnet50_fpn_v2, Numbers()),
        "Faster R-CNN, ResNet-50 and FPN, torchvision's second: deeper heads, BatchNorm", **IMAGENET,
        prefixes=FASTER_RCNN, backbone=models.ResNet50_Weights.IMAGENET1K_V1,
        coco=detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": Detector(
        FasterRCNNDetect, partial(fasterrcnn_of, detection.fasterrcnn_mobilenet_v3_large_fpn, Numbers(least=0.05)),
        "Faster R-CNN, MobileNet-v3 and FPN", **IMAGENET, prefixes=MOBILENET_FPN,
        backbone=models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        coco=detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Detector(
        FasterRCNNDetect,
        partial(
            fasterrcnn_of, detection.fasterrcnn_mobilenet_v3_large_320_fpn,
            Numbers(before=(2000, 150), after=(2000, 150), least=0.05),
        ),
        "Faster R-CNN, MobileNet-v3 and FPN, few proposals: for imgsz=320", **IMAGENET, prefixes=MOBILENET_FPN,
        backbone=models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        coco=detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    ),
    "fasterrcnn_resnet101_fpn": Detector(
        FasterRCNNDetect, partial(fasterrcnn_resnet, models.resnet101), "Faster R-CNN, ResNet-101 and FPN", **IMAGENET,
        prefixes=FASTER_RCNN, backbone=models.ResNet101_Weights.IMAGENET1K_V1,
    ),
    "fasterrcnn_tiny": Detector(
        FasterRCNNDetect, fasterrcnn_tiny, "Faster R-CNN for CPUs: YOLOv5n's backbone, narrow FPN, few small RoIs",
        **AS_IT_IS, prefixes=YOLOV5,
    ),
    "ssd300_vgg16": Detector(
        SSDDetect, ssd_vgg, "SSD300, VGG-16; imgsz=300 is rounded up to 320", **CAFFE, prefixes=VGG,
        backbone=models.VGG16_Weights.IMAGENET1K_FEATURES, coco=detection.SSD300_VGG16_Weights.COCO_V1,
    ),
    "ssdlite320_mobilenet_v3_large": Detector(
        SSDDetect, ssdlite_mobilenet, "SSDLite320, MobileNet-v3", **ROUND_ZERO, prefixes=MOBILENET_V3,
        backbone=models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        coco=detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1,
    ),
    "ssd_mobilenet_v1": Detector(
        SSDDetect, ssd_mobilenet_v1, "SSD, MobileNet-v1 built here (torchvision has none), no weights", **ROUND_ZERO,
        prefixes={},
    ),
    "ssd_tiny": Detector(
        SSDDetect, ssd_tiny, "SSD for CPUs: YOLOv5n's backbone and two smaller levels", **AS_IT_IS, prefixes=YOLOV5,
    ),
}  # fmt: skip
