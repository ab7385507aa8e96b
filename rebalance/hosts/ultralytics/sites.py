"""Where the loss acts on Ultralytics' YOLO models: on the class scores of a stock head, or on an objectness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rebalance.match.candidates import SIGMOID
from rebalance.methods.method import Site, Sites

ONE = frozenset({"overlap", SIGMOID, "cells", "one", "scores"})  # an assigner's scores, or the IoU

STOCK = Site(
    name="stock", where="head=stock", about="class scores of an anchor-free head", own="bce", gives=ONE,
    divisors={
        "host": "sum of target scores",
        "image": "matched predictions of each image, mean over images",
        "batch": "matched predictions of the batch",
        "candidates": "predictions of the batch times classes",
    },
)  # fmt: skip
ANCHOR = Site(
    name="anchor", where="head=anchor", about="objectness of the anchor head", own="bce", gives=ONE | {"anchors"},
    divisors={
        "host": "mean over the candidates of a level",
        "image": "matched candidates of each image, mean over images",
        "batch": "matched candidates of the batch",
        "candidates": "candidates of the batch",
    },
    positives="batch",
)  # fmt: skip
OBJ = replace(
    ANCHOR, name="obj", where="head=obj", about="objectness beside the class scores",
    gives=ONE | {"objectness", "prior", "subnet"},
    divisors={**ANCHOR.divisors, "host": "sum of target scores"},
)  # fmt: skip
RESOBJ = replace(
    OBJ, name="resobj", where="head=resobj", about="objectness in each of its steps", gives=OBJ.gives - {"one"}
)


@dataclass(frozen=True)
class YoloSites(Sites):
    """The sites of one model.

    Attributes:
        on_anchors: whether heads obj and resobj stand on the anchor head where nothing else is asked for.
    """

    name: str = "yolo"
    by_head: Mapping[str, Site] = field(
        default_factory=lambda: {"stock": STOCK, "anchor": ANCHOR, "obj": OBJ, "resobj": RESOBJ}
    )
    on_anchors: bool = False

    def site(self, head: str, base: str = "auto") -> Site:
        """An objectness may stand on the anchor head."""
        site = self.by_head[head]
        if "objectness" in site.gives and (base == "anchor" or (base == "auto" and self.on_anchors)):
            gives = site.gives - {"prior", "subnet"} | {"anchors"}  # it has the anchor head's own, and its gains
            return replace(site, gives=gives, divisors=ANCHOR.divisors)
        return site
