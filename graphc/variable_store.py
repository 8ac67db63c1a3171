"""The values of variables in one session, and the rule by which runs share them.

Runs that only read go on side by side; a run that writes is alone.  A run that fails leaves every
value as it was, and a variable it would have set for the first time stays without a value.
Imports: execution, kept_values, read_write_lock, backends.base, errors, graph.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from graphc.backends.base import KeepingExecutable, Residence, has_committed
from graphc.dims import Sizes
from graphc.errors import SessionClosedError, UninitializedError
from graphc.execution import Compiled
from graphc.graph import Graph
from graphc.kept_values import Held, KeptValues, Word
from graphc.node import Tensor
from graphc.read_write_lock import ReadWriteLock
from graphc.trace import Trace

Array = np.ndarray[Any, Any]


class VariableStore:
    """Arrays by variable, for one session of `graph`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.closed = False
        self._values: dict[int, Array] = {}  # by node id, which no two nodes of a process share
        self._lock = ReadWriteLock()
        self._kept = KeptValues()
        self._residences: tuple[Residence, ...] = ()  # where values may be newer than here
        self._losses = 0  # how often values were lost there, when that was last looked at
        self._lost = ""  # why values were dropped
        self._open = ctypes.c_int64(1)  # for native entries: 0 when the session is closed

    def run(
        self,
        compiled: Compiled,
        inputs: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
        deadline: float | None = None,
    ) -> list[Array]:
        """Run a compiled program on this state; raises UninitializedError for what it lacks."""
        if not compiled.variables:
            how = sizes, threads, trace, deadline
            return compiled.run(inputs, (), *how, self._kept_values(compiled, (), *how))
        lock = self._lock
        turn = lock.turn()
        try:
            if compiled.written:
                lock.write(turn, deadline)
                return self._run_writing(compiled, inputs, sizes, threads, trace, deadline)
            lock.read(turn, deadline)
            values = self._whole_values()
            try:
                state = [values[i] for i in compiled.ids]
            except KeyError:
                raise self._uninitialized(compiled) from None
            self._before_run(compiled, state)
            how = sizes, threads, trace, deadline
            return compiled.run(inputs, state, *how, self._kept_values(compiled, state, *how))
        finally:
            turn.over = True
            lock.settle()

    def _kept_values(
        self,
        compiled: Compiled,
        state: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None,
        deadline: float | None,
    ) -> Sequence[Array]:
        """What the program keeps between runs, of its variables as they are now."""
        if not compiled.executable.kept:
            return ()
        executable = cast(KeepingExecutable, compiled.executable)
        how = sizes, threads, trace, deadline
        return self._kept.take(executable, compiled.ids, state, *how)

    def kept(self, executable: Any) -> Held | None:
        """What an executable keeps, if it is there and right."""
        return self._kept.held(executable)

    def writer(self, written: frozenset[int]) -> Word:
        """Counts the runs that write these variables; who writes them natively adds to it."""
        return self._kept.writer(written)

    def _whole_values(self) -> dict[int, Array]:
        """The values; none in a child of a process that forked while a thread wrote them."""
        if self._lock.torn:
            self._values.clear()
            self._lost = "whose values another thread was writing when the process forked"
            self._lock.torn = False
        if self._residences:
            self._drop_lost()
        return self._values

    # ---- values on other devices

    def _drop_lost(self) -> None:
        """Drop the values that nobody has any more."""
        losses = sum([residence.losses for residence in self._residences])
        if losses == self._losses:
            return
        for residence in self._residences:
            for i, array in list(self._values.items()):
                why = residence.lost(array)
                if why:
                    self._lost = why
                    self._values.pop(i, None)
        self._losses = losses

    def _before_run(self, compiled: Compiled, state: Sequence[Array]) -> None:
        """Have the values where the program looks for them."""
        own = compiled.executable.residence
        if own is not None and own not in self._residences:
            self._residences = (*self._residences, own)
            self._lock.version += 1  # native entries, which look at arrays only, are turned away
        for other in self._residences:
            if other is not own:
                other.bring_home(state)
                ids = zip(compiled.ids, state, strict=True)
                other.forget([array for i, array in ids if i in compiled.written])

    def _run_writing(
        self,
        compiled: Compiled,
        inputs: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None,
        deadline: float | None,
    ) -> list[Array]:
        values = self._whole_values()
        fresh: dict[int, Array] = {}
        state: list[Array] = []
        for variable, i in zip(compiled.variables, compiled.ids, strict=True):
            array = values.get(i)
            if array is None:
                array = fresh[i] = self._first_storage(compiled, variable)
            state.append(array)
        self._before_run(compiled, state)
        how = sizes, threads, trace, deadline
        kept = self._kept_values(compiled, state, *how)
        self._kept.before_run(compiled.written)
        try:
            results = compiled.run(inputs, state, *how, kept)
        except BaseException as error:
            if fresh and has_committed(error):
                self._adopt(fresh)
            raise
        if fresh:
            self._adopt(fresh)  # only now: a failed run gives no variable a value
        return results

    def _adopt(self, fresh: dict[int, Array]) -> None:
        self._lock.version += 1
        self._values.update(fresh)

    def snapshot(self, ids: Sequence[int], writes: bool) -> tuple[Word, int, list[Array]] | None:
        """What a native entry that uses these variables needs; None while it cannot be told.

        A word, what it holds while the variables' arrays are the ones returned and may be read, or
        with `writes` be written, as far as `turns` leaves them; the arrays.  Without variables the
        word says whether the session is open.
        """
        if self._residences:
            return None
        if not ids:
            return self._open, 1, []
        word = self._lock.free if writes else self._lock.unwritten
        version = word.value
        arrays = [self._values[i] for i in ids if i in self._values]
        if not version or len(arrays) < len(ids) or word.value != version:
            return None
        return word, version, arrays

    def turns(self) -> tuple[Word, Callable[[], None]]:
        """By what native entries that let go of the GIL take turns, and how they wake who waits."""
        return self._lock.native, self._lock.settle

    def _first_storage(self, compiled: Compiled, variable: Tensor) -> Array:
        """Memory for a variable that has no value; an error if the run reads it."""
        if variable is self.graph.random_counter:
            return self._initial_counter()
        if variable.node.id in compiled.read:
            raise self._uninitialized(compiled)
        shape = tuple(int(str(d)) for d in variable.dims)
        return np.empty(shape, variable.dtype.numpy)

    def _uninitialized(self, compiled: Compiled) -> Exception:
        if self.closed:
            return SessionClosedError("the session is closed")
        lost = f", {self._lost}" if self._lost else ""
        for v in compiled.variables:
            if v.node.id in compiled.read and v.node.id not in self._values:
                return UninitializedError(
                    f"variable {v.node.name!r} {v.type} ({v.node.loc}) has no value in this "
                    f"session{lost}: run gx.global_variables_initializer() first"
                )
        raise AssertionError("every variable the run reads has a value")

    def _initial_counter(self) -> Array:
        """0 for a seeded graph; otherwise a random start, so that unseeded runs differ."""
        start = 0 if self.graph.seed is not None else int.from_bytes(os.urandom(4), "little") << 32
        return np.array(start, np.uint64)

    # ---- single values

    def __contains__(self, variable: Tensor) -> bool:
        return variable.node.id in self._values

    def get(self, variable: Tensor) -> Array:
        """A copy of the value; raises UninitializedError if there is none."""
        lock = self._lock
        turn = lock.turn()
        try:
            lock.read(turn)
            array = self._whole_values().get(variable.node.id)
            if array is None:
                raise UninitializedError(
                    f"variable {variable.node.name!r} ({variable.node.loc}) has no value in this "
                    "session"
                )
            for residence in self._residences:
                residence.bring_home([array])
            return array.copy()
        finally:
            turn.over = True
            lock.settle()

    def set(self, variable: Tensor, array: Array) -> None:
        """Keep a copy of `array`, which has the variable's dtype and shape."""
        copy = np.array(array, order="C")
        lock = self._lock
        turn = lock.turn()
        try:
            lock.write(turn)
            self._whole_values()
            lock.version += 1
            self._kept.before_set(variable.node.id)
            self._values[variable.node.id] = copy
        finally:
            turn.over = True
            lock.settle()

    def close(self) -> None:
        """Forget every value; runs in progress keep the arrays they use."""
        self.closed = True
        self._open.value = 0
        lock = self._lock
        turn = lock.turn()
        try:
            lock.write(turn)
            lock.version += 1
            self._values.clear()
            self._kept.forget()
            for residence in self._residences:
                residence.release()
        finally:
            turn.over = True
            lock.settle()
