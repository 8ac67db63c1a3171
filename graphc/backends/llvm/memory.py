"""Memory of runs: aligned stretches, arenas, and large output arrays that are issued again.

A fresh array of some 100 KB costs more in page faults than the kernel that fills it.  An output is
issued again only when nobody but the pool refers to it.  Imports: plan.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from graphc.arena import ALIGNMENT

Array = np.ndarray[Any, Any]

RECYCLED_BYTES = 64 * 1024
"""Smaller outputs are made afresh: the allocator keeps those itself."""

RECYCLED_ARRAYS = 3
"""How many arrays the pool of one output remembers."""


MAPPED_BYTES = 1 << 20
"""An arena of this size is mapped by itself, so that its memory is returned when it is dropped."""

HUGE_PAGE = 1 << 21


def arena_bytes(size: int) -> Array:
    """At least `size` bytes for an arena, not cleared, starting at a multiple of ALIGNMENT.

    Large ones are whole huge pages where the system has such: one fault takes as long as a few of
    the five hundred it stands for, and sizes a little larger find room.
    """
    if size < MAPPED_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return aligned_bytes(size)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(_mapped(size), np.uint8)
    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = _mapped(whole + HUGE_PAGE)  # what alignment leaves over is never touched
    array = np.frombuffer(memory, np.uint8)
    skip = -address_of(array) % HUGE_PAGE
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE, skip, whole)
    return array[skip : skip + whole]


def _mapped(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def aligned_bytes(size: int) -> Array:
    """`size` bytes, not cleared, starting at a multiple of ALIGNMENT."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    skip = -address_of(memory) % ALIGNMENT
    return memory[skip : skip + size]


def aligned_copy(array: Array) -> Array:
    """The same values in aligned memory of their own, C-contiguous."""
    memory = aligned_bytes(max(array.nbytes, 1))
    copy = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def address_of(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


class OutputPool:
    """Makes the arrays of one output at one size; safe from many threads under the GIL."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._issued: deque[Array] = deque(maxlen=RECYCLED_ARRAYS)

    @property
    def maker(self) -> Callable[[], Array]:
        """Makes an array nobody else refers to, with arbitrary contents."""
        return self._fresh if self.bytes < RECYCLED_BYTES else self._recycled

    def _fresh(self) -> Array:
        return np.empty(self.shape, self.dtype)

    def _recycled(self) -> Array:
        issued = self._issued
        for _ in range(len(issued)):
            try:
                array = issued.popleft()
            except IndexError:  # another thread emptied the pool
                break
            references = sys.getrefcount(array)
            issued.append(array)
            if references == _UNSHARED and self._intact(array):
                return array
        array = self._fresh()
        issued.append(array)
        return array

    def _intact(self, array: Array) -> bool:
        """Whether its last owner left the array's shape, dtype and flags alone."""
        flags = array.flags
        return (
            array.shape == self.shape
            and array.dtype == self.dtype
            and flags.c_contiguous
            and flags.writeable
            and flags.owndata
            and not weakref.getweakrefcount(array)
        )


def _count_unshared() -> int:
    """What `sys.getrefcount` says in `_recycled` of an array that only the pool knew."""
    pool: deque[Array] = deque([np.empty(1)])
    array = pool.popleft()
    references = sys.getrefcount(array)
    pool.append(array)
    return references


_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
_UNSHARED = _count_unshared() if _gil else -1
"""Without the GIL a count proves nothing, so no array is issued twice."""
