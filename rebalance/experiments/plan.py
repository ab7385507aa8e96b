"""A sweep that is written down before it runs: `rebalance sweep plan=tables/anchor.yaml`.

A plan is a YAML file that says what is asked and what would count as an answer, and holds the grid: `common` keys, and
`cells` that each add their own, as typed on the command line (a list makes a dimension). They share a folder and a
report, which repeats the question and the answer.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rebalance.errors import ConfigError, nearest
from rebalance.experiments.papers import texts
from rebalance.experiments.record import shown

WORDS = ("title", "question", "answer", "baseline")
KEYS = (*WORDS, "common", "cells")


def _maps(value: Any) -> bool:
    """Whether a value is a mapping, or a list with one somewhere in it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_maps, value)))


class Written(NamedTuple):
    """A plan that was read."""

    cells: list[dict[str, str]]  # what to give to `sweep`
    words: dict[str, str]  # what the report says about it


def read(path: Path, given: Mapping[str, str]) -> Written:
    """Return the grids of a plan, named after its folder where it is called plan.yaml, else after its file.

    Args:
        path: of the plan.
        given: keys of a sweep; they replace the plan's in every cell, and the report says so.

    Raises:
        ConfigError: the file cannot be read or is no plan; the key that is wrong is named.
    """
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"plan={path} cannot be read: {reason}") from None
    if not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
        raise ConfigError(f"plan={path} is not a mapping of {', '.join(KEYS)}")
    for key in told:
        if key not in KEYS:
            raise ConfigError(f"plan={path}: {key} is not one of {', '.join(KEYS)}{nearest(key, KEYS)}")
    for key in WORDS:
        if not isinstance(told.get(key, ""), str):
            raise ConfigError(f"plan={path}: {key} is not a text")
    for key in ("question", "answer"):
        if not told.get(key):
            raise ConfigError(f"plan={path}: {key} is missing; a plan says what is asked and what would answer it")
    common, cells = told.get("common") or {}, told.get("cells") or [{}]
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in (common, *cells)):
        raise ConfigError(f"plan={path}: common is a mapping of keys, cells a list of such mappings")
    for cell in (common, *cells):
        for key, value in cell.items():
            if not isinstance(key, str) or _maps(value):
                raise ConfigError(f"plan={path}: {key}: {value} is not a key with a value, or with a list of values")
    name = path.resolve().parent.name if path.stem == "plan" else path.stem
    words = {key: told[key] for key in WORDS if told.get(key)}
    words |= {"file": shown(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if changed := {key: text for key, text in given.items() if key not in ("name", "jobs", "executor", "address")}:
        words["given"] = shlex.join(f"{key}={text}" for key, text in changed.items())
    return Written([{"name": name, **texts({**common, **cell}), **given} for cell in cells], words)
