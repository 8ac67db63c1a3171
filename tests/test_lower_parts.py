"""Long sums of few elements are made in parts: values, bits, and which contractions are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contraction_reference import matmul

import graphc as gx
from graphc.dims import DimLike, symbol
from graphc.kernel import Contraction
from graphc.node import OPS
from graphc.passes.lower_parts import GPU_SHARES, in_parts

Array = np.ndarray[Any, Any]


def _gradient(
    x_value: Array, dy_value: Array, symbolic: bool, threads: int, stride: int
) -> tuple[Array, list[str]]:
    """2 * dW + 1 of a padded 3 x 3 convolution, and the labels of the steps that made it."""
    with gx.Graph().as_default() as graph, gx.Session(graph, threads=threads) as session:
        first = (None,) if symbolic else x_value.shape[:1]
        x = gx.placeholder("f32", (*first, *x_value.shape[1:]))
        dy = gx.placeholder("f32", (*first, *dy_value.shape[1:]))
        w = gx.placeholder("f32", (3, 3, x_value.shape[-1], dy_value.shape[-1]))
        y = gx.nn.conv(x, w, stride, [(1, 1), (1, 1)])
        (dw,) = gx.gradients(y, [w], grad_ys=[dy])
        trace = gx.Trace()
        feeds = {x: x_value, dy: dy_value}
        result = session.run(2 * dw + 1, feeds, options=gx.RunOptions(trace=trace))
        return np.asarray(result), [event.label for event in trace.events]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("channels", "filters", "stride"), [(3, 16, 1), (5, 7, 2), (16, 16, 1)])
def test_filter_gradients(channels: int, filters: int, stride: int, symbolic: bool) -> None:
    rng = np.random.default_rng(channels)
    size = 40
    x = rng.standard_normal((4, size, size, channels)).astype(np.float32)
    dy = rng.standard_normal((4, size // stride, size // stride, filters)).astype(np.float32)
    got, labels = _gradient(x, dy, symbolic, 1, stride)
    attrs = {"strides": (stride,) * 2, "pads": ((1, 1),) * 2, "dilations": (1, 1), "groups": 1}
    wanted = OPS["conv_filter_grad"].reference(
        {**attrs, "sizes": (3, 3)}, x.astype(np.float64), dy.astype(np.float64)
    )
    np.testing.assert_allclose(got, 2 * wanted + 1, 1e-4, 1e-2)
    long = symbolic is False or (size // stride) ** 2 >= 1024
    assert any("by parts" in label for label in labels) == long
    for threads in (2, 4):
        assert got.tobytes() == _gradient(x, dy, symbolic, threads, stride)[0].tobytes()


@pytest.mark.parametrize(
    ("m", "n", "k", "cut"),
    [
        (24, 20, 4096, 4),
        (24, 20, symbol("n") * 1024, 4),
        (24, 20, 5 * 1021, 5),
        (24, 20, symbol("n"), 0),  # how long is not known
        (24, 20, 1000, 0),  # short
        (196, 24, 1600, 4),
        (220, 24, 1600, 0),  # rows enough
        (24, 20, 4099, 0),  # a prime
        (100, 100, 4096, 4),
        (600, 240, 4800, 0),  # many elements
        (300, 300, 4096, 0),  # more than one block is wide
        (1, 20, 4096, 0),  # a vector times a matrix
    ],
)
def test_what_is_cut(m: int, n: int, k: DimLike, cut: int) -> None:
    c = matmul(m, n, k, ta=True)
    assert isinstance(c, Contraction)
    parts = in_parts(c)
    assert (0 if parts is None else parts.shape[0]) == cut


@pytest.mark.parametrize(
    ("m", "n", "k", "cut"),
    [
        (1, 1030, 1024, 4),
        (8, 1030, 1024, 4),
        (9, 1030, 1024, 0),  # rows enough to compute meanwhile
        (16, 2050, 2048, 4),
        (17, 2050, 2048, 0),
        (1, 1030, 1021, 0),  # a prime
        (1, 300, 1024, 0),  # soon read
        (symbol("n"), 1030, 1024, 0),
    ],
)
def test_large_right_operands_of_few_rows(m: DimLike, n: int, k: int, cut: int) -> None:
    parts = in_parts(matmul(m, n, k))
    assert (0 if parts is None else parts.shape[0]) == cut
    assert in_parts(matmul(m, n, k, tb=True)) is None  # its rows are not read side by side


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_by_parts(rows: int) -> None:
    rng = np.random.default_rng(rows)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((rows, 1028), (1028, 1037)))
    results = []
    for threads in (1, 2, 4):
        with gx.Graph().as_default() as graph, gx.Session(graph, threads=threads) as session:
            x = gx.placeholder("f32", a.shape)
            w = gx.Variable(b)
            session.run(w.initializer)
            trace = gx.Trace()
            y = gx.nn.relu(x @ w) + 1
            got = session.run(y, {x: a}, options=gx.RunOptions(trace=trace))
            assert any("by parts" in event.label for event in trace.events)
            results.append(np.asarray(got))
    wanted = np.maximum(a.astype(np.float64) @ b.astype(np.float64), 0) + 1
    np.testing.assert_allclose(results[0], wanted, 1e-4, 1e-4)
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


@pytest.mark.parametrize(
    ("m", "n", "k", "cut"),
    [
        (64, 256, symbol("n") * 3136, 64),  # 64 parts of 64 x 256 are 256 blocks of 64 x 64
        (256, 1024, symbol("n") * 196, 4),
        (256, 512, symbol("n") * 49, 0),  # short
        (512, 2048, symbol("n") * 49, 0),  # blocks enough
        (64, 64, 16384, 64),
        (64, 64, symbol("n"), 0),
    ],
)
def test_what_is_cut_for_a_gpu(m: int, n: int, k: DimLike, cut: int) -> None:
    parts = in_parts(matmul(m, n, k, ta=True), GPU_SHARES)
    assert (0 if parts is None else parts.shape[0]) == cut
