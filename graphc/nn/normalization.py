"""Normalizations: batch, layer, group, instance and root-mean-square.

Functions of tensors and variables; `nn.layers` makes the variables.  Imports: ops, graph, errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from graphc.errors import ShapeError
from graphc.graph import GraphKeys, get_default_graph
from graphc.node import Tensor
from graphc.ops.arithmetic import where
from graphc.ops.define import as_tensor, floated, normalize_axes, normalize_axis
from graphc.ops.math import rsqrt, square
from graphc.ops.normalized import scaled_deviation, variance
from graphc.ops.reduce import mean
from graphc.ops.shape import reshape
from graphc.ops.state import Variable, stop_gradient


class BatchNorm(NamedTuple):
    """A normalized tensor, and the updates of the moving statistics (none in inference mode)."""

    output: Tensor
    updates: list[Tensor]


def batch_normalization(
    x: Any, mean: Any, variance: Any, offset: Any, scale: Any, epsilon: float = 1e-3
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * scale + offset; offset and scale may be None."""
    factor = rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale
    result: Tensor = (as_tensor(x) - mean) * factor
    return result if offset is None else result + offset


def batch_norm(
    x: Any,
    scale: Any,
    offset: Any,
    moving_mean: Variable,
    moving_variance: Variable,
    training: Any,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    axis: int = -1,
) -> BatchNorm:
    """Batch normalization over all axes but `axis` (Ioffe and Szegedy, 2015).

    training  a bool, or a bool scalar tensor that chooses when run.  In training the statistics are
              those of the batch (the variance divided by n), and the updates move the moving
              statistics: m -= (1 - momentum) * (m - batch statistic).
    The updates are returned, and added to the collection UPDATE_OPS; no optimizer runs them by
    itself.
    """
    x = floated(as_tensor(x))
    rank = len(x.dims)
    kept = normalize_axis(axis, rank)
    axes = tuple(i for i in range(rank) if i != kept)
    spread = tuple(x.dims[i] if i == kept else 1 for i in range(rank))

    def along(t: Any) -> Any:
        return t if t is None or kept == rank - 1 else reshape(t, spread)

    old_mean, old_variance = moving_mean.current(), moving_variance.current()
    if training is False:
        y = batch_normalization(
            x, along(old_mean), along(old_variance), along(offset), along(scale), epsilon
        )
        return BatchNorm(y, [])
    used_mean, used_variance = mean(x, axis=axes), variance(x, axes)
    if training is not True:
        used_mean = where(training, used_mean, old_mean)
        used_variance = where(training, used_variance, old_variance)
    factor = rsqrt(used_variance + epsilon)
    y = scaled_deviation(x, used_mean, factor if scale is None else factor * scale, axes)
    if offset is not None:
        y = y + along(offset)
    updates = [
        moving_mean.assign_sub((old_mean - stop_gradient(used_mean)) * (1 - momentum)),
        moving_variance.assign_sub((old_variance - stop_gradient(used_variance)) * (1 - momentum)),
    ]
    for update in updates:
        get_default_graph().add_to_collection(GraphKeys.UPDATE_OPS, update.node)
    return BatchNorm(y, updates)


def layer_norm(
    x: Any,
    scale: Any = None,
    offset: Any = None,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalization over `axis` of each example (Ba, Kiros and Hinton, 2016)."""
    x = as_tensor(x)
    axes = normalize_axes(axis, len(x.dims))
    centred = x - mean(x, axis=axes, keepdims=True)
    y = centred * rsqrt(mean(square(centred), axis=axes, keepdims=True) + epsilon)
    return _affine(y, scale, offset)


def rms_norm(x: Any, scale: Any = None, axis: int = -1, epsilon: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) over `axis` (Zhang and Sennrich, 2019)."""
    x = as_tensor(x)
    return _affine(x * rsqrt(mean(square(x), axis=axis, keepdims=True) + epsilon), scale, None)


def group_norm(
    x: Any, groups: int, scale: Any = None, offset: Any = None, epsilon: float = 1e-5
) -> Tensor:
    """Normalization over space and each of `groups` groups of channels (Wu and He, 2018).

    x is [batch, ..., channel].
    """
    x = as_tensor(x)
    shape = x.dims
    channels = shape[-1]
    if len(shape) < 2 or not isinstance(channels, int) or channels % groups:
        raise ShapeError(f"group_norm: the channels of {x.type} do not make {groups} groups")
    split = reshape(x, (*shape[:-1], groups, channels // groups))
    rank = len(shape) + 1
    axes = tuple(i for i in range(1, rank) if i != rank - 2)
    y = layer_norm(split, axis=axes, epsilon=epsilon)
    return _affine(reshape(y, shape), scale, offset)


def instance_norm(x: Any, scale: Any = None, offset: Any = None, epsilon: float = 1e-5) -> Tensor:
    """Normalization over space, for each example and channel (Ulyanov et al., 2016)."""
    x = as_tensor(x)
    rank = len(x.dims)
    if rank < 3:
        raise ShapeError(f"instance_norm: {x.type} has no axes between batch and channel")
    return layer_norm(x, scale, offset, tuple(range(1, rank - 1)), epsilon)


def _affine(y: Tensor, scale: Any, offset: Any) -> Tensor:
    if scale is not None:
        y = y * scale
    return y if offset is None else y + offset


__all__ = [
    "BatchNorm",
    "batch_norm",
    "batch_normalization",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
]
