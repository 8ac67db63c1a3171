"""Layers: functions that make variables under a name scope and return the output tensor.

`dense(x, 10, name="fc")` makes `fc/kernel` and `fc/bias`.  `trainable` and `lr_mult` are those of
the variables.  To share weights, make the variables yourself and call the functions of `gx.nn`.
Imports: nn.initializers, nn.normalization, ops, graph, errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import get_default_graph
from graphc.nn.initializers import Initializer, glorot_uniform, ones, zeros
from graphc.nn.normalization import batch_norm, layer_norm
from graphc.node import Tensor, describe
from graphc.ops import convolution
from graphc.ops.define import as_tensor, normalize_axis
from graphc.ops.linalg import matmul
from graphc.ops.pooling import avg_pool as avg_pool2d
from graphc.ops.pooling import max_pool as max_pool2d
from graphc.ops.shape import reshape
from graphc.ops.state import Variable

Activation = Callable[[Tensor], Tensor]


def _known_size(x: Tensor, axis: int) -> int:
    if not -len(x.dims) <= axis < len(x.dims):
        raise ShapeError(f"a layer needs axis {axis} of {describe(x)}, which it does not have")
    size = x.dims[axis]
    if not isinstance(size, int):
        raise ShapeError(f"the size of axis {axis} of {describe(x)} must be known")
    return size


def _variable(
    initializer: Initializer, shape: Sequence[int], x: Tensor, name: str, **options: Any
) -> Variable:
    if not x.dtype.is_float:
        raise GraphTypeError(f"a layer with weights takes floats, not {describe(x)}: cast it first")
    return Variable(lambda: initializer(tuple(shape), x.dtype), name=name, **options)


def dense(
    x: Any,
    units: int,
    activation: Activation | None = None,
    use_bias: bool = True,
    kernel_initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
    trainable: bool = True,
    lr_mult: float = 1.0,
    name: str = "dense",
) -> Tensor:
    """activation(x @ kernel + bias) along the last axis: x[..., I] gives [..., units]."""
    x = as_tensor(x)
    options = {"trainable": trainable, "lr_mult": lr_mult}
    with get_default_graph().name_scope(name):
        inputs = _known_size(x, -1)
        kernel = _variable(
            kernel_initializer or glorot_uniform(), (inputs, units), x, "kernel", **options
        )
        y = matmul(x, kernel)
        if use_bias:
            y = y + _variable(bias_initializer or zeros(), (units,), x, "bias", **options)
        return y if activation is None else activation(y)


def conv2d(
    x: Any,
    filters: int,
    kernel_size: int | Sequence[int],
    strides: Any = 1,
    padding: Any = "VALID",
    dilations: Any = 1,
    groups: int = 1,
    activation: Activation | None = None,
    use_bias: bool = True,
    kernel_initializer: Initializer | None = None,
    bias_initializer: Initializer | None = None,
    trainable: bool = True,
    lr_mult: float = 1.0,
    name: str = "conv2d",
) -> Tensor:
    """activation(convolution of x[N, H, W, C] with `filters` filters + bias)."""
    x = as_tensor(x)
    window = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
    options = {"trainable": trainable, "lr_mult": lr_mult}
    with get_default_graph().name_scope(name):
        shape = (*window, _known_size(x, -1) // groups, filters)
        kernel = _variable(kernel_initializer or glorot_uniform(), shape, x, "kernel", **options)
        y = convolution.conv2d(x, kernel, strides, padding, dilations, groups)
        if use_bias:
            y = y + _variable(bias_initializer or zeros(), (filters,), x, "bias", **options)
        return y if activation is None else activation(y)


def flatten(x: Any) -> Tensor:
    """x[N, ...] as [N, M]; every size but the first must be known."""
    x = as_tensor(x)
    sizes = [_known_size(x, axis) for axis in range(1, len(x.dims))]
    return reshape(x, (-1, math.prod(sizes)))


def batch_normalization(
    x: Any,
    training: Any,
    axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    trainable: bool = True,
    lr_mult: float = 1.0,
    name: str = "batch_normalization",
) -> Tensor:
    """`nn.batch_norm` with its own gamma, beta, moving_mean and moving_variance.

    The updates of the moving statistics are in the collection UPDATE_OPS and must be run.
    """
    x = as_tensor(x)
    options = {"trainable": trainable, "lr_mult": lr_mult}
    with get_default_graph().name_scope(name):
        shape = (_known_size(x, normalize_axis(axis, len(x.dims))),)
        gamma = _variable(ones(), shape, x, "gamma", **options) if scale else None
        beta = _variable(zeros(), shape, x, "beta", **options) if center else None
        mean = _variable(zeros(), shape, x, "moving_mean", trainable=False)
        variance = _variable(ones(), shape, x, "moving_variance", trainable=False)
        found = batch_norm(
            x, gamma, beta, mean, variance, training, momentum=momentum, epsilon=epsilon, axis=axis
        )
        return found.output


def layer_normalization(
    x: Any,
    epsilon: float = 1e-5,
    trainable: bool = True,
    lr_mult: float = 1.0,
    name: str = "layer_normalization",
) -> Tensor:
    """`nn.layer_norm` over the last axis with its own gamma and beta."""
    x = as_tensor(x)
    options = {"trainable": trainable, "lr_mult": lr_mult}
    with get_default_graph().name_scope(name):
        shape = (_known_size(x, -1),)
        gamma = _variable(ones(), shape, x, "gamma", **options)
        beta = _variable(zeros(), shape, x, "beta", **options)
        return layer_norm(x, gamma, beta, epsilon=epsilon)


__all__ = [
    "avg_pool2d",
    "batch_normalization",
    "conv2d",
    "dense",
    "flatten",
    "layer_normalization",
    "max_pool2d",
]
