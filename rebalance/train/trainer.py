"""Ultralytics' detection trainer with our losses and heads, on the models of any host."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ultralytics.engine import trainer as host
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK, YAML, IterableSimpleNamespace
from ultralytics.utils.loss import E2ELoss
from ultralytics.utils.torch_utils import unwrap_model

from rebalance.data.dataset import DataSet
from rebalance.data.knowledge import Knowledge
from rebalance.errors import ConfigError
from rebalance.hosts import host_of
from rebalance.hosts.host import (
    COCO,
    KEY,
    Host,
    begin_epoch,
    branches,
    counts,
    describe,
    diagnosis,
    keep,
    pulls,
    remember,
    remembered,
    restore,
    step_means,
)
from rebalance.hosts.state_dict import read_weights
from rebalance.methods import METHODS
from rebalance.recipe import TRAIN, Recipe, kept, read, unsaid
from rebalance.settings import value_text
from rebalance.train import made
from rebalance.train.admission import check_flags, check_weights, source_of, spoken
from rebalance.train.regions import RegionDataset, told, with_regions
from rebalance.train.resumable import Resumable
from rebalance.train.schedule import Scheduled
from rebalance.train.validator import Validator


class RebalanceTrainer(Resumable, Scheduled):
    """Trains with the flags in `given`; see `trainer` for a class with flags.

    Attributes:
        given: flags as the user gave them.
        admitted: what they were found to come to before the training began; None: nobody has asked.
        admitted_data: the data set that was read then.
        again: folder of the run that this one makes again from its `args.yaml`; None: of none.
        starts_from: `pretrained`, where the host must not see it; None: that of the arguments.
        recipe: what this run trains with; None until the model is there, which has a say in what the flags mean.
        host: of the model.
        loss_ran: what the criterion says it is; printed, and kept for records.
        drop_counts: counts of the epoch that ended last.
        pulls: by what dropping multiplies the loss's pull on positives and push on negatives, when measured last.
        step_means: mean objectness of positives and negatives after each step, of the epoch that ended last.
        diagnosis: what the loss did to objects without a label, in the epoch that ended last.
    """

    trains_ours = True  # heads and detectors, which the host refuses to train otherwise
    given: Mapping[str, Any] = {}
    admitted: Recipe | None = None
    admitted_data: DataSet | None = None
    starts_from: str | Path | bool | None = None
    again: Path | None = None

    args: Any
    recipe: Recipe
    host: Host

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.loss_ran: dict[str, Any] = {}
        self.drop_counts: dict[str, int] = {}
        self.pulls = {"pull": 1.0, "push": 1.0}
        self.step_means: dict[str, float] = {}
        self.diagnosis: dict[str, float] = {}
        self.weights_matched: tuple[int, int] | None = None
        self._fresh = False  # whether the model started from random weights
        self._begun: dict[str, Any] = {}  # of a run that goes on: what its arguments were that say what it goes on with
        self._first: dict[str, Any] = {}  # and what its `args.yaml` was
        self._kept: list[Any] = []  # by the loss, in the checkpoint that is resumed
        asked = kwargs.get("overrides") or {}
        if self.admitted is None and not asked.get("resume"):  # the host's own class is training
            check_weights("pretrained", asked.get("pretrained"))
        super().__init__(*args, **kwargs)

    # Building ---------------------------------------------------------------------------------------------------------

    @cached_property
    def source(self) -> DataSet | None:
        """The data set, as it was admitted or else read now; None: it is the host's affair."""
        file, found = self.data.get("yaml_file"), self.admitted_data
        if found and file and Path(file).resolve() == found.file.resolve():
            return found
        return source_of(file)

    @cached_property
    def knowledge(self) -> Knowledge | None:
        """What the data set says of its labels; None: nothing."""
        return spoken(self.source)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """The host's, with the regions of the data set; in training with withheld objects where they are asked for."""
        diagnosed = mode == "train" and self.recipe["diagnose"]
        with with_regions(self.knowledge, self.source if diagnosed else None):
            return super().build_dataset(img_path, mode, batch)

    def setup_model(self) -> Any:
        """Load, create or resume the model; `pretrained` may be a plain state dict."""
        pretrained, given = self.starts_from or self.args.pretrained, None
        if isinstance(pretrained, (str, Path)) and not self.resume and Path(pretrained).is_file():
            given = read_weights(pretrained)
        if given is not None or pretrained == COCO:
            self.args.pretrained = False  # the host would take it for a checkpoint
        if isinstance(self.model, torch.nn.Module):  # built by the process that started this one
            self.host = host_of(self.model)
            self.recipe = kept(remembered(self.model).get("flags", {}), self.host.sites)
            self._fresh = self._fresh or bool(self.starts_from)
        checkpoint = super().setup_model()
        self.args.pretrained = pretrained
        if RANK in {-1, 0}:  # with our flags `cfg=args.yaml` asks for the same training
            first = {**vars(self.args), **self._begun, **self._first, **self.recipe.asked}
            YAML.save(self.save_dir / "args.yaml", first)
        if given is not None or self._fresh:
            self.weights_matched = self.host.start(self.model, pretrained, given)
        return checkpoint

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the model with the head asked for, or the head of the checkpoint it starts from."""
        before = cfg.get(KEY, {}).get("flags", {}) if isinstance(cfg, dict) else {}
        self.host = host_of(weights if weights is not None and before else cfg)
        weights = None if self.starts_from else weights
        self._fresh = weights is None and not self.resume
        head, sites = before.get("head", getattr(weights, "own_head", "stock")), self.host.sites
        if self.resume:
            if self.given:
                asked = read(self.given, sites, head=head)
                if changed := [name for name in self.given if before.get(name) != asked[name]]:
                    LOGGER.warning(f"rebalance: resume keeps the checkpoint's flags; ignored: {', '.join(changed)}")
            self.recipe = kept(before, sites)
            if RANK in {-1, 0} and (told := unsaid(before, self.recipe)):
                LOGGER.info(f"rebalance: the training began with an earlier version, and goes on with its {told}")
            self._kept = cfg[KEY].get("state", []) if before else []
        else:
            self.recipe = self.admitted or read(self.given, sites, head=head, before=before)
        verbose = verbose and RANK == -1
        model = self.host.build(cfg, self.recipe, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose)
        self.set_model_names_for_load(model)
        remember(model, self.recipe)
        if weights:
            self.host.load(model, weights)
        return model

    def set_class_weights(self) -> None:
        """The host's class weights, then anchors and criterion: all three need the data, and the EMA copies them."""
        super().set_class_weights()
        if self.args.distill_model is not None:
            raise ConfigError(
                f"distill_model={self.args.distill_model} cannot be joined with loss={self.recipe['loss']}"
            )
        model = unwrap_model(self.model)
        lines = [self.host.prepare(model, self.recipe, self)]
        self._set_criterion(model)
        self.loss_ran = describe(model)
        lines.append(self.loss_ran["text"])
        if self.knowledge and isinstance(data := self.train_loader.dataset, RegionDataset):
            self.loss_ran["regions"] = data.counts()
            lines.append(told(self.loss_ran["regions"]))
        if RANK in {-1, 0}:
            for line in filter(None, lines):
                LOGGER.info(f"rebalance: {line}")
            self._tell_made()

    def _tell_made(self) -> None:
        """Keep what the run is made with; of one that is made again, or goes on, say whether it is with the same."""
        with_these, before = made.made_with(self), self.save_dir if self.resume else self.again
        if before and (found := made.differences(before, with_these)) is not None:
            if found:
                LOGGER.warning(f"rebalance: {before} was made with others: {'; '.join(found)}")
            elif not self.resume:
                LOGGER.info(f"rebalance: {before} is made again: the same loss, versions, images and labels")
        if not (self.resume and (self.save_dir / made.FILE).is_file()):
            made.write(self.save_dir, with_these)

    def _set_criterion(self, model: Any) -> None:
        model.criterion = self.host.criterion(model, self.recipe, self.args.seed)
        restore(model.criterion, self._kept)
        begin_epoch(model.criterion, self.start_epoch, self._known_epochs)

    @property
    def _known_epochs(self) -> int:
        """How many there are; 0: nobody knows, as `time=` sets the number anew after each of them."""
        return 0 if self.args.time else self.epochs

    def get_validator(self) -> Validator:
        """The host's validator, with every image's detections also on a slow machine, and with regions."""
        found = Validator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)
        found.val_regions = self.recipe["val_regions"]
        return found

    def resume_training(self, ckpt: Any) -> None:
        """Resume; the host builds a new criterion for models with two branches, so ours takes its place again."""
        super().resume_training(ckpt)
        model = unwrap_model(self.model)
        if isinstance(model.criterion, E2ELoss) and self.start_epoch:
            self._set_criterion(model)
            model.criterion.updates = self.start_epoch - 1
            model.criterion.update()

    # Running ----------------------------------------------------------------------------------------------------------

    def run_callbacks(self, event: str) -> None:
        """Tell the criterion where the run stands, then run the callbacks."""
        if event == "on_train_epoch_start":
            for model in (unwrap_model(self.model), self.ema.ema):  # the EMA's criterion gives the validation loss
                begin_epoch(model.criterion, self.epoch, self._known_epochs)
        elif event == "on_train_epoch_end":
            self.drop_counts = counts(unwrap_model(self.model).criterion)
            self._weigh_up(pulls(unwrap_model(self.model).criterion))
            self.step_means = step_means(unwrap_model(self.model).criterion)
            self.diagnosis = diagnosis(unwrap_model(self.model).criterion)
        super().run_callbacks(event)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """The host's three attempts; where they fail, or there is nothing to go back to, an end in one line."""
        try:
            recovered = bool(super()._handle_nan_recovery(epoch))
        except RuntimeError as error:
            raise ConfigError(self._diverged(epoch, str(error))) from None
        if not recovered and self.loss is not None and not self.loss.isfinite():
            model = unwrap_model(self.model)
            if not all(x.isfinite().all() for x in model.parameters()):  # the host would go on for all epochs
                raise ConfigError(self._diverged(epoch, "the weights are no numbers, and no checkpoint is from before"))
        return recovered

    def _diverged(self, epoch: int, why: str) -> str:
        """That the training diverged, of which loss it is, and what to lower."""
        lower = {"lr0": self.optimizer.param_groups[0]["initial_lr"]}
        head = METHODS.get(self.recipe["head"])
        methods = [*self.recipe.methods, *([self.recipe.of(head)] if head else [])]
        for method in methods:
            lower |= {name: getattr(method, name) for name in method.steep if getattr(method, name)}
        told = ", ".join(f"{name}={value_text(value)}" for name, value in lower.items())
        where = f"loss={self.recipe['loss']} diverged in epoch {epoch + 1} of {self.epochs}: {why}"
        return f"{where}; with optimizer={self.args.optimizer}, lower {told}"

    def _weigh_up(self, found: dict[str, float]) -> None:
        """Say what dropping does to the loss, the first time that it is known, and keep it for the record."""
        self.pulls |= found
        if len(found) < len(self.pulls) or "pull" in self.loss_ran:
            return
        self.loss_ran |= found
        if RANK in {-1, 0}:
            given = " ".join(f"{name}={self.recipe[name]}" for name in ("obj_drop", "drop_divisor", "drop_select"))
            LOGGER.info(
                f"rebalance: drop: {given}: pull on positives x{found['pull']:.2f}, push on negatives "
                f"x{found['push']:.2f} of the loss without dropping"
            )

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count the labels of the fullest image while they are still on the host; take the regions to the device."""
        most = int(batch["batch_idx"].long().bincount(minlength=1).max()) if len(batch["batch_idx"]) else 0
        batch = super().preprocess_batch(batch)
        batch["most_labels"] = most
        if not self.knowledge:
            batch.pop("regions", None)  # which came with withheld objects, and there are none
        for key in {"regions", "withheld"} & batch.keys():
            batch[key] = batch[key].to(self.device, non_blocking=self.device.type == "cuda")
        return batch

    def criterion_state(self) -> dict[str, Any]:
        """What the methods of each branch keep, too, and what was measured first and last."""
        kept = [dict(branch.objectives[0].run.kept) for branch in branches(unwrap_model(self.model).criterion)]
        first = {name: self.loss_ran[name] for name in self.pulls if name in self.loss_ran}
        return {**super().criterion_state(), "kept": kept, "pulls": self.pulls, "first_pulls": first}

    def restore_criterion(self, state: dict[str, Any]) -> None:
        """Put back what `criterion_state` gave."""
        super().restore_criterion(state)
        self.pulls |= state["pulls"]
        self.loss_ran |= state.get("first_pulls", {})
        for branch, found in zip(branches(unwrap_model(self.model).criterion), state["kept"], strict=True):
            branch.objectives[0].run.kept = {name: tensor.to(self.device) for name, tensor in found.items()}

    def save_model(self) -> Any:
        """Save; what the loss keeps goes along, as plain numbers beside the flags.

        The flags are among the run's arguments too, of which the host, were it to resume the run with its own loss,
        would know none: it stops there. What is left of a finished run has them no more.
        """
        found = keep(unwrap_model(self.model).criterion)
        if any(found):
            self.ema.ema.yaml[KEY]["state"] = found
        own = self.args
        try:
            self.args = IterableSimpleNamespace(**{**vars(own), **self._begun, **self.recipe.asked})
            return super().save_model()
        finally:
            self.args = own

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """As the host; of the arguments that the checkpoint keeps it gets its own.

        It puts the checkpoint in the place of the model; what the run began with is kept for `args.yaml`, which then
        still makes the run again.
        """
        stock = host.get_cfg

        def own(cfg: Any, overrides: Any = None) -> Any:
            if isinstance(cfg, dict):
                self._begun = {"model": cfg["model"], "resume": DEFAULT_CFG_DICT["resume"]}
                file = Path(cfg.get("save_dir") or "") / "args.yaml"
                self._first = YAML.load(file) if file.is_file() else {}
                cfg = {k: v for k, v in cfg.items() if k not in TRAIN}
            return stock(cfg, overrides)

        host.get_cfg = own
        try:
            super().check_resume(overrides)
        finally:
            host.get_cfg = stock

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add the counts of dropped predictions, what that does to the loss, objectness by step, and the diagnosis.

        They go into results.csv, and to loggers, e.g. TensorBoard and MLflow, which read `metrics` after each epoch.
        """
        ours: dict[str, float] = {}
        for each in filter(lambda method: method.counted, self.recipe.methods):
            found = {**{name: self.drop_counts.get(name, 0) for name in each.counted}, **self.pulls}
            ours |= {f"{each.name}/{name}": number for name, number in found.items()}
        ours |= {f"resobj/{name}": round(mean, 5) for name, mean in self.step_means.items()}
        ours |= {f"diagnose/{name}": number for name, number in self.diagnosis.items()}
        host = {name: value for name, value in metrics.items() if name not in ours}  # without those of the last epoch
        super().save_metrics({**host, **ours})
        self.metrics = {**self.metrics, **ours}


def trainer(**given: Any) -> type[RebalanceTrainer]:
    """A trainer class with flags, for `ultralytics.YOLO(...).train(trainer=...)`.

    Args:
        given: training flags of rebalance, e.g. loss="drop", obj_drop=0.75.

    Raises:
        ConfigError: an unknown flag, a bad value, or a flag that would have no effect.
    """
    check_flags(given)
    return with_flags(given)


def with_flags(
    given: Mapping[str, Any],
    admitted: Recipe | None = None,
    base: type[RebalanceTrainer] = RebalanceTrainer,
    data: DataSet | None = None,
) -> type[RebalanceTrainer]:
    """A trainer class with flags that have been checked.

    Args:
        given: as the user gave them.
        admitted: what they come to on the model it will train.
        base: the class that it is made from.
        data: the data set that it will train on, where that was read.
    """
    held = {"given": dict(given), "admitted": admitted, "admitted_data": data, "__module__": base.__module__}
    return type(base.__name__, (base,), held)
