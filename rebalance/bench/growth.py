"""How the time of the losses grows with the boxes of an image, the classes and the image, beside the hosts' own."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rebalance.bench import clock, contests
from rebalance.errors import ConfigError, nearest
from rebalance.settings import BenchFlags

# Losses by name -> how their contest is built
LOSSES = {name: contests.CONTESTS[name][0] for name in ("ultralytics", "yolov5", "retinanet", "ssd", "fasterrcnn")}
OURS = ("drop",)  # of the losses, beside the host's own in ours
MANY = (1, 10, 100, 1000)
# What is varied -> its values, as an argument of the contest or a flag; all else is as in the other measures
AXES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "boxes an image": ("count", MANY), "classes": ("nc", MANY), "pixels a side": ("imgsz", (128, 256, 512)),
}  # fmt: skip
SLOWER = 1.1  # ours grows faster than the host's where it grows by more than this times as much


def chosen(only: str) -> list[str]:
    """The losses that `only=` names, by default all.

    Raises:
        ConfigError: it names something that is no loss.
    """
    names = [name.strip() for name in only.split(",")] if only else list(LOSSES)
    for name in names:
        if name not in LOSSES:
            raise ConfigError(f"only={only}: with grow {name} is not one of {', '.join(LOSSES)}{nearest(name, LOSSES)}")
    return list(dict.fromkeys(names))


def rows(load: BenchFlags) -> tuple[list[dict[str, Any]], list[str]]:
    """Time of the criterion, forward and backward, at each value of each axis; and what could not be timed.

    Errors as of `chosen`.
    """
    found, skipped = list[dict[str, Any]](), list[str]()
    for name in chosen(load.only):
        try:
            for axis, (argument, values) in AXES.items():
                for value in values:
                    found += _at(load, name, axis, argument, value)
                    gc.collect()
        except ImportError as e:
            skipped.append(f"{name}: {e}; pip install --no-deps -r requirements-upstream.txt")
        except torch.cuda.OutOfMemoryError:
            skipped.append(f"{name}: the GPU's memory is too small for {value} {axis}, batch={load.batch}")
    return found, skipped


def _at(load: BenchFlags, name: str, axis: str, argument: str, value: int) -> Iterator[dict[str, Any]]:
    build = LOSSES[name]
    if argument == "imgsz":
        load = replace(load, imgsz=value)
    else:
        build = partial(build, **{argument: value})
    contest = build(load)
    host, own, *more = contest.sides
    sides = [host, own, *(side for side in more if side.name.startswith(tuple(f"ours, loss={x}" for x in OURS)))]
    taken = clock.take_turns(contests.criteria(contest._replace(sides=sides)), contest.images.device, load.repeats)
    for side in sides[1:]:
        times, hosts = taken[side.name], taken[host.name]
        yield {
            "model": contest.name, "host": host.name, "ours": side.name, "measure": "criterion", "unit": "ms",
            "axis": axis, "value": value, "hosts": clock.quartiles(hosts), "own": clock.quartiles(times),
            "ratio": clock.quartiles([x / y for x, y in zip(times, hosts, strict=True)]),
        }  # fmt: skip


def curves(result: Mapping[str, Any]) -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
    """Axis, model, host and loss of ours -> the rows by rising value."""
    found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault((row["axis"], row["model"], row["host"], row["ours"]), []).append(row)
    return {key: sorted(own, key=lambda row: row["value"]) for key, own in found.items()}


def lines(result: Mapping[str, Any]) -> list[str]:
    """What grew how, for a terminal."""
    found, axis = list[str](), ""
    for (about, model, host, ours), own in curves(result).items():
        if about != axis:
            axis = about
            values = ", ".join(str(row["value"]) for row in own)
            found += ["", f"criterion, forward and backward, ms at {values} {axis}; the last over the first"]
        told = []
        for side in ("hosts", "own"):
            times = [row[side]["median"] for row in own]
            told.append((times[-1] / times[0], " ".join(f"{x:8.2f}" for x in times)))
        (theirs, their_times), (mine, my_times) = told
        verdict = "as the host's or slower" if mine <= SLOWER * theirs else "faster than the host's"
        found.append(f"  {model:24}{host:>24} {their_times}  x{theirs:.1f}")
        found.append(f"  {'':24}{ours:>24.24} {my_times}  x{mine:.1f}: grows {verdict}")
    return found
