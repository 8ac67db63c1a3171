"""What a stage of a row kernel stores for later ones: once computed, and the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import nn
from graphc.compiler import plan_cpu
from graphc.kernel import HEAVY, LoopKernel, expressions_of
from graphc.passes import lower_loop
from graphc.passes.in_place import may_share
from graphc.passes.keep_values import FAR, keep_values
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import bind_ranks, specialise, substitution

Array = np.ndarray[Any, Any]


def softmax_kernel(columns: int | None) -> LoopKernel:
    x = gx.placeholder("f32", (None, columns))
    program = bind_ranks(resolve_state((nn.softmax(x),), [], (x,)), [2])
    plan, _ = plan_cpu(specialise(program, substitution((), ())))
    (kernel,) = plan.kernels
    assert isinstance(kernel, LoopKernel)
    return kernel


def costly(kernel: LoopKernel, stage: int) -> int:
    """How many costly operations a stage computes."""
    one = LoopKernel(kernel.axes, kernel.par, kernel.vec, kernel.bufs, (kernel.stages[stage],))
    return sum(e.op in HEAVY for e in expressions_of(one))


@pytest.mark.parametrize("columns", [None, 1000])
def test_an_exponential_is_taken_once(columns: int | None) -> None:
    kernel = softmax_kernel(columns)
    assert [costly(kernel, i) for i in range(3)] == [0, 1, 0]
    (first,), (last,) = kernel.stages[1].stores, kernel.stages[2].stores
    assert first.access == last.access
    assert may_share(kernel, 1 - last.access.buf, last.access.buf)
    assert keep_values(kernel) == kernel  # once is enough


def test_rows_that_leave_the_caches_are_computed_again() -> None:
    kernel = softmax_kernel(2 * FAR)
    assert [costly(kernel, i) for i in range(3)] == [0, 1, 1]


@pytest.mark.parametrize("shape", [(3, 1), (5, 17), (2, 64), (3, 1000), (0, 4)], ids=str)
def test_the_bits_are_the_same(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = (4 * rng.standard_normal(shape)).astype("f4")
    labels = rng.integers(0, shape[1], shape[0])

    def run() -> list[Array]:
        with gx.Graph().as_default():
            x = gx.placeholder("f32", (None, None))
            chosen = gx.placeholder("i64", (None,))
            loss = nn.sparse_softmax_cross_entropy_with_logits(chosen, x)
            twice = nn.log_softmax(nn.softmax(x * 2) + 1)
            with gx.Session() as session:
                fetches = [loss, *gx.gradients(loss, [x]), nn.softmax(x), twice]
                found: list[Array] = session.run(fetches, {x: values, chosen: labels})
        return found

    kept = run()
    monkeypatch.setenv("GRAPHC_CACHE", "off")
    monkeypatch.setattr(lower_loop, "keep_values", lambda kernel: kernel)
    for a, b in zip(kept, run(), strict=True):
        assert a.tobytes() == b.tobytes()
