"""The work in a kernel at given sizes: arithmetic, and the least memory it has to touch.

What a roofline needs: multiply-adds of a contraction count twice and only where they are inside its
guards, every other operation on floats counts once, and an element of a buffer counts once however
often it is read.  An estimate in one respect: which elements computed indices reach is not known.
Imports: kernel, winograd, dims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphc.dims import Dim, DimLike
from graphc.kernel import Access, Contraction, Expr, Kernel, LoopKernel, Store, Term
from graphc.winograd import FILTERINGS

FREE = frozenset(("load", "gather", "const", "axis", "size", "acc", "check", "select", "cast"))
"""Expressions that are no arithmetic on floats."""


@dataclass(frozen=True)
class Work:
    """Operations on floats, and bytes of distinct elements read or written."""

    flops: int
    bytes: int


def work(kernel: Kernel, sizes: Mapping[Dim, int]) -> Work:
    """The work of one launch of a kernel; `sizes` holds the symbolic sizes it reads."""
    counted = _Count(kernel, sizes)
    if isinstance(kernel, Contraction):
        flops = counted.products(kernel)
        axes = frozenset(range(len(kernel.axes) - len(kernel.k)))
        counted.read(kernel.a)
        counted.read_packed(kernel) if kernel.panel else counted.read(kernel.b)
        flops += counted.stage(kernel.stores, (), axes)
    else:
        flops = 0
        for stage in kernel.stages:
            axes = frozenset((*kernel.par, *stage.red))
            flops += counted.stage(stage.stores, [a.expr for a in stage.accs], axes)
            summed = [a for a in stage.accs if a.dtype.is_float]
            flops += len(summed) * counted.iterations(axes)
    return Work(flops, counted.bytes())


class _Count:
    def __init__(self, kernel: Kernel, sizes: Mapping[Dim, int]) -> None:
        self.kernel = kernel
        self.sizes = sizes
        self.extents = [self.size(d) for d in kernel.axes]
        if isinstance(kernel, LoopKernel):
            for r in kernel.ragged:  # chunks cover their total once
                chunks = max(1, self.extents[r.chunk_axis])
                self.extents[r.axis] = -(-self.size(r.total) // chunks)
        self.touched: dict[int, int] = {}  # buffer -> elements
        self._axes: dict[int, frozenset[int]] = {}  # expression -> axes it varies along
        self._done: set[int] = set()

    def size(self, d: DimLike) -> int:
        return d if isinstance(d, int) else self.sizes[d]

    def iterations(self, axes: Iterable[int]) -> int:
        return math.prod(self.extents[a] for a in axes)

    def bytes(self) -> int:
        """Bytes of the elements touched."""
        return sum(n * self.kernel.bufs[b].itemsize for b, n in self.touched.items())

    # ---- memory

    def read(self, access: Access, free: frozenset[int] = frozenset(), limit: int = 1) -> None:
        """Note the elements of an access; a computed index reaches up to `limit` more each."""
        elements = math.prod(self._distinct(t) for t in access.terms if self.size(t.stride) != 0)
        if limit > 1:
            elements *= min(limit, self.iterations(free))
        self.touched[access.buf] = max(self.touched.get(access.buf, 0), elements)

    def read_packed(self, kernel: Contraction) -> None:
        """Note the elements of B packed in panels, without the zeros that fill the last panel."""
        first = len(kernel.batch) + len(kernel.m)
        if kernel.winograd:
            sizes = (FILTERINGS[kernel.winograd].points, self.extents[3], self.extents[6])
            self.touched[1] = math.prod(sizes)
            return
        self.touched[1] = math.prod((*self.extents[: len(kernel.batch)], *self.extents[first:]))

    def _distinct(self, term: Term) -> int:
        """How many values an index takes."""
        moving = [(self.extents[a], abs(self.size(c))) for a, c in term.axes if self.size(c) != 0]
        if any(n == 0 for n, _ in moving):
            return 0
        values = math.prod(n for n, _ in moving)
        span = sum((n - 1) * c for n, c in moving) + 1
        found = min(values, span)
        if term.limit is None:
            return -(-found // term.div)
        return min(found, max(0, self.size(term.limit)))

    # ---- arithmetic

    def stage(
        self, stores: Sequence[Store], expressions: Sequence[Expr], axes: frozenset[int]
    ) -> int:
        """Operations of one stage; each distinct expression once where what it depends on moves."""
        roots = [*expressions, *(s.expr for s in stores)]
        roots += [s.index for s in stores if s.index is not None]
        flops = 0
        for e in _operands_first(roots):
            if id(e) not in self._axes:
                self._axes[id(e)] = self._varies(e, axes)
            if id(e) in self._done:
                continue
            self._done.add(id(e))
            along = self._axes[id(e)] & axes
            if e.op in ("load", "gather"):
                self.read(e.value[0], along, self.size(e.value[1]) if e.op == "gather" else 1)
            if e.op not in FREE and any(a.dtype.is_float for a in e.args):
                flops += (2 if e.op == "fma" else 1) * self.iterations(along)
        for s in stores:
            limit = 1 if s.index is None or s.extent is None else self.size(s.extent)
            self.read(s.access, axes, limit)
            if s.add and s.expr.dtype.is_float:
                flops += self.iterations(axes)
        return flops

    def _varies(self, e: Expr, axes: frozenset[int]) -> frozenset[int]:
        found = frozenset[int]().union(*(self._axes[id(a)] for a in e.args))
        if e.op == "axis":
            return frozenset((e.value,))
        if e.op == "acc":
            return self._par() & axes
        if e.op in ("load", "gather"):
            found |= {a for t in e.value[0].terms for a, c in t.axes if c != 0}
        return found

    def _par(self) -> frozenset[int]:
        kernel = self.kernel
        if isinstance(kernel, LoopKernel):
            return frozenset(kernel.par)
        return frozenset(range(len(kernel.axes) - len(kernel.k)))

    def products(self, kernel: Contraction) -> int:
        """Multiply-adds inside all guards, twice; of Winograd's filtering those between its
        transforms."""
        if kernel.winograd:
            return self._filtered(kernel)
        share = 1.0
        for term in dict.fromkeys((*kernel.a.terms, *kernel.b.terms)):
            if term.limit is not None:
                share *= self._inside(term)
        return round(2 * share * self.iterations(range(len(self.extents))))

    def _filtered(self, kernel: Contraction) -> int:
        rule = FILTERINGS[kernel.winograd]
        images, *sides = self.extents[:3]
        tiles = math.prod(-(-n // rule.tile) for n in sides)
        return 2 * rule.points * images * tiles * self.extents[3] * self.extents[-1]

    def _inside(self, term: Term) -> float:
        """The share of a term's iterations that are inside its guard."""
        number = np.full((1,), self.size(term.shift), np.int64)
        for axis, coefficient in term.axes:
            steps = self.size(coefficient) * np.arange(self.extents[axis], dtype=np.int64)
            number = (number[:, None] + steps).reshape(-1)
        assert term.limit is not None
        quotient = number // term.div
        inside = (number % term.div == 0) & (quotient >= 0) & (quotient < self.size(term.limit))
        return float(inside.mean()) if inside.size else 0.0


def _operands_first(roots: Sequence[Expr]) -> list[Expr]:
    """Every expression below some roots, each after its operands."""
    order: list[Expr] = []
    seen: set[int] = set()
    stack = [(e, False) for e in roots]
    while stack:
        e, done = stack.pop()
        if done:
            order.append(e)
        elif id(e) not in seen:
            seen.add(id(e))
            stack.append((e, True))
            stack.extend((a, False) for a in e.args)
    return order
