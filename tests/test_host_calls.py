"""Python functions as operators: values, gradients, failures, and where programs are cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.errors import RunError, ShapeError
from graphc.ops.host import py_op

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_call_between_compiled_parts(device: str) -> None:
    x = gx.placeholder("f32", ("n", 3), name="x")
    v = gx.Variable(np.float32(1), name="v")
    a = x * 2 * v
    b = py_op(lambda t: np.sort(t, 1), [a], "f32", a.dims)
    c = a + b + v
    up = v.assign_add(gx.sum(c))
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        for n in (1, 4, 0):
            fed = np.random.default_rng(n).normal(size=(n, 3)).astype("f4")
            got = s.run([a, b, c, x], {x: fed})
            want = [fed * 2, np.sort(fed * 2, 1), fed * 2 + np.sort(fed * 2, 1) + 1, fed]
            for g, w in zip(got, want, strict=True):
                np.testing.assert_allclose(g, w, rtol=1e-6)
        assert s.run(up, {x: [[1, 1, 1]]}) == 1 + 15
        assert s.run(v) == 16


def test_calls_in_a_row_and_several_results(device: str) -> None:
    x = gx.placeholder("f64", (3,), name="x")
    double = py_op(lambda t: t * 2, [x], "f64", (3,))
    same, total = py_op(lambda t, u: (t + u, t.sum()), [double, x], ["f64", "f32"], [(3,), ()])
    only = py_op(lambda t: t + 1, [total], "f32", ())
    with gx.Session(device=device) as s:
        got = s.run([double, same, only], {x: [1, 2, 3]})
        np.testing.assert_array_equal(got[0], [2, 4, 6])
        np.testing.assert_array_equal(got[1], [3, 6, 9])
        assert got[2] == 13
        assert s.run(total, {x: [1, 2, 3]}) == 12  # one of two results


def test_called_once_per_run_however_often_used(device: str) -> None:
    calls: list[Any] = []

    def note(t: Any) -> Any:
        calls.append(t)
        return t

    x = gx.placeholder("f32", ())
    y = py_op(note, [x], "f32", ())
    unused = py_op(note, [x], "f32", ())
    assert unused.dtype is y.dtype
    z = y * y + gx.exp(y) * y
    with gx.Session(device=device) as s:
        s.run([z, y, y + 1], {x: 1.0})
    assert len(calls) == 1


def test_the_function_may_change_and_keep_its_arguments(device: str) -> None:
    kept: list[Any] = []

    def spoil(t: Any) -> Any:
        kept.append(t)
        t += 100
        return t

    v = gx.Variable(np.ones(2, "f4"))
    y = py_op(spoil, [v], "f32", (2,))
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        np.testing.assert_array_equal(s.run(y), [101, 101])
        kept[0][:] = 7
        np.testing.assert_array_equal(s.run([v, y])[0], [1, 1])


def test_gradients(device: str) -> None:
    x = gx.placeholder("f32", (2,))
    cube = py_op(lambda t: t**3, [x], "f32", (2,), grad=lambda y, g, t: 3 * g * t * t)
    plain = py_op(lambda t: t**3, [x], "f32", (2,))
    (g,) = gx.gradients(cube * 2, x)
    (h,) = gx.gradients(g, x)
    assert gx.gradients(plain, x) == [None]
    with gx.Session(device=device) as s:
        got = s.run([g, h], {x: [1, 2]})
    np.testing.assert_array_equal(got[0], [6, 24])
    np.testing.assert_array_equal(got[1], [12, 24])


def fail(t: Any) -> Any:
    raise KeyError("no such row")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fail, "py_op: 'bad' raised KeyError: 'no such row'"),
        (lambda t: t[:1], "py_op: 'bad' gave an array of shape (1,), not (2,)"),
        (lambda t: (t, t), "py_op: 'bad' gave 2 results, not 1"),
    ],
)
def test_failures_change_nothing(function: Any, text: str, device: str) -> None:
    x = gx.placeholder("f32", (2,))
    v = gx.Variable(np.zeros(2, "f4"))
    bad = py_op(function, [x], "f32", (2,), name="bad")
    up = v.assign_add(bad + 1)
    again = v.assign_add(x)
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        with pytest.raises(RunError) as caught:
            s.run([up, again], {x: [1, 2]})
        assert str(caught.value).split("\n")[0] == text
        assert f"test_host_calls.py:{bad.node.loc.line}" in str(caught.value)
        assert not s.run(v).any()
        np.testing.assert_array_equal(s.run(again, {x: [1, 2]}), [1, 2])


def test_a_run_inside_a_run(device: str) -> None:
    """Reading inside is allowed; what would wait for itself is an error, not a hang."""
    v = gx.Variable(np.float32(2))
    add = v.assign_add(1.0)
    with gx.Session(device=device) as s:
        read = py_op(lambda t: s.run(v * 10) + t, [v], "f32", ())
        write = py_op(lambda t: s.run(add) + t, [v], "f32", ())
        s.run(v.initializer)
        assert s.run(read) == 22
        for fetch in (write, [read, add]):
            with pytest.raises(RunError, match="inside a run"):
                s.run(fetch)
        assert s.run(v) == 2


def test_the_shape_must_be_given() -> None:
    x = gx.placeholder("f32", (2,))
    for shape in (None, (None,), (2, None)):
        with pytest.raises(ShapeError, match="must be given"):
            py_op(lambda t: t, [x], "f32", shape)


def test_random_programs_agree_with_the_reference() -> None:
    """Random graphs with calls in many places: cutting them changes no value."""
    random = np.random.default_rng(5)
    for _ in range(12):
        gx.reset_default_graph()
        x = gx.placeholder("f64", (3,))
        v = gx.Variable(np.array([1.0, 2.0, 3.0]))
        made: list[Any] = [x, v, gx.constant(np.array([0.5, 1.5, -1.0]))]
        for _ in range(12):
            a, b = (made[random.integers(len(made))] for _ in range(2))
            kind = random.integers(4)
            if kind == 0:
                made.append(py_op(lambda p, q: p - q / 2, [a, b], "f64", (3,)))
            elif kind == 1:
                made.append(a * 0.5 + b)
            elif kind == 2:
                made.append(gx.sum(a) * 0.1 - b)
            else:
                made.append(gx.maximum(a, b))
        fetches = [made[i] for i in random.integers(len(made), size=4)]
        up = v.assign(made[-1])
        results = []
        for device in DEVICES:
            with gx.Session(device=device) as s:
                s.run(v.initializer)
                results.append([*s.run([*fetches, up], {x: [1, -2, 0.5]}), s.run(v)])
        for got, want in zip(*results, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)
