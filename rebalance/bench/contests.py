"""What `rebalance bench` times: our losses and heads beside the hosts' own, on the same model and the same batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss
from ultralytics.cfg import get_cfg
from ultralytics.nn.autobackend import AutoBackend

from rebalance.bench import hosts_own, ours
from rebalance.bench.ours import CLASSES
from rebalance.errors import ConfigError, nearest
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.match.candidates import candidate_state
from rebalance.settings import BenchFlags

LABELS = 8  # an image, about as many as the built-in data has
CANDIDATES = 100_000  # an image of 640 pixels, of the tensor that element losses are timed on
MATCHED, FAR = 0.001, 0.9  # shares of those candidates: matched, and nowhere near a label


class Load(NamedTuple):
    """How much work, and where it is done."""

    batch: int  # images
    imgsz: int  # height and width in pixels
    device: torch.device


class Side(NamedTuple):
    """One party to a contest."""

    name: str
    loss: Callable[[Any], Any]  # what `adapt` gives -> scalar; where inference is timed, images -> predictions
    adapt: Callable[[Any], Any] = hosts_own.as_is  # the model's output -> what the loss takes; a head's work
    parameters: int | None = None  # of the model, where it is a side's own
    model: Callable[[Tensor], Any] | None = None  # in the place of the contest's, of which it has the parameters


class Contest(NamedTuple):
    """A model, a batch, and what is compared on them; the first side is the host's own."""

    name: str
    model: Any
    images: Tensor  # of an element loss: the logits
    sides: list[Side]
    kind: str = "loss"  # "loss", "step", "element" or "inference"


def losses(load: Load, *, model: str, head: str = "stock") -> Contest:
    """The loss of a model's host and ours, on the same predictions, anchors and proposals.

    torchvision's losses match image by image, as its own models do; the labels are in its layout beforehand, which is
    time that only ours takes. Its random samples are as many as ours, but others.

    Args:
        load: how much work.
        model: a YOLO's file, a detector of ZOO, or a key of PRESETS, which choose a detector for the device.
        head: of the model.

    Raises:
        ImportError: YOLOv5's loss, and the package `yolov5` or something that it imports is not installed.
    """
    name = _detector(model, load.device)
    built, images, labels = _set_up(load, name, head=head)
    title, theirs, adapt = hosts_own.LOSSES[ZOO[name].head.sites.name if name in ZOO else name]
    sides = [Side(title, theirs(built, labels), adapt), *_ours(built, labels, head)]
    return Contest(name if name in ZOO else f"{name.removesuffix('.yaml')}, {head} head", built, images, sides)


def whole_retinanet(load: Load, *, model: str) -> Contest:
    """torchvision's RetinaNet from images to losses, with our model's layers, beside our model with its loss.

    torchvision resizes and normalises the images and makes the anchors in every step. Arguments as for `losses`.
    """
    name = _detector(model, load.device)
    built, images, labels = _set_up(load, name)
    theirs = hosts_own.whole_retinanet(name, built, labels)
    host = Side("torchvision RetinaNet", lambda found: hosts_own.total(found, images), model=theirs)
    own = [side for side in _ours(built, labels, "stock") if side.name in ("ours, loss=focal", "ours, loss=brl")]
    return Contest(f"{name}, whole", built, images, [host, *own], "step")


def element(load: Load) -> Contest:
    """Element losses on one tensor of logits, in proportion to the image's area."""
    generator = torch.Generator().manual_seed(0)
    shape = (load.batch, round(CANDIDATES * (load.imgsz / 640) ** 2))
    logits = torch.randn(*shape, CLASSES, generator=generator) - 2
    overlap = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > FAR)
    positive = torch.rand(shape, generator=generator) < MATCHED
    classes = torch.randint(CLASSES, shape, generator=generator)
    targets = torch.zeros_like(logits).scatter_(2, classes.unsqueeze(-1), positive.unsqueeze(-1).float())
    logits, targets, overlap, positive = (x.to(load.device) for x in (logits, targets, overlap, positive))
    own = ours.elements(targets, candidate_state(positive), overlap)
    losses = {
        "torchvision focal": lambda x: sigmoid_focal_loss(x, targets),
        **{f"ours, {k}": v for k, v in own.items()},
    }
    sides = [Side(name, lambda x, loss=loss: loss(x).sum()) for name, loss in losses.items()]  # type: ignore[misc]
    name = "logits " + "×".join(map(str, logits.shape))
    return Contest(name, lambda x: x, logits.requires_grad_(), sides, "element")


def inference(load: Load, *, model: str) -> Contest:
    """Predictions of a head, and of the one with residual objectness in its place, as `predict` runs them.

    That is fused and, on CPUs that Ultralytics does it for, with channels last.

    Args:
        load: how much work.
        model: as for `losses`.
    """
    name, images, sides = _detector(model, load.device), torch.empty(0), []
    for given in ours.heads(name):
        built, images, _ = _set_up(load, name, **given)
        parameters = sum(p.numel() for p in built.parameters())
        backend = AutoBackend(built.eval(), device=load.device, verbose=False)
        sides.append(Side(ours.written(given), backend, parameters=parameters))
    return Contest(name.removesuffix(".yaml"), None, images, sides, "inference")


# What the flag `only` chooses from, by name
CONTESTS: dict[str, tuple[Callable[[Load], Contest], ...]] = {
    "ultralytics": (partial(losses, model="yolov8n.yaml"),),
    "yolov5": (partial(losses, model="yolov5n.yaml", head="anchor"),),
    "retinanet": (partial(losses, model="retinanet"), partial(whole_retinanet, model="retinanet")),
    "ssd": (partial(losses, model="ssd"),),
    "fasterrcnn": (partial(losses, model="fasterrcnn"),),
    "element": (element,),
    "inference": tuple(
        partial(inference, model=name) for name in ("yolov5n.yaml", "yolov8n.yaml", "retinanet", "fasterrcnn")
    ),
}
# A host of torchvision's -> the detectors that stand for it, on a CPU and on CUDA
PRESETS = {
    "retinanet": ("retinanet_tiny", "retinanet_resnet50_fpn"),
    "ssd": ("ssd_tiny", "ssd300_vgg16"),
    "fasterrcnn": ("fasterrcnn_tiny", "fasterrcnn_resnet50_fpn"),
}


def chosen(flags: BenchFlags) -> list[tuple[str, Callable[[Load], Contest]]]:
    """The contests that `only` names, in its order, or all.

    Raises:
        ConfigError: a name that is neither a contest's nor a detector's.
    """
    known = dict(CONTESTS)
    for name, row in ZOO.items():
        builds = (losses, whole_retinanet) if row.head.sites.name == "retinanet" else (losses,)
        known[name] = tuple(partial(build, model=name) for build in builds)
    names = [name.strip() for name in flags.only.split(",")] if flags.only else list(CONTESTS)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"only={flags.only}: {name or 'nothing'} is not one of {', '.join(known)}{nearest(name, known)}"
            )
    return [(name, build) for name in dict.fromkeys(names) for build in known[name]]


# What the contests share ----------------------------------------------------------------------------------------------


def _ours(model: Any, labels: dict[str, Any], head: str) -> list[Side]:
    return [Side(f"ours, {name}", loss) for name, loss in ours.losses(model, labels, head).items()]


def _detector(name: str, device: torch.device) -> str:
    return PRESETS[name][device.type != "cpu"] if name in PRESETS else name


def _set_up(load: Load, name: str, **given: Any) -> tuple[Any, Tensor, dict[str, Any]]:
    batch, imgsz, device = load
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ours.model(name, **given).to(device).train()
    model.args = get_cfg(overrides={"imgsz": imgsz})
    if name in ZOO:
        model.model[-1].trained_at(imgsz)
    count = batch * LABELS
    size = torch.rand(count, 2, generator=generator) * 0.25 + 0.05
    centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
    labels = {
        "batch_idx": torch.arange(batch).repeat_interleave(LABELS).float(),
        "cls": torch.randint(CLASSES, (count, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), 1),
    }
    images = torch.rand(batch, 3, imgsz, imgsz, generator=generator).to(device)
    return model, images, {**{k: v.to(device) for k, v in labels.items()}, "most_labels": LABELS}
