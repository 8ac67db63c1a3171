"""Rows of a matrix summed side by side in its product with a vector."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.kernel import LoopKernel

F32 = np.float32


def _rows_abreast(fetch: gx.Tensor) -> list[int]:
    plan = gx.explain(fetch).plan
    return [k.abreast for k in plan.kernels if isinstance(k, LoopKernel)]


@pytest.mark.parametrize("k", [16, 17, 31, 64, 100, 1000])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_values_of_every_row_count(k: int, dtype: str) -> None:
    """Whole numbers, so that every order of the sum gives the same."""
    rng = np.random.default_rng(k)
    with gx.Session() as session:
        a = gx.placeholder(dtype, (None, k))
        x = gx.placeholder(dtype, (k, 1))
        product = session.make_callable(gx.nn.relu(a @ x + 3.0), [a, x])
        for m in (0, 1, 2, 3, 4, 5, 7, 8, 30):
            left, right = rng.integers(-9, 9, (m, k)), rng.integers(-9, 9, (k, 1))
            found = product(left.astype(dtype.replace("f", "float")), right)
            assert np.array_equal(found, np.maximum(left @ right + 3, 0))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((23, 203), F32), rng.standard_normal(203, F32)
    a = gx.placeholder("f32", (None, 203))
    y = a @ gx.constant(right[:, None])
    whole = gx.Session(threads=1).run(y, {a: left})
    for threads in (2, 3):
        assert gx.Session(threads=threads).run(y, {a: left}).tobytes() == whole.tobytes()
    with gx.Session() as session:
        for begin in range(5):
            some = session.run(y, {a: left[begin : begin + 6]})
            assert some.tobytes() == whole[begin : begin + 6].tobytes()
    assert np.allclose(whole[:, 0], left.astype(float) @ right, rtol=1e-4, atol=1e-4)


def test_the_result_may_take_the_place_of_what_is_added() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.integers(-9, 9, (37, 37)), rng.integers(-9, 9, (37, 1))
    a = gx.constant(left.astype(F32))
    state = gx.Variable(right.astype(F32))
    step = state.assign(a @ state + state)
    with gx.Session() as session:
        session.run(state.initializer)
        for _ in range(3):
            session.run(step)
            right = left @ right + right
        assert np.array_equal(session.run(state), right.astype(F32))


@pytest.mark.parametrize(
    ("left", "right", "rows"),
    [
        ((None, 64), (64, 1), [4]),
        ((100, 64), (64, 1), [4]),
        ((3, 64), (64, 1), [1]),  # too few
        ((5, 100, 64), (64, 1), [1]),  # two axes
    ],
)
def test_which_products(
    left: tuple[int | None, ...], right: tuple[int, ...], rows: list[int]
) -> None:
    a, x = gx.placeholder("f32", left), gx.placeholder("f32", right)
    assert _rows_abreast(a @ x) == rows
