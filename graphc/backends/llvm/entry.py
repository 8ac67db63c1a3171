"""Native entries: a call of a small compiled program without any Python in between.

A `NativeEntry` begins with a slow callable and knows no shapes; `call` then does what the slow one
does.  Shapes that come again and again get a case: tables of their own, which the one native
function of the process recognises and runs.  A new size therefore compiles nothing.  Only runs
that are short and need little memory get cases; the others would gain nothing.
Imports: entry_text, entry_function, executable, contexts, tables, memory, native_self.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Protocol

import numpy as np

from graphc.backends.llvm import entry_text as at
from graphc.backends.llvm.contexts import Share, grant
from graphc.backends.llvm.entry_function import kind_of, native_function
from graphc.backends.llvm.executable import LLVMExecutable
from graphc.backends.llvm.memory import RECYCLED_BYTES, Array, address_of
from graphc.backends.llvm.tables import Context, Layout, Words
from graphc.dims import Sizes
from graphc.native_self import Table

FORMS = ("bare", "list", "tuple")
"""Forms of a result: the only output itself, or all of them in a list or a tuple."""

CASES = 8
"""How many sets of shapes an entry recognises."""

CALLS_BEFORE = 16
"""Calls with the same shapes before they get a case; more once cases have begun to be replaced."""

SHAPES_NOTED = 256

CASE_BYTES = 1 << 26
"""A case keeps the plan's scratch memory for itself, so there are none above this many bytes."""

LONG_WORK = 16384
"""Element operations, some tens of microseconds, from which a run lets other threads go on.

It lets go of the GIL, so it has to take its turn at variables: see `entry_turn_text`."""

MOST_WORK = 1 << 25
"""Element operations, some ten milliseconds, from which the cost of a call no longer shows: that of
Python code which a run has driven out of the caches is some hundred microseconds.

What a native entry runs does not look for signals, so it must be over soon.
"""

STEP_WORK = 64
"""What starting a step costs, in element operations."""

MAX_RANK = at.MAKER_AT - at.DIMS_AT


class Store(Protocol):
    """The state of a session; see `variable_store.VariableStore.snapshot`."""

    def snapshot(
        self, ids: Sequence[int], writes: bool
    ) -> tuple[ctypes.c_int64, int, list[Array]] | None:
        """The gate of these variables (a word, and what it must hold) and their arrays.

        None while others use them.
        """
        ...

    def turns(self) -> tuple[ctypes.c_int64, Callable[[], None]]:
        """What runs without the GIL take turns by, and what tells those who wait."""
        ...

    def kept(self, executable: Any) -> Held | None:
        """What an executable keeps between runs, if it is there and right."""
        ...

    def writer(self, written: frozenset[int]) -> ctypes.c_int64:
        """The word that counts runs that write these variables."""
        ...


class Held(Protocol):
    """What stays between runs: right while the words add up to `total`."""

    @property
    def words(self) -> Sequence[ctypes.c_int64]: ...
    @property
    def total(self) -> int: ...
    @property
    def arrays(self) -> Sequence[Array]: ...


class NativeEntry(Table):
    """A callable and the shapes it has been called with.

    slow       does everything, with the same arguments; it calls `note` after each run.  It is a
               function written in Python: Python 3.10 has no other way to call it from native code
    inputs     how many positional arguments `slow` takes
    outputs    how many results it has
    form       of the result, one of FORMS
    takes_out  whether a call with `out` may be taken over
    order      the argument that each input of the program is (None: the same order)
    """

    __slots__ = (
        "__weakref__",
        "_added",
        "_cases",
        "_evicted",
        "_gate_owner",
        "_lock",
        "_order",
        "_picks",
        "_retired",
        "_seen",
        "_slow",
    )

    def __init__(
        self,
        slow: Callable[..., Any],
        inputs: int,
        outputs: int,
        form: str,
        takes_out: bool = True,
        order: Sequence[int] | None = None,
    ) -> None:
        assert isinstance(slow, FunctionType)
        self._slow = slow
        self._order = tuple(order) if order is not None else tuple(range(inputs))
        self._cases: list[_Case] = []
        self._seen: dict[tuple[tuple[int, ...], ...], int] = {}
        self._retired: list[_Case] = []
        self._added = 0
        self._evicted = 0
        self._lock = threading.Lock()
        native = native_function()
        number = FORMS.index(form)
        self._picks = np.array([number, outputs, *range(outputs)])
        self._gate_owner: Any = None
        self.words = np.zeros(at.ENTRY_WORDS + CASES, np.int64)
        self.words[:5] = inputs, outputs, number, 0, id(slow)
        if native is not None:
            self.words[5 : 5 + len(native.words)] = native.words
        self.words[at.PICKS_WORD] = address_of(self._picks)
        if not takes_out:
            self.words[at.OUT_WORD] = 0

    def require(self, word: ctypes.c_int64, wanted: int, thread: int = 0) -> None:
        """Do what `slow` does only while `word` holds `wanted`, and only in this thread.

        thread  as `threading.get_ident` tells it; 0 for every thread
        """
        address = ctypes.addressof(word)
        self.words[at.GATE_WORD : at.GATE_WORD + 3] = address, wanted, thread
        self._gate_owner = word

    def function(self) -> Callable[..., Any]:
        """A Python function that does what `slow` does and keeps this entry alive."""
        native = native_function()
        return self._slow if native is None else native.of(self)

    def note(
        self,
        executable: Any,
        sizes: Sizes,
        arrays: Sequence[Array],
        ids: Sequence[int],
        written: frozenset[int],
        store: Store,
        threads: int,
    ) -> None:
        """`slow` has run the program on these inputs; their shapes may be worth a case.

        ids     the variables of the program, by the numbers `store` knows them by
        written those that it writes
        threads how many the run could use
        """
        shapes = tuple([a.shape for a in arrays])
        if len(self._seen) > SHAPES_NOTED:
            self._seen.clear()
        calls = self._seen.get(shapes, 0) + 1
        self._seen[shapes] = calls
        if calls >= CALLS_BEFORE << min(self._evicted // CASES, 16) and self._lock.acquire(False):
            try:
                native = native_function()
                helpers = min(native.adopt_team(), threads - 1) if native is not None else 0
                possible = native is not None and self._install(
                    executable, sizes, shapes, ids, written, store, helpers
                )
                self._seen[shapes] = 0 if possible else -sys.maxsize
            finally:
                self._lock.release()

    def _install(
        self,
        executable: Any,
        sizes: Sizes,
        shapes: tuple[tuple[int, ...], ...],
        ids: Sequence[int],
        written: frozenset[int],
        store: Store,
        helpers: int,
    ) -> bool:
        """Make a case for these shapes; False if they can have none."""
        inputs, outputs = self.words[:2]
        if not isinstance(executable, LLVMExecutable):
            return False
        plan = executable.plan
        borders = (len(plan.inputs), len(plan.outputs), len(plan.variables))
        if borders != (inputs, outputs, len(ids)):
            return False
        layout = executable.layout(sizes)
        long = layout.work + STEP_WORK * len(plan.steps) >= LONG_WORK
        helpers = helpers if layout.parallel else 0
        if not _worthwhile(executable, layout):
            return False
        found = store.snapshot(ids, bool(written))
        held = store.kept(executable) if plan.kept else None
        if found is None or (plan.kept and held is None):
            return True
        gate, wanted, state = found
        old = next((c for c in self._cases if c.shapes == shapes), None)
        share = grant(layout.arena_bytes) if old is None else old.share
        if share is None:
            return True
        total = held.total if held is not None else 0
        if old is None or (old.wanted, old.helpers, old.total) != (wanted, helpers, total):
            header = [0, ctypes.addressof(gate), wanted]
            arrays = [*state, *(held.arrays if held is not None else ())]
            context = executable.lend(sizes)
            case = _Case(executable, context, shapes, self._order, header, arrays, long, helpers)
            case.gate = gate
            case.share = share
            if ids:
                case.take_turns(*store.turns(), bool(written))
            if held is not None:
                case.keep(held)
            if written:
                case.count(store.writer(written))
            self._put(case, old)
        return True

    def _put(self, case: _Case, old: _Case | None) -> None:
        """Add a case in place of `old` or, where all places are taken, of the one added first."""
        if old is None and len(self._cases) == CASES:
            old = min(self._cases, key=lambda c: c.number)
            self._evicted += 1
        self._added += 1
        case.number = self._added
        place = len(self._cases) if old is None else self._cases.index(old)
        self.words[at.ENTRY_WORDS + place] = address_of(case.words)
        self._cases[place : place + 1] = [case]
        self.words[3] = len(self._cases)
        # A run without the GIL may still be in the old one; none begins there any more.
        self._retired = [c for c in [*self._retired, old] if c is not None and c.words[0]]


class _Case:
    """The tables and the memory of one set of shapes."""

    number = 0
    total = 0  # of the words of what it keeps
    gate: ctypes.c_int64 | None = None
    share: Share | None = None

    def __init__(
        self,
        executable: LLVMExecutable,
        context: Context,
        shapes: tuple[tuple[int, ...], ...],
        order: Sequence[int],
        gate: Sequence[int],
        state: Sequence[Array],
        long: bool,
        helpers: int,
    ) -> None:
        plan, layout = executable.plan, context.layout
        self.shapes = shapes
        self.wanted = gate[2]
        self.helpers = helpers
        makers = [p.maker if p.bytes >= RECYCLED_BYTES else None for p in layout.outputs]
        self._held = (executable, state, makers)
        self._context = context
        borders = self._context.address + 8 * layout.places.borders
        first = len(plan.inputs) + len(state)
        rows = [_row(shapes[i], plan.inputs[i].type.dtype.numpy, i) for i in _inverse(order)]
        for j, pool in enumerate(layout.outputs):
            rows.append(_row(pool.shape, pool.dtype, first + j, makers[j]))
        header = [*gate, self._context.address, borders, int(long), first, helpers, any(makers)]
        self.words: Words = np.zeros(at.CASE_WORDS + at.ROW_WORDS * len(rows), np.int64)
        self.words[: len(header)] = header
        self.words[at.CASE_WORDS :] = [word for row in rows for word in row]
        for j, array in enumerate(state):
            self._context.words[layout.places.borders + len(plan.inputs) + j] = id(array)

    def keep(self, held: Held) -> None:
        """Fit only while this is right, whose arrays it has."""
        addresses = np.array([ctypes.addressof(word) for word in held.words])
        self.total = held.total
        self.words[9:12] = address_of(addresses), len(addresses), held.total
        self._keeps = (held, addresses)

    def take_turns(self, word: ctypes.c_int64, settle: Callable[[], None], writes: bool) -> None:
        """Run by turns with others that use the same variables."""
        self.words[13:16] = ctypes.addressof(word), int(writes), id(settle)
        self._turns = (word, settle)

    def count(self, word: ctypes.c_int64) -> None:
        """Add 1 to this word in every run."""
        self.words[12] = ctypes.addressof(word)
        self._counts = word


def _inverse(order: Sequence[int]) -> list[int]:
    """The input of the program that each argument is."""
    return sorted(range(len(order)), key=lambda i: order[i])


def _row(shape: tuple[int, ...], dtype: np.dtype[Any], border: int, maker: Any = None) -> list[int]:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    row = [len(shape), size, border, kind_of(dtype), id(dtype), *shape]
    row += [0] * (at.ROW_WORDS - len(row))
    if maker is not None:
        row[at.MAKER_AT] = id(maker)
    return row


def _worthwhile(executable: LLVMExecutable, layout: Layout) -> bool:
    """Whether a run is so small that what a Python call costs matters."""
    plan = executable.plan
    values = [*plan.inputs, *plan.outputs]
    return (
        layout.work <= MOST_WORK
        and layout.context_bytes <= CASE_BYTES
        and all(v.type.shape is not None and len(v.type.shape) <= MAX_RANK for v in values)
        and all(v.type.dtype.numpy.isbuiltin == 1 for v in values)
    )
