"""The poolings users call, in either layout.

Imports: ops.pool, ops.define, ops.arithmetic, ops.create, ops.reduce, ops.windows, graph, dims.
"""

from __future__ import annotations

from typing import Any

from graphc import dims
from graphc.node import Tensor
from graphc.ops.arithmetic import divide
from graphc.ops.convolution import spatial_only
from graphc.ops.create import ones
from graphc.ops.define import as_tensor, floated
from graphc.ops.pool import max_pool_primitive, window_sum
from graphc.ops.reduce import max as reduce_max
from graphc.ops.reduce import mean as reduce_mean
from graphc.ops.windows import channels_last, per_axis, resolve_padding, unpadded


def max_pool(
    x: Any,
    window: Any = 2,
    strides: Any = None,
    padding: Any = "VALID",
    data_format: str = "NHWC",
) -> Tensor:
    """The maximum of each window of x[N, *S, C]; padding never wins.

    window, strides  an int or one per spatial axis; strides default to the window
    padding          'SAME', 'VALID', an int, or ints or (low, high) pairs per axis
    The gradient goes to the first maximum of each window.
    """
    x = as_tensor(x)
    sizes, steps = _window(x, window, strides, data_format)

    def compute(inner: Tensor) -> Tensor:
        pads, counts = resolve_padding(padding, inner.dims[1:-1], sizes, steps, (1,) * len(sizes))
        return max_pool_primitive(inner, sizes, steps, pads, counts)

    return channels_last(x, data_format, compute)


def avg_pool(
    x: Any,
    window: Any = 2,
    strides: Any = None,
    padding: Any = "VALID",
    data_format: str = "NHWC",
    count_include_pad: bool = False,
) -> Tensor:
    """The mean of each window of x[N, *S, C]; see `max_pool` for the parameters.

    count_include_pad   whether padding counts as zeros, or is left out of the mean
    """
    x = floated(as_tensor(x))
    sizes, steps = _window(x, window, strides, data_format)

    def compute(inner: Tensor) -> Tensor:
        spatial = inner.dims[1:-1]
        pads, counts = resolve_padding(padding, spatial, sizes, steps, (1,) * len(sizes))
        total = window_sum(inner, sizes, steps, pads, counts)
        if count_include_pad or all(unpadded(p) for p in pads):
            return divide(total, float(str(dims.product(sizes))))
        filled = ones((1, *spatial, 1), inner.dtype)
        return divide(total, window_sum(filled, sizes, steps, pads, counts))

    return channels_last(x, data_format, compute)


def _window(
    x: Tensor, window: Any, strides: Any, data_format: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(x.dims) - 2
    sizes = per_axis(spatial_only(window, rank, data_format), rank, "window")
    if strides is None:
        return sizes, sizes
    return sizes, per_axis(spatial_only(strides, rank, data_format), rank, "strides")


def global_avg_pool(x: Any, data_format: str = "NHWC", keepdims: bool = False) -> Tensor:
    """The mean over all spatial axes: [N, C]."""
    x = as_tensor(x)
    return reduce_mean(x, _spatial(x, data_format), keepdims)


def global_max_pool(x: Any, data_format: str = "NHWC", keepdims: bool = False) -> Tensor:
    """The maximum over all spatial axes: [N, C]."""
    x = as_tensor(x)
    return reduce_max(x, _spatial(x, data_format), keepdims)


def _spatial(x: Tensor, data_format: str) -> tuple[int, ...]:
    first = 2 if data_format.startswith("NC") else 1
    return tuple(range(first, first + len(x.dims) - 2))


max_pool1d = max_pool2d = max_pool3d = max_pool
avg_pool1d = avg_pool2d = avg_pool3d = avg_pool

__all__ = [
    "avg_pool",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "global_avg_pool",
    "global_max_pool",
    "max_pool",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]
