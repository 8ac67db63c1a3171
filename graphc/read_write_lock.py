"""Many readers or one writer, where signal handlers raise at any moment and processes fork.

A thread takes a turn and says when it is over by setting an attribute, which no exception can come
between; everything else that follows from it may be cut short, since whoever comes next does it.

    turn = lock.turn()
    try:
        lock.read(turn)                  # or lock.write(turn)
        ...
    finally:
        turn.over = True
        lock.settle()

Imports: errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref

from graphc.errors import RunError, RunTimeoutError

PATIENCE = 0.002
"""Seconds that the turn that waits longest lets others pass."""

LOOK_AGAIN = 0.05
"""Seconds after which a waiting turn looks by itself: the call to it may have been cut short."""

FORK_PATIENCE = 10.0
"""Seconds that a fork waits for what another thread is writing."""


class Turn:
    """One thread's use of a lock."""

    __slots__ = ("bell", "over", "since", "thread", "writes")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.over = False
        self.writes = False
        self.since = 0.0
        self.bell: threading.Lock | None = None  # locked while the turn sleeps


class ReadWriteLock:
    """Many readers or one writer.

    Those who wait are served in order, but while none of them has been passed for long, a turn that
    can begin at once does so: handing over costs more than a short turn.

    A thread that has it and asks again, as a run inside a run would, gets a RunError.

    Native entries look at two words in its place: `unwritten` holds `version` while no writer has
    the lock and nobody waits, else 0; `free` holds it while no reader has the lock either.  What
    holds the GIL from its look to the end of its run needs no more than that.  What lets go of it
    has the lock for as long as `native` says so: the number of such readers, or -1 for a writer.
    It calls `settle` at its end if somebody waits.  A writer may raise `version`, and so turn away
    entries that have seen another.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._active: list[Turn] = []
        self._waiting: list[Turn] = []
        self._served = 0.0  # when a turn that had waited began
        self.torn = False  # whether a thread that does not exist here was writing
        self.version = 1
        self.unwritten = ctypes.c_int64(self.version)
        self.free = ctypes.c_int64(self.version)
        self.native = ctypes.c_int64(0)
        _every.add(self)

    def turn(self) -> Turn:
        """A turn of this thread, not yet begun."""
        return Turn()

    def read(self, turn: Turn, deadline: float | None = None) -> None:
        """Begin the turn as a reader; raises RunError where this thread is writing.

        deadline  of `time.monotonic`: RunTimeoutError if the turn has not come by then
        """
        with self._mutex:
            active = self._active
            writer = self.native.value < 0 or (active and active[0].writes)
            if not (self._waiting or writer):  # the usual case
                self.free.value = 0
                active.append(turn)
                return
        if not self._begin(turn, deadline):
            raise RunTimeoutError(_WAITED)

    def write(self, turn: Turn, deadline: float | None = None) -> None:
        """Begin the turn as the only one; raises RunError where this thread has begun another.

        deadline  of `time.monotonic`: RunTimeoutError if the turn has not come by then
        """
        turn.writes = True
        with self._mutex:
            if not (self._active or self._waiting or self.native.value):
                self.free.value = self.unwritten.value = 0
                self._active.append(turn)
                return
        if not self._begin(turn, deadline):
            raise RunTimeoutError(_WAITED)

    def settle(self) -> None:
        """Notice which turns are over, and wake those whose turn it is."""
        with self._mutex:
            self._settle()

    def _begin(self, turn: Turn, deadline: float | None) -> bool:
        """Wait for the turn and begin it; False if it did not come before the deadline."""
        while True:
            with self._mutex:
                self._settle()
                if any(t.thread == turn.thread and (turn.writes or t.writes) for t in self._active):
                    raise RunError(_NESTED)
                if self._may_begin(turn):
                    if turn in self._waiting:
                        self._waiting.remove(turn)
                        self._served = time.monotonic()
                    self._active.append(turn)
                    self._settle()  # whoever waits next may be able to begin as well
                    return True
                if turn not in self._waiting:
                    turn.since = time.monotonic()
                    self._waiting.append(turn)
                bell = turn.bell = threading.Lock()
                bell.acquire()
                self._publish()
                missed = self._may_begin(turn)  # a native run may have ended before that
            if missed:
                continue
            if deadline is not None and time.monotonic() > deadline:
                return False
            bell.acquire(timeout=LOOK_AGAIN if deadline is None else _until(deadline))

    def _may_begin(self, turn: Turn) -> bool:
        native = self.native.value
        if native < 0 or (native and turn.writes):
            return False
        if self._active and (turn.writes or self._active[0].writes):
            return False
        if not self._waiting or self._waiting[0] is turn:
            return True
        if any(t.thread == turn.thread for t in self._active):
            return True  # a reader inside a reader: who waits for the first must not hold it up
        if max(self._waiting[0].since, self._served) + PATIENCE > time.monotonic():
            return True
        if turn.writes or turn not in self._waiting:
            return False
        return not any(t.writes for t in self._waiting[: self._waiting.index(turn)])

    def _settle(self) -> None:
        if self._active:
            self._active = [t for t in self._active if not t.over]
        if self._waiting:
            self._waiting = [t for t in self._waiting if not t.over]
            self._ring()
        self._publish()

    def _ring(self) -> None:
        """Wake the first that waits, and with a reader the readers right behind it."""
        native = self.native.value
        if native < 0 or (self._active and self._active[0].writes):
            return
        for i, turn in enumerate(self._waiting):
            if turn.writes and (i or self._active or native):
                break
            if turn.bell is not None:
                bell, turn.bell = turn.bell, None
                bell.release()
            if turn.writes:
                break

    def _publish(self) -> None:
        writer = bool(self._active) and self._active[0].writes
        self.unwritten.value = 0 if writer or self._waiting else self.version
        self.free.value = 0 if self._active or self._waiting else self.version

    # ---- forks

    def hold_for_fork(self) -> Turn:
        """A reader's turn, so that nobody writes while the process forks; not begun if it would
        have to wait for too long, or for this very thread."""
        turn = self.turn()
        with contextlib.suppress(RunError):
            self._begin(turn, time.monotonic() + FORK_PATIENCE)
        return turn

    def in_child(self, turn: Turn) -> None:
        """Forget the threads of the parent."""
        writers = any(t.writes and t.thread != turn.thread and not t.over for t in self._active)
        if writers or self.native.value < 0:
            self.torn = True
            self.version += 1
        self.native.value = 0
        turn.over = True
        self._mutex = threading.Lock()
        self._active = [t for t in self._active if t.thread == turn.thread]
        self._waiting = []
        self._settle()


def _until(deadline: float) -> float:
    return min(LOOK_AGAIN, max(0.0, deadline - time.monotonic()))


_WAITED = "the run's timeout was over before other runs had finished with its variables"

_NESTED = "a run was started inside a run of the same session, and one of them writes variables"

_every: weakref.WeakSet[ReadWriteLock] = weakref.WeakSet()
_forking: list[tuple[ReadWriteLock, Turn]] = []
_fork_lock = threading.Lock()


def _before() -> None:
    _fork_lock.acquire()
    _forking[:] = [(lock, lock.hold_for_fork()) for lock in list(_every)]


def _in_parent() -> None:
    for lock, turn in _forking:
        turn.over = True
        lock.settle()
    _forking.clear()
    _fork_lock.release()


def _in_child() -> None:
    for lock, turn in _forking:
        lock.in_child(turn)
    _forking.clear()
    _fork_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
