"""Time, memory and waiting of runs that are compared.

The sides of a contest take turns, in an order that reverses each round, so that a machine that slows down slows all of
them down. With one thread on a CPU the clock is the processor's time for this process, which other processes do not
lengthen; else it is the wall's.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP = 3  # rounds before the clock counts

Run = Callable[[], object]


def kind(device: torch.device) -> str:
    """`cpu`, the processor's time for this process, where one thread does the work; else `wall`."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def take_turns(runs: Mapping[str, Run], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run, by name."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(WARM_UP + repeats):
            for name in reversed(list(runs)) if turn % 2 else runs:
                taken[name].append(_time(runs[name], device))
    finally:
        if collects:
            gc.enable()
    return {name: times[WARM_UP:] for name, times in taken.items()}


def _time(run: Run, device: torch.device) -> float:
    if device.type != "cuda":
        clock = time.process_time if kind(device) == "cpu" else time.perf_counter
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


def memory(run: Run, device: torch.device) -> list[float]:
    """MiB that a run holds at its peak beyond what was there before; empty where this torch does not say.

    On CUDA the allocator's own peak; on the CPU the profiler's account of every allocation. Neither is the memory of
    the process, and neither depends on what ran before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return [(torch.cuda.max_memory_allocated() - before) / 2**20]
    os.environ["KINETO_LOG_LEVEL"] = "99"  # it announces each start and stop; Ultralytics sets a level that lets it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    results = getattr(getattr(profiler, "profiler", None), "kineto_results", None)
    if results is None:
        return []
    sizes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    return [max(accumulate((size for _, size in sizes), initial=0)) / 2**20]


def waits(run: Run) -> str:
    """Why a run on CUDA makes the host wait for the device, in a line; `none` where it does not."""
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as e:
        return str(e).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, and the quartiles `low` and `high`."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}
