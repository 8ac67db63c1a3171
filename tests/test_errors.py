"""What every kind of mistake says, word for word, and that the session works on after it."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc import errors
from graphc.ops.indexed import gather
from graphc.session import RunOptions

DEVICES = ("reference", "cpu")
HERE = "test_errors.py"


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def message(expected: type[BaseException], work: Callable[[], Any]) -> str:
    with pytest.raises(expected) as caught:
        work()
    assert caught.value.__cause__ is None
    return str(caught.value)


def at(t: Any, back: int = 0) -> str:
    """`file:line` of the node, `back` lines earlier."""
    return f"{HERE}:{t.node.loc.line - back}"


def source(t: Any) -> str:
    return linecache.getline(__file__, t.node.loc.line).strip()


class Model:
    """A variable that some runs would change, to see that failed ones do not."""

    def __init__(self, device: str) -> None:
        self.v = gx.Variable(np.float32(1), name="kept")
        self.session = gx.Session(device=device)
        self.session.run(self.v.initializer)

    def fails(self, expected: type[BaseException], fetch: Any, feeds: Any, **options: Any) -> str:
        """The message of a run that also updates the variable, which must stay as it was."""
        up = self.v.assign_add(1.0)
        run_options = RunOptions(**options) if options else None
        text = message(expected, lambda: self.session.run([up, fetch], feeds, run_options))
        assert self.session.run(self.v) == 1
        assert self.session.run(up) == 2
        assert self.session.run(self.v.assign(1.0)) == 1
        return text


# ---- at construction ---------------------------------------------------------------------------


def test_wrong_shape_at_construction() -> None:
    x = gx.placeholder("f32", (2, 3), name="x")
    b = gx.placeholder("f32", (4, 5), name="b")
    first = x.node.loc.line
    text = message(
        errors.ShapeError,
        lambda: gx.matmul(x, b),
    )
    assert text == (
        "matmul: inner dimensions differ, 3 and 4, in f32[2,3] @ f32[4,5]\n"
        f"  at {HERE}:{first + 5}   lambda: gx.matmul(x, b),\n"
        f"  operand 0: f32[2,3]       placeholder 'x' created at {HERE}:{first}   "
        'x = gx.placeholder("f32", (2, 3), name="x")\n'
        f"  operand 1: f32[4,5]       placeholder 'b' created at {HERE}:{first + 1}   "
        'b = gx.placeholder("f32", (4, 5), name="b")'
    )
    with gx.Session() as s:
        assert s.run(gx.sum(x), {x: np.ones((2, 3))}) == 6


def test_shapes_that_do_not_broadcast_at_construction() -> None:
    x = gx.placeholder("f32", (2,), name="x")
    y = gx.placeholder("f32", (3,), name="y")
    first = x.node.loc.line
    assert message(errors.ShapeError, lambda: x + y) == (
        "add: shapes [2] and [3] do not broadcast\n"
        f"  at {HERE}:{first + 3}   assert message(errors.ShapeError, lambda: x + y) == (\n"
        f"  operand 0: f32[2]         placeholder 'x' created at {HERE}:{first}   "
        'x = gx.placeholder("f32", (2,), name="x")\n'
        f"  operand 1: f32[3]         placeholder 'y' created at {HERE}:{first + 1}   "
        'y = gx.placeholder("f32", (3,), name="y")'
    )


def test_wrong_dtype_at_construction() -> None:
    with gx.Graph(strict_dtypes=True).as_default():
        x, n = gx.placeholder("f32", name="x"), gx.placeholder("i32", name="n")
        assert message(errors.GraphTypeError, lambda: x * n) == (
            "multiply: dtypes f32, i32 differ, and this graph is strict: cast first"
        )
    assert message(errors.GraphTypeError, lambda: gx.placeholder("complex64")) == (
        "dtype 'complex64' is not supported (supported: "
        "f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, bool)"
    )


def test_assigning_another_type() -> None:
    v = gx.Variable(np.zeros((2, 3), "f4"), name="v")
    t = gx.placeholder("f32", (3, 2), name="t")
    text = message(errors.ShapeError, lambda: v.assign(t))
    assert text.splitlines()[0] == (
        "assign: a value of type f32[3,2] for a variable of type f32[2,3]"
    )
    n = gx.placeholder("i32", (2, 3), name="n")
    text = message(errors.GraphTypeError, lambda: v.assign(n))
    assert text.splitlines()[0] == "assign: a value of dtype i32 for a f32 variable"


def test_tensors_of_two_graphs() -> None:
    a = gx.constant(1.0, name="a")
    with gx.Graph().as_default():
        b = gx.constant(2.0, name="b")
        assert message(errors.GraphError, lambda: gx.add(a, b)) == (
            f"add: constant 'a' f32[] ({at(a)}) belongs to another graph than the one being built"
        )


# ---- feeds -------------------------------------------------------------------------------------


def test_missing_feed(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", (None, 784), name="x")
    labels = gx.placeholder("i32", (), name="labels")
    loss = gx.identity(gx.sum(x), name="loss")
    y = gx.identity(labels)
    up = model.v.assign_add(1.0, name="up")
    run = model.session.run
    assert message(errors.FeedError, lambda: run(loss)) == (
        f"fetch 'loss' ({at(loss)}) needs placeholder 'x' f32[{x.dims[0]},784] ({at(x)}); "
        "feed_dict has nothing"
    )
    assert message(errors.FeedError, lambda: run([up, loss], {labels: 1})) == (
        f"fetch 'up' ({at(up)}), 'loss' ({at(loss)}) needs placeholder 'x' "
        f"f32[{x.dims[0]},784] ({at(x)}); "
        "feed_dict has 'labels'"
    )
    assert run(model.v) == 1
    assert run([loss, y], {x: np.ones((1, 784)), labels: 3}) == [784, 3]


def test_extra_feed_is_harmless_and_unknown_is_not(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", (), name="x")
    y = gx.placeholder("f32", (), name="y")
    z = x * 2
    run = model.session.run
    assert run(z, {x: 1.0, y: 5.0}) == 2
    assert message(errors.FeedTypeError, lambda: run(z, {"nosuch": 1.0})) == (
        "feed 'nosuch': no operation in this graph is called 'nosuch'"
    )
    assert message(errors.FeedTypeError, lambda: run(z, {3: 1.0})) == (
        "a feed is named by a tensor or a name, not by 3"
    )
    assert message(errors.FeedTypeError, lambda: run(z, [1.0])) == (
        "feed_dict is a dict of values by tensor, not [1.0]"
    )
    with gx.Graph().as_default():
        other = gx.placeholder("f32", (), name="other")
    assert message(errors.FeedError, lambda: run(z, {other: 1.0})) == (
        f"feed {other!r} belongs to another graph than this session's"
    )
    assert run(z, {x: 3.0}) == 6


def test_mistyped_feed(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", (None,), name="x")
    n = gx.placeholder("u8", (None,), name="n")
    label, count = f"placeholder 'x' {x.type} ({at(x)})", f"placeholder 'n' {n.type} ({at(n)})"
    y = gx.sum(x) + gx.sum(gx.astype(n, "f32"))
    cases: list[tuple[Any, Any, str]] = [
        ("abc", [1], f"{label} was fed str of dtype <U3, which is not numeric"),
        ([1j], [1], f"{label} was fed list of dtype complex128, which is not numeric"),
        ([1], [1, 300], f"{count} was fed 300, which does not fit u8"),
        ([1], [-1], f"{count} was fed -1, which does not fit u8"),
        ([1], [0.5], f"{count} was fed float64, which does not convert safely"),
    ]
    for fed_x, fed_n, text in cases:
        assert model.fails(errors.FeedTypeError, y, {x: fed_x, n: fed_n}) == text
    text = model.fails(errors.FeedTypeError, y, {x: y, n: [1]})
    assert text == f"{label} was fed a symbolic tensor, {y!r}: feed its value"
    assert model.session.run(y, {x: [1], n: [2]}) == 3


def test_misshapen_feed(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", ("batch", 784), name="x")
    y = gx.placeholder("i32", ("batch",), name="y")
    z = gx.sum(x) + gx.sum(gx.astype(y, "f32"))
    label = f"placeholder 'x' f32[batch,784] ({at(x)})"
    for shape in ((64, 28), (64,), (64, 28, 28)):
        text = model.fails(errors.FeedError, z, {x: np.zeros(shape), y: [0] * 64})
        assert text == f"{label} was fed an array of shape {shape}"
    text = model.fails(errors.FeedError, z, {x: np.zeros((2, 784)), y: [1, 2, 3]})
    assert text == (f"size 'batch' is 2 in {label} but 3 in placeholder 'y' i32[batch] ({at(y)})")
    assert model.session.run(z, {x: np.zeros((2, 784)), y: [1, 2]}) == 3


# ---- fetches -----------------------------------------------------------------------------------


def test_wrong_fetches(device: str) -> None:
    model = Model(device)
    run = model.session.run
    assert message(errors.FetchTypeError, lambda: run([None])) == (
        "cannot fetch None: a fetch is a tensor, an operation, a name, or a list, tuple or dict of "
        "them"
    )
    assert message(errors.FetchError, lambda: run("nosuch")) == (
        "fetch 'nosuch': no operation in this graph is called 'nosuch'"
    )
    assert message(errors.FetchError, lambda: run("kept:4")) == (
        "fetch 'kept:4': 'kept:4': operation 'kept' has 1 outputs"
    )
    assert run("kept:0") == 1


def test_uninitialized_variable(device: str) -> None:
    model = Model(device)
    w = gx.Variable(np.zeros(3, "f4"), name="w")
    text = model.fails(errors.UninitializedError, w + 1, None)
    assert text == (
        f"variable 'w' f32[3] ({at(w)}) has no value in this session: "
        "run gx.global_variables_initializer() first"
    )
    assert message(errors.UninitializedError, lambda: model.session.get_value(w)) == (
        f"variable 'w' ({at(w)}) has no value in this session"
    )
    model.session.run(w.initializer)
    np.testing.assert_array_equal(model.session.run(w + 1), [1, 1, 1])


def test_closed_session() -> None:
    t = gx.constant(1.0)
    s = gx.Session()
    s.close()
    assert message(errors.SessionClosedError, lambda: s.run(t)) == "the session is closed"
    assert message(errors.SessionClosedError, s.__enter__) == "the session is closed"


def test_finalized_graph() -> None:
    t = gx.constant(1.0)
    gx.get_default_graph().finalize()
    line = t.node.loc.line + 3
    assert message(errors.FinalizedError, lambda: gx.constant(2.0)) == (
        f"constant: the graph is finalized ({HERE}:{line})"
    )


# ---- while running -----------------------------------------------------------------------------


def test_index_out_of_range(device: str) -> None:
    model = Model(device)
    table = gx.constant([1.0, 2.0, 3.0])
    i = gx.placeholder("i32", (None,), name="i")
    y = gather(table, i)
    text = model.fails(errors.IndexOutOfRangeError, y, {i: [0, 7]})
    assert text == (
        f"gather: index 7 is out of range for axis 0 of size 3\n  at {at(y)}   {source(y)}"
    )
    np.testing.assert_array_equal(model.session.run(y, {i: [2, 0]}), [3, 1])


@pytest.mark.parametrize("name", ["floor_divide", "remainder"])
def test_integer_division_by_zero(name: str, device: str) -> None:
    model = Model(device)
    n = gx.placeholder("i32", (None,), name="n")
    y = getattr(gx, name)(10, n)
    text = model.fails(errors.IntegerDivisionError, y, {n: [1, 0]})
    assert text == f"{name}: integer division by zero\n  at {at(y)}   {source(y)}"
    assert list(model.session.run(y, {n: [5]})) == [10 // 5 if name == "floor_divide" else 0]


def test_shapes_that_do_not_broadcast_when_run(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", ("n",), name="x")
    y = gx.placeholder("f32", ("m",), name="y")
    z = x * y
    text = model.fails(errors.ShapeError, z, {x: [1, 2, 3], y: [1, 2]})
    assert text == (f"multiply: n = 3 and m = 2 do not broadcast\n  at {at(z)}   {source(z)}")
    np.testing.assert_array_equal(model.session.run(z, {x: [1, 2], y: [3]}), [3, 6])


def test_matmul_of_wrong_sizes_when_run(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", ("a", "b"), name="x")
    y = gx.placeholder("f32", ("c", "d"), name="y")
    z = gx.matmul(x, y)
    text = model.fails(errors.ShapeError, z, {x: np.ones((2, 3)), y: np.ones((4, 5))})
    assert text == (
        "inner dimensions differ, b and c, in f32[a,b] @ f32[c,d] (b = 3, c = 4)\n"
        f"  at {at(z)}   {source(z)}"
    )
    assert model.session.run(z, {x: np.ones((2, 3)), y: np.ones((3, 1))}).shape == (2, 1)


def test_non_finite_under_the_guard(device: str) -> None:
    model = Model(device)
    x = gx.placeholder("f32", (None,), name="x")
    y = gx.divide(1.0, x, name="inverse")
    text = model.fails(errors.NonFiniteError, y, {x: [1, 0]}, nan_guard=True)
    assert text == (
        f"divide 'inverse' gave inf at index (1,)\n  at {at(y)}   {source(y)}\n"
        "  operand 0: f32 (2,) is 1.0\n"
        "  operand 1: f32 (2,) from 0.0 to 1.0, 0.0 there"
    )
    np.testing.assert_array_equal(model.session.run(y, {x: [1, 0]}), [1, np.inf])


# ---- gradients ---------------------------------------------------------------------------------


def test_gradients_without_meaning() -> None:
    n = gx.placeholder("i32", (), name="n")
    x = gx.placeholder("f32", (), name="x")
    assert message(errors.GradientError, lambda: gx.gradients(n, x)) == (
        f"cannot differentiate placeholder 'n' i32[] ({at(n)}): its dtype is not a float"
    )
    assert message(errors.GradientError, lambda: gx.gradients(x, "x")) == (
        "cannot differentiate with respect to 'x'"
    )
