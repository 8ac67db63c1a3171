"""What a new batch size costs: compiles, stalls, and speed beside plans made for one size.

    python benchmarks/new_sizes.py [--sizes 1000] [--largest 512] [--threads 1]

An MLP (784-512-512-10) infers and trains on batches of random sizes, each new size called CALLS
times in a row.  A stall is what a call takes above the median for its size; first calls are the
ones that bind the size.  Times are of the calling thread's processor, so what else runs does not
count; with several threads they are wall time.  `exact` is the time at some sizes divided by the
time of a graph whose placeholders have just that size, alternating in one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GRAPHC_CACHE", "off")

import numpy as np
from networks import mlp

import graphc as gx

CALLS = 5
EXACT = (1, 32, 100, 128, 333, 512)


class Case:
    """Inference or training, on any batch size or on one."""

    def __init__(self, training: bool, threads: int, batch: int | None = None) -> None:
        self.graph = gx.Graph(seed=0)
        with self.graph.as_default():
            network = mlp(batch or "batch")
            fetch = network.step() if training else network.output
            self.session = gx.Session(self.graph, threads=threads)
            self.session.run(gx.global_variables_initializer())
        self.network = network
        inputs = [network.x, network.labels] if training else [network.x]
        self._call = self.session.make_callable(fetch, inputs)
        self._training = training

    def feeds(self, batch: int) -> list[Any]:
        """A batch of noise."""
        fed = list(self.network.feeds(batch).values())
        return fed if self._training else fed[:1]

    def call(self, fed: list[Any]) -> None:
        self._call(*fed)


def seconds(clock: Callable[[], float], case: Case, fed: list[Any]) -> float:
    """One call, by this clock."""
    started = clock()
    case.call(fed)
    return clock() - started


def stalls(case: Case, sizes: list[int], clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds above the median for the size, of every call and of first calls."""
    case.call(case.feeds(sizes[0]))
    before = gx.stats()
    above: list[float] = []
    first: list[float] = []
    seen: set[int] = set()
    for n in sizes:
        fed = case.feeds(n)
        times = [seconds(clock, case, fed) for _ in range(CALLS)]
        middle = statistics.median(times)
        above += [t - middle for t in times]
        if n not in seen:
            first.append(times[0] - middle)
        seen.add(n)
    after = gx.stats()
    return {
        "sizes": len(seen),
        "compiled": after.plans - before.plans + after.plans_loaded - before.plans_loaded,
        "kernels": after.kernels - before.kernels,
        "first_median_us": 1e6 * statistics.median(first),
        "first_worst_us": 1e6 * max(first),
        "worst_us": 1e6 * max(above),
        "over_1ms": sum(t > 1e-3 for t in above),
    }


def exact(training: bool, threads: int, clock: Callable[[], float]) -> list[tuple[int, float]]:
    """Per size, time on any size divided by time on a graph of that size."""
    ratios = []
    general = Case(training, threads)
    for n in EXACT:
        special = Case(training, threads, n)
        fed = general.feeds(n)
        times: list[tuple[float, float]] = []
        spent = 0.0
        while len(times) < 15 or (spent < 1.0 and len(times) < 300):
            pair = seconds(clock, general, fed), seconds(clock, special, fed)
            spent += sum(pair)
            times.append(pair)
        times = times[5:]
        ratios.append((n, min(a for a, _ in times) / min(b for _, b in times)))
        special.session.close()
    return ratios


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, default=1000)
    parser.add_argument("--largest", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    sizes = np.random.default_rng(0).integers(1, options.largest + 1, options.sizes).tolist()
    for training in (False, True):
        print("training" if training else "inference")
        found = stalls(Case(training, options.threads), sizes, clock)
        print("  " + "  ".join(f"{k} {v:.0f}" for k, v in found.items()))
        ratios = exact(training, options.threads, clock)
        print("  exact " + "  ".join(f"{n}: {ratio:.3f}" for n, ratio in ratios))


if __name__ == "__main__":
    main()
