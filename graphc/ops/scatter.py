"""Functional updates at computed positions.

Imports: ops.define, ops.indexed, ops.join, ops.shape, ops.sizes, ops.arithmetic, ops.create, graph,
nest, dims, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.nest import Nest, at
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import add, equal, multiply, where
from graphc.ops.create import iota
from graphc.ops.define import (
    Sample,
    Samples,
    as_tensor,
    as_tensors,
    bind_function,
    constant,
    normalize_axis,
    op,
    promoted,
)
from graphc.ops.indexed import (
    checked_index,
    gather_axes,
    gather_op,
    indices_of,
    place_sum,
    scatter_axes,
    scatters,
)
from graphc.ops.join import unstack
from graphc.ops.shape import broadcast_to, reshape
from graphc.ops.sizes import as_shape, size_value
from graphc.types import DTYPES, Shape, TensorType, int64

Types = Sequence[TensorType]

# ---- scatter updates ---------------------------------------------------------------------------


def scatter_add(x: Any, indices: Any, updates: Any) -> Tensor:
    """x with updates[i] added to x[indices[i]] along axis 0; repeated indices all count."""
    x, updates = promoted("scatter_add", as_tensors(x, updates))
    index = checked_index(indices, x.dims[0], caller="scatter_add")
    return add(x, place_sum(index, updates, x.dims[0], 0))


def _infer_scatter_set(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, index, updates = types
    if x.shape is not None and index.shape is not None and updates.shape is not None:
        wanted = (*index.shape, *x.shape[1:])
        message = f"updates of type {updates} for indices of type {index} into {x}"
        if len(wanted) != len(updates.shape):
            raise ShapeError(message)
        for d, e in zip(wanted, updates.shape, strict=True):
            require_equal(d, e, message)
    return (x,)


def _scatter_set_reference(attrs: Attrs, x: Any, index: Any, updates: Any) -> Any:
    result = x.copy()
    for position in np.ndindex(index.shape):
        result[index[position]] = updates[position]
    return result


@scatters
def _lower_scatter_set(nest: Nest) -> None:
    shape = nest.shape_of(0)
    inner = indices_of(nest.parallel(shape[1:] or (1,))[: len(shape) - 1])
    row = nest.reduce(shape[0])
    nest.store(0, [at(row), *inner], nest.load(0, [at(row), *inner]), over=(row,))
    over = [nest.reduce(d) for d in nest.shape_of(1)]
    update = nest.load(2, [*indices_of(over), *inner])
    nest.store(0, [nest.load(1, indices_of(over)), *inner], update, over=over)


def _scatter_set_vjp(
    y: Tensor, g: Tensor, x: Tensor, index: Tensor, updates: Tensor
) -> list[Tensor | None]:
    """Only the last update of a repeated index got through."""
    zeros = broadcast_to(constant(0, g.dtype), updates.dims)
    kept = make(_scatter_set_op, (g, index, zeros)).outputs[0]
    count = dims.product(index.dims)
    order = iota(count)
    flat = reshape(index, (count,))
    nobody = broadcast_to(constant(-1, int64), (x.dims[0],))
    winner = make(_scatter_set_op, (nobody, flat, order)).outputs[0]
    won = equal(make(gather_op, (winner, flat), {"axis": 0}).outputs[0], order)
    shaped = reshape(won, (*index.dims, *(1,) * (len(x.dims) - 1)))
    arrived = make(gather_op, (g, index), {"axis": 0}).outputs[0]
    return [kept, None, where(shaped, arrived, 0)]


_scatter_set_op = op(
    "scatter_set",
    "nest",
    infer=_infer_scatter_set,
    reference=_scatter_set_reference,
    vjp=_scatter_set_vjp,
    lower=_lower_scatter_set,
    samples=Samples(
        (
            Sample(((4, 2), (3,), (3, 2)), {}, (None, np.array([3, 0, 3]), None)),
            Sample(((4,), (2,), (2,)), {}, (None, np.array([1, 2]), None)),
        ),
        dtypes=DTYPES,
        gradient=(0, 2),
    ),
    dtypes=DTYPES,
)


def scatter_update(x: Any, indices: Any, updates: Any) -> Tensor:
    """x with x[indices[i]] replaced by updates[i] along axis 0; the last of repeated ones wins."""
    x, updates = promoted("scatter_update", as_tensors(x, updates))
    index = checked_index(indices, x.dims[0], caller="scatter_update")
    return make(_scatter_set_op, (x, index, updates)).outputs[0]


bind_function(_scatter_set_op, scatter_update)

# ---- at several axes at once, or along one -----------------------------------------------------


def _index_parts(indices: Any, what: str) -> list[Tensor]:
    index = as_tensor(indices)
    count = index.dims[-1] if index.dims else 0
    if not isinstance(count, int) or count < 1:
        raise ShapeError(f"{what}: the last axis of {index.type} must be known and not empty")
    return unstack(index, -1, count)


def gather_nd(x: Any, indices: Any) -> Tensor:
    """The elements (or slices) of x at indices[..., :], which give a position on its first axes."""
    x = as_tensor(x)
    parts = _index_parts(indices, "gather_nd")
    if len(parts) > len(x.dims):
        raise ShapeError(f"gather_nd: positions of {len(parts)} axes for {x.type}")
    return gather_axes(x, parts, 0)


def scatter_nd(indices: Any, updates: Any, shape: Any) -> Tensor:
    """Zeros of `shape` to which updates are added at indices[..., :]; repeated ones all count."""
    parts = _index_parts(indices, "scatter_nd")
    sizes = as_shape(shape, "scatter_nd: shape")
    if len(parts) > len(sizes):
        raise ShapeError(f"scatter_nd: positions of {len(parts)} axes for rank {len(sizes)}")
    return scatter_axes(as_tensor(updates), sizes, parts, 0)


def put_along_axis(x: Any, indices: Any, values: Any, axis: int, mode: str = "set") -> Tensor:
    """x with `values` put at `indices` along `axis`, the inverse of `take_along_axis`.

    indices   of x's rank and, but for `axis`, of its sizes; negative ones count from the end
    mode      'set' (the last of repeated indices wins) or 'add' (all of them count)
    """
    if mode not in ("set", "add"):
        raise GraphTypeError(f"put_along_axis: mode is 'set' or 'add', not {mode!r}")
    x, values = promoted("put_along_axis", as_tensors(x, values))
    rank = len(x.dims)
    a = normalize_axis(axis, rank)
    index = as_tensor(indices)
    if len(index.dims) != rank:
        raise ShapeError(f"put_along_axis: indices of type {index.type} for {x.type}")
    index = checked_index(index, x.dims[a], True, a, "put_along_axis")
    wanted = (*x.dims[:a], index.dims[a], *x.dims[a + 1 :])
    position = _positions(broadcast_to(index, wanted), x.dims, a)
    flat, updates = reshape(x, (-1,)), reshape(broadcast_to(values, wanted), (-1,))
    if mode == "add":
        placed = add(flat, place_sum(position, updates, flat.dims[0], 0))
    else:
        placed = make(_scatter_set_op, (flat, position, updates)).outputs[0]
    return reshape(placed, x.dims)


def _positions(index: Tensor, shape: Shape, axis: int) -> Tensor:
    """Where in a flattened tensor of `shape` the elements at `index` along `axis` are."""
    total: Tensor | None = None
    for i, d in enumerate(shape):
        here = index
        if i != axis:
            here = reshape(iota(d), (d, *(1,) * (len(shape) - 1 - i)))
        total = here if total is None else add(multiply(total, size_value(d)), here)
    assert total is not None
    return reshape(total, (-1,))


__all__ = ["gather_nd", "put_along_axis", "scatter_add", "scatter_nd", "scatter_update"]
