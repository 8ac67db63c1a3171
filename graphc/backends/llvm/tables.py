"""A plan as tables of words: what depends on the plan, then on the sizes, then on one run.

`PlanTables` is made once per plan and knows every size expression by a number.  `bind` evaluates
each once and gathers: a `Layout` is a template of the words the native driver reads, relative to
where they will lie.  A `Context` is one copy of it with an arena, used by one run at a time.
Imports: driver, memory, team, plan, kernel, dims.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphc.arena import ALIGNMENT, stack
from graphc.backends.llvm.driver import HEADER_WORDS, STEP_WORDS
from graphc.backends.llvm.memory import (
    Array,
    OutputPool,
    address_of,
    aligned_bytes,
    aligned_copy,
    arena_bytes,
)
from graphc.backends.llvm.team import release
from graphc.dims import Atom, Dim, DimLike, Sizes, evaluate
from graphc.errors import SizeError
from graphc.plan import Plan, Ref, Space, Step
from graphc.threads import processors

Words = npt.NDArray[np.int64]

CLAIM_WORK = 4096
"""A claim covers at least this many elements' work; less would be mostly synchronisation."""

CLAIMS = 32
"""Claims per thread a large step is cut into, so that a slow thread costs little."""

TEAM_WORK = 65536
"""Workers are worth waking for this many elements in steps of more than one block."""

CONTRACTION_DISCOUNT = 8
"""Multiply-adds of a contraction that cost as much as one element of a loop kernel."""

CALL_WORK = 1 << 19
"""A claim of more blocks than one covers at most this much, so that a run can be ended soon."""

STOPPABLE_WORK = 1 << 20
"""A run of less work, some hundred microseconds, is over before it could be ended."""

MAX_CLAIM = 1 << 31
"""Claims count blocks in 32 bits; a plan with more blocks in a step stays on one thread."""

MAX_SIZE = 1 << 56
"""No buffer has more elements, so that its bytes can be counted in 63 bits."""

FAULT_WORDS = 4

_LONGEST = 1e9
"""Seconds, thirty years: no run goes on longer."""

_PARALLEL, _ALLOWED, _STOP, _FIRST_WRITE = 4, 11, 12, 14


class _Numbers:
    """Numbers each distinct size expression; 0 is the constant 1."""

    def __init__(self) -> None:
        self.dims: dict[DimLike, int] = {1: 0}

    def of(self, dim: DimLike) -> int:
        return self.dims.setdefault(dim, len(self.dims))

    def all(self, dims: Iterable[DimLike]) -> list[int]:
        return [self.of(d) for d in dims]


class PlanTables:
    """The part of the tables that holds for every size."""

    def __init__(self, plan: Plan, functions: Sequence[int], workers: int) -> None:
        self.plan = plan
        self.claims = CLAIMS * max(2, workers)
        numbers = _Numbers()
        steps = plan.steps
        self._functions = np.array([functions[s.kernel] for s in steps], np.int64)
        self._waits = np.array([s.wait_from for s in steps], np.int64)
        if 0 < plan.commit < len(steps):
            self._waits[plan.commit] = 0
        self._first_write = first_write(plan)
        self._blocks = _indices(numbers.all(s.blocks for s in steps))
        self._args_at = _starts(len(s.args) for s in steps)
        self._sizes_at = _starts(len(s.sizes) for s in steps)
        self._sizes = _indices(d for s in steps for d in numbers.all(s.sizes))
        self._work, self._scale = _work_tables(plan, numbers)
        self._members = _indices(m for slot in plan.slots for m in numbers.all(slot.members))
        self._members_at = _starts(len(slot.members) for slot in plan.slots)
        self._shapes = [tuple(numbers.all(v.type.shape or ())) for v in plan.outputs]
        self._dims = list(numbers.dims)
        self.atoms = _atoms(self._dims)
        self.constants = [aligned_copy(c) for c in plan.constants]
        self._place_arguments()
        self._places = self._place()
        self._template = self._words_of_every_size()
        self._inside = self._relative_words()
        self._slot_words = self._places.args + self._slot_args[0]

    def _place_arguments(self) -> None:
        """Which argument is a slot, a fault record, a constant, or changes with each run."""
        plan = self.plan
        first_border = {
            "input": 0,
            "state": len(plan.inputs),
            "kept": len(plan.inputs) + len(plan.variables),
            "output": len(plan.inputs) + len(plan.variables) + len(plan.kept),
        }
        self.borders = first_border["output"] + len(plan.outputs)
        refs = [ref for step in plan.steps for ref in step.args]
        self._args = len(refs)
        patches = [
            (i, first_border[r.kind] + r.index)
            for i, r in enumerate(refs)
            if r.kind in first_border
        ]
        self._patches = np.array(patches, np.int64).reshape(-1)
        self._slot_args = _positions(refs, "slot")
        self._fault_args = _positions(refs, "fault")
        self._constant_args = _positions(refs, "constant")
        self._constant_addresses = np.array(
            [address_of(self.constants[i]) for i in self._constant_args[1]], np.int64
        )

    def bind(self, sizes: Sizes) -> Layout:
        """The tables for these sizes; evaluates each distinct size expression once."""
        evaluated = [evaluate(d, sizes) for d in self._dims]
        if max(evaluated, default=0) > MAX_SIZE:
            raise SizeError(f"a size of {max(evaluated)} elements is more than memory can hold")
        values = np.array(evaluated, np.int64)
        starts, arena_bytes = stack(self.plan.slots, self._slot_bytes(values).tolist())
        if self.plan.keeping is not None:
            arena_bytes = max(arena_bytes, self.plan.keeping.arena_bytes({}))
        blocks = values[self._blocks]
        work = np.prod(values[self._work].astype(np.float64), axis=1) * self._scale
        shared = float(work[blocks > 1].sum())
        parallel = shared >= TEAM_WORK and blocks.max(initial=0) < MAX_CLAIM
        lengthy = work.sum() >= STOPPABLE_WORK
        places = self._places
        words = self._template.copy()
        words[_PARALLEL] = parallel
        words[_FIRST_WRITE] = self._first_write if lengthy else -1
        rows = words[HEADER_WORDS : places.args].reshape(-1, STEP_WORDS)
        rows[:, 4] = blocks
        rows[:, 5] = self._chunks(blocks, work)
        words[places.sizes : places.patches] = values[self._sizes]
        return Layout(
            words=words,
            places=places,
            inside=self._inside,
            slot_args=self._slot_words,
            slot_offsets=np.array(starts, np.int64)[self._slot_args[1]],
            arena_bytes=arena_bytes,
            work=float(work.sum()),
            outputs=[
                OutputPool(tuple(int(values[i]) for i in shape), v.type.dtype.numpy)
                for shape, v in zip(self._shapes, self.plan.outputs, strict=True)
            ],
        )

    def _slot_bytes(self, values: Words) -> Words:
        if not len(self._members):
            return np.zeros(0, np.int64)
        largest = np.maximum.reduceat(values[self._members], self._members_at)
        return -(-largest // ALIGNMENT) * ALIGNMENT

    def _chunks(self, blocks: Words, work: npt.NDArray[np.float64]) -> Words:
        """Blocks per claim: a share of the step, but never too little work to be worth a claim."""
        share = -(-blocks // self.claims)
        per_work = blocks / np.maximum(work, 1.0)
        enough = np.ceil(CLAIM_WORK * per_work).astype(np.int64)
        most = np.floor(CALL_WORK * per_work).astype(np.int64)
        chunk = np.minimum(np.maximum(share, enough), np.minimum(most, blocks))
        return np.maximum(1, chunk)

    def _words_of_every_size(self) -> Words:
        """The table but for the words that sizes decide."""
        places = self._places
        words = np.zeros(places.end, np.int64)
        header = self._header()
        words[: len(header)] = header
        rows = words[HEADER_WORDS : places.args].reshape(-1, STEP_WORDS)
        rows[:, 0] = self._functions
        rows[:, 1] = 8 * (places.args + self._args_at)
        rows[:, 2] = 8 * (places.sizes + self._sizes_at)
        rows[:, 3] = self._waits
        words[places.args + self._fault_args[0]] = 8 * (
            places.faults + FAULT_WORDS * self._fault_args[1]
        )
        words[places.args + self._constant_args[0]] = self._constant_addresses
        words[places.patches : places.faults] = self._patches
        return words

    def _place(self) -> Places:
        args = HEADER_WORDS + STEP_WORDS * len(self.plan.steps)
        sizes = args + self._args
        patches = sizes + len(self._sizes)
        faults = patches + len(self._patches)
        borders = faults + FAULT_WORDS * len(self.plan.checks)
        return Places(args, sizes, patches, faults, borders, borders + self.borders)

    def _header(self) -> list[int]:
        plan, places = self.plan, self._places
        return [
            len(plan.steps),
            plan.commit if plan.checks else -1,
            8 * places.faults,
            FAULT_WORDS * len(plan.checks),
            0,
            8 * places.args,
            8 * places.patches,
            len(self._patches) // 2,
            8 * places.borders,
            DATA_OFFSET,
        ]

    def _relative_words(self) -> npt.NDArray[np.intp]:
        """The words that hold addresses relative to the table's start."""
        rows = HEADER_WORDS + STEP_WORDS * np.arange(len(self.plan.steps))
        faults = self._places.args + self._fault_args[0]
        header = np.array([2, 5, 6, 8])
        return np.concatenate([header, rows + 1, rows + 2, faults]).astype(np.intp)


@dataclass(frozen=True)
class Places:
    """Where the parts of a context's words start; steps follow the header."""

    args: int
    sizes: int
    patches: int
    faults: int
    borders: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Tables for one set of sizes, addresses relative to the start of the table."""

    words: Words
    places: Places
    inside: npt.NDArray[np.intp]
    slot_args: npt.NDArray[np.intp]
    slot_offsets: Words
    arena_bytes: int
    work: float  # elements of all steps, whether one block or many
    outputs: list[OutputPool]

    @property
    def parallel(self) -> bool:
        """Whether workers are of use to a run."""
        return bool(self.words[_PARALLEL])

    @property
    def context_bytes(self) -> int:
        return self.arena_bytes + self.words.nbytes


class Context:
    """The memory of one run at a time: arena, tables, fault records."""

    address = 0

    def __init__(self, layout: Layout, memory: Array | None = None) -> None:
        """`memory` is for the arena: at least as much as it needs, which nobody else uses."""
        self.layout = layout
        self.memory = arena_bytes(layout.arena_bytes) if memory is None else memory
        self._arena = self.memory[: layout.arena_bytes]
        table = aligned_bytes(layout.words.nbytes)
        self.words: Words = table.view(np.int64)
        self.words[:] = layout.words
        self.address = address_of(table)
        self.words[layout.inside] += self.address
        self.words[layout.slot_args] = layout.slot_offsets + address_of(self._arena)
        places = layout.places
        self.faults = self.words[places.faults : places.borders].reshape(-1, FAULT_WORDS)
        borders = places.end - places.borders
        self._entry = struct.Struct(f"={borders}q")
        self._stop = ctypes.c_int64.from_address(self.address + 8 * _STOP)
        self._allowed = ctypes.c_int64.from_address(self.address + 8 * _ALLOWED)
        self._limited = False
        self._borders = table.data[8 * places.borders : 8 * places.end]

    def enter(self, arrays: Iterable[Array], deadline: float | None = None) -> None:
        """Name the arrays of the next run: inputs, state, what is kept, outputs, in plan
        order.

        deadline  when the run fails, as `time.monotonic` says it
        """
        self._entry.pack_into(self._borders, 0, *map(_BORDER, arrays))
        self._stop.value = 0
        if deadline is not None or self._limited:
            left = None if deadline is None else max(deadline - time.monotonic(), 1e-6)
            self._allowed.value = 0 if left is None else int(1e9 * min(left, _LONGEST))
            self._limited = deadline is not None

    def without_limit(self) -> None:
        """Let the next run take as long as it likes."""
        self._allowed.value = 0
        self._limited = False

    @property
    def committed(self) -> bool:
        """Whether the run that was entered last has written state, or has ended well."""
        return self._stop.value < 0

    def __del__(self, release: Callable[[int], None] = release) -> None:
        # A worker that lost the processor may still be about to look at these tables.  The default
        # argument is there while the interpreter shuts down, when module globals may not be.
        release(self.address)


def _indices(numbers: Iterable[int]) -> npt.NDArray[np.intp]:
    return np.array(list(numbers), np.intp)


def _starts(lengths: Iterable[int]) -> npt.NDArray[np.intp]:
    """Where each of consecutive stretches of these lengths begins."""
    ends = np.cumsum([0, *lengths])
    return ends[:-1].astype(np.intp)


def _positions(refs: Sequence[Ref], kind: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where arguments of a kind are, and what each refers to."""
    found = [(i, r.index) for i, r in enumerate(refs) if r.kind == kind]
    return _indices(i for i, _ in found), _indices(j for _, j in found)


def first_write(plan: Plan) -> int:
    """The first step that writes state, or how many steps there are."""
    writing = (
        i for i, s in enumerate(plan.steps) if any(s.args[w].kind == "state" for w in s.writes)
    )
    return max(plan.commit, next(writing, len(plan.steps)))


def _work_tables(
    plan: Plan, numbers: _Numbers
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Numbers whose product is each step's iteration space, and what one point of it costs."""
    rows = [numbers.all(_axes(plan.spaces[s.kernel], s)) for s in plan.steps]
    widest = max((len(r) for r in rows), default=0)
    table = np.zeros((len(rows), widest), np.intp)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    contractions = [plan.spaces[s.kernel].contraction for s in plan.steps]
    return table, np.where(contractions, 1 / CONTRACTION_DISCOUNT, 1.0)


def _axes(space: Space, step: Step) -> list[DimLike]:
    """The kernel's extents in terms of the plan's sizes."""
    return [a if a >= 0 else step.sizes[-1 - a] for a in space.axes]


def _atoms(dims: Iterable[DimLike]) -> tuple[Atom, ...]:
    """Every atom the values of these expressions can depend on."""
    found: dict[Atom, None] = {}
    stack = list(dims)
    while stack:
        d = stack.pop()
        if isinstance(d, Dim):
            for monomial, _ in d.terms:
                for atom in monomial:
                    if atom not in found:
                        found[atom] = None
                        stack.extend(atom.args)
    return tuple(found)


def _data_offset() -> int:
    """Where an ndarray object keeps its data pointer, or -1 if that is not certain.

    NumPy's ABI puts it right after the object header; the driver then reads it natively.
    """
    offset = object.__basicsize__
    for array in (np.zeros(3), np.zeros((2, 5), np.float32)[1:]):
        there = ctypes.c_int64.from_address(id(array) + offset).value
        if there != address_of(array):
            return -1
    return offset


DATA_OFFSET = _data_offset()
_BORDER: Any = address_of if DATA_OFFSET < 0 else id


def default_workers() -> int:
    """Threads worth planning claims for on this machine."""
    return processors()
