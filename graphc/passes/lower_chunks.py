"""Long sums along channels, in two steps: over chunks of what is summed, then of what those give.

    dw[i,j,c] = sum over n, h, w of x[n, h+i-1, w+j-1, c] * dy[n, h, w, c]

A chunk is a few rows h: what it reads stays in the cache while the sums for all i, j and c over it
are made.  How many rows follows from sizes alone, so threads change no bits.
Imports: lower_channels, kernel, nest, dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import (
    Access,
    Accumulator,
    Contraction,
    Expr,
    LoopKernel,
    Ragged,
    Stage,
    Store,
    Term,
)
from graphc.nest import contiguous
from graphc.passes.lower_channels import LONG, numbered_loops, renumbered

ELEMENTS = 32768
"""Of one operand that a chunk reads, about."""


@dataclass(frozen=True)
class Chunked:
    """Both kernels, and the shape of what is between them.

    first    writes the sums over chunks to its buffer 2, the last one
    last     has the contraction's buffers, and after them the sums over chunks
    """

    first: LoopKernel
    last: LoopKernel
    shape: tuple[DimLike, ...]


def in_chunks(c: Contraction) -> Chunked | None:
    """The two steps of a contraction `along_channels`, if its sums are long."""
    terms = dims.product(c.k)
    if len(c.batch) != 1 or (isinstance(terms, int) and terms < LONG):
        return None
    inner = len(c.axes) - len(c.k)
    *outer, row = range(inner, max(len(c.axes) - 1, inner + 1))
    rest = range(row + 1, len(c.axes))
    width = dims.product((c.batch[0], *(c.axes[a] for a in rest)))
    rows = dims.maximum(1, dims.floordiv(ELEMENTS, dims.maximum(width, 1)))
    chunks = dims.ceildiv(c.axes[row], rows)
    pieces = dims.product((*(c.axes[a] for a in outer), chunks))
    if chunks == 1 or pieces == 1:
        return None
    return _Chunks(c, outer, row, rows, chunks).steps()


class _Chunks:
    def __init__(
        self, c: Contraction, outer: list[int], row: int, rows: DimLike, chunks: DimLike
    ) -> None:
        self.c, self.outer, self.row, self.rows, self.chunks = c, outer, row, rows, chunks
        self.inner = len(c.axes) - len(c.k)
        self.pieces = (*(c.axes[a] for a in outer), chunks)
        self.columns = (*c.axes[1 : self.inner], *c.batch)
        self.shape = (*self.pieces, *self.columns)

    def steps(self) -> Chunked:
        return Chunked(self._first(), self._last(), self.shape)

    def _first(self) -> LoopKernel:
        """The contraction with one axis more, of chunks, which are no longer summed over."""
        c, lead = self.c, len(self.outer)
        order = [0, *self.outer, None, *range(1, self.inner), *range(self.row, len(c.axes))]
        number = {a: i for i, a in enumerate(order) if a is not None}
        chunk = order.index(None)
        placed = [*range(1, lead + 2), *range(lead + 2, lead + 1 + self.inner), 0]
        to = _over(2, placed, self.shape)
        step = Store(to, Expr("acc", (), 0, c.dtype))
        made = Contraction(
            c.batch,
            (*self.pieces, *c.m),
            c.n,
            tuple(c.axes[a] for a in range(self.row, len(c.axes))),
            self._chunked(c.a, number, chunk),
            self._chunked(c.b, number, chunk),
            (*c.bufs[:2], c.dtype),
            (step,),
            c.dtype,
        )
        kernel, axes = numbered_loops(made)
        row = number[self.row]
        ragged = Ragged(axes[row], axes[chunk], self.rows, c.axes[self.row])
        return replace(kernel, ragged=(ragged,))

    def _chunked(self, access: Access, number: Mapping[int, int], chunk: int) -> Access:
        terms = []
        for t in access.terms:
            axes: list[tuple[int, DimLike]] = []
            for a, x in t.axes:
                axes.append((number[a], x))
                if a == self.row:
                    axes.append((chunk, dims.mul(x, self.rows)))
            terms.append(replace(t, axes=tuple(axes)))
        return replace(access, terms=tuple(terms))

    def _last(self) -> LoopKernel:
        """The sums of all chunks, in order, and the epilogue."""
        c = self.c
        par = [a for a in range(1, self.inner) if c.axes[a] != 1] + [0]
        number = {a: i for i, a in enumerate(par)}
        count = len(par)
        flat = (dims.product(self.pieces), *self.columns)
        columns = [*range(1, self.inner), 0]
        strides = contiguous(flat)
        moved = zip(columns, strides[1:], strict=True)
        terms = tuple(Term(((number[a], 1),), s) for a, s in moved if a in number)
        access = Access(len(c.bufs), (Term(((count, 1),), strides[0]), *terms))
        load = Expr("load", (), (access, 0), c.dtype)
        stages = (
            Stage((count,), (Accumulator("sum", load, c.dtype),)),
            Stage((), (), renumbered(c, number).stores),
        )
        extents = (*(c.axes[a] for a in par), flat[0])
        bufs = (*c.bufs, c.dtype)
        return LoopKernel(extents, tuple(range(count)), count - 1, bufs, stages)


def _over(buf: int, axes: list[int], shape: tuple[DimLike, ...]) -> Access:
    """An array's element at some axes, in their order."""
    strides = contiguous(shape)
    return Access(buf, tuple(Term(((a, 1),), s) for a, s in zip(axes, strides, strict=True)))
