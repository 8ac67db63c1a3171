"""The values of variables in one session, and the rule by which runs share them.

Runs that only read go on side by side; a run that writes is alone.  A run that fails leaves every
value as it was, and a variable it would have set for the first time stays without a value.
Imports: execution, errors, graph.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from graphc.dims import Sizes
from graphc.errors import RunError, SessionClosedError, UninitializedError
from graphc.execution import Compiled
from graphc.graph import Graph
from graphc.node import Tensor
from graphc.trace import Trace

Array = np.ndarray[Any, Any]


class ReadWriteLock:
    """Many readers or one writer; a waiting writer goes before readers that come later.

    A thread that has it and asks again, as a run inside a run would, gets a RunError.

    Native entries look at two words in its place: `unwritten` holds `version` while no writer has
    the lock or waits for it, else 0; `free` holds it while no reader has the lock either.  What
    holds the GIL from its look to the end of its run needs no more than that.  A writer may raise
    `version`, and so turn away entries that have seen another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._readers: list[int] = []  # thread ids
        self._writer: int | None = None
        self._waiting = 0
        self.version = 1
        self.unwritten = ctypes.c_int64(self.version)
        self.free = ctypes.c_int64(self.version)

    def acquire_read(self) -> None:
        me = threading.get_ident()
        with self._lock:
            while self._writer is not None:
                self._wait(me)
            self._readers.append(me)
            self.free.value = 0

    def release_read(self) -> None:
        with self._lock:
            self._readers.remove(threading.get_ident())
            if self._readers:
                return
            if self._writer is None:
                self.free.value = self.version
            elif self._waiting:
                self._changed.notify_all()

    def acquire_write(self) -> None:
        me = threading.get_ident()
        with self._lock:
            while self._writer is not None:
                self._wait(me)
            if me in self._readers:
                raise RunError(_NESTED)
            self._writer = me  # readers that come from here on wait
            self.free.value = 0
            self.unwritten.value = 0
            try:
                while self._readers:
                    self._sleep()
            except BaseException:  # an interrupt: nobody may wait for this writer
                self._writer = None
                self.unwritten.value = self.version
                self._changed.notify_all()
                raise

    def release_write(self) -> None:
        with self._lock:
            self._writer = None
            self.unwritten.value = self.version
            self.free.value = self.version
            if self._waiting:
                self._changed.notify_all()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        self.acquire_read()
        try:
            yield
        finally:
            self.release_read()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self.acquire_write()
        try:
            yield
        finally:
            self.release_write()

    def _sleep(self) -> None:
        self._waiting += 1
        try:
            self._changed.wait()
        finally:
            self._waiting -= 1

    def _wait(self, me: int) -> None:
        if me == self._writer or me in self._readers:  # would wait for itself
            raise RunError(_NESTED)
        self._sleep()


_NESTED = "a run was started inside a run of the same session, and one of them writes variables"


class VariableStore:
    """Arrays by variable, for one session of `graph`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.closed = False
        self._values: dict[int, Array] = {}  # by node id, which no two nodes of a process share
        self._lock = ReadWriteLock()
        self._open = ctypes.c_int64(1)  # for native entries: 0 when the session is closed

    def run(
        self,
        compiled: Compiled,
        inputs: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None = None,
    ) -> list[Array]:
        """Run a compiled program on this state; raises UninitializedError for what it lacks."""
        if compiled.written:
            self._lock.acquire_write()
            try:
                return self._run_writing(compiled, inputs, sizes, threads, trace)
            finally:
                self._lock.release_write()
        if not compiled.variables:
            return compiled.run(inputs, (), sizes, threads, trace)
        self._lock.acquire_read()
        try:
            values = self._values
            try:
                state = [values[i] for i in compiled.ids]
            except KeyError:
                raise self._uninitialized(compiled) from None
            return compiled.run(inputs, state, sizes, threads, trace)
        finally:
            self._lock.release_read()

    def _run_writing(
        self,
        compiled: Compiled,
        inputs: Sequence[Array],
        sizes: Sizes,
        threads: int,
        trace: Trace | None,
    ) -> list[Array]:
        values = self._values
        fresh: dict[int, Array] = {}
        state: list[Array] = []
        for variable, i in zip(compiled.variables, compiled.ids, strict=True):
            array = values.get(i)
            if array is None:
                array = fresh[i] = self._first_storage(compiled, variable)
            state.append(array)
        results = compiled.run(inputs, state, sizes, threads, trace)
        if fresh:
            self._lock.version += 1
            values.update(fresh)  # only now: a failed run gives no variable a value
        return results

    def snapshot(
        self, ids: Sequence[int], writes: bool
    ) -> tuple[int, int, Any, list[Array]] | None:
        """What a native entry that uses these variables needs; None while it cannot be told.

        The address of a word, what it holds while the variables' arrays are the ones returned and
        may be read, or with `writes` be written, the word's owner, the arrays.  Without variables
        the word says whether the session is open.
        """
        if not ids:
            return ctypes.addressof(self._open), 1, self._open, []
        word = self._lock.free if writes else self._lock.unwritten
        version = word.value
        arrays = [self._values[i] for i in ids if i in self._values]
        if not version or len(arrays) < len(ids) or word.value != version:
            return None
        return ctypes.addressof(word), version, word, arrays

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
        for v in compiled.variables:
            if v.node.id in compiled.read and v.node.id not in self._values:
                return UninitializedError(
                    f"variable {v.node.name!r} {v.type} ({v.node.loc}) has no value in this "
                    "session: run gx.global_variables_initializer() first"
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
        with self._lock.reading():
            array = self._values.get(variable.node.id)
            if array is None:
                raise UninitializedError(
                    f"variable {variable.node.name!r} ({variable.node.loc}) has no value in this "
                    "session"
                )
            return array.copy()

    def set(self, variable: Tensor, array: Array) -> None:
        """Keep a copy of `array`, which has the variable's dtype and shape."""
        with self._lock.writing():
            self._lock.version += 1
            self._values[variable.node.id] = np.array(array, order="C")

    def close(self) -> None:
        """Forget every value; runs in progress keep the arrays they use."""
        self.closed = True
        self._open.value = 0
        with self._lock.writing():
            self._lock.version += 1
            self._values.clear()
