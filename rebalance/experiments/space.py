"""What `rebalance tune` searches, from `key=value` texts.

    loss=bce,drop                 one of these
    obj_drop=0..0.9               a number in this range
    epochs=10..30                 the same; whole ones where the flag, ours or the host's, is a whole number
    lr0=1e-4..1e-2:log            the same, even in its logarithm
    close_mosaic=0..10:int        a whole number
    epochs=20                     the same in all trials

A flag of a method is for the trials that have the method, as in a sweep.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rebalance.errors import ConfigError, nearest
from rebalance.experiments.flags import DEFAULTS, is_whole, typed
from rebalance.experiments.grid import LABELS, NOT_DRY, ONE_VALUE, Run, is_idle, literal, read_grid, split
from rebalance.experiments.record import NUMBERS
from rebalance.settings import SweepFlags, TuneFlags, parse, settings_of, value_text

FIRST = ("head", "loss")  # they say which other flags count
_RANGE = re.compile(r"([-+.\deE]+?)\.\.([^:/\\]*)((?::.*)?)")
_HOW = ("log", "int")
_NO_CHOICE = {  # searched for, these would answer another question
    "data": "trials on different data cannot be compared",
    "label_seed": "trials on different labels cannot be compared",
    **dict.fromkeys(LABELS, "trials on different labels cannot be compared"),
    **dict.fromkeys(NUMBERS, "it is of the evaluation, and trials that are evaluated differently cannot be compared"),
}


@dataclass(frozen=True)
class Choices:
    """One of some values, as typed."""

    texts: tuple[str, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all."""
        return self.texts

    def __str__(self) -> str:
        return ", ".join(self.texts)

    def suggest(self, trial: Any, name: str) -> Any:
        """Let a trial choose."""
        return trial.suggest_categorical(name, self.texts)


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both inclusive."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all: both ends, and one between them that is no whole number where that may be."""
        between = () if self.whole else (self.low + 0.6180339887 * (self.high - self.low),)
        return (self.low, self.high, *between)

    def __str__(self) -> str:
        how = ", even in its logarithm" * self.log
        return f"{value_text(self.low)} to {value_text(self.high)}{', whole' * self.whole}{how}"

    def suggest(self, trial: Any, name: str) -> Any:
        """Let a trial choose."""
        return (trial.suggest_int if self.whole else trial.suggest_float)(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Space:
    """What is the same in all trials, and what each chooses, in the order in which it does."""

    flags: TuneFlags
    fixed: Mapping[str, str]
    searched: Mapping[str, Choices | Range]
    asked: Mapping[str, Any]  # what a folder was made with

    def counts(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a flag has a say beside the head and the loss that a trial chose."""
        return not is_idle(name, {**self.fixed, **values})

    def run(self, values: Mapping[str, Any]) -> Run:
        """The run of a trial that chose these values; its id is not a trial's yet."""
        given = {**self.fixed, **{name: value_text(value) for name, value in values.items()}}
        nowhere = [name for name in given if not any(self.counts(name, first) for first in self.firsts())]
        kept = {key: text for key, text in given.items() if key in nowhere or self.counts(key, values)}
        return read_grid(kept).runs[0]

    def corners(self) -> list[Run]:
        """Runs that stand for all: with every head and loss, each other flag at its ends while the rest is at one."""
        found, others = [], {name: kind for name, kind in self.searched.items() if name not in FIRST}
        for first in self.firsts():
            base = {**first, **{name: kind.ends[0] for name, kind in others.items()}}
            found.append(self.run(base))
            found += [self.run({**base, name: end}) for name, kind in others.items() for end in kind.ends[1:]]
        return found

    def firsts(self) -> list[dict[str, Any]]:
        """All choices of head and loss."""
        kinds = {name: self.searched[name].ends for name in FIRST if name in self.searched}
        return [dict(zip(kinds, values, strict=True)) for values in itertools.product(*kinds.values())]


def read_space(given: Mapping[str, str]) -> Space:
    """Return what `given` asks to search.

    Raises:
        ConfigError: a bad flag or range, nothing to search, or what has no meaning in a search.
    """
    own, of_sweep = settings_of(TuneFlags), settings_of(SweepFlags)
    flags = parse(TuneFlags, {key: text for key, text in given.items() if key in own})
    if flags.dry:
        raise ConfigError(NOT_DRY)
    fixed, searched = {"seeds": str(flags.seed)}, dict[str, Choices | Range]()
    for key, text in given.items():
        if key in own and key not in (*LABELS, "label_seed", "name"):
            continue
        if key in of_sweep and key not in own:
            near = {"seeds": " (did you mean seed?)"}.get(key, "")
            raise ConfigError(f"{key}={text} is a flag of rebalance sweep, not of tune{near}")
        kind = None if key in (*ONE_VALUE, "name") else _kind(key, str(text))
        if key == "val" and literal(str(text)) is not True:
            raise ConfigError(f"{key}={text}: a search goes by what val says of each epoch")
        if kind and key in _NO_CHOICE:
            raise ConfigError(f"{key}={text}: {_NO_CHOICE[key]}")
        if kind:
            searched[key] = kind
        else:
            fixed[key] = str(text)
    if not searched:
        raise ConfigError(
            "there is nothing to search: give a list, e.g. loss=bce,drop, or a range, e.g. lr0=1e-4..1e-2:log"
        )
    searched = {key: searched[key] for key in (*FIRST, *searched) if key in searched}
    asked = dict(read_grid({**fixed, **{key: value_text(kind.ends[0]) for key, kind in searched.items()}}).asked)
    asked = {**asked, **{key: _asked(key, str(given[key])) for key in searched}}
    del asked["seeds"], asked["series"]
    return Space(flags, fixed, searched, {**asked, "seed": [flags.seed], "prune": [flags.prune]})


def _asked(key: str, text: str) -> list[Any]:
    return [_typed(key, part) for part in split(key, text)] if _RANGE.fullmatch(text) is None else [text]


def _typed(key: str, text: str) -> Any:
    return typed(key, text) if key in DEFAULTS else literal(text)


def _kind(key: str, text: str) -> Choices | Range | None:
    """What a value asks to search; None where it is one value."""
    parts = split(key, text)
    if len(parts) == 1:
        found = _RANGE.fullmatch(text)
        return _range(key, text, *found.groups()) if found else None
    for part in parts:
        if _RANGE.fullmatch(part):
            raise ConfigError(f"{key}={text}: a range stands alone, not in a list")
    values = [_typed(key, part) for part in parts]
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"{key}: {value_text(value)} is given twice")
    return Choices(tuple(parts))


def _range(key: str, text: str, low: str, high: str, how: str) -> Range:
    words = how.split(":")[1:]
    for word in words:
        if word not in _HOW:
            raise ConfigError(f"{key}={text}: {word or 'nothing'} is not one of {', '.join(_HOW)}{nearest(word, _HOW)}")
    whole = "int" in words or is_whole(key)
    number: Callable[[str], float] = int if whole else float
    try:
        ends = (number(low), number(high))
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{key}={text} is not a range of {kind}, e.g. {'1..5' if whole else '0.1..0.5'}") from None
    if not ends[0] < ends[1] or ends[1] - ends[0] == float("inf"):
        raise ConfigError(f"{key}={text}: the range has to go up, low..high")
    if "log" in words and ends[0] <= 0:
        raise ConfigError(f"{key}={text}: a range on a log scale starts above 0")
    for end in (low, high):
        if (key in DEFAULTS and not isinstance(typed(key, end), (int, float))) or isinstance(DEFAULTS.get(key), bool):
            raise ConfigError(f"{key}={text}: {key} is not a number; give a list of values")
    return Range(*ends, log="log" in words, whole=whole)
