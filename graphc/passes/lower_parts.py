"""Long sums of few elements, in two steps: over parts of what is summed, then of what those give.

    before:  dw[t, i, o] = sum over n, h < 32, w of x[n, h + t, w, i] * dy[n, h, w, o]
    after:   p[q, t, i, o] = sum over n, h < 8, w of x[n, 8q + h + t, w, i] * dy[n, 8q + h, w, o]
             dw[t, i, o] = p[0, t, i, o] + p[1, t, i, o] + p[2, t, i, o] + p[3, t, i, o]

So few elements make one block or three for cores to share, and each block packs dy again.  A part
makes all elements from its share of an axis.  How many parts there are follows from the sizes that
are known when the graph is compiled, never from threads.
Imports: contraction_axes, kernel, nest, dims.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc import dims
from graphc.dims import DimLike
from graphc.kernel import (
    Access,
    Accumulator,
    Contraction,
    Expr,
    LoopKernel,
    Stage,
    Store,
    Term,
)
from graphc.nest import contiguous
from graphc.passes.contraction_axes import fewest_axes

PARTS = range(4, 17)
"""How many parts cores share evenly, fewest first."""

LARGE = 1 << 19
"""Elements of a right operand that take some ten times as long to read as a step more takes."""

FAR = 1 << 22
"""Elements that come from memory, which is waited for however many rows there are; the back end
reads as many rows of such operands where they lie (codegen.contract_few_rows)."""

IMAGES = 16
"""How many images sums are taken to be over where their number is not known."""


@dataclass(frozen=True)
class Shares:
    """Which sums a back end wants in parts, and in how many.

    few       most elements of the result: more of them make blocks enough
    narrow    most columns, or rows if they are fewer: all of them lie in one block
    terms     fewest terms of a part that are worth a step more
    unknown   the same of each image, where the number of images is not known
    elements  about how many elements the parts should have in all; 0: as many parts as PARTS say
    slender   fewest terms for each row or column of the longer side: rows that are many make blocks
    rows      most rows of a product that only waits for its right operand; twice as many where
              that has FAR elements
    """

    few: int = 1 << 17
    narrow: int = 256
    terms: int = 256
    unknown: int = 256
    elements: int = 0
    slender: int = 8
    rows: int = 8

    def counts(self, size: int) -> range:
        """How many parts `size` elements may have, the best first."""
        return range(self.elements // size, 1, -1) if self.elements else PARTS


SHARES = Shares()

GPU_SHARES = Shares(few=1 << 19, narrow=1 << 30, unknown=48, elements=1 << 20, slender=0, rows=0)
"""For hundreds of blocks of 64 x 64 elements."""


@dataclass(frozen=True)
class Parts:
    """Both kernels, and the shape of what is between them.

    first    writes the sums of all parts to its buffer 2, the last one
    last     has the contraction's buffers, and after them the sums of all parts
    """

    first: Contraction
    last: LoopKernel
    shape: tuple[DimLike, ...]


def in_parts(c: Contraction, shares: Shares = SHARES) -> Parts | None:
    """The two steps of a contraction of long sums of few elements."""
    batch, m, n = (dims.product(group) for group in (c.batch, c.m, c.n))
    if c.winograd or not (isinstance(batch, int) and isinstance(m, int) and isinstance(n, int)):
        return None
    length = dims.product(c.k)
    if not _waits(c, shares, batch * m, length * n if isinstance(length, int) else 0):
        if not 0 < batch * m * n <= shares.few or min(m, n) > shares.narrow or min(m, n) == 1:
            return None
        terms = dims.factor(length) * (1 if isinstance(length, int) else IMAGES)
        if terms < shares.slender * max(m, n):
            return None
    most = dims.factor(length) // (shares.terms if isinstance(length, int) else shares.unknown)
    inner = len(c.axes) - len(c.k)
    counts = shares.counts(batch * m * n)
    found = [(_parts(c.axes[a], counts, most), a) for a in range(inner, len(c.axes))]
    found = [(count, axis) for count, axis in found if count]
    if not found:
        return None
    count, axis = max(found, key=lambda x: x[0]) if shares.elements else found[0]
    return Parts(_first(c, axis, count), _last(c, count), (count, *c.axes[:inner]))


def _waits(c: Contraction, shares: Shares, rows: int, elements: int) -> bool:
    """Whether few rows read a large right operand once, along its rows: memory is fastest where
    each part reads all columns of some of them."""
    few = 0 < rows <= (2 * shares.rows if elements >= FAR else shares.rows)
    if len(c.k) != 1 or c.batch or not few or elements < LARGE:
        return False
    inner = len(c.axes) - 1
    steps: dict[int, DimLike] = {}
    for t in c.b.terms:
        for a, x in t.axes:
            steps[a] = dims.add(steps.get(a, 0), dims.mul(x, t.stride))
    columns = [a for a in range(len(c.m), inner) if c.axes[a] != 1]
    plain = all(t.limit is None and t.div == 1 for t in c.b.terms)
    return (
        plain
        and len(columns) == 1
        and steps[columns[0]] == 1
        and steps[inner] == c.axes[columns[0]]
    )


def _parts(extent: DimLike, counts: range, most: int) -> int:
    """Into how many parts an axis is cut, 0 if it is not."""
    whole = dims.factor(extent)
    return next((n for n in counts if n <= most and whole % n == 0), 0)


def _first(c: Contraction, axis: int, count: int) -> Contraction:
    """The contraction with one batch axis more, of parts, which are no longer summed over."""
    share = dims.exact_div(c.axes[axis], count)

    def moved(access: Access) -> Access:
        terms = []
        for t in access.terms:
            pairs: list[tuple[int, DimLike]] = []
            for a, x in t.axes:
                pairs.append((a + 1, x))
                if a == axis:
                    pairs.append((0, dims.mul(x, share)))
            terms.append(replace(t, axes=tuple(pairs)))
        return replace(access, terms=tuple(terms))

    inner = len(c.axes) - len(c.k)
    k = tuple(share if a == axis else c.axes[a] for a in range(inner, len(c.axes)))
    shape = (count, *c.axes[:inner])
    places = tuple(Term(((a, 1),), s) for a, s in enumerate(contiguous(shape)))
    store = Store(Access(2, places), Expr("acc", (), 0, c.dtype))
    bufs = (*c.bufs[:2], c.dtype)
    batch = (count, *c.batch)
    made = Contraction(batch, c.m, c.n, k, moved(c.a), moved(c.b), bufs, (store,), c.dtype)
    return fewest_axes(made)


def _last(c: Contraction, count: int) -> LoopKernel:
    """The sums of all parts, in order, and the epilogue."""
    inner = len(c.axes) - len(c.k)
    strides = contiguous((count, *c.axes[:inner]))
    terms = tuple(Term(((a, 1),), s) for a, s in enumerate(strides[1:]))
    access = Access(len(c.bufs), (Term(((inner, 1),), strides[0]), *terms))
    load = Expr("load", (), (access, 0), c.dtype)
    stages = (
        Stage((inner,), (Accumulator("sum", load, c.dtype),)),
        Stage((), (), c.stores),
    )
    bufs = (*c.bufs, c.dtype)
    axes = (*c.axes[:inner], count)
    return LoopKernel(axes, tuple(range(inner)), inner - 1, bufs, stages)
