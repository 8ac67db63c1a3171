"""How the time of every pass grows with the size of the graph.

    python benchmarks/pass_scaling.py [SHAPE] [--limit 1.2] [--layers 250 500 1000]

Builds graphs of one shape (by default a residual network in training; or chain, fan, variables) in
three sizes, times each pass from the user's graph to the plan, and prints the exponent between the
smallest and the largest.  Exits with 1 if one that takes a noticeable time grows faster than
`--limit`.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gx
from graphc import train
from graphc.compiler import blocks_of
from graphc.node import Tensor
from graphc.passes.fuse import fuse
from graphc.passes.lower import lower
from graphc.passes.pipeline import GRAPH_PASSES
from graphc.passes.plan_memory import plan_memory
from graphc.passes.resolve_state import resolve_state
from graphc.passes.schedule import schedule
from graphc.passes.specialise import specialise

NOTICEABLE = 0.2
"""Seconds at the largest size below which an exponent is noise."""

REPEATS = 3
"""Runs of each size; the fastest counts."""

WIDTH = 8


Roots = tuple[list[Tensor], list[Any], list[Any]]
"""Placeholders, fetches and operations to run."""


def residual(layers: int) -> Roots:
    """One step of training of a residual network."""
    x = gx.placeholder("f32", ("batch", WIDTH), name="x")
    weights = []
    h = x
    for _ in range(layers):
        w = gx.Variable(np.zeros((WIDTH, WIDTH), np.float32))
        scale = gx.Variable(np.ones(WIDTH, np.float32))
        weights += [w, scale]
        centred = h - gx.mean(h, axis=0)
        normal = centred / gx.sqrt(gx.mean(gx.square(centred), axis=0) + 1e-5)
        h = h + gx.maximum(gx.matmul(normal * scale, w), 0)
    gradients = gx.gradients(gx.mean(h * h), weights)
    return [x], [], [w.assign_sub(g * 0.1).op for w, g in zip(weights, gradients, strict=True)]


def chain(layers: int) -> Roots:
    """The second derivative of a chain of elementwise operators."""
    x = h = gx.placeholder("f32", ("batch", WIDTH), name="x")
    for _ in range(layers):
        h = gx.tanh(h)
    first = gx.gradients(gx.sum(h), [x])
    return [x], gx.gradients(gx.sum(first[0]), [x]), []


def fan(layers: int) -> Roots:
    """Many tensors from one and one from many, forward and backward."""
    x = gx.placeholder("f32", ("batch", WIDTH), name="x")
    wide = gx.concat([gx.exp(x * float(i)) for i in range(layers)], 1)
    total = gx.add_n(gx.split(wide, layers, 1))
    return [x], gx.gradients(gx.sum(gx.square(total)), [x]), []


def variables(layers: int) -> Roots:
    """A step of Adam on many variables, ordered behind as many updates of others."""
    made = [gx.Variable(np.ones(WIDTH, np.float32)) for _ in range(layers)]
    counts = [gx.Variable(np.zeros(1, np.float32), trainable=False) for _ in range(layers)]
    loss = gx.add_n([gx.sum(gx.square(v)) for v in made])
    with gx.control_dependencies([c.assign_add([1.0]) for c in counts]):
        step = train.Adam(0.1).minimize(loss)
        seen = gx.add_n([c.read_value() for c in counts])
    return [], [loss, seen], [step]


SHAPES: dict[str, Callable[[int], Roots]] = {
    "residual": residual,
    "chain": chain,
    "fan": fan,
    "variables": variables,
}


def times(shape: Callable[[int], Roots], layers: int) -> dict[str, float]:
    """Seconds of each stage; '' is the number of nodes of the specialised program."""
    found: dict[str, float] = {}

    def timed(name: str, run: Callable[..., Any], *args: Any) -> Any:
        gc.collect()
        gc.disable()  # as sessions do while they compile
        started = time.process_time()
        result = run(*args)
        found[name] = time.process_time() - started
        gc.enable()
        return result

    gx.reset_default_graph()
    inputs, fetches, targets = timed("build", shape, layers)
    program = timed("resolve_state", resolve_state, fetches, targets, inputs)
    program = timed("specialise", specialise, program, {})
    found[""] = len(program.order())
    for name, graph_pass in GRAPH_PASSES:
        program = timed(name, graph_pass, program)
    fusion = timed("fuse", fuse, program)
    steps = timed("lower", lower, fusion)
    steps = timed("schedule", schedule, fusion, steps)
    timed("plan_memory", plan_memory, fusion, steps, blocks_of)
    return found


def best(shape: Callable[[int], Roots], layers: int) -> dict[str, float]:
    runs = [times(shape, layers) for _ in range(REPEATS)]
    return {name: min(r[name] for r in runs) for name in runs[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", nargs="?", choices=SHAPES, default="residual")
    parser.add_argument("--limit", type=float, default=1.2)
    parser.add_argument("--layers", type=int, nargs="+", default=[250, 500, 1000])
    options = parser.parse_args()
    rows = [best(SHAPES[options.shape], n) for n in options.layers]
    nodes = [r.pop("") for r in rows]
    print(f"{'pass':<18}" + "".join(f"{int(n):>9,}" for n in nodes) + "   exponent")
    worst = 0.0
    for name in rows[0]:
        seconds = [r[name] for r in rows]
        exponent = math.log(seconds[-1] / seconds[0]) / math.log(nodes[-1] / nodes[0])
        print(f"{name:<18}" + "".join(f"{s:>8.2f}s" for s in seconds) + f"{exponent:>11.2f}")
        if seconds[-1] > NOTICEABLE:
            worst = max(worst, exponent)
    if worst > options.limit:
        print(f"an exponent of {worst:.2f} is above {options.limit}")
    return int(worst > options.limit)


if __name__ == "__main__":
    sys.exit(main())
