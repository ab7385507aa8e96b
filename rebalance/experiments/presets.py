"""The built-in benchmark: mAP against removal percentage, as Tables 2 and 3 of Haque & McEver, in two sizes.

Objectness removal and box removal are two series from one 0 % run: nine runs a seed, on the built-in data set, whose
training labels are partial and whose validation and test labels are complete.
"""

from __future__ import annotations

from collections.abc import Mapping

from rebalance.errors import ConfigError, nearest
from rebalance.experiments.record import shown

SERIES = {
    "model": "yolov5n.yaml",  # from scratch: nothing to download, and nothing that was seen before
    "head": "anchor",  # the paper's detector has one
    "data": "seafloor.yaml",
    "obj_drop": "0,0.1,0.25,0.75,0.9",
    "box_drop": "0,0.1,0.25,0.75,0.9",
    "series": "True",
}
PRESETS: dict[str, dict[str, str]] = {
    # Nine runs in a quarter of an hour on two cores: small images, a short schedule, no validation on the way.
    "cpu": {
        **SERIES,
        "imgsz": "256",
        "epochs": "8",
        "batch": "8",
        "nbs": "8",  # a step a batch: without it the host adds up the gradients of 64 images
        "optimizer": "AdamW",  # from scratch in a few hundred steps SGD does not get going
        "lr0": "0.005",
        "warmup_epochs": "1",
        "cos_lr": "True",
        "mosaic": "0",  # small objects get smaller still, and there are few steps to learn that
        "val": "False",
        "plots": "False",
        "amp": "False",
        "workers": "0",
        "jobs": "2",
        "seeds": "0",
        "device": "cpu",
    },
    # Ultralytics' own recipe and schedule, on whatever device there is.
    "full": {**SERIES, "imgsz": "640", "epochs": "100", "seeds": "0,1,2"},
}
LARGE = "seafloor-640.yaml"  # the built-in set in the size of `full`, beside the small one


def benchmark(args: Mapping[str, str]) -> dict[str, str]:
    """Return what to give to `sweep` for a preset: its arguments, with the others of `args` over them.

    Args:
        args: `preset` (cpu or full; default cpu), and any key of a sweep, which then replaces the preset's.

    Raises:
        ConfigError: there is no such preset.
    """
    name = args.get("preset", "cpu")
    if name not in PRESETS:
        raise ConfigError(f"preset={name} is not one of {', '.join(PRESETS)}{nearest(name, PRESETS)}")
    preset = dict(PRESETS[name])
    if name == "full":
        from rebalance.data.demo.seafloor import data_folder

        large = data_folder() / LARGE
        preset["data"] = shown(large) if large.is_file() else preset["data"]
    return {**preset, **{key: text for key, text in args.items() if key != "preset"}}
