"""Compiled functions: inputs, outputs, updates, givens, shared variables, derivatives."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.errors import UnusedInputError
from graphc.function import In, Out, function
from graphc.shared import shared

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def session(request: pytest.FixtureRequest) -> Iterator[gx.Session]:
    """A default session on each device; functions run in it."""
    with gx.Session(device=request.param) as s:
        yield s


def scalar(name: str, dtype: str = "f32") -> gx.Tensor:
    return gx.placeholder(dtype, (), name=name)


def vector(name: str, dtype: str = "f32") -> gx.Tensor:
    return gx.placeholder(dtype, (None,), name=name)


# ---- inputs ------------------------------------------------------------------------------------


def test_arguments_by_position_name_and_default(session: gx.Session) -> None:
    x, y = scalar("x"), scalar("y")
    f = function([x, In(y, value=10.0, name="offset")], x * 2 + y)
    assert f(1) == 12
    assert f(1, 2) == 4
    assert f(x=1, offset=3) == 5
    assert f(1, offset=3) == 5


def test_missing_extra_unknown_and_repeated_arguments() -> None:
    x, y = scalar("x"), scalar("y")
    f = function([x, y], x + y, name="plus")
    line = f"test_function.py:{x.node.loc.line}"
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((1,), {}, f"function 'plus' needs 'y': placeholder 'y' f32[] ({line})"),
        ((1, 2, 3), {}, "function 'plus' takes 2 arguments, got 3"),
        ((1, 2), {"z": 3}, "function 'plus' has no input called 'z'"),
        ((1,), {"x": 3}, "function 'plus': input 'x' is given twice"),
    ]
    for args, kwargs, message in cases:
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            f(*args, **kwargs)
    assert f(1, 2) == 3


def test_an_input_given_twice_is_refused() -> None:
    x = scalar("x")
    with pytest.raises(ValueError, match="is an input twice"):
        function([x, x], x)


def test_unused_input() -> None:
    x, y = scalar("x"), scalar("y")
    with pytest.raises(UnusedInputError, match="depends on input 'y'"):
        function([x, y], x)
    with pytest.warns(UserWarning, match="depends on input 'y'"):
        function([x, y], x, on_unused_input="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function([x, y], x, on_unused_input="ignore")(1, 2) == 1
    with pytest.raises(TypeError, match="on_unused_input"):
        function([x], x, on_unused_input="maybe")


def test_an_input_used_only_for_its_size_is_used() -> None:
    x = vector("x")
    assert list(function([x], gx.shape(x))([5, 6, 7])) == [3]


def test_a_placeholder_that_is_no_input_is_refused() -> None:
    x, y = scalar("x"), scalar("y")
    with pytest.raises(ValueError, match=r"needs placeholder 'y'.*not one of its inputs"):
        function([x], x + y)


def test_downcasting_arguments() -> None:
    x = vector("x")
    f = function([x], x * 2)
    np.testing.assert_array_equal(f([0.1, 2]), np.array([0.1, 2], "f4") * 2)
    np.testing.assert_array_equal(f(np.array([1, 2])), [2, 4])
    wide = np.array([0.1, 2.0])
    with pytest.raises(TypeError, match="input 'x' is f32 and was given ndarray of dtype float64"):
        f(wide)
    assert function([x], x, allow_input_downcast=True)(wide).dtype == np.float32
    assert function([In(x, allow_downcast=True)], x)(wide).dtype == np.float32
    exact = function([x], x, allow_input_downcast=False)
    with pytest.raises(TypeError):
        exact([0.1])
    np.testing.assert_array_equal(exact([0.5, np.nan]), [0.5, np.nan])


def test_strict_inputs_take_their_own_dtype_only() -> None:
    x = vector("x")
    f = function([In(x, strict=True)], x)
    assert f(np.ones(2, "f4")).dtype == np.float32
    with pytest.raises(TypeError, match="strict"):
        f([1.0])


def test_any_tensor_may_be_an_input(session: gx.Session) -> None:
    x = scalar("x")
    h = x * 2
    assert function([h], h + 1)(10) == 11


# ---- outputs -----------------------------------------------------------------------------------


def test_outputs_keep_their_structure(session: gx.Session) -> None:
    x = scalar("x")
    assert function([x], None, on_unused_input="ignore")(1) is None
    assert function([x], [], on_unused_input="ignore")(1) == []
    assert function([x], x + 1)(1) == 2
    assert function([x], [x + 1])(1) == [2]
    assert function([x], (x, Out(x + 1, borrow=True)))(1) == (1, 2)
    assert function([x], {"a": x, "b": [x + 1]})(1) == {"a": 1, "b": [2]}


def test_results_are_fresh_arrays(session: gx.Session) -> None:
    x = vector("x")
    w = shared(np.ones(2, "f4"))
    f = function([x], [x, w, gx.constant([1.0, 2.0]), x + w])
    fed = np.zeros(2, "f4")
    first = f(fed)
    kept = [a.copy() for a in first]
    for a in first[:3]:
        a += 5
    assert not fed.any()
    for a, b in zip(f(fed), kept, strict=True):
        np.testing.assert_array_equal(a, b)
    second = f(np.ones(2, "f4"))
    assert second[3] is not first[3] and (first[3] == 1).all()


def test_overlapping_arguments_do_not_disturb_each_other(session: gx.Session) -> None:
    x, y = vector("x"), vector("y")
    f = function([In(x, mutable=True), In(y, mutable=True)], [x + 1, y * 2, x + y])
    base = np.arange(5, dtype="f4")
    a, b = base[:-1], base[1:]
    for got, want in zip(f(a, b), [a + 1, b * 2, a + b], strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(base, np.arange(5))


# ---- updates -----------------------------------------------------------------------------------


def test_updates_are_simultaneous(session: gx.Session) -> None:
    x, y, z = shared(1.0, "x"), shared(2.0, "y"), shared(3.0, "z")
    f = function([], [x, y, z], updates=[(x, y), (y, z), (z, x + y)])
    assert f() == [1, 2, 3]
    assert [float(v.get_value()) for v in (x, y, z)] == [2, 3, 3]
    assert f() == [2, 3, 3]


def test_updates_that_are_wrong_are_refused() -> None:
    w = shared(np.zeros(3, "f4"), "w")
    with pytest.raises(ValueError, match="two updates"):
        function([], w, updates=[(w, w + 1), (w, w + 2)])
    wrong = [
        gx.constant(np.zeros(3)),
        gx.constant([1, 2, 3]),
        gx.constant(np.zeros(4, "f4")),
        gx.constant(np.zeros((1, 3), "f4")),
        gx.constant(1.0),
    ]
    for value in wrong:
        with pytest.raises(TypeError, match="an update of type"):
            function([], w, updates={w: value})
    with pytest.raises(TypeError, match="not a variable"):
        function([], w, updates={w + 1: w})
    with pytest.raises(TypeError, match="pairs"):
        function([], w, updates=[w])


def test_an_update_of_unknown_size_is_checked_when_run(session: gx.Session) -> None:
    w, x = shared(np.zeros(3, "f4"), "w"), vector("x")
    f = function([x], None, updates={w: x})
    f([1, 2, 3])
    np.testing.assert_array_equal(w.get_value(), [1, 2, 3])
    with pytest.raises(ValueError):
        f([1, 2])
    with pytest.raises(ValueError):
        f([1])
    np.testing.assert_array_equal(w.get_value(), [1, 2, 3])


def test_self_updates_keep_the_value(session: gx.Session) -> None:
    a, b = shared(1.0, "a"), shared(np.array([3.0], "f4"), "b")
    f = function([], None, updates={a: a, b: 2 * b - b})
    f()
    assert a.get_value() == 1 and b.get_value() == 3 and b.get_value().shape == (1,)


def test_empty_updates_and_givens(session: gx.Session) -> None:
    x = scalar("x")
    assert function([x], x, updates={}, givens={})(1) == 1
    assert function([x], x, updates=[], givens=[])(1) == 1


def test_default_updates(session: gx.Session) -> None:
    a = shared(0.0, "a")
    a.default_update = a + 1
    f = function([], a)
    a.default_update = a + 100  # f was made already
    assert [f(), f(), f()] == [0, 1, 2]
    function([], a, no_default_updates=True)()
    function([], a, no_default_updates=[a])()
    assert a.get_value() == 3
    function([], a, updates={a: a - 1})()
    assert a.get_value() == 2
    function([], a, no_default_updates=[])()
    assert a.get_value() == 102


def test_default_updates_chained(session: gx.Session) -> None:
    a, b, c = shared(1.0, "a"), shared(10.0, "b"), shared(100.0, "c")
    a.default_update = a + b
    b.default_update = b + c
    c.default_update = c * 2
    f = function([], a)
    assert f() == 1
    assert [float(v.get_value()) for v in (a, b, c)] == [11, 110, 200]


def test_default_updates_of_a_variable_cut_out(session: gx.Session) -> None:
    a = shared(1.0, "a")
    a.default_update = a + 1
    y = a * 2
    assert function([y], y)(5) == 5
    assert function([a], a * 3)(5) == 15
    assert function([], y, givens={a: gx.constant(7.0)})() == 14
    assert a.get_value() == 1


# ---- givens ------------------------------------------------------------------------------------


def test_givens_replace_in_one_function_only(session: gx.Session) -> None:
    w, x = shared(2.0, "w"), scalar("x")
    y = x * w + w
    assert function([x], y, givens={w: x + 1})(3) == 16
    assert function([x], y)(3) == 8
    assert function([x], y, givens=[(w, w * 10)])(1) == 40
    assert w.get_value() == 2


def test_givens_supply_placeholders(session: gx.Session) -> None:
    data = shared(np.arange(6, dtype="f4"), "data")
    x, i = gx.placeholder("f32", (2,)), gx.placeholder("i32", (2,))
    from graphc.ops.indexed import gather

    f = function([i], gx.sum(x * x), givens={x: gather(data, i)})
    assert f([1, 2]) == 5
    assert f([0, 5]) == 25


def test_givens_that_are_wrong_are_refused() -> None:
    x, w = scalar("x"), shared(1.0, "w")
    with pytest.raises(ValueError, match="is an input"):
        function([x], x + w, givens={x: w})
    with pytest.raises(TypeError, match="cannot stand for"):
        function([x], x + w, givens={w: gx.constant(1.0, "f64")})
    with pytest.raises(TypeError, match="cannot stand for"):
        function([x], x + w, givens={w: gx.constant([1.0, 2.0])})
    with pytest.raises(TypeError, match="not a tensor"):
        function([x], x, givens={"x": w})


# ---- shared variables and state ----------------------------------------------------------------


def test_shared_values_are_copied(session: gx.Session) -> None:
    start = np.ones(2, "f4")
    w = shared(start)
    start[:] = 5
    w.get_value()[:] = 7
    new = np.full(2, 3, "f4")
    np.testing.assert_array_equal(w.get_value(), [1, 1])
    w.set_value(new)
    new[:] = 9
    np.testing.assert_array_equal(w.get_value(), [3, 3])
    with pytest.raises(ValueError):
        w.set_value(np.ones(3))


def test_state_is_shared_between_functions() -> None:
    w, x = shared(0.0, "w"), scalar("x")
    up = function([x], w, updates={w: w + x})
    down = function([x], w, updates={w: w - x})
    up(5)
    assert down(2) == 5
    assert w.get_value() == 3


def test_state_belongs_to_the_session_of_the_call() -> None:
    w = shared(1.0, "w")
    f = function([], w, updates={w: w + 1})
    f()
    with gx.Session():
        assert f() == 1  # its own value, from the initial one
        assert f() == 2
    assert f() == 2
    other = gx.Session()
    assert function([], w, session=other)() == 1


def test_initial_values_follow_each_other() -> None:
    a = gx.Variable(3.0, name="a")
    b = gx.Variable(a * 2, name="b")
    assert function([], b + 1)() == 7


def test_copy(session: gx.Session) -> None:
    w, x = shared(1.0, "w"), scalar("x")
    f = function([x], w * x, updates={w: w + 1})
    f(1)
    own = f.copy()
    both = f.copy(share_memory=True)
    still = f.copy(share_memory=True, delete_updates=True)
    assert [own(1), own(1)] == [2, 3]
    assert w.get_value() == 2
    assert [both(1), still(1), still(1)] == [2, 3, 3]
    v = shared(100.0, "v")
    swapped = f.copy(share_memory=True, swap={w: v})
    assert [swapped(1), swapped(1)] == [100, 101]
    assert w.get_value() == 3 and v.get_value() == 102
    with pytest.raises(TypeError, match="cannot swap"):
        f.copy(swap={w: shared(np.ones(2, "f4"))})


def test_python_copies_and_pickle(session: gx.Session) -> None:
    w = shared(1.0, "w")
    f = function([], w, updates={w: w + 1})
    apart, together = copy.deepcopy(f), copy.copy(f)
    assert [f(), together(), apart(), apart(), f()] == [1, 2, 1, 2, 3]
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(f)


def test_a_failed_call_changes_nothing(session: gx.Session) -> None:
    w, x, y = shared(np.zeros(2, "f4"), "w"), vector("x"), gx.placeholder("i32", (), name="y")
    f = function([x, y], 10 // y, updates={w: w + gx.sum(x)})
    with pytest.raises(ZeroDivisionError):
        f([1, 2], 0)
    np.testing.assert_array_equal(w.get_value(), [0, 0])
    assert f([1, 2], 3) == 3
    np.testing.assert_array_equal(w.get_value(), [3, 3])


def test_functions_add_no_nodes_when_called() -> None:
    w, x = shared(0.0, "w"), vector("x")
    f = function([x], gx.sum(x) + w, updates={w: w + 1})
    before = len(gx.get_default_graph().nodes)
    for n in range(4):
        f(np.ones(n, "f4"))
    assert len(gx.get_default_graph().nodes) == before


@pytest.mark.no_cover
def test_a_deep_graph_compiles(session: gx.Session) -> None:
    x = scalar("x")
    y = x
    for _ in range(3000):
        y = y * 1.0 + 1.0
    assert function([x], y)(1) == 3001


def test_an_assignment_inside_a_replacement_takes_effect_once() -> None:
    v = gx.Variable(0.0)
    x = gx.placeholder("f32", ())
    counted = v.assign_add(1.0)
    with gx.Session() as session:
        session.run(gx.global_variables_initializer())
        f = gx.function([], [x * 1.0, counted], givens={x: counted})
        assert f() == [1.0, 1.0]
        assert f() == [2.0, 2.0]
        assert session.run(v) == 2.0
