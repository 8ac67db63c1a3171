"""Whether memory grows in long runs: `python benchmarks/memory_growth.py [--runs N]`.

Resident memory over runs with random shapes, over sessions made and closed, and over functions made
and dropped.  The slope is of a line through the second half of the samples, per 1,000 rounds.
Prints one JSON line per workload.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from collections.abc import Callable

import numpy as np
from networks import NETWORKS

import graphc as gx

SAMPLES = 40


def resident_bytes() -> int:
    """Of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(name: str, rounds: int, step: Callable[[int], None]) -> None:
    """Do `step` so often and print how resident memory went."""
    every = max(1, rounds // SAMPLES)
    sampled = []
    for i in range(rounds):
        step(i)
        if i % every == every - 1:
            gc.collect()
            sampled.append(resident_bytes())
    half = sampled[len(sampled) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)) * every, half, 1)[0]) if len(half) > 1 else 0.0
    row = {
        "workload": name,
        "rounds": rounds,
        "resident_MB": [round(sampled[k] / 1e6, 1) for k in (0, len(sampled) // 2, -1)],
        "largest_MB": round(max(sampled) / 1e6, 1),
        "kB_per_1000_rounds": round(1000 * slope / 1e3, 1),
    }
    print(json.dumps(row), flush=True)


def random_shapes(rounds: int) -> None:
    """Training and inference of LeNet, any batch from 1 to 256."""
    rng = np.random.default_rng(0)
    with gx.Graph(seed=0).as_default(), gx.Session() as session:
        network = NETWORKS["lenet"]()
        step = network.step()
        session.run(gx.global_variables_initializer())
        feeds = network.feeds(256)

        def run(i: int) -> None:
            n = int(rng.integers(1, 257)) if i % 10 else int(rng.integers(1, 17))
            batch = {t: a[:n] for t, a in feeds.items()}
            session.run(network.output if i % 3 else [network.loss, step], batch)

        watch("random shapes", rounds, run)


def small_random_shapes(rounds: int) -> None:
    """A function of two arrays of random shapes."""
    rng = np.random.default_rng(0)
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (None, None))
        w = gx.placeholder("f32", (None, None))
        product = gx.function([x, w], gx.tanh(x @ w) + 1)

        def run(i: int) -> None:
            m, k, n = rng.integers(1, 200, 3)
            product(np.ones((m, k), np.float32), np.ones((k, n), np.float32))

        watch("small random shapes", rounds, run)


def sessions(rounds: int) -> None:
    """A session made, used and closed."""
    with gx.Graph(seed=0).as_default():
        network = NETWORKS["mlp"]()
        step = network.step()
        initialize = gx.global_variables_initializer()
        feeds = network.feeds(32)

        def run(i: int) -> None:
            with gx.Session() as session:
                session.run(initialize)
                session.run([network.loss, step], feeds)

        watch("sessions closed", rounds, run)


def functions(rounds: int) -> None:
    """A function of an expression of its own, used and dropped with its graph."""

    def run(i: int) -> None:
        with gx.Graph().as_default():
            x = gx.placeholder("f32", (None,))
            gx.function([x], gx.sin(x) * float(i % 50) + i % 7)(np.ones(10, np.float32))

    watch("functions dropped", rounds, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--functions", type=int, default=1_000)
    options = parser.parse_args()
    small_random_shapes(options.runs)
    random_shapes(options.runs)
    sessions(options.sessions)
    functions(options.functions)


if __name__ == "__main__":
    main()
