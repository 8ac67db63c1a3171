"""Diagonals: taking them out of matrices and building matrices of them.

Imports: ops.define, ops.arithmetic, ops.create, ops.index, ops.join, ops.reduce, ops.shape, dims.
"""

from __future__ import annotations

from typing import Any

from graphc import dims
from graphc.dims import DimLike
from graphc.errors import ShapeError
from graphc.node import Tensor
from graphc.ops.arithmetic import add, astype, equal, where
from graphc.ops.create import iota
from graphc.ops.define import as_tensor, normalize_axis
from graphc.ops.join import pad
from graphc.ops.reduce import sum
from graphc.ops.shape import expand_dims, slice_axes, transpose


def _on_diagonal(n: DimLike) -> Tensor:
    return equal(expand_dims(iota(n), 1), iota(n))


def diagonal(x: Any, offset: int = 0, axis1: int | None = None, axis2: int | None = None) -> Tensor:
    """The `offset`-th diagonals of the matrices along axis1 and axis2, as the last axis.

    The axes are the last two unless given (np.diagonal takes the first two).
    """
    x = as_tensor(x)
    rank = len(x.dims)
    if rank < 2:
        raise ShapeError(f"diagonal: {x.type} is not a matrix")
    a = normalize_axis(rank - 2 if axis1 is None else axis1, rank)
    b = normalize_axis(rank - 1 if axis2 is None else axis2, rank)
    if a == b:
        raise ShapeError(f"diagonal: axis1 and axis2 are both {a}")
    x = transpose(x, (*(i for i in range(rank) if i not in (a, b)), a, b))
    rows, columns = x.dims[-2:]
    down, right = max(-offset, 0), max(offset, 0)
    least = dims.minimum(dims.add(rows, -down), dims.add(columns, -right))
    length = dims.maximum(least, 0)
    # before: rows x columns   after: the square whose main diagonal is the wanted one
    corner = (down and dims.minimum(down, rows), right and dims.minimum(right, columns))
    start = (*(0 for _ in x.dims[2:]), *corner)
    square = slice_axes(x, start, (*x.dims[:-2], length, length))
    kept = sum(where(_on_diagonal(length), square, 0), axis=-1)
    return astype(kept, x.dtype)


def matrix_diag(x: Any, k: int = 0) -> Tensor:
    """Matrices with the vectors of x's last axis on their k-th diagonals, zeros elsewhere."""
    x = as_tensor(x)
    if not x.dims:
        raise ShapeError(f"matrix_diag: {x.type} has no vectors")
    x = pad(x, (*((0, 0) for _ in x.dims[1:]), (0, abs(k))))
    n = x.dims[-1]
    row, column = expand_dims(iota(n), 1), iota(n)
    # above the main diagonal an element stands in its own row, below it in its own column
    values = expand_dims(x, -1 if k >= 0 else -2)
    return where(equal(add(row, k) if k else row, column), values, 0)


def diag(x: Any, k: int = 0) -> Tensor:
    """A matrix with the vector x on its k-th diagonal, or the k-th diagonal of the matrix x."""
    x = as_tensor(x)
    if len(x.dims) == 2:
        return diagonal(x, k)
    if len(x.dims) != 1:
        raise ShapeError(f"diag: {x.type} is neither a vector nor a matrix")
    return matrix_diag(x, k)


def trace(x: Any, offset: int = 0, axis1: int | None = None, axis2: int | None = None) -> Tensor:
    """The sum of the `offset`-th diagonal, over the last two axes unless others are given."""
    return sum(diagonal(x, offset, axis1, axis2), axis=-1)


__all__ = ["diag", "diagonal", "matrix_diag", "trace"]
