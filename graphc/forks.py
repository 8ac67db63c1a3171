"""Locks that `fork` leaves in order: a child has only the thread that forked.

A lock that another thread held would stay locked in the child for ever, so a child gets the locks
made here free.  What they guard must therefore be right between any two steps of its own, as
dictionaries are.  Python's own locks of modules that are being imported cannot be freed, so a fork
waits until no module of ours is.  Imports: nothing.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
import weakref
from typing import Any

LATE_IMPORTS = ("graphc", "llvmlite")
"""What is imported while programs run."""

IMPORT_PATIENCE = 10.0
"""Seconds that a fork waits for imports of other threads."""

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


def _await_imports() -> None:
    until = time.monotonic() + IMPORT_PATIENCE
    while _importing() and time.monotonic() < until:
        time.sleep(0.001)


def _importing() -> bool:
    """Whether a thread is importing a module of ours; this one never does while it forks."""
    bootstrap = getattr(importlib, "_bootstrap", None)
    names = tuple(getattr(bootstrap, "_module_locks", ()))
    return any(name.partition(".")[0] in LATE_IMPORTS for name in names)


def _in_child() -> None:
    for lock in list(_locks):
        owned = getattr(lock, "_is_owned", None)
        if owned is None or not owned():
            lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_await_imports, after_in_child=_in_child)
