"""How long a run goes on after Ctrl-C: from the signal to KeyboardInterrupt, in milliseconds.

    python benchmarks/interrupt.py --seconds 2 --takes 10

Each row is a program whose run takes that many seconds; the signal comes at a random moment of it.
`state` says whether the variable it was about to update has kept its value.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np

import graphc as gx


def products(x: gx.Tensor) -> gx.Tensor:
    """Twelve products of matrices."""
    for _ in range(12):
        x = gx.tanh(x @ np.eye(256, dtype="f4"))
    return gx.sum(x)


def elements(x: gx.Tensor) -> gx.Tensor:
    """One kernel over all elements, of expensive functions."""
    return gx.sum(gx.tanh(gx.exp(gx.sin(x))) * gx.cos(x))


def rows(x: gx.Tensor) -> gx.Tensor:
    """Softmax of each row."""
    return gx.sum(gx.nn.softmax(x) * x)


class Interrupted:
    """One program on so many threads, with a feed that keeps it busy for so long."""

    def __init__(self, build: Callable[[gx.Tensor], gx.Tensor], threads: int, seconds: float):
        with gx.Graph().as_default():
            self.x = gx.placeholder("f32", (None, 256))
            self.v = gx.Variable(np.zeros(4, "f4"))
            self.up = self.v.assign_add(gx.ones(4) + build(self.x))
            self.session = gx.Session(threads=threads)
        self.session.run(self.v.initializer)
        small = np.zeros((20_000, 256), "f4")
        self.session.run(self.up, {self.x: small})
        began = time.perf_counter()
        self.session.run(self.up, {self.x: small})
        self.seconds = seconds
        count = int(len(small) * seconds / (time.perf_counter() - began))
        self.feed = np.zeros((min(count, 4_000_000), 256), "f4")

    def take(self, after: float) -> float:
        """Milliseconds from the signal to the exception."""
        before = self.session.run(self.v)
        sent = [0.0]

        def send() -> None:
            sent[0] = time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(after, send)
        timer.start()
        caught = 0.0
        try:
            self.session.run(self.up, {self.x: self.feed})
            timer.join()
            time.sleep(1)
        except KeyboardInterrupt:
            caught = time.perf_counter()
        timer.join()
        if (self.session.run(self.v) != before).any():
            raise SystemExit("an interrupted run has changed a variable")
        return 1e3 * (caught - sent[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--takes", type=int, default=10)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    print(f"{'program':12} {'threads':>7} {'median ms':>10} {'worst ms':>9}  state")
    for build in (products, elements, rows):
        for threads in (1, 2):
            case = Interrupted(build, threads, arguments.seconds)
            latest = arguments.seconds / 2  # well before it ends, on a machine whose speed varies
            found = [case.take(random.uniform(0.05, latest)) for _ in range(arguments.takes)]
            median, worst = statistics.median(found), max(found)
            print(f"{build.__name__:12} {threads:7} {median:10.1f} {worst:9.1f}  kept", flush=True)


if __name__ == "__main__":
    main()
