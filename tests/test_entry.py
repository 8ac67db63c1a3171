"""Native entries: what they take over, and that nobody can tell except by the time."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.backends.llvm import entry as entry_module
from graphc.backends.llvm import entry_function, entry_text
from graphc.backends.llvm.entry import CALLS_BEFORE, CASES, SHAPES_NOTED, NativeEntry
from graphc.errors import (
    FeedError,
    FeedTypeError,
    FetchTypeError,
    IndexOutOfRangeError,
    NonFiniteError,
    SessionClosedError,
)
from graphc.session import NATIVE_AFTER

HOT = CALLS_BEFORE + NATIVE_AFTER + 2
X = np.arange(10, dtype=np.float32)

pytestmark = pytest.mark.skipif(
    entry_function.native_function() is None, reason="no native entries on this interpreter"
)


class SlowRuns:
    """Counts the runs that Python drove."""

    count = 0

    def of(self, call: Callable[[], Any]) -> int:
        """How many of them one call makes."""
        before = self.count
        call()
        return self.count - before


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowRuns]:
    runs = SlowRuns()
    original = gx.Session.run_entry

    def counted(self: gx.Session, *args: Any, **kwargs: Any) -> Any:
        runs.count += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(gx.Session, "run_entry", counted)
    yield runs


@pytest.fixture(autouse=True)
def graph() -> Iterator[gx.Graph]:
    with gx.Graph().as_default() as made:
        yield made


def affine(device: str = "cpu") -> tuple[gx.Session, Any, Any]:
    x = gx.placeholder("f32", (None,), name="x")
    return gx.Session(device=device), x, x * 2.0 + 1.0


def warm(call: Callable[..., Any], *args: Any) -> None:
    for _ in range(HOT):
        call(*args)


# ---- what is taken over --------------------------------------------------------------------------


def test_every_way_to_call_is_taken_over(slow: SlowRuns) -> None:
    s, x, y = affine()
    f = gx.function([x], y, session=s)
    ways: list[Callable[[], Any]] = [
        lambda: s.run(y, {x: X}),
        lambda: s.run([y], {x: X})[0],
        lambda: s.run((y,), {x: X})[0],
        lambda: called(X),
        lambda: f(X),
    ]
    called = s.make_callable(y, [x])
    for way in ways:
        warm(way)
        assert slow.of(way) == 0
        np.testing.assert_array_equal(way(), X * 2 + 1)


def test_a_few_calls_are_not_worth_it(slow: SlowRuns) -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    assert [slow.of(lambda: called(X)) for _ in range(CALLS_BEFORE)] == [1] * CALLS_BEFORE
    assert slow.of(lambda: called(X)) == 0


def test_forms_and_order(slow: SlowRuns) -> None:
    s = gx.Session()
    a = gx.placeholder("f32", (None, 2), name="a")
    b = gx.placeholder("f32", (2,), name="b")
    total, difference = gx.sum(a + b), a - b
    ones, twos = np.ones((3, 2), "f4"), np.full(2, 2, "f4")
    for fetches in ([total, difference], (total, difference), [difference, total]):
        called = s.make_callable(fetches, [b, a])
        warm(called, twos, ones)
        assert slow.of(lambda c=called: c(twos, ones)) == 0
        made = called(twos, ones)
        assert type(made) is type(fetches)
        found = dict(zip(map(id, fetches), made, strict=True))
        assert type(found[id(total)]) is np.float32
        assert found[id(total)] == 18
        np.testing.assert_array_equal(found[id(difference)], ones - twos)


def test_no_feeds_and_no_dimensions(slow: SlowRuns) -> None:
    s = gx.Session()
    x = gx.placeholder("i64", (), name="x")
    called = s.make_callable(x * 3, [x])
    warm(called, np.array(5))
    assert slow.of(lambda: called(np.array(5))) == 0
    assert called(np.array(7)) == 21
    assert type(called(np.array(7))) is np.int64
    fixed = s.make_callable(gx.constant(np.arange(3.0)) * 2)
    warm(fixed)
    assert slow.of(fixed) == 0
    np.testing.assert_array_equal(fixed(), [0, 2, 4])


def test_zero_sizes(slow: SlowRuns) -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    warm(called, X[:0])
    assert slow.of(lambda: called(X[:0])) == 0
    assert called(X[:0]).shape == (0,)


# ---- what is not recognised ----------------------------------------------------------------------


class Special(np.ndarray[Any, Any]):
    """A subclass that a native entry must not touch."""


OTHERS: dict[str, Any] = {
    "another dtype": X.astype("f8"),
    "swapped bytes": X.astype(">f4"),
    "strided": np.repeat(X, 2)[::2],
    "a list": X.tolist(),
    "a subclass": X.copy().view(Special),
    "another size": X[:4],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_go_the_slow_way(name: str, slow: SlowRuns) -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    warm(called, X)
    assert slow.of(lambda: called(OTHERS[name])) == 1
    wanted = np.asarray(OTHERS[name], "f4") * 2 + 1
    np.testing.assert_array_equal(called(OTHERS[name]), wanted)
    assert slow.of(lambda: called(X)) == 0


def test_misaligned_and_read_only(slow: SlowRuns) -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    warm(called, X)
    misaligned = np.zeros(41, np.uint8)[1:].view("f4")
    misaligned[:] = X
    assert slow.of(lambda: called(misaligned)) == 1
    fixed = X.copy()
    fixed.flags.writeable = False
    assert slow.of(lambda: called(fixed)) == 0


def test_errors_are_the_same() -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    wrong: list[tuple[Any, type[Exception]]] = [
        ((X[None],), FeedError),
        ((X, X), FeedTypeError),
        ((), FeedTypeError),
        (("text",), FeedTypeError),
    ]

    def messages() -> list[str]:
        found = []
        for values, kind in wrong:
            with pytest.raises(kind) as info:
                called(*values)
            found.append(str(info.value))
        return found

    before = messages()
    warm(called, X)
    assert messages() == before
    with pytest.raises(TypeError):
        called(X, other=X)


def test_a_failed_check_is_reported(slow: SlowRuns) -> None:
    s = gx.Session()
    x = gx.placeholder("f32", (3,), name="x")
    i = gx.placeholder("i64", (2,), name="i")
    called = s.make_callable(gx.gather(x, i), [x, i])
    values = np.arange(3, dtype="f4")
    good, bad = np.array([0, 2]), np.array([0, 3])
    warm(called, values, good)
    assert slow.of(lambda: called(values, good)) == 0
    for _ in range(3):
        with pytest.raises(IndexOutOfRangeError):
            called(values, bad)
        np.testing.assert_array_equal(called(values, good), [0, 2])


def test_the_nan_guard(slow: SlowRuns) -> None:
    s = gx.Session(nan_guard=True)
    x = gx.placeholder("f32", (None,), name="x")
    called = s.make_callable(gx.log(x), [x])
    ones = np.ones(4, "f4")
    warm(called, ones)
    with pytest.raises(NonFiniteError):
        called(-ones)
    np.testing.assert_array_equal(called(ones), np.zeros(4))


def test_a_closed_session(slow: SlowRuns) -> None:
    s, x, y = affine()
    v = gx.Variable(np.ones(10, "f4"))
    s.run(gx.global_variables_initializer())
    calls = [s.make_callable(y, [x]), s.make_callable(y + v, [x])]
    for called in calls:
        warm(called, X)
    s.close()
    for called in calls:
        with pytest.raises(SessionClosedError):
            called(X)


# ---- variables -----------------------------------------------------------------------------------


def test_variables_are_read_as_they_are(slow: SlowRuns) -> None:
    s, x, y = affine()
    v = gx.Variable(np.zeros(10, "f4"), name="v")
    step = v.assign_add(np.ones(10, "f4"))
    s.run(gx.global_variables_initializer())
    called = s.make_callable(y + v, [x])
    warm(called, X)
    assert slow.of(lambda: called(X)) == 0
    for i in range(1, 4):
        s.run(step)  # in place: the entry goes on
        assert slow.of(lambda: called(X)) == 0
        np.testing.assert_array_equal(called(X), X * 2 + 1 + i)
    s.set_value(v, np.full(10, 50, "f4"))  # another array: the entry looks again
    np.testing.assert_array_equal(called(X), X * 2 + 51)
    warm(called, X)
    assert slow.of(lambda: called(X)) == 0
    np.testing.assert_array_equal(called(X), X * 2 + 51)


def test_writers_are_taken_over(slow: SlowRuns) -> None:
    s, x, _ = affine()
    v = gx.Variable(np.zeros(10, "f4"))
    new = v.assign_add(x)
    total = gx.sum(x)
    s.run(gx.global_variables_initializer())
    ways: list[Callable[[], Any]] = [
        lambda: add(X),
        lambda: s.run(new, {x: X}),
        lambda: s.run([total, new.node], {x: X}),
        lambda: s.run(new.node, {x: X}),
        lambda: both(X),
        lambda: f(X),
    ]
    add = s.make_callable(new, [x])
    both = s.make_callable({"total": total, "step": new.node}, [x])
    f = gx.function([x], updates=[(v, v + x)], session=s)
    done = 0
    for way in ways:
        warm(way)
        assert slow.of(way) == 0
        done += HOT + 1
        np.testing.assert_array_equal(s.get_value(v), X * done)
    assert s.run([total, new.node], {x: X}) == [45, None]
    assert both(X) == {"total": 45, "step": None}
    assert s.run(new.node, {x: X}) is None
    np.testing.assert_array_equal(add(X), X * (done + 4))
    reset = s.make_callable(v.assign(np.zeros(10, "f4")).node)
    warm(reset)
    assert slow.of(reset) == 0
    assert not s.get_value(v).any()


def test_a_failed_writer_changes_nothing(slow: SlowRuns) -> None:
    s = gx.Session()
    i = gx.placeholder("i64", (2,), name="i")
    v = gx.Variable(np.zeros(2, "f4"))
    table = gx.constant(np.arange(3, dtype="f4"))
    s.run(gx.global_variables_initializer())
    add = s.make_callable(v.assign_add(gx.gather(table, i)), [i])
    good, bad = np.array([1, 2]), np.array([1, 3])
    warm(add, good)
    assert slow.of(lambda: add(good)) == 0
    before = s.get_value(v)
    with pytest.raises(IndexOutOfRangeError):
        add(bad)
    np.testing.assert_array_equal(s.get_value(v), before)


@pytest.mark.parametrize("seed", [0, 7])
def test_random_numbers_are_the_same(seed: int, graph: gx.Graph) -> None:
    gx.set_random_seed(seed)
    r = gx.random.uniform((4,))
    by_hand, quick = gx.Session(), gx.Session()
    draw = quick.make_callable(r)
    trace = gx.RunOptions(threads=1)  # options keep a run from being taken over
    for _ in range(2 * HOT):
        np.testing.assert_array_equal(draw(), by_hand.run(r, options=trace))


def test_many_writers_lose_no_update() -> None:
    s = gx.Session()
    v = gx.Variable(np.zeros(10, "i8"))
    add = s.make_callable(v.assign_add(np.ones(10, "i8")))
    large = gx.Variable(np.zeros(1 << 16, "f4"))
    grow = s.make_callable(large.assign_add(gx.cast(v[0], "f4") * 0 + 1))
    s.run(gx.global_variables_initializer())
    warm(add)
    warm(grow)

    def work(k: int) -> None:
        for i in range(300):
            add()
            if i % 10 == k:
                grow()
            if i % 50 == k:
                s.get_value(v)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (s.get_value(v) == HOT + 8 * 300).all()
    assert (s.get_value(large) == HOT + 8 * 30).all()


def test_reads_beside_a_writer_are_never_torn() -> None:
    s = gx.Session()
    n = 1 << 12
    v = gx.Variable(np.zeros(n, "f4"))
    step = v.assign_add(np.ones(n, "f4"))
    s.run(gx.global_variables_initializer())
    read = s.make_callable((v[:1], v[n - 1 :]))
    warm(read)
    stop = threading.Event()
    torn: list[Any] = []

    def watch() -> None:
        last = 0.0
        while not stop.is_set():
            first, end = read()
            if first[0] != end[0] or first[0] < last:
                torn.append((first, end, last))
            last = float(first[0])

    threads = [threading.Thread(target=watch) for _ in range(3)]
    for t in threads:
        t.start()
    for _ in range(500):
        s.run(step)
    stop.set()
    for t in threads:
        t.join()
    assert not torn
    assert s.get_value(v)[0] == 500


def test_a_function_follows_the_default_session(slow: SlowRuns, graph: gx.Graph) -> None:
    v = gx.shared(np.ones(10, "f4"))
    x = gx.placeholder("f32", (10,), name="x")
    f = gx.function([x], x + v)
    for value in (2.0, 3.0, 4.0):
        with gx.Session(graph) as s:
            v.set_value(np.full(10, value, "f4"))
            for _ in range(HOT):
                np.testing.assert_array_equal(f(X), X + value)
            assert s.variables is not None
    np.testing.assert_array_equal(f(X), X + 1)


# ---- out -----------------------------------------------------------------------------------------


def test_out_is_filled_and_returned(slow: SlowRuns) -> None:
    s, x, y = affine()
    f = gx.function([x], y, session=s)
    for called in (s.make_callable(y, [x]), f):
        for _ in range(HOT):
            out = np.zeros(10, "f4")
            assert called(X, out=out) is out
            np.testing.assert_array_equal(out, X * 2 + 1)
        assert slow.of(lambda c=called, o=out: c(X, out=o)) == 0


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_out_of_several(device: str) -> None:
    s, x, y = affine(device)
    called = s.make_callable([y, gx.sum(y)], [x])
    for _ in range(HOT):
        out = [np.zeros(10, "f4"), np.zeros((), "f4")]
        assert called(X, out=out) is out
        np.testing.assert_array_equal(out[0], X * 2 + 1)
        assert out[1] == 100


def test_out_may_be_an_input(slow: SlowRuns) -> None:
    s = gx.Session()
    x = gx.placeholder("f32", (None,), name="x")
    called = s.make_callable(gx.cumsum(x[::-1]), [x])
    warm(called, X)
    memory = np.arange(20, dtype="f4")
    wanted = np.cumsum(memory[:10][::-1])
    assert slow.of(lambda: called(memory[:10], out=memory[5:15])) == 1
    np.testing.assert_array_equal(memory[5:15], wanted)
    assert slow.of(lambda: called(memory[:10], out=memory[10:])) == 0


WRONG_OUT: dict[str, Any] = {
    "dtype": np.zeros(10, "f8"),
    "shape": np.zeros(9, "f4"),
    "rank": np.zeros((1, 10), "f4"),
    "kind": [0.0] * 10,
}


@pytest.mark.parametrize("name", WRONG_OUT)
def test_a_wrong_out(name: str) -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    for _ in range(HOT):
        with pytest.raises(FetchTypeError, match="out="):
            called(X, out=WRONG_OUT[name])


def test_out_must_be_writeable_but_not_contiguous() -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    fixed, strided = np.zeros(10, "f4"), np.zeros(20, "f4")[::2]
    fixed.flags.writeable = False
    for _ in range(HOT):
        with pytest.raises(FetchTypeError, match="read-only"):
            called(X, out=fixed)
        assert called(X, out=strided) is strided
    np.testing.assert_array_equal(strided, X * 2 + 1)
    assert not fixed.any()


def test_out_is_refused_where_it_has_no_meaning() -> None:
    s, x, y = affine()
    v = gx.Variable(np.zeros(10, "f4"))
    s.run(gx.global_variables_initializer())
    for fetches in ({"y": y}, [y, y], [[y]], v.assign_add(x)):
        with pytest.raises(FetchTypeError, match="out="):
            s.make_callable(fetches, [x])(X, out=np.zeros(10, "f4"))
    assert not s.get_value(v).any()


def test_an_input_called_out() -> None:
    out = gx.placeholder("f32", (None,), name="out")
    f = gx.function([out], out + 1.0)
    for _ in range(HOT):
        np.testing.assert_array_equal(f(out=X), X + 1)
        with pytest.raises(FeedTypeError, match="twice"):
            f(X, out=X)


# ---- sizes ---------------------------------------------------------------------------------------


def test_new_sizes_compile_nothing(slow: SlowRuns) -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    warm(called, X)
    before = gx.stats()
    for n in np.random.default_rng(0).permutation(1000):
        values = np.full(n, 3, "f4")
        np.testing.assert_array_equal(called(values), np.full(n, 7))
    after = gx.stats()
    changed = (after.programs, after.plans, after.kernels, after.compile_seconds)
    assert changed == (before.programs, before.plans, before.kernels, before.compile_seconds)


def test_more_sizes_than_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[NativeEntry] = []
    original = NativeEntry.__init__

    def noted(self: NativeEntry, *args: Any) -> None:
        original(self, *args)
        made.append(self)

    monkeypatch.setattr(NativeEntry, "__init__", noted)
    s, x, y = affine()
    called = s.make_callable(y, [x])
    for n in range(3 * CASES):
        for _ in range(2 * CALLS_BEFORE):
            np.testing.assert_array_equal(called(X[: n % 11]), X[: n % 11] * 2 + 1)
    for n in range(3 * SHAPES_NOTED):
        called(np.zeros(n, "f4"))
    (entry,) = made
    assert len(entry._cases) == CASES
    assert len(entry._seen) <= SHAPES_NOTED + 1


def test_large_results_come_from_the_pool(slow: SlowRuns) -> None:
    s, x, y = affine()
    called = s.make_callable([y, gx.sum(x)], [x])
    many = np.arange(1 << 17, dtype="f4")
    warm(called, many)
    assert slow.of(lambda: called(many)) == 0
    addresses = {called(many)[0].ctypes.data for _ in range(10)}
    assert len(addresses) <= 3
    kept = [called(many + i) for i in range(5)]
    for i, (result, _) in enumerate(kept):
        np.testing.assert_array_equal(result, (many + i) * 2 + 1)
    out = np.zeros_like(many)
    single = s.make_callable(y, [x])
    warm(single, many)
    assert slow.of(lambda: single(many, out=out)) == 0
    np.testing.assert_array_equal(out, many * 2 + 1)


def test_workers_take_part(slow: SlowRuns) -> None:
    x = gx.placeholder("f32", (None, None), name="x")
    y = gx.exp(gx.sin(x)) @ gx.transpose(x)
    values = np.random.default_rng(0).normal(size=(150, 140)).astype("f4")
    results = []
    for threads in (1, 3):
        called = gx.Session(threads=threads).make_callable(y, [x])
        warm(called, values)
        assert slow.of(lambda c=called: c(values)) == 0
        results += [called(values) for _ in range(20)]
    assert all((r == results[0]).all() for r in results)


def test_long_programs_are_left_alone(slow: SlowRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_module, "MOST_WORK", 1000)
    s, x, y = affine()
    called = s.make_callable(y, [x])
    many = np.zeros(2000, "f4")
    warm(called, many)
    assert slow.of(lambda: called(many)) == 1


# ---- threads, processes, memory ------------------------------------------------------------------


def test_many_threads() -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    warm(called, X)
    wrong: list[Any] = []

    def work(k: int) -> None:
        for i in range(500):
            values = np.full(10 if i % 7 else k, k, "f4")
            if not (called(values) == 2 * k + 1).all():
                wrong.append(values)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def slow_program() -> tuple[Any, np.ndarray[Any, Any]]:
    """A callable that works alone for milliseconds on little memory, and what it takes."""
    x = gx.placeholder("f32", (None,), name="x")
    y = x
    for _ in range(300):
        y = gx.cumsum(gx.sin(y))
    return gx.Session(threads=1).make_callable(y, [x]), np.linspace(0, 1, 2000, dtype="f4")


def test_a_long_run_lets_other_threads_go_on(slow: SlowRuns) -> None:
    called, values = slow_program()
    warm(called, values)
    assert slow.of(lambda: called(values)) == 0
    wanted = float(called(values)[-1])
    stop = threading.Event()
    wrong: list[Any] = []

    def again() -> None:
        while not stop.is_set():
            if float(called(values)[-1]) != wanted:  # NumPy's loops would let go of the GIL
                wrong.append(1)

    threads = [threading.Thread(target=again) for _ in range(4)]
    for t in threads:
        t.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.5)  # only a run that lets go of the GIL lets this thread go on
    started = time.perf_counter()
    try:
        for _ in range(20):
            time.sleep(0.001)
        seconds = time.perf_counter() - started
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for t in threads:
            t.join()
    assert not wrong
    assert seconds < 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_entries_survive_fork() -> None:
    s, x, y = affine()
    called = s.make_callable(y, [x])
    warm(called, X)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            right = all((called(X + i) == (X + i) * 2 + 1).all() for i in range(100))
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(called(X), X * 2 + 1)


def test_references_and_memory_stay() -> None:
    s, x, y = affine()
    called = s.make_callable([y, gx.sum(y)], [x])
    single = s.make_callable(y, [x])
    out = np.empty(10, "f4")
    warm(called, X)
    warm(single, X)

    def counts() -> list[int]:
        return [sys.getrefcount(o) for o in (X, out, X.dtype, np.ndarray, called, single)]

    def many(times: int) -> None:
        for _ in range(times):
            called(X)
            single(X)
            single(X, out=out)

    many(10_000)
    before, memory = counts(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many(350_000)
    assert counts() == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1024  # kilobytes


def test_entries_die_with_their_owners() -> None:
    def one() -> None:
        with gx.Graph().as_default():
            s, x, y = affine()
            called, f = s.make_callable(y, [x]), gx.function([x], y, session=s)
            for _ in range(HOT):
                called(X)
                f(X)
                s.run(y, {x: X})

    def alive() -> int:
        gc.collect()
        return sum(isinstance(o, entry_module._Case) for o in gc.get_objects())

    one()
    before = alive()
    for _ in range(5):
        one()
    assert alive() == before


def test_a_session_dies_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        s, x, y = affine()
        for _ in range(HOT):
            s.run(y, {x: X})
        store = np.ones(1)
        s.variables._values[-1] = store
        count = sys.getrefcount(store)
        del s
        assert sys.getrefcount(store) == count - 1
    finally:
        gc.enable()


# ---- other interpreters --------------------------------------------------------------------------


def test_without_the_native_function(monkeypatch: pytest.MonkeyPatch, slow: SlowRuns) -> None:
    monkeypatch.setattr(entry_function, "_cached", [None])
    s, x, y = affine()
    called = s.make_callable(y, [x])
    for _ in range(HOT):
        np.testing.assert_array_equal(called(X), X * 2 + 1)
        np.testing.assert_array_equal(s.run(y, {x: X}), X * 2 + 1)
        out = np.zeros(10, "f4")
        assert called(X, out=out) is out
    assert slow.count == 3 * HOT


def test_wrong_offsets_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry_function._layout_is_known()
    for name in ("NDIM", "DIMS", "DESCR", "FLAGS", "TUPLE_SIZE", "TUPLE_ITEM"):
        with monkeypatch.context() as patch:
            patch.setattr(entry_text, name, getattr(entry_text, name) - 8)
            assert not entry_function._layout_is_known(), name
