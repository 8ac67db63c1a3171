"""What compiling each kernel of a network's training step costs: `kernel_compile_time.py NAME`.

Compiles every distinct kernel alone, some times over, and prints the least processor time of each
stage: lines of LLVM text, milliseconds to emit them, milliseconds of LLVM, bytes of its object.
Then all of them together on 1 to `--threads` threads, by the clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

from networks import NETWORKS

import graphc as gx
from graphc.backends.llvm.jit import default_jit, emit, module_text
from graphc.backends.llvm.object_code import object_code
from graphc.kernel import Contraction

T = TypeVar("T")


def least(call: Callable[[], T], times: int) -> tuple[float, T]:
    """The least processor time of a call in milliseconds, and what it returns."""
    seconds = []
    for _ in range(times):
        started = time.process_time()
        found = call()
        seconds.append(time.process_time() - started)
    return 1e3 * min(seconds), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--times", type=int, default=5, help="how often to compile each kernel")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with gx.Graph(seed=0).as_default():
        network = NETWORKS[options.network]()
        plan = gx.explain([network.loss, network.step()]).plan
    target = default_jit().target
    rows = []
    texts = []
    for kernel in dict.fromkeys(plan.kernels):
        emitting, text = least(lambda k=kernel: module_text([emit(k, "kernel")]), options.times)
        compiling, (data,) = least(lambda t=text: object_code([t], target), options.times)
        kind = "contraction" if isinstance(kernel, Contraction) else "loops"
        rows.append((kind, 1, text.count("\n"), emitting, compiling, len(data)))
        texts.append(text)
    print(f"{'':16} {'kernels':>7} {'lines':>6} {'emit ms':>8} {'LLVM ms':>8} {'bytes':>8}")
    for row in sorted(rows, key=lambda row: -row[4])[:10]:
        print(f"{row[0]:16} {row[1]:7} {row[2]:6} {row[3]:8.1f} {row[4]:8.1f} {row[5]:8}")
    for kind in ("contraction", "loops"):
        columns = zip(*(row[1:] for row in rows if row[0] == kind), strict=True)
        count, lines, emitting, compiling, size = (sum(column) for column in columns)
        name = f"all {kind}"
        print(f"{name:16} {count:7} {lines:6} {emitting:8.1f} {compiling:8.1f} {size:8}")
    for threads in range(1, options.threads + 1):
        seconds = []
        for _ in range(options.times):
            started = time.perf_counter()
            object_code(texts, target, threads)
            seconds.append(time.perf_counter() - started)
        print(f"all on {threads} threads: {min(seconds):.3f} s")


if __name__ == "__main__":
    main()
