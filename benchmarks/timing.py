"""How long a call takes, and how quiet the machine was meanwhile; used by run.py and the peers."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def _machine_seconds() -> tuple[float, float]:
    """(CPU seconds used by everybody, CPU seconds stolen by the host) since boot."""
    try:
        row = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, row[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq + steal) / tick, steal / tick


def _own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _warm_up(call: Callable[[], object], seconds: float = 1.0) -> float:
    """Call for a while; returns the seconds of one call."""
    started = time.perf_counter()
    count = 0
    while count < 3 or (time.perf_counter() - started < seconds and count < 1000):
        call()
        count += 1
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _per_reading(estimate: float) -> int:
    """How many calls to make between two readings of the clock."""
    if estimate < 20e-6:
        return 100
    return 10 if estimate < 200e-6 else 1


def measure(call: Callable[[], object], seconds: float) -> dict[str, float]:
    """Median, minimum and 90th percentile of the time of a call."""
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    inner = _per_reading(_warm_up(call))
    times: list[float] = []
    (all_before, stolen_before), own_before = _machine_seconds(), _own_seconds()
    started = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        for _ in range(inner):
            call()
        times.append((time.perf_counter() - before) / inner)
    elapsed = time.perf_counter() - started
    (all_after, stolen_after), own_after = _machine_seconds(), _own_seconds()
    times.sort()
    foreign = (all_after - all_before) - (own_after - own_before)
    return {
        "median_ms": 1e3 * statistics.median(times),
        "min_ms": 1e3 * times[0],
        "p90_ms": 1e3 * times[int(0.9 * len(times))],
        "reps": len(times) * inner,
        "first_call_s": first,
        "foreign_cpu": max(0.0, foreign / elapsed),
        "steal": (stolen_after - stolen_before) / elapsed,
    }


def pin_if_single(threads: int) -> None:
    """Keep a one-thread measurement on one processor."""
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def peak_rss_mb() -> float:
    """The most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
