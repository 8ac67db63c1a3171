"""Sessions used from many threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import graphc as gx
from graphc.errors import SessionClosedError
from graphc.read_write_lock import ReadWriteLock

DEVICES = ("reference", "cpu")


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(i)` in `count` threads; the first exception of any is raised here."""
    failures: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads)
    if failures:
        raise failures[0]


def test_sess_concurrent(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    v = gx.Variable(np.float32(3))
    y = x * v + 1
    s = gx.Session(device=device)
    s.run(v.initializer)

    def work(i: int) -> None:
        for size in range(1, 5):
            fed = np.full(size, i, "f4")
            np.testing.assert_array_equal(s.run(y, {x: fed}), fed * 3 + 1)

    in_threads(50, work)


def test_sess_concurrent_updates_all_count(device: str) -> None:
    v = gx.Variable(np.zeros(1000, "f4"))
    up = v.assign_add(np.ones(1000, "f4"))
    s = gx.Session(device=device)
    s.run(v.initializer)

    def work(i: int) -> None:
        for _ in range(20):
            if i % 2:
                s.run(up.op)
            else:
                seen = s.run(v)
                assert (seen == seen[0]).all()  # never half of an update

    in_threads(20, work)
    np.testing.assert_array_equal(s.run(v), np.full(1000, 200))


def test_sess_concurrent_build(device: str) -> None:
    x = gx.placeholder("f32", (None,))
    y = x + 1
    s = gx.Session(device=device)
    graph = gx.get_default_graph()

    def work(i: int) -> None:
        with graph.as_default():
            for k in range(20):
                if i == 0:
                    assert s.run(y * float(k), {x: [1.0]})[0] == 2 * k
                else:
                    assert s.run(y, {x: [float(i)]})[0] == i + 1

    in_threads(8, work)


def test_sess_close_concurrent(device: str) -> None:
    v = gx.Variable(np.ones(50, "f4"))
    y = gx.sum(v * 2)
    up = v.assign(v)
    s = gx.Session(device=device)
    s.run(v.initializer)
    ended = []

    def work(i: int) -> None:
        if i == 0:
            time.sleep(0.05)
            s.close()
            return
        try:
            while True:
                assert s.run([y, up])[0] == 100
        except SessionClosedError:
            ended.append(i)

    in_threads(6, work)
    assert len(ended) == 5


def test_sess_thread_graph() -> None:
    mine = gx.Graph()
    seen: list[gx.Graph] = []
    with mine.as_default():
        in_threads(1, lambda i: seen.append(gx.get_default_graph()))
        assert gx.get_default_graph() is mine
    assert seen[0] is not mine


def test_writers_are_alone_and_not_starved() -> None:
    lock = ReadWriteLock()
    inside: list[int] = []
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            turn = lock.turn()
            lock.read(turn)
            seen.append(len(inside))
            turn.over = True
            lock.settle()

    readers = [threading.Thread(target=read) for _ in range(4)]
    for t in readers:
        t.start()
    for _ in range(50):
        turn = lock.turn()
        lock.write(turn)
        inside.append(1)
        time.sleep(0.0002)
        inside.pop()
        turn.over = True
        lock.settle()
    stop.set()
    for t in readers:
        t.join(10)
    assert not any(seen)
