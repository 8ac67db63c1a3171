"""Indexing, gathers and scatters, joining, padding and creation, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.errors import GraphTypeError, IndexOutOfRangeError, ShapeError
from graphc.ops import create, index, indexed, join, scatter

DEVICES = ("reference", "cpu")
FORMS = ("static", "symbolic", "unranked")
Array = np.ndarray[Any, Any]


def _placeholder(array: Array, form: str) -> gx.Tensor:
    shape = {"static": array.shape, "symbolic": (None,) * array.ndim, "unranked": None}[form]
    return gx.placeholder(array.dtype, shape)


def _run(function: Callable[..., Any], arrays: list[Array], device: str, form: str = "static"):
    """The value of a function of tensors, and the gradient of its sum of squares by the first."""
    with gx.Graph().as_default() as graph:
        inputs = [_placeholder(a, form) for a in arrays]
        y = function(*inputs)
        fetches = [y]
        if isinstance(y, gx.Tensor) and y.dtype.is_float:
            fetches.append(gx.gradients(gx.sum(y * y), inputs[:1])[0])
        with gx.Session(graph, device=device) as session:
            return session.run(fetches, dict(zip(inputs, arrays, strict=True)))


def _scattered(x: Array, key: Any) -> Array:
    """The gradient of sum(x[key] ** 2)."""
    wanted = np.zeros_like(x)
    np.add.at(wanted, key, 2 * x[key])
    return wanted


# ---- getitem -----------------------------------------------------------------------------------

BASIC = [
    np.s_[1:],
    np.s_[:-1],
    np.s_[::2],
    np.s_[::-1],
    np.s_[::-2],
    np.s_[-1],
    np.s_[0],
    np.s_[1:3],
    np.s_[-3:-1],
    np.s_[3:1],
    np.s_[10:],
    np.s_[:10],
    np.s_[:-10],
    np.s_[-10:],
    np.s_[4:0:-1],
    np.s_[-1:0:-2],
    np.s_[10::-1],
    np.s_[:-10:-1],
    np.s_[..., 0],
    np.s_[..., ::-1],
    np.s_[None],
    np.s_[:, None, 1],
    np.s_[1:, 2:],
    np.s_[-1, -1],
    np.s_[1, ..., None],
    np.s_[..., None, :],
    np.s_[1::3, 1:-1],
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", BASIC, ids=str)
def test_basic_indexing_is_that_of_numpy(key: Any, form: str, device: str) -> None:
    x = np.arange(20.0).reshape(5, 4)
    y, g = _run(lambda t: t[key], [x], device, form)
    np.testing.assert_array_equal(y, x[key])
    np.testing.assert_array_equal(g, _scattered(x, key))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", range(5))
def test_slices_of_sizes_known_at_run_time_stay_inside(rows: int, device: str) -> None:
    x = np.arange(2.0 * rows).reshape(rows, 2)
    keys = [k for k in BASIC if isinstance(k, slice)]
    with gx.Graph().as_default() as graph:
        t = gx.placeholder("f64", (None, 2))
        parts = [t[k] for k in keys]
        with gx.Session(graph, device=device) as session:
            for key, value in zip(keys, session.run(parts, {t: x}), strict=True):
                np.testing.assert_array_equal(value, x[key], err_msg=str(key))


def test_dropping_the_first_and_the_last_leaves_equal_sizes() -> None:
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (None,))
        assert x[1:].dims == x[:-1].dims
        assert x[::-1].dims == x.dims


ADVANCED = [
    (np.array([2, 0, -1]),),
    (np.array([[2, 0], [1, 1]]),),
    (slice(None), np.array([3, -4])),
    (np.array([0, 1, 1]), np.array([3, 0, 0])),
    (np.array([[0], [1]]), np.array([3, 0])),
    (Ellipsis, np.array([1, 1]), slice(None, None, 2)),
    (1, np.array([0, 2])),
    (slice(1, None), np.array([2, 2]), None),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ADVANCED, ids=str)
def test_indexing_by_integer_tensors(key: tuple, form: str, device: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    y, g = _run(lambda t: t[key], [x], device, form)
    np.testing.assert_array_equal(y, x[key])
    np.testing.assert_allclose(g, _scattered(x, key))


@pytest.mark.parametrize("device", DEVICES)
def test_an_index_tensor_may_be_fed(device: str) -> None:
    x, i = np.arange(12.0).reshape(4, 3), np.array([3, -4], np.int32)
    y, _ = _run(lambda t, k: t[k], [x, i], device)
    np.testing.assert_array_equal(y, x[i])
    with pytest.raises(IndexOutOfRangeError, match="index -5 is out of range for axis 0 of size 4"):
        _run(lambda t, k: t[k], [x, np.array([1, -5])], device)


def test_wrong_keys_are_refused_when_the_graph_is_built() -> None:
    with gx.Graph().as_default():
        x = gx.placeholder("f32", (3, 4), name="x")
        with pytest.raises(IndexOutOfRangeError, match=r"index 3 is out of range .* of size 3"):
            x[3]
        with pytest.raises(GraphTypeError, match="too many indices: 3"):
            x[0, 0, 0]
        with pytest.raises(GraphTypeError, match=r"bool tensor is not supported.*gx\.where"):
            x[x > 0]
        with pytest.raises(GraphTypeError, match="an index has an integer dtype, not f64"):
            x[np.array([0.5])]
        with pytest.raises(ShapeError, match="step cannot be 0"):
            x[::0]
        assert [t.shape for t in x] == [(4,)] * 3


@pytest.mark.parametrize("device", DEVICES)
def test_an_int_beyond_a_size_known_at_run_time_is_refused(device: str) -> None:
    with pytest.raises(ShapeError, match="exceeds size"):
        _run(lambda t: t[5], [np.zeros(4)], device, "symbolic")
    with pytest.raises(ShapeError, match="exceeds size"):
        _run(lambda t: t[-5], [np.zeros(4)], device, "symbolic")


# ---- flip, roll, gathers -----------------------------------------------------------------------

MOVES = [
    (index.flip, np.flip, {}),
    (index.flip, np.flip, {"axis": 1}),
    (index.roll, np.roll, {"shift": 2, "axis": 0}),
    (index.roll, np.roll, {"shift": -7, "axis": 1}),
    (index.roll, np.roll, {"shift": (1, 2), "axis": (0, 1)}),
    (index.roll, np.roll, {"shift": 0, "axis": 0}),
    (create.tril, np.tril, {}),
    (create.triu, np.triu, {"k": 1}),
    (join.tile, np.tile, {"reps": (2, 3)}),
    (join.tile, np.tile, {"reps": (2, 1, 2)}),
    (join.repeat, np.repeat, {"repeats": 3, "axis": 1}),
    (join.repeat, np.repeat, {"repeats": 2}),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize(("ours", "numpys", "kwargs"), MOVES)
def test_moves_are_those_of_numpy(
    ours: Any, numpys: Any, kwargs: dict, form: str, device: str
) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    y, _ = _run(lambda t: ours(t, **kwargs), [x], device, form)
    np.testing.assert_array_equal(y, numpys(x, **kwargs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap", "constant"])
@pytest.mark.parametrize("form", FORMS[:2])
def test_pads_are_those_of_numpy(mode: str, form: str, device: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    pads = ((2, 5), (0, 1))
    y, g = _run(lambda t: join.pad(t, pads, mode), [x], device, form)
    np.testing.assert_array_equal(y, np.pad(x, pads, mode))
    positions = np.pad(np.arange(12).reshape(3, 4), pads, mode, **_nowhere(mode))
    counts = np.bincount(positions[positions >= 0], minlength=12).reshape(3, 4)
    np.testing.assert_allclose(g, 2 * x * counts)


def _nowhere(mode: str) -> dict:
    return {"constant_values": -1} if mode == "constant" else {}


@pytest.mark.parametrize("device", DEVICES)
def test_gather_refuses_what_numpy_would_wrap(device: str) -> None:
    x = np.arange(12.0).reshape(4, 3)
    y, _ = _run(lambda t, i: indexed.gather(t, i, 1), [x, np.array([[0], [2]])], device)
    np.testing.assert_array_equal(y, np.take(x, [[0], [2]], 1))
    with pytest.raises(IndexOutOfRangeError, match="index -1 is out of range for axis 0 of size 4"):
        _run(indexed.gather, [x, np.array([0, -1])], device)
    with pytest.raises(IndexOutOfRangeError, match="index 9 is out of range for axis 0"):
        _run(indexed.gather, [x, np.array([0, 9])], device, "symbolic")
    y, _ = _run(lambda t, i: indexed.take(t, i, 0), [x, np.array([0, -1])], device)
    np.testing.assert_array_equal(y, x[[0, -1]])


@pytest.mark.parametrize("device", DEVICES)
def test_a_fault_leaves_variables_alone(device: str) -> None:
    with gx.Graph().as_default() as graph:
        v, i = gx.Variable(np.ones(3, "f4")), gx.placeholder("i32", (None,))
        step = v.assign_add(indexed.take(v, i, 0))
        with gx.Session(graph, device=device) as session:
            session.run(gx.global_variables_initializer())
            with pytest.raises(IndexOutOfRangeError):
                session.run(step, {i: [0, 1, 7]})
            np.testing.assert_array_equal(session.run(v), np.ones(3))


@pytest.mark.parametrize("device", DEVICES)
def test_scatters_along_the_first_axis(device: str) -> None:
    rng = np.random.default_rng(0)
    x, u, i = rng.standard_normal((5, 2)), rng.standard_normal((4, 2)), np.array([4, 0, 4, 1])
    added = x.copy()
    np.add.at(added, i, u)
    y, g = _run(lambda a, b: scatter.scatter_add(a, i, b), [x, u], device)
    np.testing.assert_allclose(y, added)
    np.testing.assert_allclose(g, 2 * added)
    written = x.copy()
    written[i] = u
    y, g = _run(lambda a, b: scatter.scatter_update(a, i, b), [x, u], device)
    np.testing.assert_array_equal(y, written)
    np.testing.assert_allclose(g, np.where(np.isin(np.arange(5), i)[:, None], 0, 2 * x))
    _, g = _run(lambda b, a: scatter.scatter_update(a, i, b), [u, x], device)
    np.testing.assert_allclose(g, 2 * u * np.array([[0], [1], [1], [1]]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int, device: str) -> None:
    i = np.array([[0, 2, 5], [1, -1, 2]])
    (y,) = _run(lambda t: create.one_hot(t, 3, axis=axis, dtype="i32"), [i], device)
    wanted = np.moveaxis(i[..., None] == np.arange(3), -1, axis)
    np.testing.assert_array_equal(y, wanted)


# ---- joining and creating ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
def test_concat_of_many(form: str, device: str) -> None:
    arrays = [np.full((2, n), float(n)) for n in range(20)]
    y, g = _run(lambda *xs: join.concat(xs[::-1], 1), arrays[1:], device, form)
    np.testing.assert_array_equal(y, np.concatenate(arrays[:0:-1], 1))
    np.testing.assert_array_equal(g, 2 * arrays[1])


@pytest.mark.parametrize("device", DEVICES)
def test_stack_split_and_unstack(device: str) -> None:
    x = np.arange(24.0).reshape(4, 6)
    (y,) = _run(lambda t: join.split(t, 3, 1), [x], device, "symbolic")
    assert [v.tolist() for v in y] == [v.tolist() for v in np.split(x, 3, 1)]
    (y,) = _run(lambda t: join.split(t, [1, -1, 2], 1), [x], device, "symbolic")
    assert [v.tolist() for v in y] == [v.tolist() for v in np.split(x, [1, 4], 1)]
    (y,) = _run(join.unstack, [x], device)
    assert [v.tolist() for v in y] == x.tolist()
    for axis in (0, 1, -1):
        y, _ = _run(lambda a, b, axis=axis: join.stack([a, b], axis), [x, x + 1], device)
        np.testing.assert_array_equal(y, np.stack([x, x + 1], axis))


def test_concat_names_the_sizes_that_differ() -> None:
    with gx.Graph().as_default():
        a, b = gx.placeholder("f32", (2, 3)), gx.placeholder("f32", (3, 3))
        with pytest.raises(ShapeError) as caught:
            join.concat([a, b], 1)
    assert str(caught.value).startswith(
        "concat: sizes of axis 0 differ, 2 and 3, in f32[2,3] and f32[3,3]\n  at "
    )


def _creations(x: Array) -> list[tuple[gx.Tensor, Array]]:
    return [
        (create.arange(5), np.arange(5)),
        (create.arange(2, 11, 3), np.arange(2, 11, 3)),
        (create.arange(5, 0, -2), np.arange(5, 0, -2)),
        (create.arange(0.0, 1.0, 0.25), np.arange(0, 1, 0.25, "f4")),
        (create.linspace(0, 1, 7, dtype="f64"), np.linspace(0, 1, 7)),
        (create.eye(3, 4, 1), np.eye(3, 4, 1, "f4")),
        (create.full((2, 3), 7, "i32"), np.full((2, 3), 7, "i4")),
        (create.zeros((2, 0)), np.zeros((2, 0), "f4")),
        (create.ones(3), np.ones(3, "f4")),
        (gx.diag(x), np.diag(x)),
        (gx.diag(x[0]), np.diag(x[0])),
        (gx.trace(x), np.trace(x)),
        *zip(create.meshgrid(x[0], x[1, :3]), np.meshgrid(x[0], x[1, :3]), strict=True),
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_creation(device: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 4))
    with gx.Graph().as_default() as graph:
        cases = _creations(x)
        with gx.Session(graph, device=device) as session:
            values = session.run([t for t, _ in cases])
    for value, (_, wanted) in zip(values, cases, strict=True):
        assert value.dtype == wanted.dtype
        np.testing.assert_array_equal(value, wanted)
