"""Logic, bits, tests for special values, clipping and constants in another tensor's shape.

Imports: ops.define, ops.arithmetic, ops.reduce, ops.shape, graph, kernel, types.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphc.kernel import Expr
from graphc.node import Tensor
from graphc.ops.arithmetic import abs, astype, equal, less_equal, maximum, where
from graphc.ops.define import (
    NOT_DIFFERENTIABLE,
    ScalarBuilder,
    as_tensor,
    as_tensors,
    constant,
    elementwise,
    promoted,
)
from graphc.ops.reduce import all as reduce_all
from graphc.types import INTEGERS, NUMBERS, DType, bool_

_BITS = (*INTEGERS, bool_)

# ---- bits; on bool these are the logical operators ---------------------------------------------
bitwise_and = elementwise(
    "bitwise_and",
    arity=2,
    dtypes=_BITS,
    scalar=lambda s, x, y: s.and_(x, y),
    reference=np.bitwise_and,
    vjp=NOT_DIFFERENTIABLE,
    low=-9,
    high=99,
    operator=True,
    commutative=True,
    onnx="And",
)
bitwise_or = elementwise(
    "bitwise_or",
    arity=2,
    dtypes=_BITS,
    scalar=lambda s, x, y: s.or_(x, y),
    reference=np.bitwise_or,
    vjp=NOT_DIFFERENTIABLE,
    low=-9,
    high=99,
    operator=True,
    commutative=True,
    onnx="Or",
)
bitwise_xor = elementwise(
    "bitwise_xor",
    arity=2,
    dtypes=_BITS,
    scalar=lambda s, x, y: s.xor(x, y),
    reference=np.bitwise_xor,
    vjp=NOT_DIFFERENTIABLE,
    low=-9,
    high=99,
    operator=True,
    commutative=True,
    onnx="Xor",
)
invert = elementwise(
    "invert",
    dtypes=_BITS,
    scalar=lambda s, x: s.not_(x),
    reference=np.invert,
    vjp=NOT_DIFFERENTIABLE,
    low=-9,
    high=99,
    operator=True,
    onnx="Not",
    doc="~x: all bits flipped; the negation of a bool.",
)
bitwise_not = invert

# ---- shifts: defined for every count, unlike C's -----------------------------------------------


def _shift_body(op: str) -> Any:
    def body(s: ScalarBuilder, x: Expr, y: Expr) -> Expr:
        inside = s.lt(y, s.const(x.dtype.bits, y))
        if y.dtype.kind == "i":
            inside = s.and_(s.ge(y, 0), inside)
        zero = s.const(0, x)
        count = s.select(inside, y, zero)
        gone = s.select(s.lt(x, 0), s.const(-1, x), zero) if _keeps_sign(op, x) else zero
        return s.select(inside, s.apply(op, x, count), gone)

    return body


def _keeps_sign(op: str, x: Expr) -> bool:
    return op == "shr" and x.dtype.kind == "i"


left_shift = elementwise(
    "left_shift",
    arity=2,
    dtypes=INTEGERS,
    scalar=_shift_body("shl"),
    reference=np.left_shift,
    vjp=NOT_DIFFERENTIABLE,
    low=0,
    high=70,
    operator=True,
    doc="x << y; 0 where y is negative or not below the width.",
)
right_shift = elementwise(
    "right_shift",
    arity=2,
    dtypes=INTEGERS,
    scalar=_shift_body("shr"),
    reference=np.right_shift,
    vjp=NOT_DIFFERENTIABLE,
    low=-9,
    high=99,
    operator=True,
    doc="x >> y, keeping the sign; only sign bits are left where y is not below the width.",
)

# ---- truth values ------------------------------------------------------------------------------


def logical_and(x: Any, y: Any) -> Tensor:
    """Whether both are true (not zero)."""
    return bitwise_and(astype(x, bool_), astype(y, bool_))


def logical_or(x: Any, y: Any) -> Tensor:
    """Whether one or both are true (not zero)."""
    return bitwise_or(astype(x, bool_), astype(y, bool_))


def logical_xor(x: Any, y: Any) -> Tensor:
    """Whether exactly one is true (not zero)."""
    return bitwise_xor(astype(x, bool_), astype(y, bool_))


def logical_not(x: Any) -> Tensor:
    """Whether x is false (zero)."""
    return invert(astype(x, bool_))


# ---- special values ----------------------------------------------------------------------------


def _classifier(name: str, otherwise: bool, onnx: str = "") -> Any:
    def body(s: ScalarBuilder, x: Expr) -> Expr:
        return s.apply(name, x) if x.dtype.is_float else s.const(otherwise, bool_)

    return elementwise(
        name,
        result="bool",
        scalar=body,
        reference=getattr(np, name),
        vjp=NOT_DIFFERENTIABLE,
        edges=(0.0, -0.0, np.inf, -np.inf, np.nan),
        onnx=onnx,
    )


isnan = _classifier("isnan", False, "IsNaN")
isinf = _classifier("isinf", False, "IsInf")
isfinite = _classifier("isfinite", True)


def isclose(
    a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """|a - b| <= atol + rtol * |b|, elementwise; equal infinities are close."""
    a, b = as_tensors(a, b)
    near = bitwise_and(less_equal(abs(a - b), atol + rtol * abs(b)), isfinite(b))
    close = bitwise_or(near, equal(a, b))
    if equal_nan:
        close = bitwise_or(close, bitwise_and(isnan(a), isnan(b)))
    return close


def allclose(
    a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """Whether every element of a is close to that of b, as a scalar bool."""
    return reduce_all(isclose(a, b, rtol, atol, equal_nan))


# ---- clip --------------------------------------------------------------------------------------


def _clip_vjp(y: Tensor, g: Tensor, x: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
    """At a bound the gradient flows to x; where low > high the result is high, and so it goes."""
    over = maximum(x, low) > high
    under = x < low
    inner = where(under, 0, g)
    return [where(over, 0, inner), where(over, 0, where(under, g, 0)), where(over, g, 0)]


_clip = elementwise(
    "clip",
    arity=3,
    dtypes=NUMBERS,
    scalar=lambda s, x, low, high: s.min(s.max(x, low), high),
    reference=lambda x, low, high: np.minimum(np.maximum(x, low), high),
    vjp=_clip_vjp,
    edges=(0.0, np.inf, -np.inf, np.nan),
    onnx="Clip",
)


def _limits(dtype: DType) -> tuple[Tensor, Tensor]:
    if dtype.is_float:
        return constant(-np.inf, dtype), constant(np.inf, dtype)
    if dtype.is_bool:
        return constant(False), constant(True)
    info = np.iinfo(dtype.numpy)
    return constant(int(info.min), dtype), constant(int(info.max), dtype)


def clip(x: Any, low: Any = None, high: Any = None, name: str | None = None) -> Tensor:
    """x limited to [low, high]; None leaves a side open.  At a bound the gradient is 1."""
    if low is None and high is None:
        return as_tensor(x)
    if low is None or high is None:
        # an open side is the widest bound, so that the gradient at the other one is that of clip
        x, bound = promoted("clip", as_tensors(x, high if low is None else low))
        least, most = _limits(x.dtype)
        low, high = (least, bound) if low is None else (bound, most)
    return _clip(x, low, high, name=name)


clip_by_value = clip

__all__ = [
    "allclose",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "clip",
    "clip_by_value",
    "invert",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "left_shift",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "right_shift",
]
