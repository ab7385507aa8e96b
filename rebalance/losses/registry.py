"""Every method, one row each.

A method is an element loss (what one candidate costs) or a weighting (how much each candidate counts). One of each may
be joined: `loss=focal+drop`. To add a method: one file beside this one, one row here, one row in the tests' golden
numbers, one row in the README's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rebalance.config import TrainFlags, flags, parse
from rebalance.errors import ConfigError, nearest
from rebalance.losses.bce import bce
from rebalance.losses.brl import brl
from rebalance.losses.drop import drop_mask
from rebalance.losses.focal import focal
from rebalance.losses.ghm import ghm_weights
from rebalance.losses.ohem import ohem_mask
from rebalance.losses.soft import soft_weights


class Method(NamedTuple):
    """One row of the registry."""

    kind: str  # "element" or "weighting"
    function: Callable[..., Any]
    heads: tuple[str, ...]  # where it is defined: values of `head`
    title: str
    source: str  # paper and section or equation
    elements: tuple[str, ...] = ()  # of a weighting: the element losses that it has a meaning for
    divisors: Mapping[str, str] = {}  # head: what `divisor=auto` means there, if not the host's


YOLO = ("stock", "anchor")

METHODS: dict[str, Method] = {
    "bce": Method("element", bce, YOLO, "binary cross-entropy, the host's own", "YOLOv5, YOLOv8"),
    "focal": Method(
        "element", focal, YOLO, "focal loss", "Lin et al. 2017, equation 5", divisors={"anchor": "positives"}
    ),
    "brl": Method(
        "element", brl, YOLO, "Background Recalibration Loss", "Zhang et al. 2020, equation 2",
        divisors={"anchor": "positives"},
    ),
    "drop": Method(
        "weighting", drop_mask, YOLO, "Box Prediction Rebalancing", "Haque & McEver, section 2",
        elements=("bce", "focal", "brl"),
    ),
    "ghm": Method(
        "weighting", ghm_weights, YOLO, "gradient harmonizing (GHM-C)", "Li et al. 2019, unit region approximation",
        elements=("bce",),  # it takes the place of focal loss: g is the gradient of cross-entropy
        divisors={"stock": "candidates", "anchor": "candidates"},
    ),
    "ohem": Method(
        "weighting", ohem_mask, YOLO, "online hard example mining", "Shrivastava et al. 2016, section 4",
        elements=("bce", "focal"),  # BRL lowers the loss of the very candidates that mining would find
        divisors={"anchor": "positives"},
    ),
    "soft": Method(
        "weighting", soft_weights, YOLO, "soft sampling by overlap (Gompertz)", "Wu et al. 2019",
        elements=("bce", "focal"),  # BRL has a weight by overlap of its own
    ),
}  # fmt: skip

ALIASES = {"ce": "bce"}  # on a sigmoid they are one loss


class Selection(NamedTuple):
    """The methods of one run."""

    element: str
    weighting: str  # "" where every candidate counts the same

    @property
    def text(self) -> str:
        """As the user would write it: an element loss that is the host's own goes without saying."""
        if not self.weighting:
            return self.element
        return self.weighting if self.element == "bce" else f"{self.element}+{self.weighting}"


def select(loss: str) -> Selection:
    """Read a loss name: an element loss, a weighting, or one of each joined by +.

    Raises:
        ConfigError: an unknown name, two methods of one kind, or a pair without a meaning.
    """
    found = {"element": "bce", "weighting": ""}
    seen: set[str] = set()
    for given in loss.split("+"):
        name = ALIASES.get(given, given)
        if name not in METHODS:
            raise ConfigError(
                f"loss={loss}: {name or 'nothing'} is not one of {', '.join(METHODS)}{nearest(name, METHODS)}"
            )
        kind = METHODS[name].kind
        if kind in seen:
            raise ConfigError(f"loss={loss} joins two methods of one kind ({kind}); valid pairs: {_pairs()}")
        seen.add(kind)
        found[kind] = name
    selection = Selection(**found)
    if selection.weighting and selection.element not in METHODS[selection.weighting].elements:
        raise ConfigError(
            f"loss={loss}: {selection.weighting} has no meaning with {selection.element}; valid pairs: {_pairs()}"
        )
    return selection


def _pairs() -> str:
    return ", ".join(f"{element}+{name}" for name, row in METHODS.items() for element in row.elements)


def _remedy(loss: str, method: str) -> str:
    """How to make a method's flag count."""
    joined = f"{loss}+{method}"
    try:
        select(joined)
    except ConfigError:
        return f"use loss={method}"
    return f"add it: loss={joined}"


def divisor_of(values: TrainFlags) -> str:
    """What the summed loss is divided by: `host`, `positives` or `candidates`; what `auto` means is in the registry."""
    if values.divisor != "auto":
        return values.divisor
    element, weighting = select(values.loss)
    rows = [METHODS[name] for name in (weighting, element) if name]
    return next((row.divisors[values.head] for row in rows if values.head in row.divisors), "host")


def train_flags(given: Mapping[str, Any], *, head: str = "stock") -> TrainFlags:
    """Parse and check the training flags that a user gave.

    Args:
        given: flag name to value.
        head: the head where none is given, e.g. that of the checkpoint.

    Returns:
        Flags with `loss` and `head` filled in: a method's flag without `loss` selects the method.

    Raises:
        ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
    """
    values = parse(TrainFlags, {"head": head, **given})
    facts = {name: flags(TrainFlags)[name].metadata["method"] for name in given}
    implied = sorted({method for method in facts.values() if method in METHODS})
    loss = values.loss or "+".join(implied) or "bce"
    selected = select(loss)
    for name, method in facts.items():
        if method == "anchor" and values.head != "anchor":
            raise ConfigError(f"{name}={given[name]} has no effect with head={values.head}; add head=anchor")
        if method in METHODS and method not in selected:
            raise ConfigError(f"{name}={given[name]} has no effect with loss={loss}; {_remedy(loss, method)}")
    for name in selected:
        if name and values.head not in METHODS[name].heads:
            raise ConfigError(
                f"loss={name} is not defined for head={values.head}; heads: {', '.join(METHODS[name].heads)}"
            )
    return parse(TrainFlags, {**{k: getattr(values, k) for k in flags(TrainFlags)}, "loss": selected.text})


def kept_flags(kept: Mapping[str, Any], *, head: str = "stock") -> TrainFlags:
    """The flags that a checkpoint keeps: every one, checked when its run began; the host's loss where it keeps none.

    Args:
        kept: flag name to value.
        head: the head where none is kept.
    """
    return parse(TrainFlags, {"loss": "bce", "head": head, **kept})
