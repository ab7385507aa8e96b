"""`rebalance bench`: what our losses and heads cost beside the hosts' own.

One process, one model, one batch. Ratios are taken within a round, then the median over rounds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rebalance.bench import clock, contests, growth
from rebalance.bench.contests import Contest, Side, chosen
from rebalance.errors import ConfigError
from rebalance.experiments.machine import git, machine
from rebalance.experiments.record import write_json
from rebalance.files import require_writable
from rebalance.report.figures import growth as figure
from rebalance.settings import BenchFlags, as_dict
from rebalance.versions import versions

GROWTH, PLOT = "runs/bench-grow.json", ".png"
MEASURES = {
    "criterion": "loss, forward and backward, from the head's output",
    "step": "training step: model, loss, backward, optimiser",
    "memory": "peak of a training step beyond parameters and images",
    "criterion memory": "peak of the loss, forward and backward, beyond the head's output",
    "element": "element loss, forward and backward, on one tensor of logits",
    "inference": "fused model as predict runs it, images to boxes and scores",
}
# Largest ratio of ours to the host's that we aim for, by measure, host and what of ours it is for (ANY: the rest)
ANY, SAME, DROP = "", "ours, loss=bce", "ours, loss=drop obj_drop=0.75"
AIMS = {
    ("criterion", "YOLOv5", SAME): 0.6,
    ("criterion", "YOLOv5", DROP): 1.0,
    ("criterion", "Ultralytics", DROP): 1.1,
    ("criterion", "torchvision RetinaNet", "ours, loss=focal"): 0.6,
    **{
        ("step", host, ANY): 1.02
        for host in ("YOLOv5", "Ultralytics", "torchvision RetinaNet", "torchvision SSD", "torchvision Faster R-CNN")
    },
    ("step", "torchvision Faster R-CNN", "ours, loss=ohem"): 1.1,  # it has the loss of every proposal before it trains
    **{("memory", host, ours): 1.05 for host in ("YOLOv5", "Ultralytics") for ours in (SAME, DROP)},
    ("step", "without regions", "with regions"): 1.02,
    ("element", "torchvision focal", "ours, brl"): 1.2,
    **{("inference", head, "head=resobj resobj_steps=2"): 1.03 for head in ("head=anchor", "head=stock")},
}


def bench(flags: BenchFlags) -> dict[str, Any]:
    """Time our losses and heads against the hosts' own, and write the figures where `out` is given.

    Args:
        flags: contests, size of the batch, repetitions, device and output file.

    Returns:
        `rows`, one a measure and loss of ours: `model`, `host`, `ours`, `measure`, `unit` (ms or MiB), `hosts` and
        `own` (median and the quartiles `low` and `high`), `ratio` (likewise), `aim` and `met` (None where there is no
        aim), with inference `added_parameters`; `skipped`, lines on what could not be compared; `syncs`, on CUDA, which
        losses wait for the device; `clock` (cpu or wall), `device`, `precision`, `machine`, `versions`, `git` and
        `flags`.

    Raises:
        ConfigError: an unknown contest, a device that is not there, or an image size that the model does not take.
        RunError: the figures could not be written at the end.
    """
    device = _device(flags.device)
    if flags.imgsz % 32:
        raise ConfigError(f"imgsz={flags.imgsz} is not a multiple of 32, the coarsest stride of the models")
    builders = [] if flags.grow and growth.chosen(flags.only) else [*chosen(flags.only)]
    out = flags.out or (GROWTH if flags.grow else "")
    if flags.grow and Path(out).suffix == PLOT:
        raise ConfigError(f"out={out} is for the figures; the plot is written beside, with {PLOT}")
    for place in (Path(out), Path(out).with_suffix(PLOT))[: 1 + flags.grow] if out else ():
        require_writable(place)
    load, skipped = replace(flags, device=str(device)), list[str]()
    rows: list[dict[str, Any]] = []
    syncs: list[str] = []
    if flags.grow:
        rows, skipped = growth.rows(load)
    for name, build in builders:
        try:
            found, waits = _compare(build(load), flags.repeats)
            rows, syncs = rows + found, syncs + waits
        except ImportError as e:
            skipped.append(f"{name}: {e}; pip install --no-deps -r requirements-upstream.txt")
        except torch.cuda.OutOfMemoryError:
            skipped.append(f"{name}: the GPU's memory is too small for batch={flags.batch} imgsz={flags.imgsz}")
        gc.collect()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    result = {
        "rows": rows, "skipped": skipped, "syncs": syncs, "clock": clock.kind(device), "device": str(device),
        "precision": "float32", "flags": as_dict(flags), "machine": machine(torch.get_num_threads(), gpu),
        "versions": versions(), "git": git(),
    }  # fmt: skip
    if out:
        write_json(Path(out), result)
    if flags.grow:
        figure.write(growth.curves(result), Path(out).with_suffix(PLOT), marked=growth.OURS)
    return result


def table(result: dict[str, Any]) -> str:
    """What `bench` found, for a terminal."""
    facts, flags = result["machine"], result["flags"]
    lines = [
        f"{facts['gpu'] or facts['cpu']}, {facts['threads']} threads, torch {result['versions']['torch']}, "
        f"{result['precision']}, batch {flags['batch']}, {flags['imgsz']} px, "
        f"{result.get('clock', 'wall')} time, median of {flags['repeats']} (quartiles of the ratio in brackets)"
    ]
    if flags.get("grow"):
        plot = Path(flags["out"] or GROWTH).with_suffix(PLOT)
        skipped = ["", "skipped:", *result["skipped"]] if result["skipped"] else []
        return "\n".join([*lines, *growth.lines(result), *skipped, "", str(plot)])
    measure = None
    for row in sorted(result["rows"], key=_order):
        if row["measure"] != measure:
            measure = row["measure"]
            lines += ["", f"{measure}: {MEASURES[measure]}, {row['unit']}"]
        aim = "" if row["aim"] is None else f"  aim ≤ {row['aim']:g}: {'met' if row['met'] else 'missed'}"
        spread = "" if row["unit"] == "MiB" else f" [{row['ratio']['low']:.3f}, {row['ratio']['high']:.3f}]"
        added = f"  {row['added_parameters']:+,} parameters" if "added_parameters" in row else ""
        lines.append(
            f"  {row['model']:24}{row['host']:>24} {row['hosts']['median']:8.2f}  {row['ours']:29}"
            f"{row['own']['median']:8.2f}  ratio {row['ratio']['median']:.3f}{spread}{aim}{added}"
        )
    for kind in ("syncs", "skipped"):
        lines += ["", f"{kind}:", *(f"  {line}" for line in result[kind])] if result[kind] else []
    return "\n".join(lines)


def _compare(contest: Contest, repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, and for each loss on CUDA whether it makes the host wait for the device."""
    waits = []
    if contest.images.device.type == "cuda" and contest.kind in ("loss", "element"):
        waits = [f"{contest.name}, {side}: {clock.waits(run)}" for side, run in contests.criteria(contest).items()]
    return _rows(contest, repeats), waits


def _rows(contest: Contest, repeats: int) -> list[dict[str, Any]]:
    host, *ours = contest.sides
    rows: list[dict[str, Any]] = []
    for make, measures in PLANS[contest.kind]:
        runs, device = make(contest), contest.images.device
        for measure in measures:
            if "memory" in measure:
                taken = {name: clock.memory(run, device) for name, run in runs.items()}
            else:
                taken = clock.take_turns(runs, device, repeats)
            for side in ours:
                own, hosts = taken[side.name], taken[host.name]
                if not own:
                    continue  # this torch does not say
                ratio = clock.quartiles([x / y for x, y in zip(own, hosts, strict=True)])
                aim = AIMS.get((measure, host.name, side.name), AIMS.get((measure, host.name, ANY)))
                rows.append({
                    "model": contest.name, "host": host.name, "ours": side.name, "measure": measure,
                    "unit": "MiB" if "memory" in measure else "ms",
                    "hosts": clock.quartiles(hosts), "own": clock.quartiles(own), "ratio": ratio,
                    "aim": aim, "met": None if aim is None else ratio["median"] <= aim,
                    **({"added_parameters": side.parameters - host.parameters} if side.parameters else {}),
                })  # fmt: skip
        del runs  # what they hold goes before the next ones are made
    return sorted(rows, key=_order)


def _order(row: dict[str, Any]) -> int:
    return list(MEASURES).index(row["measure"])


def _steps(contest: Contest) -> dict[str, clock.Run]:
    # A learning rate that is as good as none: the same work each time
    optimizer = torch.optim.SGD(contest.model.parameters(), lr=1e-9, momentum=0.9)

    def run(side: Side) -> None:
        side.loss(side.adapt((side.model or contest.model)(contest.images))).backward()
        optimizer.step()
        optimizer.zero_grad()  # last: a step begins and ends without gradients, so its memory can be counted

    return {side.name: partial(run, side) for side in contest.sides}


def _inference(contest: Contest) -> dict[str, clock.Run]:
    return {side.name: torch.inference_mode()(partial(side.loss, contest.images)) for side in contest.sides}


# By kind of contest, in this order: runs, and what is measured of them. The memory of a loss is that of other leaves,
# without gradients, and comes before the steps, which throw away the gradients of layers that a loss runs.
PLANS: dict[str, list[tuple[Callable[[Contest], dict[str, clock.Run]], tuple[str, ...]]]] = {
    "loss": [
        (contests.criteria, ("criterion",)),
        (contests.criteria, ("criterion memory",)),
        (_steps, ("step", "memory")),
    ],
    "step": [(_steps, ("step",))],
    "element": [(contests.criteria, ("element",))],
    "inference": [(_inference, ("inference",))],
}


def _device(name: str) -> torch.device:
    if name in ("", "cpu"):
        return torch.device("cuda", 0) if not name and torch.cuda.is_available() else torch.device("cpu")
    index = name.removeprefix("cuda:")
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        found = ", ".join(map(str, range(torch.cuda.device_count()))) or "no CUDA device here"
        raise ConfigError(f"device={name} is not one of cpu, {found}")
    return torch.device("cuda", int(index))
