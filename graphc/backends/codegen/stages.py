"""The stages of a loop kernel: straight-line code, and loops that reduce and store.

Along the vector axis a reduction sends element i to virtual lane i mod VIRTUAL_LANES: four groups
of LANES, joined by a fixed tree, so bits depend on the length alone.  Other reductions keep one
scalar accumulator per lane, in ascending order.
Imports: evaluate, numbering, reducers, skipping, text, kernel, dims.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.backends.codegen.evaluate import Evaluator
from graphc.backends.codegen.numbering import Numbering
from graphc.backends.codegen.reducers import (
    State,
    across_lanes,
    combine,
    final,
    initial,
    is_arg,
    masked,
    running,
    state_types,
)
from graphc.backends.codegen.skipping import skipping_guard
from graphc.backends.codegen.text import LANE_INDEX, LANES, FunctionText, vector
from graphc.dims import factor
from graphc.kernel import VIRTUAL_LANES, Accumulator, LoopKernel, Stage

GROUPS = VIRTUAL_LANES // LANES
_UNROLLED = 40
"""A row stage below this weight gets one copy of its code per group."""

Group = list[State]
_I64 = vector("i64")


class StageEmitter:
    """Emits the stages of a kernel inside its parallel loops."""

    def __init__(
        self,
        f: FunctionText,
        kernel: LoopKernel,
        numbering: Numbering,
        values: Evaluator,
    ) -> None:
        self.f = f
        self.kernel = kernel
        self.numbering = numbering
        self.values = values
        self.rows = kernel.vec not in kernel.par
        self._ragged = {r.axis for r in kernel.ragged}

    def known_factor(self, axis: int) -> int:
        """A number that divides the extent of an axis for every size."""
        return 1 if axis in self._ragged else factor(self.kernel.axes[axis])

    def multiple(self, axis: int, stop: str, step: int) -> str:
        """Where the last whole step along an axis ends: `step` is a power of two."""
        if self.known_factor(axis) % step == 0:
            return stop
        if stop.isdigit():
            return str(int(stop) // step * step)
        return self.f.value(f"and i64 {stop}, {-step}")

    def tail_mask(self, count: str) -> str:
        """The mask of the first `count` lanes."""
        f = self.f
        narrow = f.smin(count, LANES)
        if narrow.isdigit():
            return "<" + ", ".join(f"i1 {str(i < int(narrow)).lower()}" for i in range(LANES)) + ">"
        byte = f.splat("i8", f.value(f"trunc i64 {narrow} to i8"))
        lanes = "<" + ", ".join(f"i8 {i}" for i in range(LANES)) + ">"
        return f.value(f"icmp ult {vector('i8')} {lanes}, {byte}")

    def run(self, units: int) -> None:
        """All stages, for `units` vectors at once when the vector axis is parallel."""
        first = 0
        for number, stage in enumerate(self.kernel.stages):
            if stage.red:
                _StageLoop(self, number, stage, first, units).emit()
            else:
                for unit in range(units):
                    self.values.stores(stage.stores, unit)
            first += len(stage.accs)
        self.values.forget_accs(range(first))


class _StageLoop:
    """The loops of one stage; its state is one group of accumulators per unit or virtual group."""

    def __init__(
        self, parent: StageEmitter, number: int, stage: Stage, first: int, units: int
    ) -> None:
        self.f = parent.f
        self.parent = parent
        self.values = parent.values
        self.number = number
        self.stage = stage
        self.accs: Sequence[Accumulator] = stage.accs
        self.first = first
        self.rows = parent.rows
        own = range(first, first + len(stage.accs))
        self.scans = any(n in parent.numbering.lane_accs for n in own)
        self.weight = parent.numbering.weight(number)
        self.units = units
        if self.rows:
            self.units = GROUPS if stage.accs and not self.scans else 1

    def emit(self) -> None:
        units = 1 if self.rows else self.units
        # The loop's stores change what its next iteration must read again.
        for store in self.stage.stores:
            self.values.forget_reads(1 << store.access.buf)
        self.values.hoist(self.number, units)
        groups = [[initial(self.f, a) for a in self.accs] for _ in range(self.units)]
        self._finish(self._loops(0, groups))

    # ---- carried values are flat lists

    def _pack(self, groups: Sequence[Group]) -> list[tuple[str, str]]:
        return [
            (t, x)
            for group in groups
            for acc, state in zip(self.accs, group, strict=True)
            for t, x in zip(state_types(self.f, acc), state, strict=True)
        ]

    def _flat(self, groups: Sequence[Group]) -> list[str]:
        return [x for _, x in self._pack(groups)]

    def _unpack(self, flat: Sequence[str]) -> list[Group]:
        groups = []
        at = 0
        while at < len(flat):
            group = []
            for acc in self.accs:
                width = 2 if is_arg(acc) else 1
                group.append(tuple(flat[at : at + width]))
                at += width
            groups.append(group)
        return groups or [[] for _ in range(self.units)]

    # ---- loops

    def _loops(self, depth: int, groups: list[Group]) -> list[Group]:
        axis = self.stage.red[depth]
        last = depth == len(self.stage.red) - 1
        if last and self.rows:
            return self._row(axis, groups)
        loop = self.f.open_loop(0, self.values.extent(axis), 1, self._pack(groups))
        groups = self._unpack(loop.carried)
        self.values.enter({axis: loop.index}, [self.number])
        guard = None
        if not self.rows and not self.stage.stores:
            guard = skipping_guard(self.accs, self.values.guard_of)
        groups = self._guarded(guard, depth, groups)
        self.values.leave()
        return self._unpack(self.f.close_loop(loop, self._flat(groups)))

    def _body(self, depth: int, groups: list[Group]) -> list[Group]:
        """One iteration of the loop at some depth."""
        if depth == len(self.stage.red) - 1:
            return [self._step(g, u) for u, g in enumerate(groups)]
        self.values.hoist(self.number, 1 if self.rows else self.units)
        return self._loops(depth + 1, groups)

    def _guarded(self, guard: str | None, depth: int, groups: list[Group]) -> list[Group]:
        """The same where the guard holds; otherwise nothing changes."""
        f = self.f
        if guard is None:
            return self._body(depth, groups)
        key = f.fresh("")
        before = f.block
        f.branch_if(guard, f"in{key}", f"out{key}")
        f.label(f"in{key}")
        self.values.assume(guard, self.number)
        after = self._body(depth, groups)
        last = f.block
        f.branch(f"out{key}")
        f.label(f"out{key}")
        return self._unpack(
            [
                x if x == y else f.value(f"phi {t} [ {x}, %{before} ], [ {y}, %{last} ]")
                for (t, x), y in zip(self._pack(groups), self._flat(after), strict=True)
            ]
        )

    def _row(self, axis: int, groups: list[Group]) -> list[Group]:
        """The vector axis as the innermost loop."""
        stop = self.values.extent(axis)
        if not self.accs or self.scans:
            return self._plain_row(axis, stop, groups)
        full = self.parent.multiple(axis, stop, VIRTUAL_LANES)
        if full != "0":
            unrolled = self.weight <= _UNROLLED
            step = VIRTUAL_LANES if unrolled else LANES
            loop = self.f.open_loop(0, full, step, self._pack(groups))
            groups = self._unpack(loop.carried)
            self.values.enter({axis: loop.index}, [self.number])
            if unrolled:
                groups = [self._step(g, u) for u, g in enumerate(groups)]
            else:
                # One copy of the code: the groups take turns, and a multiple of four turns ends
                # where it began.
                groups = [*groups[1:], self._step(groups[0], 0)]
            self.values.leave()
            groups = self._unpack(self.f.close_loop(loop, self._flat(groups)))
        return groups if full == stop else self._row_tail(axis, full, stop, groups)

    def _row_tail(self, axis: int, full: str, stop: str, groups: list[Group]) -> list[Group]:
        """Fewer than VIRTUAL_LANES elements: masked vectors, the groups taking turns."""
        f = self.f
        if stop.isdigit():
            count = -(-(int(stop) - int(full)) // LANES)
            if count == 1 or count * self.weight <= _UNROLLED:
                return self._straight_tail(axis, int(full), int(stop), groups)
        loop = f.open_loop(full, stop, LANES, [*self._pack(groups), ("i64", "0")])
        groups, turns = self._unpack(loop.carried[:-1]), loop.carried[-1]
        mask = self._rest_mask(axis, stop, loop.index)
        groups = [*groups[1:], self._masked_step(axis, loop.index, mask, groups[0])]
        after = f.close_loop(loop, [*self._flat(groups), f.add(turns, 1)])
        groups, turns = self._unpack(after[:-1]), after[-1]
        if stop.isdigit():
            back = -(-(int(stop) - int(full)) // LANES) % GROUPS
            return groups[GROUPS - back :] + groups[: GROUPS - back]
        none = f.value(f"icmp eq i64 {turns}, 0")
        first = f.value(f"select i1 {none}, i64 {GROUPS}, i64 {turns}")
        loop = f.open_loop(first, GROUPS, 1, self._pack(groups))
        groups = self._unpack(loop.carried)
        return self._unpack(f.close_loop(loop, self._flat([*groups[1:], groups[0]])))

    def _straight_tail(self, axis: int, full: int, stop: int, groups: list[Group]) -> list[Group]:
        """A short tail of known length, without a loop."""
        groups = list(groups)
        for turn, index in enumerate(range(full, stop, LANES)):
            mask = None if stop - index >= LANES else self.parent.tail_mask(str(stop - index))
            groups[turn] = self._masked_step(axis, str(index), mask, groups[turn])
        return groups

    def _plain_row(self, axis: int, stop: str, groups: list[Group]) -> list[Group]:
        """A row of stores, or of running values: whole vectors, then a masked one."""
        f = self.f
        copies = 2 if not self.accs and self.weight <= _UNROLLED // 2 else 1
        full = self.parent.multiple(axis, stop, LANES * copies)
        if full != "0":
            loop = f.open_loop(0, full, LANES * copies, self._pack(groups))
            groups = self._unpack(loop.carried)
            self.values.enter({axis: loop.index}, [self.number])
            for unit in range(copies):
                groups = [self._step(groups[0], unit)]
            self.values.leave()
            groups = self._unpack(f.close_loop(loop, self._flat(groups)))
        if full == stop:
            return groups
        loop = f.open_loop(full, stop, LANES, self._pack(groups))
        groups = self._unpack(loop.carried)
        mask = self._rest_mask(axis, stop, loop.index)
        groups = [self._masked_step(axis, loop.index, mask, groups[0])]
        return self._unpack(f.close_loop(loop, self._flat(groups)))

    def _rest_mask(self, axis: int, stop: str, index: str) -> str | None:
        if self.parent.known_factor(axis) % LANES == 0:
            return None
        return self.parent.tail_mask(self.f.sub(stop, index))

    def _masked_step(self, axis: int, index: str, mask: str | None, group: Group) -> Group:
        self.values.enter({axis: index}, [self.number])
        outer, self.values.mask = self.values.mask, mask
        group = self._step(group, 0)
        self.values.mask = outer
        self.values.leave()
        return group

    # ---- one iteration

    def _step(self, group: Group, unit: int) -> Group:
        """Update one group with one vector of elements, and perform the stage's stores."""
        f = self.f
        following: Group = []
        for i, acc in enumerate(self.accs):
            new: State = (self.values.value(acc.expr, unit),)
            if is_arg(acc):
                new = (*new, self._position(unit))
            if self.rows:
                new = masked(f, acc, self.values.mask, new)
            if self.scans:
                after, total = running(f, acc, group[i], new)
            else:
                after = total = combine(f, acc, group[i], new)
            following.append(total)
            if self.stage.stores:
                self.values.accs[self.first + i, unit] = final(f, acc, after)
        self.values.stores(self.stage.stores, unit)
        return following

    def _position(self, unit: int) -> str:
        """Row-major position over the stage's axes, per lane."""
        f = self.f
        linear = "0"
        for axis in self.stage.red:
            linear = f.mul(linear, f.dim(self.parent.kernel.axes[axis]))
            linear = f.add(linear, self.values.index[axis])
        if not self.rows:
            return f.splat("i64", linear)
        first = f.splat("i64", f.add(linear, LANES * unit))
        return f.value(f"add {_I64} {first}, {LANE_INDEX}")

    def _finish(self, groups: list[Group]) -> None:
        """Define the accumulators' final values."""
        f = self.f
        if self.rows and self.accs and not self.scans:
            groups = [self._join(groups)]
        for unit, group in enumerate(groups):
            for i, acc in enumerate(self.accs):
                self.values.define_acc(self.first + i, unit, final(f, acc, group[i]))

    def _join(self, groups: list[Group]) -> Group:
        joined = []
        for i, acc in enumerate(self.accs):
            states = [group[i] for group in groups]
            nothing = initial(self.f, acc)
            while len(states) > 1:
                pairs = zip(states[::2], states[1::2], strict=True)
                # A group that saw no element changes nothing.
                states = [a if b == nothing else combine(self.f, acc, a, b) for a, b in pairs]
            joined.append(across_lanes(self.f, acc, states[0]))
        return joined
