"""A sweep folder written from a few numbers, so that a test can say what it expects by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]
FLAGS: dict[str, dict[str, Any]] = {  # of what they belong to, those that some test varies
    "drop": {"obj_drop": 0.0, "box_drop": 0.0, "neg_iou": 0.3, "drop_scope": "background", "drop_select": "random"},
    "focal": {"focal_gamma": 2.0, "focal_alpha": 0.25},
    "brl": {"brl_t": 0.5, "brl_iou": 0.1, "brl_weight": 0.1, "brl_beta": 1.0},
    "resobj": {"resobj_steps": 2, "resobj_grad": "isolated", "resobj_on": "obj"},
    "anchor": {"obj_gain": 1.0},
}


def metrics(map50: float) -> dict[str, Any]:
    """Metrics of one split; the others follow from mAP50, so that a mix-up shows."""
    classes = {
        "urchin": {"mAP50": map50, "mAP50-95": map50 / 2},
        "lobster": {"mAP50": map50 / 2, "mAP50-95": map50 / 4},
    }
    scores = {"mAP50": map50, "mAP75": map50 / 2, "mAP50-95": map50 / 4, "precision": 0.6, "recall": 0.5}
    return {**scores, "per_class": classes}


def record(
    run: str,
    seed: int,
    *,
    test: float | None = 0.4,
    val: float | None = None,
    protocol: str = "normal",
    rate: float = 0.0,
    label_seed: int = 0,
    noise: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    samples: list[dict[str, Any]] | None = None,
    **train: Any,
) -> dict[str, Any]:
    """A finished run; `test` and `val` are its mAP50, None leaves the split out."""
    flags = {name: value for own in FLAGS.values() for name, value in own.items()}
    flags |= {"loss": "drop", "head": "anchor", **train}
    parts = (*flags["loss"].split("+"), flags["head"])
    values = {"val": val, "test": test}
    return {
        "schema": 1,
        "run": run,
        "status": "finished",
        "error": None,
        "config": {
            "train": flags,
            "host": {"model": "yolov5n.yaml", "data": "d.yaml", "epochs": 2, "imgsz": 64, "batch": 4, **(host or {})},
            "labels": {"protocol": protocol, "rate": rate, "seed": label_seed, "manifest": None, **(noise or {})},
            "seed": seed,
        },
        "varied": train,
        "loss_ran": {
            "loss": flags["loss"],
            "head": flags["head"],
            "element": "bce",
            "settings": {name: flags[name] for part in parts for name in FLAGS.get(part, ())},
            "divisor": "mean over the cells kept",
            "text": f"drop obj_drop={flags['obj_drop']:g} box_drop={flags['box_drop']:g}",
        },
        "versions": {"rebalance": "0.1.0", "torchvision": None},
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "machine": {"cpu": "a <cpu>", "cores": 2, "threads": 1, "memory_gb": 8.0, "gpu": None, "platform": "here"},
        "timings": {"train_seconds": 10.0, "images_per_second": 20.0, "eval_seconds": 1.0, "total_seconds": 12.0},
        "peak_memory_mb": 500.0,
        "metrics": {split: metrics(value) for split, value in values.items() if value is not None},
        "epochs": [
            {
                "epoch": e,
                "train/box_loss": 1 / e,
                "metrics/mAP50(B)": 0.1 * e,
                "drop/negatives": 1000 * e,
                "lr/pg0": None,
            }
            for e in (1, 2)
        ],
        "samples": samples or [],
    }


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    """The function that builds a record."""
    return record


@pytest.fixture
def make_sweep(tmp_path: Path) -> Make:
    """A function that writes records (dicts) below tmp_path/runs/benchmark/<name> and returns that folder."""

    def make(*records: dict[str, Any], name: str = "mine", asked: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / "runs" / "benchmark" / name
        for content in records:
            run = folder / "runs" / content["run"]
            run.mkdir(parents=True)
            (run / "record.json").write_text(json.dumps(content), "utf-8")
        if asked is not None:
            plan = {"schema": 1, "asked": asked, "runs": [r["run"] for r in records]}
            (folder / "sweep.json").write_text(json.dumps(plan), "utf-8")
        return folder

    return make


@pytest.fixture
def partial_sweep(make_sweep: Make) -> Callable[..., Path]:
    """A function that writes a sweep in which a method for incomplete labels can be judged.

    Three seeds of the 0 % run and of 75 % removal on labels drawn anew for each, its control, the 0 % run on complete
    labels, and a run five times as long. `gains` are the mAP50 above the 0 % run, seed by seed; None leaves a run out.
    """

    def make(name: str = "mine", **gains: Sequence[float] | None) -> Path:
        told: dict[str, Sequence[float] | None] = {
            "drop": (0.10, 0.11, 0.12), "control": (0.02, 0.03, 0.04), "full": (0.2, 0.2, 0.2), "long": (0.3,), **gains
        }  # fmt: skip
        flags: dict[str, dict[str, Any]] = {
            "drop": {"obj_drop": 0.75, "protocol": "extreme"},
            "control": {"obj_drop": 0.75, "drop_select": "weight", "protocol": "extreme"},
            "full": {},
            "long": {"host": {"epochs": 10}},
        }
        runs = [record(f"zero,seed={s}", s, test=0.3, protocol="extreme", rate=0.8, label_seed=s) for s in range(3)]
        for which, values in told.items():
            own = {"rate": 0.8, **flags[which]} if "protocol" in flags[which] else flags[which]
            for seed, gain in enumerate(values or ()):
                draw = {"label_seed": seed} if "protocol" in own else {}
                runs.append(record(f"{which},seed={seed}", seed, test=0.3 + gain, **own, **draw))
        asked = {"model": ["yolov5n.yaml"], "data": ["d.yaml"], "obj_drop": [0, 0.75], "epochs": [2]}
        return make_sweep(*runs, name=name, asked=asked)

    return make


@pytest.fixture
def series_sweep(make_sweep: Make) -> Path:
    """Two seeds of 0, 25 and 75 % objectness removal and 75 % box removal, evaluated on val and test."""
    runs = []
    for seed in (0, 1):
        for axis, removal, test in (
            ("obj_drop", 0.0, 0.40),
            ("obj_drop", 0.25, 0.402 + 0.002 * seed),
            ("obj_drop", 0.75, 0.50 + 0.002 * seed),
            ("box_drop", 0.75, 0.39 - 0.02 * seed),
        ):
            name = f"{axis}={removal:g},seed={seed}"
            runs.append(record(name, seed, test=test + 0.01 * seed, val=test + 0.1, **{axis: removal}))
    asked = {"model": ["yolov5n.yaml"], "data": ["d.yaml"], "obj_drop": [0.0, 0.25, 0.75], "box_drop": [0.0, 0.75]}
    asked |= {"protocol": ["normal"], "rate": [0.5], "seeds": [0, 1], "series": True, "label_seed": 0}
    return make_sweep(*runs, asked=asked)
