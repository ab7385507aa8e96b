"""Model surgery: Ultralytics' detection models with our heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils import LOGGER
from ultralytics.utils.loss import E2ELoss

from rebalance.errors import ModelError
from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead
from rebalance.heads.objectness import (
    Refined,
    ResidualObjectness,
    SharedResiduals,
    class_prior,
    flatten_steps,
    logit,
    objectness_prior,
    unfused,
)
from rebalance.hosts.evaluation import ANCHORS
from rebalance.hosts.host import OwnYaml, refuse_own_features, remembered
from rebalance.hosts.state_dict import Rows, follow_names
from rebalance.hosts.ultralytics.criterion import AnchorCriterion, DetectionCriterion, ObjectnessCriterion
from rebalance.hosts.ultralytics.sites import YoloSites
from rebalance.match.boxes import xywh_to_xyxy
from rebalance.methods.resobj import ResObj, refined
from rebalance.recipe import Recipe, kept


class Raw(dict[str, Any]):
    """Raw predictions that a prediction was made of; class activation maps (`visualize=True`) ask them for `scores`."""

    decoded: Tensor  # (B, 4 + C, N)

    def __missing__(self, key: str) -> Tensor:
        """(B, C, N) logits of the scores, computed where they are asked for."""
        if key != "scores":
            raise KeyError(key)
        return self.decoded[:, 4:].logit(eps=1e-6)


class AnchorDetect(AnchorHead, Detect):  # type: ignore[misc]
    """The anchor head as Ultralytics sees a head.

    It is a Detect for exporters and validators, but has none of its layers; `cv2` and `cv3` say so.
    """

    cv2 = ()
    cv3 = None
    evaluation = ANCHORS

    @property
    def anchors(self) -> Tensor:  # type: ignore[override]
        """(L, M, 2) in cells; Detect has an attribute of that name, which would hide the buffer."""
        return self._buffers["anchors"]  # type: ignore[return-value]

    def forward(self, features: list[Tensor]) -> Any:
        """Raw maps in training; else (B, 4 + C, N) centre, width, height, scores, with the maps unless exported."""
        raw = self.raw(features)
        if self.training:
            return raw
        decoded = self.decoded(raw)
        if self.xyxy:
            corners = xywh_to_xyxy(decoded[:, :4].transpose(1, 2)).transpose(1, 2)
            decoded = torch.cat((corners, decoded[:, 4:]), 1)
        if self.export:
            return decoded
        found = Raw(raw)
        found.decoded = decoded
        return decoded, found

    def raw(self, features: list[Tensor]) -> dict[str, Any]:
        return {"maps": self.maps(features)}

    def decoded(self, raw: dict[str, Any]) -> Tensor:
        return self.decode(raw["maps"])


class RefinedAnchorDetect(Refined, AnchorDetect):
    """The anchor head with residual subnets that refine its objectness."""

    def refined_by(self, channels: list[int], settings: ResObj) -> None:
        """Add the residual subnets, at least one step, to levels of these channels."""
        self.steps = settings.resobj_steps
        self.residual = nn.ModuleList(
            SharedResiduals(
                c, anchors=self.na, steps=self.steps, on=settings.resobj_on, grad=settings.resobj_grad,
                width=settings.resobj_width,
            )
            for c in channels
        )  # fmt: skip

    def raw(self, features: list[Tensor]) -> dict[str, Any]:
        """Maps, and for each level the residual logits (B, T, M, H, W); once fused they are in the maps."""
        raw = super().raw(features)
        if self.fused and self.shown == 0:
            return raw
        residuals = [subnet(x) for subnet, x in zip(self.residual, features, strict=True)]
        if not self.fused or self.export:
            return {**raw, "residuals": residuals}
        for x, residual in zip(raw["maps"], residuals, strict=True):
            x[:, :, 4] += residual[:, 0]
        return raw

    def decoded(self, raw: dict[str, Any]) -> Tensor:
        if "residuals" not in raw:
            return super().decoded(raw)
        pairs = zip(raw["maps"], raw["residuals"], strict=True)
        logits = [refined(x[:, :, 4], r, self.shown).unsqueeze(2) for x, r in pairs]
        return self.decode(raw["maps"], refined=logits)


class ObjectnessDetect(Refined, Detect):  # type: ignore[misc]
    """Ultralytics' anchor-free head with an objectness on the class tower of each level, and its refinements.

    Its class scores are P(class | object); what it puts out is their product with P(object). Of a model with two
    branches each has its own objectness. It is made from a stock head, see `from_stock`.
    """

    @classmethod
    def from_stock(cls, head: Detect, settings: ResObj) -> ObjectnessDetect:
        """Change a stock head into this one, with so many steps."""
        head.__class__ = cls  # whatever the host's parser set up stays as it is
        made: Any = head
        made.add_objectness(settings)
        return made  # type: ignore[no-any-return]

    def add_objectness(self, settings: ResObj) -> None:
        """Add the subnets, as wide as the class towers are; classes begin with the probability of `class_prior`."""
        self.steps = settings.resobj_steps
        for prefix in ("", "one2one_"):
            towers = getattr(self, f"{prefix}cv3", None)
            if towers is None:
                continue
            modules = nn.ModuleList(
                ResidualObjectness(
                    tower[-1].in_channels, width=settings.obj_width, residual_width=settings.resobj_width,
                    steps=self.steps, on=settings.resobj_on, grad=settings.resobj_grad,
                    prior=objectness_prior(self.nc, settings.obj_prior),
                )
                for tower in towers
            )  # fmt: skip
            setattr(self, f"{prefix}objectness", modules)
            for tower in towers:
                nn.init.constant_(tower[-1].bias, logit(class_prior(self.nc, settings.cls_prior)))

    def fits_towers(self) -> bool:
        """Whether the subnets take what the class towers give."""
        pairs = zip(self.objectness, self.cv3, strict=True)
        return all(subnet.channels == tower[-1].in_channels for subnet, tower in pairs)

    @property
    def one2many(self) -> dict[str, Any]:
        return {**super().one2many, "objectness": self.objectness}

    @property
    def one2one(self) -> dict[str, Any]:
        return {**super().one2one, "objectness": self.one2one_objectness}

    def forward_head(
        self, x: list[Tensor], box_head: Any = None, cls_head: Any = None, objectness: Any = None
    ) -> dict[str, Any]:
        """The host's raw predictions, and `objectness` (B, 1, N), `residuals` (B, T, N) until they are fused."""
        if box_head is None or cls_head is None:
            return {}
        towers = []
        for level, features in enumerate(x):
            for layer in list(cls_head[level])[:-1]:  # a slice of a Sequential would be a new one each time
                features = layer(features)
            towers.append(features)
        images = x[0].shape[0]
        boxes = [head(y).view(images, 4 * self.reg_max, -1) for head, y in zip(box_head, x, strict=True)]
        scores = [head[-1](y).view(images, self.nc, -1) for head, y in zip(cls_head, towers, strict=True)]
        logits, residuals = zip(*(head(y) for head, y in zip(objectness, towers, strict=True)), strict=True)
        found = {"boxes": torch.cat(boxes, -1), "scores": torch.cat(scores, -1), "feats": x}
        found["objectness"] = torch.cat([o.flatten(2) for o in logits], -1)
        return found if residuals[0] is None else {**found, "residuals": flatten_steps(residuals)}

    def _inference(self, x: dict[str, Any]) -> Tensor:
        objectness = refined(x["objectness"].squeeze(1), x.get("residuals"), self.shown).sigmoid()
        return torch.cat((self._get_decode_boxes(x), x["scores"].sigmoid() * objectness.unsqueeze(1)), 1)


class RebalancedModel(DetectionModel):  # type: ignore[misc]
    """An Ultralytics detection model with a head of ours."""

    own_head = "anchor"  # value of `head` where the model's `yaml` keeps no flags

    def __init__(
        self, cfg: Any = "yolov8n.yaml", ch: int = 3, nc: int | None = None, verbose: bool = True,
        settings: ResObj | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dict(cfg) if isinstance(cfg, dict) else cfg, ch=ch, nc=nc, verbose=False)
        self.yaml: dict[str, Any] = OwnYaml(self.yaml)
        old, head = self.model[-1], self.replaced(settings or ResObj(resobj_steps=0))
        # what the host's parser would have given it
        head.i, head.f, head.type = old.i, old.f, f"{type(head).__module__}.{type(head).__name__}"
        head.np = sum(p.numel() for p in head.parameters())
        self.model[-1] = head
        if verbose:
            self.info()

    def replaced(self, settings: ResObj) -> Any:
        """A head of ours in the place of the stock head."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """What a checkpoint keeps: of `yaml` plain values."""
        return {**self.__dict__, "yaml": dict(self.yaml)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "yaml": OwnYaml(state["yaml"])})

    def is_fused(self) -> bool:
        """Whether nothing is left to fuse: what the host fuses, and the refinements of the head."""
        return super().is_fused() and not unfused(self.model[-1])

    def init_criterion(self) -> Any:
        """The loss that this model was trained with."""
        recipe = kept(remembered(self).get("flags", {}), sites_of(self), head=self.own_head)
        return criterion_of(self, recipe, seed=int(getattr(self.args, "seed", 0)))


class AnchorDetectionModel(RebalancedModel):
    """Any Ultralytics detection model with two to four levels, its head replaced by the anchor head.

    With head=resobj and at least one step the head refines its objectness; with head=obj it is the anchor head as is.
    """

    def replaced(self, settings: ResObj) -> Any:
        old = replaceable_head(self)
        channels = [branch[0].conv.in_channels for branch in old.cv2]
        kind = RefinedAnchorDetect if settings.resobj_steps else AnchorDetect
        head = kind(old.nc, channels, old.stride, COCO_ANCHORS[old.nl])
        if isinstance(head, RefinedAnchorDetect):
            head.refined_by(channels, settings)
        return head

    def refuse_use(self, arguments: Mapping[str, Any], what: str, mode: str) -> None:
        """Raise for what a client asks of this head and does not get."""
        if mode == "track":
            refuse_own_features(arguments, what)

    def _remap_cls_by_names(self, csd: dict[str, Tensor], src_model: Any, verbose: bool = True) -> int:
        """The host's, for the rows of this head; csd holds them in this model's order then."""
        names = getattr(src_model, "names", None)
        told = follow_names(self, csd, names, class_rows(self)) if isinstance(names, dict) else ""
        if told and verbose:
            LOGGER.info(f"rebalance: {told}")
        return 0


class ObjectnessDetectionModel(RebalancedModel):
    """An Ultralytics detection model with the stock head, which gets an objectness."""

    own_head = "obj"

    def replaced(self, settings: ResObj) -> Any:
        head = replaceable_head(self, "resobj" if settings.resobj_steps else "obj")
        return ObjectnessDetect.from_stock(head, settings)

    def _remap_cls_by_names(self, csd: dict[str, Tensor], src_model: Any, verbose: bool = True) -> int:
        """The host's; before it the subnets follow the class towers, which the host makes as wide as the source's."""
        head: Any = self.model[-1]
        if not head.fits_towers():
            flags = remembered(self).get("flags", {})
            head.add_objectness(kept(flags, sites_of(self), head=self.own_head).resobj)
            head.to(next(head.cv2.parameters()).device)
        return int(super()._remap_cls_by_names(csd, src_model, verbose))


def build(cfg: Any, recipe: Recipe, **options: Any) -> Any:
    """A model with the head of the recipe and random weights; `options` are the constructor's."""
    cfg = dict(cfg) if isinstance(cfg, dict) else cfg
    if recipe["head"] == "stock":
        return DetectionModel(cfg, **options)
    own = AnchorDetectionModel if "anchors" in recipe.site.gives else ObjectnessDetectionModel
    return own(cfg, **options, settings=recipe.resobj)


def class_rows(model: Any) -> dict[str, Rows]:
    """Of the parameters that have rows of classes how to take some: of the anchor head, and of the host's Detect."""
    head = model.model[-1]
    if isinstance(head, AnchorHead):
        found: dict[str, Rows] = dict(head.class_rows())
    else:
        towers = [
            f"{name}.{level}.{len(tower) - 1}"
            for name in ("cv3", "one2one_cv3") for level, tower in enumerate(getattr(head, name, None) or ())
        ]  # fmt: skip
        found = dict.fromkeys(
            (f"{tower}.{k}" for tower in towers for k in ("weight", "bias")), torch.Tensor.__getitem__
        )
    return {f"model.{head.i}.{name}": take for name, take in found.items()}


def criterion_of(model: Any, recipe: Recipe, seed: int) -> Any:
    """The loss of a detection model whose `args` are set: its head decides which."""
    head = model.model[-1]
    if isinstance(head, AnchorHead):
        return AnchorCriterion(model, recipe=recipe, seed=seed)
    own = ObjectnessCriterion if isinstance(head, ObjectnessDetect) else DetectionCriterion

    def make(model: Any, *topk: int, **more: int) -> Any:
        return own(model, *topk, **more, recipe=recipe, seed=seed)

    return E2ELoss(model, make) if getattr(head, "one2one_cv2", None) is not None else make(model)


# Layers of which YOLOv3's and YOLOv5's models are made, and no other family's are alone
LAYERS = {
    "Conv", "C3", "SPP", "SPPF", "Bottleneck", "Concat", "Detect", "nn.Upsample", "nn.MaxPool2d", "nn.ZeroPad2d"
}  # fmt: skip


def sites_of(model: Any) -> YoloSites:
    """Where the loss acts on a model (or its `yaml`, or the file of that), by its head where that is ours, else layers.

    Heads obj and resobj of YOLOv3 and YOLOv5, which had an anchor head, stand on one; those of other models do not.
    """
    head = getattr(model, "model", [None])[-1]
    if isinstance(head, (AnchorDetect, ObjectnessDetect)):
        return YoloSites(on_anchors=isinstance(head, AnchorDetect))
    yaml = getattr(model, "yaml", model)
    if isinstance(yaml, str):
        yaml = yaml_model_load(yaml) if yaml.endswith((".yaml", ".yml")) else {}
    layers = {layer[2] for part in ("backbone", "head") for layer in (yaml or {}).get(part, [])}
    return YoloSites(on_anchors=bool(layers) and layers <= LAYERS)


def replaceable_head(model: nn.Module, wanted: str = "anchor") -> Detect:
    """The stock head of a model, where the `wanted` one (anchor, or the anchor-free obj or resobj) can take its place.

    Raises:
        ModelError: it has another kind of head, or for the anchor head too many levels.
    """
    head: Any = model.model[-1]  # type: ignore[index]
    if type(head) is Detect and (wanted != "anchor" or head.nl in COCO_ANCHORS):
        return head
    needs, has = "that ends in Detect", type(head).__name__
    if type(head) is Detect:
        needs, has = f"with {', '.join(map(str, COCO_ANCHORS))} levels", f"Detect with {head.nl} levels"
    raise ModelError(f"head={wanted} needs a detection model {needs}; this one ends in {has}")
