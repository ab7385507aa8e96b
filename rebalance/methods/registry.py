"""Every method, one row each.

A method is an element loss (what one candidate costs) or a weighting (how much each candidate counts). One of each may
be joined: `loss=focal+drop`. A head is a row too: its name among the losses chooses it, `loss=resobj+drop`. To add a
method: one file beside this one, one row here, one row in the tests' golden numbers, one row in the README's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rebalance.errors import ConfigError, nearest
from rebalance.methods.bce import bce
from rebalance.methods.brl import brl
from rebalance.methods.drop import drop_mask
from rebalance.methods.focal import focal
from rebalance.methods.ghm import ghm_weights
from rebalance.methods.nrd import nrd_mask
from rebalance.methods.ohem import ohem_mask
from rebalance.methods.resobj import residual_objectness
from rebalance.methods.soft import soft_weights


class Method(NamedTuple):
    """One row of the registry."""

    kind: str  # "element", "weighting" or "head"
    function: Callable[..., Any]
    places: tuple[str, ...]  # where it is defined, see PLACES
    title: str
    source: str  # paper and section or equation
    elements: tuple[str, ...] = ()  # of a weighting: the element losses that it has a meaning for
    divisors: Mapping[str, str] = {}  # place: what `divisor=auto` means there, if not the host's


YOLO = ("stock", "anchor", "obj", "resobj")
UNREFINED = ("stock", "anchor", "obj")  # mining and counting say nothing about the candidates of a refinement
OBJECTNESS = ("anchor", "obj", "resobj")
REFINED = ("retinanet-obj", "fasterrcnn-obj")

# Where a loss is applied -> the host's own loss there. `stock` is the class scores of an anchor-free YOLO head,
# `anchor` the objectness of the anchor head, `obj` that of a head with an objectness, `resobj` that in each of its
# steps; the others are torchvision's detectors, `-obj` with head=obj or resobj: RetinaNet's objectness, Faster R-CNN
# whose RPN trains on all anchors.
PLACES: dict[str, str] = {
    "stock": "bce",
    "anchor": "bce",
    "obj": "bce",
    "resobj": "bce",
    "retinanet": "focal",
    "ssd": "ohem",
    "fasterrcnn": "bce",
    "retinanet-obj": "bce",
    "fasterrcnn-obj": "bce",
}
# Places whose loss is a mean over sampled candidates, which leaves nothing to choose for `divisor`
SAMPLED = ("fasterrcnn",)
# Values of `head` that torchvision's detectors take
HEADS: dict[str, tuple[str, ...]] = {
    "retinanet": ("stock", "obj", "resobj"),
    "ssd": ("stock",),
    "fasterrcnn": ("stock", "obj", "resobj"),
}

METHODS: dict[str, Method] = {
    "bce": Method("element", bce, tuple(PLACES), "cross-entropy", "YOLOv5, YOLOv8"),
    "focal": Method(
        "element", focal, (*YOLO, "retinanet", "ssd", "retinanet-obj"), "focal loss", "Lin et al. 2017, equation 5",
        divisors=dict.fromkeys(OBJECTNESS, "batch"),
    ),
    "brl": Method(
        "element", brl, (*YOLO, "retinanet", "retinanet-obj"), "Background Recalibration Loss",
        "Zhang et al. 2020, equation 2",
        divisors=dict.fromkeys(OBJECTNESS, "batch"),
    ),
    "drop": Method(
        "weighting", drop_mask, tuple(PLACES), "Box Prediction Rebalancing", "Haque & McEver, section 2",
        elements=("bce", "focal", "brl"),
    ),
    "ghm": Method(
        "weighting", ghm_weights, (*UNREFINED, "retinanet"), "gradient harmonizing (GHM-C)",
        "Li et al. 2019, unit region approximation",
        elements=("bce",),  # it takes the place of focal loss: g is the gradient of cross-entropy
        divisors=dict.fromkeys((*UNREFINED, "retinanet"), "candidates"),
    ),
    "ohem": Method(
        "weighting", ohem_mask, (*UNREFINED, "retinanet", "ssd", "fasterrcnn", "fasterrcnn-obj"),
        "online hard example mining", "Shrivastava et al. 2016, section 4",
        elements=("bce", "focal"),  # BRL lowers the loss of the very candidates that mining would find
        divisors={"anchor": "batch", "obj": "batch"},
    ),
    "soft": Method(
        "weighting", soft_weights, tuple(PLACES), "soft sampling by overlap (Gompertz)", "Wu et al. 2019",
        elements=("bce", "focal"),  # BRL has a weight by overlap of its own
    ),
    "nrd": Method(
        "weighting", nrd_mask, ("fasterrcnn", "fasterrcnn-obj"), "negative region dropping", "McEver et al. 2022",
        elements=("bce",),
    ),
    "obj": Method("head", bce, ("obj", *REFINED), "objectness module", "Chen et al. 2019, section 3.1"),
    "resobj": Method(
        "head", residual_objectness, ("resobj", *REFINED), "Residual Objectness", "Chen et al. 2019, Algorithm 1",
    ),
}  # fmt: skip

ALIASES = {"ce": "bce"}  # on a sigmoid they are one loss


class Selection(NamedTuple):
    """The methods of one run."""

    element: str
    weighting: str  # "" where every candidate counts the same

    def text(self, place: str = "stock") -> str:
        """As the user would write it: cross-entropy goes without saying where that is the host's own loss."""
        if not self.weighting:
            return self.element
        own = _own(place)
        said = self != own and (self.element != "bce" or own != Selection("bce", ""))
        return f"{self.element}+{self.weighting}" if said else self.weighting


def select(loss: str, place: str = "stock") -> Selection:
    """Read a loss name: an element loss, a weighting, or one of each joined by +.

    Args:
        loss: the name, a head in it has no say; a weighting by itself weighs the element loss that is the host's own,
            where it has a meaning for it, else the first that it has a meaning for.
        place: where the loss is applied, see PLACES.

    Raises:
        ConfigError: an unknown name, two methods of one kind, or a pair without a meaning.
    """
    found = {"element": "", "weighting": "", "head": ""}
    for given in loss.split("+"):
        name = ALIASES.get(given, given)
        if name not in METHODS:
            raise ConfigError(
                f"loss={loss}: {name or 'nothing'} is not one of {', '.join(METHODS)}{nearest(name, METHODS)}"
            )
        kind = METHODS[name].kind
        if found[kind]:
            raise ConfigError(f"loss={loss} joins two methods of one kind ({kind}); valid pairs: {_pairs()}")
        found[kind] = name
    elements = METHODS[found["weighting"]].elements if found["weighting"] else ()
    if not found["element"]:
        own = _own(place).element
        found["element"] = own if own in elements else elements[0]
    selection = Selection(found["element"], found["weighting"])
    if elements and selection.element not in elements:
        raise ConfigError(
            f"loss={loss}: {selection.weighting} has no meaning with {selection.element}; valid pairs: {_pairs()}"
        )
    return selection


def _own(place: str) -> Selection:
    """The host's own loss."""
    name = PLACES[place]
    return Selection(name, "") if METHODS[name].kind == "element" else Selection(METHODS[name].elements[0], name)


def _pairs() -> str:
    return ", ".join(f"{element}+{name}" for name, row in METHODS.items() for element in row.elements)
