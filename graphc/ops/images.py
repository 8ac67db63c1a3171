"""Operators of convolutional networks beside convolutions and pools: compositions, either layout.

Imports: ops.define, ops.arithmetic, ops.create, ops.linalg, ops.math, ops.pool, ops.reduce,
ops.shape, ops.sizes, ops.windows, dims.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.dims import DimLike
from graphc.errors import ShapeError
from graphc.node import Tensor
from graphc.ops.arithmetic import astype, floor_divide, greater_equal, less, where
from graphc.ops.create import iota
from graphc.ops.define import as_tensor, floated
from graphc.ops.linalg import matmul
from graphc.ops.math import power, rsqrt, sqrt, square
from graphc.ops.pool import window_sum
from graphc.ops.reduce import max
from graphc.ops.shape import expand_dims, matrix_transpose, reshape, transpose
from graphc.ops.sizes import size_value
from graphc.ops.windows import channels_last

# ---- adaptive pools ----------------------------------------------------------------------------


def adaptive_avg_pool(x: Any, output_size: Any, data_format: str = "NHWC") -> Tensor:
    """The means of x[N, *S, C] over `output_size` nearly equal cells per spatial axis.

    Cell i of n spans floor(i * size / n) up to ceil((i + 1) * size / n), so that neighbours may
    share an element.  output_size is an int, or one per axis; None keeps an axis as it is.
    """

    def pool(rows: Tensor, start: Tensor, stop: Tensor, member: Tensor) -> Tensor:
        weight = astype(member, rows.dtype) / expand_dims(astype(stop - start, rows.dtype), 1)
        return matmul(rows, matrix_transpose(weight))

    return _adaptive(floated(as_tensor(x)), output_size, data_format, pool)


def adaptive_max_pool(x: Any, output_size: Any, data_format: str = "NHWC") -> Tensor:
    """The maxima of x[N, *S, C] over the cells of `adaptive_avg_pool`.

    Equal maxima of a cell share its gradient.
    """

    def pool(rows: Tensor, start: Tensor, stop: Tensor, member: Tensor) -> Tensor:
        return max(where(member, expand_dims(rows, -2), -np.inf), axis=-1)

    return _adaptive(floated(as_tensor(x)), output_size, data_format, pool)


def _adaptive(x: Tensor, output_size: Any, data_format: str, pool: Callable[..., Tensor]) -> Tensor:
    rank = len(x.dims) - 2
    first = 2 if data_format.startswith("NC") else 1
    counts = output_size if isinstance(output_size, (list, tuple)) else (output_size,) * rank
    if len(counts) != rank or rank < 1:
        raise ShapeError(f"adaptive pool: output sizes {counts} for {x.type}")
    for axis, n in enumerate(counts, first):
        if n is None:
            continue
        order = [*(i for i in range(rank + 2) if i != axis), axis]
        start, stop, member = _cells(x.dims[axis], n)
        pooled = pool(transpose(x, order), start, stop, member)
        x = transpose(pooled, [order.index(i) for i in range(rank + 2)])
    return x


def _cells(size: DimLike, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first element of each of n cells, the one after its last, and [n, size] membership."""
    cell, whole = iota(n), size_value(size)
    start = floor_divide(cell * whole, n)
    stop = floor_divide((cell + 1) * whole + (n - 1), n)
    position = iota(size)
    inside = greater_equal(position, expand_dims(start, 1)) & less(position, expand_dims(stop, 1))
    return start, stop, inside


# ---- local response normalization --------------------------------------------------------------


def local_response_normalization(
    x: Any,
    depth_radius: int = 5,
    bias: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
    data_format: str = "NHWC",
) -> Tensor:
    """x / (bias + alpha * s) ** beta, where s sums the squares of the channels within the radius.

    The parameters are those of TensorFlow (Krizhevsky, Sutskever and Hinton, 2012).
    """
    x = floated(as_tensor(x))

    def compute(inner: Tensor) -> Tensor:
        window = 2 * depth_radius + 1
        rows = reshape(square(inner), (-1, inner.dims[-1], 1))
        total = window_sum(rows, (window,), (1,), ((depth_radius, depth_radius),), rows.dims[1:-1])
        return inner * _inverse_power(reshape(total, inner.dims) * alpha + bias, beta)

    return channels_last(x, data_format, compute)


def _inverse_power(x: Tensor, exponent: float) -> Tensor:
    """x to minus the exponent, by square roots where they give it."""
    if exponent == 0.5:
        return rsqrt(x)
    if exponent == 0.75:
        root = rsqrt(x)
        return root * sqrt(root)
    return power(x, -exponent)


# ---- between depth and space -------------------------------------------------------------------


def depth_to_space(x: Any, block: int, data_format: str = "NHWC") -> Tensor:
    """[N,H,W,C] as [N,H*block,W*block,C/block²]: channels spread over blocks, as in TensorFlow."""

    def compute(inner: Tensor) -> Tensor:
        n, height, width, channels = _image(inner, "depth_to_space")
        if isinstance(channels, int) and channels % (block * block):
            raise ShapeError(f"depth_to_space: {block}² does not divide the channels of {x.type}")
        depth = dims.floordiv(channels, block * block)
        parts = reshape(inner, (n, height, width, block, block, depth))
        mixed = transpose(parts, (0, 1, 3, 2, 4, 5))
        return reshape(mixed, (n, dims.mul(height, block), dims.mul(width, block), depth))

    x = as_tensor(x)
    return channels_last(x, data_format, compute)


def space_to_depth(x: Any, block: int, data_format: str = "NHWC") -> Tensor:
    """[N,H,W,C] as [N,H/block,W/block,C*block²]: the inverse of `depth_to_space`."""

    def compute(inner: Tensor) -> Tensor:
        n, height, width, channels = _image(inner, "space_to_depth")
        known = [d for d in (height, width) if isinstance(d, int)]
        if any(d % block for d in known):
            raise ShapeError(f"space_to_depth: {block} does not divide the sizes of {x.type}")
        rows, columns = dims.floordiv(height, block), dims.floordiv(width, block)
        parts = reshape(inner, (n, rows, block, columns, block, channels))
        mixed = transpose(parts, (0, 1, 3, 2, 4, 5))
        return reshape(mixed, (n, rows, columns, dims.mul(channels, block * block)))

    x = as_tensor(x)
    return channels_last(x, data_format, compute)


def _image(x: Tensor, what: str) -> Sequence[DimLike]:
    if len(x.dims) != 4:
        raise ShapeError(f"{what}: {x.type} is not a batch of images")
    return x.dims


__all__ = [
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "depth_to_space",
    "local_response_normalization",
    "space_to_depth",
]
