"""Memory over long loops: one that builds nothing, and ones that build an expression each time.

    python benchmarks/long_loops.py [--runs 1000000] [--same 100000] [--new 100000]

`runs` repeats one call.  `same` writes the same expression in the loop, so each is the node made
before.  `new` writes another one each time (another number in it): every run is compiled, what is
kept is bounded, and a warning names the line.  `assign` gives a variable a new array by a new
operation.  Prints resident memory at the quarters and bytes per iteration over the second half.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GRAPHC_CACHE", "off")

import numpy as np

import graphc as gx

X = np.ones(10, "f4")


def resident() -> int:
    """Bytes of memory this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def loop(name: str, times: int, once: Callable[[int], Any]) -> None:
    """Run `once` so often and print a line about it."""
    if not times:
        return
    before = gx.stats()
    marks = []
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for quarter in range(4):
            for i in range(times * quarter // 4, times * (quarter + 1) // 4):
                once(i)
            gc.collect()
            marks.append(resident())
    each = (time.perf_counter() - started) / times
    after = gx.stats()
    slope = (marks[3] - marks[1]) / max(1, times // 2)
    shown = " ".join(f"{m / 1e6:.1f}" for m in marks)
    nodes = len(gx.get_default_graph().nodes)
    print(
        f"{name:7} {times:8} times  {each * 1e6:9.1f} us each  MB {shown}  {slope:8.1f} B each  "
        f"programs {after.programs - before.programs}  kernels {after.kernels - before.kernels}  "
        f"nodes {nodes}  warnings {len(caught)}"
    )
    for w in caught:
        print(f"        {w.category.__name__}: {w.message}")


def main() -> None:
    """Print a line per loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--same", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=100_000)
    parser.add_argument("--assign", type=int, default=0)
    options = parser.parse_args()
    x = gx.placeholder("f32", (None,), name="x")
    v = gx.Variable(X, name="v")
    session = gx.Session()
    session.run(gx.global_variables_initializer())
    y = gx.sum(gx.tanh(x) + 1.0)
    fed = {x: X}
    loop("runs", options.runs, lambda i: session.run(y, fed))
    loop("same", options.same, lambda i: session.run(gx.sum(gx.tanh(x) + 1.0), fed))
    loop("new", options.new, lambda i: session.run(gx.sum(x * float(i)), fed))
    loop("assign", options.assign, lambda i: session.run(v.assign(X * i)))


if __name__ == "__main__":
    main()
