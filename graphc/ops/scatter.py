"""Functional updates at computed positions along the first axis.

Imports: ops.define, ops.indexed, ops.shape, ops.arithmetic, ops.create, graph, nest, dims, types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.errors import ShapeError
from graphc.graph import make
from graphc.nest import Nest, at
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import add, equal, where
from graphc.ops.create import iota
from graphc.ops.define import (
    Sample,
    Samples,
    as_tensors,
    bind_function,
    constant,
    op,
    promoted,
)
from graphc.ops.indexed import checked_index, gather_op, indices_of, place_sum, scatters
from graphc.ops.shape import broadcast_to, reshape
from graphc.types import DTYPES, TensorType, int64

Types = Sequence[TensorType]

# ---- scatter updates ---------------------------------------------------------------------------


def scatter_add(x: Any, indices: Any, updates: Any) -> Tensor:
    """x with updates[i] added to x[indices[i]] along axis 0; repeated indices all count."""
    x, updates = promoted("scatter_add", as_tensors(x, updates))
    index = checked_index(indices, x.dims[0])
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
    index = checked_index(indices, x.dims[0])
    return make(_scatter_set_op, (x, index, updates)).outputs[0]


bind_function(_scatter_set_op, scatter_update)


__all__ = ["scatter_add", "scatter_update"]
