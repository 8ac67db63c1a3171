"""`Session.run` and `Function.__call__` done natively: nobody can tell except by the time."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import graphc as gx
from graphc import session as session_module
from graphc.backends.llvm import entry_function, entry_methods_text
from graphc.backends.llvm.entry import CALLS_BEFORE
from graphc.errors import FeedTypeError, FetchTypeError, NonFiniteError, SessionClosedError
from graphc.session import NATIVE_AFTER

HOT = CALLS_BEFORE + NATIVE_AFTER + 3
X = np.arange(10, dtype=np.float32)

pytestmark = pytest.mark.skipif(
    entry_function.native_function() is None, reason="no native entries on this interpreter"
)


class PythonCalls:
    """Counts the lines of graphc's own Python that run."""

    def of(self, call: Callable[[], Any]) -> int:
        """How many calls of Python functions of graphc one call makes."""
        count = 0

        def watch(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            name = frame.f_globals.get("__name__", "")
            count += event == "call" and name.startswith("graphc")

        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            call()
        finally:
            sys.setprofile(before)
        return count


@pytest.fixture
def python() -> PythonCalls:
    return PythonCalls()


@pytest.fixture(autouse=True)
def graph() -> Iterator[gx.Graph]:
    with gx.Graph().as_default() as made:
        yield made


def affine() -> tuple[gx.Session, Any, Any]:
    x = gx.placeholder("f32", (None,), name="x")
    return gx.Session(), x, x * 2.0 + 1.0


def warm(call: Callable[[], Any]) -> None:
    for _ in range(HOT):
        call()


# ---- Session.run ---------------------------------------------------------------------------------


def test_no_python_runs(python: PythonCalls) -> None:
    s, x, y = affine()
    v = gx.Variable(np.zeros(10, "f4"))
    step = v.assign_add(x).node
    fixed = gx.constant(np.ones(3, "f4")) + 1.0
    s.run(gx.global_variables_initializer())
    feed = {x: X}
    ways: list[Callable[[], Any]] = [
        lambda: s.run(y, feed),
        lambda: s.run(y, feed_dict=feed),
        lambda: s.run(y, {x: X}),
        lambda: s.run([y], feed),
        lambda: s.run((y, gx_sum), feed),
        lambda: s.run([step, gx_sum], feed),
        lambda: s.run(step, feed),
        lambda: s.run(fixed),
        lambda: s.run(fixed, None),
        lambda: s.run(fixed, {}),
        lambda: s.run([fixed], feed_dict=None),
    ]
    gx_sum = gx.sum(x)
    assert python.of(ways[0]) > 0
    for way in ways:
        warm(way)
        assert python.of(way) == 0
    assert s.run([step, gx_sum], feed) == [None, 45]
    assert s.run(step, feed) is None
    made = s.run((y, gx_sum), feed)
    assert type(made) is tuple
    np.testing.assert_array_equal(made[0], X * 2 + 1)
    assert type(made[1]) is np.float32
    np.testing.assert_array_equal(s.run(fixed), [2, 2, 2])


def test_many_feeds_in_any_order(python: PythonCalls) -> None:
    s = gx.Session()
    xs = [gx.placeholder("f32", (None,), name=f"x{i}") for i in range(16)]
    total = gx.add_n([x * float(i + 1) for i, x in enumerate(xs)])
    values = [X + i for i in range(16)]
    wanted = sum(v * (i + 1) for i, v in enumerate(values))
    forward = dict(zip(xs, values, strict=True))
    back = dict(reversed(forward.items()))
    for feed in (forward, back, forward):
        warm(lambda f=feed: s.run(total, f))
        assert python.of(lambda f=feed: s.run(total, f)) == 0
        np.testing.assert_allclose(s.run(total, feed), wanted, rtol=1e-6)


def test_other_ways_to_ask_go_on_as_before() -> None:
    s, x, y = affine()
    warm(lambda: s.run(y, {x: X}))
    wanted = X * 2 + 1
    for feed in (OrderedDict([(x, X)]), {"x": X}, {"x:0": X}):
        np.testing.assert_array_equal(s.run(y, feed), wanted)
    np.testing.assert_array_equal(s.run(y.node.name, {x: X}), wanted)
    np.testing.assert_array_equal(s.run({"a": [y]}, {x: X})["a"][0], wanted)
    first, second = s.run([y, y], {x: X})
    np.testing.assert_array_equal(first, second)
    assert first is not second
    np.testing.assert_array_equal(s.run(y, {x: X.tolist()}), wanted)
    np.testing.assert_array_equal(s.run(y, {x: X}, gx.RunOptions(threads=1)), wanted)
    assert s.run([], {x: X}) == []
    assert s.run((), {x: X}) == ()


class Pair(NamedTuple):
    """Two fetches."""

    first: Any
    second: Any


class Listed(list[Any]):
    """A list of another type."""


FORMS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: {"a": a, "b": b},
    Pair,
    lambda a, b: Listed([a, b]),
    lambda a, b: OrderedDict([("b", b), ("a", a)]),
    lambda a, b: [a, {"b": (b, a)}],
    lambda a, b: {"a": [a], "b": {}},
    lambda a, b: Pair((a,), [b]),
    lambda a, b: {"a": a},
    lambda a, b: [],
]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_forms_of_fetches(number: int) -> None:
    s, x, y = affine()
    total = gx.sum(y)
    nest = FORMS[number](y, total)
    wanted = FORMS[number](X * 2 + 1, np.float32(100))
    for fetches in (nest, [y, total], (y, total), y, nest):
        for _ in range(HOT):
            made = s.run(fetches, {x: X})
        if fetches is nest:
            assert type(made) is (list if type(nest) is Listed else type(nest))
            np.testing.assert_equal(made, wanted)


def test_a_fetch_twice_is_two_arrays() -> None:
    s, x, y = affine()
    for _ in range(2 * HOT):
        first, second = s.run([y, y], {x: X})
        assert first is not second
        assert first.base is None


WRONG: list[tuple[Callable[[gx.Session, Any, Any], Any], type[Exception]]] = [
    (lambda s, x, y: s.run(), TypeError),
    (lambda s, x, y: s.run(y, {x: X}, None, None), TypeError),
    (lambda s, x, y: s.run(y, {x: X}, feed_dict={x: X}), TypeError),
    (lambda s, x, y: s.run(y, nothing={x: X}), TypeError),
    (lambda s, x, y: s.run(y, [(x, X)]), FeedTypeError),
    (lambda s, x, y: s.run(y, {x: "text"}), FeedTypeError),
    (lambda s, x, y: s.run(3, {x: X}), FetchTypeError),
    (lambda s, x, y: type(s).run(), TypeError),
    (lambda s, x, y: type(s).run(3, y, {x: X}), (TypeError, AttributeError)),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_errors_are_the_same(number: int) -> None:
    s, x, y = affine()
    warm(lambda: s.run(y, {x: X}))
    call, kind = WRONG[number]
    with pytest.raises(kind):
        call(s, x, y)
    np.testing.assert_array_equal(s.run(y, {x: X}), X * 2 + 1)


def test_a_closed_session() -> None:
    s, x, y = affine()
    warm(lambda: s.run(y, {x: X}))
    s.close()
    with pytest.raises(SessionClosedError):
        s.run(y, {x: X})


def test_the_nan_guard_is_heard_at_once(python: PythonCalls) -> None:
    s, x, _ = affine()
    y = gx.log(x)
    f, g = gx.function([x], y, session=s), gx.function([x], y)
    ones = np.ones(3, "f4")
    for _ in range(2):
        for call in (lambda: s.run(y, {x: ones}), lambda: f(ones)):
            warm(call)
            assert python.of(call) == 0
        warm(lambda: g(ones))
        s.nan_guard = True
        for bad in (lambda: s.run(y, {x: -ones}), lambda: f(-ones)):
            with pytest.raises(NonFiniteError):
                bad()
        assert np.isnan(g(-ones)).all()
        warm(lambda: s.run(y, {x: ones}))
        with pytest.raises(NonFiniteError):
            s.run(y, {x: -ones})
        s.nan_guard = False
        for good in (lambda: s.run(y, {x: -ones}), lambda: f(-ones)):
            assert np.isnan(good()).all()


def test_subclasses(python: PythonCalls) -> None:
    class Counting(gx.Session):
        runs = 0

        def run(self, *args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            return super().run(*args, **kwargs)

    class Plain(gx.Session):
        pass

    x = gx.placeholder("f32", (None,), name="x")
    y = x * 2.0 + 1.0
    counting, plain = Counting(), Plain()
    for s in (counting, plain):
        warm(lambda s=s: s.run(y, {x: X}))
        assert python.of(lambda s=s: s.run(y, {x: X})) == 0
        np.testing.assert_array_equal(s.run(y, {x: X}), X * 2 + 1)
    assert counting.runs == HOT + 2


def test_a_replaced_run_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    s, x, y = affine()
    warm(lambda: s.run(y, {x: X}))
    original = gx.Session.run
    monkeypatch.setattr(gx.Session, "run", lambda self, *a: (1, original(self, *a)))
    for _ in range(HOT):
        again = gx.Session()
        warm(lambda s=again: s.run(y, {x: X}))
        assert again.run(y, {x: X})[0] == 1
        break


def test_more_calls_than_places_and_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "CALL_CACHE_SIZE", 20)
    s, x, y = affine()
    hot = y + 100.0
    fetches = [y + float(i) for i in range(30)]
    warm(lambda: s.run(hot, {x: X}))
    for i, fetch in enumerate(fetches):
        for _ in range(HOT):
            np.testing.assert_array_equal(s.run(fetch, {x: X}), X * 2 + 1 + i)
        np.testing.assert_array_equal(s.run(hot, {x: X}), X * 2 + 101)
        calls = s._calls.values()  # used natively, and so not the one to go
        assert any(call.flat[0] is hot for call in calls)
    assert len(s._calls) == 20
    assert s._run_table is not None
    assert sum(r is not None for r in s._run_table._records) <= 20


@pytest.mark.no_cover
def test_places_that_collide(monkeypatch: pytest.MonkeyPatch, python: PythonCalls) -> None:
    s, x, y = affine()
    fetches = [y + float(i) for i in range(200)]  # more than places
    for _ in range(NATIVE_AFTER + 2):
        for fetch in fetches:
            s.run(fetch, {x: X})
    warm(lambda: s.run(fetches[0], {x: X}))
    for i, fetch in enumerate(fetches):
        np.testing.assert_array_equal(s.run(fetch, {x: X}), X * 2 + 1 + i)
    assert entry_methods_text.PLACES < 200


def test_places_are_found_where_they_were_put(python: PythonCalls) -> None:
    s, x, y = affine()
    w = gx.sum(y)
    several = [[y], (y,), [y, w], (w, y), [w, y], y, w, [w], (w,)]
    for fetch in several:
        warm(lambda f=fetch: s.run(f, {x: X}))
    assert [python.of(lambda f=f: s.run(f, {x: X})) for f in several] == [0] * len(several)


def test_references_stay() -> None:
    s, x, y = affine()
    feed = {x: X}
    total = gx.sum(y)
    several = [y, total]

    def one() -> None:
        s.run(several, feed)
        s.run(y, feed_dict=feed)

    warm(one)

    def counts() -> list[int]:
        held = (X, X.dtype, feed, several, x, y, None, s, s._native_table)
        return [sys.getrefcount(o) for o in held]

    one()
    before = counts()
    for _ in range(5000):
        one()
    after = counts()
    assert all(abs(a - b) < 100 for a, b in zip(before, after, strict=True))


def test_a_session_dies_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        s, x, y = affine()
        for _ in range(HOT):
            s.run([y], {x: X})
        assert s._run_table is not None
        store = np.ones(1)
        s.variables._values[-1] = store
        count = sys.getrefcount(store)
        del s
        assert sys.getrefcount(store) == count - 1
    finally:
        gc.enable()


def test_many_threads_share_a_session(graph: gx.Graph) -> None:
    s, x, y = affine()
    total = gx.sum(y)
    warm(lambda: s.run(y, {x: X}))
    wrong: list[Any] = []

    def work(k: int) -> None:
        with graph.as_default():
            mine = y + float(k)
        for i in range(400):
            fetch, more = [(y, 0), (total, None), (mine, k)][i % 3]
            values = np.full(10, k, "f4")
            got = s.run(fetch, {x: values})
            if not np.all(got == (20 * k + 10 if more is None else 2 * k + 1 + more)):
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_documentation_stays() -> None:
    s, x, y = affine()
    f = gx.function([x], y, session=s)
    warm(lambda: (s.run(y, {x: X}), f(X)))
    assert list(inspect.signature(gx.Session.run).parameters) == [
        "self",
        "fetches",
        "feed_dict",
        "options",
    ]
    assert (gx.Session.run.__doc__ or "").startswith("Evaluate `fetches`")
    assert "values by position or by name" in (type(f).__call__.__doc__ or "")
    assert gx.Session.run.__name__ == "run"


def test_an_unmade_instance_is_no_crash() -> None:
    s, x, y = affine()
    f = gx.function([x], y, session=s)
    warm(lambda: (s.run(y, {x: X}), f(X)))
    with pytest.raises((TypeError, AttributeError)):
        object.__new__(gx.Session).run(y, {x: X})
    with pytest.raises((TypeError, AttributeError)):
        object.__new__(type(f))(X)


# ---- functions -----------------------------------------------------------------------------------


def test_functions_run_no_python(python: PythonCalls, graph: gx.Graph) -> None:
    s, x, y = affine()
    calls: list[Any] = [
        gx.function([x], y, session=s),
        gx.function([x], [y, gx.sum(y)], session=s),
        gx.function([x], y),
    ]
    for f in calls:
        warm(lambda f=f: f(X))
        assert python.of(lambda f=f: f(X)) == 0
    with gx.Session(graph):
        f = calls[2]
        warm(lambda: f(X))
        assert python.of(lambda: f(X)) == 0
    warm(lambda: f(X))
    assert python.of(lambda: f(X)) == 0


def test_names_and_defaults(python: PythonCalls) -> None:
    x = gx.placeholder("f32", (None,), name="x")
    k = gx.placeholder("f32", (), name="k")
    inputs = [x, gx.In(k, value=np.float32(3))]
    f, g = gx.function(inputs, x * k), gx.function(inputs, {"y": x * k})
    two = np.array(2, "f4")
    out = np.zeros(10, "f4")
    ways: list[tuple[Callable[[], Any], float]] = [
        (lambda: f(X, two), 2),
        (lambda: f(x=X, k=two), 2),
        (lambda: f(X, k=two), 2),
        (lambda: f(k=two, x=X, out=out), 2),
        (lambda: f(X, two, out=out), 2),
        (lambda: f(X), 3),
        (lambda: f(x=X, out=out), 3),
        (lambda: g(X)["y"], 3),
        (lambda: g(k=two, x=X)["y"], 2),
        (lambda: g(X, two)["y"], 2),
    ]
    for _ in range(HOT):
        for way, factor in ways:
            out[:] = 0
            np.testing.assert_array_equal(way(), X * factor)
    for wrong in (f, lambda: f(X, two, two), lambda: f(X, x=X), lambda: f(X, z=X)):
        with pytest.raises(FeedTypeError):
            wrong()


def test_each_thread_has_its_default_session(graph: gx.Graph) -> None:
    v = gx.shared(np.ones(10, "f4"))
    x = gx.placeholder("f32", (10,), name="x")
    f = gx.function([x], x + v)
    wrong: list[Any] = []
    ready = threading.Barrier(5)

    def work(k: int) -> None:
        with gx.Session(graph) if k else graph.as_default():
            if k:
                v.set_value(np.full(10, k + 1, "f4"))
            ready.wait()
            for _ in range(200):
                if (f(X) != X + k + 1).any():
                    wrong.append(k)

    warm(lambda: f(X))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    np.testing.assert_array_equal(f(X), X + 1)


def test_a_session_entered_after_warming(graph: gx.Graph) -> None:
    v = gx.shared(np.ones(10, "f4"))
    x = gx.placeholder("f32", (10,), name="x")
    f = gx.function([x], x + v)
    warm(lambda: f(X))
    with gx.Session(graph) as s:
        v.set_value(np.full(10, 7, "f4"))
        np.testing.assert_array_equal(f(X), X + 7)
        with gx.Session(graph).as_default():
            np.testing.assert_array_equal(f(X), X + 1)
        np.testing.assert_array_equal(f(X), X + 7)
        assert s.is_initialized(v)
    np.testing.assert_array_equal(f(X), X + 1)


def test_functions_die_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        s, x, y = affine()
        f: Any = gx.function([x], y, session=s)
        for _ in range(HOT):
            f(X)
        held = f.program
        count = sys.getrefcount(held)
        del f
        assert sys.getrefcount(held) < count
    finally:
        gc.enable()
