"""Expressions of a kernel, and what it reads and writes, on whole arrays of iterations.

Imports: array_operations, scalars, interpret, kernel, dims, types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.array_operations import (
    BASIC,
    EXACT,
    OPERATIONS,
    convert,
    in_range,
    widen,
)
from graphc.backends.scalars import NUMPY_OPS
from graphc.dims import Dim, DimLike
from graphc.kernel import (
    Access,
    Expr,
    Store,
)
from graphc.types import DType, float32

Array = np.ndarray[Any, Any]

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
