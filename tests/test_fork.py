"""Processes that fork: before the first run, after it, and while other threads compile and run."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

import graphc as gx

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

FORKING = """
import faulthandler, gc, os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
import numpy.testing  # now: a child must not wait for a lost thread's import
import graphc as gx

x = gx.placeholder("f32", (None, 8), name="x")
w = gx.Variable(np.ones((8, 8), "f4"), name="w")
v = gx.Variable(np.zeros(100_000, "f4"), name="v")
y = gx.tanh(x @ w)
up = v.assign_add(gx.ones(100_000))
session = gx.Session(threads=2)
session.run(gx.global_variables_initializer())
small, large = np.ones((3, 8), "f4"), np.ones((30_000, 8), "f4")
function = gx.function([x], y)
expected = np.tanh(np.float32(8))
numbers = iter(range(10**9))

def compile_one():
    with gx.Graph().as_default(), gx.Session() as other:
        a = gx.placeholder("f32", (None, 8))
        z = gx.sum(gx.exp(a * float(next(numbers))) + gx.reshape(a, (-1,))[0] - 1.0, axis=1)
        np.testing.assert_allclose(other.run(z, {a: np.zeros((2, 8))}), [0, 0], atol=1e-6)

def check():
    for fed in (small, large):
        np.testing.assert_allclose(session.run(y, {x: fed}), expected, rtol=1e-6)
        np.testing.assert_allclose(function(fed), expected, rtol=1e-6)
    seen = session.run(v)
    assert (seen == seen[0]).all()

def child():
    faulthandler.dump_traceback_later(60, exit=True)  # a deadlock ends as a failure
    assert gc.isenabled()
    check()
    session.run(up)
    compile_one()
    check()

def fork():
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os._exit(0)
        except BaseException as error:
            print(repr(error)[:2000], file=sys.stderr)
            os._exit(1)
    return os.waitpid(pid, 0)[1]

def forever(work):
    while not stop.is_set():
        work()

stop = threading.Event()
if warm:
    for _ in range(40):
        check()
works = [compile_one, check, lambda: session.run(up)] if busy else []
threads = [threading.Thread(target=forever, args=(work,)) for work in works]
for thread in threads:
    thread.start()
codes = []
if from_thread:
    forker = threading.Thread(target=lambda: codes.extend(fork() for _ in range(forks)))
    forker.start()
    forker.join()
else:
    codes += [fork() for _ in range(forks)]
stop.set()
for thread in threads:
    thread.join()
check()
assert codes == [0] * forks, codes
"""


@pytest.mark.parametrize(
    ("warm", "busy", "from_thread", "forks"),
    [
        (False, False, False, 2),
        (True, False, True, 4),
        (True, True, False, 8),
        (False, True, True, 6),
    ],
)
def test_fork(warm: bool, busy: bool, from_thread: bool, forks: int) -> None:
    case = f"{warm=}; {busy=}; {from_thread=}; {forks=}\n"
    done = subprocess.run(
        [sys.executable, "-c", case + FORKING],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _task(n: int) -> float:
    with gx.Graph().as_default(), gx.Session() as session:
        x = gx.placeholder("f32", (None,))
        return float(session.run(gx.sum(x * 2), {x: np.ones(n)}))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_processes(method: str) -> None:
    assert _task(3) == 6
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_task, [1, 10, 100_000]) == [2, 20, 200_000]
