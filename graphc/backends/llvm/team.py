"""The process's team of native threads and the call that runs a bound plan.

One team per process, started by the first run that wants it.  Workers spin for some tens of
microseconds after a run and then sleep in the kernel.  A forked child starts with no workers and a
team of its own.  Imports: jit, driver, driver_stop, memory,
threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from graphc.backends.llvm import driver, driver_stop
from graphc.backends.llvm.jit import JIT, default_jit
from graphc.backends.llvm.memory import Array, address_of, aligned_bytes
from graphc.backends.llvm.target import compile_lock, has_symbol
from graphc.threads import join_threadpoolctl, limit, processors, when_limited

MAX_WORKERS = 255
SPIN_SECONDS = 30e-6

_SLEEPERS, _SLEEP_AFTER, _WORKERS, _PROCESSORS, _LIMIT = 64, 384, 392, 400, 408


def _nothing(thread: int) -> None:
    """Where runs cannot be interrupted it does not matter which thread is the main one."""


class Driver:
    """The native driver as Python functions; code only, shared by every team of the process."""

    def __init__(self, jit: JIT) -> None:
        # workers are in its code until the very end of the process: it is never freed
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(jit))
        architecture = jit.target.architecture
        self.threads = has_symbol("pthread_create") and has_symbol("sched_yield")
        futex = sys.platform == "linux" and architecture in driver.FUTEX_CALL
        affinity = sys.platform == "linux" and all(
            has_symbol(f"sched_{name}") for name in ("getcpu", "getaffinity", "setaffinity")
        )
        python = all(map(has_symbol, driver_stop.SYMBOLS))
        darwin = sys.platform == "darwin"
        text = driver.driver_text(architecture, self.threads, futex, affinity, python, darwin)
        names = ["run"]
        names += ["start", "spin", "quiesce"] if self.threads else []
        names += ["run_without_gil", "main_is"] if python else []
        found = jit.compile_text(text, names)
        word = ctypes.c_int64
        self.run_address = found["run"]
        self.run: Callable[[int, int, int], int]
        self.main_is: Callable[[int], None] = _nothing
        if python:
            self.main_is = ctypes.CFUNCTYPE(None, word)(found["main_is"])
            self.main_is(threading.main_thread().ident or 0)
            # This one keeps the GIL, which the callee drops, and raises what the callee has set.
            self.run = ctypes.PYFUNCTYPE(word, word, word, word)(found["run_without_gil"])
        else:
            self.run = ctypes.CFUNCTYPE(word, word, word, word)(found["run"])
        if not self.threads:
            return
        self.start = ctypes.CFUNCTYPE(ctypes.c_int32, word)(found["start"])
        self.spin = ctypes.CFUNCTYPE(None, word)(found["spin"])
        self.quiesce = ctypes.CFUNCTYPE(None, word, word)(found["quiesce"])

    def spins_per(self, seconds: float) -> int:
        """How many pauses take that long here."""
        trial = 2000
        best = 1.0
        for _ in range(3):
            started = time.perf_counter()
            self.spin(trial)
            best = min(best, time.perf_counter() - started)
        return max(64, int(trial * seconds / best))


class Team:
    """Workers and their control block; `run` is the one native call of a run."""

    def __init__(self, native: Driver) -> None:
        self.native = native
        self.workers = 0
        self._most = MAX_WORKERS if native.threads else 0
        self._lock = threading.Lock()
        self.control = address_of(_control_block())
        self._word(_PROCESSORS).value = processors()
        join_threadpoolctl()
        when_limited(self._set_limit)

    def run(self, plan: int, threads: int) -> int:
        """Run the plan table at this address without the GIL.

        0, 1 if a check failed, 3 if the time allowed is over; raises what a signal handler raises.
        """
        helpers = min(threads - 1, self._most)
        if helpers > self.workers:
            self._grow(min(helpers, limit() - 1))
        return self.native.run(self.control, plan, helpers)

    def release(self, plan: int) -> None:
        """Return when no worker is inside the plan table at this address."""
        if self.workers:
            self.native.quiesce(self.control, plan)

    def _grow(self, wanted: int) -> None:
        """Start workers, with signals blocked: they inherit that, and Ctrl-C finds a Python thread.

        A handler may raise at any call all the same, so a slot is never used twice.
        """
        with self._lock:
            if not self.workers:
                self._word(_SLEEP_AFTER).value = self.native.spins_per(SPIN_SECONDS)
            old = _block_signals(())
            try:
                _block_signals(_every_signal())
                while self.workers < min(wanted, self._most):
                    self._start()
            finally:
                if old is not None:
                    signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def _start(self) -> None:
        """Start one worker; where the system allows no more, runs go on with those there are."""
        slot = self.control + driver.CONTROL_BYTES + driver.WORKER_BYTES * self.workers
        ctypes.c_int64.from_address(slot + 8).value = self.control
        self.workers += 1
        # Counted before it starts: `quiesce` must look at the slot of a running worker.
        self._word(_WORKERS).value = self.workers
        if self.native.start(slot):
            self.workers -= 1
            self._most = self.workers

    def _set_limit(self, threads: int) -> None:
        self._word(_LIMIT).value = threads - 1

    def _word(self, offset: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.control + offset)


def _control_block() -> Array:
    """Zeroed memory that is never freed: workers read it until the very end of the process."""
    size = driver.CONTROL_BYTES + driver.WORKER_BYTES * MAX_WORKERS
    memory = aligned_bytes(size)
    memory[:] = 0
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
    return memory


def _block_signals(signals: Iterable[int]) -> set[Any] | None:
    """Block these in this thread as well; the mask before, or None where there are no masks."""
    if not hasattr(signal, "pthread_sigmask"):
        return None
    return signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def _every_signal() -> set[Any]:
    return signal.valid_signals() if hasattr(signal, "valid_signals") else set()


_team: Team | None = None
_retired: list[Team] = []
_lock = threading.Lock()


def team() -> Team:
    """The team of this process."""
    global _team
    found = _team
    if found is None:
        native = native_driver()
        with _lock:
            if _team is None:
                _team = Team(native)
            found = _team
    return found


_native: Driver | None = None


def native_driver() -> Driver:
    """The driver's code, compiled once per process."""
    global _native
    with compile_lock:
        if _native is None:
            _native = Driver(default_jit())
        return _native


def release(plan: int) -> None:
    """Return when no worker of this process is inside the plan table at this address."""
    if plan and _team is not None:  # 0 where a signal came before there was a table
        _team.release(plan)


def _forget_team() -> None:
    """In a forked child: the parent's workers do not exist here and its locks may be held."""
    global _team, _lock
    _lock = threading.Lock()
    if _team is not None:
        _retired.append(_team)
        _team = None
    if _native is not None:
        _native.main_is(threading.get_ident())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)
