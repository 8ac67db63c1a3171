"""The interpreter of whole arrays against the one of single elements, and the work of kernels."""

from __future__ import annotations

import numpy as np
import pytest
from loop_kernel_generator import Random
from loop_kernel_jit import table

from graphc.backends import interpret_arrays
from graphc.backends.interpret import interpret_contraction, interpret_loop_kernel
from graphc.backends.interpret_arrays import OutsideBufferError, Rounding, interpret
from graphc.dims import symbol
from graphc.kernel import Access, Contraction, Expr, LoopKernel, Stage, Store, Term
from graphc.kernel_work import work
from graphc.types import float32

X = Access(0, (Term(((0, 1),), 1),))
Y = Access(1, (Term(((0, 1),), 1),))


def widened(buffers: list[np.ndarray]) -> list[np.ndarray]:
    return [b.astype(np.float64) if b.dtype == np.float32 else b.copy() for b in buffers]


@pytest.mark.parametrize("seed", range(60))
def test_random_kernels_mean_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Random(seed)
    kernel = made.kernel()
    sizes = table(kernel, made.symbols)
    one = [b.copy() for b in made.data]
    whole = widened(made.data)
    interpret_loop_kernel(kernel, one, sizes)
    interpret(kernel, whole, sizes)
    again, moved = widened(made.data), widened(made.data)
    interpret(kernel, moved, sizes, Rounding(seed))
    monkeypatch.setattr(interpret_arrays, "CELLS", 64)
    interpret(kernel, again, sizes)
    for a, b, c, d in zip(one, whole, again, moved, strict=True):
        if a.dtype.kind != "f":
            np.testing.assert_array_equal(b, a)
            np.testing.assert_array_equal(c, b)
            continue
        scale = float(np.abs(a[np.isfinite(a)]).max(initial=1.0))
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)
        np.testing.assert_allclose(c, b, rtol=1e-12, atol=1e-13 * scale, equal_nan=True)
        # roundings decide comparisons of equal numbers, but move little else
        near = np.isclose(d, b, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)
        assert np.count_nonzero(near) >= 0.8 * near.size
    assert work(kernel, sizes).bytes >= 0


def test_a_guarded_product_means_the_same() -> None:
    """A convolution along one axis with padding, and an epilogue."""
    n, k, channels = symbol("n"), 3, 4
    index = Term(((0, 1), (2, 1)), channels, -1, 1, n)
    a = Access(0, (index, Term(((3, 1),), 1)))
    b = Access(1, (Term(((2, 1),), channels * 5), Term(((3, 1),), 5), Term(((1, 1),), 1)))
    out = Access(2, (Term(((0, 1),), 5), Term(((1, 1),), 1)))
    result = Expr(
        "max", (Expr("acc", (), 0, float32), Expr("const", (), 0, float32)), None, float32
    )
    kernel = Contraction(
        (), (n,), (5,), (k, channels), a, b, (float32,) * 3, (Store(out, result),), float32
    )
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype("f4") for s in (7 * channels, k * channels * 5))
    sizes = {n: 7}
    one = [x, w, np.zeros(35, np.float32)]
    whole = widened(one)
    interpret_contraction(kernel, one, sizes)
    interpret(kernel, whole, sizes)
    np.testing.assert_allclose(whole[2], one[2], rtol=1e-5, atol=1e-6)
    # the first and the last position have one of three steps outside; an operation for each result
    assert work(kernel, sizes).flops == 2 * (7 * 3 - 2) * channels * 5 + 35


def test_an_element_outside_is_named() -> None:
    load = Expr("load", (), (X, 0), float32)
    kernel = LoopKernel((4,), (0,), 0, (float32,) * 2, (Stage((), (), (Store(Y, load),)),))
    with pytest.raises(OutsideBufferError, match="reads element 3 of argument 0, which has 3"):
        interpret(kernel, [np.zeros(3), np.zeros(4)], {})
    with pytest.raises(OutsideBufferError, match="writes element 3 of argument 1"):
        interpret(kernel, [np.zeros(4), np.zeros(3)], {})


def test_float32_has_its_range() -> None:
    load = Expr("load", (), (X, 0), float32)
    twice = Expr("mul", (load, load), None, float32)
    kernel = LoopKernel((3,), (0,), 0, (float32,) * 2, (Stage((), (), (Store(Y, twice),)),))
    buffers = [np.array([1e30, 1e-30, 3.0]), np.zeros(3)]
    interpret(kernel, buffers, {})
    np.testing.assert_array_equal(buffers[1], [np.inf, 0, 9])
