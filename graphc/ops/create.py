"""Tensors from nothing: zeros, ones, full, eye, arange, linspace, and triangles.

Positions come from `iota`, a leaf that costs nothing: the compiler computes it from loop indices.
Imports: ops.define, ops.arithmetic, ops.shape, ops.reduce, graph, dims, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.dims import DimLike
from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import (
    add,
    astype,
    divide,
    equal,
    greater_equal,
    less_equal,
    multiply,
    subtract,
    where,
)
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    Sample,
    Samples,
    as_tensor,
    bind_function,
    constant,
    deferred,
    normalize_axis,
    op,
)
from graphc.ops.shape import broadcast_like, broadcast_to, expand_dims, reshape
from graphc.ops.sizes import as_dims, as_shape, size_value
from graphc.types import NUMBERS, TensorType, as_dtype, int64

Types = Sequence[TensorType]

# ---- iota --------------------------------------------------------------------------------------


def _infer_iota(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(attrs["dtype"], (attrs["n"],)),)


iota_op = op(
    "iota",
    "leaf",
    infer=_infer_iota,
    reference=lambda attrs: np.arange(attrs["n"]).astype(attrs["dtype"].numpy),
    vjp=NOT_DIFFERENTIABLE,
    samples=Samples(
        tuple(Sample((), {"n": 5, "dtype": d}) for d in NUMBERS), dtypes=(int64,), gradient=()
    ),
    onnx="Range",
)


def iota(n: DimLike, dtype: Any = int64) -> Tensor:
    """0, 1, ..., n - 1."""
    return make(iota_op, (), {"n": n, "dtype": as_dtype(dtype)}).outputs[0]


bind_function(iota_op, iota)

# ---- zeros, ones, full -------------------------------------------------------------------------


def full(shape: Any, value: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """A tensor of `shape` filled with `value` (a number or a scalar tensor)."""
    fill = as_tensor(value, None if dtype is None else as_dtype(dtype))
    if dtype is not None:
        fill = astype(fill, dtype)
    return broadcast_to(fill, as_shape(shape, "full: shape"), name)


def zeros(shape: Any, dtype: Any = "f32", name: str | None = None) -> Tensor:
    """Zeros of `shape`."""
    return full(shape, 0, dtype, name)


def ones(shape: Any, dtype: Any = "f32", name: str | None = None) -> Tensor:
    """Ones of `shape`."""
    return full(shape, 1, dtype, name)


def full_like(x: Any, value: Any, dtype: Any = None) -> Tensor:
    """`value`, a number or a tensor that broadcasts, in x's shape and (unless given) dtype."""
    x = as_tensor(x)
    target = x.dtype if dtype is None else as_dtype(dtype)
    filled = astype(value, target) if isinstance(value, Tensor) else constant(value, target)
    return broadcast_like(filled, x)


def zeros_like(x: Any, dtype: Any = None) -> Tensor:
    """Zeros of the shape and dtype of x."""
    return full_like(x, 0, dtype)


def ones_like(x: Any, dtype: Any = None) -> Tensor:
    """Ones of the shape and dtype of x."""
    return full_like(x, 1, dtype)


# ---- arange, linspace --------------------------------------------------------------------------


def arange(
    start: Any, stop: Any = None, step: Any = 1, dtype: Any = None, name: str | None = None
) -> Tensor:
    """start, start + step, ... below stop, as np.arange; int64 for integers, else float32.

    Integer bounds may be sizes that are known only at run time (from `gx.shape`).
    """
    if stop is None:
        start, stop = 0, start
    if all(isinstance(v, (int, float, np.integer, np.floating)) for v in (start, stop, step)):
        if step == 0:
            raise ShapeError("arange: the step is 0")
        exact = np.arange(start, stop, step)
        return constant(exact, dtype or ("i64" if exact.dtype.kind == "i" else "f32"), name=name)
    if not isinstance(step, (int, np.integer)) or step == 0:
        raise GraphTypeError(f"arange: a step beside unknown sizes is an integer, not {step!r}")
    (first,), (last,) = as_dims(start, "arange: start"), as_dims(stop, "arange: stop")
    span = dims.add(last, dims.mul(-1, first))
    if step < 0:
        span = dims.mul(-1, span)
    position = iota(dims.ceildiv(dims.maximum(span, 0), abs(int(step))))
    if step != 1:
        position = multiply(position, int(step))
    if first != 0:
        position = add(
            position, as_tensor(start) if isinstance(start, Tensor) else size_value(first)
        )
    return position if dtype is None else astype(position, dtype)


def linspace(
    start: float, stop: float, num: int = 50, endpoint: bool = True, dtype: Any = "f32"
) -> Tensor:
    """num numbers evenly spaced from start to stop, which is included if `endpoint`."""
    if isinstance(start, Tensor) or isinstance(stop, Tensor):
        low, high = as_tensor(start), as_tensor(stop)
        gaps = max(num - 1 if endpoint else num, 1)
        return add(low, multiply(iota(num, dtype), divide(subtract(high, low), float(gaps))))
    values = np.linspace(float(start), float(stop), num, endpoint)
    return constant(values.astype(as_dtype(dtype).numpy))


def meshgrid(*xs: Any, indexing: str = "xy") -> list[Tensor]:
    """Coordinate tensors from coordinate vectors, as np.meshgrid."""
    if indexing not in ("xy", "ij"):
        raise GraphTypeError(f"meshgrid: indexing is 'xy' or 'ij', not {indexing!r}")
    vectors = [reshape(x, (-1,)) for x in map(as_tensor, xs)]
    order = list(range(len(vectors)))
    if indexing == "xy" and len(vectors) > 1:
        order[:2] = [1, 0]
    shape: list[DimLike] = [1] * len(vectors)
    for position, v in zip(order, vectors, strict=True):
        shape[position] = v.dims[0]
    grids = []
    for position, v in zip(order, vectors, strict=True):
        placed = tuple(v.dims[0] if i == position else 1 for i in range(len(vectors)))
        grids.append(broadcast_to(reshape(v, placed), tuple(shape)))
    return grids


# ---- eye, triangles ----------------------------------------------------------------------------


def _row_and_column(rows: DimLike, columns: DimLike) -> tuple[Tensor, Tensor]:
    return expand_dims(iota(rows), 1), iota(columns)


def eye(rows: DimLike, columns: DimLike | None = None, k: int = 0, dtype: Any = "f32") -> Tensor:
    """Ones where column - row == k, zeros elsewhere."""
    shape = as_shape((rows, rows if columns is None else columns), "eye: shape")
    row, column = _row_and_column(*shape)
    return astype(equal(add(row, k) if k else row, column), dtype)


def _expand_triangle(x: Tensor, k: int, lower: bool) -> Tensor:
    if len(x.dims) < 2:
        raise ShapeError(f"a triangle of {x.type}, which is not a matrix")
    row, column = _row_and_column(*x.dims[-2:])
    edge = add(row, k) if k else row
    return where(less_equal(column, edge) if lower else greater_equal(column, edge), x, 0)


def _triangle_reference(attrs: Attrs, x: Any) -> Any:
    return (np.tril if attrs["lower"] else np.triu)(x, attrs["k"])


_triangle: Callable[..., Tensor] = deferred(
    "triangle",
    expand=_expand_triangle,
    dtype=lambda types, attrs: types[0].dtype,
    reference=_triangle_reference,
    vjp=lambda y, g, x: [_triangle(g, **y.node.attrs)],
)


def tril(x: Any, k: int = 0) -> Tensor:
    """x (its last two axes) with zeros above the k-th diagonal."""
    return _triangle(as_tensor(x), k=int(k), lower=True)


def triu(x: Any, k: int = 0) -> Tensor:
    """x (its last two axes) with zeros below the k-th diagonal."""
    return _triangle(as_tensor(x), k=int(k), lower=False)


# ---- one_hot -----------------------------------------------------------------------------------


def one_hot(
    indices: Any,
    depth: DimLike,
    on_value: float = 1,
    off_value: float = 0,
    axis: int = -1,
    dtype: Any = "f32",
) -> Tensor:
    """on_value where the new axis's position equals the index, off_value elsewhere.

    The new axis has size `depth`; an index outside [0, depth) gives off_value everywhere.
    """
    index = as_tensor(indices)
    if not index.dtype.is_integer:
        raise GraphTypeError(f"one_hot: an index has an integer dtype, not {index.dtype}")
    target = as_dtype(dtype)
    position = iota(depth)
    if axis != -1:
        rank = len(index.dims) + 1
        a = normalize_axis(axis, rank)
        position = reshape(position, (depth, *(1,) * (rank - 1 - a)))
    hit = equal(astype(expand_dims(index, axis), int64), position)
    return where(hit, constant(on_value, target), constant(off_value, target))


__all__ = [
    "arange",
    "eye",
    "full",
    "full_like",
    "linspace",
    "meshgrid",
    "one_hot",
    "ones",
    "ones_like",
    "tril",
    "triu",
    "zeros",
    "zeros_like",
]
