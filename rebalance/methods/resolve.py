"""A user's training flags, checked against the registry and completed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rebalance.errors import ConfigError
from rebalance.methods.registry import HEADS, METHODS, PLACES, REFINED, SAMPLED, YOLO, select
from rebalance.settings import TrainFlags, flags, parse


def place_of(head: str, host: str = "yolo") -> str:
    """Where the loss is applied: a key of PLACES, from the head and the host that a model has."""
    if host == "yolo":
        return head
    return f"{host}-obj" if head in ("obj", "resobj") else host


def divisor_of(values: TrainFlags, place: str) -> str:
    """What the summed loss is divided by: a choice of `divisor`; what `auto` means is in the registry."""
    if values.divisor != "auto":
        return values.divisor
    element, weighting = select(values.loss, place)
    rows = [METHODS[name] for name in (weighting, element) if name]
    return next((row.divisors[place] for row in rows if place in row.divisors), "host")


def counts_at(item: Any, place: str) -> bool:
    """Whether a training flag (a field of TrainFlags) counts at a place where its method is defined."""
    places = item.metadata["places"]
    return not places or place.removesuffix("-obj") in places


def train_flags(
    given: Mapping[str, Any], *, head: str = "stock", host: str = "yolo", anchored: bool = False
) -> TrainFlags:
    """Parse and check the training flags that a user gave.

    Args:
        given: flag name to value.
        head: the head where none is given, e.g. that of the checkpoint.
        host: yolo, or one of torchvision's detectors: retinanet, ssd, fasterrcnn.
        anchored: whether heads obj and resobj are built on the anchor head (YOLOv3, YOLOv5), whose flags they take.

    Returns:
        Flags with `loss` and `head` filled in: a method's flag without `loss` selects the method.

    Raises:
        ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
    """
    values = parse(TrainFlags, {"head": head, **given})
    head, loss = _head_of(values, given)
    values = replace(values, head=head)
    if host != "yolo" and values.head not in HEADS[host]:
        raise ConfigError(f"head={values.head} is not defined for {host}; heads: {', '.join(HEADS[host])}")
    place = place_of(values.head, host)
    facts = {name: flags(TrainFlags)[name].metadata["method"] for name in given}
    implied = sorted({method for method in facts.values() if method in METHODS and method != "resobj"})
    loss = loss or "+".join(implied) or PLACES[place]
    selected = select(loss, place)
    for name, method in facts.items():
        if method == "anchor" and not (values.head == "anchor" or (anchored and values.head in ("obj", "resobj"))):
            raise ConfigError(f"{name}={given[name]} has no effect with head={values.head}; add head=anchor")
        if method == "resobj" and values.head != "resobj":
            raise ConfigError(f"{name}={given[name]} has no effect with head={values.head}; add head=resobj")
        item = flags(TrainFlags)[name]
        if not counts_at(item, place):
            there = ", ".join(map(_where, item.metadata["places"]))
            raise ConfigError(f"{name}={given[name]} has no effect with {_where(place)}; it is for {there}")
        if method in METHODS and method not in (*selected, "resobj"):
            raise ConfigError(f"{name}={given[name]} has no effect with loss={loss}; {_remedy(loss, method)}")
    for name in selected:
        if name and place not in METHODS[name].places:
            defined = [m for m, row in METHODS.items() if place in row.places]
            raise ConfigError(f"loss={name} is not defined for {_where(place)}; losses there: {', '.join(defined)}")
    if place in SAMPLED and values.divisor not in ("auto", "host"):
        raise ConfigError(f"divisor={values.divisor} is not defined for {place}, which divides by what it sampled")
    return parse(TrainFlags, {**{k: getattr(values, k) for k in flags(TrainFlags)}, "loss": selected.text(place)})


def check_flags(given: Mapping[str, Any], *, head: str = "stock") -> None:
    """Raise where no model takes these flags; what is wrong with them for YOLO is told.

    Args:
        given: flag name to value.
        head: as in `train_flags`.
    """
    try:
        train_flags(given, head=head, anchored=True)
    except ConfigError:
        for other, host in (("resobj", "yolo"), *((own, host) for host, heads in HEADS.items() for own in heads)):
            try:
                train_flags(given, head=other, host=host, anchored=True)
                return
            except ConfigError:
                continue
        raise


def kept_flags(kept: Mapping[str, Any], *, head: str = "stock", host: str = "yolo") -> TrainFlags:
    """The flags that a checkpoint keeps: every one, checked when its run began; the host's loss where it keeps none.

    Args:
        kept: flag name to value.
        head: the head where none is kept.
        host: as in `train_flags`.
    """
    return parse(TrainFlags, {"loss": PLACES[place_of(head, host)], "head": head, **kept})


def _head_of(values: TrainFlags, given: Mapping[str, Any]) -> tuple[str, str]:
    """The head, which a loss may choose, and the loss without it.

    Raises:
        ConfigError: the head given is another.
    """
    parts = values.loss.split("+")
    heads = [name for name in parts if name in METHODS and METHODS[name].kind == "head"]
    for name in heads:
        if "head" in given and given["head"] != name:
            raise ConfigError(f"loss={values.loss} is for head={name}, but head={given['head']} was given")
    if len(heads) > 1:
        raise ConfigError(f"loss={values.loss} chooses more than one head")
    return (heads or [values.head])[0], "+".join(name for name in parts if name not in heads)


def _where(place: str) -> str:
    if place in REFINED:
        return f"{place.removesuffix('-obj')} with head=obj or resobj"
    return f"head={place}" if place in YOLO else place


def _remedy(loss: str, method: str) -> str:
    """How to make a method's flag count."""
    joined = f"{loss}+{method}"
    try:
        select(joined)
    except ConfigError:
        return f"use loss={method}"
    return f"add it: loss={joined}"
