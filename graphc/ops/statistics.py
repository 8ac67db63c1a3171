"""Statistics, running sums, norms and softmax.

All but the running sums are compositions in their stable form; a shift by the row maximum does not
change the value, so it is a constant to differentiation.  Imports: ops.define, ops.arithmetic,
ops.math, ops.logic, ops.reduce, ops.shape, ops.state, graph, nest, types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphc.dims import add as add_dims
from graphc.errors import GraphTypeError
from graphc.graph import make
from graphc.nest import Index, Nest, at
from graphc.node import Attrs, Tensor
from graphc.ops.arithmetic import abs, astype, divide, equal, maximum, not_equal, where
from graphc.ops.define import (
    Sample,
    Samples,
    as_tensor,
    bind_function,
    floated,
    normalize_axis,
    op,
)
from graphc.ops.logic import isfinite
from graphc.ops.math import exp, log, power, rsqrt, sqrt, square
from graphc.ops.reduce import max, mean, min, sum
from graphc.ops.shape import reshape, squeeze
from graphc.ops.sizes import size
from graphc.ops.state import stop_gradient
from graphc.types import NUMBERS, TensorType, int64, uint64

Types = Sequence[TensorType]

# ---- softmax and relatives ---------------------------------------------------------------------


def _row_maximum(x: Tensor, axis: Any) -> Tensor:
    """The maximum, kept and constant; 0 where it is not finite, as inf - inf would be NaN."""
    top = stop_gradient(max(x, axis=axis, keepdims=True))
    return where(isfinite(top), top, 0)


def softmax(x: Any, axis: Any = -1) -> Tensor:
    """exp(x) / sum(exp(x)) over `axis`, without overflow."""
    x = floated(as_tensor(x))
    e = exp(x - _row_maximum(x, axis))
    return e / sum(e, axis=axis, keepdims=True)


def log_softmax(x: Any, axis: Any = -1) -> Tensor:
    """log(softmax(x)) over `axis`, without overflow or log(0)."""
    logits = floated(as_tensor(x))
    shifted = logits - _row_maximum(logits, axis)
    return shifted - log(sum(exp(shifted), axis=axis, keepdims=True))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow; -inf of nothing but -inf."""
    x = floated(as_tensor(x))
    top = _row_maximum(x, axis)
    total = log(sum(exp(x - top), axis=axis, keepdims=keepdims))
    if keepdims:
        return total + top
    return total + (reshape(top, ()) if axis is None else squeeze(top, axis))


# ---- mean, variance, norms ---------------------------------------------------------------------


def var(x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over `axis`, from the centred values; the divisor is the count less `ddof`."""
    x = floated(as_tensor(x))
    centred = x - mean(x, axis=axis, keepdims=True)
    total = sum(square(centred), axis=axis, keepdims=keepdims)
    return divide(total, size(x, axis, x.dtype) - ddof)


def std(x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation over `axis`; the divisor of the variance is the count less `ddof`.

    The gradient of equal elements, where it is 0, is 0.
    """
    variance = var(x, axis, ddof, keepdims)
    return where(equal(variance, 0), 0, sqrt(variance))


def moments(x: Any, axis: Any = None, keepdims: bool = False) -> tuple[Tensor, Tensor]:
    """The mean and the variance over `axis`."""
    return mean(x, axis=axis, keepdims=keepdims), var(x, axis=axis, keepdims=keepdims)


def norm(x: Any, ord: Any = 2, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The vector norm over `axis` (over all elements if None), as np.linalg.norm of vectors.

    ord   'fro' or 2, inf, -inf, 0 (how many elements are not 0) or any other number p, which
          gives sum(|x|**p) ** (1/p)
    The gradient of a norm that is 0 is 0.
    """
    x = floated(as_tensor(x))
    if ord in ("fro", "euclidean"):
        ord = 2
    if not isinstance(ord, (int, float, np.integer, np.floating)):
        raise GraphTypeError(f"norm: ord is a number or 'fro', not {ord!r}")
    if ord in (np.inf, -np.inf):
        return (max if ord > 0 else min)(abs(x), axis=axis, keepdims=keepdims)
    if ord == 0:
        return sum(astype(not_equal(x, 0), x.dtype), axis=axis, keepdims=keepdims)
    if ord == 1:
        return sum(abs(x), axis=axis, keepdims=keepdims)
    powers = square(x) if ord == 2 else power(abs(x), float(ord))
    total = sum(powers, axis=axis, keepdims=keepdims)
    root = sqrt(total) if ord == 2 else power(total, 1.0 / float(ord))
    return where(equal(total, 0), 0, root)


def l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Tensor:
    """x / sqrt(max(sum(x*x), epsilon)) over `axis`."""
    vectors = floated(as_tensor(x))
    return vectors * rsqrt(maximum(sum(square(vectors), axis=axis, keepdims=True), epsilon))


# ---- running sums and products -----------------------------------------------------------------


def _normalize_running(types: Types, attrs: Attrs) -> dict[str, Any]:
    rank = types[0].rank
    assert rank is not None
    return {**attrs, "axis": normalize_axis(attrs["axis"], rank)}


def _running_reference(function: Callable[..., Any], start: int) -> Callable[..., Any]:
    def reference(attrs: Attrs, x: Any) -> Any:
        axis = attrs["axis"]
        if attrs["reverse"]:
            x = np.flip(x, axis)
        with np.errstate(all="ignore"):
            total = function(x, axis=axis, dtype=np.float64 if x.dtype == np.float32 else x.dtype)
        total = total.astype(x.dtype)
        if attrs["exclusive"] and x.shape[axis]:
            first = np.full_like(np.take(x, [0], axis), start)
            last = x.shape[axis] - 1
            total = np.concatenate([first, np.take(total, range(last), axis)], axis)
        return np.flip(total, axis) if attrs["reverse"] else total

    return reference


def _running_loops(reducer: str, start: int) -> Callable[..., None]:
    def lower(nest: Nest, axis: int, exclusive: bool, reverse: bool) -> None:
        shape = nest.shape_of(0)
        kept = list(nest.parallel([d for i, d in enumerate(shape) if i != axis]))
        step = nest.reduce(shape[axis])
        last = add_dims(shape[axis], -1)

        def index(along: Index) -> list[Index]:
            found = [at(a) for a in kept]
            found.insert(axis, along)
            return found

        def position(shift: int) -> Index:
            guarded = shift != 0
            if reverse:
                return at((step, -1), shift=add_dims(last, -shift), guarded=guarded)
            return at(step, shift=shift, guarded=guarded)

        # an exclusive step reads the element before, and before the first one the neutral element
        x = nest.load(0, index(position(-1 if exclusive else 0)), fill=start)
        nest.running(reducer, x, step, 0, index(position(0)))

    return lower


def _running(
    name: str, reducer: str, numpy: Callable[..., Any], start: int, vjp: Any, onnx: str, doc: str
) -> Callable[..., Tensor]:
    calls = (
        Sample(((3, 5),), {"axis": 0}),
        Sample(((3, 5),), {"axis": -1}),
        Sample(((2, 3, 4),), {"axis": 1, "exclusive": True}),
        Sample(((2, 70),), {"axis": 1, "reverse": True}),
        Sample(((2, 5),), {"axis": 1, "reverse": True, "exclusive": True}),
        Sample(((2, 3),)),
        Sample(((0, 3),), {"axis": 0}),
    )
    record = op(
        name,
        "nest",
        infer=lambda types, attrs: (types[0],),
        normalize=_normalize_running,
        reference=_running_reference(numpy, start),
        vjp=vjp,
        lower=_running_loops(reducer, start),
        samples=Samples(calls, 0.5, 1.5, (0.0,), dtypes=NUMBERS, tolerance=4.0),
        onnx=onnx,
        dtypes=NUMBERS,
    )

    def function(
        x: Any,
        axis: int | None = None,
        exclusive: bool = False,
        reverse: bool = False,
        name: str | None = None,
    ) -> Tensor:
        x = as_tensor(x)
        if not x.dtype.is_float and x.dtype.bits < 64:
            x = astype(x, uint64 if x.dtype.kind == "u" else int64)
        if axis is None:
            x, axis = reshape(x, (-1,)), 0
        attrs = {"axis": int(axis), "exclusive": bool(exclusive), "reverse": bool(reverse)}
        return make(record, (x,), attrs, name).outputs[0]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    bind_function(record, function, name)
    return function


def _cumsum_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    attrs = dict(y.node.attrs)
    return [cumsum(g, attrs["axis"], attrs["exclusive"], not attrs["reverse"])]


def _cumprod_vjp(y: Tensor, g: Tensor, x: Tensor) -> list[Tensor]:
    """Before the first zero: the sum of later g * y, over x.  At it: the same with that zero taken
    as 1.  After it: 0.  (Second derivatives treat the zeros' positions as fixed.)
    """
    attrs = dict(y.node.attrs)
    axis, exclusive, reverse = attrs["axis"], attrs["exclusive"], attrs["reverse"]
    zero = equal(x, 0)
    zeros = cumsum(astype(zero, int64), axis, False, reverse)
    first = where(equal(zeros, 1), zero, False)
    filled = where(first, 1, x)
    before = equal(zeros, 0)

    def later(products: Tensor) -> Tensor:
        return cumsum(g * products, axis, exclusive, not reverse)

    ratio = later(y) / where(before, x, 1)
    at_first = later(cumprod(filled, axis, exclusive, reverse))
    return [where(before, ratio, where(first, at_first, 0))]


cumsum = _running(
    "cumsum",
    "sum",
    np.cumsum,
    0,
    _cumsum_vjp,
    "CumSum",
    "Running sums along `axis` (of the flattened tensor if None); `exclusive` leaves out the "
    "element itself, `reverse` runs from the end.  Small integers are summed in 64 bits.",
)
cumprod = _running(
    "cumprod",
    "prod",
    np.cumprod,
    1,
    _cumprod_vjp,
    "",
    "Running products along `axis`; see `cumsum`.",
)


__all__ = [
    "cumprod",
    "cumsum",
    "l2_normalize",
    "log_softmax",
    "logsumexp",
    "moments",
    "norm",
    "softmax",
    "std",
    "var",
]
