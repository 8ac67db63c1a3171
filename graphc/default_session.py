"""The session entered last in each thread.  Imports: node."""

from __future__ import annotations

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
    _defaults.stack.append(session)


def remove_default_session(session: Session) -> None:
    """Take back the last `push_default_session` of this session."""
    stack = _defaults.stack
    del stack[len(stack) - 1 - stack[::-1].index(session)]


DEFAULT_SESSION[:] = [get_default_session]
