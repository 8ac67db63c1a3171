"""Runs that a signal ends: how soon is measured by benchmarks; here, that nothing else changes."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_written_plans import N, executable, launch, make_plan, sizes, value

import graphc as gx
from graphc.errors import GraphTypeError, RunTimeoutError
from graphc.plan import Ref
from graphc.types import int64

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")

WIDTH = 256


class Stopped(Exception):
    """What the handlers of these tests raise."""


@pytest.fixture(autouse=True)
def fresh_graph() -> Iterator[None]:
    gx.reset_default_graph()
    yield
    gx.reset_default_graph()


@pytest.fixture(autouse=True)
def control_c_is_heard() -> Iterator[None]:
    """A shell starts what it puts in the background deaf to it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@contextmanager
def on_alarm(handler: Callable[..., Any], after: float, every: float = 0) -> Iterator[None]:
    """SIGALRM comes `after` seconds and is handled so."""
    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def stop(number: int, frame: object) -> None:
    raise Stopped


class Long:
    """A run that takes seconds, whatever the machine, and then adds to a variable."""

    def __init__(self, threads: int) -> None:
        self.x = gx.placeholder("f32", (None, WIDTH))
        weights = np.eye(WIDTH, dtype="f4")
        y = self.x
        for _ in range(12):
            y = gx.tanh(y @ weights)
        self.v = gx.Variable(np.zeros(2000, "f4"))
        self.counter = gx.random.uniform(())
        self.y = gx.sum(y)
        self.up = self.v.assign_add(gx.ones(2000) + self.y)
        self.session = gx.Session(threads=threads)
        self.session.run(self.v.initializer)
        rows = 256
        while True:
            self.small = np.zeros((rows, WIDTH), "f4")
            self.session.run(self.y, {self.x: self.small})
            began = time.perf_counter()
            self.session.run(self.y, {self.x: self.small})
            took = time.perf_counter() - began
            if took > 0.05:
                break
            rows *= 2
        self.big = np.zeros((int(rows * 2 / took), WIDTH), "f4")

    def run(self, feed: np.ndarray) -> Any:
        return self.session.run([self.y, self.up, self.counter], {self.x: feed})


@pytest.mark.parametrize("threads", [1, 3])
def test_a_signal_ends_a_run_and_changes_nothing(threads: int) -> None:
    long = Long(threads)
    run, big, small = long.run, long.big, long.small
    expected = run(small)
    before = long.session.run(long.v)
    with on_alarm(stop, 0.2), pytest.raises(Stopped):
        run(big)
    np.testing.assert_array_equal(long.session.run(long.v), before)
    with pytest.raises(KeyboardInterrupt):
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            run(big)
        finally:
            timer.join()
    np.testing.assert_array_equal(long.session.run(long.v), before)
    again = run(small)
    assert again[0] == expected[0]
    assert again[2] != expected[2]  # the counter of random numbers has moved once
    np.testing.assert_array_equal(long.session.run(long.v), before + 1 + expected[0])


def test_a_handler_that_returns_lets_the_run_go_on() -> None:
    long = Long(2)
    calls: list[int] = []
    with on_alarm(lambda number, frame: calls.append(number), 0.1, 0.1):
        results = long.run(long.big)
    # Handled only after the run, the signals would have been one.
    assert len(calls) > 1
    assert results[0] == 0
    np.testing.assert_array_equal(long.session.run(long.v), np.ones(2000))


def test_runs_of_other_threads_go_on() -> None:
    long = Long(1)
    done: queue.Queue[Any] = queue.Queue()
    thread = threading.Thread(target=lambda: done.put(long.run(long.big)))
    with on_alarm(stop, 0.2), pytest.raises(Stopped):
        thread.start()
        done.get()
    assert done.get(timeout=60)[0] == 0
    thread.join()
    np.testing.assert_array_equal(long.session.run(long.v), np.ones(2000))


@pytest.mark.parametrize("threads", [1, 3])
def test_what_has_begun_to_write_is_finished(threads: int) -> None:
    steps = [launch("accumulate", Ref("input", 0), Ref("state", 0)) for _ in range(400)]
    program = executable(
        make_plan(
            steps=tuple(
                launch("accumulate", Ref("input", 0), Ref("state", 0), wait_from=max(i - 1, -1))
                for i, _ in enumerate(steps)
            ),
            inputs=(value(int64, N),),
            variables=(value(int64, N),),
        )
    )
    n = 1_000_000
    state = np.zeros(n, np.int64)
    x = np.arange(n)
    with on_alarm(stop, 0.1), pytest.raises(Stopped):
        while True:
            state[:] = 0
            program.run([x], [state], sizes(n=n), threads)
    whole = state.max() // (n - 1)
    assert whole in (0, 400)  # 0 if the signal came between two runs
    np.testing.assert_array_equal(state, whole * x)


@pytest.mark.parametrize(
    ("device", "others"),
    [("cpu", 0), ("cpu", 2), ("reference", 0), ("emulated-gpu", 0), ("emulated-gpu", 2)],
)
def test_signals_at_any_moment_leave_a_session_in_order(device: str, others: int) -> None:
    """In a process without pytest and coverage: they hold locks that a signal leaves locked."""
    script = Path(__file__).with_name("signal_stress.py")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    command = [sys.executable, "-W", "ignore", str(script), device, str(others)]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "in order\n"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_timeout_ends_a_run_and_changes_nothing(threads: int) -> None:
    long = Long(threads)
    session = long.session
    expected = long.run(long.small)
    before = session.run(long.v)
    limited = gx.RunOptions(timeout=0.2, threads=threads)
    fetches = [long.y, long.up, long.counter]
    for _ in range(2):
        with pytest.raises(RunTimeoutError, match="longer than its timeout"):
            session.run(fetches, {long.x: long.big}, limited)
        np.testing.assert_array_equal(session.run(long.v), before)
    # The same memory serves a run without a limit, and one with a generous limit.
    assert session.run(long.y, {long.x: long.big}) == 0
    generous = gx.RunOptions(timeout=float("inf"), threads=threads)
    assert session.run(fetches, {long.x: long.small}, generous)[0] == expected[0]
    np.testing.assert_array_equal(session.run(long.v), before + 1 + expected[0])


def test_a_timeout_counts_the_wait_for_other_runs() -> None:
    long = Long(1)
    thread = threading.Thread(target=lambda: long.run(long.big))
    thread.start()
    while long.session.variables._lock.free.value:
        time.sleep(0.001)
    with pytest.raises(RunTimeoutError, match="timeout"):
        long.session.run(long.up, {long.x: long.small}, gx.RunOptions(timeout=0.01))
    thread.join()
    np.testing.assert_array_equal(long.session.run(long.v), np.ones(2000))


def test_wrong_timeouts_are_refused() -> None:
    for wrong in (0, -1.0, "soon", float("nan")):
        with pytest.raises(GraphTypeError, match="positive number of seconds"):
            gx.RunOptions(timeout=wrong)  # type: ignore[arg-type]
