"""Contractions on a GPU, a thread per element of C: what is too small or too odd for tiles.

A thread walks k with one loop per axis and adds what is inside its guards.
Imports: contract_epilogue, contract_text, codegen.contract_access, codegen.text, kernel, dims.
"""

from __future__ import annotations

from graphc.backends.codegen.contract_access import Operand, Record, both, sum_records
from graphc.backends.codegen.text import float_literal, scalar_type
from graphc.backends.gpu.contract_epilogue import BATCH, Epilogue, M, N, Spot, fast_group
from graphc.backends.gpu.contract_text import (
    DeviceText,
    groups,
    indexed,
    located,
    part_of,
    pointer_to,
    size_of,
)
from graphc.dims import DimLike, ceildiv, product
from graphc.kernel import Contraction

THREADS = 128


def thread_blocks(c: Contraction) -> DimLike:
    """How many CTAs a kernel has that computes an element of C per thread."""
    return ceildiv(product((*c.batch, *c.m, *c.n)), THREADS)


def emit_threads(f: DeviceText, c: Contraction) -> None:
    """The body of the kernel."""
    _Threads(f, c).emit()


class _Threads:
    def __init__(self, f: DeviceText, c: Contraction) -> None:
        self.f, self.c = f, c
        self.groups = groups(c)
        self.scalar = scalar_type(c.dtype)
        axes = range(len(c.axes))
        self.a = Operand(f, c.a, c.dtype.itemsize, axes)
        self.b = Operand(f, c.b, c.dtype.itemsize, axes)
        self.fast = fast_group(c)
        self.epilogue = Epilogue(f, c, self.fast, 1)

    def emit(self) -> None:
        f = self.f
        sizes = [size_of(f, group) for group in self.groups]
        flat = f.add(f.mul(f.cta(), THREADS), f.thread())
        total = product(self.c.axes[: len(self.c.axes) - len(self.c.k)])
        if isinstance(total, int):
            f.bound(flat, 0, total + THREADS)
        whole = f.mul(f.mul(sizes[BATCH], sizes[M]), sizes[N])
        work, done = f.fresh("work"), f.fresh("done")
        f.branch_if(f.value(f"icmp slt i64 {flat}, {whole}"), work, done)
        f.label(work)
        spot = self._spot(flat, sizes)
        parts = []
        for operand, other in ((self.a, M), (self.b, N)):
            record = operand.origin()
            for which in (BATCH, other):
                part = part_of(f, operand, self.groups[which], spot[which])
                record = sum_records(f, record, part)
            parts.append(record)
        total_sum = self._summed(0, parts[0], parts[1], float_literal(0.0, self.scalar))
        self.epilogue.emit([Spot(spot, (total_sum,))])
        f.branch(done)
        f.label(done)

    def _spot(self, flat: str, sizes: list[str]) -> tuple[str, str, str]:
        """Batch, m and n of an element; along the fast group they are next to each other."""
        f = self.f
        inner = self.fast
        outer = M + N - inner
        found = {inner: f.urem(flat, sizes[inner])}
        flat = f.udiv(flat, sizes[inner])
        found[outer] = f.urem(flat, sizes[outer])
        found[BATCH] = f.udiv(flat, sizes[outer])
        for which, x in found.items():
            indexed(f, self.groups[which], x)
        return found[BATCH], found[M], found[N]

    def _summed(self, level: int, a: Record, b: Record, total: str) -> str:
        """The sum over the axes of k from one on, added to `total`; a and b are where that axis and
        those after it are 0."""
        f, group = self.f, self.groups[3]
        if level == len(group.axes):
            return self._step(a, b, total)
        axis = group.axes[level]
        loop = f.open_loop(0, f.dim(group.extents[level]), 1, [(self.scalar, total)])
        extent = group.extents[level]
        if isinstance(extent, int):
            f.bound(loop.index, 0, extent)
        here = [
            sum_records(f, record, operand.part(f, {axis: loop.index}))
            for operand, record in ((self.a, a), (self.b, b))
        ]
        result = self._summed(level + 1, here[0], here[1], loop.carried[0])
        (carried,) = f.close_loop(loop, [result])
        return carried

    def _step(self, a: Record, b: Record, total: str) -> str:
        """One multiply-add where both factors are inside."""
        f, scalar = self.f, self.scalar
        (left, in_a), (right, in_b) = (
            located(f, x, pointer_to(f, x, record), record)
            for x, record in ((self.a, a), (self.b, b))
        )
        inside = both(f, in_a, in_b)
        before, yes, no = f.block, f.fresh("in"), f.fresh("out")
        if inside:
            f.branch_if(inside, yes, no)
            f.label(yes)
        x, y = (
            f.value(f"load {scalar}, ptr {p}, align {self.c.dtype.itemsize}") for p in (left, right)
        )
        result = f.intrinsic("fma", scalar, x, y, total)
        if not inside:
            return result
        f.branch(no)
        f.label(no)
        return f.value(f"phi {scalar} [ {total}, %{before} ], [ {result}, %{yes} ]")
