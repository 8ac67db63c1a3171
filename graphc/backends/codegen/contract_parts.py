"""Sizes of contractions cut into parts, in generated code.  Imports: text, dims."""

from __future__ import annotations

from graphc.backends.codegen.text import FunctionText
from graphc.dims import DimLike


def size_of(f: FunctionText, extents: tuple[DimLike, ...]) -> str:
    """The product of extents."""
    total = "1"
    for extent in extents:
        total = f.mul(total, f.dim(extent))
    return total


def ceildiv(f: FunctionText, size: str, unit: str | int) -> str:
    """How many units cover a size."""
    return f.udiv(f.add(size, f.sub(unit, 1)), unit)


def even_part(f: FunctionText, size: str, unit: int, index: str, parts: str) -> tuple[str, str]:
    """Part `index` of `parts` even ones of [0, size), cut at multiples of `unit`."""
    units = ceildiv(f, size, unit)
    start = f.udiv(f.mul(index, units), parts)
    stop = f.udiv(f.mul(f.add(index, 1), units), parts)
    return f.mul(start, unit), f.smin(f.mul(stop, unit), size)
