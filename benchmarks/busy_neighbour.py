"""Latency while another process eats a core, against the quiet one-thread latency.

    python benchmarks/busy_neighbour.py                 one neighbour
    python benchmarks/busy_neighbour.py --neighbours 2

Rows are programs; times are milliseconds.  `alone` is one thread without the neighbour, `team` all
threads without it, `busy` all threads with it; the ratios divide by `alone`.  Takes with and
without the neighbour alternate.  Pinned to as many processors as --processors says, so that the
neighbour really takes one.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
from networks import lenet, mlp

import graphc as gx

Run = Callable[[int], object]


def programs() -> dict[str, Run]:
    """By name, what runs a program once on so many threads."""
    made: dict[str, Run] = {}
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (None,))
        y = gx.tanh(x) * x + gx.sqrt(gx.abs(x))
        for name, size in (("20 us of elements", 10_000), ("1 ms of elements", 400_000)):
            feed = {x: np.random.default_rng(0).random(size, "f4")}
            made[name] = _runner(y, feed, gx.Session())
    for network, batch in ((mlp, 128), (lenet, 64)):
        with gx.Graph().as_default():
            made_here = network()
            step = made_here.step()
            session = gx.Session()
            session.run(gx.global_variables_initializer())
            made[f"{network.__name__}, a step"] = _runner(step, made_here.feeds(batch), session)
    return made


def _runner(fetch: object, feed: dict[gx.Tensor, np.ndarray], session: gx.Session) -> Run:
    options: dict[int, gx.RunOptions] = {}

    def run(threads: int) -> object:
        chosen = options.setdefault(threads, gx.RunOptions(threads=threads))
        return session.run(fetch, feed, chosen)

    return run


def _eat(core: set[int]) -> None:
    if core:
        os.sched_setaffinity(0, core)
    while True:
        pass


@contextlib.contextmanager
def neighbours(count: int, cores: set[int]) -> Iterator[None]:
    """So many processes that do nothing but use a processor."""
    context = multiprocessing.get_context("spawn")
    eaters = [context.Process(target=_eat, args=(cores,), daemon=True) for _ in range(count)]
    for eater in eaters:
        eater.start()
    time.sleep(1.0 if count else 0)
    try:
        yield
    finally:
        for eater in eaters:
            eater.terminate()
            eater.join()


def take(run: Run, threads: int, seconds: float) -> list[float]:
    """Milliseconds of each run in about so many seconds."""
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        run(threads)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--processors", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--takes", type=int, default=3)
    arguments = parser.parse_args()
    cores: set[int] = set()
    if hasattr(os, "sched_setaffinity"):
        cores = set(sorted(os.sched_getaffinity(0))[: arguments.processors])
        os.sched_setaffinity(0, cores)
    threads = arguments.processors
    found: dict[str, dict[str, list[list[float]]]] = {}
    runs = programs()
    for run in runs.values():
        for n in (1, threads):
            take(run, n, 0.2)
    for _ in range(arguments.takes):
        for name, run in runs.items():
            kinds = found.setdefault(name, {"alone": [], "team": [], "busy": []})
            kinds["alone"].append(take(run, 1, arguments.seconds / 2))
            kinds["team"].append(take(run, threads, arguments.seconds / 2))
        with neighbours(arguments.neighbours, cores):
            for name, run in runs.items():
                found[name]["busy"].append(take(run, threads, arguments.seconds))
    heads = ("alone", "team", "busy", "mean")
    print(f"{'program':20}", *(f"{h:>8}" for h in heads), f"{'ratio':>6} {'mean':>6}")
    for name, kinds in found.items():
        alone, team, busy = (min(map(statistics.median, kinds[k])) for k in kinds)
        mean = min(map(statistics.fmean, kinds["busy"]))
        ratios = f"{busy / alone:6.2f} {mean / alone:6.2f}"
        print(f"{name:20} {alone:8.3f} {team:8.3f} {busy:8.3f} {mean:8.3f} {ratios}")


if __name__ == "__main__":
    main()
