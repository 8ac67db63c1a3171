"""Building the loop nest of one operator in the kernel IR.

An operator of kind 'nest' states its meaning to the compiler as a function `lower(nest, **attrs)`
that calls this builder.  Example, a 2×2 max pooling of x[N,H,W,C] into y[N,H/2,W/2,C]:

    def lower(nest):
        n, h, w, c = nest.parallel()                  # the axes of the first output
        i, j = nest.reduce(2), nest.reduce(2)
        x = nest.load(0, [at(n), at((h, 2), i), at((w, 2), j), at(c)])
        nest.result(0, nest.accumulate("max", x, over=(i, j)))

Imports: kernel, types, dims, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from graphc.dims import DimLike, add, floordiv, mul
from graphc.errors import RunError
from graphc.kernel import Access, Accumulator, Expr, Stage, Store, Term
from graphc.types import DType, Shape, TensorType, int64


@dataclass(frozen=True)
class Index:
    """The index along one dimension: `(sum(coef * axis) + shift) / div`.

    guarded: outside [0, size of the dimension), or not divisible by div, a load yields its fill.
    """

    axes: tuple[tuple[int, DimLike], ...]
    shift: DimLike = 0
    div: int = 1
    guarded: bool = False


def at(
    *axes: int | tuple[int, DimLike], shift: DimLike = 0, div: int = 1, guarded: bool = False
) -> Index:
    """An affine index: `at(h)`, `at((h, stride), i, shift=-pad, guarded=True)`."""
    pairs = tuple(a if isinstance(a, tuple) else (a, 1) for a in axes)
    return Index(pairs, shift, div, guarded or div != 1)


@lru_cache(1 << 14)
def contiguous(shape: Shape) -> tuple[DimLike, ...]:
    """Element strides of a row-major array; the same tuple for the same shape."""
    strides: list[DimLike] = []
    step: DimLike = 1
    for d in reversed(shape):
        strides.append(step)
        step = mul(step, d)
    return tuple(reversed(strides))


class Nest:
    """Collects axes, stages and results.  Buffers are numbered inputs first, then outputs."""

    def __init__(self, inputs: Sequence[TensorType], outputs: Sequence[TensorType]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.axes: list[DimLike] = []
        self.par: tuple[int, ...] = ()
        self.places: tuple[tuple[tuple[int, DimLike], ...], ...] = ()
        """The index along each dimension of the results, as (parallel axis, coefficient) pairs."""
        self.stages: list[Stage] = []
        self.results: dict[int, Expr] = {}
        self.checks: list[tuple[type[RunError], str]] = []
        self._accs = 0

    def shape_of(self, operand: int) -> Shape:
        shape = self.inputs[operand].shape
        assert shape is not None
        return shape

    def parallel(self, shape: Sequence[DimLike] | None = None) -> tuple[int, ...]:
        """The parallel axes: those of the first output, or of the shape given.  Call once."""
        if shape is None:
            shape = self.outputs[0].shape
            assert shape is not None
        self.par = tuple(range(len(shape)))
        self.places = tuple(((a, 1),) for a in self.par)
        self.axes.extend(shape)
        return self.par

    def parallel_pieces(self, pieces: Sequence[int]) -> tuple[tuple[int, int | None], ...]:
        """Parallel axes over the first output with dimension d cut into pieces of `pieces[d]`.

        Returns (axis over the pieces, axis within one or None) for each dimension; a size must be
        a multiple of its piece.  Call once.
        """
        shape = self.outputs[0].shape
        assert shape is not None
        found: list[tuple[int, int | None]] = []
        places: list[tuple[tuple[int, DimLike], ...]] = []
        for size, piece in zip(shape, pieces, strict=True):
            axis = len(self.axes)
            self.axes.append(floordiv(size, piece))
            if piece == 1:
                found.append((axis, None))
                places.append(((axis, 1),))
                continue
            self.axes.append(piece)
            found.append((axis, axis + 1))
            places.append(((axis, piece), (axis + 1, 1)))
        self.par = tuple(range(len(self.axes)))
        self.places = tuple(places)
        return tuple(found)

    def reduce(self, extent: DimLike) -> int:
        """A new axis to loop over inside a stage."""
        self.axes.append(extent)
        return len(self.axes) - 1

    def axis(self, axis: int) -> Expr:
        """An axis's index as an i64 expression."""
        return Expr("axis", (), axis, int64)

    def size(self, d: DimLike, dtype: DType = int64) -> Expr:
        """A size as an expression."""
        if isinstance(d, int):
            return Expr("const", (), d, dtype)
        return Expr("size", (), d, dtype)

    def load(self, operand: int, index: Sequence[Index], fill: float = 0) -> Expr:
        """Element of an input at one index per dimension."""
        access = self._access(operand, self.shape_of(operand), index)
        return Expr("load", (), (access, fill), self.inputs[operand].dtype)

    def gather(self, operand: int, index: Sequence[Index | Expr]) -> Expr:
        """Element of an input where some indices are computed (i64; reads 0 outside its axis)."""
        shape = self.shape_of(operand)
        strides = contiguous(shape)
        fixed = [Index((), 0) if isinstance(i, Expr) else i for i in index]
        offset: Expr | None = None
        extent: DimLike = 0
        for i, stride, size in zip(index, strides, shape, strict=True):
            if isinstance(i, Expr):
                part = i * self.size(stride)
                offset = part if offset is None else offset + part
                extent = add(extent, mul(add(size, -1), stride))
        assert offset is not None
        access = self._access(operand, shape, fixed)
        return Expr("gather", (offset,), (access, add(extent, 1)), self.inputs[operand].dtype)

    def accumulate(
        self, op: str, expr: Expr, over: Sequence[int], dtype: DType | None = None
    ) -> Expr:
        """Reduce `expr` over axes in a stage of its own; returns the accumulator."""
        (acc,) = self.accumulate_all([(op, expr)], over, dtype)
        return acc

    def accumulate_all(
        self, rules: Sequence[tuple[str, Expr]], over: Sequence[int], dtype: DType | None = None
    ) -> tuple[Expr, ...]:
        """Several reductions in one stage, over the same axes."""
        accs: list[Accumulator] = []
        results: list[Expr] = []
        for op, expr in rules:
            kind = int64 if op.startswith("arg") else dtype or expr.dtype
            accs.append(Accumulator(op, expr, kind))
            results.append(Expr("acc", (), self._accs, kind))
            self._accs += 1
        self.stages.append(Stage(tuple(over), tuple(accs)))
        return tuple(results)

    def running(self, op: str, expr: Expr, over: int, output: int, index: Sequence[Index]) -> None:
        """A prefix reduction: in each step of `over`, store the value accumulated so far."""
        acc = Expr("acc", (), self._accs, expr.dtype)
        self._accs += 1
        store = Store(self._output_access(output, index), acc)
        self.stages.append(Stage((over,), (Accumulator(op, expr, expr.dtype),), (store,)))

    def check(self, value: Expr, ok: Expr, error: type[RunError], message: str) -> Expr:
        """`value`; where `ok` is false the run fails with `error`.  `{value}` is filled in."""
        self.checks.append((error, message))
        return Expr("check", (value, ok), len(self.checks) - 1, value.dtype)

    def result(self, output: int, expr: Expr) -> None:
        """The output's element at the parallel axes; later operators may be fused behind it."""
        self.results[output] = expr

    def store(
        self,
        output: int,
        index: Sequence[Index | Expr],
        expr: Expr,
        over: Sequence[int] = (),
        add_to: bool = False,
    ) -> None:
        """Write (or add) to computed positions of an output, in a stage looping over `over`."""
        shape = self.outputs[output].shape
        assert shape is not None
        fixed = [Index((), 0) if isinstance(i, Expr) else i for i in index]
        access = self._output_access(output, fixed)
        dynamic: Expr | None = None
        extent: DimLike = 1
        for i, stride, size in zip(index, contiguous(shape), shape, strict=True):
            if isinstance(i, Expr):
                part = i * self.size(stride)
                dynamic = part if dynamic is None else dynamic + part
                extent = add(extent, mul(add(size, -1), stride))
        limit = None if dynamic is None else extent
        self.stages.append(Stage(tuple(over), (), (Store(access, expr, dynamic, limit, add_to),)))

    def _output_access(self, output: int, index: Sequence[Index]) -> Access:
        shape = self.outputs[output].shape
        assert shape is not None
        return self._access(len(self.inputs) + output, shape, index)

    def _access(self, buffer: int, shape: Shape, index: Sequence[Any]) -> Access:
        terms = []
        offset: DimLike = 0
        for i, stride, size in zip(index, contiguous(shape), shape, strict=True):
            if i.guarded:
                terms.append(Term(i.axes, stride, i.shift, i.div, size))
                continue
            offset = add(offset, mul(i.shift, stride))
            if i.axes:
                terms.append(Term(i.axes, stride))
        return Access(buffer, tuple(terms), offset)
