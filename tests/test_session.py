"""Sessions beyond what tests/test_semantics.py states: caches, options, the NaN guard, counters."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import graphc as gx
from graphc import session as session_module
from graphc.errors import GraphTypeError, NonFiniteError
from graphc.ops.check import assert_true, check_numerics
from graphc.ops.math import log
from graphc.session import RunOptions
from graphc.statistics import stats

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_partial_feeds_take_defaults(device: str) -> None:
    x, keep = gx.placeholder("f32", ()), gx.placeholder("f32", (), name="keep")
    y = x * keep
    with gx.Session(device=device) as s:
        run = s.partial({"keep": 0.5})
        assert run(y, {x: 4.0}) == 2
        assert run(y, {x: 4.0, keep: 1.0}) == 4


def test_options(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    with gx.Session(device=device) as s:
        assert s.run(gx.sum(x), {x: [1, 2]}, RunOptions(threads=1)) == 3
        assert s.run(gx.sum(x), {x: [1, 2]}, options=RunOptions(threads=2)) == 3
    with pytest.raises(GraphTypeError):
        RunOptions(threads=0)


def test_a_new_size_compiles_nothing(device: str) -> None:
    x, y = gx.placeholder("f32", (None, None)), gx.placeholder("f32", (None,))
    z = x + y
    with gx.Session(device=device) as s:
        s.run(z, {x: np.ones((2, 3)), y: np.ones(3)})
        before = stats()
        for n in range(4, 12):
            s.run(z, {x: np.ones((n, 5)), y: np.ones(5)})
        after = stats()
        assert after.plans == before.plans and after.kernels == before.kernels
        assert after.plan_hits == before.plan_hits + 8
        s.run(z, {x: np.ones((2, 3)), y: np.ones(1)})  # another broadcast
        assert stats().plans == before.plans + 1


def test_feeds_in_another_order_share_a_program(device: str) -> None:
    x, y = gx.placeholder("f32", (None,)), gx.placeholder("f64", (2, None))
    z = [gx.sum(x) - 10, gx.sum(y)]
    with gx.Session(device=device) as s:
        first = s.run(z, {x: [1, 2], y: [[3], [4]]})
        before = stats()
        assert s.run(z, {y: [[3], [4]], x: [1, 2]}) == first == [-7, 7]
        assert s.run(z, {y: [[3], [4]], x: [1, 2]}) == first
        assert stats().programs == before.programs and stats().plans == before.plans


def test_the_cache_is_bounded_and_keeps_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CALL_CACHE_SIZE", 4)
    t = gx.constant(1.0)
    others = [t + float(i) for i in range(20)]
    with gx.Session(device="reference") as s:
        s.run(t)
        before = stats().programs
        for u in others:
            s.run(u)
            s.run(t)
        assert stats().programs == before + 20
        assert len(s._calls) == 4


@pytest.mark.filterwarnings("ignore::graphc.errors.GraphGrowthWarning")
def test_dropped_tensors_never_stand_for_others() -> None:
    """Ids are reused once an object is gone; whatever is cached under an id must be held."""
    with gx.Session(device="reference") as s, gx.Graph().as_default():
        x = gx.placeholder("f32", ())
        s = gx.Session(device="reference")
        for i in range(300):
            assert s.run([x + float(i)], {x: 1.0}) == [1.0 + i]
            gc.collect(0)


def test_a_closed_session_lets_go_of_its_programs() -> None:
    graph = gx.Graph()
    with graph.as_default():
        t = gx.constant(1.0)
        s = gx.Session(device="reference")
        s.run(t)
        call = weakref.ref(next(iter(s._calls.values())))
        s.close()
        gc.collect()
        assert call() is None


def test_feeding_the_same_tensor_twice_is_refused() -> None:
    x = gx.placeholder("f32", (), name="x")
    with gx.Session() as s, pytest.raises(ValueError, match="twice"):
        s.run(x, {x: 1.0, "x:0": 2.0})


# ---- the NaN guard -----------------------------------------------------------------------------


def test_nan_guard_names_operator_and_line_and_commits_nothing(device: str) -> None:
    x = gx.placeholder("f32", (None, 2), name="x")
    v = gx.Variable(np.float32(1))
    y = log(x, name="loss")
    up = v.assign_add(gx.sum(y * 2))
    message = (
        "log 'loss' gave nan at index (1, 1)\n"
        f'  at test_session.py:{y.node.loc.line}   y = log(x, name="loss")\n'
        "  operand 0: f32 (2, 2) from -1.0 to 3.0, -1.0 there"
    )
    with gx.Session(device=device, nan_guard=True) as s:
        s.run(v.initializer)
        for fetch in (up, y, up.op):
            with pytest.raises(NonFiniteError) as caught:
                s.run(fetch, {x: [[1, 2], [3, -1]]})
            assert str(caught.value) == message
            assert s.run(v) == 1
        assert s.run(up, {x: [[1, 1]]}) == 1
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        assert np.isnan(s.run(y, {x: [[1, -2]]})[0, 1])
        with pytest.raises(ArithmeticError):
            s.run(y, {x: [[1, -2]]}, RunOptions(nan_guard=True))


def test_nan_guard_leaves_masked_values_alone(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    y = gx.where(x > 0, log(x), 0.0)
    with gx.Session(device=device, nan_guard=True) as s:
        np.testing.assert_array_equal(s.run(y, {x: [1, 0]}), [0, 0])


def test_nan_guard_names_a_variable_that_was_bad_already(device: str) -> None:
    v = gx.Variable(np.array([1, np.inf], "f4"), name="w")
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        with pytest.raises(NonFiniteError, match=r"^variable 'w' is inf at index \(1,\)"):
            s.run(v * 2, options=RunOptions(nan_guard=True))


def test_check_numerics_and_assert_true(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    y = check_numerics(log(x), "the loss {left} the track")
    positive = assert_true(x > 0, "x must be positive")
    v = gx.Variable(np.float32(0))
    with gx.get_default_graph().control_dependencies([positive]):
        up = v.assign_add(gx.sum(x))
    with gx.Session(device=device) as s:
        s.run(v.initializer)
        np.testing.assert_array_equal(s.run(y, {x: [1, 1]}), [0, 0])
        with pytest.raises(NonFiniteError, match=r"the loss \(left\) the track"):
            s.run(y, {x: [1, -1]})
        for fetch in (positive, positive.op, up):
            with pytest.raises(AssertionError, match="x must be positive"):
                s.run(fetch, {x: [1, -1]})
        assert s.run(v) == 0
        assert s.run(up, {x: [1, 2]}) == 3
        (g,) = gx.gradients(y, x)
        np.testing.assert_array_equal(s.run(g, {x: [2, 4]}), [0.5, 0.25])


def test_a_failed_first_assignment_leaves_the_variable_without_a_value(device: str) -> None:
    v = gx.Variable(0.0)
    x = gx.placeholder("i32", ())
    up = v.assign(gx.astype(1 // x, "f32"))
    with gx.Session(device=device) as s:
        with pytest.raises(ZeroDivisionError):
            s.run(up, {x: 0})
        assert not s.is_initialized(v)
        assert s.run(up, {x: 1}) == 1
        assert s.is_initialized(v) and s.uninitialized_variables() == []


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_nan_guard_names_operators_inside_fused_kernels_and_functions(device: str) -> None:
    x = gx.placeholder("f32", (None, 3), name="x")
    h = gx.exp(x) - 1
    inside = gx.log(h, name="inside")
    y = gx.sum(gx.tanh(inside * 2) + 1, axis=1)
    value = np.array([[1, 2, 3], [4, -1, 5]], np.float32)
    where = f"  at {inside.op.loc}   {inside.op.loc.source}\n"
    with gx.Session(device=device, nan_guard=True) as s:
        f = gx.function([x], y)
        for run in (lambda: s.run(y, {x: value}), lambda: f(value)):
            with pytest.raises(gx.errors.NonFiniteError) as caught:
                run()
            text = str(caught.value)
            assert text.startswith(f"log 'inside' gave nan at index (1, 1)\n{where}")
            assert "operand 0: f32 (2, 3) from -0.63" in text and ", -0.63" in text
        np.testing.assert_allclose(f(np.abs(value)), s.run(y, {x: np.abs(value)}))
