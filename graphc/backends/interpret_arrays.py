"""Kernels interpreted on whole arrays: what `interpret` says of one element, said of all at once.

Floats are computed in float64 whatever their dtype, so the results are what the kernel means
before roundings.  With a `Rounding` each operation is moved by the error of its dtype, to see how
far roundings may reach.  Buffers are one-dimensional arrays, float32 ones widened to float64.
Imports: interpret_grid, array_operations, scalars, interpret, kernel, dims, types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.array_operations import (
    REDUCE,
    RUNNING,
    accumulated,
    filter_taps,
    in_range,
    magnitude,
)
from graphc.backends.interpret import Fault, as_i64, initial
from graphc.backends.interpret_grid import ROUNDING, Grid, OutsideBufferError, Rounding
from graphc.dims import Dim
from graphc.kernel import (
    VIRTUAL_LANES,
    Access,
    Accumulator,
    Contraction,
    Expr,
    Kernel,
    LoopKernel,
    Stage,
    Store,
)
from graphc.types import float32
from graphc.winograd import FILTERINGS, TAPS

Array = np.ndarray[Any, Any]

__all__ = ["CELLS", "ROUNDING", "Grid", "OutsideBufferError", "Rounding", "interpret"]

CELLS = 1 << 21
"""Iterations interpreted at once; larger kernels are cut along an axis."""


def interpret(
    kernel: Kernel,
    buffers: Sequence[Array],
    sizes: Mapping[Dim, int],
    rounding: Rounding | None = None,
) -> list[Fault]:
    """Run a kernel on flat buffers; returns the faults of its checks.

    Raises OutsideBufferError where it touches what is not in a buffer.
    """
    with np.errstate(all="ignore"):
        if isinstance(kernel, Contraction):
            return _Contraction(kernel, buffers, sizes, rounding).run()
        return _Loops(kernel, buffers, sizes, rounding).run()


class _Loops(Grid):
    def __init__(
        self,
        kernel: LoopKernel,
        buffers: Sequence[Array],
        sizes: Mapping[Dim, int],
        rounding: Rounding | None,
    ) -> None:
        super().__init__(len(kernel.axes), buffers, sizes, rounding)
        self.kernel = kernel
        self.extents = [self.size(d) for d in kernel.axes]
        for ragged in kernel.ragged:
            self.extents[ragged.axis] = min(self.size(ragged.chunk), self.size(ragged.total))

    def run(self) -> list[Fault]:
        found: list[Fault] = []
        for start, stop, axis in self._pieces():
            for a in self.kernel.par:
                self.axis(a, 0, self.extents[a])
            if axis >= 0:
                self.axis(axis, start, stop)
            if all(self.index[a].size for a in self.kernel.par):
                found += self._piece()
        return found

    def _pieces(self) -> list[tuple[int, int, int]]:
        """The largest parallel axis cut so that a piece has not too many iterations."""
        red = max(
            (math.prod(max(1, self.extents[a]) for a in s.red) for s in self.kernel.stages),
            default=1,
        )
        total = red * math.prod(max(1, self.extents[a]) for a in self.kernel.par)
        if total <= CELLS or not self.kernel.par:
            return [(0, 0, -1)]
        axis = max(self.kernel.par, key=lambda a: self.extents[a])
        step = max(1, self.extents[axis] * CELLS // total)
        n = self.extents[axis]
        return [(i, min(n, i + step), axis) for i in range(0, n, step)]

    def _piece(self) -> list[Fault]:
        first = 0
        found: list[Fault] = []
        self.accs.clear()
        for stage in self.kernel.stages:
            self._stage(stage, first)
            first += len(stage.accs)
            found += self._faults()
        return found

    def _stage(self, stage: Stage, first: int) -> None:
        self.known.clear()
        for a in stage.red:
            self.axis(a, 0, self.extents[a])
        self.mask = self._existing(stage)
        order = (*self.kernel.par, *stage.red)
        running = {a.value for s in stage.stores for a in _accs_of(s)}
        finals: dict[int, Array] = {}
        for i, acc in enumerate(stage.accs):
            x = self.value(acc.expr)
            finals[first + i] = self._reduced(acc, x, stage)
            if first + i in running:
                self.accs[first + i] = self._prefixes(acc, x, stage)
        if stage.stores:
            self.store_all(stage.stores, order)
        self.accs.update(finals)
        for a in stage.red:
            del self.index[a]
        self.mask = None

    def _existing(self, stage: Stage) -> Array | None:
        """Which iterations of a ragged axis exist."""
        mask: Array | None = None
        for ragged in self.kernel.ragged:
            if ragged.axis in stage.red:
                chunk, total = self.size(ragged.chunk), self.size(ragged.total)
                rows = total - self.index[ragged.chunk_axis] * chunk
                here = self.index[ragged.axis] < np.minimum(chunk, rows)
                mask = here if mask is None else mask & here
        return mask

    def _flat(self, acc: Accumulator, x: Array, stage: Stage) -> tuple[Array, tuple[int, ...]]:
        """Values with the reduced axes last, as one; iterations that do not exist are neutral."""
        order = (*self.kernel.par, *stage.red)
        if self.mask is not None:
            x = np.where(self.mask, x, initial(acc))
        x = np.broadcast_to(x, self.shape(order))
        kept = [a for a in range(self.rank) if a not in stage.red]
        moved = x.transpose([*kept, *stage.red])
        shape = tuple(1 if a in stage.red else x.shape[a] for a in range(self.rank))
        steps = math.prod(x.shape[a] for a in stage.red)
        return moved.reshape((*moved.shape[: len(kept)], steps)), shape

    def _reduced(self, acc: Accumulator, x: Array, stage: Stage) -> Array:
        flat, shape = self._flat(acc, x, stage)
        if not flat.shape[-1]:
            return np.full(shape, 0 if "arg" in acc.op else initial(acc), accumulated(acc))
        result = np.asarray(REDUCE[acc.op](flat)).astype(accumulated(acc), copy=False)
        if acc.op in ("sum", "prod") and acc.dtype.is_float and self.rounding is not None:
            steps = flat.shape[-1]
            if self.kernel.vec in stage.red:
                steps = -(-steps // VIRTUAL_LANES) + VIRTUAL_LANES.bit_length()
            scale = max(1.0, 0.25 * steps) * np.abs(flat).sum(-1)
            if acc.op == "prod":
                scale = flat.shape[-1] * np.abs(result)
            result = self._moved(result, acc.dtype, scale)
        if acc.dtype is float32 and acc.op in ("sum", "prod"):
            result = in_range(result)
        return result.reshape(shape)

    def _prefixes(self, acc: Accumulator, x: Array, stage: Stage) -> Array:
        """The accumulator after each step."""
        flat, _ = self._flat(acc, x, stage)
        order = (*self.kernel.par, *stage.red)
        kept = [a for a in range(self.rank) if a not in stage.red]
        result = RUNNING[acc.op](flat).astype(accumulated(acc), copy=False)
        if acc.op in ("sum", "prod") and acc.dtype.is_float and self.rounding is not None:
            scale = np.cumsum(np.abs(flat), -1) if acc.op == "sum" else np.abs(result)
            result = self._moved(result, acc.dtype, np.arange(1, flat.shape[-1] + 1) * scale)
        shape = self.shape(order)
        back = np.argsort([*kept, *stage.red])
        apart = result.reshape([shape[a] for a in (*kept, *stage.red)])
        return apart.transpose(back)

    def _faults(self) -> list[Fault]:
        found: list[Fault] = []
        par = self.kernel.par
        for number, bad, value in self.faults:
            shape = np.broadcast_shapes(bad.shape, value.shape, self.shape(par))
            where = np.argwhere(np.broadcast_to(bad, shape))
            values = np.broadcast_to(value, shape)
            for at in where[:64]:
                position = 0
                for a in par:
                    start = int(self.index[a].reshape(-1)[0])
                    position = position * self.extents[a] + start + int(at[a])
                found.append((number, position, as_i64(values[tuple(at)])))
        self.faults.clear()
        return found


def _accs_of(store: Store) -> list[Expr]:
    found: list[Expr] = []
    seen: set[int] = set()
    stack = [store.expr] if store.index is None else [store.expr, store.index]
    while stack:
        e = stack.pop()
        if id(e) not in seen:
            seen.add(id(e))
            stack.extend(e.args)
            if e.op == "acc":
                found.append(e)
    return found


class _Contraction(Grid):
    def __init__(
        self,
        kernel: Contraction,
        buffers: Sequence[Array],
        sizes: Mapping[Dim, int],
        rounding: Rounding | None,
    ) -> None:
        super().__init__(len(kernel.axes), buffers, sizes, rounding)
        self.kernel = kernel
        self.extents = [self.size(d) for d in kernel.axes]

    def run(self) -> list[Fault]:
        k = self.kernel
        outer = len(self.extents) - len(k.k)
        cut = [range(n) for n in self.extents]
        rows = [a for a in range(len(k.batch) + len(k.m)) if self.extents[a] > 1]
        inner = math.prod(self.extents[outer:])
        cost = max(1, inner) * math.prod(self.extents[:outer]) // max(1, self._columns())
        axis = max(rows, key=lambda a: self.extents[a]) if rows else -1
        step = self.extents[axis] if axis >= 0 else 1
        if cost > CELLS and axis >= 0:
            step = max(1, self.extents[axis] * CELLS // cost)
        for start in range(0, self.extents[axis] if axis >= 0 else 1, max(1, step)):
            for a, r in enumerate(cut):
                self.axis(a, r.start, r.stop)
            if axis >= 0:
                self.axis(axis, start, min(self.extents[axis], start + step))
            if all(self.index[a].size for a in range(outer)):
                self._piece(outer)
        return []

    def _packed(self, batch: Sequence[int]) -> Array:
        """B, packed in panels, as matrices of k by n: those of the rows of the batch at hand."""
        panel, columns = self.kernel.panel, self._columns()
        depth = math.prod(self.extents[len(self.extents) - len(self.kernel.k) :])
        if self.kernel.winograd:
            depth = depth // (TAPS * TAPS) * FILTERINGS[self.kernel.winograd].points
        count = math.prod(self.extents[a] for a in batch)
        panels = -(-columns // panel)
        if self.buffers[1].size < count * panels * depth * panel:
            raise OutsideBufferError("it reads packed panels outside of argument 1")
        x = self.buffers[1][: count * panels * depth * panel].reshape(count, panels, depth, panel)
        wide = x.transpose(0, 2, 1, 3).reshape(count, depth, panels * panel)[:, :, :columns]
        at: Array = np.zeros(1, np.int64)
        for a in batch:
            at = (at[:, None] * self.extents[a] + self.index[a].reshape(-1)).reshape(-1)
        return filter_taps(wide[at], self.kernel.winograd)

    def _columns(self) -> int:
        outer = len(self.extents) - len(self.kernel.k)
        return math.prod(self.extents[outer - len(self.kernel.n) : outer])

    def _piece(self, outer: int) -> None:
        """Products of some rows: batch and m of A times batch and n of B, over k."""
        k = self.kernel
        self.known.clear()
        b, n = len(k.batch), outer - len(k.n)
        batch, rows, columns = range(b), range(b, n), range(n, outer)
        inner = range(outer, self.rank)
        size = {part: [self.index[a].size for a in part] for part in (batch, rows, columns, inner)}

        def matrix(access: Access, axes: Sequence[int], shape: tuple[int, ...]) -> Array:
            x = self.read(access.buf, *self.locate(access), 0)
            whole = tuple(self.index[a].size if a in axes else 1 for a in range(self.rank))
            return np.broadcast_to(x, whole).reshape(shape)

        count, left, right, depth = (math.prod(s) for s in size.values())
        x = matrix(k.a, (*batch, *rows, *inner), (count, left, depth))
        if k.panel:
            y = self._packed(batch)
        else:
            y = matrix(k.b, (*batch, *columns, *inner), (count, right, depth)).transpose(0, 2, 1)
        total = np.matmul(x, y)
        if self.rounding is not None:
            scale = magnitude(x, y, k.winograd) * max(1.0, 0.25 * depth)
            total = self.rounding.moved(np.where(np.isnan(scale), scale, total), k.dtype, scale)
        if k.dtype is float32:
            total = in_range(total)
        self.accs[0] = total.reshape(self.shape(range(outer)))
        for a in inner:
            del self.index[a]
        self.store_all(k.stores, tuple(range(outer)))
