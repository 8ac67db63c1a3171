"""The forms lowering and tiling choose for speed give the values of the plain ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.backends.codegen.contract_tiling import tile
from graphc.backends.codegen.targets import AVX2, AVX512
from graphc.kernel import Access, Contraction, Expr, LoopKernel, Stage, Store, Term
from graphc.ops.conv import conv_input_grad
from graphc.ops.pool import max_pool_primitive, pool_scatter
from graphc.passes.lower_transpose import by_columns
from graphc.types import float32

SIZES = ((40, 300), (300, 40), (17, 1000), (1000, 3), (3, 1000))


def _random(*shape: int) -> Any:
    return np.random.RandomState(sum(shape)).randn(*shape).astype("f4")


def _on(device: str, y: Any, feeds: Any, threads: int = 1) -> Any:
    session = gx.Session(device=device, threads=threads)
    return session.run(y, feeds)


# ---- maps that transpose -----------------------------------------------------------------------


def _copy(rows: int, cols: int) -> LoopKernel:
    source = Access(0, (Term(((0, 1),), 1), Term(((1, 1),), rows)))
    target = Access(1, (Term(((0, 1),), cols), Term(((1, 1),), 1)))
    store = Store(target, Expr("load", (), (source, 0), float32))
    stages = (Stage((), (), (store,)),)
    return LoopKernel((rows, cols), (0, 1), 1, (float32, float32), stages)


@pytest.mark.parametrize(
    ("rows", "cols", "par", "red"),
    [
        (512, 512, (1,), (0,)),  # the source's contiguous axis inside the vector axis
        (512, 3, (0,), (1,)),  # a narrow target: vectors along the source
        (512, 64, (0, 1), ()),  # all lines stay near
        (4, 512, (0, 1), ()),  # too short for lines to be used up
    ],
)
def test_order_of_a_transposing_copy(rows: int, cols: int, par: Any, red: Any) -> None:
    kernel = by_columns(_copy(rows, cols))
    assert (kernel.par, kernel.vec, kernel.stages[0].red) == (par, par[-1], red)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", SIZES)
def test_transposing_maps(shape: tuple[int, int], symbolic: bool) -> None:
    value, other = _random(*shape), _random(*shape[::-1])
    dims = (None, None) if symbolic else shape
    x = gx.placeholder("f32", dims)
    y = gx.placeholder("f32", dims[::-1])
    result = _on("cpu", gx.transpose(x) * 2.0 + y, {x: value, y: other}, threads=2)
    np.testing.assert_array_equal(result, value.T * np.float32(2) + other)


# ---- products ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 16), (7, 100), (300, 33), (5, 1000)])
def test_matrix_times_vector(shape: tuple[int, int], dtype: str) -> None:
    a, v = _random(*shape).astype(dtype), _random(shape[1], 1).astype(dtype)
    x, w = gx.placeholder(dtype, shape), gx.placeholder(dtype, v.shape)
    bias = gx.constant(np.asarray(0.5, dtype))
    results = [_on("cpu", gx.tanh(x @ w + bias), {x: a, w: v}, n) for n in (1, 2)]
    np.testing.assert_array_equal(*results)
    expected = np.tanh(a.astype("f8") @ v.astype("f8") + 0.5)
    np.testing.assert_allclose(results[0], expected, atol=1e-4 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (33, 50, 70), (128, 300, 65), (3, 17, 5)])
def test_product_with_a_transposed_matrix(shape: tuple[int, int, int], dtype: str) -> None:
    m, k, n = shape
    a, b = _random(m, k).astype(dtype), _random(n, k).astype(dtype)
    x, w = gx.placeholder(dtype, a.shape), gx.placeholder(dtype, b.shape)
    result = _on("cpu", x @ gx.transpose(w), {x: a, w: b})
    expected = a.astype("f8") @ b.T.astype("f8")
    np.testing.assert_allclose(result, expected, atol=1e-3 if dtype == "float32" else 1e-11)


def _input_gradient(size: int, channels: int) -> Contraction:
    """A 5 x 5 window of a VALID convolution, transposed."""
    count = size - 4
    a = Access(
        0,
        (
            Term(((0, 1),), count * 9),
            Term(((1, 1), (3, -1)), 9, 0, 1, count),
            Term(((4, 1),), 1),
        ),
    )
    b = Access(1, (Term(((3, 1),), channels * 9), Term(((2, 1),), 9), Term(((4, 1),), 1)))
    out = Access(
        2, (Term(((0, 1),), size * channels), Term(((1, 1),), channels), Term(((2, 1),), 1))
    )
    store = Store(out, Expr("acc", (), 0, float32))
    return Contraction((), (64, size), (channels,), (5, 9), a, b, (float32,) * 3, (store,), float32)


@pytest.mark.parametrize("target", [AVX512, AVX2])
def test_runs_outside_are_skipped_where_many_are(target: Any) -> None:
    few, many = tile(_input_gradient(200, 20), target), tile(_input_gradient(12, 20), target)
    assert not few.skips
    assert many.skips
    # rows that share their guards follow each other
    assert many.rows.axes == (1, 0)
    assert many.half  # 20 columns: 16 + 4 of 8, or 8 + 8 + 4


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("batch", "count", "stride"), [(1, 8, 1), (5, 8, 1), (30, 3, 1), (13, 4, 2), (2, 1, 3)]
)
def test_input_gradients_with_many_windows_outside(
    batch: int, count: int, stride: int, symbolic: bool
) -> None:
    size = (count - 1) * stride + 5
    g, w = _random(batch, count, count, 9), _random(5, 5, 20, 9)
    x = gx.placeholder("f32", (None if symbolic else batch, count, count, 9))
    filters = gx.placeholder("f32", w.shape)
    y = conv_input_grad(x, filters, (stride, stride), ((0, 0), (0, 0)), (1, 1), 1, (size, size))
    feeds = {x: g, filters: w}
    one, two = _on("cpu", y, feeds), _on("cpu", y, feeds, threads=2)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, _on("reference", y, feeds), atol=1e-4, rtol=1e-5)


# ---- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(2, 2), (1, 3), (5, 4)])
def test_max_pool_takes_the_first_best(window: tuple[int, int]) -> None:
    sizes = (4, 5)
    value = np.random.RandomState(0).randint(0, 3, (2, 4 * window[0], 5 * window[1], 19))
    value = value.astype("f4")
    value[0, 0, 1], value[1, -1, -2:] = np.nan, -np.inf
    x = gx.placeholder("f32", value.shape)
    pads = ((0, 0), (0, 0))
    y = max_pool_primitive(x, window, window, pads, sizes)
    which = y.node.outputs[1]
    back = pool_scatter(y, which, window, window, pads, value.shape[1:3])
    found = _on("cpu", [y, which, back], {x: value})
    for a, b in zip(found, _on("reference", [y, which, back], {x: value}), strict=True):
        np.testing.assert_array_equal(a, b)
