"""Every flag of rebalance, described once: name, type, default, range, unit and help.

The command line, Python keyword arguments and YAML files are all read through `parse`, so a flag means the same
everywhere. Each command has one frozen dataclass; a field made by `flag` is one flag.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

from rebalance.errors import ConfigError, nearest

T = TypeVar("T")


def flag(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    unit: str = "",
    method: str = "",
    places: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with the facts that `parse` checks and `help` prints.

    Args:
        default: value where the flag is not given; its type is the field's annotation.
        help: one line for the user.
        low: smallest allowed number, inclusive.
        high: largest allowed number, inclusive.
        choices: allowed strings; empty means any.
        unit: unit of the number, e.g. "epochs".
        method: the method the flag belongs to; giving the flag without the method is an error.
        places: where it counts, see `rebalance.methods.registry.PLACES`; empty: wherever the method is defined.
    """
    facts = {
        "help": help, "low": low, "high": high, "choices": choices, "unit": unit, "method": method, "places": places,
    }  # fmt: skip
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """What `train` adds to Ultralytics' own flags."""

    loss: str = flag("", "method, or element loss and weighting joined by +; empty: what the other flags imply")
    head: str = flag(
        "stock", "detection head; obj, resobj: on anchors for YOLOv3 and YOLOv5, else beside the class scores",
        choices=("stock", "anchor", "obj", "resobj"),
    )  # fmt: skip

    obj_drop: float = flag(0.0, "fraction of negatives that leaves the objectness loss", low=0, high=1, method="drop")
    box_drop: float = flag(0.0, "fraction of low-IoU matches that leaves the box loss", low=0, high=1, method="drop")
    neg_iou: float = flag(
        0.3, "a prediction is negative below this IoU with every label of its image", low=0, high=1, method="drop"
    )
    drop_scope: str = flag(
        "background", "what obj_drop draws from", choices=("background", "matched", "literal"), method="drop"
    )
    drop_divisor: str = flag(
        "kept", "the loss is a mean over what is left, or over all as in the host", choices=("kept", "host"),
        method="drop",
    )  # fmt: skip
    drop_select: str = flag(
        "random", "drop at random, or the most confident first", choices=("random", "confident"), method="drop"
    )
    drop_warmup: int = flag(0, "dropping starts after this", low=0, unit="epochs", method="drop")

    divisor: str = flag(
        "auto",
        "what the classification (objectness) loss is divided by; auto: what suits the method, else as the host",
        choices=("auto", "host", "image", "batch", "candidates"),
    )

    focal_gamma: float = flag(2.0, "exponent; 0: cross-entropy", low=0, method="focal")
    focal_alpha: float = flag(
        0.25, "weight of positives, 1 - alpha of negatives; -1: both 1", low=-1, high=1, method="focal"
    )

    brl_t: float = flag(
        0.5, "mirrored where the confidence in background is not above this", low=0, high=1, method="brl"
    )
    brl_iou: float = flag(0.1, "negatives below this overlap are confusion", low=0, high=1, method="brl")
    brl_overlap: str = flag(
        "box", "overlap of the candidate's box (anchor, else decoded), or whether a label holds its centre",
        choices=("box", "centre"), method="brl", places=("stock", "anchor", "obj", "resobj"),
    )  # fmt: skip
    brl_weight: float = flag(0.1, "weight of the confusion candidates", low=0, method="brl")
    brl_beta: float = flag(1.0, "weight of the mirrored branch; 0: the paper's BRL-", low=0, method="brl")
    brl_gamma: float = flag(2.0, "exponent of the focal loss in it", low=0, method="brl")
    brl_alpha: float = flag(
        0.25, "weight of positives, 1 - alpha of negatives; -1: both 1", low=-1, high=1, method="brl"
    )
    brl_warmup: int = flag(0, "plain focal loss until after this", low=0, unit="epochs", method="brl")

    ghm_bins: int = flag(30, "bins of the gradient norm", low=1, method="ghm")
    ghm_momentum: float = flag(
        0.75, "share of the past in the moving average of counts", low=0, high=0.999, method="ghm"
    )
    ghm_regions: str = flag(
        "all", "bins that divide: all as in the paper, or the occupied ones", choices=("all", "occupied"), method="ghm"
    )

    ohem_ratio: float = flag(
        3.0, "negatives kept for each positive of an image", low=0, method="ohem",
        places=("stock", "anchor", "obj", "retinanet", "ssd"),
    )  # fmt: skip
    ohem_rois: int = flag(
        128, "Faster R-CNN: proposals of an image that are trained on", low=1, method="ohem", places=("fasterrcnn",)
    )

    soft_a: float = flag(0.25, "least weight of a negative", low=0, high=1, method="soft")
    soft_b: float = flag(50.0, "displacement of the Gompertz curve", low=0, method="soft")
    soft_c: float = flag(20.0, "steepness of the Gompertz curve", low=0, method="soft")

    nrd_rate: float = flag(
        0.75, "fraction of the sampled negatives that leaves the classification loss", low=0, high=1, method="nrd"
    )
    nrd_stage: str = flag(
        "roi", "whose negatives: proposals in the RoI head, or anchors in the RPN", choices=("roi", "rpn"), method="nrd"
    )

    resobj_steps: int = flag(2, "T, refinements of the objectness; 0: as head=obj", low=0, high=5, method="resobj")
    resobj_grad: str = flag(
        "isolated", "residual losses train the residual subnets alone, or jointly with the objectness",
        choices=("isolated", "joint"), method="resobj",
    )  # fmt: skip
    resobj_on: str = flag(
        "obj", "features that the residual subnets see: the objectness subnet's or the class tower's",
        choices=("obj", "cls"), method="resobj",
    )  # fmt: skip

    anchor_t: float = flag(4.0, "largest side ratio of a label to its anchor", low=1, method="anchor")
    autoanchor: bool = flag(True, "fit the anchors where their best possible recall is under 0.98", method="anchor")
    box_gain: float = flag(0.05, "weight of the CIoU loss", low=0, method="anchor")
    obj_gain: float = flag(1.0, "weight of the objectness loss", low=0, method="anchor")
    cls_gain: float = flag(0.5, "weight of the classification loss", low=0, method="anchor")


@dataclass(frozen=True, kw_only=True)
class SparsifyFlags:
    """`rebalance sparsify`: withhold labels of the training split."""

    data: str = flag("", "data set YAML (Ultralytics detection format)")
    protocol: str = flag(
        "percent",
        "which boxes are withheld",
        choices=("normal", "easy", "hard", "extreme", "percent", "per_class", "keep_one_per_class"),
    )
    rate: float = flag(0.5, "fraction of boxes withheld (percent, per_class)", low=0, high=1)
    keep_one: bool = flag(False, "percent: leave every image at least one box")
    seed: int = flag(0, "seed of the choice", low=0)
    out: str = flag("", "folder to make; must not exist")


@dataclass(frozen=True, kw_only=True)
class SeafloorFlags:
    """`rebalance seafloor`: the built-in data set."""

    out: str = flag("", "folder to make; default: the data folder of this project")
    train: int = flag(480, "training images", low=1)
    val: int = flag(96, "validation images", low=1)
    test: int = flag(128, "test images", low=1)
    size: int = flag(256, "image height; width is the same", low=64, high=2048, unit="pixels")
    labelled: float = flag(0.5, "fraction of the training boxes that is labelled", low=0, high=1)
    seed: int = flag(0, "seed of everything", low=0)


@dataclass(frozen=True, kw_only=True)
class SweepFlags:
    """`rebalance sweep`: a grid of trainings. Every other key is a training flag; a list makes a dimension."""

    name: str = flag("", "run folder runs/benchmark/<name>; the same name continues it; default: a time stamp")
    seeds: str = flag("0", "training seeds, comma separated")
    protocol: str = flag("normal", "label protocols of the training split, comma separated")
    rate: str = flag("0.5", "rates of percent and per_class, comma separated")
    label_seed: int = flag(0, "seed of the withheld labels", low=0)
    jobs: int = flag(1, "runs at a time, each with its share of the cores", low=1)
    series: bool = flag(False, "vary one list at a time from the first values, instead of the product")


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """`rebalance bench`: time of the losses against the host's own."""

    only: str = flag(
        "", "of ultralytics, yolov5, retinanet, ssd, fasterrcnn, element, inference, and names of torchvision's "
        "detectors, comma separated; empty: the first seven",
    )  # fmt: skip
    batch: int = flag(8, "images a batch", low=1)
    imgsz: int = flag(256, "image size", low=32, unit="pixels")
    repeats: int = flag(10, "timed repetitions", low=3)
    device: str = flag("", "cpu, or a CUDA index; empty: CUDA where there is one")
    out: str = flag("", "write the figures to this JSON file")


@dataclass(frozen=True, kw_only=True)
class StepsFlags:
    """`rebalance steps`: the detections after each step of a head that refines its objectness."""

    model: str = flag("", "checkpoint of a training with head=resobj")
    source: str = flag("", "image, or folder of images")
    conf: float = flag(0.4, "least score of a detection that is drawn", low=0, high=1)
    imgsz: int = flag(0, "image size; 0: the one that the model was trained with", low=0, unit="pixels")
    device: str = flag("", "cpu, or a CUDA index; empty: CUDA where there is one")
    out: str = flag("runs/steps", "folder of the pictures, one an image")


def flags(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Name to field of one command's dataclass."""
    return {f.name: f for f in dataclasses.fields(cls)}


def convert(cls: type[Any], name: str, value: Any) -> Any:
    """Return `value` as the type of flag `name`, checked against its range and choices.

    Raises:
        ConfigError: the value has the wrong type, is out of range, or is not among the choices.
    """
    kind, facts = get_type_hints(cls)[name], flags(cls)[name].metadata
    text = str(value).strip()
    try:
        if kind is bool:
            result: Any = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        elif kind is str:
            result = "" if value is None else text
        elif isinstance(value, bool):
            raise ValueError
        elif kind is int:
            if float(value) != int(float(value)):
                raise ValueError
            result = int(float(value))
        else:
            result = float(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ConfigError(f"{name}={value} is not {_KINDS[kind]}") from None
    if kind in (int, float) and not (facts["low"] <= result <= facts["high"]):  # NaN fails too
        raise ConfigError(f"{name}={value} is out of range: {span(facts)}")
    if facts["choices"] and result not in facts["choices"]:
        choices = ", ".join(facts["choices"])
        raise ConfigError(f"{name}={value} is not one of {choices}{nearest(text, facts['choices'])}")
    return result


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def span(facts: Mapping[str, Any]) -> str:
    """The allowed range in words, e.g. '0 to 1', 'at least 0', or '' where there is none."""
    low, high = facts["low"], facts["high"]
    if math.isinf(high):
        return "" if math.isinf(low) else f"at least {low:g}"
    return f"{low:g} to {high:g}"


def describe(cls: type[Any]) -> list[tuple[str, str, str, str]]:
    """One row a flag, for tables: name, default, allowed values with their unit, help."""
    rows = []
    for name, item in flags(cls).items():
        kind, facts = get_type_hints(cls)[name], item.metadata
        values = ", ".join(facts["choices"]) or span(facts) or _KINDS[kind]
        rows.append((name, str(item.default), f"{values} {facts['unit']}".strip(), facts["help"]))
    return rows


def parse(cls: type[T], given: Mapping[str, Any]) -> T:
    """Return the flags of one command from what the user gave.

    Args:
        cls: the command's dataclass.
        given: flag name to value; texts are converted.

    Raises:
        ConfigError: an unknown name (with the nearest one) or a bad value.
    """
    known = flags(cls)
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown flag {name}={given[name]}{nearest(name, known)}; flags: {', '.join(known)}")
    return cls(**{name: convert(cls, name, value) for name, value in given.items()})


def as_dict(values: Any) -> dict[str, Any]:
    """A flags dataclass as a plain dict, ready for JSON, YAML or a checkpoint."""
    return dataclasses.asdict(values)


def value_text(value: Any) -> str:
    """Return a value as the user types it: 0.75, 0 for 0.0, True, yolov5n.yaml."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def require(values: Any, *names: str) -> None:
    """Raise ConfigError where a flag that has no default was not given."""
    for name in names:
        if getattr(values, name) == "":
            raise ConfigError(f"{name}= is missing: {flags(type(values))[name].metadata['help']}")
