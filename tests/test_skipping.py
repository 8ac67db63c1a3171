"""Iterations outside of their guards: skipped where they add nothing, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from graphc.backends.codegen.loops import emit_loop_kernel
from graphc.dims import Dim, symbol
from graphc.kernel import Access, Accumulator, Expr, LoopKernel, Stage, Store, Term
from graphc.types import float32
from tests.loop_kernel_jit import agree

ROWS, CHANNELS, WINDOW = 9, 21, 3
INF = float("inf")


def windows(
    op: str, fill: float, div: int, rows: int | Dim = ROWS, factor: float | None = None
) -> LoopKernel:
    """y[h, c] of the windows x[(h + 1 - o) / div, c] that there are, o = 0, 1, 2."""
    limit = 5 if div == 2 else rows
    index = Term(((0, 1), (2, -1)), CHANNELS, 1, div, limit)
    x = Expr("load", (), (Access(0, (index, Term(((1, 1),), 1))), fill), float32)
    value = x if factor is None else x * factor
    out = Access(1, (Term(((0, 1),), CHANNELS), Term(((1, 1),), 1)))
    stages = (
        Stage((2,), (Accumulator(op, value, float32),)),
        Stage((), (), (Store(out, Expr("acc", (), 0, float32)),)),
    )
    return LoopKernel((rows, CHANNELS, WINDOW), (0, 1), 1, (float32, float32), stages)


def skips(kernel: LoopKernel) -> bool:
    return "label %in" in str(emit_loop_kernel(kernel, "kernel"))


@pytest.mark.parametrize("div", [1, 2])
@pytest.mark.parametrize("special", [1.0, -0.0, INF, float("nan")])
@pytest.mark.parametrize(("op", "fill"), [("sum", 0.0), ("max", -INF), ("min", INF)])
def test_what_lies_outside_is_skipped(op: str, fill: float, special: float, div: int) -> None:
    kernel = windows(op, fill, div)
    assert skips(kernel)
    values = np.random.default_rng(0).standard_normal((ROWS, CHANNELS)).astype("f4")
    values[::2, ::3] = special
    agree(kernel, [values.reshape(-1), np.zeros(ROWS * CHANNELS, "f4")])


def test_windows_over_unknown_sizes() -> None:
    n = symbol("n")
    kernel = windows("sum", 0.0, 1, n)
    assert skips(kernel)
    for rows in (0, 1, 2, 7):
        values = np.arange(rows * CHANNELS, dtype="f4")
        agree(kernel, [values, np.zeros_like(values)], {n: rows})


@pytest.mark.parametrize(
    ("op", "fill", "factor"),
    [("sum", 1.0, None), ("max", 0.0, None), ("sum", 0.0, INF), ("prod", 0.0, None)],
)
def test_what_adds_something_is_not_skipped(op: str, fill: float, factor: float | None) -> None:
    kernel = windows(op, fill, 1, factor=factor)
    assert not skips(kernel)
    values = -np.ones(ROWS * CHANNELS, "f4")
    got = agree(kernel, [values, np.zeros_like(values)])[1].reshape(ROWS, CHANNELS)
    assert not np.array_equal(got[0], got[4])  # the edge has windows that are not there
