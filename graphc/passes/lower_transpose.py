"""Loop order of maps that read along another axis than they write.

With the written axis innermost, each vector of such a map gathers from as many cache lines as it
has lanes, and nearly all that was fetched is gone when the next row needs it.  Looping over the
axis that is contiguous in the source inside the vector axis uses each line up while it is near.
Imports: kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from graphc.kernel import Access, Expr, LoopKernel, Stage

NEAR_LINES = 256
"""Lines one row of gathers may touch and still find them in the first cache for the next row."""

NARROW = 8
"""Below this many elements, a written axis is looped over inside vectors along the other axis."""


def by_columns(kernel: LoopKernel) -> LoopKernel:
    """The kernel with a store loop over its sources' contiguous axis, if that is a better order.

    Each element is computed as before, so only the order of the writes changes.
    """
    if kernel.checks or kernel.ragged or len(kernel.stages) != 1 or len(kernel.par) < 2:
        return kernel
    (stage,) = kernel.stages
    if stage.red or stage.accs or any(s.index is not None or s.add for s in stage.stores):
        return kernel
    axis = _source_axis(kernel, stage)
    if axis is None:
        return kernel
    extent, size = kernel.axes[kernel.vec], kernel.axes[axis]
    if isinstance(size, int) and size < 16:
        return kernel
    inner, vec = axis, kernel.vec
    if isinstance(extent, int) and extent <= NEAR_LINES:
        if extent >= NARROW:
            return kernel
        inner, vec = vec, inner
    others = tuple(a for a in kernel.par if a not in (inner, vec))
    return replace(kernel, par=(*others, vec), vec=vec, stages=(replace(stage, red=(inner,)),))


def _source_axis(kernel: LoopKernel, stage: Stage) -> int | None:
    """The axis along which most loads that are strided along the vector axis are contiguous."""
    contiguous = 0
    axes: Counter[int] = Counter()
    for access in _loads([store.expr for store in stage.stores]):
        strides = {a: t.stride for t in access.terms for a, c in t.axes if c == 1}
        if kernel.vec not in strides:
            continue
        if strides[kernel.vec] == 1:
            contiguous += 1
        else:
            axes.update(a for a, stride in strides.items() if stride == 1)
    if not axes or axes.total() < contiguous:
        return None
    return axes.most_common(1)[0][0]


def _loads(roots: Sequence[Expr]) -> Iterator[Access]:
    """The places that expressions load from, each once."""
    found: dict[Access, None] = {}
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        expr = stack.pop()
        if id(expr) in seen:
            continue
        seen.add(id(expr))
        if expr.op == "load":
            found[expr.value[0]] = None
        stack.extend(expr.args)
    yield from found
