"""Contractions over fewest axes: which disappear, which merge, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

import graphc as gx
from graphc.compiler import plan_cpu
from graphc.dims import DimLike, symbol
from graphc.kernel import Access, Contraction, Expr, Store, Term
from graphc.passes.contraction_axes import fewest_axes
from graphc.passes.resolve_state import resolve_state
from graphc.passes.specialise import specialise
from graphc.types import float32, int64

BATCH, SIZE = symbol("batch"), symbol("size")


def contraction_of(t: gx.Tensor, *feeds: gx.Tensor) -> Contraction:
    plan, _ = plan_cpu(specialise(resolve_state((t,), (), feeds), {}))
    (kernel,) = [k for k in plan.kernels if isinstance(k, Contraction)]
    return kernel


def test_a_pointwise_convolution_is_a_matrix_product() -> None:
    with gx.Graph().as_default():
        x, w = gx.placeholder("f32", (10, 6, 5, 32)), gx.placeholder("f32", (1, 1, 32, 48))
        a, b = gx.placeholder("f32", (300, 32)), gx.placeholder("f32", (32, 48))
        conv = contraction_of(gx.nn.conv2d(x, w), x, w)
        product = contraction_of(gx.matmul(a, b), a, b)
        (back,) = gx.gradients(gx.nn.conv2d(x, w), [x])
        gradient = contraction_of(back, x, w)
    assert (conv.m, conv.n, conv.k, conv.a, conv.b) == (
        (300,),
        (48,),
        (32,),
        product.a,
        product.b,
    )
    assert (gradient.m, gradient.n, gradient.k) == ((300,), (32,), (48,))
    assert all(t.limit is None for t in gradient.a.terms)


def _kernel(a: Access, m: tuple[DimLike, ...], k: tuple[int, ...], expr: Expr) -> Contraction:
    free, inner = len(m), len(k)
    b = Access(1, tuple(Term(((free + 1 + i, 1),), 8) for i in range(inner)))
    b = Access(1, (*b.terms, Term(((free, 1),), 1)))
    strides = [8]
    for extent in reversed(m[1:]):
        strides.insert(0, strides[0] * extent)
    out = tuple(Term(((i, 1),), s) for i, s in enumerate(strides))
    store = Store(Access(2, (*out, Term(((free, 1),), 1))), expr)
    return Contraction((), m, (8,), k, a, b, (float32,) * 3, (store,), float32)


ACC = Expr("acc", (), 0, float32)


@pytest.mark.parametrize("shift", [0, -1])
def test_a_guard_that_always_holds_goes(shift: int) -> None:
    rows = Term(((1, 1), (4, 1)), 4, shift, 1, SIZE)
    a = Access(0, (Term(((0, 1),), 4 * SIZE), rows, Term(((3, 1),), 1)))
    c = fewest_axes(_kernel(a, (BATCH, SIZE), (4, 1), ACC))
    guards = [t for t in c.a.terms if t.limit is not None]
    if shift:
        assert guards == [Term(((1, 1),), 4, -1, 1, SIZE)]
        assert c.m == (BATCH, SIZE)
    else:
        assert guards == []
        assert c.m == (BATCH * SIZE,)
    assert c.k == (4,)


def test_many_matrices_times_one_are_one_matrix() -> None:
    with gx.Graph().as_default():
        x = gx.placeholder("f32", ("batch", 16, 32), name="x")
        w = gx.placeholder("f32", (32, 48), name="w")
        c = contraction_of(gx.matmul(x, w), x, w)
        both = gx.placeholder("f32", ("batch", 32, 8), name="both")
        d = contraction_of(gx.matmul(x, both), x, both)
        with gx.Session() as session:
            rng = np.random.default_rng(0)
            a, b = rng.standard_normal((5, 16, 32)).astype("f4"), rng.standard_normal((32, 48))
            got = session.run(gx.matmul(x, w), {x: a, w: b})
            one = session.run(gx.matmul(x[2], w), {x: a, w: b})
    assert (len(c.batch), len(c.m)) == (0, 1)
    assert (len(d.batch), d.m) == (1, (16,))
    assert got[2].tobytes() == one.tobytes()


def test_axes_whose_index_is_used_stay() -> None:
    a = Access(0, (Term(((0, 1),), 20), Term(((1, 1),), 4), Term(((3, 1),), 1)))
    index = Expr("cast", (Expr("axis", (), 1, int64),), None, float32)
    assert fewest_axes(_kernel(a, (BATCH, 5), (4,), ACC)).m == (5 * BATCH,)
    assert fewest_axes(_kernel(a, (BATCH, 5), (4,), ACC + index)).m == (BATCH, 5)


def test_a_group_of_axes_of_size_one_keeps_one() -> None:
    a = Access(0, (Term(((3, 1),), 1),))
    c = fewest_axes(_kernel(a, (1, 1), (4,), ACC))
    assert (c.m, c.n, c.k) == ((1,), (8,), (4,))


def test_bits_are_those_of_the_loops_that_summed_more_axes() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4, 5, 7)).astype("f4")
    w = rng.standard_normal((1, 1, 7, 9)).astype("f4")
    with gx.Graph().as_default(), gx.Session() as session:
        pointwise = session.run(gx.nn.conv2d(x, w))
        product = session.run(gx.matmul(x.reshape(-1, 7), w.reshape(7, 9)))
    assert pointwise.reshape(-1, 9).tobytes() == product.tobytes()
