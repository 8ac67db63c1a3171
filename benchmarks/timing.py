"""How long a call takes, and how quiet the machine was meanwhile; used by run.py and the peers.

A program that is one of several to be compared measures in turns, see `TURNS`.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


TURNS = "BENCHMARK_TURNS"
"""Environment variable: in how many turns to measure.  Before each the program writes a line with
READY and waits for a line, so that others can take theirs meanwhile."""

READY = "ready"


@dataclass
class _Turn:
    """Calls timed without a pause."""

    times: list[float]
    elapsed: float
    foreign: float  # CPU seconds that other processes used meanwhile
    stolen: float


def _turn(call: Callable[[], object], inner: int, seconds: float, fewest: int) -> _Turn:
    """Time calls for a while, `inner` between two readings of the clock."""
    times: list[float] = []
    (all_before, stolen_before), own_before = _machine_seconds(), _own_seconds()
    started = time.perf_counter()
    while len(times) < fewest or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        for _ in range(inner):
            call()
        times.append((time.perf_counter() - before) / inner)
    elapsed = time.perf_counter() - started
    (all_after, stolen_after), own_after = _machine_seconds(), _own_seconds()
    foreign = (all_after - all_before) - (own_after - own_before)
    return _Turn(times, elapsed, max(0.0, foreign), stolen_after - stolen_before)


def _await_turn(call: Callable[[], object]) -> None:
    """Let others measure; then make the caches one's own again."""
    print(READY, flush=True)
    if not sys.stdin.readline():
        raise SystemExit("whoever gave the turns is gone")
    call()


def measure(call: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Median, minimum and 90th percentile of the time of a call, and the median of each turn.

    A turn takes so many `seconds`; where there is more than one, the median is that of medians.
    """
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    inner = _per_reading(_warm_up(call))
    count = int(os.environ.get(TURNS, "0"))
    turns: list[_Turn] = []
    for _ in range(max(count, 1)):
        if count:
            _await_turn(call)
        turns.append(_turn(call, inner, seconds, -(-5 // max(count, 1))))
    medians = [statistics.median(turn.times) for turn in turns]
    times = sorted(t for turn in turns for t in turn.times)
    elapsed = sum(turn.elapsed for turn in turns)
    found = {
        "median_ms": 1e3 * statistics.median(medians),
        "min_ms": 1e3 * times[0],
        "p90_ms": 1e3 * times[int(0.9 * len(times))],
        "reps": len(times) * inner,
        "first_call_s": first,
        "foreign_cpu": sum(turn.foreign for turn in turns) / elapsed,
        "steal": sum(turn.stolen for turn in turns) / elapsed,
    }
    rounded = {name: round(value, 6) for name, value in found.items()}
    return {**rounded, "turns_ms": [round(1e3 * median, 6) for median in medians]}


def pin_if_single(threads: int) -> None:
    """Keep a one-thread measurement on one processor."""
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def peak_rss_mb() -> float:
    """The most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
