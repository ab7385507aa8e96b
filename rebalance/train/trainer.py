"""Ultralytics' detection trainer with our losses and heads."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ultralytics.data.utils import exif_size
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.loss import E2ELoss
from ultralytics.utils.torch_utils import unwrap_model

from rebalance.errors import ConfigError, ModelError
from rebalance.hosts.torchvision import weights
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.ssd import SSDDetect
from rebalance.hosts.ultralytics.criterion import (
    AnchorCriterion,
    averages,
    begin_epoch,
    branches,
    build_criterion,
    counts,
    restore_averages,
    step_means,
)
from rebalance.hosts.ultralytics.model import AnchorDetect, anchored, host_of, model_class
from rebalance.match.autoanchor import best_possible_recall, fit_anchors
from rebalance.methods.drop import COUNTS
from rebalance.methods.registry import METHODS, select
from rebalance.methods.resolve import check_flags, counts_at, kept_flags, place_of, train_flags
from rebalance.settings import TrainFlags, as_dict
from rebalance.settings import flags as fields
from rebalance.train.checkpoint import KEY, given_or_kept, load_by_name, read_state_dict, remember, remembered
from rebalance.train.validator import Validator

HOST_WEIGHTS = ("box", "cls", "dfl", "cls_pw")  # of Ultralytics' own losses, which the anchor head does not use


class RebalanceTrainer(DetectionTrainer):  # type: ignore[misc]
    """Trains with the flags in `given`; see `trainer` for a class with flags.

    Attributes:
        given: flags as the user gave them.
        flags: flags of this run, complete.
        loss_ran: what the criterion says it is; printed, and kept for records.
        drop_counts: counts of the epoch that ended last.
        step_means: mean objectness of positives and negatives after each step, of the epoch that ended last.
    """

    given: Mapping[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.flags = TrainFlags()  # until the model is there, which has a say in what they mean
        self.loss_ran: dict[str, Any] = {}
        self.drop_counts: dict[str, int] = {}
        self.step_means: dict[str, float] = {}
        self.weights_matched: tuple[int, int] | None = None
        self._fresh = False  # whether the model started from random weights
        self._averages: list[list[float] | None] = []  # of the losses in the checkpoint that is resumed
        super().__init__(*args, **kwargs)

    # Building ---------------------------------------------------------------------------------------------------------

    def setup_model(self) -> Any:
        """Load, create or resume the model; `pretrained` may be a plain state dict."""
        pretrained, state = self.args.pretrained, None
        if isinstance(pretrained, (str, Path)) and not self.resume and Path(pretrained).is_file():
            state = read_state_dict(pretrained)
        if state is not None or pretrained == weights.COCO:
            self.args.pretrained = False  # the host would take it for a checkpoint
        if isinstance(self.model, torch.nn.Module):  # built by the process that started this one
            self.flags = kept_flags(remembered(self.model).get("flags", {}))
        checkpoint = super().setup_model()
        self.args.pretrained = pretrained
        if isinstance(self.model, TorchvisionModel):
            if state is not None or self._fresh:
                self.weights_matched = weights.start(self.model, pretrained)
        elif state is not None:
            self.weights_matched = load_by_name(self.model, state, str(pretrained))
        return checkpoint

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the model with the head asked for, or the head of the checkpoint it starts from."""
        before = cfg.get(KEY, {}).get("flags", {}) if isinstance(cfg, dict) else {}
        host = host_of(cfg)
        self._fresh = weights is None and not self.resume
        if self.resume:
            if changed := [
                k
                for k, v in as_dict(train_flags(self.given, host=host, anchored=anchored(cfg))).items()
                if k in self.given and before.get(k) != v
            ]:
                LOGGER.warning(f"rebalance: resume keeps the checkpoint's flags; ignored: {', '.join(changed)}")
            self.flags = kept_flags(before)
            self._averages = cfg[KEY].get("state", []) if before else []
        else:
            given = given_or_kept(self.given, before)
            self.flags = train_flags(given, head=before.get("head", "stock"), host=host, anchored=anchored(cfg))
        build: Any = DetectionModel
        if host != "yolo" or self.flags.head != "stock":
            own = model_class(cfg, self.flags.head) if host == "yolo" else TorchvisionModel
            build = partial(own, flags=self.flags)
        verbose = verbose and RANK == -1
        model = build(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose)
        if not isinstance(model.model[-1], Detect):
            raise ModelError(
                f"loss={self.flags.loss} needs a YOLO detection model, not {type(model.model[-1]).__name__}"
            )
        self.set_model_names_for_load(model)
        remember(model, self.flags)
        if weights:
            model.load(weights)
        return model

    def set_class_weights(self) -> None:
        """The host's class weights, then anchors and criterion: all three need the data, and the EMA copies them."""
        super().set_class_weights()
        if self.args.distill_model is not None:
            raise ConfigError(f"distill_model={self.args.distill_model} cannot be joined with loss={self.flags.loss}")
        model = unwrap_model(self.model)
        if isinstance(model.model[-1], AnchorDetect) and not self.resume:
            self._check_anchors(model.model[-1])
        if isinstance(model.model[-1], SSDDetect):
            model.model[-1].side = self.args.imgsz
        model.criterion = build_criterion(model, self.flags, self.args.seed)
        restore_averages(model.criterion, self._averages)
        self.loss_ran = describe(self.flags, model)
        if RANK in {-1, 0}:
            LOGGER.info(f"rebalance: {self.loss_ran['text']}")

    def get_validator(self) -> Validator:
        """The host's validator, with every image's detections also on a slow machine."""
        return Validator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)

    def _check_anchors(self, head: AnchorDetect) -> None:
        """Report how many labels the anchors can reach, and fit them to the labels where that is under 98 %."""
        data = self.train_loader.dataset
        sizes = np.array([_image_size(lb) for lb in data.labels], dtype=float).reshape(-1, 2)
        sizes *= self.args.imgsz / sizes.max(1, keepdims=True)
        labels = np.concatenate([lb["bboxes"][:, 2:] * s for lb, s in zip(data.labels, sizes, strict=True)])
        pixels = (head.anchors * head.stride.to(head.anchors).view(-1, 1, 1)).view(-1, 2).cpu().double().numpy()
        t = self.flags.anchor_t
        recall = best_possible_recall(labels, pixels, t)
        text = f"rebalance: anchors reach {recall:.1%} of the labels (best possible recall)"
        if recall < 0.98 and self.flags.autoanchor and len(np.unique(labels, axis=0)) >= len(pixels):
            fitted = fit_anchors(labels, len(pixels), t, seed=self.args.seed)
            better = best_possible_recall(labels, fitted, t)
            if better > recall:
                new = torch.from_numpy(fitted).to(head.anchors).view_as(head.anchors)
                head.anchors.copy_(new / head.stride.to(new).view(-1, 1, 1))
                text += f"; fitted to the labels they reach {better:.1%}: {fitted.round().astype(int).tolist()}"
        if RANK in {-1, 0}:
            LOGGER.info(text)

    def resume_training(self, ckpt: Any) -> None:
        """Resume; the host builds a new criterion for models with two branches, so ours takes its place again."""
        super().resume_training(ckpt)
        model = unwrap_model(self.model)
        if isinstance(model.criterion, E2ELoss) and self.start_epoch:
            criterion = build_criterion(model, self.flags, self.args.seed)
            criterion.updates = self.start_epoch - 1
            criterion.update()
            restore_averages(criterion, self._averages)
            model.criterion = criterion

    # Running ----------------------------------------------------------------------------------------------------------

    def run_callbacks(self, event: str) -> None:
        """Tell the criterion where the run stands, then run the callbacks."""
        if event == "on_train_epoch_start":
            for model in (unwrap_model(self.model), self.ema.ema):  # the EMA's criterion gives the validation loss
                begin_epoch(model.criterion, self.epoch)
        elif event == "on_train_epoch_end":
            self.drop_counts = counts(unwrap_model(self.model).criterion)
            self.step_means = step_means(unwrap_model(self.model).criterion)
        super().run_callbacks(event)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count the labels of the fullest image while they are still on the host."""
        most = int(batch["batch_idx"].long().bincount(minlength=1).max()) if len(batch["batch_idx"]) else 0
        batch = super().preprocess_batch(batch)
        batch["most_labels"] = most
        return batch

    def save_model(self) -> Any:
        """Save; the moving averages of the loss go along, as plain numbers beside the flags."""
        kept = averages(unwrap_model(self.model).criterion)
        if any(kept):
            self.ema.ema.yaml[KEY]["state"] = kept
        return super().save_model()

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add the counts of dropped predictions and the objectness after each step to results.csv."""
        if "drop" in select(self.flags.loss):
            metrics = {**metrics, **{f"drop/{name}": self.drop_counts.get(name, 0) for name in COUNTS}}
        metrics = {**metrics, **{f"resobj/{name}": round(mean, 5) for name, mean in self.step_means.items()}}
        super().save_metrics(metrics)


def _image_size(label: dict[str, Any]) -> tuple[int, int]:
    """Width, height of the image of one of the host's label entries."""
    if "shape" in label:
        return label["shape"][1], label["shape"][0]
    with Image.open(label["im_file"]) as image:  # for rectangular training the host takes the shapes out of its entries
        width, height = exif_size(image)
    return width, height


def describe(flags: TrainFlags, model: Any) -> dict[str, Any]:
    """What runs, in words and as data, read from the model's criterion rather than from the flags alone."""
    criterion, selection = model.criterion, select(flags.loss)
    name = type(criterion).__name__
    if isinstance(criterion, E2ELoss):
        name = f"{name} of two {type(criterion.one2one).__name__}"
    branch = branches(criterion)[0]
    # a flag of one of these had a say in the loss
    methods = {*selection, flags.head, "anchor" if isinstance(branch, AnchorCriterion) else ""} - {""}
    place = place_of(flags.head, getattr(model, "host", "yolo"))
    used = {
        name: getattr(flags, name)
        for name, item in fields(TrainFlags).items()
        if item.metadata["method"] in methods and name != "autoanchor" and counts_at(item, place)
    }
    divisor = branch.divisors[branch.divisor]
    if selection.weighting == "drop":
        divisor += ", what is left" if flags.drop_divisor == "kept" else ", as in the host"
    settings = " ".join(f"{k}={v}" for k, v in used.items())
    named = [*flags.loss.split("+"), *([flags.head] if flags.head in METHODS else [])]
    titles = " with ".join(METHODS[name].title for name in named)
    return {
        "loss": flags.loss, "head": flags.head, "element": selection.element, "weighting": selection.weighting,
        "criterion": name, "settings": used, "divisor": divisor,
        "text": f"loss={flags.loss} head={flags.head} ({titles}): "
        f"{name}, {settings}{', ' if settings else ''}divisor: {divisor}",
    }  # fmt: skip


def trainer(**given: Any) -> type[RebalanceTrainer]:
    """A trainer class with flags, for `ultralytics.YOLO(...).train(trainer=...)`.

    Args:
        given: training flags of rebalance, e.g. loss="drop", obj_drop=0.75.

    Raises:
        ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
    """
    check_flags(given)
    return type("RebalanceTrainer", (RebalanceTrainer,), {"given": dict(given), "__module__": __name__})
