"""The session entered last in each thread, and words that change when that may have changed.

A native entry of a function looks at such a word instead of asking for the session: while the word
holds what it did, in the same thread, so does the answer.  Imports: node.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from typing import TYPE_CHECKING

from graphc.node import DEFAULT_SESSION

if TYPE_CHECKING:
    from graphc.session import Session


class _Defaults(threading.local):
    def __init__(self) -> None:
        self.stack: list[Session] = []


_defaults = _Defaults()


def get_default_session() -> Session | None:
    """The session entered last in this thread, or None."""
    stack = _defaults.stack
    return stack[-1] if stack else None


def push_default_session(session: Session) -> None:
    """Make this the default session of the thread until it is removed."""
    _change(1)  # before it holds: nobody may see the old word with the new session
    _defaults.stack.append(session)


def remove_default_session(session: Session) -> None:
    """Take back the last `push_default_session` of this session."""
    stack = _defaults.stack
    place = len(stack) - 1 - stack[::-1].index(session)
    _change(0)
    del stack[place]
    _change(-1)


# ---- words for native entries ------------------------------------------------------------------

_versions = itertools.count(1)  # no word ever holds a number twice
_lock = threading.Lock()
_entered = [0]  # sessions, in all threads
_default_word = ctypes.c_int64(0)
_settings_word = ctypes.c_int64(0)

Gate = tuple[ctypes.c_int64, int, int]
"""A word, what it holds now, and the thread for which that says anything (0: every thread)."""


def _change(entered: int) -> None:
    with _lock:
        _entered[0] += entered
        _default_word.value = next(_versions)


def settings_changed() -> None:
    """Close every gate: what sessions are asked for has changed."""
    _change(0)
    _settings_word.value = next(_versions)


def default_gate() -> Gate:
    """Open while this thread has the same default session and sessions the same settings."""
    with _lock:
        thread = threading.get_ident() if _entered[0] else 0
        return _default_word, _default_word.value, thread


def settings_gate() -> Gate:
    """Open while sessions have the same settings."""
    return _settings_word, _settings_word.value, 0


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


DEFAULT_SESSION[:] = [get_default_session]
