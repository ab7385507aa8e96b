"""Values of Ultralytics' arguments: those that it refuses, trips over in the middle of a training, or does not heed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from os import PathLike
from typing import Any

import torch
from ultralytics.cfg import get_cfg
from ultralytics.utils.torch_utils import MODELOPT_REQUIREMENTS, parse_device

from rebalance.errors import ConfigError, nearest
from rebalance.settings import LARGEST_SEED

OPTIMIZERS = ("auto", "SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop")
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_arguments(arguments: Mapping[str, Any]) -> Any:
    """Refuse what the host itself refuses of any command, in one line, and return what it makes of the rest.

    Raises:
        ConfigError: one line with the name, the value and what it may be.
    """
    try:
        return get_cfg(overrides=dict(arguments))
    except (TypeError, ValueError, SyntaxError) as error:
        raise ConfigError(" ".join(str(error).split())) from None


def check_training(arguments: Mapping[str, Any]) -> None:
    """As `check_arguments`, with what the host refuses, or does not heed, only once a training has begun."""
    quantize = check_arguments(arguments).quantize
    for name, value in arguments.items():
        if name in _CHOICES:
            _check_choice(name, value)
        elif name in _KINDS and not _KINDS[name][0](value):
            raise ConfigError(f"{name}={value} is not {_KINDS[name][1]}")
    optimizer, momentum = str(arguments.get("optimizer", "")), arguments.get("momentum", 0)
    if "adam" in optimizer.lower() and momentum >= 1:
        raise ConfigError(f"momentum={momentum}: of optimizer={optimizer} it is beta 1, which is below 1")
    if quantize == 8 and find_spec("modelopt") is None:
        raise ConfigError(f"quantize=8 needs what is not installed: pip install '{MODELOPT_REQUIREMENTS[0]}'")
    if arguments.get("device") is not None:
        _check_device(arguments["device"])
    if str(arguments.get("amp")).lower() == "bf16" and not _has_bf16(arguments.get("device")):
        raise ConfigError(
            f"amp=bf16 needs a GPU that computes in it; device={parse_device(arguments.get('device')) or 'cpu'}"
        )


def _has_bf16(device: Any) -> bool:
    there = parse_device(device) != "cpu" and torch.cuda.is_available()
    return there and torch.cuda.is_bf16_supported(including_emulation=False)


def _whole(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _several(one: Callable[[Any], bool], also: tuple[type, ...] = ()) -> Callable[[Any], bool]:
    """Whether a value is one, or a list of them."""
    return lambda value: one(value) or (isinstance(value, list) and all(one(x) or isinstance(x, also) for x in value))


def _is_size(value: Any) -> bool:
    """A number, also as text, as the host takes it."""
    return _whole(1)(int(value) if isinstance(value, str) and value.isdecimal() else value)


def _is_batch(value: Any) -> bool:
    return _whole(1)(value) or value == -1 or (isinstance(value, float) and 0 < value < 1)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, PathLike))


# Name -> whether a value is good, and what is good in words. Types that the host checks itself are not here
_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "imgsz": (lambda value: _several(_is_size)(value) and value != [], "a whole number of pixels"),
    "batch": (_is_batch, "a whole number of images, -1 (as many as fit), or a fraction of the GPU's memory"),
    "workers": (_whole(0), "a whole number from 0"),
    "seed": (_whole(0, LARGEST_SEED), f"a whole number from 0 to {LARGEST_SEED}"),
    "freeze": (
        lambda value: value is None or _several(_whole(-sys.maxsize), (str,))(value),
        "a number of layers, or a list of layers such as [0,1]",
    ),
    "classes": (
        lambda value: value is None or (_several(_whole(0))(value) and value != []),
        "a class number, or a list such as [0,2]",
    ),
    "time": (lambda value: not value or value > 0, "a number of hours above 0"),
    "pretrained": (lambda value: value in (None, True, False) or _is_path(value), "True, False or a file"),
    "data": (
        lambda value: value is None or isinstance(value, (str, list)) or hasattr(value, "__fspath__"),
        "a data set",
    ),
}
# Name -> texts that are taken besides True, False and None; the host looks at no case
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimizer": OPTIMIZERS,
    "cache": ("ram", "disk"),
    "compile": COMPILE,
    "copy_paste_mode": ("flip", "mixup"),
    "split": ("train", "val", "test"),
}
_OTHERS = ("mps", "npu", "xpu", "tpu", "intel", "vulkan")  # devices
_SWITCHES = ("cache", "compile")  # of these, those that may be True, False or None


def _check_choice(name: str, value: Any) -> None:
    if (name in _SWITCHES and (value is None or isinstance(value, bool))) or (
        isinstance(value, str) and value.lower() in map(str.lower, _CHOICES[name])
    ):
        return
    choices = (*(("True", "False") if name in _SWITCHES else ()), *_CHOICES[name])
    raise ConfigError(f"{name}={value} is not one of {', '.join(choices)}{nearest(str(value), choices)}")


def _check_device(device: Any) -> None:
    """What the host takes for CUDA: numbers of devices that are there. Other accelerators are its own affair."""
    found = parse_device(device)
    if found in ("", "cpu") or found.startswith(_OTHERS):
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not all(part.isdecimal() and int(part) < count for part in found.split(",")):
        raise ConfigError(f"device={device} is not there; devices here: {', '.join(['cpu', *map(str, range(count))])}")
