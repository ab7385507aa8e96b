"""Stands in for the registry of classes until it is there: its methods, sites and flags, from today's rows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

from rebalance.methods import registry
from rebalance.settings import TrainFlags, flags


class Text(NamedTuple):
    """Of one method."""

    summary: str
    equation: str
    helps: str


TEXTS: dict[str, Text] = {
    "bce": Text(
        "Every candidate counts the same: the negative log-likelihood of its label.",
        r"L = -y\,\log p - (1-y)\,\log(1-p),\quad p = \sigma(x)",
        "The baseline: an unlabelled object is punished as background wherever the detector finds it.",
    ),
    "focal": Text(
        "The better a prediction already is, the less it counts.",
        r"L = -\alpha_t\,(1-p_t)^{\gamma}\,\log p_t = \alpha_t\,|p-y|^{\gamma}\,\mathrm{BCE}(p, y)"
        r"\\ \alpha_t = \alpha\,y + (1-\alpha)(1-y)",
        "Made for the many easy negatives, not for gaps: an unlabelled object that is found is a hard negative, and "
        "counts the most.",
    ),
    "brl": Text(
        "Focal loss, but far from every label a prediction that is taken for an object counts as one, and all count "
        "little.",
        r"L = -(1-\alpha)\,(1-p_t)^{\gamma}\,\log p_t \quad \mathrm{if}\ p_t > t"
        r"\\ L = -\beta\,(1-\alpha)\,p_t^{\gamma}\,\log(1-p_t) \quad \mathrm{if}\ p_t \leq t"
        r"\\ p_t = 1-p\ \mathrm{on\ negatives\ with\ overlap} < u,\ \mathrm{times}\ w",
        "Many objects without a label that are apart from the labelled ones, on detectors with anchors.",
    ),
    "drop": Text(
        "A random fraction of the negatives takes no part in the loss, afresh in each step.",
        r"w_i = 0\ \mathrm{for}\ \lfloor r\,N \rfloor\ \mathrm{of\ the}\ N\ \mathrm{negatives},\quad w_i = 1\ "
        r"\mathrm{else}",
        "Many unlabelled objects anywhere in an image: fewer of them push the detector down in each step.",
    ),
    "ghm": Text(
        "What many predictions have in common, easy ones and outliers, counts less.",
        r"w_i = \frac{N}{GD(g_i)},\quad GD(g) = M\,R(g),\quad g_i = |p_i - y_i|",
        "A few confident unlabelled objects among many candidates are outliers, and count less.",
    ),
    "ohem": Text(
        "Of the negatives of an image only the hardest are trained on.",
        r"w_i = 1\ \mathrm{for\ positives\ and\ the}\ \lfloor r\,P \rfloor\ \mathrm{negatives\ of\ highest\ loss},"
        r"\quad w_i = 0\ \mathrm{else}",
        "Complete labels with much easy background. With gaps it seeks out the very objects that have no label.",
    ),
    "soft": Text(
        "The further a negative is from every label, the less it counts.",
        r"w = a + (1-a)\,\exp(-b\,\exp(-c\,o))",
        "Unlabelled objects apart from the labelled ones; hard negatives near labels keep their full say.",
    ),
    "nrd": Text(
        "A random fraction of the sampled negatives leaves the classification loss of a two-stage detector.",
        r"w_i = 0\ \mathrm{for}\ \lfloor r\,N \rfloor\ \mathrm{of\ the}\ N\ \mathrm{sampled\ negatives},\quad w_i = 1"
        r"\ \mathrm{else}",
        "Many unlabelled objects anywhere in an image, on Faster R-CNN.",
    ),
    "obj": Text(
        "A prediction's class is learned from positives alone; an objectness tells them from background.",
        r"s = P(\mathrm{class}\,|\,\mathrm{object})\ P(\mathrm{object})",
        "Made for the imbalance of objects and background: the classes never see an unlabelled object as a negative.",
    ),
    "resobj": Text(
        "The objectness is refined in steps, each trained on what scores as high as the lowest positive.",
        r"o_t = o_{t-1} + r_t\quad\mathrm{where}\ \sigma(o_{t-1}) \geq m_t = \min_{j\in\mathrm{pos}}\,\sigma(o_{t-1,j})"
        r"\\ L = \sum_{t=1}^{T}\ \mathrm{BCE}(\sigma(o_t), y)",
        "Made for the imbalance of objects and background, in the place of resampling or focal loss.",
    ),
}

ABOUT: dict[str, str] = {
    "stock": "the class scores of an anchor-free YOLO head",
    "anchor": "the objectness of the anchor head",
    "obj": "the objectness added to a YOLO head",
    "resobj": "that objectness in each of its steps",
    "retinanet": "the class scores of RetinaNet",
    "ssd": "the class scores of SSD, with background",
    "fasterrcnn": "Faster R-CNN: the RPN (drop) and the RoI head (ohem, soft, nrd)",
    "retinanet-obj": "the objectness of RetinaNet, head=obj or head=resobj",
    "fasterrcnn-obj": "Faster R-CNN with head=obj or head=resobj, whose RPN trains on all anchors",
}

SITES = {name: SimpleNamespace(name=name, about=ABOUT[name], own=own) for name, own in registry.PLACES.items()}


def _stand_in(name: str, row: registry.Method) -> SimpleNamespace:
    own = {key: field for key, field in flags(TrainFlags).items() if field.metadata["method"] == name}
    return SimpleNamespace(
        name=name, title=row.title, kind=row.kind, source=row.source, joins=row.elements, settings=own,
        defined=lambda site: site.name in row.places, **TEXTS[name]._asdict(),
    )  # fmt: skip


METHODS = {name: _stand_in(name, row) for name, row in registry.METHODS.items()}
TRAIN: dict[str, tuple[Any, dataclasses.Field[Any]]] = {
    name: (METHODS.get(field.metadata["method"]), field) for name, field in flags(TrainFlags).items()
}


def settings_of(owner: Any) -> dict[str, dataclasses.Field[Any]]:
    """Name to field of a command or a method."""
    return owner.settings if isinstance(owner, SimpleNamespace) else flags(owner)
