"""Ultralytics' detection trainer with the flags of learning rate, gradient and optimizer that it has none for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK

from rebalance.errors import ConfigError
from rebalance.recipe import DEFAULTS, Recipe
from rebalance.train.admission import no_eps


class Scheduled(DetectionTrainer):  # type: ignore[misc]
    """Trains as the host does where `rebalance.recipe.Schedule` has its defaults.

    Attributes:
        recipe: what this run trains with; there when the optimizer is built.
    """

    recipe: Recipe

    def build_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, with `optim_eps`."""
        optimizer = super().build_optimizer(*args, **kwargs)
        if eps := self.recipe["optim_eps"]:
            if "eps" not in optimizer.defaults:
                raise ConfigError(no_eps(self.recipe, type(optimizer).__name__))
            for group in optimizer.param_groups:
                group["eps"] = eps
        return optimizer

    def _setup_scheduler(self) -> None:
        super()._setup_scheduler()
        if steps := self.recipe.lr_steps:
            self.lf = partial(tenths, steps)
            self.scheduler = LambdaLR(self.optimizer, lr_lambda=self.lf)
            if RANK in {-1, 0} and (late := [step for step in steps if step >= self.epochs]):
                LOGGER.warning(f"rebalance: lr_steps: of {self.epochs} epochs none comes after {late[0]}")

    def optimizer_step(self) -> None:
        """The host's step, with `warmup_from` and `grad_clip`."""
        if start := self.recipe["warmup_from"]:
            for group in self.optimizer.param_groups:
                full = group["initial_lr"] * self.lf(self.epoch)
                if group.get("param_group") != "bias" and group["lr"] < full:  # the host warms up from 0
                    group["lr"] = start * full + (1 - start) * group["lr"]
        clip = self.recipe["grad_clip"]
        if clip == DEFAULTS["grad_clip"]:
            super().optimizer_step()
            return
        self.scaler.unscale_(self.optimizer)
        if clip:
            clip_grad_norm_(self.model.parameters(), max_norm=clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model)


def tenths(steps: Sequence[int], epoch: int) -> float:
    """A tenth for each of the steps that is over in this epoch (from 0)."""
    return float(0.1 ** bisect_right(steps, epoch))
