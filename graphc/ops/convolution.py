"""The convolutions users call: 1-D, 2-D, 3-D, depthwise and transposed, in either layout.

Imports: ops.conv, ops.define, ops.shape, ops.windows, graph, dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc import dims
from graphc.dims import DimLike
from graphc.errors import ShapeError
from graphc.node import Tensor
from graphc.ops.conv import conv_input_grad, conv_primitive
from graphc.ops.define import as_tensors, promoted
from graphc.ops.shape import reshape
from graphc.ops.sizes import as_dims
from graphc.ops.windows import channels_last, extent, per_axis, resolve_padding


def conv(
    x: Any,
    w: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    groups: int = 1,
    data_format: str = "NHWC",
) -> Tensor:
    """The cross-correlation of x with the filters w, over any number of spatial axes.

    x            [N, *S, C], or [N, C, *S] for a data_format like 'NCHW'
    w            [*K, C / groups, O]
    padding      'SAME' (ceil(size / stride) windows), 'VALID', an int, or ints or (low, high)
                 pairs per axis
    Raises ShapeError where channels do not fit or a window exceeds its axis.
    """
    x, w = promoted("conv", as_tensors(x, w))
    rank = len(w.dims) - 2
    steps = per_axis(strides, rank, "strides")
    spread = per_axis(dilations, rank, "dilations")

    def compute(inner: Tensor) -> Tensor:
        pads, counts = resolve_padding(padding, inner.dims[1:-1], w.dims[:-2], steps, spread)
        return conv_primitive(inner, w, steps, pads, spread, groups, counts)

    return channels_last(x, data_format, compute, rank)


def conv1d(
    x: Any,
    w: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    groups: int = 1,
    data_format: str = "NWC",
) -> Tensor:
    """`conv` of x[N, W, C] with w[K, C / groups, O]."""
    return _ranked(1, x, w, strides, padding, dilations, groups, data_format)


def conv2d(
    x: Any,
    w: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    groups: int = 1,
    data_format: str = "NHWC",
) -> Tensor:
    """`conv` of x[N, H, W, C] with w[KH, KW, C / groups, O].

    strides and dilations may also be given for all four axes, as TensorFlow does.
    """
    return _ranked(2, x, w, strides, padding, dilations, groups, data_format)


def conv3d(
    x: Any,
    w: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    groups: int = 1,
    data_format: str = "NDHWC",
) -> Tensor:
    """`conv` of x[N, D, H, W, C] with w[KD, KH, KW, C / groups, O]."""
    return _ranked(3, x, w, strides, padding, dilations, groups, data_format)


def _ranked(
    rank: int,
    x: Any,
    w: Any,
    strides: Any,
    padding: Any,
    dilations: Any,
    groups: int,
    data_format: str,
) -> Tensor:
    x, w = promoted("conv", as_tensors(x, w))
    if len(w.dims) != rank + 2:
        raise ShapeError(f"conv{rank}d: a filter has {rank + 2} axes, not {w.type}")
    steps = spatial_only(strides, rank, data_format)
    spread = spatial_only(dilations, rank, data_format)
    return conv(x, w, steps, padding, spread, groups, data_format)


def spatial_only(value: Any, rank: int, data_format: str) -> Any:
    """TensorFlow's one number per axis without those of batch and channels."""
    if isinstance(value, Sequence) and len(value) == rank + 2:
        channels_first = data_format.startswith("NC")
        others = value[:2] if channels_first else (value[0], value[-1])
        if tuple(others) != (1, 1):
            raise ShapeError(f"a stride over batch or channels: {value!r}")
        return value[2:] if channels_first else value[1:-1]
    return value


def depthwise_conv2d(
    x: Any,
    w: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    data_format: str = "NHWC",
) -> Tensor:
    """Each channel of x convolved with its own filters w[KH, KW, C, M], giving C * M channels."""
    x, w = promoted("depthwise_conv2d", as_tensors(x, w))
    height, width, channels, multiplier = w.dims
    if not isinstance(channels, int):
        raise ShapeError(f"depthwise_conv2d: the channels of {w.type} are not known")
    filters = reshape(w, (height, width, 1, dims.mul(channels, multiplier)))
    return conv2d(x, filters, strides, padding, dilations, channels, data_format)


def separable_conv2d(
    x: Any,
    depthwise: Any,
    pointwise: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    data_format: str = "NHWC",
) -> Tensor:
    """`depthwise_conv2d` followed by a 1x1 convolution with pointwise[1, 1, C * M, O]."""
    y = depthwise_conv2d(x, depthwise, strides, padding, dilations, data_format)
    return conv2d(y, pointwise, 1, "VALID", 1, 1, data_format)


def conv_transpose(
    x: Any,
    w: Any,
    strides: Any = 1,
    padding: Any = "SAME",
    dilations: Any = 1,
    groups: int = 1,
    data_format: str = "NHWC",
    output_shape: Any = None,
) -> Tensor:
    """The transpose of `conv` (TensorFlow's conv2d_transpose): it spreads each element by w.

    x             [N, *O, O']
    w             [*K, C / groups, O'], the filter of the convolution this transposes
    output_shape  the spatial sizes of the result; by default size * stride for 'SAME', and the
                  least size that has as many windows otherwise
    """
    x, w = promoted("conv_transpose", as_tensors(x, w))
    rank = len(w.dims) - 2
    steps = per_axis(spatial_only(strides, rank, data_format), rank, "strides")
    spread = per_axis(dilations, rank, "dilations")

    def compute(inner: Tensor) -> Tensor:
        counts, window = inner.dims[1:-1], w.dims[:-2]
        if output_shape is None:
            sizes = _transposed_sizes(counts, window, steps, spread, padding)
        else:
            sizes = as_dims(output_shape, "conv_transpose: output_shape")
        pads, fits = resolve_padding(padding, sizes, window, steps, spread)
        for n, m in zip(counts, fits, strict=True):
            if isinstance(n, int) and isinstance(m, int) and n != m:
                raise ShapeError(f"conv_transpose: sizes {sizes} have {m} windows, not {n}")
        return conv_input_grad(inner, w, steps, pads, spread, groups, sizes)

    return channels_last(x, data_format, compute, rank)


def _transposed_sizes(
    counts: Sequence[DimLike],
    window: Sequence[DimLike],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: Any,
) -> tuple[DimLike, ...]:
    if isinstance(padding, str) and padding.upper() == "SAME":
        return tuple(dims.mul(n, s) for n, s in zip(counts, strides, strict=True))
    sizes: list[DimLike] = []
    zero = [0] * len(counts)
    pads, _ = resolve_padding(padding, [2**31] * len(zero), zero, strides, dilations)
    for n, k, s, d, (low, high) in zip(counts, window, strides, dilations, pads, strict=True):
        covered = dims.add(dims.mul(dims.add(n, -1), s), extent(k, d))
        sizes.append(dims.add(covered, dims.mul(-1, dims.add(low, high))))
    return tuple(sizes)


conv1d_transpose = conv2d_transpose = conv3d_transpose = conv_transpose

__all__ = [
    "conv",
    "conv1d",
    "conv1d_transpose",
    "conv2d",
    "conv2d_transpose",
    "conv3d",
    "conv3d_transpose",
    "conv_transpose",
    "depthwise_conv2d",
    "separable_conv2d",
]
