"""Rearrangements, named as in NumPy: moving axes, adding axes, stacking, turning.

All are compositions of views and `concat`.  Imports: ops.define, ops.index, ops.indexed, ops.join,
ops.shape, ops.sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.errors import GraphTypeError, ShapeError
from graphc.node import Tensor
from graphc.ops.create import iota
from graphc.ops.define import as_tensor, as_tensors, broadcast_shapes, normalize_axis
from graphc.ops.index import flip, getitem
from graphc.ops.indexed import take
from graphc.ops.join import concat
from graphc.ops.shape import broadcast_to, expand_dims, reshape, transpose
from graphc.ops.sizes import as_dims, dims_of

# ---- axes --------------------------------------------------------------------------------------


def ravel(x: Any) -> Tensor:
    """The elements of x in order, as a vector."""
    return reshape(x, (-1,))


def _axis_list(axes: int | Sequence[int], rank: int) -> list[int]:
    listed = [axes] if isinstance(axes, (int, np.integer)) else list(axes)
    found = [normalize_axis(a, rank) for a in listed]
    if len(set(found)) != len(found):
        raise ShapeError(f"an axis is repeated in {listed}")
    return found


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """x with the axes `source` at the positions `destination`; the others keep their order."""
    x = as_tensor(x)
    rank = len(x.dims)
    moved, places = _axis_list(source, rank), _axis_list(destination, rank)
    if len(moved) != len(places):
        raise ShapeError(f"moveaxis: {len(moved)} axes to {len(places)} places")
    order = [a for a in range(rank) if a not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return transpose(x, order)


def swapaxes(x: Any, axis1: int, axis2: int) -> Tensor:
    """x with two axes exchanged."""
    x = as_tensor(x)
    rank = len(x.dims)
    order = list(range(rank))
    a, b = normalize_axis(axis1, rank), normalize_axis(axis2, rank)
    order[a], order[b] = b, a
    return transpose(x, order)


def broadcast_arrays(*xs: Any) -> list[Tensor]:
    """The tensors broadcast to their common shape."""
    tensors = [as_tensor(x) for x in xs]
    shape = broadcast_shapes([t.dims for t in tensors])
    assert shape is not None
    return [broadcast_to(t, shape) for t in tensors]


# ---- at least so many axes ---------------------------------------------------------------------


def atleast_1d(x: Any) -> Tensor:
    """x, or the scalar x as a vector of one element."""
    x = as_tensor(x)
    return x if x.dims else expand_dims(x, 0)


def atleast_2d(x: Any) -> Tensor:
    """x with axes of size 1 put before its own, up to rank 2."""
    x = as_tensor(x)
    missing = max(2 - len(x.dims), 0)
    return expand_dims(x, tuple(range(missing))) if missing else x


def atleast_3d(x: Any) -> Tensor:
    """x with rank 3 at least: a vector [n] becomes [1,n,1] and a matrix [m,n] becomes [m,n,1]."""
    x = as_tensor(x)
    added = {0: (0, 1, 2), 1: (0, 2), 2: (2,)}.get(len(x.dims), ())
    return expand_dims(x, added) if added else x


# ---- stacking ----------------------------------------------------------------------------------


def vstack(xs: Sequence[Any]) -> Tensor:
    """The tensors on top of each other: joined along axis 0, vectors as rows."""
    return concat([atleast_2d(x) for x in as_tensors(*xs)], 0)


def hstack(xs: Sequence[Any]) -> Tensor:
    """The tensors side by side: joined along axis 1, vectors along axis 0."""
    tensors = [atleast_1d(x) for x in as_tensors(*xs)]
    if not tensors:
        raise ShapeError("hstack: no tensors")
    return concat(tensors, 0 if len(tensors[0].dims) == 1 else 1)


def dstack(xs: Sequence[Any]) -> Tensor:
    """The tensors one behind the other: joined along axis 2, after `atleast_3d`."""
    return concat([atleast_3d(x) for x in as_tensors(*xs)], 2)


def column_stack(xs: Sequence[Any]) -> Tensor:
    """The vectors as the columns of a matrix; matrices are joined along axis 1."""
    tensors = [atleast_1d(x) for x in as_tensors(*xs)]
    return concat([expand_dims(t, 1) if len(t.dims) == 1 else t for t in tensors], 1)


# ---- turning -----------------------------------------------------------------------------------


def fliplr(x: Any) -> Tensor:
    """x with the order of axis 1 reversed."""
    return flip(x, 1)


def flipud(x: Any) -> Tensor:
    """x with the order of axis 0 reversed."""
    return flip(x, 0)


def rot90(x: Any, k: int = 1, axes: Sequence[int] = (0, 1)) -> Tensor:
    """x turned by k quarter turns in the plane of two axes, from the first towards the second."""
    x = as_tensor(x)
    first, second = _axis_list(axes, len(x.dims))
    turns = k % 4
    if turns == 2:
        return flip(x, (first, second))
    if turns == 1:
        return swapaxes(flip(x, second), first, second)
    return flip(swapaxes(x, first, second), second) if turns else x


# ---- slice -------------------------------------------------------------------------------------


def slice_(x: Any, begin: Any, size: Any) -> Tensor:
    """The block of x of `size` elements per axis from `begin` (tf.slice); a size of -1 is the rest.

    begin   an int (or a size) per axis, or an integer tensor of one element per axis whose values
            are known only at run time: then an index outside is an IndexOutOfRangeError
    """
    result = as_tensor(x)
    sizes = as_dims(size, "slice: size")
    if len(sizes) != len(result.dims):
        raise ShapeError(f"slice: {len(sizes)} sizes for {result.type}")
    if not isinstance(begin, Tensor) or dims_of(begin) is not None:
        starts = as_dims(begin, "slice: begin")
        if len(starts) != len(sizes):
            raise ShapeError(f"slice: {len(starts)} starts for {result.type}")
        stops = [None if n == -1 else a + n for a, n in zip(starts, sizes, strict=True)]
        return getitem(result, tuple(map(slice, starts, stops)))
    for axis, n in enumerate(sizes):
        if n == -1:
            raise GraphTypeError("slice: a size of -1 beside a start known only at run time")
        result = take(result, getitem(begin, axis) + iota(n), axis)
    return result


__all__ = [
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "broadcast_arrays",
    "column_stack",
    "dstack",
    "fliplr",
    "flipud",
    "hstack",
    "moveaxis",
    "ravel",
    "rot90",
    "slice_",
    "swapaxes",
    "vstack",
]
