"""Objects that native code reads: tables of words, and instances whose methods it takes over.

A class whose methods are native derives from `NativeSelf`.  Its methods are ordinary ones at first;
each is replaced on the class when there is native code to do it.  Imports: forks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from graphc.forks import new_lock

Words = npt.NDArray[np.int64]


class Table:
    """An object whose first slot is the array of words that native code reads."""

    __slots__ = ("words",)

    words: Words

    @classmethod
    def of(cls, *words: int) -> Table:
        """A table of just these words."""
        table = Table()
        table.words = np.array(words, np.int64)
        return table


class NativeSelf:
    """An object whose first slot is the table that its native methods begin with."""

    __slots__ = ("_native_table",)

    _native_table: Table


def take_over(cls: type, name: str, method: Any, make: Callable[[], Any]) -> None:
    """Let what `make` returns be the method of this name, unless it has been replaced before."""
    with _lock:
        if cls.__dict__.get(name) is method:
            setattr(cls, name, make())


_lock = new_lock()
