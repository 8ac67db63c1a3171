"""Convolutions over any number of spatial axes, and their two gradients, as contractions.

The three primitives have their channels last and are closed under differentiation:

    conv(x[N,*S,C], w[*K,C/g,O])        -> y[N,*O,O]
    conv_input_grad(y, w)               -> x      the transpose in x
    conv_filter_grad(x, y)              -> w      the transpose in w

Attributes: strides, pads ((low, high) per axis), dilations, groups, sizes (the spatial sizes of the
result).  Imports: ops.define, ops.shape, ops.windows, contraction_maps, graph, nest, dims, types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_equal
from graphc.contraction_maps import AxisNumbers, ContractionMaps, number_axes
from graphc.dims import DimLike
from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.nest import Index, at
from graphc.node import Attrs, Tensor
from graphc.ops.define import Sample, Samples, as_tensors, bind_function, op, promoted
from graphc.ops.windows import (
    padded_array,
    require_windows,
    unpadded,
    window_count,
    window_slices,
)
from graphc.types import NUMBERS, Shape, TensorType

Types = Sequence[TensorType]
_WINDOW = ("strides", "pads", "dilations", "groups")


def _shape(t: TensorType) -> Shape:
    assert t.shape is not None
    return t.shape


def _known(types: Types) -> bool:
    if types[0].dtype is not types[1].dtype:
        raise GraphTypeError(f"operands have dtypes {types[0].dtype} and {types[1].dtype}")
    return all(t.shape is not None for t in types)


def _per_group(channels: DimLike, groups: int) -> DimLike:
    return channels if groups == 1 else dims.exact_div(channels, groups)


# ---- conv --------------------------------------------------------------------------------------


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, w = types
    if not _known(types):
        return (TensorType(x.dtype, None),)
    xs, ws = _shape(x), _shape(w)
    if len(xs) < 2 or len(xs) != len(ws):
        raise ShapeError(f"a filter of type {w} for an input of type {x}")
    _check_groups(xs[-1], ws, attrs["groups"], f"a filter of type {w} for an input of type {x}")
    require_windows(xs[1:-1], ws[:-2], attrs["dilations"], attrs["pads"], attrs["sizes"])
    return (TensorType(x.dtype, (xs[0], *attrs["sizes"], ws[-1])),)


def _check_groups(channels: DimLike, ws: Shape, groups: int, message: str) -> None:
    wanted = dims.mul(ws[-2], groups)
    text = f"{message}: {channels} input channels, but the filter takes {wanted}"
    require_equal(channels, wanted, text)
    if isinstance(ws[-1], int) and ws[-1] % groups:
        raise ShapeError(f"{message}: {ws[-1]} filters in {groups} groups")


def _conv_maps(types: Types, out: TensorType, attrs: Attrs) -> ContractionMaps:
    xs, ws, ys = _shape(types[0]), _shape(types[1]), _shape(out)
    groups, rank = attrs["groups"], len(xs) - 2
    filters = _per_group(ws[-1], groups)
    axes = number_axes(groups > 1, 1 + rank, 1, rank + 1)
    windows = _window_indices(axes.m[1:], axes.k[:-1], attrs)
    return ContractionMaps(
        batch=_group_extent(groups),
        m=ys[:-1],
        n=(filters,),
        k=ws[:-1],
        a=(at(axes.m[0]), *windows, _channel(axes, axes.k[-1], ws[-2])),
        b=(*map(at, axes.k), _channel(axes, axes.n[0], filters)),
        out=(*_plain(axes.m), _out_channel(axes, axes.n[0], filters)),
    )


def _group_extent(groups: int) -> tuple[int, ...]:
    return (groups,) if groups > 1 else ()


def _channel(axes: AxisNumbers, inner: int, size: DimLike) -> Index:
    """A channel: group * size + inner."""
    return at((axes.batch[0], size), inner) if axes.batch else at(inner)


def _out_channel(axes: AxisNumbers, inner: int, size: DimLike) -> tuple[tuple[int, DimLike], ...]:
    return ((axes.batch[0], size), (inner, 1)) if axes.batch else ((inner, 1),)


def _plain(axes: Sequence[int]) -> Iterator[tuple[tuple[int, DimLike], ...]]:
    return (((a, 1),) for a in axes)


def _window_indices(positions: Sequence[int], offsets: Sequence[int], attrs: Attrs) -> list[Index]:
    """Input positions: window * stride + offset * dilation - pad."""
    rules = zip(
        positions, offsets, attrs["strides"], attrs["dilations"], attrs["pads"], strict=True
    )
    return [
        at((p, s), (o, d), shift=dims.mul(-1, pad[0]), guarded=not unpadded(pad))
        for p, o, s, d, pad in rules
    ]


def _conv_reference(attrs: Attrs, x: Any, w: Any) -> Any:
    groups, counts = attrs["groups"], attrs["sizes"]
    wide = _wide(x)
    padded = padded_array(x.astype(wide), attrs["pads"], 0, _spans(counts, w.shape[:-2], attrs))
    y = np.zeros((x.shape[0], *counts, groups, w.shape[-1] // groups), wide)
    for offset in np.ndindex(*w.shape[:-2]):
        where = window_slices(offset, counts, attrs["strides"], attrs["dilations"])
        patch = padded[(slice(None), *where)]
        patch = patch.reshape(*patch.shape[:-1], groups, w.shape[-2])
        filters = w[offset].astype(wide).reshape(w.shape[-2], groups, -1)
        y += np.einsum("...gc,cgo->...go", patch, filters)
    return y.reshape(x.shape[0], *counts, w.shape[-1]).astype(x.dtype)


def _wide(x: Any) -> Any:
    """The oracle sums in float64."""
    return np.float64 if x.dtype == np.float32 else x.dtype


def _spans(counts: Sequence[int], window: Sequence[int], attrs: Attrs) -> list[int]:
    """How many padded elements the windows cover along every axis."""
    rules = zip(counts, window, attrs["strides"], attrs["dilations"], strict=True)
    return [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in rules]


def _conv_vjp(y: Tensor, g: Tensor, x: Tensor, w: Tensor) -> list[Tensor]:
    window = {k: y.node.attrs[k] for k in _WINDOW}
    return [
        _make_input_grad(g, w, x.dims[1:-1], window),
        _make_filter_grad(x, g, w.dims[:-2], window),
    ]


def _attrs(rank: int, sizes: tuple[int, ...], **changed: Any) -> dict[str, Any]:
    plain = {"strides": (1,) * rank, "pads": ((0, 0),) * rank, "dilations": (1,) * rank}
    return {**plain, "groups": 1, "sizes": sizes, **changed}


conv_op = op(
    "conv",
    "contraction",
    infer=_infer_conv,
    reference=_conv_reference,
    vjp=_conv_vjp,
    lower=_conv_maps,
    samples=Samples(
        (
            Sample(((2, 5, 6, 3), (3, 2, 3, 4)), _attrs(2, (3, 5))),
            Sample(
                ((1, 7, 4), (3, 2, 6)),
                _attrs(1, (4,), strides=(2,), pads=((1, 1),), groups=2),
            ),
            Sample(
                ((1, 6, 6, 2), (2, 2, 1, 4)),
                _attrs(
                    2, (5, 2), pads=((0, 1), (1, 0)), dilations=(2, 3), strides=(1, 2), groups=2
                ),
            ),
            Sample(((1, 3, 4, 3, 1), (2, 2, 2, 1, 2)), _attrs(3, (2, 3, 2))),
            Sample(((3, 4), (4, 2)), _attrs(0, ())),
        ),
        dtypes=NUMBERS,
        gradient=(0, 1),
    ),
    onnx="Conv",
    dtypes=NUMBERS,
)


def _make_conv(x: Tensor, w: Tensor, sizes: Shape, window: dict[str, Any]) -> Tensor:
    return make(conv_op, (x, w), {**window, "sizes": tuple(sizes)}).outputs[0]


def conv_primitive(
    x: Any, w: Any, strides: Any, pads: Any, dilations: Any, groups: int, sizes: Any
) -> Tensor:
    """The `conv` operator itself: channels last, everything explicit."""
    x, w = promoted("conv", as_tensors(x, w))
    window = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
    return _make_conv(x, w, sizes, window)


bind_function(conv_op, conv_primitive)

# ---- conv_input_grad ---------------------------------------------------------------------------


def _infer_input_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    g, w = types
    if not _known(types):
        return (TensorType(g.dtype, None),)
    gs, ws = _shape(g), _shape(w)
    message = f"a filter of type {w} for an output of type {g}"
    if len(gs) < 2 or len(gs) != len(ws):
        raise ShapeError(message)
    require_equal(gs[-1], ws[-1], f"{message}: {gs[-1]} channels and {ws[-1]} filters")
    rules = zip(
        gs[1:-1],
        attrs["sizes"],
        ws[:-2],
        attrs["strides"],
        attrs["dilations"],
        attrs["pads"],
        strict=True,
    )
    for count, size, window, stride, dilation, pads in rules:
        fits = window_count(size, window, stride, dilation, pads)
        require_equal(fits, count, f"{message}: size {size} has {fits} windows, not {count}")
    return (TensorType(g.dtype, (gs[0], *attrs["sizes"], dims.mul(ws[-2], attrs["groups"]))),)


def _input_grad_maps(types: Types, out: TensorType, attrs: Attrs) -> ContractionMaps:
    ws, xs = _shape(types[1]), _shape(out)
    groups, rank = attrs["groups"], len(xs) - 2
    filters, channels = _per_group(ws[-1], groups), ws[-2]
    axes = number_axes(groups > 1, 1 + rank, 1, rank + 1)
    # the windows whose element `offset` is this position: (position - offset*dilation + pad)/stride
    rules = zip(
        axes.m[1:], axes.k[:-1], attrs["strides"], attrs["dilations"], attrs["pads"], strict=True
    )
    windows = [
        at(position, (offset, -d), shift=pad[0], div=s, guarded=True)
        for position, offset, s, d, pad in rules
    ]
    return ContractionMaps(
        batch=_group_extent(groups),
        m=xs[:-1],
        n=(channels,),
        k=(*ws[:-2], filters),
        a=(at(axes.m[0]), *windows, _channel(axes, axes.k[-1], filters)),
        b=(*map(at, axes.k[:-1]), at(axes.n[0]), _channel(axes, axes.k[-1], filters)),
        out=(*_plain(axes.m), _out_channel(axes, axes.n[0], channels)),
    )


def _input_grad_reference(attrs: Attrs, g: Any, w: Any) -> Any:
    groups, sizes, counts = attrs["groups"], attrs["sizes"], g.shape[1:-1]
    wide = _wide(g)
    spans = _spans(counts, w.shape[:-2], attrs)
    empty = np.zeros((g.shape[0], *sizes, groups * w.shape[-2]), wide)
    padded = padded_array(empty, attrs["pads"], 0, spans)
    g_groups = g.astype(wide).reshape(*g.shape[:-1], groups, g.shape[-1] // groups)
    for offset in np.ndindex(*w.shape[:-2]):
        where = window_slices(offset, counts, attrs["strides"], attrs["dilations"])
        filters = w[offset].astype(wide).reshape(w.shape[-2], groups, -1)
        part = np.einsum("...go,cgo->...gc", g_groups, filters)
        padded[(slice(None), *where)] += part.reshape(*g.shape[:-1], groups * w.shape[-2])
    inside = [slice(low, low + n) for (low, _), n in zip(attrs["pads"], sizes, strict=True)]
    return padded[(slice(None), *inside)].astype(g.dtype)


def _input_grad_vjp(y: Tensor, h: Tensor, g: Tensor, w: Tensor) -> list[Tensor]:
    window = {k: y.node.attrs[k] for k in _WINDOW}
    return [
        _make_conv(h, w, g.dims[1:-1], window),
        _make_filter_grad(h, g, w.dims[:-2], window),
    ]


input_grad_op = op(
    "conv_input_grad",
    "contraction",
    infer=_infer_input_grad,
    reference=_input_grad_reference,
    vjp=_input_grad_vjp,
    lower=_input_grad_maps,
    samples=Samples(
        (
            Sample(((2, 3, 5, 4), (3, 2, 3, 4)), _attrs(2, (5, 6))),
            Sample(
                ((1, 4, 6), (3, 2, 6)),
                _attrs(1, (7,), strides=(2,), pads=((1, 1),), groups=2),
            ),
            Sample(((1, 3, 2), (2, 3, 2)), _attrs(1, (8,), strides=(3,))),
        ),
        dtypes=NUMBERS,
        gradient=(0, 1),
    ),
    onnx="ConvTranspose",
    dtypes=NUMBERS,
)


def _make_input_grad(g: Tensor, w: Tensor, sizes: Shape, window: dict[str, Any]) -> Tensor:
    return make(input_grad_op, (g, w), {**window, "sizes": tuple(sizes)}).outputs[0]


def conv_input_grad(
    g: Any, w: Any, strides: Any, pads: Any, dilations: Any, groups: int, sizes: Any
) -> Tensor:
    """The transpose of `conv_primitive` in its input, whose spatial sizes are `sizes`."""
    g, w = promoted("conv_input_grad", as_tensors(g, w))
    window = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
    return _make_input_grad(g, w, sizes, window)


bind_function(input_grad_op, conv_input_grad)

# ---- conv_filter_grad --------------------------------------------------------------------------


def _infer_filter_grad(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, g = types
    if not _known(types):
        return (TensorType(x.dtype, None),)
    xs, gs = _shape(x), _shape(g)
    message = f"an output of type {g} for an input of type {x}"
    if len(xs) < 2 or len(xs) != len(gs):
        raise ShapeError(message)
    require_equal(xs[0], gs[0], f"{message}: batches of {xs[0]} and {gs[0]}")
    channels = _per_group(xs[-1], attrs["groups"])
    return (TensorType(x.dtype, (*attrs["sizes"], channels, gs[-1])),)


def _filter_grad_maps(types: Types, out: TensorType, attrs: Attrs) -> ContractionMaps:
    xs, gs, ws = _shape(types[0]), _shape(types[1]), _shape(out)
    groups, rank = attrs["groups"], len(xs) - 2
    filters, channels = _per_group(gs[-1], groups), ws[-2]
    axes = number_axes(groups > 1, rank + 1, 1, 1 + rank)
    windows = _window_indices(axes.k[1:], axes.m[:-1], attrs)
    return ContractionMaps(
        batch=_group_extent(groups),
        m=ws[:-1],
        n=(filters,),
        k=gs[:-1],
        a=(at(axes.k[0]), *windows, _channel(axes, axes.m[-1], channels)),
        b=(*map(at, axes.k), _channel(axes, axes.n[0], filters)),
        out=(*_plain(axes.m), _out_channel(axes, axes.n[0], filters)),
    )


def _filter_grad_reference(attrs: Attrs, x: Any, g: Any) -> Any:
    groups, window, counts = attrs["groups"], attrs["sizes"], g.shape[1:-1]
    wide = _wide(x)
    padded = padded_array(x.astype(wide), attrs["pads"], 0, _spans(counts, window, attrs))
    channels = x.shape[-1] // groups
    w = np.zeros((*window, channels, g.shape[-1]), wide)
    g_groups = g.astype(wide).reshape(-1, groups, g.shape[-1] // groups)
    for offset in np.ndindex(*window):
        where = window_slices(offset, counts, attrs["strides"], attrs["dilations"])
        patch = padded[(slice(None), *where)].reshape(-1, groups, channels)
        w[offset] = np.einsum("pgc,pgo->cgo", patch, g_groups).reshape(channels, -1)
    return w.astype(x.dtype)


def _filter_grad_vjp(y: Tensor, h: Tensor, x: Tensor, g: Tensor) -> list[Tensor]:
    window = {k: y.node.attrs[k] for k in _WINDOW}
    return [
        _make_input_grad(g, h, x.dims[1:-1], window),
        _make_conv(x, h, g.dims[1:-1], window),
    ]


filter_grad_op = op(
    "conv_filter_grad",
    "contraction",
    infer=_infer_filter_grad,
    reference=_filter_grad_reference,
    vjp=_filter_grad_vjp,
    lower=_filter_grad_maps,
    samples=Samples(
        (
            Sample(((2, 5, 6, 3), (2, 3, 5, 4)), _attrs(2, (3, 2))),
            Sample(
                ((1, 7, 4), (1, 4, 6)),
                _attrs(1, (3,), strides=(2,), pads=((1, 1),), groups=2),
            ),
        ),
        dtypes=NUMBERS,
        gradient=(0, 1),
    ),
    dtypes=NUMBERS,
)


def _make_filter_grad(x: Tensor, g: Tensor, sizes: Shape, window: dict[str, Any]) -> Tensor:
    return make(filter_grad_op, (x, g), {**window, "sizes": tuple(sizes)}).outputs[0]


def conv_filter_grad(
    x: Any, g: Any, strides: Any, pads: Any, dilations: Any, groups: int, sizes: Any
) -> Tensor:
    """The transpose of `conv_primitive` in its filter, whose spatial sizes are `sizes`."""
    x, g = promoted("conv_filter_grad", as_tensors(x, g))
    window = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
    return _make_filter_grad(x, g, sizes, window)


bind_function(filter_grad_op, conv_filter_grad)
