"""What users of TensorFlow 1 rely on in shapes, numbers, variables, randomness and gradients.

One test per rule; the name of a test is the rule's key.  Sessions: tests/test_semantics.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.ops import random
from graphc.ops.activation import relu
from graphc.ops.indexed import gather
from graphc.ops.join import split
from graphc.ops.math import exp, log, sqrt, square

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def value(fetches: Any, feeds: Any = None, device: str = "cpu") -> Any:
    """The fetches in a new session, variables initialized."""
    with gx.Session(device=device) as session:
        session.run(gx.global_variables_initializer())
        return session.run(fetches, feeds)


# ---- shapes and dtypes -------------------------------------------------------------------------


def test_shape_static_error() -> None:
    a = gx.placeholder("f32", (2, 3))
    with pytest.raises(ValueError):
        gx.matmul(a, a)
    with pytest.raises(ValueError):
        gx.add(gx.placeholder("f32", (2,)), gx.placeholder("f32", (3,)))


def test_shape_runtime_error(device: str) -> None:
    a = gx.placeholder("f32", (None, None))
    b = gx.placeholder("f32")
    with gx.Session(device=device) as s:
        with pytest.raises(ValueError):
            s.run(gx.matmul(a, a), {a: np.ones((2, 3))})
        with pytest.raises(ValueError):
            s.run(a + b, {a: np.ones((2, 3)), b: np.ones(2)})


def test_shape_infer() -> None:
    x = gx.placeholder("f32", (None, 4))
    w = gx.placeholder("f32", (4, 5))
    h = gx.matmul(x, w)
    assert h.shape == (None, 5)
    assert gx.sum(h, axis=0).shape == (5,)
    assert (h + gx.placeholder("f32", (5,))).shape == (None, 5)
    assert gx.transpose(h).shape == (5, None)
    assert gx.placeholder("f32").shape is None
    assert gx.placeholder("f32", ("batch", 2)).shape == ("batch", 2)


def test_shape_dyn(device: str) -> None:
    x = gx.placeholder("f32", (None, 3))
    y = [gx.shape(x), gx.sum(x), gx.reshape(x, (-1,))]
    with gx.Session(device=device) as s:
        for n in (5, 1, 0, 2):
            shape, total, flat = s.run(y, {x: np.ones((n, 3))})
            assert list(shape) == [n, 3]
            assert total == 3 * n
            assert flat.shape == (3 * n,)


@pytest.mark.parametrize("other", ["f64", "i32", "bool"])
def test_dtype_no_mix(other: str) -> None:
    with gx.Graph(strict_dtypes=True).as_default():
        a, b = gx.placeholder("f32"), gx.placeholder(other)
        for build in (gx.add, gx.multiply, gx.maximum):
            with pytest.raises((TypeError, ValueError), match="cast"):
                build(a, b)
        assert (a + 1).dtype is a.dtype
    with gx.Graph().as_default():
        mixed = gx.add(gx.placeholder("f32"), gx.placeholder("f64"))
        assert mixed.dtype is gx.as_dtype("f64")


# ---- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i8", "i32", "i64", "f32", "f64"])
def test_num_int_div(dtype: str, device: str) -> None:
    a = gx.placeholder(dtype, (None,))
    b = gx.placeholder(dtype, (None,))
    x, y = np.array([7, -7, 7, -7, 0, -8]), np.array([3, 3, -3, -3, 5, 4])
    quotient, rest = value([a // b, a % b], {a: x, b: y}, device)
    np.testing.assert_array_equal(quotient, [p // q for p, q in zip(x, y, strict=True)])
    np.testing.assert_array_equal(rest, [p % q for p, q in zip(x, y, strict=True)])


def test_num_int_div0(device: str) -> None:
    a = gx.placeholder("i32", (None,))
    b = gx.placeholder("i32", (None,))
    with gx.Session(device=device) as s:
        for y in (a // b, a % b):
            with pytest.raises(ZeroDivisionError):
                s.run(y, {a: [1, 2], b: [1, 0]})
        assert s.run(a // b, {a: [-(2**31)], b: [-1]})[0] == -(2**31)


def test_num_nan_inf(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    logs, inverse = value([log(x), 1 / x], {x: [-1, 0, 1]}, device)
    np.testing.assert_array_equal(logs, np.array([np.nan, -np.inf, 0], "f4"))
    np.testing.assert_array_equal(inverse, np.array([-1, np.inf, 1], "f4"))
    got = value([gx.maximum(x, 0.0), gx.max(x), gx.min(x)], {x: [1, np.nan, 3]}, device)
    np.testing.assert_array_equal(got[0], np.array([1, np.nan, 3], "f4"))
    assert np.isnan(got[1]) and np.isnan(got[2])


def test_num_argmax_tie(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    got = value([gx.argmax(x, 0), gx.argmin(x, 0)], {x: [1, 5, 1, 5, 2, 5]}, device)
    assert got == [1, 0]


def test_num_empty_reduce(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    with gx.Session(device=device) as s:
        total, average = s.run([gx.sum(x), gx.mean(x)], {x: []})
        assert total == 0 and np.isnan(average)
        with contextlib.suppress(ValueError):  # a clean error is as good
            assert s.run(gx.max(x), {x: []}) == -np.inf
        assert s.run(gx.sum(x), {x: [1, 2]}) == 3


@pytest.mark.parametrize("bad", [3, -4, 2**31 - 1])
def test_num_gather_oob(bad: int, device: str) -> None:
    x = gx.constant([1.0, 2.0, 3.0])
    i = gx.placeholder("i32", (None,))
    y = gather(x, i)
    with gx.Session(device=device) as s:
        with pytest.raises(IndexError):
            s.run(y, {i: [0, bad]})
        np.testing.assert_array_equal(s.run(y, {i: [2, 0]}), [3, 1])


@pytest.mark.parametrize("static", [True, False])
def test_num_slice(static: bool, device: str) -> None:
    a = np.arange(24, dtype="f4").reshape(2, 3, 4)
    x = gx.placeholder("f32", a.shape if static else (None, None, None))
    cuts: list[Any] = [
        np.s_[1],
        np.s_[-1],
        np.s_[1:],
        np.s_[::-1],
        np.s_[..., 0],
        np.s_[:, None],
        np.s_[0, 1:, ::2],
        np.s_[..., -2:],
        np.s_[5:],
    ]
    for cut, got in zip(cuts, value([x[c] for c in cuts], {x: a}, device), strict=True):
        np.testing.assert_array_equal(got, a[cut])


def test_num_big_reduce(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    total = value(gx.sum(x), {x: np.full(10**7, 0.1, "f4")}, device)
    assert abs(float(total) - 1e6) < 1e3


# ---- variables ---------------------------------------------------------------------------------


def test_var_uninit(device: str) -> None:
    v = gx.Variable(1.0, name="weights")
    with gx.Session(device=device) as s:
        with pytest.raises(RuntimeError, match="weights"):
            s.run(v + 1)
        with pytest.raises(RuntimeError, match="weights"):
            s.run(v.assign_add(1.0))
        assert s.uninitialized_variables() == [v]
        assert not s.is_initialized(v)


def test_var_persist(device: str) -> None:
    v = gx.Variable(0.0)
    one, add = v.assign(1.0), v.assign_add(2.0)
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        assert [s.run(x) for x in (v, one, v, add, add, v)] == [0, 1, 1, 3, 5, 5]


def test_var_init_again(device: str) -> None:
    v = gx.Variable(4.0)
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        s.run(v.assign_add(1.0))
        s.run(v.initializer)
        assert s.run(v) == 4


def test_var_initialized_value(device: str) -> None:
    v = gx.Variable(4.0)
    w = gx.Variable(v.initialized_value() * 2)
    with gx.Session(device=device) as s:
        s.run(gx.global_variables_initializer())
        assert s.run([v, w]) == [4, 8]


def test_var_shape_guard(device: str) -> None:
    v = gx.Variable(np.zeros((2, 3), "f4"))
    n = gx.placeholder("f32", (None, 3))
    anything = gx.placeholder("f32")
    for bad in (np.zeros((2, 4), "f4"), gx.constant(np.zeros((2, 3)), "f64")):
        with pytest.raises((TypeError, ValueError)):
            v.assign(bad)
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        for t, bad in ((n, np.ones((1, 3))), (anything, np.ones(3)), (anything, np.ones((3, 3)))):
            with pytest.raises(ValueError):
                s.run(v.assign(t), {t: bad})
            assert not s.run(v).any()
        for t in (n, anything):
            s.run(v.assign(t), {t: np.ones((2, 3))})
            assert s.run(v).all()
        with pytest.raises(ValueError):
            s.set_value(v, np.ones(3))


def test_var_trainable() -> None:
    a, b = gx.Variable(1.0), gx.Variable(1.0, trainable=False)
    assert gx.trainable_variables() == [a] and gx.global_variables() == [a, b]


def test_var_parallel_assign(device: str) -> None:
    a, b = gx.Variable(1.0), gx.Variable(2.0)
    swap = gx.group(a.assign(b), b.assign(a))
    with gx.Session(device=device) as s:
        s.run(gx.global_variables_initializer())
        s.run(swap)
        assert s.run([a, b]) == [2, 1]


def test_ctrl_order(device: str) -> None:
    v = gx.Variable(1.0)
    up = v.assign_add(10.0)
    with gx.get_default_graph().control_dependencies([up]):
        inside = v * 2
    outside = v * 2
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        assert s.run([inside, outside]) == [22, 2]
        assert s.run(outside) == 22
        assert s.run(v) == 11


def test_ctrl_pruned(device: str) -> None:
    v = gx.Variable(1.0)
    v.assign_add(10.0)
    y = v * 2
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        s.run(y)
        assert s.run(v) == 1


# ---- randomness --------------------------------------------------------------------------------


def test_rand_fresh(device: str) -> None:
    u = random.uniform((4,))
    v = gx.Variable(np.zeros(4, "f4"))
    up = v.assign(u)
    with gx.Session(device=device) as s:
        a, again, twice = s.run([u, u, u * 2])
        np.testing.assert_array_equal(a, again)
        np.testing.assert_array_equal(a * 2, twice)
        assert (s.run(u) != a).any()
        got, kept = s.run([u, up])
        np.testing.assert_array_equal(got, kept)


def test_rand_seed(device: str) -> None:
    def draws(seed: int) -> list[Any]:
        with gx.Graph(seed=seed).as_default():
            pair = [random.uniform((5,)), random.uniform((5,))]
            with gx.Session(device=device) as s:
                return [*s.run(pair), *s.run(pair)]

    a, b = draws(3), draws(3)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    for k in range(1, 4):
        assert (a[0] != a[k]).any()
    assert (draws(4)[0] != a[0]).any()


def test_rand_two_sessions_repeat_a_seeded_graph(device: str) -> None:
    with gx.Graph(seed=1).as_default():
        u = random.normal((3,))
        first, second = gx.Session(device=device), gx.Session(device=device)
        for _ in range(3):
            np.testing.assert_array_equal(first.run(u), second.run(u))


def test_rand_cse(device: str) -> None:
    a, b = random.uniform((4,)), random.uniform((4,))
    x, y = value([a, b], device=device)
    assert (x != y).any()
    with gx.Graph(seed=7).as_default():
        a, b = random.uniform((4,)), random.uniform((4,))
        with gx.Session(device=device) as s:
            x, y = s.run([a, b])
            assert (x != y).any()


def test_var_init_from_random(device: str) -> None:
    v = gx.Variable(random.normal((3,)))
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        a, b = s.run(v), s.run(v)
        np.testing.assert_array_equal(a, b)
        assert a.any()
        s.run(v.initializer)
        assert (s.run(v) != a).any()


# ---- gradients ---------------------------------------------------------------------------------


def test_grad_none() -> None:
    x, y = gx.placeholder("f32"), gx.placeholder("f32")
    assert gx.gradients(y * 2, x) == [None]
    (zero,) = gx.gradients(y * 2, x, unconnected_gradients="zero")
    np.testing.assert_array_equal(value(zero, {x: [1, 2]}), [0, 0])


def test_grad_stop(device: str) -> None:
    x = gx.placeholder("f32")
    h = x * x
    (a,) = gx.gradients(gx.stop_gradient(h) * x, x)
    (b,) = gx.gradients(h * x, x, stop_gradients=[h])
    assert value([a, b], {x: 3.0}, device) == [9, 9]
    assert gx.gradients(gx.stop_gradient(x), x) == [None]


def test_grad_sum_ys(device: str) -> None:
    x = gx.placeholder("f32", (2,))
    y, z = x * x, 3 * x
    (both,) = gx.gradients([y, z], x)
    (weighted,) = gx.gradients(y, x, grad_ys=gx.constant([1.0, 10.0]))
    got = value([both, weighted], {x: [1, 2]}, device)
    np.testing.assert_array_equal(got[0], [5, 7])
    np.testing.assert_array_equal(got[1], [2, 40])


def test_grad_wrt_intermediate(device: str) -> None:
    x = gx.placeholder("f32")
    h = x * x
    y = h * 3 + x
    got = value(gx.gradients(y, [h, x, y]), {x: 2.0}, device)
    assert got == [3, 13, 1]


def test_grad_accumulate(device: str) -> None:
    x = gx.placeholder("f32")
    y = x
    for _ in range(9):
        y = y + x
    a = x * 2
    diamond = a * a + a
    assert value(gx.gradients(y, x) + gx.gradients(diamond, x), {x: 3.0}, device) == [10, 26]


@pytest.mark.no_cover
def test_grad_deep(device: str) -> None:
    x = gx.placeholder("f32")
    y = x
    for _ in range(3000):
        y = y + 1.0
    (g,) = gx.gradients(y, x)
    assert value([y, g], {x: 1.0}, device) == [3001, 1]


def test_grad_exp_paths(device: str) -> None:
    x = gx.placeholder("f32")
    y = x
    for _ in range(60):
        y = y + y
    assert value(gx.gradients(y, x), {x: 1.0}, device) == [2.0**60]


def test_grad_second(device: str) -> None:
    x = gx.placeholder("f64")
    (first,) = gx.gradients(x * x * x, x)
    (second,) = gx.gradients(first, x)
    assert value(second, {x: 5.0}, device) == 30
    z = gx.placeholder("f64", (2,))
    cost = gx.sum(z * z * z)
    (hv,) = gx.hessian_vector_product(cost, z, gx.constant(np.array([1.0, 2.0])))
    np.testing.assert_array_equal(value(hv, {z: [1, 2]}, device), [6, 24])


def test_grad_broadcast(device: str) -> None:
    x = gx.placeholder("f32", (None, 3))
    b = gx.placeholder("f32", (3,))
    c = gx.placeholder("f32", (None, 1))
    d = gx.placeholder("f32", ())
    gs = gx.gradients(x * b + c * d, [x, b, c, d])
    feeds = {x: np.ones((2, 3)), b: [1, 2, 3], c: [[1], [2]], d: 2.0}
    got = value(gs, feeds, device)
    assert [np.shape(g) for g in got] == [(2, 3), (3,), (2, 1), ()]
    np.testing.assert_array_equal(got[1], [2, 2, 2])
    np.testing.assert_array_equal(got[2], [[6], [6]])
    assert got[3] == 9


def test_grad_int(device: str) -> None:
    n = gx.placeholder("i32", (2,))
    x = gx.placeholder("f32", (2,))
    assert gx.gradients(gx.sum(gx.astype(n, "f32")), n) == [None]
    through = [
        gx.gradients(gx.astype(gx.astype(x, "i32"), "f32"), x)[0],
        gx.gradients(gx.floor_divide(x, 1.0), x)[0],
        gx.gradients(gx.astype(gx.argmax(x, 0), "f32"), x)[0],
    ]
    for g in through:
        if g is not None:
            assert not np.any(value(g, {x: [1.5, 2.5]}, device))


def test_grad_kinks(device: str) -> None:
    x = gx.placeholder("f32", (3,))
    a, b = gx.gradients(gx.abs(x), x)[0], gx.gradients(gx.maximum(x, x), x)[0]
    m = gx.gradients(gx.max(x), x)[0]
    got = value([a, b, m], {x: [0, 0, -1]}, device)
    np.testing.assert_array_equal(got[0], [0, 0, -1])
    np.testing.assert_array_equal(got[1], [1, 1, 1])
    assert got[2].sum() == 1 and got[2][2] == 0


def test_grad_relu_kink(device: str) -> None:
    x = gx.placeholder("f32", (3,))
    got = value(gx.gradients(relu(x), x)[0], {x: [-1, 0, 2]}, device)
    np.testing.assert_array_equal(got, [0, 0, 1])


def test_grad_where_nan(device: str) -> None:
    x = gx.placeholder("f32", (2,))
    y = gx.where(x > 0, log(x) + sqrt(x) / x, 0.0)
    forward, g = value([y, gx.gradients(y, x)[0]], {x: [0, 1]}, device)
    np.testing.assert_array_equal(forward, [0, 1])
    np.testing.assert_allclose(g, [0, 0.5])  # an exact zero where the other side was taken


def test_grad_gather_dup(device: str) -> None:
    x = gx.placeholder("f32", (3,))
    (g,) = gx.gradients(gather(x, gx.constant([0, 2, 0, 0])), x)
    np.testing.assert_array_equal(value(g, {x: [1, 2, 3]}, device), [3, 0, 1])


def test_grad_unused_output(device: str) -> None:
    x = gx.placeholder("f32", (4,))
    first = split(x, 2, 0)[0]
    (g,) = gx.gradients(first * first, x)
    np.testing.assert_array_equal(value(g, {x: [1, 2, 3, 4]}, device), [2, 4, 0, 0])


def test_grad_graph_after(device: str) -> None:
    x = gx.placeholder("f32", (2,))
    y = gx.sum(exp(x))
    with gx.Session(device=device) as s:
        before = s.run(y, {x: [1, 2]})
        g, h = gx.gradients(y, x) + gx.gradients(y, x)
        after, a, b = s.run([y, g, h], {x: [1, 2]})
    assert before == after
    np.testing.assert_array_equal(a, b)


def test_grad_fed(device: str) -> None:
    x = gx.placeholder("f32")
    h = square(x)
    y = square(h)
    (to_h, to_x) = gx.gradients(y, [h, x])
    assert value(to_h, {h: 3.0}, device) == 6
    assert value(to_x, {h: 3.0, x: 1.0}, device) == 12
