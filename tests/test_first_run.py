"""The first run of a process: native functions are made beside it, and nothing is left over."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SCRIPT = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
sys.path.insert(0, {root!r})
import numpy as np
import graphc as gx
from graphc.backends.llvm import entry_function

x = gx.placeholder("f32", ("n",), name="x")
y = x * 2 + 1

def check():
    found = gx.Session().run(y, {{x: np.arange(5.0, dtype=np.float32)}})
    assert np.array_equal(found, [1, 3, 5, 7, 9])
    assert entry_function.native_function() is not None

entry_function.begin_native_function()
entry_function.begin_native_function()
assert threading.active_count() <= 2
if {fork}:
    child = os.fork()
    if child == 0:
        check()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
check()
until = time.monotonic() + 10
while threading.active_count() > 1 and time.monotonic() < until:
    time.sleep(0.001)
assert threading.active_count() == 1
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fork", [False, True])
def test_native_functions_are_made_beside_the_first_run(threads: int, fork: bool) -> None:
    if fork and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    environment = {**os.environ, "GRAPHC_CACHE": "off", "GRAPHC_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=ROOT, fork=fork)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
