"""Loop kernels for a GPU beyond what they share with the CPU's (see test_loop_kernels): rows that
have a whole CTA, runs of points, and how texts are refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gpu_loop_kernels import emulate

from graphc.backends.gpu.kernels import emit_gpu_kernel
from graphc.backends.gpu.ptx import to_ptx
from graphc.dims import symbol
from graphc.errors import CompileError
from graphc.kernel import Access, Accumulator, Expr, LoopKernel, Stage, Store, Term
from graphc.types import DType, bool_, float32, float64, int64

ROWS = 3


def _load(stride: int, dtype: DType) -> Expr:
    access = Access(0, (Term(((0, 1),), stride), Term(((1, 1),), 1)))
    return Expr("load", (), (access, 0), dtype)


def _reduction(op: str, length: int, dtype: DType) -> LoopKernel:
    result = int64 if op == "argmax" else dtype
    store = Store(Access(1, (Term(((0, 1),), 1),)), Expr("acc", (), 0, result))
    accumulator = Accumulator(op, _load(length, dtype), result)
    stages = (Stage((1,), (accumulator,)), Stage((), (), (store,)))
    return LoopKernel((ROWS, length), (0,), 1, (dtype, result), stages)


@pytest.mark.parametrize("length", [2048, 3001, 20001])
@pytest.mark.parametrize(
    ("op", "dtype"),
    [("sum", float64), ("max", float32), ("argmax", float32), ("any", bool_), ("sum", int64)],
    ids=str,
)
def test_long_rows_have_a_cta(op: str, dtype: DType, length: int) -> None:
    rng = np.random.default_rng(length)
    numbers = rng.integers(-9, 9, (ROWS, length))
    numbers[1] = 0  # nothing to be found there
    data = numbers.astype(dtype.numpy)
    kernel = _reduction(op, length, dtype)
    assert emit_gpu_kernel(kernel, "kernel").threads == (1024 if length > 16384 else 256)
    expected = getattr(np, op)(data, axis=1)
    for reverse in (False, True):
        blank = np.zeros(ROWS, kernel.bufs[1].numpy)
        (_, got), _ = emulate(kernel, [data.reshape(-1), blank], {}, reverse)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("rows", "columns"), [(64, 1), (77, 31), (1000, 33), (0, 5), (1, 64)])
@pytest.mark.parametrize("known", [True, False])
def test_points_with_long_sums_are_shared(rows: int, columns: int, known: bool) -> None:
    r, c = symbol("r"), symbol("c")
    down, across = (rows, columns) if known else (r, c)
    access = Access(0, (Term(((1, 1),), across), Term(((0, 1),), 1)))
    x = Expr("load", (), (access, 0), float64)
    mean = Expr("acc", (), 0, float64) / Expr("const", (), 2.0, float64)
    stages = (
        Stage((1,), (Accumulator("sum", x, float64),)),
        Stage((1,), (Accumulator("max", x - mean, float64),)),
        Stage((), (), (Store(Access(1, (Term(((0, 1),), 1),)), Expr("acc", (), 1, float64)),)),
    )
    kernel = LoopKernel((across, down), (0,), 0, (float64, float64), stages)
    shared = not known or rows >= 64
    assert emit_gpu_kernel(kernel, "kernel").threads == (512 if shared else 256)
    data = np.random.default_rng(rows).integers(-9, 9, (rows, columns)).astype(np.float64)
    expected = (data - data.sum(axis=0) / 2).max(axis=0, initial=-np.inf)
    for reverse in (False, True):
        buffers = [data.reshape(-1), np.zeros(columns)]
        (_, got), _ = emulate(kernel, buffers, {r: rows, c: columns}, reverse)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("length", [100, 3001])
@pytest.mark.parametrize("vec", [0, 1])
def test_what_is_updated_in_place_is_read_by_its_writer_only(vec: int, length: int) -> None:
    strides = (length, 1) if vec else (1, ROWS)
    access = Access(0, tuple(Term(((axis, 1),), step) for axis, step in enumerate(strides)))
    place = Access(1, (Term(((0, 1),), 1),))
    total = Accumulator("sum", Expr("load", (), (access, 0), float64), float64)
    value = Expr("load", (), (place, 0), float64) - Expr("acc", (), 0, float64)
    stages = (Stage((1,), (total,)), Stage((), (), (Store(place, value),)))
    kernel = LoopKernel((ROWS, length), (0,), vec, (float64, float64), stages)
    data = np.random.default_rng(0).integers(-9, 9, (ROWS, length)).astype(np.float64)
    before = np.arange(ROWS, dtype=np.float64)
    for reverse in (False, True):
        buffers = [(data if vec else data.T).reshape(-1), before]
        (_, got), _ = emulate(kernel, buffers, {}, reverse)
        np.testing.assert_array_equal(got, before - data.sum(axis=1))


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 1023, 1024, 1027])
def test_runs_of_points_are_read_at_once(n: int) -> None:
    size = symbol("n")
    place = (Term(((0, 1),), 1),)
    value = Expr("load", (), (Access(0, place), 0), float32) * 2.0 + 1.0
    stage = Stage((), (), (Store(Access(1, place), value),))
    kernel = LoopKernel((size,), (0,), 0, (float32, float32), (stage,))
    x = np.arange(n, dtype=np.float32)
    (_, got), _ = emulate(kernel, [x, np.zeros(n, np.float32)], {size: n})
    np.testing.assert_array_equal(got, 2 * x + 1)
    ptx = to_ptx(emit_gpu_kernel(kernel, "kernel").text, (7, 5))
    assert re.search(r"ld\.global\.v4", ptx) and re.search(r"st\.global\.v4", ptx)


def test_an_intrinsic_no_gpu_has_is_refused_before_llvm_sees_it() -> None:
    text = """declare float @llvm.sin.f32(float)
define ptx_kernel void @kernel(ptr %a0) {
  %x = load float, ptr %a0, align 4
  %y = call float @llvm.sin.f32(float %x)
  store float %y, ptr %a0, align 4
  ret void
}
"""
    with pytest.raises(CompileError, match=r"llvm\.sin\.f32"):
        to_ptx(text, (7, 5))


def test_text_that_is_not_llvm_is_an_error() -> None:
    with pytest.raises(CompileError, match="not valid LLVM"):
        to_ptx("define ptx_kernel void @kernel( {", (7, 5))
