"""Whether a kernel whose result lies over an operand overwrites elements it still has to read.

Goes over every iteration; `passes.in_place`, which it judges, reasons about index maps instead.
Imports: kernel, backends.interpret_arrays, dims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.interpret_arrays import Grid
from graphc.dims import Dim
from graphc.kernel import Access, Contraction, Expr, Kernel, LoopKernel, Store

Array = np.ndarray[Any, Any]


def overwritten_early(kernel: Kernel, old: int, new: int, sizes: Mapping[Dim, int]) -> bool:
    """Whether `new` in the memory of `old` would spoil an element that is read later.

    Iterations over parallel axes may run in any order and at the same time.  Within one, loops and
    stages run in order, and every expression is evaluated before a store.
    """
    if isinstance(kernel, Contraction):
        if old in (kernel.a.buf, kernel.b.buf):
            return True
        par = tuple(range(len(kernel.axes) - len(kernel.k)))
        stages = [((), list(kernel.stores), [s.expr for s in kernel.stores])]
        return _conflicts(kernel, par, stages, old, new, sizes)
    listed = []
    for stage in kernel.stages:
        expressions = [a.expr for a in stage.accs] + [s.expr for s in stage.stores]
        expressions += [s.index for s in stage.stores if s.index is not None]
        listed.append((stage.red, list(stage.stores), expressions))
    return _conflicts(kernel, kernel.par, listed, old, new, sizes)


_Stage = tuple[tuple[int, ...], list[Store], list[Expr]]


def _conflicts(
    kernel: Kernel,
    par: Sequence[int],
    stages: Sequence[_Stage],
    old: int,
    new: int,
    sizes: Mapping[Dim, int],
) -> bool:
    grid = Grid(len(kernel.axes), (), sizes, None)
    extents = [grid.size(d) for d in kernel.axes]
    if isinstance(kernel, LoopKernel):
        for ragged in kernel.ragged:
            extents[ragged.axis] = min(grid.size(ragged.chunk), grid.size(ragged.total))
    for a in par:
        grid.axis(a, 0, extents[a])
    writer: dict[int, tuple[int, int, int]] = {}  # element -> parallel iteration, stage, step
    reads: list[tuple[Array, Array, int, Array]] = []
    for number, (red, stores, expressions) in enumerate(stages):
        for a in red:
            grid.axis(a, 0, extents[a])
        shape = grid.shape((*par, *red))
        outer, inner = _numbers(grid, par, shape), _numbers(grid, red, shape)
        for access in _loads(expressions, old):
            if access is None:
                return True  # read at computed positions: nothing is known
            position, inside = grid.locate(access)
            keep = np.broadcast_to(True if inside is None else inside, shape).reshape(-1)
            at = np.broadcast_to(position, shape).reshape(-1)[keep]
            reads.append((at, outer[keep], number, inner[keep]))
        for store in stores:
            if store.access.buf == old:
                return True
            if store.access.buf != new:
                continue
            if store.index is not None or store.add:
                return True
            position, inside = grid.locate(store.access)
            keep = np.broadcast_to(True if inside is None else inside, shape).reshape(-1)
            at = np.broadcast_to(position, shape).reshape(-1)[keep]
            for p, o, i in zip(
                at.tolist(), outer[keep].tolist(), inner[keep].tolist(), strict=True
            ):
                writer.setdefault(p, (o, number, i))
        for a in red:
            del grid.index[a]
    for at, outer, number, inner in reads:
        for p, o, i in zip(at.tolist(), outer.tolist(), inner.tolist(), strict=True):
            by = writer.get(p)
            if by is not None and (by[0] != o or by[1:] < (number, i)):
                return True
    return False


def _numbers(grid: Grid, axes: Sequence[int], shape: tuple[int, ...]) -> Array:
    """The row-major number of each iteration over some axes."""
    number: Array = np.zeros((1,) * grid.rank, np.int64)
    for a in axes:
        number = number * grid.index[a].size + grid.index[a]
    return np.broadcast_to(number, shape).reshape(-1)


def _loads(expressions: Sequence[Expr], buf: int) -> list[Access | None]:
    """Where expressions read a buffer; None for computed positions."""
    found: list[Access | None] = []
    seen: set[int] = set()
    stack = list(expressions)
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        stack.extend(e.args)
        if e.op in ("load", "gather") and e.value[0].buf == buf:
            found.append(e.value[0] if e.op == "load" else None)
    return found
