"""What one call costs: nanoseconds per call of small programs, beside NumPy's own.

    python benchmarks/call_overhead.py

The program adds its feeds, ten floats each, after x * 2 + 1 (no feed: a constant); `variable` reads
a variable as well.  The best of several
readings, less what an empty loop costs.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gx

CALLS = 2_000
READINGS = 30


def nanoseconds(call: Callable[[], Any]) -> float:
    """The cost of one call, after enough of them for everything to be in place."""
    for _ in range(100):
        call()
    # The loop and the lambda around the call are no part of it.
    empty = min(timeit.repeat(lambda: None, number=CALLS, repeat=READINGS))
    return (min(timeit.repeat(call, number=CALLS, repeat=READINGS)) - empty) / CALLS * 1e9


def expression(inputs: list[Any]) -> Any:
    """x * 2 + 1, and the other inputs added."""
    result = inputs[0] * 2.0 + 1.0
    for x in inputs[1:]:
        result = result + x
    return result


def row(label: str, feeds: int, variable: bool = False) -> str:
    """One line of the table."""
    graph = gx.Graph()
    with graph.as_default():
        names = [f"x{i}" for i in range(feeds)]
        inputs = [gx.placeholder("f32", (None,), name=n) for n in names]
        operands: list[Any] = [*inputs] or [gx.constant(np.ones(10, "f4"))]
        if variable:
            operands.append(gx.Variable(np.ones(10, "f4")))
        y = expression(operands)
        session = gx.Session(graph)
        session.run(gx.global_variables_initializer())
        function = gx.function(inputs, y, session=session)
    arrays = [np.arange(10, dtype=np.float32) + i for i in range(feeds)]
    fed = dict(zip(inputs, arrays, strict=True))
    called = session.make_callable(y, inputs)
    out = np.empty(10, np.float32)
    plain = [*arrays] or [np.ones(10, np.float32)]
    if variable:
        plain.append(np.ones(10, np.float32))
    costs = [
        nanoseconds(lambda: session.run(y, fed)),
        nanoseconds(lambda: called(*arrays)),
        nanoseconds(lambda: called(*arrays, out=out)),
        nanoseconds(lambda: function(*arrays)),
        nanoseconds(lambda: expression(plain)),
    ]
    session.close()
    return f"{label:12}" + "".join(f"{cost:14.0f}" for cost in costs)


def main() -> None:
    """Print the table."""
    columns = ["run", "make_callable", "out=", "function", "numpy"]
    print(f"{'ns per call':12}" + "".join(f"{name:>14}" for name in columns))
    for feeds in (0, 1, 4, 16):
        print(row(f"{feeds} feeds", feeds))
    print(row("variable", 1, variable=True))


if __name__ == "__main__":
    main()
