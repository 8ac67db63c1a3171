"""Loop kernels for a GPU: where the CPU has lanes of vectors, it has threads.

Where the vector axis is parallel, a thread takes one point of the parallel axes, or a run of points
along the vector axis: all are read before one is written, so that LLVM joins what is adjacent.
Points with long sums are shared by threads, unless there are very many of them.  Where the vector
axis is reduced, a warp takes a point of the parallel axes, which is a row, or a CTA where rows are
long (see `stages`).  Imports: stages, thread, codegen, kernel, dims.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphc.backends.codegen.evaluate import Evaluator
from graphc.backends.codegen.numbering import Numbering
from graphc.backends.gpu.stages import UNROLLED, Shared, ThreadStages, acts_in_turn
from graphc.backends.gpu.thread import WARP, ThreadText
from graphc.dims import DimLike, ceildiv, factor, mul, product
from graphc.kernel import HEAVY, Access, LoopKernel, sizes_of

POINT_THREADS = 256
ROW_THREADS = 128

VECTOR_BYTES = 16
"""The widest access of a thread, which must be aligned as widely; so are all buffers."""

RUN = 4
"""Points a thread takes at most: as many 4-byte elements as one access can have."""

MOST_PARTS, FEWEST_PARTS = 16, 4
"""How many threads share a point, if any do."""

PLENTY = 1 << 16
"""So many points keep a GPU busy with a thread each."""

_SHORT = {"exp", "exp2", "log", "sigmoid", "tanh"}
"""Heavy operations that f32 has short code for; copies of others take too many registers."""

_CHEAP = 64
"""A stage below this weight is worth copies of its code."""


_WIDTHS = ((16384, 1024), (2048, 256))
"""Rows known to be at least so long have so many threads."""


def loop_threads(kernel: LoopKernel) -> int:
    """Threads of a CTA."""
    if kernel.vec in kernel.par:
        parts = _parts(kernel)
        return parts * WARP if parts > 1 else POINT_THREADS
    width = _width(kernel, Numbering(kernel))
    return ROW_THREADS if width == WARP else width


def _width(kernel: LoopKernel, numbering: Numbering) -> int:
    """How many threads a row has."""
    if acts_in_turn(kernel, numbering):
        return WARP
    lengths = [product(kernel.axes[a] for a in stage.red) for stage in kernel.stages if stage.accs]
    known = min((n for n in lengths if isinstance(n, int)), default=0)
    return next((width for least, width in _WIDTHS if known >= least), WARP)


def loop_blocks(kernel: LoopKernel) -> DimLike:
    """How many CTAs a loop kernel has."""
    if _points_meet(kernel):
        return 1
    points = product(kernel.axes[a] for a in kernel.par)
    if _parts(kernel) > 1:
        return ceildiv(points, WARP)
    if kernel.vec in kernel.par:
        return ceildiv(points, POINT_THREADS * _run(kernel, Numbering(kernel)))
    return ceildiv(points, ROW_THREADS // WARP) if loop_threads(kernel) == ROW_THREADS else points


def _run(kernel: LoopKernel, numbering: Numbering) -> int:
    """How many points along the vector axis a thread takes."""
    if len(kernel.stages) != 1 or kernel.stages[0].red or kernel.checks or kernel.ragged:
        return 1
    alone = len(kernel.par) == 1
    if not alone and factor(kernel.axes[kernel.vec]) % RUN:
        return 1
    heavy = any(
        e.op in HEAVY and (e.op not in _SHORT or e.dtype.bits > 32) for e in numbering.exprs
    )
    return 1 if heavy or numbering.weight(0) > _CHEAP else RUN


def _parts(kernel: LoopKernel) -> int:
    """How many threads share a point: more than one where its sums are long, or may be."""
    ragged = {r.axis for r in kernel.ragged}
    if kernel.vec not in kernel.par or kernel.checks or ragged & set(kernel.par):
        return 1
    reducing = [stage for stage in kernel.stages if stage.red]
    if not reducing or any(stage.stores or not stage.accs for stage in reducing):
        return 1
    points = product(kernel.axes[a] for a in kernel.par)
    if isinstance(points, int) and points >= PLENTY:
        return 1
    firsts = [kernel.axes[stage.red[0]] for stage in reducing]
    known = min((n for n in firsts if isinstance(n, int)), default=MOST_PARTS * UNROLLED)
    parts = MOST_PARTS
    while known < parts * UNROLLED:
        parts //= 2
    return parts if parts >= FEWEST_PARTS else 1


def _points_meet(kernel: LoopKernel) -> bool:
    """Whether points add to places that they compute, which may be another's too."""
    stores = [s for stage in kernel.stages if not stage.red for s in stage.stores]
    return kernel.vec in kernel.par and any(s.add and s.index is not None for s in stores)


def emit_gpu_loop(kernel: LoopKernel, name: str) -> ThreadText:
    """A loop kernel as one function, with the intrinsics it declares."""
    f = ThreadText(name)
    buffers = len(kernel.bufs) + (1 if kernel.checks else 0)
    f.open_grid_kernel(buffers, sizes_of(kernel), loop_threads(kernel))
    grid = _Grid(f, kernel)
    if kernel.vec in kernel.par:
        grid.points()
    else:
        grid.rows()
    f.close_kernel()
    return f


class _Grid:
    """Which points the threads of a kernel take."""

    def __init__(self, f: ThreadText, kernel: LoopKernel) -> None:
        self.f = f
        self.kernel = kernel
        self.numbering = Numbering(kernel)
        self.values = Evaluator(f, kernel, self.numbering)
        self.count = "1"
        for axis in kernel.par:
            self.count = f.mul(self.count, f.dim(kernel.axes[axis]))

    def rows(self) -> None:
        """A warp for each point."""
        f = self.f
        width = _width(self.kernel, self.numbering)
        if width > WARP:
            lane = f.thread()
            stages = ThreadStages(f, self.kernel, self.numbering, self.values, lane, width)
            self._point(stages, f.cta())
            return
        warp = f.value(f"lshr i64 {f.thread()}, {WARP.bit_length() - 1}")
        lane = f.value(f"and i64 {f.thread()}, {WARP - 1}")
        row = f.add(f.mul(f.cta(), ROW_THREADS // WARP), warp)
        stages = ThreadStages(f, self.kernel, self.numbering, self.values, lane)
        inside = f.value(f"icmp slt i64 {row}, {self.count}")
        self.f.when(inside, lambda: self._point(stages, row))

    def points(self) -> None:
        """A thread for each point, or run of points."""
        f = self.f
        stages = ThreadStages(f, self.kernel, self.numbering, self.values, None)
        if _points_meet(self.kernel):
            self._one_by_one(stages)
            return
        parts = _parts(self.kernel)
        if parts > 1:
            self._shared_points(parts)
            return
        run = _run(self.kernel, self.numbering)
        first = f.mul(f.add(f.mul(f.cta(), POINT_THREADS), f.thread()), run)
        if run == 1:
            inside = f.value(f"icmp slt i64 {first}, {self.count}")
            self.f.when(inside, lambda: self._point(stages, first))
            return
        whole = f.value(f"icmp sle i64 {f.add(first, run)}, {self.count}")
        self.f.when(whole, lambda: self._run_of_points(first, run))
        if len(self.kernel.par) == 1 and factor(self.kernel.axes[self.kernel.vec]) % run:
            rest = f.value(f"xor i1 {whole}, true")
            self.f.when(rest, lambda: self._rest(stages, first))

    def _shared_points(self, parts: int) -> None:
        """A lane of every warp for each point; lanes behind the last point do that one again."""
        f = self.f
        part = f.value(f"lshr i64 {f.thread()}, {WARP.bit_length() - 1}")
        lane = f.value(f"and i64 {f.thread()}, {WARP - 1}")
        point = f.add(f.mul(f.cta(), WARP), lane)
        inside = f.value(f"icmp slt i64 {point}, {self.count}")
        first = f.value(f"icmp eq i64 {part}, 0")
        shared = Shared(lane, part, parts, f.value(f"and i1 {inside}, {first}"))
        stages = ThreadStages(f, self.kernel, self.numbering, self.values, None, shared=shared)
        self._point(stages, f.smin(point, f.sub(self.count, 1)))

    def _one_by_one(self, stages: ThreadStages) -> None:
        """All points by one thread."""
        f = self.f
        stop = f.value(f"icmp eq i64 {f.thread()}, 0")
        loop = f.open_loop(0, f.value(f"select i1 {stop}, i64 {self.count}, i64 0"), 1)
        self._point(stages, loop.index)
        f.close_loop(loop)

    def _point(self, stages: ThreadStages, linear: str) -> None:
        """All stages at one point, if that lies within ragged axes."""
        index = self._split(linear)
        self.values.index.update(index)
        ragged = [r.axis for r in self.kernel.ragged if r.axis in index]
        inside = [
            self.f.value(f"icmp slt i64 {index[axis]}, {self.values.extent(axis)}")
            for axis in ragged
        ]
        self._if_all(stages, inside, index)

    def _if_all(
        self, stages: ThreadStages, conditions: Sequence[str], index: dict[int, str]
    ) -> None:
        if conditions:
            rest = conditions[1:]
            self.f.when(conditions[0], lambda: self._if_all(stages, rest, index))
            return
        self.values.enter(index, range(len(self.kernel.stages)))
        stages.run()
        self.values.leave()

    def _run_of_points(self, first: str, run: int) -> None:
        """Points that follow each other: each is evaluated before one of them is stored."""
        vec, made = self.kernel.vec, []
        index = self._split(first)
        together = [a for a in self.numbering.accesses[0] if _in_step(a, vec, run)]
        for i in range(run):
            self.values.aligned = {
                a: math.gcd(VECTOR_BYTES, run * self.kernel.bufs[a.buf].itemsize) if not i else 0
                for a in together
            }
            self.values.enter({**index, vec: self.f.add(index[vec], i)}, [0])
            made += self.values.evaluated(self.kernel.stages[0].stores, 0)
            self.values.leave()
        self.values.write(made)

    def _rest(self, stages: ThreadStages, first: str) -> None:
        """The points behind the last run, one by one."""
        loop = self.f.open_loop(first, self.count, 1)
        self.values.enter({self.kernel.vec: loop.index}, [0])
        stages.run()
        self.values.leave()
        self.f.close_loop(loop)

    def _split(self, linear: str) -> dict[int, str]:
        """The index along each parallel axis, the last of which runs fastest."""
        f = self.f
        index: dict[int, str] = {}
        for axis in reversed(self.kernel.par[1:]):
            extent = f.dim(self.kernel.axes[axis])
            index[axis] = f.urem(linear, extent)
            linear = f.udiv(linear, extent)
        if self.kernel.par:
            index[self.kernel.par[0]] = linear
        return index


def _in_step(access: Access, vec: int, run: int) -> bool:
    """Whether runs of elements along the vector axis are adjacent, and begin at a multiple."""
    adjacent = False
    for term in access.terms:
        if term.limit is not None or term.div != 1 or factor(mul(term.shift, term.stride)) % run:
            return False
        for axis, coefficient in term.axes:
            step = mul(coefficient, term.stride)
            if axis == vec:
                adjacent = step == 1
            elif factor(step) % run:
                return False
    return adjacent and factor(access.offset) % run == 0
