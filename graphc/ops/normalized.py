"""What normalizations are made of, with gradients that take the fewest sweeps over x.

Compositions by nature, which the rules of their parts would differentiate term by term: some terms
sum to zero whatever the numbers are, others are the same sum twice.  So each is an operator until
gradients have been taken, and is expanded with the ranks.

Imports: ops.define, ops.arithmetic, ops.math, ops.reduce, ops.shape, ops.sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.graph import make
from graphc.node import Attrs, Tensor
from graphc.ops.define import as_tensor, normalize_axes, op
from graphc.ops.math import square
from graphc.ops.reduce import mean, sum
from graphc.ops.shape import broadcast_along
from graphc.ops.sizes import size
from graphc.types import TensorType

Types = Sequence[TensorType]


def _kept(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a not in axes)


def _along(value: Tensor, x: Tensor, axes: Sequence[int]) -> Tensor:
    """A value for the axes that are kept, repeated along the others of x."""
    return broadcast_along(value, x.dims, _kept(len(x.dims), axes))


# ---- variance ----------------------------------------------------------------------------------


def _infer_variance(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    shape = types[0].shape
    if shape is None:
        return (types[0],)
    return (TensorType(types[0].dtype, tuple(shape[a] for a in _kept(len(shape), attrs["axes"]))),)


def _expand_variance(x: Tensor, axes: Sequence[int]) -> Tensor:
    return mean(square(x - _along(mean(x, axis=axes), x, axes)), axis=axes)


def _variance_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    """Through the mean comes nothing: deviations from it sum to zero."""
    axes = y.node.attrs["axes"]
    slope = g * 2 / size(x, axes, x.dtype)
    return [_along(slope, x, axes) * (x - _along(mean(x, axis=axes), x, axes))]


_variance_op = op(
    "variance",
    "deferred",
    infer=_infer_variance,
    reference=lambda attrs, x: np.var(x, axis=tuple(attrs["axes"])),
    vjp=_variance_vjp,
    lower=_expand_variance,
)


def variance(x: Any, axes: int | Sequence[int]) -> Tensor:
    """The mean square deviation of x from its mean over `axes`, which are dropped."""
    x = as_tensor(x)
    return make(_variance_op, (x,), {"axes": normalize_axes(axes, len(x.dims))}).outputs[0]


# ---- scaled_deviation --------------------------------------------------------------------------


def _expand_deviation(x: Tensor, centre: Tensor, factor: Tensor, axes: Sequence[int]) -> Tensor:
    return (x - _along(centre, x, axes)) * _along(factor, x, axes)


def _deviation_vjp(y: Tensor, g: Tensor, x: Tensor, centre: Tensor, factor: Tensor) -> list[Tensor]:
    """Two sums, both over x and g as they are."""
    axes = y.node.attrs["axes"]
    along = g * (x - _along(centre, x, axes))
    return [
        g * _along(factor, x, axes),
        -(factor * sum(g, axis=axes)),
        sum(along, axis=axes),
    ]


def _deviation_reference(attrs: Attrs, x: Any, centre: Any, factor: Any) -> Any:
    axes = tuple(attrs["axes"])
    return (x - np.expand_dims(centre, axes)) * np.expand_dims(factor, axes)


_deviation_op = op(
    "scaled_deviation",
    "deferred",
    infer=lambda types, attrs: (types[0],),
    reference=_deviation_reference,
    vjp=_deviation_vjp,
    lower=_expand_deviation,
)


def scaled_deviation(x: Any, centre: Any, factor: Any, axes: int | Sequence[int]) -> Tensor:
    """(x - centre) * factor, where centre and factor have the axes of x without `axes`."""
    x, centre, factor = inputs = tuple(as_tensor(t) for t in (x, centre, factor))
    dropped = normalize_axes(axes, len(x.dims))
    if not x.dtype == centre.dtype == factor.dtype:
        return _expand_deviation(x, centre, factor, dropped)
    return make(_deviation_op, inputs, {"axes": dropped}).outputs[0]
