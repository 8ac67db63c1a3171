"""A matrix times a vector, and a vector times a matrix, beside NumPy's (OpenBLAS).

    python benchmarks/matrix_vector.py                 one thread
    python benchmarks/matrix_vector.py --threads 2

The two take turns in one process, with pauses in which idle threads fall asleep.  A row is one
product: microseconds of each, the median of the medians of turns; `ratio` is NumPy's time over
graphc's, the median over turns, and `least` that of the shortest calls.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

PAUSE = 0.05
"""Seconds after which OpenBLAS's threads sleep."""

SIZES = (256, 512, 1024, 2048, 4096)


def _turn(call: Callable[[], object], seconds: float) -> list[float]:
    """The seconds of each call in a turn."""
    time.sleep(PAUSE)
    for _ in range(3):
        call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def _compare(calls: dict[str, Callable[[], object]], options: argparse.Namespace) -> str:
    turns: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(options.turns):
        for name, call in calls.items():
            turns[name].append(_turn(call, options.secs))
    medians = {name: [statistics.median(t) for t in taken] for name, taken in turns.items()}
    least = {name: min(min(t) for t in taken) for name, taken in turns.items()}
    ratios = [b / a for a, b in zip(medians["graphc"], medians["numpy"], strict=True)]
    ours, theirs = (1e6 * statistics.median(medians[name]) for name in ("graphc", "numpy"))
    text = f"{ours:10.1f} {theirs:10.1f} {statistics.median(ratios):8.2f}"
    return f"{text} {least['numpy'] / least['graphc']:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--secs", type=float, default=0.1, help="how long a turn takes")
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)  # read when NumPy is imported

    import numpy as np
    from timing import pin_if_single

    import graphc as gx

    pin_if_single(options.threads)

    def graphc_call(left: Any, right: Any) -> Callable[[], object]:
        with gx.Graph().as_default():
            a, b = gx.placeholder("f32", left.shape), gx.placeholder("f32", right.shape)
            out = np.empty((left.shape[0], right.shape[1]), "f4")
            call = gx.Session(threads=options.threads).make_callable(a @ b, [a, b])
        return lambda: call(left, right, out=out)

    def numpy_call(left: Any, right: Any) -> Callable[[], object]:
        out = np.empty((left.shape[0], right.shape[1]), "f4")
        return lambda: np.matmul(left, right, out=out)

    print(f"{'':24} {'graphc us':>10} {'NumPy us':>10} {'ratio':>8} {'least':>8}")
    for n in SIZES:
        rng = np.random.default_rng(n)
        matrix = rng.standard_normal((n, n), np.float32)
        column = rng.standard_normal((n, 1), np.float32)
        for name, operands in (("column", (matrix, column)), ("row", (column.T.copy(), matrix))):
            calls = {"graphc": graphc_call(*operands), "numpy": numpy_call(*operands)}
            shape = f"{n} x {n} times column" if name == "column" else f"row times {n} x {n}"
            print(f"{shape:24} {_compare(calls, options)}", flush=True)


if __name__ == "__main__":
    main()
