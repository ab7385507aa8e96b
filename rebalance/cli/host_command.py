"""Ultralytics' command line with our flags: `rebalance train …`, and plain `yolo` where the hook is installed.

Our flags are taken out of the arguments; the rest is left to the host's own entry point, which finds our `YOLO` in the
place of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics import cfg as host
from ultralytics import models
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml

from rebalance.data.demo.seafloor import built_in
from rebalance.errors import ConfigError, nearest
from rebalance.recipe import TRAIN
from rebalance.settings import checked, value_text
from rebalance.train.admission import FORWARDED, check_names, data_yaml, run_of, says, separate, tell_unused
from rebalance.train.api import YOLO, load
from rebalance.train.arguments import check_arguments

OF_VAL = "val_regions"  # of our training flags the one that validation takes too
# Keys that the host takes though its defaults do not list them
EXTRA = {*FORWARDED, "nms", "augmentations", "save_dir", "cfg", "mode", "task"}


def entrypoint() -> None:
    """What `yolo` calls: reads the process's arguments. Without a flag of ours the host is left to itself."""
    _call(sys.argv[1:], strict=False)


def run(mode: str, args: list[str]) -> None:
    """Run a mode of Ultralytics; an unknown flag, a bad value or a missing file is an error before anything is made."""
    sys.argv[0] = "yolo"  # the host saves what it predicts only where its own program asks
    _call([mode, *args], strict=True)


def _call(args: list[str], *, strict: bool) -> None:
    args = host.merge_equals_args(args)
    pairs = dict(a.removeprefix("--").removesuffix(",").split("=", 1) for a in args if "=" in a)
    words = [a for a in args if "=" not in a]
    for name in (*pairs, *words):
        if name in TRAIN and not pairs.get(name):
            example = "focal" if name == "loss" else TRAIN[name][1].default
            raise ConfigError(f"{name} needs a value, e.g. {name}={example}")
    mode = next((word for word in words if word in host.MODES), None) or pairs.get("mode")
    again, (ours, theirs) = run_of(pairs.get("cfg")), separate(pairs)
    ours = {name: checked(name, TRAIN[name][1], value) for name, value in ours.items()}
    refused = {name: value for name, value in ours.items() if mode != "train" and (mode != "val" or name != OF_VAL)}
    if refused:
        name, value = next(iter(refused.items()))
        raise ConfigError(f"{name}={value_text(value)} is a training flag; {mode or 'this command'} does not take it")
    if strict or ours:
        _check(words, theirs, trained=mode == "train")
    elif mode:  # left to the host, but for a name that it does not know and that comes closest to one of our flags
        known = {*DEFAULT_CFG_DICT, *EXTRA}
        for name, value in theirs.items():
            hint = nearest(name, [*known, *TRAIN])
            if name not in known and any(f"mean {flag}?" in hint for flag in TRAIN):
                raise ConfigError(f"unknown flag {name}={value}{hint}")
    if theirs.get("data") and mode != "train":
        theirs["data"] = built_in(theirs["data"])
    with _bound(ours, strict, unheard=theirs if mode == "train" and not ours else None, again=again):
        sys.argv[1:] = [*words, *(f"{name}={value}" for name, value in theirs.items())]  # in place: the host keeps it
        host.entrypoint()


def _check(words: list[str], theirs: dict[str, str], *, trained: bool) -> None:
    """Refuse what the host would refuse, in one line; of a training, what it refuses before it asks for the model."""
    known = {*host.TASKS, *host.MODES, *DEFAULT_CFG_DICT, *EXTRA}
    for word in words:
        if word.removeprefix("--") not in known:
            raise ConfigError(f"'{word}' is not key=value{nearest(word, known)}")
    check_names(theirs, EXTRA)
    given = {name: host.smart_value(str(value)) for name, value in theirs.items() if name not in EXTRA}
    if (cfg := theirs.get("cfg")) not in (None, "", "None"):
        given = {**YAML.load(check_yaml(cfg)), **given}
    if not given.get("model"):  # the host would take, and fetch, one of its own
        raise ConfigError("model= is missing, e.g. model=yolov8n.yaml, model=retinanet_tiny, or a checkpoint (.pt)")
    if not trained:
        check_arguments({name: value for name, value in given.items() if name in DEFAULT_CFG_DICT})
        _check_source(given.get("source"))
        data = given.get("data")
        # a classification data set may be the name of one to fetch; resolving makes the built-in set where it is not
        missing = isinstance(data, str) and Path(data).is_absolute() and not Path(data).exists()
        if missing or str(data).endswith((".yaml", ".yml")):
            data_yaml(built_in(str(data)))


def _check_source(source: Any) -> None:
    """Refuse a path that leads nowhere; a URL, a pattern, a camera's number and the screen are for the host to find."""
    path = isinstance(source, str) and "://" not in source and "*" not in source
    if path and not source.isnumeric() and not source.lower().startswith("screen") and not Path(source).exists():
        raise ConfigError(f"source={source}: no such file or folder")


@contextmanager
def _bound(
    ours: dict[str, Any], strict: bool, unheard: dict[str, Any] | None, again: Path | None = None
) -> Iterator[None]:
    """Put a YOLO that knows these flags in the place of the host's, and refuse the models that know none.

    `unheard`: arguments of a training of which a model that knows no regions says that it does not use them.
    """

    def refuse(model: Any, *_: Any, **__: Any) -> None:
        raise ConfigError(f"{', '.join(ours)}: only for YOLO detection models, not for model={model}")

    def other(name: str, model: Any, *args: Any, **kwargs: Any) -> Any:
        _tell(model)
        return getattr(models, name)(model, *args, **kwargs)

    def _tell(model: Any) -> None:
        if unheard is not None and (data := says(unheard)):
            tell_unused(data, f"only YOLO detection models, not {model}")

    class Bound(YOLO):
        def train(self, trainer: Any = None, **kwargs: Any) -> Any:
            return super().train(trainer, **ours, **kwargs)

        def val(self, validator: Any = None, **kwargs: Any) -> Any:
            return super().val(validator, **{name: ours[name] for name in {OF_VAL} & ours.keys()}, **kwargs)

    Bound.strict, Bound.again = strict, again

    def bound(model: Any, task: Any = None, **kwargs: Any) -> Any:
        made = load(model, task, Bound)
        if ours and not isinstance(made, Bound):  # the host has made it one of its other classes
            refuse(model)
        if not isinstance(made, Bound):
            _tell(model)
        return made

    held, stock = vars(ultralytics), dict(vars(ultralytics))
    ours_first: dict[str, Any] = {"YOLO": bound}
    if ours or unheard is not None:
        ours_first |= {name: refuse if ours else partial(other, name) for name in ("RTDETR", "SAM", "FastSAM", "NAS")}
    held.update(ours_first)
    try:
        yield
    finally:
        for name in ours_first:
            del held[name]  # the host loads its classes when they are first asked for
        held.update({name: stock[name] for name in ours_first if name in stock})
