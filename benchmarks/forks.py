"""Forks of a running program: every child runs and compiles, and its answers are checked.

    python benchmarks/forks.py --forks 1000

Meanwhile one thread of the parent runs small and large programs, one updates a variable and, with
--compiling, one compiles new programs.  A child that does not end within a minute is a deadlock.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import time
import traceback
import warnings

import numpy as np
import numpy.testing

import graphc as gx


class Program:
    """Small and large runs of one session, and a variable."""

    def __init__(self) -> None:
        self.graph = gx.Graph()
        with self.graph.as_default():
            self.x = gx.placeholder("f32", (None, 8))
            self.v = gx.Variable(np.zeros(100_000, "f4"))
            self.y = gx.tanh(self.x @ np.ones((8, 8), "f4"))
            self.up = self.v.assign_add(gx.ones(100_000))
            self.session = gx.Session(threads=2)
        self.session.run(self.v.initializer)
        self.function = gx.function([self.x], self.y)
        self.feeds = [np.ones((n, 8), "f4") for n in (3, 30_000)]
        self.count = 0

    def check(self) -> None:
        """Run everything that writes nothing."""
        for feed in self.feeds:
            expected = np.tanh(np.float32(8))
            numpy.testing.assert_allclose(self.session.run(self.y, {self.x: feed}), expected, 1e-6)
            numpy.testing.assert_allclose(self.function(feed), expected, 1e-6)
        seen = self.session.run(self.v)
        assert (seen == seen[0]).all(), "half of an update"

    def update(self) -> None:
        """Write the variable."""
        self.session.run(self.up)

    def compile(self) -> None:
        """Build, compile and run a program that has not been there before."""
        self.count += 1
        with gx.Graph().as_default(), gx.Session() as session:
            a = gx.placeholder("f32", (None, 8))
            z = gx.sum(gx.exp(a * float(self.count)), axis=1)
            numpy.testing.assert_allclose(session.run(z, {a: np.zeros((2, 8))}), 8, 1e-6)

    def child(self, compiling: bool) -> None:
        """What every child does; it never returns."""
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            self.check()
            self.update()
            if compiling:
                self.compile()
            self.check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--compiling", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    program = Program()
    program.check()
    program.compile()
    stop = threading.Event()

    def forever(work: object) -> None:
        while not stop.is_set():
            work()  # type: ignore[operator]
            time.sleep(0.001)

    works = [program.check, program.update] + [program.compile] * arguments.compiling
    threads = [threading.Thread(target=forever, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    worst = 0.0
    failed = 0
    for _ in range(arguments.forks):
        before = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            program.child(arguments.compiling)
        worst = max(worst, time.perf_counter() - before)
        failed += os.waitpid(pid, 0)[1] != 0
    took = time.perf_counter() - began
    stop.set()
    for thread in threads:
        thread.join()
    program.check()
    each = 1e3 * took / arguments.forks
    print(
        f"{arguments.forks} forks: {failed} failed, {each:.1f} ms each with the child's work, ",
        end="",
    )
    print(f"the slowest fork itself {1e3 * worst:.1f} ms")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
