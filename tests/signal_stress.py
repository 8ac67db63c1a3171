"""Signals between any two steps of Python: `python tests/signal_stress.py DEVICE OTHER_THREADS`.

Prints "in order" if a session is, after some thousand signals that raised.  A program of its own,
since the signals also come inside whatever else watches the interpreter.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import graphc as gx


class Stopped(Exception):
    """What the handler raises."""


@contextmanager
def alarms(handler: Callable[..., Any]) -> Iterator[None]:
    """SIGALRM is handled so."""
    old = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def main(device: str, others: int) -> None:
    """Runs of microseconds, stopped at random; readers in other threads see whole updates."""
    x = gx.placeholder("f32", (None,))
    a = gx.Variable(np.zeros(8, "f4"))
    b = gx.Variable(np.zeros(3, "f4"))
    up = gx.group(a.assign_add(gx.ones(8)), b.assign_add(gx.ones(3)))
    read = [a + gx.sum(x), b * 1]
    session = gx.Session(device=device)
    session.run(gx.global_variables_initializer())
    fed = {x: np.zeros(5, "f4")}
    slowly = gx.RunOptions(threads=1)  # through Python, whatever could do it natively
    failures: list[BaseException] = []
    armed = False
    stopping = threading.Event()

    def look() -> None:
        try:
            while not stopping.is_set():
                seen, too = session.run(read, fed)
                assert (seen == too[0]).all()
                assert (too == too[0]).all()
        except BaseException as error:
            failures.append(error)

    def stop_if_armed(number: int, frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Stopped

    threads = [threading.Thread(target=look) for _ in range(others)]
    for thread in threads:
        thread.start()
    random = np.random.default_rng(0)
    until = time.monotonic() + 1.5
    with alarms(stop_if_armed):
        while time.monotonic() < until:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 3e-4), 0.01)
                while armed:
                    session.run(up, options=slowly)
                    session.run(read, fed, options=slowly)
                    session.get_value(a)
            except Stopped:
                pass
    stopping.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    values = session.run(read, fed)
    session.run(up)
    after = session.run(read, fed)
    np.testing.assert_array_equal(after[0], np.full(8, values[1][0] + 1))
    np.testing.assert_array_equal(after[1], np.full(3, values[1][0] + 1))
    print("in order")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
