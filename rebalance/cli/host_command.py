"""Ultralytics' command line with our flags: `rebalance train …`, and plain `yolo` where the hook is installed.

Our flags are taken out of the arguments and checked; the rest is left to the host's own entry point, which finds our
`YOLO` in the place of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics import cfg as host
from ultralytics.nn.tasks import guess_model_task, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT, YAML
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

from rebalance.data.demo.seafloor import resolve
from rebalance.errors import ConfigError, nearest
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.hosts.ultralytics.model import anchored, host_of
from rebalance.methods.resolve import check_flags, train_flags
from rebalance.settings import TrainFlags, flags
from rebalance.train.api import YOLO, data_yaml, split

# Keys that the host takes though its defaults do not list them
EXTRA = {"half", "int8", "end2end", "nms", "augmentations", "save_dir", "cfg", "mode", "task"}


def entrypoint() -> None:
    """What `yolo` calls: reads the process's arguments. Without a flag of ours the host is left to itself."""
    _call(sys.argv[1:], strict=False)


def run(mode: str, args: list[str]) -> None:
    """Run one mode of Ultralytics.

    Args:
        mode: train, val, predict or export.
        args: key=value arguments.

    Raises:
        ConfigError: an unknown flag, a bad value, or a missing file; before anything is created.
    """
    sys.argv[0] = "yolo"  # the host saves what it predicts only where its own program asks
    _call([mode, *args], strict=True)


def _call(args: list[str], *, strict: bool) -> None:
    ours, rest = _separate(args)
    mode = next((a for a in rest if a in host.MODES), None) or _value(rest, "mode")
    if ours and mode != "train":
        name = next(iter(ours))
        raise ConfigError(f"{name}={ours[name]} is a training flag; {mode or 'this command'} does not take it")
    model = _value(rest, "model")
    if model.endswith(".pt"):  # only the file knows its host and head; the model checks again
        check_flags(ours, head="anchor" if "head" not in ours else "stock")
    else:
        train_flags(ours, host=host_of(model), anchored=anchored(model))
    if strict or ours:
        _check(rest, ours)
    elif mode:
        _check_misspelt(rest)
    rest = [f"data={resolve(a.removeprefix('data='))}" if a.startswith("data=") else a for a in rest]
    with _bound(ours):
        sys.argv[1:] = rest  # in place: the host keeps the list
        host.entrypoint()


def _separate(args: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Our flags, and the host's arguments; a `cfg` file that holds flags of ours is spelt out."""
    ours: dict[str, Any] = {}
    rest: list[str] = []
    for arg in host.merge_equals_args(args):
        name, _, value = arg.removeprefix("--").removesuffix(",").partition("=")
        if name in flags(TrainFlags):
            if value == "":
                example = flags(TrainFlags)[name].default if name != "loss" else "focal"
                raise ConfigError(f"{name} needs a value, e.g. {name}={example}")
            ours[name] = value
        elif name == "cfg" and value not in ("", "None"):
            if not (file := check_yaml(value, hard=False)):
                raise ConfigError(f"cfg={value}: no such file")
            held, theirs = split(YAML.load(file))
            ours = {**held, **ours}
            rest = [*(f"{k}={v}" for k, v in theirs.items() if v is not None), *rest] if held else [*rest, arg]
        else:
            rest.append(arg)
    return ours, rest


def _pairs(rest: list[str]) -> dict[str, str]:
    return dict(a.removeprefix("--").removesuffix(",").split("=", 1) for a in rest if "=" in a)


def _value(rest: list[str], name: str) -> str:
    return _pairs(rest).get(name, "")


def _check_misspelt(rest: list[str]) -> None:
    """Refuse a name that the host does not know and that comes closest to one of our flags."""
    known = set(DEFAULT_CFG_DICT) | EXTRA
    for name, value in _pairs(rest).items():
        hint = nearest(name, [*known, *flags(TrainFlags)])
        if name not in known and any(f"mean {flag}?" in hint for flag in flags(TrainFlags)):
            raise ConfigError(f"unknown flag {name}={value}{hint}")


def _check(rest: list[str], ours: Mapping[str, Any]) -> None:
    """Refuse what the host would refuse, in one line and before it creates anything."""
    known = set(DEFAULT_CFG_DICT) | EXTRA
    for name, value in _pairs(rest).items():
        if name not in known:
            raise ConfigError(f"unknown flag {name}={value}{nearest(name, [*known, *flags(TrainFlags)])}")
    words = {*host.TASKS, *host.MODES, *known}
    for word in rest:
        if "=" not in word and word.removeprefix("--") not in words:
            raise ConfigError(f"'{word}' is not key=value{nearest(word, words)}")
    given = {k: host.smart_value(v) for k, v in _pairs(rest).items() if k not in EXTRA}
    try:
        host.get_cfg(overrides=given)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    if (cfg := _value(rest, "cfg")) not in ("", "None"):
        given = {**YAML.load(check_yaml(cfg)), **given}
    data, model = given.get("data"), str(given.get("model") or "")
    if not model:  # the host would take, and fetch, one of its own
        raise ConfigError("model= is missing, e.g. model=yolov8n.yaml, model=retinanet_tiny, or a checkpoint (.pt)")
    task = "detect" if model in ZOO else ""
    if model.endswith((".yaml", ".yml")):
        try:
            task = guess_model_task(yaml_model_load(model)) or ""  # knows that yolov5n.yaml is yolov5.yaml, scale n
        except FileNotFoundError:
            raise ConfigError(f"model={model}: no such file") from None
        if ours and task not in ("detect", ""):
            raise ConfigError(f"{', '.join(ours)}: only for detection models, and {model} is a {task} model")
    if (
        model.endswith(".pt")
        and "://" not in model
        and not Path(model).is_file()
        and Path(model).name not in GITHUB_ASSETS_NAMES
    ):
        raise ConfigError(
            f"model={model}: no such file, and not a published model{nearest(model, GITHUB_ASSETS_NAMES)}"
        )
    # A classification data set may be the name of one to fetch. Last, since resolving makes the built-in data set where
    # it is not there yet.
    if isinstance(data, str) and data:
        missing = Path(data).is_absolute() and not Path(data).exists()
        if (task == "detect" or missing or data.endswith((".yaml", ".yml"))) and resolve(data) == data:
            data_yaml(data)


@contextmanager
def _bound(ours: dict[str, Any]) -> Iterator[None]:
    """Put a YOLO that knows these flags in the place of the host's, and refuse the models that know none."""

    def refuse(model: Any, *_: Any, **__: Any) -> None:
        raise ConfigError(f"{', '.join(ours)}: only for YOLO detection models, not for model={model}")

    class Bound(YOLO):
        def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(model, *args, **kwargs)
            if ours and not isinstance(self, Bound):  # the host has made it one of its other classes
                refuse(model)

        def train(self, trainer: Any = None, **kwargs: Any) -> Any:
            return super().train(trainer, **ours, **kwargs)

    ours_first = {"YOLO": Bound, **(dict.fromkeys(("RTDETR", "SAM", "FastSAM", "NAS"), refuse) if ours else {})}
    stock = {name: vars(ultralytics)[name] for name in ours_first if name in vars(ultralytics)}
    vars(ultralytics).update(ours_first)
    try:
        yield
    finally:
        for name in ours_first:
            del vars(ultralytics)[name]  # the host loads its classes when they are first asked for
        vars(ultralytics).update(stock)
