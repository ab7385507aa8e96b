"""What a training trains with: the user's flags, read once against what a model gives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from rebalance.errors import ConfigError, nearest
from rebalance.heads.anchor import AnchorSettings
from rebalance.methods import ALIASES, JOINS, METHODS, ROWS
from rebalance.methods.method import Method, Site, Sites
from rebalance.methods.resobj import Obj, ResObj
from rebalance.settings import checked, setting, settings_of, value_text

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of a training that belong to no method."""

    loss: str = setting("", "method, or element loss and weighting joined by +; empty: what the other flags imply")
    head: str = setting(
        "stock", "detection head; obj, resobj: on anchors for YOLOv3 and YOLOv5, else beside the class scores; "
        "sigmoid: SSD with a score for each class, not a softmax",
        choices=("stock", "anchor", "obj", "resobj", "sigmoid"),
    )  # fmt: skip
    obj_base: str = setting(
        "auto", "head=obj, resobj on YOLO: refine the anchor head's objectness, or one beside the stock head's classes",
        choices=("auto", "anchor", "stock"),
    )  # fmt: skip
    divisor: str = setting(
        "auto",
        "what the classification (objectness) loss is divided by; auto: what suits the method, else as the host",
        choices=("auto", "host", "image", "batch", "candidates"),
    )
    diagnose: bool = setting(
        False, "on a data set with withheld labels, measure in each epoch what the loss does to the objects that lack "
        "theirs; changes nothing else",
    )  # fmt: skip
    val_regions: bool = setting(
        True, "in validation, what is found in an unknown region and matches no label counts neither as right nor as "
        "wrong; False: as wrong",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Flags of learning rate and optimizer that Ultralytics has none for; the loss knows nothing of them."""

    lr_steps: str = setting(
        "", "epochs after which the learning rate falls to a tenth, e.g. [8,11]; empty: as lrf and cos_lr say"
    )
    warmup_from: float = setting(
        0.0, "share of the learning rate at which the warm-up begins (of biases: warmup_bias_lr)", low=0, high=1
    )
    grad_clip: float = setting(10.0, "largest norm of a step's gradient; 0: any", low=0)
    optim_eps: float = setting(0.0, "what Adam's kin and RMSprop add to the denominator; 0: PyTorch's default", low=0)


# Every flag of a training: the class that it belongs to, and its field
OWNERS: tuple[type[Any], ...] = (Common, Schedule, *ROWS, AnchorSettings)
TRAIN: dict[str, tuple[type[Any], dataclasses.Field[Any]]] = {}
for _owner in OWNERS:
    for _name, _item in settings_of(_owner).items():
        TRAIN.setdefault(_name, (_owner, _item))  # of a class and one made from it, the former's
DEFAULTS: Mapping[str, Any] = {name: item.default for name, (_, item) in TRAIN.items()}
# What flags stand for in a training that began before there were any, where that is not the default
BEFORE: Mapping[str, Any] = {
    name: item.metadata["before"] for name, (_, item) in TRAIN.items() if item.metadata["before"] is not None
}
HEADS = {row.name for row in ROWS if row.kind == "head"}  # chosen by `loss=` too
# The methods that a flag is for; none: it is for all
METHODS_OF: Mapping[str, tuple[str, ...]] = {
    **{name: tuple(row.name for row in ROWS if name in settings_of(row)) for name in TRAIN},
    "obj_base": ("obj", "resobj"),
}
# Fractions of candidates that leave the loss: at 0 it is the host's own, so a series of them begins there
REMOVALS: tuple[str, ...] = tuple(
    name for row in ROWS if row.choose is not Method.choose for name, value in row.neutral.items() if value == 0
)


class Selection(NamedTuple):
    """The methods of one `loss`."""

    element: str
    weighting: str  # "" where every candidate counts the same

    def text(self, site: Site) -> str:
        """As the user would write it: cross-entropy goes without saying where that is the host's own loss."""
        if not self.weighting:
            return self.element
        own = own_loss(site)
        said = self != own and (self.element != "bce" or own != Selection("bce", ""))
        return f"{self.element}+{self.weighting}" if said else self.weighting


@dataclass(frozen=True)
class Recipe:
    """Checked and complete.

    Attributes:
        values: every flag of a training; what a checkpoint and a record keep.
        site: where the loss acts.
        methods: the element loss, and the weighting where there is one, with their settings.
        divisor: what the loss is divided by: a key of the site's `divisors`.
    """

    values: Mapping[str, Any]
    site: Site
    methods: tuple[Method, ...]
    divisor: str

    def __getitem__(self, name: str) -> Any:
        """The value of a flag."""
        return self.values[name]

    def of(self, owner: type[S]) -> S:
        """The settings of a method or head."""
        return owner(**{name: self.values[name] for name in settings_of(owner)})

    @property
    def resobj(self) -> ResObj:
        """The settings of a head that refines its objectness; no steps where it is not head=resobj."""
        settings = self.of(ResObj)
        return settings if self["head"] == "resobj" else dataclasses.replace(settings, resobj_steps=0)

    @property
    def used(self) -> dict[str, Any]:
        """The settings that have a say in the loss."""
        owners: set[type[Any]] = {*map(type, self.methods), *filter(None, [METHODS.get(self["head"])])}
        if "anchors" in self.site.gives:
            owners.add(AnchorSettings)
        return {
            name: self.values[name]
            for name, (owner, item) in TRAIN.items()
            if self.site.has(needed(item)) and name != "autoanchor" and any(issubclass(x, owner) for x in owners)
        }

    @property
    def lr_steps(self) -> tuple[int, ...]:
        """Epochs after which the learning rate falls to a tenth; none: the host's schedule."""
        return _epochs(self["lr_steps"])

    @property
    def asked(self) -> dict[str, Any]:
        """Flags that ask for this training again: loss, head, and what has a say and is not its default."""
        more = {*self.used, "divisor", "diagnose", "val_regions", *settings_of(Schedule)} | (
            {"autoanchor"} if "anchors" in self.site.gives else set()
        )
        if self["head"] in HEADS and "cells" in self.site.gives:
            more.add("obj_base")
        changed = {name: self[name] for name in DEFAULTS if name in more and self[name] != DEFAULTS[name]}
        return {"loss": self["loss"], "head": self["head"], **changed}

    @property
    def text(self) -> str:
        """`loss=`, `head=` and what they are called."""
        named = [*self["loss"].split("+"), *([self["head"]] if self["head"] in METHODS else [])]
        return f"loss={self['loss']} head={self['head']} ({' with '.join(METHODS[name].title for name in named)})"


def needed(item: dataclasses.Field[Any]) -> frozenset[str]:
    """What a site must give for a flag to count."""
    return frozenset({item.metadata["needs"]} - {""})


def read(
    given: Mapping[str, Any], sites: Sites, *, head: str = "stock", before: Mapping[str, Any] | None = None
) -> Recipe:
    """Check the flags that a user gave and complete them.

    Args:
        given: flag name to value.
        sites: of the model.
        head: the head where none is given, e.g. that of the checkpoint.
        before: what the checkpoint keeps; of a head that is a method the settings stay with it.

    Returns:
        The recipe, with `loss` and `head` filled in: a method's flag without `loss` selects the method.

    Raises:
        ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
    """
    values = {**DEFAULTS, "head": head, **_converted(given)}
    _epochs(values["lr_steps"])
    values["head"], loss = _head_and_loss(values, given)
    if values["head"] not in sites.by_head:
        raise ConfigError(f"head={values['head']} is not defined for {sites.name}; heads: {', '.join(sites.by_head)}")
    site = sites.site(values["head"], values["obj_base"])
    values |= {k: v for k, v in _of_head(before or {}, values["head"], site).items() if k not in given}
    owners = {name: TRAIN[name][0] for name in given}
    implied = sorted({owner.name for owner in owners.values() if _weighs(owner)})
    loss = loss or "+".join(implied) or site.own
    selected = select(loss, site)
    for name, owner in owners.items():
        if (problem := _idle(name, owner, values["head"], loss, selected, site)) is not None:
            raise ConfigError(f"{name}={value_text(given[name])} has no effect with {problem}")
    for name in filter(None, selected):
        if not METHODS[name].defined(site):
            there = ", ".join(name for name, row in METHODS.items() if row.defined(site) and row.kind != "head")
            raise ConfigError(f"loss={name} is not defined for {site.where}; losses there: {there}")
    if values["divisor"] not in ("auto", "host", *site.divisors):
        raise ConfigError(
            f"divisor={values['divisor']} is not defined for {site.name}, which divides by what it sampled"
        )
    return _made({**values, "loss": selected.text(site)}, site)


def kept(values: Mapping[str, Any], sites: Sites, *, head: str = "stock") -> Recipe:
    """The recipe that a checkpoint keeps, checked when its run began; the host's own loss where it keeps none.

    Args:
        values: flag name to value; flags of a later version are at what was done before there were any.
        sites: of the model.
        head: the head where none is kept.
    """
    found = {**DEFAULTS, **(BEFORE if values else {}), "head": head, **_older(values)}
    site = sites.site(found["head"], found["obj_base"])
    if "objectness" in site.gives and "obj_width" not in values and found["divisor"] in ("auto", "host"):
        found["divisor"] = "image" if site.host == "batch" else found["divisor"]  # what the host's was until then
    return _made({**found, "loss": found["loss"] or site.own}, site)


def unsaid(values: Mapping[str, Any], recipe: Recipe) -> str:
    """Settings with a say that a checkpoint of an earlier version leaves unsaid, as it trained with them; or ''."""
    return " ".join(f"{name}={recipe[name]}" for name in BEFORE if name in recipe.used and name not in values)


def select(loss: str, site: Site) -> Selection:
    """Read a loss name: an element loss, a weighting, or one of each joined by +.

    Args:
        loss: the name without a head; a weighting by itself weighs the element loss that is the host's own, where it
            has a meaning for it, else the first that it has a meaning for.
        site: where the loss acts.

    Raises:
        ConfigError: an unknown name, two methods of one kind, or a pair without a meaning.
    """
    found = {"element": "", "weighting": ""}
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
    joins = JOINS.get(found["weighting"], [])
    if not found["element"]:
        own = own_loss(site).element
        found["element"] = own if own in joins else joins[0]
    if joins and found["element"] not in joins:
        raise ConfigError(
            f"loss={loss}: {found['weighting']} has no meaning with {found['element']}; valid pairs: {_pairs()}"
        )
    return Selection(**found)


def own_loss(site: Site) -> Selection:
    """The host's own loss."""
    row = METHODS[site.own]
    return Selection(row.name, "") if row.kind == "element" else Selection(JOINS[row.name][0], row.name)


def _made(values: Mapping[str, Any], site: Site) -> Recipe:
    selected = select(values["loss"], site)
    if "cells" in site.gives and values["head"] in HEADS:  # what a checkpoint keeps is not asked again
        values = {**values, "obj_base": "anchor" if "anchors" in site.gives else "stock"}
    recipe = Recipe(values, site, (), "")
    methods = tuple(recipe.of(METHODS[name]).at(site) for name in selected if name)
    values = {**values, **{name: getattr(method, name) for method in methods for name in settings_of(type(method))}}
    divisor = values["divisor"]
    if divisor == "auto":
        own = (method.divide(site) for method in reversed(methods))  # the weighting has the first word
        divisor = next((by for by in own if by != "host"), "host")
    divisor = site.host if divisor == "host" else divisor
    return dataclasses.replace(recipe, values=values, methods=methods, divisor=divisor)


def _converted(given: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in TRAIN:
            raise ConfigError(f"unknown flag {name}={value}{nearest(name, TRAIN)}; flags: {', '.join(TRAIN)}")
    return {name: checked(name, TRAIN[name][1], value) for name, value in given.items()}


def _epochs(text: str) -> tuple[int, ...]:
    """The epochs in [8,11], which rise.

    Raises:
        ConfigError: it is no such list.
    """
    inside = text.removeprefix("[").removesuffix("]").replace(" ", "")
    if text and re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", inside):
        found = tuple(map(int, inside.split(",")))
        if list(found) == sorted(set(found)):
            return found
    elif not text:
        return ()
    raise ConfigError(f"lr_steps={text} is not a list of rising epochs such as [8,11]")


def _older(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps, converted, and where an earlier version had another name for it, renamed."""
    values = _converted(kept)
    if "resobj_gate" not in values and values.get("resobj_grad") == "isolated":
        values["resobj_grad"] = "stepwise"  # what it was until there was a choice of the gate
    return values


def _of_head(before: Mapping[str, Any], head: str, site: Site) -> dict[str, Any]:
    """The settings that a head has in common with the one of the checkpoint that a training starts from."""
    heads = [METHODS.get(name) for name in (head, before.get("head")) if name in HEADS]
    return {
        name: value
        for name, value in {**BEFORE, **_older(before)}.items()
        if len(heads) == 2
        and all(row and issubclass(row, TRAIN[name][0]) for row in heads)
        and site.has(needed(TRAIN[name][1]))
    }


def _head_and_loss(values: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, str]:
    """The head, which a loss may choose, and the loss without it.

    Raises:
        ConfigError: the head given is another.
    """
    parts = values["loss"].split("+")
    heads = [name for name in parts if name in HEADS]
    for name in heads:
        if "head" in given and given["head"] != name:
            raise ConfigError(f"loss={values['loss']} is for head={name}, but head={given['head']} was given")
    if len(heads) > 1:
        raise ConfigError(f"loss={values['loss']} chooses more than one head")
    return (heads or [values["head"]])[0], "+".join(name for name in parts if name not in heads)


def _weighs(owner: type[Any]) -> bool:
    return issubclass(owner, Method) and owner.kind != "head"


def _idle(name: str, owner: type[Any], head: str, loss: str, selected: Selection, site: Site) -> str | None:
    """With what a flag that was given would have no effect, and what to do; None: it has one."""
    if owner is AnchorSettings and "anchors" not in site.gives:
        return f"head={head}; add {'obj_base' if head in HEADS and 'cells' in site.gives else 'head'}=anchor"
    if owner in (Obj, ResObj) and not issubclass(METHODS.get(head, Method), owner):
        return f"head={head}; add head={owner.name}"
    if name == "obj_base" and not (head in HEADS and "cells" in site.gives):
        return f"{site.where}; it is for head=obj and head=resobj on YOLO"
    item = TRAIN[name][1]
    if not site.has(needed(item)):
        return f"{site.where}; it is for {GIVEN[item.metadata['needs']]}"
    if _weighs(owner) and owner.name not in selected:
        joined = f"{loss}+{owner.name}"
        try:
            select(joined, site)
        except ConfigError:
            return f"loss={loss}; use loss={owner.name}"
        return f"loss={loss}; add it: loss={joined}"
    return None


# What a flag may need, see `Site`, in words
GIVEN = {
    "overlap": "losses that know how far a candidate is from a label", "one": "heads that do not refine their logits",
    "objectness": "head=obj and head=resobj", "cells": "YOLO heads", "anchors": "head=anchor", "samples": "fasterrcnn",
    "proposals": "fasterrcnn", "sigmoid": "losses of a sigmoid", "softmax": "ssd",
    "prior": "an objectness other than the anchor head's, which has its own prior and obj_gain",
    "subnet": "an objectness beside class scores, on retinanet and on anchor-free heads",
    "dense": "detectors that score every candidate", "rpn": "fasterrcnn", "roi": "fasterrcnn",
    "scores": "YOLO heads",
}  # fmt: skip


def _pairs() -> str:
    return ", ".join(f"{element}+{name}" for name, elements in JOINS.items() for element in elements)
