"""Locks that `fork` leaves in order: a child has only the thread that forked.

A lock that another thread held would stay locked in the child for ever, so a child gets the locks
made here free.  What they guard must therefore be right between any two steps of its own, as
dictionaries are.  `importing` is for what must not be cut in two: a fork waits for its holder.
Imports: nothing.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

importing = threading.RLock()
"""Held while modules are imported late: no child inherits the import lock of half a module."""

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def new_lock() -> threading.Lock:
    """A lock that is free in a forked child."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def new_rlock() -> Any:
    """A lock its holder may take again; free in a forked child, unless the forking thread has it.

    It has the type of what `threading.RLock()` returns, which older Pythons cannot name.
    """
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _before() -> None:
    importing.acquire()


def _in_parent() -> None:
    importing.release()


def _in_child() -> None:
    importing.release()
    for lock in list(_locks):
        owned = getattr(lock, "_is_owned", None)
        if owned is None or not owned():
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
