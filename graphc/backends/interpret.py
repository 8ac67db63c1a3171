"""A slow interpreter of kernels, straight from the words of the kernel IR: the oracle of backends.

Buffers are one-dimensional arrays.  Imports: scalars, kernel, dims, types.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphc.backends.scalars import NUMPY_OPS, Scalar, apply, cast, fma, wrap
from graphc.dims import Dim, DimLike
from graphc.kernel import Access, Accumulator, Contraction, Expr, LoopKernel, Stage, Store
from graphc.types import DType
from graphc.winograd import FILTERINGS

Array = np.ndarray[Any, Any]
Fault = tuple[int, int, int]
"""(check number, linear position over the parallel axes, value as i64)."""


class Cell:
    """One iteration: axis indices, accumulators and the values computed so far."""

    def __init__(
        self, buffers: Sequence[Array], sizes: Mapping[Dim, int], index: dict[int, int]
    ) -> None:
        self.buffers = buffers
        self.sizes = sizes
        self.index = index
        self.accs: dict[int, Scalar] = {}
        self.faults: list[tuple[int, int]] = []

    def size(self, d: DimLike) -> int:
        return d if isinstance(d, int) else self.sizes[d]

    def locate(self, access: Access) -> int | None:
        """The element an access means here, None where a guarded index is outside."""
        position = self.size(access.offset)
        for term in access.terms:
            number = self.size(term.shift)
            for axis, coefficient in term.axes:
                if coefficient != 0:
                    number += self.size(coefficient) * self.index[axis]
            quotient, rest = divmod(number, term.div)
            if term.limit is not None and (rest or not 0 <= quotient < self.size(term.limit)):
                return None
            number = quotient
            position += number * self.size(term.stride)
        return position

    def value(self, expr: Expr, known: dict[int, Scalar]) -> Scalar:
        """The value of an expression; `known` are the values computed since the last store."""
        found = known.get(id(expr))
        if found is None:
            args = [self.value(a, known) for a in expr.args]
            found = known[id(expr)] = self._compute(expr, args)
        return found

    def _compute(self, expr: Expr, args: list[Scalar]) -> Scalar:
        kind = expr.dtype.numpy.type
        if expr.op == "load":
            access, fill = expr.value
            at = self.locate(access)
            return kind(fill) if at is None else self._read(access.buf, at)
        if expr.op == "gather":
            access, extent = expr.value
            at = self.locate(access)
            inside = 0 <= int(args[0]) < self.size(extent)
            return (
                self._read(access.buf, at + int(args[0])) if at is not None and inside else kind(0)
            )
        if expr.op == "const":
            integer = expr.dtype.is_integer
            return wrap(int(expr.value), expr.dtype) if integer else kind(expr.value)
        if expr.op == "axis":
            return kind(self.index[expr.value])
        if expr.op == "size":
            return cast(np.int64(self.size(expr.value)), expr.dtype)
        if expr.op == "acc":
            return self.accs[expr.value]
        if expr.op == "check":
            if not args[1]:
                self.faults.append((expr.value, as_i64(args[0])))
            return args[0]
        return apply(expr.op, args, expr.dtype)

    def _read(self, buf: int, at: int) -> Scalar:
        assert 0 <= at < self.buffers[buf].size, f"buffer {buf} has no element {at}"
        return self.buffers[buf][at]

    def store_all(self, stores: Sequence[Store]) -> None:
        """The stores of one iteration: every value is computed before the first is written."""
        known: dict[int, Scalar] = {}
        made = [(s, self._target(s, known), self.value(s.expr, known)) for s in stores]
        for s, at, value in made:
            if at is None:
                continue
            old = self._read(s.access.buf, at)
            if s.add:
                how = "or" if old.dtype.kind == "b" else "add"
                value = apply(how, [old, value], s.expr.dtype)
            self.buffers[s.access.buf][at] = value

    def _target(self, store: Store, known: dict[int, Scalar]) -> int | None:
        at = self.locate(store.access)
        if store.index is None or at is None:
            return at
        element = int(self.value(store.index, known))
        if store.extent is not None and not 0 <= element < self.size(store.extent):
            return None
        return at + element


def as_i64(value: Scalar) -> int:
    if isinstance(value, np.floating):
        if np.isnan(value):
            return 0
        return int(np.clip(float(value), -(2.0**63), 2.0**63 - 1024))
    number = int(value)
    return number - (1 << 64) if number >> 63 == 1 else number


def interpret_loop_kernel(
    kernel: LoopKernel, buffers: Sequence[Array], sizes: Mapping[Dim, int]
) -> list[Fault]:
    """Run a loop kernel on flat buffers; returns the faults of its checks in order."""
    faults: list[Fault] = []
    for index in _iterate(kernel, kernel.par, {}, sizes):
        cell = Cell(buffers, sizes, index)
        first = 0
        for stage in kernel.stages:
            _run_stage(kernel, stage, first, cell)
            first += len(stage.accs)
        position = 0
        for axis in kernel.par:
            position = position * cell.size(kernel.axes[axis]) + index[axis]
        faults += [(number, position, value) for number, value in cell.faults]
    return faults


def _extent(
    kernel: LoopKernel, axis: int, index: Mapping[int, int], sizes: Mapping[Dim, int]
) -> int:
    def size(d: DimLike) -> int:
        return d if isinstance(d, int) else sizes[d]

    for ragged in kernel.ragged:
        if ragged.axis == axis:
            chunk = size(ragged.chunk)
            return max(0, min(chunk, size(ragged.total) - index[ragged.chunk_axis] * chunk))
    return size(kernel.axes[axis])


def _iterate(
    kernel: LoopKernel, axes: Sequence[int], outer: dict[int, int], sizes: Mapping[Dim, int]
) -> Iterator[dict[int, int]]:
    """Every combination of some axes, row-major, on top of the outer indices."""
    if not axes:
        yield outer
        return
    for i in range(_extent(kernel, axes[0], outer, sizes)):
        yield from _iterate(kernel, axes[1:], {**outer, axes[0]: i}, sizes)


def _run_stage(kernel: LoopKernel, stage: Stage, first: int, cell: Cell) -> None:
    outer = cell.index
    states = [initial(a) for a in stage.accs]
    best = [-1] * len(stage.accs)
    for index in _iterate(kernel, stage.red, dict(outer), cell.sizes):
        cell.index = index
        position = 0
        for axis in stage.red:
            position = position * cell.size(kernel.axes[axis]) + index[axis]
        known: dict[int, Scalar] = {}
        for i, acc in enumerate(stage.accs):
            x = cell.value(acc.expr, known)
            if acc.op in ("argmax", "argmin"):
                if best[i] < 0 or _better(acc.op, states[i], x):
                    states[i], best[i] = x, position
                cell.accs[first + i] = np.int64(best[i])
            else:
                states[i] = _COMBINE[acc.op](states[i], x, acc.dtype)
                cell.accs[first + i] = states[i]
        cell.store_all(stage.stores)
    cell.index = outer
    for i, acc in enumerate(stage.accs):
        arg = acc.op in ("argmax", "argmin")
        cell.accs[first + i] = np.int64(max(best[i], 0)) if arg else states[i]


def _better(op: str, old: Scalar, new: Scalar) -> bool:
    if np.isnan(old) or np.isnan(new):
        return bool(np.isnan(new) and not np.isnan(old))
    return bool(new > old) if op == "argmax" else bool(new < old)


def initial(acc: Accumulator) -> Scalar:
    """The value of a reduction over nothing."""
    dtype = acc.expr.dtype
    kind = dtype.numpy.type
    if acc.op in ("sum", "any"):
        return kind(0)
    if acc.op in ("prod", "all"):
        return kind(1)
    low, high = _range(dtype)
    return kind(low if acc.op in ("max", "argmax") else high)


def _range(dtype: DType) -> tuple[Any, Any]:
    if dtype.is_float:
        return -np.inf, np.inf
    if dtype.is_bool:
        return False, True
    info = np.iinfo(dtype.numpy)
    return info.min, info.max


def _wrapping(op: str) -> Any:
    def combine(a: Scalar, b: Scalar, dtype: DType) -> Scalar:
        if dtype.is_integer:
            return wrap(int(a) + int(b) if op == "add" else int(a) * int(b), dtype)
        return apply(op, [a, b], dtype)

    return combine


_COMBINE: dict[str, Any] = {
    "sum": _wrapping("add"),
    "prod": _wrapping("mul"),
    "max": lambda a, b, dtype: dtype.numpy.type(NUMPY_OPS["max"](a, b)),
    "min": lambda a, b, dtype: dtype.numpy.type(NUMPY_OPS["min"](a, b)),
    "any": lambda a, b, dtype: np.logical_or(a, b),
    "all": lambda a, b, dtype: np.logical_and(a, b),
}


def interpret_contraction(
    kernel: Contraction, buffers: Sequence[Array], sizes: Mapping[Dim, int]
) -> None:
    """Run a contraction on flat buffers: ascending k, one fused multiply-add each."""
    cell = Cell(buffers, sizes, {})
    extents = [cell.size(d) for d in kernel.axes]
    inner = len(kernel.k)
    outer = len(extents) - inner
    a = Expr("load", (), (kernel.a, 0), kernel.bufs[0])
    b = Expr("load", (), (kernel.b, 0), kernel.bufs[1])
    for position in itertools.product(*(range(n) for n in extents[:outer])):
        total = kernel.dtype.numpy.type(0)
        for k in itertools.product(*(range(n) for n in extents[outer:])):
            cell.index = dict(enumerate((*position, *k)))
            x = cast(cell.value(a, {}), kernel.dtype)
            if kernel.panel:
                y = _packed(kernel, buffers[1], extents, (*position, *k))
            else:
                y = cast(cell.value(b, {}), kernel.dtype)
            total = _multiply_add(x, y, total, kernel.dtype)
        cell.index = dict(enumerate(position))
        cell.accs[0] = total
        cell.store_all(kernel.stores)


def _packed(c: Contraction, buffer: Array, extents: Sequence[int], index: Sequence[int]) -> Scalar:
    """An element of B packed in panels: of transformed filters the tap they were made of."""
    if not c.winograd:
        found: Scalar = buffer[_packed_position(c, extents, index)]
        return found
    rule = FILTERINGS[c.winograd]
    column, (i, j, channel) = index[3], index[4:]
    start = column // c.panel * rule.points
    total = c.dtype.numpy.type(0)
    for p, q in itertools.product(range(rule.span), repeat=2):
        factor = c.dtype.numpy.type(rule.taps[i][p] * rule.taps[j][q])
        if factor != 0:
            step = (start + p * rule.span + q) * extents[-1] + channel
            total = _multiply_add(buffer[step * c.panel + column % c.panel], factor, total, c.dtype)
    return total


def _packed_position(c: Contraction, extents: Sequence[int], index: Sequence[int]) -> int:
    """Where an element of B lies that is packed in panels."""

    def flat(first: int, count: int) -> tuple[int, int]:
        at, size = 0, 1
        for i, extent in zip(index[first : first + count], extents[first:], strict=False):
            at, size = at * extent + i, size * extent
        return at, size

    batch, _ = flat(0, len(c.batch))
    column, columns = flat(len(c.batch) + len(c.m), len(c.n))
    step, steps = flat(len(extents) - len(c.k), len(c.k))
    panel = batch * -(-columns // c.panel) + column // c.panel
    return (panel * steps + step) * c.panel + column % c.panel


def _multiply_add(x: Scalar, y: Scalar, total: Scalar, dtype: DType) -> Scalar:
    if dtype.is_float:
        with np.errstate(all="ignore"):
            return fma(x, y, total)
    return wrap(int(x) * int(y) + int(total), dtype)
