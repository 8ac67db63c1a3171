"""Loop kernels as LLVM text: blocks, parallel loops and the vector axis.

`emit_loop_kernel` opens the loops over parallel axes and runs the stages inside
(`stages.StageEmitter`).  When the vector axis is parallel, an unmasked loop takes several vectors
a step and a masked loop the rest.  Imports: abreast, evaluate, numbering, stages, text, kernel.
"""

from __future__ import annotations

import math

from graphc.backends.codegen.abreast import emit_abreast
from graphc.backends.codegen.evaluate import Evaluator
from graphc.backends.codegen.memory import open_slots
from graphc.backends.codegen.numbering import Numbering
from graphc.backends.codegen.stages import StageEmitter
from graphc.backends.codegen.text import LANES, FunctionText
from graphc.kernel import (
    COLUMN_BLOCK,
    MAP_BLOCK,
    Access,
    LoopKernel,
    Store,
    expressions_of,
    grid_axes,
    sizes_of,
)

_CHEAP = 20
"""A stage below this weight is worth copies of its code: one of them is long enough otherwise."""


def emit_loop_kernel(kernel: LoopKernel, name: str) -> FunctionText:
    """The kernel as one LLVM function of the kernel ABI, with the intrinsics it declares."""
    f = FunctionText(name)
    f.open_kernel(len(kernel.bufs) + (1 if kernel.checks else 0), sizes_of(kernel))
    numbering = Numbering(kernel)
    if any(_may_collide(store) for stage in kernel.stages for store in stage.stores):
        open_slots(f)
    if kernel.abreast > 1:
        emit_abreast(f, kernel, numbering)
    else:
        _LoopNest(f, kernel, numbering).emit()
    f.close_kernel()
    return f


def _may_collide(store: Store) -> bool:
    """Whether lanes that add may have to act one after the other."""
    guarded = any(term.limit is not None for term in store.access.terms)
    return store.add and (store.index is not None or guarded)


def _is_strided(access: Access, axis: int) -> bool:
    """Whether steps along an axis are neither zero nor one element."""
    return any(
        a == axis and coefficient != 0 and (term.stride != 1 or coefficient not in (1, -1))
        for term in access.terms
        if term.div == 1 or term.limit is not None
        for a, coefficient in term.axes
    )


def may_repeat(kernel: LoopKernel) -> bool:
    """Whether sums beside the vector axis may be computed and stored twice: nothing that is read is
    overwritten, not even where an output takes over the memory of an input."""
    stores = [s for stage in kernel.stages for s in stage.stores]
    if kernel.checks or kernel.vec not in kernel.par or not any(s.accs for s in kernel.stages):
        return False
    if any(s.add or s.index is not None for s in stores):
        return False
    written = {s.access.buf for s in stores}
    stored = {(s.access.terms, s.access.offset) for s in stores}
    for e in expressions_of(kernel):
        if e.op in ("load", "gather"):
            access = e.value[0]
            if access.buf in written or (access.terms, access.offset) in stored:
                return False
    return True


class _LoopNest:
    """Opens the parallel loops of one kernel."""

    def __init__(self, f: FunctionText, kernel: LoopKernel, numbering: Numbering) -> None:
        self.f = f
        self.kernel = kernel
        self.numbering = numbering
        self.values = Evaluator(f, kernel, numbering)
        self.stages = StageEmitter(f, kernel, numbering, self.values)
        self.all = range(len(kernel.stages))
        self.grid = grid_axes(kernel)
        self.inner = [a for a in kernel.par if a != kernel.vec][len(self.grid) :]
        self.again = may_repeat(kernel)

    def emit(self) -> None:
        self._hoist()
        if self.grid:
            self._blocks()
        elif self.kernel.vec in self.kernel.par:
            self._vector_blocks()
        else:
            loop = self.f.open_loop("%b0", "%b1", 1)
            self.values.enter({}, [])
            self.stages.run(1)
            self.values.leave()
            self.f.close_loop(loop)

    def _hoist(self) -> None:
        for stage in self.all:
            self.values.hoist(stage, 1)

    def _blocks(self) -> None:
        """The loop over blocks, which enumerate one or two parallel axes row-major."""
        f = self.f
        if len(self.grid) == 1:
            loop = f.open_loop("%b0", "%b1", 1)
            self._ragged({self.grid[0]: loop.index})
            f.close_loop(loop)
            return
        outer, inner = self.grid
        extent = f.dim(self.kernel.axes[inner])
        # With an empty inner axis there are no blocks, but the division is executed.
        divisor = f.smax(extent, 1)
        first, second = f.udiv("%b0", divisor), f.urem("%b0", divisor)
        loop = f.open_loop("%b0", "%b1", 1, [("i64", first), ("i64", second)])
        i, j = loop.carried
        self._ragged({outer: i, inner: j})
        following = f.add(j, 1)
        wrap = f.value(f"icmp sge i64 {following}, {extent}")
        carry = f.value(f"zext i1 {wrap} to i64")
        f.close_loop(
            loop,
            [f.add(i, carry), f.value(f"select i1 {wrap}, i64 0, i64 {following}")],
        )

    def _ragged(self, index: dict[int, str]) -> None:
        """Skip the rows of a ragged grid axis that lie behind its end."""
        short = [r.axis for r in self.kernel.ragged if r.axis in index]
        self.values.index.update(index)
        loops = []
        for axis in short:
            row = index[axis]
            stop = self.f.smin(self.f.add(row, 1), self.values.extent(axis))
            loop = self.f.open_loop(row, stop, 1)
            index[axis] = loop.index
            loops.append(loop)
        self.values.enter(index, self.all)
        self._hoist()
        self._inner(0)
        self.values.leave()
        for loop in reversed(loops):
            self.f.close_loop(loop)

    def _inner(self, depth: int) -> None:
        """Parallel axes that are neither blocks nor the vector axis."""
        if depth == len(self.inner):
            if self.kernel.vec in self.kernel.par:
                known = self.stages.known_factor(self.kernel.vec)
                self._vector("0", self.values.extent(self.kernel.vec), known)
            else:
                self.stages.run(1)
            return
        axis = self.inner[depth]
        loop = self.f.open_loop(0, self.values.extent(axis), 1)
        self.values.enter({axis: loop.index}, self.all)
        self._hoist()
        self._inner(depth + 1)
        self.values.leave()
        self.f.close_loop(loop)

    def _vector_blocks(self) -> None:
        """Blocks of the vector axis itself."""
        f = self.f
        reduces = any(stage.red for stage in self.kernel.stages)
        size = COLUMN_BLOCK if reduces else MAP_BLOCK
        stop = f.smin(f.mul("%b1", size), f.dim(self.kernel.axes[self.kernel.vec]))
        known = math.gcd(self.stages.known_factor(self.kernel.vec), size)
        self._vector(f.mul("%b0", size), stop, known)

    def _units(self) -> int:
        """Vectors per step of the unmasked loop."""
        stages = self.kernel.stages
        # a check is much text, and takes longer than the loop around it
        if self.kernel.checks or any(self.numbering.weight(i) > _CHEAP for i in self.all):
            return 1
        # Each lane of a strided access keeps a cache line busy, and lines a power of two apart
        # compete for few places: more than LANES of them evict each other.
        if any(
            _is_strided(a, self.kernel.vec) for i in self.all for a in self.numbering.accesses[i]
        ):
            return 1
        states = sum(len(stage.accs) for stage in stages)
        wide = any(a.op.startswith("arg") or a.dtype.bits > 32 for s in stages for a in s.accs)
        if states:
            return 4 if states == 1 and not wide else 2 if states <= 2 else 1
        return 2

    def _vector(self, start: str, stop: str, known: int) -> None:
        """The parallel vector axis from start to stop: whole steps, then what is left over, if
        there can be anything: `known` divides the distance.  That takes a mask, or elements that
        were done before."""
        f, at = self.f, start
        for units in self._steps(stop, known):
            whole = stop if known % (LANES * units) == 0 else self._whole(at, stop, LANES * units)
            if whole != at:
                loop = f.open_loop(at, whole, LANES * units)
                self._body(loop.index, units)
                f.close_loop(loop)
            at = whole
            if at == stop:
                return
            if start == "0" and stop.isdigit() and int(stop) > LANES and self.again:
                self._rest(int(at), int(stop))
                return
        loop = f.open_loop(at, stop, LANES)
        self.values.mask = self.stages.tail_mask(f.sub(stop, loop.index))
        self._body(loop.index, 1)
        self.values.mask = None
        f.close_loop(loop)

    def _rest(self, at: int, stop: int) -> None:
        """What is left over, the last of it with elements before it that were done already."""
        while at < stop:
            left = stop - at
            units = next(u for u in (1, 2, 4) if LANES * u >= left)
            if LANES * units >= min(left + LANES, stop + 1):
                units //= 2
            self._body(str(min(at, stop - LANES * units)), units)
            at += LANES * units

    def _steps(self, stop: str, known: int) -> list[int]:
        """Vectors per step of the unmasked loops up to `stop`, one after the other.

        A reduction that takes fewer vectors at a time reads its rows more often: it halves.
        """
        units = self._units()
        while units > 1 and stop.isdigit() and int(stop) < LANES * units:
            units //= 2
        reduces = any(stage.accs for stage in self.kernel.stages)
        if known % LANES and not (reduces and stop.isdigit()):
            return [units]
        return [u for u in (4, 2, 1) if u == units or u == 1 or (reduces and u < units)]

    def _whole(self, start: str, stop: str, step: int) -> str:
        """Where the last whole step from start on ends."""
        if start.isdigit() and stop.isdigit():
            return str(int(start) + (int(stop) - int(start)) // step * step)
        span = self.f.smax(self.f.sub(stop, start), 0)
        return self.f.add(start, self.f.value(f"and i64 {span}, {-step}"))

    def _body(self, index: str, units: int) -> None:
        self.values.enter({self.kernel.vec: index}, self.all)
        self.stages.run(units)
        self.values.leave()
