"""Settings, described once: name, type, default, range, unit and help.

The command line, Python keyword arguments and YAML files are all read through `parse` or `convert`, so a setting means
the same everywhere. A field made by `setting` is one flag. Those of a training stand in the classes of the methods and
heads that they belong to; each other command has one frozen dataclass here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rebalance.errors import ConfigError, nearest

T = TypeVar("T")
LARGEST_SEED = 2**32 - 2  # of a training: the host adds 1, and NumPy takes 32 bits


def setting(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    unit: str = "",
    needs: str = "",
    number: type[Any] | None = None,
    before: Any = None,
) -> Any:
    """A dataclass field with the facts that `convert` checks and `help` prints.

    Args:
        default: value where the flag is not given; its type is the field's annotation.
        help: one line for the user.
        low: smallest allowed number, inclusive.
        high: largest allowed number, inclusive.
        choices: allowed strings, beside numbers where `low` and `high` are given; empty means any.
        unit: unit of the number, e.g. "epochs".
        needs: what a site must give for it to count, see `rebalance.methods.method.Site`; empty: nothing.
        number: int or float, where the default is the word `auto` and any other value a number.
        before: what a training of a version without this flag did, where that is not the default.
    """
    facts = {
        "help": help, "low": low, "high": high, "choices": choices, "unit": unit, "needs": needs, "number": number,
        "before": before,
    }  # fmt: skip
    return field(default=default, metadata=facts)


@dataclass(frozen=True, kw_only=True)
class SparsifyFlags:
    """`rebalance sparsify`: withhold labels of the training split."""

    data: str = setting("", "data set YAML (Ultralytics detection format)")
    protocol: str = setting(
        "percent",
        "which boxes are withheld",
        choices=("normal", "easy", "hard", "extreme", "percent", "per_class", "keep_one_per_class"),
    )
    rate: float = setting(0.5, "fraction of boxes withheld (percent, per_class)", low=0, high=1)
    keep_one: bool = setting(False, "percent: leave every image at least one box")
    classes: str = setting("", "names of the classes that lose boxes, comma separated; default: all")
    seed: int = setting(0, "seed of the choice", low=0)
    out: str = setting("", "folder to make; must not exist")


@dataclass(frozen=True, kw_only=True)
class NoiseFlags:
    """`rebalance noise`: put errors into the labels of the training split."""

    data: str = setting("", "data set YAML (Ultralytics detection format)")
    missing: float = setting(0.0, "fraction of the boxes withheld, as by sparsify protocol=percent", low=0, high=1)
    extra: float = setting(0.0, "boxes of nothing, as a fraction of the boxes", low=0, high=1)
    jitter: float = setting(0.0, "fraction of the boxes displaced", low=0, high=1)
    class_flip: float = setting(0.0, "fraction of the boxes that get another class", low=0, high=1)
    jitter_iou: str = setting("[0.5,0.9]", "range of the IoU of a displaced box with the true one")
    seed: int = setting(0, "seed of the choice", low=0)
    out: str = setting("", "folder to make; must not exist")


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """`rebalance check`: what is known about the labels of a data set."""

    data: str = setting("", "data set YAML (Ultralytics detection format)")
    out: str = setting("", "write all that was found to this JSON file")


@dataclass(frozen=True, kw_only=True)
class AuditFlags:
    """`rebalance audit`: which labels are missing. With folds= every other key is a flag of their trainings."""

    data: str = setting("", "data set YAML (Ultralytics detection format)")
    model: str = setting("", "a trained detector; with folds= the one that each training starts from")
    name: str = setting("", "folder runs/audit/<name>; the same name continues it; default: named after the data set")
    folds: int = setting(
        0, "train so many models, each without a part of the images, and ask it about that; 0: none", low=0
    )
    seed: int = setting(0, "seed of the folds, of their trainings and of the intervals", low=0, high=LARGEST_SEED)
    imgsz: int = setting(0, "image size; 0: the one that the model was trained with", low=0, unit="pixels")
    batch: int = setting(16, "images at a time", low=1)
    device: str = setting("", "cpu, or a CUDA index; empty: CUDA where there is one")
    review: int = setting(10000, "suggestions on the page to review, the first so many; 0: no page", low=0)
    export: str = setting(
        "", "of label-studio, cvat, coco, fiftyone, comma separated: the suggestions for these tools too"
    )


@dataclass(frozen=True, kw_only=True)
class SeafloorFlags:
    """`rebalance seafloor`: the built-in data set."""

    out: str = setting("", "folder to make; default: the data folder of this project")
    train: int = setting(480, "training images", low=1)
    val: int = setting(96, "validation images", low=1)
    test: int = setting(128, "test images", low=1)
    size: int = setting(256, "image height; width is the same", low=64, high=2048, unit="pixels")
    labelled: float = setting(0.5, "fraction of the training boxes that is labelled", low=0, high=1)
    seed: int = setting(0, "seed of everything", low=0)


@dataclass(frozen=True, kw_only=True)
class SweepFlags:
    """`rebalance sweep`: a grid of trainings. Every other key is a training flag; a list makes a dimension."""

    plan: str = setting("", "YAML file with the question, what would answer it, and the grid; see docs/experiments.md")
    name: str = setting("", "run folder runs/benchmark/<name>; the same name continues it; default: a time stamp")
    seeds: str = setting("0", "training seeds, comma separated")
    protocol: str = setting("normal", "label protocols of the training split, comma separated")
    rate: str = setting("0.5", "rates of percent and per_class, comma separated")
    label_seed: str = setting(
        "", "seed of the withheld labels, the same for all runs; default: the seed of each training"
    )
    extra: str = setting("0", "boxes of nothing among the training labels, see rebalance noise, comma separated")
    jitter: str = setting("0", "fractions of the training boxes that are displaced, comma separated")
    class_flip: str = setting("0", "fractions of the training boxes that get another class, comma separated")
    jitter_iou: str = setting("[0.5,0.9]", "ranges of the IoU of a displaced box with the true one, comma separated")
    complete: bool = setting(
        False, "once a seed, train the baseline (the first loss, nothing removed) on complete labels too"
    )
    control: str = setting(
        "", "fractions; of every run that drops one of them at random, train the control too: drop_select=weight"
    )
    jobs: int = setting(
        1, "runs at a time (on each machine, with executor=ray), each with its share of the cores", low=1
    )
    executor: str = setting(
        "local", "where: on this machine, or on a Ray cluster (pip install ray)", choices=("local", "ray")
    )
    address: str = setting(
        "", "of the Ray cluster, e.g. 10.0.0.1:6379; default: this machine's, or one that is started on it"
    )
    dry: bool = setting(False, "check everything and say what would run, on which labels; nothing is made or fetched")
    series: bool = setting(
        False,
        "vary one list at a time, not their product: obj_drop, box_drop, nrd_rate from 0, of which one value is a list "
        "too; others from 0 where it is in the list, else from the first",
    )


@dataclass(frozen=True, kw_only=True)
class TuneFlags:
    """`rebalance tune`: search flags. Every other key is a training flag; a list is choices, low..high a range."""

    name: str = setting("", "folder runs/tune/<name>; the same name continues it; default: a time stamp")
    trials: int = setting(20, "settings to try in all; more of them continue a search that is over", low=1)
    seed: int = setting(0, "seed of the search and of each training", low=0, high=LARGEST_SEED)
    prune: bool = setting(
        True, "from a quarter of its epochs on, end a training whose best on val is below the median of those before"
    )
    protocol: str = setting("normal", "label protocol of the training split, as that of rebalance sweep")
    rate: str = setting("0.5", "rate of percent and per_class")
    label_seed: str = setting("", "seed of the withheld labels; default: seed")
    extra: str = setting("0", "boxes of nothing among the training labels, see rebalance noise")
    jitter: str = setting("0", "fraction of the training boxes that are displaced")
    class_flip: str = setting("0", "fraction of the training boxes that get another class")
    jitter_iou: str = setting("[0.5,0.9]", "range of the IoU of a displaced box with the true one")
    jobs: int = setting(1, "trainings at a time, each with its share of the cores", low=1)
    dry: bool = setting(False, "check everything and say what would run, on which labels; nothing is made or fetched")


@dataclass(frozen=True, kw_only=True)
class CompleteFlags:
    """`rebalance complete`: what an audit found, and what somebody decided, into the labels of a new data set."""

    data: str = setting("", "data set YAML whose labels were audited")
    audit: str = setting("", "folder of the audit")
    decisions: str = setting("", "file of what somebody accepted and rejected, from the audit's page")
    complete_add: float = setting(0.7, "least probability of a missing label that is added", low=0, high=1)
    complete_ignore: float = setting(
        0.2, "least probability of a missing label whose place counts as unknown for its class", low=0, high=1
    )
    out: str = setting("", "folder to make; must not exist; default: beside the data set, named after it")


@dataclass(frozen=True, kw_only=True)
class RoundsFlags:
    """`rebalance rounds`: train, audit, complete, train again. Every other key is a training flag."""

    name: str = setting("", "run folder runs/rounds/<name>; the same name continues it; default: a time stamp")
    rounds: str = setting(
        "auto",
        "how often the labels are completed; auto: until the estimate of what is missing falls no more, 5 at most",
        low=1,
        number=int,
    )
    seeds: str = setting("0", "training seeds, comma separated")
    protocol: str = setting("normal", "label protocol of the training split, as that of rebalance sweep")
    rate: str = setting("0.5", "rate of percent and per_class")
    label_seed: str = setting("", "seed of the withheld labels, the same for all runs; default: that of each training")
    complete_add: float = setting(0.7, "least probability of a missing label that is added", low=0, high=1)
    complete_ignore: float = setting(
        0.2, "least probability of a missing label whose place counts as unknown for its class", low=0, high=1
    )
    folds: int = setting(0, "audits ask so many models that have not seen the image; 0: the one of the round", low=0)
    jobs: int = setting(1, "trainings at a time, each with its share of the cores", low=1)
    dry: bool = setting(False, "check everything and say what would run, on which labels; nothing is made or fetched")


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """`rebalance bench`: time of the losses against the host's own."""

    only: str = setting(
        "", "of ultralytics, yolov5, retinanet, ssd, fasterrcnn, regions, element, inference, and names of "
        "torchvision's detectors, comma separated; empty: the first eight",
    )  # fmt: skip
    batch: int = setting(8, "images a batch", low=1)
    imgsz: int = setting(256, "image size", low=32, unit="pixels")
    repeats: int = setting(10, "timed repetitions", low=3)
    device: str = setting("", "cpu, or a CUDA index; empty: CUDA where there is one")
    grow: bool = setting(
        False,
        "time the losses alone, over boxes an image and classes (1 to 1000) and image size, and draw it beside `out`",
    )
    out: str = setting("", "write the figures to this JSON file; with grow: default runs/bench-grow.json")


@dataclass(frozen=True, kw_only=True)
class StepsFlags:
    """`rebalance steps`: the detections after each step of a head that refines its objectness."""

    model: str = setting("", "checkpoint of a training with head=resobj")
    source: str = setting("", "image, or folder of images")
    conf: float = setting(0.4, "least score of a detection that is drawn", low=0, high=1)
    imgsz: int = setting(0, "image size; 0: the one that the model was trained with", low=0, unit="pixels")
    device: str = setting("", "cpu, or a CUDA index; empty: CUDA where there is one")
    out: str = setting("runs/steps", "folder of the pictures, one an image")


def settings_of(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Name to field of a dataclass: a command, a method or a head."""
    return {f.name: f for f in dataclasses.fields(cls)}


def convert(cls: type[Any], name: str, value: Any) -> Any:
    """`value` as the type of flag `name` of one command, checked; see `checked`."""
    return checked(name, settings_of(cls)[name], value)


def checked(name: str, item: dataclasses.Field[Any], value: Any) -> Any:
    """Return `value` as the type that the flag `name` has by its default, checked against its range and choices.

    Raises:
        ConfigError: the value has the wrong type, is out of range, or is not among the choices.
    """
    facts = item.metadata
    kind = facts["number"] or type(item.default)
    text = str(value).strip()
    if facts["number"] and text == item.default:
        return text
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
        word = f"{item.default} or " if facts["number"] else ""
        raise ConfigError(f"{name}={value} is not {word}{_KINDS[kind]}") from None
    if kind in (int, float) and not _within(result, facts):
        raise ConfigError(f"{name}={value} is out of range: {span(facts)}")
    if facts["choices"] and result not in facts["choices"] and not (span(facts) and _within(result, facts)):
        raise ConfigError(f"{name}={value} is not one of {_choices(facts)}{nearest(text, facts['choices'])}")
    return result


def classes_of(text: str, names: Iterable[str]) -> list[str]:
    """The names of classes in a text, comma separated, in its order; none where it is empty.

    Raises:
        ConfigError: one is not among those of the source, or is there twice, or the text has none.
    """
    known, found = [*names], [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in known:
            raise ConfigError(
                f"classes: '{name}' is not a class of the source{nearest(name, known)}; it has {', '.join(known)}"
            )
    if len({*found}) < len(found):
        raise ConfigError(f"classes={text} names a class twice")
    if text and not found:
        raise ConfigError(f"classes={text} names no class; the source has {', '.join(known)}")
    return found


def _within(value: Any, facts: Mapping[str, Any]) -> bool:
    try:
        return bool(facts["low"] <= float(value) <= facts["high"])  # NaN fails too
    except ValueError:
        return False


def _choices(facts: Mapping[str, Any]) -> str:
    """The allowed texts, and where numbers are too, their range."""
    return ", ".join([*facts["choices"], *([f"a number {span(facts)}"] if span(facts) else [])])


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def span(facts: Mapping[str, Any]) -> str:
    """The allowed range in words, e.g. '0 to 1', 'at least 0', or '' where there is none."""
    low, high = facts["low"], facts["high"]
    if math.isinf(high):
        return "" if math.isinf(low) else f"at least {value_text(low)}"
    return f"{value_text(low)} to {value_text(high)}"


def described(items: Mapping[str, dataclasses.Field[Any]]) -> list[tuple[str, str, str, str]]:
    """One row a flag, for tables: name, default, allowed values with their unit, help."""
    rows = []
    for name, item in items.items():
        facts = item.metadata
        values = (_choices(facts) if facts["choices"] else span(facts)) or _KINDS[facts["number"] or type(item.default)]
        values = f"{item.default}, {values}" if facts["number"] else values
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
    known = settings_of(cls)
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
            raise ConfigError(f"{name}= is missing: {settings_of(type(values))[name].metadata['help']}")
