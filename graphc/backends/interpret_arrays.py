"""Kernels interpreted on whole arrays: what `interpret` says of one element, said of all at once.

Floats are computed in float64 whatever their dtype, so the results are what the kernel means
before roundings.  With a `Rounding` each operation is moved by the error of its dtype, to see how
far roundings may reach.  Buffers are one-dimensional arrays, float32 ones widened to float64.
Imports: array_operations, scalars, interpret, kernel, dims, types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.array_operations import (
    BASIC,
    EXACT,
    OPERATIONS,
    REDUCE,
    RUNNING,
    accumulated,
    convert,
    filter_taps,
    in_range,
    magnitude,
    widen,
)
from graphc.backends.interpret import Fault, as_i64, initial
from graphc.backends.scalars import NUMPY_OPS
from graphc.dims import Dim, DimLike
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
from graphc.types import DType, float32
from graphc.winograd import FILTERINGS, TAPS

Array = np.ndarray[Any, Any]

CELLS = 1 << 21
"""Iterations interpreted at once; larger kernels are cut along an axis."""


ROUNDING = {"f32": 2.0**-24, "f64": 2.0**-53}
"""The error of one rounding, relative to the result."""


class OutsideBufferError(Exception):
    """A kernel that reads or writes an element its buffer does not have."""


class Rounding:
    """Moves results by the error of their dtype, up or down at random."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def moved(self, x: Array, dtype: DType, scale: Any = None) -> Array:
        """x with an error of one rounding of itself, or of `scale`."""
        level = ROUNDING.get(dtype.name)
        if level is None:
            return x
        sign = self._rng.integers(0, 2, np.shape(x)) * 2.0 - 1.0
        error = level * sign * self._rng.uniform(0.5, 1.0, np.shape(x))
        with np.errstate(all="ignore"):
            result = x + error * (np.abs(x) if scale is None else scale)
        return np.where(np.isfinite(x), result, x)


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


class Grid:
    """Iterations: one array dimension per kernel axis, of size 1 for axes that do not move."""

    def __init__(
        self,
        axes: int,
        buffers: Sequence[Array],
        sizes: Mapping[Dim, int],
        rounding: Rounding | None,
    ) -> None:
        self.rank = axes
        self.buffers = buffers
        self.sizes = sizes
        self.rounding = rounding
        self.index: dict[int, Array] = {}
        self.mask: Array | None = None  # iterations that exist, where not all do
        self.accs: dict[int, Array] = {}
        self.faults: list[tuple[int, Array, Array]] = []
        self.known: dict[int, Array] = {}

    def size(self, d: DimLike) -> int:
        return d if isinstance(d, int) else self.sizes[d]

    def axis(self, axis: int, start: int, stop: int) -> None:
        """Let an axis run over [start, stop)."""
        shape = [1] * self.rank
        shape[axis] = max(0, stop - start)
        self.index[axis] = np.arange(start, max(start, stop), dtype=np.int64).reshape(shape)

    def shape(self, axes: Sequence[int]) -> tuple[int, ...]:
        """The shape of iterations over some axes."""
        return tuple(self.index[a].size if a in axes else 1 for a in range(self.rank))

    # ---- addresses

    def locate(self, access: Access) -> tuple[Array, Array | None]:
        """The elements an access means, and where it is inside its guards (None: everywhere)."""
        position = np.zeros((1,) * self.rank, np.int64) + self.size(access.offset)
        inside = self.mask
        for term in access.terms:
            number: Array = np.zeros((1,) * self.rank, np.int64) + self.size(term.shift)
            for axis, coefficient in term.axes:
                if coefficient != 0:
                    number = number + self.size(coefficient) * self.index[axis]
            quotient = number // term.div
            if term.limit is not None:
                here = (number % term.div == 0) & (quotient >= 0)
                here = here & (quotient < self.size(term.limit))
                inside = here if inside is None else inside & here
            position = position + quotient * self.size(term.stride)
        return position, inside

    def read(self, buf: int, position: Array, inside: Array | None, fill: Any) -> Array:
        buffer = self.buffers[buf]
        if inside is None:
            self._require(buf, position, "reads")
            return buffer[position]
        position, inside = np.broadcast_arrays(position, inside)
        self._require(buf, position[inside], "reads")
        if not buffer.size:
            return np.full(position.shape, fill, buffer.dtype)
        return np.where(inside, buffer[np.where(inside, position, 0)], buffer.dtype.type(fill))

    def _require(self, buf: int, position: Array, verb: str) -> None:
        if not position.size:
            return
        low, high = int(position.min()), int(position.max())
        if low < 0 or high >= self.buffers[buf].size:
            at = low if low < 0 else high
            raise OutsideBufferError(
                f"the kernel {verb} element {at} of argument {buf}, "
                f"which has {self.buffers[buf].size} elements"
            )

    # ---- expressions

    def value(self, expr: Expr) -> Array:
        """The value of an expression in every iteration."""
        stack = [expr]
        while stack:
            e = stack[-1]
            waiting = [a for a in e.args if id(a) not in self.known]
            if waiting:
                stack.extend(waiting)
                continue
            if id(e) not in self.known:
                self.known[id(e)] = self._compute(e, [self.known[id(a)] for a in e.args])
            stack.pop()
        return self.known[id(expr)]

    def _compute(self, e: Expr, args: list[Array]) -> Array:
        if e.op == "load":
            access, fill = e.value
            return self.read(access.buf, *self.locate(access), fill)
        if e.op == "gather":
            access, extent = e.value
            position, inside = self.locate(access)
            here = (args[0] >= 0) & (args[0] < self.size(extent))
            inside = here if inside is None else here & inside
            return self.read(access.buf, position + args[0], inside, 0)
        if e.op == "const":
            return self._scalar(e.value, e.dtype)
        if e.op == "axis":
            return self.index[e.value]
        if e.op == "size":
            return self._scalar(self.size(e.value), e.dtype)
        if e.op == "acc":
            return self.accs[e.value]
        if e.op == "check":
            bad = ~np.asarray(args[1], bool)
            if self.mask is not None:
                bad = bad & self.mask
            if bad.any():
                self.faults.append((e.value, bad, args[0]))
            return args[0]
        return self._operation(e, args)

    def _scalar(self, number: Any, dtype: DType) -> Array:
        """A number as the dtype holds it."""
        if dtype.is_integer:
            bits = int(number) & ((1 << dtype.bits) - 1)
            made = np.array(bits, f"u{dtype.itemsize}").astype(dtype.numpy)
        else:
            made = np.array(number, dtype.numpy)
        return widen(made).reshape((1,) * self.rank)

    def _operation(self, e: Expr, args: list[Array]) -> Array:
        if e.op == "cast":
            result = convert(args[0], e.args[0].dtype, e.dtype)
            inexact = e.dtype.is_float and e.args[0].dtype is not e.dtype
            return self._moved(result, e.dtype) if inexact else result
        if e.op == "bitcast":
            exact = args[0].astype(e.args[0].dtype.numpy)
            return widen(exact.view(e.dtype.numpy))
        function = OPERATIONS.get(e.op) or NUMPY_OPS[e.op]
        result = np.asarray(function(*args))
        wanted = np.dtype(np.float64) if e.dtype.is_float else e.dtype.numpy
        result = result.astype(wanted, copy=False)
        if e.dtype is float32:
            result = in_range(result)
        if e.op in EXACT or not e.dtype.is_float:
            return result
        if e.op not in BASIC:  # functions have errors of a few units
            result = self._moved(result, e.dtype, 4 * np.abs(result))
        return self._moved(result, e.dtype)

    def _moved(self, x: Array, dtype: DType, scale: Any = None) -> Array:
        return x if self.rounding is None else self.rounding.moved(x, dtype, scale)

    # ---- stores

    def store_all(self, stores: Sequence[Store], order: Sequence[int]) -> None:
        """The stores of all iterations, in the order of `order`, the outermost axis first."""
        made = []
        for s in stores:
            position, inside = self.locate(s.access)
            if s.index is not None:
                element = self.value(s.index)
                position = position + element
                if s.extent is not None:
                    here = (element >= 0) & (element < self.size(s.extent))
                    inside = here if inside is None else inside & here
            made.append((s, position, inside, self.value(s.expr)))
        shape = self.shape(order)
        swap = [*order, *(a for a in range(self.rank) if a not in order)]
        for s, position, inside, value in made:
            at = np.broadcast_to(position, shape).transpose(swap).reshape(-1)
            x = np.broadcast_to(value, shape).transpose(swap).reshape(-1)
            if inside is not None:
                keep = np.broadcast_to(inside, shape).transpose(swap).reshape(-1)
                at, x = at[keep], x[keep]
            self._require(s.access.buf, at, "writes")
            self._write(s, at, x)
        self.known.clear()

    def _write(self, s: Store, at: Array, x: Array) -> None:
        buffer = self.buffers[s.access.buf]
        if not s.add:
            buffer[at] = x
        elif buffer.dtype.kind == "b":
            np.logical_or.at(buffer, at, x)
        else:
            scale = np.zeros(buffer.shape)
            np.add.at(buffer, at, x)
            if self.rounding is not None and buffer.dtype.kind == "f":
                np.add.at(scale, at, np.abs(x))
                times = np.bincount(at, minlength=buffer.size)[: buffer.size]
                buffer[:] = self._moved(buffer, s.expr.dtype, 0.25 * scale * times)


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
