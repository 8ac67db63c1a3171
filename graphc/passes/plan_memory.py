"""Memory planning: from lowered steps to a plan with an arena, in-place reuse and a commit point.

Buffers that are alive together are kept apart, whatever the sizes turn out to be: see `place`.  An
output takes over the memory of an input that dies in the same step where the kernel reads each
element only in the iteration that writes it.  Variables are updated in place when nobody reads the
old value later and no later step can fail; otherwise by a copy after the commit point.  The steps
that make what is kept between runs become a plan of their own, with the same kernels.
Imports: plan, kernel, operands, fuse, program, place, facts, keep, lasting, share_kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphc import dims
from graphc.arena import Slot, stack
from graphc.dims import DimLike, Sizes
from graphc.kernel import (
    Access,
    Contraction,
    Expr,
    Kernel,
    LoopKernel,
    Stage,
    Store,
    Term,
)
from graphc.location import UNKNOWN
from graphc.node import Tensor
from graphc.passes.facts import Facts
from graphc.passes.groups import Fusion
from graphc.passes.keep import KeptSteps
from graphc.passes.lasting import is_fixed
from graphc.passes.operands import CheckSite, LoweredStep, Value
from graphc.passes.place import Block, keep_longer, place
from graphc.passes.share_kernels import Shared, share_kernels
from graphc.passes.wait import find_waits
from graphc.plan import BufferUse, Check, Kept, Plan, Ref, Step
from graphc.plan import Value as Border
from graphc.types import DType, TensorType

BlocksOf = Callable[[Kernel], DimLike]
"""How many blocks a back end cuts a kernel into."""

Launches = dict[int, tuple[int, tuple[DimLike, ...], DimLike]]
"""By id of a step's kernel: number of the shared one, its sizes, blocks."""


def plan_memory(
    fusion: Fusion,
    steps: Sequence[LoweredStep],
    blocks_of: BlocksOf,
    facts: Facts | None = None,
    kept: KeptSteps | None = None,
    shared: Mapping[int, Shared] | None = None,
) -> Plan:
    """Place every value and tie the steps together; well for the sizes that are estimated.

    kept    the steps cut in two: of those it has first the values stay between runs
    shared  what `shared_kernels` said of the steps, if it has been asked
    """
    facts = facts or Facts()
    if kept is not None:
        steps = kept.rest
    planner = _Planner(fusion, list(steps), facts, kept.values if kept else ())
    planner.find_blocks()
    planner.place_slots()
    if kept is None:
        return planner.plan(*_kernels(planner.rows(), blocks_of, shared))
    maker = _KeepingPlanner(fusion, list(kept.steps), facts, kept.values)
    maker.find_blocks()
    maker.place_slots()
    table = _kernels([*planner.rows(), *maker.rows()], blocks_of, shared)
    number = {id(v): i for i, v in enumerate(planner.variables)}
    values = tuple(
        Kept(_kept_border(v), tuple(sorted(number[id(s)] for s in sources)))
        for v, sources in zip(kept.values, kept.sources, strict=True)
    )
    return replace(planner.plan(*table), kept=values, keeping=maker.plan(*table))


@dataclass(frozen=True)
class Use:
    """A value in the arena, and when it is alive."""

    value: Value
    first: int
    last: int


def lifetimes(
    fusion: Fusion, steps: Sequence[LoweredStep], facts: Facts
) -> tuple[list[Block], list[Use]]:
    """The blocks of memory that the steps need in this order, and every value in them."""
    planner = _Planner(fusion, list(steps), facts)
    planner.find_blocks()
    return planner.blocks, [Use(p.value, p.first, p.last) for p in planner.places]


def arena_bytes(fusion: Fusion, steps: Sequence[LoweredStep], facts: Facts, sizes: Sizes) -> int:
    """The size of the arena that `plan_memory` would give, without the rest of the plan."""
    planner = _Planner(fusion, list(steps), facts)
    planner.find_blocks()
    planner.place_slots()
    return stack(planner.slots, [slot.bytes(sizes) for slot in planner.slots])[1]


@dataclass(eq=False)
class _Place:
    """A value that lives in the arena."""

    value: Value
    block: int
    first: int
    last: int
    in_place_of: str = ""


class _Planner:
    def __init__(
        self,
        fusion: Fusion,
        steps: list[LoweredStep],
        facts: Facts,
        kept: Sequence[Value] = (),
    ) -> None:
        self.kept = kept
        self.fusion = fusion
        self.facts = facts
        self.program = fusion.program
        self.steps = steps
        self.refs: dict[int, Ref] = {}
        self.constants: list[np.ndarray[Any, Any]] = []
        self.variables = self.program.variables()
        self.copies: list[tuple[Value, int]] = []  # (value, variable number)
        self.copy_steps: list[LoweredStep] = []
        self.blocks: list[Block] = []
        self.block_bytes: list[DimLike] = []
        self.slots: list[Slot] = []
        self.slot_of: list[int] = []  # by block
        self.places: list[_Place] = []

    def plan(self, kernels: tuple[Kernel, ...], made: Launches) -> Plan:
        """The plan, when every block has its slot."""
        return Plan(
            kernels,
            self._table(made),
            self._commit(),
            tuple(self.slots),
            self._inputs(),
            self._outputs(),
            tuple(_border(t) for t in self.variables),
            tuple(self.constants),
            tuple(tuple(_check(c) for c in s.checks) for s in self.steps if s.checks),
            self._uses(),
        )

    def _inputs(self) -> tuple[Border, ...]:
        return tuple(_border(t) for t in self.program.inputs)

    def _outputs(self) -> tuple[Border, ...]:
        return tuple(_border(t) for t in self.program.fetches)

    # ---- values with a fixed place

    def _place_borders(self) -> None:
        for i, t in enumerate(self.program.inputs):
            self.refs[id(t)] = Ref("input", i)
        for i, t in enumerate(self.variables):
            self.refs[id(t)] = Ref("state", i)
        for i, value in enumerate(self.kept):
            self.refs[id(value)] = Ref("kept", i)
        for i, t in enumerate(self.program.fetches):
            self.refs[id(self.fusion.views.of(t).base)] = Ref("output", i)

    def _place_constants(self) -> None:
        for value in (v for step in self.steps for v in step.args):
            if not isinstance(value, Tensor) or not is_fixed(value):
                continue
            if id(value) not in self.refs:
                self.refs[id(value)] = Ref("constant", len(self.constants))
                value_of = value.node.op.reference
                assert value_of is not None
                self.constants.append(value_of(value.node.attrs))

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
        olds = [j for j, v in enumerate(step.args) if v is old]
        return all(self.facts.may_share(kernel, j, b) for kernel in step.kernels for j in olds)

    # ---- the arena

    def find_blocks(self) -> None:
        """Give every value its place outside the arena, or a block of it for its lifetime."""
        self._place_borders()
        self._place_constants()
        self._place_updates()
        self.copy_steps = [_copy_step(v, self.variables[n]) for v, n in self.copies]
        last: dict[int, int] = {}
        for i, s in enumerate(self.steps):
            for value in s.args:
                last[id(value)] = i
        end = len(self.steps)
        for value, _ in self.copies:
            last[id(value)] = end
        alive: dict[int, _Place] = {}
        for i, s in enumerate(self.steps):
            taken: set[int] = set()
            for j, value in enumerate(s.args):
                if id(value) not in self.refs and id(value) not in alive:
                    alive[id(value)] = self._allocate(i, s, j, last, alive, taken)

    def place_slots(self) -> None:
        """A slot for each block."""
        for p in self.places:
            self.refs[id(p.value)] = Ref("slot", p.block)
        blocks = keep_longer(self.blocks, find_waits(self.rows(), ()))
        placing = place(blocks, self.blocks)
        self.slot_of = [0] * len(self.blocks)
        for number, block in enumerate(placing.order):
            self.slot_of[block] = number
            above = tuple(self.slot_of[b] for b in placing.above[block])
            self.slots.append(Slot((self.block_bytes[block],), above))
        for p in self.places:
            self.refs[id(p.value)] = Ref("slot", self.slot_of[p.block])

    def _allocate(
        self,
        i: int,
        step: LoweredStep,
        j: int,
        last: dict[int, int],
        alive: dict[int, _Place],
        taken: set[int],
    ) -> _Place:
        value = step.args[j]
        size = self.facts.exact_bytes(value)
        for k, old in enumerate(step.args):
            dying = alive.get(id(old))
            if dying is None or last[id(old)] != i or id(old) in taken or k in step.writes:
                continue
            if self.facts.exact_bytes(old) == size and self._in_place(step, old, value):
                taken.add(id(old))
                self.blocks[dying.block].last = last[id(value)]
                return self._add(value, dying.block, i, last[id(value)], name_of(old))
        self.blocks.append(Block(self.facts.bytes(value), i, last[id(value)]))
        self.block_bytes.append(size)
        return self._add(value, len(self.blocks) - 1, i, last[id(value)])

    def _add(self, value: Value, block: int, first: int, last: int, old: str = "") -> _Place:
        made = _Place(value, block, first, last, old)
        self.places.append(made)
        return made

    # ---- the table

    def _commit(self) -> int:
        """The first step that may write state: after the last that can fail."""
        launches = self._launches()
        if not self.program.updates:
            return launches[-1] + len(self.copies)
        last_check = max([i for i, s in enumerate(self.steps) if s.checks], default=-1)
        return launches[last_check + 1]

    def _launches(self) -> list[int]:
        """For each step and the end, how many kernels are launched before."""
        return list(itertools.accumulate((len(s.kernels) for s in self.steps), initial=0))

    def rows(self) -> list[tuple[LoweredStep, tuple[Ref, ...]]]:
        """Every step, copies included, and where its arguments are."""
        rows: list[tuple[LoweredStep, tuple[Ref, ...]]] = []
        faults = 0
        for s in self.steps:
            refs = tuple(self.refs[id(v)] for v in s.args)
            if s.checks:
                refs = (*refs, Ref("fault", faults))
                faults += 1
            rows.append((s, refs))
        for (value, number), step in zip(self.copies, self.copy_steps, strict=True):
            rows.append((step, (self.refs[id(value)], Ref("state", number))))
        return rows

    def _table(self, made: Launches) -> tuple[Step, ...]:
        rows = self.rows()
        steps: list[Step] = []
        first: list[int] = []
        for (s, refs), wait in zip(rows, find_waits(rows, self.slots), strict=True):
            first.append(len(steps))
            label = self.label(s)
            for k in s.kernels:
                number, sizes, blocks = made[id(k)]
                wait_from = first[wait] if wait >= 0 and k is s.kernel else -1
                steps.append(Step(number, refs, s.writes, sizes, blocks, wait_from, label, s.locs))
        return tuple(steps)

    def label(self, step: LoweredStep) -> str:
        """What a step is called in listings."""
        return step.label

    def _uses(self) -> tuple[BufferUse, ...]:
        launches = self._launches()
        launches.append(launches[-1] + 1)  # copies come after the steps
        return tuple(
            BufferUse(
                name_of(p.value),
                self.slot_of[p.block],
                self.facts.exact_bytes(p.value),
                launches[p.first],
                launches[p.last + 1] - 1,
                p.in_place_of,
            )
            for p in self.places
        )


class _KeepingPlanner(_Planner):
    """Plans the steps whose values are kept: these are its outputs, and it has no other."""

    def _place_borders(self) -> None:
        for i, t in enumerate(self.variables):
            self.refs[id(t)] = Ref("state", i)
        for i, value in enumerate(self.kept):
            self.refs[id(value)] = Ref("output", i)

    def _place_updates(self) -> None:
        return

    def _inputs(self) -> tuple[Border, ...]:
        return ()

    def _outputs(self) -> tuple[Border, ...]:
        return tuple(map(_kept_border, self.kept))

    def _commit(self) -> int:
        return self._launches()[-1]

    def label(self, step: LoweredStep) -> str:
        return f"keep {step.label}"


# ---- small parts -------------------------------------------------------------------------------


def shared_kernels(steps: Iterable[LoweredStep]) -> dict[int, Shared]:
    """By id of each kernel that steps have, the one that does the same; see `share_kernels`."""
    distinct = {id(k): k for s in steps for k in s.kernels}
    return dict(zip(distinct, share_kernels(list(distinct.values())), strict=True))


def _kernels(
    rows: Sequence[tuple[LoweredStep, tuple[Ref, ...]]],
    blocks_of: BlocksOf,
    shared: Mapping[int, Shared] | None,
) -> tuple[tuple[Kernel, ...], Launches]:
    """The distinct kernels of steps, and how each of the steps' own is launched."""
    distinct = {id(k): k for s, _ in rows for k in s.kernels}
    if shared is None or not distinct.keys() <= shared.keys():  # copies are steps of this pass
        shared = shared_kernels(s for s, _ in rows)
    kernels: dict[Kernel, int] = {}
    formulas: dict[int, DimLike] = {}  # by id of a shared kernel, its blocks
    made: Launches = {}
    for key, kernel in distinct.items():
        found = shared[key]
        number = kernels.setdefault(found.kernel, len(kernels))
        # A cut goes with its kernel.  Without one the back end cuts what it compiles, and what it
        # knows of numbers there decides how.
        cut = isinstance(kernel, Contraction) and kernel.cut is not None
        if not cut and id(found.kernel) not in formulas:
            formulas[id(found.kernel)] = blocks_of(found.kernel)
        blocks = blocks_of(kernel) if cut else found.here(formulas[id(found.kernel)])
        made[key] = number, found.sizes, blocks
    return tuple(kernels), made


def _border(t: Tensor) -> Border:
    return Border(t.node.name, t.type, t.node.loc)


def _kept_border(value: Value) -> Border:
    if isinstance(value, Tensor):
        return Border(name_of(value), value.type, value.node.loc)
    return Border(value.name, TensorType(value.dtype, value.shape), UNKNOWN)


def name_of(value: Value) -> str:
    """What a value is called in listings."""
    if isinstance(value, Tensor):
        return value.node.name or f"{value.node.op.name}.{value.node.id}"
    return value.name


def _check(site: CheckSite) -> Check:
    return Check(site.error, site.message, site.loc, site.op)


def _copy_step(value: Value, variable: Tensor) -> LoweredStep:
    dtype: DType = value.dtype
    size = dims.product(variable.dims)
    terms = (Term(((0, 1),), 1),)
    load = Expr("load", (), (Access(0, terms), 0), dtype)
    stage = Stage((), (), (Store(Access(1, terms), load),))
    kernel = LoopKernel((size,), (0,), 0, (dtype, dtype), (stage,))
    label = f"commit {variable.node.name}"
    return LoweredStep(kernel, (value, variable), (1,), label, (variable.node.loc,))
