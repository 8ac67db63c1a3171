"""Pooling over sliding windows of any number of spatial axes.

Primitives, channels last, each the transpose of its neighbour and so closed under differentiation:

    max_pool(x) -> (y, which)      the maximum of each window, and which element of it that was
    pool_scatter(g, which) -> x    g where the maximum came from, added up
    pool_gather(x, which) -> y     the chosen element of each window
    window_sum(x) -> y             the sum of each window
    window_spread(y) -> x          the sum over the windows an element is in

Imports: ops.define, ops.windows, graph, nest, dims, types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc import dims
from graphc.constraints import require_at_least
from graphc.dims import DimLike
from graphc.errors import ShapeError
from graphc.graph import make
from graphc.kernel import Expr
from graphc.nest import Index, Nest, at
from graphc.node import Attrs, Tensor
from graphc.ops.define import (
    Sample,
    Samples,
    ScalarBuilder,
    as_tensor,
    bind_function,
    op,
)
from graphc.ops.windows import (
    padded_array,
    require_windows,
    unpadded,
    window_slices,
)
from graphc.types import FLOATS, NUMBERS, DType, TensorType, int32, int64

Types = Sequence[TensorType]
UNROLLED_WINDOW = 16
"""Elements of a window that are compared one by one instead of in a loop."""

_WINDOW = ("window", "strides", "pads")


def _window(y: Tensor) -> dict[str, Any]:
    return {k: y.node.attrs[k] for k in _WINDOW}


def _infer_windows(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """[N, *S, C] -> [N, *sizes, C], for all primitives: `sizes` are the result's spatial sizes."""
    shape = types[0].shape
    if shape is None:
        return (TensorType(types[0].dtype, None),)
    if len(shape) != len(attrs["window"]) + 2:
        raise ShapeError(f"a window over {len(attrs['window'])} axes of {types[0]}")
    for count in attrs["sizes"]:
        require_at_least(count, 0, f"a window does not fit along an axis of {types[0]}")
    return (TensorType(types[0].dtype, (shape[0], *attrs["sizes"], shape[-1])),)


def _inside(axes: Sequence[int], offsets: Sequence[int], strides: Any, pads: Any) -> list[Index]:
    """Positions in the input of element `offset` of the windows at `axes`."""
    spatial = [
        at((a, s), o, shift=dims.mul(-1, p[0]), guarded=not unpadded(p))
        for a, o, s, p in zip(axes[1:-1], offsets, strides, pads, strict=True)
    ]
    return [at(axes[0]), *spatial, at(axes[-1])]


def _inside_at(axes: Sequence[int], element: Sequence[int], strides: Any, pads: Any) -> list[Index]:
    """Positions in the input of the element at a constant position in the windows at `axes`."""
    spatial = [
        at((a, s), shift=dims.add(e, dims.mul(-1, p[0])), guarded=not unpadded(p))
        for a, e, s, p in zip(axes[1:-1], element, strides, pads, strict=True)
    ]
    return [at(axes[0]), *spatial, at(axes[-1])]


def _around(axes: Sequence[int], offsets: Sequence[int], strides: Any, pads: Any) -> list[Index]:
    """The windows of which the position at `axes` is element `offset`."""
    spatial = [
        at(a, (o, -1), shift=p[0], div=s, guarded=True)
        for a, o, s, p in zip(axes[1:-1], offsets, strides, pads, strict=True)
    ]
    return [at(axes[0]), *spatial, at(axes[-1])]


def _spans(counts: Sequence[int], attrs: Attrs) -> list[int]:
    rules = zip(counts, attrs["window"], attrs["strides"], strict=True)
    return [(n - 1) * s + k for n, k, s in rules]


def _patches(attrs: Attrs, x: Any, counts: Sequence[int], fill: Any) -> Any:
    """[K, N, *counts, C]: every window's elements, row-major over the window."""
    padded = padded_array(x, attrs["pads"], fill, _spans(counts, attrs))
    steps = (1,) * len(counts)
    return np.stack(
        [
            padded[(slice(None), *window_slices(offset, counts, attrs["strides"], steps))]
            for offset in np.ndindex(*attrs["window"])
        ]
    )


def _unpatched(attrs: Attrs, patches: Any, sizes: Sequence[int]) -> Any:
    """The transpose of `_patches`."""
    counts = patches.shape[2:-1]
    empty = np.zeros((patches.shape[1], *sizes, patches.shape[-1]), patches.dtype)
    padded = padded_array(empty, attrs["pads"], 0, _spans(counts, attrs))
    steps = (1,) * len(counts)
    for offset, patch in zip(np.ndindex(*attrs["window"]), patches, strict=True):
        padded[(slice(None), *window_slices(offset, counts, attrs["strides"], steps))] += patch
    inside = [slice(low, low + n) for (low, _), n in zip(attrs["pads"], sizes, strict=True)]
    return padded[(slice(None), *inside)]


def _call(window: Any, sizes: Any, strides: Any, pads: Any) -> dict[str, Any]:
    return {"window": window, "strides": strides, "pads": pads, "sizes": sizes}


_FORWARD = (
    ((2, 5, 6, 3), _call((2, 3), (4, 2), (1, 2), ((0, 0), (0, 0)))),
    ((1, 5, 2), _call((3,), (3,), (2,), ((1, 1),))),
    ((1, 4, 4, 2), _call((2, 2), (2, 2), (2, 2), ((0, 0), (0, 0)))),
)
_BACKWARD = (
    ((2, 4, 2, 3), _call((2, 3), (5, 6), (1, 2), ((0, 0), (0, 0)))),
    ((1, 3, 2), _call((3,), (5,), (2,), ((1, 1),))),
    ((1, 2, 2, 2), _call((2, 2), (4, 4), (2, 2), ((0, 0), (0, 0)))),
)

# ---- max_pool ----------------------------------------------------------------------------------


def _lowest(dtype: DType) -> float:
    """What never beats an element: it fills the padding."""
    return -np.inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)


def _infer_max_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (y,) = _infer_windows(types, attrs)
    if types[0].shape is not None:
        spatial = types[0].shape[1:-1]
        require_windows(
            spatial, attrs["window"], (1,) * len(spatial), attrs["pads"], attrs["sizes"]
        )
    return (y, TensorType(int32, y.shape))


def _lower_max_pool(nest: Nest, window: Any, strides: Any, pads: Any, sizes: Any) -> None:
    axes = nest.parallel()
    if all(isinstance(k, int) for k in window) and 0 < math.prod(window) <= UNROLLED_WINDOW:
        best, which = _first_best(nest, axes, window, strides, pads)
        nest.result(0, best)
        nest.result(1, which)
        return
    offsets = [nest.reduce(k) for k in window]
    x = nest.load(0, _inside(axes, offsets, strides, pads), fill=_lowest(nest.inputs[0].dtype))
    best, which = nest.accumulate_all([("max", x), ("argmax", x)], over=offsets)
    nest.result(0, best)
    nest.result(1, Expr("cast", (which,), None, int32))


def _first_best(
    nest: Nest, axes: Sequence[int], window: Sequence[int], strides: Any, pads: Any
) -> tuple[Expr, Expr]:
    """The maximum and its number in the window, element after element; the first NaN wins."""
    s = ScalarBuilder()
    dtype = nest.inputs[0].dtype
    best: Expr | None = None
    which = Expr("const", (), 0, int32)
    for number, element in enumerate(np.ndindex(*window)):
        x = nest.load(0, _inside_at(axes, element, strides, pads), fill=_lowest(dtype))
        if best is None:
            best = x
            continue
        better = s.gt(x, best)
        if dtype.is_float:  # more than the best, or NaN, unless the best is NaN
            better = s.and_(s.not_(s.le(x, best)), s.eq(best, best))
        best = s.select(better, x, best)
        which = s.select(better, Expr("const", (), number, int32), which)
    assert best is not None
    return best, which


def _max_pool_reference(attrs: Attrs, x: Any) -> Any:
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    patches = _patches(attrs, x, attrs["sizes"], lowest)
    return patches.max(axis=0), patches.argmax(axis=0).astype(np.int32)


def _max_pool_vjp(ys: Any, gs: Any, x: Tensor) -> list[Tensor | None]:
    if gs[0] is None:
        return [None]
    attrs = {**_window(ys[0]), "sizes": x.dims[1:-1]}
    return [make(scatter_op, (gs[0], ys[1]), attrs).outputs[0]]


max_pool_op = op(
    "max_pool",
    "nest",
    infer=_infer_max_pool,
    reference=_max_pool_reference,
    vjp=_max_pool_vjp,
    lower=_lower_max_pool,
    samples=Samples(tuple(Sample((shape,), kwargs) for shape, kwargs in _FORWARD), dtypes=NUMBERS),
    onnx="MaxPool",
    dtypes=NUMBERS,
)


def max_pool_primitive(x: Any, window: Any, strides: Any, pads: Any, sizes: Any) -> Tensor:
    """The values of the `max_pool` operator: channels last, everything explicit."""
    return make(max_pool_op, (as_tensor(x),), _call(window, sizes, strides, pads)).outputs[0]


bind_function(max_pool_op, max_pool_primitive)

# ---- pool_scatter, pool_gather -----------------------------------------------------------------


def _flat(nest: Nest, offsets: Sequence[int], window: Sequence[DimLike]) -> Expr:
    """The row-major number of the element `offsets` of a window, as i32."""
    total = nest.axis(offsets[0])
    for offset, k in zip(offsets[1:], window[1:], strict=True):
        total = total * nest.size(k) + nest.axis(offset)
    return Expr("cast", (total,), None, int32)


def _tiles(nest: Nest, window: Any, strides: Any, pads: Any, sizes: Any) -> bool:
    """Whether the windows of operand 0 cover the result once, without gap or overlap."""
    rules = zip(nest.shape_of(0)[1:-1], window, strides, pads, sizes, strict=True)
    return all(
        isinstance(k, int) and k == s and unpadded(p) and dims.mul(n, k) == size
        for n, k, s, p, size in rules
    )


def _scatter_tiles(nest: Nest, window: Sequence[int]) -> None:
    """Each position is in one window: no search for the windows around it."""
    pieces = nest.parallel_pieces((1, *window, 1))
    where = [at(axis) for axis, _ in pieces]
    offsets = [offset for _, offset in pieces[1:-1]]
    s = ScalarBuilder()
    g, which = nest.load(0, where), nest.load(1, where)
    number = Expr("const", (), 0, int64)
    for offset, k in zip(offsets, window, strict=True):
        number = number * k
        if offset is not None:
            number = number + nest.axis(offset)
    chosen = s.eq(which, Expr("cast", (number,), None, int32))
    nest.result(0, s.select(chosen, g, s.const(0, g)))


def _lower_scatter(nest: Nest, window: Any, strides: Any, pads: Any, sizes: Any) -> None:
    if _tiles(nest, window, strides, pads, sizes):
        _scatter_tiles(nest, window)
        return
    axes = nest.parallel()
    offsets = [nest.reduce(k) for k in window]
    where = _around(axes, offsets, strides, pads)
    s = ScalarBuilder()
    g, which = nest.load(0, where), nest.load(1, where, fill=-1)
    part = s.select(s.eq(which, _flat(nest, offsets, window)), g, s.const(0, g))
    nest.result(0, nest.accumulate("sum", part, over=offsets))


def _scatter_reference(attrs: Attrs, g: Any, which: Any) -> Any:
    count = int(np.prod(attrs["window"]))
    numbers = np.arange(count).reshape(-1, *(1,) * g.ndim)
    return _unpatched(attrs, np.where(which == numbers, g, g.dtype.type(0)), attrs["sizes"])


def _scatter_vjp(y: Tensor, h: Tensor, g: Tensor, which: Tensor) -> list[Tensor | None]:
    attrs = {**_window(y), "sizes": g.dims[1:-1]}
    return [make(gather_op, (h, which), attrs).outputs[0], None]


def _which_sample(shape: tuple[int, ...], kwargs: dict[str, Any], pooled: Any) -> Sample:
    # 1 is an element of every window used here that is never padding
    return Sample((shape, pooled), kwargs, (None, np.full(pooled, 1, np.int32)))


scatter_op = op(
    "pool_scatter",
    "nest",
    infer=_infer_windows,
    reference=_scatter_reference,
    vjp=_scatter_vjp,
    lower=_lower_scatter,
    samples=Samples(
        tuple(_which_sample(shape, kwargs, shape) for shape, kwargs in _BACKWARD),
        dtypes=FLOATS,
    ),
    dtypes=FLOATS,
)


def pool_scatter(g: Any, which: Any, window: Any, strides: Any, pads: Any, sizes: Any) -> Tensor:
    """g at element `which` of each window of a tensor of spatial `sizes`, overlaps added."""
    inputs = (as_tensor(g), as_tensor(which))
    return make(scatter_op, inputs, _call(window, sizes, strides, pads)).outputs[0]


bind_function(scatter_op, pool_scatter)


def _lower_gather(nest: Nest, window: Any, strides: Any, pads: Any, sizes: Any) -> None:
    axes = nest.parallel()
    offsets = [nest.reduce(k) for k in window]
    s = ScalarBuilder()
    x = nest.load(0, _inside(axes, offsets, strides, pads))
    which = nest.load(1, [at(a) for a in axes])
    part = s.select(s.eq(which, _flat(nest, offsets, window)), x, s.const(0, x))
    nest.result(0, nest.accumulate("sum", part, over=offsets))


def _gather_reference(attrs: Attrs, x: Any, which: Any) -> Any:
    patches = _patches(attrs, x, attrs["sizes"], 0)
    return np.take_along_axis(patches, which[None].astype(np.int64), axis=0)[0]


def _gather_vjp(y: Tensor, g: Tensor, x: Tensor, which: Tensor) -> list[Tensor | None]:
    attrs = {**_window(y), "sizes": x.dims[1:-1]}
    return [make(scatter_op, (g, which), attrs).outputs[0], None]


gather_op = op(
    "pool_gather",
    "nest",
    infer=_infer_windows,
    reference=_gather_reference,
    vjp=_gather_vjp,
    lower=_lower_gather,
    samples=Samples(
        tuple(
            _which_sample(shape, kwargs, (shape[0], *kwargs["sizes"], shape[-1]))
            for shape, kwargs in _FORWARD
        ),
        dtypes=FLOATS,
    ),
    dtypes=FLOATS,
)


def pool_gather(x: Any, which: Any, window: Any, strides: Any, pads: Any, sizes: Any) -> Tensor:
    """Element `which` of each of the windows of x."""
    inputs = (as_tensor(x), as_tensor(which))
    return make(gather_op, inputs, _call(window, sizes, strides, pads)).outputs[0]


bind_function(gather_op, pool_gather)

# ---- window_sum, window_spread -----------------------------------------------------------------


def _lower_sum(nest: Nest, window: Any, strides: Any, pads: Any, sizes: Any) -> None:
    axes = nest.parallel()
    offsets = [nest.reduce(k) for k in window]
    x = nest.load(0, _inside(axes, offsets, strides, pads))
    nest.result(0, nest.accumulate("sum", x, over=offsets))


def _wide(x: Any) -> Any:
    return x.astype(np.float64) if x.dtype == np.float32 else x


def _sum_reference(attrs: Attrs, x: Any) -> Any:
    return _patches(attrs, _wide(x), attrs["sizes"], 0).sum(axis=0).astype(x.dtype)


def _sum_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    return [make(spread_op, (g,), {**_window(y), "sizes": x.dims[1:-1]}).outputs[0]]


sum_op = op(
    "window_sum",
    "nest",
    infer=_infer_windows,
    reference=_sum_reference,
    vjp=_sum_vjp,
    lower=_lower_sum,
    samples=Samples(tuple(Sample((shape,), kwargs) for shape, kwargs in _FORWARD), dtypes=FLOATS),
    dtypes=FLOATS,
)


def window_sum(x: Any, window: Any, strides: Any, pads: Any, sizes: Any) -> Tensor:
    """The sum of each of the windows of x; padding counts as 0."""
    return make(sum_op, (as_tensor(x),), _call(window, sizes, strides, pads)).outputs[0]


bind_function(sum_op, window_sum)


def _lower_spread(nest: Nest, window: Any, strides: Any, pads: Any, sizes: Any) -> None:
    axes = nest.parallel()
    offsets = [nest.reduce(k) for k in window]
    g = nest.load(0, _around(axes, offsets, strides, pads))
    nest.result(0, nest.accumulate("sum", g, over=offsets))


def _spread_reference(attrs: Attrs, g: Any) -> Any:
    patches = np.stack([_wide(g)] * int(np.prod(attrs["window"])))
    return _unpatched(attrs, patches, attrs["sizes"]).astype(g.dtype)


def _spread_vjp(y: Tensor, h: Tensor, g: Tensor) -> list[Tensor]:
    return [make(sum_op, (h,), {**_window(y), "sizes": g.dims[1:-1]}).outputs[0]]


spread_op = op(
    "window_spread",
    "nest",
    infer=_infer_windows,
    reference=_spread_reference,
    vjp=_spread_vjp,
    lower=_lower_spread,
    samples=Samples(tuple(Sample((shape,), kwargs) for shape, kwargs in _BACKWARD), dtypes=FLOATS),
    dtypes=FLOATS,
)


def window_spread(g: Any, window: Any, strides: Any, pads: Any, sizes: Any) -> Tensor:
    """For every position of spatial `sizes`, the sum of g over the windows it is in."""
    return make(spread_op, (as_tensor(g),), _call(window, sizes, strides, pads)).outputs[0]


bind_function(spread_op, window_spread)
