"""The stages of a loop kernel as a GPU's thread runs them.

Where the vector axis is parallel a thread has its own point and runs the loops of reductions
alone, in ascending order, or shares them with the threads of its lane in the CTA's other warps.
In a row the lanes of a warp take turns along the vector axis: element i goes to virtual lane
i mod VIRTUAL_LANES, of which each lane has two, and these are joined by the tree that the CPU has,
so the bits are the same.  A long row has the threads of a whole CTA, whose warps' results are
joined in shared memory.  Stores that may meet in one place act in turn.
Imports: thread, joins, codegen, kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphc.backends.codegen.evaluate import Evaluator
from graphc.backends.codegen.numbering import Numbering, access_axes
from graphc.backends.codegen.reducers import (
    State,
    combine,
    final,
    initial,
    is_arg,
    state_types,
)
from graphc.backends.codegen.skipping import skipping_guard
from graphc.backends.gpu.joins import Group, join_lanes, join_parts, join_warps
from graphc.backends.gpu.thread import WARP, ThreadText
from graphc.kernel import VIRTUAL_LANES, LoopKernel, Stage, Store

GROUPS = VIRTUAL_LANES // WARP

UNROLLED = 4
"""Elements of a reduction that are read at once: memory answers late."""

_LIGHT = 12
"""A stage below this weight is read so."""


@dataclass(frozen=True)
class Shared:
    """A point that threads share: one of each of the CTA's warps.

    lane, part  which lane and which warp the thread is
    parts       how many warps there are
    stores      an i1: whether this thread stores what they have computed
    """

    lane: str
    part: str
    parts: int
    stores: str


class ThreadStages:
    """Emits the stages of a kernel, for the point of a thread or the row of a warp.

    lane    the thread's number among those of its row, if it has a row
    width   how many threads a row has: WARP, or all of the CTA
    shared  with whom it shares its point, if it does
    """

    def __init__(
        self,
        f: ThreadText,
        kernel: LoopKernel,
        numbering: Numbering,
        values: Evaluator,
        lane: str | None,
        width: int = WARP,
        shared: Shared | None = None,
    ) -> None:
        self.f = f
        self.shared = shared
        self.width = width
        self.kernel = kernel
        self.numbering = numbering
        self.values = values
        self.lane = lane

    def run(self) -> None:
        """All stages."""
        first = 0
        for number, stage in enumerate(self.kernel.stages):
            if number and self.lane is not None and self.numbering.reread:
                self.meet()  # what one thread wrote another may read
            if stage.red:
                _StageLoop(self, number, stage, first).emit()
            elif number == len(self.kernel.stages) - 1:
                self._last(stage)
            else:
                self._straight(stage)
            first += len(stage.accs)
        self.values.forget_accs(range(first))

    def meet(self) -> None:
        """The threads of a row wait for each other."""
        if self.width == WARP:
            self.f.warp_sync()
        else:
            self.f.barrier()

    def _straight(self, stage: Stage) -> None:
        """Stores without a loop: of a row, by the first lane; of a shared point by one thread."""
        made = self.values.evaluated(stage.stores, 0)
        self._when_it_stores(lambda: self.values.write(made))

    def _last(self, stage: Stage) -> None:
        """The same where nothing follows: what is stored is computed by that thread only, so that
        no other reads what it writes in place."""
        if stage.stores:
            self._when_it_stores(lambda: self.values.write(self.values.evaluated(stage.stores, 0)))

    def _when_it_stores(self, body: Callable[[], None]) -> None:
        if self.shared is not None:
            self.f.when(self.shared.stores, body)
        elif self.lane is None:
            body()
        else:
            first = self.f.value(f"icmp eq i64 {self.lane}, 0")
            self.f.when(first, body)


class _StageLoop:
    """The loops of one stage; its state is a group of accumulators, or GROUPS of them in a row."""

    def __init__(self, parent: ThreadStages, number: int, stage: Stage, first: int) -> None:
        self.f = parent.f
        self.parent = parent
        self.values = parent.values
        self.number = number
        self.stage = stage
        self.first = first
        self.lane = parent.lane
        self.shared = parent.shared if stage.accs else None
        own = range(first, first + len(stage.accs))
        self.in_turn = any(_in_turn(store, stage.red[-1]) for store in stage.stores)
        self.scans = any(n in parent.numbering.lane_accs for n in own) or (
            bool(stage.accs) and self.lane is not None and self.in_turn
        )
        self.groups = GROUPS if self.lane and stage.accs and not self.scans else 1
        light = parent.numbering.weight(number) <= _LIGHT and not parent.kernel.checks
        self.unrolled = UNROLLED if stage.accs and not stage.stores and light else 1

    def emit(self) -> None:
        # The loop's stores change what its next iteration must read again.
        for store in self.stage.stores:
            self.values.forget_reads(1 << store.access.buf)
        self.values.hoist(self.number, 1)
        start = [[initial(self.f, a) for a in self.stage.accs] for _ in range(self.groups)]
        self._finish(self._loops(0, start))

    # ---- carried values are flat lists

    def _types(self) -> list[str]:
        return [t for a in self.stage.accs for t in state_types(self.f, a)] * self.groups

    def _pack(self, groups: Sequence[Group]) -> list[tuple[str, str]]:
        return list(zip(self._types(), self._flat(groups), strict=True))

    def _flat(self, groups: Sequence[Group]) -> list[str]:
        return [x for group in groups for state in group for x in state]

    def _unpack(self, flat: Sequence[str]) -> list[Group]:
        rest = list(flat)
        return [
            [tuple(rest.pop(0) for _ in range(2 if is_arg(a) else 1)) for a in self.stage.accs]
            for _ in range(self.groups)
        ]

    # ---- loops

    def _loops(self, depth: int, groups: list[Group]) -> list[Group]:
        axis = self.stage.red[depth]
        last = depth == len(self.stage.red) - 1
        if last and self.lane is not None:
            return self._row(axis, groups)
        start, stop = "0", self._turns(depth)
        if last and self.unrolled > 1:
            start, groups = self._unrolled(axis, start, stop, groups)
            if start == stop:
                return groups
        loop = self.f.open_loop(start, stop, 1, self._pack(groups))
        groups = self._unpack(loop.carried)
        self.values.enter({axis: self._index(depth, loop.index)}, [self.number])
        guard = None
        if self.lane is None and not self.stage.stores:
            guard = skipping_guard(self.stage.accs, self.values.guard_of)
        if guard is None:
            groups = self._body(depth, groups)
        else:
            groups = self._guarded(guard, groups, lambda g: self._assuming(guard, depth, g))
        self.values.leave()
        return self._unpack(self.f.close_loop(loop, self._flat(groups)))

    def _turns(self, depth: int) -> str:
        """How often the loop at some depth turns: who shares a point shares the first one."""
        f, extent = self.f, self.values.extent(self.stage.red[depth])
        if self.shared is None or depth:
            return extent
        rest = f.sub(f.add(extent, self.shared.parts - 1), self.shared.part)
        return f.udiv(rest, self.shared.parts)

    def _index(self, depth: int, turn: str) -> str:
        """The axis's index then."""
        if self.shared is None or depth:
            return turn
        return self.f.add(self.f.mul(turn, self.shared.parts), self.shared.part)

    def _unrolled(
        self, axis: int, start: str, stop: str, groups: list[Group]
    ) -> tuple[str, list[Group]]:
        """Several iterations a step, all read before the first is added; and where they end."""
        f, step = self.f, self.unrolled
        full = f.mul(f.udiv(stop, step), step)
        if full == start:
            return start, groups
        loop = f.open_loop(start, full, step, self._pack(groups))
        groups = self._unpack(loop.carried)
        depth = len(self.stage.red) - 1
        turns = [self._index(depth, f.add(loop.index, i)) for i in range(step)]
        group = self._several(axis, turns, groups[0])
        f.close_loop(loop, self._flat([group]))
        return full, groups

    def _several(self, axis: int, indices: Sequence[str], group: Group) -> Group:
        """Update a group with elements in order, after all have been evaluated."""
        elements = []
        for index in indices:
            self.values.enter({axis: index}, [self.number])
            elements.append([self._element(i) for i in range(len(self.stage.accs))])
            self.values.leave()
        for element in elements:
            rows = zip(self.stage.accs, group, element, strict=True)
            group = [combine(self.f, acc, old, new) for acc, old, new in rows]
        return group

    def _assuming(self, guard: str, depth: int, groups: list[Group]) -> list[Group]:
        self.values.assume(guard, self.number)
        return self._body(depth, groups)

    def _body(self, depth: int, groups: list[Group]) -> list[Group]:
        """One iteration of the loop at some depth."""
        if depth == len(self.stage.red) - 1:
            return [self._step(groups[0])]
        self.values.hoist(self.number, 1)
        return self._loops(depth + 1, groups)

    def _guarded(
        self,
        guard: str,
        groups: list[Group],
        body: Callable[[list[Group]], list[Group]],
    ) -> list[Group]:
        """The groups after `body` where the guard holds; otherwise nothing changes."""
        f = self.f
        key = f.fresh("")
        before = f.block
        f.branch_if(guard, f"in{key}", f"out{key}")
        f.label(f"in{key}")
        after = body(groups)
        last = f.block
        f.branch(f"out{key}")
        f.label(f"out{key}")
        return self._unpack(
            [
                x if x == y else f.value(f"phi {t} [ {x}, %{before} ], [ {y}, %{last} ]")
                for (t, x), y in zip(self._pack(groups), self._flat(after), strict=True)
            ]
        )

    # ---- rows

    def _row(self, axis: int, groups: list[Group]) -> list[Group]:
        """The vector axis as the innermost loop, its elements dealt out to the lanes."""
        stop = self.values.extent(axis)
        if self.scans:
            return self._scan(axis, stop, groups)
        if self.in_turn:
            self._row_in_turn(axis, stop)
            return groups
        return self._row_at_once(axis, stop, groups)

    def _row_at_once(self, axis: int, stop: str, groups: list[Group]) -> list[Group]:
        """Whole steps of one element for each virtual lane, then what is left."""
        f, lane = self.f, self._lane()
        start, width = "0", self.parent.width
        step = width * self.groups
        if self.unrolled > 1:
            start, groups = self._row_unrolled(axis, stop, groups)
        full = f.mul(f.udiv(stop, step), step)
        if full != start:
            loop = f.open_loop(start, full, step, self._pack(groups))
            groups = self._unpack(loop.carried)
            first = f.add(loop.index, lane)
            groups = [self._at(axis, f.add(first, width * i), g) for i, g in enumerate(groups)]
            self._settle()
            groups = self._unpack(f.close_loop(loop, self._flat(groups)))
        if full == stop:
            return groups
        for i in range(self.groups):
            index = f.add(f.add(full, width * i), lane)
            inside = f.value(f"icmp slt i64 {index}, {stop}")
            groups = self._guarded(inside, groups, self._replacing(axis, index, i))
        self._settle()
        return groups

    def _row_unrolled(self, axis: int, stop: str, groups: list[Group]) -> tuple[str, list[Group]]:
        """Several elements for each virtual lane a step; and where such steps end."""
        f = self.f
        width = self.parent.width
        near = width * self.groups
        step = near * self.unrolled
        full = f.mul(f.udiv(stop, step), step)
        if full == "0":
            return full, groups
        loop = f.open_loop(0, full, step, self._pack(groups))
        groups = self._unpack(loop.carried)
        first = f.add(loop.index, self._lane())
        after = []
        for i, group in enumerate(groups):
            indices = [f.add(first, width * i + near * j) for j in range(self.unrolled)]
            after.append(self._several(axis, indices, group))
        f.close_loop(loop, self._flat(after))
        return full, groups

    def _replacing(self, axis: int, index: str, i: int) -> Callable[[list[Group]], list[Group]]:
        """A step that updates one of the groups."""
        return lambda groups: [
            self._at(axis, index, g) if n == i else g for n, g in enumerate(groups)
        ]

    def _settle(self) -> None:
        """Additions to memory are done in order along the axes around the vector axis."""
        if any(store.add for store in self.stage.stores):
            self.parent.meet()

    def _row_in_turn(self, axis: int, stop: str) -> None:
        """Stores of lanes that may meet: lane after lane."""
        f = self.f
        loop = f.open_loop(0, stop, 1)
        turn = f.value(f"and i64 {loop.index}, {WARP - 1}")
        mine = f.value(f"icmp eq i64 {turn}, {self._lane()}")
        self._guarded(mine, [[]], lambda _: [self._at(axis, loop.index, [])])
        f.warp_sync()
        f.close_loop(loop)

    def _scan(self, axis: int, stop: str, groups: list[Group]) -> list[Group]:
        """Running values: element after element, added by all lanes and stored by its own."""
        f = self.f
        loop = f.open_loop(0, stop, 1, self._pack(groups))
        groups = self._unpack(loop.carried)
        turn = f.value(f"and i64 {loop.index}, {WARP - 1}")
        mine = f.value(f"icmp eq i64 {turn}, {self._lane()}")
        self.values.enter({axis: loop.index}, [self.number])
        group = self._updated(groups[0])
        made = self.values.evaluated(self.stage.stores, 0)
        self.f.when(mine, lambda: self.values.write(made))
        self.values.leave()
        f.warp_sync()
        return self._unpack(f.close_loop(loop, self._flat([group])))

    def _lane(self) -> str:
        assert self.lane is not None
        return self.lane

    # ---- one iteration

    def _at(self, axis: int, index: str, group: Group) -> Group:
        self.values.enter({axis: index}, [self.number])
        group = self._step(group)
        self.values.leave()
        return group

    def _step(self, group: Group) -> Group:
        """Update a group with one element, and perform the stage's stores."""
        group = self._updated(group)
        self.values.stores(self.stage.stores, 0)
        return group

    def _updated(self, group: Group) -> Group:
        following: Group = []
        for i, acc in enumerate(self.stage.accs):
            total = combine(self.f, acc, group[i], self._element(i))
            following.append(total)
            if self.stage.stores:
                self.values.accs[self.first + i, 0] = final(self.f, acc, total)
        return following

    def _element(self, i: int) -> State:
        """What an accumulator takes of the current element."""
        acc = self.stage.accs[i]
        value = self.values.value(acc.expr, 0)
        return (value, self._position()) if is_arg(acc) else (value,)

    def _position(self) -> str:
        """Row-major position over the stage's axes."""
        f = self.f
        linear = "0"
        for axis in self.stage.red:
            linear = f.mul(linear, f.dim(self.parent.kernel.axes[axis]))
            linear = f.add(linear, self.values.index[axis])
        return linear

    def _finish(self, groups: list[Group]) -> None:
        """Define the accumulators' final values: a row's are joined, and known to all lanes."""
        f = self.f
        joined = groups[0]
        if self.lane is not None and not self.scans:
            accs = self.stage.accs
            joined = [join_lanes(f, acc, [g[i] for g in groups]) for i, acc in enumerate(accs)]
            if self.parent.width > WARP and joined:
                warps = self.parent.width // WARP
                joined = join_warps(f, accs, joined, self._lane(), warps)
        elif self.shared is not None:
            lane, part, parts = self.shared.lane, self.shared.part, self.shared.parts
            joined = join_parts(f, self.stage.accs, joined, lane, part, parts)
        for i, acc in enumerate(self.stage.accs):
            self.values.define_acc(self.first + i, 0, final(f, acc, joined[i]))


def acts_in_turn(kernel: LoopKernel, numbering: Numbering) -> bool:
    """Whether elements of a row have to act one after the other in some stage."""
    stores = [(stage.red[-1], s) for stage in kernel.stages if stage.red for s in stage.stores]
    return bool(numbering.lane_accs) or any(_in_turn(store, axis) for axis, store in stores)


def _in_turn(store: Store, axis: int) -> bool:
    """Whether elements along an axis may be stored at one place."""
    return store.index is not None or not access_axes(store.access) >> axis & 1
