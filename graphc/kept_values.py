"""The values that stay between the runs of one session, and when they are made again.

Every set of variables that some program writes has a word that counts the runs which may have
written them, native ones included; variables that are set from Python are counted one by one.
Counts only grow, so a value is as fresh as what it saw them add up to.  Plans that make the same
value of the same variables share it.  Imports: backends.base, dims, forks, trace.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.arena import ALIGNMENT
from graphc.backends.base import KeepingExecutable
from graphc.dims import Sizes
from graphc.forks import new_rlock
from graphc.plan import Kept
from graphc.trace import Trace

Array = np.ndarray[Any, Any]

Word = ctypes.c_int64

MOST_WRITERS = 64
"""Sets of variables with a word of their own; runs that write others make every value stale."""


class _Value:
    """A value, of its variables as they were at `version`."""

    def __init__(self, variables: Iterable[int]) -> None:
        self.variables = frozenset(variables)  # by node id
        self.array: Array | None = None
        self.version = -1


@dataclass(frozen=True)
class Held:
    """What an executable was given last: right while the words add up to `total`."""

    values: list[_Value]
    words: list[Word]
    total: int
    arrays: list[Array]

    @property
    def fresh(self) -> bool:
        """Whether none of the variables has been written since."""
        return sum([word.value for word in self.words]) == self.total


class KeptValues:
    """What the executables of a session keep.

    A run asks while it has its turn as a reader or a writer of the session's variables, so that
    nobody else writes them.  One thread at a time makes values; they are there for others when
    they are whole.  By then every run that read what they held before is over.
    """

    def __init__(self) -> None:
        self._lock = new_rlock()  # a signal handler may run what its thread is making values for
        self._writers: dict[frozenset[int], Word] = {}
        self._rest = Word(0)  # counts the runs that no word of `_writers` does
        self._others = Word(0)  # counts variables set from Python, and new words of `_writers`
        self._times_set: dict[int, int] = {}
        self._values: weakref.WeakValueDictionary[Any, _Value] = weakref.WeakValueDictionary()
        self._held: weakref.WeakKeyDictionary[Any, Held] = weakref.WeakKeyDictionary()

    # ---- who writes

    def writer(self, written: frozenset[int]) -> Word:
        """What counts the runs that write these variables; first asked for by who may write."""
        found = self._writers.get(written)
        if found is None:
            if len(self._writers) >= MOST_WRITERS:
                return self._rest
            found = self._writers[written] = Word(0)
            self._others.value += 1
        return found

    def before_run(self, written: frozenset[int]) -> None:
        """A run that has its turn may write these variables."""
        self.writer(written).value += 1

    def before_set(self, variable: int) -> None:
        """Who has a writer's turn is about to set a variable."""
        self._times_set[variable] = self._times_set.get(variable, 0) + 1
        self._others.value += 1

    def forget(self) -> None:
        """Drop every value."""
        self._held.clear()
        self._values.clear()

    # ---- who reads

    def held(self, executable: Any) -> Held | None:
        """What an executable was given last, if it is right still."""
        found = self._held.get(executable)
        return found if found is not None and found.fresh else None

    def take(
        self,
        executable: KeepingExecutable,
        ids: Sequence[int],
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None,
        deadline: float | None,
    ) -> list[Array]:
        """The values an executable keeps; those whose variables have changed are made now.

        ids, state  its variables and what they hold
        """
        held = self._held.get(executable)
        if held is not None and held.fresh:
            return held.arrays
        with self._lock:
            values = self._values_of(executable, ids) if held is None else held.values
            words = self._words(frozenset[int]().union(*[v.variables for v in values]))
            total = sum([word.value for word in words])
            versions = [self._version(v) for v in values]
            stale = [i for i, v in enumerate(values) if v.version != versions[i]]
            if stale:
                arrays = _lent(values, stale, executable.kept)
                executable.make_kept(stale, arrays, state, sizes, threads, trace, deadline)
                for i in stale:
                    values[i].array = arrays[i]
                    values[i].version = versions[i]
            made = [v.array for v in values if v.array is not None]
            self._held[executable] = Held(values, words, total, made)
            return made

    def _values_of(self, executable: KeepingExecutable, ids: Sequence[int]) -> list[_Value]:
        found = []
        for made in executable.made():
            variables = tuple(ids[n] for n in made.variables)
            found.append(self._values.setdefault((made.name, variables), _Value(variables)))
        return found

    def _words(self, variables: frozenset[int]) -> list[Word]:
        """What to look at to see whether one of the variables has been written."""
        writers = [word for ids, word in self._writers.items() if ids & variables]
        return [self._others, self._rest, *writers]

    def _version(self, value: _Value) -> int:
        """How often its variables may have been written."""
        runs = sum([w.value for ids, w in self._writers.items() if ids & value.variables])
        return runs + self._rest.value + sum([self._times_set.get(i, 0) for i in value.variables])


def _lent(values: Sequence[_Value], stale: Collection[int], kept: Sequence[Kept]) -> list[Array]:
    """An array for each value; those of stale ones are nobody's until they have been made."""
    arrays: list[Array] = []
    for i, value in enumerate(values):
        array = value.array
        if i in stale:
            value.version, value.array = -1, None
        arrays.append(_aligned(kept[i]) if array is None else array)
    return arrays


def _aligned(kept: Kept) -> Array:
    """Memory for a value, not cleared, that starts at a multiple of ALIGNMENT."""
    memory = np.empty(kept.bytes + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    shape = tuple(int(str(d)) for d in kept.value.type.shape or ())
    return memory[skip : skip + kept.bytes].view(kept.value.type.dtype.numpy).reshape(shape)
