"""Native entries of longer runs: turns at variables without the GIL, and memory of their own."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.backends.llvm import contexts, entry_function
from graphc.backends.llvm.entry import CALLS_BEFORE, LONG_WORK
from graphc.read_write_lock import ReadWriteLock
from graphc.session import NATIVE_AFTER

HOT = CALLS_BEFORE + NATIVE_AFTER + 2

pytestmark = pytest.mark.skipif(
    entry_function.native_function() is None, reason="no native entries on this interpreter"
)


class Counter:
    """A variable of equal numbers, a run that adds 1 to all of them, one that takes a look."""

    def __init__(self, threads: int) -> None:
        with gx.Graph().as_default():
            self.v = gx.Variable(np.zeros(4 * LONG_WORK, "f4"))
            self.session = gx.Session(threads=threads)
            self.session.run(self.v.initializer)
            self.add = self.session.make_callable(self.v.assign_add(gx.ones(4 * LONG_WORK)).op)
            both = [gx.min(self.v), gx.max(self.v)]
            self.look = self.session.make_callable(both)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows with every run that Python drives."""
    runs: list[int] = []
    original = gx.Session.run_entry

    def counted(self: gx.Session, *args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(gx.Session, "run_entry", counted)
    yield runs


def warm(*calls: Callable[[], Any]) -> None:
    for call in calls:
        for _ in range(HOT):
            call()


def test_a_long_run_with_variables_is_taken_over(slow: list[int]) -> None:
    c = Counter(2)
    warm(c.add, c.look)
    before = len(slow)
    c.add()
    assert list(c.look()) == [HOT + 1, HOT + 1]
    assert len(slow) == before
    turns, _ = c.session.variables.turns()
    assert turns.value == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_nobody_sees_half_of_an_update(threads: int) -> None:
    c = Counter(threads)
    warm(c.add, c.look)
    wrong: list[Any] = []
    done: list[int] = []

    def write() -> None:
        for _ in range(150):
            c.add()
        done.append(1)

    def read() -> None:
        last = 0.0
        while len(done) < 2:
            least, most = c.look()
            if least != most or least < last:
                wrong.append((least, most, last))
            last = least

    def read_by_python() -> None:
        while len(done) < 2:
            values = c.session.get_value(c.v)
            if not (values == values[0]).all():
                wrong.append(values)

    work = [threading.Thread(target=t) for t in (write, write, read, read, read_by_python)]
    for t in work:
        t.start()
    for t in work:
        t.join(60)
    assert not wrong
    assert list(c.look()) == [HOT + 300] * 2
    turns, _ = c.session.variables.turns()
    assert turns.value == 0


def long_writer() -> tuple[gx.Session, gx.Variable, Callable[[], Any]]:
    """A session, a variable, and a call that works for milliseconds before it adds to it."""
    with gx.Graph().as_default():
        v = gx.Variable(np.zeros(2000, "f4"))
        y = v * 0.0
        for _ in range(300):
            y = gx.cumsum(gx.sin(y))
        session = gx.Session(threads=1)
        session.run(v.initializer)
        return session, v, session.make_callable(v.assign_add(y + 1.0).op)


def test_turns_in_python_wait_for_native_ones_and_are_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, v, add = long_writer()
    warm(add)
    monkeypatch.setattr("graphc.read_write_lock.LOOK_AGAIN", 30.0)  # only a wake-up ends a wait
    store = session.variables
    turns, _ = store.turns()
    waited = 0
    for i in range(500):
        thread = threading.Thread(target=add)
        thread.start()
        while thread.is_alive() and turns.value == 0:
            time.sleep(0)
        met = turns.value < 0
        if i % 2:
            values = session.get_value(v)
            assert (values == values[0]).all()
        else:
            turn = store._lock.turn()
            store._lock.write(turn)
            assert turns.value == 0
            turn.over = True
            store._lock.settle()
        thread.join(10)
        assert not thread.is_alive()
        waited += met
        if waited == 4:
            break
    assert waited == 4
    assert turns.value == 0


def test_who_may_begin_beside_native_runs() -> None:
    lock = ReadWriteLock()
    lock.native.value = 2
    reader, writer = lock.turn(), lock.turn()
    lock.read(reader)
    reader.over = True
    lock.settle()
    with pytest.raises(gx.errors.RunTimeoutError):
        lock.write(writer, time.monotonic() + 0.01)
    writer.over = True
    lock.settle()
    lock.native.value = -1
    for turn, begin in ((lock.turn(), lock.read), (lock.turn(), lock.write)):
        with pytest.raises(gx.errors.RunTimeoutError):
            begin(turn, time.monotonic() + 0.01)
        turn.over = True
        lock.settle()
    lock.native.value = 0
    lock.settle()
    lock.write(turn := lock.turn())
    turn.over = True
    lock.settle()
    assert lock.free.value == lock.unwritten.value == lock.version


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_native_writers() -> None:
    c = Counter(1)
    warm(c.add, c.look)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            c.add()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            time.sleep(0.002)
            child = os.fork()
            if child == 0:
                values = c.session.get_value(c.v)
                c.add()
                after = c.session.get_value(c.v)
                right = (values == values[0]).all() and (after == values[0] + 1).all()
                os._exit(0 if right else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()


def test_an_exception_while_others_are_told_comes_after_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, v, add = long_writer()
    store = session.variables
    turns = store.turns()[0]

    def settle() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(store), "turns", lambda self: (turns, settle))
    warm(add)
    before = session.get_value(v)[0]
    done = threading.Event()

    def wait_for_a_turn() -> None:
        while not done.is_set():
            if turns.value:
                store._lock.free.value = 0  # as a turn that begins to wait does
                return

    thread = threading.Thread(target=wait_for_a_turn)
    thread.start()
    count = 0
    with pytest.raises(KeyboardInterrupt):
        while count < 500:
            count += 1
            add()
    done.set()
    thread.join()
    assert turns.value == 0
    store._lock.settle()
    assert session.get_value(v)[0] == before + count


def test_entries_keep_large_arenas_within_bounds(
    slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = gx.placeholder("f32", (None,), name="x")
    values = np.ones(1 << 19, "f4")

    def made(n: int) -> Callable[..., Any]:
        between = gx.cumsum(x * n)  # two megabytes that one step writes and another reads
        return gx.Session(threads=1).make_callable(gx.sum(gx.cumsum(between[::-1])), [x])

    def is_native(call: Callable[..., Any]) -> bool:
        for _ in range(HOT):
            call(values)
        before = len(slow)
        call(values)
        return len(slow) == before

    gc.collect()
    taken = sum(share.bytes for share in contexts._shares)
    first, second = made(1), made(2)
    monkeypatch.setattr(contexts, "SHARED_BYTES", taken + (5 << 20))
    idle = contexts.idle_bytes()
    assert is_native(first)
    assert contexts.idle_bytes() - idle >= 2 << 20
    assert not is_native(second)
    del first
    gc.collect()
    assert is_native(second)
