"""The kernel interpreter against NumPy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from graphc.backends.interpret import interpret_contraction
from graphc.backends.scalars import NUMPY_OPS, cast, fma, wrap
from graphc.dims import symbol
from graphc.kernel import SCALAR_OPS, Access, Contraction, Expr, Store, Term
from graphc.types import DType, float32, float64, int8, int32, uint8


def test_every_scalar_operation_has_a_meaning() -> None:
    assert set(NUMPY_OPS) | {"cast", "bitcast"} == set(SCALAR_OPS)


@pytest.mark.parametrize("dtype", [float32, float64, int32], ids=str)
def test_contraction_is_a_batched_matrix_product(dtype: DType) -> None:
    m, k = symbol("m"), symbol("k")
    a = Access(0, (Term(((0, 1),), m * k), Term(((1, 1),), k), Term(((3, 1),), 1)))
    b = Access(1, (Term(((0, 1),), k * 4), Term(((3, 1),), 4), Term(((2, 1),), 1)))
    c = Access(2, (Term(((0, 1),), m * 4), Term(((1, 1),), 4), Term(((2, 1),), 1)))
    total = Expr("acc", (), 0, dtype)
    kernel = Contraction((2,), (m,), (4,), (k,), a, b, (dtype,) * 3, (Store(c, total),), dtype)
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (2, 3, 5)).astype(dtype.numpy)
    y = rng.integers(-9, 9, (2, 5, 4)).astype(dtype.numpy)
    out = np.zeros(24, dtype.numpy)
    sizes = {m: 3, k: 5, m * k: 15, k * 4: 20, m * 4: 12}
    interpret_contraction(kernel, [x.ravel(), y.ravel(), out], sizes)
    np.testing.assert_array_equal(out, (x @ y).ravel())


def test_fma_rounds_once() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        a, b = (np.float32(v) for v in rng.normal(size=2))
        c = np.float32(-(a * b)) * np.float32(1 + rng.integers(3) * 2.0**-23)
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        got = Fraction(float(fma(a, b, c)))
        ulp = Fraction(float(np.spacing(np.float32(abs(float(exact))))))
        assert abs(got - exact) <= ulp / 2
    assert math.isinf(fma(np.float64(1e300), np.float64(1e300), np.float64(1)))


def test_casts_saturate_and_wrap() -> None:
    assert cast(np.float32(1e9), int8) == 127
    assert cast(np.float32(-1.9), int8) == -1
    assert cast(np.float64(np.nan), int32) == 0
    assert cast(np.int32(300), uint8) == 44
    assert wrap(200, int8) == -56
