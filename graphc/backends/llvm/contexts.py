"""Contexts between runs: what is kept for the next run of the same sizes, what others take over.

A plan has tables for every set of sizes it met lately.  Small contexts stay with their sizes.  Of
large ones all plans of the process together keep about one for each run that goes on at once:
whoever needs memory takes it over from a context that is not in use.  Imports: tables, forks.
"""

from __future__ import annotations

import contextlib
import weakref

from graphc.backends.llvm.memory import MAPPED_BYTES, Array
from graphc.backends.llvm.tables import Context, Layout
from graphc.forks import new_lock

IDLE_BYTES = 1 << 29
"""Memory an executable keeps in contexts of sizes other than the one used last."""

LARGEST_PART = 4
"""Memory is taken over from a context that has at most this many times as much."""


SHARED_BYTES = 1 << 27
"""Large arenas that native entries may keep for themselves, in the whole process."""


class Bound:
    """The tables of one set of sizes and the contexts not in use now."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.outputs = [pool.maker for pool in layout.outputs]
        self._output_bytes = sum(pool.bytes for pool in layout.outputs)
        self._context_bytes = layout.context_bytes
        self.idle: list[Context] = []
        self.used = 0
        if layout.arena_bytes >= MAPPED_BYTES:
            with _lock:
                _large.add(self)

    def new_context(self) -> Context:
        """A context, in memory taken over where that is possible."""
        if self.layout.arena_bytes < MAPPED_BYTES:
            return Context(self.layout)
        return Context(self.layout, _idle_memory(self.layout.arena_bytes))

    def keep(self, context: Context) -> None:
        """Keep a context that has finished its run, unless idle ones take too much already."""
        if self._context_bytes * len(self.idle) < IDLE_BYTES:
            self.idle.append(context)

    @property
    def bytes(self) -> int:
        """Memory kept for the next runs of these sizes."""
        return self._context_bytes * len(self.idle) + self._output_bytes


_lock = new_lock()
_large: weakref.WeakSet[Bound] = weakref.WeakSet()
"""All that may have large contexts."""


def _idle_memory(size: int) -> Array | None:
    """Memory for an arena of this size from a context not in use, or None.

    Where there is only a little less, that is given up: it will not be needed beside the new one.
    """
    smaller: tuple[Bound, Context] | None = None
    found: tuple[Bound, Context] | None = None
    for bound, context in _idle():
        capacity = context.memory.nbytes
        if size <= capacity <= LARGEST_PART * size:
            if found is None or capacity < found[1].memory.nbytes:
                found = bound, context
        elif size <= LARGEST_PART * capacity < LARGEST_PART * size and (
            smaller is None or capacity > smaller[1].memory.nbytes
        ):
            smaller = bound, context
    chosen = found or smaller
    if chosen is None:
        return None
    bound, context = chosen
    with contextlib.suppress(ValueError):  # a run may have taken it meanwhile
        bound.idle.remove(context)
        return context.memory if chosen is found else None
    return None


def _idle() -> list[tuple[Bound, Context]]:
    with _lock:
        bounds = list(_large)
    return [(b, c) for b in bounds for c in b.idle.copy()]


def idle_bytes() -> int:
    """Bytes of large arenas that no run uses now, or that native entries have."""
    with _lock:
        shares = sum([share.bytes for share in _shares])
    return sum(c.memory.nbytes for _, c in _idle()) + shares


class Share:
    """A native entry's leave to keep an arena, for as long as this object is there."""

    def __init__(self, size: int) -> None:
        self.bytes = size


_shares: weakref.WeakSet[Share] = weakref.WeakSet()
"""Of large arenas."""


def grant(size: int) -> Share | None:
    """Leave to keep an arena of this size; None while SHARED_BYTES are kept already."""
    share = Share(size)
    if size >= MAPPED_BYTES:  # smaller ones stay with their sizes anyway
        with _lock:
            if sum([other.bytes for other in _shares]) + size > SHARED_BYTES:
                return None
            _shares.add(share)
    return share
