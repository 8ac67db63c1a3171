"""The filters of narrow groups, turned so that a loop along channels finds them side by side.

    dx[h,4g+c] = sum over i, o of dy[h+1-i, 4g+o] * w[i, c, 4g+o]       c is the second last of w
    turned:      ...              dy[h+1-i, 4g+o] * t[i, o, 4g+c]       a step makes t from w

Imports: operands, lower_channels, contraction_maps, kernel, nest, dims.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc import dims
from graphc.contraction_maps import ContractionMaps
from graphc.dims import DimLike
from graphc.kernel import Access, Expr, LoopKernel, Stage, Store, Term
from graphc.location import Location
from graphc.nest import at, contiguous
from graphc.passes.lower_channels import WIDEST
from graphc.passes.operands import LoweredStep, Partial, Value


@dataclass(frozen=True)
class Source:
    """An operand's elements: `offset + sum(index * stride)` of a value, within a shape."""

    value: Value
    strides: tuple[DimLike, ...]
    offset: DimLike
    shape: tuple[DimLike, ...]


@dataclass(frozen=True)
class Turned:
    """A contraction's maps with another B, and the step that makes it."""

    maps: ContractionMaps
    source: Source
    step: LoweredStep


def turned(maps: ContractionMaps, b: Source, locs: tuple[Location, ...]) -> Turned | None:
    """B with the columns of all groups side by side, if they are few and apart."""
    if len(maps.batch) != 1 or len(maps.n) != 1 or any(i.guarded for i in maps.b):
        return None
    group, column = 0, 1 + len(maps.m)
    width = maps.n[0]
    if not isinstance(width, int) or not 1 <= width <= WIDEST:
        return None
    last = maps.b[-1]
    rows = [n for n, i in enumerate(maps.b) if i.axes == ((column, 1),) and i.shift == 0]
    if len(rows) != 1 or len(last.axes) != 2 or last.shift != 0:
        return None
    (first, depth), (inner, one) = last.axes
    if first != group or one != 1 or inner < column + 1 or depth == 1:
        return None
    row = rows[0]
    shape = list(b.shape)
    shape[row], shape[-1] = depth, dims.mul(maps.batch[0], width)
    index = list(maps.b)
    index[row], index[-1] = at(inner), at((group, width), column)
    made = Partial("filters turned", b.value.dtype, tuple(shape))
    kernel = _turn(b, made, row, (depth, maps.batch[0], width))
    source = Source(made, contiguous(tuple(shape)), 0, tuple(shape))
    step = LoweredStep(kernel, (b.value, made), (1,), "filters turned", locs)
    return Turned(replace(maps, b=tuple(index)), source, step)


def _turn(b: Source, made: Partial, row: int, sizes: tuple[DimLike, DimLike, int]) -> LoopKernel:
    depth, groups, width = sizes
    to = contiguous(made.shape)
    kept = [n for n in range(len(b.shape) - 1) if n != row]
    axes = [(b.shape[n], b.strides[n], to[n]) for n in kept]
    axes.append((depth, b.strides[-1], to[row]))
    axes.append((groups, dims.mul(b.strides[-1], depth), width))
    axes.append((width, b.strides[row], 1))
    loads = tuple(Term(((a, 1),), old) for a, (_, old, _) in enumerate(axes))
    stores = tuple(Term(((a, 1),), new) for a, (_, _, new) in enumerate(axes))
    load = Expr("load", (), (Access(0, loads, b.offset), 0), made.dtype)
    par = tuple(range(len(axes)))
    stage = Stage((), (), (Store(Access(1, stores), load),))
    bufs = (made.dtype, made.dtype)
    return LoopKernel(tuple(e for e, _, _ in axes), par, par[-1], bufs, (stage,))
