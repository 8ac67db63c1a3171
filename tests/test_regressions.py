"""Defects met by writing programs: each stays fixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx

DEVICES = ("reference", "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_shift_operators(device: str) -> None:
    x = gx.placeholder("i32", (None,))
    got = gx.Session(device=device).run([x << 3, x >> 1, 1 << x], {x: [1, 5, 9]})
    for value, wanted in zip(got, ([8, 40, 72], [0, 2, 4], [2, 32, 512]), strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", ["conv", "max_pool"])
def test_a_window_that_does_not_fit_when_run(device: str, window: str) -> None:
    x = gx.placeholder("f32", (None, None, None, 1))
    if window == "conv":
        y = gx.nn.conv2d(x, np.ones((3, 3, 1, 2), "f4"), padding="VALID", strides=2)
    else:
        y = gx.nn.max_pool(x, 3, 1)
    session = gx.Session(device=device)
    for shape in ((1, 2, 4, 1), (1, 1, 4, 1), (1, 4, 0, 1)):
        with pytest.raises(gx.errors.ShapeError, match=r"window.*\n  at test_regressions.py"):
            session.run(y, {x: np.ones(shape)})
        with pytest.raises(gx.errors.ShapeError, match="window"):
            session.run(gx.gradients(gx.sum(y * y), x), {x: np.ones(shape)})
    assert session.run(y, {x: np.ones((1, 3, 3, 1))}).shape[1:3] == (1, 1)


@pytest.mark.parametrize("device", DEVICES)
def test_same_convolution_over_an_empty_axis(device: str) -> None:
    x = gx.placeholder("f32", (None, None, None, 1))
    y = gx.nn.conv2d(x, np.ones((3, 3, 1, 2), "f4"))
    (g,) = gx.gradients(gx.sum(y), x)
    value, slope = gx.Session(device=device).run([y, g], {x: np.ones((1, 0, 4, 1))})
    assert value.shape == (1, 0, 4, 2)
    assert slope.shape == (1, 0, 4, 1)


@pytest.mark.parametrize("device", DEVICES)
def test_roll_along_an_empty_axis(device: str) -> None:
    x = gx.placeholder("f32", (None, 2))
    session = gx.Session(device=device)
    for shift in (100, -3):
        y = gx.roll(x, shift, 0)
        assert session.run(y, {x: np.ones((0, 2))}).shape == (0, 2)
        X = np.arange(10, dtype="f4").reshape(5, 2)
        np.testing.assert_array_equal(session.run(y, {x: X}), np.roll(X, shift, 0))


def test_the_line_of_a_failed_broadcast_in_a_long_graph() -> None:
    x = gx.placeholder("f32", (None, None))
    y = gx.placeholder("f32", (None, None))
    h = x
    for _ in range(1500):
        h = gx.tanh(h) + x
    z = h + y
    session = gx.Session(device="reference")
    with pytest.raises(gx.errors.ShapeError, match=r"3 and .* = 4 do not broadcast\n  at "):
        session.run(z, {x: np.ones((2, 3)), y: np.ones((2, 4))})


def test_a_failed_broadcast_to_names_the_line() -> None:
    x = gx.placeholder("f32", (None, 4))
    y = gx.broadcast_to(x, (3, 4))
    with pytest.raises(gx.errors.ShapeError, match=r"broadcast_to: .*\n  at test_regressions.py"):
        gx.Session().run(y, {x: np.ones((2, 4))})


def _itself() -> list[Any]:
    nest: list[Any] = []
    nest.append(nest)
    return nest


BAD_CALLS: dict[str, Callable[[gx.Tensor], Any]] = {
    "float axis": lambda x: gx.sum(x, axis=1.0),
    "tuple for argmax": lambda x: gx.argmax(x, axis=(0, 1)),
    "negative size": lambda x: gx.zeros((-3,)),
    "negative random size": lambda x: gx.random.normal((2, -1)),
    "negative eye": lambda x: gx.eye(-1),
    "None in reshape": lambda x: gx.reshape(x, (None, 3)),
    "no tensors": lambda x: gx.concat([]),
    "axis first": lambda x: gx.concat(0, [x, x]),
    "step 0": lambda x: gx.arange(0, 10, 0),
    "layout": lambda x: gx.nn.conv2d(
        gx.zeros((1, 8, 8, 3)), gx.zeros((3, 3, 3, 8)), data_format="NWHC"
    ),
    "layer of a scalar": lambda x: gx.nn.layers.dense(gx.sum(x), 3),
    "layer of ints": lambda x: gx.nn.layers.dense(gx.cast(x, "i32"), 3),
    "two ellipses": lambda x: x[..., ...],
    "assignment": lambda x: x.__setitem__(0, 1),
    "no loss": lambda x: gx.train.SGD(0.1).minimize(None),
    "a name that is no text": lambda x: gx.placeholder("f32", (3,), name=5),
    "a name with a colon": lambda x: gx.placeholder("f32", (3,), name="x:0"),
    "feeds in an array": lambda x: gx.Session().run(gx.sum(x), np.ones((4, 3))),
    "feeds in a number": lambda x: gx.Session().run(gx.sum(x), 3),
    "options": lambda x: gx.Session().run(gx.constant(1.0), options=3),
    "a fetch in itself": lambda x: gx.Session().run(_itself()),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_raise_graphc_errors(case: str) -> None:
    x = gx.placeholder("f32", (4, 3), name="x")
    with pytest.raises(gx.errors.GraphcError):
        BAD_CALLS[case](x)


def test_name_scope_none_leaves_outer_scopes() -> None:
    with gx.name_scope("a"), gx.name_scope(None):
        assert gx.placeholder("f32", (), name="p").name == "p:0"


def test_dtypes_compare_with_numpy_types_and_names() -> None:
    x = gx.placeholder("f32", ())
    assert x.dtype == np.float32 == x.dtype
    assert x.dtype == "float32"
    assert x.dtype != np.float64
    assert x.dtype != "text"
    assert x.dtype is not None
    assert {gx.float32: 1}[x.dtype] == 1


def test_a_signature_may_hold_a_training_step(tmp_path: Path) -> None:
    x = gx.placeholder("f32", (None,), name="x")
    v = gx.Variable(1.0, name="v")
    step = gx.group(v.assign_add(gx.sum(x)))
    path = tmp_path / "m.graphc"
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        gx.save_graph(path, session=session, signatures={"train": ({"x": x}, {"step": step})})
    model = gx.load_graph(path)
    assert model.run("train", x=[1.0, 2.0]) == {"step": None}
    (variable,) = model.graph.get_collection(gx.GraphKeys.GLOBAL_VARIABLES)
    assert model.session.get_value(variable) == 4.0


def test_sizes_beyond_any_memory_are_an_error() -> None:
    for shape in ((2**31, 2**31, 2**31), (2**62,), (2**60, 4)):
        y = gx.sum(gx.cumsum(gx.zeros(shape) + gx.Variable(1.0, dtype="f32"), axis=0))
        with pytest.raises(MemoryError, match="more than memory can hold"):
            gx.function([], y)()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("f", [lambda y: y, gx.tanh, gx.exp], ids=["identity", "tanh", "exp"])
def test_unknown_columns_times_known_rows(device: str, f: Any) -> None:
    """The columns of x are as many as the rows of w: also where only w's gradient is fetched."""
    with gx.Graph().as_default(), gx.Session(device=device) as session:
        x = gx.placeholder("f32", (None, None))
        w = gx.Variable(np.ones((4, 3), np.float32))
        (gradient,) = gx.gradients(gx.sum(f(x @ w), axis=0), [w])
        session.run(gx.global_variables_initializer())
        for rows in (2, 1):
            found = session.run(gradient, {x: np.zeros((rows, 4))})
            np.testing.assert_array_equal(found, np.zeros((4, 3)))
        with pytest.raises(gx.errors.ShapeError):
            session.run(gradient, {x: np.zeros((2, 5))})


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("features", [2, 6, 7, 9, 13, 15, 16, 30])
def test_a_few_rows_and_few_outputs(features: int, columns: int) -> None:
    """One column of weights lies along k and across it alike: rows of it were not told apart."""
    rng = np.random.default_rng(features)
    w = rng.integers(-9, 9, (features, columns)).astype(np.float32)
    with gx.Graph().as_default(), gx.Session() as session:
        x = gx.placeholder("f32", (None, features))
        predict = session.make_callable(x @ gx.constant(w) + 1.0, [x])
        for rows in (1, 2, 3, 4, 5, 9, 20):
            value = rng.integers(-9, 9, (rows, features)).astype(np.float32)
            np.testing.assert_array_equal(predict(value), value @ w + 1)


def test_products_of_sizes_that_are_all_unknown() -> None:
    """Room for the sums of a block was made for as many rows as three unknown sizes may give."""
    rng = np.random.default_rng(0)
    for left, right in (((2, 3, 1, 32), (32, 127)), ((3, 2, 5, 300), (300, 40))):
        a = gx.placeholder("f32", (None,) * 4)
        b = gx.placeholder("f32", (None, None))
        x, y = (rng.integers(-9, 9, shape).astype(np.float32) for shape in (left, right))
        with gx.Session() as session:
            np.testing.assert_array_equal(session.run(a @ b, {a: x, b: y}), x @ y)
            turned = session.run(a @ gx.transpose(b), {a: x, b: y.T})
            np.testing.assert_array_equal(turned, x @ y)
            summed = gx.tensordot(a, a, [[0, 1, 2], [0, 1, 2]])
            rows = x.reshape(-1, x.shape[-1])
            np.testing.assert_array_equal(session.run(summed, {a: x}), rows.T @ rows)
