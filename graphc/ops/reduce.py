"""Reductions over any axes: sum, prod, max, min, any, all, argmax, argmin, and what they compose.

Imports: ops.define, ops.arithmetic, ops.shape, graph, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.errors import GraphTypeError, ShapeError
from graphc.graph import make
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import astype, divide, equal, multiply, where
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    Sample,
    Samples,
    as_tensor,
    bind_function,
    deferred,
    floated,
    normalize_axes,
    op,
)
from graphc.ops.shape import broadcast_along, reshape, sum_to_like
from graphc.ops.sizes import size
from graphc.types import DTYPES, NUMBERS, DType, TensorType, bool_, int64, uint64

Types = Sequence[TensorType]


def _normalize(types: Types, attrs: Attrs) -> dict[str, Any]:
    rank = types[0].rank
    assert rank is not None
    return {**attrs, "axes": normalize_axes(attrs["axes"], rank)}


def _reduced(types: Types, attrs: Attrs, dtype: DType) -> tuple[TensorType, ...]:
    shape = types[0].shape
    if shape is None:
        scalar = attrs["axes"] is None and not attrs["keepdims"]
        return (TensorType(dtype, () if scalar else None),)
    axes = attrs["axes"]
    if attrs["keepdims"]:
        return (TensorType(dtype, tuple(1 if i in axes else d for i, d in enumerate(shape))),)
    return (TensorType(dtype, tuple(d for i, d in enumerate(shape) if i not in axes)),)


def _expand_unreduce(g: Tensor, x: Tensor, axes: Any, keepdims: bool) -> Tensor:
    shape = x.dims
    reduced = normalize_axes(axes, len(shape))
    kept = tuple(i for i in range(len(shape)) if i not in reduced)
    if keepdims:
        g = reshape(g, tuple(shape[i] for i in kept))
    return broadcast_along(g, shape, kept)


unreduce = deferred(
    "unreduce",
    expand=_expand_unreduce,
    dtype=lambda types, attrs: types[0].dtype,
    reference=lambda attrs, g, x: np.broadcast_to(
        g if attrs["keepdims"] else np.expand_dims(g, normalize_axes(attrs["axes"], x.ndim)),
        x.shape,
    ),
    vjp=lambda y, g, h, x: [
        sum(g, axis=y.node.attrs["axes"], keepdims=y.node.attrs["keepdims"]),
        None,
    ],
)
"""A reduced tensor repeated along the axes that were reduced: `unreduce(g, x, axes, keepdims)`."""


def _like_input(y: Tensor, value: Tensor, x: Tensor) -> Tensor:
    return unreduce(value, x, axes=y.node.attrs["axes"], keepdims=y.node.attrs["keepdims"])


def _reduction_samples(dtypes: tuple[DType, ...], gradient: bool) -> Samples:
    calls = (
        Sample(((3, 5),)),
        Sample(((3, 5),), {"axis": 0}),
        Sample(((3, 70),), {"axis": -1}),
        Sample(((2, 3, 4),), {"axis": (0, 2), "keepdims": True}),
        Sample(((2, 3, 4),), {"axis": 1}),
        Sample(((),)),
        Sample(((2, 200),)),
    )
    edges = (0.0, -0.0, np.inf, np.nan)
    return Samples(calls, edges=edges, dtypes=dtypes, gradient=(0,) if gradient else ())


def _widened(x: Tensor) -> Tensor:
    """Small integers and bool in 64 bits, as NumPy sums them."""
    if x.dtype.is_float or x.dtype.bits == 64:
        return x
    return astype(x, uint64 if x.dtype.kind == "u" else int64)


def _reduction(
    name: str,
    *,
    reducer: str,
    reference: Callable[..., Any],
    vjp: Any,
    dtypes: tuple[DType, ...],
    prepared: Callable[[Tensor], Tensor] = lambda x: x,
    onnx: str = "",
    doc: str = "",
) -> Callable[..., Tensor]:
    """Declare a reduction `f(x, axis=None, keepdims=False)` of `prepared(x)`."""

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        return _reduced(types, attrs, types[0].dtype)

    def ref(attrs: Attrs, x: Any) -> Any:
        axes = None if attrs["axes"] is None else tuple(attrs["axes"])
        with np.errstate(all="ignore"):
            return np.asarray(reference(x, axis=axes, keepdims=attrs["keepdims"])).astype(x.dtype)

    record = op(
        name,
        "reduce",
        infer=infer,
        normalize=_normalize,
        reference=ref,
        vjp=vjp,
        lower=reducer,
        samples=_reduction_samples(dtypes, vjp is not NOT_DIFFERENTIABLE),
        onnx=onnx,
        dtypes=dtypes,
    )

    def function(
        x: Any, axis: Any = None, keepdims: bool = False, name: str | None = None
    ) -> Tensor:
        x = prepared(as_tensor(x))
        axes = tuple(axis) if isinstance(axis, (list, tuple, range)) else axis
        return make(record, (x,), {"axes": axes, "keepdims": bool(keepdims)}, name).outputs[0]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    bind_function(record, function, name)
    return function


# ---- sum ---------------------------------------------------------------------------------------


def _sum_reference(x: Any, axis: Any, keepdims: bool) -> Any:
    # float32 is summed in float64 so that the oracle is better than what it judges
    wide = np.float64 if x.dtype == np.float32 else x.dtype
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=wide)


sum: Callable[..., Tensor] = _reduction(
    "sum",
    reducer="sum",
    reference=_sum_reference,
    vjp=lambda y, g, x: [_like_input(y, g, x)],
    dtypes=NUMBERS,
    prepared=_widened,
    onnx="ReduceSum",
    doc="The sum over `axis` (an int, several, or all if None); integers are summed in 64 bits.",
)

# ---- prod --------------------------------------------------------------------------------------


def _prod_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    """g times the product of the others, right for any number of zeros.

    With one zero the others' product is taken with that zero left out; with two it is 0.
    """
    zero = equal(x, 0)
    attrs = {"axis": y.node.attrs["axes"], "keepdims": y.node.attrs["keepdims"]}
    zeros = _like_input(y, sum(astype(zero, x.dtype), **attrs), x)
    filled = where(zero, 1, x)
    others = _like_input(y, prod(filled, **attrs), x)
    here = where(
        zero, where(equal(zeros, 1), others, 0), where(equal(zeros, 0), others / filled, 0)
    )
    return [multiply(_like_input(y, g, x), here)]


prod = _reduction(
    "prod",
    reducer="prod",
    reference=np.prod,
    vjp=_prod_vjp,
    dtypes=NUMBERS,
    prepared=_widened,
    onnx="ReduceProd",
    doc="The product over `axis`; integers are multiplied in 64 bits.",
)

# ---- max, min ----------------------------------------------------------------------------------


def _extreme_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    """Equal shares to all elements that attain the extreme, so that the gradient sums to g."""
    hit = equal(x, _like_input(y, y, x))
    attrs = {"axis": y.node.attrs["axes"], "keepdims": y.node.attrs["keepdims"]}
    count = sum(astype(hit, x.dtype), **attrs)
    return [where(hit, _like_input(y, divide(g, count), x), 0)]


def _extreme_reference(function: Any, lowest: bool) -> Any:
    def reference(x: Any, axis: Any, keepdims: bool) -> Any:
        if x.dtype.kind == "f":
            start = -np.inf if lowest else np.inf
        elif x.dtype.kind == "b":
            start = not lowest
        else:
            info = np.iinfo(x.dtype)
            start = info.min if lowest else info.max
        return function(x, axis=axis, keepdims=keepdims, initial=start)

    return reference


max = _reduction(
    "max",
    reducer="max",
    reference=_extreme_reference(np.max, True),
    vjp=_extreme_vjp,
    dtypes=NUMBERS,
    onnx="ReduceMax",
    doc="The largest element over `axis`, NaN if any is; -inf (the least integer) if none.",
)

min = _reduction(
    "min",
    reducer="min",
    reference=_extreme_reference(np.min, False),
    vjp=_extreme_vjp,
    dtypes=NUMBERS,
    onnx="ReduceMin",
    doc="The smallest element over `axis`, NaN if any is; +inf (the top integer) if there is none.",
)

# ---- any, all ----------------------------------------------------------------------------------
any = _reduction(
    "any",
    reducer="any",
    reference=np.any,
    vjp=NOT_DIFFERENTIABLE,
    dtypes=(bool_,),
    prepared=lambda x: astype(x, bool_),
    doc="Whether any element over `axis` is true (not zero).",
)

all = _reduction(
    "all",
    reducer="all",
    reference=np.all,
    vjp=NOT_DIFFERENTIABLE,
    dtypes=(bool_,),
    prepared=lambda x: astype(x, bool_),
    doc="Whether every element over `axis` is true (not zero).",
)

# ---- argmax, argmin ----------------------------------------------------------------------------


def _argument(name: str, reference: Callable[..., Any], onnx: str) -> Callable[..., Tensor]:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        shape, axes = types[0].shape, attrs["axes"]
        if shape is not None and 0 in [shape[a] for a in axes]:
            raise ShapeError(f"{name} of no elements, in {types[0]}")
        return _reduced(types, attrs, int64)

    def ref(attrs: Attrs, x: Any) -> Any:
        axes = attrs["axes"]
        axis = None if axes is None or len(axes) == x.ndim else axes[0]
        return np.asarray(reference(x, axis=axis, keepdims=attrs["keepdims"]), np.int64)

    record = op(
        name,
        "reduce",
        infer=infer,
        normalize=_normalize,
        reference=ref,
        vjp=NOT_DIFFERENTIABLE,
        lower=name,
        samples=Samples(
            (Sample(((3, 5),)), Sample(((3, 5),), {"axis": 0}), Sample(((3, 70),), {"axis": 1})),
            edges=(0.0, np.inf, np.nan),
            dtypes=DTYPES,
            gradient=(),
        ),
        onnx=onnx,
        dtypes=DTYPES,
    )

    def function(
        x: Any, axis: int | None = None, keepdims: bool = False, name: str | None = None
    ) -> Tensor:
        if axis is not None and not isinstance(axis, (int, np.integer)):
            raise GraphTypeError(f"{name}: an axis is an integer or None, not {axis!r}")
        axes = None if axis is None else (int(axis),)
        attrs = {"axes": axes, "keepdims": keepdims}
        return make(record, (as_tensor(x),), attrs, name).outputs[0]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"np.{name}: the first position of the extreme along `axis` (of the flattened tensor if "
        "None), as int64; NaN counts as the extreme."
    )
    bind_function(record, function, name)
    return function


argmax = _argument("argmax", np.argmax, "ArgMax")
argmin = _argument("argmin", np.argmin, "ArgMin")

# ---- compositions ------------------------------------------------------------------------------


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over `axis`; NaN of no elements; integers give floats."""
    x = floated(as_tensor(x))
    return divide(sum(x, axis, keepdims), size(x, axis, x.dtype))


__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "max",
    "mean",
    "min",
    "prod",
    "sum",
    "sum_to_like",
    "unreduce",
]
