"""Ultralytics' search for hyperparameters with trainings by our trainer: of our flags, given or searched, and heads.

The host trains each try in a process of its stock command, which knows neither. Here each is trained in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ultralytics.engine import trainer as host
from ultralytics.engine.tuner import Tuner
from ultralytics.utils import DEFAULT_CFG_DICT

from rebalance.errors import ConfigError
from rebalance.hosts.host import HOST_WEIGHTS
from rebalance.recipe import TRAIN

Makes = Callable[[dict[str, Any], dict[str, Any]], Any]  # (our flags, the host's arguments) -> a trainer class


def start_of(space: Mapping[str, Any] | None, *, bounded: bool = True) -> dict[str, Any]:
    """Our flags in a search space, at what the first try has: the default, within the bounds.

    Args:
        space: name to bounds.
        bounded: False: the bounds are not the host's but Ray's, which looks at them itself.

    Raises:
        ConfigError: one that is no number, or bounds that are none.
    """
    found: dict[str, Any] = {}
    for name, bounds in (space or {}).items():
        if name not in TRAIN:
            if name not in DEFAULT_CFG_DICT:
                raise ConfigError(f"space: unknown flag {name}")
            continue
        default = TRAIN[name][1].default
        if not bounded:
            found[name] = default
            continue
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            raise ConfigError(f"space: {name} is not a number; give it beside the space")
        if not isinstance(bounds, (list, tuple)) or len(bounds) not in (2, 3) or not bounds[0] <= bounds[1]:
            raise ConfigError(f"space: {name}={bounds} is not (lowest, highest) or (lowest, highest, gain)")
        found[name] = _within(name, min(max(default, bounds[0]), bounds[1]))
    return found


def _within(name: str, value: float) -> float:
    return round(value) if isinstance(TRAIN[name][1].default, int) else float(value)


class RebalanceTuner(Tuner):  # type: ignore[misc]
    """The host's tuner with our trainer.

    Attributes:
        makes: a trainer class of the flags of a try.
    """

    args: Any
    space: Any

    def __init__(
        self, args: dict[str, Any], ours: Mapping[str, Any], makes: Makes, *, idle: bool, model: Any, _callbacks: Any
    ) -> None:
        """Set up a search; nothing is made yet.

        Args:
            args: the host's arguments, with `space` where one was given.
            ours: our flags, those of the space at what the first try has.
            makes: a trainer class of the flags and arguments of a try.
            idle: whether the gains of the host's loss have no effect, so that they are not searched by default.
            model: that every try starts from.
            _callbacks: as there.
        """
        asked = args.get("space")
        super().__init__(args, _callbacks, model=model)
        self.makes = makes
        if not asked and idle:
            self.space = {name: bounds for name, bounds in self.space.items() if name not in HOST_WEIGHTS}
        self.args.__dict__.update(ours)

    def _constrain(self, hyp: dict[str, float]) -> dict[str, float]:
        found: dict[str, float] = super()._constrain(hyp)
        return {name: _within(name, value) if name in TRAIN else value for name, value in found.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Search, as there."""
        with _trained_here(self.makes, self.callbacks):
            return super().__call__(*args, **kwargs)


@contextmanager
def _trained_here(makes: Makes, callbacks: Any) -> Iterator[None]:
    """Let the host, which starts a process for each try, train it by a class of ours."""
    stock = host.MultiTrainer

    def trains(_: Any, args: dict[str, Any], model: Any) -> Any:
        ours = {name: value for name, value in args.items() if name in TRAIN}
        theirs = {name: value for name, value in args.items() if name not in TRAIN}
        return stock(makes(ours, theirs), theirs, model, _callbacks=callbacks)

    host.MultiTrainer = trains
    try:
        yield
    finally:
        host.MultiTrainer = stock
