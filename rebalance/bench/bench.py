"""`rebalance bench`: what our losses and heads cost beside the hosts' own.

One process, one model, one batch. The sides of a contest take turns, in an order that reverses each round, so that a
machine that slows down slows all of them down. Ratios are taken within a round, then the median over rounds. With one
thread on a CPU the clock is the processor's time for this process, which other processes do not lengthen; else it is
the wall's.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebalance.errors import ConfigError
from rebalance.experiments.machine import git, machine, versions
from rebalance.experiments.record import write_json
from rebalance.settings import BenchFlags, as_dict

if TYPE_CHECKING:
    import torch

    from rebalance.bench.rivals import Contest, Side

MEASURES = {
    "criterion": "loss, forward and backward, from the head's output",
    "step": "training step: model, loss, backward, optimiser",
    "memory": "peak of a training step beyond parameters and images",
    "criterion memory": "peak of the loss, forward and backward, beyond the head's output",
    "element": "element loss, forward and backward, on one tensor of logits",
    "inference": "fused model as predict runs it, images to boxes and scores",
}
# Largest ratio of ours to the host's that we aim for, by measure, host and what of ours it is for. YOLOv5's loss drops
# nothing, so the aim for the criterion is for ours without dropping; the other losses do more than the host's.
SAME, DROP = "ours, loss=bce", "ours, loss=drop obj_drop=0.75"
AIMS = {
    ("criterion", "YOLOv5", SAME): 0.8,
    ("step", "torchvision RetinaNet", "ours, loss=focal"): 0.95,
    **{("step", "Ultralytics", ours): 1.03 for ours in (SAME, DROP)},
    **{("memory", host, ours): 1.05 for host in ("YOLOv5", "Ultralytics") for ours in (SAME, DROP)},
    ("element", "torchvision focal", "ours, brl"): 1.2,
    **{("inference", head, "head=resobj resobj_steps=2"): 1.03 for head in ("head=anchor", "head=stock")},
}
WARM_UP = 3  # rounds before the clock counts


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
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else the profiler tells of memory older than itself
    import torch

    from rebalance.bench import rivals

    device = _device(flags.device)
    if flags.imgsz % 32:
        raise ConfigError(f"imgsz={flags.imgsz} is not a multiple of 32, the coarsest stride of the models")
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    syncs: list[str] = []
    for name, build in rivals.chosen(flags):
        try:
            found, waits = _compare(build(flags.batch, flags.imgsz, device), flags.repeats)
            rows, syncs = rows + found, syncs + waits
        except ImportError as e:
            skipped.append(f"{name}: {e}; pip install --no-deps -r requirements-upstream.txt")
        except torch.cuda.OutOfMemoryError:
            skipped.append(f"{name}: the GPU's memory is too small for batch={flags.batch} imgsz={flags.imgsz}")
        gc.collect()
    result = {
        "rows": rows,
        "skipped": skipped,
        "syncs": syncs,
        "clock": _clock(device),
        "device": str(device),
        "precision": "float32",
        "flags": as_dict(flags),
        "machine": machine(
            torch.get_num_threads(), torch.cuda.get_device_name(device) if device.type == "cuda" else None
        ),
        "versions": versions(),
        "git": git(),
    }
    if flags.out:
        write_json(Path(flags.out), result)
    return result


def table(result: dict[str, Any]) -> str:
    """What `bench` found, for a terminal."""
    facts, flags = result["machine"], result["flags"]
    lines = [
        f"{facts['gpu'] or facts['cpu']}, {facts['threads']} threads, torch {result['versions']['torch']}, "
        f"{result['precision']}, batch {flags['batch']}, {flags['imgsz']} px, "
        f"{result.get('clock', 'wall')} time, median of {flags['repeats']} (quartiles of the ratio in brackets)"
    ]
    measure = None
    for row in sorted(result["rows"], key=lambda r: list(MEASURES).index(r["measure"])):
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
    return _rows(contest, repeats), _syncs(contest)


def _rows(contest: Contest, repeats: int) -> list[dict[str, Any]]:
    host, *ours = contest.sides
    rows = []
    for measure, taken in _figures(contest, repeats).items():
        for side in ours:
            if not taken[side.name]:
                continue  # this torch does not say
            ratio = _quartiles([own / hosts for own, hosts in zip(taken[side.name], taken[host.name], strict=True)])
            aim = AIMS.get((measure, host.name, side.name))
            row: dict[str, Any] = {
                "model": contest.name,
                "host": host.name,
                "ours": side.name,
                "measure": measure,
                "unit": "MiB" if "memory" in measure else "ms",
                "hosts": _quartiles(taken[host.name]),
                "own": _quartiles(taken[side.name]),
                "ratio": ratio,
                "aim": aim,
                "met": None if aim is None else ratio["median"] <= aim,
            }
            if side.parameters is not None and host.parameters is not None:
                row["added_parameters"] = side.parameters - host.parameters
            rows.append(row)
    return rows


def _figures(contest: Contest, repeats: int) -> dict[str, dict[str, list[float]]]:
    """By measure and side."""
    device = contest.images.device
    if contest.kind != "loss":
        runs = {"element": _criteria, "inference": _inference, "step": _steps}[contest.kind](contest)
        return {contest.kind: _take_turns(runs, device, repeats)}
    criterion = _take_turns(_criteria(contest), device, repeats)
    # other leaves, without gradients; before the steps, which throw away those of layers that a loss runs
    memory = {name: _memory(run, device) for name, run in _criteria(contest).items()}
    steps = _steps(contest)
    return {
        "criterion": criterion, "step": _take_turns(steps, device, repeats),
        "memory": {name: _memory(run, device) for name, run in steps.items()}, "criterion memory": memory,
    }  # fmt: skip


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def _criteria(contest: Contest) -> dict[str, Callable[[], None]]:
    output = _leaves(contest.model(contest.images))

    def one(side: Side) -> Callable[[], None]:
        preds = _leaves(side.adapt(output))

        def run() -> None:
            side.loss(preds).backward()

        return run

    return {side.name: one(side) for side in contest.sides}


def _steps(contest: Contest) -> dict[str, Callable[[], None]]:
    import torch

    optimizer = torch.optim.SGD(
        contest.model.parameters(), lr=1e-9, momentum=0.9
    )  # as good as still: same work each time

    def one(side: Side) -> Callable[[], None]:
        def run() -> None:
            side.loss(side.adapt((side.model or contest.model)(contest.images))).backward()
            optimizer.step()
            optimizer.zero_grad()  # last: a step begins and ends without gradients, so its memory can be counted

        return run

    return {side.name: one(side) for side in contest.sides}


def _inference(contest: Contest) -> dict[str, Callable[[], None]]:
    import torch

    def one(side: Side) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                side.loss(contest.images)

        return run

    return {side.name: one(side) for side in contest.sides}


def _leaves(output: Any) -> Any:
    """A copy of what a head put out, from which gradients are asked where it has any."""
    import torch

    if isinstance(output, dict):
        return {k: _leaves(v) for k, v in output.items()}
    if isinstance(output, (list, tuple)):
        return [_leaves(v) for v in output]
    return output.detach().clone().requires_grad_(output.requires_grad) if isinstance(output, torch.Tensor) else output


def _take_turns(runs: dict[str, Callable[[], None]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run, by name; the order reverses each round."""
    names, taken = list(runs), {name: [] for name in runs}  # type: tuple[list[str], dict[str, list[float]]]
    with _no_collection():
        for turn in range(-WARM_UP, repeats):
            for name in names if turn % 2 else reversed(names):
                milliseconds = _time(runs[name], device)
                if turn >= 0:
                    taken[name].append(milliseconds)
    return taken


def _clock(device: torch.device) -> str:
    """`cpu`, the processor's time for this process, where one thread does the work; else `wall`."""
    import torch

    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def _time(run: Callable[[], None], device: torch.device) -> float:
    import torch

    if device.type != "cuda":
        clock = time.process_time if _clock(device) == "cpu" else time.perf_counter
        start = clock()
        run()
        return (clock() - start) * 1e3
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


@contextmanager
def _no_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _memory(run: Callable[[], None], device: torch.device) -> list[float]:
    """MiB that a run holds at its peak beyond what was there before; empty where this torch does not say.

    On CUDA the allocator's own peak; on the CPU the profiler's account of every allocation. Neither is the memory of
    the process, and neither depends on what ran before.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return [(torch.cuda.max_memory_allocated() - before) / 2**20]
    from torch.profiler import ProfilerActivity, profile

    os.environ["KINETO_LOG_LEVEL"] = "99"  # it announces each start and stop; Ultralytics sets a level that lets it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    results = getattr(getattr(profiler, "profiler", None), "kineto_results", None)
    if results is None:
        return []
    sizes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(sizes, key=lambda entry: entry[0]):
        held += size
        peak = max(peak, held)
    return [peak / 2**20]


def _syncs(contest: Contest) -> list[str]:
    """For each loss on CUDA, whether it makes the host wait for the device; empty on the CPU."""
    import torch

    if contest.images.device.type != "cuda" or contest.kind not in ("loss", "element"):
        return []
    lines = []
    for side in contest.sides:
        run = _criteria(contest._replace(sides=[side]))[side.name]
        run()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
            found = "none"
        except RuntimeError as e:
            found = str(e).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        lines.append(f"{contest.name}, {side.name}: {found}")
    return lines


def _device(name: str) -> torch.device:
    import torch

    if name in ("", "cpu"):
        return torch.device("cuda", 0) if not name and torch.cuda.is_available() else torch.device("cpu")
    index = name.removeprefix("cuda:")
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        found = ", ".join(map(str, range(torch.cuda.device_count()))) or "no CUDA device here"
        raise ConfigError(f"device={name} is not one of cpu, {found}")
    return torch.device("cuda", int(index))
