"""What a contraction computes, as affine maps: the bridge from operators to the kernel IR.

    C[batch, m, n] = sum over k of A(batch, m, k) * B(batch, k, n)

Axes are numbered batch first, then m, n, k.  Example, x[N,H,W,C] convolved with w[3,3,C,O]:

    m = (N, H', W')   n = (O,)   k = (3, 3, C)        axes 0 1 2 | 3 | 4 5 6
    A = x[a0, a1 + a4 - 1, a2 + a5 - 1, a6]           B = w[a4, a5, a6, a3]

Imports: nest, dims, types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphc.dims import DimLike
from graphc.nest import Index, at
from graphc.types import TensorType

OutputIndex = tuple[tuple[int, DimLike], ...]
"""An output dimension as the sum of coef * axis over (axis, coef) pairs."""


@dataclass(frozen=True)
class ContractionMaps:
    """Extents of the axes, and for each operand the index along each of its dimensions.

    a, b    of the A and B operands: inputs 0 and 1, exchanged if `swap`
    out     of the output, over batch, m and n axes
    shift   of the output, added to each index (none: 0)
    A guarded index outside its dimension reads 0.
    """

    batch: tuple[DimLike, ...]
    m: tuple[DimLike, ...]
    n: tuple[DimLike, ...]
    k: tuple[DimLike, ...]
    a: tuple[Index, ...]
    b: tuple[Index, ...]
    out: tuple[OutputIndex, ...]
    swap: bool = False
    shift: tuple[DimLike, ...] = ()

    @property
    def extents(self) -> tuple[DimLike, ...]:
        return self.batch + self.m + self.n + self.k


@dataclass(frozen=True)
class AxisNumbers:
    """The numbers of the axes of each group, in the order batch, m, n, k."""

    batch: tuple[int, ...]
    m: tuple[int, ...]
    n: tuple[int, ...]
    k: tuple[int, ...]


def number_axes(batch: int, m: int, n: int, k: int) -> AxisNumbers:
    """Consecutive numbers for groups of the given lengths."""

    def numbers() -> Iterator[tuple[int, ...]]:
        start = 0
        for count in (batch, m, n, k):
            yield tuple(range(start, start + count))
            start += count

    return AxisNumbers(*numbers())


def matmul_maps(
    a: TensorType, b: TensorType, out: TensorType, transpose_a: bool, transpose_b: bool
) -> ContractionMaps:
    """The maps of a matrix product whose operands have equal batch dimensions."""
    assert a.shape is not None and out.shape is not None
    batch = out.shape[:-2]
    m, n = out.shape[-2:]
    k = a.shape[-2] if transpose_a else a.shape[-1]
    axes = number_axes(len(batch), 1, 1, 1)
    (i,), (j,), (p,) = axes.m, axes.n, axes.k
    lead = tuple(at(x) for x in axes.batch)
    rows, inner, columns = at(i), at(p), at(j)
    return ContractionMaps(
        batch=tuple(batch),
        m=(m,),
        n=(n,),
        k=(k,),
        a=(*lead, inner, rows) if transpose_a else (*lead, rows, inner),
        b=(*lead, columns, inner) if transpose_b else (*lead, inner, columns),
        out=tuple(((x, 1),) for x in (*axes.batch, i, j)),
    )
