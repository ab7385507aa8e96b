"""Every method, one row each.

A method is an element loss (what one candidate costs) or a weighting (how much each candidate counts). One of each may
be joined: `loss=bce+drop`. To add a method: one file beside this one, one row here, one row in the tests' golden
numbers, one row in the README's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rebalance.config import TrainFlags, flags, parse
from rebalance.errors import ConfigError, nearest
from rebalance.losses.bce import bce
from rebalance.losses.drop import drop_mask


class Method(NamedTuple):
    """One row of the registry."""

    kind: str  # "element" or "weighting"
    function: Callable[..., Any]
    heads: tuple[str, ...]  # where it is defined: values of `head`
    title: str
    source: str  # paper and section or equation


METHODS: dict[str, Method] = {
    "bce": Method("element", bce, ("stock", "anchor"), "binary cross-entropy, the host's own", "YOLOv5, YOLOv8"),
    "drop": Method(
        "weighting", drop_mask, ("stock", "anchor"), "Box Prediction Rebalancing", "Haque & McEver, section 2"
    ),
}


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
        ConfigError: an unknown name, or two methods of one kind.
    """
    found = {"element": "bce", "weighting": ""}
    seen: set[str] = set()
    for name in loss.split("+"):
        if name not in METHODS:
            raise ConfigError(
                f"loss={loss}: {name or 'nothing'} is not one of {', '.join(METHODS)}{nearest(name, METHODS)}"
            )
        kind = METHODS[name].kind
        if kind in seen:
            pairs = [f"{a}+{b}" for a in METHODS for b in METHODS if METHODS[a].kind < METHODS[b].kind]
            raise ConfigError(f"loss={loss} joins two methods of one kind ({kind}); valid pairs: {', '.join(pairs)}")
        seen.add(kind)
        found[kind] = name
    return Selection(**found)


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
            raise ConfigError(f"{name}={given[name]} has no effect with loss={loss}; add it: loss={loss}+{method}")
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
