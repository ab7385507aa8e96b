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
from ultralytics.nn.tasks import yaml_model_load

from rebalance.bench import hosts_own
from rebalance.bench.clock import Run
from rebalance.errors import ConfigError, nearest
from rebalance.hosts import host_of
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.match.candidates import candidate_state
from rebalance.match.regions import RegionBatch, region_batch
from rebalance.methods import METHODS
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl, confusion
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.recipe import read
from rebalance.settings import BenchFlags

CLASSES = 10
LABELS = 8  # an image, about as many as the built-in data has
CROWD = 64  # labels an image, from which on they are smaller, so that all of them cover as much
STEPS = 3  # most refinements that are timed
NARROW = 0.25  # of a class tower: subnets of which a few convolutions are hardly felt
GIVEN = {"drop": {"obj_drop": 0.75}}  # flags of the methods that do nothing by default
CANDIDATES = 100_000  # an image of 640 pixels, of the tensor that element losses are timed on
MATCHED, FAR = 0.001, 0.9  # shares of those candidates: matched, and nowhere near a label


class Side(NamedTuple):
    """One party to a contest."""

    name: str
    loss: Callable[[Any], Any]  # what `adapt` gives -> scalar; where inference is timed, images -> predictions
    adapt: Callable[[Any], Any] = hosts_own.as_is  # the model's output -> what the loss takes; a head's work
    parameters: int = 0  # of the model, where it is a side's own
    model: Callable[[Tensor], Any] | None = None  # in the place of the contest's, of which it has the parameters


class Contest(NamedTuple):
    """A model, a batch, and what is compared on them; the first side is the host's own."""

    name: str
    model: Any
    images: Tensor  # of an element loss: the logits
    sides: list[Side]
    kind: str = "loss"  # "loss", "step", "element" or "inference"


# The builders take the command's flags, with a device that is named: batch, imgsz and device are how much work, and
# where it is done. A model is a YOLO's file, a detector of ZOO, or a key of PRESETS.


def losses(
    load: BenchFlags, *, model: str, head: str = "stock", whole: bool = False, count: int = LABELS, nc: int = CLASSES
) -> Contest:
    """The loss of a model's host and ours, on the same predictions, anchors and proposals.

    torchvision's losses match image by image, as its own models do; the labels are in its layout beforehand, which is
    time that only ours takes. Its random samples are as many as ours, but others. `whole`: torchvision's RetinaNet from
    images to losses, with our model's layers; it resizes and normalises the images and makes the anchors in every step.
    `count` labels an image, of `nc` classes.

    Raises:
        ImportError: YOLOv5's loss, and the package `yolov5` or something that it imports is not installed.
    """
    name = _detector(model, load)
    built, images, labels = _set_up(load, name, count=count, nc=nc, head=head)
    host = host_of(built)
    site = host.sites.site(head)
    title, theirs, adapt = hosts_own.LOSSES[site.name if name in ZOO else name]
    sides = [Side(title, theirs(built, labels), adapt)]
    if whole:
        sides = [Side(title, hosts_own.as_is, model=hosts_own.whole_retinanet(name, built, labels))]
    defined = [row.name for row in METHODS.values() if row.kind != "head" and row.defined(site)]
    for loss in ["focal", "brl"] if whole else dict.fromkeys((site.own, *defined)):
        given: dict[str, Any] = {"loss": loss, **GIVEN.get(loss, {})}
        criterion = host.criterion(built, read(given, host.sites, head=head), seed=0)
        sides.append(Side(f"ours, {_written(given)}", hosts_own.summed(criterion, labels)))
    told = f"{name}{', whole' * whole}" if name in ZOO else f"{name.removesuffix('.yaml')}, {head} head"
    return Contest(told, built, images, sides, "step" if whole else "loss")


def regions(load: BenchFlags, *, model: str, head: str = "stock") -> Contest:
    """Our loss of a batch with regions and of that batch without: a mosaic's four tiles and three boxes an image."""
    built, images, labels = _set_up(load, model, head=head)
    host = host_of(built)
    generator, half = torch.Generator().manual_seed(1), torch.tensor([0.5, 0.5, 0.5, 0.5])
    tiles = [half * torch.tensor([x, y, 1, 1]) for x in (0.5, 1.5) for y in (0.5, 1.5)]
    boxes = torch.stack([*tiles, *(torch.rand(4, generator=generator) * 0.3 + 0.2 for _ in range(3))])
    below = torch.full((len(boxes),), torch.inf)
    below[0] = 0.02  # a size under which nothing was labelled
    classes = torch.rand(len(boxes), CLASSES, generator=generator) < 0.5
    unknown = torch.arange(len(boxes)) < len(boxes) - 1
    one = RegionBatch(torch.zeros(len(boxes)), boxes, classes, unknown, below, len(boxes))
    known = region_batch([one] * load.batch).to(torch.device(load.device))
    sides = []
    for words, batch in (("without", labels), ("with", {**labels, "regions": known})):
        criterion = host.criterion(built, read({}, host.sites, head=head), seed=0)
        sides.append(Side(f"{words} regions", hosts_own.summed(criterion, batch)))
    return Contest(f"{model.removesuffix('.yaml')}, {head} head", built, images, sides)


def element(load: BenchFlags) -> Contest:
    """Element losses on one tensor of logits, in proportion to the image's area."""
    generator = torch.Generator().manual_seed(0)
    shape = (load.batch, round(CANDIDATES * (load.imgsz / 640) ** 2))
    logits = torch.randn(*shape, CLASSES, generator=generator) - 2
    overlap = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > FAR)
    positive = torch.rand(shape, generator=generator) < MATCHED
    classes = torch.randint(CLASSES, shape, generator=generator)
    targets = torch.zeros_like(logits).scatter_(2, classes.unsqueeze(-1), positive.unsqueeze(-1).float())
    logits, targets, overlap, positive = (x.to(load.device) for x in (logits, targets, overlap, positive))
    state, everything = candidate_state(positive), torch.ones((), dtype=torch.bool, device=logits.device)
    sides = [
        Side("torchvision focal", lambda x: sigmoid_focal_loss(x, targets).sum()),
        Side("ours, brl", lambda x: brl(x, targets, confusion(state, overlap, 0.1).unsqueeze(-1)).sum()),
        Side("ours, focal", lambda x: focal(x, targets).sum()),
        Side("ours, bce", lambda x: bce(x, targets).sum()),
        Side("ours, ghm", lambda x: (bce(x, targets) * ghm_weights(x, targets, everything)[0]).sum()),
    ]
    name = "logits " + "×".join(map(str, logits.shape))
    return Contest(name, hosts_own.as_is, logits.requires_grad_(), sides, "element")


def inference(load: BenchFlags, *, model: str) -> Contest:
    """Predictions of a model's own head, of one with objectness in its place, and of those that refine it.

    As `predict` runs them: fused and, on CPUs that Ultralytics does it for, with channels last.
    """
    name, images, sides = _detector(model, load), torch.empty(0), []
    gives = host_of(name).sites.site("obj").gives
    own = "anchor" if "anchors" in gives else "stock"
    heads: list[dict[str, Any]] = [{"head": own}, {"head": "obj"}]
    heads += [{"head": "resobj", "resobj_steps": t + 1} for t in range(STEPS)]
    if "subnet" in gives:
        heads.append({"head": "resobj", "resobj_steps": 2, "obj_width": NARROW})
    for given in heads:
        built, images, _ = _set_up(load, name, **given)
        parameters = sum(p.numel() for p in built.parameters())
        backend = AutoBackend(built.eval(), device=images.device, verbose=False)
        sides.append(Side(_written(given), backend, parameters=parameters))
    return Contest(name.removesuffix(".yaml"), None, images, sides, "inference")


# A host of torchvision's -> the detectors that stand for it, on a CPU and on CUDA
PRESETS = {
    "retinanet": ("retinanet_tiny", "retinanet_resnet50_fpn"),
    "ssd": ("ssd_tiny", "ssd300_vgg16"),
    "fasterrcnn": ("fasterrcnn_tiny", "fasterrcnn_resnet50_fpn"),
}
# What the flag `only` chooses from, by name, beside the detectors of ZOO
CONTESTS: dict[str, tuple[Callable[..., Contest], ...]] = {
    "ultralytics": (partial(losses, model="yolov8n.yaml"),),
    "yolov5": (partial(losses, model="yolov5n.yaml", head="anchor"),),
    "retinanet": (partial(losses, model="retinanet"), partial(losses, model="retinanet", whole=True)),
    "ssd": (partial(losses, model="ssd"),),
    "fasterrcnn": (partial(losses, model="fasterrcnn"),),
    "regions": (partial(regions, model="yolov8n.yaml"), partial(regions, model="yolov5n.yaml", head="anchor")),
    "element": (element,),
    "inference": tuple(
        partial(inference, model=name) for name in ("yolov5n.yaml", "yolov8n.yaml", "retinanet", "fasterrcnn")
    ),
}


def chosen(only: str) -> list[tuple[str, Callable[..., Contest]]]:
    """The contests that a list names, in its order, or all; ConfigError for a name of neither contest nor detector."""
    known = dict(CONTESTS)
    for name, row in ZOO.items():
        known[name] = tuple(partial(build, model=name) for build in known[row.head.sites.name])
    names = [name.strip() for name in only.split(",")] if only else list(CONTESTS)
    for name in names:
        if name not in known:
            told = f"{name or 'nothing'} is not one of {', '.join(known)}{nearest(name, known)}"
            raise ConfigError(f"only={only}: {told}")
    return [(name, build) for name in dict.fromkeys(names) for build in known[name]]


def _written(given: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in given.items())


def _detector(name: str, load: BenchFlags) -> str:
    return PRESETS[name][load.device != "cpu"] if name in PRESETS else name


def _set_up(
    load: BenchFlags, name: str, *, count: int = LABELS, nc: int = CLASSES, **given: Any
) -> tuple[Any, Tensor, dict[str, Any]]:
    """A model of random weights, built as `train` builds it, images and labels, where they are many smaller ones."""
    generator, host = torch.Generator().manual_seed(0), host_of(name)
    cfg = name if name in ZOO else {**yaml_model_load(name), "nc": nc}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = host.build(cfg, read(given, host.sites), nc=nc, ch=3, verbose=False).to(load.device).train()
    model.args = get_cfg(overrides={"imgsz": load.imgsz})
    if name in ZOO:
        model.model[-1].trained_at(load.imgsz)
    total = load.batch * count
    size = (torch.rand(total, 2, generator=generator) * 0.25 + 0.05) * min(1, (CROWD / count) ** 0.5)
    centre = size / 2 + torch.rand(total, 2, generator=generator) * (1 - size)
    labels = {
        "batch_idx": torch.arange(load.batch).repeat_interleave(count).float(),
        "cls": torch.randint(nc, (total, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), 1),
    }
    images = torch.rand(load.batch, 3, load.imgsz, load.imgsz, generator=generator).to(load.device)
    return model, images, {**{k: v.to(load.device) for k, v in labels.items()}, "most_labels": count}


def criteria(contest: Contest) -> dict[str, Run]:
    """By side, its loss forward and backward from what the head puts out."""
    output = leaves(contest.model(contest.images))

    def run(side: Side, preds: Any) -> None:
        side.loss(preds).backward()

    return {side.name: partial(run, side, leaves(side.adapt(output))) for side in contest.sides}


def leaves(output: Any) -> Any:
    """A copy of what a head put out, from which gradients are asked where it has any."""
    if isinstance(output, dict):
        return {k: leaves(v) for k, v in output.items()}
    if isinstance(output, (list, tuple)):
        return [leaves(v) for v in output]
    return output.detach().clone().requires_grad_(output.requires_grad) if isinstance(output, Tensor) else output
