"""Memory planning: from lowered steps to a plan with an arena, in-place reuse and a commit point.

Buffers that are never alive together share a slot.  Sharing is decided by lifetimes alone, so it
holds for every size; a slot's size is the largest of its members and the peak is a formula.  An
output takes over the memory of an input that dies in the same step where the kernel reads each
element only in the iteration that writes it.  Variables are updated in place when nobody reads the
old value later and no later step can fail; otherwise by a copy after the commit point.
Imports: plan, kernel, operands, fuse, program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc import dims
from graphc.dims import Dim, DimLike
from graphc.errors import RunError
from graphc.kernel import (
    Access,
    Expr,
    Kernel,
    LoopKernel,
    Stage,
    Store,
    Term,
    rename_sizes,
    sizes_of,
)
from graphc.node import Tensor
from graphc.passes.estimate import typical
from graphc.passes.fuse import Fusion
from graphc.passes.in_place import may_share
from graphc.passes.operands import CheckSite, LoweredStep, Value, value_bytes
from graphc.plan import BufferUse, Check, Plan, Ref, Slot, Step
from graphc.plan import Value as Border
from graphc.types import DType

BlocksOf = Callable[[Kernel], DimLike]
"""How many blocks a back end cuts a kernel into."""

FIXED = ("constant", "random_key")
"""Leaves whose value is known and lies in memory."""


def plan_memory(fusion: Fusion, steps: Sequence[LoweredStep], blocks_of: BlocksOf) -> Plan:
    """Place every value and tie the steps together."""
    return _Planner(fusion, list(steps), blocks_of).plan()


@dataclass(eq=False)
class _Place:
    """A value that lives in the arena."""

    value: Value
    slot: int
    first: int
    last: int
    in_place_of: str = ""


class _Planner:
    def __init__(self, fusion: Fusion, steps: list[LoweredStep], blocks_of: BlocksOf) -> None:
        self.fusion = fusion
        self.program = fusion.program
        self.steps = steps
        self.blocks_of = blocks_of
        self.refs: dict[int, Ref] = {}
        self.constants: list[np.ndarray[Any, Any]] = []
        self.variables = self.program.variables()
        self.copies: list[tuple[Value, int]] = []  # (value, variable number)
        self.slots: list[dict[DimLike, None]] = []
        self.places: list[_Place] = []
        self._bytes: dict[int, DimLike] = {}

    def plan(self) -> Plan:
        self._place_borders()
        self._place_constants()
        self._place_updates()
        self._place_slots()
        rows = self._rows()
        commit = self._commit()
        kernels, table = self._table(rows)
        return Plan(
            kernels,
            table,
            commit,
            tuple(Slot(tuple(s)) for s in self.slots),
            tuple(_border(t) for t in self.program.inputs),
            tuple(_border(t) for t in self.program.fetches),
            tuple(_border(t) for t in self.variables),
            tuple(self.constants),
            tuple(tuple(_check(c) for c in s.checks) for s in self.steps if s.checks),
            self._uses(),
        )

    # ---- values with a fixed place

    def _place_borders(self) -> None:
        for i, t in enumerate(self.program.inputs):
            self.refs[id(t)] = Ref("input", i)
        for i, t in enumerate(self.variables):
            self.refs[id(t)] = Ref("state", i)
        for i, t in enumerate(self.program.fetches):
            self.refs[id(self.fusion.views.of(t).base)] = Ref("output", i)

    def _place_constants(self) -> None:
        for value in (v for step in self.steps for v in step.args):
            if not isinstance(value, Tensor) or value.node.op.name not in FIXED:
                continue
            if id(value) not in self.refs:
                self.refs[id(value)] = Ref("constant", len(self.constants))
                self.constants.append(value.node.op.reference(value.node.attrs))

    def _place_updates(self) -> None:
        """Decide for each update: written in place by its step, or copied after the others."""
        number = {id(v): i for i, v in enumerate(self.variables)}
        readers = self._readers()
        writer = {id(s.args[w]): i for i, s in enumerate(self.steps) for w in s.writes}
        last_check = max([i for i, s in enumerate(self.steps) if s.checks], default=-1)
        for variable, t in self.program.updates:
            base = self.fusion.views.of(t).base
            at = writer[id(base)]
            if at > last_check and self._may_overwrite(variable, base, at, readers):
                self.refs[id(base)] = Ref("state", number[id(variable)])
            else:
                self.copies.append((base, number[id(variable)]))

    def _readers(self) -> dict[int, list[int]]:
        readers: dict[int, list[int]] = {}
        for i, s in enumerate(self.steps):
            for j, value in enumerate(s.args):
                if j not in s.writes:
                    readers.setdefault(id(value), []).append(i)
        return readers

    def _may_overwrite(
        self, variable: Tensor, base: Tensor, at: int, readers: dict[int, list[int]]
    ) -> bool:
        for i in readers.get(id(variable), ()):
            if i > at:
                return False
            if i == at and not self._in_place(self.steps[i], variable, base):
                return False
        return True

    def _in_place(self, step: LoweredStep, old: Value, new: Value) -> bool:
        b = next(j for j, v in enumerate(step.args) if v is new)
        return all(may_share(step.kernel, j, b) for j, v in enumerate(step.args) if v is old)

    # ---- the arena

    def _place_slots(self) -> None:
        last: dict[int, int] = {}
        for i, s in enumerate(self.steps):
            for value in s.args:
                last[id(value)] = i
        end = len(self.steps)
        for value, _ in self.copies:
            last[id(value)] = end
        ends: dict[int, list[_Place]] = {}
        free = _FreeSlots()
        alive: dict[int, _Place] = {}
        for i, s in enumerate(self.steps):
            taken: set[int] = set()
            for j, value in enumerate(s.args):
                if id(value) in self.refs or id(value) in alive:
                    continue
                place = self._allocate(i, s, j, last, alive, free, taken)
                alive[id(value)] = place
                ends.setdefault(last[id(value)], []).append(place)
            for place in ends.get(i, ()):
                if id(place.value) not in taken:
                    free.put(place.slot, self.slots[place.slot], self._bytes_of(place.value))
        for p in self.places:
            self.refs[id(p.value)] = Ref("slot", p.slot)

    def _bytes_of(self, value: Value) -> DimLike:
        found = self._bytes.get(id(value))
        if found is None:
            found = self._bytes[id(value)] = value_bytes(value)
        return found

    def _allocate(
        self,
        i: int,
        step: LoweredStep,
        j: int,
        last: dict[int, int],
        alive: dict[int, _Place],
        free: _FreeSlots,
        taken: set[int],
    ) -> _Place:
        value = step.args[j]
        size = self._bytes_of(value)
        for k, old in enumerate(step.args):
            dying = alive.get(id(old))
            if dying is None or last[id(old)] != i or id(old) in taken or k in step.writes:
                continue
            if self._bytes_of(old) == size and self._in_place(step, old, value):
                taken.add(id(old))
                place = _Place(value, dying.slot, i, last[id(value)], _name(old))
                self.places.append(place)
                return place
        slot = free.take(size)
        if slot is None:
            slot = len(self.slots)
            self.slots.append({})
        self.slots[slot][size] = None
        place = _Place(value, slot, i, last[id(value)])
        self.places.append(place)
        return place

    # ---- the table

    def _commit(self) -> int:
        """The first step that may write state: after the last that can fail."""
        if not self.program.updates:
            return len(self.steps) + len(self.copies)
        last_check = max([i for i, s in enumerate(self.steps) if s.checks], default=-1)
        return last_check + 1

    def _rows(self) -> list[tuple[LoweredStep, tuple[Ref, ...]]]:
        rows: list[tuple[LoweredStep, tuple[Ref, ...]]] = []
        faults = 0
        for s in self.steps:
            refs = tuple(self.refs[id(v)] for v in s.args)
            if s.checks:
                refs = (*refs, Ref("fault", faults))
                faults += 1
            rows.append((s, refs))
        for value, number in self.copies:
            step = _copy_step(value, self.variables[number])
            rows.append((step, (self.refs[id(value)], Ref("state", number))))
        return rows

    def _table(
        self, rows: Sequence[tuple[LoweredStep, tuple[Ref, ...]]]
    ) -> tuple[tuple[Kernel, ...], tuple[Step, ...]]:
        kernels: dict[Kernel, int] = {}
        canonical: dict[int, tuple[int, tuple[Dim, ...], DimLike]] = {}
        waits = _waits(rows)
        steps = []
        for (s, refs), wait in zip(rows, waits, strict=True):
            found = canonical.get(id(s.kernel))
            if found is None:
                sizes = sizes_of(s.kernel)
                names = {d: _size_name(i) for i, d in enumerate(sizes)}
                kernel = rename_sizes(s.kernel, names)
                number = kernels.setdefault(kernel, len(kernels))
                found = (number, sizes, self.blocks_of(s.kernel))
                canonical[id(s.kernel)] = found
            number, sizes, blocks = found
            steps.append(Step(number, refs, s.writes, sizes, blocks, wait, s.label, s.locs))
        return tuple(kernels), tuple(steps)

    def _uses(self) -> tuple[BufferUse, ...]:
        return tuple(
            BufferUse(
                _name(p.value), p.slot, self._bytes_of(p.value), p.first, p.last, p.in_place_of
            )
            for p in self.places
        )


_size_names: list[Dim] = []


def _size_name(i: int) -> Dim:
    while len(_size_names) <= i:
        _size_names.append(dims.symbol(f"s{len(_size_names)}"))
    return _size_names[i]


class _FreeSlots:
    """Slots nobody uses now: found by equal size first, then by similar size."""

    def __init__(self) -> None:
        self.free: set[int] = set()
        self.by_size: dict[DimLike, list[int]] = {}
        self.by_class: dict[int, list[int]] = {}

    def put(self, slot: int, members: dict[DimLike, None], size: DimLike) -> None:
        self.free.add(slot)
        self.by_size.setdefault(size, []).append(slot)
        largest = max(typical(m) for m in members)
        self.by_class.setdefault(largest.bit_length(), []).append(slot)

    def take(self, size: DimLike) -> int | None:
        found = self._pop(self.by_size.get(size))
        if found is None:
            near = typical(size).bit_length()
            for k in (near, near + 1, near - 1):
                found = self._pop(self.by_class.get(k))
                if found is not None:
                    break
        return found

    def _pop(self, stack: list[int] | None) -> int | None:
        while stack:
            slot = stack.pop()
            if slot in self.free:
                self.free.discard(slot)
                return slot
        return None


def _waits(rows: Sequence[tuple[LoweredStep, tuple[Ref, ...]]]) -> list[int]:
    """Where a step must wait: it touches what was written, or overwrites what was read, since
    the last wait."""
    waits: list[int] = []
    start = 0
    written: set[Ref] = set()
    read: set[Ref] = set()
    for i, (s, refs) in enumerate(rows):
        outs = {refs[w] for w in s.writes}
        ins = {r for r in refs if r not in outs and r.kind not in ("fault", "constant", "input")}
        if ins & written or outs & written or outs & read:
            waits.append(start)
            start = i
            written, read = set(), set()
        else:
            waits.append(-1)
        written |= outs
        read |= ins
    return waits


# ---- small parts -------------------------------------------------------------------------------


def _border(t: Tensor) -> Border:
    return Border(t.node.name, t.type, t.node.loc)


def _name(value: Value) -> str:
    if isinstance(value, Tensor):
        return value.node.name or f"{value.node.op.name}.{value.node.id}"
    return value.name


def _check(site: CheckSite) -> Check:
    def make_error(position: int, value: int) -> RunError:
        text = site.message.replace("{value}", str(value)).replace("{position}", str(position))
        return site.error(f"{site.op}: {text}\n  at {site.loc}   {site.loc.source}")

    return Check(make_error)


def _copy_step(value: Value, variable: Tensor) -> LoweredStep:
    dtype: DType = value.dtype
    size = dims.product(variable.dims)
    terms = (Term(((0, 1),), 1),)
    load = Expr("load", (), (Access(0, terms), 0), dtype)
    stage = Stage((), (), (Store(Access(1, terms), load),))
    kernel = LoopKernel((size,), (0,), 0, (dtype, dtype), (stage,))
    label = f"commit {variable.node.name}"
    return LoweredStep(kernel, (value, variable), (1,), label, (variable.node.loc,))
